//! The real [`Nftables`]: one socket in the network namespace of the thread that opened it.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::batch::{self, Message};
use crate::conntrack::{self, Flow};
use crate::socket::{Answer, NfSocket, message};
use crate::{Error, Family, Nftables, Result, RuleSet};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// The kernel's nf_tables.
pub struct Kernel {
    socket: Mutex<NfSocket>,
}

impl Kernel {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Mutex::new(NfSocket::open()?) })
    }

    fn transaction(&self, family: Family, messages: &[Message]) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let family = match family {
            Family::Ip => libc::NFPROTO_IPV4,
            Family::Ip6 => libc::NFPROTO_IPV6,
        };
        let family = u8::try_from(family).unwrap_or_default();
        let flag = |flag: i32| u16::try_from(flag).unwrap_or_default();
        let request = flag(libc::NLM_F_REQUEST);
        let mut bytes = Vec::new();
        let mut sequence = 0;
        message(&mut bytes, BATCH_BEGIN, request, sequence, 0, SUBSYSTEM >> 8, &[]);
        for (number, one) in messages.iter().enumerate() {
            sequence += 1;
            let last = number + 1 == messages.len();
            let flags = request | one.flags | if last { flag(libc::NLM_F_ACK) } else { 0 };
            message(&mut bytes, SUBSYSTEM | u16::from(one.kind), flags, sequence, family, 0, &one.payload);
        }
        message(&mut bytes, BATCH_END, request, sequence + 1, 0, SUBSYSTEM >> 8, &[]);

        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.send(&bytes)?;
        let (mut refused, mut acknowledged) = (None, false);
        while let Some(answers) = socket.receive(false)? {
            for answer in answers {
                match answer {
                    Answer::Code { code: 0, .. } => acknowledged = true,
                    Answer::Code { sequence, code } if refused.is_none() => refused = Some((sequence, code)),
                    _ => {}
                }
            }
        }
        match refused {
            None if acknowledged => Ok(()),
            None => Err(Error::Malformed),
            Some((sequence, code)) => {
                let number = usize::try_from(sequence).unwrap_or_default();
                let object = match number.checked_sub(1).and_then(|n| messages.get(n)) {
                    Some(one) => one.object.clone(),
                    None => "the transaction as a whole".into(),
                };
                Err(Error::Refused { object, source: io::Error::from_raw_os_error(-code) })
            }
        }
    }
}

impl Nftables for Kernel {
    fn apply(&self, previous: Option<&RuleSet>, next: &RuleSet) -> Result<()> {
        let messages = match previous {
            Some(previous) => batch::update(previous, next)?,
            None => batch::replace(next)?,
        };
        self.transaction(next.family, &messages)
    }

    fn delete(&self, family: Family, table: &str) -> Result<bool> {
        match self.transaction(family, &[batch::delete(table)]) {
            Ok(()) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn forget_connections(&self, matching: &dyn Fn(&Flow) -> bool) -> Result<usize> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        conntrack::forget(&socket, matching)
    }
}
