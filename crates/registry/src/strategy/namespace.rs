//! Namespaces: phase, the finalizer list of the specification, and `finalize`.

use apiserver::strategy::generic_prepare_update;
use apiserver::{Ctx, Strategy};
use serde_json::{Value, json};

use crate::util::{list, object, text};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The resource itself.
pub(crate) struct Namespaces;

impl Strategy for Namespaces {
    fn prepare_create(&self, _ctx: &Ctx, namespace: &mut Value) {
        object(namespace, "status");
        namespace["status"] = json!({"phase": "Active"});
        let finalizers = list(object(namespace, "spec"), "finalizers");
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
        label(namespace);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        keep(new, old, "spec", "finalizers");
        label(new);
    }

    fn mark_deleting(&self, _ctx: &Ctx, namespace: &mut Value) {
        object(namespace, "status").insert("phase".into(), "Terminating".into());
    }

    fn held(&self, namespace: &Value) -> bool {
        namespace.pointer("/spec/finalizers/0").is_some()
    }
}

/// `status`: a phase that is not named is that of a namespace that stays.
pub(crate) struct NamespaceStatus;

impl Strategy for NamespaceStatus {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        new["spec"] = old["spec"].clone();
        if text(new, "/status/phase").is_empty() {
            object(new, "status").insert("phase".into(), "Active".into());
        }
    }

    fn held(&self, namespace: &Value) -> bool {
        Namespaces.held(namespace)
    }
}

/// `finalize`: only the finalizer list changes; the last one gone, the namespace goes.
pub(crate) struct NamespaceFinalize;

impl Strategy for NamespaceFinalize {
    fn prepare_update(&self, _ctx: &Ctx, new: &mut Value, old: &Value) {
        let finalizers = new.pointer("/spec/finalizers").cloned();
        for key in ["status", "spec"] {
            match old.get(key) {
                Some(value) => new[key] = value.clone(),
                None => drop(new.as_object_mut().map(|n| n.remove(key))),
            }
        }
        match finalizers {
            Some(finalizers) => object(new, "spec").insert("finalizers".into(), finalizers),
            None => object(new, "spec").remove("finalizers"),
        };
    }

    fn held(&self, namespace: &Value) -> bool {
        Namespaces.held(namespace)
    }
}

fn label(namespace: &mut Value) {
    let name = text(namespace, "/metadata/name").to_owned();
    if !name.is_empty() {
        object(&mut namespace["metadata"], "labels").insert(NAME_LABEL.into(), name.into());
    }
}

fn keep(new: &mut Value, old: &Value, part: &str, key: &str) {
    match old[part].get(key) {
        Some(value) => object(new, part).insert(key.to_owned(), value.clone()),
        None => object(new, part).remove(key),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::NAMESPACES;
    use apiserver::UserInfo;

    #[test]
    fn life() {
        let objects = crate::testing::Objects::new();
        let ctx = objects.ctx(&NAMESPACES, "", "a", UserInfo::default());
        let mut namespace = json!({"metadata": {"name": "a"}});
        Namespaces.prepare_create(&ctx, &mut namespace);
        assert_eq!(namespace["spec"], json!({"finalizers": ["kubernetes"]}));
        assert_eq!(namespace["status"], json!({"phase": "Active"}));
        assert_eq!(namespace["metadata"]["labels"][NAME_LABEL], "a");
        Namespaces.mark_deleting(&ctx, &mut namespace);
        assert_eq!(namespace["status"]["phase"], "Terminating");
        assert!(Namespaces.held(&namespace));
        let mut done = namespace.clone();
        done["spec"] = json!({});
        NamespaceFinalize.prepare_update(&ctx, &mut done, &namespace);
        assert!(!Namespaces.held(&done));
    }
}
