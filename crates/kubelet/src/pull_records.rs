//! Who may use the images that this kubelet pulled.
//!
//! An image that was pulled with a secret is for pods that bring the same secret, or one with the same credentials in it;
//! others have to pull it themselves, so that the registry decides. One that was pulled without credentials is for all
//! pods of the node, and so is one that was on the machine without this kubelet's pulling it. That is upstream's
//! `KubeletEnsureSecretPulledImages` with the policy `NeverVerifyPreloadedImages`, its default since v1.35.
//!
//! Records are files below `<root>/image_manager`, laid out as upstream's: `pulled` has one for each image id and
//! survives a restart, `pulling` one for each pull that has begun. An image of which only the latter exists was pulled
//! by someone unknown: it has to be pulled again. Where a record cannot be read or written, the same holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use runtime::image::Reference;
use runtime::image::digest::Digest;
use runtime::service::{Image, RegistryAuth};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Upstream's: so many secrets may be noted as good for an image only because their credentials are known.
const SECRETS_NOTED_ON_MATCH_MAX: usize = 100;

/// A secret of a pod that has credentials for an image's registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Of the credentials in it.
    pub credential_hash: String,
}

impl PullSecret {
    pub fn new(namespace: &str, name: &str, uid: &str, auth: &RegistryAuth) -> PullSecret {
        // Lengths keep the fields apart.
        let content = [&auth.username, &auth.password, &auth.identity_token]
            .map(|field| format!("{}:{field}", field.len()))
            .concat();
        PullSecret {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            credential_hash: Digest::of(content.as_bytes()).hex().to_owned(),
        }
    }

    fn is_same_object(&self, other: &PullSecret) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// With what a repository let an image be pulled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Credentials {
    /// Without a secret: every pod of the node may use it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<PullSecret>,
}

impl Credentials {
    /// Adds what another pull was allowed with. Answers whether that is news.
    fn merge(&mut self, secret: Option<&PullSecret>) -> bool {
        let before = self.clone();
        match secret {
            _ if self.node_pods_accessible => {}
            None => {
                *self = Credentials {
                    node_pods_accessible: true,
                    ..Credentials::default()
                };
            }
            Some(secret) => {
                let secrets = &mut self.kubernetes_secrets;
                secrets.retain(|known| !known.is_same_object(secret));
                secrets.push(secret.clone());
                secrets.sort();
            }
        }
        *self != before
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PulledRecord {
    api_version: String,
    kind: String,
    last_updated_time: Timestamp,
    /// The image's id.
    image_ref: String,
    /// By repository.
    #[serde(default)]
    credential_mapping: BTreeMap<String, Credentials>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PullIntent {
    api_version: String,
    kind: String,
    image: String,
}

/// What a pod needs to do for an image that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Granted,
    /// It needs one of the secrets that [`PullRecords::accepts`].
    WithSecret,
    /// The registry has to say.
    PullFirst,
}

pub struct PullRecords {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the file's name, which the image's id makes; `None`: it cannot be read.
    pulled: BTreeMap<String, Option<PulledRecord>>,
    /// Pulls that have begun, by the image as the pod names it.
    pulling: BTreeMap<String, usize>,
    /// Those of an earlier run.
    interrupted: Vec<String>,
}

impl PullRecords {
    /// Reads what an earlier run has left. Where [`PullRecords::was_interrupted`], it is to be settled before use.
    pub fn open(directory: PathBuf) -> io::Result<PullRecords> {
        for kind in ["pulled", "pulling"] {
            fs::create_dir_all(directory.join(kind))?;
        }
        let state = State {
            pulled: read_all(&directory.join("pulled"))?,
            interrupted: read_all::<PullIntent>(&directory.join("pulling"))?
                .into_values()
                .flatten()
                .map(|intent| intent.image)
                .collect(),
            ..State::default()
        };
        Ok(PullRecords {
            directory,
            state: Mutex::new(state),
        })
    }

    /// Had an earlier run begun pulls that it did not end?
    pub fn was_interrupted(&self) -> bool {
        !self.state().interrupted.is_empty()
    }

    /// Notes which of `images`, all that are here, those pulls have brought: with what is not known any more.
    pub fn settle(&self, images: &[Image]) {
        let interrupted = std::mem::take(&mut self.state().interrupted);
        for pulled in interrupted {
            let named = canonical(&pulled);
            let mut is_noted = true;
            for image in images {
                let mut names = image.repo_tags.iter().chain(&image.repo_digests);
                if names.any(|name| canonical(name) == named) {
                    is_noted &= self.note(&image.id, |_| false);
                }
            }
            // What could not be noted is tried again at the next start.
            if is_noted {
                remove(&self.intent_path(&pulled));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn intent_path(&self, image: &str) -> PathBuf {
        self.directory.join("pulling").join(file_name(image))
    }

    /// Before a pull: whatever becomes of this process, the image will not be taken for one that was here by itself.
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let mut state = self.state();
        let intent = PullIntent {
            api_version: API_VERSION.to_owned(),
            kind: "ImagePullIntent".to_owned(),
            image: image.to_owned(),
        };
        write(&self.intent_path(image), &intent)?;
        *state.pulling.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// After a pull that failed, or whose result is recorded.
    pub fn end(&self, image: &str) {
        let mut state = self.state();
        let count = state.pulling.entry(image.to_owned()).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            state.pulling.remove(image);
            remove(&self.intent_path(image));
        }
    }

    /// `secret`: what the registry asked for; `None`, nothing.
    pub fn succeeded(&self, image: &str, image_id: &str, secret: Option<&PullSecret>) {
        let repository = repository(image);
        let is_written = self.note(image_id, |record| {
            record
                .credential_mapping
                .entry(repository)
                .or_default()
                .merge(secret)
        });
        // An intent without a record says at the next start that the image was pulled.
        if is_written {
            self.end(image);
        }
    }

    /// May a pod use the image `image_id`, named `image` by it?
    pub fn access(&self, image: &str, image_id: &str) -> Access {
        let state = self.state();
        let record = match state.pulled.get(&file_name(image_id)) {
            Some(Some(record)) => record,
            Some(None) => return Access::PullFirst,
            None if state.pulling.contains_key(image) => return Access::PullFirst,
            None => return Access::Granted,
        };
        match record.credential_mapping.get(&repository(image)) {
            Some(known) if known.node_pods_accessible => Access::Granted,
            Some(_) => Access::WithSecret,
            None => Access::PullFirst,
        }
    }

    /// Does one of `secrets` open the image? What matches is noted, so that either part of it counts later.
    pub fn accepts(&self, image: &str, image_id: &str, secrets: &[PullSecret]) -> bool {
        let mut is_accepted = false;
        self.note(image_id, |record| {
            let Some(known) = record.credential_mapping.get_mut(&repository(image)) else {
                return false;
            };
            let matching = secrets.iter().find(|secret| {
                known.kubernetes_secrets.iter().any(|known| {
                    known.credential_hash == secret.credential_hash || known.is_same_object(secret)
                })
            });
            is_accepted = matching.is_some() || known.node_pods_accessible;
            let has_room = known.kubernetes_secrets.len() < SECRETS_NOTED_ON_MATCH_MAX;
            matching.is_some_and(|secret| has_room && known.merge(Some(secret)))
        });
        is_accepted
    }

    /// Forgets images that are gone; `images` were here at the time `listed_at` or later.
    pub fn prune(&self, images: &[Image], listed_at: Timestamp) {
        let here: BTreeSet<String> = images.iter().map(|image| file_name(&image.id)).collect();
        self.state().pulled.retain(|name, record| {
            let is_newer = record
                .as_ref()
                .is_some_and(|record| record.last_updated_time >= listed_at);
            let stays = here.contains(name) || is_newer;
            if !stays {
                remove(&self.directory.join("pulled").join(name));
            }
            stays
        });
    }

    /// Changes an image's record and writes it, if it is new or `change` says that it differs.
    /// Answers whether the disk has it as it should be.
    fn note(&self, image_id: &str, change: impl FnOnce(&mut PulledRecord) -> bool) -> bool {
        let mut state = self.state();
        let name = file_name(image_id);
        let known = state.pulled.get(&name).cloned().flatten();
        let is_new = known.is_none();
        let mut record = known.unwrap_or_else(|| PulledRecord {
            api_version: API_VERSION.to_owned(),
            kind: "ImagePulledRecord".to_owned(),
            last_updated_time: Timestamp::now(),
            image_ref: image_id.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        if !change(&mut record) && !is_new {
            return true;
        }
        record.last_updated_time = Timestamp::now();
        let written = write(&self.directory.join("pulled").join(&name), &record);
        if let Err(error) = &written {
            tracing::warn!(image = image_id, %error, "who may use a pulled image was not recorded; pods will pull it again after a restart");
        }
        state.pulled.insert(name, Some(record));
        written.is_ok()
    }
}

/// Domain and path; an image that has none is its own.
fn repository(image: &str) -> String {
    Reference::parse(image).map_or_else(|_| image.to_owned(), |reference| reference.repository())
}

fn canonical(image: &str) -> String {
    Reference::parse(image).map_or_else(|_| image.to_owned(), |reference| reference.to_string())
}

fn file_name(key: &str) -> String {
    format!("sha256-{}", Digest::of(key.as_bytes()).hex())
}

/// By file name; `None` is told, and cannot be read.
fn read_all<T: DeserializeOwned>(directory: &Path) -> io::Result<BTreeMap<String, Option<T>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            remove(&path);
            continue;
        }
        let record = match serde_json::from_slice(&fs::read(&path)?) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a record of a pulled image cannot be read; pods will have to pull it");
                None
            }
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        found.insert(name.into_owned(), record);
    }
    Ok(found)
}

fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_vec(record)?)?;
    fs::rename(&unfinished, path)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a record of a pulled image was not removed");
    }
}

#[cfg(test)]
#[path = "pull_records_tests.rs"]
mod tests;
