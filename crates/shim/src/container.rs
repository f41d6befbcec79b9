//! One container's streams: its outputs go to the log and to whoever is attached, an attached client's
//! input goes to it. Nothing here blocks; a client that does not keep up holds its output back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::log::{Log, Stream};
use crate::process::Stdio;
use crate::protocol::Run;
use crate::record::Exit;

/// What one read takes at most.
pub const CHUNK: usize = 16 << 10;

/// A container, from its start until it is forgotten.
pub struct Container {
    pub run: Run,
    /// Zero until it has started.
    pub pid: i32,
    pub exit: Option<Exit>,
    log: Log,
    outputs: [Option<OwnedFd>; 2],
    input: Option<OwnedFd>,
    /// Read from a client and not yet taken by the container.
    input_rest: Vec<u8>,
    input_ends: bool,
    master: Option<OwnedFd>,
    clients: Vec<Client>,
}

struct Client {
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    /// Written by the container and not yet taken by the client.
    rest: [Vec<u8>; 2],
    /// Its input has ended, and the container's has not: what it has been told so far is all.
    leaves: bool,
}

/// A descriptor of a container that the event loop watches.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Output(Stream),
    Input,
    ClientInput(usize),
    ClientOutput(usize, Stream),
}

const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

pub fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(&fd)?;
    flags.set(OFlags::NONBLOCK, nonblocking);
    Ok(rustix::fs::fcntl_setfl(&fd, flags)?)
}

pub fn dev_null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())?)
}

impl Container {
    /// Opens the log and makes the streams. The second is the container's side of them; a container
    /// with a terminal brings its own.
    pub fn new(run: Run) -> io::Result<(Self, Option<Stdio>)> {
        let log = Log::open(run.log.clone())?;
        let (mut outputs, mut input, mut stdio) = ([None, None], None, None);
        if !run.tty {
            let (out_read, stdout) = io::pipe()?;
            let (err_read, stderr) = io::pipe()?;
            let stdin = match run.stdin {
                true => {
                    let (stdin, in_write) = io::pipe()?;
                    set_nonblocking(&in_write, true)?;
                    input = Some(in_write.into());
                    stdin.into()
                }
                false => dev_null()?,
            };
            set_nonblocking(&out_read, true)?;
            set_nonblocking(&err_read, true)?;
            for stream in [&stdout, &stderr] {
                rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(run.uid)), None)?;
            }
            outputs = [Some(out_read.into()), Some(err_read.into())];
            stdio = Some(Stdio { stdin, stdout: stdout.into(), stderr: stderr.into() });
        }
        let container = Self {
            run,
            pid: 0,
            exit: None,
            log,
            outputs,
            input,
            input_rest: Vec::new(),
            input_ends: false,
            master: None,
            clients: Vec::new(),
        };
        Ok((container, stdio))
    }

    /// The container came with a terminal.
    pub fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master, true)?;
        self.outputs[0] = Some(master.try_clone()?);
        if self.run.stdin {
            self.input = Some(master.try_clone()?);
        }
        self.master = Some(master);
        Ok(())
    }

    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let Some(master) = &self.master else { return Ok(()) };
        let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(master, size)?)
    }

    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Adds a client. Its descriptors are pipes or sockets of which we have the near end.
    pub fn attach(&mut self, stdin: Option<OwnedFd>, stdout: Option<OwnedFd>, stderr: Option<OwnedFd>) -> io::Result<()> {
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            set_nonblocking(fd, true)?;
        }
        self.clients.push(Client { stdin, outputs: [stdout, stderr], rest: [Vec::new(), Vec::new()], leaves: false });
        Ok(())
    }

    /// Names every descriptor to be watched, and for what.
    pub fn watch<'a>(&'a self, mut each: impl FnMut(Source, BorrowedFd<'a>, PollFlags)) {
        for stream in STREAMS {
            let held_back = self.clients.iter().any(|c| !c.rest[stream as usize].is_empty());
            if let Some(fd) = self.outputs[stream as usize].as_ref().filter(|_| !held_back) {
                each(Source::Output(stream), fd.as_fd(), PollFlags::IN);
            }
        }
        if let Some(fd) = self.input.as_ref().filter(|_| !self.input_rest.is_empty()) {
            each(Source::Input, fd.as_fd(), PollFlags::OUT);
        }
        for (n, client) in self.clients.iter().enumerate() {
            if let Some(fd) = client.stdin.as_ref().filter(|_| self.input_rest.is_empty()) {
                each(Source::ClientInput(n), fd.as_fd(), PollFlags::IN);
            }
            for stream in STREAMS {
                let waiting = !client.rest[stream as usize].is_empty();
                if let Some(fd) = &client.outputs[stream as usize] {
                    // Without interest the kernel still tells when the client is gone.
                    each(Source::ClientOutput(n, stream), fd.as_fd(), if waiting { PollFlags::OUT } else { PollFlags::empty() });
                }
            }
        }
    }

    /// Something happened at a watched descriptor.
    pub fn ready(&mut self, source: Source, events: PollFlags, buffer: &mut [u8]) {
        match source {
            Source::Output(stream) => {
                self.read_output(stream, buffer);
            }
            Source::Input => self.write_input(),
            Source::ClientInput(n) => self.read_client(n, buffer),
            Source::ClientOutput(n, stream) => {
                let client = &mut self.clients[n];
                client.flush(stream);
                if events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) && client.rest[stream as usize].is_empty() {
                    client.outputs[stream as usize] = None;
                }
            }
        }
    }

    /// Takes one piece of output; `false` when there is none now.
    fn read_output(&mut self, stream: Stream, buffer: &mut [u8]) -> bool {
        let Some(fd) = &self.outputs[stream as usize] else { return false };
        match rustix::io::read(fd, &mut *buffer) {
            Ok(len) if len > 0 => {
                self.log.write(stream, &buffer[..len]);
                for client in &mut self.clients {
                    client.send(stream, &buffer[..len]);
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The end; a terminal tells it as an I/O error.
            _ => {
                self.log.finish(stream);
                self.outputs[stream as usize] = None;
                false
            }
        }
    }

    fn read_client(&mut self, n: usize, buffer: &mut [u8]) {
        let Some(fd) = &self.clients[n].stdin else { return };
        match rustix::io::read(fd, &mut buffer[..4096]) {
            Ok(len) if len > 0 => {
                if self.input.is_some() {
                    self.input_rest.extend_from_slice(&buffer[..len]);
                    self.write_input();
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                self.clients[n].stdin = None;
                if self.run.stdin_once && !self.run.tty {
                    self.input_ends = true;
                    self.write_input();
                } else {
                    // whoever came to say something has said it
                    self.clients[n].leaves = true;
                }
            }
        }
    }

    fn write_input(&mut self) {
        let Some(fd) = &self.input else { return };
        while !self.input_rest.is_empty() {
            match rustix::io::write(fd, &self.input_rest) {
                Ok(len) => {
                    self.input_rest.drain(..len);
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The container has closed its input.
                Err(_) => {
                    self.input_rest = Vec::new();
                    self.input_ends = true;
                }
            }
        }
        self.input_rest = Vec::new();
        if self.input_ends {
            self.input = None;
        }
    }

    /// The first process has ended: what it wrote is taken to the last byte, then the streams close.
    pub fn ended(&mut self, exit: Exit, buffer: &mut [u8]) {
        for stream in STREAMS {
            while self.read_output(stream, buffer) {}
            self.log.finish(stream);
        }
        self.outputs = [None, None];
        self.input = None;
        self.input_rest = Vec::new();
        self.master = None;
        for client in &mut self.clients {
            client.stdin = None;
        }
        self.exit = Some(exit);
        self.sweep();
    }

    /// Forgets clients that are gone; after the end, those that have got everything too.
    pub fn sweep(&mut self) {
        let ended = self.exit.is_some();
        self.clients.retain_mut(|client| {
            for stream in STREAMS {
                if (ended || client.leaves) && client.rest[stream as usize].is_empty() {
                    client.outputs[stream as usize] = None;
                }
            }
            client.stdin.is_some() || client.outputs.iter().any(Option::is_some)
        });
        if self.clients.is_empty() {
            self.clients = Vec::new();
        }
    }
}

impl Client {
    fn send(&mut self, stream: Stream, bytes: &[u8]) {
        if self.outputs[stream as usize].is_some() {
            self.rest[stream as usize].extend_from_slice(bytes);
            self.flush(stream);
        }
    }

    fn flush(&mut self, stream: Stream) {
        let rest = &mut self.rest[stream as usize];
        while let Some(fd) = self.outputs[stream as usize].as_ref().filter(|_| !rest.is_empty()) {
            match rustix::io::write(fd, rest) {
                Ok(len) => {
                    rest.drain(..len);
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => self.outputs[stream as usize] = None,
            }
        }
        *rest = Vec::new();
    }
}
