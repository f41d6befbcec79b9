//! The binary: flags, configuration, wiring, supervision, signals. Everything else is in the rooms.
#![forbid(unsafe_code)]

mod agent;
mod cli;
mod component;
mod config;
mod down;
mod echo;
mod engine;
mod etcd;
mod files;
mod follow;
mod images;
mod kubeadm;
mod layout;
mod lead;
mod material;
mod metrics;
mod network;
mod node;
mod preflight;
mod progress;
mod renewal;
mod server;
mod snapshots;
mod status;
mod storage;
mod tools;
mod up;
mod why;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: sys::allocator::ByProcess = sys::allocator::ByProcess;

/// What a shell says of a program that a broken pipe has ended.
const BROKEN_PIPE: i32 = 141;

/// A command ends without a word when nobody reads what it prints any more, as `head` does. The signal for that stays
/// ignored: it would also come for connections.
fn end_with_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to std") && text.contains("Broken pipe")) {
            std::process::exit(BROKEN_PIPE);
        }
        usual(panic);
    }));
}

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    // These run inside pods, thousands of times: no runtime, no parser, no logging.
    match args.get(1).and_then(|a| a.to_str()) {
        Some("shim") => return shim::main(args[2..].iter().map(|a| a.to_string_lossy().into_owned())),
        Some("echo") => return echo::main(&args[2..]),
        Some("sleep") => return echo::sleep(&args[2..]),
        _ => {}
    }
    end_with_reader();
    // Called, or linked, as an upstream component; or told to be one.
    let words: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    for (i, word) in words.iter().take(2).enumerate() {
        if let Some(component) = component::Component::named(word) {
            return component.main(&words[i + 1..]);
        }
    }
    for (i, word) in words.iter().take(2).enumerate() {
        if std::path::Path::new(word).file_name().is_some_and(|name| name == "kubeadm") {
            return kubeadm::main(&words[i..]);
        }
    }
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("knarr: {error:#}");
            ExitCode::FAILURE
        }
    }
}
