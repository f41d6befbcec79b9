//! Reads a stateful set, its pods, claims and revisions, plans, and acts.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{self, PersistentVolumeClaim};
use kube::{Resource, ResourceExt};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use reconcile::{EventType, Informer, Queue, Reference, Requeue, run_workers};
use rules::labels;

use super::plan::{self, Action, Plan, View};
use super::{claims, identity, revisions};
use crate::pod::Pod;
use crate::pods::{self, PodControl};
use crate::{Context, history, ownership};

/// Most actions of one stage at once.
const MAX_BATCH: usize = 500;
/// How long a pass waits for what the last one did, should no change wake it.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", pods::text(.0))]
    Api(#[from] kube::Error),
    /// It comes back when the claim is gone.
    #[error("pvc {0} is being deleted")]
    ClaimIsGoing(String),
    #[error("failed to create PVC {name}: {}", pods::text(.source))]
    CreateClaim { name: String, source: kube::Error },
    #[error("could not update claim {name} for delete policy ownerRefs: {}", pods::text(.source))]
    UpdateClaim { name: String, source: kube::Error },
}

#[derive(Clone)]
struct Controller {
    control: PodControl,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        control: PodControl::new(context, "statefulset-controller"),
        sets: context.informers.of::<StatefulSet>(),
        claims: context.informers.of::<PersistentVolumeClaim>(),
        revisions: context.informers.of::<ControllerRevision>(),
    };
    let queue = Queue::<(String, String)>::new();
    let q = queue.clone();
    controller.sets.on_change(move |c| q.add(ownership::key(c.latest().as_ref())));
    let selects = |set: &StatefulSet, pod: &Pod| set.spec.as_ref().is_some_and(|s| labels::matches(&s.selector, pod.labels()));
    ownership::wake_owners(&controller.control.pods, &controller.sets, &queue, selects);
    let (q, sets) = (queue.clone(), controller.sets.clone());
    controller.claims.on_change(move |change| {
        let claim = change.latest();
        let name = claim.name_any();
        let Some((parent, ordinal)) = identity::parse(&name) else { return };
        let candidates = sets.in_namespace(&claim.namespace().unwrap_or_default());
        let of = |set: &&Arc<StatefulSet>| {
            parent.ends_with(&set.name_any()) && identity::claims(set, ordinal).iter().any(|(_, c)| c.name_any() == name)
        };
        candidates.iter().filter(of).for_each(|set| q.add(ownership::key(set.as_ref())));
    });
    run_workers(&context.tasks, "statefulset", context.workers(5), queue, move |key: (String, String)| {
        let controller = controller.clone();
        async move {
            controller.sets.synced().await;
            controller.control.pods.synced().await;
            controller.claims.synced().await;
            controller.revisions.synced().await;
            match controller.sync(&key.0, &key.1).await {
                Err(Error::Api(error)) => pods::again_on_conflict(Err(error)).map_err(Error::Api),
                Err(Error::ClaimIsGoing(_)) => Ok(Requeue::After(PATIENCE)),
                other => other,
            }
        }
    });
}

impl Controller {
    async fn sync(&self, namespace: &str, name: &str) -> Result<Requeue, Error> {
        let Some(set) = self.sets.get(namespace, name) else { return Ok(Requeue::No) };
        let Some(spec) = &set.spec else { return Ok(Requeue::No) };
        let client = &self.control.client;
        if !self.control.expectations.fulfilled(&set.uid().unwrap_or_default()) {
            return Ok(Requeue::After(PATIENCE));
        }
        let mut all = self.revisions.in_namespace(namespace);
        all.retain(|r| labels::matches(&spec.selector, r.labels()));
        let mut all = ownership::claim_all(client, set.as_ref(), all, |_| true).await?;
        history::sort(&mut all);
        let fits = |p: &Pod| labels::matches(&spec.selector, p.labels()) && identity::is_member(&set, p);
        let candidates = self.control.pods.in_namespace(namespace);
        let pods = ownership::claim_all(client, set.as_ref(), candidates, fits).await?;

        let revisions = revisions::revisions(client, &set, &all).await?;
        let claim = |name: &str| self.claims.get(namespace, name);
        let view = View { set: &set, revisions: &revisions, pods: &pods, claim: &claim, now: Timestamp::now() };
        let Plan { stages, in_order, status } = plan::plan(&view);
        let waits = pods.iter().filter_map(|p| pods::availability(p, view.min_ready(), view.now).err().flatten());
        let requeue = waits.min().map_or(Requeue::No, Requeue::After);

        let mut outcome = Ok(());
        for stage in stages {
            outcome = self.act(&set, stage, in_order).await;
            if outcome.is_err() {
                break;
            }
        }
        let written = self.write_status(&set, status).await;
        outcome?;
        written?;
        revisions::clean_up(client, &set, &all, &pods, &revisions).await?;
        Ok(requeue)
    }

    /// Acts one by one, or in batches that double while all goes well. Ends at the first failure.
    async fn act(&self, set: &StatefulSet, stage: Vec<Action>, in_order: bool) -> Result<(), Error> {
        let mut batch = 1;
        let mut rest = stage.into_iter();
        loop {
            let now: Vec<Action> = rest.by_ref().take(batch).collect();
            if now.is_empty() {
                return Ok(());
            }
            let results = join_all(now.into_iter().map(|action| self.act_once(set, action))).await;
            results.into_iter().collect::<Result<Vec<()>, Error>>()?;
            if !in_order {
                batch = (batch * 2).min(MAX_BATCH);
            }
        }
    }

    async fn act_once(&self, set: &StatefulSet, action: Action) -> Result<(), Error> {
        match action {
            Action::Create(pod) => self.create(set, &pod).await,
            Action::Delete(pod) => self.delete(set, &pod).await,
            Action::Claims(pod) => {
                self.make_claims(set, pod.as_ref()).await?;
                self.own_claims(set, pod.as_ref()).await.inspect_err(|e| self.tell(set, "Update", pod.as_ref(), Err(e)))
            }
            Action::Mend(pod) => self.mend(set, &pod).await,
        }
    }

    async fn create(&self, set: &StatefulSet, pod: &v1::Pod) -> Result<(), Error> {
        self.make_claims(set, pod).await.inspect_err(|e| self.tell(set, "Create", pod, Err(e)))?;
        let created = match self.pod_api(set).create(&PostParams::default(), pod).await {
            Ok(created) => created,
            // It is there, and the informer will show it; or it is somebody else's, and goes some day.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => return Err(kube::Error::Api(status).into()),
            Err(error) => {
                let error = Error::from(error);
                self.tell(set, "Create", pod, Err(&error));
                return Err(error);
            }
        };
        self.control.expectations.created(&set.uid().unwrap_or_default(), &created, &self.control.pods);
        self.own_claims(set, &created).await.inspect_err(|e| self.tell(set, "Update", pod, Err(e)))?;
        self.tell(set, "Create", pod, Ok(()));
        Ok(())
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let (owner, uid) = (set.uid().unwrap_or_default(), pod.uid().unwrap_or_default());
        self.control.expectations.deleting(&owner, &uid);
        let params = DeleteParams::default().preconditions(Preconditions { uid: Some(uid.clone()), resource_version: None });
        match self.pod_api(set).delete(&pod.name_any(), &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.control.expectations.not_deleted(&owner, &uid);
                return Ok(());
            }
            // Another pod has its name, or somebody was faster.
            Err(error) if pods::is_conflict(&error) => {
                self.control.expectations.not_deleted(&owner, &uid);
                return Err(error.into());
            }
            Err(error) => {
                self.control.expectations.not_deleted(&owner, &uid);
                let error = Error::from(error);
                self.tell(set, "Delete", pod, Err(&error));
                return Err(error);
            }
        }
        self.tell(set, "Delete", pod, Ok(()));
        Ok(())
    }

    async fn mend(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Error> {
        let Some(ordinal) = identity::ordinal(pod) else { return Ok(()) };
        self.own_claims(set, pod).await.inspect_err(|e| self.tell(set, "Update", pod, Err(e)))?;
        if !identity::wants(set, ordinal) || (identity::matches(set, pod) && identity::storage_matches(set, pod)) {
            return Ok(());
        }
        // What the informer keeps is no whole pod.
        let Some(mut new) = self.pod_api(set).get_opt(&pod.name_any()).await?.filter(|new| new.uid() == pod.uid()) else { return Ok(()) };
        identity::set_identity(&mut new, ordinal);
        if !identity::storage_matches(set, pod) {
            self.make_claims(set, pod).await.inspect_err(|e| self.tell(set, "Update", pod, Err(e)))?;
            identity::set_storage(set, &mut new, ordinal);
        }
        let outcome = self.pod_api(set).replace(&pod.name_any(), &PostParams::default(), &new).await.map(|_| ()).map_err(Error::from);
        self.tell(set, "Update", pod, outcome.as_ref().map(|_| ()));
        outcome
    }

    /// Makes those claims of a pod that are missing.
    async fn make_claims(&self, set: &StatefulSet, pod: &impl ResourceExt) -> Result<(), Error> {
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.control.client.clone(), &namespace);
        let mut outcome = Ok(());
        for (_, claim) in identity::claims(set, identity::ordinal(pod).unwrap_or(-1)) {
            let name = claim.name_any();
            match self.claims.get(&namespace, &name) {
                Some(there) if there.metadata.deletion_timestamp.is_some() => outcome = Err(Error::ClaimIsGoing(name)),
                Some(_) => {}
                None => match api.create(&PostParams::default(), &claim).await {
                    Ok(_) => {
                        let message = format!("Create Claim {name} Pod {} in StatefulSet {} success", pod.name_any(), set.name_any());
                        self.control.recorder.event(&Reference::of(set), EventType::Normal, "SuccessfulCreate", message);
                    }
                    // The informer has not shown it yet.
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                    Err(error) => {
                        let (pod, set_name) = (pod.name_any(), set.name_any());
                        let message = format!("Create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {}", pods::text(&error));
                        self.control.recorder.event(&Reference::of(set), EventType::Warning, "FailedCreate", message);
                        outcome = Err(Error::CreateClaim { name, source: error });
                    }
                },
            }
        }
        outcome
    }

    /// Gives those claims of a pod that are there the owners which the set's policy wants.
    async fn own_claims(&self, set: &StatefulSet, pod: &impl Resource<DynamicType = ()>) -> Result<(), Error> {
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<PersistentVolumeClaim>::namespaced(self.control.client.clone(), &namespace);
        for (_, claim) in identity::claims(set, identity::ordinal(pod).unwrap_or(-1)) {
            let name = claim.name_any();
            let Some(claim) = self.claims.get(&namespace, &name) else { continue };
            if claims::has_foreign_controller(&claim, set, pod) {
                let message = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, \
                     the retention policy is ignored for this claim"
                );
                self.control.recorder.event(&Reference::of(set), EventType::Warning, "ConflictingController", message);
            }
            if !claims::is_up_to_date(&claim, set, pod) {
                let new = claims::updated(&claim, set, pod);
                match api.replace(&name, &PostParams::default(), &new).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) if pods::is_conflict(&error) => return Err(error.into()),
                    Err(error) => return Err(Error::UpdateClaim { name, source: error }),
                }
            }
        }
        Ok(())
    }

    fn pod_api(&self, set: &StatefulSet) -> Api<v1::Pod> {
        Api::namespaced(self.control.client.clone(), &set.namespace().unwrap_or_default())
    }

    /// The event that says what was done with a pod.
    fn tell(&self, set: &StatefulSet, verb: &str, pod: &impl ResourceExt, outcome: Result<(), &Error>) {
        let what = format!("{verb} Pod {} in StatefulSet {}", pod.name_any(), set.name_any());
        let reference = Reference::of(set);
        match outcome {
            Ok(()) => self.control.recorder.event(&reference, EventType::Normal, &format!("Successful{verb}"), format!("{what} successful")),
            Err(error) => {
                let message = format!("{what} failed error: {error}");
                self.control.recorder.event(&reference, EventType::Warning, &format!("Failed{verb}"), message);
            }
        }
    }

    async fn write_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Error> {
        let mut old = set.status.clone().unwrap_or_default();
        for count in [
            &mut old.ready_replicas,
            &mut old.available_replicas,
            &mut old.current_replicas,
            &mut old.updated_replicas,
            &mut old.collision_count,
        ] {
            count.get_or_insert(0);
        }
        if old == status {
            return Ok(());
        }
        let api = Api::<StatefulSet>::namespaced(self.control.client.clone(), &set.namespace().unwrap_or_default());
        let mut new = set.clone();
        new.status = Some(status);
        match api.replace_status(&set.name_any(), &PostParams::default(), &new).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
