//! Clients of a Kubernetes API server: kubeconfig, HTTPS or in-process transport, streams.
#![forbid(unsafe_code)]
