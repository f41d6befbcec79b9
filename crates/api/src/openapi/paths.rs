//! The operations on a group version, as OpenAPI paths of version 2 or 3.

use super::definitions::{Dialect, META};
use crate::discovery::{Entry, SubEntry};
use serde_json::{Map, Value, json};

/// One operation, in no version's words yet.
struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    id: String,
    summary: String,
    query: Vec<&'static str>,
    /// Definition of the body; `None` for none.
    body: Option<Body>,
    /// Definition of the answer; `None` for a text or a stream.
    answer: Option<String>,
    created: bool,
    streams: bool,
    kind: (&'a str, &'a str, &'a str),
}

enum Body {
    Object(String, bool),
    Patch(bool),
}

/// A group version and how its definitions are named.
pub struct Scope<'a> {
    pub group: &'a str,
    pub version: &'a str,
    /// Gives the definition of a group, version and kind.
    pub definition: &'a dyn Fn(&str, &str, &str) -> String,
    /// Custom resources know no strategic merge patch.
    pub custom: bool,
}

const LIST: &[&str] = &[
    "allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch",
    "sendInitialEvents", "timeoutSeconds", "watch",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETE: &[&str] =
    &["dryRun", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "orphanDependents", "propagationPolicy"];
const DELETE_ALL: &[&str] = &[
    "continue", "dryRun", "fieldSelector", "gracePeriodSeconds", "ignoreStoreReadErrorWithClusterBreakingPotential", "labelSelector",
    "limit", "orphanDependents", "propagationPolicy", "resourceVersion", "resourceVersionMatch", "sendInitialEvents", "timeoutSeconds",
];

fn parameter_type(name: &str) -> &'static str {
    match name {
        "allowWatchBookmarks" | "sendInitialEvents" | "watch" | "force" | "orphanDependents" | "stdin" | "stdout" | "stderr" | "tty"
        | "follow" | "previous" | "timestamps" | "insecureSkipTLSVerifyBackend"
        | "ignoreStoreReadErrorWithClusterBreakingPotential" => "boolean",
        "limit" | "timeoutSeconds" | "gracePeriodSeconds" | "sinceSeconds" | "tailLines" | "limitBytes" | "ports" => "integer",
        _ => "string",
    }
}

fn parameter_text(name: &str) -> Option<&'static str> {
    Some(match name {
        "name" => "name of the object",
        "namespace" => "namespace of the object",
        "pretty" => "If 'true', the answer is indented.",
        "dryRun" => "With 'All', everything is done but the final write.",
        "fieldManager" => "The name under which changed fields are owned. Required for apply.",
        "fieldValidation" => "What to do about unknown and repeated fields: 'Ignore', 'Warn' (the default) or 'Strict'.",
        "force" => "Take over fields that others own. Only for apply.",
        "labelSelector" => "Only objects with these labels.",
        "fieldSelector" => "Only objects with these fields.",
        "limit" => "The most objects to answer with; more are fetched with 'continue'.",
        "continue" => "The token of the answer before, to go on with a list.",
        "watch" => "Answer with a stream of changes.",
        _ => return None,
    })
}

/// Connect options by subresource.
fn connect_query(sub: &str) -> &'static [&'static str] {
    match sub {
        "exec" => &["command", "container", "stderr", "stdin", "stdout", "tty"],
        "attach" => &["container", "stderr", "stdin", "stdout", "tty"],
        "portforward" => &["ports"],
        "proxy" => &["path"],
        _ => &[],
    }
}

const LOG: &[&str] = &[
    "container", "follow", "insecureSkipTLSVerifyBackend", "limitBytes", "pretty", "previous", "sinceSeconds", "stream", "tailLines",
    "timestamps",
];

/// All paths of some resources of a group version.
pub fn paths(scope: &Scope<'_>, entries: &[Entry], dialect: Dialect) -> Map<String, Value> {
    let root = if scope.group.is_empty() { format!("/api/{}", scope.version) } else { format!("/apis/{}/{}", scope.group, scope.version) };
    let mut out = Map::new();
    for entry in entries {
        let place = if entry.namespaced { "Namespaced" } else { "" };
        let base = if entry.namespaced { format!("{root}/namespaces/{{namespace}}/{}", entry.plural) } else { format!("{root}/{}", entry.plural) };
        let mut collection = Vec::new();
        let mut item = Vec::new();
        for verb in &entry.verbs {
            let op = |method, action, id: &str, words: &str, query: &[&'static str]| Operation {
                method,
                action,
                id: format!("{id}{place}{}", entry.kind),
                summary: format!("{words} {}", entry.kind),
                query: query.to_vec(),
                body: None,
                answer: Some((scope.definition)(scope.group, scope.version, &entry.kind)),
                created: false,
                streams: false,
                kind: (scope.group, scope.version, &entry.kind),
            };
            let object = || Some(Body::Object((scope.definition)(scope.group, scope.version, &entry.kind), true));
            let options = || Some(Body::Object(format!("{META}.DeleteOptions"), false));
            let t = title(scope);
            match verb.as_str() {
                "list" => {
                    let mut list = op("get", "list", &format!("list{t}"), "list or watch objects of kind", LIST);
                    list.answer = Some((scope.definition)(scope.group, scope.version, &format!("{}List", entry.kind)));
                    list.streams = true;
                    collection.push(list);
                }
                "create" => {
                    collection.push(Operation { body: object(), created: true, ..op("post", "post", &format!("create{t}"), "create a", WRITE) });
                }
                "deletecollection" => collection.push(Operation {
                    body: options(),
                    answer: Some(format!("{META}.Status")),
                    ..op("delete", "deletecollection", &format!("delete{t}Collection"), "delete collection of", DELETE_ALL)
                }),
                "get" => item.push(op("get", "get", &format!("read{t}"), "read the specified", &[])),
                "update" => {
                    item.push(Operation { body: object(), created: true, ..op("put", "put", &format!("replace{t}"), "replace the specified", WRITE) });
                }
                "patch" => item.push(Operation {
                    body: Some(Body::Patch(scope.custom)),
                    created: true,
                    ..op("patch", "patch", &format!("patch{t}"), "partially update the specified", PATCH)
                }),
                "delete" => item.push(Operation {
                    body: options(),
                    answer: Some(format!("{META}.Status")),
                    ..op("delete", "delete", &format!("delete{t}"), "delete a", DELETE)
                }),
                _ => {}
            }
        }
        if entry.namespaced && entry.verbs.iter().any(|v| v == "list") {
            let all = Operation {
                method: "get",
                action: "list",
                id: format!("list{}{}ForAllNamespaces", title(scope), entry.kind),
                summary: format!("list or watch objects of kind {}", entry.kind),
                query: LIST.to_vec(),
                body: None,
                answer: Some((scope.definition)(scope.group, scope.version, &format!("{}List", entry.kind))),
                created: false,
                streams: true,
                kind: (scope.group, scope.version, &entry.kind),
            };
            out.insert(format!("{root}/{}", entry.plural), path_item(scope, &[], vec![all], dialect));
        }
        let namespace: &[&str] = if entry.namespaced { &["namespace"] } else { &[] };
        if !collection.is_empty() {
            out.insert(base.clone(), path_item(scope, namespace, collection, dialect));
        }
        let named: Vec<&str> = std::iter::once("name").chain(namespace.iter().copied()).collect();
        if !item.is_empty() {
            out.insert(format!("{base}/{{name}}"), path_item(scope, &named, item, dialect));
        }
        for sub in &entry.subresources {
            let path = format!("{base}/{{name}}/{}", sub.name);
            out.insert(path.clone(), path_item(scope, &named, subresource(scope, entry, sub, place, ""), dialect));
            if sub.name == "proxy" {
                let with_path: Vec<&str> = named.iter().copied().chain(["path"]).collect();
                out.insert(format!("{path}/{{path}}"), path_item(scope, &with_path, subresource(scope, entry, sub, place, "WithPath"), dialect));
            }
        }
    }
    out
}

fn subresource<'a>(scope: &Scope<'a>, entry: &Entry, sub: &'a SubEntry, place: &str, suffix: &str) -> Vec<Operation<'a>> {
    let (group, version) = match &sub.group_version {
        Some((group, version)) => (group.as_str(), version.as_str()),
        None => (scope.group, scope.version),
    };
    let connect = sub.kind.ends_with("Options");
    let definition = (scope.definition)(group, version, &sub.kind);
    let verb = |verb: &String| {
        let (method, action, word) = match verb.as_str() {
            "get" => ("get", "get", "read"),
            "update" => ("put", "put", "replace"),
            "patch" => ("patch", "patch", "patch"),
            "create" => ("post", "post", "create"),
            _ => ("delete", "delete", "delete"),
        };
        let name = format!("{place}{}", entry.kind) + &capital(&sub.name) + suffix;
        let title = title(scope);
        let log = sub.name == "log";
        let body = match method {
            _ if connect => None,
            "put" | "post" => Some(Body::Object(definition.clone(), true)),
            "patch" => Some(Body::Patch(scope.custom)),
            _ => None,
        };
        Operation {
            method,
            action: if connect { "connect" } else { action },
            id: if connect { format!("connect{title}{}{name}", capital(method)) } else { format!("{word}{title}{name}") },
            summary: if connect { format!("connect {} requests to {} of {}", method.to_uppercase(), sub.name, entry.kind) } else { format!("{word} {} of the specified {}", sub.name, entry.kind) },
            query: match method {
                _ if connect => connect_query(&sub.name).to_vec(),
                "get" if log => LOG.to_vec(),
                "put" | "post" => WRITE.to_vec(),
                "patch" => PATCH.to_vec(),
                _ => Vec::new(),
            },
            created: body.is_some(),
            body,
            answer: (!connect && !log).then(|| definition.clone()),
            streams: false,
            kind: (group, version, &sub.kind),
        }
    };
    sub.verbs.iter().map(verb).collect()
}

/// `CoreV1`, `RbacAuthorizationV1`
fn title(scope: &Scope<'_>) -> String {
    let group = if scope.group.is_empty() { "core" } else { scope.group.strip_suffix(".k8s.io").unwrap_or(scope.group) };
    group.split(['.', '-']).map(capital).collect::<String>() + &capital(scope.version)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + chars.as_str())
}

fn tag(scope: &Scope<'_>) -> String {
    let title = title(scope);
    let group = &title[..title.len() - scope.version.len()];
    let mut chars = group.chars();
    let group = chars.next().map_or_else(String::new, |c| c.to_ascii_lowercase().to_string() + chars.as_str());
    format!("{group}_{}", scope.version)
}

fn parameter(name: &str, place: &str, dialect: Dialect) -> Value {
    let mut out = json!({"name": name, "in": place});
    if let Some(text) = parameter_text(name) {
        out["description"] = text.into();
    }
    if place == "path" {
        out["required"] = true.into();
    }
    let kind = parameter_type(name);
    match dialect {
        Dialect::V2 => {
            out["type"] = kind.into();
            out["uniqueItems"] = true.into();
        }
        Dialect::V3 => out["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    out
}

fn path_item(scope: &Scope<'_>, place: &[&str], operations: Vec<Operation<'_>>, dialect: Dialect) -> Value {
    let mut item = Map::new();
    let mut parameters: Vec<Value> = place.iter().map(|p| parameter(p, "path", dialect)).collect();
    parameters.push(parameter("pretty", "query", dialect));
    item.insert("parameters".into(), parameters.into());
    for operation in operations {
        item.insert(operation.method.into(), render(scope, operation, dialect));
    }
    item.into()
}

const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: &[&str] = &["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn render(scope: &Scope<'_>, op: Operation<'_>, dialect: Dialect) -> Value {
    let (group, version, kind) = op.kind;
    let mut produces: Vec<&str> = OBJECTS.to_vec();
    if scope.custom {
        produces.pop();
    }
    if op.streams {
        produces.extend(STREAMS.iter().filter(|s| !scope.custom || !s.contains("protobuf")));
    }
    if op.answer.is_none() {
        produces = vec![if op.action == "connect" { "*/*" } else { "text/plain" }];
    }
    let consumes: Vec<&str> = match &op.body {
        Some(Body::Patch(custom)) => PATCHES.iter().copied().chain((!custom).then_some(STRATEGIC)).collect(),
        _ => vec!["*/*"],
    };
    let body = op.body.as_ref().map(|body| match body {
        Body::Object(name, required) => (dialect.reference(name), *required),
        Body::Patch(_) => (dialect.reference(&format!("{META}.Patch")), true),
    });
    let answer = match &op.answer {
        Some(name) => dialect.reference(name),
        None => json!({"type": "string"}),
    };
    let mut parameters: Vec<Value> = op.query.iter().map(|p| parameter(p, "query", dialect)).collect();
    let response = |text: &str| match dialect {
        Dialect::V2 => json!({"description": text, "schema": answer}),
        Dialect::V3 => {
            let content: Map<String, Value> = produces.iter().map(|p| ((*p).to_owned(), json!({"schema": answer}))).collect();
            json!({"description": text, "content": content})
        }
    };
    let mut responses = Map::new();
    responses.insert("200".into(), response("OK"));
    if op.created {
        responses.insert("201".into(), response("Created"));
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    let mut out = json!({
        "description": op.summary,
        "operationId": op.id,
        "tags": [tag(scope)],
        "responses": responses,
        "x-kubernetes-action": op.action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    match dialect {
        Dialect::V2 => {
            out["consumes"] = consumes.into();
            out["produces"] = produces.into();
            out["schemes"] = json!(["https"]);
            if let Some((schema, required)) = body {
                let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
                if required {
                    parameter["required"] = true.into();
                }
                parameters.insert(0, parameter);
            }
        }
        Dialect::V3 => {
            if let Some((schema, required)) = body {
                let content: Map<String, Value> = consumes.iter().map(|c| ((*c).to_owned(), json!({"schema": schema}))).collect();
                out["requestBody"] = json!({"content": content});
                if required {
                    out["requestBody"]["required"] = true.into();
                }
            }
        }
    }
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    out
}
