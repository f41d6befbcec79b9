//! What the requests and answers carry: links, prefixes, routes and neighbours.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address with the length of its network prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address; host bits may be set.
    pub address: IpAddr,
    /// The prefix length in bits.
    pub length: u8,
}

impl Prefix {
    /// A prefix of this length.
    pub fn new(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    /// The prefix that holds one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether an address lies in this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn bits(address: IpAddr) -> (u128, u32) {
            match address {
                IpAddr::V4(a) => (u128::from(u32::from(a)) << 96, 32),
                IpAddr::V6(a) => (u128::from(a), 128),
            }
        }
        let ((a, wa), (b, wb)) = (bits(self.address), bits(address));
        let shift = 128 - u32::from(self.length);
        wa == wb && a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not an address with a prefix length");
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let length: u8 = length.parse().map_err(|_| bad())?;
        if length > Prefix::host(address).length {
            return Err(bad());
        }
        Ok(Self { address, length })
    }
}

/// What kind of link it is, where it is one that this crate makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a virtual Ethernet pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A dummy link.
    Dummy,
    /// A VXLAN tunnel end point.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
    },
    /// Any other, by the kernel's name; empty for hardware.
    Other(String),
}

/// A link that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: LinkKind,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its maximum transmission unit in bytes.
    pub mtu: u32,
    /// Its hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
}

/// A link to be made. It is made up; the other end of a veth pair is made down.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its hardware address; a random one otherwise.
    pub mac: Option<Mac>,
    /// Its maximum transmission unit; the kernel's choice otherwise.
    pub mtu: Option<u32>,
    /// Its kind.
    pub kind: NewKind,
}

/// The kind of a link to be made.
#[derive(Clone, Debug)]
pub enum NewKind {
    /// A bridge.
    Bridge,
    /// A dummy link.
    Dummy,
    /// A virtual Ethernet pair, the other end of which may be in another namespace.
    Veth(Peer),
    /// A VXLAN tunnel end point without learning or default destination.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port.
        port: u16,
        /// The address that it sends from; by route otherwise.
        local: Option<Ipv4Addr>,
    },
}

/// The other end of a veth pair.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its hardware address; a random one otherwise.
    pub mac: Option<Mac>,
    /// An open descriptor of the network namespace it is made in; the same otherwise.
    pub netns: Option<RawFd>,
}

/// What to change on a link.
#[derive(Clone, Debug, Default)]
pub struct LinkChange {
    /// Administrative state.
    pub up: Option<bool>,
    /// Maximum transmission unit.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// An open descriptor of the network namespace it moves to.
    pub netns: Option<RawFd>,
    /// Whether packets to and from loopback addresses may pass (`route_localnet`).
    pub loopback_routes: Option<bool>,
    /// False: it gets no link-local IPv6 address by itself (`addr_gen_mode` none), true: one from its hardware address.
    /// Passed over where the kernel has no IPv6.
    pub link_local_ipv6: Option<bool>,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The destination; of length 0 for a default route.
    pub destination: Prefix,
    /// The outgoing link.
    pub index: u32,
    /// The next hop; the destination is on the link otherwise.
    pub gateway: Option<IpAddr>,
    /// The next hop is on the link even if no route says so.
    pub onlink: bool,
    /// The preferred source address of the machine's own packets.
    pub source: Option<IpAddr>,
}

/// A permanent neighbour or forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// The link.
    pub index: u32,
    /// The hardware address.
    pub mac: Mac,
    /// Which of the two it is.
    pub kind: NeighbourKind,
}

/// What a neighbour entry maps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NeighbourKind {
    /// An address of the link's network to the hardware address.
    Address(IpAddr),
    /// The hardware address to the tunnel end point behind which it is.
    Forward(IpAddr),
}
