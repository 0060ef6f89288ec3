//! Brings one blob to disk: streamed, hashed on the way, resumed when the connection breaks.
//!
//! Enter at [`Downloads::fetch`]. Blobs lie in the store's `blobs/` until their image is complete,
//! `NAME.partial` while they are incomplete; another attempt, or another process later, goes on from
//! there. A blob that is wanted by several pulls at once is fetched once. What is handed out was
//! hashed in this process; files found on disk are hashed again before they count.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_RANGE;
use rustix::fs::FlockOperation;
use tokio::sync::{OnceCell, Semaphore, mpsc};

use super::digest::{Digest, Hasher};
use super::registry::Timeouts;
use super::registry::client::{FetchError, Get, RegistryClient, Storage, next_chunk, transient};
use super::spec::Descriptor;
use super::store::{Failure, ImageStore};

/// Pieces of a body between the network and the disk.
const QUEUED_CHUNK_COUNT: usize = 16;
const HASH_BUFFER_BYTES: usize = 1 << 20;
const RETRY_DELAY_MAX: Duration = Duration::from_secs(20);

/// How far a pull has come, for progress bars.
#[derive(Debug, Default)]
pub struct PullProgress {
    /// Compressed, of the layers that are not here yet; 0 until it is known.
    pub total_bytes: AtomicU64,
    pub downloaded_bytes: AtomicU64,
    pub layer_count: AtomicU64,
    pub unpacked_layer_count: AtomicU64,
}

/// A complete blob. The open file outlives its name.
pub(super) struct Blob {
    pub file: File,
}

impl Blob {
    /// Reads from the start, without disturbing other readers.
    pub fn reader(self: &Arc<Self>) -> BlobReader {
        BlobReader {
            blob: Arc::clone(self),
            position: 0,
        }
    }
}

pub(super) struct BlobReader {
    blob: Arc<Blob>,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.file.read_at(buf, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

type Cell = OnceCell<Arc<Blob>>;

/// The downloads of one store, bounded and shared.
pub(super) struct Downloads {
    slots: Semaphore,
    running: Mutex<HashMap<Digest, Weak<Cell>>>,
}

/// An endpoint that failed, and why.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub endpoint: String,
    pub is_mirror: bool,
    pub error: FetchError,
}

impl Downloads {
    pub fn new(parallel_max: usize) -> Downloads {
        Downloads {
            slots: Semaphore::new(parallel_max.max(1)),
            running: Mutex::default(),
        }
    }

    /// The blob from the first of `clients` that has it right; the attempts say who had not.
    pub async fn fetch(
        &self,
        store: &ImageStore,
        clients: &[Arc<RegistryClient>],
        descriptor: &Descriptor,
        progress: &PullProgress,
    ) -> (Result<Arc<Blob>, ()>, Vec<Attempt>) {
        let cell = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.retain(|_, cell| cell.strong_count() > 0);
            let known = running.get(&descriptor.digest).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let cell = Arc::new(Cell::new());
                running.insert(descriptor.digest.clone(), Arc::downgrade(&cell));
                cell
            })
        };
        let mut attempts = Vec::new();
        let result = cell
            .get_or_try_init(|| async {
                // A semaphore that is never closed.
                let _slot = self.slots.acquire().await;
                match store.prepare_blob(descriptor).await {
                    Ok(Prepared::Complete(blob)) => {
                        progress
                            .downloaded_bytes
                            .fetch_add(descriptor.size, Ordering::Relaxed);
                        Ok(blob)
                    }
                    Ok(Prepared::Partial(mut partial)) => {
                        progress
                            .downloaded_bytes
                            .fetch_add(partial.byte_count(), Ordering::Relaxed);
                        for client in clients {
                            match partial
                                .fetch_from(
                                    client,
                                    descriptor,
                                    &store.inner.options.timeouts,
                                    progress,
                                )
                                .await
                            {
                                Ok(()) => return partial.complete(),
                                Err(error) => attempts.push(Attempt {
                                    endpoint: client.name(),
                                    is_mirror: client.endpoint().mirror_of.is_some(),
                                    error,
                                }),
                            }
                            if matches!(
                                attempts.last(),
                                Some(Attempt {
                                    error: FetchError::Storage(_),
                                    ..
                                })
                            ) {
                                break;
                            }
                        }
                        Err(None)
                    }
                    Err(failure) => Err(Some(failure)),
                }
            })
            .await
            .cloned();
        let result = result.map_err(|failure| {
            if let Some(failure) = failure {
                attempts.push(Attempt {
                    endpoint: "image store".into(),
                    is_mirror: false,
                    error: FetchError::Storage(Storage(failure)),
                });
            }
        });
        (result, attempts)
    }
}

enum Prepared {
    Complete(Arc<Blob>),
    Partial(PartialBlob),
}

/// A blob on its way. Its file is locked against other processes.
struct PartialBlob {
    /// `None` while the writer has it.
    state: Option<Written>,
    partial_path: PathBuf,
    complete_path: PathBuf,
    keep: bool,
}

/// What is on disk so far.
struct Written {
    file: File,
    hasher: Hasher,
    byte_count: u64,
}

impl ImageStore {
    /// Finds the blob complete or in part, and verifies what it finds.
    async fn prepare_blob(&self, descriptor: &Descriptor) -> Result<Prepared, Failure> {
        let store = self.clone();
        let descriptor = descriptor.clone();
        tokio::task::spawn_blocking(move || store.prepare_blob_blocking(&descriptor))
            .await
            .map_err(|e| Failure::Internal(format!("looking for a blob: {e}")))?
    }

    fn prepare_blob_blocking(&self, descriptor: &Descriptor) -> Result<Prepared, Failure> {
        let digest = &descriptor.digest;
        let complete_path = self.blob_path(digest);
        if let Ok(mut file) = File::open(&complete_path) {
            let (hasher, byte_count) = hash_file(&mut file, &complete_path, digest)?;
            if byte_count == descriptor.size && hasher.finish() == *digest {
                return Ok(Prepared::Complete(Arc::new(Blob { file })));
            }
            let _ = std::fs::remove_file(&complete_path);
        }
        let mut partial_path = complete_path.with_extension("partial");
        let open = |path: &Path| {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path);
            file.map_err(|e| Failure::io("making", path, e))
        };
        let mut file = open(&partial_path)?;
        let mut keep = true;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another process is at it.
            partial_path = self.fresh_temporary_path();
            file = open(&partial_path)?;
            keep = false;
        }
        let (hasher, byte_count) = hash_file(&mut file, &partial_path, digest)?;
        let mut written = Written {
            file,
            hasher,
            byte_count,
        };
        if byte_count > descriptor.size {
            written.restart(digest, &partial_path)?;
        }
        Ok(Prepared::Partial(PartialBlob {
            state: Some(written),
            partial_path,
            complete_path,
            keep,
        }))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_directory()
            .join(digest.to_string().replace(':', "-"))
    }

    /// Their image is complete, or they are wrong.
    pub(super) fn forget_blobs<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) {
        for digest in digests {
            let _ = std::fs::remove_file(self.blob_path(digest));
        }
    }
}

impl PartialBlob {
    async fn fetch_from(
        &mut self,
        client: &RegistryClient,
        descriptor: &Descriptor,
        timeouts: &Timeouts,
        progress: &PullProgress,
    ) -> Result<(), FetchError> {
        let mut retry_count = 0;
        loop {
            let before = self.byte_count();
            let error = match self.try_fetch(client, descriptor, timeouts, progress).await {
                Ok(()) => return self.verify(descriptor, progress),
                Err(error) => error,
            };
            let FetchError::Transient { retry_after, .. } = &error else {
                return Err(error);
            };
            // Only attempts that bring nothing count.
            retry_count = if self.byte_count() > before {
                1
            } else {
                retry_count + 1
            };
            if retry_count > timeouts.retry_count_max {
                return Err(error);
            }
            let delay = timeouts.retry_delay * 2u32.saturating_pow(retry_count - 1);
            let delay = retry_after.unwrap_or(
                delay
                    .mul_f64(rand::random_range(0.75..1.25))
                    .min(RETRY_DELAY_MAX),
            );
            tracing::debug!(endpoint = client.name(), digest = %descriptor.digest, %error, ?delay, "retrying a download");
            tokio::time::sleep(delay).await;
        }
    }

    async fn try_fetch(
        &mut self,
        client: &RegistryClient,
        descriptor: &Descriptor,
        timeouts: &Timeouts,
        progress: &PullProgress,
    ) -> Result<(), FetchError> {
        let offset = self.byte_count();
        if offset == descriptor.size && offset > 0 {
            return Ok(());
        }
        let path = format!("blobs/{}", descriptor.digest);
        let get = Get {
            path: &path,
            accept: "",
            offset,
        };
        let response = match client.get(get.clone()).await {
            Err(FetchError::Status(status)) if offset > 0 && status.starts_with("416") => {
                self.restart(descriptor, progress)?;
                client.get(Get { offset: 0, ..get }).await?
            }
            result => result?,
        };
        if offset > 0 && self.byte_count() > 0 && !continues_at(&response, offset) {
            self.restart(descriptor, progress)?;
        }
        let mut written = self.state.take().ok_or_else(lost)?;
        let start = written.byte_count;
        let (sender, receiver) = mpsc::channel(QUEUED_CHUNK_COUNT);
        let writer = tokio::task::spawn_blocking(move || (written.write(receiver), written));
        let mut body = response.into_body();
        let mut received = start;
        let mut result = loop {
            match next_chunk(&mut body, timeouts.stall).await {
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if received > descriptor.size {
                        break Err(FetchError::Corrupt(format!(
                            "blob {} is larger than its {} bytes",
                            descriptor.digest, descriptor.size
                        )));
                    }
                    progress
                        .downloaded_bytes
                        .fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    // The writer gave up: its own error follows.
                    if sender.send(chunk).await.is_err() {
                        break Ok(());
                    }
                }
            }
        };
        drop(sender);
        let (write_result, written) = writer
            .await
            .map_err(|e| FetchError::Storage(Storage(Failure::Internal(e.to_string()))))?;
        if let Err(error) = write_result {
            result = Err(FetchError::Storage(Storage(Failure::io(
                "writing",
                &self.partial_path,
                error,
            ))));
        } else if result.is_ok() && received < descriptor.size {
            result = Err(transient(format!(
                "blob {} broke off after {received} of {} bytes",
                descriptor.digest, descriptor.size
            )));
        }
        self.state = Some(written);
        if matches!(result, Err(FetchError::Corrupt(_))) {
            self.restart(descriptor, progress)?;
        }
        result
    }

    fn verify(
        &mut self,
        descriptor: &Descriptor,
        progress: &PullProgress,
    ) -> Result<(), FetchError> {
        let written = self.state.as_ref().ok_or_else(lost)?;
        let actual = written.hasher.clone().finish();
        if actual == descriptor.digest {
            return Ok(());
        }
        // Nothing of it can be trusted; the next endpoint starts anew.
        self.restart(descriptor, progress)?;
        Err(FetchError::Corrupt(format!(
            "blob {} came with the wrong digest {actual}",
            descriptor.digest
        )))
    }

    fn restart(
        &mut self,
        descriptor: &Descriptor,
        progress: &PullProgress,
    ) -> Result<(), FetchError> {
        let written = self.state.as_mut().ok_or_else(lost)?;
        progress
            .downloaded_bytes
            .fetch_sub(written.byte_count, Ordering::Relaxed);
        let restarted = written.restart(&descriptor.digest, &self.partial_path);
        restarted.map_err(|e| FetchError::Storage(Storage(e)))
    }

    fn byte_count(&self) -> u64 {
        self.state.as_ref().map_or(0, |written| written.byte_count)
    }

    fn complete(mut self) -> Result<Arc<Blob>, Option<Failure>> {
        let Some(written) = self.state.take() else {
            return Err(Some(Failure::Internal("a download lost its file".into())));
        };
        std::fs::rename(&self.partial_path, &self.complete_path)
            .map_err(|e| Some(Failure::io("renaming", &self.partial_path, e)))?;
        // Other processes may have it from here on.
        let _ = rustix::fs::flock(&written.file, FlockOperation::Unlock);
        Ok(Arc::new(Blob { file: written.file }))
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        let is_empty = self
            .state
            .as_ref()
            .is_some_and(|written| written.byte_count == 0);
        if !self.keep || is_empty {
            let _ = std::fs::remove_file(&self.partial_path);
        }
    }
}

impl Written {
    fn restart(&mut self, digest: &Digest, path: &Path) -> Result<(), Failure> {
        self.hasher = Hasher::new(digest.algorithm());
        self.byte_count = 0;
        let cleared = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        cleared
            .map(|_| ())
            .map_err(|e| Failure::io("clearing", path, e))
    }

    fn write(&mut self, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.byte_count))?;
        while let Some(chunk) = chunks.blocking_recv() {
            self.file.write_all(&chunk)?;
            self.hasher.update(&chunk);
            self.byte_count += chunk.len() as u64;
        }
        Ok(())
    }
}

fn lost() -> FetchError {
    FetchError::Storage(Storage(Failure::Internal(
        "an earlier write of this download was lost".into(),
    )))
}

fn continues_at<B>(response: &http::Response<B>, offset: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(&format!("bytes {offset}-")))
}

fn hash_file(file: &mut File, path: &Path, digest: &Digest) -> Result<(Hasher, u64), Failure> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut byte_count = 0;
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher, byte_count)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                byte_count += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::io("reading", path, e)),
        }
    }
}
