//! The OpenAPI documents: what a client of each form finds in them.

use super::*;
use crate::codec::wire::{Part, Reader};

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Every reference points at something.
fn check_references(value: &Value, prefix: &str, known: &Map<String, Value>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                let name = target.strip_prefix(prefix).unwrap_or_else(|| panic!("{target}"));
                assert!(known.contains_key(name), "{name}");
            }
            map.values().for_each(|v| check_references(v, prefix, known));
        }
        Value::Array(list) => list.iter().for_each(|v| check_references(v, prefix, known)),
        _ => {}
    }
}

#[test]
fn every_document_of_version_3_is_closed() {
    let index = v3_index();
    assert!(index.iter().any(|(p, _)| p == "apis/apps/v1"));
    for path in ["api/v1", "apis/apps/v1", "apis/apiextensions.k8s.io/v1", "apis/rbac.authorization.k8s.io/v1"] {
        let document = parsed(&v3(path).unwrap());
        let schemas = document["components"]["schemas"].as_object().unwrap();
        check_references(&document, "#/components/schemas/", schemas);
    }
    assert_eq!(v3("apis/nope/v1"), None);
}

#[test]
fn version_3_has_what_kubectl_looks_for() {
    let document = parsed(&v3("apis/apps/v1").unwrap());
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
    let names: Vec<&str> = patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let schemas = &document["components"]["schemas"];
    let spec = &schemas["io.k8s.api.apps.v1.DeploymentSpec"];
    assert_eq!(spec["required"], json!(["selector", "template"]));
    assert_eq!(spec["properties"]["replicas"]["format"], "int32");
    assert_eq!(spec["properties"]["strategy"]["x-kubernetes-patch-strategy"], "retainKeys");
    assert_eq!(spec["properties"]["template"]["default"], json!({}));
    assert!(spec["properties"]["replicas"]["description"].as_str().unwrap().contains("Number of desired pods"));
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(
        schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"]["default"],
        "TCP"
    );
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
}

fn foo() -> CustomKind {
    CustomKind {
        group: "example.com".into(),
        version: "v1".into(),
        list_kind: "FooList".into(),
        entry: Entry {
            plural: "foos".into(),
            singular: "foo".into(),
            kind: "Foo".into(),
            namespaced: true,
            verbs: ["create", "get", "list", "patch", "update", "delete"].map(String::from).to_vec(),
            ..Entry::default()
        },
        schema: Some(json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 1}}}}})),
        selectable: Vec::new(),
        preserve: false,
    }
}

#[test]
fn version_2_is_closed_and_takes_custom_resources() {
    let document = parsed(&v2(&[foo()], &[]));
    assert_eq!(document["swagger"], "2.0");
    let definitions = document["definitions"].as_object().unwrap();
    check_references(&document, "#/definitions/", definitions);
    assert_eq!(definitions["com.example.v1.Foo"]["properties"]["spec"]["properties"]["size"], json!({"type": "integer", "default": 1}));
    assert!(document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}"]["patch"].is_object());
    assert_eq!(definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"], "int-or-string");
    let custom = parsed(&v3_custom(&[foo()]));
    check_references(&custom, "#/components/schemas/", custom["components"]["schemas"].as_object().unwrap());
    assert_eq!(custom["components"]["schemas"]["com.example.v1.Foo"]["properties"]["spec"]["properties"]["size"]["default"], 1);
}

#[test]
fn the_protobuf_form_holds_the_definitions() {
    let bytes = v2_protobuf(&[foo()], &[]);
    let mut reader = Reader::new(&bytes);
    let mut names = Vec::new();
    while let Some((number, part)) = reader.next().unwrap() {
        if let (9, Part::Bytes(definitions)) = (number, part) {
            let Some((1, Part::Bytes(named))) = Reader::new(definitions).next().unwrap() else { panic!() };
            let Some((1, Part::Bytes(name))) = Reader::new(named).next().unwrap() else { panic!() };
            names.push(String::from_utf8(name.to_vec()).unwrap());
        }
    }
    assert!(names.iter().any(|n| n == "io.k8s.api.core.v1.Pod") && names.iter().any(|n| n == "com.example.v1.Foo"));
}
