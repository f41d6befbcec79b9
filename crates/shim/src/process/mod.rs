//! The short-lived children in which libcontainer works. Each reports once, over a socket pair, and
//! ends; the container's process is the shim's child all the same, because it is cloned as a sibling.

mod create;
mod exec;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use create::run;
pub use exec::exec;

/// A child at work.
pub struct Job {
    pub pid: i32,
    /// Readable when it reports or ends.
    pub report: OwnedFd,
}

/// What a child reports: the process it started, or why not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub result: Result<i32, String>,
}

/// What a child's work ends with: the process, and the master of its terminal.
type Outcome = Result<(i32, Option<OwnedFd>), String>;

/// Standard input, output and error of a process to come.
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Runs the work in a child.
fn start(work: impl FnOnce() -> Outcome) -> io::Result<Job> {
    let (report, theirs) = sys::seqpacket::pair()?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(report);
            default_signals();
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the helper process panicked".into()));
            let (result, fd) = match outcome {
                Ok((pid, fd)) => (Ok(pid), fd),
                Err(text) => (Err(text.chars().take(4096).collect()), None),
            };
            let text = serde_json::to_vec(&Report { result }).unwrap_or_default();
            let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
            let _ = sys::seqpacket::send(&theirs, &text, &fds);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(Job { pid, report }),
    }
}

/// The payload must not inherit what the shim and Rust do with signals.
fn default_signals() {
    // SAFETY: constant arguments, and a signal set on the stack.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

impl Job {
    /// The child's report, and the terminal that came with it.
    pub fn finish(&self) -> (Result<i32, String>, Option<OwnedFd>) {
        let mut buffer = [0; 8 << 10];
        match sys::seqpacket::receive(&self.report, &mut buffer) {
            Ok((0, _)) => (Err("the helper process ended without a report".into()), None),
            Ok((len, fds)) => match serde_json::from_slice::<Report>(&buffer[..len]) {
                Ok(report) => (report.result, fds.into_iter().next()),
                Err(error) => (Err(format!("the helper process reported nonsense: {error}")), None),
            },
            Err(error) => (Err(format!("read the helper process's report: {error}")), None),
        }
    }
}

/// A socket at which libcontainer delivers the master side of a terminal.
struct Console {
    path: std::path::PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Console {
    fn listen(dir: &Path) -> io::Result<Self> {
        let name = format!("tty-{}", std::process::id());
        let path = dir.join(&name);
        // Relative, because socket addresses are short and paths may not be.
        std::env::set_current_dir(dir)?;
        let listener = std::os::unix::net::UnixListener::bind(&name)?;
        std::env::set_current_dir("/")?;
        Ok(Self { path, listener })
    }

    fn receive(self) -> io::Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (connection, _) = self.listener.accept()?;
        let (_, fds) = sys::seqpacket::receive(&connection, &mut [0; 256])?;
        fds.into_iter().next().ok_or_else(|| io::Error::other("no terminal came"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An error with its causes, reduced to what concerns the user when it is about the executable.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    match text.rfind("exec: \"") {
        Some(at) => text[at..].trim_end_matches(['"', ')']).to_owned(),
        None => text,
    }
}
