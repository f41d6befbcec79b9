//! What the scheduler writes: bindings, conditions, nominations, evictions and events.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use reconcile::{EventType, Reference};
use serde_json::{Value, json};

use crate::pod::PodInfo;
use crate::preempt::Victims;
use crate::shell::{Shared, Work};

/// How long until a condition is written again; four times that the next time, and so on up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// The longest note of an event.
const NOTE: usize = 1024;

impl Shared {
    pub(crate) async fn work(&self, work: Work) {
        match work {
            Work::Bind { pod, node, profile } => self.bind(&pod, &node, profile).await,
            Work::Failed { pod, profile, message } => self.refuse(&pod, profile, "SchedulerError", &message, None).await,
            Work::Refused { pod, profile, failure, nominated, cleared } => {
                let victims = failure.preemption.as_ref();
                if let Some(claim) = &failure.give_back {
                    for plugin in &self.plugins {
                        plugin.give_back(&pod, claim).await.unwrap_or_else(|e| tracing::debug!(pod = pod.name(), claim, "it could not be given back: {e}"));
                    }
                }
                self.refuse(&pod, profile, "Unschedulable", &failure.message, nominated.as_deref()).await;
                for other in &cleared {
                    let patch = json!({"status": {"nominatedNodeName": null}});
                    self.patch(other, patch).await.unwrap_or_else(|e| tracing::debug!(pod = other.name(), "its nomination could not be taken back: {e}"));
                }
                if let Some(victims) = victims
                    && !self.evict(&pod, profile, victims).await
                {
                    self.activate(pod.uid());
                }
            }
        }
    }

    fn api(&self, pod: &PodInfo) -> Api<Pod> {
        Api::namespaced(self.client.clone(), pod.namespace())
    }

    async fn bind(&self, pod: &Arc<PodInfo>, node: &str, profile: usize) {
        for plugin in self.plugins.iter().filter(|p| p.must_pre_bind(pod, node)) {
            if let Err(message) = plugin.pre_bind(pod, node).await {
                self.take_back(pod, node, true);
                let message = format!("running PreBind plugin {:?}: {message}", plugin.name());
                return self.refuse(pod, profile, "SchedulerError", &message, None).await;
            }
        }
        match crate::extender::bind(&self.config.extenders, pod, node).await {
            None => {}
            Some(Ok(())) => return self.bound(pod, node, profile),
            Some(Err(message)) => {
                // It may have bound the pod, and only its answer may be lost.
                if self.take_back(pod, node, true) {
                    self.refuse(pod, profile, "SchedulerError", &message, None).await;
                }
                return;
            }
        }
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name().into()),
                namespace: Some(pod.namespace().into()),
                uid: Some(pod.uid().into()),
                ..ObjectMeta::default()
            },
            target: ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() },
        };
        let bound: kube::Result<Value> = self.api(pod).create_subresource("binding", pod.name(), &PostParams::default(), &binding).await;
        match bound {
            Ok(_) => self.bound(pod, node, profile),
            // No word of the server's: it may have bound the pod, and only its answer may be lost.
            Err(error) if !matches!(error, kube::Error::Api(_)) && self.is_on(pod, node).await => self.bound(pod, node, profile),
            Err(error) => {
                let gone = matches!(&error, kube::Error::Api(s) if s.code == 404);
                self.take_back(pod, node, !gone);
                if !gone {
                    let message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {}", said(&error));
                    self.refuse(pod, profile, "SchedulerError", &message, None).await;
                }
            }
        }
    }

    /// Whether the API server has the pod on this node.
    async fn is_on(&self, pod: &PodInfo, node: &str) -> bool {
        let live = self.api(pod).get_opt(pod.name()).await.ok().flatten();
        live.is_some_and(|p| p.metadata.uid.as_deref() == Some(pod.uid()) && p.spec.is_some_and(|s| s.node_name.as_deref() == Some(node)))
    }

    fn bound(&self, pod: &PodInfo, node: &str, profile: usize) {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
        self.recorders[profile].event(&Reference::of(pod), EventType::Normal, "Scheduled", message);
    }

    /// Tells why a pod was not placed, and writes down to which node it is nominated.
    async fn refuse(&self, pod: &PodInfo, profile: usize, reason: &str, message: &str, nominated: Option<&str>) {
        self.recorders[profile].event(&Reference::of(pod), EventType::Warning, "FailedScheduling", note(message));
        let known = pod.refused.as_ref().is_some_and(|c| c.0 == reason && c.1 == message);
        let renominated = nominated != pod.nominated.as_deref();
        if known && !renominated {
            return;
        }
        let mut status = json!({});
        if !known {
            let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message, "lastProbeTime": null});
            // A condition that was false before has not changed over now.
            if pod.refused.is_none() {
                condition["lastTransitionTime"] = json!(Time(Timestamp::now()));
            }
            if let Some(generation) = pod.generation {
                condition["observedGeneration"] = json!(generation);
            }
            status["conditions"] = json!([condition]);
        }
        if renominated {
            status["nominatedNodeName"] = json!(nominated);
        }
        // It may be tried again only after minutes, so that what is to be told of it must not be lost now.
        let (attempt, mut pause) = (self.attempt(pod.uid()), FIRST_PAUSE);
        while let Err(error) = self.patch(pod, json!({"status": status})).await {
            tracing::debug!(pod = pod.name(), "the condition could not be written: {error}");
            tokio::time::sleep(pause).await;
            pause *= 4;
            if pause > LAST_PAUSE || attempt.is_none() || self.attempt(pod.uid()) != attempt {
                break;
            }
        }
    }

    async fn patch(&self, pod: &PodInfo, mut patch: Value) -> kube::Result<()> {
        patch["metadata"] = json!({"uid": pod.uid()});
        match self.api(pod).patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(()),
            // There is nobody to tell.
            Err(kube::Error::Api(s)) if s.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the victims; answers whether all of it succeeded.
    async fn evict(&self, pod: &PodInfo, profile: usize, victims: &Victims) -> bool {
        let leaving = victims.pods.iter().filter(|v| !v.terminating);
        let all = futures::future::join_all(leaving.map(|victim| self.evict_one(pod, profile, victim, &victims.node))).await;
        all.into_iter().all(|ok| ok)
    }

    async fn evict_one(&self, pod: &PodInfo, profile: usize, victim: &PodInfo, node: &str) -> bool {
        let mut condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", pod.shape.scheduler),
            "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now())});
        if let Some(generation) = victim.generation {
            condition["observedGeneration"] = json!(generation);
        }
        let gone = |error: &kube::Error| matches!(error, kube::Error::Api(s) if s.code == 404 || s.code == 409);
        if let Err(error) = self.patch(victim, json!({"status": {"conditions": [condition]}})).await {
            tracing::debug!(pod = victim.name(), "a victim could not be marked: {error}");
            return false;
        }
        let exactly = DeleteParams { preconditions: Some(Preconditions { uid: Some(victim.uid().into()), resource_version: None }), ..DeleteParams::default() };
        // Not decoded into a pod: nothing of the answer is needed.
        match self.api(victim).delete(victim.name(), &exactly).await {
            Ok(_) => {
                let message = format!("Preempted by pod {} on node {node}", pod.uid());
                self.recorders[profile].event(&Reference::of(victim), EventType::Normal, "Preempted", message);
                true
            }
            Err(error) if gone(&error) => true,
            Err(error) => {
                tracing::debug!(pod = victim.name(), "a victim could not be removed: {error}");
                false
            }
        }
    }
}

fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A message cut to what an event can hold.
fn note(message: &str) -> String {
    if message.len() <= NOTE {
        return message.to_string();
    }
    let mut end = NOTE - 4;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{} ...", &message[..end])
}

#[cfg(test)]
mod tests {
    #[test]
    fn notes_are_cut() {
        assert_eq!(super::note("short"), "short");
        let long = super::note(&"é".repeat(600));
        assert!(long.len() <= 1024 && long.ends_with(" ..."));
    }
}
