//! Reads a disruption budget and its pods, and writes the status that [`plan`](super::plan) says.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use rules::labels;

use super::plan;
use super::scale::{Expected, Scales};
use crate::{Context, pods};
use crate::pod::Pod;

#[derive(Clone)]
struct Controller {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
    recorder: Recorder,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        budgets: context.informers.of::<PodDisruptionBudget>(),
        pods: context.informers.of::<Pod>(),
        scales: Scales::new(context.client.clone(), &context.informers),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "controllermanager", None),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.budgets.on_change(move |change| {
        let budget = change.latest();
        q.add((budget.namespace().unwrap_or_default(), budget.name_any()));
    });
    let (q, all, recorder) = (queue.clone(), controller.budgets.clone(), controller.recorder.clone());
    controller.pods.on_change(move |change| {
        let pod = change.latest();
        let namespace = pod.namespace().unwrap_or_default();
        let sides = [&change.old, &change.new];
        let mut matching = Vec::new();
        for budget in all.in_namespace(&namespace) {
            if sides.iter().copied().flatten().any(|p| selects(&budget, p)) {
                q.add((namespace.clone(), budget.name_any()));
            }
            if change.new.is_some() && selects(&budget, pod) {
                matching.push(budget.name_any());
            }
        }
        if matching.len() > 1 {
            let why = format!(
                "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
                namespace,
                pod.name_any(),
                matching[0]
            );
            recorder.event(&Reference::of(pod.as_ref()), EventType::Warning, "MultiplePodDisruptionBudgets", why);
        }
    });
    super::stale::start(context, &controller.pods);
    run_workers(&context.tasks, "disruption", context.workers(1), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.budgets.synced().await;
            controller.pods.synced().await;
            controller.scales.synced().await;
            match controller.sync(&key.0, &key.1).await {
                Err(Error::Api(kube::Error::Api(s))) if s.code == 409 => Ok(Requeue::After(Duration::from_millis(10))),
                other => other,
            }
        }
    });
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", pods::text(.0))]
    Api(#[from] kube::Error),
    #[error("how many pods are expected is not known: {0}")]
    Uncounted(String),
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| labels::matches(s, pod.labels()))
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> Result<Requeue, Error> {
        let Some(budget) = self.budgets.get(namespace, name) else { return Ok(Requeue::No) };
        let owner = Reference::of(budget.as_ref());
        let event = |kind, reason: &str, message: String| self.recorder.event(&owner, kind, reason, message);
        let selected: Vec<Arc<Pod>> = self.pods.in_namespace(namespace).into_iter().filter(|p| selects(&budget, p)).collect();
        if selected.is_empty() {
            event(EventType::Normal, "NoPods", "No matching pods found".into());
        }
        let spec = budget.spec.clone().unwrap_or_default();
        let expected = match plan::needs_scale(&spec) {
            true => self.scales.expected(&selected).await,
            false => Ok(Expected::default()),
        };
        let now = Timestamp::now();
        // Whoever could not say it may do so the next time, and nothing tells when.
        let unasked = expected.is_err();
        let planned = match expected {
            Ok(expected) => {
                if expected.unmanaged {
                    event(EventType::Warning, "UnmanagedPods", unmanaged(spec.selector.as_ref()));
                }
                plan::plan(&budget, &selected, expected.pods, now)
            }
            Err(why) => Err(why),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                event(EventType::Warning, "CalculateExpectedPodCountFailed", message);
                self.write(&budget, plan::failed(&budget, &why, now)).await?;
                return if unasked { Err(Error::Uncounted(why)) } else { Ok(Requeue::No) };
            }
        };
        for pod in &plan.not_deleted {
            let why = format!("Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't");
            self.recorder.event(&Reference::of(pod.as_ref()), EventType::Warning, "NotDeleted", why);
        }
        self.write(&budget, plan.status).await?;
        Ok(plan.again.map_or(Requeue::No, |again| Requeue::After(again + Duration::from_millis(1))))
    }

    async fn write(&self, budget: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> kube::Result<()> {
        if plan::same(&budget.status.clone().unwrap_or_default(), &status) {
            return Ok(());
        }
        let mut new = budget.clone();
        new.status = Some(status);
        let api = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), &budget.namespace().unwrap_or_default());
        match api.replace_status(&budget.name_any(), &PostParams::default(), &new).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        }
    }
}

fn unmanaged(selector: Option<&LabelSelector>) -> String {
    let mut text = String::from("&LabelSelector{MatchLabels:map[string]string{");
    for (key, value) in selector.iter().flat_map(|s| s.match_labels.iter().flatten()) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{key}: {value},");
    }
    text.push_str("},MatchExpressions:[]LabelSelectorRequirement{");
    for e in selector.iter().flat_map(|s| s.match_expressions.iter().flatten()) {
        let values = e.values.clone().unwrap_or_default().join(" ");
        let _ = write!(text, "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", e.key, e.operator);
    }
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {text}}},}}) were found to be unmanaged. As a result, the status of the PDB \
         cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
         \".spec.minAvailable\" field of the PDB to an integer value."
    )
}
