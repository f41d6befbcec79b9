//! What every namespace and node is given, and what certificates, tokens and roles become.

use serde_json::{Value, json};

use crate::world::{ACCOUNTS, CONFIG_MAPS, NODES, PODS, REQUESTS, SECRETS, World, converges};

/// Base64, as it is in JSON.
fn encoded(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_get_an_account_and_a_bundle_and_tokens_go_with_their_account() {
    converges(async |world| {
        let (account, bundle) = (format!("{ACCOUNTS}/default"), format!("{CONFIG_MAPS}/kube-root-ca.crt"));
        let certificate = async || world.get(&bundle).await.unwrap_or_default()["data"]["ca.crt"].as_str().unwrap_or("").to_string();
        world.until("there is both", async || world.get(&account).await.is_some() && !certificate().await.is_empty()).await;
        let right = certificate().await;
        // What is removed or spoilt comes back.
        world.patch(&bundle, json!({"data": {"ca.crt": "another", "more": "of it"}})).await;
        world.until("it is as it was", async || certificate().await == right).await;
        world.delete(&bundle, "Background").await;
        world.delete(&account, "Background").await;
        world.until("there is both again", async || world.get(&account).await.is_some() && certificate().await == right).await;

        for name in ["robot", "gone"] {
            world.create(ACCOUNTS, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})).await;
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
                "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": name}}});
            world.create(SECRETS, secret).await;
            world.until("it has its token", async || world.get(&format!("{SECRETS}/{name}")).await.unwrap_or_default()["data"]["token"].is_string()).await;
        }
        world.delete(&format!("{ACCOUNTS}/gone"), "Background").await;
        world.until_gone(&format!("{SECRETS}/gone")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_approved_and_signed_as_far_as_they_may_be() {
    converges(async |world| {
        let make = async |name: &str, org: &str, cn: &str, signer: &str, usages: &[&str]| {
            let csr = pki::new_csr(cn, org, &[], None).expect("a request").cert_pem;
            let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
                "spec": {"request": encoded(&csr), "signerName": format!("kubernetes.io/{signer}"), "usages": usages}});
            world.create(REQUESTS, request).await
        };
        let (node, client) = ("kube-apiserver-client-kubelet", "kube-apiserver-client");
        let usages = ["digital signature", "client auth"];
        make("node", "system:nodes", "system:node:n9", node, &usages).await;
        make("no-node", "dev", "jane", node, &usages).await;
        for name in ["approved", "denied", "unfit", "waiting"] {
            let usages = if name == "unfit" { &["server auth"][..] } else { &usages };
            make(name, "dev", "jane", client, usages).await;
        }
        for (name, kind) in [("approved", "Approved"), ("denied", "Denied"), ("unfit", "Approved")] {
            let path = format!("{REQUESTS}/{name}");
            world
                .until("somebody has decided", async || {
                    let mut request = world.get(&path).await.expect("it is there");
                    request["status"]["conditions"] = json!([{"type": kind, "status": "True", "reason": "ByHand", "message": ""}]);
                    world.call("PUT", &format!("{path}/approval"), Some(&request)).await.0 == 200
                })
                .await;
        }
        let status = async |name: &str| world.get(&format!("{REQUESTS}/{name}")).await.unwrap_or_default()["status"].clone();
        let has = |status: &Value, kind: &str| status["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == kind);
        for name in ["node", "approved"] {
            world.until(&format!("{name} is signed"), async || status(name).await["certificate"].is_string()).await;
        }
        world.until("unfit has failed", async || has(&status("unfit").await, "Failed")).await;
        for name in ["no-node", "denied", "waiting", "unfit"] {
            assert!(status(name).await["certificate"].is_null(), "{name} is not signed");
        }
        assert!(!has(&status("no-node").await, "Approved") && !has(&status("waiting").await, "Approved"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_sign_until_they_end_and_roles_are_the_sum_of_others() {
    converges(async |world| {
        let info = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": {"kubeconfig": "apiVersion: v1"}});
        world.create("/api/v1/namespaces/kube-public/configmaps", info).await;
        let secrets = "/api/v1/namespaces/kube-system/secrets";
        let token = |id: &str, more: Value| {
            let mut data = json!({"token-id": encoded(id), "token-secret": encoded("0123456789abcdef"), "usage-bootstrap-signing": encoded("true")});
            data.as_object_mut().expect("fields").extend(more.as_object().cloned().unwrap_or_default());
            json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token", "metadata": {"name": format!("bootstrap-token-{id}")}, "data": data})
        };
        world.create(secrets, token("aaaaaa", json!({}))).await;
        world.create(secrets, token("bbbbbb", json!({}))).await;
        world.create(secrets, token("cccccc", json!({"expiration": encoded("2020-01-01T00:00:00Z")}))).await;
        world.create(secrets, token("dddddd", json!({"usage-bootstrap-signing": encoded("false")}))).await;
        let signatures = async || {
            let map = world.get("/api/v1/namespaces/kube-public/configmaps/cluster-info").await.unwrap_or_default();
            let keys = map["data"].as_object().into_iter().flat_map(|d| d.keys().cloned()).filter(|k| k.starts_with("jws-"));
            keys.collect::<Vec<_>>().join(" ")
        };
        world.until("two sign", async || signatures().await == "jws-kubeconfig-aaaaaa jws-kubeconfig-bbbbbb").await;
        world.until_gone(&format!("{secrets}/bootstrap-token-cccccc")).await;
        world.delete(&format!("{secrets}/bootstrap-token-bbbbbb"), "Background").await;
        world.until("one signs", async || signatures().await == "jws-kubeconfig-aaaaaa").await;
        assert!(world.get(&format!("{secrets}/bootstrap-token-dddddd")).await.is_some(), "it stays");

        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        let role = |name: &str, label: &str, resource: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name, "labels": {"part": label}},
                "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
        };
        for (name, label, resource) in [("one", "of-it", "pods"), ("two", "of-it", "nodes"), ("three", "not", "secrets")] {
            world.create(roles, role(name, label, resource)).await;
        }
        let sum = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "sum"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part": "of-it"}}]}, "rules": []});
        world.create(roles, sum).await;
        let resources = async || {
            let rules = world.get(&format!("{roles}/sum")).await.unwrap_or_default()["rules"].clone();
            rules.as_array().into_iter().flatten().filter_map(|r| r["resources"][0].as_str().map(str::to_string)).collect::<Vec<_>>().join(" ")
        };
        world.until("it is both", async || resources().await == "pods nodes" || resources().await == "nodes pods").await;
        world.delete(&format!("{roles}/two"), "Background").await;
        world.until("it is one", async || resources().await == "pods").await;
    })
    .await;
}

async fn taints(world: &World, node: &str) -> Vec<String> {
    let node = world.get(&format!("{NODES}/{node}")).await.unwrap_or_default();
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let mut all: Vec<String> = taints.map(|t| format!("{}:{}", t["key"].as_str().unwrap_or(""), t["effect"].as_str().unwrap_or(""))).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_ranges_and_taints_and_pods_leave_those_that_are_tainted() {
    converges(async |world| {
        world.until("there is an account", async || world.get(&format!("{ACCOUNTS}/default")).await.is_some()).await;
        let ranges = async || {
            let nodes = world.list(NODES).await;
            let mut ranges: Vec<String> = nodes.iter().filter_map(|n| n["spec"]["podCIDR"].as_str().map(str::to_string)).collect();
            ranges.sort();
            ranges
        };
        world.until("each has a range", async || ranges().await == ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]).await;
        world.node("n3").await;
        world.until("the fourth has the last", async || ranges().await.last().is_some_and(|r| r == "10.244.3.0/24")).await;
        world.node("n4").await;
        world.delete(&format!("{NODES}/n3"), "Background").await;

        // n0 takes all pods that choose none.
        let pod = |name: &str, tolerations: Value| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "a"}], "tolerations": tolerations}})
        };
        let away = |seconds: Value| json!([{"key": "away", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        for (name, tolerations) in [("goes", json!([])), ("stays", away(Value::Null)), ("soon", away(json!(1))), ("late", away(json!(3600)))] {
            world.create(PODS, pod(name, tolerations)).await;
        }
        world.until("they run", async || world.list(PODS).await.iter().all(|p| p["status"]["phase"] == "Running")).await;
        world.patch(&format!("{NODES}/n0"), json!({"spec": {"taints": [{"key": "away", "effect": "NoExecute"}, {"key": "near", "effect": "NoSchedule"}]}})).await;
        world.until_gone(&format!("{PODS}/goes")).await;
        world.until_gone(&format!("{PODS}/soon")).await;

        let condition = |kind: &str, status: &str| {
            let now = jiff::Timestamp::now();
            json!({"type": kind, "status": status, "lastHeartbeatTime": now, "lastTransitionTime": now, "reason": "KubeletSays", "message": ""})
        };
        let say = async |conditions: Value| world.patch(&format!("{NODES}/n1/status"), json!({"status": {"conditions": conditions}})).await;
        say(json!([condition("Ready", "True"), condition("MemoryPressure", "True")])).await;
        world.until("it is tainted", async || taints(&world, "n1").await == ["node.kubernetes.io/memory-pressure:NoSchedule"]).await;
        say(json!([condition("Ready", "False"), condition("MemoryPressure", "False")])).await;
        let lost = ["node.kubernetes.io/not-ready:NoExecute", "node.kubernetes.io/not-ready:NoSchedule"];
        world.until("it is tainted otherwise", async || taints(&world, "n1").await == lost).await;
        say(json!([condition("Ready", "True")])).await;
        world.until("it is free", async || taints(&world, "n1").await.is_empty()).await;
        assert_eq!(taints(&world, "n0").await, ["away:NoExecute", "near:NoSchedule"], "those of others stay");
        world.until("the fifth has what the fourth left", async || ranges().await.last().is_some_and(|r| r == "10.244.3.0/24")).await;
        world.until("all are told how long they may keep what they read", async || {
            world.list(NODES).await.iter().all(|n| n["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"] == "0")
        })
        .await;
    })
    .await;
}
