//! The real [`Netlink`]: one blocking rtnetlink socket, used by one thread at a time.

use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    DefaultNla,
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::net::IpAddr;

use crate::{
    Error, Link, LinkChange, Mac, Neighbour, NeighbourKind, Netlink, NewKind, NewLink, Prefix, Result, Route, dump,
};

/// An rtnetlink socket in the network namespace of the thread that opened it.
pub struct Handle {
    inner: Mutex<Inner>,
}

struct Inner {
    socket: Socket,
    sequence: u32,
}

impl Handle {
    /// Opens a handle in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // Explanations are a courtesy of newer kernels; without them errors are only terser.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { inner: Mutex::new(Inner { socket, sequence: 0 }) })
    }

    fn request(&self, what: impl Fn() -> String, message: Message, flags: u16) -> Result<Vec<Message>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.request(&what, message, flags)
    }

    fn execute(&self, what: impl Fn() -> String, message: Message, flags: u16) -> Result<()> {
        self.request(what, message, flags | NLM_F_ACK).map(drop)
    }

    /// Adds an address that the kernel removes by itself after so many seconds, unless it is told again before.
    pub fn hold_address(&self, index: u32, address: Prefix, seconds: u32) -> Result<()> {
        let mut message = address_message(index, address);
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_valid, lifetime.ifa_preferred) = (seconds, seconds);
        message.attributes.push(AddressAttribute::CacheInfo(lifetime));
        self.execute(|| format!("hold address {address}"), Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn remove(&self, what: impl Fn() -> String, message: Message) -> Result<bool> {
        match self.execute(what, message, 0) {
            Ok(()) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Inner {
    /// Sends one request and collects its answers up to the acknowledgement or the end of the dump.
    fn request(&mut self, what: &dyn Fn() -> String, message: Message, flags: u16) -> Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let io = |source| Error::Io { what: what(), source };
        self.socket.send(&bytes, 0).map_err(io)?;

        let multipart = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(io)?;
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                if length < 16 || length > rest.len() {
                    return Err(Error::Malformed { what: what(), detail: format!("length {length}") });
                }
                let (one, sequence) = (&rest[..length], u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]));
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                if sequence != self.sequence {
                    continue; // of an earlier request that was given up
                }
                let answer = NetlinkMessage::<Message>::deserialize(one)
                    .map_err(|e| Error::Malformed { what: what(), detail: e.to_string() })?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if !multipart && flags & NLM_F_ACK == 0 {
                            return Ok(answers);
                        }
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => {
                        return Err(Error::Kernel {
                            what: what(),
                            explanation: explanation(&error.header),
                            source: error.to_io(),
                        });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The text (`NLMSGERR_ATTR_MSG`) after the capped header of an error message.
fn explanation(after_code: &[u8]) -> Option<String> {
    let mut rest = after_code.get(16..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        if kind == 1 {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

fn basics(name: &str, mac: Option<Mac>, mtu: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.extend(mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
}

const EAFNOSUPPORT: i32 = 97;
const NESTED: u16 = 1 << 15;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_EUI64: u8 = 0;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// One attribute in the kernel's form, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = u16::try_from(length).expect("attributes here are small").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn ipv4_family(loopback_routes: bool) -> Vec<u8> {
    let value = attribute(IPV4_DEVCONF_ROUTE_LOCALNET, &u32::from(loopback_routes).to_ne_bytes());
    attribute(AF_INET | NESTED, &attribute(IFLA_INET_CONF | NESTED, &value))
}

fn ipv6_family(link_local: bool) -> Vec<u8> {
    let mode = if link_local { IN6_ADDR_GEN_MODE_EUI64 } else { IN6_ADDR_GEN_MODE_NONE };
    attribute(AF_INET6 | NESTED, &attribute(IFLA_INET6_ADDR_GEN_MODE, &[mode]))
}

/// The settings of address families. Not by the crate's types: those are of the form in which the kernel reports them,
/// which is another one than it takes.
fn families<'a>(families: impl Iterator<Item = &'a Vec<u8>>) -> LinkAttribute {
    LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC | NESTED, families.flatten().copied().collect()))
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.destination.address);
    message.header.destination_prefix_length = route.destination.length;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.gateway.is_some() || route.destination.address.is_ipv6() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    if route.destination.length > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(route.destination.address)));
    }
    message.attributes.extend(route.gateway.map(|g| RouteAttribute::Gateway(route_address(g))));
    message.attributes.extend(route.source.map(|s| RouteAttribute::PrefSource(route_address(s))));
    message.attributes.push(RouteAttribute::Oif(route.index));
    message
}

fn address_message(index: u32, prefix: Prefix) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(prefix.address);
    message.header.prefix_len = prefix.length;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(prefix.address), AddressAttribute::Address(prefix.address)];
    message
}

fn neighbour_message(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = neighbour.index;
    message.header.state = NeighbourState::Permanent;
    let address = match neighbour.kind {
        NeighbourKind::Address(address) => {
            message.header.family = family(address);
            address
        }
        NeighbourKind::Forward(address) => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            address
        }
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    message
}

impl Netlink for Handle {
    fn links(&self) -> Result<Vec<Link>> {
        let answers = self.request(|| "list links".into(), Message::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|m| match m {
                Message::NewLink(message) => Some(dump::link(message)),
                _ => None,
            })
            .collect())
    }

    fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(|| format!("get link {name}"), Message::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|m| match m {
                Message::NewLink(message) => Some(dump::link(message)),
                _ => None,
            })),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create_link(&self, link: &NewLink) -> Result<()> {
        let mut message = basics(&link.name, link.mac, link.mtu);
        let info = match &link.kind {
            NewKind::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
            NewKind::Dummy => vec![LinkInfo::Kind(InfoKind::Dummy)],
            NewKind::Veth(peer) => {
                // The kernel makes the peer first and refuses to bring up half a pair.
                let mut other = basics(&peer.name, peer.mac, link.mtu);
                other.header.flags = LinkFlags::empty();
                other.header.change_mask = LinkFlags::empty();
                other.attributes.extend(peer.netns.map(LinkAttribute::NetNsFd));
                vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)))]
            }
            NewKind::Vxlan { vni, port, local } => {
                let mut options = vec![InfoVxlan::Id(*vni), InfoVxlan::Port(*port), InfoVxlan::Learning(false)];
                options.extend(local.map(InfoVxlan::Local));
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(options))]
            }
        };
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.execute(
            || format!("create link {}", link.name),
            Message::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    fn delete_link(&self, name: &str) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.remove(|| format!("delete link {name}"), Message::DelLink(message))
    }

    fn change_link(&self, index: u32, change: &LinkChange) -> Result<()> {
        let what = || format!("change link {index}");
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            if up {
                message.header.flags = LinkFlags::Up;
            }
        }
        message.attributes.extend(change.mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(change.netns.map(LinkAttribute::NetNsFd));
        let ipv4 = change.loopback_routes.map(ipv4_family);
        let ipv6 = change.link_local_ipv6.map(ipv6_family);
        if ipv6.is_some() {
            let mut with = message.clone();
            with.attributes.push(families(ipv4.iter().chain(&ipv6)));
            match self.execute(what, Message::SetLink(with), 0) {
                Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(EAFNOSUPPORT) => {}
                other => return other,
            }
        }
        if ipv4.is_some() {
            message.attributes.push(families(ipv4.iter()));
        }
        self.execute(what, Message::SetLink(message), 0)
    }

    fn addresses(&self, index: u32) -> Result<Vec<Prefix>> {
        let message = Message::GetAddress(AddressMessage::default());
        let answers = self.request(|| "list addresses".into(), message, NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|m| match m {
                Message::NewAddress(message) => dump::address(message),
                _ => None,
            })
            .filter(|(i, _)| *i == index)
            .map(|(_, prefix)| prefix)
            .collect())
    }

    fn add_address(&self, index: u32, address: Prefix) -> Result<()> {
        self.execute(
            || format!("add address {address}"),
            Message::NewAddress(address_message(index, address)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    fn delete_address(&self, index: u32, address: Prefix) -> Result<bool> {
        self.remove(|| format!("delete address {address}"), Message::DelAddress(address_message(index, address)))
    }

    fn routes(&self) -> Result<Vec<Route>> {
        let answers = self.request(|| "list routes".into(), Message::GetRoute(RouteMessage::default()), NLM_F_DUMP)?;
        Ok(answers
            .into_iter()
            .filter_map(|m| match m {
                Message::NewRoute(message) => dump::route(message),
                _ => None,
            })
            .collect())
    }

    fn add_route(&self, route: &Route) -> Result<()> {
        self.execute(
            || format!("add route to {}", route.destination),
            Message::NewRoute(route_message(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    fn delete_route(&self, route: &Route) -> Result<bool> {
        self.remove(|| format!("delete route to {}", route.destination), Message::DelRoute(route_message(route)))
    }

    fn neighbours(&self, index: u32) -> Result<Vec<Neighbour>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Unspec, AddressFamily::Bridge] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let answers = self.request(|| "list neighbours".into(), Message::GetNeighbour(message), NLM_F_DUMP)?;
            found.extend(answers.into_iter().filter_map(|m| match m {
                Message::NewNeighbour(message) => dump::neighbour(message).filter(|n| n.index == index),
                _ => None,
            }));
        }
        Ok(found)
    }

    fn add_neighbour(&self, neighbour: &Neighbour) -> Result<()> {
        self.execute(
            || format!("add neighbour {} {:?}", neighbour.mac, neighbour.kind),
            Message::NewNeighbour(neighbour_message(neighbour)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<bool> {
        self.remove(
            || format!("delete neighbour {} {:?}", neighbour.mac, neighbour.kind),
            Message::DelNeighbour(neighbour_message(neighbour)),
        )
    }
}
