//! What other servers say of their own groups, for the document of version 2: read, cut to size, and put beside ours.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

const DEFINITION: &str = "#/definitions/";
const PARAMETER: &str = "#/parameters/";
const GVK: &str = "x-kubernetes-group-version-kind";
/// Parameters may refer to others no further than this.
const DEPTH: usize = 8;

/// The part of another server's document of version 2 that belongs to its group version.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
}

/// What comes to our own document.
#[derive(Debug, Default)]
pub struct Joined {
    pub paths: Map<String, Value>,
    pub definitions: Map<String, Value>,
    /// Kinds of definitions that ours have too: all, ours first.
    pub kinds: BTreeMap<String, Value>,
}

impl Foreign {
    /// Reads a document, as JSON; `prefix` is of the paths that count (`/apis/GROUP/VERSION/`). Parameters that stand
    /// beside the paths are put in their places.
    pub fn read(document: &[u8], prefix: &str) -> Result<Foreign, String> {
        let mut document: Map<String, Value> = serde_json::from_slice(document).map_err(|e| e.to_string())?;
        let mut part = |name: &str| match document.remove(name) {
            None | Some(Value::Null) => Ok(Map::new()),
            Some(Value::Object(part)) if part.values().all(Value::is_object) => Ok(part),
            Some(_) => Err(format!("{name} are not an object of objects")),
        };
        let (mut paths, definitions, parameters) = (part("paths")?, part("definitions")?, part("parameters")?);
        paths.values_mut().for_each(|item| settle(item, &parameters, DEPTH));
        let mut all = Foreign { paths, definitions };
        all.keep(|path| path.starts_with(prefix));
        Ok(all)
    }

    /// Drops other paths, and the definitions that only those used.
    fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        let before = self.used();
        self.paths.retain(|path, _| wanted(path));
        let now = self.used();
        self.definitions.retain(|name, _| now.contains(name) || !before.contains(name));
    }

    /// The definitions that the paths lead to.
    fn used(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        let mut open: Vec<&Value> = self.paths.values().collect();
        while let Some(value) = open.pop() {
            let mut names = Vec::new();
            referred(value, &mut names);
            for name in names {
                if used.insert(name.to_string()) {
                    open.extend(self.definitions.get(name));
                }
            }
        }
        used
    }
}

/// Puts others' documents together; the first has its way. `has_path` and `ours` tell what there is already.
pub fn join<'a>(others: impl IntoIterator<Item = &'a Foreign>, has_path: impl Fn(&str) -> bool, ours: impl Fn(&str) -> Option<Value>) -> Joined {
    let mut joined = Joined::default();
    for other in others {
        let mut other = other.clone();
        let taken = |path: &str| has_path(path) || joined.paths.contains_key(path);
        if other.paths.keys().any(|p| taken(p)) {
            other.keep(|p| !taken(p));
        }
        if other.paths.is_empty() {
            continue;
        }
        let known = |name: &str| joined.definitions.get(name).cloned().or_else(|| ours(name));
        let mut renames: BTreeMap<String, String> = BTreeMap::new();
        for (name, definition) in &other.definitions {
            let mut new = name.clone();
            let mut i = 1;
            // the first name that is free, or that has this very definition
            while known(&new).is_some_and(|k| !same(&k, definition)) || new != *name && other.definitions.contains_key(&new) {
                i += 1;
                new = format!("{name}_v{i}");
            }
            if new != *name {
                renames.insert(name.clone(), new);
            }
        }
        if !renames.is_empty() {
            other.paths.values_mut().chain(other.definitions.values_mut()).for_each(|v| rename(v, &renames));
        }
        for (name, definition) in other.definitions {
            let name = renames.remove(&name).unwrap_or(name);
            let Some(there) = joined.definitions.get_mut(&name) else {
                match ours(&name) {
                    Some(ours) => add_kinds(joined.kinds.entry(name).or_insert_with(|| ours.get(GVK).cloned().unwrap_or_default()), &definition),
                    None => drop(joined.definitions.insert(name, definition)),
                }
                continue;
            };
            if definition.get(GVK).is_some()
                && let Value::Object(there) = there
            {
                add_kinds(there.entry(GVK).or_insert(Value::Null), &definition);
            }
        }
        joined.paths.extend(other.paths);
    }
    joined
}

impl Joined {
    /// One of our own definitions, with what others add to its kinds.
    pub fn extend(&self, name: &str, definition: &mut Value) {
        if let (Some(kinds), Value::Object(definition)) = (self.kinds.get(name).filter(|k| !k.is_null()), definition) {
            definition.insert(GVK.into(), kinds.clone());
        }
    }
}

fn add_kinds(kinds: &mut Value, from: &Value) {
    let Some(new) = from.get(GVK).and_then(Value::as_array) else { return };
    if !kinds.is_array() {
        *kinds = Value::Array(Vec::new());
    }
    if let Value::Array(kinds) = kinds {
        for kind in new {
            if !kinds.contains(kind) {
                kinds.push(kind.clone());
            }
        }
    }
}

/// Whether two definitions differ at most in the kinds that they are of.
fn same(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return a == b };
    let others = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key(GVK));
    others(a) == others(b) && a.iter().filter(|(k, _)| *k != GVK).all(|(k, v)| b.get(k) == Some(v))
}

/// The definitions that a value refers to.
fn referred<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(DEFINITION)));
            map.values().for_each(|v| referred(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| referred(v, out)),
        _ => {}
    }
}

fn rename(value: &mut Value, renames: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let new = value.as_str().filter(|_| key == "$ref").and_then(|r| renames.get(r.strip_prefix(DEFINITION)?));
                match new {
                    Some(new) => *value = format!("{DEFINITION}{new}").into(),
                    None => rename(value, renames),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, renames)),
        _ => {}
    }
}

/// Replaces references to parameters by what they refer to.
fn settle(value: &mut Value, parameters: &Map<String, Value>, depth: usize) {
    let named = value.get("$ref").and_then(Value::as_str).and_then(|r| parameters.get(r.strip_prefix(PARAMETER)?));
    if let Some(parameter) = named.filter(|_| depth > 0) {
        *value = parameter.clone();
        return settle(value, parameters, depth - 1);
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|v| settle(v, parameters, depth)),
        Value::Array(list) => list.iter_mut().for_each(|v| settle(v, parameters, depth)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn foreign(group: &str, extra: Value) -> Foreign {
        let kind = |k: &str| json!([{"group": group, "version": "v1", "kind": k}]);
        let mut document = json!({
            "paths": {
                format!("/apis/{group}/v1/things"): {
                    "parameters": [{"$ref": "#/parameters/pretty-1"}],
                    "get": {"responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Thing"}}}},
                },
                "/version/": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Info"}}}}},
            },
            "definitions": {
                "Thing": {"type": "object", "properties": {"meta": {"$ref": "#/definitions/Meta"}}, GVK: kind("Thing")},
                "Meta": {"type": "object", "description": "m"},
                "Options": {"type": "object", GVK: kind("Options")},
                "Info": {"type": "object"},
            },
            "parameters": {"pretty-1": {"in": "query", "name": "pretty", "type": "string"}},
        });
        for (name, definition) in extra.as_object().unwrap() {
            document["definitions"][name] = definition.clone();
        }
        Foreign::read(document.to_string().as_bytes(), &format!("/apis/{group}/v1/")).unwrap()
    }

    #[test]
    fn only_a_groups_own_part_counts() {
        let a = foreign("a.io", json!({}));
        assert_eq!(a.paths.keys().collect::<Vec<_>>(), ["/apis/a.io/v1/things"]);
        assert_eq!(a.paths["/apis/a.io/v1/things"]["parameters"][0]["name"], "pretty");
        // Options is used by nothing, before and after
        assert_eq!(a.definitions.keys().collect::<Vec<_>>(), ["Meta", "Options", "Thing"]);
        for bad in ["", "[]", r#"{"paths": []}"#, r#"{"paths": {"/a": 1}}"#, r#"{"paths": {}, "definitions": {"A": null}}"#] {
            assert!(Foreign::read(bad.as_bytes(), "/").is_err(), "{bad}");
        }
        assert_eq!(Foreign::read(b"{}", "/").unwrap().paths.len(), 0);
    }

    #[test]
    fn equal_definitions_are_one_and_others_get_new_names() {
        let all = [foreign("a.io", json!({})), foreign("b.io", json!({"Meta": {"type": "object", "description": "other"}, "Thing": {"type": "string"}}))];
        let ours = |name: &str| match name {
            "Options" => Some(json!({"type": "object", GVK: [{"group": "", "version": "v1", "kind": "Options"}]})),
            "Meta" => Some(json!({"type": "object", "description": "ours"})),
            _ => None,
        };
        let joined = join(&all, |_| false, ours);
        assert_eq!(joined.paths.len(), 2);
        assert_eq!(joined.definitions.keys().collect::<Vec<_>>(), ["Meta_v2", "Meta_v3", "Thing", "Thing_v2"]);
        assert_eq!(joined.definitions["Thing"]["properties"]["meta"]["$ref"], "#/definitions/Meta_v2");
        let answer = |path: &str| joined.paths[path]["get"]["responses"]["200"]["schema"]["$ref"].clone();
        assert_eq!((answer("/apis/a.io/v1/things"), answer("/apis/b.io/v1/things")), (json!("#/definitions/Thing"), json!("#/definitions/Thing_v2")));
        let mut options = ours("Options").unwrap();
        joined.extend("Options", &mut options);
        let groups: Vec<&str> = options[GVK].as_array().unwrap().iter().map(|k| k["group"].as_str().unwrap()).collect();
        assert_eq!(groups, ["", "a.io", "b.io"]);
    }

    #[test]
    fn paths_that_are_there_already_stay_ours() {
        let all = [foreign("a.io", json!({}))];
        let joined = join(&all, |path| path == "/apis/a.io/v1/things", |_| None);
        assert!(joined.paths.is_empty() && joined.definitions.is_empty() && joined.kinds.is_empty());
        // of two that say the same path, the first
        let joined = join([&all[0], &all[0]], |_| false, |_| None);
        assert_eq!((joined.paths.len(), joined.definitions.len()), (1, 3));
    }
}
