//! Cluster addresses and node ports through the whole server, several servers over one store, and the use of old tokens.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{AuditLog, Cluster, admin};
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/a/services";

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Waits until an answer is as it should be.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_and_go_with_services() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let kubernetes = cluster.get(&admin(), "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.1").await;
    assert_eq!(kubernetes["spec"]["parentRef"], json!({"resource": "services", "namespace": "default", "name": "kubernetes"}));
    let (code, made) = cluster.post(&admin(), SERVICES, &service("s", json!({"ports": [{"port": 80}]}))).await;
    assert_eq!(code, 201, "{made}");
    let path = format!("/apis/networking.k8s.io/v1/ipaddresses/{}", made["spec"]["clusterIP"].as_str().unwrap());
    let address = cluster.get(&admin(), &path).await;
    assert_eq!(address["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");
    // It is taken, for the API as well.
    let (code, taken) = cluster.post(&admin(), SERVICES, &service("t", json!({"clusterIP": made["spec"]["clusterIP"], "ports": [{"port": 80}]}))).await;
    assert!(code == 422 && taken["message"].as_str().unwrap().ends_with("provided IP is already allocated"), "{taken}");
    // Another range is used once it is there.
    let other = service("u", json!({"clusterIP": "10.50.0.7", "ports": [{"port": 80}]}));
    let (code, refused) = cluster.post(&admin(), SERVICES, &other).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("failed to allocate IP 10.50.0.7: the provided network does not match the current range"), "{refused}");
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["10.50.0.0/24"]}});
    assert_eq!(cluster.post(&admin(), "/apis/networking.k8s.io/v1/servicecidrs", &range).await.0, 201);
    assert_eq!(cluster.post(&admin(), SERVICES, &other).await.0, 201);
    let metrics = cluster.get(&admin(), "/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for line in [
        "kube_apiserver_clusterip_allocator_allocated_ips{cidr=\"10.50.0.0/24\"} 1",
        "kube_apiserver_clusterip_allocator_available_ips{cidr=\"10.50.0.0/24\"} 253",
        "kube_apiserver_clusterip_allocator_allocation_total{cidr=\"10.96.0.0/16\",scope=\"dynamic\"} 1",
        "kube_apiserver_clusterip_allocator_allocation_errors_total{cidr=\"10.96.0.0/16\",scope=\"static\"} 1",
        "kube_apiserver_nodeport_allocator_available_ports 2768",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(cluster.call(&admin(), "DELETE", &format!("{SERVICES}/s"), None).await.0, 200);
    assert_eq!(cluster.call(&admin(), "GET", &path, None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_over_one_store_give_nothing_twice_and_know_each_other() {
    let ca = Arc::new(pki::Ca::new("kubernetes", jiff::Timestamp::now(), jiff::SignedDuration::from_hours(24)).unwrap());
    let store = store::memory::new();
    let first = Cluster::at(store.clone(), ca.clone(), "192.0.2.2").await;
    first.namespace("a").await;
    let second = Cluster::at(store, ca, "192.0.2.1").await;
    let addresses = async |cluster: &Cluster| {
        let endpoints = cluster.get(&admin(), "/api/v1/namespaces/default/endpoints/kubernetes").await;
        let listed = endpoints["subsets"][0]["addresses"].as_array().into_iter().flatten();
        listed.map(|a| a["ip"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&second).await, ["192.0.2.1", "192.0.2.2"]);
    let leases = second.get(&admin(), "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=apiserver.kubernetes.io/identity=kube-apiserver").await;
    assert_eq!(leases["items"].as_array().unwrap().len(), 2);

    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let made = (0..40).map(|i| {
        let (cluster, object) = (if i % 2 == 0 { &first } else { &second }, service(&format!("s{i}"), spec.clone()));
        async move { cluster.post(&admin(), SERVICES, &object).await }
    });
    let made = futures::future::join_all(made).await;
    let mut given: (BTreeSet<String>, BTreeSet<i64>) = Default::default();
    for (code, object) in &made {
        assert_eq!(*code, 201, "{object}");
        given.0.insert(object["spec"]["clusterIP"].as_str().unwrap().to_owned());
        given.1.insert(object["spec"]["ports"][0]["nodePort"].as_i64().unwrap());
    }
    assert_eq!((given.0.len(), given.1.len()), (40, 40));

    // One that ends takes itself out: its address first, then its lease.
    drop(first);
    until("the first is out", async || addresses(&second).await == ["192.0.2.1"]).await;
    until("its lease is gone", async || {
        let leases = second.get(&admin(), "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases").await;
        leases["items"].as_array().unwrap().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_use_of_a_legacy_token_is_told() {
    let (cluster, log) = AuditLog::start("legacy", "Metadata").await;
    let account = cluster.get(&admin(), "/api/v1/namespaces/a/serviceaccounts/default").await;
    let claim = |key: &str| format!("kubernetes.io/serviceaccount/{key}");
    let claims = json!({
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:a:default", claim("namespace"): "a", claim("secret.name"): "t",
        claim("service-account.name"): "default", claim("service-account.uid"): account["metadata"]["uid"],
    });
    let token = cluster.signer.sign(&claims).unwrap();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "t"}, "stringData": {"token": token}});
    assert_eq!(cluster.post(&admin(), "/api/v1/namespaces/a/secrets", &secret).await.0, 201);
    let review = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let used = async || cluster.bearer(&token, "POST", "/api/v1/namespaces/a/configmaps", Some(&review)).await.0;
    assert_eq!(used().await, 403, "known, and without rights");
    assert_eq!(log.annotations()["authentication.k8s.io/legacy-token-manual-secret"], "t");
    let secret = cluster.get(&admin(), "/api/v1/namespaces/a/secrets/t").await;
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    assert_eq!(secret["metadata"]["labels"]["kubernetes.io/legacy-token-last-used"], today.as_str());
    let listed = json!({"secrets": [{"name": "t"}]});
    assert_eq!(cluster.patch(&admin(), "application/merge-patch+json", "/api/v1/namespaces/a/serviceaccounts/default", &listed).await.0, 200);
    let request = http::Request::builder().uri("/api/v1/namespaces/a/configmaps").header("authorization", format!("Bearer {token}"));
    let response = cluster.server.handle(request.body(http_body_util::Full::<bytes::Bytes>::default()).unwrap()).await;
    let warning = response.headers()["warning"].to_str().unwrap().to_owned();
    assert!(warning.contains("instead of auto-generated secret-based tokens."), "{warning}");
    let invalid = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2020-01-01"}}});
    assert_eq!(cluster.patch(&admin(), "application/merge-patch+json", "/api/v1/namespaces/a/secrets/t", &invalid).await.0, 200);
    assert_eq!(used().await, 401);
    let since = cluster.get(&admin(), "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking").await;
    assert_eq!(since["data"]["since"], today.as_str());
}
