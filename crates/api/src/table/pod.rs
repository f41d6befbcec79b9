//! A pod's row: its state in a word is put together from its containers'.

use super::rows::{Printer, list, text};
use serde_json::Value;

fn terminated(state: &str, c: &Value) -> Option<Value> {
    c.get(state)?.get("terminated").filter(|t| !t.is_null()).cloned()
}

fn waiting(c: &Value) -> Option<&Value> {
    c.get("state")?.get("waiting").filter(|w| !w.is_null())
}

fn number(v: &Value, key: &str) -> i64 {
    v.get(key).and_then(Value::as_i64).unwrap_or(0)
}

fn ready(c: &Value) -> bool {
    c.get("ready").and_then(Value::as_bool).unwrap_or(false)
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list(pod, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

fn condition_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| text(c, "/status") == "True")
}

/// How a container ended, in a word.
fn end(t: &Value) -> String {
    match (text(t, "/reason"), number(t, "signal")) {
        (r, _) if !r.is_empty() => r.to_owned(),
        (_, 0) => format!("ExitCode:{}", number(t, "exitCode")),
        (_, s) => format!("Signal:{s}"),
    }
}

/// Restarts, and when the last container ended before one.
#[derive(Default, Clone)]
struct Restarts {
    count: i64,
    last: Option<jiff::Timestamp>,
}

impl Restarts {
    fn add(&mut self, c: &Value) {
        self.count += number(c, "restartCount");
        let end = terminated("lastState", c).and_then(|t| text(&t, "/finishedAt").parse().ok());
        self.last = self.last.max(end);
    }
}

pub fn row(p: &Printer<'_>) -> Vec<Value> {
    let pod = p.obj;
    let phase = p.text("/status/phase");
    let mut reason = match p.text("/status/reason") {
        "" => phase,
        r => r,
    }
    .to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| text(c, "/reason") == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let init = list(pod, "/spec/initContainers");
    let sidecar = |name: &str| init.iter().any(|c| text(c, "/name") == name && text(c, "/restartPolicy") == "Always");
    let mut total = list(pod, "/spec/containers").len();
    total += init.iter().filter(|c| text(c, "/restartPolicy") == "Always").count();
    let mut ready_count = 0;
    let (mut restarts, mut sidecar_restarts) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (i, c) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
        restarts.add(c);
        let is_sidecar = sidecar(text(c, "/name"));
        if is_sidecar {
            sidecar_restarts.add(c);
        }
        let ended = terminated("state", c);
        if ended.as_ref().is_some_and(|t| number(t, "exitCode") == 0) {
            continue;
        }
        if is_sidecar && c.get("started").and_then(Value::as_bool).unwrap_or(false) {
            ready_count += usize::from(ready(c));
            continue;
        }
        let waits_for = waiting(c).map(|w| text(w, "/reason")).filter(|r| !r.is_empty() && *r != "PodInitializing");
        reason = match (ended, waits_for) {
            (Some(t), _) => format!("Init:{}", end(&t)),
            (None, Some(r)) => format!("Init:{r}"),
            (None, None) => format!("Init:{i}/{}", init.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || condition_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        let mut error = String::new();
        for c in list(pod, "/status/containerStatuses").iter().rev() {
            restarts.add(c);
            let waits_for = waiting(c).map(|w| text(w, "/reason")).filter(|r| !r.is_empty());
            if let Some(r) = waits_for {
                reason = r.to_owned();
            } else if let Some(t) = terminated("state", c) {
                reason = end(&t);
                if number(&t, "exitCode") != 0 {
                    error.clone_from(&reason);
                }
            } else if ready(c) && c.pointer("/state/running").is_some_and(|r| !r.is_null()) {
                running = true;
                ready_count += 1;
            }
        }
        if reason == "Completed" {
            if running && condition_true(pod, "Ready") {
                reason = "Running".to_owned();
            } else if !error.is_empty() {
                reason = error;
            } else if running {
                reason = "NotReady".to_owned();
            }
        }
    }
    if p.deleted() && p.text("/status/reason") == "NodeLost" {
        reason = "Unknown".to_owned();
    } else if p.deleted() && phase != "Succeeded" && phase != "Failed" {
        reason = "Terminating".to_owned();
    }
    let restarts = match restarts.last {
        Some(last) if restarts.count != 0 => {
            format!("{} ({} ago)", restarts.count, p.clock.ago(last))
        }
        _ => restarts.count.to_string(),
    };
    let gates = list(pod, "/spec/readinessGates");
    let gates_text = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let open = gates.iter().filter(|g| condition_true(pod, text(g, "/conditionType"))).count();
        format!("{open}/{}", gates.len())
    };
    vec![
        p.name(),
        format!("{ready_count}/{total}").into(),
        reason.into(),
        restarts.into(),
        p.age(),
        p.or("/status/podIPs/0/ip", "<none>"),
        p.or("/spec/nodeName", "<none>"),
        p.or("/status/nominatedNodeName", "<none>"),
        gates_text.into(),
    ]
}
