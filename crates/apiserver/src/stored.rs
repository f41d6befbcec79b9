//! The forms in which objects are stored: JSON, and upstream's protobuf (`k8s\0`, a `runtime.Unknown`, the message).
//!
//! Either is read, whoever wrote it. A setting says which one is written; custom resources, their definitions and
//! APIServices are JSON always, as upstream. In the cache all of them are JSON in one layout.
use std::borrow::Cow;

use api::codec::{ContentType, Gvk, MAGIC};
use serde_json::Value;

use crate::types::{Resource, Status};
use crate::{model, object, profile};

/// The form that is written (upstream's `--storage-media-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageMediaType {
    Json,
    Protobuf,
}

impl StorageMediaType {
    /// From what the flag says.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "application/json" => Some(Self::Json),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// Whether objects of this resource are written as protobuf.
    pub(crate) fn is_protobuf(self, resource: &'static Resource) -> bool {
        self == Self::Protobuf && !resource.is_custom() && !model::storage_resource(resource).storage_json
    }

    /// The bytes of an object that is in its storage version. For protobuf it must have no resourceVersion.
    pub(crate) fn encode(self, resource: &'static Resource, object: &Value) -> Result<Vec<u8>, Status> {
        let _part = profile::part("encoding");
        match self.is_protobuf(resource) {
            true => api::codec::encode_protobuf(object).map_err(api::status::internal),
            false => Ok(object::encode_stored(object)),
        }
    }
}

/// How JSON begins that was written here.
const OURS: &[u8] = b"{\"kind\":\"";
/// And how definitions begin that upstream wrote: so much like ours, but in an older version.
const OLD_DEFINITION: &[u8] = b"{\"kind\":\"CustomResourceDefinition\",\"apiVersion\":\"apiextensions.k8s.io/v1beta1\"";

/// The object, in its storage version, with the defaults that whoever wrote it may not have known of.
pub(crate) fn tree(plain: &[u8]) -> Result<Value, String> {
    let mut object = match plain.starts_with(MAGIC) {
        true => api::codec::decode_stored(plain).map_err(|e| e.to_string())?,
        false => api::codec::decode(plain, ContentType::Json, None).map_err(|e| e.to_string())?.value,
    };
    if !object.is_object() {
        return Err("not an object".into());
    }
    let mut gvk = Gvk::of(&object);
    if gvk.kind == "CustomResourceDefinition" && gvk.api_version() == api::crd::old::API_VERSION {
        object = api::crd::old::from_v1beta1(object);
        gvk = Gvk::of(&object);
    } else if let Some(version) = api::resources::stable_version(&gvk.group, &gvk.version, &gvk.kind) {
        gvk.version = version.into();
        object["apiVersion"] = gvk.api_version().into();
    }
    model::apply_defaults(&gvk.group, &gvk.version, &gvk.kind, &mut object);
    // An older server may have stored another version than this one does.
    Ok(match api::resources::find_kind(&gvk.group, &gvk.version, &gvk.kind) {
        Some(from) if !model::is_storage_version(from) => model::convert(from, model::storage_resource(from), object),
        _ => object,
    })
}

/// The object as JSON in the layout that the cache needs.
pub(crate) fn json(plain: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    // The common case: what was written here is not parsed.
    if plain.starts_with(OURS) && plain.ends_with(b"}") && !plain.starts_with(OLD_DEFINITION) && !is_unstable(plain) {
        return Ok(Cow::Borrowed(plain));
    }
    Ok(Cow::Owned(object::encode_stored(&tree(plain)?)))
}

/// Whether JSON that begins as ours is of a version that became a stable one.
fn is_unstable(plain: &[u8]) -> bool {
    fn word(from: &[u8]) -> Option<&str> {
        from.split(|b| *b == b'"').next().and_then(|w| std::str::from_utf8(w).ok())
    }
    let Some(kind) = word(&plain[OURS.len()..]) else { return false };
    let Some(version) = plain[OURS.len() + kind.len()..].strip_prefix(b"\",\"apiVersion\":\"").and_then(word) else { return false };
    let (group, version) = api::resources::split_api_version(version);
    api::resources::stable_version(group, version, kind).is_some()
}

#[cfg(test)]
mod tests {
    use api::facts::{self, Field, Ty, Type};
    use serde_json::{Map, json};

    use super::*;

    /// An object with all its fields, as deep as this.
    const DEPTH: usize = 7;

    fn sample(field: &Field, ty: Ty, depth: usize) -> Option<Value> {
        Some(match ty {
            Ty::String | Ty::Named(_) => json!(format!("{}-{depth}", field.json)),
            Ty::Bool => json!(true),
            Ty::Int32 | Ty::Int64 => json!(depth as i64 + 3),
            Ty::Float64 => json!(1.5),
            Ty::Bytes => json!("AAEC"),
            Ty::Time => json!("2026-01-02T03:04:05Z"),
            Ty::MicroTime => json!("2026-01-02T03:04:05.123456Z"),
            Ty::Duration => json!("1m30s"),
            Ty::Quantity => json!("150m"),
            Ty::IntOrString => json!(if depth % 2 == 0 { json!(80) } else { json!("http") }),
            Ty::RawExtension | Ty::FieldsV1 | Ty::Json => json!({"f:a": {}}),
            Ty::List(item) => json!([sample(field, *item, depth + 1)?, sample(field, *item, depth + 2)?]),
            Ty::Map(item) => json!({"b": sample(field, *item, depth + 1)?, "a": sample(field, *item, depth + 2)?}),
            Ty::Struct(id) => Value::Object(full(id.get(), depth + 1)?),
            _ => return None,
        })
    }

    fn full(ty: &'static Type, depth: usize) -> Option<Map<String, Value>> {
        if depth > DEPTH {
            return None;
        }
        let mut map = Map::new();
        for field in &ty.fields {
            if field.inline {
                if let Ty::Struct(id) = field.ty {
                    map.extend(full(id.get(), depth)?);
                }
            } else if let Some(value) = sample(field, field.ty, depth) {
                map.insert(field.json.to_owned(), value);
            }
        }
        Some(map)
    }

    /// Upstream 1.36 stores mutating policies as v1beta1, and others did so with what has become stable since.
    #[test]
    fn versions_of_before_are_read() {
        let policy = |version: &str| {
            json!({"kind": "MutatingAdmissionPolicy", "apiVersion": format!("admissionregistration.k8s.io/{version}"), "metadata": {"name": "a"},
                "spec": {"variables": [{"name": "v", "expression": "1"}], "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}], "reinvocationPolicy": "Never"}})
        };
        let resource = api::resources::find_kind("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy").unwrap();
        let v1 = StorageMediaType::Protobuf.encode(resource, &policy("v1")).unwrap();
        let new = tree(&v1).unwrap();
        assert_eq!((&new["spec"]["failurePolicy"], &new["spec"]["variables"][0]["name"]), (&json!("Fail"), &json!("v")));
        // the envelope says its length, the version its own
        let text = b"admissionregistration.k8s.io/v1";
        let at = v1.windows(text.len()).position(|w| w == text).unwrap();
        let mut beta = v1.clone();
        beta.splice(at + text.len()..at + text.len(), *b"beta1");
        beta[at - 1] += 5;
        beta[at - 3] += 5;
        assert_eq!(tree(&beta).unwrap(), new);
        let text = object::encode_stored(&policy("v1beta1"));
        assert!(text.starts_with(OURS));
        assert_eq!(tree(&text).unwrap(), new);
        assert_eq!(serde_json::from_slice::<Value>(&json(&text).unwrap()).unwrap(), new);
        let custom = object::encode_stored(&json!({"kind": "Policy", "apiVersion": "example.com/v1beta1", "metadata": {"name": "a"}}));
        assert!(matches!(json(&custom).unwrap(), Cow::Borrowed(_)) && !is_unstable(OURS) && !is_unstable(b"{\"kind\":\"Lease\"}"));
    }

    /// Claim templates say what they are, which protobuf has no place for.
    #[test]
    fn claim_templates_say_what_they_are() {
        let set = json!({"kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": {"name": "a"}, "spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}, "volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {}}]}});
        let resource = api::resources::find_kind("apps", "v1", "StatefulSet").unwrap();
        let read = tree(&StorageMediaType::Protobuf.encode(resource, &set).unwrap()).unwrap();
        let claim = &read["spec"]["volumeClaimTemplates"][0];
        assert_eq!((&claim["kind"], &claim["apiVersion"]), (&json!("PersistentVolumeClaim"), &json!("v1")));
    }

    /// Every kind, with every field it has: written as protobuf it is read as the object that JSON holds.
    #[test]
    fn every_kind_is_the_same_in_both_forms() {
        let (mut count, mut fields) = (0, 0);
        for resource in model::all().iter().filter(|r| model::is_stored(r) && model::is_storage_version(r)) {
            let ty = facts::type_by_name(resource.type_name).unwrap();
            let mut object = Value::Object(full(ty, 0).unwrap());
            object["kind"] = resource.kind.into();
            object["apiVersion"] = resource.api_version().into();
            object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            model::normalize(resource.group, resource.version, resource.kind, &mut object).unwrap();
            let stored = StorageMediaType::Protobuf.encode(resource, &object).unwrap();
            assert_eq!(stored.starts_with(MAGIC), !resource.storage_json, "{}", resource.kind);
            let plain = StorageMediaType::Json.encode(resource, &object).unwrap();
            assert!(plain.starts_with(OURS));
            // read again, it has its defaults
            let defaulted = |object: &Value| {
                let mut object = object.clone();
                model::apply_defaults(resource.group, resource.version, resource.kind, &mut object);
                object
            };
            assert_eq!(tree(&stored).unwrap(), defaulted(&object), "{}", resource.kind);
            let (a, b): (Value, Value) =
                (serde_json::from_slice(&json(&stored).unwrap()).unwrap(), serde_json::from_slice(&json(&plain).unwrap()).unwrap());
            assert_eq!(a, defaulted(&b), "{}", resource.kind);
            // An object with nothing in it.
            let mut bare = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": {"name": "a"}});
            model::normalize(resource.group, resource.version, resource.kind, &mut bare).unwrap();
            assert_eq!(tree(&StorageMediaType::Protobuf.encode(resource, &bare).unwrap()).unwrap(), defaulted(&bare), "{}", resource.kind);
            count += 1;
            fields += plain.iter().filter(|b| **b == b':').count();
        }
        assert!(count > 50 && fields > 10_000, "{count} kinds with {fields} fields are too few to mean anything");
    }

    /// JSON in another layout than ours, as upstream writes custom resources: keys in order, a line's end.
    #[test]
    fn json_of_others_gets_our_layout() {
        let theirs = b"{\"apiVersion\":\"example.com/v1\",\"data\":{\"metadata\":{}},\"kind\":\"X\",\"metadata\":{\"name\":\"a\"}}\n";
        let ours = json(theirs).unwrap();
        assert!(ours.starts_with(b"{\"kind\":\"X\",\"apiVersion\":\"example.com/v1\",\"metadata\":{\"name\":\"a\"}"), "{}", String::from_utf8_lossy(&ours));
        assert!(matches!(json(&ours).unwrap(), Cow::Borrowed(_)));
        assert_eq!(tree(&ours).unwrap(), tree(theirs).unwrap());
    }

    #[test]
    fn other_versions_are_converted() {
        let old = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}});
        let read = tree(&api::codec::encode_protobuf(&old).unwrap()).unwrap();
        assert_eq!(read["apiVersion"], "autoscaling/v2");
        assert_eq!(read["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    }

    /// Definitions lose nothing, with a line's end (as upstream writes) or without.
    #[test]
    fn definitions_of_upstream_keep_their_schemas() {
        let text = r#"{"kind":"CustomResourceDefinition","apiVersion":"apiextensions.k8s.io/v1beta1","metadata":{"name":"xs.example.com"},"spec":{"version":"v1","validation":{"openAPIV3Schema":{"type":"object"}},"versions":[{"name":"v1","served":true,"storage":true}],"preserveUnknownFields":false}}"#;
        for text in [text.to_owned(), format!("{text}\n")] {
            let read: Value = serde_json::from_slice(&json(text.as_bytes()).unwrap()).unwrap();
            assert_eq!(read["apiVersion"], "apiextensions.k8s.io/v1");
            assert_eq!(read["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["type"], "object");
        }
    }

    #[test]
    fn what_is_no_object_is_told() {
        for bad in [&b"k8s\0\xff"[..], b"k8s\0", b"[]", b"", b"{", b"garbage"] {
            assert!(tree(bad).is_err() && json(bad).is_err(), "{bad:?}");
        }
    }
}
