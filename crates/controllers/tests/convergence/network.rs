//! Services: their endpoints in both forms, what users write themselves, and the ranges of addresses.

use serde_json::{Value, json};

use crate::objects::labels;
use crate::world::{ENDPOINTS, PODS, SERVICE_RANGES, SERVICES, SLICES, World, converges};

fn service(name: &str, spec: Value) -> Value {
    let mut all = json!({"ports": [{"port": 80, "targetPort": 8080}]});
    all.as_object_mut().expect("fields").extend(spec.as_object().cloned().unwrap_or_default());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": all})
}

/// A pod that runs and has an address.
async fn pod(world: &World, name: &str, address: &str) {
    let path = format!("{PODS}/{name}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels("web")}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    world.create(PODS, pod).await;
    world.until("it runs", async || world.get(&path).await.unwrap_or_default()["status"]["phase"] == "Running").await;
    world.patch(&format!("{path}/status"), json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}})).await;
}

/// The addresses of a service in its slices, the ready ones marked.
async fn in_slices(world: &World, service: &str) -> Vec<String> {
    let mut all = Vec::new();
    for slice in world.list(SLICES).await.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == service) {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let mark = if endpoint["conditions"]["ready"] == true { "+" } else { "-" };
            all.push(format!("{mark}{}", endpoint["addresses"][0].as_str().unwrap_or("")));
        }
    }
    all.sort();
    all
}

/// The same in its Endpoints.
async fn in_endpoints(world: &World, service: &str) -> Vec<String> {
    let object = world.get(&format!("{ENDPOINTS}/{service}")).await.unwrap_or_default();
    let mut all = Vec::new();
    for subset in object["subsets"].as_array().into_iter().flatten() {
        for (field, mark) in [("addresses", "+"), ("notReadyAddresses", "-")] {
            all.extend(subset[field].as_array().into_iter().flatten().map(|a| format!("{mark}{}", a["ip"].as_str().unwrap_or(""))));
        }
    }
    all.sort();
    all
}

async fn leads_to(world: &World, service: &str, wanted: &[&str]) {
    let what = format!("{service} leads to {wanted:?}");
    world.until(&what, async || in_slices(world, service).await == wanted && in_endpoints(world, service).await == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_lead_to_their_pods() {
    converges(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        for (name, app) in [("web", "web"), ("gone", "web"), ("other", "other")] {
            world.create(SERVICES, service(name, json!({"selector": labels(app)}))).await;
        }
        for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")] {
            pod(&world, name, address).await;
        }
        leads_to(&world, "web", &["+10.0.0.1", "+10.0.0.2", "+10.0.0.3"]).await;
        leads_to(&world, "gone", &["+10.0.0.1", "+10.0.0.2", "+10.0.0.3"]).await;
        leads_to(&world, "other", &[]).await;
        world.patch(&format!("{PODS}/b/status"), json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})).await;
        world.delete(&format!("{PODS}/c"), "Background").await;
        world.patch(&format!("{SERVICES}/other"), json!({"spec": {"selector": labels("web"), "publishNotReadyAddresses": true}})).await;
        leads_to(&world, "web", &["+10.0.0.1", "-10.0.0.2"]).await;
        leads_to(&world, "other", &["+10.0.0.1", "+10.0.0.2"]).await;
        // A port more makes every slice another.
        world.patch(&format!("{SERVICES}/web"), json!({"spec": {"ports": [{"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81}]}})).await;
        world.delete(&format!("{SERVICES}/gone"), "Background").await;
        world.until("the slices know both ports", async || {
            let slices = world.list(SLICES).await;
            let mut own = slices.iter().filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
            own.all(|s| s["ports"].as_array().is_some_and(|p| p.len() == 2))
        })
        .await;
        leads_to(&world, "gone", &[]).await;
        world.until_gone(&format!("{ENDPOINTS}/gone")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_users_are_mirrored() {
    converges(async |world| {
        let endpoints = |name: &str, address: &str| {
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name},
                "subsets": [{"addresses": [{"ip": address}], "notReadyAddresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 80}]}]})
        };
        for name in ["mine", "gone", "selecting"] {
            let selector = if name == "selecting" { json!({"selector": labels("nobody")}) } else { json!({}) };
            world.create(SERVICES, service(name, selector)).await;
        }
        for name in ["mine", "gone", "without-service"] {
            world.create(ENDPOINTS, endpoints(name, "192.0.2.1")).await;
        }
        leads_to(&world, "mine", &["+192.0.2.1", "-192.0.2.9"]).await;
        leads_to(&world, "gone", &["+192.0.2.1", "-192.0.2.9"]).await;
        leads_to(&world, "selecting", &[]).await;
        world.patch(&format!("{ENDPOINTS}/mine"), json!({"subsets": [{"addresses": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3"}], "ports": [{"port": 80}]}]})).await;
        world.delete(&format!("{ENDPOINTS}/gone"), "Background").await;
        leads_to(&world, "mine", &["+192.0.2.2", "+192.0.2.3"]).await;
        leads_to(&world, "gone", &[]).await;
        assert!(in_slices(&world, "without-service").await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_of_service_addresses_are_kept_while_they_are_needed() {
    converges(async |world| {
        let path = format!("{SERVICE_RANGES}/more");
        let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/24"]}});
        world.create(SERVICE_RANGES, range).await;
        let ready = async || {
            let conditions = world.get(&path).await.unwrap_or_default()["status"]["conditions"].clone();
            conditions[0]["status"].as_str().unwrap_or("").to_string()
        };
        world.until("it is ready", async || ready().await == "True").await;
        let address = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": "10.97.0.7", "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
            "spec": {"parentRef": {"resource": "services", "namespace": "test", "name": "s"}}});
        world.create("/apis/networking.k8s.io/v1/ipaddresses", address).await;
        world.until("it is protected", async || world.get(&path).await.unwrap_or_default()["metadata"]["finalizers"].is_array()).await;
        world.delete(&path, "Background").await;
        world.until("it waits for its address", async || ready().await == "False").await;
        assert!(world.get(&path).await.is_some(), "it stays");
    })
    .await;
}
