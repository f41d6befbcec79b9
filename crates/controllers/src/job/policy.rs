//! The two policies of a job: what a pod's failure means, and when enough indexes have succeeded.

use k8s_openapi::api::batch::v1::{Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use kube::ResourceExt;

use super::indexes::Indexes;
use crate::pod::{ContainerStatus, Pod};
use crate::pods;

/// What the pod failure policy makes of a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts, as without a policy.
    Count,
    /// It counts for nothing.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The job has failed, with this message.
    FailJob(String),
}

impl Verdict {
    /// Whether the failure is added to the job's count.
    pub fn counts(&self) -> bool {
        *self != Verdict::Ignore
    }
}

/// Judges a failed pod by the first rule that matches it.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let status = pod.status.as_ref();
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    for (at, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let why = if let Some(codes) = &rule.on_exit_codes {
            let of_kind = |list: Option<&Vec<ContainerStatus>>| list.into_iter().flatten().find_map(|c| exit_code(c, codes).map(|e| (c.name.clone(), e)));
            let found = of_kind(status.and_then(|s| s.container_statuses.as_ref()))
                .or_else(|| of_kind(status.and_then(|s| s.init_container_statuses.as_ref())));
            found.map(|(container, code)| format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"))
        } else {
            let conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
            let mut patterns = conditions.filter(|c| {
                rule.on_pod_conditions.iter().flatten().any(|p| p.type_ == *c.type_ && *p.status.as_deref().unwrap_or("True") == *c.status)
            });
            patterns.next().map(|c| format!("Pod {namespace}/{name} has condition {}", c.type_))
        };
        match (why, rule.action.as_str()) {
            (None, _) => {}
            (Some(_), "Ignore") => return Verdict::Ignore,
            (Some(_), "FailIndex") => return Verdict::FailIndex,
            (Some(_), "Count") => return Verdict::Count,
            (Some(why), "FailJob") => return Verdict::FailJob(format!("{why} matching FailJob rule at index {at}")),
            // An action that nobody knows yet: upstream goes on to the next rule.
            (Some(_), _) => {}
        }
    }
    Verdict::Count
}

fn exit_code(container: &ContainerStatus, rule: &PodFailurePolicyOnExitCodesRequirement) -> Option<i32> {
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let named = rule.container_name.as_ref().is_none_or(|n| *n == container.name);
    let listed = match rule.operator.as_str() {
        "In" => rule.values.contains(&code),
        "NotIn" => !rule.values.contains(&code),
        _ => false,
    };
    (named && code != 0 && listed).then_some(code)
}

/// The message of the success policy's first rule that the succeeded indexes fulfil.
pub fn success(policy: Option<&SuccessPolicy>, completions: u32, done: &Indexes) -> Option<String> {
    if done.is_empty() {
        return None;
    }
    let fulfilled = |(indexes, count): (Option<&String>, Option<usize>)| match indexes {
        Some(text) => {
            let wanted = Indexes::parse(text, completions);
            let common = wanted.common(done);
            !wanted.is_empty() && (common == wanted.len() || count.is_some_and(|c| common >= c))
        }
        None => count.is_some_and(|c| done.len() >= c),
    };
    let rules = policy?.rules.iter().map(|r| (r.succeeded_indexes.as_ref(), r.succeeded_count.map(|c| c.max(0) as usize)));
    rules.into_iter().position(fulfilled).map(|at| format!("Matched rules at index {at}"))
}

/// Whether a pod is replaced only when it has ended, not already when it is being deleted.
pub fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a pod counts as failed.
pub fn has_failed(job: &Job, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => pod.metadata.deletion_timestamp.is_some() && !job.spec.as_ref().is_some_and(replaces_only_failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn judged(rules: Value, status: Value) -> Verdict {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": rules})).expect("a policy");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "a"}, "status": status})).expect("a pod");
        judge(Some(&policy), &pod)
    }

    fn exited(name: &str, code: i32) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}})
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = json!([
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [3, 42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [5]}},
            {"action": "Count", "onExitCodes": {"operator": "In", "values": [5]}},
        ]);
        let with = |c: Value| json!({"containerStatuses": [c]});
        assert_eq!(
            judged(rules.clone(), with(exited("main", 42))),
            Verdict::FailJob("Container main for pod a/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        assert_eq!(judged(rules.clone(), with(exited("side", 42))), Verdict::FailIndex);
        assert_eq!(judged(rules.clone(), with(exited("main", 5))), Verdict::Count);
        assert_eq!(judged(rules.clone(), with(exited("main", 0))), Verdict::Count, "success matches no rule, not even NotIn");
        let disrupted = json!({"containerStatuses": [exited("main", 42)], "conditions": [{"type": "DisruptionTarget", "status": "True"}]});
        assert_eq!(judged(rules.clone(), disrupted), Verdict::Ignore);
        let init = json!({"initContainerStatuses": [exited("main", 3)], "containerStatuses": [exited("other", 0)]});
        assert!(matches!(judged(rules, init), Verdict::FailJob(_)));
        let condition = json!([{"action": "FailJob", "onPodConditions": [{"type": "ConfigIssue", "status": "True"}]}]);
        let status = |s: &str| json!({"conditions": [{"type": "ConfigIssue", "status": s}]});
        assert_eq!(
            judged(condition.clone(), status("True")),
            Verdict::FailJob("Pod a/p has condition ConfigIssue matching FailJob rule at index 0".into())
        );
        assert_eq!(judged(condition, status("False")), Verdict::Count);
    }

    #[test]
    fn success_policies() {
        let met = |rules: Value, done: &str| {
            let policy: SuccessPolicy = serde_json::from_value(json!({"rules": rules})).expect("a policy");
            success(Some(&policy), 10, &Indexes::parse(done, 10))
        };
        let at = |n: usize| Some(format!("Matched rules at index {n}"));
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), "0,2,3"), at(0));
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3"}]), "0,2"), None);
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3", "succeededCount": 2}]), "0,2"), at(0));
        assert_eq!(met(json!([{"succeededIndexes": "0,2-3", "succeededCount": 2}]), "0,5,6"), None);
        assert_eq!(met(json!([{"succeededIndexes": "1"}, {"succeededCount": 2}]), "4,5"), at(1));
        assert_eq!(met(json!([{"succeededCount": 0}]), ""), None);
        assert_eq!(met(json!([{"succeededIndexes": "12"}]), "1"), None, "a rule of indexes that the job has not is never met");
        assert_eq!(success(None, 10, &Indexes::parse("0-9", 10)), None);
    }

    #[test]
    fn a_pod_that_is_deleted_has_failed_unless_it_succeeded() {
        let failed = |phase: &str, deleted: bool, policy: Option<&str>| {
            let job: Job = serde_json::from_value(json!({"metadata": {}, "spec": {"template": {}, "podReplacementPolicy": policy}})).expect("a job");
            let stamp = deleted.then_some("2026-01-01T00:00:00Z");
            let pod: Pod = serde_json::from_value(json!({"metadata": {"deletionTimestamp": stamp}, "status": {"phase": phase}})).expect("a pod");
            has_failed(&job, &pod)
        };
        assert!(failed("Failed", false, None) && failed("Running", true, None));
        assert!(!failed("Running", false, None) && !failed("Succeeded", true, None));
        assert!(!failed("Running", true, Some("Failed")), "it is one when it has ended");
    }
}
