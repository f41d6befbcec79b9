//! The kube-dns objects, written to an API server that only remembers them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dns::publish::{ensure, gateway};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

#[derive(Clone, Default)]
struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    writes: Arc<Mutex<Vec<String>>>,
}

impl Memory {
    fn client(&self) -> kube::Client {
        let memory = self.clone();
        client::in_process(move |request: http::Request<kube::client::Body>| {
            let memory = memory.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (status, value) = memory.handle(&parts, &body);
                let body = Full::new(Bytes::from(value.to_string()));
                http::Response::builder().status(status).body(body).unwrap()
            }
        })
    }

    fn handle(&self, parts: &http::request::Parts, body: &[u8]) -> (u16, Value) {
        let mut objects = self.objects.lock().unwrap();
        let path = parts.uri.path().to_owned();
        if parts.method != http::Method::GET {
            self.writes.lock().unwrap().push(format!("{} {path}", parts.method));
        }
        match parts.method.as_str() {
            "POST" => {
                let object: Value = serde_json::from_slice(body).unwrap();
                objects.insert(format!("{path}/{}", object["metadata"]["name"].as_str().unwrap()), object.clone());
                (201, object)
            }
            "PATCH" => {
                let patch: Value = serde_json::from_slice(body).unwrap();
                let object = objects.get_mut(&path).unwrap();
                object["endpoints"] = patch["endpoints"].clone();
                (200, object.clone())
            }
            _ => match objects.get(&path) {
                Some(object) => (200, object.clone()),
                None => {
                    let status = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
                    (404, status)
                }
            },
        }
    }
}

fn node(name: &str, range: Option<&str>, ready: &str) -> Arc<Node> {
    let conditions = json!([{"type": "Ready", "status": ready}]);
    let object = json!({"metadata": {"name": name}, "spec": {"podCIDR": range}, "status": {"conditions": conditions}});
    Arc::new(serde_json::from_value(object).unwrap())
}

#[tokio::test]
async fn makes_follows_and_otherwise_writes_nothing() {
    let memory = Memory::default();
    let client = memory.client();
    let address = "10.96.0.10".parse().unwrap();
    let mut nodes = vec![node("a", Some("10.244.0.0/24"), "True"), node("new", None, "False")];
    ensure(&client, address, &nodes).await.unwrap();
    ensure(&client, address, &nodes).await.unwrap();
    assert_eq!(memory.writes.lock().unwrap().len(), 2);
    let path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-nodes";
    let endpoints = || memory.objects.lock().unwrap()[path]["endpoints"].clone();
    assert_eq!(endpoints().as_array().unwrap().len(), 1);
    assert_eq!(endpoints()[0]["addresses"], json!(["10.244.0.1"]));

    nodes[0] = node("a", Some("10.244.0.0/24"), "Unknown");
    nodes[1] = node("new", Some("10.244.1.0/24"), "True");
    ensure(&client, address, &nodes).await.unwrap();
    let ready: Vec<_> = endpoints().as_array().unwrap().iter().map(|e| e["conditions"]["ready"].clone()).collect();
    assert_eq!(ready, [json!(false), json!(true)]);
}

/// A node whose kubelet is another has no server of ours at its first address.
#[tokio::test]
async fn leads_to_no_server_where_another_kubelet_runs() {
    let memory = Memory::default();
    let run_by = |name: &str, range: &str, runtime: &str| {
        let mut object = serde_json::to_value(&*node(name, Some(range), "True")).unwrap();
        object["status"]["nodeInfo"] = serde_json::to_value(k8s_openapi::api::core::v1::NodeSystemInfo {
            container_runtime_version: runtime.into(),
            ..Default::default()
        })
        .unwrap();
        Arc::new(serde_json::from_value::<Node>(object).unwrap())
    };
    let nodes = [run_by("a", "10.244.0.0/24", "knarr://0.1.0"), run_by("b", "10.244.1.0/24", "containerd://1.6.20")];
    ensure(&memory.client(), "10.96.0.10".parse().unwrap(), &nodes).await.unwrap();
    let path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-nodes";
    let objects = memory.objects.lock().unwrap();
    let addresses: Vec<_> = objects[path]["endpoints"].as_array().unwrap().iter().map(|e| e["addresses"].clone()).collect();
    assert_eq!(addresses, [json!(["10.244.0.1"])]);
}

#[test]
fn gateways() {
    assert_eq!(gateway("10.244.3.0/24"), Some(Ipv4Addr::new(10, 244, 3, 1)));
    assert_eq!(gateway("10.244.3.77/24"), Some(Ipv4Addr::new(10, 244, 3, 1)));
    for bad in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/64"] {
        assert_eq!(gateway(bad), None, "{bad}");
    }
}
