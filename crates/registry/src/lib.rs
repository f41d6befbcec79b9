//! Each resource's strategy, admission plug-ins and built-in policy.
#![forbid(unsafe_code)]
