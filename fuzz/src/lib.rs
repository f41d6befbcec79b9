//! Fuzz targets: what reads bytes of strangers, and what must hold whatever the bytes are.
//!
//! A [`Target`] is a function of bytes. It panics when something does not hold: a crash, a form that is not read back as
//! it was written, an operation that is not idempotent where it should be. They are run in two ways:
//!
//! - `tests/bounded.rs`, which is part of the tests: each target gets its seeds (`corpus/NAME/`) and then, for a bounded
//!   time, random mutations of them, on the ordinary build. It also finds what takes too long.
//! - `cargo xtask fuzz`: `guided/`, the same functions and mutations under libFuzzer, which is led by coverage.
//!
//! Most inputs are texts in several parts with a line `===` between them, so that a seed can be read and written by hand.
#![forbid(unsafe_code)]

pub mod mutate;
mod targets;

/// The line between the parts of an input.
pub const BETWEEN: &[u8] = b"\n===\n";

/// Something to be fuzzed.
pub struct Target {
    /// Its name, which its seeds' folder has too.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
}

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// All of them.
pub const TARGETS: &[Target] = {
    use targets::*;
    &[
        Target { name: "json", run: codec::json },
        Target { name: "yaml", run: codec::yaml },
        Target { name: "protobuf", run: codec::protobuf },
        Target { name: "object", run: codec::object },
        Target { name: "validate", run: objects::validate },
        Target { name: "label_selector", run: text::label_selector },
        Target { name: "field_selector", run: text::field_selector },
        Target { name: "quantity", run: text::quantity },
        Target { name: "names", run: text::names },
        Target { name: "times", run: text::times },
        Target { name: "json_path", run: text::json_path },
        Target { name: "url", run: url::url },
        Target { name: "json_patch", run: patch::json_patch },
        Target { name: "merge_patch", run: patch::merge_patch },
        Target { name: "strategic_patch", run: patch::strategic_patch },
        Target { name: "apply", run: apply::apply },
        Target { name: "managed_fields", run: apply::managed_fields },
        Target { name: "cel", run: expression::cel },
        Target { name: "cel_admission", run: expression::admission },
        Target { name: "crd", run: custom::definition },
        Target { name: "custom_object", run: custom::object },
        Target { name: "grpc", run: wire::grpc },
        Target { name: "spdy", run: wire::spdy },
        Target { name: "streams", run: wire::streams },
        Target { name: "encryption", run: secrets::encryption },
        Target { name: "tokens", run: secrets::tokens },
        Target { name: "certificates", run: secrets::certificates },
        Target { name: "kubeconfig", run: secrets::kubeconfig },
        Target { name: "image_name", run: images::name },
        Target { name: "archive", run: images::archive },
        Target { name: "stored", run: server::stored },
        Target { name: "requests", run: server::requests },
    ]
};
