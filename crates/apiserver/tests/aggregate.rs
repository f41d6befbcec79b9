//! A group that another server answers for: asked, shown, and passed on to with the identity of whoever asks.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apiserver::ctx::Ctx;
use apiserver::location::{ConnectRequest, Location, Locator, Tls};
use apiserver::types::Status;
use base64::Engine;
use bytes::Bytes;
use common::{Cluster, cluster_with};
use http::{Method, Request};
use serde_json::{Value, json};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// All services are at one address.
struct Here(SocketAddr);

#[async_trait::async_trait]
impl Locator for Here {
    async fn locate(&self, _: &Ctx, _: &ConnectRequest) -> Result<Location, Status> {
        let (host, port) = (self.0.ip().to_string(), self.0.port());
        Ok(Location { tls: Tls::Unverified, host, port, path_and_query: "/".into(), rewrite: false, alternatives: Vec::new() })
    }
}

/// Serves the group `wardle.io`: its discovery, and for everything else what was asked.
fn answer(request: &Request<Bytes>) -> Value {
    let header = |name: &str| {
        let all: Vec<&str> = request.headers().get_all(name).iter().filter_map(|v| v.to_str().ok()).collect();
        all.join(",")
    };
    match request.uri().path() {
        "/apis/wardle.io/v1" => json!({"kind": "APIResourceList", "groupVersion": "wardle.io/v1", "resources": [
            {"name": "flunders", "singularName": "flunder", "kind": "Flunder", "namespaced": true, "verbs": ["get", "list"], "shortNames": ["fl"]}]}),
        "/openapi/v2" => {
            let get = |name: &str| json!({"get": {"responses": {"200": {"description": "OK", "schema": {"$ref": format!("#/definitions/{name}")}}}}});
            json!({"swagger": "2.0", "paths": {"/apis/wardle.io/v1/flunders": get("io.wardle.v1.Flunder"), "/apis/else.io/v1/things": get("io.else.v1.Thing")},
                "definitions": {"io.wardle.v1.Flunder": {"type": "object"}, "io.else.v1.Thing": {"type": "object"}}})
        }
        _ => json!({"method": request.method().as_str(), "path": request.uri().to_string(), "user": header("x-remote-user"),
            "groups": header("x-remote-group"), "token": header("authorization")}),
    }
}

async fn condition(c: &Cluster, name: &str, reason: &str) -> Value {
    for _ in 0..200 {
        let object = c.get(&format!("{SERVICES}/{name}")).await.ok();
        let found = object["status"]["conditions"].as_array().and_then(|all| all.iter().find(|d| d["type"] == "Available").cloned());
        if let Some(found) = found.filter(|f| f["reason"] == reason) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} has not become {reason}: {}", c.get(&format!("{SERVICES}/{name}")).await.text());
}

#[tokio::test]
async fn another_server_answers_for_its_group() {
    let other = tls::Identity::of(&["api.wardle.svc"]);
    let address = other.serve(|request| async move { tls::json(&answer(&request)) }).await;
    let c = cluster_with(|builder| builder.parts.locator("", "services", "proxy", Arc::new(Here(address)))).await;
    let local = condition(&c, "v1.apps", "Local").await;
    assert_eq!(local["message"], "Local APIServices are always available");

    let bundle = base64::engine::general_purpose::STANDARD.encode(other.ca.cert_pem());
    let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.wardle.io"},
        "spec": {"group": "wardle.io", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10, "caBundle": bundle,
            "service": {"namespace": "wardle", "name": "api", "port": 443}}});
    c.post(SERVICES, object).await.ok();
    condition(&c, "v1.wardle.io", "ServiceNotFound").await;
    assert_eq!(c.get("/apis/wardle.io/v1/namespaces/x/flunders").await.code, 503);

    c.post("/api/v1/namespaces", json!({"metadata": {"name": "wardle"}})).await.ok();
    let service = json!({"metadata": {"name": "api"}, "spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": 443}]}});
    c.post("/api/v1/namespaces/wardle/services", service).await.ok();
    condition(&c, "v1.wardle.io", "EndpointsNotFound").await;
    let slice = json!({"metadata": {"name": "api-1", "labels": {"kubernetes.io/service-name": "api"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": 8443}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
    c.post("/apis/discovery.k8s.io/v1/namespaces/wardle/endpointslices", slice).await.ok();
    condition(&c, "v1.wardle.io", "Passed").await;

    let uri = "/apis/wardle.io/v1/namespaces/x/flunders?limit=3";
    let headers = [("authorization", "Bearer secret"), ("x-remote-user", "somebody-else")];
    let reply = c.send(Method::GET, uri, &headers, Vec::new()).await;
    let reply = reply.json();
    assert_eq!((&reply["path"], &reply["user"], &reply["groups"], &reply["token"]), (&json!(uri), &json!("admin"), &json!("system:masters,system:authenticated"), &json!("")));
    let groups = c.get("/apis").await.ok();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "wardle.io"));
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let all = c.send(Method::GET, "/apis", &[("accept", v2)], Vec::new()).await.json();
    let shown = all["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "wardle.io").cloned().unwrap();
    assert_eq!((&shown["versions"][0]["freshness"], &shown["versions"][0]["resources"][0]["resource"]), (&json!("Current"), &json!("flunders")));

    // What it says of its own group is in the document of all, and nothing else.
    let document = c.get("/openapi/v2").await.ok();
    let there = |part: &str, name: &str| document[part].get(name).is_some();
    assert!(there("paths", "/apis/wardle.io/v1/flunders") && there("definitions", "io.wardle.v1.Flunder") && there("definitions", "io.k8s.api.core.v1.Pod"));
    assert!(!there("paths", "/apis/else.io/v1/things") && !there("definitions", "io.else.v1.Thing"));

    // A certificate for another name is not taken.
    c.patch(&format!("{SERVICES}/v1.wardle.io"), "merge-patch+json", json!({"spec": {"service": {"name": "else"}}})).await.ok();
    condition(&c, "v1.wardle.io", "ServiceNotFound").await;
    c.delete(&format!("{SERVICES}/v1.wardle.io"), Value::Null).await.ok();
    for _ in 0..200 {
        let groups = c.get("/apis").await.ok();
        if !groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "wardle.io") {
            assert_eq!(c.get(uri).await.code, 404);
            assert!(c.get("/openapi/v2").await.ok()["paths"].get("/apis/wardle.io/v1/flunders").is_none());
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the group is still shown");
}
