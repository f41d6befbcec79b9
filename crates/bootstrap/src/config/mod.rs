//! The configuration files of `init`, `join` and `reset`.

mod types;

pub use types::*;
