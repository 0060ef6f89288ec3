//! Reads a KubeSchedulerConfiguration (`kubescheduler.config.k8s.io/v1`) into [`Profile`]s.
//!
//! Enter at [`Configuration::from_value`]. Every field of the kind is known; what this scheduler has no use
//! for (`parallelism`, `percentageOfNodesToScore`, `clientConnection`, …) is accepted and checked, what it
//! cannot do (extenders, plugins of others, another queue order) is an error that says so. A profile without
//! a `scoringStrategy` packs nodes (the knapsack policy); with one, it scores as kube-scheduler would.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use crate::class::Spread;
use crate::profile::{
    DEFAULT_SCHEDULER, DefaultSpread, FitStrategy, Profile, ResourceWeight, Rule, Weights,
    cpu_and_memory,
};
use crate::selector::{Labels, NodeTerm};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// What a configuration file says, as far as it concerns scheduling.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    pub profiles: Arc<[Arc<Profile>]>,
    pub backoff_initial_seconds: u64,
    pub backoff_max_seconds: u64,
    /// As given, for whoever runs the scheduler: leader election.
    pub leader_election: Option<Value>,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            profiles: [Arc::new(Profile::default())].into(),
            backoff_initial_seconds: 1,
            backoff_max_seconds: 10,
            leader_election: None,
        }
    }
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("not a scheduler configuration: {0}")]
    Malformed(String),
    #[error(
        "apiVersion {api_version:?}, kind {kind:?}: only {KIND} of {API_VERSION} is understood"
    )]
    Kind { api_version: String, kind: String },
    #[error("{field}: {what}")]
    Invalid { field: String, what: String },
}

fn invalid(field: impl Into<String>, what: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        field: field.into(),
        what: what.into(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i64>,
    leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    #[serde(default)]
    profiles: Vec<FileProfile>,
    #[serde(default)]
    extenders: Vec<Value>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
    placement_generate: PluginSet,
    placement_score: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<Plugin>,
    disabled: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

/// Plugins of kube-scheduler v1.36 that this scheduler stands for.
const KNOWN: [&str; 19] = [
    "SchedulingGates",
    "PrioritySort",
    "NodeUnschedulable",
    "NodeName",
    "TaintToleration",
    "NodeAffinity",
    "NodePorts",
    "NodeResourcesFit",
    "VolumeRestrictions",
    "NodeVolumeLimits",
    "VolumeBinding",
    "VolumeZone",
    "PodTopologySpread",
    "InterPodAffinity",
    "DefaultPreemption",
    "NodeResourcesBalancedAllocation",
    "ImageLocality",
    "DefaultBinder",
    "GangScheduling",
];

impl Configuration {
    /// Reads a configuration that was parsed from YAML or JSON.
    ///
    /// # Errors
    /// What is wrong with it, and at which field.
    pub fn from_value(value: Value) -> Result<Configuration, ConfigError> {
        let file: File = serde_json::from_value(value)
            .map_err(|error| ConfigError::Malformed(error.to_string()))?;
        if file.api_version != API_VERSION || file.kind != KIND {
            return Err(ConfigError::Kind {
                api_version: file.api_version,
                kind: file.kind,
            });
        }
        if file.parallelism.is_some_and(|count| count <= 0) {
            return Err(invalid("parallelism", "has to be above 0"));
        }
        percentage(
            "percentageOfNodesToScore",
            file.percentage_of_nodes_to_score,
        )?;
        if !file.extenders.is_empty() {
            return Err(invalid(
                "extenders",
                "scheduler extenders are not supported",
            ));
        }
        let seconds = |field: &str, given: Option<i64>, default: u64| match given {
            None => Ok(default),
            Some(seconds) if seconds > 0 => Ok(seconds.unsigned_abs()),
            Some(_) => Err(invalid(field, "has to be above 0")),
        };
        let backoff_initial_seconds = seconds(
            "podInitialBackoffSeconds",
            file.pod_initial_backoff_seconds,
            1,
        )?;
        let backoff_max_seconds =
            seconds("podMaxBackoffSeconds", file.pod_max_backoff_seconds, 10)?;
        if backoff_max_seconds < backoff_initial_seconds {
            return Err(invalid(
                "podMaxBackoffSeconds",
                "has to be at least podInitialBackoffSeconds",
            ));
        }
        let mut given = file.profiles;
        if given.is_empty() {
            given.push(FileProfile::default());
        }
        let alone = given.len() == 1;
        let mut profiles: Vec<Arc<Profile>> = Vec::new();
        for (index, given) in given.into_iter().enumerate() {
            let profile = profile(given, &format!("profiles[{index}]"), alone)?;
            if profiles
                .iter()
                .any(|other| other.scheduler_name == profile.scheduler_name)
            {
                let field = format!("profiles[{index}].schedulerName");
                return Err(invalid(
                    field,
                    format!("{:?} is given twice", profile.scheduler_name),
                ));
            }
            profiles.push(Arc::new(profile));
        }
        Ok(Configuration {
            profiles: profiles.into(),
            backoff_initial_seconds,
            backoff_max_seconds,
            leader_election: file.leader_election,
        })
    }
}

fn percentage(field: &str, given: Option<i64>) -> Result<(), ConfigError> {
    match given {
        Some(percent) if !(0..=100).contains(&percent) => {
            Err(invalid(field, "has to be between 0 and 100"))
        }
        _ => Ok(()),
    }
}

fn profile(given: FileProfile, path: &str, alone: bool) -> Result<Profile, ConfigError> {
    percentage(
        &format!("{path}.percentageOfNodesToScore"),
        given.percentage_of_nodes_to_score,
    )?;
    let scheduler_name = match given.scheduler_name {
        Some(name) if !name.is_empty() => name,
        None if alone => DEFAULT_SCHEDULER.into(),
        _ => {
            return Err(invalid(
                format!("{path}.schedulerName"),
                "is required where there are several profiles",
            ));
        }
    };
    let mut profile = Profile {
        scheduler_name,
        ..Profile::default()
    };
    for (index, config) in given.plugin_config.iter().enumerate() {
        arguments(
            &mut profile,
            config,
            &format!("{path}.pluginConfig[{index}]"),
        )?;
    }
    plugins(&mut profile, &given.plugins, &format!("{path}.plugins"))?;
    Ok(profile)
}

/// Which plugins are on, and how much they weigh.
fn plugins(profile: &mut Profile, given: &Plugins, path: &str) -> Result<(), ConfigError> {
    let sets = [
        ("preEnqueue", &given.pre_enqueue),
        ("queueSort", &given.queue_sort),
        ("preFilter", &given.pre_filter),
        ("filter", &given.filter),
        ("postFilter", &given.post_filter),
        ("preScore", &given.pre_score),
        ("score", &given.score),
        ("reserve", &given.reserve),
        ("permit", &given.permit),
        ("preBind", &given.pre_bind),
        ("bind", &given.bind),
        ("postBind", &given.post_bind),
        ("multiPoint", &given.multi_point),
        ("placementGenerate", &given.placement_generate),
        ("placementScore", &given.placement_score),
    ];
    for (point, set) in sets {
        for (index, plugin) in set.enabled.iter().enumerate() {
            let field = format!("{path}.{point}.enabled[{index}]");
            if !KNOWN.contains(&plugin.name.as_str()) {
                return Err(invalid(
                    field,
                    format!("there is no plugin {:?}", plugin.name),
                ));
            }
            if plugin
                .weight
                .is_some_and(|weight| !(0..=100).contains(&weight))
            {
                return Err(invalid(
                    format!("{field}.weight"),
                    "has to be between 0 and 100",
                ));
            }
        }
    }
    let off = |point: &PluginSet, name: &str| {
        let listed = |list: &[Plugin], name: &str| list.iter().any(|plugin| plugin.name == name);
        !listed(&point.enabled, name)
            && (listed(&point.disabled, name) || listed(&point.disabled, "*"))
    };
    // An extension point of its own overrides what multiPoint says.
    let is_off = |point: &PluginSet, name: &str| {
        let on_here = point.enabled.iter().any(|plugin| plugin.name == name);
        !on_here && (off(point, name) || off(&given.multi_point, name))
    };
    for name in ["PrioritySort", "DefaultBinder"] {
        if off(&given.multi_point, name)
            && !given
                .queue_sort
                .enabled
                .iter()
                .chain(&given.bind.enabled)
                .any(|p| p.name == name)
        {
            return Err(invalid(
                format!("{path}.multiPoint"),
                format!("{name} cannot be switched off"),
            ));
        }
    }
    for (name, rule) in Rule::ALL {
        if is_off(&given.filter, name) {
            profile.switch_off(rule);
        }
    }
    profile.preempts = !is_off(&given.post_filter, "DefaultPreemption");
    let weight = |name: &str, default: i64| {
        if is_off(&given.score, name) {
            return 0;
        }
        let own = given
            .score
            .enabled
            .iter()
            .chain(&given.multi_point.enabled)
            .find(|plugin| plugin.name == name);
        match own.map(|plugin| plugin.weight) {
            None => default,
            Some(weight) => weight.filter(|weight| *weight > 0).unwrap_or(1),
        }
    };
    let defaults = profile.weights;
    profile.weights = Weights {
        taint_toleration: weight("TaintToleration", defaults.taint_toleration),
        node_affinity: weight("NodeAffinity", defaults.node_affinity),
        fit: weight("NodeResourcesFit", defaults.fit),
        balanced_allocation: weight(
            "NodeResourcesBalancedAllocation",
            defaults.balanced_allocation,
        ),
        topology_spread: weight("PodTopologySpread", defaults.topology_spread),
        pod_affinity: weight("InterPodAffinity", defaults.pod_affinity),
        image_locality: weight("ImageLocality", defaults.image_locality),
    };
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FitArgs {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<Strategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Strategy {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    resources: Vec<ResourceSpec>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceSpec {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<ShapePoint>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapePoint {
    utilization: i64,
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BalancedArgs {
    resources: Vec<ResourceSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinityArgs {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpreadArgs {
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

fn arguments(profile: &mut Profile, config: &PluginConfig, path: &str) -> Result<(), ConfigError> {
    let args = match &config.args {
        Value::Null => Value::Object(serde_json::Map::new()),
        args => args.clone(),
    };
    let read = |error: serde_json::Error| invalid(format!("{path}.args"), error.to_string());
    match config.name.as_str() {
        "NodeResourcesFit" => {
            fit_arguments(profile, serde_json::from_value(args).map_err(read)?, path)
        }
        "NodeResourcesBalancedAllocation" => {
            let args: BalancedArgs = serde_json::from_value(args).map_err(read)?;
            if !args.resources.is_empty() {
                profile.balanced = weights(&args.resources, &format!("{path}.args.resources"))?;
            }
            Ok(())
        }
        "InterPodAffinity" => {
            let args: AffinityArgs = serde_json::from_value(args).map_err(read)?;
            let weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=100).contains(&weight) {
                return Err(invalid(
                    format!("{path}.args.hardPodAffinityWeight"),
                    "has to be between 0 and 100",
                ));
            }
            profile.hard_pod_affinity_weight = weight;
            profile.ignore_preferred_terms_of_existing_pods =
                args.ignore_preferred_terms_of_existing_pods;
            Ok(())
        }
        "NodeAffinity" => {
            let args: NodeAffinityArgs = serde_json::from_value(args).map_err(read)?;
            let added = args.added_affinity.unwrap_or_default();
            profile.added_terms = added
                .required_during_scheduling_ignored_during_execution
                .map(|selector| {
                    selector
                        .node_selector_terms
                        .iter()
                        .map(NodeTerm::new)
                        .collect()
                });
            let preferred = added.preferred_during_scheduling_ignored_during_execution;
            profile.added_preferred_terms = preferred
                .iter()
                .flatten()
                .map(|term| (term.weight, NodeTerm::new(&term.preference)))
                .collect();
            Ok(())
        }
        "PodTopologySpread" => {
            spread_arguments(profile, serde_json::from_value(args).map_err(read)?, path)
        }
        "DefaultPreemption" => {
            // Every node is a candidate here, so that the numbers are only checked.
            let args: PreemptionArgs = serde_json::from_value(args).map_err(read)?;
            percentage(
                &format!("{path}.args.minCandidateNodesPercentage"),
                args.min_candidate_nodes_percentage,
            )?;
            match args.min_candidate_nodes_absolute {
                Some(count) if count < 0 => Err(invalid(
                    format!("{path}.args.minCandidateNodesAbsolute"),
                    "has to be 0 or more",
                )),
                _ => Ok(()),
            }
        }
        name if KNOWN.contains(&name) || name == "DynamicResources" => Ok(()),
        name => Err(invalid(
            format!("{path}.name"),
            format!("there is no plugin {name:?}"),
        )),
    }
}

fn fit_arguments(profile: &mut Profile, args: FitArgs, path: &str) -> Result<(), ConfigError> {
    profile.ignored_resources = args.ignored_resources;
    profile.ignored_resource_groups = args.ignored_resource_groups;
    let Some(strategy) = args.scoring_strategy else {
        return Ok(());
    };
    let path = format!("{path}.args.scoringStrategy");
    let resources = if strategy.resources.is_empty() {
        cpu_and_memory()
    } else {
        weights(&strategy.resources, &format!("{path}.resources"))?
    };
    // Whoever names a strategy of kube-scheduler gets its companion too.
    profile.weights.balanced_allocation = 1;
    profile.fit = match strategy.kind.as_str() {
        "" | "LeastAllocated" => FitStrategy::LeastAllocated(resources),
        "MostAllocated" => FitStrategy::MostAllocated(resources),
        "RequestedToCapacityRatio" => {
            let shape = strategy
                .requested_to_capacity_ratio
                .map(|ratio| ratio.shape)
                .unwrap_or_default();
            FitStrategy::RequestedToCapacityRatio {
                resources,
                shape: shape_points(&shape, &format!("{path}.requestedToCapacityRatio.shape"))?,
            }
        }
        other => {
            return Err(invalid(
                format!("{path}.type"),
                format!("there is no strategy {other:?}"),
            ));
        }
    };
    Ok(())
}

fn shape_points(shape: &[ShapePoint], path: &str) -> Result<Vec<(i64, i64)>, ConfigError> {
    if shape.is_empty() {
        return Err(invalid(path, "at least one point is required"));
    }
    let mut points: Vec<(i64, i64)> = Vec::new();
    for (index, point) in shape.iter().enumerate() {
        let field = format!("{path}[{index}]");
        if !(0..=100).contains(&point.utilization) {
            return Err(invalid(
                format!("{field}.utilization"),
                "has to be between 0 and 100",
            ));
        }
        if !(0..=10).contains(&point.score) {
            return Err(invalid(
                format!("{field}.score"),
                "has to be between 0 and 10",
            ));
        }
        if points
            .last()
            .is_some_and(|(before, _)| *before >= point.utilization)
        {
            return Err(invalid(
                format!("{field}.utilization"),
                "has to be above that of the point before",
            ));
        }
        points.push((point.utilization, point.score * 10));
    }
    Ok(points)
}

fn weights(resources: &[ResourceSpec], path: &str) -> Result<Vec<ResourceWeight>, ConfigError> {
    let mut weights: Vec<ResourceWeight> = Vec::new();
    for (index, resource) in resources.iter().enumerate() {
        let weight = if resource.weight == 0 {
            1
        } else {
            resource.weight
        };
        if !(1..=100).contains(&weight) {
            return Err(invalid(
                format!("{path}[{index}].weight"),
                "has to be between 1 and 100",
            ));
        }
        if weights.iter().any(|other| other.name == resource.name) {
            return Err(invalid(
                format!("{path}[{index}].name"),
                format!("{:?} is given twice", resource.name),
            ));
        }
        weights.push(ResourceWeight {
            name: resource.name.clone(),
            weight,
        });
    }
    Ok(weights)
}

fn spread_arguments(
    profile: &mut Profile,
    args: SpreadArgs,
    path: &str,
) -> Result<(), ConfigError> {
    let field = format!("{path}.args.defaultConstraints");
    match args.defaulting_type.as_deref().unwrap_or("System") {
        "System" if args.default_constraints.is_empty() => {
            profile.default_spread = DefaultSpread::System;
            Ok(())
        }
        "System" => Err(invalid(
            field,
            "has to be empty where defaultingType is System",
        )),
        "List" => {
            for (index, constraint) in args.default_constraints.iter().enumerate() {
                let field = format!("{field}[{index}]");
                if constraint.max_skew <= 0 {
                    return Err(invalid(format!("{field}.maxSkew"), "has to be above 0"));
                }
                if constraint.topology_key.is_empty() {
                    return Err(invalid(format!("{field}.topologyKey"), "is required"));
                }
                if constraint.label_selector.is_some() {
                    return Err(invalid(
                        format!("{field}.labelSelector"),
                        "has to be absent: the pod's services and owner take its place",
                    ));
                }
                if !matches!(
                    constraint.when_unsatisfiable.as_str(),
                    "DoNotSchedule" | "ScheduleAnyway"
                ) {
                    return Err(invalid(
                        format!("{field}.whenUnsatisfiable"),
                        "has to be DoNotSchedule or ScheduleAnyway",
                    ));
                }
            }
            let list = args.default_constraints.iter();
            profile.default_spread =
                DefaultSpread::List(list.map(|c| Spread::new(c, &Labels::new())).collect());
            Ok(())
        }
        other => Err(invalid(
            format!("{path}.args.defaultingType"),
            format!("there is no defaulting {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn read(profiles: Value) -> Result<Configuration, ConfigError> {
        Configuration::from_value(
            json!({"apiVersion": API_VERSION, "kind": KIND, "profiles": profiles}),
        )
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        let value = json!({"apiVersion": API_VERSION, "kind": KIND});
        assert_eq!(
            Configuration::from_value(value).unwrap(),
            Configuration::default()
        );
    }

    #[test]
    fn fields_that_users_set() {
        let fit = json!({"name": "NodeResourcesFit", "args": {"apiVersion": API_VERSION, "kind": "NodeResourcesFitArgs",
            "ignoredResourceGroups": ["example.com"],
            "scoringStrategy": {"type": "RequestedToCapacityRatio", "resources": [{"name": "cpu", "weight": 3}, {"name": "nvidia.com/gpu"}],
                "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}}});
        let affinity = json!({"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 7}});
        let plugins = json!({"score": {"disabled": [{"name": "ImageLocality"}], "enabled": [{"name": "NodeAffinity", "weight": 9}]},
            "multiPoint": {"disabled": [{"name": "TaintToleration"}]}, "postFilter": {"disabled": [{"name": "*"}]}});
        let profiles = json!([
            {"schedulerName": "a", "pluginConfig": [fit, affinity], "plugins": plugins, "percentageOfNodesToScore": 50},
            {"schedulerName": "b"}]);
        let read = read(profiles).unwrap();
        let (a, b) = (&read.profiles[0], &read.profiles[1]);
        assert_eq!(
            (a.scheduler_name.as_str(), b.scheduler_name.as_str()),
            ("a", "b")
        );
        let FitStrategy::RequestedToCapacityRatio { resources, shape } = &a.fit else {
            panic!("{:?}", a.fit)
        };
        assert_eq!(shape, &[(0, 0), (100, 100)]);
        assert_eq!((resources[0].weight, resources[1].weight), (3, 1));
        assert_eq!(a.hard_pod_affinity_weight, 7);
        assert_eq!(
            (
                a.weights.image_locality,
                a.weights.node_affinity,
                a.weights.taint_toleration
            ),
            (0, 9, 0)
        );
        assert!(!a.upholds(Rule::TaintToleration) && a.upholds(Rule::NodeAffinity) && !a.preempts);
        assert!(a.ignores("example.com/x") && !a.ignores("cpu"));
        assert_eq!(
            **b,
            Profile {
                scheduler_name: "b".into(),
                ..Profile::default()
            }
        );
    }

    #[test]
    fn errors_name_the_field() {
        let check = |profiles: Value, expect: &str| {
            assert_eq!(
                read(profiles.clone()).unwrap_err().to_string(),
                expect,
                "{profiles}"
            );
        };
        check(
            json!([{"schedulerName": "a"}, {"schedulerName": "a"}]),
            "profiles[1].schedulerName: \"a\" is given twice",
        );
        check(
            json!([{"schedulerName": "a"}, {}]),
            "profiles[1].schedulerName: is required where there are several profiles",
        );
        check(
            json!([{"percentageOfNodesToScore": 101}]),
            "profiles[0].percentageOfNodesToScore: has to be between 0 and 100",
        );
        check(
            json!([{"plugins": {"filter": {"enabled": [{"name": "Mine"}]}}}]),
            "profiles[0].plugins.filter.enabled[0]: there is no plugin \"Mine\"",
        );
        check(
            json!([{"pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "Best"}}}]}]),
            "profiles[0].pluginConfig[0].args.scoringStrategy.type: there is no strategy \"Best\"",
        );
        check(
            json!([{"pluginConfig": [{"name": "PodTopologySpread", "args": {"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}}]}]),
            "profiles[0].pluginConfig[0].args.defaultConstraints: has to be empty where defaultingType is System",
        );
        let wrong = json!({"apiVersion": "kubescheduler.config.k8s.io/v1beta3", "kind": KIND});
        assert!(matches!(
            Configuration::from_value(wrong),
            Err(ConfigError::Kind { .. })
        ));
        assert!(matches!(
            Configuration::from_value(json!([1])),
            Err(ConfigError::Malformed(_))
        ));
        let extended = json!({"apiVersion": API_VERSION, "kind": KIND, "extenders": [{}]});
        assert!(matches!(
            Configuration::from_value(extended),
            Err(ConfigError::Invalid { .. })
        ));
    }
}
