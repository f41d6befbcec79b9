//! OpenAPI version 2 as the protobuf messages of gnostic's `openapi.v2`, which older clients ask
//! for. Works on the JSON tree of a part at a time.

use crate::codec::wire::{put_bytes, put_fixed64, put_int, put_nested};
use serde_json::{Map, Value};
use std::convert::Infallible;

type Out = Vec<u8>;

fn nested(out: &mut Out, number: u32, write: impl FnOnce(&mut Out)) {
    let _ = put_nested(out, number, |out| {
        write(out);
        Ok::<(), Infallible>(())
    });
}

fn text(out: &mut Out, number: u32, map: &Map<String, Value>, key: &str) {
    if let Some(text) = map.get(key).and_then(Value::as_str).filter(|t| !t.is_empty()) {
        put_bytes(out, number, text.as_bytes());
    }
}

fn flag(out: &mut Out, number: u32, map: &Map<String, Value>, key: &str) {
    if map.get(key).and_then(Value::as_bool) == Some(true) {
        put_int(out, number, 1);
    }
}

fn texts(out: &mut Out, number: u32, value: Option<&Value>) {
    for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        put_bytes(out, number, text.as_bytes());
    }
}

/// `Any`: its YAML text, of which JSON is one.
fn any(out: &mut Out, number: u32, value: &Value) {
    nested(out, number, |out| put_bytes(out, 2, format!("{value}\n").as_bytes()));
}

fn extensions(out: &mut Out, number: u32, map: &Map<String, Value>) {
    for (key, value) in map.iter().filter(|(key, _)| key.starts_with("x-")) {
        nested(out, number, |out| {
            put_bytes(out, 1, key.as_bytes());
            any(out, 2, value);
        });
    }
}

/// Opens a document: everything but paths and definitions.
pub fn head(out: &mut Out, title: &str, version: &str) {
    put_bytes(out, 1, b"2.0");
    nested(out, 2, |out| {
        put_bytes(out, 1, title.as_bytes());
        put_bytes(out, 2, version.as_bytes());
    });
}

/// `Document.paths`
pub fn paths(out: &mut Out, paths: &Map<String, Value>) {
    nested(out, 8, |out| {
        for (path, item) in paths {
            nested(out, 2, |out| {
                put_bytes(out, 1, path.as_bytes());
                nested(out, 2, |out| path_item(out, item));
            });
        }
    });
}

fn path_item(out: &mut Out, item: &Value) {
    let methods = [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)];
    for (method, number) in methods {
        if let Some(Value::Object(op)) = item.get(method) {
            nested(out, number, |out| operation(out, op));
        }
    }
    parameters(out, 9, item.get("parameters"));
}

fn operation(out: &mut Out, op: &Map<String, Value>) {
    texts(out, 1, op.get("tags"));
    text(out, 3, op, "description");
    text(out, 5, op, "operationId");
    texts(out, 6, op.get("produces"));
    texts(out, 7, op.get("consumes"));
    parameters(out, 8, op.get("parameters"));
    if let Some(Value::Object(responses)) = op.get("responses") {
        nested(out, 9, |out| {
            for (code, response) in responses {
                nested(out, 1, |out| {
                    put_bytes(out, 1, code.as_bytes());
                    nested(out, 2, |out| {
                        nested(out, 1, |out| {
                            let Value::Object(response) = response else { return };
                            text(out, 1, response, "description");
                            if let Some(answer) = response.get("schema") {
                                nested(out, 2, |out| nested(out, 1, |out| schema(out, answer)));
                            }
                        });
                    });
                });
            }
        });
    }
    texts(out, 10, op.get("schemes"));
    extensions(out, 13, op);
}

fn parameters(out: &mut Out, number: u32, list: Option<&Value>) {
    for parameter in list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
        // ParametersItem → Parameter → body or one of the others
        nested(out, number, |out| {
            nested(out, 1, |out| match parameter.get("in").and_then(Value::as_str) {
                Some("body") => nested(out, 1, |out| {
                    text(out, 1, parameter, "description");
                    text(out, 2, parameter, "name");
                    text(out, 3, parameter, "in");
                    flag(out, 4, parameter, "required");
                    if let Some(body) = parameter.get("schema") {
                        nested(out, 5, |out| schema(out, body));
                    }
                }),
                place => nested(out, 2, |out| {
                    let path = place == Some("path");
                    nested(out, if path { 4 } else { 3 }, |out| {
                        flag(out, 1, parameter, "required");
                        text(out, 2, parameter, "in");
                        text(out, 3, parameter, "description");
                        text(out, 4, parameter, "name");
                        text(out, if path { 5 } else { 6 }, parameter, "type");
                        flag(out, if path { 19 } else { 20 }, parameter, "uniqueItems");
                    });
                }),
            });
        });
    }
}

/// One entry of `Document.definitions`; repeated messages merge, so each may come by itself.
pub fn definition(out: &mut Out, name: &str, value: &Value) {
    nested(out, 9, |out| named_schema(out, name, value));
}

fn named_schema(out: &mut Out, name: &str, value: &Value) {
    nested(out, 1, |out| {
        put_bytes(out, 1, name.as_bytes());
        nested(out, 2, |out| schema(out, value));
    });
}

fn number(out: &mut Out, field: u32, map: &Map<String, Value>, key: &str) {
    if let Some(value) = map.get(key).and_then(Value::as_f64) {
        put_fixed64(out, field, value.to_bits());
    }
}

fn count(out: &mut Out, field: u32, map: &Map<String, Value>, key: &str) {
    if let Some(value) = map.get(key).and_then(Value::as_i64) {
        put_int(out, field, value);
    }
}

fn schema(out: &mut Out, value: &Value) {
    let Value::Object(map) = value else { return };
    text(out, 1, map, "$ref");
    text(out, 2, map, "format");
    text(out, 3, map, "title");
    text(out, 4, map, "description");
    if let Some(default) = map.get("default") {
        any(out, 5, default);
    }
    number(out, 6, map, "multipleOf");
    number(out, 7, map, "maximum");
    flag(out, 8, map, "exclusiveMaximum");
    number(out, 9, map, "minimum");
    flag(out, 10, map, "exclusiveMinimum");
    count(out, 11, map, "maxLength");
    count(out, 12, map, "minLength");
    text(out, 13, map, "pattern");
    count(out, 14, map, "maxItems");
    count(out, 15, map, "minItems");
    flag(out, 16, map, "uniqueItems");
    count(out, 17, map, "maxProperties");
    count(out, 18, map, "minProperties");
    texts(out, 19, map.get("required"));
    for value in map.get("enum").and_then(Value::as_array).into_iter().flatten() {
        any(out, 20, value);
    }
    match map.get("additionalProperties") {
        Some(Value::Bool(allowed)) => nested(out, 21, |out| put_int(out, 2, i64::from(*allowed))),
        Some(inner) => nested(out, 21, |out| nested(out, 1, |out| schema(out, inner))),
        None => {}
    }
    if let Some(kind) = map.get("type").and_then(Value::as_str) {
        nested(out, 22, |out| put_bytes(out, 1, kind.as_bytes()));
    }
    if let Some(items) = map.get("items") {
        nested(out, 23, |out| nested(out, 1, |out| schema(out, items)));
    }
    for part in map.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        nested(out, 24, |out| schema(out, part));
    }
    if let Some(Value::Object(properties)) = map.get("properties") {
        nested(out, 25, |out| {
            for (name, value) in properties {
                named_schema(out, name, value);
            }
        });
    }
    extensions(out, 31, map);
}
