//! Network namespaces that live as long as a file is mounted.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::{Context, Error, Result};
use crate::mount;

/// Makes a network namespace and pins it at `path`, a file that is created. Its loopback is down.
///
/// The work happens on a thread of its own that ends afterwards, so no other thread changes its
/// namespace.
pub fn create(path: &Path) -> Result<()> {
    File::create_new(path).context("create", path)?;
    let made = std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".into()).stack_size(64 << 10).spawn_scoped(scope, || {
            // SAFETY: only this thread is affected; it shares no file table that others rely on
            // staying unshared, and it ends with the closure.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.context("make network namespace", path)?;
            mount::bind(Path::new("/proc/thread-self/ns/net"), path, false)
        });
        match worker {
            Ok(worker) => worker.join().unwrap_or_else(|_| Err(Error::new("make network namespace", path, rustix::io::Errno::IO))),
            Err(error) => Err(Error::new("start a thread for", path, error)),
        }
    });
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Unpins a namespace. It ends when no process or socket is left in it. Idempotent.
pub fn remove(path: &Path) -> Result<()> {
    mount::unmount(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::new("remove", path, error)),
        _ => Ok(()),
    }
}

/// Moves the calling thread into the network namespace pinned at `path`.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).context("open", path)?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).context("enter", path)
}

/// Runs a closure on a thread of its own inside the network namespace pinned at `path`.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| enter(path).map(|()| work()));
        worker.join().unwrap_or_else(|_| Err(Error::new("work in", path, rustix::io::Errno::IO)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_namespace_is_another_one_and_goes_again() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        create(&path).unwrap();
        let there = within(&path, || std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(here, there);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
        assert!(create(&path).is_err(), "it is there already");
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }
}
