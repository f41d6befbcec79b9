//! Real sandboxes and containers, as root. This executable is also the shim that they start, and the
//! program in most containers, so there is no test harness: `main` lists and runs the tests itself, in
//! the way that cargo and nextest ask for.

mod cases;
mod payload;
mod support;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("shim") => return shim::main(args.split_off(1)),
        Some("payload") => return payload::main(&args[1..]),
        _ => {}
    }
    let has = |flag: &str| args.iter().any(|a| a == flag);
    if has("--list") {
        // Ignored tests are listed separately; there are none.
        if !has("--ignored") {
            cases::ALL.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nothing is tested");
        return ExitCode::SUCCESS;
    }
    let (exact, wanted): (bool, Vec<&String>) = (has("--exact"), args.iter().filter(|a| !a.starts_with('-')).collect());
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| if exact { name == *w } else { name.contains(w.as_str()) });
    let mut failed = 0;
    for (name, test) in cases::ALL.iter().filter(|(name, _)| chosen(name)) {
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
