//! A pod's worker: one task that brings one pod to what the API wants, and tells what became of it.
//!
//! It is woken by a change of the pod, by events of its containers, by probes and by its own timers;
//! a wake-up carries no data, everything is read again.
//!
//! ```text
//!   Syncing ──(deleted, orphaned)──────────────► Ending ──► Ended ──(gone from the API)──► removed
//!      └─────(all work done, rejected, late)──► Finished ──(deleted)──┘
//! ```
//!
//! A crash in any state is harmless: Syncing continues from what the runtime has; Ending and Finished
//! are reached again from the pod in the API; what has no pod in the API any more ends as an orphan.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cri::v1::{
    ContainerStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter, PodSandboxStatus,
    PodSandboxStatusRequest, RemoveContainerRequest, RemovePodSandboxRequest, StopPodSandboxRequest,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use parking_lot::{Mutex, RwLock};
use reconcile::{EventType, Informer, Recorder, Reference, Tasks};
use tokio::sync::Notify;

use crate::admit::Refusal;
use crate::backoff::Backoff;
use crate::config::Dns;
use crate::images::Images;
use crate::objects::{Objects, Watches};
use crate::plan::{self, Results};
use crate::pod::{self, NodeFacts, label};
use crate::probes::{ProbeResults, Probes, Target};
use crate::report::{PodKey, Reporter};
use crate::resources::List;
use crate::view::View;
use crate::volumes::{Mounted, Volumes};
use crate::{cgroups, kill, messages, status};

/// Says whether a pod may run here.
type Judge = Box<dyn Fn(&Pod) -> Result<(), Refusal> + Send + Sync>;

/// What all workers of a node share.
pub struct Shared {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub log_root: std::path::PathBuf,
    pub dns: Dns,
    pub runtime: Arc<dyn cri::RuntimeService>,
    /// The scheme of container ids.
    pub runtime_name: String,
    pub images: Images,
    pub volumes: Volumes,
    pub objects: Arc<dyn Objects>,
    pub watches: Watches,
    pub reporter: Reporter,
    pub recorder: Recorder,
    pub probe_counts: crate::probes::ProbeCounts,
    pub cgroups: Option<cgroups::PodCgroups>,
    pub services: Option<Informer<Service>>,
    /// The node's, as last computed.
    pub allocatable: RwLock<List>,
    pub memory_capacity: i64,
    pub tasks: Tasks,
    /// Judges a new pod against the node and what is admitted already.
    pub admit: Judge,
    /// The pod's worker has ended, nothing of the pod is left.
    pub removed: Box<dyn Fn(&str) + Send + Sync>,
}

/// Where the outside leaves word for a worker.
#[derive(Default)]
pub struct Inbox {
    news: Mutex<News>,
    pub wake: Notify,
    /// A wake-up came while the worker waited for something else.
    missed: AtomicBool,
    /// What the volumes show may be another.
    stale: AtomicBool,
}

#[derive(Default, Clone)]
struct News {
    pod: Option<Arc<Pod>>,
    /// The API has the pod no more.
    gone: bool,
}

impl Inbox {
    /// The pod as it is now in the API. What we wrote ourselves wakes nobody.
    pub fn update(&self, pod: Arc<Pod>) {
        let old = self.news.lock().pod.replace(pod.clone());
        let gated = pod::spec(&pod).readiness_gates.as_ref().is_some_and(|g| !g.is_empty());
        let same = |old: &Pod| {
            let (a, b) = (&old.metadata, &pod.metadata);
            (&a.labels, &a.annotations, &a.deletion_timestamp, a.deletion_grace_period_seconds)
                == (&b.labels, &b.annotations, &b.deletion_timestamp, b.deletion_grace_period_seconds)
                && old.spec == pod.spec
        };
        if !gated && old.is_some_and(|o| same(&o)) {
            return;
        }
        self.refresh();
    }

    /// Wakes the worker, which looks at its volumes too.
    pub fn refresh(&self) {
        self.stale.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// The pod is gone from the API.
    pub fn gone(&self) {
        self.news.lock().gone = true;
        self.wake.notify_one();
    }

    /// The pod as last seen.
    pub fn pod(&self) -> Option<Arc<Pod>> {
        self.news.lock().pod.clone()
    }
}

/// How long a failed step waits before it is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often a running pod is looked at without any reason, as upstream's sync period.
const RESYNC: Duration = Duration::from_secs(60);
/// When a resize that could not be done is tried again.
const RESIZE_AGAIN: Duration = Duration::from_secs(10);

/// The worker.
pub struct Worker {
    pub(crate) shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: String,
    gone: bool,
    pub(crate) view: View,
    sandboxes: Option<Vec<String>>,
    pub(crate) waiting: HashMap<String, (String, String)>,
    pub(crate) told: HashMap<String, String>,
    messages: HashMap<String, String>,
    pub(crate) results: Arc<ProbeResults>,
    probes: Probes,
    pub(crate) backoff: Backoff,
    pub(crate) mounted: Option<Mounted>,
    /// When tokens want a look again.
    refresh_at: Option<Instant>,
    start_time: Timestamp,
    verdict: Option<(String, String, String)>,
    admitted: bool,
    /// Containers that do not have yet what they are to have.
    pub(crate) unresized: HashSet<String>,
    pub(crate) resize_note: Option<crate::resize::Note>,
    /// Nothing will run any more.
    finished: bool,
    cleaned: bool,
    failures: u32,
}

/// What the worker does after a step.
enum Next {
    Wait(Option<Duration>),
    Removed,
}

impl Worker {
    /// A worker for a pod of the API or, with `gone`, for what an earlier pod left behind.
    pub fn new(shared: Arc<Shared>, inbox: Arc<Inbox>, pod: Arc<Pod>, gone: bool) -> Worker {
        let results = Arc::new(ProbeResults::default());
        let wake = inbox.clone();
        let probes = Probes::new(
            shared.runtime.clone(),
            shared.recorder.clone(),
            shared.tasks.clone(),
            results.clone(),
            shared.probe_counts.clone(),
            Arc::new(move || wake.wake.notify_one()),
        );
        let start_time = pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or_else(Timestamp::now, |t| t.0);
        Worker {
            uid: pod::uid(&pod),
            shared,
            inbox,
            pod,
            gone,
            view: View::default(),
            sandboxes: None,
            waiting: HashMap::new(),
            told: HashMap::new(),
            messages: HashMap::new(),
            results,
            probes,
            backoff: Backoff::default(),
            mounted: None,
            refresh_at: None,
            start_time,
            verdict: None,
            admitted: false,
            unresized: HashSet::new(),
            resize_note: None,
            finished: false,
            cleaned: false,
            failures: 0,
        }
    }

    /// Runs until nothing of the pod is left.
    pub async fn run(mut self) {
        loop {
            self.take_news();
            let next = if self.gone || self.pod.metadata.deletion_timestamp.is_some() { self.end().await } else { self.step().await };
            match next {
                Next::Removed => break,
                Next::Wait(time) => {
                    if self.inbox.missed.swap(false, Ordering::AcqRel) {
                        continue;
                    }
                    let sleep = tokio::time::sleep(time.unwrap_or(Duration::from_secs(3600)));
                    tokio::select! {
                        () = self.inbox.wake.notified() => {}
                        () = sleep => {}
                    }
                }
            }
        }
        (self.shared.removed)(&self.uid);
    }

    fn take_news(&mut self) {
        let news = self.inbox.news.lock().clone();
        if let Some(pod) = news.pod {
            self.pod = pod;
        }
        self.gone |= news.gone;
    }

    fn must_end(&self) -> bool {
        let news = self.inbox.news.lock();
        news.gone || news.pod.as_ref().is_some_and(|p| p.metadata.deletion_timestamp.is_some())
    }

    pub(crate) fn reference(&self) -> Reference {
        Reference::of(&*self.pod)
    }

    pub(crate) fn container_reference(&self, name: &str) -> Reference {
        self.reference().field(pod::field_path(&self.pod, name))
    }

    pub(crate) fn warn(&self, reason: &str, message: impl Into<String>) {
        self.shared.recorder.event(&self.reference(), EventType::Warning, reason, message);
    }

    /// Brings a pod that is to run further.
    async fn step(&mut self) -> Next {
        if let Err(error) = self.look().await {
            return self.failed(error);
        }
        if self.finished {
            return self.finish().await;
        }
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if !self.admitted {
            if matches!(phase, "Succeeded" | "Failed") {
                self.finished = true;
                if let Some(status) = &self.pod.status
                    && self.view.sandboxes.is_empty()
                {
                    // It was rejected, or is from before a reboot: what was said stands.
                    self.verdict = Some((phase.to_string(), status.reason.clone().unwrap_or_default(), status.message.clone().unwrap_or_default()));
                    self.cleaned = true;
                    self.remove_files().await;
                    return Next::Wait(None);
                }
                return self.finish().await;
            }
            if self.view.sandboxes.is_empty()
                && let Err((reason, message)) = (self.shared.admit)(&self.pod)
            {
                self.warn(&reason, message.trim_start_matches("Pod was rejected: "));
                self.verdict = Some(("Failed".into(), reason, message));
                self.finished = true;
                return self.finish().await;
            }
            self.admitted = true;
            self.adopt_results();
            self.shared.watches.set(&self.pod.namespace().unwrap_or_default(), &self.uid, Volumes::references(&self.pod));
        }
        let deadline = self.deadline();
        if deadline == Some(Duration::ZERO) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.shared.recorder.event(&self.reference(), EventType::Normal, "DeadlineExceeded", message);
            self.verdict = Some(("Failed".into(), "DeadlineExceeded".into(), message.into()));
            self.finished = true;
            return self.finish().await;
        }

        let plan = plan::plan(&self.pod, &self.view, &*self.results);
        let mut next = deadline.unwrap_or(RESYNC).min(RESYNC);
        if !plan.kill.is_empty() {
            self.kill(&plan.kill).await;
            // Their ends count for the pauses between restarts.
            if let Err(error) = self.look().await {
                return self.failed(error);
            }
        }
        if plan.kill_pod && plan.sandbox.is_none() {
            self.finished = true;
            return self.finish().await;
        }
        if !self.mount().await {
            self.report(false);
            return self.retry();
        }
        if plan.sandbox.is_some() || !plan.start.is_empty() {
            match self.start(&plan).await {
                Ok(wait) => next = wait.map_or(next, |w| next.min(w)),
                Err(error) => {
                    self.report(true);
                    return self.failed(error);
                }
            }
            if let Err(error) = self.look().await {
                return self.failed(error);
            }
            self.clear_away().await;
        }
        match self.start_ephemeral().await {
            Ok(wait) => next = wait.map_or(next, |w| next.min(w)),
            Err(error) => return self.failed(error),
        }
        match self.resize().await {
            Ok(true) => next = Duration::ZERO,
            Ok(false) if self.resize_note.is_some() => next = next.min(RESIZE_AGAIN),
            Ok(false) => {}
            Err(error) => return self.failed(error),
        }
        self.failures = 0;
        self.probe();
        self.report(true);
        if let Some(at) = self.refresh_at {
            next = next.min(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
        Next::Wait(Some(next))
    }

    fn failed(&mut self, error: impl std::fmt::Display) -> Next {
        tracing::warn!(pod = pod::format(&self.pod), "will try again: {error}");
        self.retry()
    }

    fn retry(&mut self) -> Next {
        self.failures += 1;
        // A little longer each time, at most half a minute.
        Next::Wait(Some((RETRY * self.failures.min(15)).min(Duration::from_secs(30))))
    }

    /// Reads what the runtime has.
    pub(crate) async fn look(&mut self) -> Result<(), cri::Error> {
        let runtime = self.shared.runtime.clone();
        let ids = match self.sandboxes.clone() {
            Some(ids) => ids,
            None => {
                let selector = [(label::POD_UID.to_string(), self.uid.clone())].into();
                let filter = PodSandboxFilter { label_selector: selector, ..Default::default() };
                let listed = runtime.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
                listed.items.into_iter().map(|s| s.id).collect()
            }
        };
        let mut parts = Vec::new();
        let mut found = Vec::new();
        for id in ids {
            match sandbox(&*runtime, &id).await {
                Ok(part) => {
                    parts.push(part);
                    found.push(id);
                }
                Err(error) if error.code == cri::Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.sandboxes = Some(found);
        self.view = View::new(parts);
        for container in &self.view.containers {
            let id = &container.status.id;
            if container.exited() && !self.messages.contains_key(id) {
                let message = messages::read(&container.status, &self.log_dir());
                self.messages.insert(id.clone(), message);
            }
        }
        Ok(())
    }

    /// The next look lists the sandboxes anew.
    pub(crate) fn forget_sandboxes(&mut self) {
        self.sandboxes = None;
    }

    pub(crate) fn log_dir(&self) -> std::path::PathBuf {
        self.shared.log_root.join(pod::log_directory(&self.pod.namespace().unwrap_or_default(), &self.pod.name_any(), &self.uid))
    }

    /// What ran before this kubelet was started keeps its readiness until a probe says otherwise.
    fn adopt_results(&self) {
        let Some(status) = &self.pod.status else { return };
        for old in status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten()) {
            let id = old.container_id.as_deref().and_then(|i| i.split_once("://")).map_or("", |(_, id)| id);
            if self.view.by_id(id).is_some_and(|c| c.running()) {
                if old.started == Some(true) {
                    self.results.set(id, plan::Probe::Startup, true);
                }
                if old.ready {
                    self.results.set(id, plan::Probe::Readiness, true);
                }
            }
        }
    }

    /// Time until `activeDeadlineSeconds` is over.
    fn deadline(&self) -> Option<Duration> {
        let limit = pod::spec(&self.pod).active_deadline_seconds?;
        let left = self.start_time + jiff::SignedDuration::from_secs(limit) - Timestamp::now();
        Some(Duration::try_from_secs_f64(left.total(jiff::Unit::Second).unwrap_or(0.0)).unwrap_or(Duration::ZERO))
    }

    /// Makes or refreshes the volumes. `false` (after an event) when one cannot be made.
    async fn mount(&mut self) -> bool {
        let stale = self.inbox.stale.swap(false, Ordering::AcqRel);
        if !stale && self.mounted.is_some() && self.refresh_at.is_none_or(|at| Instant::now() < at) {
            return true;
        }
        let facts = self.facts();
        let allocatable = self.shared.allocatable.read().clone();
        match self.shared.volumes.mount(&self.pod, &facts, &allocatable).await {
            Ok(mounted) => {
                self.refresh_at = mounted.refresh.map(|r| Instant::now() + r);
                self.mounted = Some(mounted);
                true
            }
            // A running pod keeps what it has.
            Err(failure) => {
                self.inbox.stale.store(true, Ordering::Release);
                self.warn("FailedMount", failure.message);
                self.mounted.is_some()
            }
        }
    }

    pub(crate) fn facts(&self) -> NodeFacts {
        let ips: Vec<String> = self.shared.node_ips.iter().map(IpAddr::to_string).collect();
        let pod_ips = if pod::host_network(&self.pod) { ips.clone() } else { self.view.ips() };
        NodeFacts { ips, pod_ips }
    }

    fn ip(&self) -> Option<IpAddr> {
        self.facts().pod_ips.first().and_then(|i| i.parse().ok())
    }

    fn probe(&mut self) {
        let now = Timestamp::now().as_nanosecond();
        let pod = self.pod.clone();
        let mut targets = Vec::new();
        for member in pod::members(&pod) {
            let c = member.spec;
            if member.role == pod::Role::Init || (c.startup_probe.is_none() && c.liveness_probe.is_none() && c.readiness_probe.is_none()) {
                continue;
            }
            if let Some(running) = self.view.latest(&c.name).filter(|v| v.running()) {
                let since = u64::try_from(now - i128::from(running.status.started_at)).unwrap_or(0);
                targets.push(Target {
                    id: running.status.id.clone(),
                    container: c,
                    about: self.container_reference(&c.name),
                    running_for: Duration::from_nanos(since),
                    started: plan::started(c, running, &*self.results),
                });
            }
        }
        let ip = self.ip();
        self.probes.update(targets, ip);
    }

    /// Kills containers that ail.
    async fn kill(&mut self, kills: &[plan::Kill]) {
        let mut all = Vec::new();
        for k in kills {
            let member = pod::member(&self.pod, &k.name);
            // A probe may have its own grace period.
            let own = member.and_then(|m| match k.probe {
                Some(plan::Probe::Liveness) => m.spec.liveness_probe.as_ref()?.termination_grace_period_seconds,
                Some(plan::Probe::Startup) => m.spec.startup_probe.as_ref()?.termination_grace_period_seconds,
                _ => None,
            });
            let grace = own.unwrap_or_else(|| pod::grace_period(&self.pod)).max(1);
            all.push(kill::Victim {
                id: k.id.clone(),
                container: member.map(|m| m.spec.clone()),
                about: self.container_reference(&k.name),
                message: k.message.clone(),
                grace,
                tell: true,
            });
        }
        let ip = self.ip();
        let shared = self.shared.clone();
        tokio::select! {
            () = async { futures::future::join_all(all.into_iter().map(|v| kill::container(&shared, v, ip))).await; } => {}
            // A deletion may want it faster.
            () = self.ending() => {}
        }
    }

    /// Completes when the pod is to end.
    pub(crate) async fn ending(&self) {
        loop {
            if self.must_end() {
                return;
            }
            self.inbox.wake.notified().await;
            // The main loop wants to know too.
            self.inbox.missed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn key(&self) -> PodKey {
        PodKey { namespace: self.pod.namespace().unwrap_or_default(), name: self.pod.name_any(), uid: self.uid.clone() }
    }

    pub(crate) fn report(&self, settled: bool) {
        let ips: Vec<String> = self.shared.node_ips.iter().map(IpAddr::to_string).collect();
        let messages: HashMap<String, String> = self.messages.iter().filter(|(_, m)| !m.is_empty()).map(|(k, v)| (k.clone(), v.clone())).collect();
        let known = status::Known {
            waiting: &self.waiting,
            messages: &messages,
            results: &*self.results,
            runtime: &self.shared.runtime_name,
            node_ips: &ips,
            start_time: self.start_time,
            ending: self.finished || self.gone || self.pod.metadata.deletion_timestamp.is_some(),
            verdict: self.verdict.as_ref(),
            unresized: &self.unresized,
            resize_note: self.resize_note.as_ref(),
            now: Timestamp::now(),
        };
        let current = self.pod.status.as_ref();
        let status = status::status(&self.pod, &self.view, &known, current);
        // A pod on its way to Running is told about when it is there, or takes its time.
        let passing = status.phase.as_deref() == Some("Pending") && self.waiting.is_empty();
        self.shared.reporter.set(&self.key(), &self.pod, &status, settled && !passing);
    }

    /// Keeps the newest two instances of each container, and no sandbox that holds nothing.
    async fn clear_away(&mut self) {
        let mut seen: HashMap<String, u32> = HashMap::new();
        let mut kept_sandboxes = Vec::new();
        let newest = self.view.sandbox().map(|s| s.id.clone());
        for container in self.view.containers.clone() {
            let count = seen.entry(container.name().to_string()).or_default();
            *count += 1;
            if *count > 2 && !container.running() {
                let request = RemoveContainerRequest { container_id: container.status.id.clone() };
                if let Err(error) = self.shared.runtime.remove_container(request).await {
                    tracing::warn!("an old container stays: {error}");
                }
                self.messages.remove(&container.status.id);
                let log = self.log_dir().join(&container.status.log_path);
                let _ = std::fs::remove_file(log);
            } else {
                kept_sandboxes.push(container.sandbox.clone());
            }
        }
        for sandbox in &self.view.sandboxes {
            if Some(&sandbox.id) != newest.as_ref() && !kept_sandboxes.contains(&sandbox.id) {
                let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
                if let Err(error) = self.shared.runtime.remove_pod_sandbox(request).await {
                    tracing::warn!("an old sandbox stays: {error}");
                }
            }
        }
    }

    /// All work is done: what still runs ends, and only the logs and the dead containers stay.
    async fn finish(&mut self) -> Next {
        if self.cleaned {
            self.report(true);
            return Next::Wait(None);
        }
        self.end_containers().await;
        if let Err(error) = self.look().await {
            return self.failed(error);
        }
        self.report(true);
        if let Err(error) = self.release().await {
            return self.failed(error);
        }
        self.cleaned = true;
        Next::Wait(None)
    }

    /// Ends everything that runs, sidecars last; a shorter grace period that comes meanwhile counts.
    async fn end_containers(&mut self) {
        self.probes.stop_liveness();
        let mut told = false;
        loop {
            self.take_news();
            let grace = pod::grace_period(&self.pod).min(self.view_grace());
            if !self.view.containers.iter().any(|c| c.running()) {
                break;
            }
            let shared = self.shared.clone();
            let groups = kill::order(&self.pod, &self.view, grace, !told, &|name| self.container_reference(name));
            told = true;
            let ip = self.ip();
            let mut killing = Box::pin(async move { kill::pod(&shared, groups, ip).await });
            let shorter = loop {
                tokio::select! {
                    () = &mut killing => break false,
                    () = self.inbox.wake.notified() => {
                        self.take_news();
                        if pod::grace_period(&self.pod) < grace && self.pod.metadata.deletion_timestamp.is_some() {
                            break true;
                        }
                        if self.look().await.is_ok() && !self.gone {
                            self.report(true);
                        }
                    }
                }
            };
            drop(killing);
            if let Err(error) = self.look().await {
                tracing::warn!(pod = pod::format(&self.pod), "{error}");
                tokio::time::sleep(RETRY).await;
            } else if !shorter && self.view.any_running() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        self.probes.stop();
        self.shared.probe_counts.forget(&self.uid);
    }

    /// Of an orphan, only its sandbox knows how long its containers may take.
    fn view_grace(&self) -> i64 {
        if !self.gone || self.pod.metadata.deletion_grace_period_seconds.is_some() {
            return i64::MAX;
        }
        let noted = self.view.sandbox().and_then(|s| s.annotations.get(label::GRACE_PERIOD)).and_then(|g| g.parse().ok());
        noted.unwrap_or(i64::MAX)
    }

    /// Gives back network, volumes and cgroup.
    async fn release(&mut self) -> Result<(), String> {
        for sandbox in &self.view.sandboxes {
            let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            self.shared.runtime.stop_pod_sandbox(request).await.map_err(|e| e.to_string())?;
        }
        self.remove_files().await;
        if let Some(cgroups) = &self.shared.cgroups {
            cgroups.remove(&self.pod, &self.uid);
        }
        Ok(())
    }

    async fn remove_files(&self) {
        self.shared.watches.set(&self.pod.namespace().unwrap_or_default(), &self.uid, Default::default());
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let removed = tokio::task::spawn_blocking(move || shared.volumes.remove(&uid)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(pod = pod::format(&self.pod), "the pod's directory stays behind: {error}");
        }
    }

    /// The pod is to go: end it, tell, let the API forget it, and leave nothing.
    async fn end(&mut self) -> Next {
        if let Err(error) = self.look().await {
            return self.failed(error);
        }
        if !self.cleaned || self.view.any_running() {
            if self.view.any_running() && !self.gone {
                self.report(true);
            }
            self.end_containers().await;
            if let Err(error) = self.look().await {
                return self.failed(error);
            }
            if !self.gone {
                self.report(true);
                self.shared.reporter.flush(&self.uid).await;
            }
            if let Err(error) = self.release().await {
                return self.failed(error);
            }
            self.cleaned = true;
        }
        if !self.gone {
            // Finalizers of others keep a pod that is done; we are called again when it is gone.
            return match self.shared.reporter.delete(&self.key()).await {
                Ok(()) => Next::Wait(None),
                Err(error) => self.failed(error),
            };
        }
        for sandbox in &self.view.sandboxes {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(error) = self.shared.runtime.remove_pod_sandbox(request).await {
                return self.failed(error);
            }
        }
        let _ = std::fs::remove_dir_all(self.log_dir());
        self.shared.images.forget(&self.uid);
        self.shared.reporter.forget(&self.uid);
        Next::Removed
    }
}

/// A sandbox with its containers, also from runtimes that tell them apart.
async fn sandbox(runtime: &dyn cri::RuntimeService, id: &str) -> Result<(PodSandboxStatus, Vec<cri::v1::ContainerStatus>), cri::Error> {
    let answer = runtime.pod_sandbox_status(PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false }).await?;
    let status = answer.status.ok_or_else(|| cri::Error::internal("the runtime answered no status"))?;
    if !answer.containers_statuses.is_empty() {
        return Ok((status, answer.containers_statuses));
    }
    let filter = cri::v1::ContainerFilter { pod_sandbox_id: id.to_string(), ..Default::default() };
    let mut containers = Vec::new();
    for container in runtime.list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers {
        let request = ContainerStatusRequest { container_id: container.id, verbose: false };
        containers.extend(runtime.container_status(request).await?.status);
    }
    Ok((status, containers))
}

/// A pod made from what a sandbox says of it, for one that the API does not know any more.
pub fn orphan(name: &str, namespace: &str, uid: &str) -> Pod {
    Pod {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some(namespace.to_string()),
            uid: Some(uid.to_string()),
            ..Default::default()
        },
        spec: Some(Default::default()),
        ..Pod::default()
    }
}

/// What a step of [`Worker::start`] needs to know of the sandbox.
pub(crate) struct Place {
    pub id: String,
    pub config: PodSandboxConfig,
}

/// When a container that ended at this time may be started again is told from the monotonic clock.
pub(crate) fn instant(nanos: i64) -> Instant {
    let ago = u64::try_from(Timestamp::now().as_nanosecond() - i128::from(nanos)).unwrap_or(0);
    Instant::now().checked_sub(Duration::from_nanos(ago)).unwrap_or_else(Instant::now)
}

impl Results for Arc<ProbeResults> {
    fn get(&self, id: &str, probe: plan::Probe) -> Option<bool> {
        (**self).get(id, probe)
    }
}
