//! gRPC messages of the CRI as prost structs, without code generation at build. No logic.
#![forbid(unsafe_code)]
