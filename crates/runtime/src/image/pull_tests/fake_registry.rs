//! A registry of our own, which does as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

use crate::image::digest::Digest;
use crate::image::spec::{self, Platform};

#[derive(Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Send only so much of the body, then close.
    pub(super) cut_after: Option<usize>,
    /// Send only so much of the body, then wait for the client to leave.
    pub(super) stall_after: Option<usize>,
}

impl Reply {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status: 200,
            body: body.into(),
            ..Reply::default()
        }
    }

    pub(super) fn status(status: u16) -> Reply {
        Reply {
            status,
            ..Reply::default()
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

pub(super) struct FakeRegistry {
    pub(super) address: SocketAddr,
    pub(super) asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeRegistry {
    pub(super) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> FakeRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = Arc::clone(&asked);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), log, answer) = (stream, Arc::clone(&log), Arc::clone(&answer))
                else {
                    break;
                };
                std::thread::spawn(move || serve(stream, &log, answer.as_ref()));
            }
        });
        FakeRegistry { address, asked }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn count(&self, part: &str) -> usize {
        self.asked
            .lock()
            .expect("not poisoned")
            .iter()
            .filter(|a| a.path.contains(part))
            .count()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(&Asked) -> Reply + Send + Sync),
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers
        .get("content-length")
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut reader, &mut body).ok()?;
    let asked = Asked {
        method,
        path,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    log.lock().ok()?.push(asked.clone());
    let reply = answer(&asked);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = stream;
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let sent = reply
        .cut_after
        .or(reply.stall_after)
        .unwrap_or(reply.body.len());
    stream.write_all(&reply.body[..sent]).ok()?;
    if reply.stall_after.is_some() {
        // Until the client hangs up.
        let _ = std::io::Read::read(&mut reader, &mut [0]);
    }
    Some(())
}

/// An image in memory: what each path of its registry answers.
#[derive(Clone)]
pub(super) struct FakeImage {
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Vec<u8>>,
}

impl FakeImage {
    /// Each layer is a tar, shown as it is.
    pub(super) fn of(layers: Vec<Vec<u8>>) -> FakeImage {
        let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
        FakeImage::with_diff_ids(layers, &diff_ids)
    }

    pub(super) fn with_diff_ids(layers: Vec<Vec<u8>>, diff_ids: &[Digest]) -> FakeImage {
        let config = json!({"architecture": Platform::host().architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let descriptor = |bytes: &[u8], media_type: &str| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": spec::OCI_MANIFEST,
            "config": descriptor(&config, spec::OCI_CONFIG),
            "layers": layers.iter().map(|l| descriptor(l, "application/vnd.oci.image.layer.v1.tar")).collect::<Vec<_>>(),
        });
        FakeImage {
            manifest: manifest.to_string().into_bytes(),
            config,
            layers,
        }
    }

    pub(super) fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.contains("/manifests/") {
            return Reply::ok(self.manifest.clone()).with("content-type", spec::OCI_MANIFEST);
        }
        for blob in self.layers.iter().chain([&self.config]) {
            if path.ends_with(&format!("/blobs/{}", Digest::of(blob))) {
                let range = asked
                    .headers
                    .get("range")
                    .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
                return match range {
                    None => Reply::ok(blob.clone()),
                    Some(start) => Reply {
                        status: 206,
                        body: blob[start..].to_vec(),
                        ..Reply::default()
                    }
                    .with(
                        "content-range",
                        format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
                    ),
                };
            }
        }
        Reply::status(404)
    }

    pub(super) fn blob(&self, layer: usize) -> String {
        format!("/blobs/{}", Digest::of(&self.layers[layer]))
    }
}

pub(super) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, *content).expect("in memory");
    }
    tar.into_inner().expect("in memory")
}

pub(super) fn two_layers() -> FakeImage {
    FakeImage::of(vec![
        layer(&[("a", &[1; 300_000])]),
        layer(&[("b", &[2; 200_000])]),
    ])
}
