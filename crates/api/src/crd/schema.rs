//! A version's `openAPIV3Schema`, compiled: what is asked of every object that is written or read.

use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;

use super::{flag, text, texts};

/// The values of a map under keys that are no declared properties.
#[derive(Clone, Debug, Default)]
pub enum Additional {
    /// Not spoken of.
    #[default]
    Unset,
    /// `true` or `false`.
    Allowed(bool),
    /// Of this schema.
    Of(Box<Schema>),
}

/// A node of a structural schema, its value validations included; those of `allOf` and the like are nodes too.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or empty.
    pub kind: String,
    pub nullable: bool,
    pub default: Option<Value>,
    pub properties: BTreeMap<String, Schema>,
    pub additional: Additional,
    pub items: Option<Box<Schema>>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    pub list_type: String,
    pub list_map_keys: Vec<String>,
    pub map_type: String,
    /// Without dashes; empty where it is not one that is checked.
    pub format: String,
    pub pattern: Option<Regex>,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub multiple_of: Option<f64>,
    pub max_length: Option<u64>,
    pub min_length: Option<u64>,
    pub max_items: Option<u64>,
    pub min_items: Option<u64>,
    pub max_properties: Option<u64>,
    pub min_properties: Option<u64>,
    pub unique_items: bool,
    pub required: Vec<String>,
    pub values: Option<Vec<Value>>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
    /// Some default is in here.
    pub has_defaults: bool,
}

impl Schema {
    /// Compiles; what validation of the definition refuses is passed over.
    pub fn new(schema: &Value) -> Schema {
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let count = |key: &str| schema.get(key).and_then(Value::as_u64);
        let list = |key: &str| -> Vec<Schema> {
            schema.get(key).and_then(Value::as_array).into_iter().flatten().map(Schema::new).collect()
        };
        let boxed = |key: &str| schema.get(key).filter(|v| v.is_object()).map(|v| Box::new(Schema::new(v)));
        let properties: BTreeMap<String, Schema> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, property)| (name.clone(), Schema::new(property)))
            .collect();
        let additional = match schema.get("additionalProperties") {
            None | Some(Value::Null) => Additional::Unset,
            Some(Value::Bool(allowed)) => Additional::Allowed(*allowed),
            Some(inner) => Additional::Of(Box::new(Schema::new(inner))),
        };
        let kind = text(schema, "/type").to_owned();
        let items = boxed("items");
        let default = schema.get("default").filter(|d| !d.is_null()).cloned();
        let has_defaults = default.is_some()
            || properties.values().any(|p| p.has_defaults)
            || items.as_ref().is_some_and(|i| i.has_defaults)
            || matches!(&additional, Additional::Of(inner) if inner.has_defaults);
        Schema {
            format: checked_format(&kind, text(schema, "/format")),
            nullable: flag(schema, "nullable"),
            preserve: flag(schema, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(schema, "x-kubernetes-embedded-resource"),
            int_or_string: flag(schema, "x-kubernetes-int-or-string"),
            list_type: text(schema, "/x-kubernetes-list-type").to_owned(),
            list_map_keys: texts(schema, "/x-kubernetes-list-map-keys"),
            map_type: text(schema, "/x-kubernetes-map-type").to_owned(),
            pattern: Some(text(schema, "/pattern")).filter(|p| !p.is_empty()).and_then(|p| pattern(p).ok().flatten()),
            maximum: number("maximum"),
            exclusive_maximum: flag(schema, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(schema, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: count("maxLength"),
            min_length: count("minLength"),
            max_items: count("maxItems"),
            min_items: count("minItems"),
            max_properties: count("maxProperties"),
            min_properties: count("minProperties"),
            unique_items: flag(schema, "uniqueItems"),
            required: texts(schema, "/required"),
            values: schema.get("enum").and_then(Value::as_array).cloned(),
            all_of: list("allOf"),
            any_of: list("anyOf"),
            one_of: list("oneOf"),
            not: boxed("not"),
            kind,
            default,
            properties,
            additional,
            items,
            has_defaults,
        }
    }

    /// The schema of the values under this key.
    pub fn at(&self, key: &str) -> Option<&Schema> {
        self.properties.get(key).or(match &self.additional {
            Additional::Of(inner) => Some(inner),
            _ => None,
        })
    }
}

/// Compiles a pattern. One that needs more of Unicode's tables than are on board (`\p{Greek}`) is `None`: it is not
/// refused, and not checked.
pub fn pattern(text: &str) -> Result<Option<Regex>, regex::Error> {
    match Regex::new(text).or_else(|error| Regex::new(&text.replace("(?i)", "(?i-u)")).map_err(|_| error)) {
        Ok(regex) => Ok(Some(regex)),
        Err(error) if error.to_string().contains("Unicode") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Formats of strings that are checked, without dashes.
const FORMATS: [&str; 26] = [
    "bsonobjectid", "uri", "email", "hostname", "ipv4", "ipv6", "cidr", "mac", "uuid", "uuid3", "uuid4", "uuid5", "isbn", "isbn10",
    "isbn13", "creditcard", "ssn", "hexcolor", "rgbcolor", "byte", "password", "date", "duration", "datetime", "k8sshortname",
    "k8slongname",
];

/// Whether a format means anything for a type.
pub fn known_format(kind: &str, format: &str) -> bool {
    match kind {
        "" | "string" => FORMATS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

fn checked_format(kind: &str, format: &str) -> String {
    if known_format(kind, format) { format.replace('-', "") } else { String::new() }
}
