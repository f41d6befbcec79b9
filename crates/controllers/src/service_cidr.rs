//! ServiceCIDRs: each is made ready, and none is removed under the addresses that need it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::{Value, json};

use crate::Context;

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How long a deletion waits after nothing holds it: other API servers may be giving addresses yet.
const GRACE: Duration = Duration::from_secs(10);

/// A network: address and prefix length.
type Network = (IpAddr, u8);

fn network(text: &str) -> Option<Network> {
    let (address, length) = text.split_once('/')?;
    Some((address.parse().ok()?, length.parse().ok()?))
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

/// Whether a network contains another, or an address (a network of full length).
fn contains(outer: Network, inner: Network) -> bool {
    let ((a, width), (b, other)) = (bits(outer.0), bits(inner.0));
    let shift = 128 - u32::from(outer.1);
    width == other && outer.1 <= inner.1 && (shift == 128 || a >> shift == b >> shift)
}

fn networks(cidr: &ServiceCIDR) -> Vec<Network> {
    cidr.spec.iter().flat_map(|s| s.cidrs.iter().flatten()).filter_map(|c| network(c)).collect()
}

/// The networks that services may use: those of all that are not being deleted.
fn live<'a>(all: &'a [Arc<ServiceCIDR>], but: &'a ServiceCIDR) -> impl Iterator<Item = &'a Arc<ServiceCIDR>> {
    all.iter().filter(move |c| c.metadata.name != but.metadata.name && c.metadata.deletion_timestamp.is_none())
}

/// Whether nothing needs this one any more: others contain it, or contain all addresses in it.
pub fn may_go(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let covered = |inner: Network| live(all, cidr).flat_map(|c| networks(c)).any(|outer| contains(outer, inner));
    let own = networks(cidr);
    if own.iter().all(|n| covered(*n)) {
        return true;
    }
    let held = addresses.iter().filter(|a| a.labels().get(MANAGED_BY).is_some_and(|m| m == ALLOCATOR));
    let held = held.filter_map(|a| a.name_any().parse::<IpAddr>().ok()).map(|ip| (ip, bits(ip).1));
    held.filter(|ip| own.iter().any(|n| contains(*n, *ip))).all(covered)
}

/// What is to be done with one.
#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    AddFinalizer,
    DropFinalizer,
    Wait(Duration),
    /// The condition `Ready` that it is to have: status, reason, message.
    Say(&'static str, &'static str, &'static str),
}

/// Decides about one.
pub fn plan(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>], now: Timestamp) -> Step {
    let has_finalizer = cidr.finalizers().iter().any(|f| f == FINALIZER);
    let ready = cidr.status.as_ref().and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready"));
    let say = |status: &'static str, reason: &'static str, message: &'static str| {
        let said = ready.is_some_and(|c| c.status == status && c.reason == reason && c.message == message);
        if said { Step::Nothing } else { Step::Say(status, reason, message) }
    };
    match cidr.metadata.deletion_timestamp.as_ref() {
        Some(_) if !has_finalizer => Step::Nothing,
        Some(_) if !may_go(cidr, all, addresses) => {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
            say("False", "Terminating", message)
        }
        Some(deleted) => match GRACE.checked_sub(now.duration_since(deleted.0).unsigned_abs()) {
            Some(left) if !left.is_zero() => Step::Wait(left),
            _ => Step::DropFinalizer,
        },
        None if !has_finalizer => Step::AddFinalizer,
        None => say("True", "", "Kubernetes Service CIDR is ready"),
    }
}

/// Starts the controller.
pub fn start(context: &Context) {
    let cidrs: Informer<ServiceCIDR> = context.informers.of::<ServiceCIDR>();
    let addresses: Informer<IPAddress> = context.informers.of::<IPAddress>();
    let recorder = Recorder::new(&context.tasks, context.client.clone(), NAME, None);
    let queue = Queue::<String>::new();
    // One's coming or going may free another; there are few.
    let (q, all) = (queue.clone(), cidrs.clone());
    cidrs.on_change(move |change| {
        q.add(change.latest().name_any());
        all.list().iter().filter(|c| c.metadata.deletion_timestamp.is_some()).for_each(|c| q.add(c.name_any()));
    });
    let (q, all) = (queue.clone(), cidrs.clone());
    addresses.on_change(move |_| {
        all.list().iter().filter(|c| c.metadata.deletion_timestamp.is_some()).for_each(|c| q.add(c.name_any()));
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "service-cidr", context.workers(5), queue, move |name: String| {
        let (client, cidrs, addresses, recorder) = (client.clone(), cidrs.clone(), addresses.clone(), recorder.clone());
        async move {
            cidrs.synced().await;
            addresses.synced().await;
            let Some(cidr) = cidrs.get("", &name) else { return Ok(Requeue::No) };
            let api = Api::<ServiceCIDR>::all(client);
            let patch = |patch: Value| {
                let (api, name) = (api.clone(), name.clone());
                async move { api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()) }
            };
            let now = Timestamp::now();
            let result = match plan(&cidr, &cidrs.list(), &addresses.list(), now) {
                Step::Nothing => Ok(()),
                Step::Wait(left) => return Ok(Requeue::After(left)),
                Step::AddFinalizer => patch(json!({"metadata": {"finalizers": [FINALIZER]}})).await,
                Step::DropFinalizer => patch(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}})).await,
                Step::Say(status, reason, message) => {
                    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                    let condition = json!({"type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": at});
                    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "status": {"conditions": [condition]}});
                    let result = api.patch_status(&name, &PatchParams::apply(NAME).force(), &Patch::Apply(object)).await.map(|_| ());
                    if result.is_err() && status == "True" {
                        let message = "The ServiceCIDR Status can not be set to Ready=True";
                        recorder.event(&Reference::of(cidr.as_ref()), EventType::Warning, "KubernetesServiceCIDRError", message);
                    }
                    result
                }
            };
            match result {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
                other => other.map(|()| Requeue::No),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + second).expect("a time")
    }

    fn cidr(name: &str, cidrs: &[&str], deleted: bool) -> Arc<ServiceCIDR> {
        let deleted = deleted.then(|| at(0).to_string());
        let meta = json!({"name": name, "deletionTimestamp": deleted, "finalizers": [FINALIZER]});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"cidrs": cidrs}})).expect("a ServiceCIDR"))
    }

    fn address(ip: &str) -> Arc<IPAddress> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": ip, "labels": {MANAGED_BY: ALLOCATOR}}})).expect("an IPAddress"))
    }

    #[test]
    fn a_new_one_becomes_ready() {
        let mut new = cidr("a", &["10.0.0.0/24"], false).as_ref().clone();
        let Step::Say("True", reason, message) = plan(&new, &[], &[], at(0)) else { panic!("it is ready") };
        let condition = json!({"conditions": [{"type": "Ready", "status": "True", "reason": reason, "message": message, "lastTransitionTime": at(0).to_string()}]});
        new.status = Some(serde_json::from_value(condition).expect("a status"));
        assert_eq!(plan(&new, &[], &[], at(0)), Step::Nothing);
        for (key, value) in [("status", "False"), ("reason", "Other"), ("message", "other")] {
            let mut said = json!(new);
            said["status"]["conditions"][0][key] = value.into();
            let said = serde_json::from_value(said).expect("a ServiceCIDR");
            assert!(matches!(plan(&said, &[], &[], at(0)), Step::Say("True", ..)), "{key}");
        }
        new.metadata.finalizers = None;
        assert_eq!(plan(&new, &[], &[], at(0)), Step::AddFinalizer);
    }

    #[test]
    fn addresses_hold_the_only_one_that_they_are_in() {
        let gone = cidr("a", &["10.0.0.0/24"], true);
        let wide = cidr("b", &["10.0.0.0/16"], false);
        let half = cidr("c", &["10.0.0.128/25"], false);
        let other = cidr("d", &["fd00::/112"], false);
        let held = [address("10.0.0.5")];
        let of = |others: &[&Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]| {
            let all: Vec<_> = others.iter().map(|c| (*c).clone()).chain([gone.clone()]).collect();
            plan(&gone, &all, addresses, at(60))
        };
        assert!(matches!(of(&[&other], &held), Step::Say("False", "Terminating", _)));
        assert!(matches!(of(&[&half], &held), Step::Say("False", ..)));
        assert_eq!(of(&[&half], &[address("10.0.0.200")]), Step::DropFinalizer);
        assert_eq!(of(&[&wide], &held), Step::DropFinalizer);
        assert_eq!(of(&[], &[address("10.0.1.5"), address("fd00::1")]), Step::DropFinalizer);
        assert!(matches!(of(&[&cidr("e", &["10.0.0.0/16"], true)], &held), Step::Say("False", ..)), "the other one goes too");
        assert_eq!(of(&[], &[address("a00::5")]), Step::DropFinalizer, "its bits are those of 10.0.0.0, its family is not");
        assert_eq!(plan(&gone, &[], &[], at(4)), Step::Wait(Duration::from_secs(6)));
        assert_eq!(plan(&gone, &[], &[], at(10)), Step::DropFinalizer);
        let mut free = gone.as_ref().clone();
        free.metadata.finalizers = None;
        assert_eq!(plan(&free, &[], &[], at(60)), Step::Nothing);
    }
}
