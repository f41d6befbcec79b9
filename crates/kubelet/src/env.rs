//! The environment of a container: expansion of `$(VAR)`, service variables, values from elsewhere. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kube::ResourceExt;

use crate::pod::{self, NodeFacts};
use crate::resources;

/// Config maps and secrets that a container names, fetched before. Absent: there is none.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: HashMap<String, ConfigMap>,
    pub secrets: HashMap<String, Secret>,
}

/// The names of config maps and secrets that a container's environment needs.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    for names in [&mut maps, &mut secrets] {
        names.sort();
        names.dedup();
    }
    (maps, secrets)
}

/// The environment in order. An error is the message of a `CreateContainerConfigError`.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    node: &NodeFacts,
    allocatable: &resources::List,
    services: &[Arc<Service>],
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let links = pod::spec(pod).enable_service_links.unwrap_or(true);
    let service_variables = service_variables(services, &namespace, links);
    // In the order of first appearance, a later value wins.
    let mut order: Vec<String> = Vec::new();
    let mut values: HashMap<String, String> = HashMap::new();
    let mut set = |name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    map.data.iter().flatten().for_each(|(k, v)| set(format!("{prefix}{k}"), v.clone()));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {} not found", pod::go_quote(&reference.name))),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (k, v) in secret.data.iter().flatten() {
                        set(format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {} not found", pod::go_quote(&reference.name))),
            }
        }
    }
    let mut out = Vec::new();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => {
                // Later variables may refer to earlier ones and to services.
                Some(expand(value, |name| values.get(name).or_else(|| service_variables.get(name)).cloned()))
            }
            (_, None) => Some(String::new()),
            (_, Some(from)) => {
                if let Some(field) = &from.field_ref {
                    let value = pod::field(pod, &field.field_path, node)
                        .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?;
                    Some(value)
                } else if let Some(resource) = &from.resource_field_ref {
                    let owner = match &resource.container_name {
                        Some(name) if !name.is_empty() => pod::member(pod, name).map(|m| m.spec),
                        _ => Some(container),
                    };
                    let owner = owner.ok_or_else(|| "container not found".to_string())?;
                    let value = resources::field(owner, &resource.resource, resource.divisor.as_ref(), allocatable);
                    Some(value.ok_or_else(|| format!("unsupported container resource : {}", resource.resource))?)
                } else if let Some(key) = &from.config_map_key_ref {
                    let optional = key.optional == Some(true);
                    match sources.config_maps.get(&key.name) {
                        None if optional => None,
                        None => return Err(format!("configmap {} not found", pod::go_quote(&key.name))),
                        Some(map) => match map.data.as_ref().and_then(|d| d.get(&key.key)) {
                            Some(value) => Some(value.clone()),
                            None if optional => None,
                            None => return Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name)),
                        },
                    }
                } else if let Some(key) = &from.secret_key_ref {
                    let optional = key.optional == Some(true);
                    match sources.secrets.get(&key.name) {
                        None if optional => None,
                        None => return Err(format!("secret {} not found", pod::go_quote(&key.name))),
                        Some(secret) => match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
                            Some(value) => Some(String::from_utf8_lossy(&value.0).into_owned()),
                            None if optional => None,
                            None => return Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)),
                        },
                    }
                } else {
                    Some(String::new())
                }
            }
        };
        if let Some(value) = value
            && values.insert(variable.name.clone(), value).is_none()
        {
            order.push(variable.name.clone());
        }
    }
    for name in order {
        let value = values.remove(&name).unwrap_or_default();
        out.push((name, value));
    }
    let known: std::collections::HashSet<String> = out.iter().map(|(n, _)| n.clone()).collect();
    out.extend(service_variables.into_iter().filter(|(name, _)| !known.contains(name)));
    Ok(out)
}

/// Replaces `$(NAME)`; `$$` is a dollar; what is not known stays.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(')
            && let Some(end) = inner.find(')')
        {
            let name = &inner[..end];
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = &inner[end + 1..];
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// The variables that Docker links had: for the services of the namespace, and for `kubernetes` always.
fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let master = |s: &Service| s.namespace().as_deref() == Some("default") && s.name_any() == "kubernetes";
    let mut chosen: BTreeMap<String, &Arc<Service>> = BTreeMap::new();
    for service in services {
        if master(service) && !chosen.contains_key("kubernetes") {
            chosen.insert("kubernetes".into(), service);
        } else if links && service.namespace().as_deref() == Some(namespace) {
            chosen.insert(service.name_any(), service);
        }
    }
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" || ports.is_empty() {
            continue;
        }
        let upper = |s: &str| s.to_uppercase().replace('-', "_");
        let base = upper(&name);
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_string() };
        variables.insert(format!("{base}_SERVICE_HOST"), ip.to_string());
        variables.insert(format!("{base}_SERVICE_PORT"), ports[0].port.to_string());
        for (i, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                variables.insert(format!("{base}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if i == 0 {
                variables.insert(format!("{base}_PORT"), url.clone());
            }
            let prefix = format!("{base}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.insert(prefix.clone(), url);
            variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{prefix}_PORT"), port.port.to_string());
            variables.insert(format!("{prefix}_ADDR"), ip.to_string());
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let check = |text: &str, expect: &str| {
            assert_eq!(expand(text, |n| (n == "A").then(|| "1".to_string())), expect, "{text}");
        };
        check("$(A)", "1");
        check("x$(A)y$(B)", "x1y$(B)");
        check("$$(A)", "$(A)");
        check("$A $( $(A", "$A $( $(A");
        check("100$", "100$");
    }

    fn run(container: serde_json::Value, sources: &Sources) -> Result<Vec<(String, String)>, String> {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80, "name": "http", "protocol": "TCP"}]},
        }))
        .unwrap();
        environment(&pod, container, sources, &NodeFacts::default(), &resources::List::new(), &[Arc::new(service)])
    }

    #[test]
    fn values_come_from_everywhere() {
        let mut sources = Sources::default();
        let map = serde_json::from_value(serde_json::json!({"data": {"a": "1", "b": "2"}})).unwrap();
        sources.config_maps.insert("m".into(), map);
        let secret = serde_json::from_value(serde_json::json!({"data": {"pw": "aHVudGVy"}})).unwrap();
        sources.secrets.insert("s".into(), secret);
        let all = run(
            serde_json::json!({"name": "c",
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
                "env": [
                    {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                    {"name": "URL", "value": "$(PW)@$(MY_DB_SERVICE_HOST):$(P_a)"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y", "optional": true}}},
                    {"name": "P_b", "value": "mine"},
                ]}),
            &sources,
        )
        .unwrap();
        let get = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("URL"), Some("hunter@10.96.0.7:1"));
        assert_eq!(get("NAME"), Some("p"));
        assert_eq!(get("P_b"), Some("mine"));
        assert_eq!(get("GONE"), None);
        assert_eq!(get("MY_DB_PORT_80_TCP"), Some("tcp://10.96.0.7:80"));
        assert_eq!(get("MY_DB_SERVICE_PORT_HTTP"), Some("80"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |env: serde_json::Value| run(serde_json::json!({"name": "c", "env": [env]}), &Sources::default()).unwrap_err();
        let key = |kind: &str| serde_json::json!({"name": "A", "valueFrom": {kind: {"name": "x", "key": "y"}}});
        assert_eq!(missing(key("configMapKeyRef")), "configmap \"x\" not found");
        assert_eq!(missing(key("secretKeyRef")), "secret \"x\" not found");
    }
}
