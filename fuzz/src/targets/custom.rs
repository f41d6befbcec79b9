//! Custom resources: definitions, their schemas, and what schemas do to objects.

use api::crd::{self, Schema, definition};
use api::field::Path;
use apiserver::custom::rules::{self, Rules};
use serde_json::{Value, json};

use super::Parts;

/// A definition, and the one before it.
pub fn definition(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(new) = parts.tree().filter(Value::is_object) else { return };
    let type_name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
    let clean = |mut definition: Value| {
        api::schema::normalize(type_name, &mut definition).ok()?;
        api::defaults::apply(crd::GROUP, "v1", "CustomResourceDefinition", &mut definition);
        Some(definition)
    };
    let _ = clean(crd::old::from_v1beta1(new.clone()));
    let Some(new) = clean(new) else { return };
    let _ = definition::create(&new);
    let _ = definition::warnings(&new, None);
    let _ = rules::check_definition(&new, None);
    let others = [&new];
    let plan = crd::conditions::plan(&new, &others);
    let mut settled = new.clone();
    plan.apply(&mut settled, "2026-01-02T03:04:05Z");
    let _ = definition::update_status(&settled);
    if let Some(old) = parts.tree().and_then(clean) {
        let _ = definition::update(&new, &old);
        let _ = definition::warnings(&new, Some(&old));
        let _ = rules::check_definition(&new, Some(&old));
    }
}

/// A schema, an object, and the object before it.
pub fn object(input: &[u8]) {
    let mut parts = Parts::of(input);
    // A schema is of the right types before anybody looks at it.
    let (Some(mut source), Some(mut object), old) = (parts.tree(), parts.tree(), parts.tree()) else { return };
    if api::schema::normalize_type(api::schema::props_type(), &mut source).is_err() {
        return;
    }
    let structural = crd::validate_structural(&Path::new("schema"), &source).is_empty();
    let schema = Schema::new(&source);
    crd::prune(&mut object, &schema, true);
    let mut again = object.clone();
    assert_eq!(crd::prune(&mut again, &schema, true), [""; 0], "nothing is left to be pruned");
    assert_eq!(again, object);
    crd::prune_nulls(&mut object, Some(&schema));
    crd::apply_defaults(&mut object, &schema);
    if structural {
        let mut again = object.clone();
        crd::apply_defaults(&mut again, &schema);
        assert_eq!(again, object, "defaults are the same a second time");
    }
    if let Some(metadata) = object.get_mut("metadata") {
        let _ = crd::object_meta(metadata);
    }
    let _ = crd::Embedded::Refuse.settle(&mut object, &schema);
    let _ = crd::validate(&object, &schema);
    let _ = crd::validate_lists(&object, &schema);
    let _ = crd::validate_update("", &object, old.as_ref(), &schema);
    if let Some(rules) = Rules::new(&source, true) {
        let _ = rules.validate(&object, None, drop);
        let _ = rules.validate(&object, old.as_ref(), drop);
    }
    let published = api::openapi::CustomKind {
        group: "example.com".into(),
        version: "v1".into(),
        entry: Default::default(),
        list_kind: "XList".into(),
        schema: Some(source),
        selectable: Vec::new(),
        preserve: false,
    };
    let bytes = api::openapi::v3_custom(&[published]);
    serde_json::from_slice::<Value>(&bytes).expect("JSON");
    let _ = api::apply::merge(api::topology::Node::Deduced, &json!({}), &object);
}
