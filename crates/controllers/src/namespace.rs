//! Namespaces: when one is deleted, everything in it goes first, then its finalizer.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::{PartialObjectMeta, Request};
use kube::{Client, Resource, ResourceExt};
use reconcile::{Queue, Requeue, run_workers};

use crate::pod::Pod;
use crate::{Context, pods, resources};

/// The finalizer of `spec.finalizers` that is ours.
const FINALIZER: &str = "kubernetes";
/// Workers, as upstream's `--concurrent-namespace-syncs`.
const WORKERS: usize = 10;

/// What is left of a namespace after a pass.
#[derive(Debug, Default, PartialEq)]
pub struct Remains {
    /// Objects left, by resource (`pods.`, `deployments.apps`).
    pub objects: BTreeMap<String, usize>,
    /// Finalizers that hold them.
    pub finalizers: BTreeMap<String, usize>,
    /// Group versions that could not be looked into, and why.
    pub undiscovered: Vec<(String, String)>,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Remains {
    /// True when the namespace is known to be empty.
    pub fn is_nothing(&self) -> bool {
        *self == Remains::default()
    }
}

/// The conditions that tell why a namespace is still there.
pub fn conditions(remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, bad: (&str, Option<String>), good: (&str, &str)| NamespaceCondition {
        type_: kind.into(),
        status: if bad.1.is_some() { "True" } else { "False" }.into(),
        reason: Some(if bad.1.is_some() { bad.0 } else { good.0 }.into()),
        message: Some(bad.1.unwrap_or_else(|| good.1.into())),
        last_transition_time: Some(Time(now)),
    };
    let list = |items: &BTreeMap<String, usize>, intro: &str, each: &str| {
        let all: Vec<String> = items.iter().map(|(name, n)| format!("{name} {each} {n} resource instances")).collect();
        (!all.is_empty()).then(|| format!("{intro}: {}", all.join(", ")))
    };
    let mut groups: Vec<String> = remains.undiscovered.iter().map(|(group, why)| format!("{group}: {why}")).collect();
    groups.sort();
    let undiscovered = (!groups.is_empty()).then(|| {
        let all = groups.join(", ");
        format!("Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {all}", groups.len())
    });
    let mut failures = remains.failures.clone();
    failures.sort();
    let failed =
        (!failures.is_empty()).then(|| format!("Failed to delete all resource types, {} remaining: {}", failures.len(), failures.join(", ")));
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            ("DiscoveryFailed", undiscovered),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            ("GroupVersionParsingFailed", None),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            ("ContentDeletionFailed", failed),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        condition(
            "NamespaceContentRemaining",
            ("SomeResourcesRemain", list(&remains.objects, "Some resources are remaining", "has")),
            ("ContentRemoved", "All content successfully removed"),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            ("SomeFinalizersRemain", list(&remains.finalizers, "Some content in the namespace has finalizers remaining", "in")),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

/// Puts new conditions among old ones: those that say what they said keep their time, and those of
/// others stay.
pub fn merge(old: &[NamespaceCondition], new: Vec<NamespaceCondition>) -> Vec<NamespaceCondition> {
    let mut all = old.to_vec();
    for condition in new {
        match all.iter_mut().find(|c| c.type_ == condition.type_) {
            Some(known) if known.status == condition.status => {
                known.reason = condition.reason;
                known.message = condition.message;
            }
            Some(known) => *known = condition,
            None => all.push(condition),
        }
    }
    all
}

/// When to look again at a namespace that is not empty. Pods say themselves when the last of them has
/// gone; everything else is asked for, seldom once it has taken long.
pub fn pause(pods_left: bool, deleted: Timestamp, now: Timestamp) -> Duration {
    let long = now.duration_since(deleted) > SignedDuration::from_secs(15);
    match (pods_left, long) {
        (true, _) => Duration::from_secs(2),
        (false, false) => Duration::from_millis(200),
        (false, true) => Duration::from_secs(5),
    }
}

/// Starts the controller.
pub fn start(context: &Context) {
    let namespaces = context.informers.of::<Namespace>();
    let all_pods = context.informers.of::<Pod>();
    let queue = Queue::<String>::new();
    let q = queue.clone();
    namespaces.on_change(move |change| {
        if let Some(namespace) = &change.new
            && namespace.metadata.deletion_timestamp.is_some()
        {
            q.add(namespace.name_any());
        }
    });
    let (q, known, left) = (queue.clone(), namespaces.clone(), all_pods.clone());
    all_pods.on_change(move |change| {
        let namespace = change.latest().namespace().unwrap_or_default();
        let deleting = || known.get("", &namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
        if change.new.is_none() && deleting() && !left.any_in_namespace(&namespace) {
            q.add(namespace);
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "namespace", context.workers(WORKERS), queue, move |name: String| {
        let (client, namespaces) = (client.clone(), namespaces.clone());
        async move {
            namespaces.synced().await;
            match namespaces.get("", &name) {
                Some(namespace) if namespace.metadata.deletion_timestamp.is_some() => sync(&client, &name).await,
                _ => Ok(Requeue::No),
            }
        }
    });
}

async fn sync(client: &Client, name: &str) -> kube::Result<Requeue> {
    let api = Api::<Namespace>::all(client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(Requeue::No) };
    let Some(deleted) = namespace.metadata.deletion_timestamp.as_ref().map(|t| t.0) else { return Ok(Requeue::No) };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return Ok(Requeue::No);
    }
    let (remains, pods_left) = empty(client, name).await?;
    let now = Timestamp::now();
    let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let new = merge(&old, conditions(&remains, now));
    let done = remains.is_nothing();
    // Of a namespace that goes at once nobody reads conditions.
    if new != old && !(done && old.is_empty()) {
        namespace.status.get_or_insert_default().conditions = Some(new);
        match api.replace_status(name, &PostParams::default(), &namespace).await {
            Ok(written) => namespace = written,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Requeue::No),
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(Requeue::After(Duration::from_millis(5))),
            Err(error) => return Err(error),
        }
    }
    if !done {
        // Of pods that could not be asked for nobody knows when they have gone.
        return Ok(Requeue::After(pause(pods_left && remains.failures.is_empty(), deleted, now)));
    }
    if let Some(spec) = &mut namespace.spec {
        spec.finalizers = Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect());
    }
    match api.replace_subresource("finalize", name, &Default::default(), &namespace).await {
        Ok(_) => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Requeue::After(Duration::from_millis(5))),
        Err(error) => Err(error),
    }
}

/// Asks for everything in the namespace to be deleted, and looks at what is still there. Pods go
/// first: what they use must not disappear under them. True when some of them are left.
async fn empty(client: &Client, namespace: &str) -> kube::Result<(Remains, bool)> {
    let found = resources::discover(client).await?;
    let mut remains = Remains { undiscovered: found.failures, ..Remains::default() };
    let deletable = |s: &&resources::Served| s.namespaced && s.can("list") && s.can("delete");
    let is_pods = |s: &resources::Served| s.resource.group.is_empty() && s.resource.plural == "pods";
    let (pods, others): (Vec<_>, Vec<_>) = found.resources.iter().filter(deletable).partition(|s| is_pods(s));
    for served in pods {
        empty_of(client, namespace, served, &mut remains).await;
    }
    if !remains.objects.is_empty() || !remains.failures.is_empty() {
        return Ok((remains, true));
    }
    for served in others {
        empty_of(client, namespace, served, &mut remains).await;
    }
    Ok((remains, false))
}

/// The same for one resource.
async fn empty_of(client: &Client, namespace: &str, served: &resources::Served, remains: &mut Remains) {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &served.resource);
    let absent = |error: &kube::Error| matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 405));
    let outcome: kube::Result<Vec<_>> = async {
        let left = list(&api).await?;
        if left.iter().all(|o| o.metadata.deletion_timestamp.is_some()) {
            return Ok(left);
        }
        let params = DeleteParams::background();
        if served.can("deletecollection") {
            delete_collection(client, namespace, served, &params).await?;
        } else {
            for object in &left {
                match api.delete(&object.name_any(), &params).await {
                    Err(error) if !absent(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        list(&api).await
    }
    .await;
    let label = format!("{}.{}", served.resource.plural, served.resource.group);
    match outcome {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            for finalizer in left.iter().flat_map(|o| o.finalizers()) {
                *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
            remains.objects.insert(label, left.len());
        }
        Err(error) if absent(&error) => {}
        Err(error) => remains.failures.push(format!("{label}: {}", pods::text(&error))),
    }
}

/// Asks for all objects of a resource to be deleted; of what is answered, the less the better.
async fn delete_collection(client: &Client, namespace: &str, served: &resources::Served, params: &DeleteParams) -> kube::Result<()> {
    let request = Request::new(DynamicObject::url_path(&served.resource, Some(namespace))).delete_collection(params, &ListParams::default());
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
    request.headers_mut().insert("accept", metadata.parse().expect("a header"));
    client.request_text(request).await.map(|_| ())
}

async fn list(api: &Api<DynamicObject>) -> kube::Result<Vec<PartialObjectMeta<DynamicObject>>> {
    Ok(api.list_metadata(&ListParams::default()).await?.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: &[NamespaceCondition], kind: &str) -> (String, String, String) {
        let c = conditions.iter().find(|c| c.type_ == kind).expect("the condition");
        (c.status.clone(), c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default())
    }

    #[test]
    fn conditions_say_what_remains_and_why() {
        let empty = conditions(&Remains::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(empty.len(), 5);
        assert!(empty.iter().all(|c| c.status == "False"));
        let remains = Remains {
            objects: BTreeMap::from([("pods.".into(), 2), ("deployments.apps".into(), 1)]),
            finalizers: BTreeMap::from([("example.com/mine".into(), 1)]),
            undiscovered: vec![("a.example.com/v1".into(), "the server is currently unable to handle the request".into())],
            failures: vec!["secrets.: no".into(), "leases.x: neither".into()],
        };
        let all = conditions(&remains, Timestamp::UNIX_EPOCH);
        assert_eq!(
            status(&all, "NamespaceContentRemaining").2,
            "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances"
        );
        assert_eq!(
            status(&all, "NamespaceFinalizersRemaining").2,
            "Some content in the namespace has finalizers remaining: example.com/mine in 1 resource instances"
        );
        let (is, reason, message) = status(&all, "NamespaceDeletionContentFailure");
        assert_eq!((is.as_str(), reason.as_str()), ("True", "ContentDeletionFailed"));
        assert_eq!(message, "Failed to delete all resource types, 2 remaining: leases.x: neither, secrets.: no");
        let (is, reason, message) = status(&all, "NamespaceDeletionDiscoveryFailure");
        assert_eq!((is.as_str(), reason.as_str()), ("True", "DiscoveryFailed"));
        assert!(message.starts_with("Discovery failed for some groups, 1 failing: "), "{message}");
        assert!(!remains.is_nothing() && Remains::default().is_nothing());
        let blind = Remains { undiscovered: remains.undiscovered, ..Remains::default() };
        assert!(!blind.is_nothing(), "what cannot be seen may be there");
    }

    #[test]
    fn conditions_keep_their_time_and_those_of_others_stay() {
        let later = Timestamp::from_second(100).expect("a time");
        let mut old = conditions(&Remains::default(), Timestamp::UNIX_EPOCH);
        old.push(NamespaceCondition { type_: "Mine".into(), status: "True".into(), ..Default::default() });
        assert_eq!(merge(&old, conditions(&Remains::default(), later)), old);
        let remains = Remains { objects: BTreeMap::from([("pods.".into(), 1)]), ..Remains::default() };
        let new = merge(&old, conditions(&remains, later));
        let changed: Vec<&str> = new.iter().filter(|c| c.last_transition_time == Some(Time(later))).map(|c| c.type_.as_str()).collect();
        assert_eq!(changed, ["NamespaceContentRemaining"]);
        assert!(new.iter().any(|c| c.type_ == "Mine"));
    }

    #[test]
    fn waiting_grows_longer() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        assert!(pause(false, at(0), at(1)) < pause(false, at(0), at(60)));
        assert!(pause(true, at(0), at(1)) > pause(false, at(0), at(1)), "the last pod's end wakes us");
        assert_eq!((pause(false, at(0), at(15)), pause(true, at(0), at(60))), (Duration::from_millis(200), Duration::from_secs(2)));
    }
}
