//! ReplicaSets: as many pods as are wanted, adopted or created, and the status that tells of them.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, labels, run_workers};

use crate::Context;
use crate::expectations::Expectations;
use crate::ownership::{self, Claim};
use crate::pods::{self, PodControl};

/// Most pods created or deleted in one pass.
const BURST: usize = 500;

/// What one pass does about the number of pods.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Nothing is missing or too much.
    Nothing,
    /// So many are missing.
    Create(usize),
    /// These are too much.
    Delete(Vec<Arc<Pod>>),
}

/// Decides how to come from `active` pods to `wanted`.
pub fn plan(wanted: i32, active: &[Arc<Pod>]) -> Plan {
    let wanted = wanted.max(0) as usize;
    if active.len() < wanted {
        Plan::Create((wanted - active.len()).min(BURST))
    } else if active.len() > wanted {
        let mut ranked = active.to_vec();
        ranked.sort_by_key(|p| deletion_rank(p));
        ranked.truncate((active.len() - wanted).min(BURST));
        Plan::Delete(ranked)
    } else {
        Plan::Nothing
    }
}

/// Pods that are least missed come first: unassigned, pending, unready, cheap to delete, ready for
/// a shorter time, restarted more often, younger.
fn deletion_rank(pod: &Pod) -> impl Ord + use<> {
    let assigned = pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let phase = match pods::phase(pod) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost: i32 = pod
        .annotations()
        .get("controller.kubernetes.io/pod-deletion-cost")
        .and_then(|c| c.parse().ok())
        .unwrap_or(0);
    let restarts = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max();
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (
        assigned,
        phase,
        pods::is_ready(pod),
        cost,
        Reverse(pods::ready_since(pod)),
        Reverse(restarts),
        Reverse(created),
        pod.name_any(),
    )
}

/// The status that `active` pods amount to; the second value says when it should be looked at again.
pub fn status(set: &ReplicaSet, active: &[Arc<Pod>], failure: Option<&str>, now: Timestamp) -> (ReplicaSetStatus, Option<Duration>) {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = Duration::from_secs(spec.min_ready_seconds.unwrap_or(0).max(0) as u64);
    let template = spec.template.and_then(|t| t.metadata).and_then(|m| m.labels).unwrap_or_default();
    let mut status = ReplicaSetStatus {
        replicas: active.len() as i32,
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut again) = (0, 0, 0, None);
    for pod in active {
        labelled += i32::from(template.iter().all(|(k, v)| pod.labels().get(k) == Some(v)));
        ready += i32::from(pods::is_ready(pod));
        match pods::availability(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(wait)) => again = Some(again.map_or(wait, |a: Duration| a.min(wait))),
            Err(None) => {}
        }
    }
    status.fully_labeled_replicas = Some(labelled);
    status.ready_replicas = Some(ready);
    status.available_replicas = Some(available);
    let failed = status.conditions.iter().flatten().any(|c| c.type_ == "ReplicaFailure");
    match failure {
        Some(message) if !failed => status.conditions.get_or_insert_default().push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(message.to_string()),
            last_transition_time: Some(Time(now)),
        }),
        None if failed => status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "ReplicaFailure")),
        _ => {}
    }
    status.conditions = status.conditions.filter(|c| !c.is_empty());
    (status, again)
}

/// Starts the controller.
pub fn start(context: &Context) {
    let pods = context.informers.of::<Pod>();
    let sets = context.informers.of::<ReplicaSet>();
    let queue = Queue::<(String, String)>::new();
    let control = PodControl {
        client: context.client.clone(),
        expectations: Expectations::following(&pods),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "replicaset-controller", None),
        pods: pods.clone(),
    };
    let q = queue.clone();
    sets.on_change(move |change| q.add(key(change.latest().as_ref())));
    let (q, all) = (queue.clone(), sets.clone());
    pods.on_change(move |change| {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            match ownership::controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => q.add((pod.namespace().unwrap_or_default(), owner.name.clone())),
                Some(_) => {}
                // An orphan may be adopted by any set that selects it.
                None => all
                    .in_namespace(&pod.namespace().unwrap_or_default())
                    .iter()
                    .filter(|s| s.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, pod.labels())))
                    .for_each(|s| q.add(key(s.as_ref()))),
            }
        }
    });
    run_workers(&context.tasks, "replicaset", 5, queue, move |key| {
        let (control, sets) = (control.clone(), sets.clone());
        async move {
            sets.synced().await;
            control.pods.synced().await;
            sync(&control, &sets, &key.0, &key.1).await
        }
    });
}

fn key<K: ResourceExt>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

async fn sync(control: &PodControl, sets: &Informer<ReplicaSet>, namespace: &str, name: &str) -> kube::Result<Requeue> {
    let Some(set) = sets.get(namespace, name) else { return Ok(Requeue::No) };
    let uid = set.uid().unwrap_or_default();
    let spec = set.spec.clone().unwrap_or_default();
    let mut active: Vec<Arc<Pod>> = Vec::new();
    for pod in control.pods.in_namespace(namespace) {
        if !pods::is_active(&pod) {
            continue;
        }
        let matches = labels::matches(&spec.selector, pod.labels());
        let pod_uid = pod.uid().unwrap_or_default();
        let patch = match ownership::claim(&uid, set.metadata.deletion_timestamp.is_some(), &pod.metadata, matches) {
            Claim::Keep => {
                active.push(pod);
                continue;
            }
            Claim::Ignore => continue,
            Claim::Adopt => ownership::adopt_patch(&ownership::controller_reference(set.as_ref()), &pod_uid),
            Claim::Release => ownership::release_patch(&uid, &pod_uid),
        };
        let api = Api::<Pod>::namespaced(control.client.clone(), namespace);
        match api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(patched) if matches => active.push(Arc::new(patched)),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
            Err(error) => return Err(error),
        }
    }
    let owner = Reference::of(set.as_ref());
    let mut outcome = Ok(());
    if control.expectations.fulfilled(&uid) && set.metadata.deletion_timestamp.is_none() {
        match plan(spec.replicas.unwrap_or(1), &active) {
            Plan::Nothing => {}
            Plan::Create(count) => {
                let template = spec.template.clone().unwrap_or_default();
                let reference = ownership::controller_reference(set.as_ref());
                let new = (0..count).map(|_| pods::from_template(namespace, format!("{name}-"), &template, reference.clone()));
                outcome = control.create(&owner, new.collect()).await.map(|_| ());
            }
            Plan::Delete(excess) => outcome = control.delete(&owner, &excess).await,
        }
    }
    let failure = outcome.as_ref().err().map(pods::text);
    let (status, again) = status(&set, &active, failure.as_deref(), Timestamp::now());
    write_status(control, &set, status).await?;
    outcome?;
    Ok(again.map_or(Requeue::No, Requeue::After))
}

async fn write_status(control: &PodControl, set: &ReplicaSet, status: ReplicaSetStatus) -> kube::Result<()> {
    let mut old = set.status.clone().unwrap_or_default();
    for count in [&mut old.fully_labeled_replicas, &mut old.ready_replicas, &mut old.available_replicas] {
        count.get_or_insert(0);
    }
    old.terminating_replicas = None;
    if old == status {
        return Ok(());
    }
    let api = Api::<ReplicaSet>::namespaced(control.client.clone(), &set.namespace().unwrap_or_default());
    let mut new = set.clone();
    new.status = Some(status);
    match api.replace_status(&set.name_any(), &Default::default(), &new).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => {
            if !matches!(&error, kube::Error::Api(s) if s.code == 409) {
                control.recorder.event(&Reference::of(set), EventType::Warning, "FailedUpdateStatus", pods::text(&error));
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"app": "a"}},
                "spec": {"nodeName": "n", "containers": []},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
            }))
            .expect("a pod"),
        )
    }

    #[test]
    fn missing_pods_are_created_and_the_least_useful_ones_deleted() {
        let three = [pod("a", "Running", true), pod("b", "Pending", false), pod("c", "Running", false)];
        assert_eq!(plan(5, &three), Plan::Create(2));
        assert_eq!(plan(3, &three), Plan::Nothing);
        let Plan::Delete(gone) = plan(1, &three) else { panic!("two are too many") };
        assert_eq!(gone.iter().map(|p| p.name_any()).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 3},
            "spec": {"minReadySeconds": 10, "selector": {}, "template": {"metadata": {"labels": {"app": "a"}}}}
        }))
        .expect("a set");
        let pods = [pod("a", "Running", true), pod("b", "Running", false)];
        let now = "2026-01-01T00:00:04Z".parse().expect("a time");
        let (status, again) = status(&set, &pods, None, now);
        assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (2, Some(1), Some(0)));
        assert_eq!((status.fully_labeled_replicas, status.observed_generation), (Some(2), Some(3)));
        assert_eq!(again, Some(Duration::from_secs(6)));
    }
}
