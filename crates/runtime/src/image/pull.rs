//! Pulls an image: finds it at an endpoint, brings its layers, unpacks them, commits it to the store.
//!
//! ```text
//! endpoints in order -> manifest (index -> platform) -> config -> layers: download ‖ unpack -> commit
//! ```
//! Layers download side by side (bounded by the store) while earlier ones unpack, which must happen
//! from the lowest up. Pulls of one image by one user at the same time are one pull; layers and blobs
//! are shared between different images as well. An endpoint that fails gives way to the next, for the
//! manifest and for each layer; it is named in the warnings of a pull that succeeds without it, and a
//! pull that fails names every endpoint with its reason. Whoever drops the future cancels the pull;
//! what is downloaded by then is found by the next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::digest::{Digest, Hasher};
use super::download::{Attempt, Downloads, PullProgress};
use super::reference::Reference;
use super::registry::auth::Credentials;
use super::registry::client::{FetchError, Get, RegistryClient, Storage};
use super::registry::config::RegistriesFile;
use super::registry::{Registries, Timeouts};
use super::spec::{self, Descriptor, Document, ImageConfig, Manifest, Platform};
use super::store::{
    Failure, ImageStore, LayerSource, NewImage, StagedLayer, StoreOptions, chain_ids,
};
use crate::service::{FilesystemUsage, Image, ImageError, ImageService, PullResult, RegistryAuth};

/// What registries limit manifests to.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
const CONFIG_BYTES_MAX: usize = 8 << 20;
const LAYER_COUNT_MAX: usize = 500;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 3;
/// Content that another process removed in the middle of a pull is fetched again this often.
const STALE_RETRY_COUNT_MAX: usize = 3;
const ACCEPTED_MANIFESTS: [&str; 4] = [
    spec::OCI_INDEX,
    spec::OCI_MANIFEST,
    spec::DOCKER_LIST,
    spec::DOCKER_MANIFEST,
];

type BoxedPull = BoxFuture<'static, Result<PullResult, ImageError>>;
type PullFuture = Shared<BoxedPull>;
/// Who pulls what.
type PullKey = (Reference, Option<Credentials>);
type StagingCell = OnceCell<Arc<StagedLayer>>;

/// Pulls under way in this process, and how to reach registries.
pub(super) struct Pulls {
    registries: RegistriesFile,
    downloads: Downloads,
    running: Mutex<HashMap<PullKey, WeakShared<BoxedPull>>>,
    staging: Mutex<HashMap<Digest, Weak<StagingCell>>>,
}

impl Pulls {
    pub fn new(options: &StoreOptions) -> Pulls {
        Pulls {
            registries: RegistriesFile::new(
                options.registries_file.clone(),
                options.timeouts.connect,
            ),
            downloads: Downloads::new(options.parallel_downloads_max),
            running: Mutex::default(),
            staging: Mutex::default(),
        }
    }
}

#[async_trait]
impl ImageService for ImageStore {
    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        self.images()
    }

    async fn status(&self, image: &str) -> Result<Option<Image>, ImageError> {
        self.image(image)
    }

    async fn pull(
        &self,
        image: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<PullResult, ImageError> {
        self.pull_with_progress(image, auth, Arc::default()).await
    }

    async fn remove(&self, image: &str) -> Result<(), ImageError> {
        let store = self.clone();
        let image = image.to_owned();
        tokio::task::spawn_blocking(move || store.remove_image(&image))
            .await
            .map_err(|e| ImageError::Internal(format!("removing an image: {e}")))?
    }

    async fn filesystem_usage(&self) -> Result<FilesystemUsage, ImageError> {
        self.usage()
    }
}

impl ImageStore {
    /// Pulls an image and keeps count in `progress` meanwhile. If the same pull is under way
    /// already, this waits for it, and its progress is not seen.
    pub async fn pull_with_progress(
        &self,
        image: &str,
        auth: Option<RegistryAuth>,
        progress: Arc<PullProgress>,
    ) -> Result<PullResult, ImageError> {
        let reference = Reference::parse(image)?;
        let credentials = auth
            .filter(|a| !(a.username.is_empty() && a.identity_token.is_empty()))
            .map(|a| Credentials {
                username: a.username,
                password: a.password,
                identity_token: a.identity_token,
            });
        let pull = {
            let mut running = self
                .inner
                .pulls
                .running
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            running.retain(|_, pull| pull.upgrade().is_some());
            let key = (reference.clone(), credentials.clone());
            match running.get(&key).and_then(WeakShared::upgrade) {
                Some(pull) => pull,
                None => {
                    let pull: PullFuture = run_pull(
                        self.clone(),
                        image.to_owned(),
                        reference,
                        credentials,
                        progress,
                    )
                    .boxed()
                    .shared();
                    if let Some(weak) = pull.downgrade() {
                        running.insert(key, weak);
                    }
                    pull
                }
            }
        };
        pull.await
    }

    /// Reads and checks `registries.yaml` now.
    pub fn check_registries(&self) -> Result<(), super::registry::RegistriesError> {
        self.inner.pulls.registries.check()
    }
}

async fn run_pull(
    store: ImageStore,
    image: String,
    reference: Reference,
    credentials: Option<Credentials>,
    progress: Arc<PullProgress>,
) -> Result<PullResult, ImageError> {
    let (registries, warning) =
        store
            .inner
            .pulls
            .registries
            .current()
            .map_err(|e| ImageError::Pull {
                image: image.clone(),
                reason: e.to_string(),
            })?;
    let mut stale_count = 0;
    loop {
        let pull = Pull {
            store: &store,
            image: &image,
            reference: &reference,
            clients: clients(
                &registries,
                &reference,
                credentials.as_ref(),
                &store.inner.options.timeouts,
            ),
            progress: &progress,
            warnings: warning.iter().cloned().collect(),
        };
        match pull.run().await {
            Err(PullError::Stale) if stale_count < STALE_RETRY_COUNT_MAX => stale_count += 1,
            Err(PullError::Stale) => return Err(Failure::Stale.of_image(&image)),
            Err(PullError::Failed(error)) => return Err(error),
            Ok(result) => return Ok(result),
        }
    }
}

fn clients(
    registries: &Arc<Registries>,
    reference: &Reference,
    credentials: Option<&Credentials>,
    timeouts: &Timeouts,
) -> Vec<Arc<RegistryClient>> {
    let endpoints = registries.endpoints(reference, credentials);
    endpoints
        .into_iter()
        .map(|endpoint| {
            Arc::new(RegistryClient::new(
                endpoint,
                Arc::clone(registries),
                timeouts.clone(),
            ))
        })
        .collect()
}

enum PullError {
    Stale,
    Failed(ImageError),
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> PullError {
        PullError::Failed(error)
    }
}

/// One attempt.
struct Pull<'a> {
    store: &'a ImageStore,
    image: &'a str,
    reference: &'a Reference,
    clients: Vec<Arc<RegistryClient>>,
    progress: &'a Arc<PullProgress>,
    warnings: Vec<String>,
}

/// An image as an endpoint describes it.
struct Resolved {
    /// Of what the reference names: the index where there is one.
    digest: Digest,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    config: ImageConfig,
}

impl Pull<'_> {
    async fn run(mut self) -> Result<PullResult, PullError> {
        let (index, resolved) = self.resolve().await?;
        // Layers come from where the manifest came from, and from the others if that fails.
        let clients: Vec<_> = self
            .clients
            .iter()
            .cycle()
            .skip(index)
            .take(self.clients.len())
            .cloned()
            .collect();
        let layers = self.fetch_layers(&clients, &resolved).await?;
        let blob_digests: Vec<Digest> = resolved
            .manifest
            .layers
            .iter()
            .map(|l| l.digest.clone())
            .collect();
        let new_image = NewImage {
            config_bytes: resolved.config_bytes,
            config: resolved.config,
            layers,
            tags: if self.reference.digest().is_none() {
                self.reference.tagged().into_iter().collect()
            } else {
                Vec::new()
            },
            digests: vec![self.reference.with_digest(&resolved.digest)],
        };
        let store = self.store.clone();
        let committed = tokio::task::spawn_blocking(move || {
            let id = store.commit(&new_image)?;
            store.forget_blobs(&blob_digests);
            let size_bytes = store.size_bytes(&id)?;
            Ok((id, size_bytes))
        })
        .await
        .map_err(|e| ImageError::Internal(format!("committing image {}: {e}", self.image)))?;
        let (id, size_bytes) = committed.map_err(|e| self.storage_error(e))?;
        Ok(PullResult {
            image_id: id.to_string(),
            size_bytes,
            warnings: self.warnings,
        })
    }

    /// The first endpoint that has the image, by its place in `clients`.
    async fn resolve(&mut self) -> Result<(usize, Resolved), PullError> {
        let mut attempts = Vec::new();
        for (i, client) in self.clients.iter().enumerate() {
            match resolve_at(client, self.reference, &self.store.inner.options.timeouts).await {
                Ok(resolved) => {
                    self.warn(&attempts, None);
                    return Ok((i, resolved));
                }
                Err(error) => attempts.push(Attempt {
                    endpoint: client.name(),
                    is_mirror: client.endpoint().mirror_of.is_some(),
                    error,
                }),
            }
        }
        Err(self.failure(&attempts, None))
    }

    async fn fetch_layers(
        &mut self,
        clients: &[Arc<RegistryClient>],
        resolved: &Resolved,
    ) -> Result<Vec<(Digest, LayerSource)>, PullError> {
        let diff_ids = &resolved.config.rootfs.diff_ids;
        let chain = chain_ids(diff_ids);
        let mut downloads = HashMap::new();
        let mut total_bytes = 0;
        for (i, (chain_id, descriptor)) in chain.iter().zip(&resolved.manifest.layers).enumerate() {
            if !self
                .store
                .has_layer(chain_id)
                .map_err(|e| self.storage_error(e))?
            {
                total_bytes += descriptor.size;
                downloads.insert(i, self.start_download(clients, descriptor));
            }
        }
        self.progress
            .total_bytes
            .store(total_bytes, Ordering::Relaxed);
        self.progress
            .layer_count
            .store(chain.len() as u64, Ordering::Relaxed);
        let mut layers: Vec<(Digest, LayerSource)> = Vec::with_capacity(chain.len());
        for (i, (chain_id, diff_id)) in chain.iter().zip(diff_ids).enumerate() {
            let source = match downloads.remove(&i) {
                None => LayerSource::InStore(chain_id.clone()),
                Some(download) => LayerSource::Staged(
                    self.stage(
                        chain_id,
                        diff_id,
                        &layers,
                        download,
                        &resolved.manifest.layers[i],
                    )
                    .await?,
                ),
            };
            layers.push((chain_id.clone(), source));
            self.progress
                .unpacked_layer_count
                .store(layers.len() as u64, Ordering::Relaxed);
        }
        Ok(layers)
    }

    /// Runs beside the unpacking, and ends with this pull.
    fn start_download(&self, clients: &[Arc<RegistryClient>], descriptor: &Descriptor) -> Download {
        let store = self.store.clone();
        let clients = clients.to_vec();
        let descriptor = descriptor.clone();
        let progress = Arc::clone(self.progress);
        AbortOnDropHandle::new(tokio::spawn(async move {
            store
                .inner
                .pulls
                .downloads
                .fetch(&store, &clients, &descriptor, &progress)
                .await
        }))
    }

    /// Downloads and unpacks a layer, unless another pull is doing that.
    async fn stage(
        &mut self,
        chain_id: &Digest,
        diff_id: &Digest,
        below: &[(Digest, LayerSource)],
        download: Download,
        descriptor: &Descriptor,
    ) -> Result<Arc<StagedLayer>, PullError> {
        let cell = {
            let mut staging = self
                .store
                .inner
                .pulls
                .staging
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            staging.retain(|_, cell| cell.strong_count() > 0);
            let known = staging.get(chain_id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let cell = Arc::new(StagingCell::new());
                staging.insert(chain_id.clone(), Arc::downgrade(&cell));
                cell
            })
        };
        let store = self.store.clone();
        let staged = cell
            .get_or_try_init(|| async {
                let (blob, attempts) = download.await.map_err(|e| {
                    PullError::Failed(ImageError::Internal(format!(
                        "downloading a layer of {}: {e}",
                        self.image
                    )))
                })?;
                let Ok(blob) = blob else {
                    return Err(self.failure(&attempts, Some(&descriptor.digest)));
                };
                self.warn(&attempts, Some(&descriptor.digest));
                let stop = StopOnDrop(Arc::default());
                let stopped = Arc::clone(&stop.0);
                let below = below.to_vec();
                let expected = diff_id.clone();
                let staged = tokio::task::spawn_blocking(move || {
                    store.stage_layer(blob.reader(), &below, &expected, &stopped)
                })
                .await
                .map_err(|e| {
                    PullError::Failed(ImageError::Internal(format!(
                        "unpacking a layer of {}: {e}",
                        self.image
                    )))
                })?;
                match staged {
                    Ok(staged) => Ok(Arc::new(staged)),
                    Err(Failure::Corrupt(reason)) => {
                        self.store.forget_blobs([&descriptor.digest]);
                        Err(self.storage_error(Failure::Corrupt(format!(
                            "layer {}: {reason}",
                            descriptor.digest
                        ))))
                    }
                    Err(failure) => Err(self.storage_error(failure)),
                }
            })
            .await?;
        Ok(Arc::clone(staged))
    }

    /// Notes mirrors that failed.
    fn warn(&mut self, attempts: &[Attempt], blob: Option<&Digest>) {
        for attempt in attempts.iter().filter(|a| a.is_mirror) {
            let what = blob.map_or(String::new(), |digest| format!(" for layer {digest}"));
            let warning = format!(
                "{} of {} was not used{what}: {}",
                attempt.endpoint,
                self.reference.domain(),
                attempt.error
            );
            tracing::warn!(image = self.image, "{warning}");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }

    /// Every endpoint with its reason; what is wrong with the content goes before who was not there.
    fn failure(&self, attempts: &[Attempt], blob: Option<&Digest>) -> PullError {
        for attempt in attempts {
            if let FetchError::Storage(Storage(failure)) = &attempt.error {
                return self.storage_error(failure.clone());
            }
        }
        let reasons: Vec<String> = attempts
            .iter()
            .map(|a| format!("{}: {}", a.endpoint, a.error))
            .collect();
        let reason = match blob {
            Some(digest) => format!("layer {digest}: {}", reasons.join("; ")),
            None => reasons.join("; "),
        };
        let image = self.image.to_owned();
        let is_corrupt = attempts
            .iter()
            .any(|a| matches!(a.error, FetchError::Corrupt(_)));
        PullError::Failed(if is_corrupt {
            ImageError::Corrupt { image, reason }
        } else {
            ImageError::Pull { image, reason }
        })
    }

    fn storage_error(&self, failure: Failure) -> PullError {
        match failure {
            Failure::Stale => PullError::Stale,
            failure => PullError::Failed(failure.of_image(self.image)),
        }
    }
}

type Download = AbortOnDropHandle<(Result<Arc<super::download::Blob>, ()>, Vec<Attempt>)>;

/// Tells a blocking task that nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Manifest and configuration, each verified.
async fn resolve_at(
    client: &RegistryClient,
    reference: &Reference,
    timeouts: &Timeouts,
) -> Result<Resolved, FetchError> {
    let host = Platform::host();
    let (bytes, digest, document) =
        fetch_manifest(client, &reference.selector(), reference.digest(), timeouts).await?;
    drop(bytes);
    let mut document = document;
    let mut depth_left = INDEX_DEPTH_MAX;
    let manifest = loop {
        match document {
            Document::Manifest(manifest) => break manifest,
            Document::Index(_) if depth_left == 0 => {
                return Err(FetchError::Corrupt("indexes are nested too deeply".into()));
            }
            Document::Index(manifests) => {
                let chosen =
                    spec::choose_platform(&manifests, &host).map_err(FetchError::Status)?;
                (_, _, document) = fetch_manifest(
                    client,
                    &chosen.digest.to_string(),
                    Some(&chosen.digest),
                    timeouts,
                )
                .await?;
                depth_left -= 1;
            }
        }
    };
    if manifest.layers.len() > LAYER_COUNT_MAX {
        return Err(FetchError::Corrupt(format!(
            "image has more than {LAYER_COUNT_MAX} layers"
        )));
    }
    let config_bytes = fetch_config(client, &manifest.config, timeouts).await?;
    let config = spec::parse_config(&config_bytes, &host).map_err(FetchError::Corrupt)?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(FetchError::Corrupt(format!(
            "configuration lists {} layers, the manifest {}",
            config.rootfs.diff_ids.len(),
            manifest.layers.len()
        )));
    }
    Ok(Resolved {
        digest,
        manifest,
        config_bytes,
        config,
    })
}

async fn fetch_manifest(
    client: &RegistryClient,
    selector: &str,
    expected: Option<&Digest>,
    timeouts: &Timeouts,
) -> Result<(Vec<u8>, Digest, Document), FetchError> {
    let path = format!("manifests/{selector}");
    let accept = ACCEPTED_MANIFESTS.join(", ");
    let (bytes, headers) =
        fetch_small(client, &path, &accept, MANIFEST_BYTES_MAX, timeouts).await?;
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let stated: Option<Digest> = header("docker-content-digest").and_then(|text| text.parse().ok());
    let expected = expected.cloned().or(stated);
    let digest = match expected {
        None => Digest::of(&bytes),
        Some(expected) => verified(&bytes, expected, "manifest")?,
    };
    let content_type = header("content-type").unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default();
    let document = Document::parse(&bytes, content_type).map_err(FetchError::Corrupt)?;
    Ok((bytes, digest, document))
}

async fn fetch_config(
    client: &RegistryClient,
    descriptor: &Descriptor,
    timeouts: &Timeouts,
) -> Result<Vec<u8>, FetchError> {
    let path = format!("blobs/{}", descriptor.digest);
    let (bytes, _) = fetch_small(client, &path, "", CONFIG_BYTES_MAX, timeouts).await?;
    verified(&bytes, descriptor.digest.clone(), "configuration")?;
    Ok(bytes)
}

async fn fetch_small(
    client: &RegistryClient,
    path: &str,
    accept: &str,
    bytes_max: usize,
    timeouts: &Timeouts,
) -> Result<(Vec<u8>, http::HeaderMap), FetchError> {
    let mut retry_count = 0;
    loop {
        let fetch = async {
            let response = client
                .get(Get {
                    path,
                    accept,
                    offset: 0,
                })
                .await?;
            let headers = response.headers().clone();
            Ok((client.read_body(response, bytes_max).await?, headers))
        };
        match fetch.await {
            Err(FetchError::Transient { retry_after, .. })
                if retry_count < timeouts.retry_count_max =>
            {
                let delay = timeouts.retry_delay * 2u32.saturating_pow(retry_count);
                tokio::time::sleep(retry_after.unwrap_or(delay)).await;
                retry_count += 1;
            }
            result => return result,
        }
    }
}

fn verified(bytes: &[u8], expected: Digest, what: &str) -> Result<Digest, FetchError> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == expected {
        return Ok(expected);
    }
    Err(FetchError::Corrupt(format!(
        "{what} came with the wrong digest {actual}, expected {expected}"
    )))
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
