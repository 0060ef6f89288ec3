//! The objects that every cluster has, made where they are missing.
//!
//! Enter at [`run`], once at start, after the caches are filled. Everything goes through the same
//! code as a client's writes, under an identity that may do everything; what is there already
//! is left as it is, except the addresses of the Service `default/kubernetes`, which are ours.

use std::net::IpAddr;
use std::sync::Arc;

use api::kind::Object;
use futures::TryStreamExt;
use http::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json};

use crate::authn::Identity;
use crate::authz::{aggregation, policy};
use crate::core::Core;
use crate::handler::Context;
use crate::request::Query;
use crate::rest::managed_fields::Writer;
use crate::rest::{Rest, WriteOptions};
use crate::status::{ApiError, ApiResult};

/// Writes under way at the same time; they are committed together.
const PARALLEL: usize = 64;
const MANAGER: &str = "kube-apiserver";

struct Bootstrap {
    core: Arc<Core>,
    context: Context,
    options: WriteOptions,
}

/// Makes what is missing.
pub async fn run(core: &Arc<Core>) -> ApiResult<()> {
    let bootstrap = Bootstrap::new(core);
    let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"];
    bootstrap
        .create_all(
            "",
            "namespaces",
            namespaces.map(|name| json!({"metadata": {"name": name}})),
        )
        .await?;
    core.caches.fresh().await?;

    let mut cluster_roles = policy::policy().cluster_roles;
    // `edit` selects what `view` has come to be, and `admin` what `edit` has.
    for _ in 0..3 {
        let all = cluster_roles.clone();
        for role in &mut cluster_roles {
            if let Some(rules) = aggregation::aggregate(role, &all) {
                role.rules = Some(rules);
            }
        }
    }
    let policy = policy::policy();
    const RBAC: &str = "rbac.authorization.k8s.io";
    bootstrap
        .create_all(RBAC, "clusterroles", values(&cluster_roles))
        .await?;
    bootstrap
        .create_all(
            RBAC,
            "clusterrolebindings",
            values(&policy.cluster_bindings),
        )
        .await?;
    bootstrap
        .create_all(RBAC, "roles", values(&policy.roles))
        .await?;
    bootstrap
        .create_all(RBAC, "rolebindings", values(&policy.bindings))
        .await?;
    bootstrap
        .create_all(
            "scheduling.k8s.io",
            "priorityclasses",
            system_priority_classes(),
        )
        .await?;
    let authentication = json!({
        "metadata": {"namespace": "kube-system", "name": "extension-apiserver-authentication"},
        "data": {"client-ca-file": core.pki.ca_certificate_pem()},
    });
    bootstrap
        .create_all("", "configmaps", [authentication])
        .await?;
    bootstrap.kubernetes_service().await
}

fn values<T: Serialize>(objects: &[T]) -> Vec<Value> {
    objects
        .iter()
        .filter_map(|object| serde_json::to_value(object).ok())
        .collect()
}

fn system_priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i32, description: &str| json!({"metadata": {"name": name}, "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

impl Bootstrap {
    fn new(core: &Arc<Core>) -> Self {
        let context = Context::new(
            Arc::new(Identity::admin().authenticated()),
            Query::default(),
            HeaderMap::new(),
        );
        let mut options = WriteOptions::parse(&Query::default(), "CreateOptions")
            .expect("no options are good options");
        options.field_manager = MANAGER.into();
        Self {
            core: core.clone(),
            context,
            options,
        }
    }

    async fn create_all(
        &self,
        group: &str,
        plural: &str,
        objects: impl IntoIterator<Item = Value>,
    ) -> ApiResult<()> {
        // A kind that is not served has no objects.
        if self.core.resource_of_group(group, plural).is_none() {
            return Ok(());
        }
        futures::stream::iter(objects.into_iter().map(Ok::<_, ApiError>))
            .try_for_each_concurrent(PARALLEL, |object| async move {
                self.create_missing(group, plural, object).await
            })
            .await
    }

    async fn create_missing(&self, group: &str, plural: &str, object: Value) -> ApiResult<()> {
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.with_rest(group, plural, &namespace, &name, async |rest| {
            if rest.cached().is_some() {
                return Ok(());
            }
            let object = rest
                .kind
                .strategy
                .from_value(object)
                .map_err(ApiError::internal)?;
            match rest.create_object(object, &self.options).await {
                Err(error) if error.reason() == "AlreadyExists" => Ok(()),
                other => other.map(|_| ()),
            }
        })
        .await
    }

    async fn with_rest<T>(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
        work: impl AsyncFnOnce(&Rest<'_>) -> ApiResult<T>,
    ) -> ApiResult<T> {
        let resource = self
            .core
            .resource_of_group(group, plural)
            .ok_or_else(|| ApiError::internal(format!("{plural} are not served")))?;
        let cache = resource
            .cache
            .as_ref()
            .ok_or_else(|| ApiError::internal(format!("{plural} are not stored")))?;
        let rest = Rest {
            core: &self.core,
            context: &self.context,
            kind: &resource.kind,
            cache,
            namespace,
            name,
        };
        work(&rest).await
    }

    /// The Service by which pods reach this server, and its endpoints.
    async fn kubernetes_service(&self) -> ApiResult<()> {
        let config = &self.core.config;
        let Some(cluster_ip) = config.service_cidr.nth(1) else {
            return Ok(());
        };
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let service = json!({
            "metadata": {"namespace": "default", "name": "kubernetes", "labels": labels},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": cluster_ip.to_string(),
                "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": self.core.local_addr.port()}],
            },
        });
        self.create_all("", "services", [service]).await?;
        let Some(address) = self.advertised() else {
            return Ok(());
        };
        let port = self.core.local_addr.port();
        let endpoints = json!({
            "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address.to_string()}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
        });
        self.put("", "endpoints", endpoints, &["subsets"]).await?;
        let slice = json!({
            "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        });
        self.put(
            "discovery.k8s.io",
            "endpointslices",
            slice,
            &["endpoints", "ports"],
        )
        .await
    }

    /// Pods cannot reach a loopback address of ours; then there is nothing to advertise.
    fn advertised(&self) -> Option<IpAddr> {
        let bound = self.core.local_addr.ip();
        self.core
            .config
            .advertise_address
            .or_else(|| (!bound.is_loopback() && !bound.is_unspecified()).then_some(bound))
    }

    /// Creates the object, or sets the named fields of the one that is there.
    async fn put(
        &self,
        group: &str,
        plural: &str,
        object: Value,
        fields: &[&str],
    ) -> ApiResult<()> {
        if self.core.resource_of_group(group, plural).is_none() {
            return Ok(());
        }
        let (namespace, name) = ("default", "kubernetes");
        self.with_rest(group, plural, namespace, name, async |rest| {
            if rest.cached().is_none() {
                return self.create_missing(group, plural, object.clone()).await;
            }
            let writer = Writer::server(MANAGER);
            let change = |old: &dyn Object, _: &crate::cache::Item| {
                let mut value = old.to_value();
                for field in fields {
                    value[*field] = object[*field].clone();
                }
                rest.kind
                    .strategy
                    .from_value(value)
                    .map_err(ApiError::internal)
            };
            rest.modify(&api::kind::Part::Main, &self.options, &writer, change)
                .await
                .map(|_| ())
        })
        .await
    }
}

/// Keeps the rules of aggregated cluster roles what they should be, until the server stops.
pub async fn aggregate_cluster_roles(core: Arc<Core>) {
    let Some(cache) = core.caches.by_prefix("clusterroles").cloned() else {
        return;
    };
    let bootstrap = Bootstrap::new(&core);
    let mut changed = cache.subscribe();
    loop {
        changed.borrow_and_update();
        let items = cache.list(0, "", None, 0, |_| true).items;
        let roles: Vec<k8s_openapi::api::rbac::v1::ClusterRole> = items
            .iter()
            .filter_map(|item| serde_json::from_slice(&item.json).ok())
            .collect();
        let wanted = roles.iter().filter_map(|role| {
            let rules = aggregation::aggregate(role, &roles)?;
            (role.rules.as_deref().unwrap_or_default() != rules)
                .then(|| (role.metadata.name.clone().unwrap_or_default(), rules))
        });
        for (name, rules) in wanted {
            let result = bootstrap
                .with_rest(
                    "rbac.authorization.k8s.io",
                    "clusterroles",
                    "",
                    &name,
                    async |rest| {
                        let writer = Writer::server("clusterrole-aggregation-controller");
                        let change = |old: &dyn Object, _: &crate::cache::Item| {
                            let mut new = old.clone_boxed();
                            if let Some(role) =
                                new.as_any_mut()
                                    .downcast_mut::<k8s_openapi::api::rbac::v1::ClusterRole>()
                            {
                                role.rules = Some(rules.clone());
                            }
                            Ok(new)
                        };
                        rest.modify(&api::kind::Part::Main, &bootstrap.options, &writer, change)
                            .await
                            .map(|_| ())
                    },
                )
                .await;
            if let Err(error) = result {
                tracing::warn!(%name, %error, "cannot write the rules of an aggregated cluster role");
            }
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = core.stop.cancelled() => return,
        }
    }
}
