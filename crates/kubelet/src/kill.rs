//! Ending containers: preStop hooks, grace periods, the order within a pod; and the hooks themselves.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use cri::v1::StopContainerRequest;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use reconcile::{EventType, Reference};

use crate::check::{self, Outcome};
use crate::pod::{self, Role};
use crate::view::View;
use crate::worker::Shared;

/// A container that is to end.
pub struct Victim {
    pub id: String,
    /// Its specification, when it is known.
    pub container: Option<Container>,
    pub about: Reference,
    pub message: String,
    /// Seconds.
    pub grace: i64,
    /// Whether an event tells it.
    pub tell: bool,
}

/// At least so many seconds are left for the container after its hook, as upstream.
const MINIMUM: i64 = 2;

/// Ends a container: event, preStop hook, stop signal, SIGKILL.
pub async fn container(shared: &Shared, victim: Victim, ip: Option<IpAddr>) {
    if victim.tell {
        shared.recorder.event(&victim.about, EventType::Normal, "Killing", victim.message.clone());
    }
    let mut grace = victim.grace;
    let start = Instant::now();
    let pre_stop = victim.container.as_ref().and_then(|c| c.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
    if let (Some(action), Some(spec), true) = (pre_stop, &victim.container, grace > 0) {
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(1));
        match tokio::time::timeout(limit, hook(shared, action, &victim.id, spec, ip, limit)).await {
            Ok(Outcome::Success) => {}
            Ok(outcome) => {
                tracing::warn!(container = spec.name, "preStop hook: {outcome:?}");
                shared.recorder.event(&victim.about, EventType::Warning, "FailedPreStopHook", "PreStopHook failed");
            }
            Err(_) => tracing::info!(container = spec.name, "preStop hook takes longer than the grace period"),
        }
        grace = (grace - i64::try_from(start.elapsed().as_secs()).unwrap_or(0)).max(MINIMUM);
    }
    let request = StopContainerRequest { container_id: victim.id.clone(), timeout: grace };
    if let Err(error) = shared.runtime.stop_container(request).await {
        tracing::warn!(container = victim.id, "cannot stop: {error}");
    }
}

/// What of a pod has to end, in groups: all of a group at once, one group after the other.
pub fn order(pod: &Pod, view: &View, grace: i64, tell: bool, about: &dyn Fn(&str) -> Reference) -> Vec<Vec<Victim>> {
    let victim = |c: &crate::view::ContainerView| Victim {
        id: c.status.id.clone(),
        container: pod::member(pod, c.name()).map(|m| m.spec.clone()),
        about: about(c.name()),
        message: format!("Stopping container {}", c.name()),
        grace,
        tell,
    };
    let sidecars: Vec<String> =
        pod::members(pod).into_iter().filter(|m| m.role == Role::Sidecar).map(|m| m.spec.name.clone()).rev().collect();
    let running = || view.containers.iter().filter(|c| c.running());
    let mut groups = vec![running().filter(|c| !sidecars.iter().any(|s| s == c.name())).map(victim).collect::<Vec<_>>()];
    for name in &sidecars {
        groups.push(running().filter(|c| c.name() == name).map(victim).collect());
    }
    groups.retain(|g| !g.is_empty());
    groups
}

/// Ends the groups, within the grace period of the first.
pub async fn pod(shared: &Shared, groups: Vec<Vec<Victim>>, ip: Option<IpAddr>) {
    let start = Instant::now();
    for group in groups {
        let spent = i64::try_from(start.elapsed().as_secs()).unwrap_or(0);
        let victims = group.into_iter().map(|v| Victim { grace: (v.grace - spent).max(1), ..v });
        join_all(victims.map(|v| container(shared, v, ip))).await;
    }
}

/// Runs a hook; `limit` zero is none.
pub async fn hook(shared: &Shared, action: &LifecycleHandler, id: &str, container: &Container, ip: Option<IpAddr>, limit: Duration) -> Outcome {
    if let Some(exec) = &action.exec {
        check::exec(&*shared.runtime, id, exec.command.as_deref().unwrap_or_default(), limit).await
    } else if let Some(get) = &action.http_get {
        let limit = if limit.is_zero() { Duration::from_secs(30) } else { limit };
        check::http(get, container, ip, limit).await
    } else if let Some(sleep) = &action.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        Outcome::Success
    } else {
        Outcome::Success
    }
}
