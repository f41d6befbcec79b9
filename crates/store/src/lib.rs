//! A revisioned key-value store: transaction, range, watch, compact, TTL. Knows no Kubernetes type.
#![forbid(unsafe_code)]
