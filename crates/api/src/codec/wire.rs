//! The protobuf wire format: varints, tags, length-delimited parts.

use super::DecodeError;

/// One field as it stands in a message.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    Varint(u64),
    Fixed64(u64),
    /// No type of ours uses it; it is stepped over.
    Fixed32,
    Bytes(&'a [u8]),
}

/// Walks the fields of a message.
pub struct Reader<'a> {
    rest: &'a [u8],
}

fn broken(what: &str) -> DecodeError {
    DecodeError::Protobuf(format!("proto: {what}"))
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// The next field's number and content; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Part<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| broken("illegal tag"))?;
        if number == 0 {
            return Err(broken("illegal tag 0"));
        }
        let part = match tag & 7 {
            0 => Part::Varint(self.varint()?),
            1 => Part::Fixed64(u64::from_le_bytes(self.array()?)),
            5 => {
                self.take(4)?;
                Part::Fixed32
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| broken("negative length found"))?;
                Part::Bytes(self.take(length)?)
            }
            other => return Err(broken(&format!("illegal wireType {other}"))),
        };
        Ok(Some((number, part)))
    }

    /// A bare varint, as in packed lists.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or_else(|| broken("unexpected EOF"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(broken("integer overflow"))
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.rest.split_at_checked(length).ok_or_else(|| broken("unexpected EOF"))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of wire type 0.
pub fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value as u64);
}

/// A field of wire type 1.
pub fn put_fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field of wire type 2.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A field of wire type 2 whose content `write` appends.
pub fn put_nested<E>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    put_varint(out, u64::from(number) << 3 | 2);
    let start = out.len();
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
    } else {
        let mut head = Vec::with_capacity(5);
        put_varint(&mut head, length as u64);
        out.splice(start..=start, head);
    }
    Ok(())
}
