//! Configuration files of the API server (`apiserver.config.k8s.io`), read strictly: what is not known is a mistake.

use serde_json::{Map, Value};

/// What a field may hold.
pub(crate) enum Shape {
    Text,
    Flag,
    Number,
    /// Whatever whoever reads it makes of it.
    Any,
    /// As Go writes it: `1m30s`.
    Duration,
    List(&'static Shape),
    Object(&'static [(&'static str, Shape)]),
}

/// Reads a file's text, YAML or JSON, as an object of this kind in one of the versions v1alpha1, v1beta1 and v1.
pub(crate) fn load(text: &str, kind: &str, fields: &'static [(&'static str, Shape)]) -> Result<Value, String> {
    let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
    read(yaml(text)?, &versions, kind, fields)
}

pub(crate) fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|e| format!("error converting YAML to JSON: {e}"))
}

/// Takes a tree for an object of this kind in one of these versions.
pub(crate) fn read(value: Value, versions: &[&str], kind: &str, fields: &'static [(&'static str, Shape)]) -> Result<Value, String> {
    let unknown = read_leniently(&value, versions, kind, fields)?;
    if unknown.is_empty() { Ok(value) } else { Err(format!("strict decoding error: {}", unknown.join(", "))) }
}

/// The same, and what is not known is only told.
pub(crate) fn read_leniently(value: &Value, versions: &[&str], kind: &str, fields: &'static [(&'static str, Shape)]) -> Result<Vec<String>, String> {
    let word = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let (given, version) = (word("kind"), word("apiVersion"));
    if given.is_empty() {
        return Err("Object 'Kind' is missing".into());
    }
    if version.is_empty() {
        return Err("Object 'apiVersion' is missing".into());
    }
    if given != kind || !versions.contains(&version) {
        let (group, newest) = versions.first().and_then(|v| v.split_once('/')).unwrap_or_default();
        return Err(format!("no kind {given:?} is registered for version {version:?}: {kind} of {group}/{newest} is expected"));
    }
    let mut body = value.as_object().cloned().unwrap_or_default();
    body.remove("kind");
    body.remove("apiVersion");
    let mut unknown = Vec::new();
    object(&body, fields, "", kind, &mut unknown)?;
    Ok(unknown)
}

fn object(map: &Map<String, Value>, fields: &'static [(&'static str, Shape)], at: &str, kind: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    for (name, value) in map {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => check(value, shape, &path, kind, unknown)?,
            None => unknown.push(format!("unknown field {path:?}")),
        }
    }
    Ok(())
}

fn check(value: &Value, shape: &'static Shape, at: &str, kind: &str, unknown: &mut Vec<String>) -> Result<(), String> {
    let is = match value {
        Value::Null => return Ok(()),
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wrong = |wanted: &str| {
        // Go's path has no indices.
        let mut path = String::new();
        let mut inside = false;
        for c in at.chars() {
            match c {
                '[' => inside = true,
                ']' => inside = false,
                c if !inside => path.push(c),
                _ => {}
            }
        }
        Err(format!("json: cannot unmarshal {is} into Go struct field {kind}.{path} of type {wanted}"))
    };
    match (shape, value) {
        (Shape::Any, _) | (Shape::Text, Value::String(_)) | (Shape::Flag, Value::Bool(_)) => Ok(()),
        (Shape::Number, Value::Number(n)) if n.is_i64() => Ok(()),
        (Shape::Duration, Value::String(text)) => match api::gotime::parse_duration(text) {
            Some(_) => Ok(()),
            None => Err(format!("time: invalid duration {}", api::field::go_quote(text))),
        },
        (Shape::List(item), Value::Array(items)) => items.iter().enumerate().try_for_each(|(i, v)| check(v, item, &format!("{at}[{i}]"), kind, unknown)),
        (Shape::Object(fields), Value::Object(map)) => object(map, fields, at, kind, unknown),
        (Shape::Text | Shape::Duration, _) => wrong("string"),
        (Shape::Flag, _) => wrong("bool"),
        (Shape::Number, _) => wrong("int32"),
        (Shape::List(_), _) => wrong("[]"),
        (Shape::Object(_), _) => wrong("struct"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_told() {
        use Shape::*;
        static FIELDS: [(&str, Shape); 2] = [("jwt", List(&Object(&[("url", Text), ("on", Flag), ("ttl", Duration)]))), ("one", Object(&[]))];
        let load = |text: &str| load(&format!("apiVersion: apiserver.config.k8s.io/v1beta1\nkind: K\n{text}"), "K", &FIELDS);
        assert_eq!(load("jwt: [{url: x, on: true, ttl: 1m}, null]\none: null").unwrap()["jwt"][0]["url"], "x");
        assert_eq!(load("jwt: [{uri: x}]\ntwo: 1").unwrap_err(), "strict decoding error: unknown field \"jwt[0].uri\", unknown field \"two\"");
        assert_eq!(load("jwt: [{url: 1}]").unwrap_err(), "json: cannot unmarshal number into Go struct field K.jwt.url of type string");
        assert_eq!(load("jwt: [{ttl: soon}]").unwrap_err(), "time: invalid duration \"soon\"");
        assert!(super::load("kind: K", "K", &FIELDS).unwrap_err().contains("apiVersion"));
        let other = super::load("kind: Other\napiVersion: apiserver.config.k8s.io/v1", "K", &FIELDS).unwrap_err();
        assert!(other.starts_with("no kind \"Other\" is registered for version \"apiserver.config.k8s.io/v1\""), "{other}");
        assert!(load("jwt: [").unwrap_err().starts_with("error converting YAML to JSON"));
    }
}
