//! Namespaces: when one is deleted, everything in it goes first, then its finalizer.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Client, ResourceExt};
use reconcile::{Informer, Queue, Requeue, run_workers};

use crate::{Context, pods, resources};

/// What is left of a namespace after a pass.
#[derive(Debug, Default, PartialEq)]
pub struct Remains {
    /// Objects left, by resource (`pods`, `deployments.apps`).
    pub objects: Vec<(String, usize)>,
    /// Finalizers that hold them.
    pub finalizers: Vec<(String, usize)>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// The conditions that tell why a namespace is still there.
pub fn conditions(remains: &Remains, now: Timestamp) -> Vec<NamespaceCondition> {
    let condition = |kind: &str, bad: bool, reason: (&str, &str), message: (&str, String)| NamespaceCondition {
        type_: kind.into(),
        status: if bad { "True" } else { "False" }.into(),
        reason: Some(if bad { reason.0 } else { reason.1 }.into()),
        message: Some(if bad { message.1 } else { message.0.into() }),
        last_transition_time: Some(Time(now)),
    };
    let list = |items: &[(String, usize)], each: &str| {
        items.iter().map(|(name, n)| format!("{name} {each} {n} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let mut sorted = remains.failures.clone();
    sorted.sort();
    vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            ("DiscoveryFailed", "ResourcesDiscovered"),
            ("All resources successfully discovered", String::new()),
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", "ParsedGroupVersions"),
            ("All legacy kube types successfully parsed", String::new()),
        ),
        condition(
            "NamespaceDeletionContentFailure",
            !sorted.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            ("All content successfully deleted, may be waiting on finalization", format!("Failed to delete all resource types, {} remaining: {}", sorted.len(), sorted.join(", "))),
        ),
        condition(
            "NamespaceContentRemaining",
            !remains.objects.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            ("All content successfully removed", format!("Some resources are remaining: {}", list(&remains.objects, "has"))),
        ),
        condition(
            "NamespaceFinalizersRemaining",
            !remains.finalizers.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            ("All content-preserving finalizers finished", format!("Some content in the namespace has finalizers remaining: {}", list(&remains.finalizers, "in"))),
        ),
    ]
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
    let (q, known) = (queue.clone(), namespaces.clone());
    all_pods.on_change(move |change| {
        let namespace = change.latest().namespace().unwrap_or_default();
        if change.new.is_none() && known.get("", &namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            q.add(namespace);
        }
    });
    let client = context.client.clone();
    run_workers(&context.tasks, "namespace", 5, queue, move |name: String| {
        let (client, namespaces, all_pods) = (client.clone(), namespaces.clone(), all_pods.clone());
        async move {
            namespaces.synced().await;
            sync(&client, &namespaces, &all_pods, &name).await
        }
    });
}

async fn sync(client: &Client, namespaces: &Informer<Namespace>, all_pods: &Informer<Pod>, name: &str) -> kube::Result<Requeue> {
    let Some(namespace) = namespaces.get("", name).filter(|n| n.metadata.deletion_timestamp.is_some()) else {
        return Ok(Requeue::No);
    };
    let api = Api::<Namespace>::all(client.clone());
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == "kubernetes") {
        return Ok(Requeue::No);
    }
    let remains = empty(client, name).await?;
    if remains != Remains::default() {
        let mut told = namespace.as_ref().clone();
        let old = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let new = keep_times(conditions(&remains, Timestamp::now()), &old);
        if new == old {
            return Ok(again(all_pods, name));
        }
        told.status.get_or_insert_default().conditions = Some(new);
        match api.replace_status(name, &PostParams::default(), &told).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Requeue::No),
            // Somebody else wrote it; what remains is looked at again anyway.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        return Ok(again(all_pods, name));
    }
    let mut done = api.get(name).await?;
    if let Some(spec) = &mut done.spec {
        spec.finalizers = Some(finalizers.into_iter().filter(|f| f != "kubernetes").collect());
    }
    match api.replace_subresource("finalize", name, &Default::default(), &done).await {
        Ok(_) => Ok(Requeue::No),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Requeue::No),
        Err(error) => Err(error),
    }
}

/// Pods go when their kubelets say so, and that wakes us; what else remains waits for others.
fn again(all_pods: &Informer<Pod>, name: &str) -> Requeue {
    let waiting = all_pods.in_namespace(name).iter().any(|p| p.metadata.deletion_timestamp.is_some());
    Requeue::After(Duration::from_millis(if waiting { 1000 } else { 200 }))
}

/// A condition that says what it said keeps its time.
fn keep_times(mut new: Vec<NamespaceCondition>, old: &[NamespaceCondition]) -> Vec<NamespaceCondition> {
    for condition in &mut new {
        let before = old.iter().find(|o| o.type_ == condition.type_ && o.status == condition.status);
        if let Some(before) = before {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
    new
}

/// Asks for everything in the namespace to be deleted, and looks at what is still there.
async fn empty(client: &Client, namespace: &str) -> kube::Result<Remains> {
    let mut remains = Remains::default();
    for served in resources::served(client).await? {
        if !served.namespaced || !served.can("list") || !served.can("delete") {
            continue;
        }
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &served.resource);
        let label = if served.resource.group.is_empty() {
            served.resource.plural.clone()
        } else {
            format!("{}.{}", served.resource.plural, served.resource.group)
        };
        let left = api.list_metadata(&ListParams::default()).await?.items;
        if left.is_empty() {
            continue;
        }
        let params = DeleteParams::background();
        let outcome = if served.can("deletecollection") {
            api.delete_collection(&params, &ListParams::default()).await.map(|_| ())
        } else {
            let mut outcome = Ok(());
            for object in &left {
                outcome = outcome.and(api.delete(&object.name_any(), &params).await.map(|_| ()));
            }
            outcome
        };
        match outcome {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {}
            Err(error) => remains.failures.push(format!("{label}: {}", pods::text(&error))),
        }
        let left = api.list_metadata(&ListParams::default()).await?.items;
        if !left.is_empty() {
            remains.objects.push((label, left.len()));
            for finalizer in left.iter().flat_map(|o| o.finalizers()) {
                match remains.finalizers.iter_mut().find(|(f, _)| f == finalizer) {
                    Some((_, n)) => *n += 1,
                    None => remains.finalizers.push((finalizer.clone(), 1)),
                }
            }
        }
    }
    Ok(remains)
}
