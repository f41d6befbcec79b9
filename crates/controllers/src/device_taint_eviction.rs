//! Device taint eviction: pods stop that use a device with a NoExecute taint which their claim does not
//! tolerate, or not for ever.
//!
//! Taints are those in ResourceSlices. DeviceTaintRules are behind a gate that is off.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use crate::pod::Pod;
use crate::resource_claim::{Known, claims_of, is_for, known};
use crate::{Context, pods};

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "" | "Equal" => toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
            "Exists" => true,
            _ => false,
        }
}

/// The taints of a device, by the newest slices of its pool.
fn taints<'a>(slices: &'a [Arc<ResourceSlice>], driver: &str, pool: &str, device: &str) -> Vec<&'a DeviceTaint> {
    let of_pool = |s: &&Arc<ResourceSlice>| s.spec.driver == driver && s.spec.pool.name == pool;
    let newest = slices.iter().filter(of_pool).map(|s| s.spec.pool.generation).max();
    let current = slices.iter().filter(of_pool).filter(|s| Some(s.spec.pool.generation) == newest);
    let devices = current.flat_map(|s| s.spec.devices.iter().flatten()).filter(|d| d.name == device);
    devices.flat_map(|d| d.taints.iter().flatten()).collect()
}

/// When users of a claim must stop; nothing when they need not.
pub fn claim_ends(claim: &ResourceClaim, slices: &[Arc<ResourceSlice>], now: Timestamp) -> Option<Timestamp> {
    let devices = claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?;
    let mut end: Option<Timestamp> = None;
    for result in devices.results.iter().flatten() {
        let driving = taints(slices, &result.driver, &result.pool, &result.device).into_iter().filter(|t| t.effect == "NoExecute");
        for taint in driving {
            let added = taint.time_added.as_ref().map_or(now, |t| t.0);
            let covering: Vec<&DeviceToleration> =
                result.tolerations.iter().flatten().filter(|t| t.effect.as_deref() == Some("NoExecute") && tolerates(t, taint)).collect();
            if covering.iter().any(|t| t.toleration_seconds.is_none()) {
                continue;
            }
            let seconds = covering.iter().filter_map(|t| t.toleration_seconds).min().unwrap_or(0).max(0);
            let at = added.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
            end = Some(end.map_or(at, |e| e.min(at)));
        }
    }
    end
}

/// When a pod must stop, given the claims of its namespace.
pub fn pod_ends(pod: &Pod, claims: &[Arc<ResourceClaim>], slices: &[Arc<ResourceSlice>], now: Timestamp) -> Option<Timestamp> {
    if pod.spec.as_ref().is_none_or(|s| s.node_name.as_deref().is_none_or(str::is_empty)) {
        return None;
    }
    let used = claims_of(pod).iter().filter_map(|entry| {
        let Known::Named(name, own) = known(pod, entry) else { return None };
        let claim = claims.iter().find(|c| c.name_any() == name && (!own || is_for(pod, c)))?;
        let reserved = claim.status.as_ref()?.reserved_for.as_deref().unwrap_or(&[]);
        reserved.iter().any(|r| Some(&r.uid) == pod.metadata.uid.as_ref()).then_some(claim)
    });
    used.filter_map(|claim| claim_ends(claim, slices, now)).min()
}

type Key = (String, String);

#[derive(Clone)]
struct Controller {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    recorder: Recorder,
    /// Planned evictions, by the pod's uid.
    planned: Arc<Mutex<HashMap<Key, String>>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        pods: context.informers.of::<Pod>(),
        claims: context.informers.of::<ResourceClaim>(),
        slices: context.informers.of::<ResourceSlice>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "device-taint-eviction-controller", None),
        planned: Arc::default(),
    };
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    controller.pods.on_change(move |change| {
        let pod = change.latest();
        if !claims_of(pod).is_empty() {
            q.add((pod.namespace().unwrap_or_default(), pod.name_any()));
        }
    });
    let (q, all) = (queue.clone(), controller.pods.clone());
    let users = move |claim: &ResourceClaim| {
        let namespace = claim.namespace().unwrap_or_default();
        let consumers = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
        consumers.filter(|c| c.resource == "pods" && all.get(&namespace, &c.name).is_some()).for_each(|c| q.add((namespace.clone(), c.name.clone())));
    };
    let of_claim = users.clone();
    controller.claims.on_change(move |change| [&change.old, &change.new].into_iter().flatten().for_each(|c| of_claim(c)));
    let claims = controller.claims.clone();
    controller.slices.on_change(move |change| {
        let tainted = |s: &Option<Arc<ResourceSlice>>| s.as_ref().is_some_and(|s| s.spec.devices.iter().flatten().any(|d| d.taints.as_ref().is_some_and(|t| !t.is_empty())));
        if tainted(&change.old) || tainted(&change.new) {
            let driver = &change.latest().spec.driver;
            let uses = |c: &&Arc<ResourceClaim>| {
                let devices = c.status.as_ref().and_then(|s| s.allocation.as_ref()?.devices.as_ref()?.results.as_ref());
                devices.is_some_and(|r| r.iter().any(|r| r.driver == *driver))
            };
            claims.list().iter().filter(uses).for_each(|c| users(c));
        }
    });
    run_workers(&context.tasks, "device-taint-eviction", context.workers(10), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.pods.synced().await;
            controller.claims.synced().await;
            controller.slices.synced().await;
            controller.sync(key).await
        }
    });
}

impl Controller {
    async fn sync(&self, key: Key) -> kube::Result<Requeue> {
        let (namespace, name) = &key;
        let Some(pod) = self.pods.get(namespace, name).filter(|p| p.metadata.deletion_timestamp.is_none()) else {
            self.planned.lock().remove(&key);
            return Ok(Requeue::No);
        };
        let uid = pod.uid().unwrap_or_default();
        let now = Timestamp::now();
        let tell = |what: &str| self.recorder.event(&Reference::of(pod.as_ref()), EventType::Normal, "DeviceTaintManagerEviction", what);
        match pod_ends(&pod, &self.claims.in_namespace(namespace), &self.slices.list(), now) {
            None => {
                if self.planned.lock().remove(&key).is_some_and(|of| of == uid) {
                    tell("Cancelling deletion");
                }
                Ok(Requeue::No)
            }
            Some(at) if at > now => {
                self.planned.lock().insert(key.clone(), uid);
                Ok(Requeue::After(at.duration_since(now).unsigned_abs()))
            }
            Some(_) => {
                tell("Marking for deletion");
                let why = ("DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint");
                pods::evict(&self.client, namespace, name, uid, why, now).await?;
                self.planned.lock().remove(&key);
                Ok(Requeue::No)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn slice(name: &str, generation: i64, effect: &str) -> Arc<ResourceSlice> {
        let taint = json!([{"key": "broken", "value": "yes", "effect": effect, "timeAdded": at(100).to_string()}]);
        let spec = json!({"driver": "d", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1}, "devices": [{"name": "gpu", "taints": taint}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a slice"))
    }

    fn claim(device: &str, tolerations: Value) -> Arc<ResourceClaim> {
        let result = json!({"request": "r", "driver": "d", "pool": "p", "device": device, "tolerations": tolerations});
        let status = json!({"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": status})).expect("a claim"))
    }

    fn pod(uid: &str, node: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": uid}, "spec": {"nodeName": node, "containers": [], "resourceClaims": [{"name": "x", "resourceClaimName": "c"}]}}))
            .expect("a pod")
    }

    #[test]
    fn users_of_a_broken_device_stop() {
        let ends = |pod: &Pod, claim: Arc<ResourceClaim>, slices: &[Arc<ResourceSlice>]| pod_ends(pod, &[claim], slices, at(200));
        let broken = [slice("s", 1, "NoExecute")];
        assert_eq!(ends(&pod("u", "n"), claim("gpu", json!([])), &broken), Some(at(100)));
        assert_eq!(ends(&pod("u", "n"), claim("other", json!([])), &broken), None);
        assert_eq!(ends(&pod("v", "n"), claim("gpu", json!([])), &broken), None, "it is reserved for another pod");
        assert_eq!(ends(&pod("u", ""), claim("gpu", json!([])), &broken), None, "it does not run yet");
        assert_eq!(ends(&pod("u", "n"), claim("gpu", json!([])), &[slice("s", 1, "NoSchedule")]), None);
        let mended = [slice("s", 1, "NoExecute"), slice("t", 2, "NoSchedule")];
        assert_eq!(ends(&pod("u", "n"), claim("gpu", json!([])), &mended), None, "old slices do not count");
        for (key, value) in [("driver", json!("e")), ("pool", json!({"name": "q", "generation": 1, "resourceSliceCount": 1}))] {
            let mut other = json!(*broken[0]);
            other["spec"][key] = value;
            let other = Arc::new(serde_json::from_value(other).expect("a slice"));
            assert_eq!(ends(&pod("u", "n"), claim("gpu", json!([])), &[other]), None, "another {key} has a device of that name");
        }
        let mut unused = claim("gpu", json!([])).as_ref().clone();
        unused.metadata.name = Some("d".into());
        assert_eq!(ends(&pod("u", "n"), Arc::new(unused), &broken), None, "it does not use that claim");
    }

    #[test]
    fn a_claim_may_tolerate() {
        let broken = [slice("s", 1, "NoExecute")];
        let ends = |tolerations: Value| claim_ends(&claim("gpu", tolerations), &broken, at(200));
        assert_eq!(ends(json!([{"key": "broken", "operator": "Exists", "effect": "NoExecute"}])), None);
        assert_eq!(ends(json!([{"key": "broken", "operator": "Exists", "effect": "NoSchedule"}])), Some(at(100)));
        assert_eq!(ends(json!([{"key": "broken", "operator": "Equal", "value": "no", "effect": "NoExecute"}])), Some(at(100)));
        assert_eq!(ends(json!([{"key": "broken", "operator": "Equal", "value": "yes", "effect": "NoExecute"}])), None);
        assert_eq!(ends(json!([{"key": "hot", "operator": "Exists", "effect": "NoExecute"}])), Some(at(100)));
        let timed = |seconds: i64| json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        assert_eq!(ends(json!([timed(60), timed(30)])), Some(at(130)));
        assert_eq!(ends(json!([timed(-5)])), Some(at(100)));
    }
}
