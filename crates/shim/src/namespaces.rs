//! The shim's own place in the world: session, signals, memory, and the namespaces of its pod.

use std::io;

use rustix::thread::UnshareFlags;

use crate::{Error, Launch};

/// Leaves whatever the parent's terminal, signals and memory habits were.
pub fn settle() {
    // Fails for a process group leader only, which a spawned process is not.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let _ = rustix::thread::set_name(c"knarr-shim");
    // SAFETY: prctl and mallopt with constant arguments; no other thread exists.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        // One arena, given back early: the shim's memory is paid once a pod.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
        libc::mallopt(libc::M_TOP_PAD, 4 << 10);
    }
}

/// Makes and enters the pod's namespaces; they last as long as the shim or a container. Answers the
/// first process of the shared PID namespace, when there is to be one.
pub fn hold(launch: &Launch) -> Result<Option<i32>, Error> {
    if let Some(network) = &launch.network {
        sys::netns::enter(network)?;
    }
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWUTS, launch.hostname.is_some());
    flags.set(UnshareFlags::NEWIPC, launch.ipc);
    if !flags.is_empty() {
        // SAFETY: this process has one thread; neither flag touches its descriptors.
        unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|e| Error::Setup("make namespaces", e.into()))?;
    }
    if let Some(hostname) = &launch.hostname {
        rustix::system::sethostname(hostname.as_bytes()).map_err(|e| Error::Setup("set the host name", e.into()))?;
    }
    for (name, value) in &launch.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(&path, value).map_err(|e| Error::Launch(format!("sysctl {name}={value}"), e))?;
    }
    // Being the preferred victim is better than not running.
    let _ = sys::oom::set(std::process::id() as i32, launch.oom_score_adj);
    match launch.pid {
        true => pause().map(Some).map_err(|e| Error::Setup("make a PID namespace", e)),
        false => Ok(None),
    }
}

/// Starts the first process of a new PID namespace: it adopts and reaps, and nothing else.
fn pause() -> io::Result<i32> {
    // SAFETY: like fork in a process of one thread: the child gets a copy of everything and, with no
    // new stack given, goes on from here. glibc's own fork cannot be told about namespaces.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        0 => adopt_forever(),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid as i32),
    }
}

fn adopt_forever() -> ! {
    let _ = rustix::thread::set_name(c"pause");
    // SAFETY: only async-signal-safe calls on local values; descriptors are closed as nothing here
    // uses them.
    unsafe {
        // The namespace ends with the shim.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        loop {
            let mut signal = 0;
            libc::sigwait(&set, &mut signal);
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}
