//! `kube-scheduler`: its flags and its configuration file as the settings of our scheduler.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use kube::Client;
use reconcile::leader::Settings;
use reconcile::{Informers, Tasks};
use serde_json::{Value, json};

use super::flags::Values;
use super::scheduler_config::File;

/// What the flags and the file say.
pub struct Setup {
    file: Option<File>,
    config: scheduler::Config,
}

impl Setup {
    /// Reads the file that the flags name, and checks everything.
    pub fn new(values: &Values) -> Result<Setup> {
        let file = values.given("config").map(|path| File::read(&path)).transpose()?;
        let qps = values.float("kube-api-qps");
        ensure!(qps >= 0.0, "kube-api-qps must not be below 0, but is {qps}");
        let config = match &file {
            Some(file) => file.scheduler()?,
            None => scheduler::Config::default(),
        };
        Ok(Setup { file, config })
    }

    /// The kubeconfig that the file names.
    pub fn kubeconfig(&self) -> Option<String> {
        self.file.as_ref().map(|f| f.client_connection.kubeconfig.clone()).filter(|path| !path.is_empty())
    }

    /// The election that the file asks for: whether, by what kind of lock, and the rest.
    pub fn election(&self) -> Option<(bool, String, Settings)> {
        // It has been checked when it was read.
        self.file.as_ref().and_then(|f| f.leader_election.settings().ok())
    }

    /// The configuration as a file, for `--write-config-to`.
    pub fn written(&self) -> Result<String> {
        Ok(serde_saphyr::to_string(&self.described())?)
    }

    /// What `/configz` answers.
    pub fn configz(&self) -> Value {
        json!({"kubescheduler.config.k8s.io": self.described()})
    }

    fn described(&self) -> Value {
        let mut value = serde_json::to_value(self.file.clone().unwrap_or_default()).unwrap_or_default();
        value["apiVersion"] = json!("kubescheduler.config.k8s.io/v1");
        value["kind"] = json!("KubeSchedulerConfiguration");
        if value["profiles"].as_array().is_none_or(Vec::is_empty) {
            value["profiles"] = json!([{"schedulerName": "default-scheduler"}]);
        }
        value
    }

    /// Starts the scheduler, and says what runs.
    pub fn start(&self, client: &Client, tasks: &Tasks) -> BTreeSet<String> {
        let informers = Informers::new(client.clone(), tasks.clone());
        scheduler::start(client.clone(), &informers, tasks, self.config.clone());
        BTreeSet::from(["scheduler".to_string()])
    }
}
