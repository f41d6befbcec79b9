//! How a type's values merge: which lists are sets or maps by key, which maps
//! and lists are owned as a whole, and what the elements are.
//!
//! A [`Node`] is a type seen that way. It comes from the fact table, from a
//! CRD's OpenAPI schema, or from nothing at all ([`Node::Deduced`]), where the
//! shape of the value decides.

use crate::facts::{Field, Ty, Type, type_by_name};
use serde_json::{Map, Value};

/// A type, as far as merging cares.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// Any value; its maps are merged key by key, its lists replaced.
    Deduced,
    /// Any value, replaced as a whole.
    Atomic,
    /// A scalar.
    Scalar(Kind),
    /// A struct of the fact table.
    Type(&'static Type),
    /// A field of a struct of the fact table.
    Field(&'static Field),
    /// An item or element of such a field.
    Item(Ty),
    /// An OpenAPI v3 schema of a CRD.
    OpenApi(&'a Value),
    /// The OpenAPI v3 schema of a whole custom resource.
    CustomResource(&'a Value),
}

/// What a scalar may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Numeric,
    /// A string.
    String,
    /// `true` or `false`.
    Boolean,
    /// Any of them.
    Untyped,
}

/// A type with its outer layer taken off.
#[derive(Clone, Debug)]
pub enum Atom<'a> {
    /// A scalar.
    Scalar(Kind),
    /// A list.
    List(List<'a>),
    /// A map or struct.
    Map(MapType<'a>),
}

/// How items of a list are told apart.
#[derive(Clone, Debug, PartialEq)]
pub enum Relation {
    /// Not at all: the list is one value.
    Atomic,
    /// By their value.
    Set,
    /// By these fields, with the value that a missing one stands for.
    Keys(Vec<(String, Option<Value>)>),
}

/// A list type.
#[derive(Clone, Debug)]
pub struct List<'a> {
    /// How items are told apart.
    pub relation: Relation,
    /// The items' type.
    pub element: Node<'a>,
}

/// A map or struct type.
#[derive(Clone, Copy, Debug)]
pub struct MapType<'a> {
    /// Whether the map is one value.
    pub atomic: bool,
    source: MapSource<'a>,
}

#[derive(Clone, Copy, Debug)]
enum MapSource<'a> {
    Elements(Node<'a>),
    Type(&'static Type),
    OpenApi(&'a Value, bool),
}

impl<'a> MapType<'a> {
    /// The type of a declared field.
    pub fn field(&self, name: &str) -> Option<Node<'a>> {
        match self.source {
            MapSource::Elements(_) => None,
            MapSource::Type(t) => t.field(name).map(Node::Field),
            MapSource::OpenApi(schema, root) => {
                let embedded = root || flag(schema, "x-kubernetes-embedded-resource");
                match name {
                    "metadata" if embedded => Some(object_meta()),
                    "apiVersion" | "kind" if embedded => Some(Node::Scalar(Kind::String)),
                    _ => schema.get("properties")?.get(name).map(Node::OpenApi),
                }
            }
        }
    }

    /// The type of the values under keys that are not declared fields.
    pub fn element(&self) -> Option<Node<'a>> {
        match self.source {
            MapSource::Elements(n) => Some(n),
            MapSource::Type(_) => None,
            MapSource::OpenApi(schema, _) => match schema.get("additionalProperties") {
                Some(s @ Value::Object(_)) => Some(Node::OpenApi(s)),
                Some(Value::Bool(true)) => Some(Node::Deduced),
                _ if flag(schema, "x-kubernetes-preserve-unknown-fields") => Some(Node::Deduced),
                _ => None,
            },
        }
    }

    /// The type of the value under a key, declared or not.
    pub fn at(&self, name: &str) -> Option<Node<'a>> {
        self.field(name).or_else(|| self.element())
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

/// The type with an OpenAPI definition name such as `io.k8s.api.core.v1.Pod`, deduced when there is none.
pub fn builtin(type_name: &str) -> Node<'static> {
    type_by_name(type_name).map_or(Node::Deduced, Node::Type)
}

fn object_meta<'a>() -> Node<'a> {
    builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

/// What strategic merge does with a field.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strategy<'a> {
    /// The list merges with the old one.
    pub merge: bool,
    /// The map replaces the old one.
    pub replace: bool,
    /// The field that tells items of the list apart.
    pub merge_key: Option<&'a str>,
}

/// What an object of a type shows before anything is set: the structs and lists that are always written.
pub fn skeleton(t: &'static Type) -> Value {
    let mut out = Map::new();
    crate::schema::fill(t, &mut out);
    Value::Object(out)
}

impl<'a> Node<'a> {
    /// The type of the items of a list or the values of a map.
    pub fn element(self) -> Node<'a> {
        match self.resolve(None) {
            Atom::List(l) => l.element,
            Atom::Map(m) => m.element().unwrap_or(Node::Deduced),
            Atom::Scalar(_) => Node::Deduced,
        }
    }

    /// The type of a field and how strategic merge treats it; only types of the fact table have it.
    pub fn patch_field(self, key: &str) -> Result<(Node<'a>, Strategy<'a>), String> {
        let ty = match self {
            Node::Type(t) => return struct_patch_field(t, key),
            Node::Field(f) => f.ty,
            Node::Item(ty) => ty,
            _ => return Err("strategic merge patch format is not supported".to_owned()),
        };
        match ty {
            Ty::Struct(id) => struct_patch_field(id.get(), key),
            Ty::Map(e) => Ok((Node::Item(*e), Strategy::default())),
            other => {
                Err(format!("merging an object in json but data type is not struct, instead is: {}", other.go()))
            }
        }
    }

    /// Takes the outer layer off. Where a type allows several shapes, the value at hand decides; with none, a map is assumed.
    pub fn resolve(self, value: Option<&Value>) -> Atom<'a> {
        match self {
            Node::Scalar(k) => Atom::Scalar(k),
            Node::Deduced | Node::Atomic => {
                let atomic = matches!(self, Node::Atomic);
                match value {
                    Some(Value::Array(_)) => Atom::List(List { relation: Relation::Atomic, element: Node::Atomic }),
                    Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => Atom::Scalar(Kind::Untyped),
                    _ => Atom::Map(MapType { atomic, source: MapSource::Elements(self) }),
                }
            }
            Node::Type(t) => {
                Atom::Map(MapType { atomic: t.struct_type == Some("atomic"), source: MapSource::Type(t) })
            }
            Node::Field(f) => fact(f.ty, Some(f), value),
            Node::Item(ty) => fact(ty, None, value),
            Node::OpenApi(schema) => open_api(schema, value),
            Node::CustomResource(schema) => {
                Atom::Map(MapType { atomic: false, source: MapSource::OpenApi(schema, true) })
            }
        }
    }
}

fn struct_patch_field<'a>(t: &'static Type, key: &str) -> Result<(Node<'a>, Strategy<'a>), String> {
    let f = t.field(key).ok_or_else(|| {
        format!("unable to find api field in struct {} for the json field {}", t.short, crate::field::go_quote(key))
    })?;
    let has = |what: &str| f.patch_strategy.is_some_and(|s| s.split(',').any(|p| p == what));
    Ok((Node::Field(f), Strategy { merge: has("merge"), replace: has("replace"), merge_key: f.patch_merge_key }))
}

fn fact<'a>(ty: Ty, field: Option<&'static Field>, value: Option<&Value>) -> Atom<'a> {
    match ty {
        Ty::Bool => Atom::Scalar(Kind::Boolean),
        Ty::Int32 | Ty::Int64 | Ty::Float64 => Atom::Scalar(Kind::Numeric),
        Ty::String | Ty::Named(_) | Ty::Bytes | Ty::Duration => Atom::Scalar(Kind::String),
        Ty::Time | Ty::MicroTime | Ty::Quantity | Ty::IntOrString => Atom::Scalar(Kind::Untyped),
        Ty::RawExtension | Ty::FieldsV1 | Ty::Json | Ty::PropsOrArray | Ty::PropsOrBool | Ty::PropsOrStrings => {
            Node::Deduced.resolve(value)
        }
        Ty::Struct(id) => {
            let t = id.get();
            let kind = field.and_then(|f| f.map_type).or(t.struct_type);
            Atom::Map(MapType { atomic: kind == Some("atomic"), source: MapSource::Type(t) })
        }
        Ty::Map(element) => Atom::Map(MapType {
            atomic: field.is_some_and(|f| f.map_type == Some("atomic")),
            source: MapSource::Elements(Node::Item(*element)),
        }),
        Ty::Strings => Atom::List(List { relation: Relation::Atomic, element: Node::Scalar(Kind::String) }),
        Ty::List(element) => {
            let element = *element;
            Atom::List(List { relation: relation(field, element), element: Node::Item(element) })
        }
    }
}

fn relation(field: Option<&'static Field>, element: Ty) -> Relation {
    let Some(f) = field else { return Relation::Atomic };
    let keys = |names: &[&str]| {
        let default = |k: &str| match element {
            Ty::Struct(id) => id.get().field(k)?.default.and_then(|d| serde_json::from_str(d).ok()),
            _ => None,
        };
        Relation::Keys(names.iter().map(|k| ((*k).to_owned(), default(k))).collect())
    };
    match (f.list_type, f.patch_strategy) {
        (Some("set"), _) => Relation::Set,
        (Some("map"), _) => keys(&f.list_map_keys),
        (Some(_), _) => Relation::Atomic,
        // types that say it in the older way
        (None, Some(s)) if s.split(',').any(|p| p == "merge") => match f.patch_merge_key {
            Some(k) => keys(&[k]),
            None => Relation::Set,
        },
        _ => Relation::Atomic,
    }
}

fn open_api<'a>(schema: &'a Value, value: Option<&Value>) -> Atom<'a> {
    let text = |k: &str| schema.get(k).and_then(Value::as_str).unwrap_or_default();
    if flag(schema, "x-kubernetes-int-or-string") {
        return Atom::Scalar(Kind::Untyped);
    }
    match text("type") {
        "string" => Atom::Scalar(Kind::String),
        "integer" | "number" => Atom::Scalar(Kind::Numeric),
        "boolean" => Atom::Scalar(Kind::Boolean),
        "array" => {
            let relation = match text("x-kubernetes-list-type") {
                "set" => Relation::Set,
                "map" => {
                    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
                    let items = schema.get("items").and_then(|i| i.get("properties"));
                    let default = |k: &str| items.and_then(|p| p.get(k)).and_then(|p| p.get("default")).cloned();
                    Relation::Keys(keys.filter_map(Value::as_str).map(|k| (k.to_owned(), default(k))).collect())
                }
                _ => Relation::Atomic,
            };
            let element = schema.get("items").map_or(Node::Deduced, Node::OpenApi);
            Atom::List(List { relation, element })
        }
        "object" if schema.get("properties").is_some() || schema.get("additionalProperties").is_some_and(|a| a != false)
            || flag(schema, "x-kubernetes-embedded-resource") =>
        {
            let atomic = text("x-kubernetes-map-type") == "atomic";
            Atom::Map(MapType { atomic, source: MapSource::OpenApi(schema, false) })
        }
        _ if text("x-kubernetes-map-type") == "atomic" => Node::Atomic.resolve(value),
        _ => Node::Deduced.resolve(value),
    }
}
