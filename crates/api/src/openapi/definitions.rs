//! Types of the fact table as OpenAPI schemas, in the words of version 2 or 3.

use super::descriptions::Descriptions;
use crate::facts::{self, Field, Presence, Ty, Type};
use crate::resources::{self, groups};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Which OpenAPI version to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V2,
    V3,
}

impl Dialect {
    pub fn reference(self, name: &str) -> Value {
        match self {
            Dialect::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Dialect::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Types with a schema of their own that are no structs here.
fn special(ty: Ty) -> Option<String> {
    Some(match ty {
        Ty::Time => format!("{META}.Time"),
        Ty::MicroTime => format!("{META}.MicroTime"),
        Ty::Duration => format!("{META}.Duration"),
        Ty::FieldsV1 => format!("{META}.FieldsV1"),
        Ty::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity".into(),
        Ty::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString".into(),
        Ty::RawExtension => "io.k8s.apimachinery.pkg.runtime.RawExtension".into(),
        Ty::Json => format!("{CRD}.JSON"),
        Ty::PropsOrArray => format!("{CRD}.JSONSchemaPropsOrArray"),
        Ty::PropsOrBool => format!("{CRD}.JSONSchemaPropsOrBool"),
        Ty::PropsOrStrings => format!("{CRD}.JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

/// The names of all definitions that `roots` need, themselves included.
pub fn reachable(roots: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut todo: Vec<String> = roots.into_iter().collect();
    while let Some(name) = todo.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let Some(ty) = facts::type_by_name(&name) else { continue };
        for (_, field) in ty.all() {
            let mut inner = field.ty;
            while let Ty::List(t) | Ty::Map(t) = inner {
                inner = *t;
            }
            match inner {
                Ty::Struct(id) => todo.push(id.get().name.to_owned()),
                other => todo.extend(special(other)),
            }
        }
    }
    seen
}

/// The schema of a definition.
pub fn definition(name: &str, dialect: Dialect, texts: &Descriptions) -> Value {
    let mut schema = match facts::type_by_name(name) {
        Some(ty) => object(ty, dialect, texts),
        None => scalar(name.rsplit('.').next().unwrap_or(name), dialect),
    };
    if let (Some(text), Value::Object(map)) = (description(name, texts), &mut schema) {
        map.insert("description".into(), text.into());
    }
    schema
}

fn description(name: &str, texts: &Descriptions) -> Option<String> {
    if let Some(text) = texts.of_type(name) {
        return Some(text.to_owned());
    }
    let item = name.strip_suffix("List")?;
    let kind = item.rsplit('.').next().unwrap_or(item);
    facts::type_by_name(item).map(|_| format!("{kind}List is a list of {kind} objects."))
}

fn scalar(short: &str, dialect: Dialect) -> Value {
    match (short, dialect) {
        ("Time" | "MicroTime", _) => json!({"type": "string", "format": "date-time"}),
        ("Duration", _) => json!({"type": "string"}),
        ("Quantity", Dialect::V2) => json!({"type": "string"}),
        ("Quantity", Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        ("IntOrString", Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        ("IntOrString", Dialect::V3) => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ("FieldsV1" | "RawExtension" | "Patch", _) => json!({"type": "object"}),
        _ => json!({}),
    }
}

fn object(ty: &'static Type, dialect: Dialect, texts: &Descriptions) -> Value {
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    let mut properties = Map::new();
    for (name, field) in ty.all() {
        properties.insert((*name).to_owned(), property(ty, field, dialect, texts));
    }
    let mut required = Vec::new();
    required_fields(ty, &mut required);
    if !properties.is_empty() {
        schema.insert("properties".into(), properties.into());
    }
    if !required.is_empty() {
        schema.insert("required".into(), required.into());
    }
    if let Some(kind) = ty.struct_type {
        schema.insert("x-kubernetes-map-type".into(), kind.into());
    }
    let kinds = kinds(ty);
    if !kinds.is_empty() {
        schema.insert("x-kubernetes-group-version-kind".into(), kinds.into());
    }
    schema.into()
}

/// In declaration order, as upstream lists them.
fn required_fields(ty: &'static Type, out: &mut Vec<&'static str>) {
    for field in &ty.fields {
        match field.ty {
            Ty::Struct(id) if field.inline => required_fields(id.get(), out),
            _ if field.required => out.push(field.json),
            _ => {}
        }
    }
}

/// The group version kinds under which a type is served.
fn kinds(ty: &Type) -> Vec<Value> {
    if !ty.type_meta {
        return Vec::new();
    }
    let kind = |group: &str, version: &str| json!({"group": group, "version": version, "kind": ty.short});
    if ty.name.starts_with(META) {
        return match ty.short {
            "DeleteOptions" | "WatchEvent" => {
                groups().iter().flat_map(|g| g.versions.iter().map(|v| kind(g.name, v))).collect()
            }
            _ => vec![kind("", "v1")],
        };
    }
    groups()
        .iter()
        .flat_map(|g| g.versions.iter().map(|v| (g.name, *v)))
        .filter(|(g, v)| resources::type_name(g, v, ty.short) == Some(ty.name))
        .map(|(g, v)| kind(g, v))
        .collect()
}

fn property(owner: &Type, field: &Field, dialect: Dialect, texts: &Descriptions) -> Value {
    let mut schema = value(field.ty, dialect);
    // a reference takes no neighbours in version 3
    if let (Dialect::V3, Some(_)) = (dialect, schema.get("$ref")) {
        schema = json!({"allOf": [schema]});
    }
    let Value::Object(map) = &mut schema else { return schema };
    if let Some(text) = field_text(owner, field.json, texts) {
        map.insert("description".into(), text.into());
    }
    if dialect == Dialect::V3
        && let Some(default) = field.default.and_then(|d| serde_json::from_str(d).ok()).or_else(|| implied_default(field))
    {
        map.insert("default".into(), default);
    }
    if let Some(format) = field.format {
        map.insert("format".into(), format.into());
    }
    if let Some(kind) = field.list_type {
        map.insert("x-kubernetes-list-type".into(), kind.into());
    }
    if !field.list_map_keys.is_empty() {
        map.insert("x-kubernetes-list-map-keys".into(), field.list_map_keys.clone().into());
    }
    if let Some(kind) = field.map_type {
        map.insert("x-kubernetes-map-type".into(), kind.into());
    }
    if let Some(key) = field.patch_merge_key {
        map.insert("x-kubernetes-patch-merge-key".into(), key.into());
    }
    if let Some(strategy) = field.patch_strategy {
        map.insert("x-kubernetes-patch-strategy".into(), strategy.into());
    }
    schema
}

/// The text of a field, also of one that is inlined from another type.
fn field_text(owner: &Type, json: &str, texts: &Descriptions) -> Option<String> {
    let own = texts.of_field(owner.name, json).map(str::to_owned);
    own.or_else(|| match json {
        "apiVersion" => Some("The version of the schema that this object is written in, as group/version.".into()),
        "kind" => Some("The kind of resource that this object is. In CamelCase; it cannot be changed.".into()),
        "metadata" if owner.name.ends_with("List") => Some("Metadata of the list.".into()),
        "items" if owner.name.ends_with("List") => Some("The objects of the list.".into()),
        _ => owner.fields.iter().find_map(|f| match f.ty {
            Ty::Struct(id) if f.inline => texts.of_field(id.get().name, json).map(str::to_owned),
            _ => None,
        }),
    })
}

/// Go's zero value, which a field that is no pointer has when it is absent.
fn implied_default(field: &Field) -> Option<Value> {
    if field.pointer {
        return None;
    }
    match (field.ty, field.presence) {
        (Ty::Struct(_), _) => Some(json!({})),
        (Ty::String | Ty::Named(_), Presence::Always) => Some("".into()),
        (Ty::Bool, Presence::Always) => Some(false.into()),
        (Ty::Int32 | Ty::Int64, Presence::Always) => Some(0.into()),
        _ => None,
    }
}

fn value(ty: Ty, dialect: Dialect) -> Value {
    if let Some(name) = special(ty) {
        return dialect.reference(&name);
    }
    match ty {
        Ty::Named(named) if !named.values.is_empty() => json!({"type": "string", "enum": named.values}),
        Ty::Bool => json!({"type": "boolean"}),
        Ty::Int32 => json!({"type": "integer", "format": "int32"}),
        Ty::Int64 => json!({"type": "integer", "format": "int64"}),
        Ty::Float64 => json!({"type": "number", "format": "double"}),
        Ty::Bytes => json!({"type": "string", "format": "byte"}),
        Ty::Strings => json!({"type": "array", "items": element(Ty::String, dialect)}),
        Ty::Struct(id) => dialect.reference(id.get().name),
        Ty::List(item) => json!({"type": "array", "items": element(*item, dialect)}),
        Ty::Map(item) => json!({"type": "object", "additionalProperties": element(*item, dialect)}),
        _ => json!({"type": "string"}),
    }
}

fn element(ty: Ty, dialect: Dialect) -> Value {
    let mut schema = value(ty, dialect);
    if dialect == Dialect::V3 {
        match ty {
            Ty::Struct(_) => schema = json!({"allOf": [schema], "default": {}}),
            Ty::String | Ty::Named(_) => schema["default"] = "".into(),
            Ty::Bool => schema["default"] = false.into(),
            Ty::Int32 | Ty::Int64 => schema["default"] = 0.into(),
            _ => {}
        }
    }
    schema
}
