//! The endpoints of the service `kubernetes`: the addresses of all servers that live.
//!
//! By default each server keeps a key in the store that goes by itself 15 s after its last renewal; whoever renews also
//! writes what the keys say. Upstream's servers do the same in the same place.

use std::net::IpAddr;

use apiserver::Backend;
use apiserver::types::{Resource, Status};
use serde_json::{Value, json};

use crate::util::{ENDPOINT_SLICES, ENDPOINTS, items, text};

/// Where the keys are.
const LEASES: &str = "/registry/masterleases/";
/// How long a key lives.
const TTL_SECONDS: u64 = 15;
const ATTEMPTS: usize = 8;
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// How the addresses of servers come together (`--endpoint-reconciler-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointReconciler {
    /// Each that renews its key.
    Lease,
    /// So many, of which each adds itself.
    MasterCount(usize),
    /// Others see to it.
    None,
}

/// This server among them.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub reconciler: EndpointReconciler,
    pub address: IpAddr,
    pub port: u16,
}

impl Server {
    /// Puts this server into the endpoints, and takes those out that are no more.
    pub async fn reconcile(&self, backend: &Backend) -> Result<(), String> {
        self.run(backend, false).await.map_err(|status| status.message)
    }

    /// Takes this server out.
    pub async fn remove(&self, backend: &Backend) -> Result<(), String> {
        self.run(backend, true).await.map_err(|status| status.message)
    }

    async fn run(&self, backend: &Backend, stopping: bool) -> Result<(), Status> {
        let count = match self.reconciler {
            EndpointReconciler::None => return Ok(()),
            EndpointReconciler::MasterCount(count) => Some(count),
            EndpointReconciler::Lease if stopping => {
                backend.unserved.delete(&format!("{LEASES}{}", self.address)).await?;
                None
            }
            EndpointReconciler::Lease => {
                self.renew(backend).await?;
                None
            }
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let current = backend.reader.get(*ENDPOINTS, "default", "kubernetes");
            let live = match count {
                Some(count) => with_count(current.as_deref(), self.address, count, stopping),
                None => leased(&backend.unserved.list(LEASES).await?),
            };
            if live.is_empty() && !stopping {
                let why = "no API server IP addresses were listed in storage, refusing to erase all endpoints for the kubernetes Service";
                return Err(api::status::internal(why));
            }
            if stopping && current.is_none() {
                return Ok(());
            }
            match self.write(backend, &live).await {
                // another server writes at the same time
                Err(status) if matches!(status.reason.as_str(), "Conflict" | "AlreadyExists") && attempt < ATTEMPTS => {}
                other => return other,
            }
        }
    }

    async fn renew(&self, backend: &Backend) -> Result<(), Status> {
        let key = format!("{LEASES}{}", self.address);
        for _ in 0..ATTEMPTS {
            let (generation, revision) = match backend.unserved.get(&key).await? {
                Some((object, revision)) => (object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0), revision),
                None => (0, 0),
            };
            let object = json!({
                "kind": "Endpoints", "apiVersion": "v1", "metadata": {"generation": generation + 1},
                "subsets": [{"addresses": [{"ip": self.address}]}],
            });
            if backend.unserved.put(&key, &object, revision, Some(TTL_SECONDS)).await? {
                return Ok(());
            }
        }
        Err(api::status::internal(format!("another server renews {key}: does it have the same address?")))
    }

    async fn write(&self, backend: &Backend, live: &[IpAddr]) -> Result<(), Status> {
        let endpoints = endpoints(live, self.port);
        ensure(backend, *ENDPOINTS, endpoints, &["subsets"]).await?;
        let slice = endpoint_slice(live, self.port);
        let current = backend.reader.get(*ENDPOINT_SLICES, "default", "kubernetes");
        if current.is_some_and(|c| c.get("addressType") != slice.get("addressType")) {
            // it cannot change
            backend.writer.delete(*ENDPOINT_SLICES, "default", "kubernetes", &Value::Null).await?;
        }
        ensure(backend, *ENDPOINT_SLICES, slice, &["endpoints", "ports"]).await
    }
}

/// The addresses in the keys, in order.
fn leased(keys: &[Value]) -> Vec<IpAddr> {
    let mut live: Vec<IpAddr> = keys.iter().filter_map(|k| text(k, "/subsets/0/addresses/0/ip").parse().ok()).collect();
    live.sort();
    live.dedup();
    live
}

/// The addresses with this one, or without it when it stops. Where there are too many, those that follow it in order
/// go.
fn with_count(endpoints: Option<&Value>, own: IpAddr, count: usize, stopping: bool) -> Vec<IpAddr> {
    let mut live: Vec<IpAddr> =
        endpoints.into_iter().flat_map(|e| items(e, "/subsets/0/addresses")).filter_map(|a| text(a, "/ip").parse().ok()).filter(|ip| *ip != own).collect();
    if stopping {
        return live;
    }
    live.push(own);
    live.sort();
    while live.len() > count.max(1) {
        let at = live.iter().position(|ip| *ip == own).unwrap_or(0);
        live.remove((at + 1) % live.len());
    }
    live
}

fn endpoints(live: &[IpAddr], port: u16) -> Value {
    let addresses: Vec<Value> = live.iter().map(|ip| json!({"ip": ip})).collect();
    let subset = json!({"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    let subsets = if live.is_empty() { Value::Null } else { json!([subset]) };
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {SKIP_MIRROR: "true"}},
        "subsets": subsets,
    })
}

fn endpoint_slice(live: &[IpAddr], port: u16) -> Value {
    let endpoints: Vec<Value> = live.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let ports = if live.is_empty() { Value::Null } else { json!([{"name": "https", "port": port, "protocol": "TCP"}]) };
    let family = if !live.is_empty() && live.iter().all(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "generation": 1, "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family, "endpoints": endpoints, "ports": ports,
    })
}

/// Makes the object, or brings these fields and the labels of it to what is wanted.
async fn ensure(backend: &Backend, resource: &'static Resource, wanted: Value, fields: &[&str]) -> Result<(), Status> {
    let correct = |object: &mut Value| {
        for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
            object["metadata"]["labels"][key] = value.clone();
        }
        for field in fields {
            let Some(map) = object.as_object_mut() else { continue };
            match &wanted[field] {
                Value::Null => map.remove(*field),
                value => map.insert((*field).to_owned(), value.clone()),
            };
        }
    };
    let Some(current) = backend.reader.get(resource, "default", "kubernetes") else {
        let mut new = wanted.clone();
        correct(&mut new);
        return backend.writer.create(resource, new).await.map(drop);
    };
    let mut changed = (*current).clone();
    correct(&mut changed);
    if changed == *current {
        return Ok(());
    }
    tracing::info!(resource = resource.plural, "the endpoints of the service kubernetes are brought up to date");
    let mut change = |object: &mut Value| -> Result<(), Status> {
        correct(object);
        Ok(())
    };
    backend.writer.modify(resource, "default", "kubernetes", &mut change).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::Reader;
    use std::sync::Arc;

    fn server(address: &str, reconciler: EndpointReconciler) -> Server {
        Server { reconciler, address: address.parse().unwrap(), port: 6443 }
    }

    fn stand(objects: &Arc<Objects>) -> Vec<String> {
        let endpoints = objects.get(&ENDPOINTS, "default", "kubernetes").unwrap();
        let slice = objects.get(&ENDPOINT_SLICES, "default", "kubernetes").unwrap();
        let in_endpoints: Vec<String> = items(&endpoints, "/subsets/0/addresses").map(|a| text(a, "/ip").to_owned()).collect();
        let in_slice: Vec<String> = items(&slice, "/endpoints").map(|e| text(e, "/addresses/0").to_owned()).collect();
        assert_eq!(in_endpoints, in_slice);
        in_endpoints
    }

    #[test]
    fn servers_that_renew_their_keys_stand_in_the_endpoints() {
        let objects = Objects::new();
        let backend = objects.backend();
        let (a, b) = (server("192.0.2.2", EndpointReconciler::Lease), server("192.0.2.1", EndpointReconciler::Lease));
        block_on(a.reconcile(&backend)).unwrap();
        assert_eq!(stand(&objects), ["192.0.2.2"]);
        block_on(b.reconcile(&backend)).unwrap();
        block_on(b.reconcile(&backend)).unwrap();
        assert_eq!(stand(&objects), ["192.0.2.1", "192.0.2.2"]);
        let (key, _, ttl) = objects.unserved.lock()["/registry/masterleases/192.0.2.1"].clone();
        assert_eq!((key["metadata"]["generation"].clone(), text(&key, "/subsets/0/addresses/0/ip"), ttl), (json!(2), "192.0.2.1", Some(15)));
        let version = objects.version(&ENDPOINTS);
        block_on(b.reconcile(&backend)).unwrap();
        assert_eq!(objects.version(&ENDPOINTS), version + 1, "the key is all that is written");
        // its time to live has passed
        objects.unserved.lock().remove("/registry/masterleases/192.0.2.2");
        block_on(b.reconcile(&backend)).unwrap();
        assert_eq!(stand(&objects), ["192.0.2.1"]);
        block_on(b.remove(&backend)).unwrap();
        assert!(stand(&objects).is_empty() && objects.unserved.lock().is_empty());
        let endpoints = objects.get(&ENDPOINTS, "default", "kubernetes").unwrap();
        assert!(endpoints.get("subsets").is_none() && endpoints["metadata"]["labels"][SKIP_MIRROR] == "true");
    }

    #[test]
    fn a_number_of_servers() {
        let objects = Objects::new();
        let backend = objects.backend();
        let of = |address: &str| server(address, EndpointReconciler::MasterCount(2));
        for address in ["192.0.2.3", "192.0.2.1"] {
            block_on(of(address).reconcile(&backend)).unwrap();
        }
        assert_eq!(stand(&objects), ["192.0.2.1", "192.0.2.3"]);
        block_on(of("192.0.2.2").reconcile(&backend)).unwrap();
        assert_eq!(stand(&objects), ["192.0.2.1", "192.0.2.2"]);
        block_on(of("192.0.2.1").remove(&backend)).unwrap();
        assert_eq!(stand(&objects), ["192.0.2.2"]);
        assert!(objects.unserved.lock().is_empty());
    }

    #[test]
    fn others_may_see_to_it() {
        let objects = Objects::new();
        let none = server("192.0.2.3", EndpointReconciler::None);
        block_on(none.reconcile(&objects.backend())).unwrap();
        block_on(none.remove(&objects.backend())).unwrap();
        assert!(objects.get(&ENDPOINTS, "default", "kubernetes").is_none());
    }

    #[test]
    fn another_family_makes_another_slice() {
        let objects = Objects::new();
        block_on(server("192.0.2.3", EndpointReconciler::MasterCount(1)).reconcile(&objects.backend())).unwrap();
        block_on(server("2001:db8::1", EndpointReconciler::MasterCount(1)).reconcile(&objects.backend())).unwrap();
        assert_eq!(objects.get(&ENDPOINT_SLICES, "default", "kubernetes").unwrap()["addressType"], "IPv6");
        assert_eq!(stand(&objects), ["2001:db8::1"]);
    }
}
