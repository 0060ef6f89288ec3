//! A small API server in memory: get, list, watch, create, patch, delete of any kind; no rules of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;

#[derive(Clone)]
pub struct FakeApi(Arc<Inner>);

struct Inner {
    /// By collection (`/api/v1/pods`) and `namespace/name`.
    objects: Mutex<BTreeMap<(String, String), Value>>,
    version: Mutex<u64>,
    changes: broadcast::Sender<(u64, String, &'static str, Value)>,
    writes: Mutex<Vec<String>>,
}

struct Place {
    collection: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

impl FakeApi {
    pub fn new() -> FakeApi {
        let inner = Inner {
            objects: Mutex::default(),
            version: Mutex::new(1),
            changes: broadcast::channel(10_000).0,
            writes: Mutex::default(),
        };
        FakeApi(Arc::new(inner))
    }

    pub fn client(&self) -> kube::Client {
        let router: Router = Router::new().fallback(handle).with_state(self.clone());
        kube::Client::new(router, "default")
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0
            .objects
            .lock()
            .unwrap()
            .get(&(collection.to_owned(), format!("{namespace}/{name}")))
            .cloned()
    }

    pub fn list(&self, collection: &str) -> Vec<Value> {
        let objects = self.0.objects.lock().unwrap();
        objects
            .iter()
            .filter(|((own, _), _)| own == collection)
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.get("/api/v1/pods", "default", name)
    }

    /// Reasons of all events about a pod, in order of creation.
    pub fn events(&self, pod: &str) -> Vec<(String, String)> {
        let mut list: Vec<Value> = self
            .list("/api/v1/events")
            .into_iter()
            .filter(|event| event["involvedObject"]["name"] == pod)
            .collect();
        list.sort_by_key(|event| {
            event["metadata"]["resourceVersion"]
                .as_str()
                .unwrap_or("")
                .parse::<u64>()
                .unwrap_or(0)
        });
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        list.iter()
            .map(|event| (text(&event["reason"]), text(&event["message"])))
            .collect()
    }

    /// Methods and paths of all writes so far.
    pub fn writes(&self) -> Vec<String> {
        self.0.writes.lock().unwrap().clone()
    }

    /// Puts an object in place, as somebody else would.
    pub fn put(&self, collection: &str, object: Value) -> Value {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("")
            .to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.store(collection, &format!("{namespace}/{name}"), object)
    }

    pub fn put_pod(&self, name: &str, spec: Value) -> Value {
        let mut spec = spec;
        spec["nodeName"] = json!("node");
        if spec.get("restartPolicy").is_none() {
            spec["restartPolicy"] = json!("Always");
        }
        self.put(
            "/api/v1/pods",
            json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1}, "spec": spec, "status": {"phase": "Pending"}}),
        )
    }

    /// Asks for a pod's deletion as `kubectl delete` does.
    pub fn delete_pod(&self, name: &str, grace_period_seconds: i64) {
        let mut pod = self.pod(name).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_period_seconds);
        self.put("/api/v1/pods", pod);
    }

    fn next_version(&self) -> u64 {
        let mut version = self.0.version.lock().unwrap();
        *version += 1;
        *version
    }

    fn store(&self, collection: &str, key: &str, mut object: Value) -> Value {
        let mut objects = self.0.objects.lock().unwrap();
        let version = self.next_version();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"].get("uid").is_none() {
            object["metadata"]["uid"] = json!(format!("u{version}"));
        }
        let kind = if objects
            .insert((collection.to_owned(), key.to_owned()), object.clone())
            .is_some()
        {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let _ = self
            .0
            .changes
            .send((version, collection.to_owned(), kind, object.clone()));
        object
    }

    pub fn remove(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut objects = self.0.objects.lock().unwrap();
        let mut object = objects.remove(&(collection.to_owned(), format!("{namespace}/{name}")))?;
        let version = self.next_version();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let _ = self
            .0
            .changes
            .send((version, collection.to_owned(), "DELETED", object.clone()));
        Some(object)
    }
}

fn place(path: &str) -> Place {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let prefix_length = if parts[0] == "api" { 2 } else { 3 };
    let (prefix, rest) = parts.split_at(prefix_length);
    let (namespace, rest) = if rest[0] == "namespaces" && rest.len() > 2 {
        (rest[1], &rest[2..])
    } else {
        ("", rest)
    };
    Place {
        collection: format!("/{}/{}", prefix.join("/"), rest[0]),
        namespace: namespace.to_owned(),
        name: rest.get(1).map(|name| (*name).to_owned()),
        subresource: rest.get(2).map(|name| (*name).to_owned()),
    }
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, body.to_string()).into_response()
}

fn selected(object: &Value, selector: Option<&str>) -> bool {
    selector.is_none_or(|selector| {
        selector.split(',').all(|term| {
            let (path, value) = term.split_once('=').unwrap();
            path.split('.')
                .fold(object, |object, key| &object[key])
                .as_str()
                == Some(value)
        })
    })
}

async fn handle(State(api): State<FakeApi>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query: BTreeMap<String, String> = axum::extract::Query::try_from_uri(&parts.uri)
        .unwrap_or_default()
        .0;
    let selector = query.get("fieldSelector").cloned();
    let place = place(parts.uri.path());
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let json_body = || serde_json::from_slice::<Value>(&body).unwrap_or(Value::Null);
    if parts.method != Method::GET {
        api.0
            .writes
            .lock()
            .unwrap()
            .push(format!("{} {}", parts.method, parts.uri.path()));
    }
    let key = format!(
        "{}/{}",
        place.namespace,
        place.name.clone().unwrap_or_default()
    );
    let found = || {
        api.0
            .objects
            .lock()
            .unwrap()
            .get(&(place.collection.clone(), key.clone()))
            .cloned()
    };
    match (&parts.method, &place.name) {
        (&Method::GET, Some(_)) => found().map_or_else(
            || status(StatusCode::NOT_FOUND, "NotFound"),
            |object| object.to_string().into_response(),
        ),
        (&Method::GET, None) if query.get("watch").is_some_and(|watch| watch == "true") => {
            let receiver = api.0.changes.subscribe();
            let from: u64 = query
                .get("resourceVersion")
                .and_then(|version| version.parse().ok())
                .unwrap_or(0);
            // What happened between the list and this watch is in the objects.
            let missed: Vec<Value> = api.list(&place.collection);
            let in_namespace = {
                let namespace = place.namespace.clone();
                move |object: &Value| {
                    namespace.is_empty() || object["metadata"]["namespace"] == json!(namespace)
                }
            };
            let version = |object: &Value| {
                object["metadata"]["resourceVersion"]
                    .as_str()
                    .unwrap_or("0")
                    .parse::<u64>()
                    .unwrap_or(0)
            };
            let early: Vec<Value> = missed
                .into_iter()
                .filter(|object| version(object) > from)
                .map(|object| json!({"type": "MODIFIED", "object": object}))
                .collect();
            let collection = place.collection.clone();
            let live =
                tokio_stream::wrappers::BroadcastStream::new(receiver).filter_map(move |change| {
                    let event = change
                        .ok()
                        .filter(|(_, own, _, _)| *own == collection)
                        .map(|(_, _, kind, object)| json!({"type": kind, "object": object}));
                    std::future::ready(event)
                });
            let events = futures::stream::iter(early)
                .chain(live)
                .filter_map(move |event| {
                    let fits = selected(&event["object"], selector.as_deref())
                        && in_namespace(&event["object"]);
                    std::future::ready(
                        fits.then(|| Ok::<_, std::convert::Infallible>(format!("{event}\n"))),
                    )
                });
            Body::from_stream(events).into_response()
        }
        (&Method::GET, None) => {
            let version = *api.0.version.lock().unwrap();
            let items: Vec<Value> = api
                .list(&place.collection)
                .into_iter()
                .filter(|object| {
                    selected(object, selector.as_deref())
                        && (place.namespace.is_empty()
                            || object["metadata"]["namespace"] == json!(place.namespace))
                })
                .collect();
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items}).to_string().into_response()
        }
        (&Method::POST, Some(_)) if place.subresource.as_deref() == Some("token") => {
            let mut token = json_body();
            token["status"] = json!({"token": format!("token-{}", api.next_version()), "expirationTimestamp": "2999-01-01T00:00:00Z"});
            token.to_string().into_response()
        }
        (&Method::POST, _) => {
            let mut object = json_body();
            if !place.namespace.is_empty() {
                object["metadata"]["namespace"] = json!(place.namespace);
            }
            let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
            if api
                .get(&place.collection, &place.namespace, &name)
                .is_some()
            {
                return status(StatusCode::CONFLICT, "AlreadyExists");
            }
            api.put(&place.collection, object)
                .to_string()
                .into_response()
        }
        (&Method::PATCH, Some(_)) => match found() {
            None => status(StatusCode::NOT_FOUND, "NotFound"),
            Some(mut object) => {
                merge(&mut object, &json_body());
                api.store(&place.collection, &key, object)
                    .to_string()
                    .into_response()
            }
        },
        (&Method::DELETE, Some(name)) => {
            match api.remove(&place.collection, &place.namespace, name) {
                None => status(StatusCode::NOT_FOUND, "NotFound"),
                Some(object) => object.to_string().into_response(),
            }
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

/// Merges as far as the kubelet's patches need: keyed lists of conditions and addresses, null deletes.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
            continue;
        }
        let list_key = match key.as_str() {
            "conditions" => "type",
            "podIPs" | "hostIPs" => "ip",
            _ => {
                merge(&mut target[key], value);
                continue;
            }
        };
        let mut list = target[key].as_array().cloned().unwrap_or_default();
        for item in value.as_array().unwrap() {
            let index = list.iter().position(|old| old[list_key] == item[list_key]);
            match (index, item["$patch"] == "delete") {
                (Some(index), true) => drop(list.remove(index)),
                (None, true) => {}
                (Some(index), false) => merge(&mut list[index], item),
                (None, false) => list.push(item.clone()),
            }
        }
        target[key] = Value::Array(list);
    }
}
