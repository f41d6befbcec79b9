//! The objects every cluster has from its first second: system namespaces, priority classes, the
//! default RBAC policy, the service `kubernetes`. Missing ones are made at start, changed ones
//! brought back where upstream does; on a restart of a whole cluster this only compares.

mod join;
pub(crate) mod policy;

use std::net::IpAddr;

use api::status;
use apiserver::Backend;
use apiserver::types::{Resource, Status};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::allocation::addresses::ip_address;
use crate::authn::FrontProxy;
use crate::util::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, CONFIG_MAPS, IP_ADDRESSES, NAMESPACES, PRIORITY_CLASSES, ROLE_BINDINGS, ROLES,
    SERVICE_CIDRS, SERVICES, items, text,
};
use policy::Policy;

/// What the built-in objects depend on.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub service_cidr: String,
    /// The address of the service `kubernetes`.
    pub service_ip: IpAddr,
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    pub client_ca_pem: Option<String>,
    pub front_proxy: Option<FrontProxy>,
    pub cluster_ca_pem: String,
    pub join_token: Option<String>,
}

/// Namespaces first (others live in them), then everything at once.
pub(crate) async fn run(backend: &Backend, policy: &Policy, facts: &Facts) -> Result<(), String> {
    let namespaces = ["default", "kube-node-lease", "kube-public", "kube-system"].map(|name| {
        ensure(backend, *NAMESPACES, namespace(name), keep)
    });
    all(join_all(namespaces).await)?;
    let rbac: [(&'static Resource, &[Value], Reconcile); 4] = [
        (*CLUSTER_ROLES, &policy.cluster_roles, reconcile_role),
        (*ROLES, &policy.roles, reconcile_role),
        (*CLUSTER_ROLE_BINDINGS, &policy.cluster_role_bindings, reconcile_binding),
        (*ROLE_BINDINGS, &policy.role_bindings, reconcile_binding),
    ];
    let mut work = Vec::new();
    for (resource, objects, reconcile) in rbac {
        for object in objects {
            work.push(ensure(backend, resource, object.clone(), reconcile));
        }
    }
    for class in priority_classes() {
        work.push(ensure(backend, *PRIORITY_CLASSES, class, keep));
    }
    work.push(ensure(backend, *CONFIG_MAPS, authentication(facts), reconcile_data));
    if let Some(token) = &facts.join_token {
        let host = match facts.advertise_address {
            IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        let server = format!("https://{host}:{}", facts.secure_port);
        for (resource, object) in join::objects(token, &server, &facts.cluster_ca_pem) {
            work.push(ensure(backend, resource, object, reconcile_data));
        }
    }
    all(join_all(work).await)?;
    keep_service(backend, facts).await?;
    crate::strategy::rbac::aggregate(backend).await;
    Ok(())
}

/// Brings up to date what tells extension API servers whose client certificates to trust.
pub(crate) async fn publish_authentication(backend: &Backend, facts: &Facts) -> Result<(), String> {
    ensure(backend, *CONFIG_MAPS, authentication(facts), reconcile_data).await.map_err(|e| e.message)
}

/// The default range of cluster addresses and the service `kubernetes`, which come back when somebody removes them.
pub(crate) async fn keep_service(backend: &Backend, facts: &Facts) -> Result<(), String> {
    let is_new = !backend.reader.has(*SERVICES, "default", "kubernetes");
    let range = ensure(backend, *SERVICE_CIDRS, service_cidr(facts), keep).await;
    let address = match is_new {
        true => ensure(backend, *IP_ADDRESSES, ip_address(facts.service_ip, "default", "kubernetes"), keep).await,
        false => Ok(()),
    };
    let service = ensure(backend, *SERVICES, service(facts), keep).await;
    all(vec![range, address, service])
}

fn all(results: Vec<Result<(), Status>>) -> Result<(), String> {
    let errors: Vec<String> = results.into_iter().filter_map(Result::err).map(|e| e.message).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// Changes what is there to what it must be.
type Reconcile = fn(&mut Value, &Value);

fn keep(_: &mut Value, _: &Value) {}

async fn ensure(backend: &Backend, resource: &'static Resource, wanted: Value, reconcile: Reconcile) -> Result<(), Status> {
    let namespace = text(&wanted, "/metadata/namespace").to_owned();
    let name = text(&wanted, "/metadata/name").to_owned();
    if let Some(current) = backend.reader.get(resource, &namespace, &name) {
        let mut changed = (*current).clone();
        reconcile(&mut changed, &wanted);
        if changed == *current {
            return Ok(());
        }
        // A binding's role cannot change: it is made anew.
        if changed.get("roleRef") != current.get("roleRef") {
            backend.writer.delete(resource, &namespace, &name, &Value::Null).await?;
            return backend.writer.create(resource, wanted).await.map(drop);
        }
        let mut change = |object: &mut Value| -> Result<(), Status> {
            reconcile(object, &wanted);
            Ok(())
        };
        return backend.writer.modify(resource, &namespace, &name, &mut change).await.map(drop);
    }
    match backend.writer.create(resource, wanted).await {
        Err(e) if e.code == status::already_exists("", "", "").code => Ok(()),
        other => other.map(drop),
    }
}

fn auto_update(current: &Value) -> bool {
    current.pointer("/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate").is_none_or(|v| v != "false")
}

/// Adds missing labels and annotations.
fn reconcile_metadata(current: &mut Value, wanted: &Value) {
    for key in ["labels", "annotations"] {
        for (k, v) in wanted["metadata"][key].as_object().into_iter().flatten() {
            if current["metadata"][key].get(k).is_none() {
                current["metadata"][key][k] = v.clone();
            }
        }
    }
}

/// Adds missing rules, keeps additional ones.
fn reconcile_role(current: &mut Value, wanted: &Value) {
    if !auto_update(current) {
        return;
    }
    reconcile_metadata(current, wanted);
    if let Some(rule) = wanted.get("aggregationRule") {
        // The rules themselves are the aggregation controller's.
        if current.get("aggregationRule").is_none() {
            current["aggregationRule"] = rule.clone();
        }
        return;
    }
    use crate::authz::rules::Rule;
    let has: Vec<Rule> = items(current, "/rules").map(Rule::from_value).collect();
    let missing: Vec<Value> = items(wanted, "/rules").filter(|r| !Rule::from_value(r).covered_by(&has)).cloned().collect();
    if !missing.is_empty() {
        let mut rules: Vec<Value> = items(current, "/rules").cloned().collect();
        rules.extend(missing);
        current["rules"] = rules.into();
    }
}

/// Adds missing subjects, keeps additional ones.
fn reconcile_binding(current: &mut Value, wanted: &Value) {
    if !auto_update(current) {
        return;
    }
    reconcile_metadata(current, wanted);
    if current["roleRef"] != wanted["roleRef"] {
        current["roleRef"] = wanted["roleRef"].clone();
    }
    let key = |s: &Value| [text(s, "/kind"), text(s, "/namespace"), text(s, "/name")].map(str::to_owned);
    let has: Vec<[String; 3]> = items(current, "/subjects").map(key).collect();
    let missing: Vec<Value> = items(wanted, "/subjects").filter(|s| !has.contains(&key(s))).cloned().collect();
    if !missing.is_empty() {
        let mut subjects: Vec<Value> = items(current, "/subjects").cloned().collect();
        subjects.extend(missing);
        current["subjects"] = subjects.into();
    }
}

fn reconcile_data(current: &mut Value, wanted: &Value) {
    for (key, value) in wanted["data"].as_object().into_iter().flatten() {
        current["data"][key] = value.clone();
    }
}

/// A new namespace.
pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name, "generation": 1},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        })
    };
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

fn service_cidr(facts: &Facts) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": [facts.service_cidr]},
        "status": {},
    })
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn service(facts: &Facts) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": facts.service_ip, "clusterIPs": [facts.service_ip],
            "ipFamilies": [family(facts.service_ip)], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": facts.secure_port}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// How extension API servers learn whose client certificates to trust.
fn authentication(facts: &Facts) -> Value {
    let mut data = json!({});
    if let Some(ca) = &facts.client_ca_pem {
        data["client-ca-file"] = ca.as_str().into();
    }
    if let Some(proxy) = &facts.front_proxy {
        let list = |names: &[String]| json!(json!(names).to_string());
        data["requestheader-client-ca-file"] = proxy.ca_pem.as_str().into();
        data["requestheader-allowed-names"] = list(&proxy.allowed_names);
        data["requestheader-username-headers"] = list(&proxy.username_headers);
        if !proxy.uid_headers.is_empty() {
            data["requestheader-uid-headers"] = list(&proxy.uid_headers);
        }
        data["requestheader-group-headers"] = list(&proxy.group_headers);
        data["requestheader-extra-headers-prefix"] = list(&proxy.extra_prefixes);
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::Reader;

    #[test]
    fn makes_everything_and_then_leaves_it() {
        let objects = Objects::new();
        let facts = Facts {
            service_cidr: "10.96.0.0/16".into(),
            service_ip: "10.96.0.1".parse().unwrap(),
            advertise_address: "192.0.2.1".parse().unwrap(),
            secure_port: 6443,
            client_ca_pem: Some("CA".into()),
            front_proxy: Some(FrontProxy::of_cluster("FRONT".into())),
            cluster_ca_pem: "CA".into(),
            join_token: Some("abcdef.0123456789abcdef".into()),
        };
        let policy = policy::policy();
        block_on(run(&objects.backend(), &policy, &facts)).unwrap();
        let version = objects.version(&PRIORITY_CLASSES);
        block_on(run(&objects.backend(), &policy, &facts)).unwrap();
        assert_eq!(objects.version(&PRIORITY_CLASSES), version, "a restart writes nothing");
        assert_eq!(text(&objects.get(&IP_ADDRESSES, "", "10.96.0.1").unwrap(), "/spec/parentRef/name"), "kubernetes");
        // What an administrator took away comes back, what they added stays.
        let mut view = (*objects.get(&CLUSTER_ROLES, "", "system:kube-dns").unwrap()).clone();
        let own = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        view["rules"] = json!([own]);
        objects.put(&CLUSTER_ROLES, view);
        block_on(run(&objects.backend(), &policy, &facts)).unwrap();
        let again = objects.get(&CLUSTER_ROLES, "", "system:kube-dns").unwrap();
        assert_eq!(again["rules"].as_array().unwrap().len(), 2);
        assert_eq!(again["rules"][0], own);
    }
}
