//! Messages of `runtime.v1` (the CRI), Linux only: what concerns Windows is skipped on decoding.
//!
//! Names are the CRI's; enum variants drop the prefix that repeats their type. Maps are ordered, so
//! that an encoding is reproducible. A field that refers to an enum is an `i32`; prost makes a
//! getter of the same name that answers the enum.

mod common;
mod container;
mod image;
mod sandbox;
mod service;
mod signal;
mod stats;

pub use common::*;
pub use container::*;
pub use image::*;
pub use sandbox::*;
pub use service::*;
pub use signal::*;
pub use stats::*;
