//! Recording of Events: never in the way of the loop that has something to say.
//!
//! A recorder puts events into a bounded channel; one task writes them. An event that repeats one of the
//! last ten minutes raises that one's count in the place of a new object, and each object has a budget,
//! so that a failure that repeats does not fill the store.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controllers::event::{Event, EventType};
use controllers::time::whole_seconds;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events that wait to be written; more than these are dropped, as upstream's broadcaster does.
const WAITING_MAX: usize = 1000;
/// Events remembered for counting.
const REMEMBERED_MAX: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Writes of one object's events in a row, and how often one more is granted (upstream: 25, then one in 5 minutes).
const BURST: u32 = 25;
const GRANT_EVERY: Duration = Duration::from_secs(300);

struct Entry {
    component: &'static str,
    object: ObjectReference,
    event: Event,
    at: Timestamp,
}

/// Clones share the writer.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    waiting: mpsc::Sender<Entry>,
}

impl Recorder {
    /// Starts the writer.
    pub fn new(client: Client) -> Self {
        let (waiting, entries) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(client, entries));
        Recorder {
            component: "controlplane",
            waiting,
        }
    }

    /// The same writer, speaking for a component (`deployment-controller`, `default-scheduler`).
    pub fn component(&self, component: &'static str) -> Self {
        Recorder {
            component,
            waiting: self.waiting.clone(),
        }
    }

    pub fn record<K: Resource<DynamicType = ()>>(&self, object: &K, event: Event) {
        self.record_reference(reference(object), event);
    }

    pub fn record_reference(&self, object: ObjectReference, event: Event) {
        let entry = Entry {
            component: self.component,
            object,
            event,
            at: Timestamp::now(),
        };
        if let Err(error) = self.waiting.try_send(entry) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

/// The reference that an event's `involvedObject` is.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

type Fingerprint = (String, String, &'static str, String);

#[derive(Default)]
struct Memory {
    known: HashMap<Fingerprint, (String, i32, Instant)>,
    order: VecDeque<Fingerprint>,
    /// Budget of an object's UID.
    budgets: HashMap<String, (u32, Instant)>,
}

impl Memory {
    /// May one more event of the object be written?
    fn grant(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        if self.budgets.len() > REMEMBERED_MAX {
            self.budgets
                .retain(|_, (_, since)| now - *since < GRANT_EVERY * BURST);
        }
        let (left, since) = self.budgets.entry(uid.to_string()).or_insert((BURST, now));
        let earned =
            u32::try_from((now - *since).as_secs() / GRANT_EVERY.as_secs()).unwrap_or(BURST);
        if earned > 0 {
            *left = left.saturating_add(earned).min(BURST);
            *since = now;
        }
        let granted = *left > 0;
        *left = left.saturating_sub(1);
        granted
    }

    fn remember(&mut self, fingerprint: Fingerprint, name: String, count: i32) {
        if self
            .known
            .insert(fingerprint.clone(), (name, count, Instant::now()))
            .is_none()
        {
            self.order.push_back(fingerprint);
        }
        while self.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

async fn write_all(client: Client, mut entries: mpsc::Receiver<Entry>) {
    let mut memory = Memory::default();
    while let Some(entry) = entries.recv().await {
        let uid = entry.object.uid.clone().unwrap_or_default();
        if !memory.grant(&uid) {
            continue;
        }
        let fingerprint = (
            uid,
            entry.component.to_string(),
            entry.event.reason,
            entry.event.message.clone(),
        );
        let namespace = entry
            .object
            .namespace
            .clone()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| "default".into());
        let api: Api<ApiEvent> = Api::namespaced(client.clone(), &namespace);
        let again = memory
            .known
            .get(&fingerprint)
            .filter(|(_, _, at)| at.elapsed() < REMEMBERED_FOR)
            .cloned();
        if let Some((name, count, _)) = again {
            let patch = if action(entry.component, entry.event.reason).is_some() {
                let last = MicroTime(whole_microseconds(entry.at));
                serde_json::json!({"series": {"count": count + 1, "lastObservedTime": last}})
            } else {
                serde_json::json!({"count": count + 1, "lastTimestamp": Time(whole_seconds(entry.at))})
            };
            match api
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => {
                    memory.remember(fingerprint, name, count + 1);
                    continue;
                }
                Err(error) if crate::error::is_not_found(&error) => {}
                Err(error) => {
                    tracing::debug!(%error, "event not counted");
                    continue;
                }
            }
        }
        let event = api_event(&entry, &namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => memory.remember(fingerprint, name, 1),
            Err(error) => tracing::debug!(%error, reason = entry.event.reason, "event not written"),
        }
    }
}

fn api_event(entry: &Entry, namespace: &str) -> ApiEvent {
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let object = entry.object.name.clone().unwrap_or_default();
    let nanoseconds = u64::try_from(entry.at.as_nanosecond())
        .unwrap_or(0)
        .wrapping_add(SEQUENCE.fetch_add(1, Ordering::Relaxed));
    let time = Time(whole_seconds(entry.at));
    let mut event = ApiEvent {
        metadata: ObjectMeta {
            name: Some(format!("{object}.{nanoseconds:x}")),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        involved_object: entry.object.clone(),
        reason: Some(entry.event.reason.into()),
        message: Some(entry.event.message.clone()),
        type_: Some(
            match entry.event.type_ {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            }
            .into(),
        ),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(EventSource {
            component: Some(entry.component.into()),
            host: None,
        }),
        reporting_component: Some(entry.component.into()),
        reporting_instance: Some(String::new()),
        ..ApiEvent::default()
    };
    if let Some(action) = action(entry.component, entry.event.reason) {
        into_newer_form(&mut event, entry.component, action, entry.at);
    }
    event
}

/// What a component that writes events of the newer form was doing, by their reason; upstream's scheduler is the one.
fn action(component: &str, reason: &str) -> Option<&'static str> {
    match (component, reason) {
        ("default-scheduler", "Scheduled") => Some("Binding"),
        ("default-scheduler", "Preempted") => Some("Preempting"),
        ("default-scheduler", _) => Some("Scheduling"),
        _ => None,
    }
}

/// The newer form has one time, an action and an instance, and no count.
fn into_newer_form(event: &mut ApiEvent, component: &str, action: &str, at: Timestamp) {
    event.count = None;
    event.first_timestamp = None;
    event.last_timestamp = None;
    event.source = None;
    event.event_time = Some(MicroTime(whole_microseconds(at)));
    event.action = Some(action.into());
    event.reporting_instance = Some(format!("{component}-{}", host_name()));
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

fn whole_microseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}
