//! The controllers: one module each, a pure plan and a thin reconcile.
#![forbid(unsafe_code)]
