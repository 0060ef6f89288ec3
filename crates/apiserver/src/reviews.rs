//! Kinds that are asked and answered, and never stored: reviews of tokens and of access.

use std::collections::BTreeMap;

use http::StatusCode;
use k8s_openapi::api::authentication::v1::{
    SelfSubjectReview, SelfSubjectReviewStatus, TokenReview, TokenReviewStatus, UserInfo,
};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, NonResourceRule, ResourceAttributes,
    ResourceRule, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
    SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};

use api::kind::{Kind, Object};
use std::sync::Arc;

use crate::authn::{GROUP_MASTERS, Identity, service_account};
use crate::authz::{Attributes, is_allowed};
use crate::codec::object::{decode, respond_value};
use crate::core::Core;
use crate::handler::Context;
use crate::rest::ApiResponse;
use crate::status::{ApiError, ApiResult};

/// Answers a create of a virtual kind; `body` is JSON.
pub fn create(
    core: &Arc<Core>,
    context: &Context,
    kind: &Kind,
    namespace: &str,
    body: &[u8],
) -> ApiResponse {
    let mut object = decode(kind, body, false)?.object;
    kind.strategy.default(&mut *object);
    if let Some(review) = object.as_any().downcast_ref::<TokenReview>()
        && review.spec.token.is_empty()
    {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let errors = kind.strategy.validate_create(&*object);
    if !errors.is_empty() {
        return Err(ApiError::invalid(&kind.group, &kind.kind, "", &errors));
    }
    answer(core, &context.identity, namespace, &mut *object)?;
    Ok(respond_value(
        &context.accept()?,
        StatusCode::CREATED,
        &object.to_value(),
    ))
}

fn answer(
    core: &Core,
    identity: &Identity,
    namespace: &str,
    object: &mut dyn Object,
) -> ApiResult<()> {
    let any = object.as_any_mut();
    if let Some(review) = any.downcast_mut::<TokenReview>() {
        review.status = Some(token_review(core, review));
    } else if let Some(review) = any.downcast_mut::<SelfSubjectReview>() {
        review.metadata.creation_timestamp = Some(crate::rest::meta::now());
        review.status = Some(SelfSubjectReviewStatus {
            user_info: Some(user_info(identity)),
        });
    } else if let Some(review) = any.downcast_mut::<SelfSubjectAccessReview>() {
        review.status = Some(access(
            core,
            identity,
            review.spec.resource_attributes.as_ref(),
            review.spec.non_resource_attributes.as_ref(),
        ));
    } else if let Some(review) = any.downcast_mut::<SubjectAccessReview>() {
        let spec = &review.spec;
        let subject = subject(
            spec.user.as_deref(),
            spec.groups.as_deref(),
            spec.extra.as_ref(),
            spec.uid.as_deref(),
        );
        review.status = Some(access(
            core,
            &subject,
            spec.resource_attributes.as_ref(),
            spec.non_resource_attributes.as_ref(),
        ));
    } else if let Some(review) = any.downcast_mut::<LocalSubjectAccessReview>() {
        let spec = &review.spec;
        if spec
            .resource_attributes
            .as_ref()
            .and_then(|attributes| attributes.namespace.as_deref())
            .unwrap_or_default()
            != namespace
        {
            return Err(ApiError::bad_request(format!(
                "spec.resourceAttributes.namespace must match namespace: {namespace}"
            )));
        }
        let subject = subject(
            spec.user.as_deref(),
            spec.groups.as_deref(),
            spec.extra.as_ref(),
            spec.uid.as_deref(),
        );
        review.status = Some(access(
            core,
            &subject,
            spec.resource_attributes.as_ref(),
            None,
        ));
    } else if let Some(review) = any.downcast_mut::<SelfSubjectRulesReview>() {
        let namespace = review.spec.namespace.clone().unwrap_or_default();
        if namespace.is_empty() {
            return Err(ApiError::bad_request("no namespace on request"));
        }
        review.status = Some(rules(core, identity, &namespace));
    } else {
        return Err(ApiError::method_not_allowed());
    }
    Ok(())
}

fn token_review(core: &Core, review: &TokenReview) -> TokenReviewStatus {
    let token = review.spec.token.as_str();
    let default_audience = vec![core.tokens.issuer().to_owned()];
    let audiences = review
        .spec
        .audiences
        .clone()
        .filter(|audiences| !audiences.is_empty())
        .unwrap_or(default_audience);
    match service_account::authenticate(core, token, &audiences) {
        Ok((identity, claims)) => TokenReviewStatus {
            authenticated: Some(true),
            user: Some(user_info(&identity)),
            audiences: Some(
                claims
                    .aud
                    .into_iter()
                    .filter(|audience| audiences.contains(audience))
                    .collect(),
            ),
            error: None,
        },
        Err(error) => {
            tracing::debug!(%error, "a reviewed token is none of ours");
            TokenReviewStatus {
                error: Some("invalid bearer token".into()),
                user: Some(UserInfo::default()),
                ..TokenReviewStatus::default()
            }
        }
    }
}

fn user_info(identity: &Identity) -> UserInfo {
    UserInfo {
        username: Some(identity.user.clone()),
        uid: Some(identity.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(identity.groups.clone()),
        extra: Some(identity.extra.clone()).filter(|extra| !extra.is_empty()),
    }
}

fn subject(
    user: Option<&str>,
    groups: Option<&[String]>,
    extra: Option<&BTreeMap<String, Vec<String>>>,
    uid: Option<&str>,
) -> Identity {
    Identity {
        user: user.unwrap_or_default().into(),
        uid: uid.unwrap_or_default().into(),
        groups: groups.unwrap_or_default().to_vec(),
        extra: extra.cloned().unwrap_or_default(),
    }
}

fn access(
    core: &Core,
    identity: &Identity,
    resource: Option<&ResourceAttributes>,
    path: Option<&NonResourceAttributes>,
) -> SubjectAccessReviewStatus {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let allowed = if let Some(resource) = resource {
        let (verb, group, name) = (
            text(&resource.verb),
            text(&resource.group),
            text(&resource.name),
        );
        let (plural, subresource, namespace) = (
            text(&resource.resource),
            text(&resource.subresource),
            text(&resource.namespace),
        );
        let attributes = Attributes {
            verb: &verb,
            group: &group,
            resource: &plural,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            path: None,
        };
        is_allowed(core, identity, &attributes)
    } else if let Some(path) = path {
        let (verb, path) = (text(&path.verb), text(&path.path));
        is_allowed(
            core,
            identity,
            &Attributes {
                verb: &verb,
                path: Some(&path),
                ..Attributes::default()
            },
        )
    } else {
        false
    };
    SubjectAccessReviewStatus {
        allowed,
        ..SubjectAccessReviewStatus::default()
    }
}

fn rules(core: &Core, identity: &Identity, namespace: &str) -> SubjectRulesReviewStatus {
    let mut status = SubjectRulesReviewStatus {
        incomplete: false,
        ..SubjectRulesReviewStatus::default()
    };
    if identity.in_group(GROUP_MASTERS) {
        let all = || Some(vec!["*".to_owned()]);
        status.resource_rules.push(ResourceRule {
            verbs: vec!["*".into()],
            api_groups: all(),
            resources: all(),
            resource_names: None,
        });
        status.non_resource_rules.push(NonResourceRule {
            verbs: vec!["*".into()],
            non_resource_urls: all(),
        });
    }
    for rule in core
        .authorizer
        .rules_of(&core.caches, identity, namespace)
        .iter()
        .flat_map(|rules| rules.iter())
    {
        if rule
            .non_resource_urls
            .as_ref()
            .is_some_and(|urls| !urls.is_empty())
        {
            status.non_resource_rules.push(NonResourceRule {
                verbs: rule.verbs.clone(),
                non_resource_urls: rule.non_resource_urls.clone(),
            });
        }
        if rule
            .resources
            .as_ref()
            .is_some_and(|resources| !resources.is_empty())
        {
            status.resource_rules.push(ResourceRule {
                verbs: rule.verbs.clone(),
                api_groups: rule.api_groups.clone(),
                resources: rule.resources.clone(),
                resource_names: rule.resource_names.clone(),
            });
        }
    }
    status
}
