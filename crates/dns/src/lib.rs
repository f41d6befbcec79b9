//! Cluster DNS: a pure zone and a server.
#![forbid(unsafe_code)]
