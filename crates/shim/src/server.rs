//! The event loop: connections from the runtime, ends of processes, reports of helpers, streams.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::container::{CHUNK, Container, Source, dev_null, set_nonblocking};
use crate::process::{self, Job, Stdio};
use crate::protocol::{Answer, Call, Exec, FromShim, Held, MAX_MESSAGE, Request, Run};
use crate::record::{Exit, Start};
use crate::{Error, Launch, time};

/// The state of a shim.
pub struct Server {
    launch: Launch,
    listener: OwnedFd,
    signals: OwnedFd,
    pause: Option<i32>,
    next_connection: u64,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    execs: Vec<ExecProcess>,
    jobs: Vec<Working>,
    /// Ends of processes that nobody knows yet: a helper's report may come after the end.
    orphans: VecDeque<(i32, i32)>,
    buffer: Box<[u8]>,
    quit: bool,
}

struct Connection {
    id: u64,
    socket: OwnedFd,
}

struct ExecProcess {
    exec: u64,
    pid: i32,
    connection: u64,
}

/// A helper, for whom it works, and on what.
struct Working {
    job: Job,
    connection: u64,
    request: u64,
    kind: Kind,
}

enum Kind {
    Run(String),
    Exec(u64),
}

#[derive(Clone, Copy)]
enum Token {
    Listener,
    Signals,
    Connection(u64),
    Job(usize),
    Container(usize, Source),
}

/// What a call leads to: an answer now, with a descriptor perhaps, or later.
type Handled = Result<Option<(Answer, Option<OwnedFd>)>, String>;

impl Server {
    /// Takes over a listening socket.
    pub fn new(launch: Launch, listener: OwnedFd, pause: Option<i32>) -> Result<Self, Error> {
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).map_err(|e| Error::Setup("take over the socket", e.into()))?;
        set_nonblocking(&listener, true).map_err(|e| Error::Setup("take over the socket", e))?;
        std::fs::create_dir_all(launch.dir.join("oci")).map_err(|e| Error::Setup("make the state directory", e))?;
        Ok(Self {
            launch,
            listener,
            signals: child_signals().map_err(|e| Error::Setup("watch child processes", e))?,
            pause,
            next_connection: 0,
            connections: Vec::new(),
            containers: Vec::new(),
            execs: Vec::new(),
            jobs: Vec::new(),
            orphans: VecDeque::new(),
            buffer: vec![0; CHUNK].into_boxed_slice(),
            quit: false,
        })
    }

    /// Serves until told to quit.
    pub fn run(mut self) -> Result<(), Error> {
        // SAFETY: no arguments that matter; what start-up needed goes back to the kernel.
        unsafe { libc::malloc_trim(0) };
        while !self.quit {
            let ready = self.wait().map_err(|e| Error::Setup("wait for events", e))?;
            for (token, events) in ready {
                match token {
                    Token::Listener => self.accept(),
                    Token::Signals => self.reap(),
                    Token::Connection(id) => self.receive(id),
                    Token::Job(n) => self.report(n),
                    Token::Container(n, source) => self.containers[n].ready(source, events, &mut self.buffer),
                }
            }
            self.jobs.retain(|w| w.job.pid != 0);
            if self.jobs.is_empty() {
                self.orphans.clear();
            }
            self.containers.iter_mut().for_each(Container::sweep);
        }
        if let Some(pid) = self.pause {
            kill(pid, libc::SIGKILL);
        }
        Ok(())
    }

    /// Waits for something to happen. Connections come last, so that a container that a call removes
    /// is no more referred to.
    fn wait(&self) -> io::Result<Vec<(Token, PollFlags)>> {
        let mut tokens = Vec::with_capacity(16);
        let mut fds = Vec::with_capacity(16);
        let mut watch = |token, fd: BorrowedFd<'_>, events| {
            tokens.push(token);
            // SAFETY: the descriptor is owned by `self`, which outlives the poll.
            fds.push(PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }, events));
        };
        for (n, container) in self.containers.iter().enumerate() {
            container.watch(|source, fd, events| watch(Token::Container(n, source), fd, events));
        }
        watch(Token::Signals, self.signals.as_fd(), PollFlags::IN);
        for (n, working) in self.jobs.iter().enumerate() {
            watch(Token::Job(n), working.job.report.as_fd(), PollFlags::IN);
        }
        for connection in &self.connections {
            watch(Token::Connection(connection.id), connection.socket.as_fd(), PollFlags::IN);
        }
        watch(Token::Listener, self.listener.as_fd(), PollFlags::IN);
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let happened = tokens.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(happened.map(|(token, fd)| (token, fd.revents())).collect())
    }

    fn accept(&mut self) {
        while let Ok(socket) = sys::seqpacket::accept(&self.listener) {
            self.next_connection += 1;
            self.connections.push(Connection { id: self.next_connection, socket });
        }
    }

    /// Takes one message of a connection.
    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else { return };
        let mut buffer = [0; MAX_MESSAGE];
        let (len, fds) = match sys::seqpacket::receive(&connection.socket, &mut buffer) {
            Ok((len, fds)) if len > 0 => (len, fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.connections.retain(|c| c.id != id),
        };
        let request: Request = match serde_json::from_slice(&buffer[..len]) {
            Ok(request) => request,
            // A runtime of another version; without an id there is no reply.
            Err(_) => return self.connections.retain(|c| c.id != id),
        };
        match self.handle(id, request.id, request.call, fds) {
            Ok(None) => {}
            Ok(Some((answer, fd))) => self.reply(id, request.id, Ok(answer), fd),
            Err(text) => self.reply(id, request.id, Err(text), None),
        }
    }

    fn reply(&mut self, connection: u64, request: u64, result: Result<Answer, String>, fd: Option<OwnedFd>) {
        self.send(Some(connection), &FromShim::Reply { id: request, result }, fd);
    }

    /// Sends to one connection or all. One that does not read is closed; it will ask again.
    fn send(&mut self, to: Option<u64>, message: &FromShim, fd: Option<OwnedFd>) {
        let text = serde_json::to_vec(message).unwrap_or_default();
        let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
        self.connections.retain(|c| to.is_some_and(|id| id != c.id) || sys::seqpacket::send(&c.socket, &text, &fds).is_ok());
    }

    fn handle(&mut self, connection: u64, request: u64, call: Call, fds: Vec<OwnedFd>) -> Handled {
        let done = Ok(Some((Answer::Done, None)));
        match call {
            Call::Hello => {
                let held = self.containers.iter().filter(|c| c.pid != 0);
                let containers = held.map(|c| Held { id: c.run.id.clone(), pid: c.pid, exit: c.exit.clone() }).collect();
                Ok(Some((Answer::Hello { pid: std::process::id() as i32, pause: self.pause, containers }, None)))
            }
            Call::Run(run) => self.run_container(connection, request, run),
            Call::Exec(exec) => self.exec(connection, request, exec, fds),
            Call::Signal { container, signal, all } => {
                let container = self.running(&container)?;
                match all {
                    true => {
                        let pids = sys::cgroup::Cgroups::detect().and_then(|c| c.pids(&container.run.cgroup)).map_err(|e| e.to_string())?;
                        pids.into_iter().for_each(|pid| kill(pid, signal));
                    }
                    false => kill(container.pid, signal),
                }
                done
            }
            Call::SignalExec { exec, signal } => {
                if let Some(process) = self.execs.iter().find(|e| e.exec == exec) {
                    kill(process.pid, signal);
                }
                done
            }
            Call::Attach { container, stdin, stdout, stderr } => {
                let mut fds = fds.into_iter();
                let mut take = |wanted: bool| if wanted { fds.next() } else { None };
                let (stdin, stdout, stderr) = (take(stdin), take(stdout), take(stderr));
                self.running(&container)?.attach(stdin, stdout, stderr).map_err(|e| e.to_string())?;
                done
            }
            Call::Resize { container, width, height } => {
                self.running(&container)?.resize(width, height).map_err(|e| e.to_string())?;
                done
            }
            Call::ReopenLog { container } => {
                self.running(&container)?.reopen_log().map_err(|e| e.to_string())?;
                done
            }
            Call::Forget { container } => {
                if self.containers.iter().any(|c| c.run.id == container && c.exit.is_none()) {
                    return Err(format!("container {container} is still running"));
                }
                self.containers.retain(|c| c.run.id != container);
                let _ = std::fs::remove_dir_all(self.launch.dir.join("oci").join(&container));
                done
            }
            Call::Dial { port, v6 } => {
                let socket = dial(port, v6).map_err(|e| format!("connect to port {port}: {e}"))?;
                Ok(Some((Answer::Done, Some(socket))))
            }
            Call::Quit => {
                self.quit = true;
                done
            }
        }
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, String> {
        let found = self.containers.iter_mut().find(|c| c.run.id == id && c.pid != 0 && c.exit.is_none());
        found.ok_or_else(|| format!("container {id} is not running"))
    }

    fn run_container(&mut self, connection: u64, request: u64, run: Run) -> Handled {
        if self.containers.iter().any(|c| c.run.id == run.id) {
            return Err(format!("container {} was started before", run.id));
        }
        let (container, stdio) = Container::new(run.clone()).map_err(|e| format!("open the container's log and streams: {e}"))?;
        let job = process::run(&self.launch.dir, &run, stdio).map_err(|e| format!("start a helper process: {e}"))?;
        self.containers.push(container);
        self.jobs.push(Working { job, connection, request, kind: Kind::Run(run.id) });
        Ok(None)
    }

    fn exec(&mut self, connection: u64, request: u64, exec: Exec, fds: Vec<OwnedFd>) -> Handled {
        self.running(&exec.container)?;
        let stdio = match exec.tty {
            true => None,
            false => {
                let mut fds = fds.into_iter();
                let mut take = |wanted: bool| match if wanted { fds.next() } else { None } {
                    Some(fd) => set_nonblocking(&fd, false).map(|()| fd),
                    None => dev_null(),
                };
                let streams = take(exec.stdin).and_then(|i| Ok((i, take(exec.stdout)?, take(exec.stderr)?)));
                let (stdin, stdout, stderr) = streams.map_err(|e| format!("open streams: {e}"))?;
                Some(Stdio { stdin, stdout, stderr })
            }
        };
        let job = process::exec(&self.launch.dir, &exec, stdio).map_err(|e| format!("start a helper process: {e}"))?;
        self.jobs.push(Working { job, connection, request, kind: Kind::Exec(exec.exec) });
        Ok(None)
    }

    /// A helper reports or is gone.
    fn report(&mut self, n: usize) {
        let working = &mut self.jobs[n];
        let (result, terminal) = working.job.finish();
        // Marked as done; the loop drops it when nothing refers to its number any more.
        working.job.pid = 0;
        let (connection, request) = (working.connection, working.request);
        let kind = std::mem::replace(&mut working.kind, Kind::Exec(0));
        match (kind, result) {
            (Kind::Run(id), Ok(pid)) => {
                let Some(container) = self.containers.iter_mut().find(|c| c.run.id == id) else { return };
                container.pid = pid;
                if let Some(terminal) = terminal {
                    let _ = container.set_terminal(terminal);
                }
                let _ = Start { pid, at: time::now() }.save(&container.run.bundle);
                self.reply(connection, request, Ok(Answer::Started { pid }), None);
                self.settle_orphan(pid);
            }
            (Kind::Run(id), Err(text)) => {
                self.containers.retain(|c| c.run.id != id);
                let _ = std::fs::remove_dir_all(self.launch.dir.join("oci").join(&id));
                self.reply(connection, request, Err(text), None);
            }
            (Kind::Exec(exec), Ok(pid)) => {
                self.execs.push(ExecProcess { exec, pid, connection });
                self.reply(connection, request, Ok(Answer::Started { pid }), terminal);
                self.settle_orphan(pid);
            }
            (Kind::Exec(_), Err(text)) => self.reply(connection, request, Err(text), None),
        }
    }

    /// The process may have ended before we knew whose it is.
    fn settle_orphan(&mut self, pid: i32) {
        if let Some(at) = self.orphans.iter().position(|(p, _)| *p == pid)
            && let Some((_, code)) = self.orphans.remove(at) {
                self.ended(pid, code);
            }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        // One read empties the descriptor of what it has gathered.
        let _ = rustix::io::read(&self.signals, &mut [0; 128]);
        loop {
            let mut status = 0;
            // SAFETY: the pointer is to a local.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let code = match libc::WIFSIGNALED(status) {
                true => 128 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            };
            self.ended(pid, code);
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        if let Some(at) = self.execs.iter().position(|e| e.pid == pid) {
            let process = self.execs.swap_remove(at);
            return self.send(Some(process.connection), &FromShim::ExecExited { exec: process.exec, code }, None);
        }
        let Some(container) = self.containers.iter_mut().find(|c| c.pid == pid && c.exit.is_none()) else {
            if !self.jobs.is_empty() {
                self.orphans.push_back((pid, code));
            }
            return;
        };
        let groups = sys::cgroup::Cgroups::detect().ok();
        if !container.run.own_pid_namespace {
            // Nothing else ends what the first process has left behind.
            let left = groups.as_ref().and_then(|g| g.pids(&container.run.cgroup).ok()).unwrap_or_default();
            left.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
        }
        let oom = groups.is_some_and(|g| g.oom_kills(&container.run.cgroup) > 0);
        let exit = Exit { code, oom, at: time::now() };
        container.ended(exit.clone(), &mut self.buffer);
        let _ = exit.save(&container.run.bundle);
        let message = FromShim::Exited { container: container.run.id.clone(), exit };
        self.send(None, &message, None);
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: no memory is involved. We reap all our children, so their pids are not reused.
    unsafe { libc::kill(pid, signal) };
}

/// A descriptor that is readable when a child ends.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the descriptor is ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn dial(port: u16, v6: bool) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
    let (family, address) = match v6 {
        true => (AddressFamily::INET6, SocketAddr::from((Ipv6Addr::LOCALHOST, port))),
        false => (AddressFamily::INET, SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}
