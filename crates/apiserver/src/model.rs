//! The seam to `api`: everything the server asks of types and schemas goes through here.
use std::collections::HashMap;
use std::sync::OnceLock;

use api::apply::Target;
use serde_json::Value;

use crate::ctx::Ctx;
use crate::decode::Expect;
use crate::negotiate::Format;
use crate::profile;
use crate::types::{FieldError, Resource, Status};

/// All built-in resources.
pub fn all() -> &'static [Resource] {
    api::resources::all()
}

/// A resource by group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    static INDEX: OnceLock<HashMap<&'static str, Vec<&'static Resource>>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        for r in all() {
            index.entry(r.plural).or_default().push(r);
        }
        index
    });
    index.get(plural)?.iter().find(|r| r.group == group && r.version == version).copied()
}

/// Whether objects are stored in the version that this resource serves.
pub fn is_storage_version(r: &Resource) -> bool {
    r.storage_version.is_none_or(|(g, v)| g == r.group && v == r.version)
}

/// The resource in whose version the objects are stored.
pub fn storage_resource(r: &'static Resource) -> &'static Resource {
    r.storage_version.and_then(|(g, v)| find(g, v, r.plural)).unwrap_or(r)
}

/// Whether a resource keeps objects in the store.
pub fn is_stored(r: &Resource) -> bool {
    !r.storage_prefix.is_empty()
}

pub fn is_event(r: &Resource) -> bool {
    r.kind == "Event"
}

pub fn has_subresource(r: &Resource, name: &str) -> bool {
    r.subresource(name).is_some()
}

/// Kinds whose `metadata.generation` counts changes of what is desired.
pub fn tracks_generation(r: &Resource) -> bool {
    matches!(
        (r.group, r.plural),
        ("", "pods" | "podtemplates" | "replicationcontrollers")
            | ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
            | ("batch", "jobs" | "cronjobs")
            | ("networking.k8s.io", "ingresses" | "ingressclasses" | "networkpolicies")
            | ("policy", "poddisruptionbudgets")
            | ("scheduling.k8s.io", "priorityclasses")
            | ("discovery.k8s.io", "endpointslices")
            | ("flowcontrol.apiserver.k8s.io", _)
            | ("admissionregistration.k8s.io", _)
            | ("apiextensions.k8s.io", "customresourcedefinitions")
            | ("resource.k8s.io", "resourceslices" | "deviceclasses" | "devicetaintrules")
    )
}

/// What of the metadata an update through `status` leaves as it was.
pub fn kept_by_status(r: &Resource) -> &'static [&'static str] {
    const ALL: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences", "generation"];
    match (r.group, r.plural) {
        ("apps", "deployments") => &["labels"],
        ("storage.k8s.io", "volumeattachments")
        | ("admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io" | "resource.k8s.io" | "apiextensions.k8s.io", _)
        | ("networking.k8s.io", "servicecidrs") => ALL,
        _ => &[],
    }
}

/// What to warn of about an object that is written.
pub fn warnings(r: &Resource, subresource: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    match subresource {
        "" | "scale" => api::warnings::of(r, new, old).into_all(),
        "status" => api::warnings::of_status(r, new).into_all(),
        _ => Vec::new(),
    }
}

/// Kinds whose delete answers with the object.
pub fn returns_deleted_object(r: &Resource) -> bool {
    matches!(
        (r.group, r.plural),
        (
            "",
            "pods"
                | "services"
                | "namespaces"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "serviceaccounts"
                | "podtemplates"
                | "resourcequotas"
        ) | ("resource.k8s.io" | "storage.k8s.io", _)
    )
}

/// What upstream warns of in every response for a resource.
pub fn deprecation(r: &Resource) -> Option<&'static str> {
    match (r.group, r.plural) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        _ => None,
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(r: &Resource) -> String {
    r.api_version()
}

/// The same object in another version.
pub fn convert(from: &'static Resource, to: &'static Resource, object: Value) -> Value {
    api::convert::convert((from.group, from.version, from.kind), (to.group, to.version), object)
}

pub fn to_yaml(object: &Value) -> Result<Vec<u8>, Status> {
    serde_saphyr::to_string(object).map(String::into_bytes).map_err(api::status::internal)
}

/// The protobuf envelope and message of an object, list or Status.
pub fn encode_protobuf(object: &Value) -> Result<Vec<u8>, Status> {
    api::codec::encode_protobuf(object).map_err(|e| no_protobuf(object, e))
}

/// The protobuf message of an object, without an envelope.
pub fn encode_bare(object: &Value) -> Result<Vec<u8>, Status> {
    api::codec::encode_bare(object).map_err(|e| no_protobuf(object, e))
}

pub fn encode_watch_event_protobuf(kind: &str, object: &Value) -> Result<Vec<u8>, Status> {
    api::codec::encode_watch_event_protobuf(kind, object).map_err(|e| no_protobuf(object, e))
}

fn no_protobuf(object: &Value, error: api::codec::EncodeError) -> Status {
    match error {
        api::codec::EncodeError::NoProtobuf(_) => api::status::not_acceptable(&["application/json", "application/yaml"]),
        error => {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            tracing::error!(kind, %error, "an object has no protobuf form");
            api::status::internal(error)
        }
    }
}

pub fn validate_create(r: &Resource, object: &Value) -> Vec<FieldError> {
    api::validate::create(r, object)
}

pub fn validate_update(r: &Resource, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    api::validate::update_through(r, subresource, new, old)
}

pub fn apply_defaults(group: &str, version: &str, kind: &str, object: &mut Value) {
    api::defaults::apply(group, version, kind, object);
}

pub fn manager_of_user_agent(user_agent: &str) -> String {
    api::apply::manager_of_user_agent(user_agent)
}

/// Runs `f` with the target of the request's writes; types without facts have no ownership.
fn with_target<T>(ctx: &Ctx, f: impl FnOnce(&Target<'_>) -> T) -> Option<T> {
    let r = ctx.resource;
    if let Some(custom) = &ctx.custom {
        let node = custom.version.source().map_or(api::topology::Node::Deduced, api::topology::Node::CustomResource);
        let api_version = r.api_version();
        let mut target = Target::new(node, &api_version, r.kind, &ctx.subresource, has_subresource(r, "status"));
        if ctx.subresource == "status" {
            target.reset = api::apply::Set::of(&[&["metadata"], &["spec"]]);
        }
        return Some(f(&target));
    }
    let t = api::facts::type_by_name(r.type_name)?;
    let api_version = r.api_version();
    let node = node_of(t);
    Some(f(&Target::new(node, &api_version, r.kind, &ctx.subresource, has_subresource(r, "status"))))
}

/// Books the changed fields to the manager.
pub fn track_update(ctx: &Ctx, old: Option<&Value>, new: &mut Value, manager: &str, now: &str) {
    let _part = profile::part("field ownership");
    with_target(ctx, |t| api::apply::track_update(t, old, new, manager, now));
}

/// Server-side apply; the result is not defaulted yet.
pub fn apply(ctx: &Ctx, live: Option<&Value>, config: &Value, manager: &str, force: bool, now: &str) -> Result<Value, Status> {
    let _part = profile::part("field ownership");
    with_target(ctx, |t| api::apply::apply(t, live, config, manager, force, now))
        .unwrap_or_else(|| Err(api::status::bad_request("this kind cannot be applied")))
}

/// What a configuration makes of an object of a built-in kind.
pub fn merge(live: &Value, config: &Value) -> Result<Value, String> {
    let text = |key: &str| live.get(key).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = api::resources::split_api_version(text("apiVersion"));
    let node = api::resources::type_name(group, version, text("kind")).map_or(api::topology::Node::Deduced, api::topology::builtin);
    api::apply::merge(node, live, config)
}

fn node_of(t: &'static api::facts::Type) -> api::topology::Node<'static> {
    api::topology::Node::Type(t)
}

/// Bytes → tree, and what strict validation says of duplicate keys.
pub fn decode(bytes: &[u8], format: Format, expect: Option<&api::codec::Gvk>) -> Result<(Value, Vec<String>), String> {
    let content_type = match format {
        Format::Json => api::codec::ContentType::Json,
        Format::Yaml => api::codec::ContentType::Yaml,
        Format::Protobuf => api::codec::ContentType::Protobuf,
    };
    api::codec::decode(bytes, content_type, expect).map(|d| (d.value, d.duplicates)).map_err(|e| e.to_string())
}

/// The custom resource that a request is about, when it is what is expected (its scale is not).
fn custom_of<'a>(ctx: &'a Ctx, expect: &Expect) -> Option<&'a crate::custom::Custom> {
    ctx.custom.as_ref().filter(|c| c.resource().kind == expect.kind && c.resource().group == expect.group)
}

/// As [`normalize`], of what a request sends.
pub fn settle(ctx: &Ctx, expect: &Expect, object: &mut Value) -> Result<Vec<String>, String> {
    match custom_of(ctx, expect) {
        Some(custom) => {
            let unknown = custom.settle(object)?;
            Ok(unknown.into_iter().map(|path| format!("unknown field \"{path}\"")).collect())
        }
        None => normalize(&expect.group, &expect.version, &expect.kind, object),
    }
}

/// As [`check`], of what a request sends. What a custom resource does not know is found when fields are owned.
pub fn check_settled(ctx: &Ctx, expect: &Expect, object: &Value) -> Result<Vec<String>, String> {
    match custom_of(ctx, expect) {
        Some(_) => Ok(Vec::new()),
        None => check(&expect.group, &expect.version, &expect.kind, object),
    }
}

/// Defaults of what a request sends.
pub fn default_settled(ctx: &Ctx, expect: &Expect, object: &mut Value) {
    match custom_of(ctx, expect) {
        Some(custom) => custom.apply_defaults(object),
        None => apply_defaults(&expect.group, &expect.version, &expect.kind, object),
    }
}

/// An object that admission changed: types, unknown fields, defaults.
pub fn settle_changed(ctx: &Ctx, object: &mut Value) -> Result<Vec<String>, String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api::resources::split_api_version(&api_version);
    let expect = Expect::new(group, version, &kind);
    let unknown = settle(ctx, &expect, object)?;
    default_settled(ctx, &expect, object);
    Ok(unknown)
}

/// Whether the kind is checked later, with everything else.
pub fn lenient_kind(ctx: &Ctx, expect: &Expect) -> bool {
    custom_of(ctx, expect).is_some()
}

/// Checks types, brings values to their normal form, and drops what is null, zero or unknown; the result says what was unknown.
pub fn normalize(group: &str, version: &str, kind: &str, object: &mut Value) -> Result<Vec<String>, String> {
    let Some(name) = api::resources::type_name(group, version, kind) else { return Ok(Vec::new()) };
    api::schema::normalize(name, object).map(|n| n.unknown).map_err(|e| e.to_string())
}

/// As `normalize`, of a configuration to apply: it is only looked at, for nulls and zeros in it are owned too.
pub fn check(group: &str, version: &str, kind: &str, object: &Value) -> Result<Vec<String>, String> {
    normalize(group, version, kind, &mut object.clone())
}

/// Puts back the top-level fields that Go writes even when they are empty, after a strategy took them away.
pub fn fill(r: &Resource, object: &mut Value) {
    if let (Some(t), Value::Object(map)) = (api::facts::type_by_name(r.type_name), object) {
        api::schema::fill(t, map);
    }
}

/// How much the copy operations of one JSON patch may add, in characters (upstream: the limit of a request body).
const MAX_COPIED: usize = crate::body::MAX_REQUEST;

/// Applies a JSON patch; one that would make the object grow without bounds (by copying it into itself) is refused.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, Status> {
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |op: &Value, key: &str| op.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    if operations.iter().any(|op| text(op, "path").matches('/').count() > 120) {
        return Err(api::status::bad_request("a path of the JSON patch is too long"));
    }
    if !operations.iter().any(|op| matches!(text(op, "op").as_str(), "copy" | "move")) {
        return api::patch::json_patch(object, patch);
    }
    let (mut result, mut copied) = (object.clone(), 0);
    for op in operations {
        if text(op, "op") == "copy" {
            copied += result.pointer(&text(op, "from")).map_or(0, |v| v.to_string().len());
            if copied > MAX_COPIED {
                return Err(api::status::too_large_because(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
                )));
            }
        }
        result = api::patch::json_patch(&result, &Value::Array(vec![op.clone()]))?;
        if crate::object::too_deep(&result) {
            return Err(api::status::bad_request("the patched object is nested too deeply"));
        }
    }
    Ok(result)
}

pub fn merge_patch(object: &Value, patch: &Value) -> Result<Value, Status> {
    api::patch::merge_patch(object, patch)
}

pub fn strategic_merge(r: &Resource, object: &Value, patch: &Value) -> Result<Value, Status> {
    let node = api::facts::type_by_name(r.type_name).map_or(api::topology::Node::Deduced, node_of);
    api::patch::strategic_merge(node, object, patch)
}

/// The table columns of a kind.
pub fn table_columns(r: &Resource, custom: Option<&crate::custom::Custom>) -> Value {
    if let Some(custom) = custom {
        return api::crd::columns::definitions(&custom.version.columns);
    }
    api::table::column_definitions(r.group, r.kind)
}

/// The cells of an object's row.
pub fn table_row(r: &Resource, custom: Option<&crate::custom::Custom>, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    if let Some(custom) = custom {
        return api::crd::columns::row(&custom.version.columns, object, now);
    }
    api::table::row(r.group, r.kind, object, now)
}

/// The conditions of an object's row.
pub fn table_conditions(r: &Resource, object: &Value) -> Option<Value> {
    api::table::row_conditions(r.group, r.kind, object)
}
