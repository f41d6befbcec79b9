//! YAML with repeated keys noticed. A second reading, for documents that have such keys, says on which lines they are.

use super::{DecodeError, Decoded};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned, from_slice_with_options};
use std::collections::BTreeSet;
use std::fmt;

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    serde_saphyr::options! { duplicate_keys: duplicate_keys, with_snippet: false }
}

/// One YAML document as a value; the last of repeated keys wins, and each is reported.
pub fn parse(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let strict = match from_slice_with_options::<Value>(bytes, options(DuplicateKeyPolicy::Error)) {
        Ok(value) => return Ok(Decoded { value, duplicates: Vec::new() }),
        Err(strict) => strict,
    };
    let lenient = || options(DuplicateKeyPolicy::LastWins);
    let value = from_slice_with_options::<Value>(bytes, lenient()).map_err(|error| DecodeError::Yaml(error.to_string()))?;
    // The same bytes were read without error before; keys that are equal only to YAML (`1` and `0x1`) are found there alone.
    let found = from_slice_with_options::<Repeated>(bytes, lenient()).map(|r| r.0).unwrap_or_default();
    Ok(Decoded { value, duplicates: if found.is_empty() { vec![strict.to_string()] } else { found } })
}

/// What is said of the repeated keys of a value, in the document's order.
#[derive(Default)]
struct Repeated(Vec<String>);

impl<'de> Deserialize<'de> for Repeated {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Finder)
    }
}

struct Finder;

impl<'de> Visitor<'de> for Finder {
    type Value = Repeated;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_str<E>(self, _: &str) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_unit<E>(self) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_none<E>(self) -> Result<Repeated, E> {
        Ok(Repeated::default())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Repeated, A::Error> {
        let mut found = Vec::new();
        while let Some(Repeated(below)) = seq.next_element()? {
            found.extend(below);
        }
        Ok(Repeated(found))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Repeated, A::Error> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some((key, value)) = map.next_entry::<String, Spanned<Repeated>>()? {
            found.extend(value.value.0);
            // as upstream's reader, which tells the line on which the value begins
            let again = format!("line {}: key {} already set in map", value.referenced.line(), crate::field::go_quote(&key));
            if !seen.insert(key) {
                found.push(again);
            }
        }
        Ok(Repeated(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn repeated_keys_are_told_by_line() {
        let text = "\napiVersion: v1\nspec:\n  unknown: uk1\n  foo: foo1\n  foo: foo2\n  list:\n  - a: 1\n    b: 2\n    a: 3\nspec2:\n  x: {y: 1, y: 2}\n";
        let decoded = parse(text.as_bytes()).unwrap();
        assert_eq!(decoded.value["spec"], json!({"unknown": "uk1", "foo": "foo2", "list": [{"a": 3, "b": 2}]}));
        assert_eq!(
            decoded.duplicates,
            ["line 6: key \"foo\" already set in map", "line 10: key \"a\" already set in map", "line 12: key \"y\" already set in map"]
        );
        assert_eq!(parse(b"a: 1\nb: {a: 2}\n").unwrap().duplicates, [""; 0]);
    }
}
