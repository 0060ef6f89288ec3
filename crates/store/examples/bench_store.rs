//! Benchmark of the embedded store, beside a single etcd in the same run.
//!
//! `cargo run --release -p store --example bench_store -- --json FILE`
//!
//! Writes alternate between the two in short rounds on the same file system, so that both see the
//! same machine. etcd is started with its defaults (fsync on) and driven over plain gRPC with no
//! more work than the protocol needs; its cost of a network protocol is part of what it is.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark stops at the first surprise"
)]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use clap::Parser;
use store::{Embedded, KeyRange, Op, RangeRequest, Store, Txn};

/// The program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WRITERS: usize = 64;
const VALUE_BYTES: usize = 1024;
/// Keys of each writer, written over and over.
const KEYS_PER_WRITER: u64 = 1000;
/// TCP connections to etcd, shared by the writers.
const CONNECTIONS: usize = 4;

#[derive(Parser)]
struct Arguments {
    /// Append one JSON object a line to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Directory on the disk to measure
    #[arg(long, default_value = "target")]
    directory: PathBuf,
    /// Rounds of each engine
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Length of a round
    #[arg(long, default_value_t = 1500)]
    round_millis: u64,
    /// The peer; without it only the embedded store is measured
    #[arg(long, default_value = "/usr/bin/etcd")]
    etcd: PathBuf,
    /// (used by the benchmark itself) open a store, print milliseconds and resident KiB, and end
    #[arg(long, hide = true)]
    probe: Option<PathBuf>,
}

struct Measured {
    name: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
    peer: Vec<f64>,
    smaller_is_better: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let Some(directory) = &arguments.probe {
        return probe(directory);
    }
    std::fs::create_dir_all(&arguments.directory).unwrap();
    let mut results = runtime.block_on(writes(&arguments));
    for (count, open, memory) in [
        (
            10_000,
            "store reopen, 10,000 objects of 2 KiB",
            "store resident, 10,000 objects of 2 KiB",
        ),
        (
            150_000,
            "store reopen, 150,000 objects of 2 KiB",
            "store resident, 150,000 objects of 2 KiB",
        ),
    ] {
        let (millis, mebibytes) = runtime.block_on(reopen(&arguments.directory, count));
        results.push(Measured {
            name: open,
            unit: "ms",
            samples: millis,
            peer: vec![],
            smaller_is_better: true,
        });
        results.push(Measured {
            name: memory,
            unit: "MiB",
            samples: mebibytes,
            peer: vec![],
            smaller_is_better: true,
        });
    }
    report(&results, arguments.json.as_deref());
}

fn report(results: &[Measured], json: Option<&Path>) {
    println!(
        "{:<52} {:>8} {:>10} {:>10} {:>10} {:>10} {:>7}",
        "name", "unit", "p10", "median", "p90", "peer", "ratio"
    );
    let mut lines = String::new();
    for result in results {
        let [p10, median, p90] = [0.1, 0.5, 0.9].map(|share| percentile(&result.samples, share));
        let peer = (!result.peer.is_empty()).then(|| percentile(&result.peer, 0.5));
        let ratio = peer.map(|peer| {
            if result.smaller_is_better {
                peer / median
            } else {
                median / peer
            }
        });
        let show =
            |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.2}"));
        println!(
            "{:<52} {:>8} {p10:>10.2} {median:>10.2} {p90:>10.2} {:>10} {:>7}",
            result.name,
            result.unit,
            show(peer),
            show(ratio)
        );
        let line = serde_json::json!({
            "name": result.name, "unit": result.unit, "p10": p10, "median": median, "p90": p90, "peer": peer, "ratio": ratio,
        });
        lines += &format!("{line}\n");
    }
    if let Some(path) = json {
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(lines.as_bytes()).unwrap();
    }
}

fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

async fn writes(arguments: &Arguments) -> Vec<Measured> {
    let directory = tempfile::tempdir_in(&arguments.directory).unwrap();
    let store = Arc::new(Embedded::open(directory.path().join("store")).unwrap());
    let etcd = Etcd::start(&arguments.etcd, &directory.path().join("etcd")).await;
    let length = Duration::from_millis(arguments.round_millis);
    let (mut ours, mut peer, mut our_latency, mut peer_latency) = (vec![], vec![], vec![], vec![]);
    for round in 0..arguments.rounds {
        ours.push(throughput(&store, length).await);
        our_latency.extend(latencies(&store, length / 4).await);
        if let Some(etcd) = &etcd {
            peer.push(throughput(&etcd.writer, length).await);
            peer_latency.extend(latencies(&etcd.writer, length / 4).await);
        }
        eprintln!(
            "round {}: store {:.0} puts/s, etcd {:.0} puts/s",
            round + 1,
            ours[round],
            peer.get(round).unwrap_or(&0.0)
        );
    }
    vec![
        Measured {
            name: "store durable puts of 1 KiB, 64 writers",
            unit: "puts/s",
            samples: ours,
            peer,
            smaller_is_better: false,
        },
        Measured {
            name: "store durable put of 1 KiB, one writer",
            unit: "ms",
            samples: our_latency,
            peer: peer_latency,
            smaller_is_better: true,
        },
    ]
}

/// Something that puts durably.
trait Puts: Clone + Send + Sync + 'static {
    fn put(&self, writer: usize, key: Bytes, value: Bytes) -> impl Future<Output = ()> + Send;
}

impl Puts for Arc<Embedded> {
    async fn put(&self, _writer: usize, key: Bytes, value: Bytes) {
        let txn = Txn {
            success: vec![Op::Put {
                key,
                value,
                lease: None,
            }],
            ..Txn::default()
        };
        self.txn(txn).await.unwrap();
    }
}

/// Puts per second of all writers together.
async fn throughput(target: &impl Puts, length: Duration) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (target, stop) = (target.clone(), stop.clone());
        writers.spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                target
                    .put(
                        writer,
                        key(writer, count),
                        value(writer, count, VALUE_BYTES),
                    )
                    .await;
                count += 1;
            }
            count
        });
    }
    tokio::time::sleep(length).await;
    stop.store(true, Ordering::Relaxed);
    let count: u64 = writers.join_all().await.into_iter().sum();
    count as f64 / begin.elapsed().as_secs_f64()
}

/// Milliseconds of single puts, one after the other.
async fn latencies(target: &impl Puts, length: Duration) -> Vec<f64> {
    let begin = Instant::now();
    let mut millis = Vec::new();
    while begin.elapsed() < length {
        let number = millis.len() as u64;
        let one = Instant::now();
        target
            .put(0, key(0, number), value(0, number, VALUE_BYTES))
            .await;
        millis.push(one.elapsed().as_secs_f64() * 1000.0);
    }
    millis
}

fn key(writer: usize, number: u64) -> Bytes {
    format!(
        "/registry/bench/writer-{writer:02}/object-{:05}",
        number % KEYS_PER_WRITER
    )
    .into()
}

/// Bytes that do not compress.
fn value(writer: usize, number: u64, length: usize) -> Bytes {
    let mut state = (number << 16 | writer as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = BytesMut::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.put_u64(state);
    }
    bytes.freeze()
}

/// Fills a store, then opens it in fresh processes: milliseconds and resident MiB of each.
async fn reopen(directory: &Path, count: u64) -> (Vec<f64>, Vec<f64>) {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let store = Arc::new(Embedded::open(directory.path()).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS as u64 {
        let store = store.clone();
        writers.spawn(async move {
            for number in (writer..count).step_by(WRITERS) {
                let key = format!(
                    "/registry/pods/namespace-{}/object-{number:06}",
                    number % 100
                )
                .into();
                store.put(0, key, value(0, number, 2048)).await;
            }
        });
    }
    writers.join_all().await;
    drop(store);
    let (mut millis, mut mebibytes) = (vec![], vec![]);
    for _ in 0..5 {
        let output = Command::new(std::env::current_exe().unwrap())
            .arg("--probe")
            .arg(directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<f64> = text
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        millis.push(numbers[0]);
        mebibytes.push(numbers[1] / 1024.0);
    }
    (millis, mebibytes)
}

fn probe(directory: &Path) {
    let begin = Instant::now();
    let store = Embedded::open(directory).unwrap();
    let first = RangeRequest {
        range: KeyRange::prefix("/registry/"),
        revision: None,
        limit: 1,
        count_only: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(runtime.block_on(store.range(first)).unwrap().kvs.len(), 1);
    let elapsed = begin.elapsed();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    println!(
        "{} {}",
        elapsed.as_secs_f64() * 1000.0,
        resident.trim().trim_end_matches(" kB")
    );
}

/// A single etcd on loopback with a directory of its own; ends with this value.
struct Etcd {
    process: Child,
    writer: EtcdWriter,
}

/// gRPC's Put by hand: one HTTP/2 stream a call, over a few connections.
#[derive(Clone)]
struct EtcdWriter {
    connections: Vec<h2::client::SendRequest<Bytes>>,
    authority: Arc<str>,
}

impl Etcd {
    async fn start(program: &Path, directory: &Path) -> Option<Self> {
        if !program.exists() {
            eprintln!(
                "{} is not there: no peer (apt-get install etcd-server)",
                program.display()
            );
            return None;
        }
        let [client, peer] = [(); 2].map(|()| {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        });
        let process = Command::new(program)
            .arg("--data-dir")
            .arg(directory)
            .args(["--log-level", "error", "--name", "bench"])
            .args([
                "--listen-client-urls",
                &format!("http://{client}"),
                "--advertise-client-urls",
                &format!("http://{client}"),
            ])
            .args([
                "--listen-peer-urls",
                &format!("http://{peer}"),
                "--initial-advertise-peer-urls",
                &format!("http://{peer}"),
            ])
            .args(["--initial-cluster", &format!("bench=http://{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut connections = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while connections.len() < CONNECTIONS {
            assert!(
                Instant::now() < deadline,
                "etcd does not answer on {client}"
            );
            let Ok(stream) = tokio::net::TcpStream::connect(client).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            stream.set_nodelay(true).unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            connections.push(sender);
        }
        let writer = EtcdWriter {
            connections,
            authority: client.to_string().into(),
        };
        // The first put waits for the leader.
        writer.put(0, key(0, 0), value(0, 0, VALUE_BYTES)).await;
        Some(Self { process, writer })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Puts for EtcdWriter {
    async fn put(&self, writer: usize, key: Bytes, value: Bytes) {
        let mut client = self.connections[writer % CONNECTIONS]
            .clone()
            .ready()
            .await
            .unwrap();
        let request = http::Request::post(format!("http://{}/etcdserverpb.KV/Put", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(put_request(&key, &value), true).unwrap();
        let response = response.await.unwrap();
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            let length = data.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
        }
        let trailers = body
            .trailers()
            .await
            .unwrap()
            .expect("gRPC ends with trailers");
        assert_eq!(trailers.get("grpc-status").unwrap(), "0", "{trailers:?}");
    }
}

/// A gRPC frame of `etcdserverpb.PutRequest { bytes key = 1; bytes value = 2; }`.
fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for (tag, bytes) in [(0x0a, key), (0x12, value)] {
        message.put_u8(tag);
        let mut length = bytes.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(bytes);
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}
