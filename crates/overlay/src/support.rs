//! Whether the kernel has the kinds of links that the pod network is made of.

use netlink::{Error, Netlink, NewKind, NewLink, Peer};

/// Something that the kernel lacks.
#[derive(Debug)]
pub struct Missing {
    /// The module that has it.
    pub module: &'static str,
    /// The kernel's configuration option.
    pub option: &'static str,
    /// What the kernel said.
    pub error: Error,
}

/// What the kernel lacks, tried by making links that are taken away again. To touch nothing at all, give it a handle of
/// a network namespace that nobody uses.
pub fn missing(net: &dyn Netlink) -> Vec<Missing> {
    let veth = NewKind::Veth(Peer { name: "knarr-probe1".into(), mac: None, netns: None });
    let vxlan = NewKind::Vxlan { vni: 1, port: 8472, local: None };
    [("veth", "VETH", veth), ("vxlan", "VXLAN", vxlan)]
        .into_iter()
        .filter_map(|(module, option, kind)| {
            let link = NewLink { name: "knarr-probe0".into(), mac: None, mtu: None, kind };
            let error = net.create_link(&link).and_then(|()| net.delete_link(&link.name)).err()?;
            Some(Missing { module, option, error })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_kernel_lacks_nothing_and_keeps_nothing() {
        let net = netlink::fake::Fake::new();
        assert!(missing(&net).is_empty());
        assert!(net.link("knarr-probe0").unwrap().is_none() && net.link("knarr-probe1").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        // a link of that name makes each attempt fail
        let net = netlink::fake::Fake::new();
        net.create_link(&NewLink { name: "knarr-probe1".into(), mac: None, mtu: None, kind: NewKind::Dummy }).unwrap();
        let missing = missing(&net);
        assert_eq!(missing.iter().map(|m| m.module).collect::<Vec<_>>(), ["veth"]);
    }
}
