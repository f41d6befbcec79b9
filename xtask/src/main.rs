//! Project tasks: test, tidy, bench.
#![forbid(unsafe_code)]

fn main() {}
