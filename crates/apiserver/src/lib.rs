//! The generic API server: filter chain, registry, watch cache, discovery, OpenAPI, admission and authorization frameworks. Knows no particular resource.
//!
//! What differs by resource is installed from outside through traits, collected in [`Parts`]:
//! [`Strategy`], [`Creater`], [`Virtual`], [`Locator`], [`Admission`], [`Authenticator`], [`Authorizer`]. The flow is
//! `Builder::new(config, store)` (which already has a `backend()` with [`Reader`] and [`Writer`]), install into
//! `builder.parts`, then `builder.build()` → `Server`.
#![forbid(unsafe_code)]

pub mod admission;
pub mod authn;
pub mod authz;
pub mod builder;
pub mod ctx;
pub mod location;
pub mod request;
pub mod storage;
pub mod strategy;
pub mod types;

pub use admission::{Admission, Attributes, Operation};
pub use authn::{Authenticator, AuthnRequest, Peer};
pub use authz::{Authorizer, AuthzAttributes, Decision, Rules};
pub use builder::Parts;
pub use ctx::{Backend, Ctx, UserInfo};
pub use location::{ConnectRequest, Location, Locator, Tls};
pub use storage::{Reader, Writer};
pub use strategy::{Creater, DefaultGc, Finish, Generic, Strategy, Virtual};
