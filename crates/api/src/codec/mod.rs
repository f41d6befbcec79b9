//! Reading and writing objects: JSON, YAML and the Kubernetes protobuf form.
//!
//! Everything becomes a `serde_json::Value`. JSON and YAML are taken as they are (see
//! [`crate::schema::normalize`] for what comes next); protobuf decodes straight into the normal
//! form.

mod json;
mod protobuf;
pub(crate) mod wire;
mod yaml;

use serde_json::Value;

pub use json::{in_order_of, parse as parse_json};
pub use wire::{put_bytes, put_int};
pub use yaml::parse as yaml;
pub use protobuf::{
    Envelope, ListFrame, MAGIC, decode_envelope, decode_message, decode_stored, encode_bare, encode_message, encode_object as encode_protobuf, encode_watch_event_protobuf, envelope, frame, watch_event_protobuf,
};

/// What a request or response body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    Json,
    Yaml,
    Protobuf,
}

/// Group, version and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gvk {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl Gvk {
    pub fn new(group: &str, version: &str, kind: &str) -> Gvk {
        Gvk { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// What an object says it is; parts that are missing are empty.
    pub fn of(object: &Value) -> Gvk {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("");
        let (group, version) = crate::resources::split_api_version(text("apiVersion"));
        Gvk::new(group, version, text("kind"))
    }

    /// `apps/v1`
    pub fn api_version(&self) -> String {
        crate::resources::api_version(&self.group, &self.version)
    }
}

/// A decoded object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// One message for each repeated key, as strict validation words it: `duplicate field "spec.replicas"` in JSON,
    /// `line 9: key "replicas" already set in map` in YAML.
    pub duplicates: Vec<String>,
}

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{0}")]
    Json(String),
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    #[error("{0}")]
    Protobuf(String),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind { api_version: String, kind: String },
}

/// Why an object has no protobuf form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("object of kind {0:?} has no protobuf form")]
    NoProtobuf(String),
    #[error("{path}: expected {expected}")]
    Type { path: String, expected: String },
}

/// Decodes a body. `expect` fills in `apiVersion` and `kind` where the body has none.
pub fn decode(bytes: &[u8], content_type: ContentType, expect: Option<&Gvk>) -> Result<Decoded, DecodeError> {
    let mut decoded = match content_type {
        ContentType::Json => json::parse(bytes)?,
        ContentType::Yaml => yaml::parse(bytes)?,
        ContentType::Protobuf => return protobuf::decode_object(bytes, expect),
    };
    if let (Some(expect), Value::Object(object)) = (expect, &mut decoded.value) {
        let missing = |v: Option<&Value>| v.is_none_or(|v| v.as_str().is_some_and(str::is_empty) || v.is_null());
        if missing(object.get("kind")) {
            object.insert("kind".into(), expect.kind.as_str().into());
        }
        if missing(object.get("apiVersion")) {
            object.insert("apiVersion".into(), expect.api_version().into());
        }
    }
    Ok(decoded)
}

/// The JSON bytes of an object, without a final newline.
pub fn to_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_becomes_a_tree() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  port: \"80\"\n  x: |\n    a\n    b\nn: 3\nb: true\nz: ~\n";
        let decoded = decode(text.as_bytes(), ContentType::Yaml, None).unwrap();
        assert_eq!(
            decoded.value,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"port": "80", "x": "a\nb\n"}, "n": 3, "b": true, "z": null})
        );
        let twice = decode(b"a: 1\na: 2\n", ContentType::Yaml, None).unwrap();
        assert_eq!((twice.value, twice.duplicates.len()), (json!({"a": 2}), 1));
        assert!(decode(b"a: [", ContentType::Yaml, None).is_err());
    }

    #[test]
    fn an_expected_kind_is_filled_in() {
        let expect = Gvk::new("apps", "v1", "Deployment");
        let decoded = decode(b"{}", ContentType::Json, Some(&expect)).unwrap();
        assert_eq!(decoded.value, json!({"apiVersion": "apps/v1", "kind": "Deployment"}));
    }
}
