//! The registry inside a real API server over the in-memory store: requests through the whole
//! handler chain.

mod common;

use common::{Cluster, admin, user};
use serde_json::{Value, json};

#[tokio::test]
async fn bootstrap_objects_and_restart() {
    let cluster = Cluster::start().await;
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let namespaces = cluster.get(&admin(), "/api/v1/namespaces").await;
    assert_eq!(names(&namespaces), ["default", "kube-node-lease", "kube-public", "kube-system"]);
    assert_eq!(namespaces["items"][0]["status"]["phase"], "Active");
    let roles = cluster.get(&admin(), "/apis/rbac.authorization.k8s.io/v1/clusterroles").await;
    assert!(names(&roles).len() > 60);
    let service = cluster.get(&admin(), "/api/v1/namespaces/default/services/kubernetes").await;
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    cluster.get(&admin(), "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes").await;
    let version = roles["metadata"]["resourceVersion"].clone();
    let again = Cluster::over(cluster.store(), cluster.ca.clone()).await;
    let roles = again.get(&admin(), "/apis/rbac.authorization.k8s.io/v1/clusterroles").await;
    let number = |version: &Value| version.as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(number(&roles["metadata"]["resourceVersion"]), number(&version) + 2, "a restart writes that it lives, in its Lease and its key, and nothing else");
}

#[tokio::test]
async fn pod_from_creation_to_eviction() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let pods = "/api/v1/namespaces/a/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "p"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}});
    let (code, made) = cluster.post(&admin(), pods, &pod).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["qosClass"], "BestEffort");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    assert_eq!(made["spec"]["priority"], 0);
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(made["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["path"], "token");
    assert_eq!(made["metadata"]["generation"], 1);
    let (code, bound) = cluster
        .post(&admin(), &format!("{pods}/p/binding"), &json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}))
        .await;
    assert_eq!(code, 201, "{bound}");
    let pod = cluster.get(&admin(), &format!("{pods}/p")).await;
    assert_eq!(pod["spec"]["nodeName"], "n1");
    assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(pod["metadata"]["managedFields"], made["metadata"]["managedFields"], "nobody owns what a binding writes");
    let mut status = pod.clone();
    status["status"]["phase"] = json!("Running");
    status["spec"]["nodeName"] = json!("n2");
    let (code, updated) = cluster.call(&admin(), "PUT", &format!("{pods}/p/status"), Some(&status)).await;
    assert_eq!(code, 200, "{updated}");
    assert_eq!((&updated["spec"]["nodeName"], &updated["status"]["phase"]), (&json!("n1"), &json!("Running")));
    let (code, evicted) = cluster
        .post(&admin(), &format!("{pods}/p/eviction"), &json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}))
        .await;
    assert_eq!(code, 201, "{evicted}");
    let pod = cluster.get(&admin(), &format!("{pods}/p")).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(pod["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "DisruptionTarget"));
    let (code, _) = cluster.call(&admin(), "DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), None).await;
    assert_eq!(code, 200);
    assert_eq!(cluster.call(&admin(), "GET", &format!("{pods}/p"), None).await.0, 404);
}

#[tokio::test]
async fn what_of_a_pod_its_subresources_may_change() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let pods = "/api/v1/namespaces/a/pods";
    let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}});
    assert_eq!(cluster.post(&admin(), pods, &pod).await.0, 201);
    let change = async |subresource: &str, at: &str, value: Value| {
        let path = format!("{pods}/p{subresource}");
        let mut pod = cluster.get(&admin(), &format!("{pods}/p")).await;
        match at.rsplit_once('/') {
            Some((parent, key)) => pod.pointer_mut(parent).expect("a parent")[key] = value,
            None => pod = value,
        }
        cluster.call(&admin(), "PUT", &path, Some(&pod)).await
    };
    let shell = json!([{"name": "shell", "image": "i"}]);
    let (code, refused) = change("", "/spec/ephemeralContainers", shell.clone()).await;
    assert_eq!(code, 422, "{refused}");
    let (code, made) = change("/ephemeralcontainers", "/spec/ephemeralContainers", shell).await;
    assert_eq!((code, &made["metadata"]["generation"]), (200, &json!(2)), "{made}");
    let (code, refused) = change("/ephemeralcontainers", "/spec/ephemeralContainers", json!([])).await;
    assert!(code == 422 && refused["message"].as_str().unwrap().contains("may not be removed"), "{refused}");

    let requests = "/spec/containers/0/resources/requests";
    let (code, refused) = change("", requests, json!({"cpu": "2", "memory": "1Gi"})).await;
    assert_eq!(code, 422, "{refused}");
    let (code, resized) = change("/resize", requests, json!({"cpu": "2", "memory": "1Gi"})).await;
    assert_eq!((code, &resized["metadata"]["generation"]), (200, &json!(3)), "{resized}");
    assert_eq!(resized.pointer(requests), Some(&json!({"cpu": "2", "memory": "1Gi"})));
    for (at, value, sentence) in [
        (requests, json!({"cpu": "2"}), "resource requests cannot be removed"),
        (requests, json!({"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "2Mi"}), "only cpu and memory resources are mutable"),
        (requests, json!({"cpu": "3", "memory": "1Gi"}), "must be less than or equal to cpu limit"),
        ("/spec/containers/0/resources", json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}), "Pod QOS Class may not change"),
    ] {
        let (code, refused) = change("/resize", at, value).await;
        assert!(code == 422 && refused["message"].as_str().unwrap().contains(sentence), "{sentence}: {refused}");
    }
}

#[tokio::test]
async fn service_addresses() {
    let cluster = Cluster::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, extra: Value| {
        let mut spec = json!({"selector": {"app": "x"}, "ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    };
    let (code, made) = cluster.post(&admin(), services, &service("a", json!({"type": "NodePort"}))).await;
    assert_eq!(code, 201, "{made}");
    let (ip, port) = (made["spec"]["clusterIP"].clone(), made["spec"]["ports"][0]["nodePort"].clone());
    assert!(port.is_number());
    let (code, refused) = cluster.post(&admin(), services, &service("b", json!({"clusterIP": ip}))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().ends_with("provided IP is already allocated"), "{refused}");
    let (code, taken) = cluster.post(&admin(), services, &service("b", json!({"clusterIP": "10.96.0.1"}))).await;
    assert_eq!(code, 422, "{taken}");
    assert_eq!(cluster.call(&admin(), "DELETE", &format!("{services}/a"), None).await.0, 200);
    let again = service("b", json!({"clusterIP": ip, "type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}));
    let (code, made) = cluster.post(&admin(), services, &again).await;
    assert_eq!(code, 201, "{made}");
}

#[tokio::test]
async fn service_account_that_may_only_read_pods() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/a";
    let role = json!({"metadata": {"name": "reader"}, "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
    assert_eq!(cluster.post(&admin(), &format!("{rbac}/roles"), &role).await.0, 201);
    let binding = json!({"metadata": {"name": "reader"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "a"}]});
    assert_eq!(cluster.post(&admin(), &format!("{rbac}/rolebindings"), &binding).await.0, 201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let (code, answer) = cluster.post(&admin(), "/api/v1/namespaces/a/serviceaccounts/default/token", &request).await;
    assert_eq!(code, 201, "{answer}");
    let token = answer["status"]["token"].as_str().unwrap();
    let (code, list) = cluster.bearer(token, "GET", "/api/v1/namespaces/a/pods", None).await;
    assert_eq!(code, 200, "{list}");
    let (code, refused) = cluster.bearer(token, "GET", "/api/v1/namespaces/a/secrets", None).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "secrets is forbidden: User \"system:serviceaccount:a:default\" cannot list resource \"secrets\" in API group \"\" in the namespace \"a\""
    );
    assert_eq!(cluster.bearer("rubbish", "GET", "/api", None).await.0, 401);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "a", "verb": "delete", "resource": "pods"}}});
    let (code, answer) = cluster.bearer(token, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", Some(&review)).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(false)), "{answer}");
    // An answer that is not kept has no columns.
    let (path, table) = ("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "application/json;as=Table;v=v1;g=meta.k8s.io");
    assert_eq!(cluster.post_accepting(&admin(), table, path, &review).await.0, 406);
    assert_eq!(cluster.post_accepting(&admin(), &format!("{table},application/json"), path, &review).await.0, 201);
    let rules = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "a"}});
    let (_, answer) = cluster.bearer(token, "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", Some(&rules)).await;
    let rules = answer["status"]["resourceRules"].as_array().unwrap();
    assert!(rules.contains(&json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})), "{answer}");
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (_, answer) = cluster.bearer(token, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", Some(&who)).await;
    assert_eq!(answer["status"]["userInfo"]["username"], "system:serviceaccount:a:default");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let (_, answer) = cluster.post(&admin(), "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
}

#[tokio::test]
async fn nodes_are_confined() {
    let cluster = Cluster::start().await;
    let node = user("system:node:n1", &["system:nodes", "system:authenticated"]);
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}});
    let (code, made) = cluster.post(&node, "/api/v1/nodes", &object).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    assert_eq!(made["status"]["capacity"]["cpu"], "2");
    let other = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}});
    let (code, refused) = cluster.post(&node, "/api/v1/nodes", &other).await;
    assert_eq!(code, 403);
    assert_eq!(refused["message"], "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\"");
    assert_eq!(cluster.call(&node, "GET", "/api/v1/secrets", None).await.0, 403);
    assert_eq!(cluster.call(&node, "GET", "/api/v1/pods", None).await.0, 403);
    assert_eq!(cluster.call(&node, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", None).await.0, 200);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}});
    let (code, made) = cluster.post(&node, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await;
    assert_eq!(code, 201, "{made}");
    let (code, _) = cluster.call(&node, "GET", "/api/v1/services", None).await;
    assert_eq!(code, 200, "what is not subdivided follows the rules of system:node");
}

#[tokio::test]
async fn namespace_goes_when_its_finalizer_goes() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let path = "/api/v1/namespaces/a";
    let (code, gone) = cluster.call(&admin(), "DELETE", path, None).await;
    assert_eq!(code, 200, "{gone}");
    let mut namespace = cluster.get(&admin(), path).await;
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    let (code, refused) = cluster.post(&admin(), &format!("{path}/configmaps"), &map).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "configmaps \"m\" is forbidden: unable to create new content in namespace a because it is being terminated"
    );
    namespace["spec"] = json!({});
    let (code, done) = cluster.call(&admin(), "PUT", &format!("{path}/finalize"), Some(&namespace)).await;
    assert_eq!(code, 200, "{done}");
    assert_eq!(cluster.call(&admin(), "GET", path, None).await.0, 404);
    let (code, refused) = cluster.post(&admin(), "/api/v1/namespaces/b/configmaps", &map).await;
    assert_eq!((code, &refused["message"]), (404, &json!("namespaces \"b\" not found")));
}

#[tokio::test]
async fn workloads() {
    let cluster = Cluster::start().await;
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let (code, made) = cluster.post(&admin(), "/apis/batch/v1/namespaces/default/jobs", &job).await;
    assert_eq!(code, 201, "{made}");
    let uid = made["metadata"]["uid"].clone();
    assert_eq!(made["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], uid);
    assert_eq!(made["spec"]["template"]["metadata"]["labels"]["controller-uid"], uid);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}});
    let (code, made) = cluster.post(&admin(), "/api/v1/namespaces/default/secrets", &secret).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["data"], &made["type"]), (&json!({"k": "dg=="}), &json!("Opaque")));
    assert!(made.get("stringData").is_none());
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, made) = cluster.post(&admin(), path, &deployment).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["generation"], 1);
    let scale = cluster.get(&admin(), &format!("{path}/d/scale")).await;
    assert_eq!(scale["spec"]["replicas"], 1);
    let mut scale = scale;
    scale["spec"]["replicas"] = json!(3);
    let (code, scaled) = cluster.call(&admin(), "PUT", &format!("{path}/d/scale"), Some(&scale)).await;
    assert_eq!(code, 200, "{scaled}");
    let deployment = cluster.get(&admin(), &format!("{path}/d")).await;
    assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(3), &json!(2)));
}

#[tokio::test]
async fn quota_is_charged_for_pods() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let quotas = "/api/v1/namespaces/a/resourcequotas";
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    let (code, made) = cluster.post(&admin(), quotas, &quota).await;
    assert_eq!(code, 201, "{made}");
    assert!(made.pointer("/status/used").is_none(), "the controller counts, of which there is none here");
    let mut counted = made.clone();
    counted["status"] = json!({"hard": {"pods": "1"}, "used": {"pods": "0"}});
    assert_eq!(cluster.call(&admin(), "PUT", &format!("{quotas}/q/status"), Some(&counted)).await.0, 200);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(cluster.post(&admin(), "/api/v1/namespaces/a/pods", &pod).await.0, 201);
    assert_eq!(cluster.get(&admin(), &format!("{quotas}/q")).await["status"]["used"]["pods"], "1");
    let mut second = pod.clone();
    second["metadata"]["name"] = "p2".into();
    assert_eq!(cluster.post(&admin(), "/api/v1/namespaces/a/pods", &second).await.0, 403);
}

#[tokio::test]
async fn token_of_a_secret() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    let account = cluster.get(&admin(), "/api/v1/namespaces/a/serviceaccounts/default").await;
    let token = cluster.signer.sign(&json!({
        "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:a:default",
        "kubernetes.io/serviceaccount/namespace": "a", "kubernetes.io/serviceaccount/secret.name": "s",
        "kubernetes.io/serviceaccount/service-account.name": "default", "kubernetes.io/serviceaccount/service-account.uid": account["metadata"]["uid"],
    })).unwrap();
    assert_eq!(cluster.bearer(&token, "GET", "/api", None).await.0, 401, "no Secret holds it yet");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token", "stringData": {"token": token},
        "metadata": {"name": "s", "annotations": {"kubernetes.io/service-account.name": "default"}}});
    let (code, made) = cluster.post(&admin(), "/api/v1/namespaces/a/secrets", &secret).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(cluster.bearer(&token, "GET", "/api", None).await.0, 200);
    assert_eq!(cluster.call(&admin(), "DELETE", "/api/v1/namespaces/a/secrets/s", None).await.0, 200);
    assert_eq!(cluster.bearer(&token, "GET", "/api", None).await.0, 401);
}

#[tokio::test]
async fn cluster_roles_begin_aggregated_and_are_the_controllers_then() {
    let cluster = Cluster::start().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    for name in ["view", "edit", "admin"] {
        let role = cluster.get(&admin(), &format!("{roles}/{name}")).await;
        assert!(!role["rules"].as_array().unwrap().is_empty(), "{name}");
    }
    let rule = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["crons"]});
    let role = json!({"metadata": {"name": "crons-view", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}, "rules": [rule]});
    assert_eq!(cluster.post(&admin(), roles, &role).await.0, 201);
    let view = cluster.get(&admin(), &format!("{roles}/view")).await;
    assert!(!view["rules"].as_array().unwrap().contains(&rule), "the API server writes no role that nobody wrote");
}

#[tokio::test]
async fn malformed_objects_get_a_status() {
    let cluster = Cluster::start().await;
    let core = "/api/v1/namespaces/default";
    let paths = [
        ("v1", "Pod", format!("{core}/pods")),
        ("v1", "Service", format!("{core}/services")),
        ("v1", "Secret", format!("{core}/secrets")),
        ("v1", "Namespace", "/api/v1/namespaces".into()),
        ("v1", "Node", "/api/v1/nodes".into()),
        ("v1", "ResourceQuota", format!("{core}/resourcequotas")),
        ("v1", "LimitRange", format!("{core}/limitranges")),
        ("v1", "Binding", format!("{core}/bindings")),
        ("v1", "PersistentVolumeClaim", format!("{core}/persistentvolumeclaims")),
        ("batch/v1", "Job", "/apis/batch/v1/namespaces/default/jobs".into()),
        ("apps/v1", "DaemonSet", "/apis/apps/v1/namespaces/default/daemonsets".into()),
        ("apps/v1", "Deployment", "/apis/apps/v1/namespaces/default/deployments".into()),
        ("networking.k8s.io/v1", "Ingress", "/apis/networking.k8s.io/v1/namespaces/default/ingresses".into()),
        ("scheduling.k8s.io/v1", "PriorityClass", "/apis/scheduling.k8s.io/v1/priorityclasses".into()),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "/apis/rbac.authorization.k8s.io/v1/clusterroles".into()),
        ("rbac.authorization.k8s.io/v1", "RoleBinding", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings".into()),
        ("certificates.k8s.io/v1", "CertificateSigningRequest", "/apis/certificates.k8s.io/v1/certificatesigningrequests".into()),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".into()),
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews".into()),
        ("authentication.k8s.io/v1", "TokenReview", "/apis/authentication.k8s.io/v1/tokenreviews".into()),
        ("authentication.k8s.io/v1", "TokenRequest", format!("{core}/serviceaccounts/default/token")),
        ("policy/v1", "Eviction", format!("{core}/pods/p/eviction")),
    ];
    let odd = [Value::Null, json!("x"), json!(7), json!(-1.5), json!([]), json!({}), json!([null, 1, "x", {}]), json!({"a": null, "": {"": []}})];
    let fields = ["metadata", "spec", "status", "data", "stringData", "type", "rules", "subjects", "roleRef", "target", "globalDefault", "aggregationRule"];
    let nested = ["spec.containers", "spec.volumes", "spec.ports", "spec.clusterIP", "spec.clusterIPs", "spec.template", "spec.hard", "spec.limits",
        "spec.request", "spec.taints", "spec.tolerations", "metadata.labels", "metadata.annotations", "spec.resourceAttributes", "spec.priority", "spec.schedulingGates"];
    let admin = admin();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    assert_eq!(cluster.post(&admin, &format!("{core}/serviceaccounts"), &account).await.0, 201);
    for (version, kind, path) in &paths {
        for bad in &odd {
            for field in fields.iter().chain(&nested) {
                let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "odd"}});
                match field.split_once('.') {
                    Some((outer, inner)) => object[outer][inner] = bad.clone(),
                    None => object[*field] = bad.clone(),
                }
                let (code, answer) = cluster.post(&admin, path, &object).await;
                assert!(code < 500, "{kind} with {field} = {bad}: {answer}");
                if code == 201 {
                    cluster.call(&admin, "DELETE", &format!("{path}/odd"), None).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn certificate_requests() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let cluster = Cluster::start().await;
    let csr = pki::new_csr("system:node:n9", "system:nodes", &[], None).unwrap();
    let joiner = user("system:bootstrap:abcdef", &["system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token", "system:authenticated"]);
    let request = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "r"},
        "spec": {"request": STANDARD.encode(&csr.cert_pem), "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth", "digital signature"]}});
    let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let (code, made) = cluster.post(&joiner, path, &request).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["username"], "system:bootstrap:abcdef");
    let mut approved = made.clone();
    approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]});
    let (code, answer) = cluster.call(&joiner, "PUT", &format!("{path}/r/approval"), Some(&approved)).await;
    assert_eq!(code, 403, "{answer}");
    let (code, answer) = cluster.call(&admin(), "PUT", &format!("{path}/r/approval"), Some(&approved)).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["status"]["conditions"][0]["type"], "Approved");
    // The joined node's serving certificate: the controller may approve and sign it.
    let node = user("system:node:n9", &["system:nodes", "system:authenticated"]);
    let csr = pki::new_csr("system:node:n9", "system:nodes", &["n9".into(), "192.0.2.9".into()], None).unwrap();
    let mut request = request;
    request["metadata"]["name"] = json!("s");
    request["spec"] = json!({"request": STANDARD.encode(&csr.cert_pem), "signerName": "kubernetes.io/kubelet-serving", "usages": ["server auth", "digital signature"]});
    let (code, made) = cluster.post(&node, path, &request).await;
    assert_eq!(code, 201, "{made}");
    let controller = user(
        "system:serviceaccount:kube-system:certificate-controller",
        &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
    );
    approved = made;
    approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]});
    let (code, mut signed) = cluster.call(&controller, "PUT", &format!("{path}/s/approval"), Some(&approved)).await;
    assert_eq!(code, 200, "{signed}");
    let now = jiff::Timestamp::now();
    let end = now.saturating_add(jiff::SignedDuration::from_hours(1)).unwrap();
    let pem = cluster.ca.sign_csr(&pki::Csr::from_pem(&csr.cert_pem).unwrap(), &[pki::Usage::Server], now, end).unwrap();
    signed["status"]["certificate"] = json!(STANDARD.encode(pem));
    let (code, signed) = cluster.call(&controller, "PUT", &format!("{path}/s/status"), Some(&signed)).await;
    assert_eq!(code, 200, "{signed}");
    assert!(signed["status"]["certificate"].is_string());
}

#[tokio::test]
async fn default_cluster_roles_work() {
    let cluster = Cluster::start().await;
    let bob = user("bob", &["system:authenticated"]);
    let binding = |role: &str| {
        json!({"metadata": {"name": role}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}]})
    };
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    assert_eq!(cluster.call(&bob, "GET", "/api/v1/namespaces/default/pods", None).await.0, 403);
    assert_eq!(cluster.post(&admin(), bindings, &binding("admin")).await.0, 201);
    assert_eq!(cluster.call(&bob, "GET", "/api/v1/namespaces/default/pods", None).await.0, 200);
    // An admin of a namespace may hand out what they have, and nothing more.
    let (code, made) = cluster.post(&bob, bindings, &binding("view")).await;
    assert_eq!(code, 201, "{made}");
    let (code, refused) = cluster.post(&bob, bindings, &binding("cluster-admin")).await;
    assert_eq!(code, 403);
    assert!(refused["message"].as_str().unwrap().contains("is attempting to grant RBAC permissions not currently held"), "{refused}");
    let nobody = user("system:anonymous", &["system:unauthenticated"]);
    assert_eq!(cluster.call(&nobody, "GET", "/version", None).await.0, 200);
    let (code, refused) = cluster.call(&nobody, "GET", "/api", None).await;
    assert_eq!((code, &refused["message"]), (403, &json!("forbidden: User \"system:anonymous\" cannot get path \"/api\"")));
}

#[tokio::test]
async fn nothing_is_privileged_where_that_is_not_allowed() {
    let c = Cluster::configured(apiserver::Config { allow_privileged: false, ..Default::default() }).await;
    let admin = admin();
    c.post(&admin, "/api/v1/namespaces", &json!({"metadata": {"name": "a"}})).await;
    c.post(&admin, "/api/v1/namespaces/a/serviceaccounts", &json!({"metadata": {"name": "default"}})).await;
    let container = |context: Value| json!({"image": "i", "name": "c", "securityContext": context});
    let pod = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
    let refused = |(code, answer): (u16, Value)| {
        assert_eq!(code, 422, "{answer}");
        answer["message"].as_str().unwrap().to_owned()
    };
    let asked = c.post(&admin, "/api/v1/namespaces/a/pods", &pod(json!({"containers": [container(json!({"privileged": true}))]}))).await;
    assert_eq!(refused(asked), "Pod \"x\" is invalid: spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy");
    let host = json!({"hostNetwork": true, "containers": [container(json!({"windowsOptions": {"hostProcess": true}}))]});
    let asked = c.post(&admin, "/api/v1/namespaces/a/pods", &pod(host)).await;
    assert_eq!(refused(asked), "Pod \"x\" is invalid: spec: Forbidden: hostProcess containers are disallowed by cluster policy");
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [container(json!({"privileged": true}))]}});
    let job = json!({"metadata": {"name": "x"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}});
    let asked = c.post(&admin, "/apis/batch/v1/namespaces/a/cronjobs", &job).await;
    assert_eq!(
        refused(asked),
        "CronJob.batch \"x\" is invalid: spec.jobTemplate.spec.template.spec.containers[0].securityContext.privileged: Forbidden: disallowed by cluster policy"
    );
    let (code, made) = c.post(&admin, "/api/v1/namespaces/a/pods", &pod(json!({"containers": [container(json!({"privileged": false}))]}))).await;
    assert_eq!(code, 201, "{made}");
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "securityContext": {"privileged": true}}]}});
    let (code, answer) = c.patch(&admin, "application/strategic-merge-patch+json", "/api/v1/namespaces/a/pods/x/ephemeralcontainers", &debug).await;
    assert!(code == 422 && answer["message"].as_str().unwrap().ends_with("disallowed by cluster policy"), "{answer}");
}

#[tokio::test]
async fn what_is_switched_off_is_not_there() {
    let pairs = [("batch/v1", "false"), ("batch/v1/jobs", "true"), ("autoscaling/v1", "false")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let enablement = apiserver::Enablement::from_pairs(&pairs.into()).unwrap();
    let c = Cluster::configured(apiserver::Config { enablement, ..Default::default() }).await;
    let admin = admin();
    let code = async |path: &str| c.call(&admin, "GET", path, None).await.0;
    assert_eq!(code("/apis/batch/v1/namespaces/default/jobs").await, 200);
    assert_eq!(code("/apis/batch/v1/namespaces/default/cronjobs").await, 404);
    assert_eq!(code("/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers").await, 404);
    assert_eq!(code("/apis/autoscaling/v1").await, 404);
    assert_eq!(code("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers").await, 200);
    let listed = c.get(&admin, "/apis/batch/v1").await;
    let names: Vec<&str> = listed["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["jobs", "jobs/status"]);
    let group = c.get(&admin, "/apis/autoscaling").await;
    assert_eq!(group["versions"], json!([{"groupVersion": "autoscaling/v2", "version": "v2"}]));
    let documents = c.get(&admin, "/openapi/v3").await;
    assert!(documents["paths"]["apis/batch/v1"].is_object() && documents["paths"]["apis/autoscaling/v1"].is_null());
    let services = c.get(&admin, "/apis/apiregistration.k8s.io/v1/apiservices").await;
    let names: Vec<&str> = services["items"].as_array().unwrap().iter().map(|s| s["metadata"]["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"v1.batch") && !names.contains(&"v1.autoscaling"), "{names:?}");
}
