//! Equality and order across types: numbers of different types compare by their values, everything else only among its like.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::{List, Map, Value};
use crate::error::Error;
use crate::schema::{DeclType, ListKind};

/// Whether two values are equal. Values of different types are not, but for numbers.
pub(crate) fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => **a == **b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a.seconds == b.seconds && a.nanos == b.nanos,
        (Value::List(a), Value::List(b)) => lists(a, b),
        (Value::Map(a), Value::Map(b)) => maps(a, b),
        (Value::Type(a), Value::Type(b)) => a.runtime_name() == b.runtime_name(),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal(a, b),
            (a, b) => a.is_none() && b.is_none(),
        },
        (Value::Opaque(a), Value::Opaque(b)) => a.same(b),
        _ => numbers(a, b) == Some(Ordering::Equal),
    }
}

/// The order of two numbers; none when one is no number, or not a number.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Int(b)) => double(*a, i128::from(*b)),
        (Value::Double(a), Value::Uint(b)) => double(*a, i128::from(*b)),
        (Value::Int(a), Value::Double(b)) => double(*b, i128::from(*a)).map(Ordering::reverse),
        (Value::Uint(a), Value::Double(b)) => double(*b, i128::from(*a)).map(Ordering::reverse),
        _ => None,
    }
}

/// The exact order of a double and an integer.
fn double(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    // Beyond all 64-bit integers the conversion below would saturate.
    if a >= 2f64.powi(64) {
        return Some(Ordering::Greater);
    }
    if a < -(2f64.powi(63)) {
        return Some(Ordering::Less);
    }
    let whole = a.trunc();
    Some((whole as i128).cmp(&b).then_with(|| a.partial_cmp(&whole).unwrap_or(Ordering::Equal)))
}

/// The order of two values that have one.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, Error> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => (**a).cmp(&**b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Duration(a), Value::Duration(b)) => a.cmp(b),
        (Value::Timestamp(a), Value::Timestamp(b)) => (a.seconds, a.nanos).cmp(&(b.seconds, b.nanos)),
        (Value::Double(v), _) | (_, Value::Double(v)) if v.is_nan() => return Err(Error::new("NaN values cannot be ordered")),
        _ => numbers(a, b).ok_or_else(Error::no_overload)?,
    })
}

/// Whether values of this kind have an order.
pub(crate) fn ordered(a: &Value<'_>) -> bool {
    matches!(
        a,
        Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::Duration(_)
            | Value::Timestamp(_)
    )
}

fn lists(a: &List<'_>, b: &List<'_>) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match a.schema().or(b.schema()).map(DeclType::list_kind) {
        Some(ListKind::Set) => {
            let (Ok(a), Ok(b)) = (a.to_vec(), b.to_vec()) else { return false };
            a.iter().all(|v| b.iter().any(|w| equal(v, w)))
        }
        Some(ListKind::Map(keys)) => {
            let (Ok(a), Ok(b)) = (a.to_vec(), b.to_vec()) else { return false };
            a.iter().all(|v| b.iter().any(|w| same_keys(v, w, keys) && equal(v, w)))
        }
        _ => a.iter().zip(b.iter()).all(|(v, w)| matches!((v, w), (Ok(v), Ok(w)) if equal(&v, &w))),
    }
}

/// Whether two items of a list that is a map have the same keys.
pub(crate) fn same_keys(a: &Value<'_>, b: &Value<'_>, keys: &[String]) -> bool {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return false };
    keys.iter().all(|key| match (a.field_or_raw(key), b.field_or_raw(key)) {
        (Some(Ok(v)), Some(Ok(w))) => equal(&v, &w),
        (None, None) => true,
        _ => false,
    })
}

fn maps(a: &Map<'_>, b: &Map<'_>) -> bool {
    if let (Map::Json(a), Map::Json(b)) = (a, b) {
        return a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| trees(v, w)));
    }
    let known = a.len() == b.len()
        && a.keys().iter().all(|key| match (a.get(key), b.get(key)) {
            (Some(Ok(v)), Some(Ok(w))) => equal(&v, &w),
            (None, None) => true,
            _ => false,
        });
    // What a schema does not know is compared as it is.
    match (a, b) {
        (Map::Typed(a, schema), Map::Typed(b, _)) if known => {
            a.iter().filter(|(k, _)| !schema.knows(k)).all(|(k, v)| b.get(k).is_none_or(|w| trees(v, w)))
        }
        _ => known,
    }
}

/// Equality of trees without a schema: numbers by their values.
fn trees(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| trees(v, w))),
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(v, w)| trees(v, w)),
        (Json::Number(_), Json::Number(_)) => numbers(&Value::from_json(a), &Value::from_json(b)) == Some(Ordering::Equal),
        _ => a == b,
    }
}
