//! Functions on lists and maps: order, sums, sets, and the shape of lists.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Res, arithmetic};
use crate::error::Error;
use crate::value::{Key, List, Map, OwnedMap, Value, compare, equal, ordered};

fn list<'x, 'a>(a: &'x [Value<'a>]) -> Result<&'x List<'a>, Error> {
    match a.first() {
        Some(Value::List(list)) => Ok(list),
        _ => Err(Error::no_overload()),
    }
}

/// `in`: an item of a list, or a key of a map.
pub(super) fn contains<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        [item, Value::List(list)] => {
            for v in list.iter() {
                if equal(&v?, item) {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        [key, Value::Map(map)] => map.contains(key).map(Value::Bool),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn is_sorted<'a>(a: &[Value<'a>]) -> Res<'a> {
    let mut before: Option<Value<'a>> = None;
    for item in list(a)?.iter() {
        let item = item?;
        if let Some(before) = &before
            && compare(before, &item)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

pub(super) fn sum<'a>(a: &[Value<'a>]) -> Res<'a> {
    // The planner adds the zero of the list's type, where it is known.
    let mut total: Option<Value<'a>> = a.get(1).cloned();
    for item in list(a)?.iter() {
        let item = item?;
        total = Some(match total {
            None => item,
            Some(total) => arithmetic::add(&[total, item])?,
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

/// `min` and `max`.
pub(super) fn extreme<'a>(a: &[Value<'a>], name: &str) -> Res<'a> {
    let wanted = if name == "max" { Ordering::Greater } else { Ordering::Less };
    let mut best: Option<Value<'a>> = None;
    for item in list(a)?.iter() {
        let item = item?;
        let better = match &best {
            None => true,
            Some(best) => compare(&item, best)? == wanted,
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Error::new(format!("{name} called on empty list")))
}

pub(super) fn slice<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::List(list), Value::Int(start), Value::Int(end)] = a else { return Err(Error::no_overload()) };
    let wrong = |why: String| Err(Error::new(format!("cannot slice({start}, {end}), {why}")));
    if *start < 0 || *end < 0 {
        return wrong("negative indexes not supported".into());
    }
    if start > end {
        return wrong("start index must be less than or equal to end index".into());
    }
    if (list.len() as i64) < *end {
        return wrong(format!("list is length {}", list.len()));
    }
    (*start..*end).filter_map(|i| list.get(i as usize)).collect::<Result<Vec<_>, _>>().map(Value::list)
}

pub(super) fn flatten<'a>(a: &[Value<'a>]) -> Res<'a> {
    let depth = match a.get(1) {
        None => 1,
        Some(Value::Int(n)) => *n,
        Some(_) => return Err(Error::no_overload()),
    };
    if depth < 0 {
        return Err(Error::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    flatten_into(list(a)?, depth, &mut out)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(list: &List<'a>, depth: i64, out: &mut Vec<Value<'a>>) -> Result<(), Error> {
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(&inner, depth - 1, out)?,
            item => out.push(item),
        }
    }
    Ok(())
}

/// A list in the order of its items, or of a second list of keys.
pub(super) fn sort<'a>(a: &[Value<'a>]) -> Res<'a> {
    let items = list(a)?.to_vec()?;
    let keys = match a.get(1) {
        None => items.clone(),
        Some(Value::List(keys)) => keys.to_vec()?,
        Some(_) => return Err(Error::no_overload()),
    };
    if items.len() != keys.len() {
        return Err(Error::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively",
            items.len(),
            keys.len()
        )));
    }
    let Some(first) = keys.first() else { return Ok(Value::list(items)) };
    if !ordered(first) {
        return Err(Error::new("list elements must be comparable"));
    }
    if keys.iter().any(|k| k.type_name() != first.type_name()) {
        return Err(Error::new("list elements must have the same type"));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(items).collect();
    // What has no order, like NaN, stays where it is.
    pairs.sort_by(|(a, _), (b, _)| compare(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(pairs.into_iter().map(|(_, item)| item).collect()))
}

pub(super) fn range<'a>(a: &[Value<'a>]) -> Res<'a> {
    match a {
        // Its cost has been charged, so it is not too long.
        [Value::Int(n)] => Ok(Value::list((0..*n).map(Value::Int).collect())),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn reverse<'a>(a: &[Value<'a>]) -> Res<'a> {
    let mut items = list(a)?.to_vec()?;
    items.reverse();
    Ok(Value::list(items))
}

pub(super) fn distinct<'a>(a: &[Value<'a>]) -> Res<'a> {
    let mut out: Vec<Value<'a>> = Vec::new();
    for item in list(a)?.iter() {
        let item = item?;
        if !out.iter().any(|v| equal(v, &item)) {
            out.push(item);
        }
    }
    Ok(Value::list(out))
}

/// What is asked of two lists as sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sets {
    Contains,
    Equivalent,
    Intersects,
}

pub(super) fn sets<'a>(a: &[Value<'a>], question: Sets) -> Res<'a> {
    let [Value::List(a), Value::List(b)] = a else { return Err(Error::no_overload()) };
    let (a, b) = (a.to_vec()?, b.to_vec()?);
    let within = |small: &[Value<'a>], large: &[Value<'a>]| small.iter().all(|v| large.iter().any(|w| equal(v, w)));
    Ok(Value::Bool(match question {
        Sets::Contains => within(&b, &a),
        Sets::Equivalent => within(&b, &a) && within(&a, &b),
        Sets::Intersects => a.iter().any(|v| b.iter().any(|w| equal(v, w))),
    }))
}

/// A map with one more entry (a key and a value), or with those of another map. A key can be given only once.
pub(crate) fn map_insert<'a>(map: Value<'a>, more: &[Value<'a>]) -> Res<'a> {
    let mut owned = match map {
        Value::Map(Map::Owned(map)) => map,
        Value::Map(map) => {
            let mut owned = OwnedMap::default();
            for key in map.keys() {
                if let (Some(k), Some(v)) = (Key::of(&key), map.get(&key)) {
                    owned.entries.insert(k, v?);
                }
            }
            Arc::new(owned)
        }
        _ => return Err(Error::no_overload()),
    };
    let entries = &mut Arc::make_mut(&mut owned).entries;
    let mut insert = |key: &Value<'a>, value: Value<'a>| {
        let key = Key::of(key).ok_or_else(|| Error::new(format!("unsupported key type: {}", key.type_name())))?;
        if entries.contains_key(&key) {
            return Err(Error::new(format!("insert failed: key {key} already exists")));
        }
        entries.insert(key, value);
        Ok(())
    };
    match more {
        [key, value] => insert(key, value.clone())?,
        [Value::Map(other)] => {
            for key in other.keys() {
                if let Some(value) = other.get(&key) {
                    insert(&key, value?)?;
                }
            }
        }
        _ => return Err(Error::no_overload()),
    }
    Ok(Value::Map(Map::Owned(owned)))
}
