//! Content negotiation: which representation the client takes, and writing an object in it.
use http::{HeaderMap, Response, header};
use serde_json::Value;

use crate::body::{self, Body};
use crate::object;
use crate::types::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// What the object is turned into (`as=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Convert {
    None,
    Table,
    PartialObjectMetadata,
}

/// The client's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub format: Format,
    pub convert: Convert,
    pub pretty: bool,
}

pub const MEDIA_TYPES: [&str; 3] = ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl Format {
    pub fn media_type(self) -> &'static str {
        MEDIA_TYPES[self as usize]
    }
}

pub(crate) struct Clause<'a> {
    pub kind: &'a str,
    pub subtype: &'a str,
    pub params: Vec<(&'a str, &'a str)>,
    q: f32,
}

pub(crate) fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|c| {
            let mut parts = c.split(';').map(str::trim);
            let mut media = parts.next()?;
            if media == "*" {
                media = "*/*";
            }
            let (kind, subtype) = media.split_once('/')?;
            let mut q = 1.0;
            let mut params = Vec::new();
            for p in parts {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                let v = v.trim().trim_matches('"');
                if k.trim() == "q" {
                    q = v.parse().unwrap_or(1.0);
                } else {
                    params.push((k.trim(), v));
                }
            }
            Some(Clause { kind: kind.trim(), subtype: subtype.trim(), params, q })
        })
        .collect();
    all.sort_by(|a, b| b.q.total_cmp(&a.q));
    all
}

/// What conversions an endpoint offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Objects of a resource: Table and PartialObjectMetadata too.
    Resource,
    Watch,
    /// Anything else.
    Plain,
}

/// Picks the representation; 406 if there is none.
pub fn negotiate(headers: &HeaderMap, query_pretty: Option<&str>, endpoint: Endpoint) -> Result<Accepted, Status> {
    negotiated(headers, query_pretty, endpoint, true)
}

/// The same of a custom resource, which has a protobuf form only as a table or as metadata.
pub fn negotiate_custom(headers: &HeaderMap, query_pretty: Option<&str>, endpoint: Endpoint) -> Result<Accepted, Status> {
    negotiated(headers, query_pretty, endpoint, false)
}

fn negotiated(headers: &HeaderMap, query_pretty: Option<&str>, endpoint: Endpoint, protobuf: bool) -> Result<Accepted, Status> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    let types = if protobuf { &MEDIA_TYPES[..] } else { &MEDIA_TYPES[..2] };
    let mut accepted = pick(&accept, endpoint, protobuf).ok_or_else(|| api::status::not_acceptable(types))?;
    accepted.pretty |= match query_pretty {
        Some(v) => !matches!(v, "" | "0" | "false" | "False" | "FALSE" | "f" | "F"),
        None => is_for_people(headers),
    };
    Ok(accepted)
}

/// Whether somebody looks at the answer with a program that shows it as it comes.
pub(crate) fn is_for_people(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p))
}

fn pick(accept: &str, endpoint: Endpoint, protobuf: bool) -> Option<Accepted> {
    if accept.trim().is_empty() {
        return Some(Accepted { format: Format::Json, convert: Convert::None, pretty: false });
    }
    for clause in clauses(accept) {
        for format in [Format::Json, Format::Yaml, Format::Protobuf] {
            let (_, subtype) = format.media_type().split_once('/')?;
            let fits = clause.kind == "application" && (clause.subtype == subtype || clause.subtype == "*")
                || clause.kind == "*" && clause.subtype == "*";
            if fits
                && let Some(accepted) = options(&clause, format, endpoint)
                && (protobuf || format != Format::Protobuf || accepted.convert != Convert::None)
            {
                return Some(accepted);
            }
        }
    }
    None
}

fn options(clause: &Clause<'_>, format: Format, endpoint: Endpoint) -> Option<Accepted> {
    let get = |name: &str| clause.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
    if get("stream").is_some_and(|s| !s.is_empty() && s != "watch") || get("sv").is_some_and(|s| !s.is_empty()) {
        return None;
    }
    let convert = match (get("as"), get("g"), get("v")) {
        (None, None, None) => Convert::None,
        _ if endpoint == Endpoint::Plain => return None,
        (Some("Table"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => Convert::Table,
        (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1" | "v1beta1")) => {
            Convert::PartialObjectMetadata
        }
        _ => return None,
    };
    Some(Accepted { format, convert, pretty: get("pretty") == Some("1") })
}

/// An object's bytes in the accepted format (not converted).
pub fn encode(accepted: Accepted, object: &Value) -> Result<Vec<u8>, Status> {
    Ok(match accepted.format {
        Format::Json if accepted.pretty => {
            let mut out = pretty(object);
            out.push(b'\n');
            out
        }
        Format::Json => {
            let mut out = object::encode(object);
            out.push(b'\n');
            out
        }
        Format::Yaml => crate::model::to_yaml(object)?,
        Format::Protobuf => crate::model::encode_protobuf(object)?,
    })
}

/// Indented JSON with kind, apiVersion and metadata first.
fn pretty(object: &Value) -> Vec<u8> {
    let bytes = object::encode(object);
    indent(&bytes)
}

/// Indents JSON by two spaces, keeping the order of keys.
pub fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let newline = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    for (i, &b) in json.iter().enumerate() {
        if in_string {
            out.push(b);
            match b {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match b {
            b'"' => {
                in_string = true;
                out.push(b);
            }
            b'{' | b'[' => {
                out.push(b);
                if !matches!(json.get(i + 1), Some(b'}' | b']')) {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            b'}' | b']' => {
                if !matches!(json.get(i.wrapping_sub(1)), Some(b'{' | b'[')) {
                    depth = depth.saturating_sub(1);
                    newline(&mut out, depth);
                }
                out.push(b);
            }
            b',' => {
                out.push(b);
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b' ' | b'\n' | b'\t' | b'\r' => {}
            _ => out.push(b),
        }
    }
    out
}

/// The response for an object as it is.
pub fn respond(headers: &HeaderMap, accepted: Accepted, code: u16, object: &Value) -> Response<Body> {
    match encode(accepted, object) {
        Ok(bytes) => body::response_maybe_gzip(headers, code, accepted.format.media_type(), bytes),
        Err(status) => respond_status(headers, &status),
    }
}

/// The Status object; a continue token that a list's failure carries goes where clients look for it, into the metadata.
fn status_value(status: &Status) -> Value {
    let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
    let Some(token) = causes.iter().find(|c| c.reason == crate::verbs::list::CONTINUE_CAUSE).map(|c| c.message.clone()) else {
        return status.to_value();
    };
    let mut status = status.clone();
    status.details = None;
    let mut value = status.to_value();
    value["metadata"] = serde_json::json!({"continue": token});
    value
}

/// The response for a failure, in a format that the client takes (JSON when it takes none).
pub fn respond_status(headers: &HeaderMap, status: &Status) -> Response<Body> {
    let accepted = negotiate(headers, None, Endpoint::Plain)
        .or_else(|_| negotiate(headers, None, Endpoint::Resource))
        .unwrap_or(Accepted { format: Format::Json, convert: Convert::None, pretty: false });
    let value = status_value(status);
    let (media, bytes) = match encode(accepted, &value) {
        Ok(bytes) => (accepted.format.media_type(), bytes),
        Err(_) => (Format::Json.media_type(), object::encode(&value)),
    };
    let mut response = body::response(if status.code == 0 { 500 } else { status.code }, media, bytes);
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if status.code == 401 {
        // no challenge: clients must not ask users for passwords
        response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_gets_what_it_prefers() {
        let p = |s| pick(s, Endpoint::Resource, true);
        assert_eq!(p("*/*").unwrap().format, Format::Json);
        assert_eq!(p("application/vnd.kubernetes.protobuf, */*").unwrap().format, Format::Protobuf);
        assert_eq!(p("application/yaml;q=0.5,application/json;q=0.1").unwrap().format, Format::Yaml);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(p(table).unwrap().convert, Convert::Table);
        assert_eq!(pick(table, Endpoint::Plain, true).unwrap().convert, Convert::None);
        assert!(p("text/html").is_none());
        assert!(p("application/json;as=Nothing;g=x;v=y").is_none());
        assert!(p("application/cbor").is_none());
        assert_eq!(p("application/json;stream=watch").unwrap().format, Format::Json);
    }

    #[test]
    fn indenting() {
        let text = indent(br#"{"a":[],"b":{"c":"{,\":\"}"},"d":[1,2]}"#);
        let expect = "{\n  \"a\": [],\n  \"b\": {\n    \"c\": \"{,\\\":\\\"}\"\n  },\n  \"d\": [\n    1,\n    2\n  ]\n}";
        assert_eq!(String::from_utf8(text).unwrap(), expect);
    }
}
