//! The pod network: IPAM, veth, VXLAN; plan then apply.
#![forbid(unsafe_code)]
