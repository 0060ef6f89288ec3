//! Has a container's image on the node before it is created: pull policy, credentials, events.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::core::v1::Secret;
use runtime::service::{Image, ImageError, RegistryAuth};
use tokio::sync::OnceCell;

use crate::context::Context;
use crate::events::Severity;
use crate::pod::spec::{ContainerSpec, PodSpecView};
use crate::pull_records::{Access, PullSecret};

/// Tells an event about the container.
type Tell<'a> = &'a (dyn Fn(Severity, &'static str, String) + Sync);

/// Why there is no image, as the container's status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFailure {
    /// `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`, `ImageInspectError`.
    pub reason: &'static str,
    pub message: String,
}

/// The image of `spec`, pulled if its policy and what is here ask for it.
pub async fn ensure(
    context: &Context,
    view: &PodSpecView,
    spec: &ContainerSpec,
) -> Result<Image, ImageFailure> {
    let result = ensure_quietly(context, view, spec).await;
    if let Err(failure) = &result {
        context.tell_container(
            view,
            spec,
            Severity::Warning,
            "Failed",
            format!("Error: {}", failure.reason),
        );
    }
    result
}

async fn ensure_quietly(
    context: &Context,
    view: &PodSpecView,
    spec: &ContainerSpec,
) -> Result<Image, ImageFailure> {
    let requested = spec.container.image.as_deref().unwrap_or_default();
    let tell =
        |severity, reason, message| context.tell_container(view, spec, severity, reason, message);
    let policy = spec
        .container
        .image_pull_policy
        .as_deref()
        .unwrap_or_else(|| default_policy(requested));
    let credentials = Credentials::new(context, view, requested);
    if policy != "Always" {
        match context.images.status(requested).await {
            Ok(Some(image)) if may_use(&credentials, &image).await => {
                tell(
                    Severity::Normal,
                    "Pulled",
                    format!(
                        "Container image {requested:?} already present on machine and can be accessed by the pod"
                    ),
                );
                return Ok(image);
            }
            // One that the pod may not use looks like one that is not here.
            Ok(_) if policy == "Never" => {
                let message = format!(
                    "Container image {requested:?} is not present with pull policy of Never"
                );
                tell(Severity::Warning, "ErrImageNeverPull", message.clone());
                return Err(ImageFailure {
                    reason: "ErrImageNeverPull",
                    message,
                });
            }
            Ok(_) => {}
            Err(error @ ImageError::InvalidName { .. }) => {
                return Err(invalid_name(requested, &error, &tell));
            }
            Err(error) => {
                let message = format!("Failed to inspect image {requested:?}: {error}");
                tell(Severity::Warning, "InspectFailed", message.clone());
                return Err(ImageFailure {
                    reason: "ImageInspectError",
                    message,
                });
            }
        }
    }
    if let Err(error) = context.pulls.begin(requested) {
        return Err(ImageFailure {
            reason: "ErrImagePull",
            message: format!(
                "Failed to record image pull intent for container image {requested:?}: {error}"
            ),
        });
    }
    match pull(&credentials, &tell).await {
        Ok((image, secret)) => {
            context
                .pulls
                .succeeded(requested, &image.id, secret.as_ref());
            Ok(image)
        }
        Err(failure) => {
            context.pulls.end(requested);
            Err(failure)
        }
    }
}

/// May the pod use this image as it is here, or has the registry to be asked?
async fn may_use(credentials: &Credentials<'_>, image: &Image) -> bool {
    let (pulls, requested) = (&credentials.context.pulls, credentials.image);
    match pulls.access(requested, &image.id) {
        Access::Granted => true,
        Access::PullFirst => false,
        Access::WithSecret => {
            let found = credentials.get().await;
            let secrets: Vec<PullSecret> = found.iter().map(|found| found.secret.clone()).collect();
            pulls.accepts(requested, &image.id, &secrets)
        }
    }
}

/// As the API server defaults it, for pods that it did not.
fn default_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let tagged = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if tagged { "IfNotPresent" } else { "Always" }
}

fn invalid_name(image: &str, error: &ImageError, tell: Tell<'_>) -> ImageFailure {
    let message = format!("Failed to apply default image tag {image:?}: {error}");
    tell(Severity::Warning, "InspectFailed", message.clone());
    ImageFailure {
        reason: "InvalidImageName",
        message,
    }
}

/// The image, and what of the pod's the registry let it be pulled with.
async fn pull(
    credentials: &Credentials<'_>,
    tell: Tell<'_>,
) -> Result<(Image, Option<PullSecret>), ImageFailure> {
    let (context, image) = (credentials.context, credentials.image);
    tell(
        Severity::Normal,
        "Pulling",
        format!("Pulling image {image:?}"),
    );
    let started = Instant::now();
    let mut attempts: Vec<Option<&Credential>> = credentials.get().await.iter().map(Some).collect();
    if attempts.is_empty() {
        attempts.push(None);
    }
    let mut last_error = None;
    for attempt in attempts {
        let pulling = Instant::now();
        let auth = attempt.map(|credential| credential.auth.clone());
        match context.images.pull(image, auth).await {
            Ok(result) => {
                for warning in result.warnings {
                    tell(Severity::Warning, "ImagePullWarning", warning);
                }
                let (pulled, all) = (
                    format_duration(pulling.elapsed()),
                    format_duration(started.elapsed()),
                );
                let message = format!(
                    "Successfully pulled image {image:?} in {pulled} ({all} including waiting). Image size: {} bytes.",
                    result.size_bytes
                );
                tell(Severity::Normal, "Pulled", message);
                let found = context.images.status(&result.image_id).await.ok().flatten();
                let image = found.unwrap_or(Image {
                    id: result.image_id,
                    size_bytes: result.size_bytes,
                    ..Image::default()
                });
                return Ok((image, attempt.map(|credential| credential.secret.clone())));
            }
            Err(error @ ImageError::InvalidName { .. }) => {
                return Err(invalid_name(image, &error, tell));
            }
            Err(error) => last_error = Some(error.to_string()),
        }
    }
    let message = last_error.unwrap_or_default();
    tell(
        Severity::Warning,
        "Failed",
        format!("Failed to pull image {image:?}: {message}"),
    );
    Err(ImageFailure {
        reason: "ErrImagePull",
        message,
    })
}

/// As Go prints a duration that was cut to milliseconds.
pub fn format_duration(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// What a pod may pull an image with, and the secret that has it.
struct Credential {
    auth: RegistryAuth,
    secret: PullSecret,
}

/// A pod's credentials for an image: looked up when they are first needed, and once.
struct Credentials<'a> {
    context: &'a Context,
    view: &'a PodSpecView,
    image: &'a str,
    found: OnceCell<Vec<Credential>>,
}

impl<'a> Credentials<'a> {
    fn new(context: &'a Context, view: &'a PodSpecView, image: &'a str) -> Credentials<'a> {
        Credentials {
            context,
            view,
            image,
            found: OnceCell::new(),
        }
    }

    /// Best first.
    async fn get(&self) -> &[Credential] {
        let look_up = || look_up(self.context, self.view, self.image);
        self.found.get_or_init(look_up).await
    }
}

/// Credentials of the pod's pull secrets that fit the image, best first.
async fn look_up(context: &Context, view: &PodSpecView, image: &str) -> Vec<Credential> {
    let references = view
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.image_pull_secrets.as_ref());
    let names: BTreeSet<String> = references
        .into_iter()
        .flatten()
        .map(|reference| reference.name.clone())
        .collect();
    if names.is_empty() {
        return Vec::new();
    }
    let secrets = match context.objects.secrets(view.namespace(), &names).await {
        Ok(secrets) => secrets,
        Err(error) => {
            tracing::warn!(%error, pod = view.name(), "pull secrets could not be read");
            return Vec::new();
        }
    };
    let missing: Vec<&str> = secrets
        .iter()
        .filter(|(_, secret)| secret.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        context.tell_pod(
            view,
            Severity::Warning,
            "FailedToRetrieveImagePullSecret",
            message,
        );
    }
    let mut found = Vec::new();
    for (name, secret) in &secrets {
        let Some(secret) = secret else { continue };
        let uid = secret.metadata.uid.as_deref().unwrap_or_default();
        for (specificity, auth) in matching(secret, image) {
            let secret = PullSecret::new(view.namespace(), name, uid, &auth);
            found.push((specificity, Credential { auth, secret }));
        }
    }
    found.sort_by_key(|(specificity, _)| std::cmp::Reverse(*specificity));
    found
        .into_iter()
        .map(|(_, credential)| credential)
        .collect()
}

/// Registries in a secret that fit the image, with how specific each is.
fn matching(secret: &Secret, image: &str) -> Vec<(usize, RegistryAuth)> {
    use base64::Engine;
    let data = secret.data.as_ref();
    let bytes = |key: &str| {
        data.and_then(|data| data.get(key))
            .map(|bytes| bytes.0.as_slice())
    };
    let auths = if let Some(bytes) = bytes(".dockerconfigjson") {
        serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .and_then(|json| json.get("auths").cloned())
    } else {
        bytes(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok())
    };
    let Some(serde_json::Value::Object(auths)) = auths else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (registry, entry) in auths {
        if !registry_matches(&registry, image) {
            continue;
        }
        let text = |key: &str| {
            entry
                .get(key)
                .and_then(|value| value.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let mut auth = RegistryAuth {
            username: text("username"),
            password: text("password"),
            identity_token: text("identitytoken"),
        };
        if auth.username.is_empty()
            && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
            && let Some((username, password)) = String::from_utf8_lossy(&decoded).split_once(':')
        {
            username.clone_into(&mut auth.username);
            password
                .trim_end_matches('\0')
                .clone_into(&mut auth.password);
        }
        found.push((registry.len(), auth));
    }
    found
}

/// Does a key of a Docker configuration (`host`, `https://host/v1/`, `*.host/path`) cover the image?
fn registry_matches(key: &str, image: &str) -> bool {
    let key = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let key_path = key_path.trim_matches('/');
    let key_path = if matches!(key_path, "v1" | "v2") {
        ""
    } else {
        key_path
    };
    let (image_host, image_path) = match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", image),
    };
    let docker_hub = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let host_fits = key_host == image_host
        || docker_hub.contains(&key_host) && docker_hub.contains(&image_host)
        || {
            let (key_labels, labels): (Vec<_>, Vec<_>) = (
                key_host.split('.').collect(),
                image_host.split('.').collect(),
            );
            key_host.contains('*')
                && key_labels.len() == labels.len()
                && key_labels
                    .iter()
                    .zip(&labels)
                    .all(|(key, label)| glob(key, label))
        };
    host_fits
        && (key_path.is_empty()
            || image_path == key_path
            || image_path
                .strip_prefix(key_path)
                .is_some_and(|rest| rest.starts_with(['/', ':', '@'])))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    #[test]
    fn registries() {
        for (key, image, expect) in [
            ("registry.example", "registry.example/a/b:1", true),
            ("https://registry.example/v1/", "registry.example/a", true),
            ("registry.example/a", "registry.example/a/b", true),
            ("registry.example/a", "registry.example/ab", false),
            ("registry.example", "other.example/a", false),
            ("*.example", "registry.example/a", true),
            ("*.example", "a.registry.example/a", false),
            ("https://index.docker.io/v1/", "nginx", true),
            ("https://index.docker.io/v1/", "library/nginx:1", true),
            ("localhost:5000", "localhost:5000/x", true),
            ("registry.example", "nginx", false),
        ] {
            assert_eq!(registry_matches(key, image), expect, "{key} {image}");
        }
    }

    #[test]
    fn secrets_are_decoded() {
        let secret: Secret =
            serde_json::from_value(serde_json::json!({"stringData": {}, "data": {}})).unwrap();
        assert!(matching(&secret, "nginx").is_empty());
        let json = r#"{"auths":{"registry.example":{"auth":"dXNlcjpwYXNz"},"x":{"username":"a"}}}"#;
        let mut secret = secret;
        secret.data = Some(
            [(
                ".dockerconfigjson".to_owned(),
                k8s_openapi::ByteString(json.into()),
            )]
            .into(),
        );
        let found = matching(&secret, "registry.example/a");
        assert_eq!(
            (found[0].1.username.as_str(), found[0].1.password.as_str()),
            ("user", "pass")
        );
    }

    #[test]
    fn policies_and_durations() {
        for (image, expect) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("r:5000/a", "Always"),
            ("a@sha256:0", "IfNotPresent"),
        ] {
            assert_eq!(default_policy(image), expect, "{image}");
        }
        for (millis, expect) in [
            (12, "12ms"),
            (1200, "1.2s"),
            (1000, "1s"),
            (61_050, "1m1.05s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), expect);
        }
    }
}
