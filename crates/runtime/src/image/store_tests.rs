//! The store with archives that this program and skopeo write.

use std::process::Command;

use super::*;
use crate::image::archive::ArchiveSource;
use crate::image::build::{SingleBinaryImage, build_single_binary_image};

pub(in crate::image) fn open_in(root: &Path) -> ImageStore {
    let mut options = StoreOptions::new(root.join("store"));
    options.limits.unpacked_bytes_max = 1 << 30;
    ImageStore::open(options).expect("opened")
}

pub(in crate::image) fn busybox_archive(
    directory: &Path,
    reference: &str,
    env: &str,
) -> (PathBuf, String) {
    let archive = directory.join(format!(
        "{}.tar",
        Digest::of(format!("{reference} {env}").as_bytes()).hex()
    ));
    let image = SingleBinaryImage {
        binary: PathBuf::from("/bin/busybox"),
        reference: reference.to_owned(),
        entrypoint: vec!["/bin/busybox".into(), "echo".into()],
        cmd: vec!["hello".into()],
        env: vec![env.to_owned()],
        exposed_tcp_port: Some(8080),
        user: "1000:1000".into(),
    };
    let id = build_single_binary_image(&image, &archive).expect("built");
    (archive, id)
}

fn layer_directories(store: &ImageStore) -> usize {
    read_names(&store.inner.options.root.join("layers")).len()
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn loads_tags_prepares_and_removes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_in(dir.path());
    let (archive, id) = busybox_archive(dir.path(), "localhost/hello:1.0", "A=1");
    let loaded = store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    assert_eq!(loaded.len(), 1);
    assert_eq!(
        (loaded[0].id.as_str(), loaded[0].references.as_slice()),
        (id.as_str(), &["localhost/hello:1.0".to_owned()][..])
    );

    let image = store
        .image("localhost/hello:1.0")
        .expect("read")
        .expect("there");
    assert_eq!((image.uid, image.username.as_str()), (Some(1000), ""));
    assert!(
        image.size_bytes > 100_000 && image.repo_digests[0].starts_with("localhost/hello@sha256:")
    );
    for name in [
        &id,
        id.trim_start_matches("sha256:"),
        &image.repo_digests[0],
    ] {
        assert_eq!(
            store.image(name).expect("read").expect("there").id,
            id,
            "{name}"
        );
    }
    assert!(store.image("other").expect("read").is_none());
    assert!(matches!(
        store.image("Bad"),
        Err(ImageError::InvalidName { .. })
    ));

    let root = store.prepare(&id).expect("prepared");
    assert_eq!(root.config.entrypoint, ["/bin/busybox", "echo"]);
    assert_eq!(
        (
            root.config.env.as_slice(),
            root.config.exposed_ports.as_slice()
        ),
        (&["A=1".to_owned()][..], &["8080/tcp".to_owned()][..])
    );
    let output = Command::new(root.lowerdirs[0].join("bin/busybox"))
        .args(["echo", "runs"])
        .output()
        .expect("runs");
    assert_eq!(output.stdout, b"runs\n");

    // A second image with the same layer shares it.
    let (archive, second) = busybox_archive(dir.path(), "localhost/other:1", "A=2");
    store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    assert_ne!(id, second);
    assert_eq!(
        store.prepare(&second).expect("prepared").lowerdirs,
        root.lowerdirs
    );
    assert_eq!(layer_directories(&store), 1);

    // A tag moves; the last name takes the image along, the last image the layer.
    store
        .tag("localhost/other:1", "localhost/hello:1.0")
        .expect("tagged");
    assert_eq!(
        store
            .image("localhost/hello:1.0")
            .expect("read")
            .expect("there")
            .id,
        second
    );
    assert!(
        store
            .image(&id)
            .expect("read")
            .expect("there")
            .repo_tags
            .is_empty()
    );
    store.remove_image(&id).expect("removed");
    store.remove_image(&id).expect("again");
    store.remove_image("localhost/other:1").expect("removed");
    assert_eq!(store.images().expect("read").len(), 1);
    store.remove_image("localhost/hello:1.0").expect("removed");
    assert!(store.images().expect("read").is_empty());
    assert_eq!(layer_directories(&store), 0);
    assert_eq!(store.usage().expect("read").used_bytes, 0);
    assert!(matches!(store.prepare(&id), Err(ImageError::NotFound(_))));
    assert!(matches!(
        store.tag("none", "localhost/x"),
        Err(ImageError::NotFound(_))
    ));
}

#[test]
fn images_in_use_stay_until_released() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_in(dir.path());
    let (archive, id) = busybox_archive(dir.path(), "localhost/a", "A=1");
    store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    store.hold(&id, "c1").expect("held");
    store.hold(&id, "c1").expect("idempotent");
    store.hold(&id, "../c2").expect("held");
    assert!(store.in_use(&id).expect("read"));

    // Another process, say the command line, removes it.
    let other = open_in(dir.path());
    other.remove_image(&id).expect("removed");
    assert!(store.image(&id).expect("read").is_none() && store.images().expect("read").is_empty());
    assert!(store.prepare(&id).expect("still usable").lowerdirs[0].is_dir());
    // A restart forgets nothing.
    drop(store);
    let store = open_in(dir.path());
    assert!(store.prepare(&id).is_ok());
    // Loading it again brings it back.
    store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    assert!(store.image("localhost/a").expect("read").is_some());
    store.remove_image("localhost/a").expect("removed");
    store.release(&id, "c1");
    assert!(store.prepare(&id).is_ok());
    store.release(&id, "../c2");
    store.release(&id, "../c2");
    assert!(store.prepare(&id).is_err());
    assert_eq!(layer_directories(&store), 0);
    assert!(matches!(
        store.hold(&id, "c3"),
        Err(ImageError::NotFound(_))
    ));

    // Holders that are no more.
    store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    for holder in ["c1", "c2"] {
        store.hold(&id, holder).expect("held");
    }
    store.remove_image(&id).expect("removed");
    store.retain_holders(["c2", "c9"]).expect("retained");
    assert!(store.prepare(&id).is_ok());
    store.retain_holders([]).expect("retained");
    assert!(store.prepare(&id).is_err());
}

#[test]
fn processes_see_each_others_changes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (server, tool) = (open_in(dir.path()), open_in(dir.path()));
    let archives: Vec<_> = (0..4)
        .map(|i| busybox_archive(dir.path(), &format!("localhost/i{i}"), &format!("I={i}")))
        .collect();
    std::thread::scope(|scope| {
        for (i, (archive, _)) in archives.iter().enumerate() {
            let store = if i % 2 == 0 { &server } else { &tool };
            scope.spawn(move || {
                store
                    .load_archive(archive.as_path().into(), None)
                    .expect("loaded")
            });
        }
    });
    for store in [&server, &tool] {
        assert_eq!(store.images().expect("read").len(), 4);
    }
    assert_eq!(layer_directories(&server), 1, "the layer is shared");
}

#[test]
fn a_start_clears_leftovers() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_in(dir.path());
    let (archive, id) = busybox_archive(dir.path(), "localhost/a", "A=1");
    store
        .load_archive(archive.as_path().into(), None)
        .expect("loaded");
    let root = store.inner.options.root.clone();
    let living = store.fresh_temporary_path();
    fs::create_dir(&living).expect("made");
    // What a killed process leaves: an unlocked session, a layer and a configuration without an entry.
    fs::create_dir_all(root.join("tmp/77-dead/0/usr")).expect("made");
    fs::write(root.join("tmp/77-dead.lock"), "").expect("made");
    fs::create_dir_all(root.join("tmp/78-dead/0/usr")).expect("made");
    fs::create_dir_all(root.join("layers/0123456789ab/usr")).expect("made");
    fs::write(root.join("configs").join("0".repeat(64)), "").expect("made");
    fs::write(root.join("index.new"), "{").expect("made");
    let again = open_in(dir.path());
    wait_until("leftovers are removed", || {
        read_names(&root.join("tmp"))
            .iter()
            .all(|n| !n.contains("dead"))
            && layer_directories(&again) == 1
    });
    assert_eq!(read_names(&root.join("configs")).len(), 1);
    assert!(living.exists(), "a living process keeps its own");
    assert!(again.prepare(&id).is_ok());
}

#[test]
fn a_damaged_or_newer_index_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    drop(open_in(dir.path()));
    let check = |content: &str, expect: &str| {
        fs::write(dir.path().join("store/index.json"), content).expect("written");
        match ImageStore::open(StoreOptions::new(dir.path().join("store"))) {
            Err(error) => assert!(error.to_string().contains(expect), "{error}"),
            Ok(_) => panic!("opened with {content}"),
        }
    };
    check("{", "is damaged");
    check(r#"{"version":2,"more":1}"#, "newer llmagentos");
}

#[test]
fn loads_what_skopeo_writes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_in(dir.path());
    let (archive, id) = busybox_archive(dir.path(), "localhost/a:1", "A=1");
    let oci = format!("oci-archive:{}", archive.display());
    let docker = dir.path().join("docker.tar");
    let copy = |target: String| {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &oci, &target])
            .env("TMPDIR", dir.path())
            .output()
            .expect("skopeo is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    copy(format!("docker-archive:{}:localhost/b:2", docker.display()));
    let loaded = store
        .load_archive(docker.as_path().into(), None)
        .expect("loaded");
    assert_eq!(loaded[0].references, ["localhost/b:2"]);
    let image = store.image("localhost/b:2").expect("read").expect("there");
    assert_eq!(
        store.prepare(&image.id).expect("prepared").config.env,
        ["A=1"]
    );

    let repacked = dir.path().join("oci.tar");
    copy(format!("oci-archive:{}:localhost/c:3", repacked.display()));
    // From a pipe and compressed, as `gzip -c image.tar | llmagentos image load -` gives it.
    let compressed = Command::new("gzip")
        .arg("-c")
        .arg(&repacked)
        .output()
        .expect("gzip")
        .stdout;
    let source = ArchiveSource::Reader(Box::new(io::Cursor::new(compressed)));
    let loaded = store
        .load_archive(source, Some("quay.io/d/e"))
        .expect("loaded");
    assert_eq!(
        (loaded[0].id.as_str(), loaded[0].references.as_slice()),
        (id.as_str(), &["quay.io/d/e:latest".to_owned()][..])
    );
}

#[test]
fn refuses_bad_archives_and_keeps_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = open_in(dir.path());
    let (archive, _) = busybox_archive(dir.path(), "localhost/a:1", "A=1");
    let check = |source: ArchiveSource, expect: &str| {
        let error = store.load_archive(source, None).expect_err(expect);
        assert!(error.to_string().contains(expect), "{error}");
        assert!(store.images().expect("read").is_empty());
        assert_eq!(layer_directories(&store), 0);
        assert!(
            read_names(&store.inner.session.directory).is_empty(),
            "nothing half done"
        );
    };
    let reader = |bytes: Vec<u8>| ArchiveSource::Reader(Box::new(io::Cursor::new(bytes)));
    check(ArchiveSource::File(dir.path().join("none")), "No such file");
    check(reader(vec![b'x'; 2048]), "not an image archive");
    check(reader(vec![0; 2048]), "neither manifest.json");
    let good = fs::read(&archive).expect("read");
    check(reader(good[..good.len() / 2].to_vec()), "cut short");
    let mut flipped = good.clone();
    let at = good.len() - 100_000;
    flipped[at] ^= 1;
    check(reader(flipped), "expected sha256:");
}

#[test]
fn building_is_reproducible() {
    let (a, b) = (
        tempfile::tempdir().expect("dir"),
        tempfile::tempdir().expect("dir"),
    );
    let first = busybox_archive(a.path(), "localhost/a:1", "A=1");
    let second = busybox_archive(b.path(), "localhost/a:1", "A=1");
    assert_eq!(first.1, second.1);
    assert!(fs::read(first.0).expect("read") == fs::read(second.0).expect("read"));
}

#[test]
fn chain_ids_are_upstreams() {
    // Two layers of docker.io/library/hello-world-like diff ids; the value from go-digest's identity.ChainID rule.
    let a = Digest::of(b"a");
    let b = Digest::of(b"b");
    let chain = chain_ids(&[a.clone(), b.clone()]);
    assert_eq!(chain[0], a);
    assert_eq!(chain[1], Digest::of(format!("{a} {b}").as_bytes()));
    assert!(chain_ids(&[]).is_empty());
}
