//! Request bodies → objects: media type, syntax, version and kind, types and unknown fields, defaults.
use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use crate::ctx::Ctx;
use crate::model;
use crate::negotiate::{Format, MEDIA_TYPES};
use crate::object;
use crate::types::Status;
use crate::verbs::FieldValidation;

/// What the body must be.
#[derive(Debug, Clone)]
pub struct Expect {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl Expect {
    pub fn new(group: &str, version: &str, kind: &str) -> Expect {
        Expect { group: group.into(), version: version.into(), kind: kind.into() }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The body's format by its content type; none means JSON.
pub fn content_format(headers: &HeaderMap) -> Result<Format, Status> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let media = given.split(';').next().unwrap_or_default().trim();
    match media {
        // Only nothing at all means JSON: ";" is no media type.
        "" if given.is_empty() => Ok(Format::Json),
        "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(api::status::unsupported_media_type(&MEDIA_TYPES)),
    }
}

/// Reads an object of a resource, complete with defaults.
pub fn object(headers: &HeaderMap, body: &Bytes, expect: &Expect, validation: FieldValidation, ctx: &Ctx) -> Result<Value, Status> {
    let format = content_format(headers)?;
    let gvk = api::codec::Gvk::new(&expect.group, &expect.version, &expect.kind);
    let (mut value, duplicates) = match model::decode(body, format, Some(&gvk)) {
        Ok(decoded) => decoded,
        Err(why) => return Err(unrecognized(expect, &why, body)),
    };
    if !value.is_object() {
        let why = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go_type(&value)
        );
        return Err(unrecognized(expect, &why, body));
    }
    if object::too_deep(&value) {
        return Err(unrecognized(expect, "the object is nested too deeply", body));
    }
    settle_type(&mut value, expect, model::lenient_kind(ctx, expect))?;
    let unknown = model::settle(ctx, expect, &mut value).map_err(|why| cannot_be_handled(expect, &why))?;
    let (duplicates, unknown) = if ctx.custom.is_some() || duplicates.is_empty() || unknown.is_empty() || format != Format::Json {
        (duplicates, unknown)
    } else {
        // Upstream's decoder meets both on its one way through the document.
        (api::codec::in_order_of(body, duplicates.into_iter().chain(unknown).collect()), Vec::new())
    };
    report(expect, validation, format, duplicates, unknown, ctx)?;
    object::meta_mut(&mut value);
    model::default_settled(ctx, expect, &mut value);
    Ok(value)
}

/// After a patch: types, unknown fields and defaults of the result.
pub fn patched(value: &mut Value, expect: &Expect, validation: FieldValidation, extra: Vec<String>, ctx: &Ctx) -> Result<(), Status> {
    let invalid = |value: &Value, why: &str| {
        let text = String::from_utf8(object::encode(value)).unwrap_or_default();
        let error = api::field::FieldError::invalid(&api::field::Path::new("patch"), text, why);
        api::status::invalid("", "", "", &[error])
    };
    if object::too_deep(value) {
        return Err(api::status::bad_request("the patched object is nested too deeply"));
    }
    if !value.is_object() {
        return Err(invalid(value, "the patch made something of the object that is not an object"));
    }
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text(value, "apiVersion"), text(value, "kind"));
    if (api_version != expect.api_version() || kind != expect.kind) && !model::lenient_kind(ctx, expect) {
        return Err(invalid(
            value,
            &format!("the patch may not change kind or apiVersion ({} {} to {api_version} {kind})", expect.api_version(), expect.kind),
        ));
    }
    let unknown = match model::settle(ctx, expect, value) {
        Ok(unknown) => unknown,
        Err(why) => return Err(invalid(value, &why)),
    };
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => warn(extra, unknown, ctx),
        FieldValidation::Strict if extra.is_empty() && unknown.is_empty() => {}
        FieldValidation::Strict => return Err(invalid(value, &strict_error(extra, unknown))),
    }
    object::meta_mut(value);
    model::default_settled(ctx, expect, value);
    Ok(())
}

/// Fills in or checks apiVersion and kind.
fn settle_type(value: &mut Value, expect: &Expect, lenient: bool) -> Result<(), Status> {
    let want = expect.api_version();
    let map = object::map_of(value);
    for key in ["apiVersion", "kind"] {
        if map.get(key).is_some_and(|v| !v.is_string() && !v.is_null()) {
            return Err(api::status::bad_request(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{key} of type string",
                go_type(&map[key])
            )));
        }
    }
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() {
        map.insert("kind".into(), expect.kind.as_str().into());
    } else if kind != expect.kind && !lenient {
        let (group, version) = api::resources::split_api_version(if api_version.is_empty() { &want } else { &api_version });
        let known = api::resources::type_name(group, version, &kind).is_some();
        return Err(api::status::bad_request(if known {
            format!(
                "{kind} in version {} cannot be handled as a {}: converting ({kind}) to ({}): unknown conversion",
                api::field::go_quote(version),
                expect.kind,
                expect.kind
            )
        } else {
            format!(
                "{kind} in version {} cannot be handled as a {}: no kind {} is registered for version {} in scheme",
                api::field::go_quote(version),
                expect.kind,
                api::field::go_quote(&kind),
                api::field::go_quote(&format!("{}{}{version}", group, if group.is_empty() { "" } else { "/" })),
            )
        }));
    }
    if api_version.is_empty() {
        map.insert("apiVersion".into(), want.into());
    } else if api::resources::also_read(&expect.group, &expect.kind).contains(&api_version.as_str()) {
        map.insert("apiVersion".into(), want.into());
    } else if api_version != want {
        return Err(api::status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({want})"
        )));
    }
    Ok(())
}

fn report(expect: &Expect, validation: FieldValidation, format: Format, duplicates: Vec<String>, unknown: Vec<String>, ctx: &Ctx) -> Result<(), Status> {
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warn(duplicates, unknown, ctx);
            Ok(())
        }
        FieldValidation::Strict if duplicates.is_empty() && unknown.is_empty() => Ok(()),
        FieldValidation::Strict if format == Format::Yaml && !duplicates.is_empty() => {
            Err(cannot_be_handled(expect, &strict_error(vec![yaml_error(&duplicates)], unknown)))
        }
        FieldValidation::Strict => Err(cannot_be_handled(expect, &strict_error(duplicates, unknown))),
    }
}

/// What is said of the repeated keys in a configuration to apply.
pub fn applied(validation: FieldValidation, duplicates: &[String], ctx: &Ctx) -> Result<(), Status> {
    match validation {
        _ if duplicates.is_empty() => Ok(()),
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warn(duplicates.to_vec(), Vec::new(), ctx);
            Ok(())
        }
        FieldValidation::Strict => {
            let why = yaml_error(duplicates);
            Err(api::status::bad_request(format!("error strict decoding YAML: error converting YAML to JSON: {why}")))
        }
    }
}

/// Upstream's reader of YAML tells of all repeated keys at once.
fn yaml_error(duplicates: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", duplicates.join("\n  "))
}

fn warn(first: Vec<String>, unknown: Vec<String>, ctx: &Ctx) {
    for text in first.into_iter().chain(unknown) {
        ctx.warn(text);
    }
}

fn strict_error(first: Vec<String>, unknown: Vec<String>) -> String {
    let all: Vec<String> = first.into_iter().chain(unknown).collect();
    format!("strict decoding error: {}", all.join(", "))
}

fn cannot_be_handled(expect: &Expect, why: &str) -> Status {
    api::status::bad_request(format!(
        "{} in version {} cannot be handled as a {}: {why}",
        expect.kind,
        api::field::go_quote(&expect.version),
        expect.kind
    ))
}

fn unrecognized(expect: &Expect, why: &str, body: &[u8]) -> Status {
    let summary = match body {
        [] => "empty".to_string(),
        b if b.len() > 30 => format!("{} ...", api::field::go_quote(&String::from_utf8_lossy(&b[..30]))),
        b => api::field::go_quote(&String::from_utf8_lossy(b)),
    };
    api::status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({summary})",
        expect.kind
    ))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
