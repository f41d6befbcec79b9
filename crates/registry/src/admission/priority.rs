//! Priority: a pod's priority number comes from its priority class.

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is};
use crate::util::{PRIORITY_CLASSES, flag, number, object, text};

pub(super) struct Priority;

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") {
            return Ok(());
        }
        if let Some(old) = attributes.old {
            // What was computed once stays when a client leaves it out.
            for key in ["priority", "preemptionPolicy"] {
                if let Some(value) = old["spec"].get(key)
                    && pod["spec"].get(key).is_none()
                {
                    pod["spec"][key] = value.clone();
                }
            }
            return Ok(());
        }
        let reader = &attributes.ctx.backend.reader;
        let given = text(pod, "/spec/priorityClassName").to_owned();
        let class = if given.is_empty() {
            let classes = reader.list(&PRIORITY_CLASSES, None);
            classes.into_iter().filter(|c| flag(c, "/globalDefault")).min_by_key(|c| number(c, "/value"))
        } else {
            let class = reader.get(&PRIORITY_CLASSES, "", &given);
            Some(class.ok_or_else(|| {
                forbidden(attributes, Some(pod), format!("no PriorityClass with name {given} was found"))
            })?)
        };
        let value = class.as_ref().and_then(|c| number(c, "/value")).unwrap_or(0);
        let policy = match class.as_ref().map_or("", |c| text(c, "/preemptionPolicy")) {
            "" => "PreemptLowerPriority",
            policy => policy,
        };
        if number(pod, "/spec/priority").is_some_and(|p| p != value) {
            let given = number(pod, "/spec/priority").unwrap_or(0);
            return Err(forbidden(
                attributes,
                Some(pod),
                format!("the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"),
            ));
        }
        let asked = text(pod, "/spec/preemptionPolicy");
        if !asked.is_empty() && asked != policy {
            return Err(forbidden(
                attributes,
                Some(pod),
                format!("the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"),
            ));
        }
        let spec = object(pod, "spec");
        if let Some(class) = &class {
            spec.insert("priorityClassName".into(), class["metadata"]["name"].clone());
        }
        spec.insert("priority".into(), value.into());
        spec.insert("preemptionPolicy".into(), policy.into());
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, class: Option<&Value>) -> Result<(), Status> {
        let Some(class) = class.filter(|c| is(attributes, "scheduling.k8s.io", "priorityclasses") && flag(c, "/globalDefault")) else {
            return Ok(());
        };
        let classes = attributes.ctx.backend.reader.list(&PRIORITY_CLASSES, None);
        let name = text(class, "/metadata/name");
        match classes.iter().find(|c| flag(c, "/globalDefault") && text(c, "/metadata/name") != name) {
            Some(other) => {
                let other = text(other, "/metadata/name");
                let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
                Err(forbidden(attributes, Some(class), why))
            }
            None => Ok(()),
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
    fn priority_comes_from_the_class() {
        let objects = Objects::new();
        objects.put(&PRIORITY_CLASSES, json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"}));
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let admit = |spec: Value| {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
            block_on(Priority.admit(&attributes, &mut pod)).map(|()| pod["spec"].clone())
        };
        assert_eq!(admit(json!({})).unwrap(), json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let high = admit(json!({"priorityClassName": "high"})).unwrap();
        assert_eq!((&high["priority"], &high["preemptionPolicy"]), (&json!(1000), &json!("Never")));
        assert_eq!(
            admit(json!({"priorityClassName": "lost"})).unwrap_err().message,
            "pods \"p\" is forbidden: no PriorityClass with name lost was found"
        );
        assert!(admit(json!({"priority": 5})).is_err());
    }
}
