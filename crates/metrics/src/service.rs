//! Scrapes while somebody asks, and answers from the last two scrapes of each node.
//!
//! ```text
//! asleep ──asked──▶ scrape, one second, scrape ──▶ scrape every 15 s ──nobody asked for 5 min──▶ asleep
//! ```
//!
//! So an idle cluster pays nothing, and the first answer takes little more than the second between
//! two scrapes. One task does it all; who asks waits for it only when nothing fresh is there.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::status::{self, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use parking_lot::Mutex;
use reconcile::{Informer, Informers, Tasks};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::kubelet::{Connection, Kubelets};
use crate::objects::{self, GROUP};
use crate::pod::Pod;
use crate::sample::{self, Nanos, PodKey, Scrape};

/// Time between scrapes.
const INTERVAL: Duration = Duration::from_secs(15);
/// Time between the two scrapes that a first answer is made from.
const FIRST: Duration = Duration::from_secs(1);
/// Scrapes older than this are no answer.
const STALE: Duration = Duration::from_secs(40);
/// Scraping goes on for so long after the last question.
const ATTENTION: Duration = Duration::from_secs(300);
/// How long one kubelet may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a node that is not ready: it is asked, but not waited for.
const LITTLE_PATIENCE: Duration = Duration::from_secs(1);
/// How long a question waits for scrapes.
const WAIT: Duration = Duration::from_secs(15);

/// What is known of a node.
#[derive(Default)]
struct History {
    before: Option<Arc<Scrape>>,
    last: Option<Arc<Scrape>>,
}

struct Started {
    nodes: Informer<Node>,
    informers: Informers,
    /// Followed from the first question on.
    pods: OnceLock<Informer<Pod>>,
}

impl Started {
    async fn pods(&self) -> Result<&Informer<Pod>, Status> {
        let pods = self.pods.get_or_init(|| self.informers.of::<Pod>());
        match tokio::time::timeout(WAIT, pods.synced()).await {
            Ok(()) => Ok(pods),
            Err(_) => Err(status::unavailable("the pods are not known yet")),
        }
    }
}

struct Shared {
    started: OnceLock<Started>,
    history: Mutex<HashMap<String, History>>,
    asked: Mutex<Option<Instant>>,
    wake: Notify,
    /// When scrapes that can be answered from were last complete.
    fresh: watch::Sender<Option<Instant>>,
}

/// The answers of the group. Clones share everything.
#[derive(Clone)]
pub struct Service(Arc<Shared>);

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

impl Service {
    /// A service that has nothing to say before it is started.
    pub fn new() -> Service {
        Service(Arc::new(Shared {
            started: OnceLock::new(),
            history: Mutex::default(),
            asked: Mutex::default(),
            wake: Notify::new(),
            fresh: watch::Sender::new(None),
        }))
    }

    /// Starts the task that scrapes. A second start does nothing.
    pub fn start(&self, informers: &Informers, kubelets: Kubelets, tasks: &Tasks) {
        let started = Started { nodes: informers.of::<Node>(), informers: informers.clone(), pods: OnceLock::new() };
        if self.0.started.set(started).is_ok() {
            let shared = self.0.clone();
            tasks.spawn("metrics scraper", async move { shared.run(&kubelets).await });
        }
    }

    /// What is known now, after scraping if need be.
    async fn fresh(&self) -> Result<&Started, Status> {
        let started = self.0.started.get().ok_or_else(|| status::unavailable("the metrics of nodes and pods are not there yet"))?;
        *self.0.asked.lock() = Some(Instant::now());
        self.0.wake.notify_one();
        let mut fresh = self.0.fresh.subscribe();
        let known = fresh.wait_for(|at| at.is_some_and(|at| at.elapsed() < STALE));
        // When it takes too long, what came in meanwhile is answered.
        let _ = tokio::time::timeout(WAIT, known).await;
        Ok(started)
    }

    fn node_object(&self, node: &Node, now: Nanos) -> Option<Value> {
        let history = self.0.history.lock();
        let known = history.get(&node.name_any())?;
        let usage = sample::usage(known.before.as_deref().map(|b| &b.node), &known.last.as_deref()?.node)?;
        Some(objects::node(&node.name_any(), node.metadata.labels.as_ref(), &usage, now))
    }

    fn pod_object(&self, pod: &Pod, now: Nanos) -> Option<Value> {
        let running = pod.status.phase.as_deref() == Some("Running");
        let node = pod.spec.node_name.as_deref().filter(|_| running)?;
        let (last, before) = {
            let history = self.0.history.lock();
            let known = history.get(node)?;
            (known.last.clone()?, known.before.clone())
        };
        let key: PodKey = (pod.namespace().unwrap_or_default(), pod.name_any());
        let containers = sample::pod(before.as_deref(), &last, &key)?;
        Some(objects::pod(&key.0, &key.1, pod.metadata.labels.as_ref(), &containers, now))
    }

    /// All `NodeMetrics`.
    pub async fn nodes(&self) -> Result<Vec<Value>, Status> {
        let started = self.fresh().await?;
        Ok(started.nodes.list().iter().filter_map(|n| self.node_object(n, now())).collect())
    }

    /// The `NodeMetrics` of one node.
    pub async fn node(&self, name: &str) -> Result<Value, Status> {
        let started = self.fresh().await?;
        let node = started.nodes.get("", name).ok_or_else(|| status::not_found("", "nodes", name))?;
        self.node_object(&node, now()).ok_or_else(|| status::not_found(GROUP, "nodemetrics", name))
    }

    /// The `PodMetrics` of a namespace; empty for all.
    pub async fn pods(&self, namespace: &str) -> Result<Vec<Value>, Status> {
        let started = self.fresh().await?;
        let pods = started.pods().await?;
        let pods = if namespace.is_empty() { pods.list() } else { pods.in_namespace(namespace) };
        Ok(pods.iter().filter_map(|p| self.pod_object(p, now())).collect())
    }

    /// The `PodMetrics` of one pod.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Value, Status> {
        let started = self.fresh().await?;
        let full = format!("{namespace}/{name}");
        let pod = started.pods().await?.get(namespace, name).ok_or_else(|| status::not_found("", "pods", &full))?;
        self.pod_object(&pod, now()).ok_or_else(|| status::not_found(GROUP, "podmetrics", &full))
    }
}

fn now() -> Nanos {
    Timestamp::now().as_nanosecond()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

impl Shared {
    fn wanted(&self) -> bool {
        self.asked.lock().is_some_and(|at| at.elapsed() < ATTENTION)
    }

    /// Whether there is a node with two scrapes.
    fn is_known(&self) -> bool {
        self.history.lock().values().any(|h| h.before.is_some() && h.last.is_some())
    }

    async fn run(&self, kubelets: &Kubelets) {
        let mut connections: HashMap<String, Connection> = HashMap::new();
        let Some(started) = self.started.get() else { return };
        started.nodes.synced().await;
        loop {
            while !self.wanted() {
                // Nobody looks: keep nothing that would only grow old.
                connections.clear();
                self.history.lock().clear();
                self.fresh.send_replace(None);
                self.wake.notified().await;
            }
            if !self.is_known() {
                self.round(&started.nodes.list(), kubelets, &mut connections).await;
                tokio::time::sleep(FIRST).await;
            }
            let begun = Instant::now();
            self.round(&started.nodes.list(), kubelets, &mut connections).await;
            if self.is_known() {
                self.fresh.send_replace(Some(Instant::now()));
                tokio::time::sleep_until(begun + INTERVAL).await;
            } else {
                // No node can be told of yet: the cluster is just starting, most likely.
                tokio::time::sleep(FIRST).await;
            }
        }
    }

    /// Scrapes all nodes at the same time; a node that does not answer keeps what it had until that is stale.
    async fn round(&self, nodes: &[Arc<Node>], kubelets: &Kubelets, connections: &mut HashMap<String, Connection>) {
        let asked = nodes.iter().map(|node| {
            let mut connection = connections.remove(&node.name_any()).unwrap_or_default();
            async move {
                let patience = if is_ready(node) { PATIENCE } else { LITTLE_PATIENCE };
                let page = tokio::time::timeout(patience, kubelets.page(node, &mut connection)).await;
                (node.name_any(), connection, page, now())
            }
        });
        let answers = futures::future::join_all(asked).await;
        let mut history = self.history.lock();
        let mut old = std::mem::take(&mut *history);
        for (name, connection, page, at) in answers {
            let mut known = old.remove(&name).unwrap_or_default();
            match page {
                Ok(Ok(page)) => {
                    known.before = known.last.replace(Arc::new(sample::parse(&page, at)));
                    connections.insert(name.clone(), connection);
                }
                failed => {
                    let why = failed.map_or_else(|_| "it took too long".to_string(), |r| r.err().map(|e| e.to_string()).unwrap_or_default());
                    tracing::debug!(node = name, "no metrics: {why}");
                    let stale = known.last.as_ref().is_some_and(|l| at - l.node.at > STALE.as_nanos() as Nanos);
                    if stale {
                        known = History::default();
                    }
                }
            }
            history.insert(name, known);
        }
    }
}
