//! What a KubeSchedulerConfiguration says, in the terms of our scheduler.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use scheduler::{Point, Profile, Strategy};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::flags::go_duration;
use super::scheduler_config::{File, PluginConfig, PluginSet, Profile as Described};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resource {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FitArgs {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ScoringStrategy {
    #[serde(rename = "type")]
    kind: String,
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    shape: Vec<Utilization>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Utilization {
    utilization: i64,
    score: i64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct BalancedArgs {
    resources: Vec<Resource>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SpreadArgs {
    default_constraints: Vec<Value>,
    defaulting_type: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BindingArgs {
    bind_timeout_seconds: Option<i64>,
    shape: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DevicesArgs {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

impl File {
    /// The scheduler's configuration.
    pub fn scheduler(&self) -> Result<scheduler::Config> {
        let mut config = scheduler::Config::default();
        let percent = |p: Option<i32>| p.and_then(|p| u32::try_from(p).ok());
        config.percentage_of_nodes_to_score = percent(self.percentage_of_nodes_to_score).unwrap_or(config.percentage_of_nodes_to_score);
        let seconds = |s: Option<i64>, default| s.and_then(|s| u64::try_from(s).ok()).map_or(default, Duration::from_secs);
        config.initial_backoff = seconds(self.pod_initial_backoff_seconds, config.initial_backoff);
        config.max_backoff = seconds(self.pod_max_backoff_seconds, config.max_backoff);
        if !self.profiles.is_empty() {
            config.profiles = self.profiles.iter().map(profile).collect::<Result<_>>()?;
        }
        super::scheduler_extenders::add(&self.extenders, &mut config)?;
        Ok(config)
    }
}

fn profile(described: &Described) -> Result<Profile> {
    let name = described.scheduler_name.as_deref().unwrap_or(scheduler::DEFAULT_NAME);
    let mut profile = Profile::named(name);
    profile.percentage_of_nodes_to_score = described.percentage_of_nodes_to_score.and_then(|p| u32::try_from(p).ok());
    let p = &described.plugins;
    let points = [
        (None, &p.multi_point),
        (Some(Point::PreEnqueue), &p.pre_enqueue),
        (Some(Point::QueueSort), &p.queue_sort),
        (Some(Point::PreFilter), &p.pre_filter),
        (Some(Point::Filter), &p.filter),
        (Some(Point::PostFilter), &p.post_filter),
        (Some(Point::PreScore), &p.pre_score),
        (Some(Point::Score), &p.score),
        (Some(Point::Reserve), &p.reserve),
        (Some(Point::Permit), &p.permit),
        (Some(Point::PreBind), &p.pre_bind),
        (Some(Point::Bind), &p.bind),
        (Some(Point::PostBind), &p.post_bind),
    ];
    for (point, set) in points {
        plugins(&mut profile, point, set).with_context(|| format!("profile {name:?}"))?;
    }
    for config in &described.plugin_config {
        arguments(&mut profile, config).with_context(|| format!("profile {name:?}, arguments of {}", config.name))?;
    }
    Ok(profile)
}

fn plugins(profile: &mut Profile, point: Option<Point>, set: &PluginSet) -> Result<()> {
    let known = |name: &str| scheduler::DEFAULT_PLUGINS.iter().any(|(n, _)| *n == name);
    for plugin in &set.disabled {
        ensure!(plugin.name == "*" || known(&plugin.name), "plugin {:?} does not exist", plugin.name);
        profile.disable(point, &plugin.name);
    }
    for plugin in &set.enabled {
        ensure!(known(&plugin.name), "plugin {:?} does not exist", plugin.name);
        ensure!(plugin.weight >= 0, "plugin {:?} has a weight below 0", plugin.name);
        profile.enable(point, &plugin.name, plugin.weight.into());
    }
    Ok(())
}

/// Reads arguments; their own `apiVersion` and `kind` may be there.
fn args<T: DeserializeOwned + Default>(plugin: &str, value: &Value) -> Result<T> {
    let mut value = value.clone();
    let Some(map) = value.as_object_mut() else {
        ensure!(value.is_null(), "args is no object");
        return Ok(T::default());
    };
    if let Some(version) = map.remove("apiVersion") {
        ensure!(version == "kubescheduler.config.k8s.io/v1", "no version {version} of arguments is known");
    }
    if let Some(kind) = map.remove("kind") {
        ensure!(kind.as_str() == Some(format!("{plugin}Args").as_str()), "kind is {kind}, and {plugin}Args is meant");
    }
    Ok(serde_json::from_value(value)?)
}

fn arguments(profile: &mut Profile, config: &PluginConfig) -> Result<()> {
    let (name, value) = (config.name.as_str(), &config.args);
    match name {
        "NodeResourcesFit" => {
            let given: FitArgs = args(name, value)?;
            profile.ignored_resources = given.ignored_resources.into_iter().collect();
            profile.ignored_groups = given.ignored_resource_groups.into_iter().collect();
            if let Some(strategy) = given.scoring_strategy {
                profile.strategy = match strategy.kind.as_str() {
                    "" | "LeastAllocated" => Strategy::LeastAllocated,
                    "MostAllocated" => Strategy::MostAllocated,
                    "RequestedToCapacityRatio" => Strategy::RequestedToCapacityRatio(shape(strategy.requested_to_capacity_ratio)?),
                    other => bail!("scoringStrategy.type: Unsupported value: {other:?}"),
                };
                if !strategy.resources.is_empty() {
                    for r in &strategy.resources {
                        ensure!((0..=100).contains(&r.weight), "the weight of {} is not in [1, 100]", r.name);
                    }
                    profile.fit_resources = strategy.resources.into_iter().map(|r| (r.name, if r.weight == 0 { 1 } else { r.weight })).collect();
                }
            }
        }
        "NodeResourcesBalancedAllocation" => {
            let given: BalancedArgs = args(name, value)?;
            ensure!(given.resources.iter().all(|r| r.weight <= 1), "resource weights must be 1");
            if !given.resources.is_empty() {
                profile.balanced_resources = given.resources.into_iter().map(|r| r.name).collect();
            }
        }
        "InterPodAffinity" => {
            let given: AffinityArgs = args(name, value)?;
            let weight = given.hard_pod_affinity_weight.unwrap_or(1);
            ensure!((0..=100).contains(&weight), "hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0-100]");
            profile.hard_pod_affinity_weight = weight;
            profile.ignore_preferred_terms_of_existing_pods = given.ignore_preferred_terms_of_existing_pods;
        }
        "PodTopologySpread" => {
            let given: SpreadArgs = args(name, value)?;
            match given.defaulting_type.as_deref().unwrap_or("System") {
                "List" => profile.default_spread = Profile::spread_list(Value::Array(given.default_constraints))?,
                "System" => ensure!(given.default_constraints.is_empty(), "defaultConstraints need defaultingType List"),
                other => bail!("defaultingType: Unsupported value: {other:?}"),
            }
        }
        "DefaultPreemption" => {
            let given: PreemptionArgs = args(name, value)?;
            if let Some(percent) = given.min_candidate_nodes_percentage {
                ensure!((0..=100).contains(&percent), "minCandidateNodesPercentage: Invalid value: {percent}: not in valid range [0, 100]");
                profile.min_candidate_nodes_percentage = usize::try_from(percent)?;
            }
            if let Some(number) = given.min_candidate_nodes_absolute {
                profile.min_candidate_nodes_absolute = usize::try_from(number).context("minCandidateNodesAbsolute must not be below 0")?;
            }
        }
        "VolumeBinding" => {
            let given: BindingArgs = args(name, value)?;
            ensure!(given.shape.is_none(), "shape is not supported yet");
            if let Some(seconds) = given.bind_timeout_seconds {
                profile.bind_timeout = Duration::from_secs(u64::try_from(seconds).context("bindTimeoutSeconds must not be below 0")?);
            }
        }
        "DynamicResources" => {
            let given: DevicesArgs = args(name, value)?;
            let time = |name: &str, text: &str| go_duration(text).with_context(|| format!("{name}: time: invalid duration {text:?}"));
            if let Some(text) = given.filter_timeout {
                profile.device_filter_timeout = time("filterTimeout", &text)?;
            }
            if let Some(text) = given.binding_timeout {
                profile.device_bind_timeout = time("bindingTimeout", &text)?;
                ensure!(profile.device_bind_timeout >= Duration::from_secs(1), "bindingTimeout: Invalid value: {text:?}: must be at least 1 second");
            }
        }
        _ => bail!("arguments of this plug-in are not supported yet"),
    }
    Ok(())
}

/// Points of utilization and score: rising, within 0 to 100 and 0 to 10.
fn shape(ratio: Option<Ratio>) -> Result<Vec<(i64, i64)>> {
    let shape: Vec<(i64, i64)> = ratio.context("requestedToCapacityRatio: Required value")?.shape.iter().map(|u| (u.utilization, u.score)).collect();
    ensure!(!shape.is_empty(), "requestedToCapacityRatio.shape: at least one point must be specified");
    ensure!(shape.windows(2).all(|w| w[0].0 < w[1].0), "utilization values must be sorted in increasing order");
    ensure!(shape.iter().all(|(u, s)| (0..=100).contains(u) && (0..=10).contains(s)), "utilization must be in 0 to 100, and score in 0 to 10");
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> Result<scheduler::Config> {
        File::parse(&format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{rest}"))?.scheduler()
    }

    #[test]
    fn profiles_have_their_plugins_and_arguments() {
        let config = config(
            "podMaxBackoffSeconds: 30\nprofiles:\n- schedulerName: packer\n  plugins:\n    multiPoint:\n      disabled: [{name: ImageLocality}]\n    score:\n      enabled: [{name: TaintToleration, weight: 9}]\n  pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 2}]}}\n  - name: DynamicResources\n    args: {filterTimeout: 2s, bindingTimeout: 1m}\n  - name: InterPodAffinity\n    args: {apiVersion: kubescheduler.config.k8s.io/v1, kind: InterPodAffinityArgs, hardPodAffinityWeight: 7}\n",
        )
        .expect("a good file");
        let profile = &config.profiles[0];
        assert_eq!((profile.name.as_str(), config.max_backoff), ("packer", Duration::from_secs(30)));
        assert_eq!((profile.weight("ImageLocality"), profile.weight("TaintToleration")), (0, 9));
        assert_eq!((&profile.strategy, profile.hard_pod_affinity_weight), (&Strategy::MostAllocated, 7));
        assert_eq!((profile.device_filter_timeout, profile.device_bind_timeout), (Duration::from_secs(2), Duration::from_secs(60)));
        assert_eq!(profile.fit_resources, [("cpu".to_string(), 2)]);
    }

    #[test]
    fn without_profiles_there_is_the_default_one() {
        let config = config("").expect("a good file");
        assert_eq!(config.profiles.len(), 1);
        assert_eq!(config.profiles[0].name, "default-scheduler");
    }

    #[test]
    fn unknown_plugins_and_arguments_are_refused() {
        let one = |inside: &str| format!("profiles:\n- schedulerName: a\n{inside}");
        for inside in [
            "  plugins: {score: {enabled: [{name: Nonsense}]}}\n",
            "  pluginConfig: [{name: NodeResourcesFit, args: {nonsense: 1}}]\n",
            "  pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Nonsense}}}]\n",
            "  pluginConfig: [{name: Nonsense, args: {}}]\n",
            "  pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]\n",
            "  pluginConfig: [{name: InterPodAffinity, args: {kind: NodeAffinityArgs}}]\n",
            "  pluginConfig: [{name: DynamicResources, args: {bindingTimeout: 10ms}}]\n",
            "  pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: {shape: [{utilization: 9, score: 1}, {utilization: 3, score: 2}]}}}}]\n",
        ] {
            assert!(config(&one(inside)).is_err(), "{inside}");
        }
    }
}
