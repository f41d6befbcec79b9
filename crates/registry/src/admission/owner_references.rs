//! OwnerReferencesPermissionEnforcement: who gives an object another owner could have deleted it too, and who lets it hold
//! its owner's deletion up may set the owner's finalizers.

use api::field::go_quote;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, AuthzAttributes, Decision, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is_sub, served};
use crate::util::{flag, items, text};

pub(super) struct OwnerReferencesPermissionEnforcement;

fn owners(object: &Value) -> Vec<&Value> {
    items(object, "/metadata/ownerReferences").collect()
}

/// The references that hold up their owners' deletion, and did not before.
fn newly_blocking<'a>(new: &'a Value, old: Option<&Value>) -> Vec<&'a Value> {
    let blocks = |r: &Value| flag(r, "/blockOwnerDeletion");
    let before = |r: &Value| old.is_some_and(|old| owners(old).iter().any(|o| o["uid"] == r["uid"] && blocks(o)));
    owners(new).into_iter().filter(|r| blocks(r) && !before(r)).collect()
}

impl OwnerReferencesPermissionEnforcement {
    fn check(&self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let question = |verb: &str| AuthzAttributes { user: ctx.user.clone(), verb: verb.to_owned(), resource_request: true, ..AuthzAttributes::default() };
        if attributes.operation != Operation::Create {
            let delete = AuthzAttributes {
                namespace: ctx.namespace.clone(),
                api_group: ctx.resource.group.to_owned(),
                api_version: ctx.resource.version.to_owned(),
                resource: ctx.resource.plural.to_owned(),
                subresource: ctx.subresource.clone(),
                name: ctx.name.clone(),
                ..question("delete")
            };
            let (decision, reason) = ctx.authorize(&delete);
            if decision != Decision::Allow {
                let why = format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>");
                return Err(forbidden(attributes, Some(object), why));
            }
        }
        let blocking = newly_blocking(object, attributes.old);
        let any = || "*".to_owned();
        let anything = AuthzAttributes { api_group: any(), api_version: any(), resource: any(), subresource: "finalizers".into(), name: any(), ..question("update") };
        if blocking.is_empty() || ctx.authorize(&anything).0 == Decision::Allow {
            return Ok(());
        }
        for reference in blocking {
            let (api_version, kind) = (text(reference, "/apiVersion"), text(reference, "/kind"));
            let Some(owner) = served(ctx, api_version, kind) else {
                let why = format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} Kind {kind}: no matches for kind {} in version {}",
                    go_quote(kind),
                    go_quote(api_version)
                );
                return Err(forbidden(attributes, Some(object), why));
            };
            let finalizers = AuthzAttributes {
                namespace: if owner.namespaced { ctx.namespace.clone() } else { String::new() },
                api_group: owner.group.to_owned(),
                api_version: owner.version.to_owned(),
                resource: owner.plural.to_owned(),
                subresource: "finalizers".into(),
                name: text(reference, "/name").to_owned(),
                ..question("update")
            };
            let (decision, reason) = ctx.authorize(&finalizers);
            if decision != Decision::Allow {
                let why = format!("cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>");
                return Err(forbidden(attributes, Some(object), why));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        // a pod's status cannot change them
        if is_sub(attributes, "", "pods", "status") || owners(object) == attributes.old.map(owners).unwrap_or_default() {
            return Ok(());
        }
        attributes.ctx.settled(|| self.check(attributes, object)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::{Authorizer, UserInfo};
    use serde_json::json;

    /// Allows what is on the list: verb, resource, subresource.
    struct Only(&'static [(&'static str, &'static str, &'static str)]);

    impl Authorizer for Only {
        fn authorize(&self, a: &AuthzAttributes) -> (Decision, String) {
            let listed = self.0.iter().any(|(verb, resource, sub)| a.verb == *verb && a.resource == *resource && a.subresource == *sub);
            if listed { (Decision::Allow, String::new()) } else { (Decision::NoOpinion, "no".into()) }
        }

        fn rules_for(&self, _: &UserInfo, _: &str) -> apiserver::Rules {
            apiserver::Rules::default()
        }
    }

    #[test]
    fn owners_are_set_by_those_who_may() {
        let objects = Objects::new();
        let pod = |block: bool, kind: &str| json!({"metadata": {"name": "p", "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "r", "uid": "u", "blockOwnerDeletion": block}]}});
        let ask = |may: &'static [(&'static str, &'static str, &'static str)], old: Option<Value>, new: Value| {
            let mut ctx = objects.ctx(&PODS, "a", "p", UserInfo::new("ann", &[]));
            ctx.backend.authorizer = Arc::new(Only(may));
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let attributes = Attributes { ctx: &ctx, operation, old: old.as_ref(), options: &Value::Null };
            block_on(OwnerReferencesPermissionEnforcement.validate(&attributes, Some(&new))).map_err(|e| e.message)
        };
        let none = || json!({"metadata": {"name": "p"}});
        ask(&[], None, pod(false, "ReplicaSet")).unwrap();
        ask(&[], Some(pod(true, "ReplicaSet")), pod(true, "ReplicaSet")).unwrap();
        assert_eq!(ask(&[], Some(none()), pod(false, "ReplicaSet")).unwrap_err(), "pods \"p\" is forbidden: cannot set an ownerRef on a resource you can't delete: no, <nil>");
        ask(&[("delete", "pods", "")], Some(none()), pod(false, "ReplicaSet")).unwrap();
        assert_eq!(
            ask(&[], None, pod(true, "ReplicaSet")).unwrap_err(),
            "pods \"p\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: no, <nil>"
        );
        ask(&[("update", "replicasets", "finalizers")], None, pod(true, "ReplicaSet")).unwrap();
        ask(&[("update", "*", "finalizers")], None, pod(true, "Nonsense")).unwrap();
        assert!(ask(&[], None, pod(true, "Nonsense")).unwrap_err().ends_with("Kind Nonsense: no matches for kind \"Nonsense\" in version \"apps/v1\""));
        // what held up already may go on
        ask(&[("delete", "pods", "")], Some(pod(true, "ReplicaSet")), {
            let mut more = pod(true, "ReplicaSet");
            more["metadata"]["ownerReferences"].as_array_mut().unwrap().push(json!({"uid": "v"}));
            more
        })
        .unwrap();
    }
}
