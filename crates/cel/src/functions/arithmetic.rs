//! Operators on numbers, times, text and lists. What leaves the range of a type is an error.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{LONGEST, Res, time};
use crate::error::Error;
use crate::schema::ListKind;
use crate::value::{List, Value, compare, equal};

const INT: Error2 = Error2("integer overflow");
const UINT: Error2 = Error2("unsigned integer overflow");

/// A message that becomes an error where it is needed.
struct Error2(&'static str);

impl Error2 {
    fn error(&self) -> Error {
        Error::new(self.0)
    }
}

fn int<'a>(v: Option<i64>) -> Res<'a> {
    v.map(Value::Int).ok_or_else(|| INT.error())
}

fn uint<'a>(v: Option<u64>) -> Res<'a> {
    v.map(Value::Uint).ok_or_else(|| UINT.error())
}

fn duration<'a>(v: Option<i64>) -> Res<'a> {
    v.map(Value::Duration).ok_or_else(|| Error::new("duration overflow"))
}

pub(super) fn negate<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(v)] => int(v.checked_neg()),
        [Value::Double(v)] => Ok(Value::Double(-v)),
        [Value::Duration(v)] => duration(v.checked_neg()),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn add<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => int(a.checked_add(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_add(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::Duration(a), Value::Duration(b)] => duration(a.checked_add(*b)),
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => time::shift(*t, *d),
        [Value::String(a), Value::String(b)] => {
            if a.len() + b.len() > LONGEST {
                return Err(Error::new("text is too long"));
            }
            Ok(Value::string([&**a, &**b].concat()))
        }
        [Value::Bytes(a), Value::Bytes(b)] => Ok(Value::Bytes([&**a, &**b].concat().into())),
        [Value::List(a), Value::List(b)] => lists(a, b),
        _ => Err(Error::no_overload()),
    }
}

/// Lists joined: sets and maps keep being what they are.
fn lists<'a>(a: &List<'a>, b: &List<'a>) -> Res<'a> {
    let schema = a.schema();
    let mut items = a.to_vec()?;
    match schema.map(|s| s.list_kind()) {
        Some(ListKind::Set) => {
            for item in b.iter() {
                let item = item?;
                if !items.iter().any(|v| equal(v, &item)) {
                    items.push(item);
                }
            }
        }
        Some(ListKind::Map(keys)) => {
            let own = items.len();
            for item in b.iter() {
                let item = item?;
                match items[..own].iter().position(|v| crate::value::same_keys(v, &item, keys)) {
                    Some(place) => items[place] = item,
                    None => items.push(item),
                }
            }
        }
        _ => {
            items.reserve(b.len());
            for item in b.iter() {
                items.push(item?);
            }
        }
    }
    let schema = schema.filter(|s| *s.list_kind() != ListKind::Atomic);
    Ok(Value::List(List::Owned(Arc::new(items), schema)))
}

pub(super) fn subtract<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => int(a.checked_sub(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_sub(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Duration(a), Value::Duration(b)] => duration(a.checked_sub(*b)),
        [Value::Timestamp(t), Value::Duration(d)] => time::shift(*t, d.checked_neg().ok_or_else(|| Error::new("duration overflow"))?),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanos = i128::from(a.seconds - b.seconds) * 1_000_000_000 + i128::from(a.nanos) - i128::from(b.nanos);
            duration(i64::try_from(nanos).ok())
        }
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn multiply<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(a), Value::Int(b)] => int(a.checked_mul(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_mul(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn divide<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => Err(Error::new("division by zero")),
        [Value::Int(a), Value::Int(b)] => int(a.checked_div(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_div(*b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn modulo<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => Err(Error::new("modulus by zero")),
        [Value::Int(a), Value::Int(b)] => int(a.checked_rem(*b)),
        [Value::Uint(a), Value::Uint(b)] => uint(a.checked_rem(*b)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn relation<'a>(a: &[Value<'a>], holds: fn(Ordering) -> bool) -> Res<'a> {
    match a {
        [a, b] => compare(a, b).map(|o| Value::Bool(holds(o))),
        _ => Err(Error::no_overload()),
    }
}
