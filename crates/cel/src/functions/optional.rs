//! Values that may be absent.

use super::Res;
use crate::error::Error;
use crate::value::Value;

pub(super) fn of<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [v] => Ok(Value::some(v.clone())),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn of_non_zero<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [v] if v.is_zero() => Ok(Value::Optional(None)),
        _ => of(a),
    }
}

pub(super) fn value<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Optional(Some(v))] => Ok((**v).clone()),
        [Value::Optional(None)] => Err(Error::new("optional.none() dereference")),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn has_value<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Optional(v)] => Ok(Value::Bool(v.is_some())),
        _ => Err(Error::no_overload()),
    }
}

/// The values of a list of optionals.
pub(super) fn unwrap<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::List(list)] = a else { return Err(Error::no_overload()) };
    let mut out = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(v) => out.extend(v.map(|v| (*v).clone())),
            other => return Err(Error::new(format!("value {} is not optional", crate::eval::shown(&other)))),
        }
    }
    Ok(Value::list(out))
}

/// The first or last item of a list, if there is one.
pub(super) fn end<'a>(a: &[Value<'a>], first: bool) -> Res<'a> {
    let [Value::List(list)] = a else { return Err(Error::no_overload()) };
    let place = if first { Some(0) } else { list.len().checked_sub(1) };
    let item = place.and_then(|p| list.get(p)).transpose()?;
    Ok(item.map_or(Value::Optional(None), Value::some))
}
