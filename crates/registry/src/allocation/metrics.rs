//! What `/metrics` says of cluster addresses and node ports.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use apiserver::histogram::{DEFAULT_BUCKETS, Histogram};
use parking_lot::Mutex;

/// Whether somebody chose what is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Static,
    Dynamic,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Scope::Static => "static",
            Scope::Dynamic => "dynamic",
        }
    }
}

/// The counters.
#[derive(Default)]
pub(crate) struct Metrics {
    ips: Mutex<BTreeMap<(String, Scope, bool), u64>>,
    latency: Mutex<BTreeMap<String, Histogram>>,
    ports: Mutex<BTreeMap<(Scope, bool), u64>>,
    /// Node ports given and left.
    ports_now: Mutex<Option<(usize, usize)>>,
    repairs: Mutex<BTreeMap<&'static str, u64>>,
    failed_repairs: Mutex<u64>,
}

impl Metrics {
    /// An address of this range was taken, or could not be.
    pub fn address(&self, cidr: &str, scope: Scope, given: bool) {
        *self.ips.lock().entry((cidr.to_owned(), scope, given)).or_default() += 1;
    }

    /// How long it took.
    pub fn address_took(&self, cidr: &str, took: Duration) {
        self.latency.lock().entry(cidr.to_owned()).or_insert_with(|| Histogram::new(DEFAULT_BUCKETS)).observe(took.as_secs_f64());
    }

    /// A node port was taken, or could not be.
    pub fn port(&self, scope: Scope, given: bool) {
        *self.ports.lock().entry((scope, given)).or_default() += 1;
    }

    /// The node ports now.
    pub fn ports_are(&self, given: usize, left: usize) {
        *self.ports_now.lock() = Some((given, left));
    }

    /// The repair of node ports met something of this type.
    pub fn repaired(&self, what: &'static str) {
        *self.repairs.lock().entry(what).or_default() += 1;
    }

    /// The repair of node ports failed.
    pub fn repair_failed(&self) {
        *self.failed_repairs.lock() += 1;
    }

    /// In Prometheus' text form; `ranges` are those of addresses, with how many are given and left.
    pub fn render(&self, ranges: &[(String, usize, usize)], out: &mut String) {
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}");
        };
        let ip = "kube_apiserver_clusterip_allocator";
        head(out, &format!("{ip}_allocated_ips"), "gauge", "Gauge measuring the number of allocated IPs for Services");
        for (cidr, given, _) in ranges {
            let _ = writeln!(out, "{ip}_allocated_ips{{cidr=\"{cidr}\"}} {given}");
        }
        head(out, &format!("{ip}_available_ips"), "gauge", "Gauge measuring the number of available IPs for Services");
        for (cidr, _, left) in ranges {
            let _ = writeln!(out, "{ip}_available_ips{{cidr=\"{cidr}\"}} {left}");
        }
        let counted = [("allocation_total", true), ("allocation_errors_total", false)];
        for ((name, good), help) in counted.into_iter().zip(["Number of Cluster IPs allocations", "Number of errors trying to allocate Cluster IPs"]) {
            head(out, &format!("{ip}_{name}"), "counter", help);
            for ((cidr, scope, _), n) in self.ips.lock().iter().filter(|(key, _)| key.2 == good) {
                let _ = writeln!(out, "{ip}_{name}{{cidr=\"{cidr}\",scope=\"{}\"}} {n}", scope.name());
            }
        }
        let name = format!("{ip}_allocation_duration_seconds");
        head(out, &name, "histogram", "Duration in seconds to allocate a Cluster IP by ServiceCIDR");
        for (cidr, h) in self.latency.lock().iter() {
            h.render(&name, &format!("cidr=\"{cidr}\""), out);
        }
        let port = "kube_apiserver_nodeport_allocator";
        if let Some((given, left)) = *self.ports_now.lock() {
            head(out, &format!("{port}_allocated_ports"), "gauge", "Gauge measuring the number of allocated NodePorts for Services");
            let _ = writeln!(out, "{port}_allocated_ports {given}");
            head(out, &format!("{port}_available_ports"), "gauge", "Gauge measuring the number of available NodePorts for Services");
            let _ = writeln!(out, "{port}_available_ports {left}");
        }
        for ((name, good), help) in counted.into_iter().zip(["Number of NodePort allocations", "Number of errors trying to allocate NodePort"]) {
            head(out, &format!("{port}_{name}"), "counter", help);
            for ((scope, _), n) in self.ports.lock().iter().filter(|(key, _)| key.1 == good) {
                let _ = writeln!(out, "{port}_{name}{{scope=\"{}\"}} {n}", scope.name());
            }
        }
        let repair = "apiserver_nodeport_repair";
        head(
            out,
            &format!("{repair}_port_errors_total"),
            "counter",
            "Number of errors detected on ports by the repair loop broken down by type of error: leak, repair, full, outOfRange, duplicate, unknown",
        );
        for (what, n) in self.repairs.lock().iter() {
            let _ = writeln!(out, "{repair}_port_errors_total{{type=\"{what}\"}} {n}");
        }
        head(out, &format!("{repair}_reconcile_errors_total"), "counter", "Number of reconciliation failures on the nodeport repair reconcile loop");
        let _ = writeln!(out, "{repair}_reconcile_errors_total {}", self.failed_repairs.lock());
    }
}
