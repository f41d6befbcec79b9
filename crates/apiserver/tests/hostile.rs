//! Bodies made to do harm: each gets a Status, and the server serves on.
mod common;

use common::cluster;
use http::Method;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A length-delimited field of a protobuf message.
fn field(number: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 8);
    varint(&mut out, (number << 3 | 2) as u64);
    varint(&mut out, content.len() as u64);
    out.extend_from_slice(content);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [b"k8s\0".to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[tokio::test]
async fn depth_and_size_do_not_harm() {
    let c = cluster().await;
    let deep = format!("a: {}", "[".repeat(200_000));
    let flow = format!("{}1{}", "{a: ".repeat(50_000), "}".repeat(50_000));
    let mut block = String::new();
    for i in 0..2_000 {
        block.push_str(&" ".repeat(i));
        block.push_str("a:\n");
    }
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    for body in [deep, flow, block, laughs] {
        let reply = c.send(Method::POST, MAPS, &[("content-type", "application/yaml")], body.into_bytes()).await;
        assert_eq!(reply.code, 400, "{}", reply.text());
    }
    let objects = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    assert_eq!(c.send(Method::POST, MAPS, &[], objects.clone().into_bytes()).await.code, 400);
    let patch = [("content-type", "application/merge-patch+json")];
    assert_eq!(c.send(Method::PATCH, &format!("{MAPS}/a"), &patch, objects.into_bytes()).await.code, 400);
    assert_eq!(c.get("/healthz").await.text(), "ok");
}

#[tokio::test]
async fn deeply_nested_protobuf_does_not_harm() {
    let c = cluster().await;
    // JSONSchemaProps.not.not.not…, the one type that nests in itself
    let mut schema = Vec::new();
    for _ in 0..20_000 {
        schema = field(28, &schema);
    }
    let version = [field(1, b"v1"), field(4, &field(1, &schema))].concat();
    let crd = [field(1, &field(1, b"xs.example.com")), field(2, &field(7, &version))].concat();
    let body = envelope("apiextensions.k8s.io/v1", "CustomResourceDefinition", &crd);
    let media = [("content-type", "application/vnd.kubernetes.protobuf")];
    let reply = c.send(Method::POST, CRDS, &media, body).await;
    assert!(matches!(reply.code, 400 | 422), "{} {}", reply.code, reply.text());
    assert_eq!(c.get("/healthz").await.text(), "ok");
}

#[tokio::test]
async fn garbage_in_every_encoding_is_a_bad_request() {
    let c = cluster().await;
    let mut seed = 1u32;
    let mut next = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (seed >> 24) as u8
    };
    for media in ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"] {
        for len in [1, 3, 10, 100, 1000] {
            let mut body: Vec<u8> = (0..len).map(|_| next()).collect();
            if media.ends_with("protobuf") {
                body = envelope("v1", "ConfigMap", &body);
            }
            let reply = c.send(Method::POST, MAPS, &[("content-type", media)], body).await;
            assert!(matches!(reply.code, 400 | 422), "{media} {len}: {} {}", reply.code, reply.text());
            assert_eq!(reply.json()["kind"], "Status");
        }
    }
}

#[tokio::test]
async fn a_patch_cannot_grow_without_bounds() {
    let c = cluster().await;
    let uri = format!("{MAPS}/a");
    c.post(MAPS, serde_json::json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.ok();
    let copies: Vec<_> = (0..60).map(|i| serde_json::json!({"op": "copy", "from": "/data", "path": format!("/data/x{i}")})).collect();
    let reply = c.patch(&uri, "json-patch+json", copies.into()).await;
    assert!(matches!(reply.code, 400 | 413 | 422), "{} {}", reply.code, reply.text());
    let long = serde_json::json!([{"op": "add", "path": "/a".repeat(100_000), "value": 1}]);
    assert_eq!(c.patch(&uri, "json-patch+json", long).await.code, 400);
    assert_eq!(c.get(&uri).await.ok()["data"]["k"], "v");
}

#[tokio::test]
async fn methods_are_not_verbs() {
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (method, path) in [("WATCH", pods), ("LIST", pods), ("WATCH", "/api/v1/namespaces/default"), ("POST", "/api/v1/watch/pods"), ("HEAD", pods), ("HEAD", "/api/v1/namespaces/default/pods/x"), ("HEAD", "/api/v1/namespaces/default/pods/x/status")] {
        let reply = c.send(Method::from_bytes(method.as_bytes()).unwrap(), path, &[], Vec::new()).await;
        assert_eq!(reply.code, 405, "{method} {path}: {}", reply.text());
    }
    assert_eq!(c.send(Method::HEAD, "/healthz", &[], Vec::new()).await.code, 200);
}
