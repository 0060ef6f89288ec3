//! One request in, one response out: who asks, what for, may they, and who answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use api::kind::{Part, Verb};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};

use crate::authn::{Credential, Identity};
use crate::body::{RequestBody, ResponseBody};
use crate::codec::{self, Accept, MediaType, object};
use crate::core::{Core, Resource};
use crate::request::{Query, ResourcePath, Target, verb};
use crate::rest::{ApiResponse, Rest};
use crate::status::{ApiError, ApiResult};
use crate::{discovery, health};

const WARNING: HeaderName = HeaderName::from_static("warning");

/// What the parts of a request's handling share.
pub struct Context {
    pub identity: Arc<Identity>,
    pub query: Query,
    pub headers: HeaderMap,
    warnings: Mutex<Vec<String>>,
}

impl Context {
    pub fn new(identity: Arc<Identity>, query: Query, headers: HeaderMap) -> Self {
        Self {
            identity,
            query,
            headers,
            warnings: Mutex::default(),
        }
    }

    /// Adds a `Warning` header to the response.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.contains(&message) {
            warnings.push(message);
        }
    }

    /// The form of the answer that the client wants.
    pub fn accept(&self) -> ApiResult<Accept> {
        Accept::negotiate(&self.headers, &self.query, true)
    }

    /// The manager of a write that names none: the user agent up to its first `/`.
    pub fn user_agent_manager(&self) -> String {
        let agent = self
            .headers
            .get(USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let manager: String = agent
            .split('/')
            .next()
            .unwrap_or_default()
            .chars()
            .filter(|character| !character.is_control())
            .take(128)
            .collect();
        if manager.is_empty() {
            "unknown".into()
        } else {
            manager
        }
    }
}

pub async fn handle(
    core: Arc<Core>,
    credential: Arc<Credential>,
    request: Request<RequestBody>,
) -> Response<ResponseBody> {
    let begin = Instant::now();
    let (parts, body) = request.into_parts();
    let identity = match crate::authn::authenticate(&core, &credential, &parts.headers) {
        Ok(identity) => identity,
        Err(error) => return finish(error.to_response(), &[]),
    };
    let query = Query::parse(parts.uri.query());
    let context = Context::new(identity, query, parts.headers.clone());
    let path = crate::request::decode_path(parts.uri.path()).into_owned();
    let target = Target::parse(&path);
    let verb = match &target {
        Target::Resource(target) => verb(&parts.method, target, &context.query),
        Target::Path(_) => "other",
    };
    let response = match route(&core, &context, target, verb, parts, body).await {
        Ok(response) => response,
        Err(error) => error.to_response(),
    };
    core.metrics
        .observe(verb, response.status().as_u16(), begin.elapsed());
    let warnings = std::mem::take(
        &mut *context
            .warnings
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    finish(response, &warnings)
}

fn finish(mut response: Response<ResponseBody>, warnings: &[String]) -> Response<ResponseBody> {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    for warning in warnings {
        let text: String = warning
            .chars()
            .map(|character| {
                if character.is_control() {
                    ' '
                } else {
                    character
                }
            })
            .collect();
        let text = format!(
            "299 - \"{}\"",
            text.replace('\\', "\\\\").replace('"', "\\\"")
        );
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.append(WARNING, value);
        }
    }
    response
}

async fn route(
    core: &Arc<Core>,
    context: &Context,
    target: Target<'_>,
    verb: &'static str,
    parts: Parts,
    body: RequestBody,
) -> ApiResponse {
    match target {
        Target::Resource(target) => {
            crate::authz::authorize_resource(core, &context.identity, verb, &target)?;
            let Some(resource) = core.resource(target.group, target.version, target.resource)
            else {
                if discovery::serves(core, target.group, target.version) {
                    return Err(ApiError::no_such_path());
                }
                return Ok(page_not_found());
            };
            resource_request(core, context, resource, &target, verb, parts, body).await
        }
        Target::Path(path) => {
            crate::authz::authorize_path(core, &context.identity, &parts.method, path)?;
            path_request(core, context, &parts.method, path).await
        }
    }
}

async fn path_request(
    core: &Arc<Core>,
    context: &Context,
    method: &Method,
    path: &str,
) -> ApiResponse {
    let trimmed = path.trim_matches('/');
    let segments: Vec<&str> = trimmed.split('/').collect();
    if *method != Method::GET && *method != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    match segments.as_slice() {
        [""] => Ok(discovery::root(core)),
        ["version"] => Ok(discovery::version()),
        ["healthz" | "livez" | "readyz", ..] => health::answer(core, context, &segments).await,
        ["api"] => discovery::core_versions(core, context),
        ["apis"] => discovery::groups(core, context),
        ["apis", group] => discovery::group(core, context, group),
        ["api", version] => discovery::resources(core, context, "", version),
        ["apis", group, version] => discovery::resources(core, context, group, version),
        ["openid", "v1", "jwks"] => Ok(discovery::json_response(&core.tokens.key_set())),
        ["openapi", rest @ ..] => crate::openapi::answer(core, context, rest).await,
        ["metrics"] => Ok(crate::metrics::answer(core)),
        [".well-known", "openid-configuration"] => Ok(discovery::openid_configuration(core)),
        _ => Ok(page_not_found()),
    }
}

/// What is outside of every group that is served; upstream answers with plain text there.
pub fn page_not_found() -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::from("404 page not found\n"));
    *response.status_mut() = http::StatusCode::NOT_FOUND;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

async fn resource_request(
    core: &Arc<Core>,
    context: &Context,
    resource: &Resource,
    target: &ResourcePath<'_>,
    verb: &str,
    parts: Parts,
    body: RequestBody,
) -> ApiResponse {
    let kind = &resource.kind;
    let not_allowed = ApiError::method_not_allowed;
    if let Some(deprecation) = kind.deprecation {
        context.warn(deprecation);
    }
    let Some(cache) = &resource.cache else {
        if verb != "create" || !target.name.is_empty() {
            return Err(not_allowed());
        }
        let body = read_object(context, body).await?;
        if kind.group.is_empty() && kind.plural == "bindings" {
            return crate::subresource::binding::create(core, context, target.namespace, "", &body)
                .await;
        }
        return crate::reviews::create(core, context, kind, target.namespace, &body);
    };
    let namespace = if kind.namespaced {
        target.namespace
    } else {
        ""
    };
    let rest = Rest {
        core,
        context,
        kind,
        cache,
        namespace,
        name: target.name,
    };
    if !target.subresource.is_empty() {
        let subresource = kind
            .subresources
            .iter()
            .find(|own| own.name == target.subresource)
            .ok_or_else(ApiError::no_such_path)?;
        return crate::subresource::handle(&rest, subresource, target, parts, body).await;
    }
    if !kind.verbs.contains(&as_verb(verb).ok_or_else(not_allowed)?) {
        return Err(not_allowed());
    }
    // A namespaced kind is written within a namespace.
    let needs_namespace =
        kind.namespaced && namespace.is_empty() && !matches!(verb, "list" | "watch");
    if needs_namespace {
        return Err(if target.name.is_empty() {
            not_allowed()
        } else {
            ApiError::no_such_path()
        });
    }
    match verb {
        "get" => rest.get().await,
        "list" => rest.list().await,
        "watch" => rest.watch().await,
        "create" if target.name.is_empty() => rest.create(read_object(context, body).await?).await,
        "update" if !target.name.is_empty() => {
            rest.update(Part::Main, read_object(context, body).await?)
                .await
        }
        "patch" if !target.name.is_empty() => {
            rest.patch(Part::Main, codec::read(&context.headers, body).await?)
                .await
        }
        "delete" => rest.delete(read_object(context, body).await?).await,
        "deletecollection" => {
            rest.delete_collection(read_object(context, body).await?)
                .await
        }
        _ => Err(not_allowed()),
    }
}

fn as_verb(verb: &str) -> Option<Verb> {
    Some(match verb {
        "create" => Verb::Create,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        "get" => Verb::Get,
        "list" => Verb::List,
        "patch" => Verb::Patch,
        "update" => Verb::Update,
        "watch" => Verb::Watch,
        _ => return None,
    })
}

/// The body of a write as JSON.
pub async fn read_object(context: &Context, body: RequestBody) -> ApiResult<Bytes> {
    let bytes = codec::read(&context.headers, body).await?;
    if bytes.is_empty() {
        return Ok(bytes);
    }
    object::to_json(bytes, MediaType::of_object(&context.headers)?)
}
