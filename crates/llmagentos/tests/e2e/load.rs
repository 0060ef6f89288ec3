//! Writers and a watcher in a process of their own, for tests that end the server under load.
//!
//! The test starts its own executable again with [`KUBECONFIG`] set. Until its standard input ends, tasks
//! create ConfigMaps as fast as they are acknowledged, and one watch goes on from the last revision that it
//! saw, over every loss of the server. What happened comes on standard output, a [`Line`] each.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};

use crate::cluster::{Cluster, eventually};

const KUBECONFIG: &str = "E2E_LOAD_KUBECONFIG";
const NAMESPACE: &str = "E2E_LOAD_NAMESPACE";
const WRITER_COUNT: usize = 4;
/// Between two tries to reach a server that is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the other process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A create was answered with success.
    Acknowledged { name: String, revision: u64 },
    /// The watch told of a new object.
    Watched { name: String, revision: u64 },
    /// The watch could not go on from where it was.
    Gap { why: String },
}

impl Line {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut words = line.splitn(3, ' ');
        let (what, name, rest) = (words.next(), words.next(), words.next());
        match (what, name, rest) {
            (Some("acknowledged"), Some(name), Some(revision)) => Ok(Self::Acknowledged {
                name: name.to_owned(),
                revision: revision.parse()?,
            }),
            (Some("watched"), Some(name), Some(revision)) => Ok(Self::Watched {
                name: name.to_owned(),
                revision: revision.parse()?,
            }),
            (Some("gap"), ..) => Ok(Self::Gap {
                why: line.to_owned(),
            }),
            _ => bail!("the load process said \"{line}\""),
        }
    }
}

/// The other process, as the test sees it.
pub struct Load {
    child: Child,
    lines: Arc<Mutex<Vec<Line>>>,
    reader: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    pub fn start(cluster: &Cluster, namespace: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("find the test's program")?;
        let mut child = cluster
            .inside(&program.display().to_string())
            .env(KUBECONFIG, cluster.kubeconfig())
            .env(NAMESPACE, namespace)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the load")?;
        let output = child.stdout.take().context("stdout is piped")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let line = Line::parse(&line?)?;
                into.lock().expect("no reader panics").push(line);
            }
            Ok(())
        });
        Ok(Self {
            child,
            lines,
            reader: Some(reader),
        })
    }

    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().expect("no reader panics").clone()
    }

    pub fn acknowledged_count(&self) -> usize {
        let lines = self.lines.lock().expect("no reader panics");
        lines
            .iter()
            .filter(|line| matches!(line, Line::Acknowledged { .. }))
            .count()
    }

    /// Ends the load; answers all that it said, the watch having seen the last acknowledged write.
    pub fn finish(mut self) -> anyhow::Result<Vec<Line>> {
        drop(self.child.stdin.take());
        let status = eventually("the load ends", || {
            self.child
                .try_wait()?
                .context("the load process still runs")
        })?;
        anyhow::ensure!(status.success(), "the load ended with {status}");
        let reader = self.reader.take().context("the reader is joined once")?;
        reader.join().expect("no reader panics")?;
        Ok(self.lines())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Runs the load, if this process was started for it.
pub fn run_if_asked() -> Option<std::process::ExitCode> {
    let kubeconfig = PathBuf::from(std::env::var_os(KUBECONFIG)?);
    let namespace = std::env::var(NAMESPACE).ok()?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")
        .and_then(|runtime| runtime.block_on(load(&kubeconfig, &namespace)));
    Some(match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            std::process::ExitCode::FAILURE
        }
    })
}

/// What the tasks share.
struct Shared {
    kubeconfig: PathBuf,
    namespace: String,
    stopped: AtomicBool,
    last_acknowledged: AtomicU64,
}

async fn load(kubeconfig: &Path, namespace: &str) -> anyhow::Result<()> {
    let shared = Arc::new(Shared {
        kubeconfig: kubeconfig.to_owned(),
        namespace: namespace.to_owned(),
        stopped: AtomicBool::new(false),
        last_acknowledged: AtomicU64::new(0),
    });
    let start = shared
        .api()
        .await?
        .list(&ListParams::default().limit(1))
        .await?
        .metadata
        .resource_version
        .context("a list has a revision")?;
    let watcher = tokio::spawn(watch(Arc::clone(&shared), start));
    let writers: Vec<_> = (0..WRITER_COUNT)
        .map(|index| tokio::spawn(write(Arc::clone(&shared), index)))
        .collect();
    let stopper = Arc::clone(&shared);
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        stopper.stopped.store(true, Ordering::SeqCst);
    });
    for writer in writers {
        writer.await?;
    }
    tokio::time::timeout(CALL_TIMEOUT, watcher)
        .await
        .context("the watch did not see the last write in time")?
        .context("the watch")
}

impl Shared {
    /// A client of the server that runs now: a new one may listen elsewhere.
    async fn api(&self) -> anyhow::Result<Api<ConfigMap>> {
        let kubeconfig = kube::config::Kubeconfig::read_from(&self.kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(
            kubeconfig,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        config.connect_timeout = Some(CALL_TIMEOUT);
        let client = kube::Client::try_from(config)?;
        Ok(Api::namespaced(client, &self.namespace))
    }

    fn done(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// Creates objects, one after another, each under a name that was never tried before.
async fn write(shared: Arc<Shared>, index: usize) {
    let begun = Instant::now();
    for number in 0_u64.. {
        let Ok(api) = shared.api().await else {
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        };
        for attempt in 0_u64.. {
            if shared.done() {
                return;
            }
            let mut object = ConfigMap::default();
            object.metadata.name = Some(format!("load-{index}-{number}-{attempt}"));
            object.data = Some(
                [(
                    "at".to_owned(),
                    format!("{:?} {}", begun.elapsed(), "x".repeat(200)),
                )]
                .into(),
            );
            match api.create(&PostParams::default(), &object).await {
                Ok(created) => acknowledge(&shared, &created),
                Err(_) => break,
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

fn acknowledge(shared: &Shared, created: &ConfigMap) {
    let revision = revision(created);
    shared
        .last_acknowledged
        .fetch_max(revision, Ordering::SeqCst);
    say("acknowledged", created, revision);
}

/// Follows all objects of the namespace from `from` on, until all that was acknowledged was seen.
async fn watch(shared: Arc<Shared>, from: String) {
    let mut from = from;
    loop {
        if let Ok(api) = shared.api().await
            && follow(&shared, &api, &mut from).await
        {
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// One watch, to its end; true when there is nothing left to see.
async fn follow(shared: &Shared, api: &Api<ConfigMap>, from: &mut String) -> bool {
    let parameters = WatchParams::default().timeout(1);
    let Ok(stream) = api.watch(&parameters, from).await else {
        return false;
    };
    let mut stream = std::pin::pin!(stream);
    while let Ok(Some(event)) = stream.try_next().await {
        match event {
            WatchEvent::Added(object) => {
                let revision = revision(&object);
                *from = revision.to_string();
                // The root certificates come by themselves.
                if object
                    .metadata
                    .name
                    .as_deref()
                    .is_some_and(|name| name.starts_with("load-"))
                {
                    say("watched", &object, revision);
                }
            }
            WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                *from = revision(&object).to_string();
            }
            WatchEvent::Bookmark(bookmark) => *from = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => {
                print(&format!("gap {status:?}"));
                return false;
            }
        }
    }
    let seen: u64 = from.parse().unwrap_or(0);
    shared.done() && seen >= shared.last_acknowledged.load(Ordering::SeqCst)
}

fn revision(object: &ConfigMap) -> u64 {
    let text = object.metadata.resource_version.as_deref();
    text.and_then(|text| text.parse().ok())
        .expect("every stored object has a revision")
}

fn say(what: &str, object: &ConfigMap, revision: u64) {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    print(&format!("{what} {name} {revision}"));
}

fn print(line: &str) {
    let mut output = std::io::stdout().lock();
    // A reader that has gone ends the test by itself.
    writeln!(output, "{line}").ok();
}
