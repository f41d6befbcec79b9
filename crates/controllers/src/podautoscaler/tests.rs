//! Scenarios of the plan: what is wanted of metrics, pods, spec and past, and what comes of it.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use serde_json::{Value, json};

use super::Settings;
use super::calculator::{PodMetric, PodMetrics, Pods, Tolerances};
use super::normalize::{Bounds, Memory, Normalized};
use super::plan::{Fault, Input, Outcome, Reading, Target, needs_metrics, no_scale, plan};

use crate::pod::Pod;

const NOW: &str = "2026-01-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn secs(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n)
}

/// A pod that has been ready for an hour and requests one core.
fn pod(i: usize) -> Value {
    json!({"metadata": {"name": format!("p{i}"), "namespace": "n"},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"phase": "Running", "startTime": "2026-01-01T10:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T11:00:00Z"}]}})
}

fn pods(count: usize, change: impl Fn(usize, &mut Value)) -> Vec<Arc<Pod>> {
    let make = |i| {
        let mut value = pod(i);
        change(i, &mut value);
        Arc::new(serde_json::from_value(value).expect("a pod"))
    };
    (0..count).map(make).collect()
}

fn metrics(levels: &[i64]) -> PodMetrics {
    let metric = |value: &i64| PodMetric { at: now(), window: secs(60), value: *value };
    levels.iter().enumerate().map(|(i, v)| (format!("p{i}"), metric(v))).collect()
}

/// Replicas and percentage for a target in percent.
fn percent(pods: &[Arc<Pod>], current: i32, target: i32, levels: &[i64]) -> Result<(i32, i32), String> {
    let p = calculation(pods).utilization(current, target, "cpu", "", metrics(levels))?;
    Ok((p.replicas, p.utilization.expect("a percentage")))
}

fn calculation(pods: &[Arc<Pod>]) -> Pods<'_> {
    let tolerances = Tolerances { down: 0.1, up: 0.1 };
    Pods { all: pods, now: now(), cpu_initialization_period: secs(120), initial_readiness_delay: secs(10), tolerances }
}

fn unready(value: &mut Value) {
    value["status"]["conditions"][0]["status"] = "False".into();
    value["status"]["startTime"] = "2026-01-01T11:59:30Z".into();
    value["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T11:59:30Z".into();
}

#[test]
fn use_above_and_below_the_target() {
    let plain = |n| pods(n, |_, _| {});
    assert_eq!(percent(&plain(3), 3, 30, &[300, 500, 700]), Ok((5, 50)));
    assert_eq!(percent(&plain(5), 5, 50, &[100, 300, 500, 250, 250]), Ok((3, 28)));
    assert_eq!(percent(&plain(3), 3, 100, &[1010, 1030, 1020]), Ok((3, 102)), "within the tolerance");
    assert_eq!(percent(&plain(3), 3, 100, &[1110, 1110, 1110]), Ok((4, 111)), "just beyond it");
    assert_eq!(percent(&plain(4), 4, 100, &[4000, 9500, 3000, 7000, 3200, 2000]), Ok((24, 587)), "metrics of pods that are not the target's");
}

#[test]
fn pods_that_are_not_ready_dampen_growth() {
    let one = |change: fn(&mut Value)| {
        pods(3, move |i, v| {
            if i == 0 {
                change(v);
            }
        })
    };
    assert_eq!(percent(&one(unready), 3, 30, &[300, 500, 700]), Ok((4, 60)));
    assert_eq!(percent(&one(|v| v["status"]["phase"] = "Pending".into()), 3, 30, &[300, 500, 700]), Ok((4, 60)));
    // One that was ready before counts, whatever it is now.
    let was_ready = one(|v| v["status"]["conditions"][0]["status"] = "False".into());
    assert_eq!(percent(&was_ready, 3, 30, &[300, 500, 700]), Ok((5, 50)));
    // Ready for less than a window: what it used was its start.
    let just_ready = one(|v| {
        v["status"]["startTime"] = "2026-01-01T11:59:00Z".into();
        v["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T11:59:30Z".into();
    });
    assert_eq!(percent(&just_ready, 3, 30, &[900, 500, 700]), Ok((4, 60)));
    // On the way down nobody waits for them, and they do not hold on to anything.
    assert_eq!(percent(&one(unready), 3, 100, &[900, 100, 100]), Ok((1, 10)));
    // Deleted and failed pods are not there.
    assert_eq!(percent(&one(|v| v["metadata"]["deletionTimestamp"] = NOW.into()), 3, 50, &[9000, 500, 700]), Ok((3, 60)));
    assert_eq!(percent(&one(|v| v["status"]["phase"] = "Failed".into()), 3, 50, &[9000, 500, 700]), Ok((3, 60)));
    // Memory is used from the first moment.
    let p = pods(2, |_, v| {
        unready(v);
        v["spec"]["containers"][0]["resources"]["requests"]["memory"] = "1".into();
    });
    assert_eq!(calculation(&p).utilization(2, 50, "memory", "", metrics(&[1000, 1000])).map(|p| p.replicas), Ok(4));
}

#[test]
fn pods_without_metrics_never_turn_a_change_round() {
    let plain = |n| pods(n, |_, _| {});
    assert_eq!(percent(&plain(4), 4, 100, &[400, 95]), Ok((3, 24)), "down: as busy as they may be");
    assert_eq!(percent(&plain(4), 4, 50, &[1000, 1000]), Ok((4, 100)), "up: idle, so nothing is needed");
    assert_eq!(percent(&plain(3), 3, 30, &[900, 900]), Ok((6, 90)), "up: half of it is needed even so");
    let p = pods(3, |i, v| {
        if i == 0 {
            unready(v);
        }
    });
    assert_eq!(percent(&p, 3, 50, &[100, 450]), Ok((3, 45)), "the one that is missing might need more");
    assert_eq!(percent(&plain(2), 2, 120, &[200]).map(|r| r.0), Ok(2), "a target above what is requested is meant above it");
}

#[test]
fn nothing_can_be_said_without_pods_metrics_or_requests() {
    let plain = pods(1, |_, _| {});
    let error = |pods: &[Arc<Pod>], levels: &[i64]| percent(pods, 1, 50, levels).expect_err("nothing to say");
    assert_eq!(error(&[], &[1]), "no pods returned by selector while calculating replica count");
    assert_eq!(error(&pods(1, |_, v| unready(v)), &[1]), "did not receive metrics for targeted pods (pods might be unready)");
    let without = pods(1, |_, v| v["spec"]["containers"][0]["resources"] = json!({}));
    assert_eq!(error(&without, &[1]), "missing request for cpu in container c of Pod p0");
    let asked = |container| calculation(&plain).utilization(1, 50, "cpu", container, metrics(&[800])).map(|p| p.replicas);
    assert_eq!(asked("c"), Ok(2));
    assert_eq!(asked("d"), Err("container d not found in Pod p0".into()));
}

#[test]
fn requests_are_of_the_pod_or_of_its_containers_and_sidecars() {
    let of = |spec: Value, container: &str| {
        let p = pods(1, |_, v| v["spec"] = spec.clone());
        calculation(&p).utilization(1, 100, "cpu", container, metrics(&[1000])).map(|p| p.utilization.unwrap_or(0))
    };
    let container = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
    let mut sidecar = container("s", "3");
    sidecar["restartPolicy"] = "Always".into();
    let spec = json!({"containers": [container("a", "1")], "initContainers": [sidecar, container("i", "8")]});
    assert_eq!(of(spec.clone(), ""), Ok(25));
    assert_eq!(of(spec.clone(), "s"), Ok(33));
    let mut whole = spec;
    whole["resources"] = json!({"requests": {"cpu": "2"}});
    assert_eq!((of(whole.clone(), ""), of(whole.clone(), "a")), (Ok(50), Ok(100)));
    whole["resources"] = json!({"requests": {"memory": "2"}});
    assert_eq!(of(whole, ""), Ok(25));
}

#[test]
fn plain_amounts_of_pods_and_values_of_objects() {
    let p = pods(3, |_, _| {});
    let average = |current, target, levels: &[i64]| calculation(&p).average(current, target, "", metrics(levels)).map(|p| (p.replicas, p.usage));
    assert_eq!(average(3, 15_000, &[20_000, 10_000, 30_000]), Ok((4, 20_000)));
    assert_eq!(average(3, 15_000, &[15_000, 15_500, 14_000]), Ok((3, 14_833)));
    assert_eq!(average(3, 20_000, &[1_000]), Ok((3, 1_000)), "two say nothing and count as on target: 41/60 of 3, rounded up");
    let value = |current, target, usage| calculation(&p).value(current, target, usage).map(|p| p.replicas);
    assert_eq!((value(3, 15_000, 20_000), value(3, 15_000, 15_500), value(3, 20_000, 5_000)), (Ok(4), Ok(3), Ok(1)));
    assert_eq!(value(0, 10_000, 25_000), Ok(3), "from nothing the ratio itself counts");
    let half = pods(4, |i, v| v["status"]["conditions"][0]["status"] = if i < 2 { "True" } else { "False" }.into());
    assert_eq!(calculation(&half).value(4, 10_000, 30_000).map(|p| p.replicas), Ok(6), "three times those that are ready");
    let per_pod = |replicas, target, usage| {
        let p = calculation(&p).value_per_pod(replicas, target, usage);
        (p.replicas, p.usage)
    };
    assert_eq!(per_pod(3, 2_000, 8_600), (5, 2_867));
    assert_eq!(per_pod(3, 2_000, 6_100), (3, 2_034));
    assert_eq!(per_pod(3, 2_000, i64::MAX), (i32::MAX, i64::MAX));
}

fn bounds(current: i32, wanted: i32) -> Bounds {
    Bounds { current, wanted, min: 2, max: 30 }
}

fn summary(n: &Normalized) -> (i32, &str, bool, &str) {
    (n.replicas, n.able.0, n.limited.0, n.limited.1.0)
}

#[test]
fn without_a_behavior() {
    let step = |memory: &mut Memory, current, wanted, at| memory.normalize(bounds(current, wanted), secs(300), now() + secs(at));
    let fresh = |current, wanted| step(&mut Memory::default(), current, wanted, 0);
    assert_eq!(summary(&fresh(5, 7)), (7, "ReadyForNewScale", false, "DesiredWithinRange"));
    assert_eq!(summary(&fresh(5, 25)), (10, "ReadyForNewScale", true, "ScaleUpLimit"), "at most twice as many");
    assert_eq!(summary(&fresh(1, 25)), (4, "ReadyForNewScale", true, "ScaleUpLimit"), "or four");
    assert_eq!(summary(&fresh(20, 45)), (30, "ReadyForNewScale", true, "TooManyReplicas"));
    assert_eq!(summary(&fresh(5, 1)), (2, "ReadyForNewScale", true, "TooFewReplicas"));
    assert_eq!(summary(&fresh(15, 45)), (30, "ReadyForNewScale", true, "TooManyReplicas"), "twice as many is just what may be");
    for bound in [2, 30] {
        assert_eq!(summary(&fresh(16, bound)), (bound, "ReadyForNewScale", false, "DesiredWithinRange"));
    }
    let mut memory = Memory::default();
    memory.begin(6, now());
    assert_eq!(summary(&step(&mut memory, 6, 3, 10)), (6, "ScaleDownStabilized", false, "DesiredWithinRange"));
    assert_eq!(summary(&step(&mut memory, 6, 4, 100)), (6, "ScaleDownStabilized", false, "DesiredWithinRange"));
    assert_eq!(summary(&step(&mut memory, 6, 3, 301)), (4, "ScaleDownStabilized", false, "DesiredWithinRange"), "the first has grown old");
    assert_eq!(summary(&step(&mut memory, 4, 3, 602)), (3, "ReadyForNewScale", false, "DesiredWithinRange"));
}

fn behavior(value: Value) -> k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior {
    serde_json::from_value(value).expect("a behavior")
}

#[test]
fn policies_bound_how_fast_it_goes() {
    let up = |rules: Value, current, wanted, past: &[(i32, i64)]| {
        let behavior = behavior(json!({"scaleUp": rules}));
        let mut memory = Memory::default();
        past.iter().for_each(|(change, ago)| memory.scaled(Some(&behavior), 0, *change, now() - secs(*ago)));
        let n = memory.normalize_with(&behavior, bounds(current, wanted), secs(300), now());
        (n.replicas, n.limited.1.0)
    };
    let pods = |value, period| json!({"type": "Pods", "value": value, "periodSeconds": period});
    let percent = |value, period| json!({"type": "Percent", "value": value, "periodSeconds": period});
    assert_eq!(up(json!({"policies": [pods(3, 60)]}), 5, 20, &[]), (8, "ScaleUpLimit"));
    assert_eq!(up(json!({"policies": [pods(3, 60)]}), 5, 20, &[(2, 30)]), (6, "ScaleUpLimit"), "two of the three came within the period");
    assert_eq!(up(json!({"policies": [pods(3, 60)]}), 5, 20, &[(2, 90)]), (8, "ScaleUpLimit"), "those are long ago");
    assert_eq!(up(json!({"policies": [pods(3, 60)]}), 5, 20, &[(7, 30)]), (5, "ScaleUpLimit"), "never down for having been too fast");
    assert_eq!(up(json!({"policies": [percent(10, 60)]}), 5, 20, &[]), (6, "ScaleUpLimit"), "rounded up");
    assert_eq!(up(json!({"policies": [pods(3, 60), percent(100, 60)]}), 5, 20, &[]), (10, "ScaleUpLimit"), "the larger one by default");
    assert_eq!(up(json!({"selectPolicy": "Min", "policies": [pods(3, 60), percent(100, 60)]}), 5, 20, &[]), (8, "ScaleUpLimit"));
    assert_eq!(up(json!({"selectPolicy": "Disabled", "policies": [pods(3, 60)]}), 5, 20, &[]), (5, "ScaleUpLimit"));
    assert_eq!(up(json!({}), 5, 20, &[]), (10, "ScaleUpLimit"), "four pods or as many again");
    assert_eq!(up(json!({"policies": [percent(900, 60)]}), 5, 45, &[]), (30, "TooManyReplicas"));
    assert_eq!(up(json!({}), 5, 6, &[]), (6, "DesiredWithinRange"));
    assert_eq!(up(json!({"policies": [pods(3, 60)]}), 5, 8, &[]), (8, "DesiredWithinRange"), "as fast as may be");
    assert_eq!(up(json!({"policies": [pods(25, 60)]}), 5, 45, &[]), (30, "TooManyReplicas"), "as many as may be");

    let down = |rules: Value, current, wanted| {
        let n = Memory::default().normalize_with(&behavior(json!({"scaleDown": rules})), bounds(current, wanted), secs(0), now());
        (n.replicas, n.limited.1.0)
    };
    assert_eq!(down(json!({"policies": [pods(3, 60)]}), 20, 5), (17, "ScaleDownLimit"));
    assert_eq!(down(json!({"policies": [percent(50, 60)]}), 21, 5), (10, "ScaleDownLimit"));
    assert_eq!(down(json!({"policies": [pods(3, 60), percent(50, 60)]}), 20, 5), (10, "ScaleDownLimit"));
    assert_eq!(down(json!({"selectPolicy": "Min", "policies": [pods(3, 60), percent(50, 60)]}), 20, 5), (17, "ScaleDownLimit"));
    assert_eq!(down(json!({"selectPolicy": "Disabled", "policies": [pods(3, 60)]}), 20, 5), (20, "ScaleDownLimit"));
    assert_eq!(down(json!({}), 20, 1), (2, "TooFewReplicas"), "all at once by default");
    assert_eq!(down(json!({"policies": [pods(3, 60)]}), 20, 17), (17, "DesiredWithinRange"), "as fast as may be");
    assert_eq!(down(json!({"policies": [pods(18, 60)]}), 20, 1), (2, "TooFewReplicas"), "as few as may be");
    let limited = |wanted| Memory::default().normalize_with(&behavior(json!({"scaleUp": {"policies": [pods(3, 60)]}})), bounds(5, wanted), secs(0), now()).limited.0;
    assert!(limited(20) && !limited(6));
}

#[test]
fn windows_hold_back_both_ways() {
    let behavior = behavior(json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 120}}));
    let mut memory = Memory::default();
    let mut step = |current, wanted, at| {
        let n = memory.normalize_with(&behavior, bounds(current, wanted), secs(300), now() + secs(at));
        (n.replicas, n.able.0)
    };
    assert_eq!(step(10, 10, 0), (10, "ReadyForNewScale"));
    assert_eq!(step(10, 15, 30), (10, "ScaleUpStabilized"), "ten were enough a moment ago");
    assert_eq!(step(10, 14, 70), (14, "ReadyForNewScale"), "fifteen were wanted, fourteen are: the least of the last minute");
    assert_eq!(step(14, 5, 100), (14, "ScaleDownStabilized"), "the most of the last two minutes bounds it from above only");
    assert_eq!(step(14, 5, 195), (5, "ReadyForNewScale"));
}

fn autoscaler(spec: Value) -> HorizontalPodAutoscaler {
    let mut all = json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "minReplicas": 2, "maxReplicas": 6,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]});
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "h", "namespace": "n"}, "spec": all})).expect("an autoscaler")
}

fn target(replicas: i32) -> Target {
    Target { replicas, status_replicas: replicas, selector: "app=d".into() }
}

fn pass(hpa: &HorizontalPodAutoscaler, replicas: i32, readings: Vec<Result<Reading, String>>) -> Outcome {
    let chosen = pods(usize::try_from(replicas).unwrap_or(0), |_, _| {});
    let settings = Settings::default();
    let input = Input { hpa, target: &target(replicas), pods: Ok(&chosen), readings, settings: &settings, now: now() };
    plan(&input, &mut Memory::default())
}

fn used(levels: &[i64]) -> Result<Reading, String> {
    Ok(Reading::Pods(metrics(levels)))
}

fn condition(status: &HorizontalPodAutoscalerStatus, kind: &str) -> (String, String, String) {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).cloned().unwrap_or_default();
    (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
}

fn strings(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.into(), reason.into(), message.into())
}

#[test]
fn a_target_above_its_use_grows_and_says_why() {
    let hpa = autoscaler(json!({}));
    let mut outcome = pass(&hpa, 3, vec![used(&[900, 600, 600])]);
    let rescale = outcome.rescale.clone().expect("more are needed");
    assert_eq!((rescale.from, rescale.to, rescale.reason.as_str()), (3, 5, "cpu resource utilization (percentage of request) above target"));
    outcome.scaled(&hpa, Ok(()), &mut Memory::default(), now());
    let status = &outcome.status;
    assert_eq!((status.current_replicas, status.desired_replicas), (Some(3), 5));
    assert_eq!(status.last_scale_time.as_ref().map(|t| t.0), Some(now()));
    assert_eq!(condition(status, "AbleToScale"), strings("True", "SucceededRescale", "the HPA controller was able to update the target scale to 5"));
    let found = "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)";
    assert_eq!(condition(status, "ScalingActive"), strings("True", "ValidMetricFound", found));
    assert_eq!(condition(status, "ScalingLimited"), strings("False", "DesiredWithinRange", "the desired count is within the acceptable range"));
    assert_eq!(outcome.events.len(), 1);
    assert_eq!((outcome.events[0].1, outcome.events[0].2.as_str()), ("SuccessfulRescale", "New size: 5; reason: cpu resource utilization (percentage of request) above target"));
    let current = serde_json::to_value(&status.current_metrics).expect("a status");
    assert_eq!(current, json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 70, "averageValue": "700m"}}}]));
}

#[test]
fn a_failed_change_is_told_and_not_remembered() {
    let hpa = autoscaler(json!({}));
    let (mut outcome, mut memory) = (pass(&hpa, 3, vec![used(&[900, 600, 600])]), Memory::default());
    outcome.scaled(&hpa, Err("no".into()), &mut memory, now());
    assert_eq!(memory, Memory::default());
    assert_eq!(condition(&outcome.status, "AbleToScale"), strings("False", "FailedUpdateScale", "the HPA controller was unable to update the target scale: no"));
    let event = "New size: 5; reason: cpu resource utilization (percentage of request) above target; error: no";
    assert_eq!((outcome.events[0].1, outcome.events[0].2.as_str()), ("FailedRescale", event));
    assert_eq!((outcome.status.desired_replicas, outcome.status.last_scale_time), (0, None));
}

#[test]
fn what_is_as_wanted_stays() {
    let outcome = pass(&autoscaler(json!({})), 3, vec![used(&[500, 500, 500])]);
    assert_eq!((outcome.rescale, outcome.events, outcome.status.desired_replicas), (None, vec![], 3));
    assert_eq!(condition(&outcome.status, "AbleToScale").1, "ReadyForNewScale");
}

#[test]
fn bounds_come_before_metrics() {
    let hpa = autoscaler(json!({}));
    assert_eq!([0, 1, 2, 6, 7].map(|n| needs_metrics(&hpa, &target(n))), [false, false, true, true, false]);
    let rescale = |replicas| pass(&hpa, replicas, vec![]).rescale.map(|r| (r.to, r.reason));
    assert_eq!(rescale(8), Some((6, "Current number of replicas above Spec.MaxReplicas".into())));
    assert_eq!(rescale(1), Some((2, "Current number of replicas below Spec.MinReplicas".into())));
    let off = pass(&hpa, 0, vec![]);
    assert_eq!(off.rescale, None);
    assert_eq!(condition(&off.status, "ScalingActive"), strings("False", "ScalingDisabled", "scaling is disabled since the replica count of the target is zero"));
}

#[test]
fn an_invalid_metric_stops_shrinking_but_not_growing() {
    let pods_metric = json!({"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    let hpa = autoscaler(json!({"metrics": [pods_metric, cpu]}));
    let broken = || Err("unable to get metric q: gone".to_string());
    let grow = pass(&hpa, 3, vec![broken(), used(&[900, 900, 900])]);
    assert_eq!(grow.rescale.map(|r| r.to), Some(6));
    assert_eq!(grow.events.iter().map(|e| (e.1, e.2.as_str())).collect::<Vec<_>>(), [("FailedGetPodsMetric", "unable to get metric q: gone")]);
    let shrink = pass(&hpa, 6, vec![broken(), used(&[100; 6])]);
    assert_eq!(shrink.rescale, None);
    assert_eq!(condition(&shrink.status, "ScalingActive"), strings("False", "FailedGetPodsMetric", "the HPA was unable to compute the replica count: unable to get metric q: gone"));
    let text = "invalid metrics (1 invalid out of 2), first error is: failed to get pods metric value: unable to get metric q: gone";
    assert_eq!((shrink.events[1].1, shrink.events[1].2.as_str()), ("FailedComputeMetricsReplicas", text));
    assert_eq!(shrink.status.current_metrics.map(|m| m.len()), Some(2), "the place of the invalid one is kept");
}

#[test]
fn no_metrics_at_all_as_upstream_says_it() {
    let why = "unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    let outcome = pass(&autoscaler(json!({})), 3, vec![Err(why.into())]);
    let texts: Vec<_> = outcome.events.iter().map(|e| (e.1, e.2.clone())).collect();
    let all = format!("invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to get cpu utilization: {why}");
    assert_eq!(texts, [("FailedGetResourceMetric", format!("failed to get cpu utilization: {why}")), ("FailedComputeMetricsReplicas", all)]);
}

#[test]
fn the_largest_demand_wins_and_each_kind_of_metric_has_its_status() {
    let object = json!({"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"},
        "target": {"type": "Value", "value": "10"}}});
    let external = json!({"type": "External", "external": {"metric": {"name": "e", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "AverageValue", "averageValue": "4"}}});
    let container = json!({"type": "ContainerResource", "containerResource": {"name": "cpu", "container": "c", "target": {"type": "AverageValue", "averageValue": "500m"}}});
    let hpa = autoscaler(json!({"metrics": [object, external, container]}));
    let outcome = pass(&hpa, 3, vec![Ok(Reading::Value(11_000)), Ok(Reading::Values(vec![9_000, 11_000])), used(&[600, 600, 600])]);
    let rescale = outcome.rescale.expect("the external one wants five");
    let name = "external metric e(&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{},})";
    assert_eq!((rescale.to, rescale.reason), (5, format!("{name} above target")));
    let metrics = serde_json::to_value(&outcome.status.current_metrics).expect("a status");
    assert_eq!(metrics[0]["object"]["current"], json!({"value": "11"}));
    assert_eq!(metrics[1]["external"]["current"], json!({"averageValue": "6667m"}));
    assert_eq!(metrics[2]["containerResource"]["current"], json!({"averageValue": "600m"}));
}

#[test]
fn own_tolerances_count() {
    let hpa = autoscaler(json!({"behavior": {"scaleUp": {"tolerance": "500m"}, "scaleDown": {"stabilizationWindowSeconds": 0}}}));
    assert_eq!(pass(&hpa, 4, vec![used(&[700; 4])]).rescale, None, "70 % of 50 % is within half as much again");
    assert_eq!(pass(&hpa, 4, vec![used(&[800; 4])]).rescale.map(|r| r.to), Some(6));
    assert_eq!(pass(&hpa, 4, vec![used(&[350; 4])]).rescale.map(|r| r.to), Some(3));
}

#[test]
fn faults_of_the_target() {
    let hpa = autoscaler(json!({}));
    let message = "pods by selector a=b are controlled by multiple HPAs: [{h n} {i n}]".to_string();
    let fault = Fault { event: "AmbiguousSelector", condition: ("AmbiguousSelector", message.clone()), message: message.clone() };
    let settings = Settings::default();
    let input = Input { hpa: &hpa, target: &target(3), pods: Err(fault), readings: vec![], settings: &settings, now: now() };
    let outcome = plan(&input, &mut Memory::default());
    assert_eq!(condition(&outcome.status, "ScalingActive"), strings("False", "AmbiguousSelector", &message));
    assert_eq!(outcome.events.iter().map(|e| e.1).collect::<Vec<_>>(), ["AmbiguousSelector", "FailedComputeMetricsReplicas"]);
    let lost = no_scale(&hpa, "gone", now());
    assert_eq!(condition(&lost.status, "AbleToScale"), strings("False", "FailedGetScale", "the HPA controller was unable to get the target's current scale: gone"));
}

#[test]
fn a_condition_that_stays_keeps_its_time() {
    let mut hpa = autoscaler(json!({}));
    hpa.status = Some(pass(&hpa, 3, vec![used(&[500; 3])]).status);
    let before = hpa.status.clone().expect("a status");
    let chosen = pods(3, |_, _| {});
    let settings = Settings::default();
    let input = Input { hpa: &hpa, target: &target(3), pods: Ok(&chosen), readings: vec![used(&[500; 3])], settings: &settings, now: now() + secs(900) };
    let again = plan(&input, &mut Memory::default()).status;
    assert_eq!(again, before, "nothing changed, so nothing is to be written");
}

#[test]
fn the_first_minutes_of_a_pod_tell_nothing() {
    // Ready since, started at, and measured at, in seconds before now; whether the pod counts.
    let counts = |status: &str, ready: i64, started: i64, measured: i64| {
        let p = pods(1, |_, v| {
            v["status"]["conditions"] = json!([{"type": "Initialized", "status": "True", "lastTransitionTime": NOW},
                {"type": "Ready", "status": status, "lastTransitionTime": (now() - secs(ready)).to_string()}]);
            v["status"]["startTime"] = (now() - secs(started)).to_string().into();
        });
        let metric = PodMetric { at: now() - secs(measured), window: secs(60), value: 100 };
        let all: PodMetrics = [("p0".to_string(), metric)].into();
        calculation(&p).utilization(1, 50, "cpu", "", all).is_ok()
    };
    assert!(counts("True", 90, 100, 20), "it is young, and was measured for a whole window since it was ready");
    assert!(counts("True", 80, 100, 20), "to the second");
    assert!(!counts("True", 70, 100, 20));
    assert!(counts("True", 10, 120, 0), "it is no longer young: from 120 seconds on, ready or not");
    assert!(!counts("True", 10, 119, 0));
    assert!(!counts("False", 100, 110, 0), "young and not ready");
    assert!(!counts("False", 195, 200, 0), "it has not been ready: that was said within ten seconds of its start");
    assert!(counts("False", 190, 200, 0), "to the second");
    assert!(counts("False", 150, 200, 0), "it was ready once");
}

#[test]
fn changes_the_other_way_count_in_a_period() {
    let rules = behavior(json!({"scaleUp": {"policies": [{"type": "Pods", "value": 3, "periodSeconds": 60}]}, "scaleDown": {"policies": [{"type": "Pods", "value": 3, "periodSeconds": 60}]}}));
    let step = |past: &[(i32, i32, i64)], current, wanted| {
        let mut memory = Memory::default();
        past.iter().for_each(|(from, to, ago)| memory.scaled(Some(&rules), *from, *to, now() - secs(*ago)));
        memory.normalize_with(&rules, bounds(current, wanted), secs(0), now()).replicas
    };
    assert_eq!(step(&[(9, 7, 30)], 7, 20), 12, "from the nine that there were");
    assert_eq!(step(&[(5, 7, 30)], 7, 20), 8, "from the five that there were");
    assert_eq!(step(&[(5, 7, 30)], 20, 2), 15, "it had been eighteen");
    assert_eq!(step(&[(5, 7, 60)], 7, 20), 10, "a whole period ago");
    assert_eq!(step(&[(5, 6, 40), (6, 7, 30)], 7, 20), 8, "both");
    assert_eq!(step(&[(5, 7, 300), (5, 7, 30)], 7, 20), 8, "what is long past is forgotten");
}

/// Replicas for so much a pod, of which the first ones tell what they use. One more may be not ready yet.
fn amounts(current: i32, count: usize, levels: &[i64], one_pending: bool) -> i32 {
    let all = pods(count + usize::from(one_pending), |i, v| {
        if i == count {
            v["status"]["phase"] = "Pending".into();
        }
    });
    calculation(&all).average(current, 100, "", metrics(levels)).expect("a proposal").replicas
}

#[test]
fn idle_pods_bring_a_small_surplus_back_to_the_target() {
    // Four at 130 % are 5.2 pods' work; with a fifth that idles so far it is within the tolerance.
    assert_eq!(amounts(5, 4, &[130; 4], true), 5, "the fifth is not ready");
    assert_eq!(amounts(5, 5, &[130; 4], false), 5, "the fifth says nothing");
    assert_eq!(amounts(4, 4, &[130; 4], false), 6, "there is no fifth");
    // On target nobody is assumed to idle.
    assert_eq!((amounts(5, 4, &[100; 4], true), amounts(5, 5, &[100; 4], false)), (5, 5));
    let plain = pods(2, |_, _| {});
    assert_eq!(percent(&plain, 2, 50, &[500]), Ok((2, 50)), "nor to use all that it requests");
}

#[test]
fn assumptions_change_no_direction() {
    let plain = pods(2, |_, _| {});
    assert_eq!(percent(&plain, 2, 50, &[400]), Ok((2, 40)), "fewer by what is known, more if the other one works hard");
    assert_eq!(amounts(4, 4, &[150; 2], false), 4, "more by what is known, fewer if the others idle");
    // There are other numbers of pods than of replicas while a change is under way.
    assert_eq!(amounts(2, 5, &[60; 4], false), 2, "less use makes no more replicas");
    assert_eq!(amounts(9, 3, &[300; 2], false), 9, "more use makes no fewer");
}

#[test]
fn what_has_ended_uses_nothing() {
    let one_failed = pods(3, |i, v| {
        if i == 0 {
            v["status"]["phase"] = "Failed".into();
        }
    });
    assert_eq!(calculation(&one_failed).average(2, 100, "", metrics(&[9000, 100, 100])).map(|p| (p.replicas, p.usage)), Ok((2, 100)));
    let one_pending = pods(3, |i, v| {
        if i == 0 {
            v["status"]["phase"] = "Pending".into();
        }
    });
    assert_eq!(calculation(&one_pending).average(3, 100, "", metrics(&[9000, 50, 50])).map(|p| (p.replicas, p.usage)), Ok((1, 50)));
}

#[test]
fn at_its_minimum_a_target_may_grow() {
    let grown = pass(&autoscaler(json!({})), 2, vec![used(&[900, 900])]).rescale.expect("more are needed");
    assert_eq!((grown.from, grown.to), (2, 4));
}

#[test]
fn of_equal_demands_the_first_is_named_and_an_invalid_one_hides_none() {
    let cpu = |percent: i32| json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}});
    let queue = json!({"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "1"}}});
    let both = autoscaler(json!({"metrics": [queue, cpu(50)]}));
    let rescale = pass(&both, 3, vec![used(&[2000; 3]), used(&[1000; 3])]).rescale.expect("both want six");
    assert_eq!((rescale.to, rescale.reason.as_str()), (6, "pods metric q above target"));
    let steady = pass(&both, 3, vec![Err("gone".into()), used(&[500; 3])]);
    assert_eq!(condition(&steady.status, "ScalingActive").1, "ValidMetricFound", "what is as wanted is known all the same");
}

#[test]
fn each_kind_of_target_has_its_status() {
    let queue = json!({"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "11"}}});
    let object = json!({"type": "Object", "object": {"metric": {"name": "o"}, "describedObject": {"kind": "Service", "name": "s", "apiVersion": "v1"},
        "target": {"type": "AverageValue", "averageValue": "4"}}});
    let external = json!({"type": "External", "external": {"metric": {"name": "e"}, "target": {"type": "Value", "value": "10"}}});
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let hpa = autoscaler(json!({"metrics": [queue, object, external, memory]}));
    let gi = 1024 * 1024 * 1024 * 1000;
    let outcome = pass(&hpa, 3, vec![used(&[11_000; 3]), Ok(Reading::Value(12_000)), Ok(Reading::Values(vec![10_000])), used(&[gi; 3])]);
    assert_eq!((outcome.rescale, outcome.events), (None, vec![]), "all are on target");
    let metrics = serde_json::to_value(&outcome.status.current_metrics).expect("a status");
    assert_eq!(metrics[0]["pods"]["current"], json!({"averageValue": "11"}));
    assert_eq!(metrics[1]["object"]["current"], json!({"averageValue": "4"}));
    assert_eq!(metrics[2]["external"]["current"], json!({"value": "10"}));
    assert_eq!(metrics[3]["resource"]["current"], json!({"averageValue": "1Gi"}));
    // The same with more to do.
    let grows = |at: usize, reading: Result<Reading, String>| {
        let spec = serde_json::to_value(&hpa.spec.metrics).expect("metrics")[at].clone();
        pass(&autoscaler(json!({"metrics": [spec]})), 3, vec![reading]).rescale.map(|r| (r.to, r.reason))
    };
    assert_eq!(grows(1, Ok(Reading::Value(20_000))), Some((5, "external metric o(nil) above target".into())));
    assert_eq!(grows(2, Ok(Reading::Value(20_000))), Some((6, "external metric e(nil) above target".into())));
}
