//! Connections that the kernel remembers, and how to make it forget some: a UDP client that keeps
//! its port would otherwise be sent to an endpoint that is gone for as long as it keeps talking.

use std::io;
use std::net::IpAddr;

use crate::attributes::{Attributes, parse};
use crate::socket::{Answer, NfSocket, message};
use crate::{Error, Result};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// A connection, as its first packet had it and as its answers have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Transport protocol number.
    pub protocol: u8,
    /// Who started it.
    pub source: IpAddr,
    /// Whom it was for, before translation.
    pub destination: IpAddr,
    /// The port it was for, before translation.
    pub destination_port: u16,
    /// Who answers: the translated destination.
    pub reply_source: IpAddr,
    /// The port that answers.
    pub reply_port: u16,
}

struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, 0, 0);
    for (kind, value) in parse(bytes) {
        for (inner, value) in parse(value) {
            let port = || value.try_into().map(u16::from_be_bytes).unwrap_or_default();
            match (kind, inner) {
                (1, 1 | 3) => source = address(value),
                (1, 2 | 4) => destination = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 2) => source_port = port(),
                (2, 3) => destination_port = port(),
                _ => {}
            }
        }
    }
    Some(Tuple { source: source?, destination: destination?, protocol: protocol?, source_port, destination_port })
}

pub(crate) fn forget(socket: &NfSocket, matching: &dyn Fn(&Flow) -> bool) -> Result<usize> {
    let flag = |flag: i32| u16::try_from(flag).unwrap_or_default();
    let mut request = Vec::new();
    let flags = flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_DUMP);
    message(&mut request, SUBSYSTEM | GET, flags, 1, 0, 0, &[]);
    socket.send(&request)?;
    let mut doomed = Vec::new();
    'dump: loop {
        for answer in socket.receive(true)?.unwrap_or_default() {
            match answer {
                Answer::Done => break 'dump,
                Answer::Code { code: 0, .. } => {}
                Answer::Code { code, .. } => return Err(refused("listing connections", code)),
                Answer::Content { family, payload } => doomed.extend(victim(&payload, matching).map(|v| (family, v))),
            }
        }
    }
    let mut forgotten = 0;
    for (family, payload) in doomed {
        let mut request = Vec::new();
        let flags = flag(libc::NLM_F_REQUEST) | flag(libc::NLM_F_ACK);
        message(&mut request, SUBSYSTEM | DELETE, flags, 2, family, 0, &payload);
        socket.send(&request)?;
        for answer in socket.receive(true)?.unwrap_or_default() {
            match answer {
                Answer::Code { code: 0, .. } => forgotten += 1,
                // It ended by itself.
                Answer::Code { code, .. } if -code == libc::ENOENT => {}
                Answer::Code { code, .. } => return Err(refused("forgetting a connection", code)),
                _ => {}
            }
        }
    }
    Ok(forgotten)
}

/// What names the connection in a deletion, if it is to be forgotten.
fn victim(payload: &[u8], matching: &dyn Fn(&Flow) -> bool) -> Option<Vec<u8>> {
    let (mut original, mut reply) = (None, None);
    let mut name = Attributes::new();
    for (kind, value) in parse(payload) {
        match kind {
            ORIGINAL => {
                original = tuple(value);
                name = name.bytes(ORIGINAL | 0x8000, value);
            }
            REPLY => reply = tuple(value),
            ID | ZONE => name = name.bytes(kind, value),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    debug_assert!(original.protocol == reply.protocol || original.source_port == 0);
    let flow = Flow {
        protocol: original.protocol,
        source: original.source,
        destination: original.destination,
        destination_port: original.destination_port,
        reply_source: reply.source,
        reply_port: reply.source_port,
    };
    matching(&flow).then_some(name.0)
}

fn refused(what: &str, code: i32) -> Error {
    Error::Refused { object: what.to_owned(), source: io::Error::from_raw_os_error(-code) }
}
