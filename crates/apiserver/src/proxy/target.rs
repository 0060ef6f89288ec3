//! `pods/proxy` and `services/proxy`: plain requests to what runs in the cluster.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use rand::seq::IteratorRandom;

use super::kubelet::after_proxy;
use super::{Backend, Upstream};
use crate::rest::Rest;
use crate::status::{ApiError, ApiResult};

/// `[scheme:]name[:port]`; `None`: not of that form.
fn parts(text: &str) -> Option<(bool, &str, &str)> {
    let pieces: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match pieces.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    match scheme {
        _ if name.is_empty() => None,
        "" | "http" => Some((false, name, port)),
        "https" => Some((true, name, port)),
        _ => None,
    }
}

/// Addresses that a proxied request may go to: no loopback, link-local or multicast one, which are the node's own.
fn is_global_unicast(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(v4)) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        Ok(IpAddr::V6(v6)) => {
            !(v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast())
        }
        Err(_) => false,
    }
}

fn backend(address: &str, port: i32, tls: bool, upstream: &Upstream) -> Backend {
    let path = after_proxy(&upstream.raw_path).unwrap_or_default();
    let path = if path.is_empty() { "/" } else { path };
    let query = if upstream.query.is_empty() {
        String::new()
    } else {
        format!("?{}", upstream.query)
    };
    let address = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    Backend {
        address,
        tls,
        path: format!("{path}{query}"),
    }
}

pub async fn pod(rest: &Rest<'_>, upstream: &Upstream) -> ApiResult<Backend> {
    let (tls, name, port) = parts(rest.name)
        .ok_or_else(|| ApiError::bad_request(format!("invalid pod request {:?}", rest.name)))?;
    rest.core.caches.fresh().await?;
    let item = rest
        .cache
        .get(&format!("{}/{name}", rest.namespace))
        .ok_or_else(|| ApiError::not_found("", "pods", name))?;
    let pod: Pod = serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
    let spec = pod.spec.unwrap_or_default();
    let mut ports = spec
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten());
    let default_port = if tls { 443 } else { 80 };
    let port = match port.parse() {
        Ok(number) => number,
        Err(_) if port.is_empty() => ports
            .next()
            .map_or(default_port, |port| port.container_port),
        Err(_) => ports
            .find(|own| own.name.as_deref() == Some(port))
            .map(|own| own.container_port)
            .ok_or_else(|| {
                ApiError::bad_request(format!("pod {name} has no port named {port:?}"))
            })?,
    };
    let address = pod
        .status
        .and_then(|status| status.pod_ip)
        .filter(|address| is_global_unicast(address))
        .ok_or_else(|| ApiError::bad_request("address not allowed"))?;
    Ok(backend(&address, port, tls, upstream))
}

pub async fn service(rest: &Rest<'_>, upstream: &Upstream) -> ApiResult<Backend> {
    let (tls, name, port) = parts(rest.name)
        .ok_or_else(|| ApiError::bad_request(format!("invalid service request {:?}", rest.name)))?;
    rest.core.caches.fresh().await?;
    let item = rest
        .cache
        .get(&format!("{}/{name}", rest.namespace))
        .ok_or_else(|| ApiError::not_found("", "services", name))?;
    let service: Service = serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
    let spec = service.spec.unwrap_or_default();
    let port_name = match port.parse::<i64>() {
        Ok(number) => spec
            .ports
            .iter()
            .flatten()
            .find(|own| i64::from(own.port) == number)
            .map(|own| own.name.clone().unwrap_or_default())
            .ok_or_else(|| {
                ApiError::service_unavailable(format!(
                    "no service port {number} found for service {name:?}"
                ))
            })?,
        Err(_) => port.to_owned(),
    };
    let slices = rest.core.caches.by_prefix("endpointslices").map(|cache| {
        cache
            .list(0, &format!("{}/", rest.namespace), None, 0, |head| {
                head.label("kubernetes.io/service-name") == Some(name)
            })
            .items
    });
    let mut ready: Vec<(String, i32)> = Vec::new();
    for item in slices.unwrap_or_default() {
        let slice: EndpointSlice =
            serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|own| own.name.as_deref().unwrap_or_default() == port_name)
            .and_then(|own| own.port);
        let Some(number) = number else { continue };
        let endpoints = slice.endpoints.iter().flatten().filter(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                .unwrap_or(true)
        });
        ready.extend(
            endpoints
                .filter(|endpoint| is_of_pod(rest, endpoint))
                .filter_map(|endpoint| endpoint.addresses.first())
                .map(|address| (address.clone(), number)),
        );
    }
    let (address, port) = ready.into_iter().choose(&mut rand::rng()).ok_or_else(|| {
        ApiError::service_unavailable(format!(
            "no endpoints available for service {:?}",
            rest.name
        ))
    })?;
    Ok(backend(&address, port, tls, upstream))
}

/// Whether the endpoint is a pod of the namespace: whoever may write endpoints must not reach other hosts through us.
fn is_of_pod(rest: &Rest<'_>, endpoint: &Endpoint) -> bool {
    let Some(target) = &endpoint.target_ref else {
        return false;
    };
    if target.namespace.as_deref() != Some(rest.namespace) {
        return false;
    }
    let name = target.name.as_deref().unwrap_or_default();
    let item = rest
        .core
        .caches
        .by_prefix("pods")
        .and_then(|cache| cache.get(&format!("{}/{name}", rest.namespace)));
    let pod: Option<Pod> = item.and_then(|item| serde_json::from_slice(&item.json).ok());
    let addresses = pod
        .and_then(|pod| pod.status)
        .and_then(|status| status.pod_ips)
        .unwrap_or_default();
    endpoint.addresses.first().is_some_and(|address| {
        is_global_unicast(address) && addresses.iter().any(|own| own.ip == *address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_names() {
        for (text, expect) in [
            ("a", Some((false, "a", ""))),
            ("a:80", Some((false, "a", "80"))),
            ("https:a:", Some((true, "a", ""))),
            ("http:a:web", Some((false, "a", "web"))),
            ("ftp:a:1", None),
            ("a:b:c:d", None),
            (":80", None),
        ] {
            assert_eq!(parts(text), expect, "{text}");
        }
    }

    #[test]
    fn the_node_itself_is_not_proxied_to() {
        for (address, expect) in [
            ("10.42.0.7", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("fe80::1", false),
            ("", false),
        ] {
            assert_eq!(is_global_unicast(address), expect, "{address}");
        }
    }
}
