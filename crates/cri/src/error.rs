//! The one error of the CRI traits: a gRPC status code and a message for people.

/// gRPC's status codes, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
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
}

/// A refused or failed procedure. It prints as Go's gRPC errors do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", code.name())]
pub struct Error {
    pub code: Code,
    pub message: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl std::fmt::Display) -> Self {
                Self::new(Code::$code, message)
            })*
        }
    };
}

impl Error {
    pub fn new(code: Code, message: impl std::fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

constructors! {
    /// A failure that is nobody's fault in particular; what Go code answers for a plain error.
    unknown => Unknown;
    /// The request itself is wrong.
    invalid_argument => InvalidArgument;
    /// There is no such sandbox, container or image.
    not_found => NotFound;
    /// Something of that name is there already.
    already_exists => AlreadyExists;
    /// The object is in a state that does not allow it.
    failed_precondition => FailedPrecondition;
    /// It took longer than the caller allowed.
    deadline_exceeded => DeadlineExceeded;
    /// This implementation does not do that.
    unimplemented => Unimplemented;
    /// A bug or a broken machine.
    internal => Internal;
    /// Not now; trying again may help.
    unavailable => Unavailable;
}
