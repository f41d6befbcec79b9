//! LimitRanger: default requests and limits, and their bounds, from a namespace's LimitRanges.

use api::field::aggregate;
use api::quantity::Quantity;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is};
use crate::podref::{Amounts, amounts, quantities, total};
use crate::util::{LIMIT_RANGES, items, map, object, text};

pub(super) struct LimitRanger;

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if attributes.operation != Operation::Create || !is(attributes, "", "pods") {
            return Ok(());
        }
        let ctx = attributes.ctx;
        for range in ctx.backend.reader.list(&LIMIT_RANGES, Some(&ctx.namespace)) {
            for limit in items(&range, "/spec/limits").filter(|l| text(l, "/type") == "Container") {
                set_defaults(pod, limit);
            }
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        let pod = is(attributes, "", "pods") && attributes.operation == Operation::Create;
        let claim = is(attributes, "", "persistentvolumeclaims");
        if !pod && !claim {
            return Ok(());
        }
        let ctx = attributes.ctx;
        let mut errors = Vec::new();
        for range in ctx.backend.reader.list(&LIMIT_RANGES, Some(&ctx.namespace)) {
            for limit in items(&range, "/spec/limits") {
                match text(limit, "/type") {
                    "Container" if pod => {
                        for container in items(object, "/spec/containers").chain(items(object, "/spec/initContainers")) {
                            check(limit, &amounts(container, "requests"), &amounts(container, "limits"), &mut errors);
                        }
                    }
                    "Pod" if pod => {
                        check(limit, &total(object, "requests"), &total(object, "limits"), &mut errors);
                    }
                    "PersistentVolumeClaim" if claim => {
                        let requests = amounts(&object["spec"], "requests");
                        check(limit, &requests, &requests, &mut errors);
                    }
                    _ => {}
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(forbidden(attributes, Some(object), aggregate(errors))) }
    }
}

fn set_defaults(pod: &mut Value, limit: &Value) {
    let mut notes = Vec::new();
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            for (from, to, what) in [("/defaultRequest", "requests", "request"), ("/default", "limits", "limit")] {
                let Some(defaults) = map(limit, from) else { continue };
                let resources = object(container, "resources");
                let mut amounts = resources.get(to).and_then(Value::as_object).cloned().unwrap_or_default();
                let mut set: Vec<&str> = Vec::new();
                for (k, v) in defaults {
                    if !amounts.contains_key(k) {
                        amounts.insert(k.clone(), v.clone());
                        set.push(k);
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                    resources.insert(to.to_owned(), amounts.into());
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        object(&mut pod["metadata"], "annotations").insert("kubernetes.io/limit-ranger".into(), note.into());
    }
}

fn check(limit: &Value, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    let kind = text(limit, "/type");
    for (name, least) in quantities(map(limit, "/min")) {
        let (head, amount) = (format!("minimum {name} usage per {kind} is "), least.canonical());
        match requests.get(&name) {
            None => errors.push(format!("{head}{amount}.  No request is specified")),
            Some(r) if *r < least => errors.push(format!("{head}{amount}, but request is {}", r.canonical())),
            Some(_) => match limits.get(&name) {
                Some(l) if *l < least => errors.push(format!("{head}{amount}, but limit is {}", l.canonical())),
                _ => {}
            },
        }
    }
    for (name, most) in quantities(map(limit, "/max")) {
        let (head, amount) = (format!("maximum {name} usage per {kind} is "), most.canonical());
        match limits.get(&name) {
            None => errors.push(format!("{head}{amount}.  No limit is specified")),
            Some(l) if *l > most => errors.push(format!("{head}{amount}, but limit is {}", l.canonical())),
            Some(_) => match requests.get(&name) {
                Some(r) if *r > most => errors.push(format!("{head}{amount}, but request is {}", r.canonical())),
                _ => {}
            },
        }
    }
    for (name, ratio) in quantities(map(limit, "/maxLimitRequestRatio")) {
        let head = format!("{name} max limit to request ratio per {kind} is {}", ratio.canonical());
        let positive = |q: Option<&Quantity>| q.map(Quantity::as_f64).filter(|v| *v > 0.0);
        match (positive(requests.get(&name)), positive(limits.get(&name))) {
            (None, _) => errors.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => errors.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(r), Some(l)) if l / r > ratio.as_f64() => errors.push(format!("{head}, but provided ratio is {:.6}", l / r)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn defaults_and_bounds() {
        let objects = Objects::new();
        objects.put(&LIMIT_RANGES, json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}, "min": {"cpu": "50m"}}]}}));
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        block_on(LimitRanger.admit(&attributes, &mut pod)).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["resources"], json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}));
        assert_eq!(
            pod["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        assert!(block_on(LimitRanger.validate(&attributes, Some(&pod))).is_ok());
        pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("2");
        assert_eq!(
            block_on(LimitRanger.validate(&attributes, Some(&pod))).unwrap_err().message,
            "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        );
    }
}
