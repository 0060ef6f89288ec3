//! Loads image archives: what `docker save` and `skopeo copy … docker-archive:` write, and OCI layouts in a tar.
//!
//! Enter at [`ImageStore::load_archive`]. The archive is one file that is read by offset, never
//! unpacked: names in it are keys of a map and never become paths. Compressed archives and those
//! from a pipe are spooled to the store's disk first. Blocking.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use super::digest::{Digest, HashingReader};
use super::layer_stream::decompress;
use super::reference::Reference;
use super::spec::{Descriptor, Document, Manifest, Platform, choose_platform, parse_config};
use super::store::{Failure, ImageStore, LayerSource, NewImage, chain_ids};
use super::tar_reader::{EntryKind, TarReader};
use crate::service::ImageError;

/// Manifests and configurations larger than this are refused.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
const MEMBER_COUNT_MAX: usize = 100_000;
/// Indexes within indexes; real ones need one level.
const INDEX_DEPTH_MAX: usize = 4;
const LINK_COUNT_MAX: usize = 8;
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

/// Where an archive comes from.
pub enum ArchiveSource {
    File(PathBuf),
    /// For example standard input.
    Reader(Box<dyn Read + Send>),
}

/// An image that an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    pub id: String,
    /// Normalised; empty when the archive has no name for it and none was given.
    pub references: Vec<String>,
}

impl ImageStore {
    /// Loads every image of an archive that runs on this machine.
    ///
    /// `reference` names the image instead of the names within, and needs an archive of one image.
    pub fn load_archive(
        &self,
        source: ArchiveSource,
        reference: Option<&str>,
    ) -> Result<Vec<LoadedImage>, ImageError> {
        let name = match &source {
            ArchiveSource::File(path) => path.display().to_string(),
            ArchiveSource::Reader(_) => "archive".to_owned(),
        };
        let reference = reference.map(Reference::parse).transpose()?;
        let load = || {
            let archive = Archive::open(self, source)?;
            let images = archive.images()?;
            if reference.is_some() && images.len() > 1 {
                return Err(Failure::Corrupt(format!(
                    "it holds {} images, and one name was given for them; load it without a name",
                    images.len()
                )));
            }
            images
                .into_iter()
                .map(|mut image| {
                    if let Some(reference) = &reference {
                        image.references = vec![reference.clone()];
                    }
                    self.load_image(&archive, image)
                })
                .collect()
        };
        load().map_err(|e| e.of_image(&name))
    }

    fn load_image(&self, archive: &Archive, image: ArchivedImage) -> Result<LoadedImage, Failure> {
        let mut attempts_left = 3;
        loop {
            match self.try_load_image(archive, &image) {
                Err(Failure::Stale) if attempts_left > 0 => attempts_left -= 1,
                result => return result,
            }
        }
    }

    fn try_load_image(
        &self,
        archive: &Archive,
        image: &ArchivedImage,
    ) -> Result<LoadedImage, Failure> {
        let config =
            parse_config(&image.config_bytes, &Platform::host()).map_err(Failure::Corrupt)?;
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(Failure::Corrupt(format!(
                "its configuration lists {} layers, its manifest {}",
                config.rootfs.diff_ids.len(),
                image.layers.len()
            )));
        }
        let never = AtomicBool::new(false);
        let mut layers: Vec<(Digest, LayerSource)> = Vec::new();
        let chain = chain_ids(&config.rootfs.diff_ids);
        for ((chain_id, diff_id), layer) in chain
            .into_iter()
            .zip(&config.rootfs.diff_ids)
            .zip(&image.layers)
        {
            let source = if self.has_layer(&chain_id)? {
                LayerSource::InStore(chain_id.clone())
            } else {
                let member = archive.member(&layer.name)?;
                if let Some(digest) = &layer.digest {
                    member.verify(digest)?;
                }
                LayerSource::Staged(Arc::new(
                    self.stage_layer(member, &layers, diff_id, &never)?,
                ))
            };
            layers.push((chain_id, source));
        }
        let tags: Vec<String> = image
            .references
            .iter()
            .filter_map(Reference::tagged)
            .collect();
        let digests = match &image.manifest_digest {
            Some(digest) => image
                .references
                .iter()
                .map(|r| r.with_digest(digest))
                .collect(),
            None => Vec::new(),
        };
        let id = self.commit(&NewImage {
            config_bytes: image.config_bytes.clone(),
            config,
            layers,
            tags,
            digests,
        })?;
        Ok(LoadedImage {
            id: id.to_string(),
            references: image.references.iter().map(Reference::to_string).collect(),
        })
    }
}

/// An image within an archive, its layers still where they are.
struct ArchivedImage {
    config_bytes: Vec<u8>,
    manifest_digest: Option<Digest>,
    /// Lowest first.
    layers: Vec<ArchivedLayer>,
    references: Vec<Reference>,
}

struct ArchivedLayer {
    name: String,
    /// Of the bytes in the archive, where the archive states it.
    digest: Option<Digest>,
}

/// An uncompressed archive and where its members lie.
struct Archive {
    file: Arc<File>,
    members: HashMap<String, (u64, u64)>,
    /// Symlinks and hard links among the members: `docker save` used to write them for equal layers.
    links: HashMap<String, String>,
    _spool: Option<Spool>,
}

struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Archive {
    fn open(store: &ImageStore, source: ArchiveSource) -> Result<Archive, Failure> {
        let (file, spool) = match source {
            ArchiveSource::File(path) => {
                let open = || {
                    File::open(&path)
                        .map_err(|e| Failure::Internal(format!("opening {}: {e}", path.display())))
                };
                let file = open()?;
                let mut magic = [0; 4];
                let magic_len = file
                    .read_at(&mut magic, 0)
                    .map_err(|e| Failure::io("reading", &path, e))?;
                if matches!(
                    &magic[..magic_len],
                    [0x1f, 0x8b, ..]
                        | [0x28, 0xb5, 0x2f, 0xfd]
                        | [b'B', b'Z', b'h', ..]
                        | [0xfd, b'7', b'z', b'X']
                ) {
                    spool(store, file)?
                } else {
                    (file, None)
                }
            }
            ArchiveSource::Reader(reader) => spool(store, reader)?,
        };
        let mut archive = Archive {
            file: Arc::new(file),
            members: HashMap::new(),
            links: HashMap::new(),
            _spool: spool,
        };
        archive.scan()?;
        Ok(archive)
    }

    fn scan(&mut self) -> Result<(), Failure> {
        let broken = |e: io::Error| Failure::Corrupt(format!("not an image archive: {e}"));
        let length = self.file.metadata().map_err(broken)?.len();
        let whole = Member {
            file: Arc::clone(&self.file),
            position: 0,
            end: length,
        };
        let mut reader = TarReader::new(BufReader::with_capacity(128 << 10, whole));
        while let Some(entry) = reader.next_entry().map_err(broken)? {
            let name = normal_name(&String::from_utf8_lossy(&entry.path), "");
            match entry.kind {
                EntryKind::File if entry.sparse.is_some() => {
                    return Err(Failure::Corrupt(format!(
                        "not an image archive: member {name} is sparse"
                    )));
                }
                EntryKind::File => {
                    self.members
                        .insert(name, (reader.data_position(), entry.size_bytes));
                }
                EntryKind::Symlink => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = normal_name(&String::from_utf8_lossy(&entry.link), directory);
                    self.links.insert(name, target);
                }
                EntryKind::HardLink => {
                    let target = normal_name(&String::from_utf8_lossy(&entry.link), "");
                    self.links.insert(name, target);
                }
                _ => {}
            }
            if self.members.len() + self.links.len() > MEMBER_COUNT_MAX {
                return Err(Failure::Corrupt(format!(
                    "not an image archive: more than {MEMBER_COUNT_MAX} members"
                )));
            }
        }
        Ok(())
    }

    fn images(&self) -> Result<Vec<ArchivedImage>, Failure> {
        if self.members.contains_key("manifest.json") {
            return self.docker_images();
        }
        if self.members.contains_key("index.json") {
            return self.oci_images();
        }
        Err(Failure::Corrupt(
            "not an image archive: it has neither manifest.json (docker save) nor index.json (OCI layout)".into(),
        ))
    }

    fn docker_images(&self) -> Result<Vec<ArchivedImage>, Failure> {
        let images: Vec<DockerImage> = serde_json::from_slice(&self.document("manifest.json")?)
            .map_err(|e| Failure::Corrupt(format!("manifest.json is malformed: {e}")))?;
        images
            .into_iter()
            .map(|image| {
                let config_bytes = self.document(&image.config)?;
                let stem = image
                    .config
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(".json");
                if let Ok(stated) = format!("sha256:{stem}").parse::<Digest>() {
                    check_digest(&image.config, &Digest::of(&config_bytes), &stated)?;
                }
                let references = image.repo_tags.unwrap_or_default();
                let references = references
                    .iter()
                    .map(|name| parse_name(name))
                    .collect::<Result<_, _>>()?;
                Ok(ArchivedImage {
                    config_bytes,
                    manifest_digest: None,
                    layers: image
                        .layers
                        .into_iter()
                        .map(|name| ArchivedLayer { name, digest: None })
                        .collect(),
                    references,
                })
            })
            .collect()
    }

    fn oci_images(&self) -> Result<Vec<ArchivedImage>, Failure> {
        let Document::Index(manifests) =
            Document::parse(&self.document("index.json")?, "").map_err(Failure::Corrupt)?
        else {
            return Err(Failure::Corrupt("index.json is no index".into()));
        };
        let host = Platform::host();
        let unnamed: Vec<&Descriptor> = manifests.iter().filter(|m| name_of(m).is_none()).collect();
        let mut chosen: Vec<&Descriptor> = manifests
            .iter()
            .filter(|m| {
                name_of(m).is_some() && m.platform.as_ref().is_none_or(|p| p.runs_on(&host))
            })
            .collect();
        if chosen.is_empty() && manifests.len() == unnamed.len() {
            // One image in several platforms, or several images that name none.
            if unnamed.iter().all(|m| m.platform.is_none()) {
                chosen = unnamed;
            } else {
                chosen.push(choose_platform(&manifests, &host).map_err(Failure::Corrupt)?);
            }
        }
        if chosen.is_empty() {
            return Err(Failure::Corrupt(format!(
                "it has no image for platform {host}"
            )));
        }
        chosen
            .into_iter()
            .map(|descriptor| {
                let manifest = self.resolve_manifest(&descriptor.digest, &host, INDEX_DEPTH_MAX)?;
                let config_bytes = self.blob_document(&manifest.config.digest)?;
                let layers = manifest.layers.iter().map(|layer| ArchivedLayer {
                    name: blob_name(&layer.digest),
                    digest: Some(layer.digest.clone()),
                });
                Ok(ArchivedImage {
                    config_bytes,
                    manifest_digest: Some(descriptor.digest.clone()),
                    layers: layers.collect(),
                    references: name_of(descriptor)
                        .map(parse_name)
                        .transpose()?
                        .into_iter()
                        .collect(),
                })
            })
            .collect()
    }

    fn resolve_manifest(
        &self,
        digest: &Digest,
        host: &Platform,
        depth_left: usize,
    ) -> Result<Manifest, Failure> {
        let bytes = self.blob_document(digest)?;
        match Document::parse(&bytes, "").map_err(Failure::Corrupt)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) if depth_left == 0 => {
                Err(Failure::Corrupt("indexes are nested too deeply".into()))
            }
            Document::Index(manifests) => {
                let chosen = choose_platform(&manifests, host).map_err(Failure::Corrupt)?;
                self.resolve_manifest(&chosen.digest, host, depth_left - 1)
            }
        }
    }

    fn blob_document(&self, digest: &Digest) -> Result<Vec<u8>, Failure> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?;
        let mut reader = HashingReader::new(bytes.as_slice(), digest.algorithm());
        io::copy(&mut reader, &mut io::sink()).map_err(|e| Failure::Internal(e.to_string()))?;
        check_digest(&name, &reader.finish().0, digest)?;
        Ok(bytes)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let mut member = self.member(name)?;
        if member.end - member.position > DOCUMENT_BYTES_MAX {
            return Err(Failure::Corrupt(format!(
                "{name} is larger than {DOCUMENT_BYTES_MAX} bytes"
            )));
        }
        let mut bytes = Vec::new();
        member
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::Corrupt(format!("reading {name}: {e}")))?;
        Ok(bytes)
    }

    fn member(&self, name: &str) -> Result<Member, Failure> {
        let mut key = normal_name(name, "");
        for _ in 0..LINK_COUNT_MAX {
            if let Some((offset, size)) = self.members.get(&key) {
                return Ok(Member {
                    file: Arc::clone(&self.file),
                    position: *offset,
                    end: offset + size,
                });
            }
            match self.links.get(&key) {
                Some(target) => key.clone_from(target),
                None => break,
            }
        }
        Err(Failure::Corrupt(format!(
            "{name} is missing from the archive"
        )))
    }
}

/// A part of the archive's file.
struct Member {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Member {
    fn verify(&self, expected: &Digest) -> Result<(), Failure> {
        let copy = Member {
            file: Arc::clone(&self.file),
            position: self.position,
            end: self.end,
        };
        let mut reader = HashingReader::new(copy, expected.algorithm());
        let mut buffer = vec![0; 128 << 10];
        while reader
            .read(&mut buffer)
            .map_err(|e| Failure::Internal(format!("reading the archive: {e}")))?
            > 0
        {}
        check_digest("layer", &reader.finish().0, expected)
    }
}

impl Read for Member {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let limit = buf
            .len()
            .min(usize::try_from(self.end - self.position).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buf[..limit], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

fn spool(store: &ImageStore, source: impl Read) -> Result<(File, Option<Spool>), Failure> {
    let path = store.fresh_temporary_path();
    let mut file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| Failure::io("making", &path, e))?;
    let spool = Spool(path.clone());
    let bytes_max = store.inner.options.limits.unpacked_bytes_max;
    let mut reader = decompress(source)?.take(bytes_max + 1);
    let mut buffer = vec![0; 128 << 10];
    let mut spooled_bytes = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Corrupt(format!("reading the archive: {e}"))),
        };
        file.write_all(&buffer[..count])
            .map_err(|e| Failure::io("writing", &path, e))?;
        spooled_bytes += count as u64;
    }
    if spooled_bytes > bytes_max {
        return Err(Failure::Corrupt(format!(
            "it unpacks to more than {bytes_max} bytes"
        )));
    }
    Ok((file, Some(spool)))
}

fn parse_name(name: &str) -> Result<Reference, Failure> {
    name.parse()
        .map_err(|e| Failure::Corrupt(format!("it names an image {name:?}: {e}")))
}

/// A whole reference; OCI layouts may also name a bare tag, which says nothing on its own.
fn name_of(descriptor: &Descriptor) -> Option<&str> {
    let name = descriptor.annotations.get(CONTAINERD_NAME).or_else(|| {
        descriptor
            .annotations
            .get(OCI_NAME)
            .filter(|name| name.contains(['/', ':']))
    });
    name.map(String::as_str)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

fn check_digest(what: &str, actual: &Digest, stated: &Digest) -> Result<(), Failure> {
    if actual == stated {
        return Ok(());
    }
    Err(Failure::Corrupt(format!(
        "{what} has the digest {actual}, expected {stated}"
    )))
}

/// A key for a member's name: `./a//b/../c` below `directory` is `directory/a/c`.
fn normal_name(name: &str, directory: &str) -> String {
    let directory = if name.starts_with('/') { "" } else { directory };
    let mut components = Vec::new();
    for component in directory.split('/').chain(name.split('/')) {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    components.join("/")
}

/// For messages and tests: the archive at `path` as a source.
impl From<&Path> for ArchiveSource {
    fn from(path: &Path) -> ArchiveSource {
        ArchiveSource::File(path.to_owned())
    }
}
