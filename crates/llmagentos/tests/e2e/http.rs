//! Requests that kubectl would never send, by curl.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::cluster::Cluster;

/// What a caller shows of itself.
pub enum Credential<'a> {
    Administrator,
    Token(&'a str),
    /// Certificate and key, in PEM.
    Certificate(&'a str, &'a str),
}

pub struct Http<'a> {
    cluster: &'a Cluster,
    server: String,
    /// Of files that curl reads.
    directory: tempfile::TempDir,
}

/// The code, and the body if it is JSON.
pub struct Answer {
    pub code: u16,
    pub body: Value,
}

impl Answer {
    /// The answer must be a `Status` of that code and reason, whose message contains `part`.
    pub fn refuses(&self, code: u16, reason: &str, part: &str) -> anyhow::Result<()> {
        let Self { code: found, body } = self;
        let message = body["message"].as_str().unwrap_or_default();
        if *found != code
            || body["kind"] != "Status"
            || body["code"] != code
            || body["reason"] != reason
            || !message.contains(part)
        {
            bail!("expected {code} {reason} \"{part}\", found {found} {body}");
        }
        Ok(())
    }
}

impl<'a> Http<'a> {
    pub fn new(cluster: &'a Cluster) -> anyhow::Result<Self> {
        let kubeconfig: Value = {
            let text = std::fs::read_to_string(cluster.kubeconfig())?;
            serde_yaml::from_str(&text)?
        };
        let http = Self {
            cluster,
            server: kubeconfig["clusters"][0]["cluster"]["server"]
                .as_str()
                .context("the kubeconfig names a server")?
                .to_owned(),
            directory: tempfile::tempdir()?,
        };
        let (clusters, users) = (&kubeconfig["clusters"][0], &kubeconfig["users"][0]);
        for (name, data) in [
            ("ca", &clusters["cluster"]["certificate-authority-data"]),
            ("admin.crt", &users["user"]["client-certificate-data"]),
            ("admin.key", &users["user"]["client-key-data"]),
        ] {
            let pem = STANDARD.decode(data.as_str().context("the kubeconfig has it inline")?)?;
            std::fs::write(http.file(name), pem)?;
        }
        Ok(http)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// One request; `headers` as `Name: value`.
    pub fn request(
        &self,
        credential: Credential<'_>,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &[u8],
    ) -> anyhow::Result<Answer> {
        let mut command = self.cluster.inside("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "60",
                "-X",
                method,
                "-w",
                "\n%{http_code}",
            ])
            .arg("--cacert")
            .arg(self.file("ca"))
            .args(headers.iter().flat_map(|header| ["-H", header]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match credential {
            Credential::Administrator => {
                command.arg("--cert").arg(self.file("admin.crt"));
                command.arg("--key").arg(self.file("admin.key"));
            }
            Credential::Token(token) => {
                command.args(["-H", &format!("Authorization: Bearer {token}")]);
            }
            Credential::Certificate(certificate, key) => {
                std::fs::write(self.file("other.crt"), certificate)?;
                std::fs::write(self.file("other.key"), key)?;
                command.arg("--cert").arg(self.file("other.crt"));
                command.arg("--key").arg(self.file("other.key"));
            }
        }
        if !body.is_empty() {
            // Without Expect the body goes out at once, as from Go's clients.
            command.args(["-H", "Expect:", "--data-binary", "@-"]);
        }
        let mut child = command.arg(format!("{}{path}", self.server)).spawn()?;
        let mut stdin = child.stdin.take().context("it is piped")?;
        // A server that has refused need not read to the end.
        let _ = stdin.write_all(body);
        drop(stdin);
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, code) = text
            .rsplit_once('\n')
            .with_context(|| format!("curl: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(Answer {
            code: code.trim().parse()?,
            body: serde_json::from_str(body).unwrap_or_else(|_| Value::from(body)),
        })
    }

    pub fn post(&self, path: &str, headers: &[&str], body: &[u8]) -> anyhow::Result<Answer> {
        self.request(Credential::Administrator, "POST", path, headers, body)
    }
}
