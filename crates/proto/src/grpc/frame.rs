//! Messages in frames: one byte that tells of compression, four of length, the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::{Code, Status};

/// A message with its frame around it.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    // Fails only when there is no room.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

/// Takes frames apart as their bytes come in.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Bytes that came in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.buffer.is_empty() && bytes.len() >= 5 && bytes[0] == 0 {
            // The whole frame will be held: one allocation, not a doubling one.
            let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
            self.buffer.reserve(length.min(64 << 20) + 5);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        if self.buffer.len() < 5 {
            return Ok(None);
        }
        if self.buffer[0] != 0 {
            return Err(Status::new(Code::Internal, "the server compressed a message, which was not asked for"));
        }
        let length = u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]) as usize;
        if self.buffer.len() - 5 < length {
            return Ok(None);
        }
        self.buffer.advance(5);
        let message = M::decode(self.buffer.split_to(length).freeze());
        message.map(Some).map_err(|error| Status::new(Code::Internal, format!("the server's message cannot be read: {error}")))
    }

    /// Whether a message has begun and not ended.
    pub fn partial(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::{LeaseGrantRequest, StatusRequest};

    #[test]
    fn frames_may_be_cut_anywhere() {
        let message = LeaseGrantRequest { ttl: 60, id: 5 };
        let bytes = [encode(&message), encode(&StatusRequest {}), encode(&message)].concat();
        assert_eq!(&bytes[..9], [0, 0, 0, 0, 4, 0x08, 60, 0x10, 5]);
        for size in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.push(chunk);
                while let Some(message) = decoder.next::<LeaseGrantRequest>().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [message.clone(), LeaseGrantRequest::default(), message.clone()], "in chunks of {size}");
            assert!(!decoder.partial());
        }
    }

    #[test]
    fn bad_frames_are_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 0, 0, 0]);
        assert_eq!(decoder.next::<StatusRequest>().unwrap_err().code, Code::Internal);
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 1, 0xff]);
        assert_eq!(decoder.next::<StatusRequest>().unwrap_err().code, Code::Internal);
        // A length that never comes does not make it allocate all of it.
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert!(decoder.next::<StatusRequest>().unwrap().is_none() && decoder.partial());
    }
}
