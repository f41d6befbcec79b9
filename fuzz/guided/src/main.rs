//! libFuzzer around one of the targets, which the environment variable `KNARR_FUZZ_TARGET` names.
//!
//! Half of the mutations are libFuzzer's own, half are ours, which know of parts, trees and tokens.
#![no_main]

use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

fn chosen() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let name = std::env::var("KNARR_FUZZ_TARGET").unwrap_or_default();
        fuzz::find(&name).unwrap_or_else(|| {
            let names: Vec<&str> = fuzz::TARGETS.iter().map(|t| t.name).collect();
            panic!("KNARR_FUZZ_TARGET is to name one of: {}", names.join(" "))
        })
    })
}

fuzz_target!(init: { chosen(); }, |data: &[u8]| (chosen().run)(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let new = fuzz::mutate::mutate(&data[..size], u64::from(seed), max_size.min(data.len()));
    data[..new.len()].copy_from_slice(&new);
    new.len()
});
