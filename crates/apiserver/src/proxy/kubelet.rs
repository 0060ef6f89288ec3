//! The kubelet's own API: logs, exec, attach, port-forward, and whatever `nodes/proxy` names.

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::{Backend, Upstream, send, stream_response, text};
use crate::body::{RequestBody, ResponseBody};
use crate::request::{Query, ResourcePath};
use crate::rest::{ApiResponse, Rest};
use crate::status::{ApiError, ApiResult};

const DEFAULT_PORT: i32 = 10250;
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// In which order a node's addresses are tried, as kubeadm sets it.
const ADDRESS_TYPES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];

/// The kubelet of a node.
fn address(rest: &Rest<'_>, node_name: &str) -> ApiResult<String> {
    let item = rest
        .core
        .caches
        .by_prefix("nodes")
        .and_then(|cache| cache.get(node_name));
    let item = item.ok_or_else(|| ApiError::not_found("", "nodes", node_name))?;
    let node: Node = serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
    let status = node.status.unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    let host = ADDRESS_TYPES
        .iter()
        .find_map(|wanted| addresses.iter().find(|address| address.type_ == **wanted))
        .map(|address| address.address.clone())
        .ok_or_else(|| {
            ApiError::internal(format!(
                "no preferred addresses found; known addresses of node {node_name}: []"
            ))
        })?;
    let port = status
        .daemon_endpoints
        .and_then(|endpoints| endpoints.kubelet_endpoint)
        .map_or(DEFAULT_PORT, |endpoint| endpoint.port);
    Ok(if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    })
}

async fn pod(rest: &Rest<'_>) -> ApiResult<Pod> {
    let item = rest.current().await?;
    serde_json::from_slice(&item.json).map_err(ApiError::internal)
}

fn node_of(pod: &Pod) -> ApiResult<&str> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .filter(|node| !node.is_empty())
        .ok_or_else(|| ApiError::bad_request(format!("pod {name} does not have a host assigned")))
}

/// The container that the request names, or the one that there is.
fn container(pod: &Pod, wanted: Option<&str>) -> ApiResult<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else {
        return Err(ApiError::internal("a pod without a spec"));
    };
    let containers: Vec<&str> = spec
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    let init: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| container.name.as_str())
        .collect();
    let ephemeral: Vec<&str> = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|container| container.name.as_str())
        .collect();
    let annotated = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(DEFAULT_CONTAINER))
        .map(String::as_str);
    match wanted.or(annotated.filter(|name| containers.contains(name))) {
        Some(wanted)
            if containers.contains(&wanted)
                || init.contains(&wanted)
                || ephemeral.contains(&wanted) =>
        {
            Ok(wanted.to_owned())
        }
        Some(wanted) => Err(ApiError::bad_request(format!(
            "container {wanted} is not valid for pod {name}"
        ))),
        None if containers.len() == 1 => Ok(containers[0].to_owned()),
        None => {
            let mut message = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                containers.join(" ")
            );
            if !init.is_empty() {
                message += &format!(" or one of the init containers: [{}]", init.join(" "));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

pub async fn log(rest: &Rest<'_>, upstream: Upstream, body: RequestBody) -> ApiResponse {
    let query = &rest.context.query;
    let pod = pod(rest).await?;
    let container = container(&pod, query.value("container"))?;
    check_log_options(rest, query)?;
    let mut parameters = Vec::new();
    for key in ["follow", "previous", "timestamps"] {
        if query.is_true(key) {
            parameters.push((key, "true".to_owned()));
        }
    }
    for key in [
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ] {
        if let Some(value) = query.value(key) {
            parameters.push((key, value.to_owned()));
        }
    }
    // Nothing has run yet that could have logged: the log is empty.
    let Ok(node) = node_of(&pod) else {
        let mut empty = http::Response::new(ResponseBody::empty());
        empty
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return Ok(empty);
    };
    let backend = Backend {
        address: address(rest, node)?,
        tls: true,
        path: format!(
            "/containerLogs/{}/{}/{container}{}",
            rest.namespace,
            rest.name,
            query_string(&parameters)
        ),
    };
    let response = send(rest, &backend, http::Method::GET, upstream.headers, body)
        .await
        .map_err(|error| {
            let Backend { address, path, .. } = &backend;
            ApiError::internal(format!("Get \"https://{address}{path}\": {error}"))
        })?;
    match response.status() {
        StatusCode::OK => Ok(stream_response(response)),
        StatusCode::BAD_REQUEST => Err(ApiError::bad_request(text(response).await)),
        StatusCode::NOT_FOUND => Err(ApiError::not_found_text(text(response).await)),
        code => Err(ApiError::internal(format!(
            "the kubelet answered {code}: {}",
            text(response).await
        ))),
    }
}

fn check_log_options(rest: &Rest<'_>, query: &Query) -> ApiResult<()> {
    use api::error::{ErrorList, FieldError, FieldErrorReason};
    let mut errors = ErrorList::new();
    let mut invalid = |field: &str, value: &str, detail: &str| {
        errors.push(FieldError {
            reason: FieldErrorReason::Invalid,
            field: field.into(),
            bad_value: value.into(),
            detail: detail.into(),
        });
    };
    for (key, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = query.integer(key)?.filter(|value| *value < least) {
            let detail = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be greater than 0"
            };
            invalid(key, &value.to_string(), detail);
        }
    }
    if query.value("sinceSeconds").is_some() && query.value("sinceTime").is_some() {
        invalid(
            "",
            "",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        );
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid("", "PodLogOptions", rest.name, &errors))
    }
}

/// exec, attach and port-forward.
pub async fn stream(rest: &Rest<'_>, subresource: &str, upstream: &Upstream) -> ApiResult<Backend> {
    let query = &rest.context.query;
    let pod = pod(rest).await?;
    let (path, parameters) = if subresource == "portforward" {
        let ports: Vec<(&str, String)> = query
            .values("ports")
            .map(|port| ("port", port.to_owned()))
            .collect();
        (
            format!("/portForward/{}/{}", rest.namespace, rest.name),
            ports,
        )
    } else {
        let container = container(&pod, query.value("container"))?;
        let mut parameters = Vec::new();
        for (key, own) in [
            ("stdin", "input"),
            ("stdout", "output"),
            ("stderr", "error"),
            ("tty", "tty"),
        ] {
            if query.is_true(key) {
                parameters.push((own, "1".to_owned()));
            }
        }
        if subresource == "exec" {
            parameters.extend(
                query
                    .values("command")
                    .map(|part| ("command", part.to_owned())),
            );
            if query.values("command").next().is_none() {
                return Err(ApiError::bad_request(
                    "you must specify at least one command for the container",
                ));
            }
        }
        (
            format!(
                "/{subresource}/{}/{}/{container}",
                rest.namespace, rest.name
            ),
            parameters,
        )
    };
    if !super::is_upgrade(&upstream.headers) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    Ok(Backend {
        address: address(rest, node_of(&pod)?)?,
        tls: true,
        path: format!("{path}{}", query_string(&parameters)),
    })
}

/// `nodes/<name>/proxy/<path>`.
pub async fn node(
    rest: &Rest<'_>,
    target: &ResourcePath<'_>,
    upstream: &Upstream,
) -> ApiResult<Backend> {
    rest.current().await?;
    let path = after_proxy(&upstream.raw_path).unwrap_or(target.rest);
    let path = if path.is_empty() { "/" } else { path };
    let query = if upstream.query.is_empty() {
        String::new()
    } else {
        format!("?{}", upstream.query)
    };
    Ok(Backend {
        address: address(rest, rest.name)?,
        tls: true,
        path: format!("{path}{query}"),
    })
}

/// What follows `/proxy` in a path that is not decoded.
pub fn after_proxy(raw_path: &str) -> Option<&str> {
    // By its place, not by its name: a namespace or a pod may be called `proxy`, too.
    let is_namespaced = raw_path.split('/').nth(3) == Some("namespaces");
    let place = if is_namespaced { 7 } else { 5 };
    let mut rest = raw_path;
    for _ in 0..place {
        rest = rest.strip_prefix('/')?;
        rest = &rest[rest.find('/').unwrap_or(rest.len())..];
    }
    Some(rest)
}

fn query_string(parameters: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in parameters {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_are_chosen_as_upstream() {
        let pod = |containers: &[&str], annotation: Option<&str>| -> Pod {
            let containers: Vec<_> = containers
                .iter()
                .map(|name| json!({"name": name}))
                .collect();
            serde_json::from_value(json!({
                "metadata": {"name": "p", "annotations": annotation.map(|name| json!({DEFAULT_CONTAINER: name}))},
                "spec": {"containers": containers, "initContainers": [{"name": "init"}]},
            }))
            .unwrap()
        };
        let check = |pod: &Pod, wanted, expect: Result<&str, &str>| {
            let found = container(pod, wanted).map_err(|error| error.message().to_owned());
            assert_eq!(found.as_deref().map_err(String::as_str), expect);
        };
        check(&pod(&["a"], None), None, Ok("a"));
        check(&pod(&["a", "b"], Some("b")), None, Ok("b"));
        check(&pod(&["a", "b"], None), Some("init"), Ok("init"));
        check(
            &pod(&["a"], None),
            Some("x"),
            Err("container x is not valid for pod p"),
        );
        check(
            &pod(&["a", "b"], None),
            None,
            Err(
                "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [init]",
            ),
        );
    }

    #[test]
    fn what_is_proxied_begins_after_the_subresource() {
        for (path, expect) in [
            (
                "/api/v1/namespaces/proxy/pods/proxy:80/proxy/a/proxy",
                Some("/a/proxy"),
            ),
            ("/api/v1/namespaces/a/services/b/proxy/", Some("/")),
            ("/api/v1/namespaces/a/pods/b/proxy", Some("")),
            ("/api/v1/nodes/proxy/proxy/healthz", Some("/healthz")),
            ("/api/v1/nodes/n", None),
        ] {
            assert_eq!(after_proxy(path), expect, "{path}");
        }
    }

    #[test]
    fn parameters_are_escaped() {
        assert_eq!(
            query_string(&[("command", "ls -l".into()), ("command", "é&".into())]),
            "?command=ls%20-l&command=%C3%A9%26"
        );
        assert_eq!(query_string(&[]), "");
    }
}
