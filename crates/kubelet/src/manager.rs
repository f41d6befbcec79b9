//! Which pods this node has: from the API and from the runtime, a worker each.
//!
//! Runs two tasks: one takes the changes of pods, one the events of containers. After a restart it
//! waits for the API's list before it judges what the runtime has: a sandbox without a pod is an orphan.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::{GetEventsRequest, ListPodSandboxRequest};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use reconcile::{Change, Tasks};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::pod::{self, label};
use crate::worker::{Inbox, Shared, Worker, orphan};

/// The workers by pod uid.
#[derive(Default)]
pub struct Pods {
    inboxes: Mutex<HashMap<String, Arc<Inbox>>>,
    tasks: Tasks,
}

impl Pods {
    pub fn new(tasks: Tasks) -> Pods {
        Pods { inboxes: Mutex::default(), tasks }
    }

    /// Wakes the worker of a pod.
    pub fn wake(&self, uid: &str) {
        if let Some(inbox) = self.inboxes.lock().get(uid) {
            inbox.wake.notify_one();
        }
    }

    /// Wakes the worker of a pod whose volumes show something that changed.
    pub fn refresh(&self, uid: &str) {
        if let Some(inbox) = self.inboxes.lock().get(uid) {
            inbox.refresh();
        }
    }

    fn wake_all(&self) {
        self.inboxes.lock().values().for_each(|i| i.wake.notify_one());
    }

    /// The pods that have a worker, as the API last had them.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.inboxes.lock().values().filter_map(|i| i.pod()).collect()
    }

    /// The pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        // The youngest, when an older one of the name is still ending.
        let mut all: Vec<Arc<Pod>> = self.list().into_iter().filter(|p| p.name_any() == name && p.namespace().as_deref() == Some(namespace)).collect();
        all.sort_by_key(|p| (p.metadata.deletion_timestamp.is_none(), p.metadata.creation_timestamp.as_ref().map(|t| t.0)));
        all.pop()
    }

    /// The pods that count against the node's resources, without this one.
    pub fn active_but(&self, uid: &str) -> Vec<Arc<Pod>> {
        let ended = |p: &Pod| matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        self.list().into_iter().filter(|p| pod::uid(p) != uid && !ended(p)).collect()
    }

    /// The worker of a pod has ended.
    pub fn remove(&self, uid: &str) {
        self.inboxes.lock().remove(uid);
    }

    /// The pod as it is now in the API; a new one gets a worker.
    pub fn update(&self, shared: &Arc<Shared>, pod: Arc<Pod>) {
        let uid = pod::uid(&pod);
        let mut inboxes = self.inboxes.lock();
        match inboxes.get(&uid) {
            Some(inbox) => inbox.update(pod),
            None => {
                let inbox = Arc::new(Inbox::default());
                inbox.update(pod.clone());
                inboxes.insert(uid, inbox.clone());
                self.tasks.spawn(format!("pod {}", pod::format(&pod)), Worker::new(shared.clone(), inbox, pod, false).run());
            }
        }
    }

    /// The API has the pod no more, or never had it.
    pub fn gone(&self, shared: &Arc<Shared>, pod: Arc<Pod>) {
        let uid = pod::uid(&pod);
        let mut inboxes = self.inboxes.lock();
        match inboxes.get(&uid) {
            Some(inbox) => inbox.gone(),
            None => {
                let inbox = Arc::new(Inbox::default());
                inbox.update(pod.clone());
                inbox.gone();
                inboxes.insert(uid, inbox.clone());
                self.tasks.spawn(format!("orphan {}", pod::format(&pod)), Worker::new(shared.clone(), inbox, pod, true).run());
            }
        }
    }
}

/// Takes the API's changes of this node's pods.
pub async fn take_changes(pods: Arc<Pods>, shared: Arc<Shared>, mut changes: UnboundedReceiver<Change<Pod>>) {
    while let Some(change) = changes.recv().await {
        match (change.old, change.new) {
            (old, Some(new)) => {
                // Deleted and made anew under the same name between two looks.
                if let Some(old) = old.filter(|o| pod::uid(o) != pod::uid(&new)) {
                    pods.gone(&shared, old);
                }
                shared.reporter.seen(&new);
                pods.update(&shared, new);
            }
            (Some(old), None) => pods.gone(&shared, old),
            (None, None) => {}
        }
    }
}

/// Ends what the runtime or the disk still has of pods that the API does not know. To be called once
/// the API's list is there.
pub async fn end_orphans(pods: &Pods, shared: &Arc<Shared>, listed: &(dyn Fn(&str) -> bool + Sync)) -> Result<(), cri::Error> {
    let known = |uid: &str| listed(uid) || pods.inboxes.lock().contains_key(uid);
    let mut orphans: HashMap<String, Pod> = HashMap::new();
    for sandbox in shared.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items {
        let of = |key: &str| sandbox.labels.get(key).cloned().unwrap_or_default();
        let uid = of(label::POD_UID);
        // Without our labels it is somebody else's.
        if !uid.is_empty() && !known(&uid) {
            orphans.insert(uid.clone(), orphan(&of(label::POD_NAME), &of(label::POD_NAMESPACE), &uid));
        }
    }
    for uid in shared.volumes.pods_on_disk() {
        if !known(&uid) {
            orphans.entry(uid.clone()).or_insert_with(|| orphan("", "", &uid));
        }
    }
    for pod in orphans.into_values() {
        tracing::info!(pod = pod::format(&pod), "the API does not know this pod: it ends");
        pods.gone(shared, Arc::new(pod));
    }
    Ok(())
}

/// Wakes workers when something happens to their containers.
pub async fn take_events(pods: Arc<Pods>, runtime: Arc<dyn cri::RuntimeService>) {
    let mut pause = Duration::from_millis(50);
    loop {
        match runtime.get_container_events(GetEventsRequest {}).await {
            Ok(mut events) => {
                // What happened before is found by looking.
                pods.wake_all();
                while let Some(Ok(event)) = events.next().await {
                    pause = Duration::from_millis(50);
                    match event.pod_sandbox_status.and_then(|s| s.labels.get(label::POD_UID).cloned()) {
                        Some(uid) => pods.wake(&uid),
                        None => pods.wake_all(),
                    }
                }
            }
            Err(error) if error.code == cri::Code::Unimplemented => {
                tracing::info!("the runtime tells no events; looking every second instead");
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    pods.wake_all();
                }
            }
            Err(error) => tracing::warn!("container events: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}
