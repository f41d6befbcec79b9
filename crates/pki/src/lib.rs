//! Keys, certificates, kubeconfigs and tokens: bytes in, bytes out.
//!
//! No file system and no clocks here: callers read and write the files, and pass the time in.
//! Private keys come from the operating system's random source (ring); identifiers (token ids,
//! serial numbers) are made from randomness the caller passes.
#![forbid(unsafe_code)]

mod algorithm;
pub mod bootstrap_token;
mod ca;
mod csr;
mod der;
pub mod jws;
pub mod jwks;
pub mod jwt;
mod kubeconfig;
mod pair;
mod pem;
mod peer;
mod renewable;
mod rsa;
mod usage;

pub use algorithm::{KeyAlgorithm, new_key_pem};
pub use ca::{Ca, CertKey, CertRequest, Lifetime, Usage, certificate_end};
pub use csr::{Csr, new_csr};
pub use kubeconfig::{Credentials, Kubeconfig, kubeconfig, merge_kubeconfig, remove_from_kubeconfig};
pub use pair::key_pair_mistake;
pub use pem::{Block, decode as pem_decode, encode as pem_encode};
pub use peer::{Peer, Roots, is_signed_by, names_of, public_key, public_key_digest};
pub use renewable::Renewable;

/// What can go wrong with keys, certificates and tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM block that was expected is not there or not well formed.
    #[error("no valid PEM block of type {0:?} found")]
    Pem(&'static str),
    /// The certificate cannot be parsed.
    #[error("malformed certificate: {0}")]
    Certificate(String),
    /// The certificate request cannot be parsed, or its signature is wrong.
    #[error("malformed certificate request: {0}")]
    Request(String),
    /// The private key cannot be used.
    #[error("unusable private key: {0}")]
    Key(String),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Sign(String),
    /// The peer's certificate is not acceptable.
    #[error("x509: {0}")]
    Verify(String),
    /// A kubeconfig file that is not one.
    #[error("malformed kubeconfig: {0}")]
    Kubeconfig(String),
    /// A JSON web token that is not acceptable.
    #[error("{0}")]
    Jwt(String),
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
