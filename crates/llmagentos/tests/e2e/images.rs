//! The images of the tests: busybox, made from Debian's static one, in a `docker save` archive.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::cluster::{Cluster, succeed};

/// A small system: busybox under the names of its applets.
pub const BUSYBOX: &str = "localhost/busybox:1";
/// The same content under a second name, for rolling updates.
pub const BUSYBOX_2: &str = "localhost/busybox:2";

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "sleep", "true", "false", "httpd", "nc", "env", "id", "touch",
    "mkdir", "tar", "stty", "tty", "hostname", "test", "kill", "ps", "head", "tail", "grep", "seq",
    "date", "mount", "df", "rm", "cp", "printf", "trap", "wc", "ip", "nslookup", "dd", "yes",
];

pub fn load_all(cluster: &Cluster) -> anyhow::Result<()> {
    let archive = cluster.path().join("busybox.tar");
    write_archive(&archive, &[BUSYBOX])?;
    let path = archive.display().to_string();
    succeed(cluster.llmagentos(&["image", "load", "--input", &path]))?;
    succeed(cluster.llmagentos(&["image", "tag", BUSYBOX, BUSYBOX_2]))?;
    std::fs::remove_file(archive).context("remove the archive")
}

/// A `docker save` archive of one image with one layer.
pub fn write_archive(path: &Path, names: &[&str]) -> anyhow::Result<()> {
    write_archive_of(path, names, &layer()?, None)
}

/// An entry of a layer that need not be sound: names are written as they are.
pub enum Member {
    File(String),
    Symlink(String, String),
}

/// A layer of small files and links.
pub fn layer_of(members: &[Member]) -> anyhow::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for member in members {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        let (name, content) = match member {
            Member::File(name) => (name, &b"content"[..]),
            Member::Symlink(name, target) => {
                header.set_entry_type(EntryType::Symlink);
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
                (name, &b""[..])
            }
        };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        layer.append(&header, content)?;
    }
    Ok(layer.into_inner()?)
}

/// A `docker save` archive of one image with that layer; its configuration may lie about the layer's digest.
pub fn write_archive_of(
    path: &Path,
    names: &[&str],
    layer: &[u8],
    diff_id: Option<&str>,
) -> anyhow::Result<()> {
    write_archive_running(path, names, layer, diff_id, &["sh"])
}

/// An archive of an image that serves a page on port 8080.
pub fn write_server_archive(path: &Path, names: &[&str]) -> anyhow::Result<()> {
    let serve = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    write_archive_running(path, names, &layer()?, None, &serve)
}

fn write_archive_running(
    path: &Path,
    names: &[&str],
    layer: &[u8],
    diff_id: Option<&str>,
    command: &[&str],
) -> anyhow::Result<()> {
    let diff_id = diff_id.map_or_else(|| digest(layer), str::to_owned);
    let config = serde_json::to_vec(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": command, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [],
    }))?;
    let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
    let manifest = serde_json::to_vec(
        &json!([{"Config": config_name, "RepoTags": names, "Layers": ["layer.tar"]}]),
    )?;
    let mut archive = Builder::new(std::fs::File::create(path)?);
    for (name, content) in [
        ("manifest.json", &manifest[..]),
        (config_name.as_str(), &config),
        ("layer.tar", layer),
    ] {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn layer() -> anyhow::Result<Vec<u8>> {
    let busybox =
        std::fs::read("/bin/busybox").context("read /bin/busybox; install busybox-static")?;
    let mut layer = Builder::new(Vec::new());
    for directory in ["bin/", "etc/", "tmp/", "root/", "var/", "www/"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(if directory == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, directory, std::io::empty())?;
    }
    let mut files: Vec<(&str, &[u8], u32)> = vec![("bin/busybox", &busybox, 0o755)];
    files.push((
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        0o644,
    ));
    files.push(("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644));
    files.push(("www/index.html", b"hello from busybox\n", 0o644));
    for (name, content, mode) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        layer.append_data(&mut header, name, content)?;
    }
    for applet in APPLETS {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(layer.into_inner()?)
}

fn digest(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    bytes.iter().fold("sha256:".to_owned(), |mut text, byte| {
        use std::fmt::Write;
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
