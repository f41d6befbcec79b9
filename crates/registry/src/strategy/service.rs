//! Services: cluster addresses, node ports and IP families are filled in, kept over updates that
//! leave them out, and given back when the type changes or the Service goes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::field::{FieldError, Path};
use api::status;
use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::types::Status;
use apiserver::{Ctx, Finish, Strategy};
use async_trait::async_trait;
use serde_json::{Value, json};

use crate::allocation::addresses::Error;
use crate::allocation::ports::Wish;
use crate::allocation::{ClusterIps, NodePorts, addresses_of, ports_of};
use crate::util::{items, number, object, text, texts};

/// The Services' own rules.
pub(crate) struct Services {
    pub ips: Arc<ClusterIps>,
    pub ports: Arc<NodePorts>,
}

/// What one request took: given back when it fails.
#[derive(Default)]
struct Taken {
    ips: Vec<IpAddr>,
    ports: Vec<u16>,
}

fn kind(service: &Value) -> &str {
    match text(service, "/spec/type") {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn has_cluster_ip(service: &Value) -> bool {
    kind(service) != "ExternalName"
}

fn is_public(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

/// Whether it is reached from outside of the cluster.
fn is_reachable(service: &Value) -> bool {
    is_public(service) || kind(service) == "ClusterIP" && items(service, "/spec/externalIPs").next().is_some()
}

fn wants_node_ports(service: &Value) -> bool {
    kind(service) == "NodePort"
        || kind(service) == "LoadBalancer" && service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
}

fn wants_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None"
}

/// `clusterIP` and `clusterIPs[0]` are the same thing; old clients know only the first.
fn normalize_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let (primary, old_primary) = (text(new, "/spec/clusterIP").to_owned(), old.map_or("", |o| text(o, "/spec/clusterIP")));
    let list: Vec<String> = texts(new, "/spec/clusterIPs").map(str::to_owned).collect();
    let old_list: Vec<String> = old.map(|o| texts(o, "/spec/clusterIPs").map(str::to_owned).collect()).unwrap_or_default();
    let spec = object(new, "spec");
    if old.is_none() || primary == old_primary {
        if list.is_empty() && !primary.is_empty() {
            spec.insert("clusterIPs".into(), json!([primary]));
        }
        return;
    }
    // The client changed the one it knows: the other follows.
    if list == old_list {
        if primary.is_empty() {
            spec.remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".into(), json!([primary]));
        }
    }
}

/// What the client left out is what it was.
fn keep_allocated(new: &mut Value, old: &Value) {
    if has_cluster_ip(old) && has_cluster_ip(new) {
        for key in ["clusterIP", "clusterIPs"] {
            let empty = match new["spec"].get(key) {
                None => true,
                Some(value) => value == "" || value.as_array().is_some_and(Vec::is_empty),
            };
            if empty && let Some(value) = old["spec"].get(key) {
                new["spec"][key] = value.clone();
            }
        }
    }
    if is_public(old) && is_public(new) {
        let ports = |s: &Value| -> HashSet<i64> { items(s, "/spec/ports").filter_map(|p| number(p, "/nodePort")).collect() };
        let both: HashSet<i64> = ports(old).intersection(&ports(new)).copied().collect();
        for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if number(port, "/nodePort").unwrap_or(0) != 0 {
                continue;
            }
            let was = items(old, "/spec/ports").find(|p| text(p, "/name") == text(port, "/name")).and_then(|p| number(p, "/nodePort"));
            if let Some(was) = was.filter(|w| *w != 0 && !both.contains(w)) {
                port["nodePort"] = was.into();
            }
        }
    }
    if wants_health_port(old) && wants_health_port(new) && number(new, "/spec/healthCheckNodePort").unwrap_or(0) == 0
        && let Some(port) = old.pointer("/spec/healthCheckNodePort")
    {
        new["spec"]["healthCheckNodePort"] = port.clone();
    }
}

/// Fields that the new type has no use for and the client did not touch go.
fn drop_unused(new: &mut Value, old: &Value) {
    let node_ports = |s: &Value| -> Vec<i64> { items(s, "/spec/ports").filter_map(|p| number(p, "/nodePort")).collect() };
    if is_public(old) && !is_public(new) && node_ports(old) == node_ports(new) {
        for port in new.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten() {
            port.as_object_mut().map(|p| p.remove("nodePort"));
        }
    }
    let mut gone: Vec<&str> = Vec::new();
    if has_cluster_ip(old) && !has_cluster_ip(new) {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if wants_health_port(old) && !wants_health_port(new) {
        gone.push("healthCheckNodePort");
    }
    if kind(old) == "LoadBalancer" && kind(new) != "LoadBalancer" {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_reachable(old) && !is_reachable(new) {
        gone.push("externalTrafficPolicy");
    }
    for key in gone {
        if new["spec"].get(key) == old["spec"].get(key) {
            object(new, "spec").remove(key);
        }
    }
    if kind(new) != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
}

impl Services {
    fn families(&self, new: &mut Value, old: Option<&Value>) -> Result<(), Vec<FieldError>> {
        if !has_cluster_ip(new) {
            return Ok(());
        }
        let wrong = api::validate::service_addresses(new, old);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let own = self.ips.family;
        let other = if own == "IPv4" { "IPv6" } else { "IPv4" };
        let selectorless = headless(new) && new.pointer("/spec/selector").and_then(Value::as_object).is_none_or(|s| s.is_empty());
        let policy = match (text(new, "/spec/ipFamilyPolicy"), old.map_or("", |o| text(o, "/spec/ipFamilyPolicy"))) {
            ("", "") if selectorless => "RequireDualStack",
            ("", "") => "SingleStack",
            ("", old) => old,
            (given, _) => given,
        }
        .to_owned();
        let mut families: Vec<String> = texts(new, "/spec/ipFamilies").map(str::to_owned).collect();
        let ips: Vec<String> = texts(new, "/spec/clusterIPs").map(str::to_owned).collect();
        let mut errors = Vec::new();
        for (i, ip) in ips.iter().enumerate().filter(|(_, ip)| *ip != "None") {
            let Ok(ip) = ip.parse::<IpAddr>() else {
                errors.push(FieldError::invalid(
                    &Path::new("spec.clusterIPs").index(i),
                    ip.as_str(),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ));
                continue;
            };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            if i >= families.len() {
                if family == own {
                    families.push(family.to_owned());
                } else {
                    let what = format!("{family} is not configured on this cluster");
                    errors.push(FieldError::invalid(&Path::new("spec.clusterIPs").index(i), json!(ips), what));
                }
            }
        }
        let path = Path::new("spec.ipFamilyPolicy");
        let given = text(new, "/spec/ipFamilyPolicy");
        for (list, what) in [("/spec/clusterIPs", "cluster IP"), ("/spec/ipFamilies", "IP family")] {
            let released = old.is_some_and(|o| texts(o, list).count() == 2) && texts(new, list).count() == 1;
            if released && !given.is_empty() && given != "SingleStack" {
                errors.push(FieldError::invalid(&path, given, format!("must be 'SingleStack' to release the secondary {what}")));
            }
        }
        if policy == "SingleStack" && (ips.len() == 2 || families.len() == 2) {
            let what = if ips.len() == 2 { "cluster IPs" } else { "IP families" };
            let what = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(FieldError::invalid(&path, policy.as_str(), what));
        }
        if errors.is_empty() && !selectorless {
            if policy == "RequireDualStack" {
                errors.push(FieldError::invalid(&path, policy.as_str(), "this cluster is not configured for dual-stack services"));
            }
            for (i, family) in families.iter().enumerate().filter(|(_, f)| *f != own) {
                errors.push(FieldError::invalid(&Path::new("spec.ipFamilies").index(i), family.as_str(), "not configured on this cluster"));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        if families.is_empty() {
            families.push(own.to_owned());
        }
        if selectorless && policy != "SingleStack" && families.len() < 2 {
            let missing = if families[0] == own { other } else { own };
            families.push(missing.to_owned());
        }
        let spec = object(new, "spec");
        spec.insert("ipFamilyPolicy".into(), policy.into());
        spec.insert("ipFamilies".into(), json!(families));
        Ok(())
    }

    /// Fills in what the Service needs and does not have.
    async fn allocate(&self, ctx: &Ctx, service: &mut Value, old: Option<&Value>, taken: &mut Taken) -> Result<(), Status> {
        let name = text(service, "/metadata/name").to_owned();
        if has_cluster_ip(service) && !headless(service) {
            let given = text(service, "/spec/clusterIP").to_owned();
            let invalid = |value: Value, why: String| status::invalid("", "Service", &name, &[FieldError::invalid(&Path::new("spec.clusterIPs"), value, why)]);
            let ip: IpAddr = if given.is_empty() {
                let next = self.ips.next(&ctx.backend, service, ctx.dry_run).await.map_err(|e| match e {
                    Error::Full => status::internal(format!("failed to allocate a serviceIP for Service {name:?}: {e}")),
                    e => invalid(Value::Null, format!("failed to allocate IP: {e}")),
                })?;
                taken.ips.extend((!ctx.dry_run).then_some(next));
                next
            } else {
                let ip = given.parse().map_err(|_| invalid(json!([given]), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()))?;
                if !old.map(addresses_of).unwrap_or_default().contains(&ip) {
                    let result = self.ips.take(&ctx.backend, service, ip, ctx.dry_run).await;
                    result.map_err(|e| invalid(json!([given]), format!("failed to allocate IP {given}: {e}")))?;
                    taken.ips.extend((!ctx.dry_run).then_some(ip));
                }
                ip
            };
            let spec = object(service, "spec");
            spec.insert("clusterIP".into(), ip.to_string().into());
            spec.insert("clusterIPs".into(), json!([ip]));
        } else if headless(service) {
            object(service, "spec").insert("clusterIPs".into(), json!(["None"]));
        }
        let wish = Wish { public: is_public(service), automatic: wants_node_ports(service), health: wants_health_port(service) };
        let given = self.ports.give(&ctx.backend, service, old, wish, ctx.dry_run).await;
        taken.ports = given.map_err(|refusal| refusal.status(&name))?;
        Ok(())
    }

    async fn begin(&self, ctx: &Ctx, service: &mut Value, old: Option<&Value>) -> Result<Option<Finish>, Status> {
        let name = text(service, "/metadata/name").to_owned();
        self.families(service, old).map_err(|errors| status::invalid("", "Service", &name, &errors))?;
        let mut taken = Taken::default();
        let allocated = self.allocate(ctx, service, old, &mut taken).await;
        let (ips, ports, backend) = (self.ips.clone(), self.ports.clone(), ctx.backend.clone());
        if let Err(status) = allocated {
            ips.release(&backend, service, &taken.ips).await;
            return Err(status);
        }
        let (new_ips, new_ports) = (addresses_of(service), ports_of(service));
        let gone_ips: Vec<IpAddr> = old.map(addresses_of).unwrap_or_default().into_iter().filter(|ip| !new_ips.contains(ip)).collect();
        let gone_ports: Vec<u16> = old.map(ports_of).unwrap_or_default().into_iter().filter(|p| !new_ports.contains(p)).collect();
        if taken.ips.is_empty() && taken.ports.is_empty() && gone_ips.is_empty() && gone_ports.is_empty() {
            return Ok(None);
        }
        let (of, dry_run) = (json!({"metadata": service["metadata"]}), ctx.dry_run);
        Ok(Some(Box::new(move |done| {
            Box::pin(async move {
                if dry_run {
                    return;
                }
                let (gone_ips, gone_ports) = if done { (gone_ips, gone_ports) } else { (taken.ips, taken.ports) };
                ips.release(&backend, &of, &gone_ips).await;
                ports.release(&backend, &gone_ports).await;
            })
        })))
    }
}

#[async_trait]
impl Strategy for Services {
    fn prepare_create(&self, ctx: &Ctx, service: &mut Value) {
        generic_prepare_create(ctx, service);
        normalize_cluster_ips(service, None);
        object(service, "status").insert("loadBalancer".into(), json!({}));
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        if !ctx.subresource.is_empty() {
            return;
        }
        normalize_cluster_ips(new, Some(old));
        keep_allocated(new, old);
        drop_unused(new, old);
    }

    async fn begin_create(&self, ctx: &Ctx, service: &mut Value) -> Result<Option<Finish>, Status> {
        self.begin(ctx, service, None).await
    }

    async fn begin_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) -> Result<Option<Finish>, Status> {
        self.begin(ctx, new, Some(old)).await
    }

    async fn after_delete(&self, ctx: &Ctx, service: &Value) {
        self.ips.release(&ctx.backend, service, &addresses_of(service)).await;
        self.ports.release(&ctx.backend, &ports_of(service)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{IP_ADDRESSES, SERVICE_CIDRS, SERVICES};
    use apiserver::{Reader, UserInfo};

    fn setup() -> (Arc<Objects>, Services) {
        let objects = Objects::new();
        objects.put(&SERVICE_CIDRS, json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}));
        let ips = ClusterIps::new("IPv4", Arc::default());
        ips.set_repaired();
        (objects, Services { ips: Arc::new(ips), ports: Arc::new(NodePorts::new(30000..=32767, Arc::default())) })
    }

    fn create(objects: &Arc<Objects>, services: &Services, spec: Value) -> Result<Value, String> {
        let ctx = objects.ctx(&SERVICES, "a", "s", UserInfo::default());
        let mut service = json!({"metadata": {"name": "s", "namespace": "a"}, "spec": spec});
        services.prepare_create(&ctx, &mut service);
        let finish = block_on(services.begin_create(&ctx, &mut service)).map_err(|e| e.message)?;
        if let Some(finish) = finish {
            block_on(finish(true));
        }
        objects.put(&SERVICES, service.clone());
        Ok(service)
    }

    fn update(objects: &Arc<Objects>, services: &Services, old: &Value, change: impl Fn(&mut Value)) -> Value {
        let ctx = objects.ctx(&SERVICES, "a", "s", UserInfo::default());
        let mut new = old.clone();
        change(&mut new);
        services.prepare_update(&ctx, &mut new, old);
        let finish = block_on(services.begin_update(&ctx, &mut new, old)).unwrap();
        if let Some(finish) = finish {
            block_on(finish(true));
        }
        objects.put(&SERVICES, new.clone());
        new
    }

    #[test]
    fn life_of_a_service() {
        let (objects, services) = setup();
        let made = create(&objects, &services, json!({"type": "ClusterIP", "selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP"}]})).unwrap();
        let ip = made["spec"]["clusterIP"].clone();
        assert!(ip.as_str().unwrap().starts_with("10.96."));
        assert_eq!(made["spec"]["clusterIPs"], json!([ip]));
        assert_eq!((&made["spec"]["ipFamilies"], &made["spec"]["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
        assert_eq!(made["status"], json!({"loadBalancer": {}}));
        // A PUT without the address keeps it; a new type gets a node port.
        let public = update(&objects, &services, &made, |s| {
            s["spec"]["type"] = json!("NodePort");
            s["spec"].as_object_mut().unwrap().remove("clusterIP");
            s["spec"].as_object_mut().unwrap().remove("clusterIPs");
        });
        assert_eq!(public["spec"]["clusterIP"], ip);
        let port = public["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
        assert!((30000..=32767).contains(&port));
        let kept = update(&objects, &services, &public, |s| {
            s["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
        });
        assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
        let private = update(&objects, &services, &kept, |s| s["spec"]["type"] = json!("ClusterIP"));
        assert!(private["spec"]["ports"][0].get("nodePort").is_none());
        let external = update(&objects, &services, &private, |s| {
            s["spec"]["type"] = json!("ExternalName");
            s["spec"]["externalName"] = json!("example.com");
        });
        assert!(external["spec"].get("clusterIP").is_none());
        assert!(objects.list(&IP_ADDRESSES, None).is_empty());
        let again = create(&objects, &services, json!({"clusterIP": ip, "ports": [{"port": 1, "nodePort": port}], "type": "NodePort"})).unwrap();
        assert_eq!(again["spec"]["clusterIP"], ip);
        assert!(objects.has(&IP_ADDRESSES, "", ip.as_str().unwrap()));
        let ctx = objects.ctx(&SERVICES, "a", "s", UserInfo::default());
        block_on(services.after_delete(&ctx, &again));
        assert!(!objects.has(&IP_ADDRESSES, "", ip.as_str().unwrap()));
        assert_eq!(block_on(services.ports.load(&objects.backend())).unwrap().0.all().count(), 0);
    }

    #[test]
    fn what_failed_or_was_only_tried_takes_nothing() {
        let (objects, services) = setup();
        let mut service = json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let mut ctx = objects.ctx(&SERVICES, "a", "s", UserInfo::default());
        let finish = block_on(services.begin_create(&ctx, &mut service.clone())).unwrap().expect("it took something");
        assert_eq!(objects.list(&IP_ADDRESSES, None).len(), 1);
        block_on(finish(false));
        ctx.dry_run = true;
        assert!(block_on(services.begin_create(&ctx, &mut service)).unwrap().is_none());
        assert!(service["spec"]["clusterIP"].is_string() && service["spec"]["ports"][0]["nodePort"].is_number());
        assert!(objects.list(&IP_ADDRESSES, None).is_empty());
        assert_eq!(block_on(services.ports.load(&objects.backend())).unwrap().0.all().count(), 0);
        // the address was had, the port was not
        ctx.dry_run = false;
        let mut refused = json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}});
        assert!(block_on(services.begin_create(&ctx, &mut refused)).is_err());
        assert!(objects.list(&IP_ADDRESSES, None).is_empty());
    }

    #[test]
    fn conflicts_are_field_errors() {
        let (objects, services) = setup();
        create(&objects, &services, json!({"type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{"port": 80, "nodePort": 30080}]})).unwrap();
        let refused = |spec: Value| create(&objects, &services, spec).unwrap_err();
        assert_eq!(
            refused(json!({"clusterIP": "10.96.0.10"})),
            "Service \"s\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: provided IP is already allocated"
        );
        assert_eq!(
            refused(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]})),
            "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        );
        assert!(refused(json!({"ipFamilyPolicy": "RequireDualStack"})).contains("this cluster is not configured for dual-stack services"));
        let headless = create(&objects, &services, json!({"clusterIP": "None"})).unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        assert_eq!(headless["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    }
}
