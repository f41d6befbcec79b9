//! Objects as trees and as bytes: metadata accessors, and the one byte layout that storage, cache and responses share.
//!
//! Stored JSON begins `{"kind":…,"apiVersion":…,"metadata":{`, in upstream's order, without a resourceVersion. The
//! served form is the same bytes with `"resourceVersion":"…"` spliced in at the known place.
use api::seen::Seen;
use bytes::Bytes;
use serde_json::{Map, Value};

/// `metadata.FIELD` as text, or "".
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata.name`, or "".
pub fn name(object: &Value) -> &str {
    meta(object, "name")
}

/// The metadata map, made when missing. An object that is no map becomes one.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(map_of(object).entry("metadata").or_insert_with(|| Value::Object(Map::new())))
}

/// The value as a map, made one if it is not.
pub fn map_of(value: &mut Value) -> &mut Map<String, Value> {
    map_mut(value)
}

fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made a map"),
    }
}

/// Sets or (when empty) removes `metadata.FIELD`.
pub fn set_meta(object: &mut Value, field: &str, value: &str) {
    if value.is_empty() {
        meta_mut(object).remove(field);
    } else {
        meta_mut(object).insert(field.to_string(), value.into());
    }
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<String> {
    object
        .get("metadata")
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array)
        .map(|a| a.iter().filter_map(Value::as_str).map(str::to_string).collect())
        .unwrap_or_default()
}

/// Takes out owners that are there already; the uids of those taken out.
pub fn drop_repeated_owners(object: &mut Value) -> Vec<String> {
    let Some(owners) = object.get_mut("metadata").and_then(|m| m.get_mut("ownerReferences")).and_then(Value::as_array_mut) else { return Vec::new() };
    let (mut seen, mut repeated) = (Seen::default(), Vec::new());
    let keep: Vec<bool> = owners.iter().map(|owner| seen.add(owner)).collect();
    if keep.contains(&false) {
        let mut keep = keep.into_iter();
        owners.retain(|owner| {
            let first = keep.next().unwrap_or(true);
            if !first {
                repeated.push(owner.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned());
            }
            first
        });
    }
    repeated
}

/// Replaces `metadata.finalizers`.
pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    if finalizers.is_empty() {
        meta_mut(object).remove("finalizers");
    } else {
        meta_mut(object).insert("finalizers".into(), finalizers.into());
    }
}

/// `metadata.FIELD` as an integer.
pub fn meta_i64(object: &Value, field: &str) -> Option<i64> {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_i64)
}

/// Whether the object is marked as deleted.
pub fn deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}

/// The object's bytes in the common layout, without resourceVersion.
pub fn encode_stored(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write_object(&mut out, object, true);
    out
}

/// JSON with kind, apiVersion and metadata first.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    match object {
        Value::Object(map) if object["kind"] == "Status" && object["apiVersion"] == "v1" => write_status(&mut out, map, STATUS_ORDER),
        _ => write_object(&mut out, object, false),
    }
    out
}

/// The order of a Status upstream, of its details, and of their causes. Clients show users the text as it comes, and
/// compare it.
const STATUS_ORDER: &[&str] = &["kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"];
const DETAILS_ORDER: &[&str] = &["name", "group", "kind", "uid", "causes", "retryAfterSeconds"];
const CAUSE_ORDER: &[&str] = &["reason", "message", "field"];

fn write_status(out: &mut Vec<u8>, map: &Map<String, Value>, order: &[&str]) {
    out.push(b'{');
    let mut first = true;
    for key in order.iter().copied().chain(map.keys().map(String::as_str).filter(|k| !order.contains(k))) {
        let Some(value) = map.get(key) else { continue };
        write_key(out, key, &mut first);
        match (key, value) {
            ("details", Value::Object(details)) => write_status(out, details, DETAILS_ORDER),
            ("causes", Value::Array(causes)) => {
                out.push(b'[');
                for (i, cause) in causes.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    match cause {
                        Value::Object(cause) => write_status(out, cause, CAUSE_ORDER),
                        other => write_value(out, other),
                    }
                }
                out.push(b']');
            }
            (_, value) => write_value(out, value),
        }
    }
    out.push(b'}');
}

fn write_object(out: &mut Vec<u8>, object: &Value, strip_version: bool) {
    let Value::Object(map) = object else {
        write_value(out, object);
        return;
    };
    out.push(b'{');
    let mut first = true;
    for key in ["kind", "apiVersion"] {
        if let Some(v) = map.get(key) {
            write_key(out, key, &mut first);
            write_value(out, v);
        }
    }
    if let Some(v) = map.get("metadata") {
        write_key(out, "metadata", &mut first);
        match v {
            Value::Object(m) => write_metadata(out, m, strip_version),
            other => write_value(out, other),
        }
    }
    for (key, v) in map {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            write_key(out, key, &mut first);
            write_value(out, v);
        }
    }
    out.push(b'}');
}

/// The order of ObjectMeta and ListMeta upstream; the rest follows.
const META_ORDER: [&str; 6] = ["name", "generateName", "namespace", "selfLink", "uid", "resourceVersion"];

fn write_metadata(out: &mut Vec<u8>, map: &Map<String, Value>, strip_version: bool) {
    out.push(b'{');
    let mut first = true;
    for key in META_ORDER {
        if strip_version && key == "resourceVersion" {
            continue;
        }
        if let Some(v) = map.get(key) {
            write_key(out, key, &mut first);
            write_value(out, v);
        }
    }
    for (key, v) in map {
        if !META_ORDER.contains(&key.as_str()) {
            write_key(out, key, &mut first);
            write_value(out, v);
        }
    }
    out.push(b'}');
}

fn write_key(out: &mut Vec<u8>, key: &str, first: &mut bool) {
    if !*first {
        out.push(b',');
    }
    *first = false;
    // custom resources may have any key
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    // writing to memory: a tree of JSON values has no case that fails
    let _ = serde_json::to_writer(out, value);
}

const META: &[u8] = b"\"metadata\":{";

/// The served form: the stored bytes with the resourceVersion spliced in.
pub fn splice(stored: &[u8], resource_version: u64) -> Bytes {
    let Some(at) = stored.windows(META.len()).position(|w| w == META).map(|i| i + META.len()) else {
        return Bytes::copy_from_slice(stored);
    };
    let mut out = Vec::with_capacity(stored.len() + 44);
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(resource_version.to_string().as_bytes());
    out.push(b'"');
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
    Bytes::from(out)
}

/// Where the object's bytes go on after `{"kind":…,"apiVersion":…,`: list items of built-in types carry neither.
pub fn type_prefix_len(served: &[u8]) -> usize {
    served.windows(META.len()).position(|w| w == META).unwrap_or(1)
}

/// Where the value of `metadata` begins, in served bytes with this [`type_prefix_len`].
pub fn metadata_start(served: &[u8], prefix: usize) -> usize {
    (prefix + META.len() - 1).min(served.len())
}

/// Where the JSON object that begins here ends.
pub fn object_end(json: &[u8], start: usize) -> usize {
    let (mut depth, mut in_string, mut at) = (0, false, start);
    while let Some(byte) = json.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    json.len()
}

/// Another resourceVersion in the place of the present one (for the last state of a deleted object).
pub fn resplice(served: &[u8], resource_version: u64) -> Bytes {
    const KEY: &[u8] = b"\"resourceVersion\":\"";
    let Some(start) = served.windows(KEY.len()).position(|w| w == KEY).map(|i| i + KEY.len()) else {
        return Bytes::copy_from_slice(served);
    };
    let len = served[start..].iter().position(|b| *b == b'"').unwrap_or(0);
    let mut out = Vec::with_capacity(served.len() + 8);
    out.extend_from_slice(&served[..start]);
    out.extend_from_slice(resource_version.to_string().as_bytes());
    out.extend_from_slice(&served[start + len..]);
    Bytes::from(out)
}

/// How deep objects may nest: what is written must be readable again, and the JSON reader stops at 128.
const MAX_DEPTH: usize = 120;

/// Whether something is nested deeper than can be stored.
pub fn too_deep(value: &Value) -> bool {
    fn deeper(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left == 0 || items.iter().any(|v| deeper(v, left - 1)),
            Value::Object(map) => left == 0 || map.values().any(|v| deeper(v, left - 1)),
            _ => false,
        }
    }
    deeper(value, MAX_DEPTH)
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let mut out = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        out.push(HEX[(byte >> 4) as usize] as char);
        out.push(HEX[(byte & 15) as usize] as char);
    }
    out
}

/// The five characters that generateName appends, from upstream's alphabet.
pub fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| ALPHABET[rand::random_range(0..ALPHABET.len())] as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_of_any_kind_survive() {
        let object = serde_json::json!({"kind": "X", "apiVersion": "e/v1", "metadata": {"name": "a", "q\"": 1}, "a\",\"metadata\":{}\\": {"b\"": 1}, "\n": 2});
        for bytes in [encode(&object), encode_stored(&object)] {
            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), object);
        }
    }

    #[test]
    fn a_status_is_in_upstreams_order() {
        let errors = [api::field::FieldError::required(&api::field::Path::new("spec"), "why")];
        let status = api::status::invalid("g", "K", "n", &errors).to_value();
        let text = String::from_utf8(encode(&status)).unwrap();
        let expected = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"K.g \"n\" is invalid: spec: Required value: why","reason":"Invalid","#,
            r#""details":{"name":"n","group":"g","kind":"K","causes":[{"reason":"FieldValueRequired","message":"Required value: why","field":"spec"}]},"code":422}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn splicing_makes_the_served_form() {
        let o = json!({"spec": {"metadata": {"a": 1}}, "apiVersion": "v1", "kind": "X",
            "metadata": {"labels": {"b": "c"}, "name": "n", "resourceVersion": "4"}});
        let stored = encode_stored(&o);
        assert!(!String::from_utf8_lossy(&stored).contains("resourceVersion"));
        let served = splice(&stored, 17);
        assert!(served.starts_with(br#"{"kind":"X","apiVersion":"v1","metadata":{"resourceVersion":"17","name":"n""#));
        let v: Value = serde_json::from_slice(&served).unwrap();
        assert_eq!(v["metadata"]["resourceVersion"], "17");
        let again = resplice(&served, 1234);
        let v: Value = serde_json::from_slice(&again).unwrap();
        assert_eq!(v["metadata"]["resourceVersion"], "1234");
        assert_eq!(v["spec"], o["spec"]);
        assert_eq!(&served[type_prefix_len(&served)..][..10], b"\"metadata\"");
        let start = metadata_start(&again, type_prefix_len(&again));
        let metadata: Value = serde_json::from_slice(&again[start..object_end(&again, start)]).unwrap();
        assert_eq!(metadata, v["metadata"]);
        let tricky = br#"{"a":"}\"]{\\","b":[{}]},"c":1"#;
        assert_eq!(object_end(tricky, 0), tricky.len() - 6);
        let empty = splice(&encode_stored(&json!({"kind": "X", "metadata": {}})), 3);
        assert_eq!(&empty[..], br#"{"kind":"X","metadata":{"resourceVersion":"3"}}"#);
    }
}
