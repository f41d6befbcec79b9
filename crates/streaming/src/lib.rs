//! Exec, attach and port-forward streams: SPDY/3.1 and WebSocket v4 and v5. Does not know what is streamed.
//!
//! - [`server`]: answers an upgrade request and hands over plain readers and writers: [`server::exec`]
//!   (attach too) and [`server::port_forward`], whichever protocol the client speaks.
//! - [`client`]: exec over WebSocket v5, on a connection that the caller made.
//! - [`proxy`]: passes an upgrade request on to another server, without looking into it.
//! - [`status`]: how a command's end is told to the client.
//!
//! Each connection is driven by one task, which ends with the connection. Dropping a [`Writer`]
//! half-closes its stream; dropping a [`Reader`] discards what still arrives.
#![forbid(unsafe_code)]

pub mod client;
mod pipe;
pub mod proxy;
pub mod server;
pub mod spdy;
pub mod status;
mod websocket;

pub use pipe::{Reader, Writer};

/// An error of a streaming connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The HTTP connection could not be upgraded.
    #[error("the connection could not be upgraded")]
    Upgrade(#[source] hyper::Error),
    /// The client did not open all streams in time.
    #[error("timed out waiting for client to create streams")]
    Timeout,
    /// The connection ended.
    #[error("the connection was closed by the other side")]
    Closed,
    /// The other side refused the upgrade.
    #[error("unable to upgrade connection: {0}")]
    Refused(String),
    /// HTTP failed.
    #[error("the HTTP request failed")]
    Http(#[source] hyper::Error),
    /// The request cannot be sent.
    #[error("{0}")]
    Request(&'static str),
    /// The WebSocket handshake failed.
    #[error("the WebSocket handshake failed")]
    Handshake(#[source] Box<tokio_tungstenite::tungstenite::Error>),
}
