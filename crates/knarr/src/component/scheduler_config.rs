//! KubeSchedulerConfiguration v1, as files have it: fields that upstream does not know are refused,
//! and so is what cannot be done yet; nothing is passed over in silence. Extenders are in
//! `scheduler_extenders`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reconcile::leader::{Settings, Timing};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flags::go_duration;
use super::scheduler_extenders::Extender;

const GROUP: &str = "kubescheduler.config.k8s.io";

/// The file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    api_version: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallelism: Option<i32>,
    pub leader_election: LeaderElection,
    pub client_connection: ClientConnection,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_profiling: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_contention_profiling: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage_of_nodes_to_score: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_initial_backoff_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_max_backoff_seconds: Option<i64>,
    pub profiles: Vec<Profile>,
    pub extenders: Vec<Extender>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_cache_until_active: Option<bool>,
}

/// Who may schedule when there are several.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaderElection {
    leader_elect: bool,
    lease_duration: String,
    renew_deadline: String,
    retry_period: String,
    resource_lock: String,
    resource_name: String,
    resource_namespace: String,
}

impl Default for LeaderElection {
    fn default() -> LeaderElection {
        LeaderElection {
            leader_elect: true,
            lease_duration: "15s".into(),
            renew_deadline: "10s".into(),
            retry_period: "2s".into(),
            resource_lock: "leases".into(),
            resource_name: "kube-scheduler".into(),
            resource_namespace: "kube-system".into(),
        }
    }
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: f64,
    burst: i32,
}

/// One scheduler's name and what is different about it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Profile {
    pub scheduler_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage_of_nodes_to_score: Option<i32>,
    pub plugins: Plugins,
    pub plugin_config: Vec<PluginConfig>,
}

/// Plug-ins by the points where they take part.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Plugins {
    pub pre_enqueue: PluginSet,
    pub queue_sort: PluginSet,
    pub pre_filter: PluginSet,
    pub filter: PluginSet,
    pub post_filter: PluginSet,
    pub pre_score: PluginSet,
    pub score: PluginSet,
    pub reserve: PluginSet,
    pub permit: PluginSet,
    pub pre_bind: PluginSet,
    pub bind: PluginSet,
    pub post_bind: PluginSet,
    pub multi_point: PluginSet,
}

/// What is turned on and off at a point.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PluginSet {
    pub enabled: Vec<Plugin>,
    pub disabled: Vec<Plugin>,
}

/// A plug-in.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Plugin {
    pub name: String,
    pub weight: i32,
}

/// Arguments of a plug-in.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PluginConfig {
    pub name: String,
    pub args: Value,
}

impl File {
    /// The file at `path`, checked.
    pub fn read(path: &str) -> Result<File> {
        let text = std::fs::read_to_string(Path::new(path)).with_context(|| format!("cannot read {path}"))?;
        File::parse(&text).with_context(|| format!("the configuration {path} cannot be used"))
    }

    /// Reads and checks the text of a file.
    pub fn parse(text: &str) -> Result<File> {
        let file: File = serde_saphyr::from_str(text)?;
        let version = file.api_version.strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
        ensure!(
            version == Some("v1") && file.kind == "KubeSchedulerConfiguration",
            "no kind {:?} is registered for version {:?}: it must be KubeSchedulerConfiguration of {GROUP}/v1",
            file.kind,
            file.api_version
        );
        ensure!(file.parallelism.is_none_or(|p| p > 0), "parallelism: Invalid value: {}: should be an integer value greater than zero", file.parallelism.unwrap_or(0));
        let percents = file.profiles.iter().filter_map(|p| p.percentage_of_nodes_to_score).chain(file.percentage_of_nodes_to_score);
        for percent in percents {
            ensure!((0..=100).contains(&percent), "percentageOfNodesToScore: Invalid value: {percent}: not in valid range [0-100]");
        }
        let initial = file.pod_initial_backoff_seconds.unwrap_or(1);
        let most = file.pod_max_backoff_seconds.unwrap_or(10);
        ensure!(initial > 0, "podInitialBackoffSeconds: Invalid value: {initial}: must be greater than 0");
        ensure!(most >= initial, "podMaxBackoffSeconds: Invalid value: {most}: must be greater than or equal to PodInitialBackoffSeconds");
        let mut names = std::collections::BTreeSet::new();
        for (i, profile) in file.profiles.iter().enumerate() {
            let name = profile.scheduler_name.as_deref().unwrap_or("");
            ensure!(file.profiles.len() == 1 || !name.is_empty(), "profiles[{i}].schedulerName: Required value");
            ensure!(names.insert(name), "profiles[{i}].schedulerName: Duplicate value: {name:?}");
            let mut configured = std::collections::BTreeSet::new();
            for (j, config) in profile.plugin_config.iter().enumerate() {
                ensure!(configured.insert(&config.name), "profiles[{i}].pluginConfig[{j}]: Duplicate value: {:?}", config.name);
            }
        }
        super::scheduler_extenders::check(&file.extenders)?;
        file.leader_election.settings()?;
        Ok(file)
    }
}

impl LeaderElection {
    /// Whether there is an election, the kind of lock, and the rest.
    pub fn settings(&self) -> Result<(bool, String, Settings)> {
        let time = |name: &str, text: &str| -> Result<Duration> { go_duration(text).with_context(|| format!("leaderElection.{name}: time: invalid duration {text:?}")) };
        let timing = Timing { lease: time("leaseDuration", &self.lease_duration)?, renew: time("renewDeadline", &self.renew_deadline)?, retry: time("retryPeriod", &self.retry_period)? };
        let settings = Settings { namespace: self.resource_namespace.clone(), name: self.resource_name.clone(), identity: String::new(), timing };
        Ok((self.leader_elect, self.resource_lock.clone(), settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    fn parsed(rest: &str) -> Result<File> {
        File::parse(&format!("{HEAD}{rest}"))
    }

    #[test]
    fn a_file_with_profiles_and_arguments_is_taken() {
        let file = parsed(
            "leaderElection:\n  leaderElect: false\nclientConnection:\n  kubeconfig: /etc/kubernetes/scheduler.conf\nprofiles:\n- schedulerName: default-scheduler\n- schedulerName: packer\n  plugins:\n    score:\n      disabled:\n      - name: NodeResourcesBalancedAllocation\n      enabled:\n      - name: NodeResourcesFit\n        weight: 5\n  pluginConfig:\n  - name: NodeResourcesFit\n    args:\n      scoringStrategy:\n        type: MostAllocated\n",
        )
        .expect("a good file");
        assert_eq!(file.client_connection.kubeconfig, "/etc/kubernetes/scheduler.conf");
        assert!(!file.leader_election.settings().expect("times").0);
        assert_eq!(file.profiles[1].plugins.score.enabled[0].weight, 5);
        assert_eq!(file.profiles[1].plugin_config[0].args["scoringStrategy"]["type"], "MostAllocated");
    }

    #[test]
    fn what_upstream_does_not_know_is_refused() {
        for (rest, word) in [("profils: []\n", "profils"), ("leaderElection:\n  leaseduration: 15s\n", "leaseduration"), ("profiles:\n- schedulerName: a\n  plugin: {}\n", "plugin")] {
            let error = format!("{:#}", parsed(rest).expect_err(rest));
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn another_version_or_kind_is_refused() {
        for head in ["", "apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n", "apiVersion: v1\nkind: Pod\n"] {
            assert!(File::parse(head).is_err(), "{head}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for rest in [
            "parallelism: 0\n",
            "percentageOfNodesToScore: 101\n",
            "podInitialBackoffSeconds: 20\n",
            "podInitialBackoffSeconds: 0\n",
            "profiles:\n- schedulerName: a\n- schedulerName: a\n",
            "profiles:\n- schedulerName: a\n- {}\n",
            "leaderElection:\n  leaseDuration: 15\n",
        ] {
            assert!(parsed(rest).is_err(), "{rest}");
        }
        assert!(parsed("").is_ok());
    }
}
