//! A server on a temporary store, asked in-process as a client asks it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, Identity, Server};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

mod access;
mod objects;
mod watches;

pub struct Cluster {
    pub server: Server,
    directory: tempfile::TempDir,
}

pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    async fn open(directory: tempfile::TempDir) -> Self {
        let store = store::Embedded::open(directory.path().join("store")).unwrap();
        let mut config = Config::new(directory.path().join("pki"));
        config.bind_address = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(config, Arc::new(store)).await.unwrap();
        Self { server, directory }
    }

    /// Stops the server and starts another on the same data.
    pub async fn restart(self) -> Self {
        self.server.shutdown().await;
        Self::open(self.directory).await
    }

    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.request_as(Identity::admin(), method, path, headers, body)
            .await
    }

    pub async fn request_as(
        &self,
        identity: Identity,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body: Bytes = body.into();
        let request = request
            .body(kube::client::Body::from(body.to_vec()))
            .unwrap();
        let response = self.server.client(identity).send(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        Answer {
            code: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, &[], body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PUT, path, &[], body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.request(Method::DELETE, path, &[], "").await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let content_type = format!("application/{kind}");
        self.request(
            Method::PATCH,
            path,
            &[("content-type", &content_type)],
            body.to_string(),
        )
        .await
    }

    /// The first `count` events of a watch.
    pub async fn events(&self, path: &str, count: usize) -> Vec<Value> {
        let request = Request::builder()
            .uri(path)
            .body(kube::client::Body::empty())
            .unwrap();
        let response = self
            .server
            .client(Identity::admin())
            .send(request)
            .await
            .unwrap();
        let mut stream = response.into_body().into_data_stream();
        let mut text = Vec::new();
        let mut events = Vec::new();
        let read = async {
            while events.len() < count {
                let Some(chunk) = stream.next().await else {
                    break;
                };
                text.extend_from_slice(&chunk.unwrap());
                events = text
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                    .filter_map(|line| serde_json::from_slice(line).ok())
                    .collect::<Vec<Value>>();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .expect("the events come in time");
        events.truncate(count);
        events
    }
}

pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "busybox"}]},
    })
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";

pub async fn with_default_account(cluster: &Cluster) {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let answer = cluster
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    assert_eq!(answer.code, 201, "{}", answer.body);
}
