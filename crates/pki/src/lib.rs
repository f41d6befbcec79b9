//! Keys, certificates, kubeconfigs and tokens: bytes in, bytes out. No file system, no clocks.
#![forbid(unsafe_code)]
