//! The balancer over real sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A server that says its name to whoever connects, and then nothing.
async fn named(name: &'static str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let task = tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.write_all(name.as_bytes()).await.expect("written");
            kept.push(stream);
        }
    });
    (address, task)
}

async fn reads(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.expect("in time").expect("read");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
}

#[tokio::test]
async fn connections_leave_a_dead_server() {
    let ((a, first), (b, _second)) = (named("a").await, named("b").await);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("servers.json");
    let balancer = Balancer::new("https://127.0.0.1:1", file.clone(), "node").expect("a balancer");
    balancer.learn(&[a.clone(), b.clone()]);
    balancer.report(&a, Answer::Ready);
    let (mut link, host) = balancer.connect().await.expect("connected");
    assert_eq!((reads(&mut link).await.as_str(), host.as_str()), ("a", "127.0.0.1"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let local = listener.local_addr().expect("an address");
    let listening = tokio::spawn(balancer.clone().listen(listener));
    let mut through = TcpStream::connect(local).await.expect("connected");
    assert_eq!(reads(&mut through).await, "a");
    // It says nothing: once is no reason, twice is.
    balancer.report(&a, Answer::Silent);
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(50), link.read(&mut byte)).await.is_err(), "not yet");
    balancer.report(&a, Answer::Silent);
    let error = tokio::time::timeout(Duration::from_secs(5), link.read(&mut byte)).await.expect("at once").expect_err("cut");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(matches!(tokio::time::timeout(Duration::from_secs(5), through.read(&mut byte)).await.expect("at once"), Ok(0) | Err(_)));
    let (mut link, _) = balancer.connect().await.expect("connected");
    assert_eq!(reads(&mut link).await, "b");
    // One that refuses is passed over, and known to be dead.
    first.abort();
    let _ = first.await;
    balancer.report(&a, Answer::Ready);
    balancer.report(&b, Answer::NotReady);
    let (mut link, _) = balancer.connect().await.expect("connected");
    assert_eq!(reads(&mut link).await, "b");
    assert_eq!(balancer.0.servers.lock().health(&a), Some(Health::Dead));
    listening.abort();
    // The next start knows them.
    let again = Balancer::new("https://127.0.0.1:1", file, "node").expect("a balancer");
    let mut expected = vec![a, b, "127.0.0.1:1".to_owned()];
    expected.sort();
    let mut known: Vec<String> = again.servers().into_iter().map(|s| s.address).collect();
    known.sort();
    assert_eq!(known, expected);
}

#[test]
fn the_kubernetes_service_tells_where_servers_are() {
    let slice = |service: &str, address: &str, ready: bool| -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}],
        }))
        .expect("a slice")
    };
    let all = [slice("kubernetes", "192.0.2.1", true), slice("kubernetes", "192.0.2.2", false), slice("web", "192.0.2.3", true)];
    assert_eq!(addresses(&all), ["192.0.2.1:6443"]);
}
