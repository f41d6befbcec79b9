//! Conversions between types.

use std::sync::Arc;

use super::{Res, time};
use crate::error::Error;
use crate::value::{Opaque, Timestamp, Value};

fn wrong<'a>(value: &Value<'_>, to: &str) -> Res<'a> {
    Err(Error::new(format!("type conversion error from '{}' to '{to}'", value.type_name())))
}

fn number(what: &str, text: &str) -> Error {
    Error::new(format!("strconv.Parse{what}: parsing {text:?}: invalid syntax"))
}

pub(super) fn type_of<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [v] => Ok(Value::Type(Arc::new(v.type_of()))),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn bool<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Bool(v)] => Ok(Value::Bool(*v)),
        [Value::String(s)] => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            text => Err(number("Bool", text)),
        },
        [v] => wrong(v, "bool"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn bytes<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Bytes(b)] => Ok(Value::Bytes(b.clone())),
        [Value::String(s)] => Ok(Value::Bytes(s.as_bytes().into())),
        [v] => wrong(v, "bytes"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn double<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Double(v)] => Ok(Value::Double(*v)),
        [Value::Int(v)] => Ok(Value::Double(*v as f64)),
        [Value::Uint(v)] => Ok(Value::Double(*v as f64)),
        [Value::String(s)] => s.parse().map(Value::Double).map_err(|_| number("Float", s)),
        [v] => wrong(v, "double"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn int<'a>(a: &[Value<'a>]) -> Res<'a> {
    let overflow = || Error::new("integer overflow");
    match a {
        [Value::Int(v)] => Ok(Value::Int(*v)),
        [Value::Uint(v)] => i64::try_from(*v).map(Value::Int).map_err(|_| overflow()),
        [Value::Double(v)] if *v > i64::MIN as f64 && *v < i64::MAX as f64 => Ok(Value::Int(*v as i64)),
        [Value::Double(_)] => Err(overflow()),
        [Value::Duration(v)] => Ok(Value::Int(*v)),
        [Value::Timestamp(t)] => Ok(Value::Int(t.seconds)),
        [Value::String(s)] => s.parse().map(Value::Int).map_err(|_| number("Int", s)),
        [v] => wrong(v, "int"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn uint<'a>(a: &[Value<'a>]) -> Res<'a> {
    let overflow = || Error::new("unsigned integer overflow");
    match a {
        [Value::Uint(v)] => Ok(Value::Uint(*v)),
        [Value::Int(v)] => u64::try_from(*v).map(Value::Uint).map_err(|_| overflow()),
        [Value::Double(v)] if *v >= 0.0 && *v < u64::MAX as f64 => Ok(Value::Uint(*v as u64)),
        [Value::Double(_)] => Err(overflow()),
        [Value::String(s)] => s.parse().map(Value::Uint).map_err(|_| number("Uint", s)),
        [v] => wrong(v, "uint"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn duration<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Duration(v)] => Ok(Value::Duration(*v)),
        [Value::String(s)] => time::parse_duration(s).map(Value::Duration).map_err(|_| wrong(&a[0], "google.protobuf.Duration").err().unwrap_or_else(Error::no_overload)),
        [v] => wrong(v, "google.protobuf.Duration"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn timestamp<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::Timestamp(v)] => Ok(Value::Timestamp(*v)),
        [Value::Int(v)] => {
            time::check_seconds(*v)?;
            Ok(Value::Timestamp(Timestamp { seconds: *v, nanos: 0, offset: 0 }))
        }
        [Value::String(s)] => time::parse_timestamp(s).map(Value::Timestamp),
        [v] => wrong(v, "google.protobuf.Timestamp"),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn string<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [v] => text(v),
        _ => Err(Error::no_overload()),
    }
}

/// A value as text.
pub(super) fn text<'a>(v: &Value<'a>) -> Res<'a> {
    Ok(match v {
        Value::String(s) => Value::String(s.clone()),
        Value::Bool(v) => Value::string(v.to_string()),
        Value::Int(v) => Value::string(v.to_string()),
        Value::Uint(v) => Value::string(v.to_string()),
        Value::Double(v) => Value::string(double_text(*v)),
        Value::Bytes(b) => Value::string(std::str::from_utf8(b).map_err(|_| Error::new("invalid UTF-8 in bytes, cannot convert to string"))?),
        Value::Duration(d) => Value::string(time::format_duration(*d)),
        Value::Timestamp(t) => Value::string(time::format_timestamp(*t)),
        Value::Type(t) => Value::string(t.runtime_name()),
        Value::Opaque(Opaque::Ip(ip)) => Value::string(ip.to_string()),
        Value::Opaque(Opaque::Cidr(cidr)) => Value::string(format!("{}/{}", cidr.address, cidr.bits)),
        v => return wrong(v, "string"),
    })
}

/// A double as Go's `%g` writes it: short, with an exponent where that is shorter.
pub(crate) fn double_text(v: f64) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = format!("{v:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..21).contains(&exponent) {
        return format!("{v}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}
