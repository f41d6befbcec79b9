//! JSON pointers that are written in code: their names have no escapes, so nothing is allocated on the way.

use serde_json::Value;

/// The value at a pointer such as `/spec/containers/0/name`, whose names have neither `/` nor `~` in them.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    let Some(names) = pointer.strip_prefix('/') else { return pointer.is_empty().then_some(value) };
    names.split('/').try_fold(value, |value, name| match value {
        Value::Object(map) => map.get(name),
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_serde_follows_them() {
        let value = json!({"a": [{"b": null}, 2], "": 3});
        for pointer in ["", "/a", "/a/0/b", "/a/1", "/a/2", "/a/x", "/a/0/b/c", "/", "a", "/b"] {
            assert_eq!(at(&value, pointer), value.pointer(pointer), "{pointer}");
        }
    }
}
