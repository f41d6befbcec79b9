//! Two servers over one store, of which one writes protobuf and the other JSON: each reads what the other wrote.

use apiserver::StorageMediaType::{self, Json, Protobuf};
use serde_json::json;
use store::RangeRequest;

mod common;
#[path = "../../store/tests/common/etcd.rs"]
#[allow(dead_code, reason = "the store's own tests use more of it")]
mod etcd;

use common::kinds::everything;
use common::{Cluster, admin};

async fn server(like: Option<&Cluster>, form: StorageMediaType) -> Cluster {
    match like {
        Some(other) => Cluster::writing(other.store(), other.ca.clone(), form).await,
        None => {
            let ca = pki::Ca::new("kubernetes", jiff::Timestamp::now(), jiff::SignedDuration::from_hours(24)).unwrap();
            Cluster::writing(store::memory::new(), std::sync::Arc::new(ca), form).await
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_form_is_read() {
    let first = server(None, Protobuf).await;
    first.namespace("a").await;
    let made = common::kinds::all();
    for (path, object) in &made {
        let (code, answer) = first.post(&admin(), path, object).await;
        assert_eq!(code, 201, "{path}: {answer}");
    }
    // An object is in the store as its kind has it upstream, and without a resourceVersion.
    let kvs = first.store().range(RangeRequest::prefix("/registry/")).await.unwrap().kvs;
    let (mut protobuf, mut plain) = (0, 0);
    for kv in &kvs {
        let key = String::from_utf8_lossy(&kv.key);
        let as_json = ["/registry/apiextensions.k8s.io/", "/registry/apiregistration.k8s.io/"].iter().any(|p| key.starts_with(p));
        if as_json {
            plain += 1;
            assert!(kv.value.starts_with(b"{"), "{key}");
        } else {
            protobuf += 1;
            assert!(kv.value.starts_with(b"k8s\0"), "{key}");
            let object = api::codec::decode(&kv.value, api::codec::ContentType::Protobuf, None).unwrap().value;
            assert!(object["metadata"].get("resourceVersion").is_none(), "{key}");
        }
    }
    assert!(protobuf > 100 && plain > 0, "{protobuf} {plain}");

    let second = server(Some(&first), Json).await;
    // What the second one makes at its start reaches the first.
    let (a, b) = (everything(&first).await, everything(&second).await);
    assert!(a.len() >= 50 && a.len() == b.len(), "{} {}", a.len(), b.len());
    for ((path, a), (_, b)) in a.iter().zip(&b) {
        assert_eq!(a, b, "{path}");
    }
    // Each changes what the other wrote.
    let path = "/apis/apps/v1/namespaces/a/deployments/x";
    for (writer, reader, replicas) in [(&second, &first, 2), (&first, &second, 3), (&second, &first, 4)] {
        let (code, written) = writer.patch(&admin(), "application/merge-patch+json", path, &json!({"spec": {"replicas": replicas}})).await;
        assert_eq!((code, &written["spec"]["replicas"]), (200, &json!(replicas)), "{written}");
        assert_eq!(reader.get(&admin(), &format!("{path}?resourceVersion=")).await, written);
    }
    // A conflict tells of the state that the other wrote.
    let mut old = first.get(&admin(), path).await;
    old["metadata"]["resourceVersion"] = "1".into();
    assert_eq!(second.call(&admin(), "PUT", path, Some(&old)).await.0, 409);
    assert_eq!(second.call(&admin(), "DELETE", "/api/v1/namespaces/a/configmaps/x", None).await.0, 200);
    let list = first.get(&admin(), "/api/v1/namespaces/a/configmaps").await;
    assert!(list["items"].as_array().unwrap().iter().all(|m| m["metadata"]["name"] != "x"), "{list}");
}

/// Two servers over one etcd: the form is upstream's, each sees at once what the other wrote, and neither is lost with
/// an etcd that stands still for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_over_etcd() {
    let etcd = etcd::Cluster::start_tls();
    let options = store::etcd::Options { request_timeout: std::time::Duration::from_secs(2), ..etcd.options() };
    let connect = async || store::etcd::open(options.clone()).await.unwrap();
    let ca = pki::Ca::new("kubernetes", jiff::Timestamp::now(), jiff::SignedDuration::from_hours(24)).unwrap();
    let first = Cluster::over(connect().await, std::sync::Arc::new(ca)).await;
    let second = Cluster::over(connect().await, first.ca.clone()).await;
    first.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    let count = async |server: &Cluster| server.get(&admin(), maps).await["items"].as_array().unwrap().len();
    for n in 0..20 {
        let (writer, reader) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let (code, answer) = writer.post(&admin(), maps, &json!({"metadata": {"name": format!("m{n}")}, "data": {"n": n.to_string()}})).await;
        assert_eq!(code, 201, "{answer}");
        assert_eq!(count(reader).await, n + 1);
    }
    let stored = first.store().range(RangeRequest::prefix("/registry/configmaps/a/")).await.unwrap().kvs;
    assert!(stored.len() == 20 && stored.iter().all(|kv| kv.value.starts_with(b"k8s\0")));
    // What both want to write, one writes.
    let path = format!("{maps}/m0");
    let mut object = first.get(&admin(), &path).await;
    object["data"]["n"] = "first".into();
    let admin = &admin();
    let (one, other) = tokio::join!(first.call(admin, "PUT", &path, Some(&object)), second.call(admin, "PUT", &path, Some(&object)));
    let mut codes = [one.0, other.0];
    codes.sort();
    assert_eq!(codes, [200, 409], "{one:?} {other:?}");
    etcd.stop(0);
    let (code, status) = first.post(admin, maps, &json!({"metadata": {"name": "late"}})).await;
    assert!(code >= 500 && status["message"].as_str().unwrap().contains("no answer within"), "{code} {status}");
    etcd.go_on(0);
    let start = std::time::Instant::now();
    while first.post(admin, maps, &json!({"metadata": {"generateName": "after-"}})).await.0 != 201 {
        assert!(start.elapsed().as_secs() < 20, "etcd is there again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(count(&second).await, count(&first).await);
    first.store().close().await;
    second.store().close().await;
}
