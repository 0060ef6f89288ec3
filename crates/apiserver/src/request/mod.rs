//! What a request asks for, read from its method, path and query alone.
//!
//! Enter at [`Target::parse`] and [`Query::parse`].

mod query;

pub use query::{Query, decode_path};

use http::Method;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/version`, `/healthz`, discovery and all else that is no resource.
    Path(&'a str),
    Resource(ResourcePath<'a>),
}

/// `/apis/<group>/<version>[/namespaces/<namespace>]/<resource>[/<name>[/<subresource>[/<rest>]]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePath<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
    /// What follows the subresource, with its leading `/`: the path of a proxy request.
    pub rest: &'a str,
    /// The deprecated `/watch/` prefix.
    pub watch: bool,
}

impl<'a> Target<'a> {
    pub fn parse(path: &'a str) -> Self {
        Self::parse_resource(path).map_or(Self::Path(path), Self::Resource)
    }

    fn parse_resource(path: &'a str) -> Option<ResourcePath<'a>> {
        let trimmed = path.strip_prefix('/')?;
        let (root, rest) = trimmed.split_once('/')?;
        let (group, rest) = match root {
            "api" => ("", rest),
            "apis" => rest.split_once('/')?,
            _ => return None,
        };
        let (version, mut rest) = rest.split_once('/')?;
        let mut target = ResourcePath {
            group,
            version,
            ..ResourcePath::default()
        };
        if let Some(after) = rest.strip_prefix("watch/") {
            target.watch = true;
            rest = after;
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (first, after) = segment(rest);
        if first == "namespaces" {
            let (namespace, after) = segment(after);
            let (next, remaining) = segment(after);
            // `namespaces/x`, `namespaces/x/status` and `/finalize` are the Namespace itself.
            if next.is_empty() || ((next == "status" || next == "finalize") && remaining.is_empty())
            {
                target.resource = "namespaces";
                target.namespace = namespace;
                target.name = namespace;
                target.subresource = next;
                return (!version.is_empty()).then_some(target);
            }
            target.namespace = namespace;
            target.resource = next;
            rest_of(&mut target, remaining);
        } else {
            target.resource = first;
            rest_of(&mut target, after);
        }
        (!target.version.is_empty() && !target.resource.is_empty()).then_some(target)
    }
}

fn rest_of<'a>(target: &mut ResourcePath<'a>, path: &'a str) {
    let (name, after) = segment(path);
    target.name = name;
    match after.split_once('/') {
        Some((subresource, _)) => {
            target.subresource = subresource;
            target.rest = &after[subresource.len()..];
        }
        None => target.subresource = after,
    }
}

fn segment(path: &str) -> (&str, &str) {
    path.split_once('/').unwrap_or((path, ""))
}

/// The verb as RBAC names it.
pub fn verb(method: &Method, path: &ResourcePath<'_>, query: &Query) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD if !path.subresource.is_empty() => "get",
        Method::GET | Method::HEAD if path.watch => "watch",
        Method::GET | Method::HEAD if path.name.is_empty() && query.is_true("watch") => "watch",
        Method::GET | Method::HEAD if path.name.is_empty() => "list",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if path.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, expect: Option<(&str, &str, &str, &str, &str, &str, &str)>| {
            let found = Target::parse_resource(path);
            let found = found.as_ref().map(|found| {
                (
                    found.group,
                    found.version,
                    found.namespace,
                    found.resource,
                    found.name,
                    found.subresource,
                    found.rest,
                )
            });
            assert_eq!(found, expect, "{path}");
        };
        check("/api/v1/pods", Some(("", "v1", "", "pods", "", "", "")));
        check("/api/v1/pods/", Some(("", "v1", "", "pods", "", "", "")));
        check(
            "/api/v1/namespaces",
            Some(("", "v1", "", "namespaces", "", "", "")),
        );
        check(
            "/api/v1/namespaces/a",
            Some(("", "v1", "a", "namespaces", "a", "", "")),
        );
        check(
            "/api/v1/namespaces/a/finalize",
            Some(("", "v1", "a", "namespaces", "a", "finalize", "")),
        );
        check(
            "/api/v1/namespaces/a/pods/b/log",
            Some(("", "v1", "a", "pods", "b", "log", "")),
        );
        check(
            "/api/v1/namespaces/a/services/b/proxy/x/y",
            Some(("", "v1", "a", "services", "b", "proxy", "/x/y")),
        );
        check(
            "/api/v1/namespaces/a/services/b/proxy/",
            Some(("", "v1", "a", "services", "b", "proxy", "")),
        );
        check(
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            Some(("apps", "v1", "a", "deployments", "b", "scale", "")),
        );
        check(
            "/apis/apps/v1/deployments",
            Some(("apps", "v1", "", "deployments", "", "", "")),
        );
        for path in [
            "/",
            "/api",
            "/api/",
            "/api/v1",
            "/api/v1/",
            "/apis/apps",
            "/apis/apps/v1",
            "/apis/apps/v1/",
            "/version",
            "/openapi/v3/apis/apps/v1",
            "",
        ] {
            check(path, None);
        }
    }
}
