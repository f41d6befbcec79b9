//! JSON with repeated keys noticed. Reading builds the tree in one pass; only when a key was
//! repeated are the bytes read a second time, to say where.

use super::{DecodeError, Decoded};
use crate::schema::MOST_UNKNOWN;
use serde::Deserializer as _;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// Parses a JSON document.
pub fn parse(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let repeated = Cell::new(false);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Tree { repeated: &repeated }.deserialize(&mut reader).map_err(error)?;
    reader.end().map_err(error)?;
    let duplicates = if repeated.get() { find(bytes) } else { Vec::new() };
    Ok(Decoded { value, duplicates })
}

fn error(e: serde_json::Error) -> DecodeError {
    DecodeError::Json(if e.is_eof() { "unexpected end of JSON input".into() } else { e.to_string() })
}

#[derive(Clone, Copy)]
struct Tree<'a> {
    repeated: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(self)?;
            if map.insert(key, value).is_some() {
                self.repeated.set(true);
            }
        }
        Ok(Value::Object(map))
    }
}

/// Names the repeated keys of a document that is known to parse, [`MOST_UNKNOWN`] at most.
fn find(bytes: &[u8]) -> Vec<String> {
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    keys(bytes, &mut |path, again| {
        if again && found.len() < MOST_UNKNOWN && !seen.contains(path) {
            seen.insert(path.to_owned());
            found.push(format!("duplicate field \"{path}\""));
        }
    });
    found
}

/// Tells of all keys in the order of the document: the path, and whether it was there before.
fn keys(bytes: &[u8], met: &mut dyn FnMut(&str, bool)) {
    let finder = Finder { path: &RefCell::new(String::new()), met: &RefCell::new(met) };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    // the same bytes were read without error before
    let _ = reader.deserialize_any(finder);
}

/// Puts messages about unknown and duplicate fields into the order in which a document has the fields. Where one is
/// very long they stay as they are, for each key's path would be compared with it.
pub fn in_order_of(bytes: &[u8], mut messages: Vec<String>) -> Vec<String> {
    const LONG: usize = 8192;
    if messages.iter().any(|m| m.len() > LONG) {
        return messages;
    }
    let mut places: HashMap<String, usize> = messages.iter().map(|m| (m.clone(), usize::MAX)).collect();
    let mut count = 0;
    keys(bytes, &mut |path, again| {
        count += 1;
        if path.len() <= LONG
            && let Some(place) = places.get_mut(&format!("{} field \"{path}\"", if again { "duplicate" } else { "unknown" }))
        {
            *place = count.min(*place);
        }
    });
    messages.sort_by_cached_key(|message| places.get(message).copied());
    messages
}

#[derive(Clone, Copy)]
struct Finder<'a, 'm> {
    path: &'a RefCell<String>,
    met: &'a RefCell<&'m mut dyn FnMut(&str, bool)>,
}

impl<'de> DeserializeSeed<'de> for Finder<'_, '_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Finder<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let length = self.path.borrow().len();
        for index in 0.. {
            self.path.borrow_mut().push_str(&format!("[{index}]"));
            let more = seq.next_element_seed(self)?.is_some();
            self.path.borrow_mut().truncate(length);
            if !more {
                break;
            }
        }
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        let length = self.path.borrow().len();
        let mut seen = HashSet::new();
        while let Some(key) = access.next_key::<String>()? {
            {
                let mut path = self.path.borrow_mut();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(&key);
                (self.met.borrow_mut())(&path, !seen.insert(key));
            }
            access.next_value_seed(self)?;
            self.path.borrow_mut().truncate(length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_keys_are_named_and_the_last_wins() {
        let text = br#"{"a":1,"spec":{"l":[{"x":1},{"x":1,"y":{},"x":2}],"r":1,"r":3},"a":2}"#;
        let decoded = parse(text).unwrap();
        assert_eq!(decoded.value, json!({"a": 2, "spec": {"l": [{"x": 1}, {"x": 2, "y": {}}], "r": 3}}));
        assert_eq!(
            decoded.duplicates,
            ["duplicate field \"spec.l[1].x\"", "duplicate field \"spec.r\"", "duplicate field \"a\""]
        );
    }

    #[test]
    fn complaints_follow_the_document() {
        let text = br#"{"spec":{"x":1,"r":1,"r":3},"y":2}"#;
        let given = ["duplicate field \"spec.r\"", "unknown field \"spec.x\"", "unknown field \"y\""].map(String::from).to_vec();
        assert_eq!(
            in_order_of(text, given),
            ["unknown field \"spec.x\"", "duplicate field \"spec.r\"", "unknown field \"y\""]
        );
    }

    #[test]
    fn fractions_are_read_exactly() {
        let text = r#"{"0.1":[1e3,-0,"2.5 \\","\"",9223372036854775223372036854775807,123456789012345.67e-8,18446744073709551615,-9223372036854775809]}"#;
        let expected = json!({"0.1": [1000.0, -0.0, "2.5 \\", "\"", 9.223372036854775e33, 1234567.8901234567, u64::MAX, -9.223372036854776e18]});
        assert_eq!(parse(text.as_bytes()).unwrap().value, expected);
        // What is read and written stays as it is.
        for n in 1..2000u32 {
            let text = format!("[{}]", f64::from(n).sqrt() * 10f64.powi(n as i32 % 600 - 300));
            let value = parse(text.as_bytes()).unwrap().value;
            assert_eq!(parse(value.to_string().as_bytes()).unwrap().value, value, "{text}");
        }
    }

    #[test]
    fn bad_documents_are_errors() {
        assert_eq!(parse(b"{").unwrap_err().to_string(), "unexpected end of JSON input");
        assert!(parse(b"{} x").is_err());
        assert_eq!(parse(br#"{"a":-1.5e3,"b":18446744073709551615}"#).unwrap().value, json!({"a": -1500.0, "b": u64::MAX}));
    }
}
