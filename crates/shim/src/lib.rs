//! The small single-threaded process, one a pod, that holds its containers. No tokio.
//!
//! The runtime starts it as `knarr shim <sandbox id> <directory>`, with a listening socket as standard
//! input and [`Launch`] in the directory. It outlives the runtime, which finds it again by the socket.
//! It keeps the pod's namespaces, creates containers and their additional processes through
//! libcontainer (each in a short-lived child, so that a hung mount blocks neither reaping nor logs),
//! reaps them, leaves a record of every end in a file, writes logs in the CRI's format and copies
//! streams to whoever is attached. It decides nothing: signals, restarts and removal are the runtime's.
//!
//! Its memory counts once a pod, so buffers are small and everything of libcontainer happens in the
//! children.

pub mod protocol;
pub mod record;

mod container;
mod executor;
mod log;
mod namespaces;
mod process;
mod server;
mod time;

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

pub use protocol::Launch;

/// What keeps a shim from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("usage: knarr shim <sandbox id> <directory> (it is started by the runtime)")]
    Usage,
    #[error("read {0}")]
    Launch(String, #[source] std::io::Error),
    #[error("{0}")]
    Setup(&'static str, #[source] std::io::Error),
    #[error(transparent)]
    Sys(#[from] sys::Error),
}

/// The whole program: `args` are those after `shim`. It returns when the pod is done with.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("shim: {text}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: impl IntoIterator<Item = String>) -> Result<(), Error> {
    let mut args = args.into_iter();
    let (Some(_id), Some(dir), None) = (args.next(), args.next(), args.next()) else { return Err(Error::Usage) };
    let path = Path::new(&dir).join(protocol::LAUNCH_FILE);
    let text = std::fs::read(&path).map_err(|e| Error::Launch(path.display().to_string(), e))?;
    let launch: Launch = serde_json::from_slice(&text).map_err(|e| Error::Launch(path.display().to_string(), e.into()))?;
    namespaces::settle();
    let pause = namespaces::hold(&launch)?;
    // SAFETY: by contract standard input is the listening socket; nothing else in this process uses it.
    let listener = unsafe { OwnedFd::from_raw_fd(0) };
    server::Server::new(launch, listener, pause)?.run()
}
