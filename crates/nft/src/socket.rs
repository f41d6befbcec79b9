//! A blocking nfnetlink socket: sends a buffer of messages and reads the answers, which the kernel
//! has queued by the time sending returns.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::{Error, Result};

pub(crate) const HEADER: usize = 16;
const NFGENMSG: usize = 4;

/// An answer: an error code (0 is an acknowledgement) or a message's content after `nfgenmsg`.
pub(crate) enum Answer {
    Code { sequence: u32, code: i32 },
    Done,
    Content { family: u8, payload: Vec<u8> },
}

/// Appends one message.
pub(crate) fn message(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, payload: &[u8]) {
    let length = u32::try_from(HEADER + NFGENMSG + payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The socket.
pub(crate) struct NfSocket(Socket);

impl NfSocket {
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(Error::Socket)?;
        socket.bind_auto().map_err(Error::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
        // Errors carry the failed message otherwise, and would fill the queue.
        let _ = socket.set_cap_ack(true);
        Ok(Self(socket))
    }

    /// Sends everything as one datagram, which is one transaction.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > 100 << 10 {
            self.grow(bytes.len());
        }
        let sent = self.0.send(bytes, 0).map_err(Error::Socket)?;
        if sent == bytes.len() { Ok(()) } else { Err(Error::Malformed) }
    }

    /// Makes room for a large transaction.
    fn grow(&self, bytes: usize) {
        use std::os::fd::AsRawFd;
        let size = i32::try_from(bytes * 2).unwrap_or(i32::MAX);
        // SAFETY: the option's value is a live i32 of the length given. A refusal shows on sending.
        unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUFFORCE,
                std::ptr::from_ref(&size).cast(),
                std::mem::size_of::<i32>() as libc::socklen_t,
            );
        }
    }

    /// The next datagram's answers; `None` when nothing is queued and `wait` is not set.
    pub(crate) fn receive(&self, wait: bool) -> Result<Option<Vec<Answer>>> {
        let mut buffer: Vec<u8> = Vec::with_capacity(64 << 10);
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        match self.0.recv(&mut buffer, flags | libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => return Err(Error::Malformed),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(Error::Socket(e)),
        }
        let mut answers = Vec::new();
        let mut rest = &buffer[..];
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).ok_or(Error::Malformed)
        };
        while rest.len() >= HEADER {
            let length = word(rest, 0)? as usize;
            let one = rest.get(..length).filter(|one| one.len() >= HEADER).ok_or(Error::Malformed)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            let kind = u16::from_ne_bytes([one[4], one[5]]);
            answers.push(match i32::from(kind) {
                libc::NLMSG_ERROR => {
                    Answer::Code { sequence: word(one, 8)?, code: word(one, HEADER)?.cast_signed() }
                }
                libc::NLMSG_DONE => Answer::Done,
                _ => Answer::Content {
                    family: *one.get(HEADER).ok_or(Error::Malformed)?,
                    payload: one.get(HEADER + NFGENMSG..).unwrap_or_default().to_vec(),
                },
            });
        }
        Ok(Some(answers))
    }
}
