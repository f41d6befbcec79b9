//! JSON, YAML and protobuf: what was read and written is read as the same.

use api::codec::{self, ContentType, Gvk};
use serde_json::Value;

use super::{Parts, normal, resource_of};

/// Any JSON.
pub fn json(input: &[u8]) {
    let Ok(decoded) = codec::parse_json(input) else { return };
    codec::in_order_of(input, decoded.duplicates.iter().cloned().chain(["unknown field \"a\"".to_owned()]).collect());
    let text = codec::to_json(&decoded.value);
    let again = codec::parse_json(&text).expect("what was written can be read");
    assert_eq!(again.value, decoded.value);
    assert_eq!(again.duplicates, [""; 0]);
    serde_json::from_str::<Value>(&api::field::go_json(&decoded.value)).expect("JSON");
}

/// Any YAML: as JSON it is the same, and so it is as the YAML that the server writes.
pub fn yaml(input: &[u8]) {
    let Ok(decoded) = codec::yaml(input) else { return };
    let text = codec::to_json(&decoded.value);
    assert_eq!(codec::parse_json(&text).expect("JSON").value, decoded.value);
    let Ok(text) = serde_saphyr::to_string(&decoded.value) else { return };
    match codec::yaml(text.as_bytes()) {
        Ok(again) => assert_eq!(again.value, decoded.value, "written as\n{text}"),
        Err(error) => panic!("{error} in what was written:\n{text}"),
    }
}

/// An object with its envelope: read, it is in normal form; written, it is read as the same.
pub fn protobuf(input: &[u8]) {
    let is_json = codec::decode_envelope(input).is_ok_and(|envelope| envelope.content_type == "application/json");
    let _ = codec::decode(input, ContentType::Protobuf, Some(&Gvk::new("apps", "v1", "Deployment")));
    let Ok(decoded) = codec::decode(input, ContentType::Protobuf, None) else { return };
    if is_json {
        return; // taken as it is, like any JSON
    }
    let Ok(bytes) = codec::encode_protobuf(&decoded.value) else { return };
    let again = codec::decode(&bytes, ContentType::Protobuf, None).expect("what was written can be read").value;
    assert_eq!(codec::encode_protobuf(&again).expect("what was read can be written"), bytes);
    let gvk = Gvk::of(&again);
    if let Some(name) = api::resources::type_name(&gvk.group, &gvk.version, &gvk.kind) {
        let mut normal = again.clone();
        let found = api::schema::normalize(name, &mut normal).expect("the types are right");
        assert_eq!(found.unknown, [""; 0]);
        assert_eq!(normal, again, "is in normal form");
    }
}

/// Protobuf does not tell an empty list, map or bytes from none.
fn without_empty(value: Value) -> Value {
    match value {
        Value::String(text) if text.is_empty() => Value::Null,
        Value::Array(list) if list.is_empty() => Value::Null,
        Value::Object(map) if map.is_empty() => Value::Null,
        Value::Array(list) => list.into_iter().map(without_empty).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, without_empty(v))).filter(|(_, v)| !v.is_null()).collect(),
        other => other,
    }
}

/// An object of a built-in kind in JSON: its normal form is one, and is the same in protobuf.
pub fn object(input: &[u8]) {
    let Some(mut object) = Parts::of(input).tree() else { return };
    let Some(resource) = resource_of(&mut object) else { return };
    let Some(object) = normal(resource, object) else { return };
    let again = normal(resource, object.clone()).expect("a normal form is of the right types");
    assert_eq!(again, object, "normal form of a normal form");
    match codec::encode_protobuf(&object) {
        Ok(bytes) => {
            let decoded = codec::decode(&bytes, ContentType::Protobuf, None).expect("what was written can be read");
            assert_eq!(without_empty(decoded.value), without_empty(object.clone()), "in protobuf");
        }
        Err(codec::EncodeError::NoProtobuf(_)) => {}
        Err(error) => panic!("no protobuf of {object}: {error}"),
    }
    let _ = codec::encode_watch_event_protobuf("ADDED", &object);
}
