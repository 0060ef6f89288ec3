//! Sets a pod's volumes up: fetches what they are made of, plans them, applies the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use volumes::{Content, Sources, TokenNeed};

use super::env;
use super::spec::PodSpecView;
use crate::context::Context;
use crate::events::Severity;

/// The volumes are as planned.
#[derive(Clone, Debug, Default)]
pub struct VolumesReady {
    /// Host path by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// When a token in them has to be replaced.
    pub refresh_at: Option<Timestamp>,
    /// The tokens and when each is replaced.
    pub tokens: BTreeMap<TokenNeed, (String, Timestamp)>,
}

/// Names all ConfigMaps and Secrets that the pod refers to, so that they are followed.
pub fn refer(context: &Context, view: &PodSpecView) {
    let mut needs = volumes::needs(&view.pod);
    for spec in &view.containers {
        let (config_maps, secrets) = env::needs(&spec.container);
        needs.config_maps.extend(config_maps);
        needs.secrets.extend(secrets);
    }
    let pull_secrets = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.image_pull_secrets.as_ref());
    needs.secrets.extend(
        pull_secrets
            .into_iter()
            .flatten()
            .map(|reference| reference.name.clone()),
    );
    context.objects.refer(
        view.uid(),
        view.namespace(),
        &needs.config_maps,
        &needs.secrets,
    );
}

/// Makes all volumes so; called again to update them. `old` holds tokens that may still be good.
///
/// Each volume that fails is told in an event; the error is the first one's text.
pub async fn set_up_volumes(
    context: &Context,
    view: &PodSpecView,
    old: &VolumesReady,
) -> Result<VolumesReady, String> {
    let needs = volumes::needs(&view.pod);
    let objects = &context.objects;
    let (config_maps, secrets, tokens) = futures::join!(
        objects.config_maps(view.namespace(), &needs.config_maps),
        objects.secrets(view.namespace(), &needs.secrets),
        tokens(context, view, &needs.tokens, old),
    );
    let (config_maps, secrets) = match (config_maps, secrets) {
        (Ok(config_maps), Ok(secrets)) => (config_maps, secrets),
        (Err(error), _) | (_, Err(error)) => {
            let message = format!("cannot fetch what the volumes are made of: {error}");
            context.tell_pod(view, Severity::Warning, "FailedMount", message.clone());
            return Err(message);
        }
    };
    let (tokens, token_error) = tokens;
    let mut ready = VolumesReady {
        refresh_at: tokens.values().map(|(_, refresh_at)| *refresh_at).min(),
        ..VolumesReady::default()
    };
    let sources = Sources {
        config_maps,
        secrets,
        tokens: tokens
            .iter()
            .map(|(need, (token, _))| (need.clone(), token.clone()))
            .collect(),
        facts: context.facts(Vec::new()),
    };
    ready.tokens = tokens;
    let planned = volumes::plan(&view.pod, &sources);
    let pod_dir = context.config.pod_dir(view.uid());
    let only_root_mismatch = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|security| security.fs_group_change_policy.as_deref())
        == Some("OnRootMismatch");
    let applied = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&pod_dir).map_err(|error| {
            vec![(
                String::new(),
                format!("cannot create {}: {error}", pod_dir.display()),
            )]
        })?;
        let (mut paths, mut errors) = (BTreeMap::new(), Vec::new());
        for (name, volume) in planned {
            let result = volume
                .map_err(|error| error.to_string())
                .and_then(|volume| {
                    volumes::set_up(&pod_dir, &volume, only_root_mismatch)
                        .map_err(|error| error.to_string())?;
                    Ok(volumes::volume_path(&pod_dir, &volume))
                });
            match result {
                Ok(path) => {
                    paths.insert(name, path);
                }
                Err(error) => errors.push((name, error)),
            }
        }
        if errors.is_empty() {
            Ok(paths)
        } else {
            Err(errors)
        }
    })
    .await
    .map_err(|error| error.to_string())?;
    match applied {
        Ok(paths) => {
            ready.paths = paths;
            Ok(ready)
        }
        Err(errors) => {
            let mut first = None;
            for (name, error) in errors {
                let cause = token_error
                    .clone()
                    .filter(|_| error.contains("service account token"))
                    .unwrap_or(error);
                let message = format!("MountVolume.SetUp failed for volume {name:?} : {cause}");
                context.tell_pod(view, Severity::Warning, "FailedMount", message.clone());
                first.get_or_insert(message);
            }
            Err(first.unwrap_or_default())
        }
    }
}

type Tokens = BTreeMap<TokenNeed, (String, Timestamp)>;

/// The tokens that are needed, new ones where the old are due; and why one was not issued.
async fn tokens(
    context: &Context,
    view: &PodSpecView,
    needs: &BTreeSet<TokenNeed>,
    old: &VolumesReady,
) -> (Tokens, Option<String>) {
    let (mut found, mut failure) = (Tokens::new(), None);
    for need in needs {
        if let Some((token, refresh_at)) = old.tokens.get(need)
            && *refresh_at > Timestamp::now()
        {
            found.insert(need.clone(), (token.clone(), *refresh_at));
            continue;
        }
        match request_token(context, view, need).await {
            Ok(issued) => {
                found.insert(need.clone(), issued);
            }
            Err(error) => {
                let account = service_account(view);
                failure = Some(format!(
                    "failed to fetch token for service account \"{}/{account}\": {error}",
                    view.namespace()
                ));
            }
        }
    }
    (found, failure)
}

fn service_account(view: &PodSpecView) -> &str {
    let name = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// A token bound to the pod, and when to replace it: after 80% of its life, or a day.
async fn request_token(
    context: &Context,
    view: &PodSpecView,
    need: &TokenNeed,
) -> Result<(String, Timestamp), kube::Error> {
    let account = service_account(view);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: (!need.audience.is_empty()).then(|| vec![need.audience.clone()]),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(view.name().into()),
                uid: Some(view.uid().into()),
            }),
            expiration_seconds: Some(need.expiration_seconds),
        }),
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), view.namespace());
    let issued: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &request)
        .await?;
    let now = Timestamp::now();
    let status = issued.status.unwrap_or_default();
    let expires_at = status.expiration_timestamp.map_or(now, |time| time.0);
    let lifetime = expires_at.duration_since(now).as_secs().clamp(1, 1 << 31);
    let refresh = (lifetime * 4 / 5).min(24 * 3600);
    Ok((
        status.token.unwrap_or_default(),
        now + SignedDuration::from_secs(refresh),
    ))
}

/// Whether the pod has volumes whose files may have to change while it runs.
pub fn has_files(view: &PodSpecView) -> bool {
    let sources = Sources::default();
    volumes::plan(&view.pod, &sources)
        .iter()
        .any(|(_, volume)| !matches!(volume, Ok(volume) if !matches!(volume.content, Content::Files { .. })))
}

/// Names of what a container's environment refers to, fetched.
pub async fn env_sources(
    context: &Context,
    namespace: &str,
    names: (BTreeSet<String>, BTreeSet<String>),
) -> Result<env::EnvSources, kube::Error> {
    Ok(env::EnvSources {
        config_maps: context.objects.config_maps(namespace, &names.0).await?,
        secrets: context.objects.secrets(namespace, &names.1).await?,
    })
}
