//! The scheduler: a pure core, (snapshot, pod) to decision with reasons, and a thin shell.
#![forbid(unsafe_code)]
