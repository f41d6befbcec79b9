//! What controllers ask of pods, and how they make and delete them.

use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{self, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Recorder, Reference, Requeue};
use serde_json::json;

use crate::Context;
use crate::expectations::Expectations;
use crate::pod::Pod;

/// The pod's phase, or nothing when it has none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// Whether the pod counts as a replica: it has not ended and is not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !matches!(phase(pod), "Succeeded" | "Failed") && pod.metadata.deletion_timestamp.is_none()
}

/// Since when the pod is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// Whether the pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Whether the pod has been ready for `min_ready` and if not yet, after what time it will have been.
pub fn availability(pod: &Pod, min_ready: Duration, now: Timestamp) -> Result<(), Option<Duration>> {
    let since = ready_since(pod).ok_or(None)?;
    // One that becomes ready in the future, by a clock ahead of ours, has not been so for any time.
    let left = SignedDuration::try_from(min_ready).unwrap_or(SignedDuration::MAX).saturating_sub(now.duration_since(since));
    if min_ready.is_zero() || !left.is_positive() { Ok(()) } else { Err(Some(left.unsigned_abs())) }
}

/// The pod that a template makes for an owner.
pub fn from_template(namespace: &str, generate_name: String, template: &PodTemplateSpec, owner: OwnerReference) -> v1::Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    v1::Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name),
            namespace: Some(namespace.to_string()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Makes and deletes the pods of one controller, with its events and expectations.
#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub pods: Informer<Pod>,
    pub expectations: Expectations,
    pub recorder: Recorder,
}

/// Requests under way at once for one owner: they are one flow to the API server, where some 300 may wait for a seat.
const PARALLEL: usize = 128;

impl PodControl {
    /// The pods of one controller, whose events `component` records.
    pub fn new(context: &Context, component: &str) -> PodControl {
        let pods = context.informers.of::<Pod>();
        PodControl {
            client: context.client.clone(),
            expectations: Expectations::following(&pods),
            recorder: Recorder::new(&context.tasks, context.client.clone(), component, None),
            pods,
        }
    }

    /// Creates the pods in batches that double while all goes well, so that a quota or a broken
    /// template is met by few requests. Returns the first error. In a namespace that is going away
    /// nothing can be made, and that is no error.
    pub async fn create(&self, owner: &Reference, pods: Vec<v1::Pod>) -> kube::Result<usize> {
        match self.create_counted(owner, pods).await {
            (_, Some(error)) => Err(error),
            (made, None) => Ok(made),
        }
    }

    /// The same, for those who want to know how many were made before the first error.
    pub async fn create_counted(&self, owner: &Reference, pods: Vec<v1::Pod>) -> (usize, Option<kube::Error>) {
        let mut made = 0;
        let mut batch = 1;
        let mut rest = pods.into_iter();
        loop {
            let now: Vec<v1::Pod> = rest.by_ref().take(batch).collect();
            if now.is_empty() {
                return (made, None);
            }
            let results: Vec<kube::Result<()>> =
                futures::stream::iter(now).map(|pod| self.create_one(owner, pod)).buffer_unordered(PARALLEL).collect().await;
            made += results.iter().filter(|r| r.is_ok()).count();
            if let Some(error) = results.into_iter().find_map(Result::err) {
                return (made, Some(error).filter(|e| !namespace_is_ending(e)));
            }
            batch *= 2;
        }
    }

    async fn create_one(&self, owner: &Reference, pod: v1::Pod) -> kube::Result<()> {
        let api = Api::<v1::Pod>::namespaced(self.client.clone(), &owner.namespace);
        match api.create(&PostParams::default(), &pod).await {
            Ok(pod) => {
                self.expectations.created(&owner.uid, &pod, &self.pods);
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                if !namespace_is_ending(&error) {
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", format!("Error creating: {}", text(&error)));
                }
                Err(error)
            }
        }
    }

    /// Deletes the pods; one that is already gone is no error.
    pub async fn delete(&self, owner: &Reference, pods: &[std::sync::Arc<Pod>]) -> kube::Result<()> {
        let results: Vec<kube::Result<()>> = futures::stream::iter(pods.to_vec())
            .map(|pod| async move { self.delete_one(owner, &pod).await })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, owner: &Reference, pod: &Pod) -> kube::Result<()> {
        let uid = pod.uid().unwrap_or_default();
        self.expectations.deleting(&owner.uid, &uid);
        let api = Api::<Pod>::namespaced(self.client.clone(), &owner.namespace);
        let params = DeleteParams::default()
            .preconditions(Preconditions { uid: Some(uid.clone()), resource_version: None });
        match api.delete(&pod.name_any(), &params).await {
            Ok(_) => {
                self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.expectations.not_deleted(&owner.uid, &uid);
                Ok(())
            }
            // Another pod has its name, or somebody was faster: whoever asked has to look again.
            Err(error @ kube::Error::Api(_)) if is_conflict(&error) => {
                self.expectations.not_deleted(&owner.uid, &uid);
                Err(error)
            }
            Err(error) => {
                self.expectations.not_deleted(&owner.uid, &uid);
                self.recorder.event(owner, EventType::Warning, "FailedDelete", format!("Error deleting: {}", text(&error)));
                Err(error)
            }
        }
    }
}

/// Whether a creation failed because the namespace is going away.
pub fn namespace_is_ending(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.message.contains("because it is being terminated"))
}

/// Whether a write met another object than it was made for.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(s) if s.code == 409 && s.reason == "Conflict")
}

/// A write that met a newer object is tried again at once: somebody was faster, and the informer will
/// say so.
pub fn again_on_conflict(outcome: kube::Result<Requeue>) -> kube::Result<Requeue> {
    match outcome {
        Err(error) if is_conflict(&error) => Ok(Requeue::After(Duration::from_millis(5))),
        other => other,
    }
}

/// The same for the end of a pass that writes one object: one that is gone needs nothing more.
pub fn written(outcome: kube::Result<()>) -> kube::Result<Requeue> {
    match outcome {
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(Requeue::No),
        other => again_on_conflict(other.map(|()| Requeue::No)),
    }
}

/// Marks a pod as a target of disruption, with a reason and a message, and deletes it. A pod that is
/// gone is no error.
pub async fn evict(client: &Client, namespace: &str, name: &str, uid: String, why: (&str, &str), now: Timestamp) -> kube::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": why.0, "message": why.1, "lastTransitionTime": at});
    let patch = json!({"metadata": {"uid": uid}, "status": {"conditions": [condition]}});
    let params = DeleteParams::default().preconditions(Preconditions { uid: Some(uid), resource_version: None });
    let outcome = match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => api.delete(name, &params).await.map(|_| ()),
        Err(error) => Err(error),
    };
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// What an API error says, without the client's wrapping.
pub fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A refusal of the API server's.
#[cfg(test)]
pub(crate) fn refused(code: u16, reason: &str) -> kube::Error {
    let status = json!({"status": "Failure", "code": code, "reason": reason, "message": "as the test wants", "metadata": {}});
    kube::Error::Api(serde_json::from_value(status).expect("a status"))
}

/// A refusal with this message.
#[cfg(test)]
pub(crate) fn saying(code: u16, message: &str) -> kube::Error {
    let status = json!({"status": "Failure", "code": code, "reason": "", "message": message, "metadata": {}});
    kube::Error::Api(serde_json::from_value(status).expect("a status"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn availability_by_clocks_that_differ() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z"}]}}))
        .expect("a pod");
        let at = |time: &str| availability(&pod, Duration::from_secs(10), format!("2026-01-01T{time}Z").parse().expect("a time"));
        assert_eq!(at("12:00:04"), Err(Some(Duration::from_secs(6))));
        assert_eq!(at("12:00:10"), Ok(()));
        assert_eq!(at("11:00:00"), Err(Some(Duration::from_secs(3610))), "it is not ready for an hour, but ready in an hour");
        assert_eq!(availability(&pod, Duration::ZERO, Timestamp::UNIX_EPOCH), Ok(()));
        assert_eq!(availability(&Pod::default(), Duration::ZERO, Timestamp::UNIX_EPOCH), Err(None));
    }

    #[test]
    fn a_conflict_is_a_reason_to_look_again_and_what_is_gone_is_none() {
        let again = Some(Requeue::After(Duration::from_millis(5)));
        assert_eq!(written(Ok(())).ok(), Some(Requeue::No));
        assert_eq!(written(Err(refused(404, "NotFound"))).ok(), Some(Requeue::No));
        assert_eq!(written(Err(refused(409, "Conflict"))).ok(), again);
        assert_eq!(written(Err(refused(409, "AlreadyExists"))).ok(), None, "that is another matter");
        assert_eq!(written(Err(refused(500, "InternalError"))).ok(), None);
        assert_eq!(again_on_conflict(Ok(Requeue::No)).ok(), Some(Requeue::No));
        assert_eq!(again_on_conflict(Err(refused(409, "Conflict"))).ok(), again);
        assert_eq!(again_on_conflict(Err(refused(404, "NotFound"))).ok(), None);
        assert!(is_conflict(&refused(409, "Conflict")) && !is_conflict(&refused(409, "AlreadyExists")) && !is_conflict(&refused(400, "Conflict")));
    }

    #[test]
    fn a_pod_of_a_template_is_its_owners() {
        let template: PodTemplateSpec = serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e.com/f"]},
            "spec": {"containers": [{"name": "c"}]}})).expect("a template");
        let owner = OwnerReference { kind: "Job".into(), name: "j".into(), ..OwnerReference::default() };
        let pod = from_template("n", "j-".into(), &template, owner.clone());
        let meta = json!({"generateName": "j-", "namespace": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e.com/f"], "ownerReferences": [owner]});
        assert_eq!(json!(pod.metadata), meta);
    }

    #[test]
    fn an_error_says_what_the_api_server_said() {
        let ending = saying(403, "pods \"p\" is forbidden: unable to create new content in namespace n because it is being terminated");
        assert!(namespace_is_ending(&ending) && !namespace_is_ending(&refused(403, "Forbidden")));
        assert_eq!(text(&refused(500, "InternalError")), "as the test wants");
        assert_eq!(text(&kube::Error::LinesCodecMaxLineLengthExceeded), kube::Error::LinesCodecMaxLineLengthExceeded.to_string());
    }
}
