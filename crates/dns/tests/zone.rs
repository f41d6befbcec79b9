//! Questions to the zone, answered without a network.

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use dns::{Reply, Zone, respond};

fn zone() -> Zone {
    let service = |name: &str, spec: Value| -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name}, "spec": spec})).unwrap()
    };
    let ports = json!([
        {"name": "http", "port": 80, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]);
    let services = [
        service("web", json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd96::7"], "ports": ports})),
        service("db", json!({"clusterIP": "None", "ports": ports})),
        service("none", json!({"clusterIP": "None", "ports": ports})),
        service("out", json!({"type": "ExternalName", "externalName": "Example.org."})),
        service("inner", json!({"type": "ExternalName", "externalName": "web.d.svc.cluster.local"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.d.svc.cluster.local"})),
    ];
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.244.0.2"], "hostname": "db-0"},
            {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.4"], "conditions": {"ready": false}},
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }))
    .unwrap();
    Zone::new("cluster.local", 42, &services.iter().collect::<Vec<_>>(), &[&slice])
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

/// The answer in short: code, answers, sorted and in text.
fn ask(name: &str, kind: RecordType) -> String {
    match respond(&zone(), &question(name, kind)) {
        Reply::Forward => "forward".into(),
        Reply::Silence => "silence".into(),
        Reply::Complete(message, target) => format!("{} then {target}", short(&message)),
        Reply::Message(message) => short(&message),
    }
}

fn short(message: &Message) -> String {
    assert!(message.metadata.authoritative);
    let mut answers: Vec<String> =
        message.answers.iter().map(|r| format!("{} {}", r.record_type(), r.data)).collect();
    answers.sort();
    if message.answers.is_empty() {
        assert_eq!(message.authorities.len(), 1);
        assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
    }
    for record in &message.answers {
        assert_eq!(record.ttl, 5);
    }
    match message.metadata.response_code {
        ResponseCode::NoError => answers.join(", "),
        ResponseCode::NXDomain => "nxdomain".into(),
        other => other.to_string(),
    }
}

#[test]
fn services() {
    use RecordType::{A, AAAA, MX, SRV};
    assert_eq!(ask("web.d.svc.cluster.local", A), "A 10.96.0.7");
    assert_eq!(ask("WEB.D.SVC.Cluster.Local", A), "A 10.96.0.7");
    assert_eq!(ask("web.d.svc.cluster.local", AAAA), "AAAA fd96::7");
    assert_eq!(ask("web.d.svc.cluster.local", MX), "");
    assert_eq!(ask("_http._tcp.web.d.svc.cluster.local", SRV), "SRV 0 100 80 web.d.svc.cluster.local.");
    assert_eq!(ask("_dns._udp.web.d.svc.cluster.local", SRV), "SRV 0 100 53 web.d.svc.cluster.local.");
    assert_eq!(ask("_http._udp.web.d.svc.cluster.local", SRV), "nxdomain");
    assert_eq!(ask("_tcp.web.d.svc.cluster.local", SRV), "");
    assert_eq!(ask("absent.d.svc.cluster.local", A), "nxdomain");
}

#[test]
fn headless_services() {
    use RecordType::{A, AAAA, SRV};
    assert_eq!(ask("db.d.svc.cluster.local", A), "A 10.244.0.2, A 10.244.0.3");
    assert_eq!(ask("db.d.svc.cluster.local", AAAA), "");
    assert_eq!(ask("db-0.db.d.svc.cluster.local", A), "A 10.244.0.2");
    assert_eq!(ask("10-244-0-3.db.d.svc.cluster.local", A), "A 10.244.0.3");
    assert_eq!(ask("10-244-0-4.db.d.svc.cluster.local", A), "nxdomain");
    assert_eq!(ask("none.d.svc.cluster.local", A), "nxdomain");
    assert_eq!(
        ask("_http._tcp.db.d.svc.cluster.local", SRV),
        "SRV 0 50 8080 10-244-0-3.db.d.svc.cluster.local., SRV 0 50 8080 db-0.db.d.svc.cluster.local."
    );
}

#[test]
fn external_names() {
    use RecordType::{A, AAAA, CNAME};
    assert_eq!(ask("out.d.svc.cluster.local", CNAME), "CNAME example.org.");
    assert_eq!(ask("out.d.svc.cluster.local", A), "CNAME example.org. then example.org.");
    assert_eq!(ask("inner.d.svc.cluster.local", A), "A 10.96.0.7, CNAME web.d.svc.cluster.local.");
    assert!(ask("loop.d.svc.cluster.local", AAAA).starts_with("CNAME loop."));
}

#[test]
fn pods_and_the_domain_itself() {
    use RecordType::{A, NS, SOA, TXT};
    assert_eq!(ask("10-244-0-9.d.pod.cluster.local", A), "A 10.244.0.9");
    assert_eq!(ask("somebody.d.pod.cluster.local", A), "nxdomain");
    for name in ["svc.cluster.local", "pod.cluster.local", "d.svc.cluster.local", "cluster.local"] {
        assert_eq!(ask(name, A), "", "{name}");
    }
    for name in ["x.cluster.local", "absent.svc.cluster.local", "example.org.d.svc.cluster.local", "a.b.c.d.e.cluster.local"] {
        assert_eq!(ask(name, A), "nxdomain", "{name}");
    }
    assert_eq!(
        ask("cluster.local", SOA),
        "SOA ns.dns.cluster.local. hostmaster.cluster.local. 42 7200 1800 86400 5"
    );
    assert_eq!(ask("cluster.local", NS), "NS ns.dns.cluster.local.");
    assert_eq!(ask("dns-version.cluster.local", TXT), "TXT 1.1.0");
    assert_eq!(ask("example.org", A), "forward");
    assert_eq!(ask("mycluster.local", A), "forward");
}

#[test]
fn addresses_back_to_names() {
    use RecordType::{A, PTR};
    assert_eq!(ask("7.0.96.10.in-addr.arpa", PTR), "PTR web.d.svc.cluster.local.");
    assert_eq!(ask("2.0.244.10.in-addr.arpa", PTR), "PTR db-0.db.d.svc.cluster.local.");
    assert_eq!(ask("7.0.96.10.in-addr.arpa", A), "");
    assert_eq!(ask("1.1.1.1.in-addr.arpa", PTR), "forward");
    let six = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa";
    assert_eq!(ask(six, PTR), "PTR web.d.svc.cluster.local.");
}

#[test]
fn what_is_no_ordinary_question() {
    let reply = |message: &Message| match respond(&zone(), message) {
        Reply::Message(message) => message.metadata.response_code,
        _ => panic!("no message"),
    };
    assert_eq!(reply(&Message::query()), ResponseCode::FormErr);
    let mut update = question("web.d.svc.cluster.local", RecordType::A);
    update.metadata.op_code = hickory_proto::op::OpCode::Update;
    assert_eq!(reply(&update), ResponseCode::NotImp);
    let answer = Message::error_msg(1, hickory_proto::op::OpCode::Query, ResponseCode::NoError);
    assert!(matches!(respond(&zone(), &answer), Reply::Silence));
}
