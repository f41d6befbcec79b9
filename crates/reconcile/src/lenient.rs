//! Objects as servers send them, also where our types are stricter than upstream's. One odd object
//! must not keep an informer from all others of its kind.
//!
//! The case that is known: Go writes a time that was never set as `null`, also in a condition's
//! `lastTransitionTime`, which the published schema requires.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
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
    pub version: String,
    pub error: String,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Decoded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str(raw.get()) {
            Ok(object) => Ok(Decoded::Whole(object)),
            Err(_) => retry(raw.get()).map_err(D::Error::custom),
        }
    }
}

fn retry<K: DeserializeOwned>(text: &str) -> serde_json::Result<Decoded<K>> {
    let mut value: Value = serde_json::from_str(text)?;
    fill_transition_times(&mut value);
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    // From text as above: from the tree, the types' code would be compiled a second time.
    Ok(serde_json::from_str(&value.to_string()).map_or_else(
        |error| {
            let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            Decoded::Odd(Odd { namespace: text("namespace"), name: text("name"), version: text("resourceVersion"), error: error.to_string() })
        },
        Decoded::Whole,
    ))
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
    use kube::api::{ObjectList, WatchEvent};

    use super::*;

    const UNSET: &str = r#"{"metadata":{"name":"a","namespace":"n","resourceVersion":"7"},"status":{"conditions":[{"type":"T","status":"True","reason":"R","message":"","lastTransitionTime":null}]}}"#;
    const ODD: &str = r#"{"metadata":{"name":"b","namespace":"n","resourceVersion":"8"},"spec":{"ports":"none"}}"#;
    const PLAIN: &str = r#"{"metadata":{"name":"c","namespace":"n","resourceVersion":"9"}}"#;

    #[test]
    fn an_odd_object_leaves_the_others_of_its_list() {
        assert!(serde_json::from_str::<Service>(UNSET).is_err(), "the type takes it now: this module may go");
        let text = format!(r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{UNSET},{ODD},{PLAIN}]}}"#);
        let list: ObjectList<Decoded<Service>> = serde_json::from_str(&text).expect("a list");
        let names: Vec<_> = list
            .items
            .iter()
            .map(|d| match d {
                Decoded::Whole(s) => s.metadata.name.clone().unwrap_or_default(),
                Decoded::Odd(odd) => format!("odd {}/{} at {}", odd.namespace, odd.name, odd.version),
            })
            .collect();
        assert_eq!(names, ["a", "odd n/b at 8", "c"]);
        let Decoded::Whole(first) = &list.items[0] else { panic!("{:?}", list.items[0]) };
        let conditions = first.status.as_ref().and_then(|s| s.conditions.as_ref()).expect("conditions");
        assert_eq!(conditions[0].last_transition_time.0.to_string(), "0001-01-01T00:00:00Z");
    }

    #[test]
    fn events_carry_them_too() {
        for (object, whole) in [(UNSET, true), (ODD, false), (PLAIN, true)] {
            let text = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
            let event: WatchEvent<Decoded<Service>> = serde_json::from_str(&text).expect("an event");
            let WatchEvent::Modified(decoded) = event else { panic!("{event:?}") };
            assert_eq!(matches!(decoded, Decoded::Whole(_)), whole, "{decoded:?}");
        }
    }
}
