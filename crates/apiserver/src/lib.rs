//! The generic API server: filter chain, registry, watch cache, discovery, OpenAPI, admission and authorization frameworks. Knows no particular resource.
//!
//! What differs by resource is installed from outside through traits, collected in [`Parts`]:
//! [`Strategy`], [`Creater`], [`Virtual`], [`Locator`], [`Admission`], [`Authenticator`], [`Authorizer`]. The flow is
//! [`Builder::new`] (which already has a [`Builder::backend`] with [`Reader`] and [`Writer`]), install into
//! `builder.parts`, [`Builder::build`] → [`Server`]; then [`Server::run`] (cache and hooks) and [`Server::listen`] (TLS)
//! are spawned by the caller, and [`Server::handle`] serves callers in the same process.
//!
//! Custom resources take the same road: their definitions make rows of the resource table and schemas (`custom`).
#![forbid(unsafe_code)]

mod activity;
pub mod admission;
mod admitted;
mod aggregate;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod body;
mod browsers;
pub mod builder;
pub mod cache;
mod compact;
pub mod core;
pub mod ctx;
pub mod custom;
mod decode;
mod documents;
mod enablement;
pub mod encrypt;
pub mod filters;
mod flow;
pub mod histogram;
mod impersonate;
mod listen;
pub mod location;
mod metrics;
mod model;
mod negotiate;
pub mod object;
pub mod offline;
mod present;
mod profile;
mod proxy;
mod published;
pub mod remote;
pub mod request;
mod resource;
mod select;
mod server;
pub mod storage;
mod stored;
mod tend;
pub mod strategy;
mod trust;
pub mod types;
mod unserved;
mod verbs;
pub mod webhook;
mod writer;
pub mod zpages;

pub use activity::Timeouts;
pub use admission::{Admission, Attributes, Operation};
pub use authn::{Authenticator, AuthnRequest, Peer};
pub use authz::{Authorizer, AuthzAttributes, Decision, Rules};
pub use body::{Body, BodyError};
pub use builder::{BuildError, Builder, Concurrency, Config, InProcess, Parts, Periodic};
pub use ctx::{Backend, Ctx, Round, UserInfo};
pub use enablement::Enablement;
pub use encrypt::{Encrypted, EncryptionConfig, EncryptionKey, Provider};
pub use listen::{NamedCertificate, ServingTls, TlsError, TlsOptions};
pub use location::{ConnectRequest, Location, Locator, Tls};
pub use server::Server;
pub use storage::{Reader, Unserved, Writer};
pub use stored::StorageMediaType;
pub use strategy::{Creater, DefaultGc, Finish, Generic, Strategy, Virtual};
