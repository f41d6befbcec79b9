//! Whether a value is what its schema wants, in the words of upstream's validator. On updates, what was wrong before
//! and has not changed is let pass.

use super::formats;
use super::schema::{Additional, Schema};
use crate::field::{FieldError, Path};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// What is wrong with an object.
pub fn validate(value: &Value, schema: &Schema) -> Vec<FieldError> {
    Check { at: &Place::Start(""), old: None, root: true }.run(value, schema).errors
}

/// What is wrong with a default, which is at `path`. Sentences tell of places in the default.
pub fn validate_default(path: &Path, value: &Value, schema: &Schema) -> Vec<FieldError> {
    let mut errors = Check { at: &Place::Start(""), old: None, root: false }.run(value, schema).errors;
    errors.iter_mut().for_each(|e| e.path = path.join(&e.path));
    errors
}

/// What is wrong with a value that replaces another. `path` is where it is, empty for a whole object.
pub fn validate_update(path: &str, value: &Value, old: Option<&Value>, schema: &Schema) -> Vec<FieldError> {
    Check { at: &Place::Start(path), old, root: path.is_empty() }.ratchet(value, schema).errors
}

/// What was found, and how many checks there were: of several alternatives that all fail, the one that was
/// followed furthest explains best.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    checks: usize,
}

/// So many mistakes of an object are told.
const MOST: usize = 1000;

impl Outcome {
    fn merge(&mut self, other: Outcome) {
        let room = MOST.saturating_sub(self.errors.len());
        self.errors.extend(other.errors.into_iter().take(room));
        self.checks += other.checks;
    }

    fn is_full(&self) -> bool {
        self.errors.len() >= MOST
    }
}

/// Where a value is. Written out where there is something to tell of it.
enum Place<'a> {
    Start(&'a str),
    Field(&'a Place<'a>, &'a str),
    /// A field that the schema does not name.
    Additional(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn text(&self) -> String {
        match self {
            Place::Start(path) => (*path).to_owned(),
            Place::Field(parent, name) => match parent.text() {
                parent if parent.is_empty() => (*name).to_owned(),
                parent => format!("{parent}.{name}"),
            },
            Place::Additional(parent, name) => format!("{}.{name}", parent.text()),
            Place::Item(parent, index) => format!("{}[{index}]", parent.text()),
        }
    }
}

struct Check<'a> {
    at: &'a Place<'a>,
    old: Option<&'a Value>,
    root: bool,
}

impl<'a> Check<'a> {
    fn path(&self) -> Path {
        let text = self.at.text();
        Path::new(text.trim_start_matches('.'))
    }

    fn invalid(&self, value: impl Into<Value>, what: impl std::fmt::Display) -> FieldError {
        FieldError::invalid(&self.path(), value, format!("{} in body {what}", self.at.text()))
    }

    fn ratchet(&self, value: &Value, schema: &Schema) -> Outcome {
        let mut outcome = self.run(value, schema);
        if !outcome.errors.is_empty() && self.old == Some(value) {
            outcome.errors.clear();
        }
        outcome
    }

    fn run(&self, value: &Value, schema: &Schema) -> Outcome {
        let mut out = Outcome { errors: Vec::new(), checks: 1 };
        if let Some(error) = self.kind(value, schema) {
            out.errors.push(error);
        }
        if !value.is_null() {
            out.merge(self.junctors(value, schema));
            match value {
                Value::String(text) => out.errors.extend(self.string(text, schema)),
                Value::Number(_) => out.errors.extend(self.number(value, schema)),
                Value::Array(list) => out.merge(self.array(list, schema)),
                _ => {}
            }
        }
        if let Some(values) = &schema.values {
            out.checks += 1;
            if !values.iter().any(|v| same(v, value)) {
                let texts: Vec<String> = values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                out.errors.push(FieldError::not_supported(&self.path(), value.clone(), &texts));
            }
        }
        if let Value::Object(map) = value {
            out.merge(self.object(map, schema));
        }
        out
    }

    fn kind(&self, value: &Value, schema: &Schema) -> Option<FieldError> {
        let wanted = if schema.int_or_string { "integer,string" } else { schema.kind.as_str() };
        let wants = |kind: &str| wanted.split(',').any(|w| w == kind);
        let given = match value {
            Value::Null if schema.nullable || wanted.is_empty() => return None,
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_i64() => "integer",
            Value::Number(n) => {
                if wants("integer") && n.as_f64().is_some_and(|f| f.fract() == 0.0 && f.abs() < 9e15) {
                    return None;
                }
                "number"
            }
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if wanted.is_empty() || wants(given) || given == "integer" && wants("number") {
            return None;
        }
        let why = format!("{} in body must be of type {wanted}: {}", self.at.text(), crate::field::go_quote(given));
        Some(FieldError::type_invalid(&self.path(), given, why))
    }

    fn junctors(&self, value: &Value, schema: &Schema) -> Outcome {
        let mut out = Outcome::default();
        let whole = |what: &str| FieldError::invalid(&Path::root(), "", format!("{} {what}", crate::field::go_quote(&self.at.text())));
        if !schema.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut found = false;
            for branch in &schema.any_of {
                let outcome = self.run(value, branch);
                if outcome.errors.is_empty() {
                    found = true;
                    break;
                }
                if best.as_ref().is_none_or(|b| outcome.checks > b.checks) {
                    best = Some(outcome);
                }
            }
            if !found {
                out.errors.push(whole("must validate at least one schema (anyOf)"));
                out.merge(best.unwrap_or_default());
            }
        }
        if !schema.one_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut found = 0;
            for branch in &schema.one_of {
                let outcome = self.run(value, branch);
                if outcome.errors.is_empty() {
                    found += 1;
                } else if found == 0 && best.as_ref().is_none_or(|b| outcome.checks > b.checks) {
                    best = Some(outcome);
                }
            }
            if found != 1 {
                let how = if found == 0 { "Found none valid".to_owned() } else { format!("Found {found} valid alternatives") };
                out.errors.push(whole(&format!("must validate one and only one schema (oneOf). {how}")));
                if found == 0 {
                    out.merge(best.unwrap_or_default());
                }
            }
        }
        if !schema.all_of.is_empty() {
            let mut fine = 0;
            for branch in &schema.all_of {
                let outcome = self.run(value, branch);
                fine += usize::from(outcome.errors.is_empty());
                out.merge(outcome);
            }
            if fine < schema.all_of.len() {
                let none = if fine == 0 { ". None validated" } else { "" };
                out.errors.push(whole(&format!("must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(not) = &schema.not
            && self.run(value, not).errors.is_empty()
        {
            out.errors.push(whole("must not validate the schema (not)"));
        }
        out
    }

    fn string(&self, text: &str, schema: &Schema) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let length = text.chars().count() as u64;
        if schema.max_length.is_some_and(|max| length > max) {
            errors.push(FieldError::too_long(&self.path(), schema.max_length.unwrap_or(0) as usize));
        } else if let Some(min) = schema.min_length.filter(|min| length < *min) {
            errors.push(self.invalid(text, format_args!("should be at least {min} chars long")));
        } else if let Some(pattern) = schema.pattern.as_ref().filter(|p| !p.is_match(text)) {
            errors.push(self.invalid(text, format_args!("should match '{pattern}'")));
        }
        if matches!(schema.kind.as_str(), "" | "string") && !schema.format.is_empty() && !formats::valid(&schema.format, text) {
            let why = format!("{} in body must be of type {}: {}", self.at.text(), schema.format, crate::field::go_quote(text));
            errors.push(FieldError::type_invalid(&self.path(), text, why));
        }
        errors
    }

    fn number(&self, value: &Value, schema: &Schema) -> Vec<FieldError> {
        let Some(number) = value.as_f64() else { return Vec::new() };
        let mut errors = Vec::new();
        let mut wrong = |what: String| errors.push(self.invalid(value.clone(), what));
        if let Some(of) = schema.multiple_of.filter(|of| *of > 0.0) {
            let times = number / of;
            if (times - times.round()).abs() > 1e-9 {
                wrong(format!("should be a multiple of {of}"));
            }
        }
        if let Some(max) = schema.maximum {
            if schema.exclusive_maximum && number >= max {
                wrong(format!("should be less than {max}"));
            } else if number > max {
                wrong(format!("should be less than or equal to {max}"));
            }
        }
        if let Some(min) = schema.minimum {
            if schema.exclusive_minimum && number <= min {
                wrong(format!("should be greater than {min}"));
            } else if number < min {
                wrong(format!("should be greater than or equal to {min}"));
            }
        }
        if schema.format == "int32" && (number > f64::from(i32::MAX) || number < f64::from(i32::MIN)) {
            let why = format!("Checked value must be of type integer with format int32 in {}", self.at.text());
            errors.push(FieldError::invalid(&Path::root(), "", why));
        }
        errors
    }

    fn array(&self, list: &[Value], schema: &Schema) -> Outcome {
        let mut out = Outcome { errors: Vec::new(), checks: 1 };
        if let Some(items) = &schema.items {
            let old = self.old.map(|old| by_keys(old, schema)).unwrap_or_default();
            for (index, value) in list.iter().enumerate() {
                if out.is_full() {
                    break;
                }
                let old = old.get(&keys(value, schema)).copied();
                let check = Check { at: &Place::Item(self.at, index), old, root: false };
                out.merge(if old.is_some() { check.ratchet(value, items) } else { check.run(value, items) });
            }
        }
        let size = list.len() as u64;
        if let Some(min) = schema.min_items.filter(|min| size < *min) {
            out.errors.push(self.invalid(size, format_args!("should have at least {min} items")));
        }
        if let Some(max) = schema.max_items.filter(|max| size > *max) {
            out.errors.push(FieldError::too_many(&self.path(), size as usize, max as usize));
        }
        if schema.unique_items {
            let mut seen = HashSet::new();
            if !list.iter().all(|v| seen.insert(v.to_string())) {
                out.errors.push(self.invalid("", "shouldn't contain duplicates"));
            }
        }
        out
    }

    fn object(&self, map: &Map<String, Value>, schema: &Schema) -> Outcome {
        let mut out = Outcome { errors: Vec::new(), checks: 1 };
        let size = map.len() as u64;
        if let Some(min) = schema.min_properties.filter(|min| size < *min) {
            out.errors.push(self.invalid(size, format_args!("should have at least {min} properties")));
            return out;
        }
        if let Some(max) = schema.max_properties.filter(|max| size > *max) {
            out.errors.push(FieldError::too_many(&self.path(), size as usize, max as usize));
            return out;
        }
        if let Additional::Of(inner) = &schema.additional {
            for (key, value) in map.iter().filter(|(key, _)| !schema.properties.contains_key(*key)) {
                if out.is_full() {
                    break;
                }
                out.merge(self.child(&Place::Additional(self.at, key), key, value, inner, schema));
            }
        }
        for (name, property) in &schema.properties {
            if let Some(value) = map.get(name) {
                out.merge(self.child(&Place::Field(self.at, name), name, value, property, schema));
            }
        }
        for name in &schema.required {
            let defaulted = schema.properties.get(name).is_some_and(|p| p.default.is_some());
            if !map.contains_key(name) && !defaulted {
                let at = format!("{}.{name}", self.at.text());
                out.errors.push(FieldError::required(&Path::new(at.trim_start_matches('.')), ""));
            }
        }
        out
    }

    fn child(&self, at: &Place<'_>, key: &str, value: &Value, schema: &Schema, parent: &Schema) -> Outcome {
        let type_meta = self.root && matches!(key, "kind" | "apiVersion");
        let old = self.old.filter(|_| parent.map_type != "atomic" && !type_meta).and_then(|o| o.get(key));
        let check = Check { at, old, root: false };
        if old.is_some() { check.ratchet(value, schema) } else { check.run(value, schema) }
    }
}

/// What tells an item of a list from the others: its keys, where the list is a map.
fn keys<'a>(item: &'a Value, schema: &'a Schema) -> Vec<Option<&'a Value>> {
    let default = |k: &String| schema.items.as_ref().and_then(|i| i.properties.get(k)).and_then(|p| p.default.as_ref());
    schema.list_map_keys.iter().map(|k| item.get(k).or_else(|| default(k))).collect()
}

/// The items of an old list by their keys, of equal ones the first: only lists with keys tell which item replaces which.
fn by_keys<'a>(old: &'a Value, schema: &'a Schema) -> HashMap<Vec<Option<&'a Value>>, &'a Value> {
    let mut all = HashMap::new();
    for item in old.as_array().into_iter().flatten().filter(|_| schema.list_type == "map") {
        all.entry(keys(item, schema)).or_insert(item);
    }
    all
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}
