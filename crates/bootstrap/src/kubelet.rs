//! The kubelets' configuration: what the cluster publishes, and upstream's files of it on this machine.

use serde_json::{Value, json};

use crate::certs::nth_address;
use crate::config::{InitConfig, NodeRegistration};
use crate::error::{Doing, Result};
use crate::files::{self, Place};
use crate::patches::Patches;
use crate::preflight::Findings;
use crate::process;

/// Flags of kubelets that the built-in one knows, or need not be told.
const TAKEN: [&str; 8] =
    ["node-ip", "node-labels", "register-with-taints", "hostname-override", "container-runtime-endpoint", "cgroup-driver", "pod-infra-container-image", "v"];

/// The configuration, with what the user gave over upstream's defaults.
fn configuration(config: &InitConfig) -> Result<Value> {
    let net = &config.cluster.networking;
    let mut all = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"cacheTTL": "0s", "enabled": true},
            "x509": {"clientCAFile": format!("{}/ca.crt", config.cluster.certificates_dir)}},
        "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"}},
        "cgroupDriver": "systemd", "clusterDNS": [nth_address(&net.service_subnet, 10)?], "clusterDomain": net.dns_domain,
        "healthzBindAddress": "127.0.0.1", "healthzPort": 10248, "rotateCertificates": true, "staticPodPath": "/etc/kubernetes/manifests",
    });
    if let Some(given) = &config.kubelet {
        merge(&mut all, given);
    }
    Ok(all)
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Who makes control groups, by a configuration of kubelets.
pub fn cgroup_driver(yaml: &str) -> String {
    let all: Value = serde_saphyr::from_str(yaml).unwrap_or_default();
    all["cgroupDriver"].as_str().unwrap_or("systemd").into()
}

/// The same as YAML.
pub fn yaml(config: &InitConfig) -> Result<String> {
    serde_saphyr::to_string(&configuration(config)?).doing(|| "writing the KubeletConfiguration".into())
}

/// Writes upstream's files. Knarr's kubelet is told in the settings of its process; these are for people, and for
/// another kubelet in its place.
pub fn write_files(place: &Place, node: &NodeRegistration, worker: bool, config: &str) -> Result<()> {
    let path = place.kubelet.join("kubeadm-flags.env");
    println!("[kubelet-start] Writing kubelet environment file with flags to file {:?}", path.display().to_string());
    let mut flags = vec![format!("--container-runtime-endpoint={}", node.cri_socket)];
    if let Some(taints) = node.taints.as_ref().filter(|t| worker && !t.is_empty()) {
        flags.push(format!("--register-with-taints={}", taints.iter().map(process::taint).collect::<Vec<_>>().join(",")));
    }
    flags.push(format!("--hostname-override={}", node.name));
    flags.extend(node.kubelet_extra_args.iter().map(|f| format!("--{}={}", f.name, f.value)));
    files::write(&path, format!("KUBELET_KUBEADM_ARGS={:?}\n", flags.join(" ")).as_bytes(), 0o644)?;
    let path = place.kubelet.join("config.yaml");
    println!("[kubelet-start] Writing kubelet configuration to file {:?}", path.display().to_string());
    files::write(&path, config.as_bytes(), 0o644)
}

/// The files of a first control plane's kubelet.
pub fn start_files(place: &Place, config: &InitConfig, patches: &Patches) -> Result<()> {
    write_files(place, &config.init.node_registration, false, &patches.apply(&yaml(config)?)?)
}

/// Flags that nobody reads.
pub fn unused(findings: &mut Findings, node: &NodeRegistration) {
    for flag in node.kubelet_extra_args.iter().filter(|f| !TAKEN.contains(&f.name.as_str())) {
        findings.warn("ExtraArgs", format!("nodeRegistration.kubeletExtraArgs: --{} has no effect: the kubelet is part of the node's own process", flag.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_gave_goes_before_the_defaults() {
        let mut config = InitConfig::default();
        config.cluster.networking.service_subnet = "10.96.0.0/12".into();
        config.kubelet = Some(json!({"maxPods": 50, "authentication": {"anonymous": {"enabled": true}}}));
        let all = configuration(&config).expect("a configuration");
        assert_eq!((&all["maxPods"], &all["authentication"]["anonymous"]["enabled"]), (&json!(50), &json!(true)));
        assert_eq!((&all["authentication"]["webhook"]["enabled"], &all["clusterDNS"][0]), (&json!(true), &json!("10.96.0.10")));
    }
}
