//! Processes by descriptor, so that a reused pid is never mistaken for the old process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::{Context, Error, Result};

/// A process, alive or not.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

/// Opens a process. `None` when there is none of this pid.
pub fn open(pid: i32) -> Result<Option<PidFd>> {
    let path = || format!("/proc/{pid}");
    let valid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(|| Error::new("open process", path(), Errno::INVAL))?;
    match rustix::process::pidfd_open(valid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(PidFd(fd))),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(Error::new("open process", path(), errno)),
    }
}

impl PidFd {
    /// Sends a signal by number. `false` when the process has ended.
    pub fn signal(&self, number: i32) -> Result<bool> {
        let Some(signal) = Signal::from_named_raw(number) else {
            // Real-time signals have no name in rustix.
            // SAFETY: the descriptor is open, the siginfo pointer may be null.
            let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), number, std::ptr::null::<u8>(), 0) };
            return match sent {
                0 => Ok(true),
                _ if std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) => Ok(false),
                _ => Err(Error::new("signal process", "", std::io::Error::last_os_error())),
            };
        };
        match rustix::process::pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(Error::new("signal process", "", errno)),
        }
    }

    /// Waits until the process has ended. `false` when it has not within the time.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait for process", ""),
            }
        }
    }
}

impl AsFd for PidFd {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("/proc/self/exe").arg("--list").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
        let fd = open(child.id() as i32).unwrap().unwrap();
        fd.signal(libc::SIGKILL).unwrap();
        assert!(fd.wait(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(!fd.signal(libc::SIGTERM).unwrap());
        assert!(open(i32::MAX - 1).unwrap().is_none());
    }
}
