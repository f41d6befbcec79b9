//! Custom resources through the whole handler chain: from a definition to its objects, and back to nothing.

mod common;

use common::{Cluster, admin};
use serde_json::{Value, json};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/example.com/v1/namespaces/a/crontabs";

fn crontabs() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["cron"], "properties": {
            "cron": {"type": "string", "minLength": 1}, "replicas": {"type": "integer", "minimum": 0, "default": 1}, "color": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer"}}}}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [{"name": "Cron", "type": "string", "jsonPath": ".spec.cron"}, {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}]})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "crontabs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": [version("v1", true), version("v1beta1", false)],
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]}}})
}

fn tab(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "CronTab", "metadata": {"name": name, "labels": {"l": name}}, "spec": spec})
}

/// Waits until a condition of a definition is so.
async fn wait(cluster: &Cluster, name: &str, kind: &str, status: &str) -> Value {
    for _ in 0..200 {
        let definition = cluster.get(&admin(), &format!("{CRDS}/{name}")).await;
        let all = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if all.iter().any(|c| c["type"] == kind && c["status"] == status) {
            return definition;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{name} never was {kind}={status}");
}

async fn with_crontabs() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let (code, made) = cluster.post(&admin(), CRDS, &crontabs()).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["names"]["listKind"], "CronTabList");
    wait(&cluster, "crontabs.example.com", "Established", "True").await;
    cluster
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn repeated_keys_are_found_where_unknown_fields_are_kept() {
    let cluster = Cluster::start().await;
    let mut definition = crontabs();
    for version in definition["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-preserve-unknown-fields"] = json!(true);
    }
    definition["spec"]["scope"] = json!("Cluster");
    cluster.post(&admin(), CRDS, &definition).await;
    wait(&cluster, "crontabs.example.com", "Established", "True").await;
    let body = "\napiVersion: example.com/v1\nkind: CronTab\nmetadata:\n  name: t\nspec:\n  unknown: uk1\n  foo: foo1\n  foo: foo2\n  cron: x";
    let apply = async |validation: &str| {
        let path = format!("/apis/example.com/v1/crontabs/t?fieldManager=m&fieldValidation={validation}");
        cluster.patch_text(&admin(), "application/apply-patch+yaml", &path, body.to_owned()).await
    };
    let (code, refused) = apply("Strict").await;
    let expect = "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 9: key \"foo\" already set in map";
    assert_eq!((code, refused["message"].as_str().unwrap()), (400, expect));
    let (code, made) = apply("Warn").await;
    assert_eq!((code, &made["spec"]["foo"], &made["spec"]["unknown"]), (201, &json!("foo2"), &json!("uk1")), "{made}");
}

#[tokio::test]
async fn from_definition_to_objects_and_back() {
    let cluster = with_crontabs().await;
    let (code, made) = cluster.post(&admin(), TABS, &tab("t", json!({"cron": "* * * * *", "unknown": 1}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["spec"], &made["metadata"]["generation"]), (&json!({"cron": "* * * * *", "replicas": 1}), &json!(1)));
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["managedFields"].is_array());
    let (code, refused) = cluster.post(&admin(), TABS, &tab("u", json!({"replicas": "x"}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        "CronTab.example.com \"u\" is invalid: [spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\", spec.cron: Required value, .spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64]"
    );
    let (code, refused) = cluster.post(&admin(), &format!("{TABS}?fieldValidation=Strict"), &tab("u", json!({"cron": "x", "unknown": 1}))).await;
    assert_eq!((code, refused["message"].as_str().unwrap()), (400, "CronTab in version \"v1\" cannot be handled as a CronTab: strict decoding error: unknown field \"spec.unknown\""));

    // the other version shows the same object
    let beta = cluster.get(&admin(), "/apis/example.com/v1beta1/namespaces/a/crontabs/t").await;
    assert_eq!((&beta["apiVersion"], &beta["spec"]), (&json!("example.com/v1beta1"), &made["spec"]));
    let list = cluster.get(&admin(), "/apis/example.com/v1beta1/crontabs").await;
    assert_eq!((&list["kind"], &list["items"][0]["apiVersion"]), (&json!("CronTabList"), &json!("example.com/v1beta1")));

    // status and spec keep apart, the generation counts the spec
    let mut status = made.clone();
    status["status"] = json!({"replicas": 3, "selector": "a=b"});
    status["spec"]["cron"] = json!("no");
    let (code, updated) = cluster.call(&admin(), "PUT", &format!("{TABS}/t/status"), Some(&status)).await;
    assert_eq!(code, 200, "{updated}");
    assert_eq!((&updated["spec"]["cron"], &updated["status"]["replicas"], &updated["metadata"]["generation"]), (&json!("* * * * *"), &json!(3), &json!(1)));
    let scale = cluster.get(&admin(), &format!("{TABS}/t/scale")).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]), (&json!(1), &json!({"replicas": 3, "selector": "a=b"})));
    let mut larger = scale.clone();
    larger["spec"]["replicas"] = json!(5);
    let (code, scaled) = cluster.call(&admin(), "PUT", &format!("{TABS}/t/scale"), Some(&larger)).await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(5)), "{scaled}");
    let now = cluster.get(&admin(), &format!("{TABS}/t")).await;
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(5), &json!(2)));
    let mut loose = now.clone();
    loose["metadata"]["resourceVersion"] = Value::Null;
    let (code, _) = cluster.call(&admin(), "PUT", &format!("{TABS}/t"), Some(&loose)).await;
    assert_eq!(code, 422, "a version must be given");

    // deletion takes the objects along
    let (code, _) = cluster.call(&admin(), "DELETE", &format!("{CRDS}/crontabs.example.com"), None).await;
    assert_eq!(code, 200);
    for _ in 0..200 {
        let (code, _) = cluster.call(&admin(), "GET", &format!("{CRDS}/crontabs.example.com"), None).await;
        if code == 404 {
            let (code, _) = cluster.call(&admin(), "GET", TABS, None).await;
            assert_eq!(code, 404);
            let left = cluster.store().range(store::RangeRequest::prefix("/registry/example.com/")).await.unwrap();
            assert!(left.kvs.is_empty());
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the definition stays");
}

#[tokio::test]
async fn lists_selectors_tables_and_restart() {
    let cluster = with_crontabs().await;
    for (name, color) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        let (code, made) = cluster.post(&admin(), TABS, &tab(name, json!({"cron": "x", "color": color}))).await;
        assert_eq!(code, 201, "{made}");
    }
    assert_eq!(names(&cluster.get(&admin(), &format!("{TABS}?fieldSelector=spec.color%3Dred")).await), ["a", "c"]);
    assert_eq!(names(&cluster.get(&admin(), &format!("{TABS}?labelSelector=l%3Db")).await), ["b"]);
    assert_eq!(names(&cluster.get(&admin(), &format!("{TABS}?fieldSelector=metadata.name%3Db")).await), ["b"]);
    let (code, bad) = cluster.call(&admin(), "GET", &format!("{TABS}?fieldSelector=spec.cron%3Dx"), None).await;
    assert_eq!((code, &bad["message"]), (400, &json!("field label not supported: spec.cron")));
    let page = cluster.get(&admin(), &format!("{TABS}?limit=2")).await;
    assert_eq!((names(&page), &page["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(1)));
    let token = page["metadata"]["continue"].as_str().unwrap();
    assert_eq!(names(&cluster.get(&admin(), &format!("{TABS}?limit=2&continue={token}")).await), ["c"]);

    let table = cluster.get_as(&admin(), "application/json;as=Table;g=meta.k8s.io;v=v1", TABS).await;
    let columns: Vec<&str> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Cron", "Replicas"]);
    assert_eq!(table["rows"][1]["cells"], json!(["b", "x", 1]));
    let partial = cluster.get_as(&admin(), "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", TABS).await;
    assert_eq!(partial["kind"], "PartialObjectMetadataList");

    let discovered = cluster.get(&admin(), "/apis/example.com/v1").await;
    assert_eq!((&discovered["resources"][0]["shortNames"], &discovered["resources"][2]["name"]), (&json!(["ct"]), &json!("crontabs/scale")));
    let group = cluster.get(&admin(), "/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let openapi = cluster.get(&admin(), "/openapi/v3/apis/example.com/v1").await;
    assert_eq!(openapi["components"]["schemas"]["com.example.v1.CronTab"]["properties"]["spec"]["properties"]["cron"]["type"], "string");

    let again = Cluster::over(cluster.store(), cluster.ca.clone()).await;
    assert_eq!(names(&again.get(&admin(), TABS).await), ["a", "b", "c"]);
}

#[tokio::test]
async fn patches_and_apply() {
    let cluster = with_crontabs().await;
    let url = format!("{TABS}/t");
    let apply = |manager: &str, port: u16| {
        let config = json!({"apiVersion": "example.com/v1", "kind": "CronTab", "spec": {"cron": "x", "ports": [{"name": manager, "port": port}]}});
        (format!("{url}?fieldManager={manager}"), config)
    };
    for manager in ["one", "two"] {
        let (url, config) = apply(manager, 80);
        let (code, made) = cluster.patch(&admin(), "application/apply-patch+yaml", &url, &config).await;
        assert!(code == 200 || code == 201, "{made}");
    }
    let now = cluster.get(&admin(), &url).await;
    assert_eq!(now["spec"]["ports"], json!([{"name": "one", "port": 80}, {"name": "two", "port": 80}]), "lists merge by key");
    let mut config = apply("three", 1).1;
    config["spec"] = json!({"cron": "y"});
    let (code, conflict) = cluster.patch(&admin(), "application/apply-patch+yaml", &format!("{url}?fieldManager=three"), &config).await;
    assert_eq!((code, &conflict["details"]["causes"][0]["field"]), (409, &json!(".spec.cron")), "{conflict}");
    let (code, merged) = cluster.patch(&admin(), "application/merge-patch+json", &url, &json!({"spec": {"replicas": 7}})).await;
    assert_eq!((code, &merged["spec"]["replicas"]), (200, &json!(7)), "{merged}");
    let (code, refused) = cluster.patch(&admin(), "application/strategic-merge-patch+json", &url, &json!({})).await;
    assert_eq!(code, 415);
    assert_eq!(
        refused["message"],
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    );
    let (code, refused) = cluster.patch(&admin(), "application/json-patch+json", &url, &json!([{"op": "replace", "path": "/spec/replicas", "value": -1}])).await;
    assert_eq!(code, 422, "{refused}");
}

#[tokio::test]
async fn a_definition_that_changes_is_seen() {
    let cluster = with_crontabs().await;
    let (code, _) = cluster.post(&admin(), TABS, &tab("t", json!({"cron": "x"}))).await;
    assert_eq!(code, 201);
    let url = format!("{CRDS}/crontabs.example.com");
    let mut definition = cluster.get(&admin(), &url).await;
    for version in definition["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["image"] = json!({"type": "string", "default": "i"});
    }
    definition["spec"]["versions"][1]["served"] = json!(false);
    let (code, changed) = cluster.call(&admin(), "PUT", &url, Some(&definition)).await;
    assert_eq!((code, &changed["metadata"]["generation"]), (200, &json!(2)), "{changed}");
    let now = cluster.get(&admin(), &format!("{TABS}/t")).await;
    assert_eq!(now["spec"]["image"], "i", "defaults come when objects are read");
    let (code, _) = cluster.call(&admin(), "GET", "/apis/example.com/v1beta1/crontabs", None).await;
    assert_eq!(code, 404);
    definition["spec"]["scope"] = json!("Cluster");
    definition["metadata"]["resourceVersion"] = changed["metadata"]["resourceVersion"].clone();
    let (code, refused) = cluster.call(&admin(), "PUT", &url, Some(&definition)).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("spec.scope: Invalid value: \"Cluster\": field is immutable"), "{refused}");
}

fn with_rules(rules: Value) -> Value {
    let mut definition = crontabs();
    for version in definition["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = rules.clone();
    }
    definition
}

#[tokio::test]
async fn rules_are_compiled_and_asked() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let (code, refused) = cluster.post(&admin(), CRDS, &with_rules(json!([{"rule": "self.nope > 1"}]))).await;
    assert_eq!(code, 422);
    let message = refused["details"]["causes"][0]["message"].as_str().unwrap();
    assert!(message.contains("compilation failed: ERROR: <input>:1:5: undefined field 'nope'"), "{message}");
    let (code, refused) = cluster.post(&admin(), CRDS, &with_rules(json!([{"rule": "self.ports.all(p, self.ports.all(q, self.ports.all(r, p.name + q.name != r.name)))"}]))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("estimated rule cost exceeds budget by factor of more than 100x"), "{refused}");

    let rules = json!([
        {"rule": "self.replicas < 10 || self.cron == 'many'", "message": "too many"},
        {"rule": "self.replicas >= oldSelf.replicas", "messageExpression": "'not before ' + oldSelf.cron", "reason": "FieldValueForbidden", "fieldPath": ".replicas"},
    ]);
    let (code, made) = cluster.post(&admin(), CRDS, &with_rules(rules)).await;
    assert_eq!(code, 201, "{made}");
    wait(&cluster, "crontabs.example.com", "Established", "True").await;
    let (code, refused) = cluster.post(&admin(), TABS, &tab("t", json!({"cron": "x", "replicas": 11}))).await;
    assert_eq!((code, refused["message"].as_str().unwrap()), (422, "CronTab.example.com \"t\" is invalid: spec: Invalid value: too many"));
    let (code, made) = cluster.post(&admin(), TABS, &tab("t", json!({"cron": "many", "replicas": 11}))).await;
    assert_eq!(code, 201, "{made}");
    let change = |spec: Value| json!({"spec": spec});
    let url = format!("{TABS}/t");
    let (code, refused) = cluster.patch(&admin(), "application/merge-patch+json", &url, &change(json!({"replicas": 3}))).await;
    assert_eq!((code, refused["message"].as_str().unwrap()), (422, "CronTab.example.com \"t\" is invalid: spec.replicas: Forbidden: not before many"));
    let (code, _) = cluster.patch(&admin(), "application/merge-patch+json", &url, &change(json!({"replicas": 12}))).await;
    assert_eq!(code, 200);
}
