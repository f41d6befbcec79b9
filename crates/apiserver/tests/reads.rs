//! Lists, watches, representations, discovery and health.
mod common;

use common::{Cluster, cluster};
use http::Method;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn add(c: &Cluster, name: &str) -> Value {
    c.post(MAPS, json!({"metadata": {"name": name, "labels": {"l": name}}})).await.ok()
}

fn version(v: &Value) -> u64 {
    v["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_of_a_list_are_one_snapshot() {
    let c = cluster().await;
    for name in ["a", "b", "c", "d"] {
        add(&c, name).await;
    }
    let first = c.get(&format!("{MAPS}?limit=2")).await.ok();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["kind"], "ConfigMapList");
    assert_eq!(first["metadata"]["remainingItemCount"], 2);
    assert!(first["items"][0].get("kind").is_none());
    c.delete(&format!("{MAPS}/c"), Value::Null).await.ok();
    add(&c, "e").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c.get(&format!("{MAPS}?limit=2&continue={token}")).await.ok();
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(version(&second), version(&first));
    assert!(second["metadata"].get("continue").is_none());
    let now = c.get(&format!("{MAPS}?labelSelector=l%20in%20(a,e)")).await.ok();
    assert_eq!(names(&now), ["a", "e"]);
    assert_eq!(names(&c.get(&format!("{MAPS}?fieldSelector=metadata.name%3Db")).await.ok()), ["b"]);
    let then = format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    assert_eq!(names(&c.get(&then).await.ok()), ["a", "b", "c", "d"]);
    assert_eq!(names(&c.get("/api/v1/configmaps?resourceVersion=0").await.ok()).len(), 4);
    assert_eq!(names(&c.get("/api/v1/namespaces/other/configmaps").await.ok()).len(), 0);
    assert_eq!(c.get(&format!("{MAPS}?resourceVersion=99999")).await.code, 504);
}

#[tokio::test]
async fn pages_end_with_the_history_and_may_go_on_with_what_is_there() {
    let c = cluster().await;
    for name in ["a", "b", "c", "d"] {
        add(&c, name).await;
    }
    let first = c.get(&format!("{MAPS}?limit=1")).await.ok();
    let token = first["metadata"]["continue"].as_str().unwrap();
    // Nothing happens to these objects: only the history of the whole store has moved on.
    c.post("/api/v1/namespaces", json!({"metadata": {"name": "other"}})).await.ok();
    c.server.compact(c.store.revision().await.unwrap()).await.unwrap();
    let exact = c.get(&format!("{MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first))).await;
    assert_eq!((exact.code, exact.json()["reason"].as_str()), (410, Some("Expired")));
    let late = c.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((late.code, late.json()["reason"].as_str()), (410, Some("Expired")));
    let again = late.json()["metadata"]["continue"].as_str().unwrap().to_string();
    let second = c.get(&format!("{MAPS}?limit=1&continue={again}")).await.ok();
    assert_eq!((names(&second), &second["metadata"]["remainingItemCount"]), (vec!["b"], &json!(2)));
    assert_ne!(version(&second), version(&first));
    let third = c.get(&format!("{MAPS}?continue={}", second["metadata"]["continue"].as_str().unwrap())).await.ok();
    assert_eq!((names(&third), version(&third)), (vec!["c", "d"], version(&second)));
}

#[tokio::test]
async fn a_watch_sees_every_change() {
    let c = cluster().await;
    let first = add(&c, "a").await;
    let mut live = c.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&first))).await;
    let mut picky = c.watch(&format!("{MAPS}?watch=1&resourceVersion={}&labelSelector=l%3Db", version(&first))).await;
    let mut initial = c.watch(&format!("{MAPS}?watch=1")).await;
    assert_eq!(initial.brief().await, "ADDED a");
    add(&c, "b").await;
    assert_eq!(live.brief().await, "ADDED b");
    assert_eq!(picky.brief().await, "ADDED b");
    assert_eq!(initial.brief().await, "ADDED b");
    let relabel = json!({"metadata": {"labels": {"l": "other"}}});
    c.patch(&format!("{MAPS}/b"), "merge-patch+json", relabel).await.ok();
    assert_eq!(live.brief().await, "MODIFIED b");
    assert_eq!(picky.brief().await, "DELETED b");
    c.delete(&format!("{MAPS}/a"), Value::Null).await.ok();
    let gone = live.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    assert!(version(&gone["object"]) > version(&first));
    // history from the start
    let mut replay = c.watch(&format!("{MAPS}?watch=1&resourceVersion={}", version(&first))).await;
    for expected in ["ADDED b", "MODIFIED b", "DELETED a"] {
        assert_eq!(replay.brief().await, expected);
    }
}

#[tokio::test]
async fn streaming_lists_and_bookmarks() {
    let c = cluster().await;
    add(&c, "a").await;
    let mut events = c
        .watch(&format!("{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=3"))
        .await;
    assert_eq!(events.brief().await, "ADDED a");
    let mark = events.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["kind"], "ConfigMap");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    // other resources' changes move the bookmark too
    let last = c.post("/api/v1/namespaces/default/secrets", json!({"metadata": {"name": "s"}})).await.ok();
    let before_end = events.next().await.unwrap();
    assert_eq!(before_end["type"], "BOOKMARK");
    assert!(version(&before_end["object"]) >= version(&last));
    assert!(events.next().await.is_none());
    assert_eq!(c.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await.code, 422);
}

#[tokio::test]
async fn a_watch_from_forgotten_history_is_gone() {
    let store = store::memory::new();
    store.txn(store::Txn::put("/registry/configmaps/default/a", br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default"}}"#.to_vec())).await.unwrap();
    store.txn(store::Txn::put("/registry/x", b"y".to_vec())).await.unwrap();
    let c = common::cluster_on(store, |_| {}).await;
    let mut events = c.watch(&format!("{MAPS}?watch=1&resourceVersion=1")).await;
    let event = events.next().await.unwrap();
    assert_eq!(event["type"], "ERROR");
    assert_eq!((&event["object"]["code"], &event["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn representations() {
    let c = cluster().await;
    add(&c, "a").await;
    let as_is = |accept: &'static str| {
        let c = &c;
        async move { c.send(Method::GET, &format!("{MAPS}/a"), &[("accept", accept)], Vec::new()).await }
    };
    let yaml = as_is("application/yaml").await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    assert!(yaml.text().contains("kind: ConfigMap"), "{}", yaml.text());
    let protobuf = as_is("application/vnd.kubernetes.protobuf").await;
    assert!(protobuf.bytes.starts_with(b"k8s\0"));
    let table = as_is("application/json;as=Table;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    let partial = as_is("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadata");
    let accept = [("accept", "application/vnd.kubernetes.protobuf")];
    let list = c.send(Method::GET, MAPS, &accept, Vec::new()).await;
    assert!(list.bytes.starts_with(b"k8s\0"), "{}", list.text());
    let error = c.send(Method::GET, &format!("{MAPS}/none"), &accept, Vec::new()).await;
    assert!(error.code == 404 && error.bytes.starts_with(b"k8s\0"));
    let metadata = [("accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    let list = c.send(Method::GET, MAPS, &metadata, Vec::new()).await;
    assert!(list.bytes.starts_with(b"k8s\0") && list.text().contains("PartialObjectMetadataList"), "{}", list.text());
    // a protobuf object comes in, too
    let sent = [("content-type", "application/vnd.kubernetes.protobuf")];
    let copy = String::from_utf8_lossy(&protobuf.bytes).contains("ConfigMap");
    assert!(copy);
    let same = c.send(Method::PUT, &format!("{MAPS}/a"), &sent, protobuf.bytes).await.ok();
    assert_eq!(same["metadata"]["name"], "a");
    let pretty = c.get(&format!("{MAPS}/a?pretty=true")).await.text();
    assert!(pretty.starts_with("{\n  \"kind\": \"ConfigMap\""), "{pretty}");
    let big = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(200_000)}});
    c.post(MAPS, big).await.ok();
    let zipped = c.send(Method::GET, MAPS, &[("accept-encoding", "gzip")], Vec::new()).await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    assert!(zipped.bytes.len() < 20_000);
}

#[tokio::test]
async fn yaml_means_the_same_when_it_comes_back() {
    let c = cluster().await;
    let odd = ["true", "null", "~", "1", "0x1F", "1e3", "1_000", "yes", "on", ".5", "2020-01-01", "a: b", "- a", "#c", " x ", "", "a\nb\n", "\t", "é\u{1F600}", "'", "\"", "0o7", "=", "<<", "!t", "&a", "*a", "%", "@", "`", "{", "[", "a #b", ":", "?", "-", "---", "|", ">", "Infinity", ".inf", ".nan", "\u{7f}", "a\r\nb"];
    let data: serde_json::Map<String, Value> = odd.iter().enumerate().map(|(i, v)| (format!("k{i}"), (*v).into())).collect();
    let made = c.post(MAPS, json!({"metadata": {"name": "y"}, "data": data})).await.ok();
    let yaml = c.send(Method::GET, &format!("{MAPS}/y"), &[("accept", "application/yaml")], Vec::new()).await;
    let back = c.send(Method::PUT, &format!("{MAPS}/y"), &[("content-type", "application/yaml")], yaml.bytes).await.ok();
    assert_eq!(back["data"], made["data"]);
}

#[tokio::test]
async fn events_are_one_store_in_two_groups() {
    let c = cluster().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "Started", "message": "hello", "type": "Normal", "source": {"component": "me"}});
    c.post("/api/v1/namespaces/default/events", event).await.ok();
    let new = c.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.ok();
    assert_eq!(new["apiVersion"], "events.k8s.io/v1");
    assert_eq!(new["note"], "hello");
    assert_eq!(new["regarding"]["name"], "p");
    let list = c.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp,reason%3DStarted").await.ok();
    assert_eq!(names(&list), ["e"]);
    let list = c.get("/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=regarding.name%3Dp").await.ok();
    assert_eq!(names(&list), ["e"]);
}

#[tokio::test]
async fn documents() {
    let c = cluster().await;
    assert_eq!(c.get("/version").await.ok()["minor"], "36");
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(c.get(path).await.text(), "ok");
    }
    assert!(c.get("/readyz?verbose").await.text().ends_with("readyz check passed\n"));
    assert_eq!(c.get("/healthz/etcd").await.text(), "ok");
    for path in ["/healthz?verbose", "/livez?verbose", "/readyz?verbose"] {
        let text = c.get(path).await.text();
        assert!(text.contains("[+]poststarthook/crd-informer-synced ok\n[+]") && text.contains("[+]autoregister-completion ok\n"), "{text}");
    }
    let health = c.get("/metrics/slis").await.text();
    assert!(health.contains("kubernetes_healthcheck{name=\"etcd\",type=\"healthz\"} 1\n"), "{health}");
    assert!(health.contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"readyz\"}"), "{health}");
    assert!(c.get("/statusz").await.text().contains("\nEmulation version: 1.36\n"));
    assert_eq!(c.get("/flagz").await.code, 404, "no flags were given");
    let status = c.get("/version?timeout=30").await;
    assert_eq!((status.code, status.json()["message"].clone()), (400, json!("invalid timeout specified in the request URL - time: missing unit in duration \"30\"")));
    assert_eq!(c.get("/version?timeout=0s").await.code, 200);
    assert_eq!(c.get("/api").await.ok()["versions"], json!(["v1"]));
    let groups = c.get("/apis").await.ok();
    assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "apps"));
    assert_eq!(c.get("/apis/apps").await.ok()["preferredVersion"]["groupVersion"], "apps/v1");
    let core = c.get("/api/v1").await.ok();
    assert!(core["resources"].as_array().unwrap().iter().any(|r| r["name"] == "pods/exec"));
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
    let aggregated = c.send(Method::GET, "/apis", &[("accept", accept)], Vec::new()).await;
    assert!(aggregated.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    let etag = aggregated.headers["etag"].to_str().unwrap().to_string();
    let again = c.send(Method::GET, "/apis", &[("accept", accept), ("if-none-match", &etag)], Vec::new()).await;
    assert_eq!(again.code, 304);
    assert_eq!(c.get("/openapi/v2").await.ok()["swagger"], "2.0");
    let index = c.get("/openapi/v3").await.ok();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!(c.get(url).await.ok()["openapi"], "3.0.0");
    c.get(MAPS).await.ok();
    assert!(c.get("/metrics").await.text().contains("apiserver_request_total{code=\"200\""));
    assert_eq!(c.get("/nothing").await.code, 404);
    assert!(c.get("/").await.ok()["paths"].as_array().unwrap().len() > 20);
}

#[tokio::test]
async fn metrics_tell_requests_apart_as_upstream_does() {
    let c = cluster().await;
    add(&c, "a").await;
    c.get(MAPS).await.ok();
    c.get(&format!("{MAPS}/a")).await.ok();
    c.get(&format!("{MAPS}/none")).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}});
    c.post(&format!("{MAPS}?dryRun=All"), map.clone()).await.ok();
    for (kind, agent) in [("application/apply-patch+yaml", "kube-scheduler/v1"), ("application/merge-patch+json", "x")] {
        let headers = [("content-type", kind), ("user-agent", agent)];
        let answer = c.send(Method::PATCH, &format!("{MAPS}/b?fieldManager=m"), &headers, map.to_string().into_bytes()).await;
        assert!(answer.code < 300, "{}", answer.text());
    }
    c.get("/api/v1/endpoints").await.ok();
    let text = c.get("/metrics").await.text();
    let common = "component=\"apiserver\",group=\"\",resource=\"configmaps\"";
    for (code, dry_run, client, scope, verb) in [
        (201, "", "", "resource", "POST"),
        (201, "All", "", "resource", "POST"),
        (200, "", "", "namespace", "LIST"),
        (200, "", "", "resource", "GET"),
        (404, "", "", "resource", "GET"),
        (201, "", "kube-scheduler", "resource", "APPLY"),
        (200, "", "", "resource", "PATCH"),
    ] {
        let line = format!("apiserver_request_total{{code=\"{code}\",dry_run=\"{dry_run}\",system_client=\"{client}\",{common},scope=\"{scope}\",subresource=\"\",verb=\"{verb}\",version=\"v1\"}} 1\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    for line in [
        &format!("apiserver_response_sizes_count{{{common},scope=\"namespace\",subresource=\"\",verb=\"LIST\",version=\"v1\"}} 1\n"),
        "apiserver_requested_deprecated_apis{group=\"\",removed_release=\"\",resource=\"endpoints\",subresource=\"\",version=\"v1\"} 1\n",
        "apiserver_admission_step_admission_duration_seconds_count{operation=\"CREATE\",rejected=\"false\",type=\"validate\"} ",
        "apiserver_storage_size_bytes{storage_cluster_id=\"etcd-0\"} ",
        "kubernetes_build_info{build_date=\"1970-01-01T00:00:00Z\",compiler=\"rustc\",git_commit=\"\",git_tree_state=\"clean\",git_version=\"v1.36.",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn profiles_say_whose_requests_take_the_time_and_whose_objects_the_memory() {
    let c = cluster().await;
    let mut watch = c.watch(&format!("{MAPS}?watch=1")).await;
    let work = async {
        for i in 0..50 {
            add(&c, &format!("p{i}")).await;
            assert_eq!(watch.brief().await, format!("ADDED p{i}"));
            c.get(MAPS).await.ok();
        }
    };
    let (profile, ()) = tokio::join!(c.get("/debug/pprof/profile?seconds=0.5&debug=1"), work);
    let text = profile.text();
    assert_eq!(profile.code, 200, "{text}");
    // names under the request and its user, wherever they ran
    let below = |name: &str| {
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.ends_with(&format!("  {name}"))).collect();
        assert!(!lines.is_empty(), "{name} in {text}");
        let depth = |line: &str| line.rfind("  ").map(|at| at + 2);
        lines.iter().skip(1).take_while(|line| depth(line) > depth(lines[0])).map(|line| line[depth(line).unwrap()..].to_string()).collect::<Vec<_>>()
    };
    let create = below("create configmaps");
    for name in ["authentication", "admin", "validation", "encoding", "field ownership", "decoding", "authorization", "answer"] {
        assert!(create.iter().any(|found| found == name), "{name} below the creates in {text}");
    }
    assert!(below("list configmaps").contains(&"admin".to_string()), "{text}");
    below("watch configmaps");
    below("watch cache");
    let heap = c.get("/debug/pprof/heap?debug=1").await.text();
    let maps = heap.lines().skip_while(|line| !line.ends_with("  configmaps")).find(|line| line.ends_with("  JSON")).unwrap_or_default();
    assert!(maps.contains("  50  "), "{heap}");
    let file = c.get("/debug/pprof/heap").await;
    assert_eq!((file.headers["content-type"].to_str().unwrap(), &file.bytes[..2]), ("application/octet-stream", &[0x1f, 0x8b][..]));
    assert!(c.get("/debug/pprof/").await.text().contains("profile"));
    assert_eq!(c.get("/debug/pprof/goroutine").await.code, 404);
    assert!(c.get("/debug/pprof/profile?seconds=x").await.fails(400).starts_with("seconds=x: must be a number"));
    let without = common::cluster_configured(apiserver::Config { profiling: false, ..apiserver::Config::default() }, |_| {}).await;
    assert_eq!(without.get("/debug/pprof/").await.code, 404);
}
