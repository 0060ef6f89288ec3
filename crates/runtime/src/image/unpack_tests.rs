//! Layers good and hostile.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

/// One member: type, path, link target or data.
struct Member<'a>(u8, &'a str, &'a str);

fn tar_of(members: &[Member<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for Member(kind, path, content) in members {
        tar.append(&header_of(*kind, path, content), data_of(*kind, content))
            .expect("in memory");
    }
    tar.into_inner().expect("in memory")
}

fn data_of(kind: u8, content: &str) -> &[u8] {
    if kind == b'0' {
        content.as_bytes()
    } else {
        b""
    }
}

/// Written field by field, since the writing crate refuses hostile names.
fn header_of(kind: u8, path: &str, content: &str) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_size(data_of(kind, content).len() as u64);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000_000_000);
    match kind {
        b'1' | b'2' => {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes())
        }
        b'3' | b'4' => {
            header.set_device_major(1).expect("gnu header");
            header.set_device_minor(3).expect("gnu header");
        }
        _ => {}
    }
    header.set_cksum();
    header
}

struct Unpacked {
    directory: tempfile::TempDir,
    result: Result<Usage, UnpackError>,
}

impl Unpacked {
    fn root(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    /// Every path with its kind and content, root left out.
    fn listing(&self) -> BTreeMap<String, String> {
        let mut listing = BTreeMap::new();
        let mut pending = vec![self.root()];
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(directory).expect("readable") {
                let path = entry.expect("readable").path();
                let metadata = path.symlink_metadata().expect("there");
                let kind = metadata.file_type();
                let what = if kind.is_dir() {
                    let opaque = xattr(&path, OPAQUE_XATTR).is_some();
                    if opaque {
                        "opaque dir".to_owned()
                    } else {
                        "dir".to_owned()
                    }
                } else if kind.is_symlink() {
                    format!("-> {}", std::fs::read_link(&path).expect("link").display())
                } else if kind.is_char_device() {
                    if metadata.rdev() == 0 {
                        "whiteout".to_owned()
                    } else {
                        format!("char {:x}", metadata.rdev())
                    }
                } else if kind.is_file() {
                    format!("file {}", std::fs::read_to_string(&path).expect("text"))
                } else {
                    "other".to_owned()
                };
                if kind.is_dir() {
                    pending.push(path.clone());
                }
                let name = path
                    .strip_prefix(self.root())
                    .expect("below")
                    .display()
                    .to_string();
                listing.insert(name, what);
            }
        }
        listing
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn unpack_over(parents: &[&Unpacked], bytes: &[u8], diff_id: &Digest, limits: &Limits) -> Unpacked {
    let directory = tempfile::tempdir().expect("temporary directory");
    let target = directory.path().join("layer");
    std::fs::create_dir(&target).expect("made");
    std::fs::write(directory.path().join("outside"), "untouched").expect("made");
    let parents: Vec<OwnedFd> = parents
        .iter()
        .map(|p| File::open(p.root()).expect("opened").into())
        .collect();
    let result = unpack_layer(
        bytes,
        &target,
        &parents,
        diff_id,
        limits,
        &AtomicBool::new(false),
    );
    let outside = std::fs::read_to_string(directory.path().join("outside")).expect("still there");
    assert_eq!(outside, "untouched");
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("readable")
            .count(),
        2,
        "nothing beside the layer"
    );
    Unpacked { directory, result }
}

fn unpack(members: &[Member<'_>]) -> Unpacked {
    let bytes = tar_of(members);
    unpack_over(&[], &bytes, &Digest::of(&bytes), &Limits::default())
}

fn unpack_on(parent: &Unpacked, members: &[Member<'_>]) -> Unpacked {
    let bytes = tar_of(members);
    unpack_over(&[parent], &bytes, &Digest::of(&bytes), &Limits::default())
}

#[track_caller]
fn check(unpacked: &Unpacked, expect: &[(&str, &str)]) {
    if let Err(error) = &unpacked.result {
        panic!("{error}");
    }
    let listing = unpacked.listing();
    let listing: Vec<(&str, &str)> = listing
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert_eq!(listing, expect);
}

#[track_caller]
fn refused(unpacked: &Unpacked, expect: &str) {
    match &unpacked.result {
        Err(UnpackError::Corrupt(reason)) => assert!(reason.contains(expect), "{reason}"),
        other => panic!("{other:?}, expected {expect}"),
    }
}

use Member as M;

#[test]
fn unpacks_every_kind() {
    let unpacked = unpack(&[
        M(b'5', "./", ""),
        M(b'5', "d/", ""),
        M(b'0', "d/file", "text"),
        M(b'1', "hard", "d/file"),
        M(b'1', "hard2", "/d/file"),
        M(b'2', "sym", "../../etc/passwd"),
        M(b'3', "null", ""),
        M(b'6', "fifo", ""),
        M(b'0', "implied/deep/file", "x"),
    ]);
    check(
        &unpacked,
        &[
            ("d", "dir"),
            ("d/file", "file text"),
            ("fifo", "other"),
            ("hard", "file text"),
            ("hard2", "file text"),
            ("implied", "dir"),
            ("implied/deep", "dir"),
            ("implied/deep/file", "file x"),
            ("null", "char 103"),
            ("sym", "-> ../../etc/passwd"),
        ],
    );
    let file = unpacked.root().join("d/file").metadata().expect("there");
    assert_eq!(
        (file.uid(), file.gid(), file.mtime(), file.nlink()),
        (7, 8, 1_000_000_000, 3)
    );
    assert_eq!(file.permissions().mode() & 0o7777, 0o644);
    let directory = unpacked.root().join("d").metadata().expect("there");
    assert_eq!(
        directory.mtime(),
        1_000_000_000,
        "times of directories survive what is put into them"
    );
    assert!(
        unpacked
            .root()
            .join("fifo")
            .symlink_metadata()
            .expect("there")
            .file_type()
            .is_fifo()
    );
    let usage = unpacked.result.as_ref().expect("unpacked");
    assert_eq!(usage.inode_count, 11);
}

#[test]
fn later_entries_replace_earlier_ones() {
    check(
        &unpack(&[M(b'0', "a", "1"), M(b'0', "a", "2")]),
        &[("a", "file 2")],
    );
    check(
        &unpack(&[M(b'0', "a/b", "1"), M(b'0', "a", "2")]),
        &[("a", "file 2")],
    );
    check(
        &unpack(&[M(b'0', "a", "1"), M(b'5', "a", ""), M(b'0', "a/b", "2")]),
        &[("a", "dir"), ("a/b", "file 2")],
    );
    check(
        &unpack(&[M(b'2', "a", "b"), M(b'0', "a", "2")]),
        &[("a", "file 2")],
    );
    check(
        &unpack(&[M(b'5', "a", ""), M(b'0', "a/b", "1"), M(b'5', "a/", "")]),
        &[("a", "dir"), ("a/b", "file 1")],
    );
    // A hard link is replaced, not written through.
    check(
        &unpack(&[M(b'0', "a", "1"), M(b'1', "b", "a"), M(b'0', "b", "2")]),
        &[("a", "file 1"), ("b", "file 2")],
    );
}

#[test]
fn whiteouts_become_overlayfs_own() {
    let base = unpack(&[
        M(b'0', "d/a", "1"),
        M(b'0', "e/b", "1"),
        M(b'0', "f/c", "1"),
        M(b'0', "g", "1"),
    ]);
    check(
        &unpack_on(
            &base,
            &[
                M(b'0', "d/.wh.a", ""),
                M(b'5', "e/", ""),
                M(b'0', "e/.wh..wh..opq", ""),
                M(b'0', ".wh.f", ""),
                M(b'0', ".wh.g", ""),
                M(b'0', "g", "2"),
                M(b'0', ".wh..wh.plnk", ""),
                M(b'0', ".wh..wh.aufs/x", ""),
            ],
        ),
        &[
            ("d", "dir"),
            ("d/a", "whiteout"),
            ("e", "opaque dir"),
            ("f", "whiteout"),
            ("g", "file 2"),
        ],
    );
    // A directory that comes back after its whiteout shows nothing of what was below, listed or not.
    for again in [M(b'5', "d", ""), M(b'0', "d/new", "")] {
        let upper = unpack_on(&base, &[M(b'0', ".wh.d", ""), again, M(b'0', "d/new", "2")]);
        check(&upper, &[("d", "opaque dir"), ("d/new", "file 2")]);
    }
    // A layer's own content is not hidden by its whiteout.
    check(
        &unpack_on(&base, &[M(b'0', "g", "2"), M(b'0', ".wh.g", "")]),
        &[("g", "file 2")],
    );
    let own = unpack_on(&base, &[M(b'0', "d/x", "2"), M(b'0', ".wh.d", "")]);
    check(&own, &[("d", "opaque dir"), ("d/x", "file 2")]);
    // Nothing is below the lowest layer.
    check(
        &unpack(&[M(b'0', ".wh.a", ""), M(b'0', "d/.wh..wh..opq", "")]),
        &[("d", "dir")],
    );
    for bad in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        refused(&unpack_on(&base, &[M(b'0', bad, "")]), "whiteout");
    }
}

#[test]
fn overlayfs_reads_them_so() {
    let base = unpack(&[
        M(b'0', "d/hidden", "1"),
        M(b'0', "d/kept", "1"),
        M(b'0', "opaque/hidden", "1"),
        M(b'0', "again/hidden", "1"),
        M(b'0', "gone/x", "1"),
    ]);
    let upper = unpack_on(
        &base,
        &[
            M(b'0', "d/.wh.hidden", ""),
            M(b'0', "opaque/.wh..wh..opq", ""),
            M(b'0', "opaque/new", "2"),
            M(b'0', ".wh.again", ""),
            M(b'0', "again/new", "2"),
            M(b'0', ".wh.gone", ""),
        ],
    );
    let merged = tempfile::tempdir().expect("temporary directory");
    let run = |program: &str, arguments: &[&str]| {
        let status = std::process::Command::new(program)
            .args(arguments)
            .arg(merged.path())
            .status();
        assert!(status.expect("runs").success(), "{program}");
    };
    let layers = format!(
        "lowerdir={}:{}",
        upper.root().display(),
        base.root().display()
    );
    run("mount", &["-t", "overlay", "none", "-o", &layers]);
    let output = std::process::Command::new("find")
        .args([".", "-type", "f"])
        .current_dir(merged.path())
        .output();
    run("umount", &[]);
    let text = String::from_utf8(output.expect("runs").stdout).expect("text");
    let mut files: Vec<&str> = text.lines().collect();
    files.sort_unstable();
    assert_eq!(files, ["./again/new", "./d/kept", "./opaque/new"]);
}

#[test]
fn implied_directories_take_after_those_below() {
    let base = unpack(&[M(b'5', "d", "")]);
    std::fs::set_permissions(
        base.root().join("d"),
        std::fs::Permissions::from_mode(0o1777),
    )
    .expect("set");
    std::fs::set_permissions(base.root(), std::fs::Permissions::from_mode(0o711)).expect("set");
    let upper = unpack_on(&base, &[M(b'0', "d/file", "x"), M(b'0', "new/file", "x")]);
    let metadata = |path: &str| upper.root().join(path).metadata().expect("there");
    assert_eq!(metadata("d").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(
        (metadata("d").uid(), metadata("d").mtime()),
        (7, 1_000_000_000)
    );
    assert_eq!(metadata("").permissions().mode() & 0o7777, 0o711);
    assert_eq!(
        (
            metadata("new").uid(),
            metadata("new").permissions().mode() & 0o7777
        ),
        (0, 0o755)
    );
}

#[test]
fn symlinks_within_the_layer_are_followed() {
    let members = [
        M(b'5', "usr/lib", ""),
        M(b'2', "lib", "usr/lib"),
        M(b'0', "lib/a", "1"),
    ];
    check(
        &unpack(&members),
        &[
            ("lib", "-> usr/lib"),
            ("usr", "dir"),
            ("usr/lib", "dir"),
            ("usr/lib/a", "file 1"),
        ],
    );
    let members = [
        M(b'5', "run", ""),
        M(b'2', "var/run", "/run"),
        M(b'0', "var/run/a", "1"),
    ];
    check(
        &unpack(&members),
        &[
            ("run", "dir"),
            ("run/a", "file 1"),
            ("var", "dir"),
            ("var/run", "-> /run"),
        ],
    );
}

#[test]
fn safety_hostile_names_get_nowhere() {
    refused(&unpack(&[M(b'0', "../outside", "x")]), "contains \"..\"");
    refused(
        &unpack(&[M(b'0', "a/../../outside", "x")]),
        "contains \"..\"",
    );
    refused(&unpack(&[M(b'0', "a/..", "x")]), "contains \"..\"");
    refused(&unpack(&[M(b'5', "..", "")]), "contains \"..\"");
    refused(&unpack(&[M(b'0', "/etc/passwd", "x")]), "absolute path");
    refused(&unpack(&[M(b'0', "../.wh.outside", "")]), "contains \"..\"");
    refused(&unpack(&[M(b'0', "./", "x")]), "malformed tar");
    refused(&unpack(&[M(b'2', ".", "/")]), "replaces the layer's root");
    refused(&unpack(&[M(b'1', "a", "../outside")]), "contains \"..\"");
    refused(&unpack(&[M(b'1', "a", "/etc/passwd")]), "not in the layer");
    refused(&unpack(&[M(b'1', "a", "missing")]), "not in the layer");
    refused(&unpack(&[M(b'0', "a", ""), M(b'1', "a", "a")]), "itself");
    refused(
        &unpack(&[M(b'5', "d", ""), M(b'1', "a", "d")]),
        "not in the layer",
    );
    refused(&unpack(&[M(b'2', "a", "")]), "no valid target");
}

#[test]
fn safety_symlinks_lead_nowhere_else() {
    for link in [
        "..",
        "../..",
        "../../../../../../tmp",
        "/",
        "/etc",
        "/proc/self/root",
        "d/../../..",
    ] {
        let through = |kind, path| {
            unpack(&[
                M(b'5', "d", ""),
                M(b'2', "evil", link),
                M(kind, path, "outside"),
            ])
        };
        for (kind, path) in [
            (b'0', "evil/outside"),
            (b'5', "evil/outside/x"),
            (b'2', "evil/outside"),
            (b'3', "evil/x"),
        ] {
            let unpacked = through(kind, path);
            if link == "/" {
                // The container's own root: within the layer, where "outside" is no directory.
                if path != "evil/outside/x" {
                    unpacked.result.as_ref().expect("stays within");
                }
            } else {
                refused(&unpacked, "leads out of the layer's root");
            }
        }
        if link != "/" {
            refused(
                &unpack(&[
                    M(b'5', "d", ""),
                    M(b'2', "evil", link),
                    M(b'1', "a", "evil/outside"),
                ]),
                "leads out",
            );
            refused(
                &unpack(&[
                    M(b'5', "d", ""),
                    M(b'2', "evil", link),
                    M(b'0', "evil/.wh.outside", ""),
                ]),
                "leads out",
            );
            refused(
                &unpack(&[
                    M(b'5', "d", ""),
                    M(b'2', "evil", link),
                    M(b'0', "evil/.wh..wh..opq", ""),
                ]),
                "leads out",
            );
        }
    }
    // A link to a link, a loop, and one to nowhere.
    refused(
        &unpack(&[
            M(b'2', "a", "b"),
            M(b'2', "b", "../.."),
            M(b'0', "a/outside", "x"),
        ]),
        "leads out",
    );
    refused(
        &unpack(&[M(b'2', "a", "b"), M(b'2', "b", "a"), M(b'0', "a/x", "x")]),
        "cannot be made",
    );
    refused(
        &unpack(&[M(b'2', "a", "none"), M(b'0', "a/x", "x")]),
        "dangling symlink",
    );
    // A file where a symlink was replaces the link, not its target.
    let unpacked = unpack(&[M(b'2', "a", "../outside"), M(b'0', "a", "x")]);
    check(&unpacked, &[("a", "file x")]);
    refused(
        &unpack(&[M(b'0', "f", "x"), M(b'0', "f/x", "x")]),
        "needs f to be a directory",
    );
}

#[test]
fn safety_overlay_attributes_are_dropped() {
    let mut tar = tar::Builder::new(Vec::new());
    let attributes: [(&str, &[u8]); 5] = [
        ("SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.kept", b"a\nb"),
        (
            "SCHILY.xattr.security.capability",
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ];
    tar.append_pax_extensions(attributes).expect("in memory");
    tar.append(&header_of(b'0', "f", "x"), &b"x"[..])
        .expect("in memory");
    tar.append_pax_extensions(attributes[..4].iter().copied())
        .expect("in memory");
    tar.append(&header_of(b'5', "d", ""), &b""[..])
        .expect("in memory");
    let bytes = tar.into_inner().expect("in memory");
    let unpacked = unpack_over(&[], &bytes, &Digest::of(&bytes), &Limits::default());
    unpacked.result.as_ref().expect("unpacked");
    for path in ["f", "d"] {
        let path = unpacked.root().join(path);
        assert_eq!(xattr(&path, "trusted.overlay.redirect"), None);
        assert_eq!(xattr(&path, "trusted.overlay.opaque"), None);
        assert_eq!(xattr(&path, "user.overlay.opaque"), None);
        assert_eq!(xattr(&path, "user.kept").as_deref(), Some(&b"a\nb"[..]));
    }
    assert!(
        xattr(&unpacked.root().join("f"), "security.capability").is_some(),
        "set after the owner"
    );
}

#[test]
fn digests_and_limits_hold() {
    let bytes = tar_of(&[M(b'0', "a", "1")]);
    let other = Digest::of(b"other");
    refused(
        &unpack_over(&[], &bytes, &other, &Limits::default()),
        "configuration says sha256:",
    );
    // Bytes after the archive's end count too.
    let mut longer = bytes.clone();
    longer.extend([0; 512]);
    refused(
        &unpack_over(&[], &longer, &Digest::of(&bytes), &Limits::default()),
        "configuration says",
    );

    let small = Limits {
        unpacked_bytes_max: 100,
        ..Limits::default()
    };
    refused(
        &unpack_over(&[], &bytes, &Digest::of(&bytes), &small),
        "more than 100 bytes",
    );
    let few = Limits {
        entry_count_max: 0,
        ..Limits::default()
    };
    refused(
        &unpack_over(&[], &bytes, &Digest::of(&bytes), &few),
        "more than 0 entries",
    );
    refused(&unpack(&[M(b'V', "volume", "")]), "unknown type");
}

#[test]
fn compressions_are_told_by_their_first_bytes() {
    let bytes = tar_of(&[M(b'0', "a", "1")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zstd = zstd::encode_all(&bytes[..], 1).expect("in memory");
    for compressed in [&gzip, &zstd, &bytes] {
        let unpacked = unpack_over(&[], compressed, &Digest::of(&bytes), &Limits::default());
        check(&unpacked, &[("a", "file 1")]);
    }
    for compressed in [&gzip, &zstd] {
        let cut = &compressed[..compressed.len() - 20];
        let unpacked = unpack_over(&[], cut, &Digest::of(&bytes), &Limits::default());
        assert!(
            matches!(unpacked.result, Err(UnpackError::Corrupt(_))),
            "{:?}",
            unpacked.result
        );
        let mut flipped = compressed.clone();
        flipped[compressed.len() / 2] ^= 0x55;
        let unpacked = unpack_over(&[], &flipped, &Digest::of(&bytes), &Limits::default());
        assert!(
            matches!(unpacked.result, Err(UnpackError::Corrupt(_))),
            "{:?}",
            unpacked.result
        );
    }
    let unpacked = unpack_over(&[], b"BZh91AY", &Digest::of(b""), &Limits::default());
    refused(&unpacked, "bzip2 is not supported");
    refused(
        &unpack_over(&[], &[b'x'; 1024], &Digest::of(b""), &Limits::default()),
        "malformed tar",
    );
}

#[test]
fn safety_bombs_are_stopped() {
    let limits = Limits {
        unpacked_bytes_max: 1 << 30,
        ratio_max: 100,
        ratio_floor_bytes: 1 << 20,
        entry_count_max: 10,
    };
    let mut header = header_of(b'0', "zeros", "");
    header.set_size(64 << 20);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 + (64 << 20), 0);
    let bomb = zstd::encode_all(&bytes[..], 1).expect("in memory");
    refused(
        &unpack_over(&[], &bomb, &Digest::of(b""), &limits),
        "decompression bomb",
    );

    // A sparse file announces a size that the stream does not have.
    let mut tar = tar::Builder::new(Vec::new());
    let sparse: [(&str, &[u8]); 3] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9000000000000000000"),
    ];
    tar.append_pax_extensions(sparse).expect("in memory");
    let mut map = b"1\n0\n0\n".to_vec();
    map.resize(512, 0);
    let text = String::from_utf8(map).expect("ascii");
    tar.append(&header_of(b'0', "sparse", &text), text.as_bytes())
        .expect("in memory");
    let bytes = tar.into_inner().expect("in memory");
    refused(
        &unpack_over(&[], &bytes, &Digest::of(&bytes), &limits),
        "more than 1073741824 bytes",
    );
}

#[test]
fn zeros_become_holes() {
    let mut header = header_of(b'0', "zeros", "");
    header.set_size((8 << 20) + 1);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 + (8 << 20), 0);
    bytes.push(b'x');
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let unpacked = unpack_over(&[], &bytes, &Digest::of(&bytes), &Limits::default());
    assert!(unpacked.result.as_ref().expect("unpacked").disk_bytes <= 3 * (128 << 10));
    let metadata = unpacked.root().join("zeros").metadata().expect("there");
    assert_eq!(metadata.len(), (8 << 20) + 1);
    assert!(metadata.blocks() * 512 < 1 << 20);
}

#[test]
fn cancelling_stops() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let bytes = tar_of(&[M(b'0', "a", "1")]);
    let result = unpack_layer(
        &bytes[..],
        directory.path(),
        &[],
        &Digest::of(&bytes),
        &Limits::default(),
        &AtomicBool::new(true),
    );
    assert!(matches!(result, Err(UnpackError::Cancelled)), "{result:?}");
}

#[test]
fn a_full_disk_is_told_apart() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mount = directory.path().join("small");
    std::fs::create_dir(&mount).expect("made");
    let run = |program: &str, arguments: &[&str]| {
        let status = std::process::Command::new(program)
            .args(arguments)
            .arg(&mount)
            .status()
            .expect("runs");
        assert!(status.success(), "{program}");
    };
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "none"]);
    let text = "x".repeat(200 << 10);
    let bytes = tar_of(&[M(b'0', "a", &text)]);
    let result = unpack_layer(
        &bytes[..],
        &mount,
        &[],
        &Digest::of(&bytes),
        &Limits::default(),
        &AtomicBool::new(false),
    );
    run("umount", &[]);
    assert!(matches!(result, Err(UnpackError::DiskFull)), "{result:?}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn safety_no_layer_reaches_outside(
        members in proptest::collection::vec(
            (
                proptest::sample::select(b"0123456".to_vec()),
                hostile_path(),
                hostile_path(),
            ),
            1..12,
        ),
    ) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (outside, layer) = (directory.path().join("outside"), directory.path().join("layer"));
        for directory in [&outside, &layer] {
            std::fs::create_dir(directory).expect("made");
        }
        std::fs::write(outside.join("file"), "untouched").expect("written");
        let members: Vec<Member<'_>> = members.iter().map(|(kind, path, link)| Member(*kind, path, link)).collect();
        let bytes = tar_of(&members);
        let _ = unpack_layer(&bytes[..], &layer, &[], &Digest::of(&bytes), &Limits::default(), &AtomicBool::new(false));
        let names: Vec<_> = std::fs::read_dir(&outside)
            .expect("still there")
            .map(|entry| entry.expect("readable").file_name())
            .collect();
        proptest::prop_assert_eq!(names, ["file"]);
        let file = outside.join("file");
        proptest::prop_assert_eq!(std::fs::read(&file).expect("still there"), b"untouched");
        proptest::prop_assert_eq!(file.metadata().expect("there").nlink(), 1);
    }
}

/// Up to five components that matter to an unpacker.
fn hostile_path() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::strategy::Strategy;
    let words = vec![
        "a",
        "b",
        "..",
        ".",
        "",
        ".wh.a",
        ".wh..wh..opq",
        "../outside",
        "outside",
        "file",
        ".wh.",
    ];
    proptest::collection::vec(proptest::sample::select(words), 1..6)
        .prop_map(|components| components.join("/"))
}
