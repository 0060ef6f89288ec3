//! Pulls from Debian's docker-registry, filled by skopeo, and from a registry that misbehaves on purpose.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::image::store::tests::busybox_archive;
use crate::image_roots::ImageRoots;
use fake_registry::{Asked, FakeImage, FakeRegistry, Reply, layer, two_layers};

#[path = "pull_tests/fake_registry.rs"]
mod fake_registry;

const IMAGE: &str = "gcr.io/google-samples/hello-app:1.0";
/// A registry that nobody runs: port 1 on loopback refuses.
const DEAD: &str = "http://127.0.0.1:1";

fn open_with(root: &Path, registries: &str, adjust: impl FnOnce(&mut StoreOptions)) -> ImageStore {
    let registries_file = root.join("registries.yaml");
    std::fs::write(&registries_file, registries).expect("written");
    let mut options = StoreOptions::new(root.join("store"));
    options.registries_file = registries_file;
    options.timeouts = Timeouts {
        connect: Duration::from_secs(2),
        response: Duration::from_secs(5),
        stall: Duration::from_secs(5),
        retry_delay: Duration::from_millis(5),
        retry_count_max: 3,
    };
    adjust(&mut options);
    ImageStore::open(options).expect("opened")
}

/// The registry under test stands for gcr.io, and gcr.io itself is out of reach.
fn mirrors(endpoints: &[&str]) -> String {
    format!("mirrors: {{gcr.io: {{endpoint: {endpoints:?}}}}}\n")
}

/// Files and directories that an unfinished pull would leave.
fn leftovers(root: &Path) -> Vec<String> {
    let store = root.join("store");
    let mut left = Vec::new();
    for directory in ["layers", "configs"] {
        left.extend(
            std::fs::read_dir(store.join(directory))
                .expect("there")
                .flatten()
                .map(|e| e.path().display().to_string()),
        );
    }
    for session in std::fs::read_dir(store.join("tmp"))
        .expect("there")
        .flatten()
    {
        left.extend(
            std::fs::read_dir(session.path())
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path().display().to_string()),
        );
    }
    left
}

#[track_caller]
fn fails_with(result: Result<PullResult, ImageError>, parts: &[&str]) -> ImageError {
    let error = result.expect_err("refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    error
}

// Debian's registry.

struct DebianRegistry {
    process: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl DebianRegistry {
    fn start(extra: impl FnOnce(&Path) -> String) -> DebianRegistry {
        let directory = tempfile::tempdir().expect("temporary directory");
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = directory.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n{}",
            directory.path().join("data").display(),
            extra(directory.path())
        );
        std::fs::write(&config, text).expect("written");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's docker-registry is installed");
        let registry = DebianRegistry {
            process,
            address,
            directory,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    fn push(&self, reference: &str, name: &str, arguments: &[&str]) -> String {
        let (archive, id) = busybox_archive(self.directory.path(), reference, "A=1");
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
            .args(arguments)
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .env("TMPDIR", self.directory.path())
            .output()
            .expect("skopeo is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        id
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn pulls_through_mirrors_and_names_those_that_fail() {
    let registry = DebianRegistry::start(|_| String::new());
    let id = registry.push("localhost/hello:1", "google-samples/hello-app:1.0", &[]);
    let dir = tempfile::tempdir().expect("temporary directory");
    let live = format!("http://{}", registry.address);
    let store = open_with(dir.path(), &mirrors(&[&live]), |_| ());
    let result = store.pull(IMAGE, None).await.expect("pulled");
    assert_eq!(
        (result.image_id.as_str(), result.warnings.len()),
        (id.as_str(), 0)
    );
    let image = store.status(IMAGE).await.expect("read").expect("there");
    assert_eq!(image.repo_tags, [IMAGE]);
    assert!(image.repo_digests[0].starts_with("gcr.io/google-samples/hello-app@sha256:"));
    let root = store.prepare(&result.image_id).expect("prepared");
    let output = Command::new(root.lowerdirs[0].join("bin/busybox"))
        .args(["echo", "runs"])
        .output()
        .expect("runs");
    assert_eq!(output.stdout, b"runs\n");
    assert!(
        std::fs::read_dir(dir.path().join("store/blobs"))
            .expect("there")
            .next()
            .is_none(),
        "blobs go with the commit"
    );

    // By digest, with nothing to fetch.
    let by_digest = image.repo_digests[0].clone();
    assert_eq!(
        store.pull(&by_digest, None).await.expect("pulled").image_id,
        id
    );

    // The file changes: a mirror that is down goes first.
    std::fs::write(dir.path().join("registries.yaml"), mirrors(&[DEAD, &live])).expect("written");
    let result = store.pull(IMAGE, None).await.expect("pulled");
    assert_eq!(result.warnings.len(), 1, "{:?}", result.warnings);
    assert!(
        result.warnings[0].contains("mirror http://127.0.0.1:1 of gcr.io was not used"),
        "{:?}",
        result.warnings
    );
    assert!(
        result.warnings[0].contains("refused"),
        "{:?}",
        result.warnings
    );

    // The file breaks: the last good one serves, and the pull says so.
    std::fs::write(dir.path().join("registries.yaml"), "mirrors: 7").expect("written");
    let result = store.pull(IMAGE, None).await.expect("pulled");
    assert!(
        result
            .warnings
            .iter()
            .any(|w| w.contains("registries.yaml")),
        "{:?}",
        result.warnings
    );
    assert!(store.check_registries().is_err());

    store.remove(&id).await.expect("removed");
    assert!(leftovers(dir.path()).is_empty());
}

#[tokio::test]
async fn a_pull_that_fails_names_every_endpoint() {
    let registry = DebianRegistry::start(|_| String::new());
    let dir = tempfile::tempdir().expect("temporary directory");
    let live = format!("http://{}", registry.address);
    // The reserved domain never resolves.
    let file = format!("mirrors: {{registry.invalid: {{endpoint: [{DEAD:?}, {live:?}]}}}}");
    let store = open_with(dir.path(), &file, |_| ());
    let error = fails_with(
        store.pull("registry.invalid/none:1", None).await,
        &[
            "failed to pull image \"registry.invalid/none:1\"",
            "mirror http://127.0.0.1:1: ",
            "refused",
            &format!("mirror {live}: not found: manifest unknown"),
            "https://registry.invalid: ",
        ],
    );
    assert!(matches!(error, ImageError::Pull { .. }));
    assert!(matches!(
        store.pull("Bad", None).await,
        Err(ImageError::InvalidName { .. })
    ));
    // Loopback registries may do without TLS, with no configuration at all.
    let id = registry.push(
        "localhost/hello:1",
        "hello:1",
        &["--dest-compress-format", "zstd"],
    );
    let result = store
        .pull(&format!("{}/hello:1", registry.address), None)
        .await
        .expect("pulled");
    assert_eq!((result.image_id, result.warnings.len()), (id, 0));
}

#[tokio::test]
async fn authenticates_with_a_password() {
    let registry = DebianRegistry::start(|directory| {
        // bcrypt's own test vector: the password is "U*U".
        let htpasswd = directory.join("htpasswd");
        std::fs::write(
            &htpasswd,
            "user:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n",
        )
        .expect("written");
        format!(
            "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            htpasswd.display()
        )
    });
    let id = registry.push(
        "localhost/hello:1",
        "hello:1",
        &["--dest-creds", "user:U*U"],
    );
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = format!("{}/hello:1", registry.address);
    let store = open_with(dir.path(), "", |_| ());
    fails_with(
        store.pull(&image, None).await,
        &["pull access denied", "401"],
    );
    let auth = |password: &str| {
        Some(RegistryAuth {
            username: "user".into(),
            password: password.into(),
            identity_token: String::new(),
        })
    };
    fails_with(
        store.pull(&image, auth("wrong")).await,
        &["pull access denied"],
    );
    assert_eq!(
        store
            .pull(&image, auth("U*U"))
            .await
            .expect("pulled")
            .image_id,
        id
    );
    store.remove(&id).await.expect("removed");
    let config = format!(
        "configs: {{{:?}: {{auth: {{username: user, password: 'U*U'}}}}}}",
        registry.address
    );
    std::fs::write(dir.path().join("registries.yaml"), config).expect("written");
    assert_eq!(store.pull(&image, None).await.expect("pulled").image_id, id);
}

#[tokio::test]
async fn verifies_certificates() {
    let ca_key = rcgen::KeyPair::generate().expect("key");
    let mut ca_parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    ca_parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = ca_parameters.self_signed(&ca_key).expect("signed");
    let issuer = rcgen::Issuer::new(ca_parameters, ca_key);
    let key = rcgen::KeyPair::generate().expect("key");
    let parameters =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = parameters.signed_by(&key, &issuer).expect("signed");
    let registry = DebianRegistry::start(|directory| {
        let (cert_file, key_file) = (directory.join("cert.pem"), directory.join("key.pem"));
        std::fs::write(&cert_file, certificate.pem()).expect("written");
        std::fs::write(&key_file, key.serialize_pem()).expect("written");
        format!(
            "  tls: {{certificate: {}, key: {}}}\n",
            cert_file.display(),
            key_file.display()
        )
    });
    let id = registry.push("localhost/hello:1", "google-samples/hello-app:1.0", &[]);
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::write(dir.path().join("ca.pem"), ca.pem()).expect("written");
    let mirror = format!("https://{}", registry.address);
    let tls = |settings: &str| {
        format!(
            "{}configs: {{{:?}: {{tls: {{{settings}}}}}}}",
            mirrors(&[&mirror]),
            registry.address
        )
    };
    let store = open_with(dir.path(), &mirrors(&[&mirror]), |options| {
        options.timeouts.connect = Duration::from_millis(300)
    });
    let image = "gcr.io/google-samples/hello-app:1.0";
    fails_with(
        store.pull(image, None).await,
        &[&mirror, "certificate is signed by an unknown authority"],
    );
    for settings in ["ca_file: ca.pem", "insecure_skip_verify: true"] {
        std::fs::write(dir.path().join("registries.yaml"), tls(settings)).expect("written");
        let result = store.pull(image, None).await.expect(settings);
        assert_eq!(
            (result.image_id.as_str(), result.warnings.len()),
            (id.as_str(), 0),
            "{settings}"
        );
        store.remove(&id).await.expect("removed");
    }
}

/// A store whose gcr.io is the given endpoint and nothing else: Docker Hub's rule that a mirror may be the registry itself.
fn store_of(dir: &Path, endpoints: &[&str]) -> ImageStore {
    open_with(dir, &mirrors(endpoints), |options| {
        options.timeouts.connect = Duration::from_millis(300)
    })
}

#[tokio::test]
async fn resumes_what_breaks_off() {
    let image = two_layers();
    let breaking = image.clone();
    let tries = Mutex::new(0);
    let registry = FakeRegistry::start(move |asked| {
        let mut reply = breaking.answer(asked);
        if asked.path.contains(&breaking.blob(0)) {
            let mut tries = tries.lock().expect("not poisoned");
            *tries += 1;
            // More often than retries are allowed, but each time with some progress.
            match *tries {
                1 => reply.cut_after = Some(1000),
                2 => return Reply::status(503),
                3..=8 => reply.cut_after = Some(20_000),
                9 => reply.stall_after = Some(20_000),
                _ => {}
            }
        }
        reply
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&registry.url()]);
    let mut store_options = store.inner.options.clone();
    store_options.timeouts.stall = Duration::from_millis(200);
    let store = ImageStore::open(store_options).expect("opened");
    let progress = Arc::new(PullProgress::default());
    let result = store
        .pull_with_progress(IMAGE, None, Arc::clone(&progress))
        .await
        .expect("pulled");
    let root = store.prepare(&result.image_id).expect("prepared");
    assert_eq!(
        std::fs::read(root.lowerdirs[1].join("a")).expect("there"),
        [1; 300_000]
    );
    let total: usize = image.layers.iter().map(Vec::len).sum();
    assert_eq!(progress.total_bytes.load(Ordering::Relaxed), total as u64);
    assert_eq!(
        progress.downloaded_bytes.load(Ordering::Relaxed),
        total as u64
    );
    let asked = registry.asked.lock().expect("not poisoned").clone();
    let ranges: Vec<_> = asked
        .iter()
        .filter(|a| a.path.contains(&image.blob(0)))
        .map(|a| a.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=1000-"));
    assert_eq!(ranges[3].as_deref(), Some("bytes=21000-"));
}

#[tokio::test]
async fn a_later_pull_goes_on_where_one_failed() {
    let image = two_layers();
    let blob = image.blob(0);
    let failing = Arc::new(AtomicBool::new(true));
    let (switch, served) = (Arc::clone(&failing), image.clone());
    let registry = FakeRegistry::start(move |asked| {
        let mut reply = served.answer(asked);
        if asked.path.contains(&served.blob(0)) && switch.load(Ordering::Relaxed) {
            if asked.headers.contains_key("range") {
                return Reply::status(400);
            }
            reply.cut_after = Some(100_000);
        }
        reply
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&registry.url()]);
    fails_with(
        store.pull(IMAGE, None).await,
        &["400", &format!("mirror {}", registry.url())],
    );
    assert!(leftovers(dir.path()).is_empty());
    failing.store(false, Ordering::Relaxed);
    store.pull(IMAGE, None).await.expect("pulled");
    let asked = registry.asked.lock().expect("not poisoned").clone();
    let last = asked
        .iter()
        .rfind(|a| a.path.contains(&blob))
        .expect("asked");
    assert_eq!(
        last.headers.get("range").map(String::as_str),
        Some("bytes=100000-")
    );
}

#[tokio::test]
async fn wrong_content_is_refused_and_another_endpoint_asked() {
    let image = two_layers();
    let (good_image, bad_image) = (image.clone(), image.clone());
    let good = FakeRegistry::start(move |asked| good_image.answer(asked));
    let bad = FakeRegistry::start(move |asked| {
        let mut reply = bad_image.answer(asked);
        if asked.path.contains(&bad_image.blob(1)) {
            reply.body[5000] ^= 1;
        }
        reply
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&bad.url()]);
    let error = fails_with(
        store.pull(IMAGE, None).await,
        &[
            "wrong digest",
            &format!("mirror {}", bad.url()),
            "https://gcr.io",
        ],
    );
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error:?}");
    assert!(leftovers(dir.path()).is_empty());

    std::fs::write(
        dir.path().join("registries.yaml"),
        mirrors(&[&bad.url(), &good.url()]),
    )
    .expect("written");
    let result = store.pull(IMAGE, None).await.expect("pulled");
    assert_eq!(result.warnings.len(), 1);
    assert!(
        result.warnings[0].contains(&bad.url()) && result.warnings[0].contains("wrong digest"),
        "{:?}",
        result.warnings
    );
}

#[tokio::test]
async fn every_digest_is_checked() {
    async fn check(
        answer: impl Fn(&FakeImage, &Asked) -> Reply + Send + Sync + 'static,
        image: FakeImage,
        name: &str,
        expect: &[&str],
    ) {
        let registry = FakeRegistry::start(move |asked| answer(&image, asked));
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = store_of(dir.path(), &[&registry.url()]);
        let error = fails_with(store.pull(name, None).await, expect);
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error:?}");
        assert!(leftovers(dir.path()).is_empty());
        assert!(store.images().expect("read").is_empty());
    }
    let image = two_layers();
    let other = format!("gcr.io/a@{}", Digest::of(b"other"));
    check(
        FakeImage::answer,
        image.clone(),
        &other,
        &["manifest came with the wrong digest"],
    )
    .await;
    let stated = |image: &FakeImage, asked: &Asked| {
        image
            .answer(asked)
            .with("docker-content-digest", Digest::of(b"other").to_string())
    };
    check(
        stated,
        image.clone(),
        IMAGE,
        &["manifest came with the wrong digest"],
    )
    .await;
    let config = |image: &FakeImage, asked: &Asked| {
        let mut reply = image.answer(asked);
        if reply.body == image.config {
            reply.body.push(b' ');
        }
        reply
    };
    check(
        config,
        image.clone(),
        IMAGE,
        &["configuration came with the wrong digest"],
    )
    .await;
    let longer = |image: &FakeImage, asked: &Asked| {
        let mut reply = image.answer(asked);
        if asked.path.contains(&image.blob(0)) {
            reply.body.extend([0; 1000]);
        }
        reply
    };
    check(longer, image.clone(), IMAGE, &["larger than its"]).await;
    let layers = vec![layer(&[("a", b"1")])];
    check(
        FakeImage::answer,
        FakeImage::with_diff_ids(layers.clone(), &[Digest::of(b"x")]),
        IMAGE,
        &["configuration says"],
    )
    .await;
    check(
        FakeImage::answer,
        FakeImage::with_diff_ids(layers, &[]),
        IMAGE,
        &["configuration lists 0 layers"],
    )
    .await;
    // Hostile and damaged layers, through the whole way.
    let hostile =
        |path: &str| FakeImage::of(vec![layer(&[("fine", b"1")]), layer(&[(path, b"1")])]);
    check(
        FakeImage::answer,
        hostile("../../escape"),
        IMAGE,
        &["contains \"..\""],
    )
    .await;
    check(
        FakeImage::answer,
        hostile("/etc/escape"),
        IMAGE,
        &["absolute path"],
    )
    .await;
    check(
        FakeImage::answer,
        FakeImage::of(vec![vec![7; 5000]]),
        IMAGE,
        &["malformed tar"],
    )
    .await;
    check(
        FakeImage::answer,
        FakeImage::of(vec![b"\x1f\x8bgarbage, not gzip".to_vec()]),
        IMAGE,
        &["layer sha256:"],
    )
    .await;
    let mut empty = image.clone();
    empty.manifest = b"{}".to_vec();
    check(FakeImage::answer, empty, IMAGE, &["schemaVersion"]).await;
}

#[tokio::test]
async fn concurrent_pulls_are_one() {
    let image = two_layers();
    let shared = FakeImage::of(vec![image.layers[0].clone(), layer(&[("c", b"3")])]);
    let (first, second) = (image.clone(), shared.clone());
    let registry = FakeRegistry::start(move |asked| {
        let reply = if asked.path.contains("/second/") {
            second.answer(asked)
        } else {
            first.answer(asked)
        };
        // Slow enough for all to meet.
        if asked.path.contains("/blobs/") {
            std::thread::sleep(Duration::from_millis(100));
        }
        reply
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&registry.url()]);
    let pulls = futures::future::join_all((0..4).map(|_| store.pull(IMAGE, None)));
    let (results, other) = futures::join!(pulls, store.pull("gcr.io/second/x:1", None));
    for result in results {
        result.expect("pulled");
    }
    other.expect("pulled");
    assert_eq!(registry.count("/google-samples/hello-app/manifests/"), 1);
    assert_eq!(
        registry.count(&image.blob(0)),
        1,
        "the layer that both images have"
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("store/layers"))
            .expect("there")
            .count(),
        3
    );
}

#[tokio::test]
async fn dropping_a_pull_cancels_it() {
    let image = two_layers();
    let served = image.clone();
    let registry = FakeRegistry::start(move |asked| {
        let mut reply = served.answer(asked);
        if asked.path.contains(&served.blob(1)) {
            reply.stall_after = Some(10);
        }
        reply
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&registry.url()]);
    let progress = Arc::new(PullProgress::default());
    let pull = store.pull_with_progress(IMAGE, None, Arc::clone(&progress));
    let unpacked = async {
        while progress.unpacked_layer_count.load(Ordering::Relaxed) < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = pull => panic!("{result:?}"),
        () = unpacked => {}
    }
    assert!(
        leftovers(dir.path()).is_empty(),
        "{:?}",
        leftovers(dir.path())
    );
}

#[tokio::test]
async fn authenticates_with_tokens() {
    let image = two_layers();
    let served = image.clone();
    let registry = FakeRegistry::start(move |asked| {
        let authorization = asked.headers.get("authorization").map(String::as_str);
        if asked.path.starts_with("/token") {
            // "user:secret", for this repository only.
            let is_user = authorization == Some("Basic dXNlcjpzZWNyZXQ=");
            let is_refresh = asked.method == "POST"
                && asked.body.contains("grant_type=refresh_token")
                && asked.body.contains("refresh_token=r%2Fefresh");
            if !is_user && !is_refresh {
                return Reply::status(401);
            }
            let wants = if is_refresh { &asked.body } else { &asked.path };
            assert!(
                wants.contains("service=s%201")
                    && wants.contains("scope=repository%3Agoogle-samples%2Fhello-app%3Apull"),
                "{wants}"
            );
            return Reply::ok(br#"{"access_token":"abc"}"#.to_vec());
        }
        if authorization != Some("Bearer abc") {
            let host = &asked.headers["host"];
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"s 1\",scope=\"repository:google-samples/hello-app:pull\""
            );
            return Reply::status(401).with("www-authenticate", challenge);
        }
        if asked.path.contains("/blobs/") && !asked.path.contains("/elsewhere/") {
            // As clouds do: the blob lies with somebody else, who must not see the token.
            let path = asked.path.split('?').next().unwrap_or_default();
            let port = asked.headers["host"]
                .rsplit(':')
                .next()
                .unwrap_or_default()
                .to_owned();
            return Reply::status(307).with(
                "location",
                format!("http://localhost:{port}/elsewhere{path}"),
            );
        }
        served.answer(asked)
    });
    // The same server under its other name hands out blobs without a token.
    let answer = image.clone();
    let elsewhere = FakeRegistry::start(move |asked| {
        assert!(
            !asked.headers.contains_key("authorization"),
            "the token went elsewhere"
        );
        answer.answer(asked)
    });
    let elsewhere_url = elsewhere.url();
    let registry_address = registry.address;
    let front = FakeRegistry::start(move |asked| relay(registry_address, &elsewhere_url, asked));
    let dir = tempfile::tempdir().expect("temporary directory");
    let auth = |settings: &str| {
        format!(
            "{}configs: {{{:?}: {{auth: {{{settings}}}}}}}",
            mirrors(&[&front.url()]),
            front.address.to_string()
        )
    };
    let store = open_with(
        dir.path(),
        &auth("username: user, password: secret"),
        |_| (),
    );
    let result = store.pull(IMAGE, None).await.expect("pulled");
    assert!(elsewhere.count("/blobs/") > 0);
    store.remove(&result.image_id).await.expect("removed");
    std::fs::write(
        dir.path().join("registries.yaml"),
        auth("identity_token: r/efresh"),
    )
    .expect("written");
    let result = store.pull(IMAGE, None).await.expect("pulled");
    store.remove(&result.image_id).await.expect("removed");
    std::fs::write(
        dir.path().join("registries.yaml"),
        auth("username: user, password: guessed"),
    )
    .expect("written");
    fails_with(
        store.pull(IMAGE, None).await,
        &["pull access denied", "token server", "401"],
    );
}

/// Answers as the registry behind it does, with its redirects bent to `elsewhere`.
fn relay(registry: SocketAddr, elsewhere: &str, asked: &Asked) -> Reply {
    let mut stream = TcpStream::connect(registry).expect("listening");
    let mut head = format!("{} {} HTTP/1.1\r\n", asked.method, asked.path);
    for (name, value) in &asked.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream
        .write_all(format!("{head}\r\n{}", asked.body).as_bytes())
        .expect("sent");
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer).expect("answered");
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a head");
    let text = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut reply = Reply::ok(answer[end + 4..].to_vec());
    reply.status = text[9..12].parse().expect("a status");
    for line in text.lines().skip(1) {
        match line.split_once(": ") {
            Some(("location", value)) => {
                let path = value.split("/elsewhere").nth(1).expect("a path");
                reply = reply.with("location", format!("{elsewhere}{path}"));
            }
            Some(("www-authenticate", value)) => reply = reply.with("www-authenticate", value),
            Some(("content-type", value)) => reply = reply.with("content-type", value),
            _ => {}
        }
    }
    reply
}

#[tokio::test]
async fn chooses_the_platform_and_waits_when_asked_to() {
    let image = two_layers();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": spec::OCI_INDEX,
        "manifests": [
            {"mediaType": spec::OCI_MANIFEST, "digest": Digest::of(b"windows"), "size": 1, "platform": {"os": "windows", "architecture": "amd64"}},
            {"mediaType": spec::OCI_MANIFEST, "digest": Digest::of(&image.manifest), "size": image.manifest.len(), "platform": Platform::host()},
        ],
    });
    let index = index.to_string();
    let (served, served_index) = (image.clone(), index.clone());
    let refused_once = AtomicBool::new(false);
    let registry = FakeRegistry::start(move |asked| {
        if !refused_once.swap(true, Ordering::Relaxed) {
            return Reply::status(429).with("retry-after", "0");
        }
        if asked.path.contains("/manifests/1.0") {
            return Reply::ok(served_index.clone()).with("content-type", spec::OCI_INDEX);
        }
        served.answer(asked)
    });
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = store_of(dir.path(), &[&registry.url()]);
    let result = store.pull(IMAGE, None).await.expect("pulled");
    let found = store.image(&result.image_id).expect("read").expect("there");
    assert_eq!(
        found.repo_digests,
        [format!(
            "gcr.io/google-samples/hello-app@{}",
            Digest::of(index.as_bytes())
        )]
    );

    let none = json!({"schemaVersion": 2, "manifests": [
        {"digest": Digest::of(b"w"), "size": 1, "platform": {"os": "windows", "architecture": "amd64"}},
    ]});
    let registry = FakeRegistry::start(move |_| Reply::ok(none.to_string()));
    std::fs::write(
        dir.path().join("registries.yaml"),
        mirrors(&[&registry.url()]),
    )
    .expect("written");
    fails_with(
        store.pull("gcr.io/other:1", None).await,
        &["no match for platform linux/", "windows/amd64"],
    );
}

#[tokio::test]
async fn a_full_disk_fails_the_pull_and_is_left_clean() {
    let image = FakeImage::of(vec![layer(&[("a", &[7; 3 << 20])])]);
    let registry = FakeRegistry::start(move |asked| image.answer(asked));
    let dir = tempfile::tempdir().expect("temporary directory");
    let mount = SmallDisk::mount(dir.path().join("disk"), "size=4m");
    let store = store_of(&mount.0, &[&registry.url()]);
    let error = fails_with(
        store.pull(IMAGE, None).await,
        &["no space left on device while pulling"],
    );
    assert!(matches!(error, ImageError::DiskFull(_)));
    assert!(leftovers(&mount.0).is_empty());
    drop(store);
}

struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, options: &str) -> SmallDisk {
        std::fs::create_dir(&path).expect("made");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(&path)
            .status()
            .expect("runs");
        assert!(status.success());
        SmallDisk(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
