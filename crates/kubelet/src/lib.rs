//! The node agent: pod workers, probes, volumes, status. Knows no netlink, nf_tables or runtime.
#![forbid(unsafe_code)]
