//! Images from a real registry: Debian's docker-registry, filled by skopeo, in the cluster's network namespace.

use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::Context;

use crate::cluster::{Cluster, NODE_ADDRESS, eventually, succeed};
use crate::images;
use crate::kubectl::{Kubectl, contains};

use super::streams::curl;

/// Nobody listens there.
const DEAD_MIRROR: &str = "http://127.0.0.1:1";

/// A running registry. The ports are those of a network namespace that belongs to the cluster.
struct Registry<'a> {
    cluster: &'a Cluster,
    directory: tempfile::TempDir,
    process: Child,
    address: String,
}

impl<'a> Registry<'a> {
    /// `users`: lines of an htpasswd file; everybody may do everything if there are none.
    fn start(cluster: &'a Cluster, port: u16, users: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("make a directory")?;
        let address = format!("127.0.0.1:{port}");
        let path = |name: &str| directory.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            path("data").display()
        );
        if !users.is_empty() {
            std::fs::write(path("htpasswd"), users)?;
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path("htpasswd").display()
            ));
        }
        std::fs::write(path("config.yml"), config)?;
        let process = cluster
            .inside("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run docker-registry; 'make test-tools' installs it")?;
        let registry = Self {
            cluster,
            directory,
            process,
            address,
        };
        // Any HTTP answer means that it listens, a refusal for want of a password too.
        eventually("the registry listens", || {
            let mut probe = cluster.inside("curl");
            probe.args(["--silent", "--output", "/dev/null"]);
            probe.arg(format!("http://{}/v2/", registry.address));
            succeed(probe)
        })?;
        Ok(registry)
    }

    /// Pushes an image that serves a page on port 8080.
    fn push(&self, name: &str, credentials: &[&str]) -> anyhow::Result<()> {
        let archive = self.directory.path().join("image.tar");
        images::write_server_archive(&archive, &["localhost/server:1"])?;
        let mut copy = self.cluster.inside("skopeo");
        copy.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
            .args(credentials)
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .env("TMPDIR", self.directory.path());
        succeed(copy).map(drop)
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The cluster's registries file while a test needs it: it is the user's, and `reset` leaves it.
struct Registries(PathBuf);

impl Registries {
    fn write(cluster: &Cluster, content: &str) -> anyhow::Result<Self> {
        let path = cluster.path().join("config/registries.yaml");
        std::fs::write(&path, content)?;
        Ok(Self(path))
    }
}

impl Drop for Registries {
    fn drop(&mut self) {
        // If it cannot be removed, the test of `reset` finds it.
        std::fs::remove_file(&self.0).ok();
    }
}

/// What the project is for: an image by the name that the world knows it by, from a registry, answering.
pub fn hello_world_through_mirrors(cluster: &Cluster) -> anyhow::Result<()> {
    let registry = Registry::start(cluster, 5000, "")?;
    registry.push("google-samples/hello-app:1.0", &[])?;
    let _configured = Registries::write(
        cluster,
        &format!(
            "mirrors: {{gcr.io: {{endpoint: [\"{DEAD_MIRROR}\", \"http://{}\"]}}}}\n",
            registry.address
        ),
    )?;
    let kubectl = Kubectl::in_new_namespace(cluster, "registry")?;
    kubectl.run(&[
        "create",
        "deployment",
        "hello-world",
        "--image=gcr.io/google-samples/hello-app:1.0",
    ])?;
    kubectl.wait("deployment/hello-world", "condition=Available")?;
    contains(&kubectl.run(&["get", "deployments"])?, "1/1")?;
    let expose = ["expose", "deployment", "hello-world", "--type=NodePort"];
    kubectl.run(&[&expose[..], &["--port=8080"]].concat())?;
    let port = kubectl.value("service/hello-world", ".spec.ports[0].nodePort")?;
    eventually("hello-world answers", || {
        let page = succeed(curl(cluster, &format!("http://{NODE_ADDRESS}:{port}/")))?;
        contains(&page, "hello from busybox")
    })?;
    // The mirror that was of no use is named where the user looks.
    eventually("the event names the mirror", || {
        let events = kubectl.run(&["get", "events", "--field-selector=type=Warning"])?;
        contains(&events, "ImagePullWarning")?;
        contains(&events, &format!("mirror {DEAD_MIRROR} of gcr.io"))
    })?;
    contains(
        &kubectl.run(&["get", "events", "--field-selector=reason=Pulled"])?,
        "Successfully pulled image \"gcr.io/google-samples/hello-app:1.0\"",
    )
}

/// A private image is pulled with the pod's `imagePullSecrets`, and not without.
pub fn private_image(cluster: &Cluster) -> anyhow::Result<()> {
    // bcrypt's own test vector: the password is "U*U".
    let users = "user:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n";
    let registry = Registry::start(cluster, 5001, users)?;
    registry.push("private/server:1", &["--dest-creds", "user:U*U"])?;
    let image = format!("{}/private/server:1", registry.address);
    let kubectl = Kubectl::in_new_namespace(cluster, "private-registry")?;
    kubectl.run(&["run", "refused", &format!("--image={image}")])?;
    eventually("the pull without a password is refused", || {
        let events = kubectl.run(&["get", "events", "--field-selector=reason=Failed"])?;
        contains(&events, &registry.address)?;
        contains(&events, "authentication required")
    })?;
    kubectl.run(&[
        "create",
        "secret",
        "docker-registry",
        "login",
        &format!("--docker-server={}", registry.address),
        "--docker-username=user",
        "--docker-password=U*U",
    ])?;
    let overrides = "--overrides={\"spec\": {\"imagePullSecrets\": [{\"name\": \"login\"}]}}";
    kubectl.run(&["run", "allowed", &format!("--image={image}"), overrides])?;
    kubectl.wait("pod/allowed", "condition=Ready")?;
    kubectl.run(&["delete", "pod", "allowed", "refused", "--now"])?;
    Ok(())
}
