//! Additional processes in running containers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use cri::v1::*;
use cri::{Error, Result};
use serde_json::{Value, json};
use shim::protocol::{Answer, Call, Exec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::shim::Shim;
use crate::state::{Container, Runtime};
use crate::files;

/// What `exec_sync` keeps of each output, as containerd does.
const MAX_OUTPUT: u64 = 16 << 20;
/// How long output may be held open by something that the process left behind.
const DRAIN: Duration = Duration::from_secs(1);

/// What a process is to be given; pipes of which it gets these ends.
#[derive(Default)]
pub(crate) struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// A process that runs.
pub(crate) struct Process {
    pub shim: Arc<Shim>,
    pub exec: u64,
    pub ended: oneshot::Receiver<i32>,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
}

impl Process {
    pub async fn kill(&self) {
        // It may have ended.
        let _ = self.shim.tell(Call::SignalExec { exec: self.exec, signal: 9 }).await;
    }
}

impl Runtime {
    pub(crate) fn running(&self, id: &str) -> Result<(Arc<Container>, Arc<Shim>)> {
        let container = self.container(id)?;
        let shim = container.sandbox.shim().filter(|_| container.life.borrow().is_running());
        let shim = shim.ok_or_else(|| {
            let state = format!("{:?}", container.state()).to_uppercase();
            Error::failed_precondition(format!("container is in CONTAINER_{state} state"))
        })?;
        Ok((container, shim))
    }

    /// Starts a process with the identity and environment of the container's own.
    pub(crate) async fn spawn(&self, id: &str, cmd: &[String], tty: bool, streams: Streams) -> Result<Process> {
        let (container, shim) = self.running(id)?;
        if cmd.is_empty() {
            return Err(Error::invalid_argument("no command specified"));
        }
        let spec: Value = files::read_json(&container.dir.join("config.json")).map_err(Error::internal)?;
        let process = exec_process(spec["process"].clone(), cmd, tty);
        for stream in [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten() {
            // `/dev/stdout` and its like must open for a process that is not root.
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(container.fixed.user.uid)), None).map_err(Error::internal)?;
        }
        let (exec, ended) = shim.expect_exec();
        let path = container.sandbox.run.join(format!("exec-{exec}.json"));
        files::write_json(&path, &process).map_err(Error::internal)?;
        let call = Exec {
            container: container.id.clone(),
            exec,
            process: path,
            tty,
            stdin: streams.stdin.is_some(),
            stdout: streams.stdout.is_some(),
            stderr: streams.stderr.is_some(),
        };
        let fds: Vec<BorrowedFd<'_>> = [&streams.stdin, &streams.stdout, &streams.stderr].into_iter().flatten().map(|fd| fd.as_fd()).collect();
        match shim.call(Call::Exec(call), &fds).await {
            Ok((Answer::Started { .. }, fds)) => Ok(Process { shim, exec, ended, terminal: fds.into_iter().next() }),
            Ok(_) => Err(Error::internal("the shim answered something else")),
            Err(why) => {
                shim.forget_exec(exec);
                Err(Error::unknown(format!("failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: unable to start container process: {why}")))
            }
        }
    }

    pub(crate) async fn run_and_wait(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse> {
        let pipe = || std::io::pipe().map_err(Error::internal);
        let ((out_read, stdout), (err_read, stderr)) = (pipe()?, pipe()?);
        let streams = Streams { stdin: None, stdout: Some(stdout.into()), stderr: Some(stderr.into()) };
        let mut process = self.spawn(&request.container_id, &request.cmd, false, streams).await?;
        let reader = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd).map_err(Error::internal);
        let (out, err) = (reader(out_read.into())?, reader(err_read.into())?);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let timeout = u64::try_from(request.timeout).ok().filter(|t| *t > 0).map(Duration::from_secs);
        // Output is read while the process runs, lest it waits for us.
        let work = async {
            let copy = async { tokio::join!(collect(out, &mut stdout), collect(err, &mut stderr)) };
            let wait = async { (&mut process.ended).await.map_err(|_| Error::unknown("the sandbox's shim has gone")) };
            tokio::pin!(copy, wait);
            tokio::select! {
                _ = &mut copy => wait.await,
                code = &mut wait => {
                    // What it left behind may hold the output open; that is not waited for.
                    let _ = tokio::time::timeout(DRAIN, copy).await;
                    code
                }
            }
        };
        let exit_code = match timeout {
            None => work.await?,
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(code) => code?,
                Err(_) => {
                    process.kill().await;
                    let why = format!("failed to exec in container: timeout {limit:?} exceeded: context deadline exceeded");
                    return Err(Error::deadline_exceeded(why));
                }
            },
        };
        Ok(ExecSyncResponse { stdout, stderr, exit_code })
    }
}

/// The container's process with another command.
fn exec_process(mut process: Value, cmd: &[String], tty: bool) -> Value {
    process["args"] = json!(cmd);
    process["terminal"] = json!(tty);
    if tty
        && let Some(env) = process["env"].as_array_mut()
            && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM="))) {
                env.push(json!("TERM=xterm"));
            }
    process
}

/// Reads to the end, but keeps only so much.
async fn collect(mut from: pipe::Receiver, into: &mut Vec<u8>) {
    // A broken pipe is an end.
    let _ = (&mut from).take(MAX_OUTPUT).read_to_end(into).await;
    let mut rest = [0; 4096];
    while matches!(from.read(&mut rest).await, Ok(n) if n > 0) {}
}
