//! Types and schemas of the Kubernetes API: the fact table, defaulting, validation, patches and codecs. No async, HTTP or clocks.
#![forbid(unsafe_code)]
