//! OpenAPI documents: version 2 (JSON and gnostic's protobuf) for the whole server, version 3 for
//! each group version. They are made anew on each call from the fact table, piece by piece, so
//! that nothing of their size stays in memory; the caller keeps what it wants to keep.

mod custom;
mod definitions;
mod descriptions;
mod foreign;
mod gnostic;
mod paths;

use crate::discovery::Entry;
use crate::facts;
use crate::resources::{self, groups};
use definitions::{Dialect, META};
use descriptions::Descriptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

pub use custom::{CustomKind, definition_name};
pub use foreign::Foreign;

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A hash of any text, in the form that hashes of documents have here.
pub fn hash(content: &[u8]) -> String {
    let a = fnv(content);
    format!("{a:016X}{:016X}", fnv(&a.to_le_bytes()) ^ content.len() as u64)
}

fn built_in_entries(group: &str, version: &str) -> Vec<Entry> {
    resources::all().iter().filter(|r| r.group == group && r.version == version).map(Entry::from).collect()
}

/// The definition of a kind; an options kind without one falls back on its name in the core group.
fn built_in_definition(group: &str, version: &str, kind: &str) -> String {
    resources::type_name(group, version, kind).map_or_else(|| definition_name(group, version, kind), str::to_owned)
}

/// The name of the definition of a built-in kind, if there is such a kind.
pub fn definition_of(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    resources::find_kind(group, version, kind)?;
    resources::type_name(group, version, kind)
}

/// A definition by its name, as version 3 has it but without descriptions; it refers to others by `$ref`.
pub fn schema(name: &str) -> Value {
    definitions::definition(name, Dialect::V3, &Descriptions::none())
}

fn scope<'a>(group: &'a str, version: &'a str) -> paths::Scope<'a> {
    paths::Scope { group, version, definition: &built_in_definition, custom: false }
}

fn custom_scope<'a>(kind: &'a CustomKind) -> paths::Scope<'a> {
    paths::Scope { group: &kind.group, version: &kind.version, definition: &custom_definition, custom: true }
}

fn custom_definition(group: &str, version: &str, kind: &str) -> String {
    if group == "autoscaling" && kind == "Scale" { built_in_definition(group, version, kind) } else { definition_name(group, version, kind) }
}

/// The paths of the documents of version 3 (`api/v1`, `apis/apps/v1`) with a hash of each.
pub fn v3_index() -> Vec<(String, String)> {
    let mark = format!("{}{:x}{:x}", env!("CARGO_PKG_VERSION"), descriptions::fingerprint(), facts::fingerprint());
    let path = |g: &str, v: &str| if g.is_empty() { format!("api/{v}") } else { format!("apis/{g}/{v}") };
    groups()
        .iter()
        .flat_map(|g| g.versions.iter().map(|v| path(g.name, v)))
        .map(|path| {
            let hash = hash(format!("{mark}{path}").as_bytes());
            (path, hash)
        })
        .collect()
}

/// The document of version 3 at a path of [`v3_index`], as JSON.
pub fn v3(path: &str) -> Option<Vec<u8>> {
    let (group, version) = match path.split('/').collect::<Vec<_>>()[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return None,
    };
    let entries = built_in_entries(group, version);
    if entries.is_empty() {
        return None;
    }
    let mut names = roots(group, version, &entries);
    names = definitions::reachable(names);
    let texts = Descriptions::load();
    let schemas: Map<String, Value> = names.into_iter().map(|n| (n.clone(), definitions::definition(&n, Dialect::V3, &texts))).collect();
    Some(document_v3(paths::paths(&scope(group, version), &entries, Dialect::V3), schemas))
}

/// The document of version 3 of a group version of custom resources, as JSON.
pub fn v3_custom(kinds: &[CustomKind]) -> Vec<u8> {
    let texts = Descriptions::load();
    let mut names: BTreeSet<String> = ["ObjectMeta", "ListMeta", "DeleteOptions", "Status", "Patch"].iter().map(|n| format!("{META}.{n}")).collect();
    if kinds.iter().any(|k| k.entry.subresources.iter().any(|s| s.kind == "Scale")) {
        names.insert("io.k8s.api.autoscaling.v1.Scale".into());
    }
    let mut schemas: Map<String, Value> =
        definitions::reachable(names).into_iter().map(|n| (n.clone(), definitions::definition(&n, Dialect::V3, &texts))).collect();
    let mut all = Map::new();
    for kind in kinds {
        schemas.extend(kind.definitions(Dialect::V3));
        all.extend(paths::paths(&custom_scope(kind), std::slice::from_ref(&kind.entry), Dialect::V3));
    }
    document_v3(all, schemas)
}

fn document_v3(paths: Map<String, Value>, schemas: Map<String, Value>) -> Vec<u8> {
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": crate::VERSION},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"}},
        },
    });
    serde_json::to_vec(&document).unwrap_or_default()
}

/// The definitions that the operations on some resources name.
fn roots(group: &str, version: &str, entries: &[Entry]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["DeleteOptions", "Status", "Patch", "WatchEvent", "APIResourceList"].iter().map(|n| format!("{META}.{n}")).collect();
    for entry in entries {
        names.insert(built_in_definition(group, version, &entry.kind));
        if entry.verbs.iter().any(|v| v == "list") {
            names.insert(built_in_definition(group, version, &format!("{}List", entry.kind)));
        }
        for sub in entry.subresources.iter().filter(|s| !s.kind.ends_with("Options")) {
            let (g, v) = sub.group_version.as_ref().map_or((group, version), |(g, v)| (g.as_str(), v.as_str()));
            names.insert(built_in_definition(g, v, &sub.kind));
        }
    }
    names
}

/// All paths and definitions of version 2, ours and then what other servers say of theirs, handed over one by one.
fn visit_v2(custom: &[CustomKind], others: &[&Foreign], mut on_paths: impl FnMut(Map<String, Value>), mut on_definition: impl FnMut(&str, &Value)) {
    let mut names = BTreeSet::new();
    let mut all = Map::new();
    for group in groups() {
        for version in &group.versions {
            let entries = built_in_entries(group.name, version);
            all.extend(paths::paths(&scope(group.name, version), &entries, Dialect::V2));
            names.extend(roots(group.name, version, &entries));
        }
    }
    for kind in custom {
        all.extend(paths::paths(&custom_scope(kind), std::slice::from_ref(&kind.entry), Dialect::V2));
    }
    let texts = Descriptions::load();
    let names = definitions::reachable(names);
    let of_custom: Vec<(String, Value)> = custom.iter().flat_map(|kind| kind.definitions(Dialect::V2)).collect();
    let ours = |name: &str| {
        let built_in = names.contains(name).then(|| definitions::definition(name, Dialect::V2, &texts));
        built_in.or_else(|| of_custom.iter().find(|(n, _)| n == name).map(|(_, schema)| schema.clone()))
    };
    let mut joined = foreign::join(others.iter().copied(), |path| all.contains_key(path), ours);
    all.append(&mut joined.paths);
    on_paths(all);
    for name in &names {
        let mut definition = definitions::definition(name, Dialect::V2, &texts);
        joined.extend(name, &mut definition);
        on_definition(name, &definition);
    }
    for (name, mut schema) in of_custom {
        joined.extend(&name, &mut schema);
        on_definition(&name, &schema);
    }
    joined.definitions.iter().for_each(|(name, schema)| on_definition(name, schema));
}

/// The document of version 2 as JSON.
pub fn v2(custom: &[CustomKind], others: &[&Foreign]) -> Vec<u8> {
    let info = json!({"title": "Kubernetes", "version": crate::VERSION});
    let paths = std::cell::RefCell::new(Map::new());
    let mut out = b"{\"definitions\":{".to_vec();
    let mut first = true;
    visit_v2(
        custom,
        others,
        |p| *paths.borrow_mut() = p,
        |name, schema| {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            // writing to memory cannot fail
            let _ = serde_json::to_writer(&mut out, name);
            out.push(b':');
            let _ = serde_json::to_writer(&mut out, schema);
        },
    );
    let rest = json!({
        "info": info,
        "paths": paths.into_inner(),
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": {"type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication"}},
        "swagger": "2.0",
    });
    out.extend_from_slice(b"},");
    let rest = serde_json::to_vec(&rest).unwrap_or_default();
    out.extend_from_slice(rest.get(1..).unwrap_or_default());
    out
}

/// The document of version 2 in the form `application/com.github.proto-openapi.spec.v2.v1.0+protobuf`.
pub fn v2_protobuf(custom: &[CustomKind], others: &[&Foreign]) -> Vec<u8> {
    let out = std::cell::RefCell::new(Vec::new());
    gnostic::head(&mut out.borrow_mut(), "Kubernetes", crate::VERSION);
    visit_v2(
        custom,
        others,
        |paths| gnostic::paths(&mut out.borrow_mut(), &paths),
        |name, schema| gnostic::definition(&mut out.borrow_mut(), name, schema),
    );
    out.into_inner()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
