//! Mutations that know what inputs are made of: parts, JSON trees, tokens, numbers that are just too large.
//!
//! They are a function of the input and a seed, so that what was found can be found again.

use serde_json::{Map, Value};

use crate::BETWEEN;

/// A small generator of random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    /// From a seed; any will do.
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 16) % n.max(1) as u64) as usize
    }

    fn one<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Texts that mean something to one of the readers.
const TOKENS: &[&str] = &[
    "\"", "\\", "\\u0000", "\\ud800", "{", "}", "[", "]", "{}", "[]", ":", ",", "null", "true", "false", "-", "0", "1", "-1", "1e400", "1e-400", "0.1",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "2147483648", "65536", "1.0", "1Ki", "100m", "1e3", "1E",
    "25%", "NaN", "Infinity", ".", "..", "/", "//", "%2f", "%00", "%", "~0", "~1", "*", "@", "#", "$", "&a", "*a", "<<: ", "!!int", "!!binary", "|\n", ">-\n",
    "---\n", "- ", "? ", "'", "\n", "\r\n", "\t", " ", "\0", "\u{feff}", "é", "\u{2028}", "👑", "=", "==", "!=", "!", " in ", " notin ", "(", ")", "exists",
    "f:", "k:", "v:", "k:{\"name\":\"a\"}", "i:0", "$patch", "delete", "replace", "merge", "$retainKeys", "$setElementOrder/", "$deleteFromPrimitiveList/",
    "op", "add", "remove", "copy", "move", "test", "path", "from", "value", "metadata", "name", "namespace", "labels", "annotations", "managedFields", "spec",
    "status", "items", "containers", "ports", "uid", "resourceVersion", "2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z", "1m30s", "-24h", "@every 1s",
    "*/5 * * * *", "self", "oldSelf", "object", "has(", ".all(x, ", ".exists(x, ", ".map(x, ", ".filter(x, ", "size(", " && ", " || ", " ? ", " : ", " + ",
    " == ", "dyn(", "int(", "string(", "duration(", "timestamp(", "quantity(", "ip('", "cidr('", "url('", "semver('", ".matches('", "(a+)+$", ".split('",
    ".replace('", ".format([", "optional.of(", ".?", "[?", "b'", "r'", "type", "properties", "additionalProperties", "x-kubernetes-", "-preserve-unknown-fields",
    "-list-type", "-list-map-keys", "-int-or-string", "-validations", "-embedded-resource", "string", "integer", "number", "boolean", "array", "format",
    "pattern", "default", "nullable", "maxLength", "enum", "allOf", "not", "required", "?watch=1", "&limit=1", "&continue=", "&resourceVersion=",
    "&resourceVersionMatch=", "Exact", "NotOlderThan", "&labelSelector=", "&fieldSelector=", "&sendInitialEvents=true", "&dryRun=All", "&fieldManager=",
    "&force=true", "&fieldValidation=Strict", "&timeoutSeconds=1", "&pretty=1", "k8s\0", "\n===\n", "-----BEGIN CERTIFICATE-----", "sha256:", ":latest",
];

/// A mutation of an input, of at most `max` bytes.
pub fn mutate(input: &[u8], seed: u64, max: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut parts: Vec<Vec<u8>> = split(input).into_iter().map(<[u8]>::to_vec).collect();
    for _ in 0..1 + random.below(4) {
        let at = random.below(parts.len());
        let tree = if random.below(4) == 0 { None } else { serde_json::from_slice::<Value>(&parts[at]).ok() };
        match tree {
            Some(mut tree) if tree.is_object() || tree.is_array() => {
                let other = random.below(parts.len());
                let donor = serde_json::from_slice(&parts[other]).unwrap_or(Value::Null);
                tree_once(&mut tree, &donor, &mut random);
                parts[at] = serde_json::to_vec(&tree).unwrap_or_default();
            }
            _ => bytes_once(&mut parts[at], &mut random),
        }
    }
    if random.below(20) == 0 {
        let (a, b) = (random.below(parts.len()), random.below(parts.len()));
        parts.swap(a, b);
    }
    let mut out = parts.join(BETWEEN);
    out.truncate(max);
    out
}

/// The parts of an input.
pub fn split(input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = input;
    while let Some(at) = rest.windows(BETWEEN.len()).position(|w| w == BETWEEN) {
        parts.push(&rest[..at]);
        rest = &rest[at + BETWEEN.len()..];
    }
    parts.push(rest);
    parts
}

fn bytes_once(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => drop(bytes.drain(at..end)),
        3 => {
            let again = bytes[at..end].to_vec();
            let times = if random.below(10) == 0 { 200 } else { 1 };
            bytes.splice(at..at, again.repeat(times));
        }
        4 => bytes.truncate(at),
        5 => {
            let from = random.below(bytes.len() + 1);
            let to = (from + random.below(64)).min(bytes.len());
            let piece = bytes[from..to].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => drop(bytes.splice(at..if random.below(2) == 0 { at } else { end }, random.one(TOKENS).bytes())),
    }
}

/// How many nodes a tree has.
fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The `n`th node.
fn node<'a>(tree: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(tree);
    }
    *n -= 1;
    match tree {
        Value::Array(list) => list.iter_mut().find_map(|v| node(v, n)),
        Value::Object(map) => map.values_mut().find_map(|v| node(v, n)),
        _ => None,
    }
}

fn any<'a>(tree: &'a mut Value, random: &mut Random) -> Option<&'a mut Value> {
    let mut n = random.below(count(tree));
    node(tree, &mut n)
}

/// A value that is seldom meant.
fn odd(random: &mut Random) -> Value {
    match random.below(14) {
        0 => Value::Null,
        1 => true.into(),
        2 => i64::MAX.into(),
        3 => i64::MIN.into(),
        4 => u64::MAX.into(),
        5 => 0.into(),
        6 => (-1).into(),
        7 => 1.5e300.into(),
        8 => Value::Array(Vec::new()),
        9 => Value::Object(Map::new()),
        10 => Value::Array(vec![Value::Null]),
        11 => "x".repeat(300).into(),
        12 => i64::from(random.next() as i32).into(),
        _ => random.one(TOKENS).into(),
    }
}

fn tree_once(tree: &mut Value, donor: &Value, random: &mut Random) {
    let mut donor = donor.clone();
    let given = any(&mut donor, random).map(|v| v.take()).unwrap_or_default();
    let Some(place) = any(tree, random) else { return };
    match (random.below(8), &mut *place) {
        (0, place) => *place = odd(random),
        (1, place) => *place = given,
        (2, place) => {
            let depth = if random.below(20) == 0 { 200 } else { 1 };
            for _ in 0..depth {
                let inner = place.take();
                *place = if random.below(2) == 0 { Value::Array(vec![inner]) } else { Value::Object([("a".to_owned(), inner)].into_iter().collect()) };
            }
        }
        (_, Value::String(text)) => {
            let mut bytes = std::mem::take(text).into_bytes();
            bytes_once(&mut bytes, random);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        (n, Value::Array(list)) => {
            let at = random.below(list.len().max(1));
            match n {
                3 if at < list.len() => drop(list.remove(at)),
                4 if at < list.len() => list.insert(at, list[at].clone()),
                5 if at < list.len() => {
                    let last = list.len() - 1;
                    list.swap(at, last);
                }
                _ => list.insert(at.min(list.len()), given),
            }
        }
        (n, Value::Object(map)) => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            match n {
                3 => drop(map.remove(&key)),
                4 => {
                    let value = map.remove(&key).unwrap_or_default();
                    map.insert(random.one(TOKENS).to_owned(), value);
                }
                5 => {
                    let value = map.get(&key).cloned().unwrap_or_default();
                    map.insert(format!("{key}{}", random.one(TOKENS)), value);
                }
                6 => drop(map.insert(random.one(TOKENS).to_owned(), odd(random))),
                _ => match given {
                    Value::Object(other) => map.extend(other),
                    other => drop(map.insert(key, other)),
                },
            }
        }
        (_, place) => *place = odd(random),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutations_differ_by_seed_and_are_the_same_again() {
        let input = b"{\"a\":[1,{\"b\":\"c\"}]}\n===\nsome text";
        let made: std::collections::BTreeSet<Vec<u8>> = (0..500).map(|seed| mutate(input, seed, 1000)).collect();
        assert!(made.len() > 300, "{} different ones", made.len());
        assert_eq!(mutate(input, 7, 1000), mutate(input, 7, 1000));
        assert!((0..500).all(|seed| mutate(input, seed, 10).len() <= 10));
        assert!((0..100).all(|seed| mutate(b"", seed, 10).len() <= 10));
    }

    #[test]
    fn parts_are_split() {
        assert_eq!(split(b"a\n===\n\n===\nb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(split(b""), [b""]);
    }
}
