//! ephemeral-volume: a claim for each ephemeral volume of a pod, owned by the pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use reconcile::{EventType, Queue, Recorder, Reference, Requeue, run_workers};
use rules::storage;

use crate::pod::Pod;
use crate::{Context, ownership, pods as control};

/// The claims that are missing, each with its volume's name, and where one is somebody else's, why
/// the pod cannot have it.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub create: Vec<(String, PersistentVolumeClaim)>,
    pub foreign: Vec<(String, String)>,
}

/// Decides for one pod.
pub fn plan(pod: &Pod, claim: impl Fn(&str) -> Option<Arc<PersistentVolumeClaim>>) -> Plan {
    let mut plan = Plan::default();
    if pod.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let Some(source) = &volume.ephemeral else { continue };
        let name = storage::ephemeral_claim_name(&pod.metadata, volume);
        match claim(&name) {
            Some(claim) => {
                if let Err(why) = storage::made_for(&pod.metadata, &claim) {
                    plan.foreign.push((volume.name.clone(), why));
                }
            }
            None => {
                let template = source.volume_claim_template.clone().unwrap_or_default();
                let meta = template.metadata.unwrap_or_default();
                let metadata = ObjectMeta {
                    name: Some(name),
                    namespace: pod.namespace(),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![ownership::controller_reference(pod)]),
                    ..ObjectMeta::default()
                };
                plan.create.push((volume.name.clone(), PersistentVolumeClaim { metadata, spec: Some(template.spec), status: None }));
            }
        }
    }
    plan
}

/// Starts the controller.
pub fn start(context: &Context) {
    let pods = context.informers.of::<Pod>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let queue = Queue::<(String, String)>::new();
    let ephemeral = |pod: &Pod| pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| v.ephemeral.is_some());
    let key = |pod: &Pod| (pod.namespace().unwrap_or_default(), pod.name_any());
    let q = queue.clone();
    pods.on_change(move |change| {
        if let Some(pod) = &change.new
            && ephemeral(pod)
        {
            q.add(key(pod));
        }
    });
    let q = queue.clone();
    claims.on_change(move |change| {
        if change.new.is_none()
            && let Some(owner) = ownership::controller_of(&change.latest().metadata).filter(|o| o.kind == "Pod")
        {
            q.add((change.latest().namespace().unwrap_or_default(), owner.name.clone()));
        }
    });
    let client = context.client.clone();
    let recorder = Recorder::new(&context.tasks, client.clone(), "ephemeral_volume", None);
    run_workers(&context.tasks, "ephemeral-volume", 5, queue, move |(namespace, name): (String, String)| {
        let (client, pods, claims, recorder) = (client.clone(), pods.clone(), claims.clone(), recorder.clone());
        async move {
            claims.synced().await;
            let Some(pod) = pods.get(&namespace, &name) else { return Ok(Requeue::No) };
            let plan = plan(&pod, |name| claims.get(&namespace, name));
            let tell = |volume: &str, why: &str| {
                recorder.event(&Reference::of(pod.as_ref()), EventType::Warning, "FailedBinding", format!("ephemeral volume {volume}: {why}"));
            };
            let api = Api::<PersistentVolumeClaim>::namespaced(client, &namespace);
            for (volume, claim) in &plan.create {
                match api.create(&PostParams::default(), claim).await {
                    Ok(_) => {}
                    // The informer is behind; it will say whose claim it is.
                    Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Requeue::After(std::time::Duration::from_millis(50))),
                    Err(kube::Error::Api(status)) if status.code == 404 || status.message.contains("being terminated") => {}
                    Err(error) => {
                        tell(volume, &format!("create PVC {}: {}", claim.name_any(), control::text(&error)));
                        return Err(error);
                    }
                }
            }
            for (volume, why) in &plan.foreign {
                tell(volume, why);
            }
            Ok(if plan.foreign.is_empty() { Requeue::No } else { Requeue::After(std::time::Duration::from_secs(15)) })
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_missing_claim_is_made_and_a_foreign_one_told_of() {
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [], "volumes": [
            {"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}, "spec": {"storageClassName": "fast"}}}},
            {"name": "w", "emptyDir": {}}]}})).expect("a pod");
        let made = plan(&pod, |_| None);
        let [(volume, claim)] = made.create.as_slice() else { panic!("one claim: {made:?}") };
        assert_eq!((volume.as_str(), claim.name_any().as_str()), ("v", "p-v"));
        assert_eq!(claim.labels().get("a").map(String::as_str), Some("b"));
        assert_eq!(claim.annotations().get("c").map(String::as_str), Some("d"));
        assert_eq!(claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()), Some("fast"));
        assert!(storage::made_for(&pod.metadata, claim).is_ok());
        assert_eq!(plan(&pod, |_| Some(Arc::new(claim.clone()))), Plan::default());
        let mut foreign = claim.clone();
        foreign.metadata.owner_references = None;
        let why = "PVC n/p-v was not created for pod n/p (pod is not owner)".to_string();
        assert_eq!(plan(&pod, |_| Some(Arc::new(foreign.clone()))).foreign, [("v".to_string(), why)]);
        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        assert_eq!(plan(&pod, |_| None), Plan::default());
    }
}
