//! What runs inside the containers of these tests: a static program of a few verbs.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static TERMINATED: AtomicBool = AtomicBool::new(false);

pub fn main(args: &[String]) -> ExitCode {
    let arg = |n: usize| args.get(n).map(String::as_str).unwrap_or_default();
    match arg(0) {
        "exit" => return ExitCode::from(arg(1).parse::<u8>().unwrap_or(1)),
        "echo" => {
            println!("{}", args[1..].join(" "));
            eprintln!("to stderr");
        }
        "sleep" => loop {
            std::thread::park();
        },
        // Ends with 3 on SIGTERM.
        "wait" => {
            on_sigterm();
            println!("ready");
            while !TERMINATED.load(Ordering::SeqCst) {
                std::thread::park_timeout(std::time::Duration::from_millis(20));
            }
            return ExitCode::from(3);
        }
        "cat" => {
            let mut buffer = [0; 4096];
            while let Ok(n) = std::io::stdin().read(&mut buffer) {
                if n == 0 || std::io::stdout().write_all(&buffer[..n]).is_err() {
                    break;
                }
                let _ = std::io::stdout().flush();
            }
        }
        "eat" => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
            }
        }
        "read" => match std::fs::read(arg(1)) {
            Ok(bytes) => std::io::stdout().write_all(&bytes).unwrap(),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
        "write" => {
            if let Err(error) = std::fs::write(arg(1), arg(2)) {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        }
        "link" => println!("{}", std::fs::read_link(arg(1)).unwrap().display()),
        "env" => std::env::vars().for_each(|(k, v)| println!("{k}={v}")),
        "cwd" => println!("{}", std::env::current_dir().unwrap().display()),
        "list" => {
            let mut names: Vec<_> = std::fs::read_dir(arg(1)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            println!("{}", names.join(" "));
        }
        "tty" => println!("{}", rustix::termios::isatty(std::io::stdout())),
        other => {
            eprintln!("unknown verb {other}");
            return ExitCode::from(99);
        }
    }
    ExitCode::SUCCESS
}

fn on_sigterm() {
    extern "C" fn note(_: libc::c_int) {
        TERMINATED.store(true, Ordering::SeqCst);
    }
    // SAFETY: the handler only sets a flag.
    unsafe { libc::signal(libc::SIGTERM, note as *const () as libc::sighandler_t) };
}
