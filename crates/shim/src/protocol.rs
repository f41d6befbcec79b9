//! What runtime and shim say to each other: one enum a direction, one JSON message a packet, file
//! descriptors beside it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::Exit;

/// The file with [`Launch`] in a shim's directory.
pub const LAUNCH_FILE: &str = "launch.json";
/// The socket in a shim's directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// Where a shim's complaints go.
pub const LOG_FILE: &str = "shim.log";
/// No message is longer. Whatever could be (a process with its environment) travels as a file.
pub const MAX_MESSAGE: usize = 16 << 10;

/// What a shim is started with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The sandbox's id.
    pub id: String,
    /// The shim's own directory, where libcontainer keeps its state too.
    pub dir: PathBuf,
    /// A pinned network namespace to live in; the host's without.
    pub network: Option<PathBuf>,
    /// Make a UTS namespace with this host name; the host's without.
    pub hostname: Option<String>,
    /// Make an IPC namespace.
    pub ipc: bool,
    /// Make a PID namespace that all containers share.
    pub pid: bool,
    /// Kernel parameters of these namespaces, set once.
    pub sysctls: Vec<(String, String)>,
    /// The preference as a victim when memory runs out.
    pub oom_score_adj: i32,
}

/// From the runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the runtime, repeated in the reply.
    pub id: u64,
    pub call: Call,
}

/// What the runtime can ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Call {
    /// Answered with [`Answer::Hello`] once the namespaces are there.
    Hello,
    /// Creates and starts a container: [`Answer::Started`].
    Run(Run),
    /// Runs another process in a running container: [`Answer::Started`]. Without a terminal the
    /// descriptors are the process's standard input, output and error, as many as the flags say; with
    /// one the reply carries the master side.
    Exec(Exec),
    /// Signals a container's first process, or all of its processes.
    Signal { container: String, signal: i32, all: bool },
    /// Signals a process that `Exec` started.
    SignalExec { exec: u64, signal: i32 },
    /// Copies a container's streams to and from the descriptors, in the order of the flags.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool },
    /// Sets the terminal size of a container.
    Resize { container: String, width: u16, height: u16 },
    /// Opens the log file anew.
    ReopenLog { container: String },
    /// Drops all memory of an ended container.
    Forget { container: String },
    /// Connects to a loopback port in the pod's network: the reply carries the socket, which may still
    /// be connecting.
    Dial { port: u16, v6: bool },
    /// Ends the shim, with whatever still runs in its PID namespace.
    Quit,
}

/// A container to be created and started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub id: String,
    /// The OCI bundle; records of start and end are written there too.
    pub bundle: PathBuf,
    /// Where the log goes; nowhere without.
    pub log: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    /// Standard input ends when the first attached client's does.
    pub stdin_once: bool,
    /// The group that the specification names, for what has to be killed or counted at the end.
    pub cgroup: String,
    /// Whose the streams are, so that `/dev/stdout` can be opened by a process that is not root.
    pub uid: u32,
    /// The first process is the init of its own PID namespace, so everything ends with it.
    pub own_pid_namespace: bool,
}

/// An additional process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    pub container: String,
    /// Chosen by the runtime, repeated when it ends.
    pub exec: u64,
    /// A file with an OCI process; the shim removes it.
    pub process: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// From the shim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromShim {
    Reply { id: u64, result: Result<Answer, String> },
    /// A container's first process has ended.
    Exited { container: String, exit: Exit },
    /// A process that `Exec` started has ended.
    ExecExited { exec: u64, code: i32 },
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Hello {
        /// The shim's own process, through which its namespaces are reached.
        pid: i32,
        /// The first process of the shared PID namespace.
        pause: Option<i32>,
        /// The containers it holds, running or not.
        containers: Vec<Held>,
    },
    Started { pid: i32 },
}

/// A container that a shim holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub id: String,
    pub pid: i32,
    pub exit: Option<Exit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_fit() {
        let long = "x".repeat(3000);
        let call = Call::Run(Run { bundle: long.clone().into(), log: Some(long.into()), ..Run::default() });
        let request = Request { id: u64::MAX, call };
        let text = serde_json::to_vec(&request).unwrap();
        assert!(text.len() < MAX_MESSAGE);
        assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
    }
}
