//! SPDY/3.1 frames to and from bytes (draft-mbelshe-httpbis-spdy-00 with version 3.1). No I/O.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The dictionary of header compression, section 2.6.10.1 of the draft; its Adler-32 is 0xe3c6a7c2.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// The largest header block that is accepted, inflated.
const MAX_HEADERS: usize = 256 << 10;
/// The largest control frame that is accepted.
const MAX_CONTROL: usize = 64 << 10;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// Names in lower case, and values.
pub type Headers = Vec<(String, String)>;

/// The value of a header, by its name in lower case.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, value)| value.as_str())
}

/// A frame; kinds that mean nothing to us are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The client opens a stream.
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// The answer to it.
    SynReply {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    /// Data; `fin` half-closes the stream.
    Data { stream: u32, data: Bytes, fin: bool },
    /// A stream is torn down.
    RstStream { stream: u32, status: u32 },
    /// To be sent back unchanged.
    Ping(u32),
    /// The sender opens no more streams.
    GoAway { last_stream: u32, status: u32 },
    /// Something to be ignored (settings, window updates, further headers).
    Other,
}

/// Status codes of [`Frame::RstStream`].
pub mod reset {
    /// The stream is refused before any processing.
    pub const REFUSED_STREAM: u32 = 3;
    /// The stream is no longer needed.
    pub const CANCEL: u32 = 5;
}

/// The bytes are no SPDY/3.1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SPDY protocol error: {0}")]
pub struct Malformed(&'static str);

/// Turns frames into bytes; keeps the state of header compression.
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate
            .set_dictionary(DICTIONARY)
            .expect("a fresh compressor takes a dictionary");
        Self { deflate }
    }
}

impl Encoder {
    /// Appends a frame.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream {
                stream,
                headers,
                fin,
            } => {
                let block = self.headers(headers);
                control(out, 1, u8::from(*fin) * FLAG_FIN, 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply {
                stream,
                headers,
                fin,
            } => {
                let block = self.headers(headers);
                control(out, 2, u8::from(*fin) * FLAG_FIN, 4 + block.len());
                out.put_u32(*stream);
                out.put_slice(&block);
            }
            Frame::Data { stream, data, fin } => {
                out.put_u32(*stream);
                out.put_u32(u32::from(u8::from(*fin) * FLAG_FIN) << 24 | data.len() as u32);
                out.put_slice(data);
            }
            Frame::RstStream { stream, status } => {
                control(out, 3, 0, 8);
                out.put_u32(*stream);
                out.put_u32(*status);
            }
            Frame::Ping(id) => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway {
                last_stream,
                status,
            } => {
                control(out, 7, 0, 8);
                out.put_u32(*last_stream);
                out.put_u32(*status);
            }
            Frame::Other => {}
        }
    }

    fn headers(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let start = self.deflate.total_in();
        loop {
            let done = (self.deflate.total_in() - start) as usize;
            block.reserve(64);
            self.deflate
                .compress_vec(&plain[done..], &mut block, FlushCompress::Sync)
                .expect("deflate cannot fail");
            // A sync flush is complete when it leaves room in the output.
            if (self.deflate.total_in() - start) as usize == plain.len()
                && block.len() < block.capacity()
            {
                return block;
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, len: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | len as u32);
}

/// Takes frames from bytes; keeps the state of header compression.
pub struct Decoder {
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            inflate: Decompress::new(true),
        }
    }
}

impl Decoder {
    /// The next frame, or `None` when more bytes are needed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
        if input.len() < 8 {
            return Ok(None);
        }
        let first = u32::from_be_bytes([input[0], input[1], input[2], input[3]]);
        let second = u32::from_be_bytes([input[4], input[5], input[6], input[7]]);
        let fin = (second >> 24) as u8 & FLAG_FIN != 0;
        let len = (second & 0x00ff_ffff) as usize;
        let is_control = first & 0x8000_0000 != 0;
        if is_control && (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(Malformed("not version 3"));
        }
        if is_control && len > MAX_CONTROL {
            return Err(Malformed("control frame too large"));
        }
        if input.len() < 8 + len {
            input.reserve(8 + len - input.len());
            return Ok(None);
        }
        input.advance(8);
        let mut body = input.split_to(len).freeze();
        if !is_control {
            return Ok(Some(Frame::Data {
                stream: first,
                data: body,
                fin,
            }));
        }
        let word = |body: &mut Bytes| {
            if body.len() < 4 {
                Err(Malformed("control frame too short"))
            } else {
                Ok(body.get_u32())
            }
        };
        Ok(Some(match first as u16 {
            1 => {
                let stream = word(&mut body)? & 0x7fff_ffff;
                word(&mut body)?;
                if body.len() < 2 {
                    return Err(Malformed("control frame too short"));
                }
                body.advance(2);
                Frame::SynStream {
                    stream,
                    headers: self.headers(&body)?,
                    fin,
                }
            }
            2 => {
                let stream = word(&mut body)? & 0x7fff_ffff;
                Frame::SynReply {
                    stream,
                    headers: self.headers(&body)?,
                    fin,
                }
            }
            3 => Frame::RstStream {
                stream: word(&mut body)? & 0x7fff_ffff,
                status: word(&mut body)?,
            },
            6 => Frame::Ping(word(&mut body)?),
            7 => Frame::GoAway {
                last_stream: word(&mut body)? & 0x7fff_ffff,
                status: word(&mut body)?,
            },
            8 => {
                // Ignored, but all header blocks share one compression state.
                word(&mut body)?;
                self.headers(&body)?;
                Frame::Other
            }
            _ => Frame::Other,
        }))
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::with_capacity(1024);
        let start = self.inflate.total_in();
        loop {
            let done = (self.inflate.total_in() - start) as usize;
            if plain.len() == plain.capacity() {
                plain.reserve(1024);
            }
            match self
                .inflate
                .decompress_vec(&block[done..], &mut plain, FlushDecompress::Sync)
            {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate
                        .set_dictionary(DICTIONARY)
                        .map_err(|_| Malformed("unknown compression dictionary"))?;
                }
                Err(_) => return Err(Malformed("header compression")),
                Ok(Status::StreamEnd) => return Err(Malformed("header compression ended")),
                Ok(_) => {
                    if plain.len() > MAX_HEADERS {
                        return Err(Malformed("headers too large"));
                    }
                    let all = (self.inflate.total_in() - start) as usize == block.len();
                    if plain.len() < plain.capacity() {
                        return if all {
                            Ok(plain)
                        } else {
                            Err(Malformed("header compression"))
                        };
                    }
                }
            }
        }
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        let plain = self.inflate(block)?;
        let mut rest = plain.as_slice();
        let short = Malformed("header block too short");
        let mut take = |n: Option<usize>| {
            let n = n.unwrap_or(if rest.len() < 4 { usize::MAX } else { 4 });
            if rest.len() < n {
                return Err(short.clone());
            }
            let (head, tail) = rest.split_at(n);
            rest = tail;
            Ok(head)
        };
        let number =
            |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let count = number(take(None)?);
        let mut headers = Headers::new();
        for _ in 0..count {
            let name = number(take(None)?);
            let name = String::from_utf8_lossy(take(Some(name))?).to_ascii_lowercase();
            let values = number(take(None)?);
            let values = String::from_utf8_lossy(take(Some(values))?);
            headers.extend(
                values
                    .split('\0')
                    .map(|value| (name.clone(), value.to_owned())),
            );
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(frames: &[Frame]) {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let mut bytes = BytesMut::new();
        for frame in frames {
            encoder.encode(frame, &mut bytes);
        }
        // One byte at a time: a frame is only ever taken whole.
        let (mut input, mut found) = (BytesMut::new(), Vec::new());
        for byte in bytes {
            input.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                found.push(frame);
            }
        }
        assert_eq!(found, frames);
        assert!(input.is_empty());
    }

    #[test]
    fn frames_survive() {
        let headers: Headers = vec![
            ("streamtype".into(), "data".into()),
            ("port".into(), "8080".into()),
        ];
        let long: Headers = (0..500)
            .map(|i| (format!("name-{i}"), format!("value {}", i * 7919)))
            .collect();
        round(&[
            Frame::SynStream {
                stream: 1,
                headers: headers.clone(),
                fin: false,
            },
            Frame::SynStream {
                stream: 3,
                headers: long,
                fin: true,
            },
            Frame::SynReply {
                stream: 1,
                headers: Headers::new(),
                fin: false,
            },
            Frame::SynReply {
                stream: 3,
                headers,
                fin: false,
            },
            Frame::Data {
                stream: 1,
                data: Bytes::from_static(b"hello"),
                fin: false,
            },
            Frame::Data {
                stream: 1,
                data: Bytes::new(),
                fin: true,
            },
            Frame::RstStream {
                stream: 3,
                status: reset::CANCEL,
            },
            Frame::Ping(7),
            Frame::GoAway {
                last_stream: 3,
                status: 0,
            },
        ]);
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        let mut seed = 12345u64;
        for _ in 0..2000 {
            let mut bytes = BytesMut::new();
            bytes.put_u16(0x8003);
            for _ in 0..64 {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                bytes.put_u8((seed >> 33) as u8);
            }
            bytes[2] = 0;
            bytes[3] &= 15;
            bytes[4] = 0;
            bytes[5] = 0;
            bytes[6] = 0;
            let mut decoder = Decoder::default();
            while let Ok(Some(_)) = decoder.decode(&mut bytes) {}
        }
        let mut http = BytesMut::from(&b"GET / HTTP/1.1\r\n\r\n"[..]);
        // Taken for a data frame that is not complete.
        assert_eq!(Decoder::default().decode(&mut http), Ok(None));
    }
}
