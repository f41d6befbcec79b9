//! Cluster addresses: taken by making IPAddress objects, from the ranges of the ServiceCIDRs that are ready.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use api::status;
use apiserver::types::Status;
use apiserver::{Backend, Reader};
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::{Value, json};

use super::metrics::{Metrics, Scope};
use super::{Cidr, addresses_of};
use crate::util::{IP_ADDRESSES, SERVICE_CIDRS, SERVICES, items, text, texts};

pub(crate) const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
pub(crate) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// Whose IPAddresses those of Services are.
pub(crate) const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How many candidates are looked at in a band before it counts as full.
const CANDIDATES: usize = 1 << 17;

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the provided network does not match the current range")]
    Outside,
    #[error("provided IP is already allocated")]
    Taken,
    #[error("range is full")]
    Full,
    #[error("{}", .0.message)]
    Failed(Status),
}

/// The network of a ServiceCIDR, or of several.
#[derive(Debug, Clone)]
struct Range {
    cidr: Cidr,
    /// Whether addresses are given from it.
    ready: bool,
}

/// The addresses of one cluster.
pub(crate) struct ClusterIps {
    /// The family that Services have unless they ask: that of the configured range.
    pub family: &'static str,
    pub metrics: Arc<Metrics>,
    /// The ranges, with the version of the ServiceCIDRs that they were read at.
    ranges: Mutex<(u64, Arc<Vec<Range>>)>,
    /// Whether all Services have IPAddresses: those of a cluster of before get them in the first repair.
    repaired: AtomicBool,
}

/// The IPAddress of a Service.
pub(crate) fn ip_address(ip: IpAddr, namespace: &str, service: &str) -> Value {
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": ip.to_string(), "labels": {FAMILY: family, MANAGED_BY: ALLOCATOR}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    })
}

/// Whether addresses of this ServiceCIDR may be given. One without the condition counts as ready: its controller may not
/// run.
fn is_ready(cidr: &Value) -> bool {
    let ready = items(cidr, "/status/conditions").find(|c| text(c, "/type") == "Ready");
    ready.is_none_or(|c| text(c, "/status") == "True") && cidr.pointer("/metadata/deletionTimestamp").is_none()
}

impl ClusterIps {
    /// With Services of this family.
    pub fn new(family: &'static str, metrics: Arc<Metrics>) -> Self {
        Self { family, metrics, ranges: Mutex::default(), repaired: AtomicBool::new(false) }
    }

    /// All Services have their IPAddresses now.
    pub fn set_repaired(&self) {
        self.repaired.store(true, Ordering::Release);
    }

    fn ranges(&self, reader: &dyn Reader) -> Arc<Vec<Range>> {
        let version = reader.version(&SERVICE_CIDRS);
        let mut known = self.ranges.lock();
        if known.0 != version || known.1.is_empty() {
            let mut ranges: Vec<Range> = Vec::new();
            for object in reader.list(&SERVICE_CIDRS, None) {
                let ready = is_ready(&object);
                for cidr in texts(&object, "/spec/cidrs").filter_map(Cidr::parse) {
                    match ranges.iter_mut().find(|r| r.cidr.text == cidr.text) {
                        Some(same) => same.ready |= ready,
                        None => ranges.push(Range { cidr, ready }),
                    }
                }
            }
            *known = (version, Arc::new(ranges));
        }
        known.1.clone()
    }

    /// Whether an address is in the range of any ServiceCIDR.
    pub fn has_range_for(&self, reader: &dyn Reader, ip: IpAddr) -> bool {
        self.ranges(reader).iter().any(|r| r.cidr.contains(ip))
    }

    /// The addresses that Services have of old, without IPAddresses.
    fn unrepaired(&self, reader: &dyn Reader) -> HashSet<IpAddr> {
        match self.repaired.load(Ordering::Acquire) {
            true => HashSet::new(),
            false => reader.list(&SERVICES, None).iter().flat_map(|s| addresses_of(s)).collect(),
        }
    }

    /// Takes this address for a Service.
    pub async fn take(&self, backend: &Backend, service: &Value, ip: IpAddr, dry_run: bool) -> Result<(), Error> {
        let reader = &*backend.reader;
        let ranges = self.ranges(reader);
        let range = ranges.iter().find(|r| r.ready && r.cidr.contains(ip)).ok_or(Error::Outside)?;
        if dry_run {
            return Ok(());
        }
        let began = Instant::now();
        if self.unrepaired(reader).contains(&ip) {
            self.metrics.address(&range.cidr.text, Scope::Static, false);
            return Err(Error::Taken);
        }
        self.make(backend, service, ip, range, Scope::Static).await?;
        self.metrics.address_took(&range.cidr.text, began.elapsed());
        Ok(())
    }

    /// Takes a free address for a Service, by chance.
    pub async fn next(&self, backend: &Backend, service: &Value, dry_run: bool) -> Result<IpAddr, Error> {
        let ranges = self.ranges(&*backend.reader);
        let old = self.unrepaired(&*backend.reader);
        for range in ranges.iter().filter(|r| r.ready && r.cidr.family() == self.family) {
            if dry_run {
                return Ok(range.cidr.nth(0));
            }
            let began = Instant::now();
            for band in range.cidr.bands() {
                if band.is_empty() {
                    continue;
                }
                let start = rand::rng().random_range(band.clone());
                let candidates = (start..=*band.end()).chain(*band.start()..start).take(CANDIDATES).map(|n| range.cidr.nth(n));
                for ip in candidates {
                    if old.contains(&ip) || backend.reader.has(&IP_ADDRESSES, "", &ip.to_string()) {
                        continue;
                    }
                    match self.make(backend, service, ip, range, Scope::Dynamic).await {
                        Ok(()) => {
                            self.metrics.address_took(&range.cidr.text, began.elapsed());
                            return Ok(ip);
                        }
                        // another server was faster
                        Err(Error::Taken) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            self.metrics.address(&range.cidr.text, Scope::Dynamic, false);
        }
        Err(Error::Full)
    }

    async fn make(&self, backend: &Backend, service: &Value, ip: IpAddr, range: &Range, scope: Scope) -> Result<(), Error> {
        let object = ip_address(ip, text(service, "/metadata/namespace"), text(service, "/metadata/name"));
        let made = backend.writer.create(*IP_ADDRESSES, object).await;
        self.metrics.address(&range.cidr.text, scope, made.is_ok());
        match made {
            Ok(_) => Ok(()),
            Err(status) if status.reason == "AlreadyExists" => Err(Error::Taken),
            Err(status) => Err(Error::Failed(status)),
        }
    }

    /// Gives addresses of a Service back.
    pub async fn release(&self, backend: &Backend, service: &Value, ips: &[IpAddr]) {
        for ip in ips {
            let name = ip.to_string();
            // Where two Services came to have one address, it stays with the other.
            let others = backend.reader.get(&IP_ADDRESSES, "", &name).is_some_and(|object| !is_of(&object, service));
            if others {
                continue;
            }
            match backend.writer.delete(*IP_ADDRESSES, "", &name, &Value::Null).await {
                Err(status) if status.code != status::not_found("", "", "").code => {
                    tracing::warn!(ip = name, why = status.message, "an address could not be given back; the repair will do it");
                }
                _ => {}
            }
        }
    }

    /// For each range of the configured family: how many addresses are given, and how many are left.
    pub fn usage(&self, reader: &dyn Reader) -> Vec<(String, usize, usize)> {
        let given: Vec<IpAddr> = reader
            .list(&IP_ADDRESSES, None)
            .iter()
            .filter(|a| a.pointer("/metadata/labels").is_some_and(|l| l.get(MANAGED_BY).is_some_and(|m| m == ALLOCATOR)))
            .filter_map(|a| text(a, "/metadata/name").parse().ok())
            .collect();
        let count = |cidr: &Cidr| given.iter().filter(|ip| cidr.contains(**ip)).count();
        let of = |r: &Range| {
            let (used, size) = (count(&r.cidr), usize::try_from(r.cidr.usable()).unwrap_or(usize::MAX));
            (r.cidr.text.clone(), used, size.saturating_sub(used))
        };
        self.ranges(reader).iter().filter(|r| r.cidr.family() == self.family).map(of).collect()
    }
}

/// Whether an IPAddress refers to this Service.
pub(crate) fn is_of(address: &Value, service: &Value) -> bool {
    let parent = |key: &str| text(address, &format!("/spec/parentRef/{key}"));
    let meta = |key: &str| text(service, &format!("/metadata/{key}"));
    parent("namespace") == meta("namespace") && parent("name") == meta("name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};

    fn setup(cidrs: &[(&str, &str, Value)]) -> (Arc<Objects>, ClusterIps) {
        let objects = Objects::new();
        for (name, cidr, status) in cidrs {
            objects.put(&SERVICE_CIDRS, json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}, "status": status}));
        }
        (objects, ClusterIps::new("IPv4", Arc::default()))
    }

    fn service() -> Value {
        json!({"metadata": {"name": "s", "namespace": "n"}})
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_is_given_once() {
        let (objects, ips) = setup(&[("kubernetes", "10.0.0.0/29", Value::Null)]);
        let backend = objects.backend();
        block_on(ips.take(&backend, &service(), ip("10.0.0.1"), false)).unwrap();
        let made = objects.get(&IP_ADDRESSES, "", "10.0.0.1").unwrap();
        assert_eq!(made["metadata"]["labels"], json!({FAMILY: "IPv4", MANAGED_BY: ALLOCATOR}));
        assert_eq!(made["spec"]["parentRef"], json!({"resource": "services", "namespace": "n", "name": "s"}));
        assert!(matches!(block_on(ips.take(&backend, &service(), ip("10.0.0.1"), false)), Err(Error::Taken)));
        for outside in ["10.0.0.0", "10.0.0.7", "10.0.1.1", "::1"] {
            assert!(matches!(block_on(ips.take(&backend, &service(), ip(outside), false)), Err(Error::Outside)), "{outside}");
        }
        let all: HashSet<IpAddr> = (0..5).map(|_| block_on(ips.next(&backend, &service(), false)).unwrap()).collect();
        assert_eq!(all.len(), 5);
        assert!(matches!(block_on(ips.next(&backend, &service(), false)), Err(Error::Full)));
        assert_eq!(ips.usage(&*objects), [("10.0.0.0/29".to_owned(), 6, 0)]);
        block_on(ips.release(&backend, &service(), &[ip("10.0.0.3")]));
        assert_eq!(block_on(ips.next(&backend, &service(), false)).unwrap(), ip("10.0.0.3"));
        let other = json!({"metadata": {"name": "other", "namespace": "n"}});
        block_on(ips.release(&backend, &other, &[ip("10.0.0.3")]));
        assert!(objects.has(&IP_ADDRESSES, "", "10.0.0.3"), "it is another's");
    }

    #[test]
    fn ranges_that_are_ready_are_used() {
        let not = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        let (objects, ips) = setup(&[("a", "10.0.0.0/30", not), ("b", "10.1.0.0/30", Value::Null), ("c", "fd00::/120", Value::Null)]);
        let backend = objects.backend();
        assert!(matches!(block_on(ips.take(&backend, &service(), ip("10.0.0.1"), false)), Err(Error::Outside)));
        let all: HashSet<IpAddr> = (0..2).map(|_| block_on(ips.next(&backend, &service(), false)).unwrap()).collect();
        assert_eq!(all, HashSet::from([ip("10.1.0.1"), ip("10.1.0.2")]));
        assert!(matches!(block_on(ips.next(&backend, &service(), false)), Err(Error::Full)));
        objects.put(&SERVICE_CIDRS, json!({"metadata": {"name": "d"}, "spec": {"cidrs": ["10.0.0.0/30"]}}));
        assert!(objects.list(&SERVICE_CIDRS, None).len() == 4 && block_on(ips.next(&backend, &service(), false)).is_ok(), "one of the two is ready");
        objects.put(&SERVICE_CIDRS, json!({"metadata": {"name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"cidrs": ["10.0.0.0/30"]}}));
        assert!(matches!(block_on(ips.next(&backend, &service(), false)), Err(Error::Full)), "it is going");
    }

    #[test]
    fn addresses_of_before_are_not_given_again() {
        let (objects, ips) = setup(&[("kubernetes", "10.0.0.0/30", Value::Null)]);
        objects.put(&SERVICES, json!({"metadata": {"name": "old", "namespace": "n"}, "spec": {"clusterIPs": ["10.0.0.2"]}}));
        let backend = objects.backend();
        assert!(matches!(block_on(ips.take(&backend, &service(), ip("10.0.0.2"), false)), Err(Error::Taken)));
        assert_eq!(block_on(ips.next(&backend, &service(), false)).unwrap(), ip("10.0.0.1"));
        assert!(matches!(block_on(ips.next(&backend, &service(), false)), Err(Error::Full)));
    }

    #[test]
    fn a_dry_run_takes_nothing() {
        let (objects, ips) = setup(&[("kubernetes", "10.0.0.0/30", Value::Null)]);
        let backend = objects.backend();
        block_on(ips.take(&backend, &service(), ip("10.0.0.2"), true)).unwrap();
        assert_eq!(block_on(ips.next(&backend, &service(), true)).unwrap(), ip("10.0.0.0"));
        assert!(objects.list(&IP_ADDRESSES, None).is_empty());
    }
}
