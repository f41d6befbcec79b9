//! Compares addresses and node ports with the Services that hold them, makes what is missing, removes what is left
//! over, and tells of what only people can mend.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use apiserver::Backend;
use apiserver::types::Status;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::addresses::{ALLOCATOR, FAMILY, MANAGED_BY, ip_address, is_of};
use super::ports::{Error, Ports};
use super::{ClusterIps, NodePorts, addresses_of, ports_of};
use crate::util::{EVENTS, IP_ADDRESSES, SERVICES, random_suffix, text, texts};

/// How long a Service may take to be written after its address was.
const GRACE: SignedDuration = SignedDuration::from_secs(60);
/// The same for one that is there already.
const REVERT: SignedDuration = SignedDuration::from_secs(5);
/// How often a port must look lost before it is freed: a Service may be about to be written.
const LEAKS: u32 = 3;

/// What is to be said of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Notice {
    about: Arc<Value>,
    reason: &'static str,
    action: &'static str,
    note: String,
}

/// What is to be done about an address.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Tell(Notice),
    Make(IpAddr, Arc<Value>),
    /// Removes what has this name, and makes it for this Service.
    Replace(IpAddr, Arc<Value>),
    Remove(String),
}

fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str).unwrap_or("")
}

fn refers_to_service(address: &Value) -> bool {
    text(address, "/spec/parentRef/group").is_empty() && text(address, "/spec/parentRef/resource") == "services"
}

fn created(object: &Value) -> Option<Timestamp> {
    text(object, "/metadata/creationTimestamp").parse().ok()
}

/// What is to be done about the addresses. `in_range` says whether an address belongs to a ServiceCIDR.
pub(crate) fn plan(services: &[Arc<Value>], addresses: &[Arc<Value>], in_range: impl Fn(IpAddr) -> bool, now: Timestamp) -> Vec<Step> {
    let by_name: HashMap<&str, &Arc<Value>> = addresses.iter().map(|a| (text(a, "/metadata/name"), a)).collect();
    let by_key: HashMap<(&str, &str), &Arc<Value>> =
        services.iter().map(|s| ((text(s, "/metadata/namespace"), text(s, "/metadata/name")), s)).collect();
    let mut steps = Vec::new();
    for service in services {
        let (namespace, name) = (text(service, "/metadata/namespace"), text(service, "/metadata/name"));
        if matches!(text(service, "/spec/clusterIP"), "" | "None") || text(service, "/spec/type") == "ExternalName" {
            continue;
        }
        for given in texts(service, "/spec/clusterIPs") {
            let tell = |reason, action, note| Step::Tell(Notice { about: service.clone(), reason, action, note });
            let Ok(ip) = given.parse::<IpAddr>() else {
                steps.push(tell("ClusterIPNotValid", "ClusterIPValidation", format!("Cluster IP {given} is not a valid IP; please recreate Service")));
                continue;
            };
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let mut allocation = |reason, note| steps.push(tell(reason, "ClusterIPAllocation", note));
            let wrong = || format!("the ClusterIP [{family}]: {ip} for Service {namespace}/{name} has a wrong reference; repairing");
            if !in_range(ip) {
                let note = format!("Cluster IP [{family}]: {ip} is not within any configured Service CIDR; please recreate service");
                allocation("ClusterIPOutOfRange", note);
                continue;
            }
            let Some(address) = by_name.get(ip.to_string().as_str()) else {
                allocation("ClusterIPNotAllocated", format!("Cluster IP [{family}]: {ip} is not allocated; repairing"));
                steps.push(Step::Make(ip, service.clone()));
                continue;
            };
            if !refers_to_service(address) {
                allocation("ClusterIPNotAllocated", wrong());
                steps.push(Step::Replace(ip, service.clone()));
                continue;
            }
            if !is_of(address, service) {
                let parent = (text(address, "/spec/parentRef/namespace"), text(address, "/spec/parentRef/name"));
                match by_key.get(&parent) {
                    None => {
                        allocation("ClusterIPNotAllocated", wrong());
                        steps.push(Step::Replace(ip, service.clone()));
                        continue;
                    }
                    Some(other) if addresses_of(other).contains(&ip) => {
                        let note = format!("Cluster IP [{family}]:{ip} was assigned to multiple services; please recreate service");
                        allocation("ClusterIPAlreadyAllocated", note);
                    }
                    // what the other one does not hold is removed below, and made for this one the next time
                    Some(_) => {}
                }
            }
            if label(address, FAMILY) != family || label(address, MANAGED_BY) != ALLOCATOR {
                steps.push(Step::Replace(ip, service.clone()));
            }
        }
    }
    for address in addresses.iter().filter(|a| label(a, MANAGED_BY) == ALLOCATOR) {
        let name = text(address, "/metadata/name");
        let parent = (text(address, "/spec/parentRef/namespace"), text(address, "/spec/parentRef/name"));
        let age = created(address).map_or(SignedDuration::MAX, |at| now.duration_since(at));
        let reason_and_note = if !refers_to_service(address) {
            let group = text(address, "/spec/parentRef/group");
            let parent = format!("&ParentReference{{Group:{group},Resource:{},Namespace:{},Name:{},}}", text(address, "/spec/parentRef/resource"), parent.0, parent.1);
            ("IPAddressNotAllocated", format!("IPAddress {name} appears to have been modified, not referencing a Service {parent}: cleaning up"))
        } else {
            match by_key.get(&parent) {
                None if age <= GRACE => continue,
                None => ("IPAddressNotAllocated", format!("IPAddress: {name} for Service {}/{} appears to have leaked: cleaning up", parent.0, parent.1)),
                Some(service) => {
                    let is_young = age < REVERT && created(address) > created(service);
                    if name.parse().is_ok_and(|ip| addresses_of(service).contains(&ip))
                        || text(service, "/spec/type") == "ExternalName" && age < GRACE
                        || is_young
                    {
                        continue;
                    }
                    ("IPAddressWrongReference", format!("IPAddress: {name} for Service {}/{} has a wrong reference; cleaning up", parent.0, parent.1))
                }
            }
        };
        let (reason, note) = reason_and_note;
        steps.push(Step::Tell(Notice { about: address.clone(), reason, action: "IPAddressAllocation", note }));
        steps.push(Step::Remove(name.to_owned()));
    }
    // One that is to be made anew is not removed for what it was.
    let replaced: Vec<String> = steps.iter().filter_map(|s| if let Step::Replace(ip, _) = s { Some(ip.to_string()) } else { None }).collect();
    steps.retain(|s| match s {
        Step::Remove(name) => !replaced.contains(name),
        Step::Tell(notice) => notice.action != "IPAddressAllocation" || !replaced.iter().any(|r| r == text(&notice.about, "/metadata/name")),
        _ => true,
    });
    steps
}

/// The node ports as they should be, and what was met on the way: the kind of mistake and what is to be said of it.
pub(crate) struct Rebuilt {
    pub ports: Ports,
    pub met: Vec<(&'static str, Option<Notice>)>,
}

/// What the node ports should be. `leaks` counts how much longer what looks lost is kept.
pub(crate) fn plan_ports(stored: &Ports, empty: Ports, services: &[Arc<Value>], leaks: &mut HashMap<u16, u32>) -> Rebuilt {
    let (mut left, mut rebuilt, mut met) = (stored.clone(), empty, Vec::new());
    let range = rebuilt.spec();
    for service in services {
        for port in ports_of(service) {
            let notice = |reason, note| Some(Notice { about: service.clone(), reason, action: "PortAllocation", note });
            match rebuilt.take(port) {
                Ok(()) => {
                    if left.has(port) {
                        left.free(port);
                    } else {
                        met.push(("repair", notice("PortNotAllocated", format!("Port {port} is not allocated; repairing"))));
                    }
                    leaks.remove(&port);
                }
                Err(Error::Outside(_)) => {
                    let note = format!("Port {port} is not within the port range {range}; please recreate service");
                    met.push(("outOfRange", notice("PortOutOfRange", note)));
                }
                Err(_) => {
                    let note = format!("Port {port} was assigned to multiple services; please recreate service");
                    met.push(("duplicate", notice("PortAlreadyAllocated", note)));
                }
            }
        }
    }
    for port in left.all() {
        match leaks.get(&port).copied().unwrap_or(LEAKS) {
            0 => {
                leaks.remove(&port);
                met.push(("leak", None));
            }
            count => {
                leaks.insert(port, count - 1);
                let _ = rebuilt.take(port);
            }
        }
    }
    Rebuilt { ports: rebuilt, met }
}

/// The repair of one cluster.
pub(crate) struct Repair {
    pub ips: Arc<ClusterIps>,
    pub ports: Arc<NodePorts>,
    pub host: String,
    leaks: Mutex<HashMap<u16, u32>>,
}

impl Repair {
    pub fn new(ips: Arc<ClusterIps>, ports: Arc<NodePorts>, host: String) -> Self {
        Self { ips, ports, host, leaks: Mutex::default() }
    }

    /// Once through.
    pub async fn run(&self, backend: &Backend, now: Timestamp) -> Result<(), String> {
        let mut errors: Vec<String> = Vec::new();
        errors.extend(self.addresses(backend, now).await.err().map(|status| status.message));
        if let Err(status) = self.node_ports(backend, now).await {
            self.ports.metrics.repair_failed();
            errors.push(status.message);
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    async fn addresses(&self, backend: &Backend, now: Timestamp) -> Result<(), Status> {
        let reader = &*backend.reader;
        let (services, addresses) = (reader.list(&SERVICES, None), reader.list(&IP_ADDRESSES, None));
        let steps = plan(&services, &addresses, |ip| self.ips.has_range_for(reader, ip), now);
        for step in steps {
            match step {
                Step::Tell(notice) => self.tell(backend, &notice, "ipallocator-repair-controller", now).await,
                Step::Make(ip, service) => make(backend, ip, &service).await?,
                Step::Replace(ip, service) => {
                    remove(backend, &ip.to_string()).await?;
                    make(backend, ip, &service).await?;
                }
                Step::Remove(name) => remove(backend, &name).await?,
            }
        }
        self.ips.set_repaired();
        Ok(())
    }

    async fn node_ports(&self, backend: &Backend, now: Timestamp) -> Result<(), Status> {
        for _ in 0..8 {
            let (stored, revision) = self.ports.load(backend).await?;
            let services = backend.reader.list(&SERVICES, None);
            let mut leaks = self.leaks.lock().clone();
            let rebuilt = plan_ports(&stored, self.ports.none(), &services, &mut leaks);
            // what is as it was needs no write
            if (rebuilt.ports != stored || revision == 0) && !self.ports.save(backend, &rebuilt.ports, revision).await? {
                continue;
            }
            self.ports.tell(&rebuilt.ports);
            *self.leaks.lock() = leaks;
            for (what, notice) in &rebuilt.met {
                self.ports.metrics.repaired(what);
                if let Some(notice) = notice {
                    self.tell(backend, notice, "portallocator-repair-controller", now).await;
                }
            }
            return Ok(());
        }
        Err(api::status::internal("the node ports are being changed by others all the time"))
    }

    async fn tell(&self, backend: &Backend, notice: &Notice, controller: &str, now: Timestamp) {
        let about = |key: &str| text(&notice.about, &format!("/metadata/{key}")).to_owned();
        tracing::warn!(reason = notice.reason, "{}", notice.note);
        let namespace = Some(about("namespace")).filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let (kind, version) = match notice.action {
            "IPAddressAllocation" => ("IPAddress", "networking.k8s.io/v1"),
            _ => ("Service", "v1"),
        };
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{}.{}", about("name"), random_suffix(16)), "namespace": namespace},
            "involvedObject": {"kind": kind, "apiVersion": version, "namespace": about("namespace"), "name": about("name"), "uid": about("uid"), "resourceVersion": about("resourceVersion")},
            "reason": notice.reason, "message": notice.note, "type": "Warning", "action": notice.action,
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            "reportingComponent": controller, "reportingInstance": format!("{controller}-{}", self.host),
            "source": {}, "firstTimestamp": null, "lastTimestamp": null,
        });
        if let Err(status) = backend.writer.create(*EVENTS, event).await {
            tracing::warn!(why = status.message, "the event could not be written");
        }
    }
}

async fn make(backend: &Backend, ip: IpAddr, service: &Value) -> Result<(), Status> {
    let object = ip_address(ip, text(service, "/metadata/namespace"), text(service, "/metadata/name"));
    match backend.writer.create(*IP_ADDRESSES, object).await {
        Err(status) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

async fn remove(backend: &Backend, name: &str) -> Result<(), Status> {
    match backend.writer.delete(*IP_ADDRESSES, "", name, &Value::Null).await {
        Err(status) if status.reason == "NotFound" => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::SERVICE_CIDRS;
    use apiserver::Reader;

    const BEGAN: &str = "2026-05-01T10:00:00Z";

    fn now() -> Timestamp {
        "2026-05-01T10:05:00Z".parse().unwrap()
    }

    fn service(name: &str, ip: &str) -> Arc<Value> {
        let meta = json!({"name": name, "namespace": "n", "creationTimestamp": BEGAN});
        Arc::new(json!({"metadata": meta, "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}}))
    }

    fn address(ip: &str, service: &str, made: &str) -> Arc<Value> {
        let mut object = ip_address(ip.parse().unwrap(), "n", service);
        object["metadata"]["creationTimestamp"] = made.into();
        Arc::new(object)
    }

    fn steps(services: &[Arc<Value>], addresses: &[Arc<Value>]) -> Vec<String> {
        let shown = |step: Step| match step {
            Step::Tell(notice) => format!("{}: {}", notice.reason, notice.note),
            Step::Make(ip, service) => format!("make {ip} for {}", text(&service, "/metadata/name")),
            Step::Replace(ip, service) => format!("replace {ip} for {}", text(&service, "/metadata/name")),
            Step::Remove(name) => format!("remove {name}"),
        };
        let inside = |ip: IpAddr| ip.to_string().starts_with("10.");
        plan(services, addresses, inside, now()).into_iter().map(shown).collect()
    }

    #[test]
    fn what_is_right_stays() {
        let none: Vec<String> = Vec::new();
        assert_eq!(steps(&[service("a", "10.0.0.1")], &[address("10.0.0.1", "a", BEGAN)]), none);
        assert_eq!(steps(&[service("a", "None")], &[]), none);
        let external = Arc::new(json!({"metadata": {"name": "e", "namespace": "n"}, "spec": {"type": "ExternalName"}}));
        assert_eq!(steps(&[external.clone()], &[]), none);
        assert_eq!(steps(&[external], &[address("10.0.0.1", "e", "2026-05-01T10:04:30Z")]), none, "it may be about to get it");
        assert_eq!(steps(&[], &[address("10.0.0.1", "a", "2026-05-01T10:04:30Z")]), none, "the Service may be about to be written");
        assert_eq!(steps(&[service("a", "10.0.0.2")], &[address("10.0.0.1", "a", "2026-05-01T10:04:58Z"), address("10.0.0.2", "a", BEGAN)]), none, "it may be given back in a moment");
        let mut foreign = (*address("10.0.0.9", "a", BEGAN)).clone();
        foreign["metadata"]["labels"] = json!({});
        assert_eq!(steps(&[], &[Arc::new(foreign)]), none, "another controller's");
    }

    #[test]
    fn what_is_missing_is_made_and_what_is_left_over_goes() {
        assert_eq!(
            steps(&[service("a", "10.0.0.1")], &[]),
            ["ClusterIPNotAllocated: Cluster IP [IPv4]: 10.0.0.1 is not allocated; repairing", "make 10.0.0.1 for a"]
        );
        assert_eq!(
            steps(&[], &[address("10.0.0.1", "a", BEGAN)]),
            ["IPAddressNotAllocated: IPAddress: 10.0.0.1 for Service n/a appears to have leaked: cleaning up", "remove 10.0.0.1"]
        );
        assert_eq!(
            steps(&[service("a", "10.0.0.2")], &[address("10.0.0.1", "a", BEGAN), address("10.0.0.2", "a", BEGAN)]),
            ["IPAddressWrongReference: IPAddress: 10.0.0.1 for Service n/a has a wrong reference; cleaning up", "remove 10.0.0.1"]
        );
        assert_eq!(
            steps(&[service("a", "10.0.0.1")], &[address("10.0.0.1", "gone", BEGAN)]),
            ["ClusterIPNotAllocated: the ClusterIP [IPv4]: 10.0.0.1 for Service n/a has a wrong reference; repairing", "replace 10.0.0.1 for a"]
        );
        let mut gateway = (*address("10.0.0.1", "a", BEGAN)).clone();
        gateway["spec"]["parentRef"] = json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "g"});
        let gateway = Arc::new(gateway);
        assert_eq!(steps(&[service("a", "10.0.0.1")], &[gateway.clone()])[1], "replace 10.0.0.1 for a");
        assert_eq!(
            steps(&[], &[gateway])[0],
            "IPAddressNotAllocated: IPAddress 10.0.0.1 appears to have been modified, not referencing a Service &ParentReference{Group:gateway.networking.k8s.io,Resource:gateways,Namespace:,Name:g,}: cleaning up"
        );
        let mut unlabelled = (*address("10.0.0.1", "a", BEGAN)).clone();
        unlabelled["metadata"]["labels"] = json!({MANAGED_BY: ALLOCATOR});
        assert_eq!(steps(&[service("a", "10.0.0.1")], &[Arc::new(unlabelled)]), ["replace 10.0.0.1 for a"]);
    }

    #[test]
    fn what_only_people_can_mend_is_told() {
        assert_eq!(
            steps(&[service("a", "192.0.2.1")], &[]),
            ["ClusterIPOutOfRange: Cluster IP [IPv4]: 192.0.2.1 is not within any configured Service CIDR; please recreate service"]
        );
        assert_eq!(
            steps(&[service("a", "10.0.0.1"), service("b", "10.0.0.1")], &[address("10.0.0.1", "a", BEGAN)]),
            ["ClusterIPAlreadyAllocated: Cluster IP [IPv4]:10.0.0.1 was assigned to multiple services; please recreate service"]
        );
        assert_eq!(steps(&[service("a", "ten")], &[]), ["ClusterIPNotValid: Cluster IP ten is not a valid IP; please recreate Service"]);
    }

    #[test]
    fn a_cluster_of_before_gets_its_addresses() {
        let objects = Objects::new();
        objects.put(&SERVICE_CIDRS, json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.0.0.0/24"]}}));
        objects.put(&SERVICES, json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.7", "clusterIPs": ["10.0.0.7"], "ports": [{"nodePort": 30007}]}}));
        let ips = Arc::new(ClusterIps::new("IPv4", Arc::default()));
        let ports = Arc::new(NodePorts::new(30000..=32767, Arc::default()));
        let repair = Repair::new(ips.clone(), ports.clone(), "here".into());
        block_on(repair.run(&objects.backend(), now())).unwrap();
        assert!(is_of(&objects.get(&IP_ADDRESSES, "", "10.0.0.7").unwrap(), &objects.get(&SERVICES, "n", "a").unwrap()));
        assert!(block_on(ports.load(&objects.backend())).unwrap().0.has(30007));
        let events = objects.list(&EVENTS, None);
        assert_eq!((events.len(), text(&events[0], "/reason"), text(&events[0], "/involvedObject/uid")), (1, "ClusterIPNotAllocated", "u"));
        block_on(repair.run(&objects.backend(), now())).unwrap();
        assert_eq!(objects.list(&EVENTS, None).len(), 1, "nothing is left to do");
    }

    #[test]
    fn lost_ports_are_freed_after_a_while() {
        let services = [Arc::new(json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"ports": [{"nodePort": 30001}, {"nodePort": 80}]}})), service("b", "10.0.0.1"), Arc::new(json!({"spec": {"ports": [{"nodePort": 30001}]}}))];
        let none = || Ports::new(30000..=30009);
        let (mut stored, mut leaks) = (none(), HashMap::new());
        stored.take(30005).unwrap();
        let first = plan_ports(&stored, none(), &services, &mut leaks);
        let said: Vec<_> = first.met.iter().map(|(what, n)| (*what, n.as_ref().map_or("", |n| n.note.as_str()))).collect();
        assert_eq!(
            said,
            [
                ("repair", "Port 30001 is not allocated; repairing"),
                ("outOfRange", "Port 80 is not within the port range 30000-30009; please recreate service"),
                ("duplicate", "Port 30001 was assigned to multiple services; please recreate service"),
            ]
        );
        assert_eq!(first.ports.all().collect::<Vec<_>>(), [30001, 30005]);
        let mut ports = first.ports;
        for _ in 0..2 {
            ports = plan_ports(&ports, none(), &services[..1], &mut leaks).ports;
            assert!(ports.has(30005));
        }
        let last = plan_ports(&ports, none(), &services[..1], &mut leaks);
        assert!(!last.ports.has(30005) && last.met.iter().any(|(what, _)| *what == "leak"));
    }
}
