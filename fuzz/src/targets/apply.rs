//! Server-side apply: who owns what, before and after.

use api::apply::{self, Target};
use api::crd;
use api::topology::Node;
use serde_json::{Value, json};

use super::{Parts, normal, resource_of};
use crate::targets::now;

/// The fields' owners, read and written, are the same.
fn owners_survive(object: &Value) {
    let fields = object.pointer("/metadata/managedFields");
    let owners = apply::decode(fields).expect("what was written can be read");
    let mut again = json!({"metadata": {}});
    apply::encode(&mut again, owners.clone());
    assert_eq!(apply::decode(again.pointer("/metadata/managedFields")), Ok(owners));
}

/// Whether a definition may have a schema, and its objects may be as this one is.
fn possible(schema: &Value, object: &Value) -> bool {
    let mut definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "conversion": {"strategy": "None"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
        "status": {"storedVersions": ["v1"]}});
    let type_name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
    if api::schema::normalize(type_name, &mut definition).is_err() || !crd::definition::create(&definition).is_empty() {
        return false;
    }
    let schema = crd::Schema::new(schema);
    crd::validate(object, &schema).is_empty() && crd::validate_lists(object, &schema).is_empty()
}

/// What is not `possible` needs only be survived.
fn run(target: &Target<'_>, possible: bool, live: Value, first: &Value, second: &Value) {
    let now = now().to_string();
    let live = match live.is_object() {
        true => {
            let mut live = live;
            apply::track_update(target, None, &mut live, "creator", &now);
            Some(live)
        }
        false => None,
    };
    let Ok(one) = apply::apply(target, live.as_ref(), first, "first", true, &now) else { return };
    owners_survive(&one);
    match apply::apply(target, Some(&one), first, "first", false, &now) {
        // of what nobody owns, something is taken to be there since before
        Ok(same) => assert!(same == one || !possible || one.pointer("/metadata/managedFields").is_none(), "applied a second time: {same} after {one}"),
        Err(conflict) => assert!(!possible, "an applier has no conflict with itself: {}", conflict.message),
    }
    // Another one takes over, then the first says nothing more.
    let Ok(two) = apply::apply(target, Some(&one), second, "second", true, &now) else { return };
    owners_survive(&two);
    if let Err(conflict) = apply::apply(target, Some(&two), first, "first", false, &now) {
        assert_eq!((conflict.code, conflict.reason.as_str()), (409, "Conflict"), "{}", conflict.message);
    }
    let mut updated = two.clone();
    apply::track_update(target, Some(&one), &mut updated, "updater", &now);
    owners_survive(&updated);
    apply::keep_times_if_unchanged(&two, &mut updated);
}

/// A live object and two configurations; of a built-in kind, or, after a fourth part, of a kind with that schema.
pub fn apply(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (live, first, second) = (parts.tree().unwrap_or_default(), parts.tree(), parts.tree().unwrap_or_default());
    let Some(mut first) = first else { return };
    match parts.tree() {
        Some(schema) if schema.is_object() => {
            let text = |k: &str| first.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (api_version, kind) = (text("apiVersion"), text("kind"));
            // What a path says is never empty.
            if api_version.is_empty() {
                return;
            }
            let possible = possible(&schema, &live);
            run(&Target::new(Node::CustomResource(&schema), &api_version, &kind, "", true), possible, live, &first, &second);
        }
        _ => {
            let Some(resource) = resource_of(&mut first) else { return };
            // A configuration is checked, and goes on as it was; what is live is in normal form.
            if normal(resource, first.clone()).is_none() || normal(resource, second.clone()).is_none() {
                return;
            }
            let live = normal(resource, live).unwrap_or_default();
            let api_version = resource.api_version();
            run(&Target::builtin(resource, &api_version, ""), true, live.clone(), &first, &second);
            run(&Target::new(Node::Deduced, &api_version, resource.kind, "", true), true, live, &first, &second);
        }
    }
}

/// Sets of fields as they are written: the laws of sets hold.
pub fn managed_fields(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (Some(a), Some(b)) = (parts.tree(), parts.tree()) else { return };
    let entries = json!([{"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": a}, b]);
    if let Ok(owners) = apply::decode(Some(&entries)) {
        let mut object = json!({"metadata": {}});
        apply::encode(&mut object, owners);
        owners_survive(&object);
    }
    let (Ok(a), Ok(b)) = (apply::Set::from_fields_v1(&a), apply::Set::from_fields_v1(&b)) else { return };
    let written = a.to_fields_v1();
    assert_eq!(apply::Set::from_fields_v1(&written).expect("what was written can be read"), a);
    let (union, both, only) = (a.union(&b), a.intersection(&b), a.difference(&b));
    assert_eq!(both.union(&only), a, "a is what it shares with b and what it does not");
    assert_eq!(union.difference(&b), only);
    assert_eq!(union.intersection(&a), a);
    assert!(only.intersection(&b).is_empty());
    for path in a.paths() {
        assert!(a.has(&path) && union.has(&path));
        let _ = apply::show_path(&path);
    }
    a.clone().subtract_recursively(&b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_of_custom_resources_is_possible() {
        let mut parts = Parts::of(include_bytes!("../../corpus/apply/custom"));
        let (live, _, _, schema) = (parts.tree(), parts.tree(), parts.tree(), parts.tree());
        let (live, schema) = (live.expect("an object"), schema.expect("a schema"));
        assert!(possible(&schema, &live) && !possible(&json!({"type": "array"}), &live) && !possible(&schema, &json!({"spec": {"set": [1]}})));
    }
}
