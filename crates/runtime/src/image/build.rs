//! Builds the smallest useful image: one static program, as an OCI layout in a tar.
//!
//! For the project's own hello-app where no registry can be reached. Reproducible: the same program
//! and arguments give the same bytes, whenever and wherever. The program is held in memory.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::digest::Digest;
use super::reference::Reference;
use super::spec::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Platform};
use crate::service::ImageError;

const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What to build.
#[derive(Clone, Debug)]
pub struct SingleBinaryImage {
    /// A statically linked program on this machine.
    pub binary: PathBuf,
    /// The image's name, for example `localhost/hello-app:1.0`.
    pub reference: String,
    /// The first is an absolute path: where the program lies in the image.
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub exposed_tcp_port: Option<u16>,
    /// `uid` or `uid:gid`; empty for root.
    pub user: String,
}

/// Builds the image into the file `archive`, and answers the image id.
pub fn build_single_binary_image(
    image: &SingleBinaryImage,
    archive: &Path,
) -> Result<String, ImageError> {
    let reference = Reference::parse(&image.reference)?;
    let failed = |e: io::Error| {
        ImageError::Internal(format!(
            "building image {} from {} into {}: {e}",
            image.reference,
            image.binary.display(),
            archive.display()
        ))
    };
    let binary = std::fs::read(&image.binary).map_err(|e| {
        ImageError::Internal(format!(
            "building image {}: reading the program {}: {e}",
            image.reference,
            image.binary.display()
        ))
    })?;
    let layer_tar = layer(image, &binary).map_err(failed)?;
    let diff_id = Digest::of(&layer_tar);
    let layer = gzip(&layer_tar).map_err(failed)?;
    drop(layer_tar);

    let platform = Platform::host();
    let exposed_ports: serde_json::Map<String, serde_json::Value> = image
        .exposed_tcp_port
        .map(|port| (format!("{port}/tcp"), json!({})))
        .into_iter()
        .collect();
    let config = json!({
        "created": EPOCH,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "User": image.user,
            "ExposedPorts": exposed_ports,
            "Env": image.env,
            "Entrypoint": image.entrypoint,
            "Cmd": image.cmd,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": EPOCH, "created_by": "llmagentos" }],
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(&config), "size": config.len() },
        "layers": [{ "mediaType": OCI_LAYER_GZIP, "digest": Digest::of(&layer), "size": layer.len() }],
    })
    .to_string()
    .into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{
            "mediaType": OCI_MANIFEST,
            "digest": Digest::of(&manifest),
            "size": manifest.len(),
            "platform": platform,
            "annotations": {
                "io.containerd.image.name": reference.to_string(),
                "org.opencontainers.image.ref.name": reference.to_string(),
            },
        }],
    })
    .to_string()
    .into_bytes();
    let members = [
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index),
        (blob_name(&config), config.clone()),
        (blob_name(&manifest), manifest),
        (blob_name(&layer), layer),
    ];
    write_archive(&members, archive).map_err(failed)?;
    Ok(Digest::of(&config).to_string())
}

fn blob_name(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(blob).hex())
}

/// The directories on the way to the program, and the program.
fn layer(image: &SingleBinaryImage, binary: &[u8]) -> io::Result<Vec<u8>> {
    let target = image
        .entrypoint
        .first()
        .and_then(|path| path.strip_prefix('/'))
        .unwrap_or_default();
    if target.is_empty() || target.split('/').any(|c| matches!(c, "" | "." | "..")) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the entrypoint must start with a plain absolute path, for example /hello-app",
        ));
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(
        &header(tar::EntryType::Directory, "./", 0o755, 0)?,
        io::empty(),
    )?;
    for (end, _) in target.match_indices('/') {
        tar.append(
            &header(tar::EntryType::Directory, &target[..=end], 0o755, 0)?,
            io::empty(),
        )?;
    }
    tar.append(
        &header(tar::EntryType::Regular, target, 0o755, binary.len())?,
        binary,
    )?;
    tar.into_inner()
}

fn header(kind: tar::EntryType, path: &str, mode: u32, size: usize) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // No name and no time in its header.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn write_archive(members: &[(String, Vec<u8>)], archive: &Path) -> io::Result<()> {
    let staged = archive.with_extension("part");
    let write = || -> io::Result<()> {
        let mut tar = tar::Builder::new(std::fs::File::create(&staged)?);
        for (name, bytes) in members {
            tar.append(
                &header(tar::EntryType::Regular, name, 0o644, bytes.len())?,
                bytes.as_slice(),
            )?;
        }
        tar.into_inner()?.sync_all()?;
        std::fs::rename(&staged, archive)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&staged);
    })
}
