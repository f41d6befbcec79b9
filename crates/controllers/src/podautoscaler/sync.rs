//! Reads what a pass needs, plans it, acts. Each autoscaler comes up every sync period, and at once
//! when its spec changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::selector::Labels;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use kube::ResourceExt;
use kube::api::Api;
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};

use super::Settings;
use super::metrics::Source;
use super::normalize::Memory;
use super::plan::{Fault, Input, Outcome, Target, needs_metrics, no_scale, plan};
use super::scale::{Found, Targets};
use crate::Context;
use crate::pod::Pod;
use crate::pods;

type Key = (String, String);

/// What is remembered of an autoscaler.
#[derive(Default, Clone)]
struct Known {
    memory: Memory,
    /// The selector of its target, once that has been read.
    selector: Option<Labels>,
}

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    source: Source,
    recorder: Recorder,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    known: Arc<Mutex<BTreeMap<Key, Known>>>,
    settings: Arc<Settings>,
}

/// Starts the controller.
pub fn start(context: &Context, settings: Settings) {
    let controller = Controller {
        client: context.client.clone(),
        source: Source { client: context.client.clone(), targets: Targets::new(context.client.clone()) },
        recorder: Recorder::new(&context.tasks, context.client.clone(), "horizontal-pod-autoscaler", None),
        autoscalers: context.informers.of::<HorizontalPodAutoscaler>(),
        pods: context.informers.of::<Pod>(),
        known: Arc::default(),
        settings: Arc::new(settings),
    };
    let queue = Queue::<Key>::new();
    let q = queue.clone();
    controller.autoscalers.on_change(move |change| {
        let spec = |hpa: &Option<Arc<HorizontalPodAutoscaler>>| hpa.as_ref().map(|h| h.spec.clone());
        if spec(&change.old) != spec(&change.new) {
            let hpa = change.latest();
            q.add((hpa.namespace().unwrap_or_default(), hpa.name_any()));
        }
    });
    run_workers(&context.tasks, "horizontal-pod-autoscaler", context.workers(5), queue, move |key| {
        let controller = controller.clone();
        async move {
            controller.autoscalers.synced().await;
            controller.pods.synced().await;
            if let Err(error) = controller.sync(&key).await {
                tracing::debug!(?key, "an autoscaler could not be brought up to date: {error}");
            }
            let exists = controller.autoscalers.get(&key.0, &key.1).is_some();
            // Errors too: it is a pass every period, whatever the last one came to.
            Ok::<_, kube::Error>(if exists { Requeue::After(controller.settings.sync_period) } else { Requeue::No })
        }
    });
}

impl Controller {
    async fn sync(&self, key: &Key) -> kube::Result<()> {
        let Some(hpa) = self.autoscalers.get(&key.0, &key.1) else {
            self.known.lock().remove(key);
            return Ok(());
        };
        let reference = &hpa.spec.scale_target_ref;
        let version = reference.api_version.as_deref().unwrap_or("v1");
        let found = match self.source.targets.get(&key.0, version, &reference.kind, &reference.name).await {
            Ok(found) => found,
            Err(why) => return self.finish(&hpa, no_scale(&hpa, &why, Timestamp::now())).await,
        };
        let outcome = self.pass(key, &hpa, &found).await;
        self.finish(&hpa, outcome).await
    }

    async fn pass(&self, key: &Key, hpa: &HorizontalPodAutoscaler, found: &Found) -> Outcome {
        let target = found.target();
        let selected = self.select(key, &target);
        let mut readings = Vec::new();
        if needs_metrics(hpa, &target) && selected.is_ok() {
            for spec in hpa.spec.metrics.iter().flatten() {
                readings.push(self.source.read(&key.0, &target.selector, spec).await);
            }
        }
        let mut memory = self.known.lock().get(key).map(|k| k.memory.clone()).unwrap_or_default();
        let pods = selected.as_ref().map(Vec::as_slice).map_err(Fault::clone);
        let input = Input { hpa, target: &target, pods, readings, settings: &self.settings, now: Timestamp::now() };
        let mut outcome = plan(&input, &mut memory);
        if let Some(rescale) = &outcome.rescale {
            let result = self.source.targets.set(found, rescale.to).await;
            outcome.scaled(hpa, result, &mut memory, Timestamp::now());
        }
        self.known.lock().entry(key.clone()).or_default().memory = memory;
        outcome
    }

    /// The pods of the target, unless another autoscaler has a hand in them.
    fn select(&self, key: &Key, target: &Target) -> Result<Vec<Arc<Pod>>, Fault> {
        if target.selector.is_empty() {
            let condition = ("InvalidSelector", "the HPA target's scale is missing a selector".to_string());
            return Err(Fault { event: "SelectorRequired", condition, message: "selector is required".into() });
        }
        let labels = Labels::parse(&target.selector).map_err(|why| {
            let message = format!("couldn't convert selector into a corresponding internal selector object: {why}");
            Fault { event: "InvalidSelector", condition: ("InvalidSelector", message.clone()), message }
        })?;
        let matches = |labels: &Labels, pod: &Pod| labels.matches_with(|name| pod.labels().get(name).map(String::as_str));
        let chosen: Vec<Arc<Pod>> = self.pods.in_namespace(&key.0).into_iter().filter(|p| matches(&labels, p)).collect();
        let mut known = self.known.lock();
        known.entry(key.clone()).or_default().selector = Some(labels);
        let selecting = |known: &Known| known.selector.as_ref().is_some_and(|l| chosen.iter().any(|p| matches(l, p)));
        let all: Vec<String> = known
            .iter()
            .filter(|((namespace, name), k)| *namespace == key.0 && selecting(k) && self.autoscalers.get(namespace, name).is_some())
            .map(|((namespace, name), _)| format!("{{{name} {namespace}}}"))
            .collect();
        if all.len() > 1 {
            let message = format!("pods by selector {} are controlled by multiple HPAs: [{}]", target.selector, all.join(" "));
            return Err(Fault { event: "AmbiguousSelector", condition: ("AmbiguousSelector", message.clone()), message });
        }
        Ok(chosen)
    }

    async fn finish(&self, hpa: &HorizontalPodAutoscaler, outcome: Outcome) -> kube::Result<()> {
        let reference = Reference::of(hpa);
        for (kind, reason, message) in outcome.events {
            self.recorder.event(&reference, kind, reason, message);
        }
        if !differs(hpa.status.as_ref(), &outcome.status) {
            return Ok(());
        }
        let mut new = hpa.clone();
        new.status = Some(outcome.status);
        let api = Api::<HorizontalPodAutoscaler>::namespaced(self.client.clone(), &hpa.namespace().unwrap_or_default());
        match api.replace_status(&hpa.name_any(), &Default::default(), &new).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                self.recorder.event(&reference, EventType::Warning, "FailedUpdateStatus", pods::text(&error));
                Err(error)
            }
        }
    }
}

/// Whether a status has to be written: absent and empty lists are the same.
fn differs(old: Option<&HorizontalPodAutoscalerStatus>, new: &HorizontalPodAutoscalerStatus) -> bool {
    let plain = |status: &HorizontalPodAutoscalerStatus| {
        let mut status = status.clone();
        status.conditions = status.conditions.filter(|c| !c.is_empty());
        status.current_metrics = status.current_metrics.filter(|m| !m.is_empty());
        status.current_replicas = status.current_replicas.or(Some(0));
        status
    };
    plain(&old.cloned().unwrap_or_default()) != plain(new)
}
