//! The settings of the node's own process, in the form of its configuration file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::config::{Arg, ClusterConfiguration, InitConfig, NodeRegistration, Taint};
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::Machine;

/// A taint as upstream writes it: `key=value:effect`.
pub fn taint(taint: &Taint) -> String {
    match taint.value.as_str() {
        "" => format!("{}:{}", taint.key, taint.effect),
        value => format!("{}={value}:{}", taint.key, taint.effect),
    }
}

/// Reads `key=value:effect`.
fn parse_taint(text: &str) -> Option<Taint> {
    let (left, effect) = text.rsplit_once(':')?;
    let (key, value) = left.split_once('=').unwrap_or((left, ""));
    Some(Taint { key: key.into(), value: value.into(), effect: effect.into(), time_added: None })
}

/// The value of a kubelet's flag; of the last one if there are several.
pub fn flag<'a>(flags: &'a [Arg], name: &str) -> Option<&'a str> {
    flags.iter().rev().find(|f| f.name == name).map(|f| f.value.as_str())
}

fn common(machine: &Machine<'_>, node: &NodeRegistration, cluster: &ClusterConfiguration, address: Option<&str>) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let mut put = |name: &str, value: Value| all.insert(name.into(), value);
    put("data-dir", machine.host.data_dir().display().to_string().into());
    put("run-dir", machine.host.run_dir().display().to_string().into());
    put("node-name", flag(&node.kubelet_extra_args, "hostname-override").unwrap_or(&node.name).into());
    if let Some(address) = flag(&node.kubelet_extra_args, "node-ip").or(address) {
        put("node-ip", address.into());
    }
    put("cluster-cidr", cluster.networking.pod_subnet.clone().into());
    put("service-cidr", cluster.networking.service_subnet.clone().into());
    put("cluster-domain", cluster.networking.dns_domain.clone().into());
    Ok(all)
}

/// What the node says of itself when it registers.
fn registration(node: &NodeRegistration, taints: &[Taint]) -> Result<(Value, Value)> {
    let mut labels = Map::new();
    for pair in flag(&node.kubelet_extra_args, "node-labels").unwrap_or_default().split(',').filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return refused(format!("kubeletExtraArgs: node-labels {pair:?} is no key=value"));
        };
        labels.insert(key.into(), value.into());
    }
    let mut all = taints.to_vec();
    for text in flag(&node.kubelet_extra_args, "register-with-taints").unwrap_or_default().split(',').filter(|t| !t.is_empty()) {
        match parse_taint(text) {
            Some(taint) => all.push(taint),
            None => return refused(format!("kubeletExtraArgs: register-with-taints {text:?} is no key=value:effect")),
        }
    }
    let taints = serde_json::to_value(all).doing(|| "writing taints".into())?;
    Ok((labels.into(), taints))
}

/// The member of etcd beside a control plane.
#[derive(Debug, Clone, Default)]
pub struct Member {
    /// Its program; the first one on the path when none.
    pub program: Option<PathBuf>,
    /// Members of the cluster that it joins; none where it begins one.
    pub join: Vec<String>,
}

/// A control plane's.
pub fn server(machine: &Machine<'_>, config: &InitConfig, certificates: &Path, member: &Member) -> Result<Value> {
    let (init, cluster) = (&config.init, &config.cluster);
    let mut all = common(machine, &init.node_registration, cluster, Some(&init.local_api_endpoint.advertise_address))?;
    let mut put = |name: &str, value: Value| all.insert(name.into(), value);
    put("secure-port", init.local_api_endpoint.bind_port.into());
    put("certificate-validity-period", cluster.certificate_validity_period.clone().into());
    let names = ["audit-policy-file", "audit-log-path", "audit-log-maxage", "audit-log-maxbackup", "audit-log-maxsize", "audit-webhook-config-file"];
    for name in names.into_iter().chain(["authentication-config", "authorization-config"]) {
        if let Some(value) = flag(&cluster.api_server.extra_args, name) {
            let number = name.starts_with("audit-log-max").then(|| value.parse::<u32>().ok()).flatten();
            put(name, number.map_or(value.into(), Value::from));
        }
    }
    if let Some(external) = &cluster.etcd.external {
        put("etcd-servers", external.endpoints.clone().into());
        for (name, path) in [("etcd-cafile", &external.ca_file), ("etcd-certfile", &external.cert_file), ("etcd-keyfile", &external.key_file)] {
            if !path.is_empty() {
                put(name, path.clone().into());
            }
        }
    }
    if cluster.etcd.local.is_some() {
        put("etcd", true.into());
        if let Some(program) = &member.program {
            put("etcd-program", program.display().to_string().into());
        }
        if !member.join.is_empty() {
            put("etcd-join", member.join.clone().into());
        }
    }
    // Taints come with the phase that marks the node, as upstream has it.
    let (labels, taints) = registration(&init.node_registration, &[])?;
    put("kubeadm", json!({"pki-dir": certificates.display().to_string(), "node-labels": labels, "taints": taints}));
    Ok(all.into())
}

/// A worker's.
pub fn agent(machine: &Machine<'_>, node: &NodeRegistration, cluster: &ClusterConfiguration) -> Result<Value> {
    let mut all = common(machine, node, cluster, None)?;
    let (labels, taints) = registration(node, node.taints.as_deref().unwrap_or_default())?;
    let kubeconfig = machine.place.conf("kubelet").display().to_string();
    all.insert("kubeadm".into(), json!({"kubeconfig": kubeconfig, "node-labels": labels, "taints": taints}));
    Ok(all.into())
}

/// Writes the settings.
pub fn write(machine: &Machine<'_>, settings: &Value) -> Result<()> {
    let text = serde_saphyr::to_string(settings).doing(|| "writing the settings of the node's process".into())?;
    files::write(&machine.place.process(), text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_by_text() {
        for text in ["a/b:NoSchedule", "k=v:NoExecute"] {
            assert_eq!(taint(&parse_taint(text).expect("a taint")), text);
        }
        assert!(parse_taint("k=v").is_none());
    }

    #[test]
    fn what_kubelets_flags_say_of_the_node() {
        let arg = |name: &str, value: &str| Arg { name: name.into(), value: value.into() };
        let node = NodeRegistration { kubelet_extra_args: vec![arg("node-labels", "a=1,b/c="), arg("register-with-taints", "k=v:NoSchedule"), arg("node-ip", "1"), arg("node-ip", "2")], ..Default::default() };
        let (labels, taints) = registration(&node, &[]).expect("fine");
        assert_eq!(labels, json!({"a": "1", "b/c": ""}));
        assert_eq!(taints, json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]));
        assert_eq!(flag(&node.kubelet_extra_args, "node-ip"), Some("2"), "the last one counts");
        let bad = NodeRegistration { kubelet_extra_args: vec![arg("node-labels", "a")], ..Default::default() };
        assert!(registration(&bad, &[]).is_err());
    }
}
