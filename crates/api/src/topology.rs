//! How a type's values merge: which lists are sets or maps by key, which maps
//! and lists are owned as a whole, and what the elements are.
//!
//! A [`Node`] is a type seen that way. It comes from a CRD's OpenAPI schema, or
//! from nothing at all ([`Node::Deduced`]), where the shape of the value decides.

use serde_json::Value;

/// A type, as far as merging cares.
#[derive(Clone, Copy, Debug)]
pub enum Node<'a> {
    /// Any value; its maps are merged key by key, its lists replaced.
    Deduced,
    /// Any value, replaced as a whole.
    Atomic,
    /// A scalar.
    Scalar(Kind),
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
    OpenApi(&'a Value, bool),
}

impl<'a> MapType<'a> {
    /// The type of a declared field.
    pub fn field(&self, name: &str) -> Option<Node<'a>> {
        match self.source {
            MapSource::Elements(_) => None,
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

fn object_meta<'a>() -> Node<'a> {
    Node::Deduced
}

impl<'a> Node<'a> {
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
            Node::OpenApi(schema) => open_api(schema, value),
            Node::CustomResource(schema) => {
                Atom::Map(MapType { atomic: false, source: MapSource::OpenApi(schema, true) })
            }
        }
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
