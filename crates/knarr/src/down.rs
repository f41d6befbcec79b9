//! `knarr down`: stops the server, then the pods; with `--purge`, leaves nothing behind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cli::Place;
use crate::layout::Layout;
use crate::{files, network, node, preflight, up};

/// What to stop, and how thoroughly.
#[derive(Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub place: Place,
    /// Remove all data too: objects, images, logs, keys
    #[arg(long)]
    pub purge: bool,
}

/// Time for the server to write what it has in hand.
const PATIENCE: Duration = Duration::from_secs(20);

/// Does it.
pub fn run(args: &DownArgs) -> Result<()> {
    preflight::root()?;
    let absolute = |p: &Path| std::path::absolute(p).with_context(|| format!("{} cannot be made absolute", p.display()));
    let layout = Layout::new(&absolute(&args.place.data_dir)?, &absolute(&args.place.run_dir)?);
    // A directory that is not ours is not touched, whatever it holds. A damaged marker is ours.
    if layout.data.exists() && !layout.marker().exists() {
        preflight::data_dir(&layout.data)?;
        if !layout.run.exists() {
            println!("nothing runs and nothing is there");
            return Ok(());
        }
    }
    match end(&layout)? {
        None => println!("no server is running"),
        Some(pid) => println!("server stopped (process {pid})"),
    }
    if bootstrap::etcd::end_left(&layout.member()) {
        println!("etcd stopped");
    }
    // Held until the end: nobody may start while things are taken away.
    let lock = clear(&layout)?;
    println!("pods stopped");
    if args.purge {
        remove(&layout)?;
        forget()?;
        println!("all data removed");
    }
    drop(lock);
    Ok(())
}

/// Ends the process, and says which it was.
pub fn end(layout: &Layout) -> Result<Option<u32>> {
    let holder = files::holder(&layout.lock());
    if let Some(pid) = holder {
        stop(pid)?;
    }
    Ok(holder)
}

/// Ends the pods, and takes away their network and what a reboot would end.
pub fn clear(layout: &Layout) -> Result<Option<files::Lock>> {
    let lock = if layout.data.exists() { Some(files::lock(&layout.lock())?) } else { None };
    node::purge(layout).context("stopping the pods")?;
    network::purge(layout).context("removing the network")?;
    remove_tree(&layout.run)?;
    Ok(lock)
}

/// Removes a directory; one that something is mounted on stays, empty.
fn remove_tree(path: &Path) -> Result<()> {
    use std::io::ErrorKind::{NotFound, ResourceBusy};
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ResourceBusy && fs::read_dir(path).is_ok_and(|mut left| left.next().is_none()) => Ok(()),
        Err(error) if error.kind() != NotFound => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Removes everything that lasts.
pub fn remove(layout: &Layout) -> Result<()> {
    if layout.member().exists() {
        println!("where this machine's etcd was one of several members, take it off the others' list: knarr etcd remove {}", crate::config::host_name().unwrap_or_default());
    } else if let Ok(Some(etcd)) = crate::engine::noted(layout) {
        println!("the objects in etcd ({}) are left there", etcd.etcd_servers.join(","));
    }
    if layout.data.exists() {
        sys::mount::unmount_inside(&layout.data).with_context(|| format!("cannot unmount below {}", layout.data.display()))?;
        remove_tree(&layout.data)?;
    }
    Ok(())
}

fn stop(pid: u32) -> Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { bail!("{pid} is no process id") };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).context("cannot look at the server's process"),
    };
    for (signal, patience) in [(Signal::TERM, PATIENCE), (Signal::KILL, Duration::from_secs(5))] {
        match rustix::process::pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error).context("cannot signal the server"),
        }
        let end = Instant::now() + patience;
        while Instant::now() < end {
            let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            if rustix::event::poll(&mut fds, Some(&wait))? > 0 {
                return Ok(());
            }
        }
    }
    bail!("the server (process {}) does not end, not even by SIGKILL: it waits for the kernel, see its state in /proc", pid.as_raw_nonzero())
}

/// Takes the context `knarr` out of the user's kubeconfig again.
fn forget() -> Result<()> {
    let path = up::user_kubeconfig();
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    match pki::remove_from_kubeconfig(&text, "knarr") {
        Ok(Some(rest)) => files::write(&path, rest.as_bytes(), 0o600),
        Ok(None) => Ok(()),
        Err(error) => {
            println!("{} was left as it is: {error}", path.display());
            Ok(())
        }
    }
}
