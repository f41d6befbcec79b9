//! Two nodes in network namespaces of their own, joined by a veth pair as their common network;
//! real packets between their pods.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink::{LinkChange, Netlink, NewKind, NewLink, Peer, netns};
use overlay::{Config, FilterRules, HostPort, NodeView, Overlay, PacketFilter, Protocol, Sandbox};
use parking_lot::Mutex;

#[derive(Default)]
struct Seen(Mutex<Option<FilterRules>>);

impl PacketFilter for Seen {
    fn apply(&self, rules: &FilterRules) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        *self.0.lock() = Some(rules.clone());
        Ok(())
    }
}

fn path(netns: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into()
}

fn sandbox(id: &str) -> Sandbox {
    Sandbox { id: id.into(), namespace: "default".into(), name: id.into(), uid: id.into() }
}

struct Host {
    netns: OwnedFd,
    config: Config,
    seen: Arc<Seen>,
    overlay: Overlay,
    _data: tempfile::TempDir,
}

fn host(name: &str) -> Host {
    let netns = netns::create().unwrap();
    let data = tempfile::tempdir().unwrap();
    let config = Config::new(name, data.path().join("network"), vec!["10.244.0.0/16".parse().unwrap()]);
    let seen = Arc::new(Seen::default());
    let overlay = Overlay::open_in(config.clone(), seen.clone(), Some(netns.try_clone().unwrap())).unwrap();
    Host { netns, config, seen, overlay, _data: data }
}

/// Joins two namespaces by a cable.
fn cable(a: &Host, b: &Host) {
    let (left, right) = (netns::handle(&a.netns).unwrap(), netns::handle(&b.netns).unwrap());
    let peer = Peer { name: "wire0".into(), mac: None, netns: Some(b.netns.as_raw_fd()) };
    left.create_link(&NewLink { name: "wire0".into(), mac: None, mtu: None, kind: NewKind::Veth(peer) }).unwrap();
    for (net, address) in [(&left, "192.0.2.1/24"), (&right, "192.0.2.2/24")] {
        let index = net.link("wire0").unwrap().unwrap().index;
        net.change_link(index, &LinkChange { up: Some(true), ..Default::default() }).unwrap();
        net.add_address(index, address.parse().unwrap()).unwrap();
        let lo = net.link("lo").unwrap().unwrap().index;
        net.change_link(lo, &LinkChange { up: Some(true), ..Default::default() }).unwrap();
    }
}

fn nodes() -> Vec<NodeView> {
    [("a", 0, 1), ("b", 1, 2)]
        .map(|(name, range, ip)| NodeView {
            name: name.into(),
            pod_cidr: format!("10.244.{range}.0/24").parse().ok(),
            internal_ip: Some(Ipv4Addr::new(192, 0, 2, ip)),
            foreign: false,
        })
        .into()
}

/// Sends a megabyte from one namespace to another; returns the address that the server saw.
fn talk(from: &OwnedFd, to: &OwnedFd, address: IpAddr) -> IpAddr {
    let listener = netns::run(to, || TcpListener::bind((address, 8080)).unwrap()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        (received.len(), peer.ip())
    });
    netns::run(from, || {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 8080), limit).unwrap();
        stream.set_write_timeout(Some(limit)).unwrap();
        stream.write_all(&vec![7; 1 << 20]).unwrap();
    })
    .unwrap();
    let (received, peer) = server.join().unwrap();
    assert_eq!(received, 1 << 20);
    peer
}

#[tokio::test]
async fn pods_reach_each_other_on_one_node_and_across() {
    let (a, b) = (host("a"), host("b"));
    cable(&a, &b);
    assert!(a.overlay.ready().await.unwrap_err().contains("no pod range"));
    a.overlay.apply(&nodes()).await.unwrap();
    b.overlay.apply(&nodes()).await.unwrap();
    a.overlay.ready().await.unwrap();
    assert_eq!(*a.overlay.gateway().borrow(), Some(Ipv4Addr::new(10, 244, 0, 1)));

    let pods: Vec<OwnedFd> = (0..3).map(|_| netns::create().unwrap()).collect();
    let one = a.overlay.setup(&sandbox("one"), &path(&pods[0]), vec![]).await.unwrap()[0];
    let two = a.overlay.setup(&sandbox("two"), &path(&pods[1]), vec![]).await.unwrap()[0];
    let three = b.overlay.setup(&sandbox("three"), &path(&pods[2]), vec![]).await.unwrap()[0];
    assert_eq!([one, two, three].map(|ip| ip.to_string()), ["10.244.0.2", "10.244.0.3", "10.244.1.2"]);

    assert_eq!(talk(&pods[0], &pods[1], two), one, "on one node");
    assert_eq!(talk(&pods[0], &pods[2], three), one, "across nodes");
    assert_eq!(talk(&a.netns, &pods[2], three), Ipv4Addr::new(10, 244, 0, 1), "from a node to the other's pod");
    assert_eq!(talk(&pods[2], &a.netns, Ipv4Addr::new(10, 244, 0, 1).into()), three, "to the other's gateway");

    // A datagram of exactly the pod's MTU passes unfragmented.
    let server = netns::run(&pods[2], || UdpSocket::bind((three, 9)).unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    netns::run(&pods[0], || {
        UdpSocket::bind((one, 0)).unwrap().send_to(&[1; 1450 - 28], (three, 9)).unwrap();
    })
    .unwrap();
    assert_eq!(server.recv(&mut [0; 2000]).unwrap(), 1450 - 28);
}

#[tokio::test]
async fn setup_is_quick_repeatable_and_survives_a_restart() {
    let a = host("a");
    a.overlay.apply(&nodes()).await.unwrap();
    let pods: Vec<OwnedFd> = (0..21).map(|_| netns::create().unwrap()).collect();
    let port = HostPort { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Tcp };
    let mut times = Vec::new();
    for (i, pod) in pods.iter().enumerate() {
        let start = Instant::now();
        a.overlay.setup(&sandbox(&format!("s{i}")), &path(pod), vec![port.clone()]).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    println!("set-up takes {:?} at the median, {:?} at most", times[10], times[20]);
    let again = a.overlay.setup(&sandbox("s0"), &path(&pods[0]), vec![port.clone()]).await.unwrap();
    assert_eq!(again[0].to_string(), "10.244.0.2");
    assert_eq!(a.seen.0.lock().as_ref().unwrap().host_ports.len(), 21);

    let netns = Some(a.netns.try_clone().unwrap());
    let reopened = Overlay::open_in(a.config.clone(), a.seen.clone(), netns).unwrap();
    reopened.ready().await.unwrap();
    let fresh = netns::create().unwrap();
    let next = reopened.setup(&sandbox("fresh"), &path(&fresh), vec![]).await.unwrap();
    assert_eq!(next[0].to_string(), "10.244.0.23");
    reopened.retain(&["fresh".into()]).await.unwrap();
    let net = netns::handle(&a.netns).unwrap();
    assert_eq!(net.links().unwrap().iter().filter(|l| l.name.starts_with("knarr")).count(), 2);
    assert!(a.seen.0.lock().as_ref().unwrap().host_ports.is_empty());
    reopened.teardown("never-seen").await.unwrap();

    Overlay::purge_in(&a.config, Some(a.netns.try_clone().unwrap())).unwrap();
    assert_eq!(net.links().unwrap().iter().filter(|l| l.name.starts_with("knarr")).count(), 0);
    assert!(!a.config.data_dir.exists());
}

#[tokio::test]
async fn a_failed_setup_leaves_nothing() {
    let a = host("a");
    a.overlay.apply(&nodes()).await.unwrap();
    let missing = a.overlay.setup(&sandbox("s"), std::path::Path::new("/nonexistent"), vec![]).await;
    assert!(missing.is_err());
    // A namespace that already has an eth0 cannot take another.
    let pod = netns::create().unwrap();
    let inside = netns::handle(&pod).unwrap();
    inside.create_link(&NewLink { name: "eth0".into(), mac: None, mtu: None, kind: NewKind::Bridge }).unwrap();
    a.overlay.setup(&sandbox("s"), &path(&pod), vec![]).await.unwrap_err();
    let net = netns::handle(&a.netns).unwrap();
    assert_eq!(net.links().unwrap().iter().filter(|l| l.name.starts_with("knarr")).count(), 1);
    let other = netns::create().unwrap();
    a.overlay.setup(&sandbox("t"), &path(&other), vec![]).await.unwrap();
    a.overlay.setup(&sandbox("../../etc/x"), &path(&other), vec![]).await.unwrap_err();
}
