//! Two nodes and an outside machine in network namespaces of their own: the pod network, the proxy
//! and DNS together, tried with real packets.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use netlink::{LinkChange, Netlink, NewKind, NewLink, Peer, Prefix, netns};
use nft::{Kernel, Nftables};
use overlay::{FilterRules, HostPort, NodeView, Overlay, PacketFilter, Protocol, Sandbox};
use proxy::{PodNetwork, PodRules, Range};
use reconcile::{Informers, Tasks};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(5);

/// What the binary does to connect the pod network with its packet filter.
struct Adapter(PodRules);

impl PacketFilter for Adapter {
    fn apply(&self, rules: &FilterRules) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let range = |p: &Prefix| Range { address: p.address, length: p.length };
        let protocol = |p: Protocol| match p {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        };
        let host_ports = rules.host_ports.iter();
        self.0.apply(&PodNetwork {
            pod_cidr: range(&rules.pod_cidr),
            cluster_cidrs: rules.cluster_cidrs.iter().map(range).collect(),
            link_prefix: rules.link_prefix.clone(),
            host_ports: host_ports
                .map(|(p, pod)| (protocol(p.protocol), p.host_ip, p.host_port, *pod, p.container_port))
                .collect(),
        })?;
        Ok(())
    }
}

struct Node {
    name: &'static str,
    netns: OwnedFd,
    nft: Arc<dyn Nftables>,
    overlay: Overlay,
    _data: tempfile::TempDir,
}

fn node(name: &'static str) -> Node {
    let netns = netns::create().unwrap();
    let data = tempfile::tempdir().unwrap();
    let nft: Arc<dyn Nftables> = Arc::new(netns::run(&netns, Kernel::open).unwrap().unwrap());
    let filter = Arc::new(Adapter(PodRules::new(nft.clone(), "knarr")));
    let mut config = overlay::Config::new(name, data.path().join("network"), vec!["10.244.0.0/16".parse().unwrap()]);
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let overlay = Overlay::open_in(config, filter, Some(netns.try_clone().unwrap())).unwrap();
    Node { name, netns, nft, overlay, _data: data }
}

/// Joins two namespaces by a cable with these addresses.
fn cable(name: &str, ends: [(&OwnedFd, &str); 2]) {
    let handles = ends.map(|(fd, _)| netns::handle(fd).unwrap());
    let peer = Peer { name: name.into(), mac: None, netns: Some(ends[1].0.as_raw_fd()) };
    let kind = NewKind::Veth(peer);
    handles[0].create_link(&NewLink { name: name.into(), mac: None, mtu: None, kind }).unwrap();
    for (net, (_, address)) in handles.iter().zip(ends) {
        let up = LinkChange { up: Some(true), ..Default::default() };
        net.change_link(net.link("lo").unwrap().unwrap().index, &up).unwrap();
        let index = net.link(name).unwrap().unwrap().index;
        net.change_link(index, &up).unwrap();
        net.add_address(index, address.parse().unwrap()).unwrap();
    }
}

impl Node {
    /// A pod whose server tells each client its own address as the server sees it.
    async fn pod(&self, id: &str, host_ports: Vec<HostPort>) -> (OwnedFd, IpAddr) {
        let netns = netns::create().unwrap();
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        let sandbox = Sandbox { id: id.into(), namespace: "d".into(), name: id.into(), uid: id.into() };
        let address = self.overlay.setup(&sandbox, &path, host_ports).await.unwrap()[0];
        let listener = netns::run(&netns, || TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("{address} {}", peer.ip()).as_bytes());
            }
        });
        (netns, address)
    }

    /// Runs proxy and DNS inside the node until the test ends.
    fn run(&self, objects: Arc<Objects>, dns: IpAddr) {
        let netns = self.netns.try_clone().unwrap();
        let (name, nft) = (self.name, self.nft.clone());
        let (started, ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            netns::run(&netns, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let tasks = Tasks::new();
                    let informers = Informers::new(api(objects), tasks.clone());
                    let config = proxy::Config {
                        node_name: name.into(),
                        prefix: "knarr".into(),
                        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                    };
                    let mut services = proxy::run(config, nft, &informers, &tasks);
                    let config = dns::Config::new(
                        vec![SocketAddr::new(dns, 53)],
                        "cluster.local",
                        "10.96.0.10".parse().unwrap(),
                    );
                    let mut names = dns::run(config, &informers, &tasks);
                    services.wait_for(|r| *r).await.unwrap();
                    names.wait_for(|r| *r).await.unwrap();
                    started.send(()).unwrap();
                    std::future::pending::<()>().await;
                });
            })
        });
        ready.recv_timeout(LIMIT).unwrap();
    }
}

struct Objects {
    services: Value,
    slices: Value,
}

fn api(objects: Arc<Objects>) -> kube::Client {
    client::in_process(move |request: http::Request<kube::client::Body>| {
        let objects = objects.clone();
        async move {
            if request.uri().query().is_some_and(|q| q.contains("watch=true")) {
                std::future::pending::<()>().await;
            }
            let items = match request.uri().path() {
                "/api/v1/services" => &objects.services,
                "/apis/discovery.k8s.io/v1/endpointslices" => &objects.slices,
                other => panic!("unexpected {other}"),
            };
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
            http::Response::new(Full::new(Bytes::from(list.to_string())))
        }
    })
}

fn service(name: &str, address: &str, node_port: u16, more: Value) -> Value {
    let mut spec = json!({
        "type": "NodePort", "clusterIP": address, "clusterIPs": [address],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": node_port}],
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"namespace": "d", "name": name, "resourceVersion": "1"}, "spec": spec})
}

fn slice(service: &str, node: &str, address: IpAddr) -> Value {
    json!({
        "metadata": {"namespace": "d", "name": format!("{service}-{node}"), "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": true}}],
    })
}

/// Connects from a namespace and reads what the server says: who it is and whom it sees.
fn ask(from: &OwnedFd, address: &str) -> std::io::Result<(IpAddr, IpAddr)> {
    let address: SocketAddr = address.parse().unwrap();
    netns::run(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (server, client) = text.split_once(' ').ok_or(ErrorKind::UnexpectedEof)?;
        Ok((server.parse().unwrap(), client.parse().unwrap()))
    })
    .unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn services_reach_pods_from_everywhere() {
    let (a, b, outside) = (node("a"), node("b"), netns::create().unwrap());
    cable("wire0", [(&a.netns, "192.0.2.1/24"), (&b.netns, "192.0.2.2/24")]);
    cable("wire1", [(&a.netns, "198.51.100.1/24"), (&outside, "198.51.100.9/24")]);
    // No machine has a default route: nothing here may depend on one.
    let views: Vec<NodeView> = [("a", 0, 1), ("b", 1, 2)]
        .map(|(name, range, last)| NodeView {
            name: name.into(),
            pod_cidr: format!("10.244.{range}.0/24").parse().ok(),
            internal_ip: Some(Ipv4Addr::new(192, 0, 2, last)),
            foreign: false,
        })
        .into();
    a.overlay.apply(&views).await.unwrap();
    b.overlay.apply(&views).await.unwrap();
    let port = HostPort { host_ip: None, host_port: 8081, container_port: 8080, protocol: Protocol::Tcp };
    let (pod_a, ip_a) = a.pod("pa", vec![port]).await;
    let (pod_b, ip_b) = b.pod("pb", vec![]).await;

    let dns_slice = json!({
        "metadata": {"namespace": "kube-system", "name": "kube-dns-nodes", "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": dns::publish::slice(&[("a", "10.244.0.0/24"), ("b", "10.244.1.0/24")].map(|(name, range)| {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDR": range}})).unwrap())
        }))["endpoints"],
    });
    let mut dns_service = dns::publish::service(ip("10.96.0.10"));
    dns_service["metadata"]["resourceVersion"] = json!("1");
    let local = json!({"externalTrafficPolicy": "Local"});
    let objects = Arc::new(Objects {
        services: json!([
            service("on-a", "10.96.0.1", 30001, json!({})),
            service("on-b", "10.96.0.2", 30002, json!({})),
            service("nowhere", "10.96.0.3", 30003, json!({})),
            service("local", "10.96.0.4", 30004, local),
            dns_service,
        ]),
        slices: json!([slice("on-a", "a", ip_a), slice("on-b", "b", ip_b), slice("local", "a", ip_a), dns_slice]),
    });
    a.run(objects.clone(), ip("10.244.0.1"));
    b.run(objects, ip("10.244.1.1"));

    let gateway = ip("10.244.0.1");
    assert_eq!(ask(&pod_a, "10.96.0.2:80").unwrap(), (ip_b, ip_a), "pod to the other node's pod");
    assert_eq!(ask(&pod_b, "10.96.0.1:80").unwrap(), (ip_a, ip_b), "and back");
    // Which of its addresses the node masquerades as is the kernel's choice on links without one.
    let own = [gateway, ip("192.0.2.1"), ip("198.51.100.1")];
    let (server, client) = ask(&pod_a, "10.96.0.1:80").unwrap();
    assert!(server == ip_a && own.contains(&client), "pod to itself: {client}");
    assert_eq!(ask(&a.netns, "10.96.0.1:80").unwrap().0, ip_a, "node to its own pod");
    assert_eq!(ask(&a.netns, "10.96.0.2:80").unwrap(), (ip_b, gateway), "node to the other's pod");
    for target in ["198.51.100.1:30001", "198.51.100.1:30002"] {
        let (server, client) = ask(&outside, target).unwrap();
        assert!([ip_a, ip_b].contains(&server), "node port from outside");
        assert!(own.contains(&client), "masqueraded: {client}");
    }
    assert_eq!(ask(&outside, "198.51.100.1:30004").unwrap(), (ip_a, ip("198.51.100.9")), "Local keeps the client");
    assert_eq!(ask(&outside, "198.51.100.1:8081").unwrap(), (ip_a, ip("198.51.100.9")), "host port");
    for (address, server) in [("127.0.0.1:30001", ip_a), ("127.0.0.1:30002", ip_b), ("127.0.0.1:8081", ip_a)] {
        assert_eq!(ask(&a.netns, address).unwrap_or_else(|e| panic!("{address}: {e}")).0, server, "{address}");
    }
    assert_eq!(ask(&a.netns, "192.0.2.1:30002").unwrap().0, ip_b, "own node port by the node's address");
    assert_eq!(ask(&pod_a, "192.0.2.2:30002").unwrap().0, ip_b, "the other node's port from a pod");
    for address in ["10.96.0.3:80", "10.96.0.1:81"] {
        for from in [&pod_a, &a.netns] {
            assert_eq!(ask(from, address).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{address}");
        }
    }
    assert_eq!(ask(&outside, "198.51.100.1:30003").unwrap_err().kind(), ErrorKind::ConnectionRefused);

    // The outside machine has no route to pods: they come to it under the node's address.
    let listener = netns::run(&outside, || TcpListener::bind("198.51.100.9:7").unwrap()).unwrap();
    netns::run(&pod_a, || TcpStream::connect_timeout(&"198.51.100.9:7".parse().unwrap(), LIMIT).unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), ip("198.51.100.1"));

    // DNS at the Service's address, answered by the pod's own node.
    for pod in [&pod_a, &pod_b] {
        assert_eq!(resolve(pod, "on-b.d.svc.cluster.local"), [10, 96, 0, 2]);
    }

    let nft = a.nft.clone();
    assert_eq!(proxy::purge(nft.as_ref(), "knarr").unwrap(), 2);
}

/// Asks the cluster's DNS for an IPv4 address, with a question written by hand.
fn resolve(from: &OwnedFd, name: &str) -> [u8; 4] {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let answer = netns::run(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect("10.96.0.10:53").unwrap();
        socket.send(&question).unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    })
    .unwrap();
    assert_eq!(answer[..2], question[..2]);
    answer[answer.len() - 4..].try_into().unwrap()
}
