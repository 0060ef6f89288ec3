//! Events about pods and the node: told at once, written in the background, repeated ones counted.
//!
//! As client-go's correlator does: an event that was told before raises the count of the first one; ten
//! similar ones (same object and reason, other message) within ten minutes become one; and one object's
//! events are limited to a burst of 25, then one in five minutes.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

/// More events than this waiting to be written are dropped.
const QUEUE_LENGTH_MAX: usize = 1000;
/// Known events; the oldest are forgotten.
const KNOWN_COUNT_MAX: usize = 4096;
const SIMILAR_COUNT_MAX: usize = 10;
const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_secs(600);
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

#[derive(Clone, Debug)]
struct Told {
    object: ObjectReference,
    severity: Severity,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// Tells events; cheap to clone, never waits.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
}

impl Recorder {
    /// A recorder and the task that writes what it is told.
    pub fn new(
        client: kube::Client,
        node_name: &str,
    ) -> (Recorder, impl Future<Output = ()> + Send + use<>) {
        let (queue, receiver) = mpsc::channel(QUEUE_LENGTH_MAX);
        (
            Recorder { queue },
            write(client, Arc::from(node_name), receiver),
        )
    }

    pub fn tell(
        &self,
        object: ObjectReference,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        let reason = reason.into();
        tracing::debug!(%reason, message, object = object.name, "event");
        let told = Told {
            object,
            severity,
            reason,
            message,
            at: Timestamp::now(),
        };
        if let Err(refused) = self.queue.try_send(told) {
            let reason = refused.into_inner().reason;
            tracing::warn!(%reason, "event dropped, too many are waiting");
        }
    }
}

/// The pod as an event's subject; with a container also the field that names it.
pub fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

pub fn node_reference(node_name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(node_name.into()),
        uid: Some(node_name.into()),
        ..ObjectReference::default()
    }
}

async fn write(client: kube::Client, node_name: Arc<str>, mut receiver: mpsc::Receiver<Told>) {
    let mut correlator = Correlator::default();
    while let Some(told) = receiver.recv().await {
        let namespace = told
            .object
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        match correlator.next(&told) {
            Step::Drop => {}
            Step::Count {
                name,
                count,
                message,
            } => {
                let patch =
                    json!({"count": count, "lastTimestamp": Time(told.at), "message": message});
                match api
                    .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        // It expired; tell it anew.
                        correlator.forget(&told);
                        if let Step::Create { name, message } = correlator.next(&told) {
                            create(&api, &node_name, &told, name, message).await;
                        }
                    }
                    Err(error) => tracing::debug!(%error, "event could not be counted"),
                }
            }
            Step::Create { name, message } => create(&api, &node_name, &told, name, message).await,
        }
    }
}

async fn create(api: &Api<Event>, node_name: &str, told: &Told, name: String, message: String) {
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(
                told.object
                    .namespace
                    .clone()
                    .unwrap_or_else(|| "default".to_owned()),
            ),
            ..ObjectMeta::default()
        },
        involved_object: told.object.clone(),
        reason: Some(told.reason.clone().into_owned()),
        message: Some(message),
        type_: Some(format!("{:?}", told.severity)),
        count: Some(1),
        first_timestamp: Some(Time(told.at)),
        last_timestamp: Some(Time(told.at)),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node_name.into()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.into()),
        ..Event::default()
    };
    if let Err(error) = api.create(&PostParams::default(), &event).await {
        tracing::debug!(%error, reason = %told.reason, "event could not be written");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create {
        name: String,
        message: String,
    },
    Count {
        name: String,
        count: i32,
        message: String,
    },
    Drop,
}

#[derive(Default)]
struct Correlator {
    known: HashMap<String, (String, i32)>,
    order: VecDeque<String>,
    similar: HashMap<String, (Timestamp, Vec<String>)>,
    tokens: HashMap<String, (f64, Timestamp)>,
}

impl Correlator {
    fn group(told: &Told) -> String {
        let object = &told.object;
        format!(
            "{:?}/{:?}/{:?}/{:?}/{:?}/{}",
            object.kind,
            object.namespace,
            object.uid,
            object.field_path,
            told.severity,
            told.reason
        )
    }

    fn forget(&mut self, told: &Told) {
        let prefix = format!("{}/", Self::group(told));
        self.known.retain(|key, _| !key.starts_with(&prefix));
    }

    fn next(&mut self, told: &Told) -> Step {
        let group = Self::group(told);
        let (since, messages) = self
            .similar
            .entry(group.clone())
            .or_insert((told.at, Vec::new()));
        if told.at.duration_since(*since) > SIMILAR_WINDOW {
            *since = told.at;
            messages.clear();
        }
        if !messages.contains(&told.message) && messages.len() < SIMILAR_COUNT_MAX {
            messages.push(told.message.clone());
        }
        let aggregated = messages.len() >= SIMILAR_COUNT_MAX;
        let (key, message) = if aggregated {
            (
                format!("{group}/"),
                format!("(combined from similar events): {}", told.message),
            )
        } else {
            (format!("{group}/{}", told.message), told.message.clone())
        };
        if !self.allow(told) {
            return Step::Drop;
        }
        if let Some((name, count)) = self.known.get_mut(&key) {
            *count += 1;
            return Step::Count {
                name: name.clone(),
                count: *count,
                message,
            };
        }
        let nanos = told.at.as_nanosecond() as u64;
        let name = format!(
            "{}.{nanos:x}",
            told.object.name.as_deref().unwrap_or("unknown")
        );
        self.known.insert(key.clone(), (name.clone(), 1));
        self.order.push_back(key);
        if self.order.len() > KNOWN_COUNT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
            if self.similar.len() > KNOWN_COUNT_MAX {
                self.similar.clear();
                self.tokens.clear();
            }
        }
        Step::Create { name, message }
    }

    /// Is there a token left for the object?
    fn allow(&mut self, told: &Told) -> bool {
        let key = format!(
            "{:?}/{:?}/{:?}",
            told.object.kind, told.object.namespace, told.object.uid
        );
        let (tokens, at) = self.tokens.entry(key).or_insert((BURST, told.at));
        let elapsed = told.at.duration_since(*at).as_secs_f64().max(0.0);
        *tokens = (*tokens + elapsed * REFILL_PER_SECOND).min(BURST);
        *at = told.at;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(uid: &str, message: &str, second: i64) -> Told {
        Told {
            object: ObjectReference {
                uid: Some(uid.into()),
                name: Some("p".into()),
                ..ObjectReference::default()
            },
            severity: Severity::Warning,
            reason: "BackOff".into(),
            message: message.into(),
            at: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second),
        }
    }

    #[test]
    fn repeated_events_are_counted() {
        let mut correlator = Correlator::default();
        let Step::Create { name, .. } = correlator.next(&told("u", "m", 1)) else {
            panic!("the first is created")
        };
        assert_eq!(
            correlator.next(&told("u", "m", 2)),
            Step::Count {
                name: name.clone(),
                count: 2,
                message: "m".into()
            }
        );
        assert!(matches!(
            correlator.next(&told("u", "other", 3)),
            Step::Create { .. }
        ));
        assert!(matches!(
            correlator.next(&told("v", "m", 3)),
            Step::Create { .. }
        ));
        correlator.forget(&told("u", "m", 4));
        assert!(matches!(
            correlator.next(&told("u", "m", 5)),
            Step::Create { .. }
        ));
    }

    #[test]
    fn similar_events_become_one_and_a_flood_is_cut() {
        let mut correlator = Correlator::default();
        let steps: Vec<_> = (0..40)
            .map(|index| correlator.next(&told("u", &format!("m{index}"), 1)))
            .collect();
        let created = steps
            .iter()
            .filter(|step| matches!(step, Step::Create { .. }))
            .count();
        assert_eq!(created, 10, "nine of their own and the combined one");
        assert!(
            matches!(&steps[9], Step::Create { message, .. } if message.starts_with("(combined from similar events): "))
        );
        assert_eq!(
            steps[25..]
                .iter()
                .filter(|step| **step != Step::Drop)
                .count(),
            0
        );
        assert!(
            correlator.next(&told("u", "later", 400)) != Step::Drop,
            "a token came back"
        );
    }
}
