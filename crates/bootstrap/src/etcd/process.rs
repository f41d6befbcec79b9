//! The process of a member: started, watched, started again when it ends, taken over when an earlier server left it.
//!
//! One future runs it. Its output goes into a file and not through a pipe, so that it lives on without us.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::watch;

use super::{Member, Program};

/// Pauses between a process's end and the next one.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that ran this long has not failed at its start.
const STEADY: Duration = Duration::from_secs(60);
/// How long it may take to end when it is asked to: it hands over what it leads.
const GRACE: Duration = Duration::from_secs(8);
/// How often one that is not our child is looked at.
const POLL: Duration = Duration::from_millis(100);
/// The log is put aside when it is longer.
const LOG: u64 = 16 << 20;
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// What a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has not been started yet.
    Starting,
    /// It runs; it may serve or not.
    Running(u32),
    /// It ended by itself, and will be started again: what it said last.
    Ended(String),
    /// It was taken off the member list: it will not be started again.
    Removed,
}

/// Runs a member's process.
pub struct Supervisor {
    program: PathBuf,
    arguments: Vec<OsString>,
    log: PathBuf,
    pid_file: PathBuf,
    state: watch::Sender<State>,
}

/// A process of a member.
enum Process {
    Own(tokio::process::Child, u32),
    /// An earlier server's.
    Left(OwnedFd, u32),
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Process::Own(_, id) | Process::Left(_, id) => *id,
        }
    }

    async fn ended(&mut self) -> String {
        match self {
            Process::Own(child, _) => child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string()),
            Process::Left(fd, _) => {
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                while !rustix::event::poll(&mut [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0) {
                    tokio::time::sleep(POLL).await;
                }
                "it ended".into()
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended.
        if let Some(pid) = Pid::from_raw(self.id() as i32) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    async fn end(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.ended()).await.is_err() {
            tracing::warn!("etcd does not end: it is killed");
            self.signal(Signal::KILL);
            let _ = tokio::time::timeout(GRACE, self.ended()).await;
        }
    }
}

impl Supervisor {
    /// Of a member. `initial` as in [`Member::arguments`].
    pub fn new(member: &Member, program: &Program, initial: Option<(&str, bool)>) -> Supervisor {
        Supervisor {
            program: program.path.clone(),
            arguments: member.arguments(initial),
            log: member.log(),
            pid_file: member.dir.join("pid"),
            state: watch::Sender::new(State::Starting),
        }
    }

    /// What the process does, as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Runs it until `stop`, and then ends it.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut pause = PAUSE;
        loop {
            let (began, at) = (Instant::now(), fs::metadata(&self.log).map_or(0, |m| m.len()));
            let why = match self.process().await {
                Err(error) => format!("{} cannot be started: {error}", self.program.display()),
                Ok(mut process) => {
                    self.state.send_replace(State::Running(process.id()));
                    let how = loop {
                        tokio::select! {
                            () = &mut stop => {
                                process.end().await;
                                let _ = fs::remove_file(&self.pid_file);
                                return;
                            }
                            how = process.ended() => break how,
                            () = tokio::time::sleep(LOOK) => self.rotate(),
                        }
                    };
                    let said = tail(&self.log, at);
                    if said.contains("permanently removed") {
                        tracing::error!("this member was removed from etcd's cluster: its process is not started again");
                        self.state.send_replace(State::Removed);
                        return stop.await;
                    }
                    format!("{how}: {}", complaint(&said))
                }
            };
            tracing::error!(why, "etcd has ended; it is started again");
            self.state.send_replace(State::Ended(why));
            if began.elapsed() > STEADY {
                pause = PAUSE;
            }
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The one that an earlier server left, or a new one.
    async fn process(&self) -> std::io::Result<Process> {
        if let Some(mut left) = self.left() {
            if self.is_same(left.id()) {
                tracing::info!(pid = left.id(), "etcd still runs");
                return Ok(left);
            }
            tracing::info!(pid = left.id(), "etcd still runs, with other flags: it is ended");
            left.end().await;
        }
        self.rotate();
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log)?;
        let child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            // Signals of a terminal are not meant for it.
            .process_group(0)
            .spawn()?;
        let id = child.id().unwrap_or_default();
        fs::write(&self.pid_file, id.to_string())?;
        Ok(Process::Own(child, id))
    }

    fn left(&self) -> Option<Process> {
        let id = left(self.pid_file.parent()?)?;
        let fd = rustix::process::pidfd_open(Pid::from_raw(i32::try_from(id).ok()?)?, PidfdFlags::empty()).ok()?;
        Some(Process::Left(fd, id))
    }

    /// Whether a process has these flags, but for those that matter at its first start alone.
    fn is_same(&self, id: u32) -> bool {
        let lasting = |all: &[OsString]| all.iter().filter(|a| !a.as_encoded_bytes().starts_with(b"--initial-cluster")).cloned().collect::<Vec<_>>();
        let line = command_line(id);
        line.first().is_some_and(|program| Path::new(program) == self.program) && lasting(&line[1..]) == lasting(&self.arguments)
    }

    /// Puts a long log aside. The process goes on writing at the file's new end.
    fn rotate(&self) {
        let rotated = || {
            if fs::metadata(&self.log)?.len() > LOG {
                fs::copy(&self.log, self.log.with_extension("old"))?;
                OpenOptions::new().write(true).open(&self.log)?.set_len(0)?;
            }
            std::io::Result::Ok(())
        };
        if let Err(error) = rotated()
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be put aside: {error}", self.log.display());
        }
    }
}

/// The process that a server has left in a member's directory, if it runs.
pub fn left(dir: &Path) -> Option<u32> {
    let id = fs::read_to_string(dir.join("pid")).ok()?.trim().parse::<u32>().ok()?;
    let flag = OsString::from_vec([b"--data-dir=", dir.join("data").into_os_string().as_encoded_bytes()].concat());
    // The number may be somebody else's by now.
    command_line(id).contains(&flag).then_some(id)
}

/// Ends the process that a server has left in a member's directory, if it has; whether there was one. Blocks.
pub fn end_left(dir: &Path) -> bool {
    let Some(pid) = left(dir).and_then(|id| Pid::from_raw(id as i32)) else { return false };
    let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = rustix::process::pidfd_send_signal(&fd, signal);
        let wait = rustix::event::Timespec { tv_sec: GRACE.as_secs() as i64, tv_nsec: 0 };
        if rustix::event::poll(&mut [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)], Some(&wait)).is_ok_and(|n| n > 0) {
            break;
        }
    }
    let _ = fs::remove_file(dir.join("pid"));
    true
}

fn command_line(id: u32) -> Vec<OsString> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).filter(|a| !a.is_empty()).map(|a| OsString::from_vec(a.to_vec())).collect()
}

/// What a log has said from there on, its last part.
fn tail(path: &Path, from: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        let from = if from > end { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(32 << 10))))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

/// The worst of what it said last.
fn complaint(said: &str) -> String {
    let bad = |line: &&str| ["\"level\":\"fatal\"", "\"level\":\"panic\"", "\"level\":\"error\"", "panic:"].iter().any(|word| line.contains(word));
    let line = said.lines().rev().find(bad).or(said.lines().last()).unwrap_or("it said nothing");
    let parsed: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    match (parsed["msg"].as_str(), parsed["error"].as_str()) {
        (Some(message), Some(error)) => format!("{message}: {error}"),
        (Some(message), None) => message.to_owned(),
        _ => line.chars().take(300).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_that_was_said_is_told() {
        let said = "{\"level\":\"info\",\"msg\":\"a\"}\n{\"level\":\"fatal\",\"msg\":\"discovery failed\",\"error\":\"member count is unequal\"}\n{\"level\":\"info\",\"msg\":\"closing\"}\n";
        assert_eq!(complaint(said), "discovery failed: member count is unequal");
        assert_eq!(complaint("exec format error"), "exec format error");
        assert_eq!(complaint(""), "it said nothing");
    }
}
