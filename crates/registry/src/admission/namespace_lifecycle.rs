//! NamespaceLifecycle: objects live in namespaces that exist and are not going away; the system's
//! namespaces stay.

use api::status::Cause;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, request};
use crate::util::text;

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        if request::is_namespace(ctx) {
            let immortal = matches!(ctx.name.as_str(), "default" | "kube-system" | "kube-public");
            if attributes.operation == Operation::Delete && immortal {
                return Err(forbidden(attributes, None, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let review = ctx.resource.group == "authorization.k8s.io" && ctx.resource.plural == "localsubjectaccessreviews";
        if ctx.namespace.is_empty() || attributes.operation == Operation::Delete || review {
            return Ok(());
        }
        let namespace = request::namespace(ctx, &ctx.namespace).await?;
        if attributes.operation == Operation::Create && text(&namespace, "/status/phase") == "Terminating" {
            let why = format!("unable to create new content in namespace {} because it is being terminated", ctx.namespace);
            return Err(forbidden(attributes, Some(object), why).with_cause(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", ctx.namespace),
                field: "metadata.namespace".into(),
            }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{NAMESPACES, PODS};
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn terminating_and_missing() {
        let objects = Objects::new();
        objects.put(&NAMESPACES, json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}));
        objects.put(&NAMESPACES, json!({"metadata": {"name": "z"}, "status": {"phase": "Terminating"}}));
        let create = |namespace: &str| {
            let ctx = objects.ctx(&PODS, namespace, "", UserInfo::default());
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            block_on(NamespaceLifecycle.admit(&attributes, &mut json!({"metadata": {"name": "p"}})))
        };
        assert!(create("a").is_ok());
        assert_eq!(create("b").unwrap_err().message, "namespaces \"b\" not found");
        assert_eq!(
            create("z").unwrap_err().message,
            "pods \"p\" is forbidden: unable to create new content in namespace z because it is being terminated"
        );
        let ctx = objects.ctx(&NAMESPACES, "", "default", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Delete, old: None, options: &Value::Null };
        let refused = block_on(NamespaceLifecycle.admit(&attributes, &mut Value::Null)).unwrap_err();
        assert_eq!(refused.message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    }
}
