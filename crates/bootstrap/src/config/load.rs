//! Files of several YAML documents, read in either version of the API and written in the newest.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::types::*;
use crate::error::{Doing, Result, refused};

/// The version that is written.
pub const GROUP_VERSION: &str = "kubeadm.k8s.io/v1beta4";
const OLD: &str = "kubeadm.k8s.io/v1beta3";

/// What `init` works from: its own configuration, the cluster's, and those of components.
#[derive(Debug, Clone, Default)]
pub struct InitConfig {
    /// This machine's.
    pub init: InitConfiguration,
    /// The cluster's.
    pub cluster: ClusterConfiguration,
    /// A KubeletConfiguration that the user gave.
    pub kubelet: Option<Value>,
    /// A KubeProxyConfiguration that the user gave.
    pub proxy: Option<Value>,
}

/// The documents of a file, all of the newest version.
#[derive(Debug, Default)]
pub struct Documents {
    all: Vec<Value>,
    /// `apiServer.timeoutForControlPlane`, which has moved to `timeouts` of `init` and `join`.
    timeout: Option<String>,
    /// Whether any was of an older version.
    pub migrated: bool,
}

impl Documents {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Documents> {
        let text = std::fs::read_to_string(path).doing(|| format!("unable to read config from {:?} ", path.display().to_string()))?;
        Documents::parse(&text)
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Documents> {
        let mut documents = Documents::default();
        for part in split(text) {
            let value: Value = serde_saphyr::from_str(&part).doing(|| "the configuration is no YAML".into())?;
            if !value.is_null() {
                documents.add(value)?;
            }
        }
        if documents.all.is_empty() {
            return refused("the configuration holds no document");
        }
        Ok(documents)
    }

    fn add(&mut self, mut value: Value) -> Result<()> {
        let (version, kind) = (text(&value, "apiVersion"), text(&value, "kind"));
        if version.is_empty() || kind.is_empty() {
            return refused("invalid configuration: kind and apiVersion is mandatory information that must be specified");
        }
        if self.all.iter().any(|other| other["kind"] == kind) {
            return refused(format!("invalid configuration: kind {kind:?} is specified twice in YAML file"));
        }
        if let Some(number) = version.strip_prefix("kubeadm.k8s.io/") {
            match number {
                "v1beta4" => {}
                "v1beta3" => {
                    self.migrated = true;
                    self.migrate(&kind, &mut value);
                }
                "v1alpha1" | "v1alpha2" | "v1alpha3" | "v1beta1" | "v1beta2" => {
                    return refused(format!(
                        "your configuration file uses an old API spec: {version:?} (kind: {kind:?}). Please use a kubeadm that knows both to migrate \
                         it with `kubeadm config migrate --old-config old-config-file --new-config new-config-file`: this one reads {OLD:?} and {GROUP_VERSION:?}"
                    ));
                }
                _ => return refused(format!("no kind {kind:?} is registered for version {version:?}: this knarr reads {OLD:?} and {GROUP_VERSION:?}")),
            }
        }
        self.all.push(value);
        Ok(())
    }

    /// v1beta3 → v1beta4: flags are lists and not maps, and timeouts are in a place of their own.
    fn migrate(&mut self, kind: &str, value: &mut Value) {
        value["apiVersion"] = GROUP_VERSION.into();
        match kind {
            "ClusterConfiguration" => {
                for path in ["/apiServer", "/controllerManager", "/scheduler", "/etcd/local"] {
                    listed(value.pointer_mut(path), "extraArgs");
                }
                if let Some(server) = value.get_mut("apiServer").and_then(Value::as_object_mut) {
                    self.timeout = server.remove("timeoutForControlPlane").and_then(|t| t.as_str().map(String::from));
                }
            }
            "InitConfiguration" => listed(value.get_mut("nodeRegistration"), "kubeletExtraArgs"),
            "JoinConfiguration" => {
                listed(value.get_mut("nodeRegistration"), "kubeletExtraArgs");
                let timeout = value.get_mut("discovery").and_then(Value::as_object_mut).and_then(|d| d.remove("timeout"));
                if let Some(timeout) = timeout {
                    value["timeouts"] = json!({"discovery": timeout});
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, kind: &str) -> Option<Value> {
        let at = self.all.iter().position(|d| d["kind"] == kind)?;
        Some(self.all.remove(at))
    }

    fn of<T: DeserializeOwned>(&mut self, kind: &str) -> Result<Option<T>> {
        match self.take(kind) {
            None => Ok(None),
            Some(value) => serde_json::from_value(value).doing(|| format!("the configuration's {kind} cannot be used")).map(Some),
        }
    }

    fn rest(&self) {
        for left in &self.all {
            eprintln!("[config] WARNING: Ignored configuration document with GroupVersionKind {}, Kind={}", text(left, "apiVersion"), text(left, "kind"));
        }
    }

    /// What `init` needs; at least one of its two kinds must be there.
    pub fn init(mut self) -> Result<InitConfig> {
        let (init, cluster) = (self.of::<InitConfiguration>("InitConfiguration")?, self.of::<ClusterConfiguration>("ClusterConfiguration")?);
        if init.is_none() && cluster.is_none() {
            return refused("no InitConfiguration or ClusterConfiguration kind was found in the configuration file");
        }
        let mut config =
            InitConfig { init: init.unwrap_or_default(), cluster: cluster.unwrap_or_default(), kubelet: self.take("KubeletConfiguration"), proxy: self.take("KubeProxyConfiguration") };
        if let Some(timeout) = self.timeout.take() {
            config.init.timeouts.get_or_insert_default().control_plane_component_health_check = timeout;
        }
        // The same file may hold what a node joins with.
        self.take("JoinConfiguration");
        self.rest();
        Ok(config)
    }

    /// What `join` needs.
    pub fn join(mut self) -> Result<JoinConfiguration> {
        let Some(config) = self.of("JoinConfiguration")? else {
            return refused("no JoinConfiguration found in the supplied config");
        };
        Ok(config)
    }

    /// What `reset` needs.
    pub fn reset(mut self) -> Result<ResetConfiguration> {
        let Some(config) = self.of("ResetConfiguration")? else {
            return refused("no ResetConfiguration found in the supplied config");
        };
        Ok(config)
    }

    /// Whether there is a document of this kind.
    pub fn has(&self, kind: &str) -> bool {
        self.all.iter().any(|d| d["kind"] == kind)
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().into()
}

/// The documents of a YAML stream, as texts.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    parts.retain(|p| p.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')));
    parts
}

/// A map of flags becomes a list of names and values.
fn listed(owner: Option<&mut Value>, key: &str) {
    let Some(flags) = owner.and_then(|o| o.get_mut(key)) else { return };
    if let Value::Object(map) = flags {
        *flags = std::mem::take(map).into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    }
}

/// A document of the newest version, as YAML with its keys in order.
pub fn to_yaml<T: Serialize>(kind: &str, config: &T) -> Result<String> {
    let mut value = serde_json::to_value(config).doing(|| format!("writing the {kind}"))?;
    if let Value::Object(map) = &mut value {
        map.insert("apiVersion".into(), GROUP_VERSION.into());
        map.insert("kind".into(), kind.into());
    } else {
        value = Value::Object(Map::new());
    }
    serde_saphyr::to_string(&value).doing(|| format!("writing the {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_FILE: &str = "apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
networking: {podSubnet: 10.244.0.0/16}
apiServer:
  timeoutForControlPlane: 7m0s
  extraArgs: {audit-log-path: /var/log/audit, v: '2'}
---
# only a comment
---
apiVersion: kubeadm.k8s.io/v1beta3
kind: InitConfiguration
nodeRegistration:
  kubeletExtraArgs: {node-ip: 10.0.0.1}
";

    #[test]
    fn the_older_version_is_brought_forward() {
        let documents = Documents::parse(OLD_FILE).expect("read");
        assert!(documents.migrated);
        let config = documents.init().expect("a configuration");
        assert_eq!(config.cluster.networking.pod_subnet, "10.244.0.0/16");
        let flags: Vec<_> = config.cluster.api_server.extra_args.iter().map(|a| (a.name.as_str(), a.value.as_str())).collect();
        assert_eq!(flags, [("audit-log-path", "/var/log/audit"), ("v", "2")]);
        assert_eq!(config.init.timeouts.expect("moved").control_plane_component_health_check, "7m0s");
        assert_eq!(config.init.node_registration.kubelet_extra_args[0].name, "node-ip");
        let again = Documents::parse(&to_yaml("ClusterConfiguration", &config.cluster).expect("written")).expect("read again");
        assert!(!again.migrated);
        assert_eq!(again.init().expect("the same").cluster.api_server, config.cluster.api_server);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = |text: &str| match Documents::parse(text).and_then(Documents::init) {
            Ok(config) => panic!("{config:?}"),
            Err(error) => error.chain(),
        };
        assert!(error("kind: ClusterConfiguration").contains("apiVersion is mandatory"));
        assert!(error("apiVersion: kubeadm.k8s.io/v1beta1\nkind: InitConfiguration").contains("old API spec"));
        assert!(error("apiVersion: kubeadm.k8s.io/v2\nkind: InitConfiguration").contains("no kind \"InitConfiguration\" is registered"));
        assert!(error("apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nnodeRegistraton: {}").contains("unknown field `nodeRegistraton`"));
        assert!(error("apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration").contains("no InitConfiguration or ClusterConfiguration"));
        let twice = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n";
        assert!(error(&format!("{twice}---\n{twice}")).contains("twice"));
    }
}
