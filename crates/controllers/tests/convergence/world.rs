//! A real API server over a store in memory, every controller behind a client that is lied to, and a
//! test that plays scheduler and kubelet and is told the truth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use apiserver::{InProcess, Server, UserInfo};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use jiff::{SignedDuration, Timestamp};
use reconcile::{Informers, Tasks};
use serde_json::{Map, Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::faults::{self, Faults};
use crate::kubelet;

/// The namespace that scenarios play in.
pub const PODS: &str = "/api/v1/namespaces/test/pods";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/test/configmaps";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/test/deployments";
pub const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/test/replicasets";
pub const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/test/statefulsets";
pub const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/test/daemonsets";
pub const REVISIONS: &str = "/apis/apps/v1/namespaces/test/controllerrevisions";
pub const JOBS: &str = "/apis/batch/v1/namespaces/test/jobs";
pub const CRON_JOBS: &str = "/apis/batch/v1/namespaces/test/cronjobs";
pub const CLAIMS: &str = "/api/v1/namespaces/test/persistentvolumeclaims";
pub const VOLUMES: &str = "/api/v1/persistentvolumes";
pub const SERVICES: &str = "/api/v1/namespaces/test/services";
pub const ENDPOINTS: &str = "/api/v1/namespaces/test/endpoints";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/test/endpointslices";
pub const QUOTAS: &str = "/api/v1/namespaces/test/resourcequotas";
pub const BUDGETS: &str = "/apis/policy/v1/namespaces/test/poddisruptionbudgets";
pub const AUTOSCALERS: &str = "/apis/autoscaling/v2/namespaces/test/horizontalpodautoscalers";
pub const DEVICE_CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/test/resourceclaims";
pub const ACCOUNTS: &str = "/api/v1/namespaces/test/serviceaccounts";
pub const SECRETS: &str = "/api/v1/namespaces/test/secrets";
pub const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
pub const SERVICE_RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
pub const NODES: &str = "/api/v1/nodes";
/// What end states are compared by.
const LOOKED_AT: [&str; 22] = [
    PODS, CONFIG_MAPS, DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS, REVISIONS, JOBS, CRON_JOBS, CLAIMS, VOLUMES, SERVICES, ENDPOINTS,
    SLICES, QUOTAS, BUDGETS, AUTOSCALERS, DEVICE_CLAIMS, ACCOUNTS, SECRETS, REQUESTS, SERVICE_RANGES,
];

/// Terminated pods that stay.
pub const KEPT: usize = 20;
/// How long anything may take: seconds on a machine of its own, far more on one that is busy, where what is refused often
/// (by a quota) comes to be tried again minutes later.
const PATIENCE: Duration = Duration::from_secs(300);
/// What takes longer is told of.
const SLOW: Duration = Duration::from_secs(2);
/// How long an end state must last.
const QUIET: Duration = Duration::from_millis(250);
const SEEDS: [u64; 3] = [1, 2, 3];

/// Who finds nodes for pods.
#[derive(Clone, Copy, PartialEq)]
enum Nodes {
    /// The test: any will do.
    Played,
    /// The scheduler, which is lied to as well.
    Scheduled,
}

/// One cluster.
pub struct World {
    server: Arc<Server>,
    tasks: Tasks,
    faults: Arc<Faults>,
    /// How much of a processor each pod is said to use, in thousandths.
    pub use_of_pods: Arc<AtomicI64>,
    _stop: DropGuard,
}

/// Plays a scenario without faults and then with them: the end must be the same.
pub async fn converges(scenario: impl AsyncFn(Arc<World>)) {
    converges_by(Nodes::Played, scenario).await;
}

/// The same, with the scheduler.
pub async fn converges_scheduled(scenario: impl AsyncFn(Arc<World>)) {
    converges_by(Nodes::Scheduled, scenario).await;
}

async fn converges_by(nodes: Nodes, scenario: impl AsyncFn(Arc<World>)) {
    let _ = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_ansi(false).try_init();
    let began = Instant::now();
    let world = World::start(0, nodes).await;
    scenario(world.clone()).await;
    let wanted = world.at_rest().await;
    assert!(!wanted.is_empty(), "there is something to compare");
    world.end().await;
    let plain = began.elapsed();
    for seed in SEEDS {
        let began = Instant::now();
        let world = World::start(seed, nodes).await;
        scenario(world.clone()).await;
        world.comes_to(&wanted, seed).await;
        let faults = world.faults.done.load(Ordering::Relaxed);
        assert!(faults > 50, "only {faults} requests failed");
        println!("seed {seed}: {faults} faults, {:?} (without {plain:?})", began.elapsed());
        world.end().await;
    }
}

impl World {
    async fn start(seed: u64, nodes: Nodes) -> Arc<World> {
        let ca = pki::Ca::new("kubernetes", Timestamp::now(), SignedDuration::from_hours(24)).expect("a CA");
        let signer = Arc::new(pki::jwt::Signer::from_pem(&pki::jwt::new_key_pem().expect("a key")).expect("a signer"));
        let mut builder = apiserver::Builder::new(apiserver::Config::default(), store::memory::new()).expect("a builder");
        let config = registry::Config::new(ca.cert_pem(), signer.clone(), "192.0.2.1".parse().expect("an address"));
        registry::install(&mut builder, config).expect("the registry");
        let server = builder.build().expect("a server");
        let stop = CancellationToken::new();
        let (running, token) = (server.clone(), stop.clone());
        tokio::spawn(async move { running.run(token).await });
        server.ready().await;
        let world = World { server: server.clone(), tasks: Tasks::new(), faults: Faults::new(seed), use_of_pods: Arc::default(), _stop: stop.drop_guard() };
        for node in ["n0", "n1", "n2"] {
            world.node(node).await;
        }
        world.create("/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "test"}})).await;

        let user = |name: &str| UserInfo::new(name, &["system:authenticated"]);
        let account = |name: &str| {
            let groups = ["system:authenticated", "system:serviceaccounts", "system:serviceaccounts:kube-system"];
            UserInfo::new(&format!("system:serviceaccount:kube-system:{name}"), &groups)
        };
        let use_of_pods = world.use_of_pods.clone();
        let lied_to = world.faults.clone();
        let client = move |user: UserInfo| faults::client(&server, &lied_to, &use_of_pods, user);
        let informers = Informers::new(client(user("system:kube-controller-manager")), world.tasks.clone());
        let config = controllers::Config {
            controllers: controllers::Selection::new(&["*", "bootstrap-signer-controller", "token-cleaner-controller"]).expect("known names"),
            root_ca: Some(ca.cert_pem().into()),
            signing: Some(controllers::csr::Signing::by(controllers::csr::Authority::Pem(ca.cert_pem().into(), ca.key_pem().into()))),
            token_signer: Some(signer),
            node_ranges: Some(controllers::NodeRanges { cluster: ("10.244.0.0".parse().expect("an address"), 22), node_mask: 24 }),
            autoscaling: controllers::podautoscaler::Settings {
                sync_period: Duration::from_millis(200),
                downscale_stabilization: SignedDuration::ZERO,
                cpu_initialization_period: SignedDuration::ZERO,
                initial_readiness_delay: SignedDuration::ZERO,
                ..Default::default()
            },
            pod_gc: controllers::pod_gc::Settings {
                terminated: Some(KEPT),
                period: Duration::from_millis(200),
                quarantine: SignedDuration::from_millis(300),
            },
            ..controllers::Config::default()
        };
        controllers::start(&|name| client(account(name)), &informers, &world.tasks, &config);
        // Its rights come from whoever runs it.
        let provisioner = client(UserInfo::new("local-path-provisioner", &["system:masters"]));
        controllers::volume::start_local_path(provisioner, &informers, &world.tasks);
        if nodes == Nodes::Scheduled {
            let scheduler = client(user("system:kube-scheduler"));
            let (initial_backoff, max_backoff) = (Duration::from_millis(50), Duration::from_millis(500));
            let config = scheduler::Config { initial_backoff, max_backoff, ..scheduler::Config::default() };
            scheduler::start(scheduler.clone(), &Informers::new(scheduler, world.tasks.clone()), &world.tasks, config);
        }
        let honest = faults::client(&world.server, &Faults::new(0), &world.use_of_pods, UserInfo::new("kubelet", &["system:masters"]));
        kubelet::start(honest, &world.tasks, nodes == Nodes::Played);
        Arc::new(world)
    }

    async fn end(&self) {
        assert!(self.tasks.shutdown(Duration::from_secs(10)).await, "the controllers end when they are told to");
    }

    /// A node that is well, with nothing behind it.
    pub async fn node(&self, name: &str) {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": Timestamp::now(), "lastTransitionTime": Timestamp::now(),
            "reason": "KubeletReady", "message": ""});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [ready], "capacity": {"pods": "110", "cpu": "4", "memory": "8Gi"}, "allocatable": {"pods": "110", "cpu": "4", "memory": "8Gi"}}});
        self.create(NODES, node).await;
    }

    /// A request of an administrator; never fails but for good reasons.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", content).header("accept", "application/json");
        let mut request = request.body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()))).expect("a request");
        request.extensions_mut().insert(InProcess(UserInfo::new("admin", &["system:masters", "system:authenticated"])));
        let response = self.server.handle(request).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// Makes an object; the answer is what was made.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        let (code, answer) = self.call("POST", path, Some(&object)).await;
        assert_eq!(code, 201, "{path}: {answer}");
        answer
    }

    /// Changes an object by a merge patch.
    pub async fn patch(&self, path: &str, patch: Value) {
        let (code, answer) = self.call("PATCH", path, Some(&patch)).await;
        assert_eq!(code, 200, "{path}: {answer}");
    }

    /// Deletes an object by a policy: `Background`, `Foreground` or `Orphan`.
    pub async fn delete(&self, path: &str, policy: &str) {
        let (code, answer) = self.call("DELETE", path, Some(&json!({"propagationPolicy": policy}))).await;
        assert!(matches!(code, 200 | 202), "{path}: {code} {answer}");
    }

    /// An object, or nothing.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let (code, answer) = self.call("GET", path, None).await;
        (code == 200).then_some(answer)
    }

    /// A config map that is there.
    pub async fn get_map(&self, name: &str) -> Value {
        self.get(&format!("{CONFIG_MAPS}/{name}")).await.expect("the map")
    }

    /// A number at a JSON pointer in an object, 0 when there is none.
    pub async fn number(&self, path: &str, pointer: &str) -> i64 {
        self.get(path).await.and_then(|o| o.pointer(pointer).and_then(Value::as_i64)).unwrap_or(0)
    }

    /// The objects of a collection.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        let all = self.get(path).await.unwrap_or_default();
        all["items"].as_array().cloned().unwrap_or_default()
    }

    /// The pods that are not on their way out and have a label.
    pub async fn pods(&self, key: &str, value: &str) -> Vec<Value> {
        let mut pods = self.list(PODS).await;
        pods.retain(|p| p["metadata"]["labels"][key] == value && p["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let began = Instant::now();
        while !is_so().await {
            if began.elapsed() > PATIENCE {
                panic!("in vain waited until {what}; there is\n{}", text(&self.state().await));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if began.elapsed() > SLOW {
            println!("waited {:?} until {what}", began.elapsed());
        }
    }

    /// Waits until an object is gone.
    pub async fn until_gone(&self, path: &str) {
        self.until(&format!("{path} is gone"), async || { self.get(path).await.is_none() }).await;
    }

    /// What there is, without what differs from one run to the next.
    async fn state(&self) -> BTreeMap<String, usize> {
        let mut state = BTreeMap::new();
        for path in LOOKED_AT {
            for object in self.list(path).await.iter().filter(|o| o["metadata"]["name"] != "kube-root-ca.crt") {
                let kind = path.rsplit('/').next().unwrap_or("");
                *state.entry(format!("{kind} {}", normal(object))).or_insert(0) += 1;
            }
        }
        state
    }

    /// The state when nothing changes any more.
    async fn at_rest(&self) -> BTreeMap<String, usize> {
        let (began, mut state, mut since) = (Instant::now(), self.state().await, Instant::now());
        while since.elapsed() < QUIET * 2 {
            assert!(began.elapsed() < PATIENCE, "without faults it does not come to rest");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.state().await;
            if now != state {
                (state, since) = (now, Instant::now());
            }
        }
        state
    }

    /// Waits until the state is `wanted`, and stays so.
    async fn comes_to(&self, wanted: &BTreeMap<String, usize>, seed: u64) {
        let (began, mut since, mut told) = (Instant::now(), Instant::now(), false);
        while since.elapsed() < QUIET {
            let state = self.state().await;
            if state == *wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            since = Instant::now();
            if began.elapsed() > PATIENCE {
                panic!("with seed {seed} it ends otherwise.\n{}", difference(wanted, &state));
            }
            if began.elapsed() > SLOW * 2 && !std::mem::replace(&mut told, true) {
                println!("seed {seed}: not yet the end.\n{}", difference(wanted, &state));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if began.elapsed() > SLOW {
            println!("waited {:?} for the end", began.elapsed());
        }
    }
}

fn difference(wanted: &BTreeMap<String, usize>, state: &BTreeMap<String, usize>) -> String {
    let without = |a: &BTreeMap<String, usize>, b: &BTreeMap<String, usize>| text(&a.iter().filter(|(k, n)| b.get(*k) != Some(n)).map(|(k, n)| (k.clone(), *n)).collect());
    format!("Wanted\n{}\nbut there is\n{}", without(wanted, state), without(state, wanted))
}

fn text(state: &BTreeMap<String, usize>) -> String {
    state.iter().map(|(object, count)| format!("{count} × {object}\n")).collect()
}

/// An object without uids, times, versions and the random ends of names.
fn normal(object: &Value) -> Value {
    let mut normal = object.clone();
    let meta = &object["metadata"];
    if let Some(prefix) = meta["generateName"].as_str() {
        normal["metadata"]["name"] = format!("{prefix}*").into();
    }
    if let Some(observed) = object["status"].get("observedGeneration") {
        normal["status"]["observedGeneration"] = (*observed == meta["generation"]).into();
    }
    if object["type"] == "kubernetes.io/service-account-token" || object["status"]["certificate"].is_string() {
        // Keys and signatures are no two times the same.
        normal["data"] = object["data"].as_object().map(|data| data.keys().cloned().collect::<Vec<_>>()).into();
        normal["status"]["certificate"] = object["status"]["certificate"].is_string().into();
    }
    strip(&mut normal);
    normal
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let differs = |key: &str| {
                let fields = ["uid", "resourceVersion", "generation", "managedFields", "creationTimestamp", "nodeName", "request", "resourceClaimName", "clusterIP", "clusterIPs"];
                fields.contains(&key) || ["controller-uid", "service-account.uid", "Time", "-time"].iter().any(|end| key.ends_with(end))
            };
            fields.retain(|key, _| !differs(key));
            if let Some(deleted) = fields.get_mut("deletionTimestamp") {
                *deleted = true.into();
            }
            fields.values_mut().for_each(strip);
            // Which of them came first is no matter.
            if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
                conditions.sort_by_key(|c| c["type"].to_string());
            }
            if fields.get("annotations").is_some_and(|a| a.as_object().is_some_and(Map::is_empty)) {
                fields.remove("annotations");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::String(text) if text.starts_with("kube-api-access-") => *text = "kube-api-access-*".into(),
        // The name of a volume that was made for a claim has the claim's uid in it.
        Value::String(text) if text.contains("pvc-") => {
            let parts = text.split("pvc-").enumerate().map(|(at, part)| part.get(36..).filter(|_| at > 0).unwrap_or(part));
            *text = parts.collect::<Vec<_>>().join("pvc-");
        }
        _ => {}
    }
}
