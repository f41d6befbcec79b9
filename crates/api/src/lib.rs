//! Types and schemas of the Kubernetes API: the fact table, defaulting, validation, patches and codecs. No async, HTTP or clocks.
#![forbid(unsafe_code)]

pub mod aggregation;
pub mod apparmor;
pub mod apply;
pub mod codec;
pub mod convert;
pub mod crd;
pub mod cron;
pub mod defaults;
pub mod discovery;
pub mod facts;
pub mod field;
pub mod field_labels;
pub mod flowcontrol;
pub mod gates;
pub mod gotime;
pub mod names;
pub mod openapi;
pub mod patch;
mod pointer;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod seccomp;
pub mod seen;
pub mod selector;
pub mod status;
pub mod table;
pub mod topology;
pub mod validate;
pub mod warnings;

pub use pointer::at;

/// The Kubernetes version whose API this is, as `/version` and OpenAPI say it.
pub const VERSION: &str = "v1.36.0";
