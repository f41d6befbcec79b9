//! `pods/binding`: a request that changes a pod without being one.

use api::field::{FieldError, Path};
use api::status;
use apiserver::types::Status;
use apiserver::{Creater, Ctx};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::pod::set_condition;
use crate::util::{PODS, map, number, object, text};

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// The scheduler's decision: the pod gets its node.
pub(crate) struct Binding;

#[async_trait]
impl Creater for Binding {
    async fn create(&self, ctx: &Ctx, binding: Value) -> Result<Value, Status> {
        // `POST …/bindings` names the pod in the body only.
        let name = if ctx.name.is_empty() { text(&binding, "/metadata/name") } else { &ctx.name };
        if name != text(&binding, "/metadata/name") {
            return Err(status::bad_request("name in URL does not match name in Binding object"));
        }
        let mut errors = Vec::new();
        let kind = text(&binding, "/target/kind");
        if !matches!(kind, "" | "Node") {
            errors.push(FieldError::not_supported(&Path::new("target.kind"), kind, &["Node", "<empty>"]));
        }
        let node = text(&binding, "/target/name");
        if node.is_empty() {
            errors.push(FieldError::required(&Path::new("target.name"), ""));
        }
        if !errors.is_empty() {
            return Err(status::invalid("", "Binding", name, &errors));
        }
        let conflict = |why: String| Err(status::conflict("", "pods/binding", name, &why));
        let now = ctx.now_string();
        let mut assign = |pod: &mut Value| {
            for (key, what) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
                let (wanted, actual) = (text(&binding, &format!("/metadata/{key}")), text(pod, &format!("/metadata/{key}")));
                if !wanted.is_empty() && wanted != actual {
                    let why = status::failed_precondition(&format!("/pods/{}/{name}", ctx.namespace), what, wanted, actual);
                    return Err(status::conflict("", "pods", name, &why));
                }
            }
            if pod.pointer("/metadata/deletionTimestamp").is_some() {
                return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            let current = text(pod, "/spec/nodeName");
            if !current.is_empty() {
                return conflict(format!("pod {name} is already assigned to node {current:?}"));
            }
            if pod.pointer("/spec/schedulingGates/0").is_some() {
                return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            object(pod, "spec").insert("nodeName".into(), node.into());
            object(pod, "status").remove("nominatedNodeName");
            for key in ["annotations", "labels"] {
                for (k, v) in map(&binding, &format!("/metadata/{key}")).into_iter().flatten() {
                    object(&mut pod["metadata"], key).insert(k.clone(), v.clone());
                }
            }
            let generation = number(pod, "/metadata/generation");
            let mut condition = json!({"type": "PodScheduled", "status": "True"});
            if let Some(generation) = generation {
                condition["observedGeneration"] = generation.into();
            }
            set_condition(pod, condition, &now);
            Ok(())
        };
        if ctx.dry_run {
            let mut pod = ctx.backend.writer.get(&PODS, &ctx.namespace, name).await?;
            assign(&mut pod)?;
        } else {
            ctx.backend.writer.modify_unowned(&PODS, &ctx.namespace, name, &mut assign).await?;
        }
        Ok(success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::{Reader, UserInfo};

    #[test]
    fn binds_once() {
        let objects = Objects::new();
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {}}));
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let bind = |node: &str| block_on(Binding.create(&ctx, json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}})));
        bind("n1").unwrap();
        let pod = Reader::get(&*objects, &PODS, "a", "p").unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        let again = bind("n2").unwrap_err();
        assert_eq!(
            again.message,
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
        );
    }

}
