//! Paths below an object.
//!
//! Enter at [`handle`]. Those that write a part of the object itself use `rest`'s update and patch;
//! the others have a file each.

pub mod binding;
mod eviction;
mod scale;
mod token;

use api::kind::{Part, Subresource, Verb};
use http::Method;
use http::request::Parts;

use crate::body::RequestBody;
use crate::codec;
use crate::handler::read_object;
use crate::proxy::{self, ClientSide, Upstream};
use crate::request::ResourcePath;
use crate::rest::{ApiResponse, Rest};
use crate::status::ApiError;

pub async fn handle(
    rest: &Rest<'_>,
    subresource: &Subresource,
    target: &ResourcePath<'_>,
    parts: Parts,
    body: RequestBody,
) -> ApiResponse {
    let not_allowed = ApiError::method_not_allowed;
    let verb = match parts.method {
        Method::GET | Method::HEAD => Verb::Get,
        Method::PUT => Verb::Update,
        Method::POST => Verb::Create,
        Method::PATCH => Verb::Patch,
        Method::DELETE => Verb::Delete,
        _ => return Err(not_allowed()),
    };
    if !subresource.verbs.contains(&verb) || (rest.kind.namespaced && target.namespace.is_empty()) {
        return Err(not_allowed());
    }
    let part = match subresource.name {
        "status" => Some(Part::Status),
        "finalize" => Some(Part::Other("finalize")),
        "ephemeralcontainers" => Some(Part::Other("ephemeralcontainers")),
        "resize" => Some(Part::Other("resize")),
        _ => None,
    };
    if let Some(part) = part {
        return match verb {
            Verb::Get => rest.get().await,
            Verb::Update => {
                rest.update(part, read_object(rest.context, body).await?)
                    .await
            }
            Verb::Patch => {
                rest.patch(part, codec::read(&rest.context.headers, body).await?)
                    .await
            }
            _ => Err(not_allowed()),
        };
    }
    if matches!(
        subresource.name,
        "log" | "exec" | "attach" | "portforward" | "proxy"
    ) {
        let upstream = Upstream {
            query: parts.uri.query().unwrap_or_default().to_owned(),
            raw_path: parts.uri.path().to_owned(),
            method: parts.method,
            headers: parts.headers,
        };
        let mut extensions = parts.extensions;
        let client = ClientSide {
            body,
            upgrade: extensions.remove::<hyper::upgrade::OnUpgrade>(),
        };
        return proxy::connect(rest, subresource.name, target, upstream, client)
            .await
            .unwrap_or_else(|| Err(ApiError::no_such_path()));
    }
    match (subresource.name, verb) {
        ("scale", Verb::Get) => scale::get(rest).await,
        ("scale", Verb::Update) => {
            scale::update(rest, &read_object(rest.context, body).await?).await
        }
        ("scale", Verb::Patch) => {
            scale::patch(rest, codec::read(&rest.context.headers, body).await?).await
        }
        ("binding", Verb::Create) => {
            let body = read_object(rest.context, body).await?;
            binding::create(rest.core, rest.context, rest.namespace, rest.name, &body).await
        }
        ("eviction", Verb::Create) => {
            eviction::create(rest, &read_object(rest.context, body).await?).await
        }
        ("token", Verb::Create) => {
            token::create(rest, &read_object(rest.context, body).await?).await
        }
        _ => Err(ApiError::no_such_path()),
    }
}
