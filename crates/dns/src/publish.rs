//! The Service and EndpointSlice that lead pods to the DNS servers. Each node serves its own pods at
//! the first address of its pod range; the Service has no selector, and its slice names them all,
//! each hinted to its own node.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use reconcile::{Informers, Tasks};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const SLICE: &str = "kube-dns-nodes";
const MANAGER: &str = "knarr-dns";
const RETRY: Duration = Duration::from_millis(200);

/// Why the objects could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of ours is not what the API takes.
    #[error("an object of cluster DNS")]
    Object(#[from] serde_json::Error),
    /// The API server refused or did not answer.
    #[error("publishing cluster DNS")]
    Api(#[from] kube::Error),
}

/// The Service at this address.
pub fn service(address: IpAddr) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "clusterIPs": [address.to_string()],
            "trafficDistribution": "PreferSameNode",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

/// The slice of these nodes' servers. A node that another kubelet runs has none: its pods ask those of the others.
pub fn slice(nodes: &[Arc<Node>]) -> Value {
    let endpoints: Vec<Value> = nodes
        .iter()
        .filter(|node| serves(node))
        .filter_map(|node| {
            let name = node.metadata.name.as_deref()?;
            let address = gateway(node.spec.as_ref()?.pod_cidr.as_deref()?)?;
            Some(json!({
                "addresses": [address.to_string()],
                "conditions": {"ready": !is_lost(node)},
                "nodeName": name,
                "hints": {"forNodes": [{"name": name}]},
            }))
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SLICE,
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": NAME,
                "endpointslice.kubernetes.io/managed-by": "dns.knarr.dev",
            },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ],
    })
}

/// The first address of an IPv4 pod range.
pub fn gateway(range: &str) -> Option<Ipv4Addr> {
    let (address, length) = range.split_once('/')?;
    let (address, length): (Ipv4Addr, u32) = (address.parse().ok()?, length.parse().ok()?);
    let network = u32::from(address) & u32::MAX.checked_shl(32u32.checked_sub(length)?).unwrap_or(0);
    Some(Ipv4Addr::from(network + 1))
}

/// Whether the node is knarr's, which its runtime tells; one that has not reported yet is taken for ours.
fn serves(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
    info.is_none_or(|i| i.container_runtime_version.is_empty() || i.container_runtime_version.starts_with("knarr://"))
}

/// Nothing has been heard of the node for too long.
fn is_lost(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "Unknown")
}

/// Makes or corrects the Service and the slice for these nodes.
pub async fn ensure(client: &Client, address: IpAddr, nodes: &[Arc<Node>]) -> Result<(), Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    if services.get_opt(NAME).await?.is_none() {
        let wanted = serde_json::from_value(service(address))?;
        match services.create(&PostParams { field_manager: Some(MANAGER.into()), ..Default::default() }, &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted: EndpointSlice = serde_json::from_value(slice(nodes))?;
    let Some(found) = slices.get_opt(SLICE).await? else {
        match slices.create(&PostParams { field_manager: Some(MANAGER.into()), ..Default::default() }, &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            other => return other.map(drop).map_err(Error::from),
        }
    };
    if differs(&found, &wanted) {
        let patch = json!({"endpoints": wanted.endpoints, "ports": wanted.ports});
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..Default::default() };
        slices.patch(SLICE, &params, &Patch::Merge(patch)).await?;
    }
    Ok(())
}

fn differs(found: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let endpoints = |slice: &EndpointSlice| slice.endpoints.iter().flatten().cloned().collect::<Vec<_>>();
    endpoints(found) != endpoints(wanted)
}

/// Keeps the objects as the Nodes say, in the process that runs the controllers. The receiver turns
/// true when they are in place for the first time.
pub fn run(address: IpAddr, informers: &Informers, tasks: &Tasks) -> watch::Receiver<bool> {
    let (ready, receiver) = watch::channel(false);
    let (nodes, services, slices) =
        (informers.of::<Node>(), informers.of::<Service>(), informers.of::<EndpointSlice>());
    let client = informers.client().clone();
    tasks.spawn("dns publisher", async move {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        nodes.on_change(move |change| {
            let view = |n: &Option<Arc<Node>>| {
                n.as_ref().map(|n| (n.spec.as_ref().and_then(|s| s.pod_cidr.clone()), is_lost(n), serves(n)))
            };
            if view(&change.old) != view(&change.new) {
                notify.notify_one();
            }
        });
        let notify = changed.clone();
        services.on_change(move |change| {
            if change.new.is_none() && change.latest().metadata.name.as_deref() == Some(NAME) {
                notify.notify_one();
            }
        });
        let notify = changed.clone();
        slices.on_change(move |change| {
            if change.latest().metadata.name.as_deref() == Some(SLICE) {
                notify.notify_one();
            }
        });
        nodes.synced().await;
        loop {
            match ensure(&client, address, &nodes.list()).await {
                Ok(()) => {
                    ready.send_if_modified(|now| !std::mem::replace(now, true));
                    changed.notified().await;
                }
                Err(error) => {
                    tracing::debug!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    });
    receiver
}
