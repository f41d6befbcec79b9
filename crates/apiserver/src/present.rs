//! Objects, lists and watch events as the client wants them: JSON from the cached bytes, or YAML, protobuf, Table and
//! PartialObjectMetadata made from them.
use std::borrow::Cow;
use std::sync::Arc;

use api::codec::ListFrame;
use api::table::Row;
use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::{Map, Value, json};

use crate::body::{self, Body};
use crate::cache::Entry;
use crate::core::{Core, Object};
use crate::custom::Custom;
use crate::model;
use crate::negotiate::{self, Accepted, Convert, Format};
use crate::object;
use crate::profile;
use crate::types::{Resource, Status};
use crate::verbs::list::Page;

/// How much of an object a table row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: &str) -> Result<Include, Status> {
        match text {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(api::status::bad_request(format!(
                "includeObject: Unsupported value: {}: supported values: \"None\", \"Metadata\", \"Object\"",
                api::field::go_quote(other)
            ))),
        }
    }
}

/// Everything that decides how objects of a request look.
#[derive(Clone, Copy)]
pub struct Presenter<'a> {
    pub core: &'a Core,
    pub resource: &'static Resource,
    /// The version of the definition, of a custom resource: entries come as its views.
    pub custom: Option<&'a Custom>,
    pub accepted: Accepted,
    pub include: Include,
    pub now: jiff::Timestamp,
}

impl Presenter<'_> {
    fn as_is(&self) -> bool {
        self.accepted.format == Format::Json
            && self.accepted.convert == Convert::None
            && !self.accepted.pretty
            && (self.custom.is_some() || model::is_storage_version(self.resource))
    }

    fn tree(&self, entry: &Entry) -> Value {
        self.core.served(self.resource, entry.parse())
    }

    /// One object.
    pub fn object(&self, headers: &HeaderMap, code: u16, object: Object) -> Response<Body> {
        let _part = profile::part("answer");
        match object {
            Object::Cached(entry) if self.as_is() => {
                let mut bytes = Vec::with_capacity(entry.json.len() + 1);
                bytes.extend_from_slice(&entry.json);
                bytes.push(b'\n');
                body::response_maybe_gzip(headers, code, Format::Json.media_type(), bytes)
            }
            Object::Cached(entry) if self.as_messages() => {
                match self.message(&entry) {
                    Ok(message) => body::response_maybe_gzip(headers, code, Format::Protobuf.media_type(), api::codec::envelope(&self.gvk(self.resource.kind), &message)),
                    Err(status) => negotiate::respond_status(headers, &status),
                }
            }
            Object::Cached(entry) => self.value(headers, code, self.tree(&entry)),
            Object::Tree(value) => self.value(headers, code, value),
        }
    }

    /// One object, served form.
    pub fn value(&self, headers: &HeaderMap, code: u16, value: Value) -> Response<Body> {
        let is_status = value.get("kind").and_then(Value::as_str) == Some("Status");
        let value = match self.accepted.convert {
            _ if is_status => value,
            Convert::None => value,
            Convert::Table => {
                let version = value.get("metadata").and_then(|m| m.get("resourceVersion")).cloned();
                self.table(std::slice::from_ref(&value), version, None, None)
            }
            Convert::PartialObjectMetadata => partial(value),
        };
        negotiate::respond(headers, self.accepted, code, &value)
    }

    /// Whether objects are shown in the version that they are stored in, so that what their entries keep can be used.
    fn as_stored(&self) -> bool {
        self.custom.is_none() && model::is_storage_version(self.resource)
    }

    /// Whether objects are shown as the protobuf messages that their entries keep.
    fn as_messages(&self) -> bool {
        self.as_stored() && self.accepted.format == Format::Protobuf && self.accepted.convert == Convert::None
    }

    fn gvk(&self, kind: &str) -> api::codec::Gvk {
        api::codec::Gvk::new(self.resource.group, self.resource.version, kind)
    }

    fn message<'a>(&self, entry: &'a Entry) -> Result<Cow<'a, [u8]>, Status> {
        entry.message(model::encode_bare)
    }

    /// A list in protobuf, from what the entries keep.
    fn page_protobuf(&self, headers: &HeaderMap, page: Page, meta: &Value) -> Result<Response<Body>, Status> {
        let lengths = page.items.iter().map(|e| self.message(e).map(|m| m.len())).collect::<Result<Vec<_>, _>>()?;
        let frame = ListFrame::new(&self.gvk(self.resource.list_kind), meta, lengths.into_iter()).map_err(api::status::internal)?;
        let mut items = page.items.into_iter();
        let mut begun = false;
        Ok(body::response_written(headers, Format::Protobuf.media_type(), Some(frame.size), move |out| {
            if !std::mem::replace(&mut begun, true) {
                out.extend_from_slice(&frame.head);
            }
            let Some(entry) = items.next() else {
                frame.end(out);
                return false;
            };
            // It could be encoded a moment ago.
            if let Ok(message) = entry.message(model::encode_bare) {
                frame.item(&message, out);
            }
            true
        }))
    }

    /// A list as a table in JSON, from what the entries keep.
    fn page_table(&self, headers: &HeaderMap, page: Page, meta: &str) -> Response<Body> {
        let (r, now, include) = (self.resource, self.now, self.include);
        let columns = model::table_columns(r, None);
        let head = format!("{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{meta},\"columnDefinitions\":{columns},\"rows\":[");
        json_list(headers, head, None, page.items, move |entry, out| {
            entry.write_row(|object| Row::new(r.group, r.kind, object), now, out);
            match include {
                Include::None => {}
                Include::Metadata => {
                    out.extend_from_slice(b",\"object\":{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":");
                    out.extend_from_slice(entry.metadata());
                    out.push(b'}');
                }
                Include::Object => {
                    out.extend_from_slice(b",\"object\":");
                    out.extend_from_slice(&entry.json);
                }
            }
            out.push(b'}');
        })
    }

    /// A list.
    pub fn page(&self, headers: &HeaderMap, page: Page) -> Response<Body> {
        let mut meta = format!("{{\"resourceVersion\":\"{}\"", page.revision);
        if !page.continue_token.is_empty() {
            meta.push_str(&format!(",\"continue\":\"{}\"", page.continue_token));
        }
        if let Some(remaining) = page.remaining {
            meta.push_str(&format!(",\"remainingItemCount\":{remaining}"));
        }
        meta.push('}');
        if self.as_is() {
            let head = format!(
                "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
                self.resource.list_kind,
                model::api_version(self.resource)
            );
            // items of custom resources say what they are
            let typed = self.custom.is_some();
            let from = move |e: &Entry| if typed { 1 } else { e.type_prefix as usize };
            let size = head.len() + page.items.iter().map(|e| e.json.len() - from(e) + 2).sum::<usize>() - usize::from(!page.items.is_empty()) + 3;
            return json_list(headers, head, Some(size), page.items, move |entry, out| {
                out.push(b'{');
                out.extend_from_slice(&entry.json[from(entry)..]);
            });
        }
        if self.as_stored() && !self.accepted.pretty && self.accepted.format == Format::Json && self.accepted.convert == Convert::Table && page.items.iter().all(|e| e.can_have_row()) {
            return self.page_table(headers, page, &meta);
        }
        let meta: Value = serde_json::from_str(&meta).unwrap_or_default();
        if self.as_messages() {
            return match self.page_protobuf(headers, page, &meta) {
                Ok(response) => response,
                Err(status) => negotiate::respond_status(headers, &status),
            };
        }
        let items: Vec<Value> = page.items.iter().map(|e| self.tree(e)).collect();
        self.values(headers, items, meta)
    }

    /// A list of trees with this ListMeta.
    pub fn values(&self, headers: &HeaderMap, mut items: Vec<Value>, meta: Value) -> Response<Body> {
        let list = match self.accepted.convert {
            Convert::Table => self.table(
                &items,
                meta.get("resourceVersion").cloned(),
                meta.get("continue").cloned(),
                meta.get("remainingItemCount").cloned(),
            ),
            Convert::PartialObjectMetadata => {
                list_of("PartialObjectMetadataList", "meta.k8s.io/v1".into(), meta, items.into_iter().map(partial).collect())
            }
            Convert::None => {
                // items of custom resources say what they are
                for item in items.iter_mut().filter(|_| self.custom.is_none()) {
                    let map = object::map_of(item);
                    map.remove("kind");
                    map.remove("apiVersion");
                }
                list_of(self.resource.list_kind, model::api_version(self.resource), meta, items)
            }
        };
        negotiate::respond(headers, self.accepted, 200, &list)
    }

    fn rows(&self, items: &[Value]) -> Vec<Value> {
        items
            .iter()
            .map(|item| {
                let mut row = Map::new();
                row.insert("cells".into(), Value::Array(model::table_row(self.resource, self.custom, item, self.now)));
                if let Some(conditions) = model::table_conditions(self.resource, item) {
                    row.insert("conditions".into(), conditions);
                }
                match self.include {
                    Include::None => {}
                    Include::Metadata => {
                        row.insert("object".into(), partial_of(item));
                    }
                    Include::Object => {
                        row.insert("object".into(), item.clone());
                    }
                }
                Value::Object(row)
            })
            .collect()
    }

    fn table(&self, items: &[Value], version: Option<Value>, token: Option<Value>, remaining: Option<Value>) -> Value {
        let mut meta = Map::new();
        for (key, value) in [("resourceVersion", version), ("continue", token), ("remainingItemCount", remaining)] {
            if let Some(value) = value {
                meta.insert(key.into(), value);
            }
        }
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": meta,
            "columnDefinitions": model::table_columns(self.resource, self.custom),
            "rows": self.rows(items),
        })
    }

    /// A watch event's frame. `first` tables carry the columns.
    pub fn event(&self, kind: &str, entry: &Entry, ready: impl FnOnce() -> Bytes, first: bool) -> Result<Bytes, Status> {
        if self.as_is() {
            return Ok(ready());
        }
        if self.as_messages() {
            let object = api::codec::envelope(&self.gvk(self.resource.kind), &*self.message(entry)?);
            return Ok(api::codec::frame(&api::codec::watch_event_protobuf(kind, &object)).into());
        }
        let value = self.tree(entry);
        self.event_value(kind, value, first)
    }

    /// A watch event of an object in served form, or of a Status.
    pub fn event_value(&self, kind: &str, value: Value, first: bool) -> Result<Bytes, Status> {
        let value = match self.accepted.convert {
            _ if kind == "ERROR" => value,
            Convert::None => value,
            Convert::PartialObjectMetadata => partial(value),
            Convert::Table => {
                let version = value.get("metadata").and_then(|m| m.get("resourceVersion")).cloned();
                let mut table = if kind == "BOOKMARK" {
                    let mut bookmark = self.table(&[], version, None, None);
                    // the mark of the end of the initial events is looked for on the row's object
                    bookmark["rows"] = json!([{"cells": [], "object": partial(value)}]);
                    bookmark
                } else {
                    self.table(std::slice::from_ref(&value), version, None, None)
                };
                if !first {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        Ok(match self.accepted.format {
            Format::Json | Format::Yaml if self.accepted.format == Format::Json => {
                let json = object::encode(&value);
                let mut out = Vec::with_capacity(json.len() + 40);
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(kind.as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                out.extend_from_slice(&json);
                out.extend_from_slice(b"}\n");
                out.into()
            }
            Format::Protobuf => {
                let message = model::encode_watch_event_protobuf(kind, &value)?;
                let mut out = Vec::with_capacity(message.len() + 4);
                out.extend_from_slice(&(message.len() as u32).to_be_bytes());
                out.extend_from_slice(&message);
                out.into()
            }
            _ => {
                let mut out = b"---\n".to_vec();
                out.extend_from_slice(&model::to_yaml(&json!({"type": kind, "object": value}))?);
                out.into()
            }
        })
    }

    /// The content type of a watch.
    pub fn watch_type(&self) -> &'static str {
        match self.accepted.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}

fn list_of(kind: &str, api_version: String, meta: Value, items: Vec<Value>) -> Value {
    let mut list = json!({"kind": kind, "apiVersion": api_version, "metadata": meta});
    // put in rather than written above, where all items would be copied
    list["items"] = items.into();
    list
}

/// A list in JSON that is written while it is sent: `head` up to its first item, and the items by `write`.
fn json_list(headers: &HeaderMap, mut head: String, size: Option<usize>, items: Vec<Arc<Entry>>, write: impl Fn(&Entry, &mut Vec<u8>) + Send + Unpin + 'static) -> Response<Body> {
    let mut items = items.into_iter();
    let mut first = true;
    body::response_written(headers, Format::Json.media_type(), size, move |out| {
        out.extend_from_slice(std::mem::take(&mut head).as_bytes());
        let Some(entry) = items.next() else {
            out.extend_from_slice(b"]}\n");
            return false;
        };
        if !std::mem::replace(&mut first, false) {
            out.push(b',');
        }
        write(&entry, out);
        true
    })
}

/// As [`partial`], of an object that stays.
fn partial_of(value: &Value) -> Value {
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// An object's metadata alone.
pub fn partial(value: Value) -> Value {
    let metadata = match value {
        Value::Object(mut map) => map.remove("metadata").unwrap_or_default(),
        _ => Value::Null,
    };
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}
