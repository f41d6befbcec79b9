//! What a call costs when it runs, as upstream counts it.

use crate::value::{List, Map, Opaque, Value};

/// How the cost of a call comes about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CallCost {
    Fixed(u64),
    /// A walk over the first argument, so many tenths a unit of size.
    Walk(u64),
    /// A walk over the result.
    WalkResult,
    InList,
    Shorter,
    Sum,
    Pattern,
    Contains,
    /// A walk over everything within the first argument.
    Deep,
    Selector,
    ContainsIp(bool),
    ContainsCidr(bool),
    Validate,
    /// Two lists against each other, so many times.
    Sets(u64),
    /// A new list as long as the result.
    NewList,
    Range,
    Flatten,
    /// A list, given by the place of the argument, against itself.
    SelfCompare(usize),
}

/// Tenths rounded up.
fn tenths(n: u64) -> u64 {
    n.div_ceil(10)
}

impl CallCost {
    /// The cost of a function's call, given the overloads that the checker chose.
    pub fn of(function: &str, overloads: &[&str]) -> CallCost {
        use CallCost::*;
        let only = if let [one] = overloads { *one } else { "" };
        match only {
            "list_sets_contains_list" | "list_sets_intersects_list" => return Sets(1),
            "list_sets_equivalent_list" => return Sets(2),
            "list_slice" | "list_reverse" => return NewList,
            "lists_range" => return Range,
            "list_flatten" | "list_flatten_int" => return Flatten,
            "list_distinct" => return SelfCompare(0),
            _ if only.starts_with("list_") && only.ends_with("_sort") => return SelfCompare(0),
            _ if only.ends_with("_sortByAssociatedKeys") => return SelfCompare(1),
            _ => {}
        }
        match function {
            "check" => return Fixed(350_000),
            "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name" | "allowed" | "reason" | "error"
            | "errored" => return Fixed(1),
            "fieldSelector" | "labelSelector" => return Selector,
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => return Deep,
            "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey" | "cidr" | "isIP" | "isCIDR" | "quantity"
            | "isQuantity" | "semver" | "isSemver" => return Walk(1),
            "replace" | "split" | "ip.isCanonical" => return Walk(2),
            "join" => return WalkResult,
            "find" | "findAll" => return Pattern,
            "ip" => return if only == "cidr_ip" { Fixed(1) } else { Walk(1) },
            "containsIP" => return ContainsIp(only == "cidr_contains_ip_string"),
            "containsCIDR" => return ContainsCidr(only == "cidr_contains_cidr_string"),
            "validate" => return Validate,
            _ => {}
        }
        match only {
            "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string" | "strings_quote" | "string_format" => Walk(1),
            "in_list" => InList,
            "less_string" | "greater_string" | "less_equals_string" | "greater_equals_string" | "less_bytes" | "greater_bytes"
            | "less_equals_bytes" | "greater_equals_bytes" => Shorter,
            "add_string" | "add_bytes" => Sum,
            "matches_string" => Pattern,
            "contains_string" => Contains,
            _ => Fixed(1),
        }
    }

    /// The cost of what could exhaust memory before it has a result: it is charged first.
    pub fn before(self, args: &[Value<'_>]) -> Option<u64> {
        match (self, args) {
            (CallCost::Range, [Value::Int(n)]) => Some((*n).max(0) as u64 + 11),
            (CallCost::SelfCompare(place), _) => args.get(place).map(self_compare),
            (CallCost::Sets(times), [a, b]) => Some(1u64.saturating_add(a.size().saturating_mul(b.size()).saturating_mul(times))),
            _ => None,
        }
    }

    /// The cost of a call.
    pub fn of_call(self, args: &[Value<'_>], result: &Value<'_>) -> u64 {
        let size = |i: usize| args.get(i).map_or(0, Value::size);
        match self {
            CallCost::Fixed(n) => n,
            CallCost::Walk(n) => tenths(size(0) * n),
            CallCost::WalkResult => tenths(result.size() * 2),
            CallCost::InList => size(1),
            CallCost::Shorter => tenths(size(0).min(size(1))),
            CallCost::Sum => tenths(size(0) + size(1)),
            CallCost::Pattern => tenths(1 + size(0)) * size(1).div_ceil(4),
            CallCost::Contains => tenths(size(0)) * tenths(size(1)),
            CallCost::Deep => args.first().map_or(0, deep),
            CallCost::Selector => {
                let n = size(1);
                10 + tenths(n) + n.div_ceil(2).saturating_mul(50)
            }
            CallCost::ContainsIp(text) => tenths(size(0) * 2) + if text { tenths(size(1)) } else { 0 },
            CallCost::ContainsCidr(text) => tenths(size(0) * 2) + tenths(size(0)) + 1 + if text { tenths(size(1)) } else { 0 },
            CallCost::Validate => {
                let pattern = match args.first() {
                    Some(Value::Opaque(Opaque::Format(format))) => format.pattern_size,
                    _ => 0,
                };
                tenths(1 + size(1)) * pattern.div_ceil(4)
            }
            CallCost::Sets(times) => 1 + size(0).saturating_mul(size(1)).saturating_mul(times),
            CallCost::NewList | CallCost::Range => result.size() + 11,
            CallCost::Flatten => {
                let depth = match args.get(1) {
                    Some(Value::Int(n)) => (*n).max(0) as u64,
                    _ => 1,
                };
                size(0).saturating_mul(depth).saturating_add(11)
            }
            CallCost::SelfCompare(place) => args.get(place).map_or(1, self_compare),
        }
    }
}

fn self_compare(list: &Value<'_>) -> u64 {
    let n = list.size();
    let text = match list {
        Value::List(l) => matches!(l.get(0), Some(Ok(Value::String(_) | Value::Bytes(_)))),
        _ => false,
    };
    let factor = if text { 2.1 } else { 2.0 };
    ((n.saturating_mul(n) as f64 * factor) as u64).saturating_add(11)
}

/// A walk over a value and everything in it.
fn deep(value: &Value<'_>) -> u64 {
    match value {
        Value::String(s) => s.len() as u64 / 10,
        Value::Bytes(b) => b.len() as u64 / 10,
        Value::List(List::Owned(items, _)) => items.iter().map(deep).sum(),
        Value::List(l) => l.iter().map(|v| v.as_ref().map_or(1, deep)).sum(),
        Value::Map(m) => map_cost(m),
        _ => 1,
    }
}

fn map_cost(map: &Map<'_>) -> u64 {
    map.keys().iter().map(|k| deep(k) + map.get(k).map_or(0, |v| v.as_ref().map_or(1, deep))).sum()
}
