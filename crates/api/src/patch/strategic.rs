//! Strategic merge patch: a merge patch whose lists merge by key where the
//! type says so, steered by directives inside the patch (`$patch`,
//! `$retainKeys`, `$deleteFromPrimitiveList/…`, `$setElementOrder/…`).

use crate::seen::Seen;
use crate::status::{self, Status};
use crate::topology::{Node, Strategy};
use serde_json::{Map, Value};
use std::collections::HashMap;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList";
const ELEMENT_ORDER: &str = "$setElementOrder";

const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";
const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_ELEMENT_ORDER: &str = "invalid patch format of setElementOrder list";
const NO_LIST_OF_LISTS: &str = "lists of lists are not supported";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, String>;

/// Applies `patch` (an object) to `current`.
pub fn merge(node: Node<'_>, current: &Value, patch: &Value) -> std::result::Result<Value, Status> {
    let original = current.as_object().cloned().unwrap_or_default();
    let patch = patch.as_object().cloned().unwrap_or_default();
    merge_map(node, original, patch).map(Value::Object).map_err(|e| match e.as_str() {
        BAD_PRIMITIVE_LIST | BAD_RETAIN_KEYS | BAD_ELEMENT_ORDER | "invalid JSON document" => status::bad_request(e),
        NO_LIST_OF_LISTS => super::rejected(),
        _ => Status { code: 500, reason: String::new(), message: e, details: None },
    })
}

fn merge_map(node: Node<'_>, mut original: Object, mut patch: Object) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_patch_type(&directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    order_elements(node, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (key, deleting) = match key.strip_prefix(DELETE_FROM_LIST) {
            Some(rest) => (rest.strip_prefix('/').ok_or(BAD_PRIMITIVE_LIST)?.to_owned(), true),
            None => (key, false),
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(old) = original.remove(&key) else {
            if !deleting && let Some(v) = without_directives(discard_nulls(value)) {
                original.insert(key, v);
            }
            continue;
        };
        let merged = match (old, value) {
            (Value::Object(old), Value::Object(value)) => {
                let (node, how) = node.patch_field(&key)?;
                if how.replace { Value::Object(value) } else { Value::Object(merge_map(node, old, value)?) }
            }
            (Value::Array(old), Value::Array(value)) => {
                let (node, how) = item_field(node, &key)?;
                if how.merge || deleting {
                    Value::Array(merge_list(node, old, value, how.merge_key.unwrap_or_default(), deleting)?)
                } else {
                    Value::Array(value)
                }
            }
            (old, _) if deleting => old,
            (_, value) => match without_directives(discard_nulls(value)) {
                Some(v) => v,
                None => continue,
            },
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn item_field<'a>(node: Node<'a>, key: &str) -> Result<(Node<'a>, Strategy<'a>)> {
    let (list, how) = node.patch_field(key)?;
    Ok((list.element(), how))
}

fn bad_patch_type(directive: &Value, map: &Object) -> String {
    let shown = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    format!("unknown patch type: {shown} in map: {}", go_map(map))
}

/// A map as Go's `%v` prints it.
fn go_map(map: &Object) -> String {
    fn show(v: &Value) -> String {
        match v {
            Value::Object(m) => go_map(m),
            Value::Array(l) => format!("[{}]", l.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::String(s) => s.clone(),
            Value::Null => "<nil>".to_owned(),
            v => v.to_string(),
        }
    }
    let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", show(v))).collect();
    format!("map[{}]", entries.join(" "))
}

fn no_merge_key(map: &Object, key: &str) -> String {
    format!("map: {} does not contain declared merge key: {key}", go_map(map))
}

/// Nulls inside of a value that is new in the object say nothing.
fn discard_nulls(mut v: Value) -> Value {
    fn walk(v: &mut Value) {
        match v {
            Value::Object(m) => {
                m.retain(|_, v| !v.is_null());
                m.values_mut().for_each(walk);
            }
            Value::Array(l) => l.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut v);
    v
}

/// The value without the maps that are directives; `None` when it is one itself.
fn without_directives(v: Value) -> Option<Value> {
    match v {
        Value::Object(m) if m.contains_key(DIRECTIVE) => None,
        Value::Object(m) => {
            Some(Value::Object(m.into_iter().filter_map(|(k, v)| Some((k, without_directives(v)?))).collect()))
        }
        Value::Array(l) => Some(Value::Array(l.into_iter().filter_map(without_directives).collect())),
        v => Some(v),
    }
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keep) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keep = keep.as_array().ok_or(BAD_RETAIN_KEYS)?;
    let keep: Seen<&str> = keep.iter().filter_map(Value::as_str).collect();
    let kept = |k: &str| keep.has(&k);
    for (k, v) in patch.iter() {
        if !v.is_null() && !k.starts_with(DELETE_FROM_LIST) && !k.starts_with(ELEMENT_ORDER) && !kept(k) {
            return Err(BAD_RETAIN_KEYS.to_owned());
        }
    }
    original.retain(|k, _| kept(k));
    Ok(())
}

/// Handles the lists that the patch gives an order for.
fn order_elements(node: Node<'_>, original: &mut Object, patch: &mut Object) -> Result<()> {
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in keys {
        let order = patch.remove(&directive).unwrap_or_default();
        let Value::Array(order) = order else { return Err("expected a []interface {}, but received another type".into()) };
        let key = directive[ELEMENT_ORDER.len()..].strip_prefix('/').ok_or(BAD_ELEMENT_ORDER)?;
        let list = |v: Option<&Value>| match v {
            None => Ok(None),
            Some(Value::Array(l)) => Ok(Some(l.clone())),
            Some(_) => Err("expected a []interface {}, but received another type".to_owned()),
        };
        let (live, change) = (list(original.get(key))?, list(patch.get(key))?);
        let (item, how) = item_field(node, key)?;
        let merge_key = how.merge_key.unwrap_or_default();
        check_order(change.as_deref().unwrap_or_default(), &order, merge_key)?;
        let merged = match (&live, change) {
            (Some(live), None) => live.clone(),
            (None, Some(change)) => match without_directives(Value::Array(change)) {
                Some(Value::Array(l)) => l,
                _ => continue,
            },
            (Some(live), Some(change)) if how.merge => merge_list(item, live.clone(), change, merge_key, false)?,
            (Some(_), Some(change)) => change,
            (None, None) => continue,
        };
        let sorted = normalize_order(merged, &order, live.as_deref().unwrap_or_default(), merge_key)?;
        original.insert(key.to_owned(), Value::Array(sorted));
        patch.remove(key);
    }
    Ok(())
}

/// The patch's list must be in the order that it asks for.
fn check_order(patch: &[Value], order: &[Value], merge_key: &str) -> Result<()> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wanted = order.iter();
    for item in patch {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        let key = identity(item, merge_key)?;
        loop {
            match wanted.next() {
                Some(w) if identity(w, merge_key)? == key => break,
                Some(_) => {}
                None => {
                    let show = |l: &[Value]| l.iter().map(|v| v.as_object().map_or_else(|| v.to_string(), go_map)).collect::<Vec<_>>().join(" ");
                    return Err(format!(
                        "The order in patch list:\n[{}]\n doesn't match {ELEMENT_ORDER} list:\n[{}]\n",
                        show(patch),
                        show(order)
                    ));
                }
            }
        }
    }
    Ok(())
}

/// What tells an item of a list from the others.
fn identity<'a>(item: &'a Value, merge_key: &str) -> Result<&'a Value> {
    if merge_key.is_empty() {
        return Ok(item);
    }
    let m = item.as_object().ok_or("expected a map[string]interface {}, but received another type")?;
    m.get(merge_key).ok_or_else(|| no_merge_key(m, merge_key))
}

fn merge_list(node: Node<'_>, original: Vec<Value>, patch: Vec<Value>, merge_key: &str, deleting: bool) -> Result<Vec<Value>> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let mut items = original.iter().chain(&patch);
    let maps = items.clone().next().is_some_and(Value::is_object);
    if items.clone().any(Value::is_array) {
        return Err(NO_LIST_OF_LISTS.to_owned());
    }
    if items.any(|v| v.is_object() != maps) {
        return Err("list element types are not identical".to_owned());
    }
    if !maps {
        if deleting {
            let gone: Seen<&Value> = patch.iter().collect();
            return Ok(original.into_iter().filter(|v| !gone.has(&v)).collect());
        }
        let mut seen = Seen::default();
        let merged = original.iter().chain(&patch).filter(|v| seen.add(*v)).cloned().collect();
        return normalize_order(merged, &patch, &original, "");
    }
    if merge_key.is_empty() {
        return Err("cannot merge lists without merge key for struct".to_owned());
    }
    let (mut changes, mut gone) = (Vec::new(), Seen::default());
    let mut replace = false;
    for item in patch {
        let Value::Object(m) = item else { continue };
        match m.get(DIRECTIVE) {
            None => changes.push(m),
            Some(d) => match d.as_str() {
                Some("delete") => {
                    gone.add(m.get(merge_key).ok_or_else(|| no_merge_key(&m, merge_key))?.clone());
                }
                Some("replace") => replace = true,
                Some("merge") => return Err("merging lists cannot yet be specified in the patch".to_owned()),
                _ => return Err(bad_patch_type(d, &m)),
            },
        }
    }
    if replace {
        return Ok(changes.into_iter().map(Value::Object).collect());
    }
    let live: Vec<Value> = original.into_iter().filter(|v| v.get(merge_key).is_none_or(|key| !gone.has(key))).collect();
    let mut merged = live.clone();
    let mut places: HashMap<Value, usize> = HashMap::new();
    for (i, key) in live.iter().enumerate().filter_map(|(i, v)| Some((i, v.get(merge_key)?))) {
        places.entry(key.clone()).or_insert(i);
    }
    let mut order = Vec::new();
    for m in changes {
        let key = m.get(merge_key).ok_or_else(|| no_merge_key(&m, merge_key))?.clone();
        order.push(Value::Object(m.clone()));
        match places.get(&key) {
            Some(place) => {
                let old = merged[*place].as_object().cloned().unwrap_or_default();
                merged[*place] = Value::Object(merge_map(node, old, m)?);
            }
            None => {
                places.insert(key, merged.len());
                merged.push(Value::Object(m));
            }
        }
    }
    normalize_order(merged, &order, &live, merge_key)
}

/// Items named by `order` in that order; the others keep their place among them as in `live`.
fn normalize_order<'a>(items: Vec<Value>, order: &'a [Value], live: &'a [Value], merge_key: &str) -> Result<Vec<Value>> {
    let places = |list: &'a [Value]| {
        let mut places: HashMap<&Value, usize> = HashMap::new();
        for (i, key) in list.iter().enumerate().filter_map(|(i, v)| Some((i, identity(v, merge_key).ok()?))) {
            places.entry(key).or_insert(i);
        }
        places
    };
    let (order, live) = (places(order), places(live));
    let position = |places: &HashMap<&Value, usize>, item: &Value| identity(item, merge_key).ok().and_then(|key| places.get(key).copied());
    for i in &items {
        identity(i, merge_key)?;
    }
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|v| position(&order, v).is_some());
    named.sort_by_key(|v| position(&order, v).unwrap_or(usize::MAX));
    others.sort_by_key(|v| position(&live, v).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(n), Some(o)) = (named.peek(), others.peek()) {
        let before = matches!((position(&live, o), position(&live, n)), (Some(o), Some(n)) if o < n);
        out.extend(if before { others.next() } else { named.next() });
    }
    out.extend(named);
    out.extend(others);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::builtin;
    use serde_json::json;

    fn pod(patch: Value) -> std::result::Result<Value, Status> {
        let pod = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]}, "spec": {
            "containers": [{"name": "a", "image": "i", "args": ["1"], "env": [{"name": "E", "value": "1"}]}, {"name": "b"}],
            "tolerations": [{"key": "k"}],
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        merge(builtin("io.k8s.api.core.v1.Pod"), &pod, &patch)
    }

    #[test]
    fn lists_merge_by_key() {
        let v = pod(json!({"spec": {"containers": [{"name": "a", "image": "j", "env": [{"name": "F", "value": "2"}]}, {"name": "c"}],
            "tolerations": [{"key": "l"}]}, "metadata": {"labels": {"a": null, "b": "2"}, "finalizers": ["z"]}}))
        .unwrap();
        assert_eq!(v["spec"]["containers"][0], json!({"name": "a", "image": "j", "args": ["1"], "env": [{"name": "F", "value": "2"}, {"name": "E", "value": "1"}]}));
        let names: Vec<&str> = v["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["a", "c", "b"]);
        assert_eq!(v["spec"]["tolerations"], json!([{"key": "l"}]));
        assert_eq!(v["metadata"]["labels"], json!({"b": "2"}));
        assert_eq!(v["metadata"]["finalizers"], json!(["z", "x", "y"]));
    }

    #[test]
    fn directives() {
        let v = pod(json!({"spec": {"containers": [{"$patch": "delete", "name": "b"}]}})).unwrap();
        assert_eq!(v["spec"]["containers"].as_array().unwrap().len(), 1);
        let v = pod(json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "n"}]}})).unwrap();
        assert_eq!(v["spec"]["containers"], json!([{"name": "n"}]));
        let v = pod(json!({"metadata": {"labels": {"$patch": "replace", "n": "1"}, "$deleteFromPrimitiveList/finalizers": ["x"]}})).unwrap();
        assert_eq!(v["metadata"], json!({"labels": {"n": "1"}, "finalizers": ["y"]}));
        let v = pod(json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/"}}]}})).unwrap();
        assert_eq!(v["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/"}}]));
        let v = pod(json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "x"}]}})).unwrap();
        assert_eq!(v["spec"]["containers"][0], json!({"name": "b", "image": "x"}));
        assert_eq!(v["spec"]["containers"][1]["name"], "a");
    }

    #[test]
    fn errors() {
        let e = pod(json!({"spec": {"containers": [{"image": "x"}]}})).unwrap_err();
        assert_eq!(e.message, "map: map[image:x] does not contain declared merge key: name");
        let e = pod(json!({"spec": {"volumes": [{"$retainKeys": ["name"], "name": "v", "hostPath": {}}]}})).unwrap_err();
        assert_eq!((e.code, e.message.as_str()), (400, BAD_RETAIN_KEYS));
        assert!(merge(Node::Deduced, &json!({"a": {}}), &json!({"a": {}})).is_err());
    }
}
