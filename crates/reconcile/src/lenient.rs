//! Objects as servers send them, also where our types are stricter than upstream's. One odd object
//! must not keep an informer from all others of its kind.
//!
//! The case that is known: Go writes a time that was never set as `null`, also in a condition's
//! `lastTransitionTime`, which the published schema requires.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

/// An object, or what can be said of one that does not fit its type.
#[derive(Debug, Clone)]
pub(crate) enum Decoded<K> {
    Whole(K),
    Odd(Odd),
}

/// An object that does not fit its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Odd {
    pub namespace: String,
    pub name: String,
    pub error: String,
}

/// Reads an object.
pub(crate) fn decode<K: DeserializeOwned>(raw: &RawValue) -> Decoded<K> {
    serde_json::from_str(raw.get()).map_or_else(|_| retry(raw), Decoded::Whole)
}

fn retry<K: DeserializeOwned>(raw: &RawValue) -> Decoded<K> {
    let (text, metadata) = filled(raw);
    // From text as above: from a tree, the types' code would be compiled a second time.
    serde_json::from_str(&text).map_or_else(
        |error| {
            let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            Decoded::Odd(Odd { namespace: text("namespace"), name: text("name"), error: error.to_string() })
        },
        Decoded::Whole,
    )
}

/// The object without the known case, and its metadata.
fn filled(raw: &RawValue) -> (String, Value) {
    let mut value: Value = serde_json::from_str(raw.get()).expect("raw JSON is JSON");
    fill_transition_times(&mut value);
    (value.to_string(), value.get("metadata").cloned().unwrap_or_default())
}

/// Go's zero time, where `null` stands for it.
fn fill_transition_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                if key == "lastTransitionTime" && value.is_null() {
                    *value = Value::from("0001-01-01T00:00:00Z");
                }
                fill_transition_times(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(fill_transition_times),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    const UNSET: &str = r#"{"metadata":{"name":"a","namespace":"n"},"status":{"conditions":[{"type":"T","status":"True","reason":"R","message":"","lastTransitionTime":null}]}}"#;
    const ODD: &str = r#"{"metadata":{"name":"b","namespace":"n"},"spec":{"ports":"none"}}"#;

    fn service(text: &str) -> Decoded<Service> {
        decode(serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn a_time_that_was_never_set_is_gos_zero() {
        assert!(serde_json::from_str::<Service>(UNSET).is_err(), "the type takes it now: this module may go");
        let Decoded::Whole(service) = service(UNSET) else { panic!("odd") };
        let conditions = service.status.and_then(|s| s.conditions).expect("conditions");
        assert_eq!(conditions[0].last_transition_time.0.to_string(), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn an_odd_object_is_named() {
        let Decoded::Odd(odd) = service(ODD) else { panic!("whole") };
        assert_eq!((&*odd.namespace, &*odd.name), ("n", "b"));
        assert!(odd.error.contains("invalid type: string"), "{}", odd.error);
    }
}
