//! How a call ended when it did not succeed.

use std::fmt;

use http::HeaderMap;

/// gRPC's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The name that Go's gRPC prints, as kubelet's events show it.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Cancelled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }

    fn of(number: u32) -> Self {
        use Code::*;
        const ALL: [Code; 17] = [
            Ok,
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        ALL.get(number as usize).copied().unwrap_or(Unknown)
    }
}

/// The status of a failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// In the server's words, or ours for a failure on the way.
    pub message: String,
    /// The request certainly did not reach the server: it may be sent again, whatever it does.
    pub unsent: bool,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.is_empty() {
            true => write!(f, "{:?}", self.code),
            false => f.write_str(&self.message),
        }
    }
}

impl Status {
    /// A status that was not received but found here.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), unsent: false }
    }

    /// The connection failed.
    pub(super) fn lost(error: &dyn std::error::Error, unsent: bool) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self { code: Code::Unavailable, message, unsent }
    }

    /// The status in headers or trailers; `None` if there is none.
    pub(super) fn read(headers: &HeaderMap) -> Option<Result<(), Status>> {
        let number = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
        let code = number.map_or(Code::Unknown, Code::of);
        if code == Code::Ok {
            return Some(Ok(()));
        }
        let message = headers.get("grpc-message").map(|value| percent_decoded(value.as_bytes()));
        Some(Err(Status::new(code, message.unwrap_or_default())))
    }
}

/// gRPC's messages are UTF-8, and bytes outside of printable ASCII are written as `%XX`.
fn percent_decoded(text: &[u8]) -> String {
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_from_trailers() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect::<HeaderMap>()
        };
        assert!(Status::read(&headers(&[])).is_none());
        assert!(Status::read(&headers(&[("grpc-status", "0")])).unwrap().is_ok());
        let error = Status::read(&headers(&[("grpc-status", "11"), ("grpc-message", "100%25 of %C3%A9t%c3%a9, 5% more")]));
        let error = error.unwrap().unwrap_err();
        assert_eq!((error.code, error.message.as_str(), error.unsent), (Code::OutOfRange, "100% of été, 5% more", false));
        assert_eq!(Status::read(&headers(&[("grpc-status", "99")])).unwrap().unwrap_err().code, Code::Unknown);
        assert_eq!(Status::read(&headers(&[("grpc-status", "x")])).unwrap().unwrap_err().to_string(), "Unknown");
    }
}
