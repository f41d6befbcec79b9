//! Probes: one task a running container and kind. It writes results and wakes the pod's worker when one changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe as Spec};
use parking_lot::Mutex;
use reconcile::{EventType, Recorder, Reference, Tasks};

use crate::check::{self, Outcome};
use crate::plan::{Probe, Results};

/// Results of one pod's probes.
#[derive(Default)]
pub struct ProbeResults(Mutex<HashMap<(String, Probe), bool>>);

impl ProbeResults {
    /// Answers whether this is news.
    pub fn set(&self, id: &str, probe: Probe, success: bool) -> bool {
        self.0.lock().insert((id.to_string(), probe), success) != Some(success)
    }

    fn forget(&self, id: &str) {
        self.0.lock().retain(|(known, _), _| known != id);
    }
}

impl Results for ProbeResults {
    fn get(&self, id: &str, probe: Probe) -> Option<bool> {
        self.0.lock().get(&(id.to_string(), probe)).copied()
    }
}

/// What a count is of: kind, result, container, pod, namespace, uid.
pub type Counted = (&'static str, &'static str, String, String, String, String);

/// How often the probes of containers had which result; clones share the counts.
#[derive(Clone, Default)]
pub struct ProbeCounts(Arc<Mutex<BTreeMap<Counted, u64>>>);

impl ProbeCounts {
    fn count(&self, kind: &'static str, result: &'static str, container: &str, about: &Reference) {
        let key = (kind, result, container.to_string(), about.name.clone(), about.namespace.clone(), about.uid.clone());
        *self.0.lock().entry(key).or_default() += 1;
    }

    /// The pod is gone: so are its series.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|key, _| key.5 != uid);
    }

    /// All counts.
    pub fn all(&self) -> Vec<(Counted, u64)> {
        self.0.lock().iter().map(|(k, v)| (k.clone(), *v)).collect()
    }
}

/// A running container that is to be probed.
pub struct Target<'a> {
    pub id: String,
    pub container: &'a Container,
    /// For events.
    pub about: Reference,
    /// Since when it runs.
    pub running_for: Duration,
    pub started: bool,
}

/// The probes of one pod.
pub struct Probes {
    runtime: Arc<dyn cri::RuntimeService>,
    recorder: Recorder,
    tasks: Tasks,
    results: Arc<ProbeResults>,
    counts: ProbeCounts,
    wake: Arc<dyn Fn() + Send + Sync>,
    running: HashMap<(String, Probe), Tasks>,
    /// The containers of the last update; what their probes said holds until they are gone.
    probed: HashSet<String>,
}

impl Probes {
    pub fn new(
        runtime: Arc<dyn cri::RuntimeService>,
        recorder: Recorder,
        tasks: Tasks,
        results: Arc<ProbeResults>,
        counts: ProbeCounts,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Probes {
        Probes { runtime, recorder, tasks, results, counts, wake, running: HashMap::new(), probed: HashSet::new() }
    }

    /// Starts what is missing and ends what has nothing to probe.
    pub fn update(&mut self, targets: Vec<Target<'_>>, ip: Option<IpAddr>) {
        let ids: HashSet<String> = targets.iter().map(|t| t.id.clone()).collect();
        let mut wanted: HashMap<(String, Probe), (Target<'_>, Spec)> = HashMap::new();
        for target in targets {
            let specs = [
                (Probe::Startup, &target.container.startup_probe, !target.started),
                (Probe::Liveness, &target.container.liveness_probe, target.started),
                (Probe::Readiness, &target.container.readiness_probe, target.started),
            ];
            for (kind, spec, due) in specs {
                if let (Some(spec), true) = (spec, due) {
                    let copy = Target { about: target.about.clone(), id: target.id.clone(), ..target };
                    wanted.insert((target.id.clone(), kind), (copy, spec.clone()));
                }
            }
        }
        let gone: Vec<(String, Probe)> = self.running.keys().filter(|k| !wanted.contains_key(k)).cloned().collect();
        for key in gone {
            if let Some(tasks) = self.running.remove(&key) {
                tasks.cancel();
            }
        }
        for id in std::mem::replace(&mut self.probed, ids.clone()).difference(&ids) {
            self.results.forget(id);
        }
        for (key, (target, spec)) in wanted {
            if self.running.contains_key(&key) {
                continue;
            }
            let tasks = self.tasks.child();
            let prober = Prober {
                runtime: self.runtime.clone(),
                recorder: self.recorder.clone(),
                results: self.results.clone(),
                counts: self.counts.clone(),
                wake: self.wake.clone(),
                id: key.0.clone(),
                kind: key.1,
                spec,
                container: target.container.clone(),
                about: target.about,
                ip,
                running_for: target.running_for,
            };
            tasks.spawn("probe", prober.run());
            self.running.insert(key, tasks);
        }
    }

    /// Ends all.
    pub fn stop(&mut self) {
        self.update(Vec::new(), None);
    }

    /// Ends the readiness probes' siblings: while a pod ends, only readiness is of interest.
    pub fn stop_liveness(&mut self) {
        self.running.retain(|(_, kind), tasks| {
            let keep = *kind == Probe::Readiness;
            if !keep {
                tasks.cancel();
            }
            keep
        });
    }
}

struct Prober {
    runtime: Arc<dyn cri::RuntimeService>,
    recorder: Recorder,
    results: Arc<ProbeResults>,
    counts: ProbeCounts,
    wake: Arc<dyn Fn() + Send + Sync>,
    id: String,
    kind: Probe,
    spec: Spec,
    container: Container,
    about: Reference,
    ip: Option<IpAddr>,
    running_for: Duration,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Prober {
    async fn run(self) {
        let delay = seconds(self.spec.initial_delay_seconds, 0).saturating_sub(self.running_for);
        tokio::time::sleep(delay).await;
        let period = seconds(self.spec.period_seconds, 10);
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut last, mut row) = (None, 0);
        loop {
            ticks.tick().await;
            let outcome = self.attempt().await;
            let success = outcome == Outcome::Success;
            let word = match self.kind {
                Probe::Startup => "Startup",
                Probe::Liveness => "Liveness",
                Probe::Readiness => "Readiness",
            };
            let result = match &outcome {
                Outcome::Success => "successful",
                Outcome::Failure(_) => "failed",
                Outcome::Error(_) => "unknown",
            };
            self.counts.count(word, result, &self.container.name, &self.about);
            match outcome {
                Outcome::Success => {}
                Outcome::Failure(text) => self.recorder.event(&self.about, EventType::Warning, "Unhealthy", format!("{word} probe failed: {text}")),
                Outcome::Error(text) => {
                    self.recorder.event(&self.about, EventType::Warning, "Unhealthy", format!("{word} probe errored and resulted in unknown state: {text}"));
                    continue;
                }
            }
            row = if last == Some(success) { row + 1 } else { 1 };
            last = Some(success);
            let needed = if success { self.spec.success_threshold.unwrap_or(1) } else { self.spec.failure_threshold.unwrap_or(3) };
            if row < needed.max(1) {
                continue;
            }
            if self.results.set(&self.id, self.kind, success) {
                (self.wake)();
            }
            match self.kind {
                Probe::Startup => return,
                // The container is about to be restarted.
                Probe::Liveness if !success => return,
                _ => {}
            }
        }
    }

    async fn attempt(&self) -> Outcome {
        let timeout = seconds(self.spec.timeout_seconds, 1);
        let mut outcome = Outcome::Error("missing probe handler".to_string());
        // As upstream: what could not be tried is tried up to three times at once.
        for _ in 0..3 {
            outcome = if let Some(action) = &self.spec.exec {
                check::exec(&*self.runtime, &self.id, action.command.as_deref().unwrap_or_default(), timeout).await
            } else if let Some(action) = &self.spec.http_get {
                check::http(action, &self.container, self.ip, timeout).await
            } else if let Some(action) = &self.spec.tcp_socket {
                check::tcp(action, &self.container, self.ip, timeout).await
            } else if let Some(action) = &self.spec.grpc {
                check::grpc(action, self.ip, timeout).await
            } else {
                return outcome;
            };
            if !matches!(outcome, Outcome::Error(_)) {
                break;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use cri::v1::{ContainerConfig, CreateContainerRequest, ExecSyncResponse, ImageSpec, PodSandboxConfig, RunPodSandboxRequest, StartContainerRequest};
    use cri::{Fake, RuntimeService};
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn thresholds_decide_and_the_worker_is_woken() {
        let fake = Arc::new(Fake::new());
        fake.add_image("i");
        let sandbox = fake.run_pod_sandbox(RunPodSandboxRequest { config: Some(PodSandboxConfig::default()), ..Default::default() }).await.unwrap();
        let config = ContainerConfig { image: Some(ImageSpec { image: "i".into(), ..Default::default() }), ..Default::default() };
        let request = CreateContainerRequest { pod_sandbox_id: sandbox.pod_sandbox_id, config: Some(config), ..Default::default() };
        let id = fake.create_container(request).await.unwrap().container_id;
        fake.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
        let woken = Arc::new(Notify::new());
        let tasks = Tasks::new();
        let results = Arc::new(ProbeResults::default());
        let (wake, counts) = (woken.clone(), ProbeCounts::default());
        let mut probes = Probes::new(fake.clone(), Recorder::none(), tasks.clone(), results.clone(), counts.clone(), Arc::new(move || wake.notify_one()));
        let container: Container = serde_json::from_value(serde_json::json!({"name": "a",
            "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1},
            "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 2}}))
        .unwrap();
        let target = |started| Target { id: id.clone(), container: &container, about: Reference::default(), running_for: Duration::ZERO, started };
        probes.update(vec![target(false)], None);
        woken.notified().await;
        assert_eq!(results.get(&id, Probe::Startup), Some(true));
        assert_eq!(results.get(&id, Probe::Liveness), None);
        probes.update(vec![target(true)], None);
        woken.notified().await;
        assert_eq!(results.get(&id, Probe::Liveness), Some(true));
        fake.set_exec(ExecSyncResponse { exit_code: 1, ..Default::default() });
        let before = fake.calls().iter().filter(|c| **c == "exec_sync").count();
        woken.notified().await;
        assert_eq!(results.get(&id, Probe::Liveness), Some(false));
        assert_eq!(fake.calls().iter().filter(|c| **c == "exec_sync").count(), before + 2);
        let counted: Vec<_> = counts.all().into_iter().map(|(key, count)| (key.0, key.1, key.2, count > 0)).collect();
        let row = |kind, result| (kind, result, "a".to_string(), true);
        assert_eq!(counted, [row("Liveness", "failed"), row("Liveness", "successful"), row("Startup", "successful")]);
        probes.stop();
        counts.forget("");
        assert!(counts.all().is_empty());
        assert_eq!(results.get(&id, Probe::Liveness), None);

        // A startup probe without others: its success outlives its end.
        let container: Container = serde_json::from_value(serde_json::json!({"name": "a", "startupProbe": {"exec": {"command": ["x"]}, "periodSeconds": 1}})).unwrap();
        let target = |started| Target { id: id.clone(), container: &container, about: Reference::default(), running_for: Duration::ZERO, started };
        fake.set_exec(ExecSyncResponse::default());
        probes.update(vec![target(false)], None);
        woken.notified().await;
        probes.update(vec![target(true)], None);
        assert_eq!(results.get(&id, Probe::Startup), Some(true));
        probes.stop();
        assert_eq!(results.get(&id, Probe::Startup), None);
        tasks.shutdown(Duration::from_secs(1)).await;
    }
}
