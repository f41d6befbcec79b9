//! The runtime's end of a shim's socket.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shim::protocol::{Answer, Call, FromShim, LAUNCH_FILE, LOG_FILE, Launch, MAX_MESSAGE, Request, SOCKET_FILE};
use shim::record::Exit;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::sync::oneshot;

use crate::files;

type Reply = (Result<Answer, String>, Vec<OwnedFd>);

/// A connection to a shim.
pub struct Shim {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    /// `None` once the shim has gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>,
    execs: Mutex<HashMap<u64, oneshot::Sender<i32>>>,
}

/// Starts a shim. Its socket can be connected to at once; it answers when its namespaces are there.
pub fn launch(exe: &Path, launch: &Launch) -> io::Result<Child> {
    files::write_json(&launch.dir.join(LAUNCH_FILE), launch)?;
    let listener = sys::seqpacket::listen(&launch.dir.join(SOCKET_FILE))?;
    let log = std::fs::File::options().create(true).append(true).open(launch.dir.join(LOG_FILE))?;
    // Nothing here may need code between fork and exec (a directory of its own does: the shim changes to `/` itself): then
    // the process is spawned without a copy of our page tables, and of every page that we write meanwhile.
    Command::new(exe)
        .arg("shim")
        .arg(&launch.id)
        .arg(&launch.dir)
        .env_clear()
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .spawn()
}

/// Hands a descriptor to the event loop.
pub fn watched<T: std::os::fd::AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // The newer function is unsafe because a type may lend a descriptor that it does not own; those
    // given here own theirs for as long as they live.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd, interest)
}

/// What a shim wrote before it gave up.
pub fn complaint(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
    text.trim().lines().last().unwrap_or("it left no message").to_owned()
}

impl Shim {
    /// Connects to a shim by its directory. Must be called within a tokio runtime.
    pub fn connect(dir: &Path) -> io::Result<Self> {
        let socket = sys::seqpacket::connect(&dir.join(SOCKET_FILE))?;
        Ok(Self {
            socket: watched(socket, Interest::READABLE | Interest::WRITABLE)?,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            execs: Mutex::default(),
        })
    }

    /// Reads what the shim says until it goes away. `exited` hears of every container's end.
    pub async fn listen(&self, exited: impl Fn(&str, Exit)) {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let got = self.socket.async_io(Interest::READABLE, |s| sys::seqpacket::receive(s, &mut buffer)).await;
            let Ok((len, fds)) = got else { break };
            if len == 0 {
                break;
            }
            match serde_json::from_slice(&buffer[..len]) {
                Ok(FromShim::Reply { id, result }) => {
                    let waiter = self.waiting.lock().as_mut().and_then(|w| w.remove(&id));
                    if let Some(waiter) = waiter {
                        // The caller may have given up.
                        let _ = waiter.send((result, fds));
                    }
                }
                Ok(FromShim::Exited { container, exit }) => exited(&container, exit),
                Ok(FromShim::ExecExited { exec, code }) => {
                    let waiter = self.execs.lock().remove(&exec);
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(code);
                    }
                }
                Err(error) => tracing::error!(%error, "a shim said something unknown"),
            }
        }
        self.waiting.lock().take();
        self.execs.lock().clear();
    }

    /// Asks and waits for the answer, with the descriptors that came with it.
    pub async fn call(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err("the sandbox's shim has gone".into()),
        };
        let text = serde_json::to_vec(&Request { id, call }).map_err(|e| e.to_string())?;
        let sent = self.socket.async_io(Interest::WRITABLE, |s| sys::seqpacket::send(s.as_fd(), &text, fds)).await;
        if let Err(error) = sent {
            if let Some(waiting) = self.waiting.lock().as_mut() {
                waiting.remove(&id);
            }
            return Err(format!("send to the sandbox's shim: {error}"));
        }
        let (result, fds) = receiver.await.map_err(|_| "the sandbox's shim has gone".to_owned())?;
        result.map(|answer| (answer, fds))
    }

    /// The same for calls whose answer says nothing.
    pub async fn tell(&self, call: Call) -> Result<(), String> {
        self.call(call, &[]).await.map(drop)
    }

    /// Announces a process; the receiver hears its exit code, or nothing when the shim goes.
    pub fn expect_exec(&self) -> (u64, oneshot::Receiver<i32>) {
        let exec = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.execs.lock().insert(exec, sender);
        (exec, receiver)
    }

    /// The announced process was not started after all.
    pub fn forget_exec(&self, exec: u64) {
        self.execs.lock().remove(&exec);
    }
}
