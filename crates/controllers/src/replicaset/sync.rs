//! Reads a replica set, or what is like one, and its pods, plans, and acts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use reconcile::{Informer, Queue, Reference, Requeue, run_workers};

use super::kinds::Replicated;
use super::plan::{self, Failure, Plan};
use crate::Context;
use crate::ownership;
use crate::pod::Pod;
use crate::pods::{self, PodControl};

/// For this long a pass waits for the informer to show what the last one did, before it tells of what
/// there is.
const PATIENCE: Duration = Duration::from_millis(500);

struct Controller<K> {
    control: PodControl,
    objects: Informer<K>,
    /// The sets whose pods count as neighbours on a node.
    sets: Informer<ReplicaSet>,
}

/// Starts the controller of one kind.
pub fn start<K: Replicated>(context: &Context, name: &'static str, component: &str) {
    let controller = Arc::new(Controller {
        control: PodControl::new(context, component),
        objects: context.informers.of::<K>(),
        sets: context.informers.of::<ReplicaSet>(),
    });
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.objects.on_change(move |change| q.add(ownership::key(change.latest().as_ref())));
    ownership::wake_owners(&controller.control.pods, &controller.objects, &queue, |k: &K, p: &Pod| k.selects(p.labels()));
    run_workers(&context.tasks, name, 5, queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.objects.synced().await;
            controller.control.pods.synced().await;
            controller.sets.synced().await;
            pods::again_on_conflict(controller.sync(&key.0, &key.1).await)
        }
    });
}

impl<K: Replicated> Controller<K> {
    async fn sync(&self, namespace: &str, name: &str) -> kube::Result<Requeue> {
        let Some(object) = self.objects.get(namespace, name) else { return Ok(Requeue::No) };
        let reference = Reference::of(object.as_ref());
        let waiting = self.control.expectations.waiting(&reference.uid);
        if let Some(left) = waiting.and_then(|since| PATIENCE.checked_sub(since)).filter(|l| !l.is_zero()) {
            return Ok(Requeue::After(left));
        }
        let set = object.as_set();
        let (terminating, running): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = self
            .control
            .pods
            .in_namespace(namespace)
            .into_iter()
            .filter(|p| !matches!(pods::phase(p), "Succeeded" | "Failed"))
            .partition(|p| p.metadata.deletion_timestamp.is_some());
        let ours = |p: &Arc<Pod>| ownership::controller_of(&p.metadata).is_some_and(|o| o.uid == reference.uid) && object.selects(p.labels());
        let terminating = K::COUNTS_TERMINATING.then(|| terminating.iter().filter(|p| ours(p)).count() as i32);
        let active = ownership::claim_all(&self.control.client, object.as_ref(), running, |p| object.selects(p.labels())).await?;

        let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let mut outcome = Ok(());
        if waiting.is_none() && set.metadata.deletion_timestamp.is_none() {
            let neighbours = || self.neighbours(&set);
            outcome = match plan::plan(wanted, &active, neighbours, Timestamp::now()) {
                Plan::Nothing => Ok(()),
                Plan::Create(count) => {
                    let template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
                    let owner = ownership::controller_reference(object.as_ref());
                    let new = (0..count).map(|_| pods::from_template(namespace, format!("{name}-"), &template, owner.clone()));
                    self.control.create(&reference, new.collect()).await.map(|_| ())
                }
                Plan::Delete(excess) => self.control.delete(&reference, &excess).await,
            };
        }
        let failure = outcome.as_ref().err().map(|error| Failure { creating: (active.len() as i32) < wanted, message: pods::text(error) });
        let (status, again) = plan::status(&set, &active, terminating, failure, Timestamp::now());
        self.write_status(&object, &set, status).await?;
        outcome?;
        Ok(again.map_or(Requeue::No, Requeue::After))
    }

    /// How many active pods there are on each node of all the sets that have the same controller.
    fn neighbours(&self, set: &ReplicaSet) -> BTreeMap<String, usize> {
        let mut nodes = BTreeMap::new();
        let Some(owner) = ownership::controller_of(&set.metadata) else { return nodes };
        let namespace = set.namespace().unwrap_or_default();
        let mut sets = self.sets.in_namespace(&namespace);
        sets.retain(|s| ownership::controller_of(&s.metadata).is_some_and(|o| o.uid == owner.uid));
        for pod in self.control.pods.in_namespace(&namespace) {
            if pods::is_active(&pod) && sets.iter().any(|s| s.selects(pod.labels())) {
                *nodes.entry(plan::node(&pod).to_string()).or_insert(0) += 1;
            }
        }
        nodes
    }

    async fn write_status(&self, object: &K, set: &ReplicaSet, status: ReplicaSetStatus) -> kube::Result<()> {
        let mut old = set.status.clone().unwrap_or_default();
        for count in [&mut old.fully_labeled_replicas, &mut old.ready_replicas, &mut old.available_replicas] {
            count.get_or_insert(0);
        }
        if old == status {
            return Ok(());
        }
        let api = Api::<K>::namespaced(self.control.client.clone(), &set.namespace().unwrap_or_default());
        match api.replace_status(&set.name_any(), &PostParams::default(), &object.with_status(status)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}
