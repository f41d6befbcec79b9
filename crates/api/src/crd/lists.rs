//! Lists that are sets or maps have no item twice.

use super::schema::{Additional, Schema};
use crate::field::{FieldError, Path};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// What is there twice, in lists of type `set` and `map`.
pub fn validate_lists(value: &Value, schema: &Schema) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(&Path::root(), value, schema, &mut errors);
    errors
}

fn walk(path: &Path, value: &Value, schema: &Schema, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            if let Additional::Of(inner) = &schema.additional {
                map.iter().for_each(|(key, value)| walk(&path.key(key), value, inner, errors));
            }
            for (key, value) in map {
                if let Some(property) = schema.properties.get(key) {
                    walk(&path.child(key), value, property, errors);
                }
            }
        }
        Value::Array(list) => {
            match schema.list_type.as_str() {
                "set" => errors.extend(twice(list).into_iter().map(|i| FieldError::duplicate(&path.index(i), list[i].clone()))),
                "map" => by_key(path, list, &schema.list_map_keys, errors),
                _ => {}
            }
            if let Some(inner) = &schema.items {
                list.iter().enumerate().for_each(|(i, value)| walk(&path.index(i), value, inner, errors));
            }
        }
        _ => {}
    }
}

fn by_key(path: &Path, list: &[Value], keys: &[String], errors: &mut Vec<FieldError>) {
    if let Some((i, value)) = list.iter().enumerate().find(|(_, v)| !v.is_object() && !v.is_null()) {
        return errors.push(FieldError::invalid(&path.index(i), value.clone(), "must be an object for an array of list-type map"));
    }
    let names: Vec<Value> = list
        .iter()
        .map(|item| keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect::<Map<_, _>>().into())
        .collect();
    errors.extend(twice(&names).into_iter().map(|i| FieldError::duplicate(&path.index(i), names[i].clone())));
}

/// The second place of each value that is there more than once.
fn twice(list: &[Value]) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut found = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let times = seen.entry(value.to_string()).or_insert(0);
        *times += 1;
        if *times == 2 {
            found.push(i);
        }
    }
    found
}
