//! The one error of the CRI traits: a gRPC status code and a message for people.

pub use proto::grpc::Code;

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
