//! Controllers of pods: deployments, replica sets, stateful sets, daemon sets,
//! replication controllers, jobs and cron jobs.

use super::at::{At, same};
use super::meta::{
    self, at_most_100_percent, int_or_percent, int_or_percent_value, label_selector, selects_everything, spec_unchanged_but,
};
use super::pod;
use crate::names;
use crate::seen::Seen;
use crate::selector::Labels;
use serde_json::Value;

/// The selector is there, well formed, and selects the template's pods.
fn selector_matches(spec: &At<'_>, word: &str, invalid: &str) {
    let selector = spec.at("selector");
    if !selector.set() {
        // which selects nothing
        selector.required("");
        let labels = spec.down(&["template", "metadata", "labels"]);
        labels.invalid("`selector` does not match template `labels`");
        return;
    }
    label_selector(&selector);
    if selects_everything(&selector) {
        selector.invalid(format!("empty selector is invalid for {word}"));
    }
    match Labels::from_label_selector(selector.v) {
        Err(_) => selector.invalid(invalid),
        Ok(s) => {
            let labels = spec.down(&["template", "metadata", "labels"]);
            if !s.is_empty() && !s.matches(labels.v) {
                labels.invalid("`selector` does not match template `labels`");
            }
        }
    }
}

/// What holds for pods that run for ever.
fn always_restarted(template: &At<'_>, kind: &str) {
    let s = template.at("spec");
    if s.at("restartPolicy").text() != "Always" {
        s.at("restartPolicy").not_supported(&["Always"]);
    }
    if s.at("activeDeadlineSeconds").set() {
        s.at("activeDeadlineSeconds").forbidden(format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// A deployment's spec.
pub fn deployment(spec: &At<'_>) {
    spec.at("replicas").nonnegative();
    selector_matches(spec, "deployment", "invalid label selector");
    let template = spec.at("template");
    pod::template(&template);
    always_restarted(&template, "ReplicaSet");
    let strategy = spec.at("strategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "Recreate" => {
            if rolling.set() {
                rolling.forbidden("may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            if rolling.set() {
                let (down, up) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
                int_or_percent(&down);
                int_or_percent(&up);
                if int_or_percent_value(down.v) == 0 && int_or_percent_value(up.v) == 0 {
                    down.invalid("may not be 0 when `maxSurge` is 0");
                }
                at_most_100_percent(&down);
            } else {
                rolling.required("this should be defaulted and never be nil");
            }
        }
        _ => strategy.not_supported(&["Recreate", "RollingUpdate"]),
    }
    spec.at("minReadySeconds").nonnegative();
    spec.at("revisionHistoryLimit").nonnegative();
    let deadline = spec.at("progressDeadlineSeconds");
    deadline.nonnegative();
    if deadline.int().is_some_and(|d| d <= spec.at("minReadySeconds").int_or(0)) {
        deadline.invalid("must be greater than minReadySeconds");
    }
}

/// A replica set's spec.
pub fn replica_set(spec: &At<'_>) {
    spec.at("replicas").nonnegative();
    spec.at("minReadySeconds").nonnegative();
    selector_matches(spec, "deployment", "invalid label selector");
    let template = spec.at("template");
    pod::template(&template);
    always_restarted(&template, "ReplicaSet");
}

/// A replication controller's spec.
pub fn replication_controller(spec: &At<'_>) {
    spec.at("minReadySeconds").nonnegative();
    let selector = spec.at("selector");
    if selector.is_empty() {
        selector.required("");
    }
    let replicas = spec.at("replicas");
    if !replicas.set() {
        replicas.required("");
    }
    replicas.nonnegative();
    let template = spec.at("template");
    if !template.set() {
        template.required("");
        return;
    }
    let labels = template.down(&["metadata", "labels"]);
    if !selector.is_empty() && !Labels::from_map(selector.v).matches(labels.v) {
        labels.invalid("`selector` does not match template `labels`");
    }
    pod::template(&template);
    always_restarted(&template, "ReplicationController");
}

/// A daemon set's spec.
pub fn daemon_set(spec: &At<'_>) {
    let selector = spec.at("selector");
    label_selector(&selector);
    let template = spec.at("template");
    let labels = template.down(&["metadata", "labels"]);
    if Labels::from_label_selector(selector.v).is_ok_and(|s| !s.matches(labels.v)) {
        labels.invalid("`selector` does not match template `labels`");
    }
    if selects_everything(&selector) {
        selector.invalid("empty selector is invalid for daemonset");
    }
    pod::template(&template);
    always_restarted(&template, "DaemonSet");
    spec.at("minReadySeconds").nonnegative();
    let strategy = spec.at("updateStrategy");
    match strategy.at("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            if rolling.set() {
                let (down, up) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
                for a in [&down, &up] {
                    int_or_percent(a);
                    at_most_100_percent(a);
                }
                match (int_or_percent_value(down.v) != 0, int_or_percent_value(up.v) != 0) {
                    (true, true) => up.invalid("may not be set when maxUnavailable is non-zero"),
                    (false, false) => down.required("cannot be 0 when maxSurge is 0"),
                    _ => {}
                }
            } else {
                rolling.required("");
            }
        }
        _ => strategy.not_supported(&["RollingUpdate", "OnDelete"]),
    }
    spec.at("revisionHistoryLimit").nonnegative();
}

/// A stateful set's spec. Names and claim templates of old ones are taken as they are.
pub fn stateful_set(spec: &At<'_>, new: bool) {
    let policy = spec.at("podManagementPolicy");
    match policy.text() {
        "" => policy.required(""),
        "OrderedReady" | "Parallel" => {}
        _ => policy.invalid("must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.at("updateStrategy");
    let rolling = strategy.at("rollingUpdate");
    match strategy.at("type").text() {
        "" => strategy.required(""),
        "OnDelete" => {
            if rolling.set() {
                rolling.invalid("only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            rolling.at("partition").nonnegative();
            let down = rolling.at("maxUnavailable");
            if down.set() {
                int_or_percent(&down);
                if int_or_percent_value(down.v) == 0 {
                    down.invalid("cannot be 0");
                }
                at_most_100_percent(&down);
            }
        }
        _ => strategy.invalid("must be 'RollingUpdate' or 'OnDelete'"),
    }
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    for k in ["whenDeleted", "whenScaled"] {
        retention.at(k).one_of_if_set(&["Retain", "Delete"]);
    }
    if new {
        spec.at("volumeClaimTemplates").items().for_each(|t| super::storage::claim_spec(&t.at("spec")));
        spec.at("serviceName").check_if_filled(names::dns1123_label);
    }
    spec.at("replicas").nonnegative();
    spec.at("minReadySeconds").nonnegative();
    spec.at("ordinals").at("start").named(spec.path.child("ordinals.start")).nonnegative();
    selector_matches(spec, "statefulset", "");
    // the claims that are made for each pod count as volumes of the template
    let template = spec.at("template");
    let with_claims = with_claim_volumes(template.v, spec.at("volumeClaimTemplates").v);
    pod::template(&At { v: &with_claims, path: template.path.clone(), errs: template.errs });
    always_restarted(&template, "StatefulSet");
}

fn with_claim_volumes(template: &Value, claims: &Value) -> Value {
    let mut t = template.clone();
    const NONE: &Value = &Value::String(String::new());
    let names: Vec<&Value> = claims.as_array().into_iter().flatten().map(|c| c.get("metadata").and_then(|m| m.get("name")).unwrap_or(NONE)).collect();
    if names.is_empty() {
        return t;
    }
    if let Some(spec) = t.get_mut("spec").and_then(Value::as_object_mut) {
        let own = spec.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        let claimed: Seen<&Value> = names.iter().copied().collect();
        let own = own.into_iter().filter(|v| v.get("name").is_none_or(|n| !claimed.has(&n)));
        let made = names.iter().map(|n| serde_json::json!({"name": n, "persistentVolumeClaim": {"claimName": n}}));
        let all: Value = made.chain(own).collect();
        spec.insert("volumes".to_owned(), all);
    }
    t
}

/// A change of a stateful set's spec.
pub fn stateful_set_update(new: &At<'_>, old: &At<'_>) {
    const MUTABLE: &[&str] = &[
        "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    if !spec_unchanged_but(new, old, MUTABLE) {
        new.forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

/// A job.
pub fn job(job: &At<'_>, old: Option<&At<'_>>) {
    let spec = job.at("spec");
    let selector = spec.at("selector");
    let labels = spec.down(&["template", "metadata", "labels"]);
    let parsed = Labels::from_label_selector(selector.v);
    if !spec.at("manualSelector").yes() && selector.set() {
        let (uid, name) = (job.down(&["metadata", "uid"]).text(), job.down(&["metadata", "name"]).text());
        // jobs of before have no labels with a domain
        const PREFIXED: [&str; 2] = ["batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"];
        let prefixed = old.is_none_or(|o| PREFIXED.iter().all(|k| o.down(&["spec", "template", "metadata", "labels"]).at(k).set()));
        let all = [("controller-uid", uid), ("job-name", name), (PREFIXED[0], uid), (PREFIXED[1], name)];
        let all = &all[..if prefixed { 4 } else { 2 }];
        for (k, v) in all {
            let label = labels.named(labels.path.key(k));
            let wanted = format!("must be '{v}'");
            match labels.v.get(k) {
                None => label.required(&wanted),
                Some(is) if is.as_str() != Some(v) => label.invalid(wanted),
                Some(_) => {}
            }
        }
        let expected: Value = all.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect::<serde_json::Map<_, _>>().into();
        if parsed.is_ok_and(|s| !s.matches(&expected)) {
            selector.invalid("`selector` not auto-generated");
        }
    }
    job_and_selector(&spec);
    if spec.at("completionMode").text() == "Indexed" && spec.at("completions").int_or(0) > 0 {
        let name = job.down(&["metadata", "name"]);
        let host = format!("{}-{}", name.text(), spec.at("completions").int_or(0) - 1);
        if !names::dns1123_label(&host).is_empty() {
            name.invalid_as(name.text(), format!("will not able to create pod with invalid DNS label: {host}"));
        }
    }
}

fn job_and_selector(spec: &At<'_>) {
    job_spec(spec);
    let selector = spec.at("selector");
    if selector.set() {
        label_selector(&selector);
    } else {
        selector.required("");
    }
    let labels = spec.down(&["template", "metadata", "labels"]);
    if !selector.set() || Labels::from_label_selector(selector.v).is_ok_and(|s| !s.matches(labels.v)) {
        labels.invalid("`selector` does not match template `labels`");
    }
}

fn job_spec(spec: &At<'_>) {
    for k in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished", "backoffLimitPerIndex", "maxFailedIndexes"]
    {
        spec.at(k).nonnegative();
    }
    let (per_index, max_failed) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"));
    if max_failed.set() && !per_index.set() {
        per_index.required("when maxFailedIndexes is specified");
    }
    let mode = spec.at("completionMode");
    mode.one_of_if_set(&["NonIndexed", "Indexed"]);
    let indexed = mode.text() == "Indexed";
    if indexed {
        if !spec.at("completions").set() {
            spec.at("completions").required("when completion mode is Indexed");
        }
        if spec.at("parallelism").int_or(0) > 100_000 {
            spec.at("parallelism").invalid("must be less than or equal to 100000 when completion mode is Indexed");
        }
        if let (Some(f), Some(c)) = (max_failed.int(), spec.at("completions").int())
            && f > c
        {
            max_failed.invalid("must be less than or equal to completions");
        }
        super::jobs::indexed(spec);
    } else {
        let plain = !mode.set() || mode.text() == "NonIndexed";
        for a in [&per_index, &max_failed].into_iter().filter(|a| plain && a.set()) {
            a.invalid("requires indexed completion mode");
        }
        if spec.at("successPolicy").set() {
            spec.at("successPolicy").invalid("requires indexed completion mode");
        }
    }
    super::jobs::managed_by(&spec.at("managedBy"));
    let failure = spec.at("podFailurePolicy");
    if failure.set() {
        failure_policy(&failure, spec);
    }
    let replacement = spec.at("podReplacementPolicy");
    if failure.set() {
        replacement.one_of_if_set(&["Failed"]);
    } else {
        replacement.one_of_if_set(&["Failed", "TerminatingOrFailed"]);
    }
    let template = spec.at("template");
    pod::template(&template);
    let restart = template.down(&["spec", "restartPolicy"]);
    match restart.text() {
        "Always" | "" => restart.required("valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if failure.set() => restart.invalid("only \"Never\" is supported when podFailurePolicy is specified"),
        "OnFailure" | "Never" => {}
        _ => restart.not_supported(&["OnFailure", "Never"]),
    }
}

fn failure_policy(at: &At<'_>, spec: &At<'_>) {
    let rules = at.at("rules");
    if rules.len() > 20 {
        rules.push(crate::field::FieldError::too_many(&rules.path, rules.len(), 20));
    }
    for r in rules.items() {
        let action = r.at("action");
        match action.text() {
            "" => action.required("valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !spec.at("backoffLimitPerIndex").set() => {
                action.invalid("requires the backoffLimitPerIndex to be set");
            }
            _ => action.one_of_if_set(&["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, conditions) = (r.at("onExitCodes"), r.at("onPodConditions"));
        let omitted = |detail: &str| {
            let mut e = crate::field::FieldError::invalid(&r.path, Value::Null, detail);
            e.bad_value = None;
            r.push(e);
        };
        if codes.set() {
            super::jobs::exit_codes(&codes, spec);
        }
        for c in conditions.items() {
            c.at("type").check(names::qualified_name);
            c.at("status").one_of(&["False", "True", "Unknown"]);
        }
        match (codes.set(), !conditions.is_empty()) {
            (true, true) => omitted("specifying both OnExitCodes and OnPodConditions is not supported"),
            (false, false) => omitted("specifying one of OnExitCodes and OnPodConditions is required"),
            _ => {}
        }
    }
}

/// What of a template's spec may not change while a job is halted.
fn fixed(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let Some(s) = spec.as_object_mut() else { return spec };
    for k in ["nodeSelector", "tolerations", "schedulingGates"] {
        s.remove(k);
    }
    if let Some(affinity) = s.get_mut("affinity").and_then(Value::as_object_mut) {
        affinity.remove("nodeAffinity");
        if affinity.is_empty() {
            s.remove("affinity");
        }
    }
    for list in ["containers", "initContainers"] {
        for c in s.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
            c.remove("resources");
        }
    }
    spec
}

/// A change of a job.
pub fn job_update(new: &At<'_>, old: &At<'_>) {
    let (spec, before) = (new.at("spec"), old.at("spec"));
    // once as a job, once as a change
    job(new, Some(old));
    job_and_selector(&spec);
    let indexed = spec.at("completionMode").text() == "Indexed";
    if !same(spec.at("completions").v, before.at("completions").v) {
        let equal = same(spec.at("completions").v, spec.at("parallelism").v);
        if !indexed {
            spec.at("completions").immutable(&before.at("completions"));
        } else if spec.at("completions").set() && !equal {
            spec.at("completions").invalid("can only be modified in tandem with spec.parallelism");
        }
    }
    spec.at("selector").immutable(&before.at("selector"));
    let halted = super::jobs::is_halted(old);
    let (template, old_template) = (spec.at("template"), before.at("template"));
    if !halted {
        template.immutable(&old_template);
    } else if !same(&fixed(template.at("spec").v), &fixed(old_template.at("spec").v)) {
        template.at("spec").invalid("field is immutable");
    }
    for k in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        spec.at(k).immutable(&before.at(k));
    }
}

/// A cron job's spec; of an old one, what it has already is taken as it is.
pub fn cron_job(spec: &At<'_>, old: Option<&At<'_>>) {
    let schedule = spec.at("schedule");
    let zone = spec.at("timeZone");
    match schedule.filled() {
        None => schedule.required(""),
        Some(s) => {
            if let Err(e) = crate::cron::parse(s) {
                schedule.invalid(e);
            }
            let allowed = old.is_some_and(|o| o.at("schedule").text().contains("TZ"));
            if s.contains("TZ") && !allowed {
                schedule.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
            } else if s.contains("TZ") && zone.set() {
                schedule.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule");
            }
        }
    }
    spec.at("startingDeadlineSeconds").nonnegative();
    if zone.set() && old.is_none_or(|o| !same(o.at("timeZone").v, zone.v)) {
        time_zone(&zone);
    }
    spec.at("concurrencyPolicy").one_of(&["Allow", "Forbid", "Replace"]);
    for k in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.at(k).nonnegative();
    }
    let template = spec.at("jobTemplate");
    meta::labels(&template.down(&["metadata", "labels"]).named(template.path.child("labels")));
    meta::annotations(&template.down(&["metadata", "annotations"]).named(template.path.child("annotations")));
    let job = template.at("spec");
    job_spec(&job);
    if job.at("manualSelector").yes() {
        job.at("manualSelector").not_supported(&["nil", "false"]);
    }
    if job.at("selector").set() {
        job.at("selector").invalid("`selector` will be auto-generated");
    }
}

fn time_zone(zone: &At<'_>) {
    let Some(name) = zone.filled() else {
        zone.invalid("timeZone must be nil or non-empty string");
        return;
    };
    let plain = |part: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
        !matches!(part, "." | "..") && !part.starts_with('-') && (1..=14).contains(&part.len()) && part.bytes().all(known)
    };
    if !name.split('/').all(plain) {
        zone.invalid(format!("unknown time zone {name}"));
        return;
    }
    if name.eq_ignore_ascii_case("local") {
        zone.invalid("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    }
    if name != "Local"
        && let Err(e) = crate::cron::zone(name)
    {
        zone.invalid(e);
    }
}

/// Collisions of names are counted, never forgotten.
pub fn collisions(status: &At<'_>, old: &At<'_>) {
    let (now, before) = (status.at("collisionCount"), old.at("collisionCount"));
    now.nonnegative();
    if before.set() && now.int_or(0) < before.int_or(0) || before.set() && !now.set() {
        now.invalid_as(now.int_or(0), "cannot be decremented");
    }
}

/// Counts in a controller's status: not negative, and parts not more than the whole.
pub fn status_counts(status: &At<'_>, whole: &str, parts: &[&str]) {
    for k in ["observedGeneration", whole].iter().chain(parts) {
        status.at(k).nonnegative();
    }
    let all = status.at(whole).int_or(0);
    for k in parts {
        if status.at(k).int_or(0) > all {
            status.at(k).invalid("cannot be greater than status.replicas");
        }
    }
    let available = status.at("availableReplicas");
    if parts.contains(&"availableReplicas") && available.int_or(0) > status.at("readyReplicas").int_or(0) {
        let of_set = if parts.contains(&"currentReplicas") { "status." } else { "" };
        available.invalid(format!("cannot be greater than {of_set}readyReplicas"));
    }
}
