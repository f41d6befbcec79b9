//! Priority and fairness through the whole handler chain and over HTTP: a user who floods a small priority level waits and
//! is refused there, and nobody else notices.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Concurrency, Operation, ServingTls};
use bytes::Bytes;
use common::{Cluster, admin, user};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use pki::Usage;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
const DUMP: &str = "/debug/api_priority_and_fairness";

/// Waits, with patience, until something is so.
async fn until<T>(what: &str, mut test: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = test().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: it took too long");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn level(name: &str, queuing: Value) -> Value {
    let response = if queuing.is_null() { json!({"type": "Reject"}) } else { json!({"type": "Queue", "queuing": queuing}) };
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": name},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": response}}})
}

fn schema(name: &str, level: &str, user: &str) -> Value {
    let rule = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
    let other = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
        "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 800, "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [rule], "nonResourceRules": [other]}]}})
}

/// What the condition `Dangling` of a flow schema says.
async fn dangling(cluster: &Cluster, name: &str, wanted: &str) {
    until(&format!("{name} is to dangle: {wanted}"), async || {
        let schema = cluster.get(&admin(), &format!("{SCHEMAS}/{name}")).await;
        let found = schema["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Dangling")?.clone();
        (found["status"] == wanted).then_some(())
    })
    .await;
}

async fn text(cluster: &Cluster, path: &str) -> String {
    let (code, body) = cluster.call(&admin(), "GET", path, None).await;
    assert_eq!(code, 200, "{path}: {body}");
    body.as_str().unwrap_or_default().to_string()
}

#[tokio::test]
async fn the_default_objects_are_there_and_come_back() {
    let cluster = Cluster::start().await;
    let of = async |path: &str| -> Vec<(String, i64)> {
        let list = cluster.get(&admin(), path).await;
        let number = |o: &Value| o.pointer("/spec/matchingPrecedence").or(o.pointer("/spec/limited/nominalConcurrencyShares")).and_then(Value::as_i64);
        list["items"].as_array().unwrap().iter().map(|o| (o["metadata"]["name"].as_str().unwrap().to_string(), number(o).unwrap_or(0))).collect()
    };
    let named = |list: &[(&str, i64)]| list.iter().map(|(n, x)| (n.to_string(), *x)).collect::<Vec<_>>();
    assert_eq!(
        of(LEVELS).await,
        named(&[("catch-all", 5), ("exempt", 0), ("global-default", 20), ("leader-election", 10), ("node-high", 40), ("system", 30),
            ("workload-high", 40), ("workload-low", 100)])
    );
    assert_eq!(
        of(SCHEMAS).await,
        named(&[("catch-all", 10000), ("exempt", 1), ("global-default", 9900), ("kube-controller-manager", 800), ("kube-scheduler", 800),
            ("kube-system-service-accounts", 900), ("probes", 2), ("service-accounts", 9000), ("system-leader-election", 100),
            ("system-node-high", 400), ("system-nodes", 500)])
    );
    for schema in ["exempt", "global-default"] {
        dangling(&cluster, schema, "False").await;
    }
    let system = cluster.get(&admin(), &format!("{LEVELS}/system")).await;
    assert_eq!(system["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"], "true");
    assert_eq!((&system["metadata"]["generation"], &system["metadata"]["managedFields"][0]["manager"]), (&json!(1), &json!("api-priority-and-fairness-config-producer-v1")));
    let ready = text(&cluster, "/readyz?verbose").await;
    assert!(ready.contains("[+]poststarthook/priority-and-fairness-config-producer ok"), "{ready}");
    // a mandatory one cannot be changed
    let mut changed = cluster.get(&admin(), &format!("{LEVELS}/catch-all")).await;
    changed["spec"]["limited"]["nominalConcurrencyShares"] = 50.into();
    let (code, answer) = cluster.call(&admin(), "PUT", &format!("{LEVELS}/catch-all"), Some(&changed)).await;
    assert_eq!(code, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().ends_with("spec of 'catch-all' must equal the fixed value"), "{answer}");
    // what an administrator took away or changed is as it was after a restart, but what they took over stays
    assert_eq!(cluster.call(&admin(), "DELETE", &format!("{SCHEMAS}/probes"), None).await.0, 200);
    for (name, annotation) in [("system", "true"), ("node-high", "false")] {
        let patch = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": annotation}}, "spec": {"limited": {"nominalConcurrencyShares": 77}}});
        assert_eq!(cluster.patch(&admin(), "application/merge-patch+json", &format!("{LEVELS}/{name}"), &patch).await.0, 200);
    }
    let again = Cluster::over(cluster.store(), cluster.ca.clone()).await;
    assert_eq!(again.call(&admin(), "GET", &format!("{SCHEMAS}/probes"), None).await.0, 200);
    let shares = async |name: &str| again.get(&admin(), &format!("{LEVELS}/{name}")).await["spec"]["limited"]["nominalConcurrencyShares"].clone();
    assert_eq!((shares("system").await, shares("node-high").await), (json!(30), json!(77)));
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let cluster = Cluster::start().await;
    for schema in ["exempt", "catch-all", "system-nodes"] {
        dangling(&cluster, schema, "False").await;
    }
    let before = [cluster.get(&admin(), LEVELS).await, cluster.get(&admin(), SCHEMAS).await];
    let again = Cluster::over(cluster.store(), cluster.ca.clone()).await;
    let after = [again.get(&admin(), LEVELS).await, again.get(&admin(), SCHEMAS).await];
    for (before, after) in before.iter().zip(&after) {
        for (x, y) in before["items"].as_array().unwrap().iter().zip(after["items"].as_array().unwrap()) {
            assert_eq!(x["spec"], y["spec"]);
            assert_eq!((&x["metadata"]["generation"], &x["metadata"]["annotations"]), (&y["metadata"]["generation"], &y["metadata"]["annotations"]));
        }
    }
}

#[tokio::test]
async fn schemas_wait_for_their_levels() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.post(&admin(), SCHEMAS, &schema("of-noxu", "of-noxu", "noxu")).await.0, 201);
    dangling(&cluster, "of-noxu", "True").await;
    let (code, made) = cluster.post(&admin(), LEVELS, &level("of-noxu", Value::Null)).await;
    assert_eq!(code, 201, "{made}");
    dangling(&cluster, "of-noxu", "False").await;
    let (headers, _) = cluster.answer(&user("noxu", &["system:authenticated"]), "/version").await;
    let schema = cluster.get(&admin(), &format!("{SCHEMAS}/of-noxu")).await;
    assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], made["metadata"]["uid"].as_str().unwrap());
    assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], schema["metadata"]["uid"].as_str().unwrap());
    let (headers, _) = cluster.answer(&user("foo", &["system:authenticated"]), "/version").await;
    let default = cluster.get(&admin(), &format!("{SCHEMAS}/global-default")).await;
    assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], default["metadata"]["uid"].as_str().unwrap());
    let metrics = text(&cluster, "/metrics").await;
    assert!(metrics.contains("apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"of-noxu\",priority_level=\"of-noxu\"} 1\n"));
    assert!(metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"of-noxu\"} 3\n"));
    assert_eq!(cluster.call(&admin(), "DELETE", &format!("{LEVELS}/of-noxu"), None).await.0, 200);
    dangling(&cluster, "of-noxu", "True").await;
}

/// Keeps config maps from being written until it is opened.
struct Gate(Arc<tokio::sync::Semaphore>);

#[async_trait::async_trait]
impl Admission for Gate {
    fn name(&self) -> &'static str {
        "Gate"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, _object: &mut Value) -> Result<(), Status> {
        if attributes.ctx.resource.plural == "configmaps" && attributes.ctx.namespace == "a" {
            let _ = self.0.acquire().await;
        }
        Ok(())
    }
}

/// A cluster of few seats, served over TLS. Two users have a priority level each, of one seat and one queue of two.
struct Served {
    cluster: Cluster,
    gate: Arc<tokio::sync::Semaphore>,
    address: SocketAddr,
    _stop: DropGuard,
}

const MAPS: &str = "/api/v1/namespaces/a/configmaps";
const USERS: [&str; 2] = ["flooder", "other"];

impl Served {
    async fn start() -> Served {
        let concurrency = Concurrency { fair: true, reads: 5, writes: 5 };
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let closed = gate.clone();
        let config = apiserver::Config { concurrency, ..Default::default() };
        let cluster = Cluster::installed(config, |builder| builder.parts.admission(Arc::new(Gate(closed)))).await;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        assert_eq!(cluster.post(&admin(), "/api/v1/namespaces", &namespace).await.0, 201);
        for name in USERS {
            let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}]});
            assert_eq!(cluster.post(&admin(), "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.0, 201);
            let queuing = json!({"queues": 1, "handSize": 1, "queueLengthLimit": 2});
            assert_eq!(cluster.post(&admin(), LEVELS, &level(name, queuing)).await.0, 201);
            assert_eq!(cluster.post(&admin(), SCHEMAS, &schema(name, name, name)).await.0, 201);
            dangling(&cluster, name, "False").await;
        }
        let issued = certificate(&cluster, "kube-apiserver", Usage::Server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let tls = ServingTls::new(&issued.cert_pem, &issued.key_pem).unwrap();
        tokio::spawn(cluster.server.clone().listen(listener, tls, cancel.clone()));
        Served { cluster, gate, address, _stop: cancel.drop_guard() }
    }

    /// A request of a user with a certificate, on a connection of its own.
    async fn send(&self, user: &str, method: &str, path: &str, body: Value) -> Response<Incoming> {
        let issued = certificate(&self.cluster, user, Usage::Client);
        let certificates = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).map(|c| c.unwrap().into_owned()).collect::<Vec<_>>();
        let mut roots = rustls::RootCertStore::empty();
        certificates(self.cluster.ca.cert_pem()).into_iter().for_each(|c| roots.add(c).unwrap());
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&issued.cert_pem), PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap())
            .unwrap();
        let tcp = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1").header("content-type", "application/json");
        sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
    }

    async fn write(&self, user: &str, name: &str) -> Response<Incoming> {
        self.send(user, "POST", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})).await
    }

    /// The row of a level or queue in a dump, without its name.
    async fn row(&self, dump: &str, level: &str) -> Vec<String> {
        let text = text(&self.cluster, &format!("{DUMP}/{dump}")).await;
        let line = text.lines().find(|l| l.starts_with(&format!("{level},"))).unwrap_or_else(|| panic!("{text}"));
        line.split(',').skip(1).map(|cell| cell.trim().to_string()).collect()
    }
}

fn certificate(cluster: &Cluster, name: &str, usage: Usage) -> pki::CertKey {
    let wanted = pki::CertRequest {
        cn: name.into(),
        sans: vec!["127.0.0.1".into()],
        usages: vec![usage],
        lifetime: SignedDuration::from_hours(1),
        ..Default::default()
    };
    cluster.ca.issue(&wanted, Timestamp::now()).unwrap()
}

async fn body_of(response: Response<Incoming>) -> String {
    String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_stays_in_its_level() {
    let served = Served::start().await;
    let names: Vec<String> = (0..6).map(|i| format!("m{i}")).collect();
    let mut flood = FuturesUnordered::new();
    for name in &names {
        flood.push(served.write("flooder", name));
    }
    // one is served (and kept at the gate), two wait, and there is no room for the others
    for _ in 0..3 {
        let refused = flood.next().await.unwrap();
        assert_eq!(refused.status(), 429);
        let level = served.cluster.get(&admin(), &format!("{LEVELS}/flooder")).await;
        assert_eq!(refused.headers()["x-kubernetes-pf-prioritylevel-uid"], level["metadata"]["uid"].as_str().unwrap());
        assert!(refused.headers().contains_key("x-kubernetes-pf-flowschema-uid"));
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(body_of(refused).await, "Too many requests, please try again later.\n");
    }
    // active queues, idle, quiescing, waiting, executing, dispatched, rejected, timed out, cancelled
    assert_eq!(served.row("dump_priority_levels", "flooder").await, ["1", "false", "false", "2", "1", "1", "3", "0", "0"]);
    assert_eq!(served.row("dump_queues", "flooder").await[..4], ["0", "2", "1", "1"]);
    let requests = text(&served.cluster, &format!("{DUMP}/dump_requests?includeRequestDetails=1")).await;
    let of_flooder: Vec<&str> = requests.lines().filter(|l| l.starts_with("flooder,")).collect();
    assert_eq!(of_flooder.len(), 3, "{requests}");
    assert!(of_flooder[2].contains("create,") && of_flooder[2].contains(MAPS) && of_flooder[0].contains("0001-01-01T00:00:00Z"), "{requests}");
    let metrics = text(&served.cluster, "/metrics").await;
    for line in [
        "rejected_requests_total{flow_schema=\"flooder\",priority_level=\"flooder\",reason=\"queue-full\"} 3",
        "current_inqueue_requests{flow_schema=\"flooder\",priority_level=\"flooder\"} 2",
        "current_executing_requests{flow_schema=\"flooder\",priority_level=\"flooder\"} 1",
        "nominal_limit_seats{priority_level=\"flooder\"} 1",
    ] {
        assert!(metrics.contains(&format!("apiserver_flowcontrol_{line}\n")), "{line}: {metrics}");
    }
    // meanwhile nobody else is disturbed, one after the other through their own seat
    for _ in 0..20 {
        let answer = served.send("other", "GET", MAPS, Value::Null).await;
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (200, false));
    }
    assert_eq!(served.cluster.call(&admin(), "GET", MAPS, None).await.0, 200);
    served.gate.add_permits(100);
    while let Some(done) = flood.next().await {
        assert_eq!(done.status(), 201);
    }
    assert_eq!(served.row("dump_priority_levels", "flooder").await, ["0", "true", "false", "0", "0", "3", "3", "0", "0"]);
    let metrics = text(&served.cluster, "/metrics").await;
    assert!(metrics.contains("request_wait_duration_seconds_count{flow_schema=\"flooder\",priority_level=\"flooder\",execute=\"true\"} 3\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_longer_than_a_quarter_of_their_time() {
    let served = Served::start().await;
    let first = served.write("flooder", "first");
    let rest = async {
        until("the first is to be served", async || (served.row("dump_priority_levels", "flooder").await[4] == "1").then_some(())).await;
        let started = Instant::now();
        let late = served.send("flooder", "GET", &format!("{MAPS}?timeout=1s"), Value::Null).await;
        assert_eq!(late.status(), 429);
        assert!((Duration::from_millis(250)..Duration::from_secs(1)).contains(&started.elapsed()), "{:?}", started.elapsed());
        // who goes away while waiting leaves the queue
        let gone = tokio::time::timeout(Duration::from_millis(100), served.send("flooder", "GET", MAPS, Value::Null)).await;
        assert!(gone.is_err());
        until("the queue is to be empty", async || (served.row("dump_priority_levels", "flooder").await[3] == "0").then_some(())).await;
        served.gate.add_permits(100);
    };
    let (first, ()) = tokio::join!(first, rest);
    assert_eq!(first.status(), 201);
    assert_eq!(served.row("dump_priority_levels", "flooder").await[5..], ["1", "2", "0", "2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_keeps_no_seat_once_it_has_begun() {
    let served = Served::start().await;
    served.gate.add_permits(100);
    assert_eq!(served.write("flooder", "m").await.status(), 201);
    let mut watch = served.send("flooder", "GET", &format!("{MAPS}?watch=1"), Value::Null).await;
    assert_eq!(watch.status(), 200);
    let first = watch.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"{\"type\":\"ADDED\""), "{first:?}");
    let answer = served.send("flooder", "GET", MAPS, Value::Null).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(served.write("flooder", "n").await.status(), 201);
    let next = watch.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(next.starts_with(b"{\"type\":\"ADDED\""), "{next:?}");
}

#[tokio::test]
async fn without_it_there_is_a_plain_bound() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let closed = gate.clone();
    let config = apiserver::Config { concurrency: Concurrency { fair: false, reads: 5, writes: 1 }, ..Default::default() };
    let cluster = Cluster::installed(config, |builder| builder.parts.admission(Arc::new(Gate(closed)))).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    assert_eq!(cluster.post(&admin(), "/api/v1/namespaces", &namespace).await.0, 201);
    assert_eq!(cluster.get(&admin(), SCHEMAS).await["items"], json!([]));
    let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let (one, two) = (map("one"), map("two"));
    let admin = admin();
    let mut first = Box::pin(cluster.post(&admin, MAPS, &one));
    assert!(futures::poll!(&mut first).is_pending());
    let (headers, _) = cluster.answer(&user("u", &["system:authenticated"]), "/version").await;
    assert!(!headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    let (code, answer) = cluster.post(&user("u", &["system:authenticated"]), MAPS, &two).await;
    assert_eq!((code, answer.as_str()), (429, Some("Too many requests, please try again later.\n")));
    gate.add_permits(100);
    assert_eq!(first.await.0, 201);
    assert_eq!(cluster.post(&user("u", &["system:authenticated"]), MAPS, &two).await.0, 403, "there is room again");
}
