//! What to do next for a pod that is to run: (specification, what the runtime has, probes) → actions. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::{self, Role, label};
use crate::view::{ContainerView, View};

/// A probe's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    Startup,
    Liveness,
    Readiness,
}

/// The results of probes, by container id.
pub trait Results {
    /// `None` as long as there is none.
    fn get(&self, id: &str, probe: Probe) -> Option<bool>;
}

/// A container that has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub id: String,
    pub name: String,
    /// For the event.
    pub message: String,
    /// Which probe asked for it.
    pub probe: Option<Probe>,
}

/// What to do, in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Everything ends: the sandbox is gone, or all work is done.
    pub kill_pod: bool,
    pub kill: Vec<Kill>,
    /// A new sandbox, with this attempt.
    pub sandbox: Option<u32>,
    /// Names of containers to start, in order.
    pub start: Vec<String>,
}

fn restarts(policy: &str, container: &Container, exit_code: i32) -> bool {
    match container.restart_policy.as_deref().unwrap_or(policy) {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    }
}

/// Whether a main container that is in this state has to be started.
fn wants_start(policy: &str, container: &Container, latest: Option<&ContainerView>) -> bool {
    match latest {
        None => true,
        Some(c) if c.stillborn() => true,
        Some(c) if c.exited() => restarts(policy, container, c.status.exit_code),
        Some(_) => false,
    }
}

/// A container is started when its startup probe has succeeded, or it has none.
pub fn started(container: &Container, running: &ContainerView, results: &dyn Results) -> bool {
    running.running() && (container.startup_probe.is_none() || results.get(&running.status.id, Probe::Startup) == Some(true))
}

/// Decides.
pub fn plan(pod: &Pod, view: &View, results: &dyn Results) -> Plan {
    let spec = pod::spec(pod);
    let policy = pod::restart_policy(pod);
    let init: &[Container] = spec.init_containers.as_deref().unwrap_or_default();
    let mut plan = Plan::default();

    let Some(sandbox) = view.ready_sandbox() else {
        let attempt = view.sandbox().map_or(0, |s| s.metadata.as_ref().map_or(0, |m| m.attempt) + 1);
        plan.kill_pod = view.sandbox().is_some();
        let wanted: Vec<&Container> = spec.containers.iter().filter(|c| wants_start_anew(policy, c, view.latest(&c.name))).collect();
        if wanted.is_empty() {
            plan.kill_pod = true;
            return plan;
        }
        if init_failed(pod, view, None) {
            plan.kill_pod = true;
            return plan;
        }
        plan.sandbox = Some(attempt);
        match init.first() {
            Some(first) => plan.start.push(first.name.clone()),
            None => plan.start.extend(wanted.iter().map(|c| c.name.clone())),
        }
        return plan;
    };

    // A sandbox that replaces another one begins from the start.
    let latest = |name: &str| view.latest(name).filter(|c| c.sandbox == sandbox.id);
    let mut initialized = true;
    let begun = spec.containers.iter().any(|c| latest(&c.name).is_some());
    let mut sidecars_to_start = Vec::new();
    for container in init {
        let current = latest(&container.name);
        if pod::is_sidecar(container) {
            match current {
                Some(c) if c.running() => {
                    if let Some(kill) = ailing(container, c, results, true, "Init container") {
                        plan.kill.push(kill);
                        sidecars_to_start.push(container.name.clone());
                    } else if started(container, c, results) || begun {
                        continue;
                    }
                }
                _ => sidecars_to_start.push(container.name.clone()),
            }
            if !begun {
                initialized = false;
                break;
            }
        } else if !begun {
            match current {
                Some(c) if c.exited() && c.status.exit_code == 0 => continue,
                Some(c) if c.exited() && policy == "Never" => {
                    plan.kill_pod = true;
                    plan.kill.clear();
                    return plan;
                }
                Some(c) if c.running() => {}
                _ => sidecars_to_start.push(container.name.clone()),
            }
            initialized = false;
            break;
        }
    }
    if !initialized {
        plan.start = sidecars_to_start;
        return plan;
    }

    let mut kept = 0;
    for container in &spec.containers {
        let current = latest(&container.name);
        match current {
            Some(c) if c.running() => {
                let again = container.restart_policy.as_deref().unwrap_or(policy) != "Never";
                match ailing(container, c, results, again, "Container") {
                    None => kept += 1,
                    Some(kill) => {
                        if again || kill.probe.is_none() {
                            plan.start.push(container.name.clone());
                        }
                        plan.kill.push(kill);
                    }
                }
            }
            // One that ended in an earlier sandbox is judged as if it had ended in this one.
            None if view.latest(&container.name).is_some() => {
                if wants_start_anew(policy, container, view.latest(&container.name)) {
                    plan.start.push(container.name.clone());
                }
            }
            other => {
                if wants_start(policy, container, other) {
                    plan.start.push(container.name.clone());
                }
            }
        }
    }
    if kept == 0 && plan.start.is_empty() {
        plan.kill_pod = true;
        plan.kill.clear();
        return plan;
    }
    // Sidecars first: main containers may count on them.
    sidecars_to_start.append(&mut plan.start);
    plan.start = sidecars_to_start;
    plan
}

/// The same as [`wants_start`] for a sandbox that is gone: what ran in it has ended with it.
fn wants_start_anew(policy: &str, container: &Container, latest: Option<&ContainerView>) -> bool {
    match latest {
        Some(c) if c.running() => restarts(policy, container, 137),
        other => wants_start(policy, container, other),
    }
}

fn ailing(container: &Container, running: &ContainerView, results: &dyn Results, again: bool, what: &str) -> Option<Kill> {
    let id = &running.status.id;
    let name = &container.name;
    let noted = running.status.annotations.get(label::HASH);
    let (mut message, probe) = if noted.is_some_and(|h| *h != pod::hash(container)) {
        (format!("{what} {name} definition changed, will be restarted"), None)
    } else if results.get(id, Probe::Liveness) == Some(false) {
        (format!("{what} {name} failed liveness probe"), Some(Probe::Liveness))
    } else if results.get(id, Probe::Startup) == Some(false) {
        (format!("{what} {name} failed startup probe"), Some(Probe::Startup))
    } else {
        return None;
    };
    if again && probe.is_some() {
        message += ", will be restarted";
    }
    Some(Kill { id: id.clone(), name: name.clone(), message, probe })
}

/// Whether an init container has failed for good.
pub fn init_failed(pod: &Pod, view: &View, sandbox: Option<&str>) -> bool {
    pod::restart_policy(pod) == "Never"
        && pod::members(pod).iter().filter(|m| m.role == Role::Init).any(|m| {
            view.latest(&m.spec.name)
                .is_some_and(|c| sandbox.is_none_or(|s| c.sandbox == s) && c.exited() && c.status.exit_code != 0)
        })
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashMap;

    use cri::v1::{ContainerMetadata, ContainerState, ContainerStatus, PodSandboxMetadata, PodSandboxState, PodSandboxStatus};

    use super::*;

    impl Results for HashMap<(&str, Probe), bool> {
        fn get(&self, id: &str, probe: Probe) -> Option<bool> {
            HashMap::get(self, &(id, probe)).copied()
        }
    }

    pub fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec})).unwrap()
    }

    pub fn sandbox(ready: bool) -> PodSandboxStatus {
        let state = if ready { PodSandboxState::Ready } else { PodSandboxState::NotReady };
        PodSandboxStatus {
            id: "s".into(),
            state: state as i32,
            metadata: Some(PodSandboxMetadata::default()),
            network: Some(cri::v1::PodSandboxNetworkStatus { ip: "10.1.0.2".into(), additional_ips: vec![] }),
            ..Default::default()
        }
    }

    /// `a`: running; `a!0`: ended with 0; `a?`: created only.
    pub fn container(text: &str) -> ContainerStatus {
        let (name, state, code) = match text.split_once('!') {
            Some((name, code)) => (name, ContainerState::Exited, code.parse().unwrap()),
            None if text.ends_with('?') => (text.trim_end_matches('?'), ContainerState::Created, 0),
            None => (text, ContainerState::Running, 0),
        };
        ContainerStatus {
            id: name.into(),
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            state: state as i32,
            exit_code: code,
            started_at: 1_000_000_000,
            finished_at: if state == ContainerState::Exited { 2_000_000_000 } else { 0 },
            ..Default::default()
        }
    }

    fn check(spec: &serde_json::Value, have: Option<&str>, results: &[(&'static str, Probe, bool)], expect: &str) {
        let pod = pod(spec.clone());
        let view = View::new(have.map(|have| (sandbox(!have.starts_with('-')), have.trim_start_matches('-').split_whitespace().map(container).collect())).into_iter().collect());
        let results: HashMap<(&str, Probe), bool> = results.iter().map(|(id, p, r)| ((*id, *p), *r)).collect();
        let plan = plan(&pod, &view, &results);
        let mut text = Vec::new();
        if plan.kill_pod {
            text.push("kill-pod".to_string());
        }
        text.extend(plan.kill.iter().map(|k| format!("kill:{}", k.name)));
        text.extend(plan.sandbox.map(|a| format!("sandbox:{a}")));
        text.extend(plan.start.iter().map(|s| format!("start:{s}")));
        assert_eq!(text.join(" "), expect, "{spec} {have:?}");
    }

    #[test]
    fn main_containers() {
        let two = serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]});
        check(&two, None, &[], "sandbox:0 start:a start:b");
        check(&two, Some(""), &[], "start:a start:b");
        check(&two, Some("a"), &[], "start:b");
        check(&two, Some("a b"), &[], "");
        check(&two, Some("a!0 b!1"), &[], "start:a start:b");
        check(&two, Some("a? b"), &[], "start:a");
        check(&two, Some("-a!137 b!137"), &[], "kill-pod sandbox:1 start:a start:b");
        let job = serde_json::json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}, {"name": "b"}]});
        check(&job, Some("a!0 b!1"), &[], "start:b");
        check(&job, Some("a!0 b!0"), &[], "kill-pod");
        check(&job, Some("-a!0 b!0"), &[], "kill-pod");
        let never = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
        check(&never, Some("a!1"), &[], "kill-pod");
        check(&never, Some("-a!1"), &[], "kill-pod");
        check(&never, None, &[], "sandbox:0 start:a");
    }

    #[test]
    fn probes() {
        let one = serde_json::json!({"containers": [{"name": "a", "startupProbe": {}}]});
        check(&one, Some("a"), &[("a", Probe::Liveness, false)], "kill:a start:a");
        check(&one, Some("a"), &[("a", Probe::Startup, false)], "kill:a start:a");
        check(&one, Some("a"), &[("a", Probe::Readiness, false)], "");
        let never = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
        check(&never, Some("a b"), &[("a", Probe::Liveness, false)], "kill:a");
    }

    #[test]
    fn init_containers_run_one_after_the_other() {
        let spec = serde_json::json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        check(&spec, None, &[], "sandbox:0 start:i");
        check(&spec, Some("i"), &[], "");
        check(&spec, Some("i!0"), &[], "start:j");
        check(&spec, Some("i!1"), &[], "start:i");
        check(&spec, Some("i!0 j!0"), &[], "start:a");
        check(&spec, Some("a"), &[], "");
        check(&spec, Some("-i!0 j!0 a!137"), &[], "kill-pod sandbox:1 start:i");
        let never = serde_json::json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        check(&never, Some("i!1"), &[], "kill-pod");
    }

    #[test]
    fn sidecars_start_first_and_do_not_keep_a_pod() {
        let spec = serde_json::json!({"restartPolicy": "Never",
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}, {"name": "i"}], "containers": [{"name": "a"}]});
        check(&spec, Some(""), &[], "start:s");
        check(&spec, Some("s"), &[], "");
        check(&spec, Some("s"), &[("s", Probe::Startup, true)], "start:i");
        check(&spec, Some("s i!0"), &[("s", Probe::Startup, true)], "start:a");
        check(&spec, Some("s!1 i!0 a"), &[], "start:s");
        check(&spec, Some("s i!0 a!0"), &[("s", Probe::Startup, true)], "kill-pod");
    }

    #[test]
    fn another_image_restarts() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a", "image": "new"}]}));
        let mut status = container("a");
        status.annotations.insert(label::HASH.into(), "other".into());
        let plan = plan(&pod, &View::new(vec![(sandbox(true), vec![status])]), &HashMap::new());
        assert_eq!(plan.kill[0].message, "Container a definition changed, will be restarted");
        assert_eq!(plan.start, ["a"]);
    }
}
