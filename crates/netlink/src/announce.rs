//! Telling the neighbours of a link where an address is: gratuitous ARP (RFC 5227, section 3).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::{Error, Mac, Result};

const EVERYBODY: [u8; 6] = [0xff; 6];

/// Sends an announcement of `address` at `mac` over the link of this number, as a request and as a reply: some take
/// the one, some the other.
pub fn announce(index: u32, mac: Mac, address: Ipv4Addr) -> Result<()> {
    let failed = |what: &str| {
        let source = io::Error::last_os_error();
        Error::Kernel { what: format!("{what} for an announcement of {address}"), explanation: None, source }
    };
    let protocol = (libc::ETH_P_ARP as u16).to_be();
    // SAFETY: it takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    if fd < 0 {
        return Err(failed("opening a packet socket"));
    }
    // SAFETY: it was opened just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    to.sll_addr[..6].copy_from_slice(&EVERYBODY);
    for operation in [1, 2] {
        let packet = packet(operation, mac, address);
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the packet and the address live until the call returns, and their lengths are theirs.
        let sent = unsafe { libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), length) };
        if sent < 0 {
            return Err(failed("sending"));
        }
    }
    Ok(())
}

/// Ethernet and IPv4; sender and target are the same address.
fn packet(operation: u8, mac: Mac, address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    packet[8..14].copy_from_slice(&mac.0);
    packet[14..18].copy_from_slice(&address.octets());
    packet[18..24].copy_from_slice(if operation == 1 { &[0; 6] } else { &EVERYBODY });
    packet[24..].copy_from_slice(&address.octets());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_is_that_of_the_rfc() {
        let packet = packet(1, Mac([2, 0, 0, 0, 0, 7]), Ipv4Addr::new(192, 0, 2, 9));
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!((&packet[8..14], &packet[14..18], &packet[24..]), (&[2, 0, 0, 0, 0, 7][..], &[192, 0, 2, 9][..], &[192, 0, 2, 9][..]));
    }
}
