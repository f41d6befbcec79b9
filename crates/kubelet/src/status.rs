//! The status that the API gets: (specification, what the runtime has, what the worker knows) → status. Pure.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP,
    PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::plan::{Probe, Results, init_failed, started};
use crate::pod::{self, Member, Role};
use crate::resize::Note;
use crate::resources;
use crate::view::{ContainerView, View};

/// What only the worker knows.
pub struct Known<'a> {
    /// Why a container waits, by name.
    pub waiting: &'a HashMap<String, (String, String)>,
    /// Termination messages, by container id.
    pub messages: &'a HashMap<String, String>,
    pub results: &'a dyn Results,
    /// As in `containerd://`.
    pub runtime: &'a str,
    pub node_ips: &'a [String],
    pub start_time: Timestamp,
    /// Nothing will be started any more.
    pub ending: bool,
    /// Phase, reason and message that stand above all: rejected, evicted, out of time.
    pub verdict: Option<&'a (String, String, String)>,
    /// Containers that still have what the API was told before.
    pub unresized: &'a HashSet<String>,
    /// What keeps them.
    pub resize_note: Option<&'a Note>,
    pub now: Timestamp,
}

fn time(nanos: i64) -> Option<Time> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok()).flatten().map(Time)
}

fn non_empty(text: &str) -> Option<String> {
    Some(text.to_string()).filter(|t| !t.is_empty())
}

/// Computes the status. `old` is what the API has: times of conditions that did not change stay, and
/// conditions that are not the kubelet's are left out.
pub fn status(pod: &Pod, view: &View, known: &Known<'_>, old: Option<&PodStatus>) -> PodStatus {
    let members = pod::members(pod);
    let old_of = |name: &str| {
        let lists = old.into_iter().flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
        lists.into_iter().find(|c| c.name == name)
    };
    let statuses: Vec<(Member<'_>, ContainerStatus)> = members
        .iter()
        .map(|m| (*m, container(pod, *m, view, known, old_of(&m.spec.name), reached(&members, m, view, &old_of))))
        .collect();
    let phase = match known.verdict {
        Some((phase, ..)) => phase.clone(),
        None => phase(pod, &statuses, view, known.ending).to_string(),
    };
    let ips = if pod::host_network(pod) { known.node_ips.to_vec() } else { view.ips() };
    // The addresses of a pod that has ended are history, but they are still told.
    let keep_ips = ips.is_empty() && (phase == "Succeeded" || phase == "Failed" || known.ending);
    let ips: Vec<PodIP> = match old.filter(|_| keep_ips) {
        Some(old) => old.pod_ips.clone().unwrap_or_default(),
        None => ips.into_iter().map(|ip| PodIP { ip }).collect(),
    };
    let of_ephemeral: Vec<ContainerStatus> = pod::ephemeral(pod)
        .iter()
        .map(|spec| {
            let old = old.and_then(|s| s.ephemeral_container_statuses.as_ref()).into_iter().flatten().find(|c| c.name == spec.name);
            let status = container(pod, Member { role: Role::Main, spec }, view, known, old, old.is_some_and(|o| o.container_id.is_some()));
            // Nobody waits for it.
            ContainerStatus { ready: false, started: None, ..status }
        })
        .collect();
    let conditions = conditions(pod, &phase, &statuses, view, known, old);
    let (of_init, of_main): (Vec<_>, Vec<_>) = statuses.into_iter().partition(|(m, _)| m.role != Role::Main);
    let list = |all: Vec<(Member<'_>, ContainerStatus)>| Some(all.into_iter().map(|(_, s)| s).collect::<Vec<_>>()).filter(|l| !l.is_empty());
    PodStatus {
        phase: Some(phase),
        reason: known.verdict.and_then(|v| non_empty(&v.1)),
        message: known.verdict.and_then(|v| non_empty(&v.2)),
        conditions: Some(conditions),
        host_ip: known.node_ips.first().cloned(),
        host_ips: Some(known.node_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().map(|i| i.ip.clone()),
        pod_ips: Some(ips).filter(|i| !i.is_empty()),
        start_time: Some(Time(known.start_time)),
        qos_class: Some(resources::qos(pod).as_str().to_string()),
        init_container_statuses: list(of_init),
        container_statuses: list(of_main),
        ephemeral_container_statuses: Some(of_ephemeral).filter(|l| !l.is_empty()),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// Whether a pod came as far as this container: its turn was there, or that of a later one.
fn reached<'a>(members: &[Member<'_>], member: &Member<'_>, view: &View, old_of: &dyn Fn(&str) -> Option<&'a ContainerStatus>) -> bool {
    let old_state = |m: &Member<'_>| old_of(&m.spec.name).and_then(|o| o.state.clone()).unwrap_or_default();
    let seen = |m: &Member<'_>| {
        let old = old_state(m);
        view.latest(&m.spec.name).is_some() || old.running.is_some() || old.terminated.is_some()
    };
    let done = |m: &Member<'_>| match m.role {
        Role::Sidecar => seen(m),
        _ => {
            view.latest(&m.spec.name).is_some_and(|c| c.exited() && c.status.exit_code == 0)
                || old_state(m).terminated.is_some_and(|t| t.exit_code == 0)
        }
    };
    let of_init = || members.iter().filter(|m| m.role != Role::Main);
    match member.role {
        Role::Main => members.iter().any(|m| m.role == Role::Main && seen(m)) || of_init().last().is_none_or(done),
        _ => of_init().skip_while(|m| m.spec.name != member.spec.name).any(seen) || members.iter().any(|m| m.role == Role::Main && seen(m)),
    }
}

fn terminated(c: &ContainerView, known: &Known<'_>) -> ContainerState {
    let status = &c.status;
    let reason = match status.reason.as_str() {
        "" if status.exit_code == 0 => "Completed",
        "" => "Error",
        other => other,
    };
    let message = known.messages.get(&status.id).cloned().or_else(|| non_empty(&status.message));
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", known.runtime, status.id)),
            exit_code: status.exit_code,
            finished_at: time(status.finished_at),
            started_at: time(status.started_at),
            message,
            reason: Some(reason.to_string()),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: non_empty(reason), message: non_empty(message) }),
        ..ContainerState::default()
    }
}

fn container(pod: &Pod, member: Member<'_>, view: &View, known: &Known<'_>, old: Option<&ContainerStatus>, reached: bool) -> ContainerStatus {
    let name = &member.spec.name;
    let latest = view.latest(name);
    let has_init = pod::spec(pod).init_containers.iter().flatten().next().is_some();
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let why = known.waiting.get(name);
    let previous = view.previous(name).map(|c| terminated(c, known));
    let mut last_state = previous;
    let state = match latest {
        Some(c) if c.running() => {
            ContainerState { running: Some(ContainerStateRunning { started_at: time(c.status.started_at) }), ..ContainerState::default() }
        }
        Some(c) if c.exited() => match why {
            Some((reason, message)) if !known.ending => {
                last_state = Some(terminated(c, known));
                waiting(reason, message)
            }
            _ => terminated(c, known),
        },
        _ if known.ending => {
            // It never ran here, or what is known of it is lost.
            let was_terminated = old.and_then(|o| o.state.as_ref()).filter(|s| s.terminated.is_some());
            match was_terminated {
                Some(state) => state.clone(),
                None if !reached => waiting(default_reason, ""),
                None if known.verdict.is_some() && latest.is_none() && old.is_none() => waiting(default_reason, ""),
                None => ContainerState {
                    terminated: Some(ContainerStateTerminated {
                        exit_code: 137,
                        reason: Some("ContainerStatusUnknown".into()),
                        message: Some("The container could not be located when the pod was terminated".into()),
                        ..Default::default()
                    }),
                    ..ContainerState::default()
                },
            }
        }
        _ => match why {
            Some((reason, message)) => waiting(reason, message),
            None => waiting(default_reason, ""),
        },
    };
    let is_started = latest.is_some_and(|c| started(member.spec, c, known.results));
    let ready = match member.role {
        Role::Init => latest.is_some_and(|c| c.exited() && c.status.exit_code == 0),
        _ if !is_started => false,
        _ if member.spec.readiness_probe.is_none() => true,
        _ => latest.is_some_and(|c| known.results.get(&c.status.id, Probe::Readiness) == Some(true)),
    };
    let image = latest.and_then(|c| c.status.image.as_ref()).map(|i| if i.user_specified_image.is_empty() { &i.image } else { &i.user_specified_image });
    // A container without an instance keeps the count that the API has.
    let restart_count = latest.map_or_else(|| old.map_or(0, |o| o.restart_count), |c| i32::try_from(c.attempt()).unwrap_or(i32::MAX));
    let resized = Some((member.spec.resources.clone(), member.spec.resources.as_ref().and_then(|r| r.requests.clone())));
    let kept = old.filter(|_| known.unresized.contains(name)).map(|o| (o.resources.clone(), o.allocated_resources.clone()));
    let (resources, allocated) = kept.or(resized).unwrap_or_default();
    ContainerStatus {
        name: name.clone(),
        container_id: latest.filter(|c| !c.stillborn()).map(|c| format!("{}://{}", known.runtime, c.status.id)),
        image: image.cloned().filter(|i| !i.is_empty()).or_else(|| member.spec.image.clone()).unwrap_or_default(),
        image_id: latest.map(|c| c.status.image_ref.clone()).unwrap_or_default(),
        ready,
        started: Some(is_started),
        restart_count,
        last_state: Some(last_state.unwrap_or_default()),
        state: Some(state),
        resources: resources.filter(|r| r.limits.is_some() || r.requests.is_some()),
        allocated_resources: allocated,
        ..ContainerStatus::default()
    }
}

fn phase(pod: &Pod, statuses: &[(Member<'_>, ContainerStatus)], view: &View, ending: bool) -> &'static str {
    let policy = pod::restart_policy(pod);
    let (mut pending_init, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    let begun = statuses.iter().any(|(m, _)| m.role == Role::Main && view.latest(&m.spec.name).is_some());
    for (member, status) in statuses {
        let state = status.state.clone().unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        match member.role {
            Role::Init if !begun => {
                let done = state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
                pending_init += i32::from(!done);
            }
            Role::Sidecar if !begun => pending_init += i32::from(status.started != Some(true)),
            Role::Main => match (&state.running, &state.terminated) {
                (Some(_), _) => running += 1,
                (_, Some(t)) => {
                    stopped += 1;
                    succeeded += i32::from(t.exit_code == 0);
                }
                _ if last.is_some() => stopped += 1,
                _ => waiting += 1,
            },
            _ => {}
        }
    }
    if init_failed(pod, view, None) && !begun {
        return "Failed";
    }
    if ending && running == 0 {
        return if stopped > 0 && stopped == succeeded && waiting == 0 && pending_init == 0 { "Succeeded" } else { "Failed" };
    }
    if pending_init > 0 || waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped > 0 {
        match policy {
            "Always" => "Running",
            _ if stopped == succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        }
    } else {
        "Pending"
    }
}

struct Verdict {
    status: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Verdict {
        Verdict { status: true, reason: "", message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Verdict {
        Verdict { status: false, reason, message }
    }
}

fn conditions(
    pod: &Pod,
    phase: &str,
    statuses: &[(Member<'_>, ContainerStatus)],
    view: &View,
    known: &Known<'_>,
    old: Option<&PodStatus>,
) -> Vec<PodCondition> {
    let names = |which: &dyn Fn(&Member<'_>, &ContainerStatus) -> bool| -> String {
        statuses.iter().filter(|(m, s)| which(m, s)).map(|(m, _)| m.spec.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let begun = statuses.iter().any(|(m, _)| m.role == Role::Main && view.latest(&m.spec.name).is_some());
    let incomplete = names(&|m, s| match m.role {
        Role::Init => !s.ready && !begun,
        Role::Sidecar => s.started != Some(true) && !begun,
        Role::Main => false,
    });
    let initialized = match phase {
        "Succeeded" => Verdict { status: true, reason: "PodCompleted", message: String::new() },
        _ if incomplete.is_empty() || begun => Verdict::yes(),
        _ => Verdict::no("ContainersNotInitialized", format!("containers with incomplete status: [{incomplete}]")),
    };
    let unready = names(&|m, s| m.role != Role::Init && !s.ready);
    let containers_ready = || match phase {
        "Succeeded" => Verdict::no("PodCompleted", String::new()),
        "Failed" => Verdict::no("PodFailed", String::new()),
        _ if unready.is_empty() => Verdict::yes(),
        _ => Verdict::no("ContainersNotReady", format!("containers with unready status: [{unready}]")),
    };
    let mut ready = containers_ready();
    if ready.status {
        let gates: Vec<String> = pod::spec(pod)
            .readiness_gates
            .iter()
            .flatten()
            .filter_map(|gate| {
                let condition = pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == gate.condition_type);
                let kind = &gate.condition_type;
                match condition {
                    None => Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
                    Some(c) if c.status != "True" => {
                        Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", c.status))
                    }
                    Some(_) => None,
                }
            })
            .collect();
        if !gates.is_empty() {
            ready = Verdict::no("ReadinessGatesNotReady", gates.join(", "));
        }
    }
    let has_address = view.ready_sandbox().is_some() && (pod::host_network(pod) || !view.ips().is_empty());
    let network = if has_address { Verdict::yes() } else { Verdict::no("", String::new()) };
    let wanted = [
        ("PodReadyToStartContainers", network),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready()),
        ("PodScheduled", Verdict::yes()),
    ];
    let resize = known.resize_note.map(|(kind, reason, message)| (*kind, Verdict { status: true, reason, message: message.clone() }));
    wanted
        .into_iter()
        .chain(resize)
        .map(|(kind, verdict)| {
            let text = if verdict.status { "True" } else { "False" };
            let before = old.and_then(|o| o.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == kind);
            let since = before.filter(|c| c.status == text).and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(known.now));
            PodCondition {
                type_: kind.to_string(),
                status: text.to_string(),
                reason: non_empty(verdict.reason),
                message: non_empty(&verdict.message),
                last_transition_time: Some(since),
                last_probe_time: None,
                observed_generation: pod.metadata.generation,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{container, pod, sandbox};

    fn check(spec: &serde_json::Value, have: &str, ending: bool, expect: &str) -> PodStatus {
        let pod = pod(spec.clone());
        let view = View::new(vec![(sandbox(true), have.split_whitespace().map(container).collect())]);
        let results: HashMap<(&str, Probe), bool> = HashMap::from([(("ready", Probe::Readiness), true)]);
        let known = Known {
            waiting: &HashMap::new(),
            messages: &HashMap::new(),
            results: &results,
            runtime: "knarr",
            node_ips: &["192.168.0.1".to_string()],
            start_time: Timestamp::UNIX_EPOCH,
            ending,
            verdict: None,
            unresized: &HashSet::new(),
            resize_note: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let status = status(&pod, &view, &known, None);
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        let text = format!("{} {}", status.phase.as_deref().unwrap(), ready.message.as_deref().or(ready.reason.as_deref()).unwrap_or("ready"));
        assert_eq!(text, expect, "{spec} {have}");
        status
    }

    #[test]
    fn phases() {
        let always = serde_json::json!({"containers": [{"name": "a"}, {"name": "b"}]});
        check(&always, "", false, "Pending containers with unready status: [a b]");
        check(&always, "a", false, "Pending containers with unready status: [b]");
        check(&always, "a b", false, "Running ready");
        check(&always, "a b!1", false, "Running containers with unready status: [b]");
        check(&always, "a!0 b!0", false, "Running containers with unready status: [a b]");
        check(&always, "a!0 b!0", true, "Succeeded PodCompleted");
        check(&always, "a!0 b!137", true, "Failed PodFailed");
        let never = serde_json::json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
        check(&never, "a!0 b!0", false, "Succeeded PodCompleted");
        check(&never, "a!0 b!1", false, "Failed PodFailed");
        check(&never, "a!0 b", false, "Running containers with unready status: [a]");
        let init = serde_json::json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        check(&init, "i", false, "Pending containers with unready status: [a]");
        check(&init, "i!0 a", false, "Running ready");
    }

    #[test]
    fn a_pod_whose_initialization_failed_never_came_to_its_containers() {
        let spec = serde_json::json!({"restartPolicy": "Never",
            "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let failed = check(&spec, "i!1", true, "Failed PodFailed");
        let reason = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.clone());
        assert_eq!(reason(&failed.container_statuses.unwrap()[0]).as_deref(), Some("PodInitializing"));
        let of_init = failed.init_container_statuses.unwrap();
        assert_eq!(of_init[0].state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!(reason(&of_init[1]).as_deref(), Some("PodInitializing"));
        // What ran before it was lost is not waiting.
        let lost = check(&spec, "i!0 j!0", true, "Failed PodFailed");
        let state = lost.container_statuses.unwrap()[0].state.clone().unwrap();
        assert_eq!(state.terminated.unwrap().reason.as_deref(), Some("ContainerStatusUnknown"));
    }

    #[test]
    fn readiness_needs_its_probe() {
        let probed = |name: &str| serde_json::json!({"containers": [{"name": name, "readinessProbe": {}}]});
        check(&probed("ready"), "ready", false, "Running ready");
        check(&probed("other"), "other", false, "Running containers with unready status: [other]");
    }

    #[test]
    fn a_container_that_waits_again_keeps_its_last_state() {
        let pod = pod(serde_json::json!({"containers": [{"name": "a"}]}));
        let view = View::new(vec![(sandbox(true), vec![container("a!2")])]);
        let waiting = HashMap::from([("a".to_string(), ("CrashLoopBackOff".to_string(), "back-off".to_string()))]);
        let results: HashMap<(&str, Probe), bool> = HashMap::new();
        let known = Known {
            waiting: &waiting,
            messages: &HashMap::from([("a".to_string(), "bye".to_string())]),
            results: &results,
            runtime: "knarr",
            node_ips: &[],
            start_time: Timestamp::UNIX_EPOCH,
            ending: false,
            verdict: None,
            unresized: &HashSet::new(),
            resize_note: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let status = status(&pod, &view, &known, None);
        let container = &status.container_statuses.unwrap()[0];
        assert_eq!(container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((last.exit_code, last.message.as_deref()), (2, Some("bye")));
        assert_eq!(status.phase.as_deref(), Some("Running"));
    }
}
