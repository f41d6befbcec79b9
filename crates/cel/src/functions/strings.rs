//! Functions on text. Places are counted in code points.

use super::{LONGEST, Res};
use crate::error::Error;
use crate::value::{List, Str, Value, char_count, equal};

fn out_of_range(index: i64) -> Error {
    Error::new(format!("index out of range: {index}"))
}

/// The byte at which a code point begins; its end for the one behind the last.
fn byte_at(s: &str, point: usize) -> Option<usize> {
    if s.is_ascii() {
        return (point <= s.len()).then_some(point);
    }
    s.char_indices().map(|(i, _)| i).chain([s.len()]).nth(point)
}

/// The text from one code point to before another.
fn cut<'a>(s: &Str<'a>, from: usize, to: usize) -> Option<Value<'a>> {
    let (from, to) = (byte_at(s, from)?, byte_at(s, to)?);
    Some(match s {
        Str::Borrowed(s) => Value::borrowed(&s[from..to]),
        Str::Shared(s) => Value::string(&s[from..to]),
    })
}

pub(super) fn size<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [v @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => Ok(Value::Int(v.size() as i64)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn test<'a>(a: &[Value<'a>], holds: fn(&str, &str) -> bool) -> Res<'a> {
    match a {
        [Value::String(s), Value::String(t)] => Ok(Value::Bool(holds(s, t))),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn map<'a>(a: &[Value<'a>], f: fn(&str) -> String) -> Res<'a> {
    match a {
        [Value::String(s)] => Ok(Value::string(f(s))),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn char_at<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(s), Value::Int(i)] = a else { return Err(Error::no_overload()) };
    let place = usize::try_from(*i).map_err(|_| out_of_range(*i))?;
    let start = byte_at(s, place).ok_or_else(|| out_of_range(*i))?;
    let end = start + s[start..].chars().next().map_or(0, char::len_utf8);
    Ok(Value::string(&s[start..end]))
}

pub(super) fn index_of<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::List(list), item] => find_item(list, item, false),
        [Value::String(s), Value::String(part)] => Ok(first(s, part, 0)),
        [Value::String(s), Value::String(part), Value::Int(from)] => {
            let start = usize::try_from(*from).map_err(|_| out_of_range(*from))?;
            Ok(first(s, part, start))
        }
        _ => Err(Error::no_overload()),
    }
}

fn first<'a>(s: &str, part: &str, from: usize) -> Value<'a> {
    if part.is_empty() {
        return Value::Int(from.min(char_count(s)) as i64);
    }
    let Some(start) = byte_at(s, from) else { return Value::Int(-1) };
    Value::Int(s[start..].find(part).map_or(-1, |at| (from + char_count(&s[start..start + at])) as i64))
}

pub(super) fn last_index_of<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [Value::List(list), item] => find_item(list, item, true),
        [Value::String(s), Value::String(part)] => Ok(Value::Int(s.rfind(&**part).map_or(-1, |at| char_count(&s[..at]) as i64))),
        [Value::String(s), Value::String(part), Value::Int(from)] => {
            let from = usize::try_from(*from).map_err(|_| out_of_range(*from))?;
            let length = char_count(s);
            if part.is_empty() {
                return Ok(Value::Int(from.min(length) as i64));
            }
            if from >= length {
                return Ok(Value::Int(-1));
            }
            // The match begins at that place or before it.
            let last = from.min(length.saturating_sub(char_count(part)));
            let end = byte_at(s, last).map_or(s.len(), |b| b + part.len()).min(s.len());
            let end = (end..=s.len()).find(|e| s.is_char_boundary(*e)).unwrap_or(s.len());
            Ok(Value::Int(s[..end].rfind(&**part).map_or(-1, |at| char_count(&s[..at]) as i64)))
        }
        _ => Err(Error::no_overload()),
    }
}

fn find_item<'a>(list: &List<'a>, item: &Value<'a>, last: bool) -> Res<'a> {
    let mut found = -1;
    for (i, v) in list.iter().enumerate() {
        if equal(&v?, item) {
            found = i as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

pub(super) fn replace<'a>(a: &[Value<'a>]) -> Res<'a> {
    let (s, old, new, limit) = match a {
        [Value::String(s), Value::String(old), Value::String(new)] => (s, old, new, -1),
        [Value::String(s), Value::String(old), Value::String(new), Value::Int(n)] => (s, old, new, *n),
        _ => return Err(Error::no_overload()),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let times = if old.is_empty() { char_count(s) + 1 } else { s.matches(&**old).count() }.min(limit);
    if s.len().saturating_add(times.saturating_mul(new.len())) > LONGEST {
        return Err(Error::new("text is too long"));
    }
    Ok(Value::string(s.replacen(&**old, new, limit)))
}

pub(super) fn split<'a>(a: &[Value<'a>]) -> Res<'a> {
    let (s, by, limit) = match a {
        [Value::String(s), Value::String(by)] => (s, by, -1),
        [Value::String(s), Value::String(by), Value::Int(n)] => (s, by, *n),
        _ => return Err(Error::no_overload()),
    };
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = if by.is_empty() {
        let mut parts: Vec<&str> = Vec::new();
        let mut rest: &str = s;
        while let Some(c) = rest.chars().next() {
            if parts.len() + 1 == limit {
                break;
            }
            let (head, tail) = rest.split_at(c.len_utf8());
            parts.push(head);
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
        parts
    } else {
        s.splitn(limit, &**by).collect()
    };
    Ok(Value::list(parts.drain(..).map(Value::string).collect()))
}

pub(super) fn substring<'a>(a: &[Value<'a>]) -> Res<'a> {
    let (s, start, end) = match a {
        [Value::String(s), Value::Int(start)] => (s, *start, char_count(s) as i64),
        [Value::String(s), Value::Int(start), Value::Int(end)] => {
            if start > end {
                return Err(Error::new(format!("invalid substring range. start: {start}, end: {end}")));
            }
            (s, *start, *end)
        }
        _ => return Err(Error::no_overload()),
    };
    let length = char_count(s) as i64;
    for place in [start, end] {
        if !(0..=length).contains(&place) {
            return Err(out_of_range(place));
        }
    }
    cut(s, start as usize, end as usize).ok_or_else(|| out_of_range(start))
}

pub(super) fn join<'a>(a: &[Value<'a>]) -> Res<'a> {
    let (list, by) = match a {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(by)] => (list, &**by),
        _ => return Err(Error::no_overload()),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = item?;
        let Value::String(s) = &item else { return Err(Error::new(format!("join: invalid input: {}", crate::eval::shown(&item)))) };
        if i > 0 {
            out.push_str(by);
        }
        out.push_str(s);
        if out.len() > LONGEST {
            return Err(Error::new("text is too long"));
        }
    }
    Ok(Value::string(out))
}

/// A text between quotes, with what is special escaped.
pub(super) fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
