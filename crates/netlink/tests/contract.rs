//! The contract of [`netlink::Netlink`], run against the fake and against the kernel in a network
//! namespace of its own.

use netlink::{
    Handle, LinkChange, LinkKind, Mac, Neighbour, NeighbourKind, Netlink, NewKind, NewLink, Peer, Prefix, Route, netns,
};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn contract(net: &dyn Netlink) {
    let mac = Mac([0x0a, 0x58, 10, 1, 0, 1]);
    assert!(net.link("t0").unwrap().is_none());
    assert!(!net.delete_link("t0").unwrap());
    let bridge = NewLink { name: "t0".into(), mac: Some(mac), mtu: Some(1400), kind: NewKind::Bridge };
    net.create_link(&bridge).unwrap();
    assert!(net.create_link(&bridge).unwrap_err().is_exists());
    let link = net.link("t0").unwrap().unwrap();
    assert_eq!((link.kind.clone(), link.mtu, link.mac, link.up), (LinkKind::Bridge, 1400, Some(mac), true));
    net.change_link(link.index, &LinkChange { mtu: Some(1300), ..Default::default() }).unwrap();
    assert_eq!(net.link("t0").unwrap().unwrap().mtu, 1300);

    let address = prefix("10.1.0.1/24");
    net.add_address(link.index, address).unwrap();
    net.add_address(link.index, address).unwrap();
    assert!(net.addresses(link.index).unwrap().contains(&address));

    let mut route = Route {
        destination: prefix("10.2.0.0/24"),
        index: link.index,
        gateway: Some("10.9.9.9".parse().unwrap()),
        onlink: true,
        source: Some(address.address),
    };
    net.add_route(&route).unwrap();
    net.add_route(&route).unwrap();
    assert!(net.routes().unwrap().contains(&route));
    route.gateway = Some("10.9.9.8".parse().unwrap());
    net.add_route(&route).unwrap();
    assert_eq!(net.routes().unwrap().iter().filter(|r| r.destination == route.destination).count(), 1);
    assert!(net.delete_route(&route).unwrap());
    assert!(!net.delete_route(&route).unwrap());

    let neighbour =
        Neighbour { index: link.index, mac, kind: NeighbourKind::Address("10.1.0.7".parse().unwrap()) };
    net.add_neighbour(&neighbour).unwrap();
    net.add_neighbour(&neighbour).unwrap();
    assert_eq!(net.neighbours(link.index).unwrap().iter().filter(|n| **n == neighbour).count(), 1);
    assert!(net.delete_neighbour(&neighbour).unwrap());
    assert!(!net.neighbours(link.index).unwrap().contains(&neighbour));

    let vxlan = NewKind::Vxlan { vni: 7, port: 8472, local: None };
    net.create_link(&NewLink { name: "t1".into(), mac: Some(mac), mtu: Some(1350), kind: vxlan }).unwrap();
    let tunnel = net.link("t1").unwrap().unwrap();
    assert_eq!(tunnel.kind, LinkKind::Vxlan { vni: 7, port: 8472 });
    let forward =
        Neighbour { index: tunnel.index, mac, kind: NeighbourKind::Forward("192.0.2.1".parse().unwrap()) };
    net.add_neighbour(&forward).unwrap();
    assert_eq!(net.neighbours(tunnel.index).unwrap(), std::slice::from_ref(&forward));
    assert!(net.delete_neighbour(&forward).unwrap());

    let veth = NewKind::Veth(Peer { name: "t3".into(), mac: None, netns: None });
    net.create_link(&NewLink { name: "t2".into(), mac: None, mtu: None, kind: veth }).unwrap();
    assert!(net.links().unwrap().iter().any(|l| l.name == "t3" && l.kind == LinkKind::Veth));
    assert!(net.delete_address(link.index, address).unwrap());
    assert!(!net.delete_address(link.index, address).unwrap());
    for name in ["t0", "t1", "t2"] {
        assert!(net.delete_link(name).unwrap());
    }
    assert!(net.link("t3").unwrap().is_none(), "the other end goes too");
    let error = net.change_link(4711, &LinkChange { up: Some(true), ..Default::default() }).unwrap_err();
    assert!(error.is_absent(), "{error}");
}

#[test]
fn fake() {
    contract(&netlink::fake::Fake::new());
}

#[test]
fn kernel() {
    let namespace = netns::create().unwrap();
    contract(&netns::handle(&namespace).unwrap());
}

#[test]
fn veth_across_namespaces() {
    use std::os::fd::AsRawFd;
    let (one, two) = (netns::create().unwrap(), netns::create().unwrap());
    let (a, b): (Handle, Handle) = (netns::handle(&one).unwrap(), netns::handle(&two).unwrap());
    let mac = Mac([0x0a, 0x58, 1, 2, 3, 4]);
    let peer = Peer { name: "eth0".into(), mac: Some(mac), netns: Some(two.as_raw_fd()) };
    a.create_link(&NewLink { name: "v0".into(), mac: None, mtu: Some(1400), kind: NewKind::Veth(peer) }).unwrap();
    let inside = b.link("eth0").unwrap().unwrap();
    assert_eq!((inside.mac, inside.mtu, inside.up), (Some(mac), 1400, false));
    b.change_link(inside.index, &LinkChange { up: Some(true), ..Default::default() }).unwrap();
    assert!(b.link("eth0").unwrap().unwrap().up);
    let outside = a.link("v0").unwrap().unwrap();
    let change = LinkChange { loopback_routes: Some(true), link_local_ipv6: Some(false), ..Default::default() };
    a.change_link(outside.index, &change).unwrap();
    let setting = |path: &str| netns::run(&one, || std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap()).unwrap();
    assert_eq!(setting("ipv4/conf/v0/route_localnet"), "1\n");
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        assert_eq!(setting("ipv6/conf/v0/addr_gen_mode"), "1\n");
    }
    let fd = Some(two.as_raw_fd());
    let outside = a.link("v0").unwrap().unwrap();
    a.change_link(outside.index, &LinkChange { netns: fd, ..Default::default() }).unwrap();
    assert!(a.link("v0").unwrap().is_none() && b.link("v0").unwrap().is_some());
}

#[test]
fn prefixes() {
    assert!(prefix("10.244.0.0/16").contains("10.244.9.1".parse().unwrap()));
    assert!(!prefix("10.244.0.0/16").contains("10.245.0.1".parse().unwrap()));
    assert!(prefix("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
    assert!(prefix("fd00::/8").contains("fd12::1".parse().unwrap()));
    assert!(!prefix("fd00::/8").contains("10.0.0.1".parse().unwrap()));
    assert!("10.0.0.0/33".parse::<Prefix>().is_err());
}
