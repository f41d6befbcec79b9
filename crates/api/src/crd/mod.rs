//! Custom resources, the pure part: definitions and their conditions, structural schemas, and what
//! a schema does with an object (pruning, defaulting, validation, columns).
//!
//! A definition is handled as its JSON tree; a schema is compiled once into a [`Schema`].

pub mod columns;
pub mod conditions;
pub mod definition;
mod formats;
mod lists;
pub mod old;
pub mod path;
mod prune;
pub mod schema;
mod structure;
#[cfg(test)]
mod tests;
mod value;

pub use lists::validate_lists;
pub use prune::{Embedded, apply_defaults, object_meta, prune, prune_nulls};
pub use schema::Schema;
pub use structure::validate_structural;
pub use value::{validate, validate_default, validate_update};

use crate::resources::{Custom, Resource};
use serde_json::Value;
use std::cmp::Ordering;

/// The group and plural of definitions themselves.
pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// Holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The text at a JSON pointer, or "".
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The items of the list at a JSON pointer.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The texts of the list at a JSON pointer.
pub fn texts(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a version of a definition is served as, by the names that were accepted.
pub fn resource(definition: &Value, version: &Value) -> &'static Resource {
    let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let row = Custom {
        group: text(definition, "/spec/group"),
        version: text(version, "/name"),
        kind: text(definition, "/status/acceptedNames/kind"),
        list_kind: text(definition, "/status/acceptedNames/listKind"),
        plural: text(definition, "/status/acceptedNames/plural"),
        singular: text(definition, "/status/acceptedNames/singular"),
        short_names: texts(definition, "/status/acceptedNames/shortNames"),
        categories: texts(definition, "/status/acceptedNames/categories"),
        namespaced: text(definition, "/spec/scope") == "Namespaced",
        status: version.pointer("/subresources/status").is_some(),
        scale: version.pointer("/subresources/scale").is_some(),
    };
    row.row()
}

/// Whether something is there and true.
pub(crate) fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// Compares versions as discovery orders them: `v2` over `v1`, releases over betas over alphas, then other names.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => Ordering::Greater,
        (None, Some(_)) => Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// `v1beta2` → (beta, 1, 2).
fn parse_version(text: &str) -> Option<(u8, u64, u64)> {
    let rest = text.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = whole(&rest[..digits])?;
    let (stage, minor) = match &rest[digits..] {
        "" => return Some((2, major, 0)),
        r if r.starts_with("alpha") => (0, &r[5..]),
        r if r.starts_with("beta") => (1, &r[4..]),
        _ => return None,
    };
    Some((stage, major, whole(minor)?))
}

fn whole(text: &str) -> Option<u64> {
    if text.starts_with('0') { None } else { text.parse().ok() }
}
