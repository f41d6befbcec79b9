//! Whole stores: snapshot, loss and restoring on both engines, moving between them, a store that does not work.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::encrypt::Transformer;
use apiserver::offline::{self, Item, Snapshot};
use apiserver::{EncryptionConfig, EncryptionKey, InProcess, Provider, StorageMediaType};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use store::{RangeRequest, Store, embedded};

mod common;
#[path = "../../store/tests/common/etcd.rs"]
#[allow(dead_code, reason = "the store's own tests use more of it")]
mod etcd;

use common::kinds::{self, everything};
use common::{Cluster, admin};

fn ca() -> Arc<pki::Ca> {
    Arc::new(pki::Ca::new("kubernetes", jiff::Timestamp::now(), jiff::SignedDuration::from_hours(24)).unwrap())
}

fn keys(names: &[&str]) -> EncryptionConfig {
    let keys = names.iter().map(|n| EncryptionKey { name: (*n).into(), secret: n.bytes().cycle().take(32).collect() }).collect();
    EncryptionConfig::of(&["secrets"], vec![Provider::AesGcm(keys), Provider::Identity])
}

async fn server(store: Arc<dyn Store>, ca: &Arc<pki::Ca>, names: &[&str]) -> Cluster {
    Cluster::with(store, ca.clone(), apiserver::Config { encryption: keys(names), ..Default::default() }).await
}

fn open(dir: &Path) -> Arc<dyn Store> {
    embedded::open(dir, embedded::Options::default()).unwrap()
}

const CUSTOM: &str = "/apis/example.com/v1/namespaces/a/xs";

/// Objects of many kinds, custom ones too.
async fn fill(server: &Cluster) {
    server.namespace("a").await;
    for (path, object) in kinds::all() {
        let (code, answer) = server.post(&admin(), path, &object).await;
        assert_eq!(code, 201, "{path}: {answer}");
    }
    for n in 0..3 {
        let object = json!({"apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": format!("c{n}"), "labels": {"n": n.to_string()}}});
        let start = Instant::now();
        while server.post(&admin(), CUSTOM, &object).await.0 != 201 {
            assert!(start.elapsed().as_secs() < 20, "the definition is established");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// All objects by path and name; without resource versions, if they may differ.
async fn state(server: &Cluster, versions: bool) -> Vec<(String, Value)> {
    let mut lists = everything(server).await;
    let (code, list) = server.call(&admin(), "GET", CUSTOM, None).await;
    assert_eq!(code, 200, "{list}");
    lists.push((CUSTOM.into(), list));
    let mut all = Vec::new();
    for (path, list) in lists {
        for mut object in list["items"].as_array().unwrap().clone() {
            if !versions {
                object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            }
            let name = format!("{path} {}/{}", object["metadata"]["namespace"], object["metadata"]["name"]);
            all.push((name, object));
        }
    }
    all
}

fn same(before: &[(String, Value)], after: &[(String, Value)]) {
    assert!(before.len() > 100, "{} objects are too few to mean anything", before.len());
    for (name, object) in before {
        let now = after.iter().find(|(n, _)| n == name).map(|(_, o)| o);
        let Some(now) = now else { panic!("{name} is not there") };
        for (field, value) in object.as_object().unwrap() {
            assert_eq!(&now[field], value, "{field} of {name}");
        }
        assert_eq!(now, object, "{name}");
    }
    assert_eq!(before.len(), after.len());
}

async fn bytes(server: &Cluster, method: &str, path: &str) -> (u16, Vec<u8>) {
    let mut request = http::Request::builder().method(method).uri(path).body(Full::<bytes::Bytes>::default()).unwrap();
    request.extensions_mut().insert(InProcess(admin()));
    let response = server.server.handle(request).await;
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

/// A snapshot through the running server.
async fn snapshot(server: &Cluster, file: &Path) -> Snapshot {
    let (code, all) = bytes(server, "GET", "/knarr/store/snapshot").await;
    assert_eq!(code, 200);
    std::fs::write(file, all).unwrap();
    Snapshot::open(file).unwrap()
}

fn objects(snapshot: &Snapshot) -> Vec<store::KeyValue> {
    let mut all = Vec::new();
    snapshot.read(|item| if let Item::Object(kv) = item { all.push(kv); Ok(()) } else { Ok(()) }).unwrap();
    all
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Writes after the snapshot, whose revisions are lost with everything; they are known to clients.
async fn later(server: &Cluster) -> u64 {
    let mut last = 0;
    for n in 0..5 {
        let (code, made) = server.post(&admin(), "/api/v1/namespaces/a/configmaps", &json!({"metadata": {"name": format!("late{n}")}})).await;
        assert_eq!(code, 201, "{made}");
        last = version(&made);
    }
    last
}

/// Who knows older revisions, also those that are lost, is told to list again; new ones are above them.
async fn above(server: &Cluster, lost: u64, first: u64) {
    for old in [first, lost - 2, lost] {
        let (code, said) = server.call(&admin(), "GET", &format!("/api/v1/configmaps?watch=true&timeoutSeconds=3&resourceVersion={old}"), None).await;
        let code = if code == 200 { said["object"]["code"].as_u64().unwrap_or(200) } else { code.into() };
        assert_eq!(code, 410, "{old}: {said}");
    }
    let (code, made) = server.post(&admin(), "/api/v1/namespaces/a/configmaps", &json!({"metadata": {"name": "new"}})).await;
    assert!(code == 201 && version(&made) > lost, "{lost} {made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_is_lost_and_restored() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let first = server(open(&dir.path().join("store")), &ca, &["key1"]).await;
    fill(&first).await;
    let before = state(&first, true).await;
    let taken = snapshot(&first, &dir.path().join("snapshot")).await;
    let lost = later(&first).await;
    first.store().close().await;
    drop(first);
    std::fs::remove_dir_all(dir.path().join("store")).unwrap();
    let secrets = objects(&taken).iter().filter(|kv| kv.key.starts_with(b"/registry/secrets/") && kv.value.starts_with(b"k8s:enc:aesgcm:v1:key1:")).count();
    assert!(secrets > 0, "what is encrypted stays so in a snapshot");

    let beyond = taken.header.revision + 1000;
    let copied = offline::import(&dir.path().join("store"), beyond, taken.objects().unwrap()).await.unwrap();
    assert_eq!((copied.objects, copied.revision), (taken.objects, beyond));
    // A second time it is refused, and harms nothing.
    let again = offline::import(&dir.path().join("store"), beyond, taken.objects().unwrap()).await.unwrap_err();
    assert!(again.to_string().contains("there is a store in"), "{again}");
    let second = server(open(&dir.path().join("store")), &ca, &["key1"]).await;
    same(&before, &state(&second, true).await);
    above(&second, lost, taken.header.revision as u64).await;
    second.store().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_is_lost_and_restored() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let old = etcd::Cluster::start(1);
    let first = server(old.open().await, &ca, &["key1"]).await;
    fill(&first).await;
    let before = state(&first, false).await;
    let taken = snapshot(&first, &dir.path().join("snapshot")).await;
    let lost = later(&first).await;
    drop((first, old));

    let new = etcd::Cluster::start_tls();
    let store = new.open().await;
    let values = || taken.objects().unwrap().map(|next| next.map(|kv| (kv.key, kv.value)));
    let beyond = taken.header.revision + 1000;
    let copied = offline::fill(&store, values(), taken.objects, beyond, false, |_, _, _| {}).await.unwrap();
    assert!(copied.objects == taken.objects && copied.revision > beyond, "{copied:?}");
    let again = offline::fill(&store, values(), taken.objects, beyond, false, |_, _, _| {}).await.unwrap_err();
    assert!(matches!(again, offline::Error::NotEmpty(n) if n as u64 == taken.objects), "{again}");
    // By force, what is not in the snapshot goes.
    store.txn(store::Txn::put("/registry/configmaps/a/stray", "{}")).await.unwrap();
    offline::fill(&store, values(), taken.objects, beyond, true, |_, _, _| {}).await.unwrap();
    let second = server(store, &ca, &["key1"]).await;
    same(&before, &state(&second, false).await);
    above(&second, lost, taken.header.revision as u64).await;
    second.store().close().await;
}

/// What was taken of an embedded store, into a new member of etcd that does not run: resource versions stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_store_is_restored_into_a_new_member() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let first = server(open(&dir.path().join("store")), &ca, &["key1"]).await;
    fill(&first).await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "a"}, "reason": "Tested"});
    assert_eq!(first.post(&admin(), "/api/v1/namespaces/a/events", &event).await.0, 201);
    let before = state(&first, true).await;
    let taken = snapshot(&first, &dir.path().join("snapshot")).await;
    let lost = later(&first).await;
    first.store().close().await;
    drop(first);

    let mut member = etcd::Cluster::start_with(1, false, &["--snapshot-count", "1"]);
    let start = Instant::now();
    while !member.data(0).join("member/snap").read_dir().unwrap().flatten().any(|e| e.path().extension().is_some_and(|e| e == "snap")) {
        assert!(start.elapsed().as_secs() < 20, "{}", member.log(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    member.end(0);
    let beyond = taken.header.revision + 1000;
    let full = offline::import_member(&member.data(0), beyond, 4096, taken.by_revision().unwrap()).unwrap_err();
    assert!(full.to_string().contains("ETCD_QUOTA_BACKEND_BYTES"), "{full}");
    let copied = offline::import_member(&member.data(0), beyond, store::etcd::DEFAULT_QUOTA, taken.by_revision().unwrap()).unwrap();
    assert_eq!((copied.objects, copied.revision), (taken.objects, beyond));
    member.run(0);
    let second = server(member.open().await, &ca, &["key1"]).await;
    same(&before, &state(&second, true).await);
    above(&second, lost, taken.header.revision as u64).await;
    second.store().close().await;
}

/// Embedded → etcd with another prefix and another key → embedded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_to_etcd_and_back() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), ca());
    let (here, there) = (|| Transformer::new(&keys(&["key1"])).unwrap(), || Transformer::new(&keys(&["other"])).unwrap().under("/deep/er"));
    let first = server(open(&dir.path().join("a")), &ca, &["key1"]).await;
    fill(&first).await;
    let before = state(&first, false).await;
    let lost = later(&first).await;
    for n in 0..5 {
        first.call(&admin(), "DELETE", &format!("/api/v1/namespaces/a/configmaps/late{n}"), None).await;
    }
    first.store().close().await;
    drop(first);

    let (all, revision) = offline::everything(open(&dir.path().join("a"))).await.unwrap();
    let converter = offline::Converter { from: here(), to: there(), form: StorageMediaType::Protobuf };
    let values = all.iter().map(|kv| Ok((kv.key.clone(), converter.convert(kv).unwrap())));
    let members = etcd::Cluster::start(3);
    let raw = members.open().await;
    offline::fill(&store::under(raw.clone(), "/deep/er"), values, all.len() as u64, revision, false, |_, _, _| {}).await.unwrap();
    // As upstream would have written it.
    let kvs = raw.range(RangeRequest::prefix("/deep/er/")).await.unwrap().kvs;
    let begins = |key: &str, with: &[u8]| kvs.iter().filter(|kv| kv.key.starts_with(key.as_bytes())).all(|kv| kv.value.starts_with(with));
    assert!(kvs.len() == all.len() && begins("/deep/er/secrets/", b"k8s:enc:aesgcm:v1:other:"));
    assert!(begins("/deep/er/configmaps/", b"k8s\0") && begins("/deep/er/apiextensions.k8s.io/", b"{") && begins("/deep/er/example.com/", b"{"));
    let config = apiserver::Config { encryption: keys(&["other"]), storage_prefix: "/deep/er".into(), ..Default::default() };
    let second = Cluster::with(raw.clone(), ca.clone(), config).await;
    same(&before, &state(&second, false).await);
    above(&second, lost, revision as u64).await;
    let middle = state(&second, true).await;
    raw.close().await;
    drop(second);

    let source = store::under(members.open().await, "/deep/er");
    let (all, revision) = offline::everything(source).await.unwrap();
    let converter = offline::Converter { from: there(), to: here(), form: StorageMediaType::Json };
    let all = all.into_iter().map(|kv| Ok(store::KeyValue { value: converter.convert(&kv).unwrap(), ..kv }));
    offline::import(&dir.path().join("b"), revision, all).await.unwrap();
    let third = server(open(&dir.path().join("b")), &ca, &["key1"]).await;
    // Here, resource versions are the same.
    same(&middle, &state(&third, true).await);
    third.store().close().await;
    // Who has not the key cannot take anything along.
    let wrong = offline::Converter { from: Transformer::new(&keys(&["key2"])).unwrap(), to: there(), form: StorageMediaType::Protobuf };
    let (all, _) = offline::everything(open(&dir.path().join("a"))).await.unwrap();
    let error = all.iter().find_map(|kv| wrong.convert(kv).err()).unwrap().to_string();
    assert!(error.starts_with("/registry/secrets/") && error.contains("cannot be read"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_while_the_server_runs() {
    let cluster = server(store::memory::new(), &ca(), &["key1"]).await;
    cluster.namespace("a").await;
    for n in 0..40 {
        let secret = json!({"metadata": {"name": format!("s{n}")}, "stringData": {"k": "v"}});
        assert_eq!(cluster.post(&admin(), "/api/v1/namespaces/a/secrets", &secret).await.0, 201);
    }
    cluster.server.reload_encryption(&keys(&["key2", "key1"])).unwrap();
    let (code, said) = bytes(&cluster, "POST", "/knarr/store/rewrite?key=aesgcm:key3").await;
    assert!(code == 409 && String::from_utf8_lossy(&said).contains("this server writes with aesgcm:key2"));
    let (code, said) = bytes(&cluster, "POST", "/knarr/store/rewrite?key=aesgcm:key2").await;
    let said = String::from_utf8(said).unwrap();
    let done: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let done = &done["done"];
    assert_eq!((code, &done["proved"], &done["before"]["keys"]["aesgcm:key2"]), (200, &json!(true), &Value::Null), "{said}");
    assert!(done["rewritten"].as_u64().unwrap() >= 40 && done["after"]["keys"].get("aesgcm:key1").is_none(), "{said}");
    // Without the old key, everything is there.
    cluster.server.reload_encryption(&keys(&["key2"])).unwrap();
    let secret = cluster.get(&admin(), "/api/v1/namespaces/a/secrets/s7").await;
    assert_eq!(secret["data"]["k"], "dg==");
    let (code, found) = bytes(&cluster, "GET", "/knarr/store/verify").await;
    let found: Value = serde_json::from_slice(&found).unwrap();
    assert_eq!((code, &found["unreadable"], &found["stale"]), (200, &json!(0), &json!(0)), "{found}");
    // It is not for everyone.
    let nobody = common::user("jane", &["system:authenticated"]);
    for (method, path) in [("GET", "snapshot"), ("GET", "status"), ("GET", "verify"), ("POST", "rewrite")] {
        assert_eq!(cluster.call(&nobody, method, &format!("/knarr/store/{path}"), None).await.0, 403, "{path}");
    }
}

async fn checks(server: &Cluster, works: bool) {
    let start = Instant::now();
    for path in ["/readyz/etcd", "/readyz/etcd-readiness", "/livez/etcd", "/readyz"] {
        loop {
            let asked = Instant::now();
            let (code, said) = bytes(server, "GET", path).await;
            assert!(asked.elapsed() < Duration::from_secs(4), "{path} took {:?}", asked.elapsed());
            if (code == 200) == works {
                break;
            }
            assert!(start.elapsed().as_secs() < 20, "{path}: {code} {}", String::from_utf8_lossy(&said));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// etcd stands still under load, is killed, is full: each is said in time, and over when it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_does_not_work() {
    let mut members = etcd::Cluster::start_with(1, false, &["--quota-backend-bytes", "16777216"]);
    let options = store::etcd::Options { request_timeout: Duration::from_secs(2), ..members.options() };
    let server = server(store::etcd::open(options).await.unwrap(), &ca(), &["key1"]).await;
    server.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    let make = async || server.post(&admin(), maps, &json!({"metadata": {"generateName": "m-"}})).await;
    checks(&server, true).await;
    members.stop(0);
    let start = Instant::now();
    let load = futures::future::join_all((0..30).map(|_| make())).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    for (code, status) in load {
        assert!(matches!((code, status["reason"].as_str().unwrap()), (504, "Timeout") | (503, "ServiceUnavailable")), "{status}");
    }
    let (code, status) = server.call(&admin(), "GET", maps, None).await;
    assert!(matches!(code, 503 | 504), "a consistent read: {status}");
    assert_eq!(server.call(&admin(), "GET", &format!("{maps}?resourceVersion=0"), None).await.0, 200, "the cache serves");
    checks(&server, false).await;
    members.go_on(0);
    checks(&server, true).await;
    assert_eq!(make().await.0, 201);

    members.kill(0);
    let (code, status) = make().await;
    assert!(matches!(code, 503 | 504), "{status}");
    checks(&server, false).await;
    members.run(0);
    checks(&server, true).await;
    assert_eq!(make().await.0, 201);

    let start = Instant::now();
    let big = "x".repeat(900_000);
    let full = loop {
        let (code, status) = server.post(&admin(), maps, &json!({"metadata": {"generateName": "big-"}, "data": {"k": big}})).await;
        if code != 201 {
            break (code, status);
        }
    };
    assert!(full.0 == 500 && full.1["message"].as_str().unwrap().contains("no space left in the store"), "{full:?}");
    assert_eq!(server.call(&admin(), "GET", &format!("{maps}?limit=1"), None).await.0, 200, "reads go on");
    checks(&server, true).await;
    let (code, status) = server.call(&admin(), "DELETE", maps, None).await;
    assert_eq!(code, 200, "deleting makes room: {status}");
    while make().await.0 != 201 {
        assert!(start.elapsed().as_secs() < 60, "there is room again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    server.store().close().await;
}

/// etcd comes back from an older backup while the server runs: it shows what is there, and tells watchers to begin anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_went_back() {
    let mut members = etcd::Cluster::start(1);
    let server = server(members.open().await, &ca(), &["key1"]).await;
    server.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    let make = async |name: &str| server.post(&admin(), maps, &json!({"metadata": {"name": name}})).await;
    assert_eq!(make("kept").await.0, 201);
    members.kill(0);
    let copy = members.backup(0);
    members.run(0);
    checks(&server, true).await;
    let mut seen = 0;
    for n in 0..300 {
        let (code, made) = make(&format!("lost{n}")).await;
        assert_eq!(code, 201, "{made}");
        seen = version(&made);
    }
    members.kill(0);
    members.put_back(0, &copy);
    members.run(0);
    let start = Instant::now();
    let names = loop {
        let (code, list) = server.call(&admin(), "GET", maps, None).await;
        let names: Vec<_> = list["items"].as_array().into_iter().flatten().map(|m| m["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        if code == 200 && names.len() < 10 {
            break names;
        }
        assert!(start.elapsed().as_secs() < 30, "{code} {names:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(names.contains(&"kept".into()) && !names.iter().any(|n| n.starts_with("lost")), "{names:?}");
    checks(&server, true).await;
    let (code, made) = make("lost0").await;
    assert!(code == 201 && version(&made) > seen, "{seen} {made}");
    for old in [seen - 200, seen] {
        let (code, said) = server.call(&admin(), "GET", &format!("{maps}?watch=true&timeoutSeconds=3&resourceVersion={old}"), None).await;
        assert!(code == 410 || said["object"]["code"] == 410, "{old}: {code} {said}");
    }
    server.store().close().await;
}

/// The key is upstream's, and in an interval one of two servers compacts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_take_turns_in_compacting() {
    let (members, ca) = (etcd::Cluster::start(1), ca());
    let config = || apiserver::Config { compact_every: Duration::from_millis(700), ..Default::default() };
    let watched = members.open().await;
    let mut watch = watched.watch(b"compact_rev_key", 0).await.unwrap();
    let one = Cluster::with(members.open().await, ca.clone(), config()).await;
    let two = Cluster::with(members.open().await, ca, config()).await;
    let (start, mut values) = (Instant::now(), Vec::new());
    while values.len() < 5 {
        let Ok(Some(Ok(event))) = tokio::time::timeout(Duration::from_secs(20), watch.next()).await else { panic!("{values:?}") };
        let store::WatchEvent::Events { events, .. } = event else { continue };
        for event in events {
            let store::Event::Put { kv, .. } = event else { panic!("it goes") };
            values.push((kv.version, String::from_utf8(kv.value.to_vec()).unwrap().parse::<i64>().unwrap()));
        }
    }
    // Each interval has one writing, not two.
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    assert!(values.windows(2).all(|w| w[1].0 == w[0].0 + 1 && w[1].1 > w[0].1), "{values:?}");
    let compacted = watched.range(RangeRequest::prefix("/registry/").at(values[3].1 - 1)).await;
    assert!(matches!(compacted, Err(store::Error::Compacted { .. })), "{compacted:?}");
    for server in [one, two] {
        server.store().close().await;
    }
    watched.close().await;
}

struct Mount(std::path::PathBuf);

impl Mount {
    fn run(&self, program: &str, args: &[&str]) -> bool {
        std::process::Command::new(program).args(args).arg(&self.0).status().unwrap().success()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
    }
}

/// The disk of an embedded store is full: writes say so, reads go on, and writes work again once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount(dir.path().to_owned());
    assert!(mount.run("mount", &["-t", "tmpfs", "-o", "size=24m", "none"]), "this test needs root");
    let server = server(open(dir.path()), &ca(), &["key1"]).await;
    server.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    // Random, so that it cannot be compressed.
    let make = async || {
        let data: String = (0..200_000).map(|_| (b'a' + rand::random::<u8>() % 26) as char).collect();
        server.post(&admin(), maps, &json!({"metadata": {"generateName": "m-"}, "data": {"k": data}})).await
    };
    let mut made = 0;
    let start = Instant::now();
    let mut said = Vec::new();
    while said.len() < 5 {
        let (code, status) = make().await;
        match code {
            201 => made += 1,
            _ => said.push((code, status["message"].as_str().unwrap().to_owned())),
        }
        assert!(start.elapsed().as_secs() < 60, "the disk should be full");
    }
    assert!(said.iter().all(|(code, _)| matches!(code, 500 | 503)), "{said:?}");
    assert!(said.iter().any(|(_, message)| message.contains("no space left")), "{said:?}");
    let (code, list) = server.call(&admin(), "GET", &format!("{maps}?resourceVersion=0"), None).await;
    assert!(code == 200 && list["items"].as_array().unwrap().len() >= made, "reads go on");
    assert!(mount.run("mount", &["-o", "remount,size=200m", "none"]));
    while make().await.0 != 201 {
        assert!(start.elapsed().as_secs() < 90, "there is room again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    checks(&server, true).await;
    server.store().close().await;
}
