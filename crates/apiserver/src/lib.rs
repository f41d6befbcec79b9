//! The generic API server: filter chain, registry, watch cache, discovery, OpenAPI, admission and authorization frameworks. Knows no particular resource.
#![forbid(unsafe_code)]
