//! One pod's link: made straight inside the pod's namespace, with a host route to it. Neighbour
//! entries are permanent on both sides, so no packet ever waits for ARP.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink::{Handle, LinkChange, Mac, Neighbour, NeighbourKind, Netlink, NewKind, NewLink, Peer, Prefix, Route, netns};

use crate::apply::Host;
use crate::{Error, mac_of};

/// All host ends have this hardware address: it is only ever seen from inside a pod.
const HOST_MAC: Mac = Mac([0xee; 6]);
/// The pod's end, as CRI runtimes name it.
const POD_LINK: &str = "eth0";

/// A pod's link.
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// The name of the host's end: the prefix and 10 hexadecimal digits of a hash of the sandbox.
pub(crate) fn name(prefix: &str, id: &str) -> String {
    // FNV-1a: stable over releases, which the standard library's hasher is not.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{prefix}{:010x}", hash & 0xff_ffff_ffff)
}

/// Whether a link's name is one that [`name`] makes.
pub(crate) fn is_ours(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// Makes the pair and both ends' configuration. The caller deletes the link when this fails.
pub(crate) fn connect(host: &Host, pod: &OwnedFd, veth: &Veth<'_>) -> Result<(), Error> {
    let net: &dyn Netlink = host.net.as_ref();
    let pod_mac = mac_of(veth.address);
    // A link of this name is left from an earlier attempt for the same sandbox.
    net.delete_link(veth.name)?;
    net.create_link(&NewLink {
        name: veth.name.to_owned(),
        mac: Some(HOST_MAC),
        mtu: Some(veth.mtu),
        kind: NewKind::Veth(Peer {
            name: POD_LINK.into(),
            mac: Some(pod_mac),
            netns: Some(pod.as_raw_fd()),
        }),
    })?;
    let missing = || Error::NotReady(format!("{} went away", veth.name));
    let index = net.link(veth.name)?.ok_or_else(missing)?.index;
    // Loopback routes let 127.0.0.1:nodePort lead to pods; the packet filter keeps pods from our loopback. Neither is set
    // by writing to /proc/sys: for IPv6 the kernel lets such a writer spin while others change links.
    let change = LinkChange { loopback_routes: Some(true), link_local_ipv6: Some(false), ..LinkChange::default() };
    net.change_link(index, &change)?;
    netns::run(pod, || inside(veth))??;
    let address: IpAddr = veth.address.into();
    net.add_route(&Route {
        destination: Prefix::host(address),
        index,
        gateway: None,
        onlink: false,
        source: Some(veth.gateway.into()),
    })?;
    net.add_neighbour(&Neighbour { index, mac: pod_mac, kind: NeighbourKind::Address(address) })?;
    Ok(())
}

/// Configures the pod's end, on a thread inside its namespace.
fn inside(veth: &Veth<'_>) -> Result<(), Error> {
    let net = Handle::open()?;
    let missing = |name: &str| Error::NotReady(format!("the pod has no link {name}"));
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let loopback = net.link("lo")?.ok_or_else(|| missing("lo"))?;
    if !loopback.up {
        net.change_link(loopback.index, &up)?;
    }
    let index = net.link(POD_LINK)?.ok_or_else(|| missing(POD_LINK))?.index;
    net.change_link(index, &up)?;
    net.add_address(index, Prefix::host(veth.address.into()))?;
    let gateway: IpAddr = veth.gateway.into();
    net.add_route(&Route { destination: Prefix::host(gateway), index, gateway: None, onlink: false, source: None })?;
    net.add_neighbour(&Neighbour { index, mac: HOST_MAC, kind: NeighbourKind::Address(gateway) })?;
    net.add_route(&Route {
        destination: Prefix::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        index,
        gateway: Some(gateway),
        onlink: false,
        source: Some(veth.address.into()),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_known_again() {
        let name = name("knarr", "6f0b5a");
        assert!(name.len() <= 15 && is_ours("knarr", &name), "{name}");
        for other in ["knarr.vxlan", "knarr", "eth0", "knarrXYZ4567890"] {
            assert!(!is_ours("knarr", other));
        }
    }
}
