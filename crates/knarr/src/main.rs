//! The binary: flags, configuration, wiring, supervision, signals.
#![forbid(unsafe_code)]

fn main() {}
