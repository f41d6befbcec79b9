//! Work inside other network namespaces, on threads of its own: a namespace belongs to a thread,
//! and a worker thread of an async runtime must never change its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use crate::{Error, Handle, Result};

fn failed(name: impl Into<String>, source: io::Error) -> Error {
    Error::Namespace { name: name.into(), source }
}

/// Opens a network namespace file (`/proc/<pid>/ns/net` or a bind mount of one).
pub fn open(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(|e| failed(path.display().to_string(), e))
}

/// The calling thread's own network namespace.
pub fn current() -> Result<OwnedFd> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// Runs a function inside a network namespace, on a thread that ends with it.
pub fn run<T: Send>(netns: impl AsFd, function: impl FnOnce() -> T + Send) -> Result<T> {
    let fd = netns.as_fd().as_raw_fd();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                // SAFETY: the descriptor is borrowed for longer than this thread lives, and only
                // this thread, which runs nothing else afterwards, changes its namespace.
                if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } != 0 {
                    return Err(failed(format!("descriptor {fd}"), io::Error::last_os_error()));
                }
                Ok(function())
            })
            .map_err(|e| failed(format!("descriptor {fd}"), e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Opens a netlink handle inside a network namespace. Using it needs no further switch.
pub fn handle(netns: impl AsFd) -> Result<Handle> {
    run(netns, Handle::open)?
}

/// Makes a network namespace that lives as long as a descriptor of it, or a process in it, does.
pub fn create() -> Result<OwnedFd> {
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(|| {
            // SAFETY: affects only this thread, which ends right after.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(failed("new", io::Error::last_os_error()));
            }
            current()
        })
        .map_err(|e| failed("new", e))?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
