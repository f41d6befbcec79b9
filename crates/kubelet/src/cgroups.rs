//! The cgroups above containers: `kubepods`, one a class of service, one a pod.

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{Cgroups, Limits};

use crate::pod;
use crate::resources::{self, Qos};

/// Makes and removes pods' groups below a root.
#[derive(Clone)]
pub struct PodCgroups {
    cgroups: Cgroups,
    root: String,
}

impl PodCgroups {
    /// Makes the groups of the classes below `root` (empty for the top of the hierarchy).
    pub fn new(cgroups: Cgroups, root: &str) -> Result<PodCgroups, sys::Error> {
        let root = format!("{}/kubepods", root.trim_end_matches('/'));
        for class in ["", "/burstable", "/besteffort"] {
            cgroups.create(&format!("{root}{class}"))?;
        }
        let least = Limits { cpu_shares: Some(2), ..Limits::default() };
        cgroups.set(&format!("{root}/besteffort"), &least)?;
        Ok(PodCgroups { cgroups, root })
    }

    /// The group of a pod.
    pub fn path(&self, pod: &Pod) -> String {
        self.path_of(resources::qos(pod), &pod::uid(pod))
    }

    fn path_of(&self, qos: Qos, uid: &str) -> String {
        let class = match qos {
            Qos::Guaranteed => "",
            Qos::Burstable => "/burstable",
            Qos::BestEffort => "/besteffort",
        };
        format!("{}{class}/pod{uid}", self.root)
    }

    /// Makes the pod's group, with what the pod as a whole may use.
    pub fn create(&self, pod: &Pod) -> Result<(), sys::Error> {
        let path = self.path(pod);
        self.cgroups.create(&path)?;
        self.cgroups.set(&path, &limits(pod))
    }

    /// Lifts the pod's limits, so that containers in it can be resized in any order.
    pub fn widen(&self, pod: &Pod) -> Result<(), sys::Error> {
        let new = limits(pod);
        let none = Limits { cpu_quota: new.cpu_quota.map(|_| -1), cpu_period: new.cpu_period, memory: new.memory.map(|_| -1), ..Limits::default() };
        self.cgroups.set(&self.path(pod), &none)
    }

    /// Removes it; an orphan's class is not known.
    pub fn remove(&self, pod: &Pod, uid: &str) {
        let known = pod::spec(pod).containers.first().map(|_| resources::qos(pod));
        let classes = known.map_or_else(|| vec![Qos::Guaranteed, Qos::Burstable, Qos::BestEffort], |q| vec![q]);
        for class in classes {
            let path = self.path_of(class, uid);
            if self.cgroups.exists(&path)
                && let Err(error) = self.cgroups.remove(&path)
            {
                tracing::debug!("a cgroup stays: {error}");
            }
        }
    }

    /// The group's usage.
    pub fn stats(&self, pod: &Pod) -> Option<sys::cgroup::Stats> {
        self.cgroups.stats(&self.path(pod)).ok()
    }
}

fn limits(pod: &Pod) -> Limits {
    let requests = resources::pod_requests(pod);
    let limits = resources::pod_limits(pod);
    let shares = requests.get("cpu").map_or(0, |q| q.milli_value());
    Limits {
        cpu_shares: u64::try_from(resources::shares(shares)).ok(),
        cpu_quota: limits.get("cpu").map(|q| resources::quota(q.milli_value())),
        cpu_period: limits.get("cpu").map(|_| resources::PERIOD as u64),
        memory: limits.get("memory").map(|q| q.value()).filter(|v| *v > 0),
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::pod;

    #[test]
    fn a_pod_is_limited_when_all_its_containers_are() {
        let limited = |name: &str| serde_json::json!({"name": name, "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}});
        let both = limits(&pod(serde_json::json!({"containers": [limited("a"), limited("b")]})));
        assert_eq!((both.cpu_quota, both.memory, both.cpu_shares), (Some(100_000), Some(128 << 20), Some(1024)));
        let one = limits(&pod(serde_json::json!({"containers": [limited("a"), {"name": "b"}]})));
        assert_eq!((one.cpu_quota, one.memory), (None, None));
    }
}
