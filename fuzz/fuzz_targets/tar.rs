//! Archives in bytes, their checksums made right so that what lies behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runtime::image::tar_reader::TarReader;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    for header in bytes.as_chunks_mut::<512>().0 {
        let sum: u32 = (0..)
            .zip(&*header)
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        if &header[257..262] == b"ustar" {
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let mut reader = TarReader::new(&bytes[..]);
    let mut count = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(!entry.path.is_empty());
        let mut stored = 0;
        let mut end = 0;
        for extent in entry.sparse.iter().flatten() {
            assert!(extent.offset >= end, "runs of data are in order");
            end = extent
                .offset
                .checked_add(extent.length)
                .expect("within 64 bits");
            stored += extent.length;
        }
        assert!(end <= entry.size_bytes && stored <= entry.size_bytes);
        count += 1;
        assert!(count <= bytes.len() / 512, "every entry has a header");
    }
});
