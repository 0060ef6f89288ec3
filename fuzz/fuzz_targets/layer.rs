//! Layers, entry by entry: type, path and content from the input, with true headers and any compression.
//!
//! Whatever the entries say, nothing outside of the layer's directory changes, and what is in it has no device
//! but whiteouts.
#![no_main]

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use runtime::image::digest::Digest;
use runtime::image::unpack::{Limits, unpack_layer};

use libfuzzer_sys::fuzz_target;

struct Place {
    _directory: tempfile::TempDir,
    outside: PathBuf,
    layer: PathBuf,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let outside = directory.path().join("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("file"), "untouched").expect("written");
    Place {
        layer: directory.path().join("layer"),
        outside,
        _directory: directory,
    }
});

/// Components that matter to an unpacker, by number.
const WORDS: [&str; 16] = [
    "a",
    "b",
    "..",
    ".",
    "",
    "/",
    ".wh.a",
    ".wh..wh..opq",
    "../outside",
    "outside",
    "file",
    "c",
    ".wh.",
    ".wh...",
    "d",
    "e",
];

fuzz_target!(|input: &[u8]| {
    let place = &*PLACE;
    let tar = archive(input);
    let diff_id = Digest::of(&tar);
    std::fs::create_dir(&place.layer).expect("made");
    let limits = Limits {
        unpacked_bytes_max: 1 << 20,
        ..Limits::default()
    };
    let result = unpack_layer(
        &tar[..],
        &place.layer,
        &[],
        &diff_id,
        &limits,
        &AtomicBool::new(false),
    );
    let mut count = 0;
    check(&place.layer, &mut count);
    if result.is_ok() {
        assert!(count <= input.len() * 16, "no more comes out than went in");
    }
    std::fs::remove_dir_all(&place.layer).expect("removed");
    let names: Vec<_> = std::fs::read_dir(&place.outside)
        .expect("still there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(names, ["file"]);
    let file = place.outside.join("file");
    assert_eq!(std::fs::read(&file).expect("still there"), b"untouched");
    assert_eq!(
        file.metadata().expect("still there").nlink(),
        1,
        "hard linked from outside"
    );
});

fn check(directory: &Path, count: &mut usize) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        let metadata = path.symlink_metadata().expect("there");
        let kind = metadata.file_type();
        *count += 1;
        if kind.is_dir() {
            check(&path, count);
        }
        assert!(!kind.is_socket(), "{path:?}");
    }
}

/// Each entry: type, number of path components, their words (two a byte), number of target components, their
/// words, number of data bytes, the data.
fn archive(mut input: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    while let [kind, rest @ ..] = input {
        let (path, rest) = path(rest);
        let (link, rest) = self::path(rest);
        let (data, rest) = match rest {
            [count, rest @ ..] => rest.split_at(usize::from(*count).min(rest.len())),
            [] => (&[][..], rest),
        };
        input = rest;
        let types = b"0123456x";
        let kind = types[usize::from(*kind) % types.len()];
        let data = if matches!(kind, b'0' | b'x') {
            data
        } else {
            &[]
        };
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000755");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// At most seven components, and the rest of the input.
fn path(input: &[u8]) -> (String, &[u8]) {
    let [count, rest @ ..] = input else {
        return (String::new(), input);
    };
    let (bytes, rest) = rest.split_at(usize::from(*count % 4).min(rest.len()));
    let words: Vec<&str> = bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|word| WORDS[usize::from(word)])
        .collect();
    (words.join("/"), rest)
}
