//! Resizing containers that run: their groups are brought to what the pod asks for now, or they are
//! started anew where their policy wants that.

use cri::v1::{LinuxContainerResources, UpdateContainerResourcesRequest};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::{self, Role};
use crate::resources::{self, List};
use crate::view::View;
use crate::worker::Worker;
use crate::kill;

/// A running container that has other resources than it is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub name: String,
    pub id: String,
    pub resources: LinuxContainerResources,
    /// It has to be started anew.
    pub restart: bool,
}

/// What keeps a resize from its end, as a condition of the pod: type, reason and message.
pub type Note = (&'static str, &'static str, String);

/// What differs. Only CPU and memory are looked at: the rest is settled when a container is made. Pure.
pub fn changes(pod: &Pod, view: &View, capacity: i64) -> Vec<Change> {
    let mut all = Vec::new();
    for member in pod::members(pod).into_iter().filter(|m| m.role != Role::Init) {
        let Some(running) = view.latest(&member.spec.name).filter(|v| v.running()) else { continue };
        let Some(have) = running.status.resources.as_ref().and_then(|r| r.linux.as_ref()) else { continue };
        let want = resources::linux(pod, member.spec, capacity);
        let cpu = (have.cpu_shares, have.cpu_quota, have.cpu_period) != (want.cpu_shares, want.cpu_quota, want.cpu_period);
        let memory = have.memory_limit_in_bytes != want.memory_limit_in_bytes;
        if cpu || memory {
            let restart = cpu && restarts(member.spec, "cpu") || memory && restarts(member.spec, "memory");
            let resources = LinuxContainerResources { oom_score_adj: have.oom_score_adj, ..want };
            all.push(Change { name: member.spec.name.clone(), id: running.status.id.clone(), resources, restart });
        }
    }
    all
}

fn restarts(container: &Container, resource: &str) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies.into_iter().any(|p| p.resource_name == resource && p.restart_policy == "RestartContainer")
}

/// Why a pod can never have what it asks for on this node. Pure.
pub fn infeasible(pod: &Pod, allocatable: &List) -> Option<String> {
    let requests = resources::pod_requests(pod);
    ["cpu", "memory"].iter().find_map(|name| {
        let amount = |q: &api::quantity::Quantity| if *name == "cpu" { q.milli_value() } else { q.value() };
        let have = allocatable.get(*name).and_then(|q| api::quantity::Quantity::parse(&q.0).ok())?;
        let asked = requests.get(*name).map(amount).filter(|a| *a > amount(&have))?;
        Some(format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {}", amount(&have)))
    })
}

impl Worker {
    /// Brings running containers to their new sizes. `true`: some ended, so the pod wants another look.
    pub(crate) async fn resize(&mut self) -> Result<bool, String> {
        let capacity = self.shared.memory_capacity;
        let due = changes(&self.pod, &self.view, capacity);
        self.unresized = due.iter().map(|c| c.name.clone()).collect();
        self.resize_note = None;
        if due.is_empty() {
            return Ok(false);
        }
        let allocatable = self.shared.allocatable.read().clone();
        if let Some(message) = infeasible(&self.pod, &allocatable) {
            self.resize_note = Some(("PodResizePending", "Infeasible", message));
            return Ok(false);
        }
        if let Err((_, message)) = (self.shared.admit)(&self.pod) {
            let message = message.trim_start_matches("Pod was rejected: ").to_string();
            self.resize_note = Some(("PodResizePending", "Deferred", message));
            return Ok(false);
        }
        // The pod's own group must not stand in the way of those in it, whichever way they go.
        if let Some(cgroups) = &self.shared.cgroups {
            cgroups.widen(&self.pod).map_err(|e| e.to_string())?;
        }
        let (restart, update): (Vec<Change>, Vec<Change>) = due.into_iter().partition(|c| c.restart);
        for change in update {
            let request = UpdateContainerResourcesRequest { container_id: change.id, linux: Some(change.resources), ..Default::default() };
            if let Err(error) = self.shared.runtime.update_container_resources(request).await {
                self.resize_note = Some(("PodResizeInProgress", "Error", error.message));
            }
        }
        let again = !restart.is_empty();
        for change in restart {
            let victim = kill::Victim {
                id: change.id,
                container: pod::member(&self.pod, &change.name).map(|m| m.spec.clone()),
                about: self.container_reference(&change.name),
                message: format!("Container {} resize requires restart", change.name),
                grace: pod::grace_period(&self.pod),
                tell: true,
            };
            kill::container(&self.shared.clone(), victim, None).await;
        }
        if let Some(cgroups) = &self.shared.cgroups {
            cgroups.create(&self.pod).map_err(|e| e.to_string())?;
        }
        self.look().await.map_err(|e| e.to_string())?;
        self.unresized = changes(&self.pod, &self.view, capacity).into_iter().map(|c| c.name).collect();
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use cri::v1::ContainerResources;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::tests::{container, pod, sandbox};

    fn sized(cpu: &str, memory: &str, policy: Value) -> Pod {
        pod(json!({"containers": [{"name": "a", "resizePolicy": policy,
            "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": memory}}}]}))
    }

    /// What is due when a pod of the first size runs and is given the second one.
    fn due(before: &Pod, after: &Pod) -> Vec<(String, i64, i64, bool)> {
        let mut running = container("a");
        let linux = resources::linux(before, &pod::spec(before).containers[0], 1 << 30);
        running.resources = Some(ContainerResources { linux: Some(linux) });
        let view = View::new(vec![(sandbox(true), vec![running])]);
        changes(after, &view, 1 << 30).into_iter().map(|c| (c.name, c.resources.cpu_quota, c.resources.memory_limit_in_bytes, c.restart)).collect()
    }

    #[test]
    fn running_containers_get_what_is_asked_for_now() {
        let small = sized("100m", "64Mi", json!([]));
        assert_eq!(due(&small, &small), []);
        let same = sized("0.1", "65536Ki", json!([]));
        assert_eq!(due(&small, &same), [], "the same amounts in other words");
        let large = sized("200m", "64Mi", json!([]));
        assert_eq!(due(&small, &large), [("a".to_string(), 20_000, 64 << 20, false)]);
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        assert!(!due(&small, &sized("200m", "64Mi", policy.clone()))[0].3, "only memory wants a restart");
        assert!(due(&small, &sized("100m", "32Mi", policy))[0].3);
    }

    #[test]
    fn what_the_node_lacks_is_infeasible() {
        let allocatable: List = serde_json::from_value(json!({"cpu": "2", "memory": "1Gi"})).unwrap();
        assert_eq!(infeasible(&sized("2", "64Mi", json!([])), &allocatable), None);
        let message = infeasible(&sized("3", "64Mi", json!([])), &allocatable).unwrap();
        assert_eq!(message, "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000");
    }
}
