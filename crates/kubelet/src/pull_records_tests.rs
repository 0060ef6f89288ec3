#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

const IMAGE: &str = "registry.example/team/app:1";
const ID: &str = "sha256:1";

fn secret(name: &str, uid: &str, password: &str) -> PullSecret {
    let auth = RegistryAuth {
        username: "user".into(),
        password: password.into(),
        identity_token: String::new(),
    };
    PullSecret::new("default", name, uid, &auth)
}

fn image(id: &str, tag: &str) -> Image {
    Image {
        id: id.into(),
        repo_tags: vec![tag.into()],
        ..Image::default()
    }
}

struct Fixture {
    directory: tempfile::TempDir,
    records: PullRecords,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let records = PullRecords::open(directory.path().to_owned()).unwrap();
        Fixture { directory, records }
    }

    fn pull(&self, image: &str, secret: Option<&PullSecret>) {
        self.records.begin(image).unwrap();
        self.records.succeeded(image, ID, secret);
    }

    fn access(&self, image: &str, secrets: &[PullSecret]) -> Access {
        match self.records.access(image, ID) {
            Access::WithSecret if self.records.accepts(image, ID, secrets) => Access::Granted,
            Access::WithSecret => Access::PullFirst,
            access => access,
        }
    }

    fn restart(&mut self) {
        self.records = PullRecords::open(self.directory.path().to_owned()).unwrap();
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        let directory = self.directory.path().join(kind);
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

#[test]
fn a_pulled_image_is_for_those_who_could_pull_it() {
    let right = secret("a", "1", "right");
    for (what, pulled_with, asked_with, expect) in [
        ("no secret was needed", None, vec![], Access::Granted),
        (
            "the same secret",
            Some(&right),
            vec![secret("a", "1", "right")],
            Access::Granted,
        ),
        ("no secret", Some(&right), vec![], Access::PullFirst),
        (
            "other credentials",
            Some(&right),
            vec![secret("b", "2", "wrong")],
            Access::PullFirst,
        ),
        (
            "the same credentials elsewhere",
            Some(&right),
            vec![secret("b", "2", "right")],
            Access::Granted,
        ),
        (
            "the same secret, changed",
            Some(&right),
            vec![secret("a", "1", "new")],
            Access::Granted,
        ),
        (
            "a secret made anew by the name",
            Some(&right),
            vec![secret("a", "9", "new")],
            Access::PullFirst,
        ),
        (
            "one of several",
            Some(&right),
            vec![secret("b", "2", "wrong"), secret("c", "3", "right")],
            Access::Granted,
        ),
    ] {
        let mut fixture = Fixture::new();
        fixture.pull(IMAGE, pulled_with);
        for run in ["first", "after a restart"] {
            assert_eq!(fixture.access(IMAGE, &asked_with), expect, "{what}, {run}");
            fixture.restart();
        }
    }
}

#[test]
fn preloaded_images_are_for_all_until_they_are_pulled() {
    let fixture = Fixture::new();
    assert_eq!(fixture.access(IMAGE, &[]), Access::Granted);
    fixture.records.begin(IMAGE).unwrap();
    assert_eq!(fixture.access(IMAGE, &[]), Access::PullFirst);
    fixture.records.end(IMAGE);
    assert_eq!(fixture.access(IMAGE, &[]), Access::Granted);
    assert!(fixture.files("pulling").is_empty());
}

#[test]
fn access_is_by_repository_whatever_the_tag() {
    let fixture = Fixture::new();
    let right = secret("a", "1", "right");
    fixture.pull(IMAGE, Some(&right));
    let known = std::slice::from_ref(&right);
    assert_eq!(
        fixture.access("registry.example/team/app:2", known),
        Access::Granted
    );
    assert_eq!(
        fixture.access("registry.example/team/other:1", known),
        Access::PullFirst
    );
    assert_eq!(fixture.records.access(IMAGE, ID), Access::WithSecret);
    fixture.pull("registry.example/team/app", None);
    assert_eq!(fixture.access(IMAGE, &[]), Access::Granted);
    assert_eq!(fixture.records.access(IMAGE, ID), Access::Granted);
}

#[test]
fn what_matched_once_counts_later() {
    let fixture = Fixture::new();
    fixture.pull(IMAGE, Some(&secret("a", "1", "right")));
    // The secret has new credentials, which another secret has too.
    assert_eq!(
        fixture.access(IMAGE, &[secret("a", "1", "new")]),
        Access::Granted
    );
    assert_eq!(
        fixture.access(IMAGE, &[secret("b", "2", "new")]),
        Access::Granted
    );
}

#[test]
fn an_interrupted_pull_leaves_an_image_that_has_to_be_pulled_again() {
    let mut fixture = Fixture::new();
    fixture.records.begin("app:1").unwrap();
    fixture.restart();
    assert!(fixture.records.was_interrupted());
    fixture.records.settle(&[
        image(ID, "docker.io/library/app:1"),
        image("sha256:2", "docker.io/library/app:2"),
    ]);
    assert!(fixture.files("pulling").is_empty());
    fixture.restart();
    assert!(!fixture.records.was_interrupted());
    assert_eq!(fixture.access("app:1", &[]), Access::PullFirst);
    assert_eq!(fixture.records.access("app:2", "sha256:2"), Access::Granted);
}

#[test]
fn a_record_that_cannot_be_read_does_not_open_the_image() {
    let mut fixture = Fixture::new();
    fixture.pull(IMAGE, None);
    fs::write(&fixture.files("pulled")[0], "{").unwrap();
    fixture.restart();
    assert_eq!(fixture.access(IMAGE, &[]), Access::PullFirst);
    fixture.pull(IMAGE, None);
    fixture.restart();
    assert_eq!(fixture.access(IMAGE, &[]), Access::Granted);
}

#[test]
fn images_that_are_gone_are_forgotten() {
    let mut fixture = Fixture::new();
    let right = secret("a", "1", "right");
    fixture.pull(IMAGE, Some(&right));
    let before = Timestamp::UNIX_EPOCH;
    let after = Timestamp::now() + jiff::SignedDuration::from_secs(1);
    for (here, listed_at, expect) in [
        (vec![image(ID, IMAGE)], after, 1),
        // Pulled since the list was made.
        (vec![], before, 1),
        (vec![], after, 0),
    ] {
        fixture.records.prune(&here, listed_at);
        assert_eq!(fixture.files("pulled").len(), expect);
    }
    fixture.restart();
    assert_eq!(fixture.access(IMAGE, &[]), Access::Granted);
}
