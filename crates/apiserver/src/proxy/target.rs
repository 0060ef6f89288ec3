//! `pods/proxy` and `services/proxy`: plain requests to what runs in the cluster.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rand::seq::IteratorRandom;

use super::kubelet::after_proxy;
use super::{Backend, Upstream};
use crate::rest::Rest;
use crate::status::{ApiError, ApiResult};

/// `[scheme:]name[:port]`.
fn parts(text: &str) -> ApiResult<(bool, &str, &str)> {
    let pieces: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match pieces.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => {
            return Err(ApiError::bad_request(format!(
                "invalid proxy target {text:?}: write [https:]name[:port]"
            )));
        }
    };
    match scheme {
        "" | "http" => Ok((false, name, port)),
        "https" => Ok((true, name, port)),
        other => Err(ApiError::bad_request(format!(
            "invalid proxy scheme {other:?}: http and https are known"
        ))),
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
    let (tls, name, port) = parts(rest.name)?;
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
    let port = match port.parse() {
        Ok(number) => number,
        Err(_) if port.is_empty() => ports.next().map_or(80, |port| port.container_port),
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
        .filter(|address| !address.is_empty());
    let address = address
        .ok_or_else(|| ApiError::service_unavailable(format!("pod {name} has no address yet")))?;
    Ok(backend(&address, port, tls, upstream))
}

pub async fn service(rest: &Rest<'_>, upstream: &Upstream) -> ApiResult<Backend> {
    let (tls, name, port) = parts(rest.name)?;
    rest.core.caches.fresh().await?;
    let item = rest
        .cache
        .get(&format!("{}/{name}", rest.namespace))
        .ok_or_else(|| ApiError::not_found("", "services", name))?;
    let service: Service = serde_json::from_slice(&item.json).map_err(ApiError::internal)?;
    let spec = service.spec.unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let chosen = ports.iter().find(|own| {
        let target = matches!(&own.target_port, Some(IntOrString::Int(number)) if number.to_string() == port);
        (port.is_empty() && ports.len() == 1) || own.name.as_deref().is_some_and(|own| own == port) || own.port.to_string() == port || target
    });
    let chosen = chosen.ok_or_else(|| {
        ApiError::service_unavailable(format!(
            "no endpoints available for service {:?}",
            rest.name
        ))
    })?;
    let port_name = chosen.name.clone().unwrap_or_default();
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
        ] {
            assert_eq!(parts(text).ok(), expect, "{text}");
        }
    }
}
