//! Rules of jobs that are about indexes, exit codes and the status' coherence.

use super::at::{At, same};
use crate::field::FieldError;
use crate::seen::Seen;
use serde_json::Value;

/// Whether nothing of the job runs and nothing may start: then the template may be changed in part.
pub fn is_halted(job: &At<'_>) -> bool {
    let status = job.at("status");
    let settled = !status.at("startTime").set() || holds(&status, "Suspended");
    job.at("spec").at("suspend").yes() && settled && status.at("active").int_or(0) == 0
}

/// Another controller's name has a domain.
pub fn managed_by(at: &At<'_>) {
    if at.set() && at.filled().is_none() {
        at.required("");
        return;
    }
    if !at.set() {
        return;
    }
    match at.text().split_once('/') {
        None => at.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"),
        Some((domain, path)) => {
            if domain.is_empty() {
                at.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")");
            } else {
                crate::names::dns1123_subdomain(domain).into_iter().for_each(|e| at.invalid_as(domain, e));
            }
            if path.is_empty() {
                at.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")");
            }
        }
    }
    if at.text().len() > 63 {
        at.too_long(63);
    }
}

/// What holds for indexed jobs alone.
pub fn indexed(spec: &At<'_>) {
    let (completions, failed, parallelism) = (spec.at("completions"), spec.at("maxFailedIndexes"), spec.at("parallelism"));
    if failed.int_or(0) > 100_000 {
        failed.invalid("must be less than or equal to 100000");
    }
    if completions.int_or(0) > 100_000 && spec.at("backoffLimitPerIndex").set() {
        if !failed.set() {
            failed.required("must be specified when completions is above 100000");
        }
        for at in [&parallelism, &failed] {
            if at.int_or(0) > 10_000 {
                at.invalid("must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index");
            }
        }
    }
    let policy = spec.at("successPolicy");
    if policy.set() {
        success_policy(&policy, completions.int_or(0));
    }
}

fn success_policy(policy: &At<'_>, completions: i64) {
    let rules = policy.at("rules");
    if rules.is_empty() {
        rules.required("at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > 20 {
        rules.push(FieldError::too_many(&rules.path, rules.len(), 20));
    }
    for rule in rules.items() {
        let (indexes, count) = (rule.at("succeededIndexes"), rule.at("succeededCount"));
        if !indexes.set() && !count.set() {
            rule.required("at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = 0;
        if indexes.set() {
            if indexes.text().len() > 64 * 1024 {
                indexes.too_long(64 * 1024);
            }
            match intervals(indexes.text(), completions) {
                Ok(all) => total = all.iter().map(|(from, to)| to - from + 1).sum(),
                Err(e) => indexes.invalid(format!("error parsing succeededIndexes: {e}")),
            }
        }
        if let Some(n) = count.int() {
            count.nonnegative();
            if n > completions {
                count.invalid(format!("must be less than or equal to {completions} (the number of specified completions)"));
            }
            if indexes.set() && n > total {
                let why = format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)");
                count.invalid(why);
            }
        }
    }
}

/// Reads ranges of indexes strictly; the error is upstream's sentence.
fn intervals(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut all: Vec<(i64, i64)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = part.split('-').collect();
        if limits.len() > 2 {
            return Err(format!("the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"));
        }
        let number = |limit: &str| {
            let n: i64 = limit.parse().map_err(|_| format!("cannot convert string to integer for index: {limit:?}"))?;
            if n >= completions { Err(format!("too large index: {limit:?}")) } else { Ok(n) }
        };
        let from = number(limits[0])?;
        let to = limits.get(1).map_or(Ok(from), |limit| number(limit))?;
        if limits.len() > 1 && from >= to {
            return Err(format!("non-increasing order, previous: {from}, current: {to}"));
        }
        if let Some((_, last)) = all.last().filter(|(_, last)| *last >= from) {
            return Err(format!("non-increasing order, previous: {last}, current: {from}"));
        }
        all.push((from, to));
    }
    Ok(all)
}

/// A failure policy's rule about exit codes.
pub fn exit_codes(codes: &At<'_>, spec: &At<'_>) {
    match codes.at("operator").filled() {
        None => codes.at("operator").required("valid values: [\"In\" \"NotIn\"]"),
        Some(_) => codes.at("operator").one_of(&["In", "NotIn"]),
    }
    let container = codes.at("containerName");
    if container.set() {
        let template = spec.down(&["template", "spec"]);
        let mut known = template.at("containers").items().chain(template.at("initContainers").items());
        if !known.any(|c| c.at("name").text() == container.text()) {
            container.invalid("must be one of the container or initContainer names in the pod template");
        }
    }
    let values = codes.at("values");
    if values.is_empty() {
        values.invalid("at least one value is required");
    } else if values.len() > 255 {
        values.push(FieldError::too_many(&values.path, values.len(), 255));
    }
    let (mut seen, mut last, mut ordered) = (Seen::default(), None, true);
    for value in values.items() {
        let code = value.int_or(0);
        if code == 0 && codes.at("operator").text() == "In" {
            value.invalid("must not be 0 for the In operator");
        }
        if !seen.add(code) {
            value.duplicate();
        }
        ordered &= last.is_none_or(|last| last <= code);
        last = Some(code);
    }
    if !ordered {
        values.invalid("must be ordered");
    }
}

fn holds(status: &At<'_>, kind: &str) -> bool {
    status.at("conditions").items().any(|c| c.at("type").text() == kind && c.at("status").text() == "True")
}

/// A job's status after a change. Rules that came later than jobs are asked of what is changed alone.
pub fn status(job: &At<'_>, old: &At<'_>) {
    let (spec, now, before) = (job.at("spec"), job.at("status"), old.at("status"));
    for k in ["active", "succeeded", "failed", "ready", "terminating"] {
        now.at(k).nonnegative();
    }
    let uncounted = now.at("uncountedTerminatedPods");
    let mut seen = Seen::default();
    for uid in uncounted.at("succeeded").items().chain(uncounted.at("failed").items()) {
        if uid.text().is_empty() {
            uid.invalid("must not be empty");
        } else if !seen.add(uid.text()) {
            uid.duplicate();
        }
    }
    let changed = |field: &str| !same(now.at(field).v, before.at(field).v);
    let is = |kind: &str| holds(&now, kind);
    let flipped = |kind: &str| is(kind) != holds(&before, kind);
    let (complete, failed, met, target) = (is("Complete"), is("Failed"), is("SuccessCriteriaMet"), is("FailureTarget"));
    let finished = complete || failed;
    let ended = finished != (holds(&before, "Complete") || holds(&before, "Failed"));
    let conditions = now.at("conditions");
    let incoherent = |wrong: bool, why: &str| {
        if wrong {
            let mut e = FieldError::invalid(&conditions.path, Value::Null, why);
            e.bad_value = None;
            conditions.push(e);
        }
    };
    incoherent((flipped("Complete") || flipped("Failed")) && complete && failed, "cannot set Complete=True and Failed=true conditions");
    incoherent((flipped("Complete") || flipped("FailureTarget")) && complete && target, "cannot set Complete=True and FailureTarget=true conditions");
    ends(job, old, (complete, flipped("Complete")));
    incoherent((flipped("Failed") || changed("failedIndexes")) && failed && !target, "cannot set Failed=True condition without the FailureTarget=true condition");
    incoherent(
        (flipped("Complete") || flipped("SuccessCriteriaMet")) && complete && !met,
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    let (active, terminating, start) = (now.at("active"), now.at("terminating"), now.at("startTime"));
    if (ended || changed("active")) && finished && active.int_or(0) > 0 {
        active.invalid("active>0 is invalid for finished job");
    }
    let nothing_to_do = spec.at("suspend").yes() && spec.at("completions").int() == Some(0);
    if finished && ended && !start.set() && !nothing_to_do {
        start.required("startTime is required for finished job");
    }
    if (ended || changed("uncountedTerminatedPods")) && finished && !seen.is_empty() {
        uncounted.invalid("must be empty for finished job");
    }
    indexes(&spec, &now, changed("completedIndexes"), changed("failedIndexes"));
    if (ended || changed("terminating")) && finished && terminating.int_or(0) > 0 {
        terminating.invalid("terminating>0 is invalid for finished job");
    }
    if (changed("ready") || changed("active")) && now.at("ready").int_or(0) > active.int_or(0) {
        now.at("ready").invalid("cannot set more ready pods than active");
    }
    incoherent(met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    incoherent(met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        incoherent(holds(&before, kind) && !is(kind), &format!("cannot disable the terminal {kind}=True condition"));
    }
    incoherent(holds(&before, "SuccessCriteriaMet") && !met, "cannot disable the SuccessCriteriaMet=True condition");
    if now.at("failed").int_or(0) < before.at("failed").int_or(0) {
        now.at("failed").invalid_as(now.at("failed").int_or(0), "cannot decrease the failed counter");
    }
    // An elastic indexed job may have fewer indexes than before.
    let elastic = spec.at("completionMode").text() == "Indexed" && same(spec.at("completions").v, spec.at("parallelism").v);
    if !elastic && now.at("succeeded").int_or(0) < before.at("succeeded").int_or(0) {
        now.at("succeeded").invalid_as(now.at("succeeded").int_or(0), "cannot decrease the succeeded counter");
    }
    times(job, old);
}

/// When a job is complete.
fn ends(job: &At<'_>, old: &At<'_>, (complete, flipped): (bool, bool)) {
    let (now, before) = (job.at("status"), old.at("status"));
    let (start, end) = (now.at("startTime"), now.at("completionTime"));
    let (started, completed) = (!same(start.v, before.at("startTime").v), !same(end.v, before.at("completionTime").v));
    if flipped || completed {
        if end.set() && !complete {
            end.invalid("cannot set completionTime when there is no Complete=True condition");
        }
        if !end.set() && complete {
            end.required("completionTime is required for Complete jobs");
        }
    }
    let at = |time: &At<'_>| time.filled().and_then(crate::gotime::parse).map(|(seconds, _)| seconds);
    if (started || completed) && at(&end).zip(at(&start)).is_some_and(|(end, start)| end < start) {
        end.invalid("must be equal to or after `startTime`");
    }
}

/// What of its times may not change.
fn times(job: &At<'_>, old: &At<'_>) {
    let (spec, now, before) = (job.at("spec"), job.at("status"), old.at("status"));
    let (start, end) = (now.at("startTime"), now.at("completionTime"));
    let (started, completed) = (!same(start.v, before.at("startTime").v), !same(end.v, before.at("completionTime").v));
    if end.set() && before.at("completionTime").set() && completed {
        end.invalid("field is immutable");
    }
    let resumed = holds(&before, "Suspended")
        && now.at("conditions").items().any(|c| c.at("type").text() == "Suspended" && c.at("status").text() == "False");
    if started && before.at("startTime").set() && !resumed && !spec.at("suspend").yes() {
        start.invalid("field is immutable for unsuspended job once set");
    }
}

fn indexes(spec: &At<'_>, now: &At<'_>, completed_changed: bool, failed_changed: bool) {
    let (completed, failed) = (now.at("completedIndexes"), now.at("failedIndexes"));
    let completions = spec.at("completions").int();
    let read = |at: &At<'_>, word: &str, asked: bool| {
        let all = completions.map_or(Ok(Vec::new()), |most| intervals(at.text(), most));
        if let Err(e) = &all
            && asked
        {
            at.invalid(format!("error parsing {word}: {e}"));
        }
        all.unwrap_or_default()
    };
    let done = read(&completed, "completedIndexes", completed_changed);
    let lost = read(&failed, "failedIndexes", failed_changed && failed.set() && spec.at("backoffLimitPerIndex").set());
    if completed_changed && !completed.text().is_empty() && spec.at("completionMode").text() != "Indexed" {
        completed.invalid("cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if failed_changed && failed.set() && !spec.at("backoffLimitPerIndex").set() {
        failed.invalid("cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    let common = overlap(&done, &lost);
    if let Some((at, _)) = common.filter(|_| completed_changed || failed_changed) {
        failed.invalid(format!("failedIndexes and completedIndexes overlap at index: {at}"));
    }
}

/// The first range that two lists, both in order, have in common.
fn overlap(a: &[(i64, i64)], b: &[(i64, i64)]) -> Option<(i64, i64)> {
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let (from, to) = (x.0.max(y.0), x.1.min(y.1));
        if from <= to {
            return Some((from, to));
        }
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::at::Errors;
    use super::*;
    use serde_json::json;

    fn told(check: impl Fn(&At<'_>, &At<'_>), new: Value, old: Value) -> Vec<String> {
        let errs = Errors::default();
        check(&At::root(&new, &errs), &At::root(&old, &errs));
        errs.into_inner().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_status_is_coherent() {
        let spec = json!({"completions": 3, "completionMode": "Indexed", "parallelism": 2, "backoffLimitPerIndex": 1});
        let of = |new: Value, old: Value| told(status, json!({"spec": spec, "status": new}), json!({"spec": spec, "status": old}));
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let done = json!({"conditions": [condition("SuccessCriteriaMet"), condition("Complete")], "startTime": "2026-01-01T00:00:00Z",
            "completionTime": "2026-01-01T00:00:05Z", "succeeded": 3, "completedIndexes": "0-2"});
        assert_eq!(of(done.clone(), json!({"active": 1})), Vec::<String>::new());
        assert!(of(json!({}), done.clone()).iter().any(|e| e.contains("cannot disable the terminal Complete=True condition")));
        let failed = of(json!({"conditions": [condition("Failed")], "startTime": "2026-01-01T00:00:00Z"}), json!({}));
        assert_eq!(failed, ["status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition"]);
        assert_eq!(of(json!({"ready": 2, "active": 1}), json!({})), ["status.ready: Invalid value: 2: cannot set more ready pods than active"]);
        assert_eq!(
            of(json!({"completedIndexes": "0-1", "failedIndexes": "1,2"}), json!({})),
            ["status.failedIndexes: Invalid value: \"1,2\": failedIndexes and completedIndexes overlap at index: 1"]
        );
        assert!(of(json!({"completedIndexes": "0-7"}), json!({}))[0].contains("error parsing completedIndexes: too large index: \"7\""));
        assert!(of(json!({"failed": 1}), json!({"failed": 2}))[0].contains("cannot decrease the failed counter"));
        assert_eq!(of(json!({"completedIndexes": "7"}), json!({"completedIndexes": "7"})), Vec::<String>::new(), "what is old stays");
    }

    #[test]
    fn success_policies_fit_the_indexes() {
        let of = |rule: Value| {
            let spec = json!({"completions": 5, "successPolicy": {"rules": [rule]}});
            told(|at, _| indexed(at), spec, json!({}))
        };
        assert_eq!(of(json!({"succeededIndexes": "0,2-4", "succeededCount": 4})), Vec::<String>::new());
        assert!(of(json!({}))[0].contains("at least one of succeededCount or succeededIndexes must be specified"));
        assert!(of(json!({"succeededIndexes": "0,2-4", "succeededCount": 5}))[0].contains("must be less than or equal to 4 (the number of indexes"));
        assert!(of(json!({"succeededCount": 6}))[0].contains("must be less than or equal to 5 (the number of specified completions)"));
        for (indexes, why) in [("3,1", "non-increasing order, previous: 3, current: 1"), ("4-5", "too large index: \"5\""), ("x", "cannot convert string"),
            ("1-2-3", "at most two parts")]
        {
            assert!(of(json!({"succeededIndexes": indexes}))[0].contains(why), "{indexes}");
        }
    }

    #[test]
    fn only_a_halted_job_changes_its_template() {
        let halted = |spec: Value, status: Value| {
            let (job, errs) = (json!({"spec": spec, "status": status}), Errors::default());
            is_halted(&At::root(&job, &errs))
        };
        assert!(halted(json!({"suspend": true}), json!({})));
        assert!(!halted(json!({}), json!({})));
        assert!(!halted(json!({"suspend": true}), json!({"startTime": "2026-01-01T00:00:00Z"})));
        let suspended = json!([{"type": "Suspended", "status": "True"}]);
        assert!(halted(json!({"suspend": true}), json!({"startTime": "2026-01-01T00:00:00Z", "conditions": suspended})));
        assert!(!halted(json!({"suspend": true}), json!({"active": 1})));
    }
}
