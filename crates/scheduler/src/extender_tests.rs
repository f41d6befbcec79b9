//! The scheduler with extenders: web servers of a few lines that remember what they were asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Web, WebTls};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Config;
use crate::extender::Extender;
use crate::shell_tests::{Fake, node, pod, start_with};

enum Answer {
    Json(Value),
    Code(u16),
    Never,
}

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A web server that answers by `answer`, and what it was asked: paths and bodies.
struct Server {
    url: String,
    asked: Asked,
}

impl Server {
    async fn new(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/scheduler/", listener.local_addr().expect("an address"));
        let (asked, answer) = (Asked::default(), Arc::new(answer));
        let remembered = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, remembered.clone(), answer.clone()));
            }
        });
        Server { url, asked }
    }

    fn extender(&self) -> Extender {
        Extender {
            web: Web::new(&self.url, &WebTls::default(), Duration::from_secs(20)).expect("a URL"),
            filter_verb: String::new(),
            prioritize_verb: String::new(),
            weight: 1,
            bind_verb: String::new(),
            preempt_verb: String::new(),
            node_cache_capable: true,
            managed_resources: BTreeSet::new(),
            ignorable: false,
        }
    }

    fn asked(&self, verb: &str) -> Vec<Value> {
        self.asked.lock().iter().filter(|(path, _)| path.as_str() == format!("/scheduler/{verb}")).map(|(_, body)| body.clone()).collect()
    }
}

async fn serve(mut stream: TcpStream, asked: Asked, answer: Arc<impl Fn(&str, &Value) -> Answer>) -> Option<()> {
    let mut read = Vec::new();
    loop {
        let (head, body) = loop {
            let text = String::from_utf8_lossy(&read).to_string();
            if let Some((head, rest)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_string))?;
                if rest.len() >= length.parse().ok()? {
                    break (head.to_string(), rest.to_string());
                }
            }
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        };
        read.clear();
        let path = head.split(' ').nth(1)?.to_string();
        assert!(head.starts_with("POST ") && head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        asked.lock().push((path.clone(), body.clone()));
        let (code, text) = match answer(&path, &body) {
            Answer::Json(value) => (200, value.to_string()),
            Answer::Code(code) => (code, String::new()),
            Answer::Never => std::future::pending().await,
        };
        stream.write_all(format!("HTTP/1.1 {code} -\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes()).await.ok()?;
    }
}

fn config(extenders: Vec<Extender>) -> Config {
    let mut config = Config::default();
    config.extend(extenders, BTreeSet::new());
    config
}

fn two_nodes() -> Fake {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    fake.put("nodes", node("b"));
    fake
}

fn message(fake: &Fake, pod: &str) -> String {
    fake.pod(pod)["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_string()
}

fn reason(fake: &Fake, pod: &str) -> Value {
    fake.pod(pod)["status"]["conditions"][0]["reason"].clone()
}

#[tokio::test]
async fn a_filter_strikes_out_nodes_and_sees_them_in_full() {
    let server = Server::new(|_, asked| {
        let items: Vec<&Value> = asked["Nodes"]["items"].as_array().expect("nodes").iter().filter(|n| n["metadata"]["name"] == "b").collect();
        // Go does not heed the case of names.
        Answer::Json(json!({"nodes": {"items": items}, "failedNodes": {"a": "too old"}, "error": ""}))
    })
    .await;
    let fake = two_nodes();
    let tasks = start_with(&fake, config(vec![Extender { filter_verb: "filter".into(), node_cache_capable: false, ..server.extender() }]));
    for name in ["p", "q", "r"] {
        fake.put("pods", pod(name, 0, "500m"));
        fake.until("bound", |f| f.is_on(name, "b")).await;
    }
    let asked = server.asked("filter");
    assert_eq!(asked.len(), 3);
    assert_eq!((&asked[0]["Pod"]["metadata"]["name"], &asked[0]["Pod"]["spec"]["containers"][0]["name"]), (&json!("p"), &json!("c")));
    assert_eq!((&asked[0]["NodeNames"], &asked[0]["Nodes"]["items"][0]["status"]["allocatable"]["cpu"]), (&Value::Null, &json!("2")));
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn refusals_are_counted_by_their_reasons_and_any_change_helps() {
    let server = Server::new(|_, asked| {
        let names = asked["NodeNames"].as_array().cloned().unwrap_or_default();
        let left: Vec<Value> = names.into_iter().filter(|n| n == "d").collect();
        Answer::Json(json!({"NodeNames": left, "FailedNodes": {"a": "too old", "b": "too old", "c": "not this"}, "FailedAndUnresolvableNodes": {"c": "never"}, "Error": ""}))
    })
    .await;
    let fake = two_nodes();
    fake.put("nodes", node("c"));
    let mut small = node("small");
    small["status"]["allocatable"]["cpu"] = json!("100m");
    fake.put("nodes", small);
    // Its removal would make room; but room is not what the pod lacks.
    let mut low = pod("low", 1, "1");
    low["spec"]["nodeName"] = json!("c");
    fake.put("pods", low);
    let tasks = start_with(&fake, config(vec![Extender { filter_verb: "filter".into(), ..server.extender() }]));
    fake.put("pods", pod("p", 5, "1"));
    fake.until("refused", |f| reason(f, "p") == "Unschedulable").await;
    assert_eq!(
        message(&fake, "p"),
        "0/4 nodes are available: 1 Insufficient cpu, 1 never, 2 too old. no new claims to deallocate, preemption: 0/4 nodes are available: 2 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
    );
    assert_eq!(fake.pod("low")["spec"]["nodeName"], "c", "nobody is displaced");
    // The extender may see in it what the scheduler does not.
    fake.put("nodes", node("d"));
    fake.until("bound", |f| f.is_on("p", "d")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn scores_change_the_choice_and_a_failure_to_give_them_does_not_matter() {
    let wanted: Arc<Mutex<&'static str>> = Arc::new(Mutex::new("b"));
    let best = wanted.clone();
    let server = Server::new(move |path, _| match path {
        "/scheduler/broken" => Answer::Code(500),
        _ => Answer::Json(json!([{"Host": "a", "Score": if *best.lock() == "a" { 10 } else { 0 }}, {"Host": "b", "Score": if *best.lock() == "b" { 10 } else { 0 }}])),
    })
    .await;
    let fake = two_nodes();
    let good = Extender { prioritize_verb: "prioritize".into(), weight: 7, ..server.extender() };
    let broken = Extender { prioritize_verb: "broken".into(), ..server.extender() };
    let tasks = start_with(&fake, config(vec![broken, good]));
    for (name, node) in [("p1", "b"), ("p2", "b"), ("p3", "b"), ("p4", "a"), ("p5", "a")] {
        *wanted.lock() = node;
        fake.put("pods", pod(name, 0, "100m"));
        fake.until("bound", |f| f.is_on(name, node)).await;
    }
    assert_eq!((server.asked("prioritize").len(), server.asked("broken").len()), (5, 5));
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn binding_is_delegated() {
    let fake = two_nodes();
    let own = fake.clone();
    let server = Server::new(move |_, asked| {
        let mut pod = own.pod(asked["PodName"].as_str().expect("a name"));
        if pod["metadata"]["annotations"].is_null() {
            pod["metadata"]["annotations"] = json!({"seen": "yes"});
            own.put("pods", pod);
            return Answer::Json(json!({"Error": "not yet"}));
        }
        pod["spec"]["nodeName"] = asked["Node"].clone();
        pod["metadata"]["annotations"] = json!({"by": "the extender"});
        own.put("pods", pod);
        Answer::Json(json!({}))
    })
    .await;
    let tasks = start_with(&fake, config(vec![Extender { bind_verb: "bind".into(), ..server.extender() }]));
    fake.put("pods", pod("p", 0, "1"));
    fake.until("bound", |f| f.pod("p")["spec"]["nodeName"].is_string()).await;
    assert_eq!(fake.pod("p")["metadata"]["annotations"]["by"], "the extender");
    fake.until("told", |f| f.was_told("p FailedScheduling: not yet") && f.was_told("p Scheduled: Successfully assigned default/p to ")).await;
    let asked = server.asked("bind");
    assert_eq!((asked.len(), &asked[0]["PodNamespace"], &asked[0]["PodUID"]), (2, &json!("default"), &json!("p")));
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_error_fails_the_pod_unless_it_is_ignorable() {
    let healthy = Arc::new(Mutex::new(false));
    let well = healthy.clone();
    let server = Server::new(move |_, asked| match *well.lock() {
        true => Answer::Json(json!({"NodeNames": asked["NodeNames"]})),
        false => Answer::Json(json!({"Error": "out of order"})),
    })
    .await;
    let fake = two_nodes();
    let gone = Server { url: "http://127.0.0.1:1".into(), asked: Asked::default() };
    let ignored = Extender { filter_verb: "filter".into(), bind_verb: "bind".into(), ignorable: true, ..gone.extender() };
    let tasks = start_with(&fake, config(vec![ignored, Extender { filter_verb: "filter".into(), ..server.extender() }]));
    fake.put("pods", pod("p", 0, "1"));
    fake.until("failed", |f| reason(f, "p") == "SchedulerError").await;
    assert_eq!(message(&fake, "p"), "out of order");
    *healthy.lock() = true;
    fake.until("bound, by the API server", |f| f.pod("p")["spec"]["nodeName"].is_string()).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_code_and_silence_are_errors() {
    let server = Server::new(|path, _| if path.ends_with("code") { Answer::Code(503) } else { Answer::Never }).await;
    for (verb, said) in [("code", "failed code with extender at URL {}/code, code 503"), ("silence", "Post \"{}/silence\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")] {
        let fake = two_nodes();
        let web = Web::new(&server.url, &WebTls::default(), Duration::from_millis(300)).expect("a URL");
        let tasks = start_with(&fake, config(vec![Extender { filter_verb: verb.into(), web, ..server.extender() }]));
        fake.put("pods", pod("p", 0, "1"));
        fake.until("failed", |f| reason(f, "p") == "SchedulerError").await;
        assert_eq!(message(&fake, "p"), said.replace("{}", server.url.trim_end_matches('/')));
        assert!(fake.pod("p")["spec"]["nodeName"].is_null());
        tasks.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn only_pods_with_its_resources_are_its_concern() {
    let server = Server::new(|_, _| Answer::Json(json!({"NodeNames": ["b"], "FailedNodes": {"a": "no"}}))).await;
    let fake = two_nodes();
    let managed = BTreeSet::from(["example.com/gpu".to_string()]);
    let mut config = Config::default();
    config.extend(vec![Extender { filter_verb: "filter".into(), managed_resources: managed.clone(), ..server.extender() }], managed);
    let tasks = start_with(&fake, config);
    fake.put("pods", pod("plain", 0, "100m"));
    fake.until("bound", |f| f.pod("plain")["spec"]["nodeName"].is_string()).await;
    assert_eq!(server.asked("filter").len(), 0);
    let mut wanting = pod("wanting", 0, "100m");
    wanting["spec"]["containers"][0]["resources"] = json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}});
    fake.put("pods", wanting);
    // No node has it: the scheduler does not look.
    fake.until("bound", |f| f.is_on("wanting", "b")).await;
    assert_eq!(server.asked("filter").len(), 1);
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_extender_chooses_whom_to_displace() {
    let server = Server::new(|_, asked| {
        let victims = &asked["NodeNameToVictims"];
        assert_eq!(victims.as_object().map(|m| m.len()), Some(2), "{asked}");
        assert_eq!((&victims["a"]["Pods"][0]["metadata"]["name"], &asked["NodeNameToMetaVictims"]), (&json!("on-a"), &Value::Null));
        Answer::Json(json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "on-b"}], "NumPDBViolations": 0}}}))
    })
    .await;
    let fake = two_nodes();
    // By itself the scheduler would displace the less important one.
    for (name, priority, node) in [("on-a", 1, "a"), ("on-b", 3, "b")] {
        let mut sitting = pod(name, priority, "2");
        sitting["spec"]["nodeName"] = json!(node);
        fake.put("pods", sitting);
    }
    let tasks = start_with(&fake, config(vec![Extender { preempt_verb: "preempt".into(), node_cache_capable: false, ..server.extender() }]));
    fake.put("pods", pod("high", 10, "1"));
    fake.until("bound", |f| f.is_on("high", "b")).await;
    assert_eq!((fake.pod("on-b"), &fake.pod("on-a")["spec"]["nodeName"]), (Value::Null, &json!("a")));
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_extender_can_forbid_to_displace_anybody() {
    let server = Server::new(|_, _| Answer::Json(json!({"NodeNameToMetaVictims": {}}))).await;
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    let mut low = pod("low", 1, "2");
    low["spec"]["nodeName"] = json!("a");
    fake.put("pods", low);
    let tasks = start_with(&fake, config(vec![Extender { preempt_verb: "preempt".into(), ..server.extender() }]));
    fake.put("pods", pod("high", 10, "1"));
    fake.until("refused", |f| reason(f, "high") == "Unschedulable").await;
    assert_eq!(message(&fake, "high"), "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: no candidate node for preemption");
    assert_eq!(server.asked("preempt")[0]["NodeNameToMetaVictims"], json!({"a": {"Pods": [{"UID": "low"}], "NumPDBViolations": 0}}));
    assert_eq!(fake.pod("low")["spec"]["nodeName"], "a");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_changes_while_an_extender_thinks_is_heeded() {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    let own = fake.clone();
    let first = Arc::new(Mutex::new(true));
    let server = Server::new(move |_, asked| {
        if std::mem::take(&mut *first.lock()) {
            // The only change that there will be comes before the answer does.
            own.put("nodes", node("b"));
        }
        let left: Vec<Value> = asked["NodeNames"].as_array().cloned().unwrap_or_default().into_iter().filter(|n| n == "b").collect();
        Answer::Json(json!({"NodeNames": left, "FailedNodes": {"a": "no"}}))
    })
    .await;
    let tasks = start_with(&fake, config(vec![Extender { filter_verb: "filter".into(), ..server.extender() }]));
    fake.put("pods", pod("p", 0, "1"));
    fake.until("bound", |f| f.is_on("p", "b")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}
