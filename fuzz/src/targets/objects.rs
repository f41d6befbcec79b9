//! What is done with objects of built-in kinds: defaults, validation, quota, selection by fields, printed columns.

use api::field_labels;

use super::{Parts, normal, now, resource_of};

/// An object, and another one that it is to replace.
pub fn validate(input: &[u8]) {
    let mut parts = Parts::of(input);
    let Some(mut object) = parts.tree() else { return };
    let Some(resource) = resource_of(&mut object) else { return };
    let Some(mut object) = normal(resource, object) else { return };
    let (group, kind) = (resource.group, resource.kind);
    api::defaults::apply(group, resource.version, kind, &mut object);
    let defaulted = object.clone();
    api::defaults::apply(group, resource.version, kind, &mut object);
    assert_eq!(object, defaulted, "defaults are the same a second time");
    let errors = api::validate::create(resource, &object);
    let _ = api::status::invalid(group, kind, "a", &errors).to_value();
    let old = parts.tree().and_then(|mut old| {
        std::ptr::eq(resource_of(&mut old)?, resource).then_some(())?;
        let mut old = normal(resource, old)?;
        api::defaults::apply(group, resource.version, kind, &mut old);
        Some(old)
    });
    let old = old.as_ref().unwrap_or(&object);
    let _ = api::validate::update(resource, &object, old);
    let _ = api::validate::update_status(resource, &object, old);
    for subresource in resource.subresources {
        let _ = api::validate::update_through(resource, subresource.name, &object, old);
    }
    if kind == "Namespace" {
        let _ = api::validate::namespace_finalize(&object, old);
    }
    let cells = api::table::row(group, kind, &object, now());
    assert_eq!(cells.len(), api::table::column_definitions(group, kind).as_array().map_or(0, Vec::len), "a cell for each column");
    let _ = api::table::row_conditions(group, kind, &object);
    let _ = api::quota::usage(group, resource.plural, &object, now().as_second());
    let _ = api::quota::in_scope(old, group, resource.plural, &object);
    for label in ["metadata.name", "spec.nodeName", "status.phase", "involvedObject.name", "type", "spec.unschedulable", "status.podIP"] {
        if let Ok(label) = field_labels::convert(group, resource.version, kind, label) {
            let _ = field_labels::get(group, kind, &object, &label);
        }
    }
}
