//! Quantities, and what they share with versions: being compared.

use std::cmp::Ordering;
use std::sync::Arc;

use api::quantity::{Format, Quantity};

use super::Res;
use crate::error::Error;
use crate::value::{Opaque, Value};

fn quantity<'x>(a: &'x [Value<'_>]) -> Result<&'x Quantity, Error> {
    match a.first() {
        Some(Value::Opaque(Opaque::Quantity(q))) => Ok(q),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn parse<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(s)] = a else { return Err(Error::no_overload()) };
    Quantity::parse(s).map(Value::quantity).map_err(|e| Error::new(e.to_string()))
}

pub(super) fn is_quantity<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(s)] = a else { return Err(Error::no_overload()) };
    Ok(Value::Bool(Quantity::parse(s).is_ok()))
}

pub(super) fn sign<'a>(a: &[Value<'a>]) -> Res<'a> {
    quantity(a).map(|q| Value::Int(i64::from(q.sign())))
}

pub(super) fn as_float<'a>(a: &[Value<'a>]) -> Res<'a> {
    quantity(a).map(|q| Value::Double(q.as_f64()))
}

pub(super) fn as_integer<'a>(a: &[Value<'a>]) -> Res<'a> {
    quantity(a)?.as_i64().map(Value::Int).ok_or_else(|| Error::new("cannot convert value to integer"))
}

pub(super) fn is_integer<'a>(a: &[Value<'a>]) -> Res<'a> {
    quantity(a).map(|q| Value::Bool(q.as_i64().is_some()))
}

/// The order of two quantities or of two versions.
pub(super) fn compare(a: &[Value<'_>]) -> Result<Ordering, Error> {
    match a {
        [Value::Opaque(Opaque::Quantity(a)), Value::Opaque(Opaque::Quantity(b))] => Ok(a.cmp(b)),
        [Value::Opaque(Opaque::Semver(a)), Value::Opaque(Opaque::Semver(b))] => Ok(a.compare(b)),
        _ => Err(Error::no_overload()),
    }
}

/// The sum or difference of a quantity and another or a number.
pub(super) fn sum<'a>(a: &[Value<'a>], minus: bool) -> Res<'a> {
    let mut q = quantity(a)?.clone();
    let other = match a.get(1) {
        Some(Value::Opaque(Opaque::Quantity(other))) => other.clone(),
        Some(Value::Int(n)) => Arc::new(Quantity::new(*n, Format::DecimalExponent)),
        _ => return Err(Error::no_overload()),
    };
    if minus { q.sub(&other) } else { q.add(&other) }
    Ok(Value::quantity(q))
}
