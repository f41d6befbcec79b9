//! Creating and starting a container.

use std::io;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::{Console, Job, Outcome, Stdio, describe, start};
use crate::executor::Payload;
use crate::protocol::Run;

/// Starts a container in a child process.
pub fn run(dir: &Path, run: &Run, stdio: Option<Stdio>) -> io::Result<Job> {
    start(|| work(dir, run, stdio))
}

fn work(dir: &Path, run: &Run, stdio: Option<Stdio>) -> Outcome {
    let state = dir.join("oci");
    let mut builder = ContainerBuilder::new(run.id.clone(), SyscallType::default()).with_executor(Payload);
    builder = builder.with_root_path(&state).map_err(|e| describe(&e))?;
    let mut console = None;
    match stdio {
        Some(stdio) => builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        None => {
            let socket = Console::listen(dir).map_err(|e| format!("listen for the terminal: {e}"))?;
            builder = builder.with_console_socket(Some(&socket.path));
            console = Some(socket);
        }
    }
    let built = builder.as_init(&run.bundle).with_systemd(false).as_sibling(true).build();
    let mut container = built.map_err(|e| describe(&e))?;
    let started = || {
        let master = console.map(|c| c.receive()).transpose().map_err(|e| format!("receive the terminal: {e}"))?;
        container.start().map_err(|e| describe(&e))?;
        let pid = container.pid().ok_or("the container has no process")?;
        Ok((pid.as_raw(), master))
    };
    let outcome: Outcome = started();
    if outcome.is_err() {
        let _ = container.delete(true);
    }
    outcome
}
