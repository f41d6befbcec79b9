//! ResourceClaims: made from templates for pods, reserved for pods that were bound past the scheduler,
//! and given back when the pods that they were for are done.
//!
//! Not here: claims of pod groups, which are behind a gate that is off.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use reconcile::{EventType, Informer, Queue, Recorder, Reference, Requeue, run_workers};
use serde_json::json;

use crate::pod::Pod;
use crate::{Context, ownership, pods};

const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
const MANAGER: &str = "ResourceClaimController";
/// Consumers that a claim may be reserved for.
const MOST_CONSUMERS: usize = 256;
/// Longest base of a generated name.
const MOST_NAME: usize = 57;

/// Whether a pod will not run (any more).
fn is_done(pod: &Pod) -> bool {
    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    matches!(pods::phase(pod), "Succeeded" | "Failed") || (pod.metadata.deletion_timestamp.is_some() && !bound)
}

/// The entries of a pod that lead to claims.
pub fn claims_of(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or(&[])
}

/// What is known of the claim that one entry of a pod leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this one; the second tells whether it was made for the pod.
    Named(String, bool),
    /// None is needed.
    None,
    /// None was made yet.
    Missing,
}

/// The name of the claim of one entry.
pub fn known(pod: &Pod, entry: &PodResourceClaim) -> Known {
    if let Some(name) = &entry.resource_claim_name {
        return Known::Named(name.clone(), false);
    }
    if entry.resource_claim_template_name.is_none() {
        return Known::None;
    }
    let statuses = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or(&[]);
    match statuses.iter().find(|s| s.name == entry.name).map(|s| s.resource_claim_name.clone()) {
        Some(Some(name)) => Known::Named(name, true),
        Some(None) => Known::None,
        None => Known::Missing,
    }
}

/// Whether a claim was made for a pod.
pub fn is_for(pod: &Pod, claim: &ResourceClaim) -> bool {
    ownership::controller_of(&claim.metadata).is_some_and(|o| o.kind == "Pod" && Some(&o.uid) == pod.metadata.uid.as_ref())
}

/// What a pod needs.
#[derive(Debug, PartialEq)]
pub enum Need {
    /// Nothing.
    Met,
    /// This claim is its; its status is to say so.
    Told(String),
    /// A claim made from this template.
    Made(String),
}

/// What one entry of a pod needs, given the claims of its namespace.
pub fn need(pod: &Pod, entry: &PodResourceClaim, claims: &[Arc<ResourceClaim>]) -> Need {
    let Some(template) = &entry.resource_claim_template_name else { return Need::Met };
    match known(pod, entry) {
        Known::None => return Need::Met,
        Known::Named(name, _) if claims.iter().any(|c| c.name_any() == name && is_for(pod, c)) => return Need::Met,
        _ => {}
    }
    let made = claims.iter().find(|c| is_for(pod, c) && c.annotations().get(POD_CLAIM) == Some(&entry.name));
    made.map_or_else(|| Need::Made(template.clone()), |claim| Need::Told(claim.name_any()))
}

/// The claim that a template makes for an entry of a pod.
pub fn from_template(pod: &Pod, entry: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let (pod_name, length) = (pod.name_any(), pod.name_any().len() + entry.name.len() + 2);
    let cut = |text: &str| if length > MOST_NAME { text[..text.len() * MOST_NAME / length].to_string() } else { text.to_string() };
    let end = if length > MOST_NAME { "" } else { "-" };
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), entry.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-{}{end}", cut(&pod_name), cut(&entry.name))),
            namespace: pod.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference { block_owner_deletion: None, ..ownership::controller_reference(pod) }]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// The claims of a bound pod that are allocated and not reserved for it yet.
pub fn unreserved(pod: &Pod, claims: &[Arc<ResourceClaim>]) -> Vec<Arc<ResourceClaim>> {
    if pod.spec.as_ref().is_none_or(|s| s.node_name.as_deref().is_none_or(str::is_empty)) {
        return Vec::new();
    }
    let open = |entry: &PodResourceClaim| {
        let Known::Named(name, own) = known(pod, entry) else { return None };
        let claim = claims.iter().find(|c| c.name_any() == name && (!own || is_for(pod, c)))?;
        let status = claim.status.as_ref()?;
        let reserved = status.reserved_for.as_deref().unwrap_or(&[]);
        let mine = reserved.iter().any(|r| Some(&r.uid) == pod.metadata.uid.as_ref());
        (status.allocation.is_some() && !mine && reserved.len() < MOST_CONSUMERS).then(|| claim.clone())
    };
    claims_of(pod).iter().filter_map(open).collect()
}

/// A pod as a consumer of claims.
fn consumer(pod: &Pod) -> ResourceClaimConsumerReference {
    ResourceClaimConsumerReference { resource: "pods".into(), name: pod.name_any(), uid: pod.uid().unwrap_or_default(), ..Default::default() }
}

/// What is to be done with a claim.
#[derive(Debug, PartialEq)]
pub struct Upkeep {
    /// The consumers that stay, when some go.
    pub reserved: Option<Vec<ResourceClaimConsumerReference>>,
    /// Nobody uses it: what was allocated is given back.
    pub deallocate: bool,
    /// Nothing is left to protect.
    pub drop_finalizer: bool,
    /// It was made for a pod that is done.
    pub delete: bool,
}

/// Decides about a claim. `gone` tells whether a consumer is a pod that is no more or is done, and
/// `done` the same of the pod that owns the claim (nothing when there is no such pod: then the
/// garbage collector removes it). `given_back` is true when it was deallocated a moment ago, and only
/// the finalizer may be left.
pub fn upkeep(claim: &ResourceClaim, given_back: bool, gone: impl Fn(&ResourceClaimConsumerReference) -> bool, done: impl Fn(&OwnerReference) -> bool) -> Upkeep {
    let status = claim.status.clone().unwrap_or_default();
    let reserved = status.reserved_for.unwrap_or_default();
    let is_pod = |r: &ResourceClaimConsumerReference| r.api_group.as_deref().unwrap_or("").is_empty() && r.resource == "pods";
    let remaining: Vec<ResourceClaimConsumerReference> = reserved.iter().filter(|r| !(is_pod(r) && gone(r))).cloned().collect();
    let changed = remaining.len() < reserved.len();
    let protected = claim.finalizers().iter().any(|f| f == FINALIZER);
    let left_over = given_back && status.allocation.is_none();
    let idle = remaining.is_empty() && protected && (changed || left_over || claim.metadata.deletion_timestamp.is_some());
    let owner = ownership::controller_of(&claim.metadata).filter(|o| o.kind == "Pod" && o.api_version == "v1");
    Upkeep {
        deallocate: idle && status.allocation.is_some(),
        drop_finalizer: idle,
        delete: remaining.is_empty() && claim.metadata.deletion_timestamp.is_none() && owner.is_some_and(done),
        reserved: changed.then_some(remaining),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pod(String, String),
    Claim(String, String),
}

#[derive(Clone)]
struct Controller {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    recorder: Recorder,
    /// Claims made that the informer may not show yet, by the pod's uid and the entry's name.
    made: Arc<Mutex<HashMap<(String, String), Arc<ResourceClaim>>>>,
    /// The uids of claims that are being given back, by namespace and name: deallocating and dropping the
    /// finalizer are two requests, and the second may fail.
    given_back: Arc<Mutex<HashMap<(String, String), Option<String>>>>,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let controller = Controller {
        client: context.client.clone(),
        pods: context.informers.of::<Pod>(),
        claims: context.informers.of::<ResourceClaim>(),
        templates: context.informers.of::<ResourceClaimTemplate>(),
        recorder: Recorder::new(&context.tasks, context.client.clone(), "resource_claim", None),
        made: Arc::default(),
        given_back: Arc::default(),
    };
    let queue = Queue::<Key>::new();
    let (q, claims, made) = (queue.clone(), controller.claims.clone(), controller.made.clone());
    controller.pods.on_change(move |change| {
        let pod = change.latest();
        let namespace = pod.namespace().unwrap_or_default();
        // A claim for extended resources is not in the spec of its pod.
        let may_own = (change.new.is_none() || is_done(pod)) && claims.any_in_namespace(&namespace);
        if claims_of(pod).is_empty() && !may_own {
            return;
        }
        if change.new.is_none() {
            made.lock().retain(|(uid, _), _| Some(uid) != pod.metadata.uid.as_ref());
        }
        if change.new.is_none() || is_done(pod) {
            for entry in claims_of(pod) {
                if let Known::Named(name, _) = known(pod, entry) {
                    q.add(Key::Claim(namespace.clone(), name));
                }
            }
            let own = claims.in_namespace(&namespace).into_iter().filter(|c| is_for(pod, c));
            own.for_each(|c| q.add(Key::Claim(namespace.clone(), c.name_any())));
        } else {
            q.add(Key::Pod(namespace, pod.name_any()));
        }
    });
    let (q, all) = (queue.clone(), controller.pods.clone());
    controller.claims.on_change(move |change| {
        let claim = change.latest();
        let namespace = claim.namespace().unwrap_or_default();
        let name = claim.name_any();
        let uses = |pod: &&Arc<Pod>| claims_of(pod).iter().any(|e| known(pod, e) == Known::Named(name.clone(), false)) || is_for(pod, claim);
        all.in_namespace(&namespace).iter().filter(uses).for_each(|p| q.add(Key::Pod(namespace.clone(), p.name_any())));
        q.add(Key::Claim(namespace.clone(), name.clone()));
    });
    let (q, all) = (queue.clone(), controller.pods.clone());
    controller.templates.on_change(move |change| {
        let namespace = change.latest().namespace().unwrap_or_default();
        let name = change.latest().metadata.name.clone();
        let waits = |pod: &&Arc<Pod>| claims_of(pod).iter().any(|e| e.resource_claim_template_name == name);
        all.in_namespace(&namespace).iter().filter(waits).for_each(|p| q.add(Key::Pod(namespace.clone(), p.name_any())));
    });
    run_workers(&context.tasks, "resourceclaim", context.workers(10), queue, move |key: Key| {
        let controller = controller.clone();
        async move {
            controller.pods.synced().await;
            controller.claims.synced().await;
            controller.templates.synced().await;
            match key {
                Key::Pod(namespace, name) => controller.sync_pod(&namespace, &name).await,
                Key::Claim(namespace, name) => controller.sync_claim(&namespace, &name).await,
            }
        }
    });
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", pods::text(.0))]
    Api(#[from] kube::Error),
    #[error("PodResourceClaim {entry}: {why}")]
    Create { entry: String, why: String },
}

impl Controller {
    fn claims(&self, pod: &Pod) -> Vec<Arc<ResourceClaim>> {
        let mut claims = self.claims.in_namespace(&pod.namespace().unwrap_or_default());
        let uid = pod.uid().unwrap_or_default();
        let made = self.made.lock();
        for claim in made.iter().filter(|((of, _), _)| *of == uid).map(|(_, claim)| claim) {
            if !claims.iter().any(|c| c.metadata.uid == claim.metadata.uid) {
                claims.push(claim.clone());
            }
        }
        claims
    }

    async fn sync_pod(&self, namespace: &str, name: &str) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(namespace, name) else { return Ok(Requeue::No) };
        if pod.metadata.deletion_timestamp.is_some() || claims_of(&pod).is_empty() || is_done(&pod) {
            return Ok(Requeue::No);
        }
        let claims = self.claims(&pod);
        let mut told = Vec::new();
        for entry in claims_of(&pod) {
            match need(&pod, entry, &claims) {
                Need::Met => {}
                Need::Told(claim) => told.push((entry.name.clone(), claim)),
                Need::Made(template) => match self.make(&pod, entry, &template).await {
                    Ok(claim) => told.push((entry.name.clone(), claim)),
                    Err(why) => {
                        let error = Error::Create { entry: entry.name.clone(), why };
                        self.recorder.event(&Reference::of(pod.as_ref()), EventType::Warning, "FailedResourceClaimCreation", error.to_string());
                        return Err(error);
                    }
                },
            }
        }
        if !told.is_empty() {
            return self.tell(&pod, told).await;
        }
        for claim in unreserved(&pod, &claims) {
            let mut reserved = claim.as_ref().clone();
            reserved.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer(&pod));
            let api = Api::<ResourceClaim>::namespaced(self.client.clone(), namespace);
            if let Requeue::After(soon) = forgive(api.replace_status(&claim.name_any(), &PostParams::default(), &reserved).await.map(|_| ()))? {
                return Ok(Requeue::After(soon));
            }
        }
        Ok(Requeue::No)
    }

    async fn make(&self, pod: &Pod, entry: &PodResourceClaim, template: &str) -> Result<String, String> {
        let namespace = pod.namespace().unwrap_or_default();
        let Some(found) = self.templates.get(&namespace, template) else {
            return Err(format!("resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"));
        };
        let claim = from_template(pod, entry, &found);
        let api = Api::<ResourceClaim>::namespaced(self.client.clone(), &namespace);
        let made = api.create(&PostParams::default(), &claim).await.map_err(|e| format!("create ResourceClaim: {}", pods::text(&e)))?;
        let name = made.name_any();
        self.made.lock().insert((pod.uid().unwrap_or_default(), entry.name.clone()), Arc::new(made));
        Ok(name)
    }

    /// Writes into a pod's status which claims are its, those told of before included.
    async fn tell(&self, pod: &Pod, mut told: Vec<(String, String)>) -> Result<Requeue, Error> {
        for status in pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten()) {
            if let Some(claim) = &status.resource_claim_name
                && !told.iter().any(|(entry, _)| *entry == status.name)
            {
                told.push((status.name.clone(), claim.clone()));
            }
        }
        let statuses: Vec<_> = told.into_iter().map(|(entry, claim)| json!({"name": entry, "resourceClaimName": claim})).collect();
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "uid": pod.uid()},
            "status": {"resourceClaimStatuses": statuses}});
        let api = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        Ok(forgive(api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await.map(|_| ()))?)
    }

    async fn sync_claim(&self, namespace: &str, name: &str) -> Result<Requeue, Error> {
        let key = (namespace.to_string(), name.to_string());
        let Some(claim) = self.claims.get(namespace, name) else {
            self.given_back.lock().remove(&key);
            return Ok(Requeue::No);
        };
        // The informer may be behind: a pod that it does not hold is looked for.
        let mut absent = Vec::new();
        for consumer in claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten()).filter(|c| c.resource == "pods") {
            if self.pods.get(namespace, &consumer.name).is_none() {
                let found = Api::<Pod>::namespaced(self.client.clone(), namespace).get_metadata_opt(&consumer.name).await?;
                if found.is_none_or(|p| p.uid().as_ref() != Some(&consumer.uid)) {
                    absent.push(consumer.uid.clone());
                }
            }
        }
        let gone = |c: &ResourceClaimConsumerReference| match self.pods.get(namespace, &c.name) {
            Some(pod) => pod.uid().as_ref() != Some(&c.uid) || is_done(&pod),
            None => absent.contains(&c.uid),
        };
        let done = |o: &OwnerReference| self.pods.get(namespace, &o.name).is_some_and(|pod| pod.uid().as_ref() != Some(&o.uid) || is_done(&pod));
        let given_back = self.given_back.lock().get(&key).is_some_and(|uid| *uid == claim.uid());
        let upkeep = upkeep(&claim, given_back, gone, done);
        let api = Api::<ResourceClaim>::namespaced(self.client.clone(), namespace);
        let mut now = claim.as_ref().clone();
        if upkeep.drop_finalizer {
            self.given_back.lock().insert(key.clone(), claim.uid());
        }
        if upkeep.reserved.is_some() || upkeep.deallocate {
            let status = now.status.get_or_insert_default();
            if let Some(reserved) = upkeep.reserved {
                status.reserved_for = Some(reserved).filter(|r| !r.is_empty());
            }
            if upkeep.deallocate {
                status.allocation = None;
            }
            match api.replace_status(name, &PostParams::default(), &now).await {
                Ok(written) => now = written,
                failed => return Ok(forgive(failed.map(|_| ()))?),
            }
        }
        if upkeep.drop_finalizer {
            now.finalizers_mut().retain(|f| f != FINALIZER);
            if let Requeue::After(soon) = forgive(api.replace(name, &PostParams::default(), &now).await.map(|_| ()))? {
                return Ok(Requeue::After(soon));
            }
            self.given_back.lock().remove(&key);
        }
        if upkeep.delete {
            let params = DeleteParams::default().preconditions(Preconditions { uid: claim.uid(), resource_version: None });
            return Ok(forgive(api.delete(name, &params).await.map(|_| ()))?);
        }
        Ok(Requeue::No)
    }
}

/// What is gone needs nothing; what was changed meanwhile is looked at again.
fn forgive(result: kube::Result<()>) -> kube::Result<Requeue> {
    match result {
        Ok(()) => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(20))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(status: Value, node: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"nodeName": node, "containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}, {"name": "shared", "resourceClaimName": "s"}]},
            "status": status}))
        .expect("a pod")
    }

    fn claim(name: &str, owner: Option<&str>, status: Value) -> Arc<ResourceClaim> {
        let owners: Vec<Value> = owner.iter().map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true})).collect();
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "ownerReferences": owners, "annotations": {POD_CLAIM: "gpu"}, "finalizers": [FINALIZER]},
            "spec": {}, "status": status})).expect("a claim"))
    }

    #[test]
    fn a_template_makes_one_claim() {
        let new = pod(json!({}), "");
        let entry = &claims_of(&new)[0];
        assert_eq!(need(&new, entry, &[]), Need::Made("t".into()));
        assert_eq!(need(&new, &claims_of(&new)[1], &[]), Need::Met, "a claim with a name is the user's");
        assert_eq!(need(&new, entry, &[claim("c", Some("u"), json!({}))]), Need::Told("c".into()));
        assert_eq!(need(&new, entry, &[claim("c", Some("other"), json!({}))]), Need::Made("t".into()));
        let told = pod(json!({"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "c"}]}), "");
        assert_eq!(need(&told, entry, &[claim("c", Some("u"), json!({}))]), Need::Met);
        assert_eq!(need(&told, entry, &[]), Need::Made("t".into()), "it was deleted");
        assert_eq!(need(&told, entry, &[claim("c", Some("other"), json!({}))]), Need::Made("t".into()), "one of its name is another's");
        let unneeded = pod(json!({"resourceClaimStatuses": [{"name": "gpu"}]}), "");
        assert_eq!(need(&unneeded, entry, &[]), Need::Met);
        let template: ResourceClaimTemplate =
            serde_json::from_value(json!({"metadata": {"name": "t"}, "spec": {"metadata": {"labels": {"l": "1"}}, "spec": {}}})).expect("a template");
        let made = from_template(&new, entry, &template);
        assert_eq!((made.metadata.generate_name.as_deref(), made.metadata.namespace.as_deref()), (Some("p-gpu-"), Some("ns")));
        assert!(is_for(&new, &made) && made.annotations().get(POD_CLAIM) == Some(&"gpu".to_string()) && made.labels().contains_key("l"));
        let generated = |length: usize| {
            let mut named = new.clone();
            named.metadata.name = Some("p".repeat(length));
            from_template(&named, entry, &template).metadata.generate_name.unwrap_or_default()
        };
        assert_eq!(generated(52), format!("{}-gpu-", "p".repeat(52)), "57 characters may be");
        // Of 58 each part gives up its share.
        assert_eq!(generated(53), format!("{}-gp", "p".repeat(52)));
        assert_eq!(generated(100), format!("{}-g", "p".repeat(54)));
    }

    #[test]
    fn a_bound_pod_reserves_what_is_allocated() {
        let free = claim("s", None, json!({"allocation": {}}));
        let names = |pod: &Pod, claims: &[Arc<ResourceClaim>]| unreserved(pod, claims).iter().map(|c| c.name_any()).collect::<Vec<_>>();
        assert_eq!(names(&pod(json!({}), "n"), std::slice::from_ref(&free)), ["s"]);
        assert!(names(&pod(json!({}), ""), std::slice::from_ref(&free)).is_empty(), "the scheduler's work");
        let mine = claim("s", None, json!({"allocation": {}, "reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}));
        assert!(names(&pod(json!({}), "n"), std::slice::from_ref(&mine)).is_empty());
        assert_eq!(mine.status.as_ref().and_then(|s| s.reserved_for.clone()), Some(vec![consumer(&pod(json!({}), "n"))]));
        assert!(names(&pod(json!({}), "n"), &[claim("s", None, json!({}))]).is_empty());
        assert_eq!(names(&pod(json!({}), "n"), &[claim("r", None, json!({"allocation": {}})), free]), ["s"], "the other one is not its");
        let reserved = |count: usize| {
            let consumers: Vec<Value> = (0..count).map(|n| json!({"resource": "pods", "name": n.to_string(), "uid": n.to_string()})).collect();
            claim("s", None, json!({"allocation": {}, "reservedFor": consumers}))
        };
        assert_eq!(names(&pod(json!({}), "n"), &[reserved(255)]), ["s"]);
        assert!(names(&pod(json!({}), "n"), &[reserved(256)]).is_empty(), "it is full");
    }

    #[test]
    fn claims_are_given_back() {
        let consumers = json!([{"resource": "pods", "name": "p", "uid": "u"}, {"resource": "pods", "name": "q", "uid": "v"}]);
        let shared = claim("s", None, json!({"allocation": {}, "reservedFor": consumers}));
        let nothing = Upkeep { reserved: None, deallocate: false, drop_finalizer: false, delete: false };
        assert_eq!(upkeep(&shared, false, |_| false, |_| true), nothing);
        let one = upkeep(&shared, false, |c| c.uid == "u", |_| true);
        assert!(one.reserved.is_some_and(|r| r.len() == 1) && !one.deallocate && !one.drop_finalizer);
        let all = upkeep(&shared, false, |_| true, |_| false);
        assert!(all.reserved.is_some_and(|r| r.is_empty()) && all.deallocate && all.drop_finalizer && !all.delete);
        let idle = claim("s", None, json!({}));
        assert_eq!(upkeep(&idle, false, |_| true, |_| false), nothing, "a scheduler may be about to allocate it");
        assert!(upkeep(&idle, true, |_| true, |_| false).drop_finalizer, "the second request had failed");
        let again = claim("s", None, json!({"allocation": {}}));
        assert_eq!(upkeep(&again, true, |_| true, |_| false), nothing, "it was allocated again");
        let own = claim("c", Some("u"), json!({}));
        assert_eq!(upkeep(&own, false, |_| true, |_| false), nothing);
        assert!(upkeep(&own, false, |_| true, |_| true).delete);
        let used = claim("c", Some("u"), json!({"reservedFor": [{"resource": "pods", "name": "q", "uid": "v"}]}));
        assert_eq!(upkeep(&used, false, |_| false, |_| true), nothing, "another pod uses it");
        for (group, resource) in [("example.com", "things"), ("example.com", "pods"), ("", "things")] {
            let foreign = claim("f", None, json!({"reservedFor": [{"apiGroup": group, "resource": resource, "name": "p", "uid": "u"}]}));
            assert_eq!(upkeep(&foreign, false, |_| true, |_| true), nothing, "who knows what {resource} of {group} are");
        }
        for (kind, api_version) in [("Pod", "example.com/v1"), ("Thing", "v1")] {
            let mut foreign = own.as_ref().clone();
            let owner = &mut foreign.metadata.owner_references.as_mut().expect("an owner")[0];
            (owner.kind, owner.api_version) = (kind.into(), api_version.into());
            assert_eq!(upkeep(&foreign, false, |_| true, |_| true), nothing, "a {kind} of {api_version} is no pod");
        }
        let mut leaving = claim("c", None, json!({"allocation": {}})).as_ref().clone();
        leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let end = upkeep(&leaving, false, |_| true, |_| true);
        assert!(end.deallocate && end.drop_finalizer && !end.delete);
    }

    #[test]
    fn pods_are_done_when_they_will_not_run() {
        assert!(!is_done(&pod(json!({"phase": "Running"}), "n")));
        assert!(is_done(&pod(json!({"phase": "Failed"}), "n")));
        let mut leaving = pod(json!({"phase": "Pending"}), "");
        leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(is_done(&leaving));
        leaving.spec.get_or_insert_default().node_name = Some("n".into());
        assert!(!is_done(&leaving), "it runs until its kubelet says otherwise");
        assert!(!is_done(&pod(json!({"phase": "Pending"}), "")), "it waits for a node");
    }

    #[test]
    fn what_is_gone_needs_nothing_and_what_changed_another_look() {
        let after = |code, reason| forgive(Err(pods::refused(code, reason))).ok();
        assert_eq!(forgive(Ok(())).ok(), Some(Requeue::No));
        assert_eq!(after(404, "NotFound"), Some(Requeue::No));
        assert!(matches!(after(409, "Conflict"), Some(Requeue::After(_))));
        assert_eq!(after(500, "InternalError"), None);
    }
}
