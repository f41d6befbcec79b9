//! The server asked over real sockets, with an API server made of a few objects.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dns::{Config, Resolvers};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use http_body_util::Full;
use reconcile::{Informers, Tasks};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// A client of a server that has one headless Service with 100 endpoints and an external one.
fn api() -> kube::Client {
    client::in_process(|request: http::Request<kube::client::Body>| async move {
        if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
            std::future::pending::<()>().await;
        }
        let items = match request.uri().path() {
            "/api/v1/services" => json!([
                {"metadata": {"namespace": "d", "name": "many", "resourceVersion": "1"},
                 "spec": {"clusterIP": "None", "ports": [{"port": 80}]}},
                {"metadata": {"namespace": "d", "name": "out", "resourceVersion": "1"},
                 "spec": {"type": "ExternalName", "externalName": "outside.example"}},
            ]),
            "/apis/discovery.k8s.io/v1/endpointslices" => json!([{
                "metadata": {"namespace": "d", "name": "many-1", "resourceVersion": "1",
                             "labels": {"kubernetes.io/service-name": "many"}},
                "addressType": "IPv4", "ports": [{"port": 80}],
                "endpoints": (0..100).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect::<Vec<_>>(),
            }]),
            other => panic!("unexpected {other}"),
        };
        let list: Value = json!({"metadata": {"resourceVersion": "1"}, "items": items});
        http::Response::new(Full::new(Bytes::from(list.to_string())))
    })
}

/// A free port for UDP and TCP.
fn free() -> SocketAddr {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    std::net::UdpSocket::bind(address).unwrap();
    address
}

async fn serve(upstreams: Vec<SocketAddr>) -> (SocketAddr, Tasks) {
    let (address, tasks) = (free(), Tasks::new());
    let mut config = Config::new(vec![address], "cluster.local", "10.96.0.10".parse().unwrap());
    config.upstreams = Resolvers::Fixed(upstreams);
    config.own.clear();
    let informers = Informers::new(api(), tasks.clone());
    let mut ready = dns::run(config, &informers, &tasks);
    tokio::time::timeout(Duration::from_secs(5), ready.wait_for(|r| *r)).await.unwrap().unwrap();
    (address, tasks)
}

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    answer
}

async fn tcp(server: SocketAddr, message: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn large_answers_are_cut_over_udp_and_whole_over_tcp() {
    let (server, tasks) = serve(vec![]).await;
    let many = "many.d.svc.cluster.local.";
    let small = udp(server, &question(many, None)).await;
    assert!(small.metadata.truncation && !small.answers.is_empty() && small.to_vec().unwrap().len() <= 512);
    let larger = udp(server, &question(many, Some(1232))).await;
    assert!(larger.metadata.truncation && larger.answers.len() > small.answers.len());
    assert!(larger.edns.is_some() && small.edns.is_none());
    let whole = tcp(server, &question(many, None)).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
    assert!(tasks.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn other_names_are_forwarded_and_failures_are_quick() {
    // A resolver that knows one address for everything.
    let resolver = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let upstream = resolver.local_addr().unwrap();
    let known = tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        loop {
            let (length, peer) = resolver.recv_from(&mut buffer).await.unwrap();
            let mut message = Message::from_vec(&buffer[..length]).unwrap().into_response();
            let name = message.queries[0].name().clone();
            message.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
            resolver.send_to(&message.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let (server, tasks) = serve(vec![upstream]).await;
    let answer = udp(server, &question("example.org.", None)).await;
    assert_eq!(answer.answers.len(), 1);
    let alias = udp(server, &question("out.d.svc.cluster.local.", None)).await;
    let kinds: Vec<_> = alias.answers.iter().map(|r| r.record_type()).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    known.abort();
    assert!(known.await.is_err());
    let start = Instant::now();
    for _ in 0..3 {
        let answer = udp(server, &question("example.org.", None)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
    // Waited for once at most, if it is not told that nobody is there: then it rests.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let inside = udp(server, &question("nobody.d.svc.cluster.local.", None)).await;
    assert_eq!(inside.metadata.response_code, ResponseCode::NXDomain);
    assert!(tasks.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn dig_is_content() {
    if Command::new("dig").arg("-v").output().is_err() {
        eprintln!("dig is not installed");
        return;
    }
    let (server, tasks) = serve(vec![]).await;
    let dig = |arguments: Vec<&'static str>| async move {
        let (host, port) = (format!("@{}", server.ip()), server.port().to_string());
        let run = move || Command::new("dig").arg(host).arg("-p").arg(port).args(arguments).output().unwrap();
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let short = dig(vec!["+short", "10-244-0-5.many.d.svc.cluster.local"]).await;
    assert_eq!(short.trim(), "10.244.0.5");
    // dig asks again over TCP when an answer was cut.
    assert_eq!(dig(vec!["+short", "many.d.svc.cluster.local"]).await.lines().count(), 100);
    let missing = dig(vec!["nobody.d.svc.cluster.local"]).await;
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");
    assert!(missing.contains("flags: qr aa rd ra;") && !missing.contains("recursion requested but"), "{missing}");
    assert!(tasks.shutdown(Duration::from_secs(5)).await);
}
