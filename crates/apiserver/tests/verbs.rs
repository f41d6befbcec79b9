//! The verbs through the whole filter chain.
mod common;

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use common::cluster;
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

#[tokio::test]
async fn create_get_update_delete() {
    let c = cluster().await;
    let created = c.post(MAPS, map("a", json!({"k": "v"}))).await;
    assert_eq!(created.code, 201);
    let created = created.json();
    assert_eq!(created["metadata"]["namespace"], "default");
    assert_eq!(created["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(created["metadata"]["creationTimestamp"].is_string());
    assert_eq!(created["metadata"]["managedFields"][0]["operation"], "Update");
    let got = c.get(&format!("{MAPS}/a")).await.ok();
    assert_eq!(got, created);
    assert_eq!(
        c.post(MAPS, map("a", json!({}))).await.fails(409),
        "configmaps \"a\" already exists"
    );
    let mut changed = got.clone();
    changed["data"]["k"] = "w".into();
    let updated = c.put(&format!("{MAPS}/a"), changed.clone()).await.ok();
    assert_ne!(updated["metadata"]["resourceVersion"], got["metadata"]["resourceVersion"]);
    changed["data"]["k"] = "x".into();
    assert!(c.put(&format!("{MAPS}/a"), changed.clone()).await.fails(409).contains("the object has been modified"));
    // nothing changed: nothing written
    let same = c.put(&format!("{MAPS}/a"), updated.clone()).await.ok();
    assert_eq!(same, updated);
    // without a version it goes through
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(c.put(&format!("{MAPS}/a"), changed).await.ok()["data"]["k"], "x");
    let deleted = c.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
    assert_eq!(deleted["status"], "Success");
    assert_eq!(deleted["details"]["kind"], "configmaps");
    assert_eq!(c.get(&format!("{MAPS}/a")).await.fails(404), "configmaps \"a\" not found");
    assert_eq!(c.delete(&format!("{MAPS}/a"), Value::Null).await.code, 404);
}

#[tokio::test]
async fn names_and_dry_run() {
    let c = cluster().await;
    let made = c.post(MAPS, json!({"metadata": {"generateName": "x-"}})).await.ok();
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
    let dry = c.post(&format!("{MAPS}?dryRun=All"), map("dry", json!({}))).await.ok();
    assert_eq!(dry["metadata"]["name"], "dry");
    assert_eq!(c.get(&format!("{MAPS}/dry")).await.code, 404);
    assert_eq!(c.post(&format!("{MAPS}?dryRun=Some"), map("dry", json!({}))).await.code, 422);
    assert_eq!(c.post(MAPS, json!({"metadata": {}})).await.code, 422);
    let other = json!({"metadata": {"name": "a", "namespace": "other"}});
    assert!(c.post(MAPS, other).await.fails(400).contains("does not match the namespace"));
}

#[tokio::test]
async fn bad_input_gets_a_status() {
    let c = cluster().await;
    let send = |media: &'static str, body: &'static str| c.send(Method::POST, MAPS, if media.is_empty() { &[] } else { Box::leak(Box::new([("content-type", media)])) }, body.into());
    assert!(send("", "{").await.fails(400).contains("the object provided is unrecognized (must be of type ConfigMap)"));
    assert_eq!(send("", "[1]").await.code, 400);
    assert_eq!(send("", "\"x\"").await.code, 400);
    assert_eq!(send("", "").await.code, 400);
    assert_eq!(send("", "{\"metadata\":5}").await.code, 400);
    assert_eq!(send("", "{\"kind\":7}").await.code, 400);
    assert_eq!(send("text/plain", "{}").await.code, 415);
    assert_eq!(send("application/vnd.kubernetes.protobuf", "k8s\0\x07garbage").await.code, 400);
    assert_eq!(send("application/yaml", ": : :\n\t-").await.code, 400);
    // what is wrong with an object is told before that it cannot be created with a version
    for (name, code) in [("A b", 422), ("good", 400)] {
        let versioned = c.post(MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "resourceVersion": "5"}})).await;
        assert_eq!(versioned.code, code, "{}", versioned.text());
    }
    let wrong = c.post(MAPS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}})).await;
    assert_eq!(wrong.code, 400);
    let wrong = c.post(MAPS, json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "a"}})).await.fails(400);
    assert_eq!(wrong, "the API version in the data (v2) does not match the expected API version (v1)");
    assert_eq!(c.get("/api/v1/nothing").await.code, 404);
    assert_eq!(c.get("/apis/none/v1/things").await.code, 404);
    assert_eq!(c.get(&format!("{MAPS}?labelSelector=%3D%3D")).await.code, 400);
    assert_eq!(c.get(&format!("{MAPS}?fieldSelector=spec.x%3D1")).await.code, 400);
    assert_eq!(c.get(&format!("{MAPS}?limit=x")).await.code, 400);
    assert_eq!(c.get(&format!("{MAPS}?continue=zzz")).await.code, 400);
    assert_eq!(c.get(&format!("{MAPS}?resourceVersion=abc")).await.code, 400);
    assert_eq!(c.send(Method::POST, &format!("{MAPS}/a"), &[], b"{}".to_vec()).await.code, 405);
    assert_eq!(c.send(Method::from_bytes(b"BREW").unwrap(), MAPS, &[], Vec::new()).await.code, 405);
    let big = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(4 << 20)}});
    assert_eq!(c.post(MAPS, big).await.code, 413);
    assert_eq!(c.send(Method::GET, MAPS, &[("accept", "text/html")], Vec::new()).await.code, 406);
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(c.send(Method::POST, MAPS, &[], deep.into_bytes()).await.code, 400);
    assert_eq!(c.get("/healthz").await.text(), "ok");
}

#[tokio::test]
async fn field_validation() {
    let c = cluster().await;
    let body = json!({"metadata": {"name": "a"}, "dat": {"k": "v"}});
    let warned = c.post(MAPS, body.clone()).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"dat\\\"\"");
    assert!(c.post(&format!("{MAPS}?fieldValidation=Ignore"), json!({"metadata": {"name": "b"}, "x": 1})).await.headers.get("warning").is_none());
    let strict = c.post(&format!("{MAPS}?fieldValidation=Strict"), body).await.fails(400);
    assert_eq!(strict, "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\"");
    let twice = c.send(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), &[], br#"{"metadata":{"name":"d","name":"e"}}"#.to_vec()).await;
    assert!(twice.fails(400).contains("duplicate field \"metadata.name\""));
}

#[tokio::test]
async fn repeated_keys_in_yaml_are_told_by_line() {
    let c = cluster().await;
    let text = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  name: {name}\nx: 1\ndata:\n  a: b\n  a: c\n").into_bytes();
    let yaml = [("content-type", "application/yaml")];
    let refused = c.send(Method::POST, &format!("{MAPS}?fieldValidation=Strict"), &yaml, text("a")).await.fails(400);
    let lines = ["line 5: key \"name\" already set in map", "line 9: key \"a\" already set in map"];
    let strict = format!("yaml: unmarshal errors:\n  {}\n  {}", lines[0], lines[1]);
    assert_eq!(refused, format!("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: {strict}, unknown field \"x\""));
    let warnings = |headers: &http::HeaderMap| headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    let warned = c.send(Method::POST, MAPS, &yaml, text("a")).await;
    let told = lines.iter().map(|l| format!("299 - \"{}\"", l.replace('"', "\\\""))).collect::<Vec<_>>();
    assert_eq!((warned.code, warnings(&warned.headers)[..2].to_vec()), (201, told.clone()));
    assert_eq!(warned.json()["data"]["a"], "c");

    let text = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  name: {name}\ndata:\n  x: z\n  a: b\n  a: c\n").into_bytes();
    let apply = [("content-type", "application/apply-patch+yaml")];
    for name in ["a", "new"] {
        let uri = format!("{MAPS}/{name}?fieldManager=m&force=true");
        let refused = c.send(Method::PATCH, &format!("{uri}&fieldValidation=Strict"), &apply, text(name)).await.fails(400);
        assert_eq!(refused, format!("error strict decoding YAML: error converting YAML to JSON: {strict}"));
        let warned = c.send(Method::PATCH, &uri, &apply, text(name)).await;
        assert_eq!(warnings(&warned.headers), told, "{}", warned.text());
        let silent = c.send(Method::PATCH, &format!("{uri}&fieldValidation=Ignore"), &apply, text(name)).await;
        assert_eq!((silent.code, warnings(&silent.headers).len()), (200, 0));
    }
}

#[tokio::test]
async fn the_patch_types() {
    let c = cluster().await;
    c.post(DEPLOYMENTS, deployment("d")).await.ok();
    let uri = format!("{DEPLOYMENTS}/d");
    let merged = c.patch(&uri, "merge-patch+json", json!({"metadata": {"annotations": {"a": "b"}}})).await.ok();
    assert_eq!(merged["metadata"]["annotations"]["a"], "b");
    assert_eq!(merged["metadata"]["generation"], 1);
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let patched = c.patch(&uri, "strategic-merge-patch+json", strategic).await.ok();
    assert_eq!(patched["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(patched["spec"]["template"]["spec"]["containers"][0]["image"], "j");
    assert_eq!(patched["metadata"]["generation"], 2);
    let ops = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    assert_eq!(c.patch(&uri, "json-patch+json", ops).await.ok()["spec"]["replicas"], 3);
    let failing = json!([{"op": "test", "path": "/spec/replicas", "value": 4}]);
    assert_eq!(c.patch(&uri, "json-patch+json", failing).await.code, 422);
    assert_eq!(c.patch(&uri, "json-patch+json", json!({"a": 1})).await.code, 400);
    assert_eq!(c.patch(&uri, "merge-patch+json", json!([1])).await.code, 400);
    assert_eq!(c.patch(&uri, "json", json!({})).await.code, 415);
    assert_eq!(c.patch(&uri, "merge-patch+json", json!({"metadata": {"resourceVersion": "1"}})).await.code, 409);
    assert_eq!(c.patch(&uri, "merge-patch+json", json!({"spec": {"replicas": "x"}})).await.code, 422);
    assert_eq!(c.patch(&format!("{DEPLOYMENTS}/none"), "merge-patch+json", json!({})).await.code, 404);
}

#[tokio::test]
async fn server_side_apply() {
    let c = cluster().await;
    let uri = format!("{DEPLOYMENTS}/d");
    let created = c.patch(&format!("{uri}?fieldManager=one"), "apply-patch+yaml", deployment("d")).await;
    assert_eq!(created.code, 201, "{}", created.text());
    let created = created.json();
    assert_eq!(created["metadata"]["managedFields"][0]["manager"], "one");
    assert_eq!(created["metadata"]["managedFields"][0]["operation"], "Apply");
    assert_eq!(created["spec"]["replicas"], 1);
    // the same again changes nothing
    let again = c.patch(&format!("{uri}?fieldManager=one"), "apply-patch+yaml", deployment("d")).await.ok();
    assert_eq!(again["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    let mut other = deployment("d");
    other["spec"]["template"]["spec"]["containers"][0]["image"] = "theirs".into();
    let conflict = c.patch(&format!("{uri}?fieldManager=two"), "apply-patch+yaml", other.clone()).await;
    assert_eq!(conflict.code, 409);
    assert!(conflict.json()["details"]["causes"][0]["reason"] == "FieldManagerConflict");
    let forced = c.patch(&format!("{uri}?fieldManager=two&force=true"), "apply-patch+yaml", other).await.ok();
    assert_eq!(forced["spec"]["template"]["spec"]["containers"][0]["image"], "theirs");
    assert_eq!(c.patch(&uri, "apply-patch+yaml", deployment("d")).await.code, 422);
}

#[tokio::test]
async fn status_and_scale() {
    let c = cluster().await;
    let mut d = deployment("d");
    d["status"] = json!({"replicas": 7});
    let created = c.post(DEPLOYMENTS, d).await.ok();
    assert!(created.get("status").is_none_or(|s| s.get("replicas").is_none()), "{created}");
    let uri = format!("{DEPLOYMENTS}/d");
    let status = json!({"status": {"replicas": 2}, "spec": {"replicas": 9}});
    let patched = c.patch(&format!("{uri}/status"), "merge-patch+json", status).await.ok();
    assert_eq!(patched["status"]["replicas"], 2);
    assert_eq!(patched["spec"]["replicas"], 1);
    assert_eq!(patched["metadata"]["generation"], 1);
    let scale = c.get(&format!("{uri}/scale")).await.ok();
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 1);
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=d"}));
    let mut scale = scale;
    scale["spec"]["replicas"] = 5.into();
    let scaled = c.put(&format!("{uri}/scale"), scale).await.ok();
    assert_eq!(scaled["spec"]["replicas"], 5);
    let got = c.get(&uri).await.ok();
    assert_eq!((got["spec"]["replicas"].as_i64(), got["metadata"]["generation"].as_i64()), (Some(5), Some(2)));
    let patched = c.patch(&format!("{uri}/scale"), "merge-patch+json", json!({"spec": {"replicas": 0}})).await.ok();
    assert!(patched["spec"].get("replicas").is_none());
    assert_eq!(c.patch(&format!("{uri}/scale"), "merge-patch+json", json!({"spec": {"replicas": -1}})).await.code, 422);
}

/// Notes what it sees, makes four replicas of three, and refuses nine.
#[derive(Default)]
struct Looker(std::sync::Mutex<Vec<String>>);

impl Looker {
    fn note(&self, phase: &str, attributes: &Attributes<'_>, object: Option<&Value>) {
        if attributes.ctx.resource.plural == "flowschemas" {
            return; // the server's own
        }
        let of = |o: Option<&Value>| o.map_or("none".to_string(), |o| format!("{} {} of {}", o["kind"].as_str().unwrap(), o["spec"]["replicas"], o["apiVersion"].as_str().unwrap()));
        let options = attributes.options["kind"].as_str().unwrap_or_default();
        let line = format!("{phase} {}/{} {}, was {}, {options}", attributes.ctx.resource.plural, attributes.ctx.subresource, of(object), of(attributes.old));
        self.0.lock().unwrap().push(line);
    }
}

#[async_trait::async_trait]
impl Admission for Looker {
    fn name(&self) -> &'static str {
        "Looker"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        self.note("admit", attributes, Some(object));
        if object["spec"]["replicas"] == 3 {
            object["spec"]["replicas"] = 4.into();
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        self.note("validate", attributes, object);
        if object.is_some_and(|o| o["spec"]["replicas"] == 9) { Err(api::status::bad_request("too many")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn admission_sees_the_scale() {
    let looker = std::sync::Arc::new(Looker::default());
    let plugin = looker.clone();
    let c = common::cluster_with(move |builder| {
        builder.parts.admission(plugin);
    })
    .await;
    c.post(DEPLOYMENTS, deployment("d")).await.ok();
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let mut scale = c.get(&uri).await.ok();
    scale["spec"]["replicas"] = 3.into();
    assert_eq!(c.put(&uri, scale).await.ok()["spec"]["replicas"], 4);
    assert_eq!(
        std::mem::take(&mut *looker.0.lock().unwrap()),
        [
            "admit deployments/scale Scale 3 of autoscaling/v1, was Scale 1 of autoscaling/v1, UpdateOptions",
            "validate deployments/scale Scale 4 of autoscaling/v1, was Scale 1 of autoscaling/v1, UpdateOptions",
        ]
    );
    assert_eq!(c.patch(&uri, "merge-patch+json", json!({"spec": {"replicas": 9}})).await.fails(400), "too many");
    assert_eq!(c.get(&format!("{DEPLOYMENTS}/d")).await.ok()["spec"]["replicas"], 4);
    looker.0.lock().unwrap().clear();
    c.patch(&format!("{DEPLOYMENTS}/d"), "merge-patch+json", json!({"spec": {"replicas": 5}})).await.ok();
    let seen = looker.0.lock().unwrap().remove(0);
    assert_eq!(seen, "admit deployments/ Deployment 5 of apps/v1, was Deployment 4 of apps/v1, UpdateOptions", "a patch is an update");
}

#[tokio::test]
async fn finalizers_and_propagation() {
    let c = cluster().await;
    let mut m = map("f", json!({}));
    m["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.post(MAPS, m).await.ok();
    let uri = format!("{MAPS}/f");
    let marked = c.delete(&uri, json!({"propagationPolicy": "Foreground"})).await.ok();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(marked["metadata"]["finalizers"], json!(["example.com/hold", "foregroundDeletion"]));
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
    // a deletion cannot be taken back
    let back = c.patch(&uri, "merge-patch+json", json!({"metadata": {"deletionTimestamp": null}})).await.ok();
    assert!(back["metadata"]["deletionTimestamp"].is_string());
    assert!(c.post(MAPS, map("f", json!({}))).await.fails(409).starts_with("object is being deleted"));
    c.patch(&uri, "merge-patch+json", json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(c.get(&uri).await.code, 404);
    c.post(MAPS, map("g", json!({}))).await.ok();
    let orphan = c.delete(&format!("{MAPS}/g?propagationPolicy=Orphan"), Value::Null).await.ok();
    assert_eq!(orphan["metadata"]["finalizers"], json!(["orphan"]));
    c.post(MAPS, map("h", json!({}))).await.ok();
    let wrong = c.delete(&format!("{MAPS}/h"), json!({"preconditions": {"uid": "nope"}})).await.fails(409);
    assert!(wrong.contains("the UID in the precondition (nope) does not match"));
    assert_eq!(c.delete(&format!("{MAPS}/h?propagationPolicy=Sideways"), Value::Null).await.code, 422);
}

#[tokio::test]
async fn delete_collection() {
    let c = cluster().await;
    for name in ["a", "b"] {
        let mut m = map(name, json!({}));
        m["metadata"]["labels"] = json!({"n": name});
        c.post(MAPS, m).await.ok();
    }
    c.delete(&format!("{MAPS}?labelSelector=n%3Da"), Value::Null).await.ok();
    let left = c.get(MAPS).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

#[tokio::test]
async fn secrets_are_sealed_in_the_store() {
    let c = cluster().await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"p": "hunter2"}, "data": {"q": "aHVudGVyMw=="}});
    c.post("/api/v1/namespaces/default/secrets", secret).await.ok();
    let all = c.store.range(store::RangeRequest::prefix("/registry/")).await.unwrap();
    let kv = all.kvs.iter().find(|kv| kv.key.starts_with(b"/registry/secrets/default/s")).unwrap();
    assert!(kv.value.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
    assert!(!kv.value.windows(8).any(|w| w == b"aHVudGVy"));
    let got = c.get("/api/v1/namespaces/default/secrets/s").await.ok();
    assert_eq!(got["data"]["q"], "aHVudGVyMw==");
}

#[tokio::test]
async fn an_unchanged_object_is_written_anew_when_its_key_writes_no_more() {
    use apiserver::{EncryptionConfig, EncryptionKey, Provider};
    let c = cluster().await;
    let secret = json!({"metadata": {"name": "s"}, "data": {"q": "aHVudGVyMw=="}});
    c.post("/api/v1/namespaces/default/secrets", secret).await.ok();
    let uri = "/api/v1/namespaces/default/secrets/s";
    let stored = async || c.store.range(store::RangeRequest::key("/registry/secrets/default/s")).await.unwrap().kvs.remove(0).value;
    let again = c.get(uri).await.ok();
    let same = c.put(uri, again.clone()).await.ok();
    assert_eq!(same["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"], "nothing changed, nothing is written");
    let key = |name: &str, byte| EncryptionKey { name: name.into(), secret: vec![byte; 32] };
    let rotated = Provider::AesCbc(vec![key("key2", 8)]);
    let config = EncryptionConfig::of(&["secrets"], vec![rotated.clone(), Provider::AesGcm(vec![key("key1", 7)])]);
    c.server.reload_encryption(&config).unwrap();
    assert!(stored().await.starts_with(b"k8s:enc:aesgcm:v1:key1:"));
    let written = c.put(uri, again.clone()).await.ok();
    assert_ne!(written["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
    assert!(stored().await.starts_with(b"k8s:enc:aescbc:v1:key2:"));
    // The old key may go.
    c.server.reload_encryption(&EncryptionConfig::of(&["secrets"], vec![rotated])).unwrap();
    assert_eq!(c.get(uri).await.ok()["data"]["q"], "aHVudGVyMw==");
}

#[tokio::test]
async fn labels_are_those_of_the_present_state() {
    let c = cluster().await;
    let maps = api::resources::find("", "v1", "configmaps").unwrap();
    let labels = || c.server.backend().reader.labels(maps, "default", "a");
    assert_eq!(labels(), None, "there is no such object");
    c.post(MAPS, map("a", json!({}))).await.ok();
    assert_eq!(labels(), Some(Value::Null));
    let uri = format!("{MAPS}/a");
    for zone in ["x", "y"] {
        c.patch(&uri, "merge-patch+json", json!({"metadata": {"labels": {"zone": zone}}})).await.ok();
        assert_eq!(labels(), Some(json!({"zone": zone})));
    }
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let c = cluster().await;
    c.post(MAPS, map("a", json!({}))).await.ok();
    let uri = format!("{MAPS}/a");
    let all = (0..40).map(|i| c.patch(&uri, "merge-patch+json", json!({"data": {format!("k{i}"): "v"}})));
    for reply in futures::future::join_all(all).await {
        reply.ok();
    }
    assert_eq!(c.get(&uri).await.ok()["data"].as_object().unwrap().len(), 40);
}
