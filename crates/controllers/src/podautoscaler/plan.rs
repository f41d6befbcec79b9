//! One pass over one autoscaler: from its target's scale and the readings of its metrics to a number of
//! replicas, a status and events. Pure but for the memory, which comes in and goes out.

use std::sync::Arc;

use api::quantity::{Format, Quantity as Amount};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use reconcile::EventType;

use super::Settings;
use super::calculator::{PodMetrics, Pods, Proposal, Tolerances, sum};
use super::normalize::{Bounds, Memory};

use crate::pod::Pod;

/// What was read for one metric of the spec.
#[derive(Clone, Debug)]
pub enum Reading {
    /// Of each pod.
    Pods(PodMetrics),
    /// Of one object, in thousandths.
    Value(i64),
    /// Several series of one external metric, in thousandths.
    Values(Vec<i64>),
}

/// Why the target's pods cannot be told.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Reason of the event.
    pub event: &'static str,
    /// Reason and message of the condition.
    pub condition: (&'static str, String),
    pub message: String,
}

/// The scale of the target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    pub replicas: i32,
    pub status_replicas: i32,
    pub selector: String,
}

/// Everything that a pass looks at.
pub struct Input<'a> {
    pub hpa: &'a HorizontalPodAutoscaler,
    pub target: &'a Target,
    /// The pods that the target's selector selects.
    pub pods: Result<&'a [Arc<Pod>], Fault>,
    /// One a metric of the spec; empty when [`needs_metrics`] says no.
    pub readings: Vec<Result<Reading, String>>,
    pub settings: &'a Settings,
    pub now: Timestamp,
}

/// An event to be recorded.
pub type Event = (EventType, &'static str, String);

/// A change of the target's scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Rescale {
    pub from: i32,
    pub to: i32,
    pub reason: String,
}

/// What a pass comes to.
#[derive(Debug)]
pub struct Outcome {
    /// What the target is to be scaled to; [`Outcome::scaled`] is to be told of how that went.
    pub rescale: Option<Rescale>,
    pub status: HorizontalPodAutoscalerStatus,
    pub events: Vec<Event>,
}

fn minimum(hpa: &HorizontalPodAutoscaler) -> i32 {
    hpa.spec.min_replicas.unwrap_or(1)
}

/// Whether metrics matter: they do not for a target that is switched off or out of bounds.
pub fn needs_metrics(hpa: &HorizontalPodAutoscaler, target: &Target) -> bool {
    target.replicas != 0 && target.replicas <= hpa.spec.max_replicas && target.replicas >= minimum(hpa)
}

/// Sets a condition as upstream does: its time is that of the last change of its status.
pub fn set_condition(status: &mut HorizontalPodAutoscalerStatus, kind: &str, value: bool, why: (&str, &str), now: Timestamp) {
    let all = status.conditions.get_or_insert_default();
    let at = all.iter().position(|c| c.type_ == kind).unwrap_or_else(|| {
        all.push(HorizontalPodAutoscalerCondition { type_: kind.into(), ..Default::default() });
        all.len() - 1
    });
    let (condition, value) = (&mut all[at], if value { "True" } else { "False" });
    if condition.status != value {
        condition.last_transition_time = Some(Time(now));
    }
    condition.status = value.into();
    condition.reason = Some(why.0.into());
    condition.message = Some(why.1.into());
}

/// The status and event when the target's scale cannot be had.
pub fn no_scale(hpa: &HorizontalPodAutoscaler, why: &str, now: Timestamp) -> Outcome {
    let mut status = hpa.status.clone().unwrap_or_default();
    let message = format!("the HPA controller was unable to get the target's current scale: {why}");
    set_condition(&mut status, "AbleToScale", false, ("FailedGetScale", &message), now);
    Outcome { rescale: None, status, events: vec![(EventType::Warning, "FailedGetScale", why.to_string())] }
}

/// Plans a pass.
pub fn plan(input: &Input<'_>, memory: &mut Memory) -> Outcome {
    let (hpa, now) = (input.hpa, input.now);
    let (current, max, min) = (input.target.replicas, hpa.spec.max_replicas, minimum(hpa));
    let mut status = hpa.status.clone().unwrap_or_default();
    let mut events = Vec::new();
    set_condition(&mut status, "AbleToScale", true, ("SucceededGetScale", "the HPA controller was able to get the target's current scale"), now);
    memory.begin(current, now);

    let mut statuses = Vec::new();
    let mut rescale = None;
    if current == 0 {
        set_condition(&mut status, "ScalingActive", false, ("ScalingDisabled", "scaling is disabled since the replica count of the target is zero"), now);
        status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "ScaledToZero"));
    } else if current > max {
        rescale = Some((max, "Current number of replicas above Spec.MaxReplicas".to_string()));
    } else if current < min {
        rescale = Some((min, "Current number of replicas below Spec.MinReplicas".to_string()));
    } else {
        let found = best(input, &mut status, &mut statuses, &mut events);
        let Ok((wanted, metric)) = found else {
            // What was wanted last stands.
            let desired = status.desired_replicas;
            finish(&mut status, current, desired, statuses);
            return Outcome { rescale: None, status, events };
        };
        let wanted = wanted.max(0);
        let reason = if wanted > current { format!("{metric} above target") } else { "All metrics below target".to_string() };
        let bounds = Bounds { current, wanted, min, max };
        let window = input.settings.downscale_stabilization;
        let normalized = match &hpa.spec.behavior {
            None => memory.normalize(bounds, window, now),
            Some(behavior) => memory.normalize_with(behavior, bounds, window, now),
        };
        set_condition(&mut status, "AbleToScale", true, normalized.able, now);
        set_condition(&mut status, "ScalingLimited", normalized.limited.0, normalized.limited.1, now);
        if normalized.replicas != current {
            let reason = if wanted == current { String::new() } else { reason };
            rescale = Some((normalized.replicas, reason));
        }
    }
    let desired = rescale.as_ref().map_or(current, |(to, _)| *to);
    finish(&mut status, current, desired, statuses);
    let rescale = rescale.map(|(to, reason)| Rescale { from: current, to, reason });
    Outcome { rescale, status, events }
}

fn finish(status: &mut HorizontalPodAutoscalerStatus, current: i32, desired: i32, metrics: Vec<MetricStatus>) {
    status.current_replicas = Some(current);
    status.desired_replicas = desired;
    status.current_metrics = Some(metrics).filter(|m| !m.is_empty());
    // The controller leaves it out, as upstream's does.
    status.observed_generation = None;
}

impl Outcome {
    /// Takes in how the change of the target's scale went, and remembers it when it went well.
    pub fn scaled(&mut self, hpa: &HorizontalPodAutoscaler, result: Result<(), String>, memory: &mut Memory, now: Timestamp) {
        let Some(Rescale { from, to, reason }) = self.rescale.clone() else { return };
        match result {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {to}");
                set_condition(&mut self.status, "AbleToScale", true, ("SucceededRescale", &message), now);
                self.events.push((EventType::Normal, "SuccessfulRescale", format!("New size: {to}; reason: {reason}")));
                self.status.conditions.iter_mut().for_each(|c| c.retain(|c| c.type_ != "ScaledToZero"));
                self.status.last_scale_time = Some(Time(now));
                memory.scaled(hpa.spec.behavior.as_ref(), from, to, now);
            }
            Err(why) => {
                self.events.push((EventType::Warning, "FailedRescale", format!("New size: {to}; reason: {reason}; error: {why}")));
                let message = format!("the HPA controller was unable to update the target scale: {why}");
                set_condition(&mut self.status, "AbleToScale", false, ("FailedUpdateScale", &message), now);
                self.status.desired_replicas = hpa.status.as_ref().map_or(0, |s| s.desired_replicas);
            }
        }
    }
}

/// The largest number that a metric asks for, and that metric. `Err`: nothing is to be done.
fn best(
    input: &Input<'_>,
    status: &mut HorizontalPodAutoscalerStatus,
    statuses: &mut Vec<MetricStatus>,
    events: &mut Vec<Event>,
) -> Result<(i32, String), ()> {
    let now = input.now;
    let pods = match &input.pods {
        Ok(pods) => *pods,
        Err(fault) => {
            events.push((EventType::Warning, fault.event, fault.message.clone()));
            set_condition(status, "ScalingActive", false, (fault.condition.0, &fault.condition.1), now);
            events.push((EventType::Warning, "FailedComputeMetricsReplicas", fault.message.clone()));
            return Err(());
        }
    };
    let pods = Pods {
        all: pods,
        now,
        cpu_initialization_period: input.settings.cpu_initialization_period,
        initial_readiness_delay: input.settings.initial_readiness_delay,
        tolerances: tolerances(input),
    };
    let specs = input.hpa.spec.metrics.as_deref().unwrap_or_default();
    let (mut replicas, mut metric, mut invalid, mut first) = (0, String::new(), 0, None);
    for (i, spec) in specs.iter().enumerate() {
        let reading = input.readings.get(i).cloned().unwrap_or_else(|| Err("the metric was not read".into()));
        match evaluate(spec, reading, &pods, input.target) {
            Ok((proposal, name, current)) => {
                statuses.push(current);
                if replicas == 0 || proposal > replicas {
                    (replicas, metric) = (proposal, name);
                }
            }
            Err(wrong) => {
                // Its place stays, and is empty.
                statuses.push(MetricStatus::default());
                events.push((EventType::Warning, wrong.reason, wrong.cause.clone()));
                invalid += 1;
                first.get_or_insert(wrong);
            }
        }
    }
    if let Some(wrong) = &first
        && (invalid >= specs.len() || replicas < input.target.replicas)
    {
        let message = format!("the HPA was unable to compute the replica count: {}", wrong.cause);
        set_condition(status, "ScalingActive", false, (wrong.reason, &message), now);
        let text = format!("invalid metrics ({invalid} invalid out of {}), first error is: {}", specs.len(), wrong.error);
        events.push((EventType::Warning, "FailedComputeMetricsReplicas", text));
        return Err(());
    }
    let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
    set_condition(status, "ScalingActive", true, ("ValidMetricFound", &message), now);
    Ok((replicas, metric))
}

fn tolerances(input: &Input<'_>) -> Tolerances {
    let behavior = input.hpa.spec.behavior.as_ref();
    let own = |q: Option<&Quantity>| q.and_then(|q| Amount::parse(&q.0).ok()).map_or(input.settings.tolerance, |q| q.as_f64());
    Tolerances {
        down: own(behavior.and_then(|b| b.scale_down.as_ref()?.tolerance.as_ref())),
        up: own(behavior.and_then(|b| b.scale_up.as_ref()?.tolerance.as_ref())),
    }
}

/// A metric that does not tell.
struct Wrong {
    /// Reason of the condition and the event.
    reason: &'static str,
    cause: String,
    /// The cause as it stands in the sentence about all metrics.
    error: String,
}

type Evaluated = Result<(i32, String, MetricStatus), Wrong>;

fn milli(quantity: &Quantity) -> i64 {
    Amount::parse(&quantity.0).map_or(0, |q| q.milli_value())
}

fn quantity(milli: i64, format: Format) -> Option<Quantity> {
    Some(Quantity(Amount::new_milli(milli, format).canonical()))
}

fn wrong(reason: &'static str, cause: String, prefixes: &[String]) -> Wrong {
    let error = prefixes.iter().map(|p| format!("{p}: ")).collect::<String>() + &cause;
    Wrong { reason, cause, error }
}

fn evaluate(spec: &MetricSpec, reading: Result<Reading, String>, pods: &Pods<'_>, target: &Target) -> Evaluated {
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    if let ("Resource", Some(source)) = (spec.type_.as_str(), &spec.resource) {
        let failed = |cause| wrong("FailedGetResourceMetric", cause, &[format!("failed to get {} resource metric value", source.name)]);
        let (replicas, name, current) = resource(&source.target, &source.name, "", reading, pods, target).map_err(failed)?;
        status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
        return Ok((replicas, name, status));
    }
    if let ("ContainerResource", Some(source)) = (spec.type_.as_str(), &spec.container_resource) {
        let failed = |cause| wrong("FailedGetContainerResourceMetric", cause, &[format!("failed to get {} container metric value", source.container)]);
        let (replicas, name, current) = resource(&source.target, &source.name, &source.container, reading, pods, target).map_err(failed)?;
        status.container_resource = Some(ContainerResourceMetricStatus { container: source.container.clone(), name: source.name.clone(), current });
        return Ok((replicas, name, status));
    }
    if let ("Pods", Some(source)) = (spec.type_.as_str(), &spec.pods) {
        let failed = |cause| wrong("FailedGetPodsMetric", cause, &["failed to get pods metric value".into()]);
        let wanted = source.target.average_value.as_ref().map_or(0, milli);
        let proposal = metrics_of(reading).and_then(|m| pods.average(target.replicas, wanted, "", m)).map_err(failed)?;
        let current = MetricValueStatus { average_value: quantity(proposal.usage, Format::DecimalSI), ..Default::default() };
        status.pods = Some(PodsMetricStatus { current, metric: source.metric.clone() });
        return Ok((proposal.replicas, format!("pods metric {}", source.metric.name), status));
    }
    if let ("Object", Some(source)) = (spec.type_.as_str(), &spec.object) {
        let (t, name) = (&source.target, &source.metric.name);
        let failed = |prefixes: &[String]| {
            let all = [&["failed to get object metric value".to_string()], prefixes].concat();
            move |cause| wrong("FailedGetObjectMetric", cause, &all)
        };
        let (replicas, text, current) = match (t.type_.as_str(), &t.value, &t.average_value) {
            ("Value", Some(wanted), _) => {
                let p = value_of(reading).and_then(|v| pods.value(target.replicas, milli(wanted), v)).map_err(failed(&[]))?;
                let current = MetricValueStatus { value: quantity(p.usage, Format::DecimalSI), ..Default::default() };
                (p.replicas, format!("{} metric {name}", source.described_object.kind), current)
            }
            ("AverageValue", _, Some(wanted)) => {
                let value = value_of(reading).map_err(failed(&[format!("failed to get {name} object metric")]))?;
                let p = pods.value_per_pod(target.status_replicas, milli(wanted), value);
                let current = MetricValueStatus { average_value: quantity(p.usage, Format::DecimalSI), ..Default::default() };
                (p.replicas, format!("external metric {name}({})", go(source.metric.selector.as_ref())), current)
            }
            _ => return Err(failed(&[])("invalid object metric source: neither a value target nor an average value target was set".to_string())),
        };
        status.object = Some(ObjectMetricStatus { current, described_object: source.described_object.clone(), metric: source.metric.clone() });
        return Ok((replicas, text, status));
    }
    if let ("External", Some(source)) = (spec.type_.as_str(), &spec.external) {
        let (t, name) = (&source.target, &source.metric.name);
        let failed = |prefixes: &[String]| {
            let all = [&[format!("failed to get {name} external metric value")], prefixes].concat();
            move |cause| wrong("FailedGetExternalMetric", cause, &all)
        };
        let (replicas, current) = match (&t.average_value, &t.value) {
            (Some(wanted), _) => {
                let value = value_of(reading).map_err(failed(&[format!("failed to get {name} external metric")]))?;
                let p = pods.value_per_pod(target.status_replicas, milli(wanted), value);
                (p.replicas, MetricValueStatus { average_value: quantity(p.usage, Format::DecimalSI), ..Default::default() })
            }
            (None, Some(wanted)) => {
                let p = value_of(reading)
                    .and_then(|v| pods.value(target.replicas, milli(wanted), v))
                    .map_err(failed(&[format!("failed to get external metric {name}")]))?;
                (p.replicas, MetricValueStatus { value: quantity(p.usage, Format::DecimalSI), ..Default::default() })
            }
            _ => return Err(failed(&[])("invalid external metric source: neither a value target nor an average value target was set".to_string())),
        };
        status.external = Some(ExternalMetricStatus { current, metric: source.metric.clone() });
        return Ok((replicas, format!("external metric {name}({})", go(source.metric.selector.as_ref())), status));
    }
    Err(wrong("InvalidMetricSourceType", format!("unknown metric source type {:?}", spec.type_), &[]))
}

fn resource(
    wanted: &MetricTarget,
    name: &str,
    container: &str,
    reading: Result<Reading, String>,
    pods: &Pods<'_>,
    target: &Target,
) -> Result<(i32, String, MetricValueStatus), String> {
    let format = if name == "memory" { Format::BinarySI } else { Format::DecimalSI };
    if let Some(value) = &wanted.average_value {
        let found = metrics_of(reading).and_then(|m| pods.average(target.replicas, milli(value), name, m));
        let Proposal { replicas, usage, .. } = found.map_err(|e| format!("failed to get {name} usage: {e}"))?;
        return Ok((replicas, format!("{name} resource"), MetricValueStatus { average_value: quantity(usage, format), ..Default::default() }));
    }
    let Some(percent) = wanted.average_utilization else {
        return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
    };
    let found = metrics_of(reading).and_then(|m| pods.utilization(target.replicas, percent, name, container, m));
    let Proposal { replicas, utilization, usage } = found.map_err(|e| format!("failed to get {name} utilization: {e}"))?;
    let of = if container.is_empty() { "" } else { " container" };
    let current = MetricValueStatus { average_utilization: utilization, average_value: quantity(usage, format), value: None };
    Ok((replicas, format!("{name}{of} resource utilization (percentage of request)"), current))
}

fn metrics_of(reading: Result<Reading, String>) -> Result<PodMetrics, String> {
    match reading? {
        Reading::Pods(metrics) => Ok(metrics),
        _ => Err("the metric is not of pods".into()),
    }
}

fn value_of(reading: Result<Reading, String>) -> Result<i64, String> {
    match reading? {
        Reading::Value(value) => Ok(value),
        Reading::Values(values) => Ok(sum(&values)),
        Reading::Pods(_) => Err("the metric is of pods".into()),
    }
}

/// A selector as Go prints it.
pub fn go(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels: String = selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}: {v},")).collect();
    let expressions: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|e| format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},", e.key, e.operator, e.values.as_deref().unwrap_or_default().join(" ")))
        .collect();
    format!("&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}")
}
