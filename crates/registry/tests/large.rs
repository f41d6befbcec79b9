//! Bodies as large as they may be, made so that looking at each thing beside each other thing would take for ever or all
//! memory: they are answered all the same.

mod common;

use std::time::Duration;

use common::{Cluster, admin};
use serde_json::{Map, Value, json};

/// Bytes of a body.
const SIZE: usize = 1 << 20;

/// A list of items that fills a body.
fn many(item: impl Fn(usize) -> Value) -> Value {
    (0..SIZE / (item(1000).to_string().len() + 1)).map(item).collect()
}

/// A map of such.
fn map(entry: impl Fn(usize) -> (String, Value)) -> Value {
    let (key, value) = entry(1000);
    (0..SIZE / (key.len() + value.to_string().len() + 4)).map(entry).collect::<Map<_, _>>().into()
}

fn object(api_version: &str, kind: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}});
    for (key, value) in rest.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

fn deployment(pod: Value) -> Value {
    object("apps/v1", "Deployment", json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}}}))
}

fn container(rest: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i"});
    for (key, value) in rest.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    deployment(json!({"containers": [container]}))
}

fn volume(rest: Value) -> Value {
    let mut volume = json!({"name": "v"});
    for (key, value) in rest.as_object().into_iter().flatten() {
        volume[key] = value.clone();
    }
    deployment(json!({"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}))
}

async fn cluster() -> Cluster {
    // what is looked at once takes a small part of this
    let cluster = Cluster::configured(apiserver::Config { request_timeout: Duration::from_secs(20), ..Default::default() }).await;
    cluster.namespace("a").await;
    cluster
}

/// Posts an object, and changes it if it was taken. No answer may say that there was no time for it.
async fn post(cluster: &Cluster, path: &str, what: &str, body: &Value) -> u16 {
    let (code, made) = cluster.post(&admin(), path, body).await;
    assert!(matches!(code, 201 | 409 | 413 | 422), "{what}: {code} {}", made["message"]);
    if code == 201 {
        let at = format!("{path}/x");
        let (code, answer) = cluster.call(&admin(), "PUT", &at, Some(&made)).await;
        assert!(matches!(code, 200 | 409 | 413), "{what}, again: {code} {}", answer["message"]);
        let (code, answer) = cluster.patch(&admin(), "application/merge-patch+json", &at, &json!({"metadata": {"labels": {"a": "b"}}})).await;
        assert!(matches!(code, 200 | 413), "{what}, patched: {code} {}", answer["message"]);
        cluster.call(&admin(), "DELETE", &at, None).await;
    }
    code
}

#[tokio::test(flavor = "multi_thread")]
async fn pods() {
    let c = cluster().await;
    let path = "/apis/apps/v1/namespaces/a/deployments";
    let term = |i: usize| json!({"maxSkew": 1, "topologyKey": format!("k{i}"), "whenUnsatisfiable": "DoNotSchedule"});
    for (what, body) in [
        ("equal ports", container(json!({"ports": many(|_| json!({"containerPort": 1}))}))),
        ("ports of many addresses", container(json!({"ports": many(|i| json!({"containerPort": 1, "hostPort": 1, "hostIP": format!("10.0.{}.{}", i / 250, i % 250)}))}))),
        ("equal host ports", container(json!({"ports": many(|_| json!({"containerPort": 1, "hostPort": 1}))}))),
        ("variables", container(json!({"env": many(|i| json!({"name": format!("A{i}")}))}))),
        ("mounts", container(json!({"volumeMounts": many(|i| json!({"name": format!("v{i}"), "mountPath": format!("/{i}")}))}))),
        ("claims", container(json!({"resources": {"claims": many(|i| json!({"name": format!("c{i}")}))}}))),
        ("equal files", volume(json!({"configMap": {"name": "m", "items": many(|_| json!({"key": "k", "path": "p"}))}}))),
        ("other files", volume(json!({"configMap": {"name": "m", "items": many(|i| json!({"key": "k", "path": format!("p/{i}")}))}}))),
        ("containers", deployment(json!({"containers": many(|i| json!({"name": format!("c{i}"), "image": "i"}))}))),
        ("volumes", deployment(json!({"containers": [{"name": "c", "image": "i"}], "volumes": many(|i| json!({"name": format!("v{i}")}))}))),
        ("spread", deployment(json!({"containers": [{"name": "c", "image": "i"}], "topologySpreadConstraints": many(term)}))),
        ("aliases", deployment(json!({"containers": [{"name": "c", "image": "i"}], "hostAliases": many(|_| json!({"ip": "1.2.3.4"}))}))),
    ] {
        post(&c, path, what, &body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_kinds() {
    let c = cluster().await;
    let maps = "/api/v1/namespaces/a/configmaps";
    let owner = |i: usize| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": format!("u{i}")});
    let meta = |metadata: Value| {
        let mut map = object("v1", "ConfigMap", json!({}));
        map["metadata"] = metadata;
        map
    };
    let mut unknown = map(|i| (format!("u{i}"), json!(1)));
    for (key, value) in object("v1", "ConfigMap", json!({})).as_object().into_iter().flatten() {
        unknown[key] = value.clone();
    }
    let policy = json!({"spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "variables": many(|i| json!({"name": format!("v{i}"), "expression": "1"})), "validations": [{"expression": "true"}]}});
    for (path, what, body) in [
        (maps, "bad labels", meta(json!({"name": "x", "labels": map(|i| (format!("!{i}"), json!("!")))}))),
        (maps, "owners", meta(json!({"name": "x", "ownerReferences": many(owner)}))),
        (maps, "equal owners", meta(json!({"name": "x", "ownerReferences": many(|_| owner(0))}))),
        (maps, "bad keys", object("v1", "ConfigMap", json!({"data": map(|i| (format!("!{i}"), json!("")))}))),
        (maps, "unknown fields", unknown),
        ("/api/v1/namespaces/a/services", "ports", object("v1", "Service", json!({"spec": {"ports": many(|i| json!({"port": 1 + i % 65535, "name": format!("p{i}")}))}}))),
        ("/api/v1/namespaces/a/services", "equal ports", object("v1", "Service", json!({"spec": {"ports": many(|_| json!({"port": 1}))}}))),
        ("/api/v1/namespaces/a/limitranges", "limits", object("v1", "LimitRange", json!({"spec": {"limits": [{"type": "Pod", "max": map(|i| (format!("a.b/c{i}"), json!("1")))}]}}))),
        ("/api/v1/nodes", "taints", object("v1", "Node", json!({"spec": {"taints": many(|i| json!({"key": format!("k{i}"), "effect": "NoSchedule"}))}}))),
        (
            "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies",
            "ranges",
            object("networking.k8s.io/v1", "NetworkPolicy", json!({"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": many(|_| json!("01.2.3.0/24"))}}]}]}})),
        ),
        (
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
            "variables",
            object("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", policy),
        ),
    ] {
        post(&c, path, what, &body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources() {
    let c = cluster().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = |schema: Value| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
    };
    let keys = json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": many(|i| json!(format!("k{i}"))), "items": {"type": "object", "properties": {}}}}});
    let (code, _) = c.post(&admin(), definitions, &definition(keys)).await;
    assert_eq!(code, 422);
    let schema = json!({"type": "object", "properties": {
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string"}}}},
        "texts": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}}}});
    let (code, made) = c.post(&admin(), definitions, &definition(schema)).await;
    assert_eq!(code, 201, "{made}");
    let path = "/apis/example.com/v1/namespaces/a/things";
    for _ in 0..500 {
        if c.call(&admin(), "GET", path, None).await.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let long = "k".repeat(SIZE / 2);
    let mut inner = Map::new();
    inner.insert(long, (0..SIZE / 16).map(|i| (format!("u{i}"), json!(1))).collect::<Map<_, _>>().into());
    for (what, rest, expected) in [
        ("items", json!({"list": many(|i| json!({"k": format!("k{i}"), "v": ""}))}), 201),
        ("equal items", json!({"list": many(|_| json!({"k": "k"}))}), 422),
        ("wrong texts", json!({"texts": many(|_| json!(1))}), 422),
        ("unknown fields below a long key", json!({"map": inner}), 201),
    ] {
        assert_eq!(post(&c, path, what, &object("example.com/v1", "Thing", rest)).await, expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patches() {
    let c = cluster().await;
    let (maps, strategic) = ("/api/v1/namespaces/a/configmaps", "application/strategic-merge-patch+json");
    let finalizers = |of: &str| many(|i| json!(format!("a.b/{of}{i}")));
    let mut all = finalizers("c");
    all.as_array_mut().unwrap().truncate(SIZE / 32);
    let (code, made) = c.post(&admin(), maps, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "finalizers": all}})).await;
    assert_eq!(code, 201, "{made}");
    let at = format!("{maps}/x");
    for (what, patch) in [
        ("more", json!({"metadata": {"finalizers": finalizers("d")}})),
        ("order", json!({"metadata": {"$setElementOrder/finalizers": finalizers("c")}})),
        ("fewer", json!({"metadata": {"$deleteFromPrimitiveList/finalizers": finalizers("c")}})),
    ] {
        let (code, answer) = c.patch(&admin(), strategic, &at, &patch).await;
        assert!(matches!(code, 200 | 413), "{what}: {code} {}", answer["message"]);
    }
    // what fits is done, and right
    let (code, answer) = c.patch(&admin(), strategic, &at, &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": finalizers("c")}})).await;
    assert!(code == 200 && answer["metadata"]["finalizers"].as_array().is_none_or(|left| left.iter().all(|f| f.as_str().unwrap().starts_with("a.b/d"))), "{code}");
}

#[tokio::test]
async fn more_at_once_than_there_is_room_for() {
    let c = cluster().await;
    let text = "t".repeat(SIZE / 2);
    let body = |i: usize| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{i}")}, "data": {"t": text}});
    let bodies: Vec<Value> = (0..40).map(body).collect();
    let admin = admin();
    let made = futures::future::join_all(bodies.iter().map(|body| c.post(&admin, "/api/v1/namespaces/a/configmaps", body))).await;
    assert!(made.iter().all(|(code, _)| *code == 201), "{:?}", made.iter().map(|(code, _)| code).collect::<Vec<_>>());
    assert_eq!(c.get(&admin, "/api/v1/namespaces/a/configmaps").await["items"].as_array().unwrap().len(), 40);
}
