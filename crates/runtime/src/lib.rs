//! Sandboxes and containers over the shim; owns the Network trait. Does not know the Kubernetes API.
#![forbid(unsafe_code)]
