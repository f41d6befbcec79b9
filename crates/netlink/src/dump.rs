//! From the kernel's messages to the types of this crate.

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::AddressFamily;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Link, LinkKind, Mac, Neighbour, NeighbourKind, Prefix, Route};

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(Mac)
}

fn kind(infos: Vec<LinkInfo>) -> LinkKind {
    let mut kind = LinkKind::Other(String::new());
    let (mut vni, mut port) = (0, 0);
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth,
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Dummy) => kind = LinkKind::Dummy,
            LinkInfo::Kind(InfoKind::Vxlan) => kind = LinkKind::Vxlan { vni: 0, port: 0 },
            LinkInfo::Kind(other) => kind = LinkKind::Other(other.to_string()),
            LinkInfo::Data(InfoData::Vxlan(options)) => {
                for option in options {
                    match option {
                        InfoVxlan::Id(v) => vni = v,
                        InfoVxlan::Port(v) => port = v,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if let LinkKind::Vxlan { .. } = kind { LinkKind::Vxlan { vni, port } } else { kind }
}

pub(crate) fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other(String::new()),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = mac(&bytes),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    link
}

pub(crate) fn address(message: AddressMessage) -> Option<(u32, Prefix)> {
    // For IPv4 `Local` is the address itself and `Address` the peer's; IPv6 has `Address` alone.
    let mut found = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(a) => found = Some(a),
            AddressAttribute::Address(a) if found.is_none() => found = Some(a),
            _ => {}
        }
    }
    Some((message.header.index, Prefix::new(found?, message.header.prefix_len)))
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(a.into()),
        RouteAddress::Inet6(a) => Some(a.into()),
        _ => None,
    }
}

pub(crate) fn route(message: RouteMessage) -> Option<Route> {
    let header = message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut route = Route {
        destination: Prefix::new(unspecified, header.destination_prefix_length),
        index: 0,
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        source: None,
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(a) => route.destination.address = ip(a)?,
            RouteAttribute::Gateway(a) => route.gateway = ip(a),
            RouteAttribute::PrefSource(a) => route.source = ip(a),
            RouteAttribute::Oif(index) => route.index = index,
            RouteAttribute::Table(t) => table = t,
            _ => {}
        }
    }
    (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
}

pub(crate) fn neighbour(message: NeighbourMessage) -> Option<Neighbour> {
    let forward = message.header.family == AddressFamily::Bridge;
    let permanent = matches!(message.header.state, NeighbourState::Permanent);
    // Forwarding entries that we make are `permanent` too; `Other` carries combined state bits.
    let permanent = permanent || matches!(message.header.state, NeighbourState::Other(bits) if bits & 0x80 != 0);
    if !permanent {
        return None;
    }
    let (mut found, mut hardware) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(&bytes),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => found = Some(a.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => found = Some(a.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                found = match bytes.len() {
                    4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
                    16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    let address = found?;
    Some(Neighbour {
        index: message.header.ifindex,
        mac: hardware?,
        kind: if forward { NeighbourKind::Forward(address) } else { NeighbourKind::Address(address) },
    })
}
