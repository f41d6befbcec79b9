//! CRI v1 as a trait, with a fake and a contract suite.
#![forbid(unsafe_code)]
