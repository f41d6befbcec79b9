//! Another process in a running container.

use std::io;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::{Console, Job, Outcome, Stdio, describe, start};
use crate::executor::Payload;
use crate::protocol::Exec;

/// Starts a process in a child process.
pub fn exec(dir: &Path, exec: &Exec, stdio: Option<Stdio>) -> io::Result<Job> {
    start(|| {
        let outcome = work(dir, exec, stdio);
        let _ = std::fs::remove_file(&exec.process);
        outcome
    })
}

fn work(dir: &Path, exec: &Exec, stdio: Option<Stdio>) -> Outcome {
    let mut builder = ContainerBuilder::new(exec.container.clone(), SyscallType::default()).with_executor(Payload);
    builder = builder.with_root_path(dir.join("oci")).map_err(|e| describe(&e))?;
    let mut console = None;
    match stdio {
        Some(stdio) => builder = builder.with_stdin(stdio.stdin).with_stdout(stdio.stdout).with_stderr(stdio.stderr),
        None => {
            let socket = Console::listen(dir).map_err(|e| format!("listen for the terminal: {e}"))?;
            builder = builder.with_console_socket(Some(&socket.path));
            console = Some(socket);
        }
    }
    let tenant = builder.as_tenant().with_process(Some(&exec.process)).with_detach(true).as_sibling(true);
    let pid = tenant.build().map_err(|e| describe(&e))?;
    let master = console.map(|c| c.receive()).transpose().map_err(|e| format!("receive the terminal: {e}"))?;
    Ok((pid.as_raw(), master))
}
