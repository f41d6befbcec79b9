//! How many replicas a metric asks for: pods that give no metric, or are not ready yet, are counted so
//! that they dampen a change and never turn it round. Pure. Amounts are thousandths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::pod::{Container, Pod};
use crate::pods;

/// One pod's metric.
#[derive(Clone, Debug, PartialEq)]
pub struct PodMetric {
    /// End of the time that it is of.
    pub at: Timestamp,
    pub window: SignedDuration,
    /// Thousandths.
    pub value: i64,
}

/// Metrics by pod.
pub type PodMetrics = BTreeMap<String, PodMetric>;

/// How far use may be from its target without a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    pub down: f64,
    pub up: f64,
}

impl Tolerances {
    fn within(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What all computations for a target share.
pub struct Pods<'a> {
    /// The pods that the target's selector selects.
    pub all: &'a [Arc<Pod>],
    pub now: Timestamp,
    pub cpu_initialization_period: SignedDuration,
    pub initial_readiness_delay: SignedDuration,
    pub tolerances: Tolerances,
}

/// A number of replicas, and what it was computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// Percent of what is requested, where that is the target.
    pub utilization: Option<i32>,
    /// Thousandths, a mean over the pods.
    pub usage: i64,
}

#[derive(Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn milli(quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> i64 {
    Quantity::parse(&quantity.0).map_or(0, |q| q.milli_value())
}

const NO_PODS: &str = "no pods returned by selector while calculating replica count";
const NO_METRICS: &str = "did not receive metrics for targeted pods (pods might be unready)";

impl Pods<'_> {
    fn group(&self, metrics: &PodMetrics, resource: &str) -> Groups {
        let mut groups = Groups::default();
        for pod in self.all {
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
                groups.ignored.insert(name);
            } else if pods::phase(pod) == "Pending" {
                groups.unready.insert(name);
            } else if let Some(metric) = metrics.get(&name) {
                if resource == "cpu" && self.starting(pod, metric) {
                    groups.unready.insert(name);
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.insert(name);
            }
        }
        groups
    }

    /// Whether the processor time of a pod tells of its start, not of its work.
    fn starting(&self, pod: &Pod, metric: &PodMetric) -> bool {
        let status = pod.status.as_ref();
        let condition = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
        let started = status.and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let (Some(condition), Some(started)) = (condition, started) else { return true };
        let unready = condition.status == "False";
        let changed = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        if started + self.cpu_initialization_period > self.now {
            // One whole window has to be measured since the pod became ready.
            unready || metric.at < changed + metric.window
        } else {
            // It has never been ready.
            unready && started + self.initial_readiness_delay > changed
        }
    }

    fn ready_count(&self) -> Result<i64, String> {
        if self.all.is_empty() {
            return Err(format!("unable to calculate ready pods: {NO_PODS}"));
        }
        Ok(self.all.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count() as i64)
    }

    /// A target in percent of what pods request.
    pub fn utilization(&self, current: i32, target: i32, resource: &str, container: &str, mut metrics: PodMetrics) -> Result<Proposal, String> {
        if self.all.is_empty() {
            return Err(NO_PODS.into());
        }
        let groups = self.group(&metrics, resource);
        metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
        if metrics.is_empty() {
            return Err(NO_METRICS.into());
        }
        let requests = self.all.iter().map(|p| Ok((p.name_any(), request(p, container, resource)?))).collect::<Result<BTreeMap<_, _>, String>>()?;
        let first = ratio_of_requests(&metrics, &requests, target)?;
        let missing = |name: &str| requests.get(name).copied().unwrap_or(0) * i64::from(target.max(100)) / 100;
        let replicas = self.settle(current, groups, metrics, first.0, &missing, &|m| ratio_of_requests(m, &requests, target).map(|r| r.0))?;
        Ok(Proposal { replicas, utilization: Some(first.1), usage: first.2 })
    }

    /// A target of so much a pod.
    pub fn average(&self, current: i32, target: i64, resource: &str, mut metrics: PodMetrics) -> Result<Proposal, String> {
        if self.all.is_empty() {
            return Err(NO_PODS.into());
        }
        let groups = self.group(&metrics, resource);
        metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
        if metrics.is_empty() {
            return Err(NO_METRICS.into());
        }
        let first = ratio_of_target(&metrics, target);
        let replicas = self.settle(current, groups, metrics, first.0, &|_| target, &|m| Ok(ratio_of_target(m, target).0))?;
        Ok(Proposal { replicas, utilization: None, usage: first.1 })
    }

    /// From the ratio of those that are ready to a number, with the others filled in.
    fn settle(
        &self,
        current: i32,
        groups: Groups,
        mut metrics: PodMetrics,
        ratio: f64,
        missing: &dyn Fn(&str) -> i64,
        again: &dyn Fn(&PodMetrics) -> Result<f64, String>,
    ) -> Result<i32, String> {
        let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            return Ok(if self.tolerances.within(ratio) { current } else { ceil(ratio * groups.ready as f64) });
        }
        let assumed = |value| PodMetric { at: self.now, window: SignedDuration::ZERO, value };
        // Fewer: who says nothing works as hard as is wanted. More: who says nothing, or is not ready, idles.
        if ratio < 1.0 {
            metrics.extend(groups.missing.iter().map(|name| (name.clone(), assumed(missing(name)))));
        } else if ratio > 1.0 {
            metrics.extend(groups.missing.iter().map(|name| (name.clone(), assumed(0))));
        }
        if up_with_unready {
            metrics.extend(groups.unready.iter().map(|name| (name.clone(), assumed(0))));
        }
        let new = again(&metrics)?;
        if self.tolerances.within(new) || ratio < 1.0 && new > 1.0 || ratio > 1.0 && new < 1.0 {
            return Ok(current);
        }
        let replicas = ceil(new * metrics.len() as f64);
        let turned = new < 1.0 && replicas > current || new > 1.0 && replicas < current;
        Ok(if turned { current } else { replicas })
    }

    /// A target for one value that all pods together bring about.
    pub fn value(&self, current: i32, target: i64, usage: i64) -> Result<Proposal, String> {
        let ratio = usage as f64 / target as f64;
        let replicas = match current {
            0 => ceil(ratio),
            _ if self.tolerances.within(ratio) => current,
            _ => ceil(ratio * self.ready_count()? as f64),
        };
        Ok(Proposal { replicas, utilization: None, usage })
    }

    /// A target for one value, divided by the replicas that there are.
    pub fn value_per_pod(&self, replicas: i32, target: i64, usage: i64) -> Proposal {
        let ratio = usage as f64 / (target as f64 * f64::from(replicas));
        let wanted = if self.tolerances.within(ratio) { replicas } else { ceil(usage as f64 / target as f64) };
        let mean = if usage == i64::MAX { usage } else { (usage as f64 / f64::from(replicas)).ceil() as i64 };
        Proposal { replicas: wanted, utilization: None, usage: mean }
    }
}

/// Rounds up; what is too large is the largest there is.
fn ceil(replicas: f64) -> i32 {
    replicas.ceil() as i32
}

/// The values of several series together.
pub fn sum(values: &[i64]) -> i64 {
    values.iter().fold(0, |sum: i64, v| sum.saturating_add(*v))
}

/// Ratio to the target, percent of the requests, mean use.
fn ratio_of_requests(metrics: &PodMetrics, requests: &BTreeMap<String, i64>, target: i32) -> Result<(f64, i32, i64), String> {
    let (mut used, mut requested, mut count) = (0i64, 0i64, 0i64);
    for (name, metric) in metrics {
        if let Some(request) = requests.get(name) {
            used += metric.value;
            requested += request;
            count += 1;
        }
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".into());
    }
    let percent = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
    Ok((f64::from(percent) / f64::from(target), percent, used / count))
}

/// Ratio to the target, mean use.
fn ratio_of_target(metrics: &PodMetrics, target: i64) -> (f64, i64) {
    let used: i64 = metrics.values().map(|m| m.value).sum();
    let mean = used / metrics.len().max(1) as i64;
    (mean as f64 / target as f64, mean)
}

/// What a pod, or one container of it, requests of a resource.
fn request(pod: &Pod, container: &str, resource: &str) -> Result<i64, String> {
    let name = pod.name_any();
    let Some(spec) = &pod.spec else { return Ok(0) };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers: Vec<&Container> = spec.containers.iter().chain(sidecars).collect();
    let of = |c: &Container| c.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource)).map(milli);
    if container.is_empty()
        && let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|r| !r.is_empty())
    {
        // KEP 2837: what the pod as a whole requests comes first.
        let own = whole.get(resource).map(milli);
        let sum = || containers.iter().filter_map(|c| of(c)).reduce(|a, b| a + b);
        return own.or_else(sum).ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"));
    }
    let needed = |c: &Container| of(c).ok_or_else(|| format!("missing request for {resource} in container {} of Pod {name}", c.name));
    if container.is_empty() {
        return containers.iter().map(|c| needed(c)).sum();
    }
    match containers.iter().find(|c| c.name == container) {
        Some(found) => needed(found),
        None => Err(format!("container {container} not found in Pod {name}")),
    }
}
