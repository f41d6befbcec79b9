//! Exec, attach and port-forward: the URLs that the CRI hands out, and the socket that serves them.
//!
//! A URL is good for one use within a minute. One task a connection; a client that goes away takes its
//! command with it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cri::v1::*;
use cri::{Error, Result};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use shim::protocol::Call;
use streaming::server::{Answer, ExecStreams, Options, PortForward, PortForwards};
use streaming::status::ExecStatus;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixListener};

use crate::exec::Streams;
use crate::state::{Runtime, Sandbox};
use crate::files;

/// How long a URL is good.
const LIFETIME: Duration = Duration::from_secs(60);
/// URLs handed out and not yet used.
const MAX_PREPARED: usize = 1000;
/// An ended command's output is waited for as long as some of it moves in this time.
const STILL: Duration = Duration::from_secs(10);
const SOCKET: &str = "stream.sock";

/// What a URL leads to.
pub(crate) enum Prepared {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(String),
}

/// The URLs that are out.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<String, (Instant, Prepared)>>);

impl Tokens {
    fn put(&self, prepared: Prepared) -> Result<String> {
        let mut map = self.0.lock();
        map.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        if map.len() >= MAX_PREPARED {
            return Err(Error::new(cri::Code::ResourceExhausted, "maximum number of in-flight requests exceeded"));
        }
        let token = files::new_id();
        map.insert(token.clone(), (Instant::now(), prepared));
        Ok(token)
    }

    fn take(&self, token: &str) -> Option<Prepared> {
        let (since, prepared) = self.0.lock().remove(token)?;
        (since.elapsed() < LIFETIME).then_some(prepared)
    }
}

impl Runtime {
    fn url(&self, kind: &str, prepared: Prepared) -> Result<String> {
        let token = self.tokens.put(prepared)?;
        Ok(format!("unix://{}/{kind}/{token}", self.config.run.join(SOCKET).display()))
    }

    pub(crate) fn prepare_exec(&self, request: ExecRequest) -> Result<String> {
        self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Error::invalid_argument("no command specified"));
        }
        self.url("exec", Prepared::Exec(request))
    }

    pub(crate) fn prepare_attach(&self, request: AttachRequest) -> Result<String> {
        self.running(&request.container_id)?;
        self.url("attach", Prepared::Attach(request))
    }

    pub(crate) fn prepare_port_forward(&self, request: PortForwardRequest) -> Result<String> {
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        if sandbox.shim().is_none() {
            return Err(Error::failed_precondition(format!("sandbox container {:?} is not running", sandbox.id)));
        }
        let url = self.url("portforward", Prepared::PortForward(sandbox.id.clone()))?;
        let ports: Vec<String> = request.port.iter().map(|p| format!("port={p}")).collect();
        Ok(if ports.is_empty() { url } else { format!("{url}?{}", ports.join("&")) })
    }

    /// Listens on the socket until the runtime closes.
    pub(crate) fn serve_streams(self: &Arc<Self>) -> io::Result<()> {
        let path = self.config.run.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let (me, stop) = (self.me.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.cancelled() => return,
                };
                let Some(runtime) = me.upgrade() else { return };
                match accepted {
                    Ok((stream, _)) => runtime.serve_connection(stream),
                    Err(error) => {
                        // Out of descriptors, most likely: others have to end first.
                        tracing::warn!(%error, "cannot accept a streaming connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        Ok(())
    }

    fn serve_connection(self: &Arc<Self>, stream: tokio::net::UnixStream) {
        let (me, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let service = service_fn(|request| {
                let answer = me.clone().answer(request);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            tokio::select! {
                // A client that breaks off is no news.
                _ = connection => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Agrees to a request, and does what it asks for once the answer is out.
    fn answer(self: Arc<Self>, mut request: hyper::Request<hyper::body::Incoming>) -> Answer {
        let token = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let Some(prepared) = self.tokens.take(&token) else {
            let mut answer = Answer::new("this URL is unknown, was used or has expired\n".into());
            *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
            return answer;
        };
        let me = self.clone();
        match prepared {
            Prepared::Exec(exec) => {
                let options = Options { stdin: exec.stdin, stdout: exec.stdout, stderr: exec.stderr, tty: exec.tty };
                match streaming::server::exec(&mut request, options) {
                    Ok((answer, streams)) => {
                        self.follow(async move { let _: () = me.exec_session(exec, streams.await?).await;
                        Ok(()) });
                        answer
                    }
                    Err(refusal) => refusal,
                }
            }
            Prepared::Attach(attach) => {
                let options = Options { stdin: attach.stdin, stdout: attach.stdout, stderr: attach.stderr, tty: attach.tty };
                match streaming::server::exec(&mut request, options) {
                    Ok((answer, streams)) => {
                        self.follow(async move { let _: () = me.attach_session(attach, streams.await?).await;
                        Ok(()) });
                        answer
                    }
                    Err(refusal) => refusal,
                }
            }
            Prepared::PortForward(sandbox) => match streaming::server::port_forward(&mut request) {
                Ok((answer, forwards)) => {
                    self.follow(async move { let _: () = me.forward(&sandbox, forwards.await?).await;
                    Ok(()) });
                    answer
                }
                Err(refusal) => refusal,
            },
        }
    }

    /// Runs a session until it or the runtime ends.
    fn follow(&self, session: impl Future<Output = std::result::Result<(), streaming::Error>> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                ended = session => if let Err(error) = ended {
                    tracing::debug!(%error, "a streaming client did not come");
                },
                () = stop.cancelled() => {}
            }
        });
    }

    async fn exec_session(self: Arc<Self>, request: ExecRequest, mut client: ExecStreams) {
        let status = match self.exec_streams(&request, &mut client).await {
            Ok(Some(code)) => ExecStatus::ExitCode(code),
            Ok(None) => return,
            Err(error) => ExecStatus::Error(error.message),
        };
        // Everything written must be on its way before the status is.
        drop((client.stdout.take(), client.stderr.take()));
        client.status.finish(status).await;
    }

    /// The command's exit code; `None` when the client left.
    async fn exec_streams(&self, request: &ExecRequest, client: &mut ExecStreams) -> Result<Option<i32>> {
        let (mut theirs, ours) = if request.tty { Default::default() } else { pipes(client).map_err(Error::internal)? };
        let mut process = self.spawn(&request.container_id, &request.cmd, request.tty, std::mem::take(&mut theirs)).await?;
        let (ours, terminal) = match process.terminal.take() {
            Some(master) => {
                let terminal = master.try_clone().map_err(Error::internal)?;
                (terminal_ends(master).map_err(Error::internal)?, Some(terminal))
            }
            None => (ours, None),
        };
        let moved = AtomicU64::new(0);
        let output = copy_output(ours.stdout, client.stdout.as_mut(), ours.stderr, client.stderr.as_mut(), &moved);
        let input = copy_input(client.stdin.take(), ours.stdin, request.tty);
        let mut resize = client.resize.take();
        let sizes = async {
            while let Some((width, height)) = next_size(&mut resize).await {
                if let Some(terminal) = &terminal {
                    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                    let _ = rustix::termios::tcsetwinsize(terminal, size);
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(output, input, sizes);
        let (mut code, mut copied, mut input_done) = (None, false, false);
        loop {
            let before = moved.load(Ordering::Relaxed);
            tokio::select! {
                ended = &mut process.ended, if code.is_none() => {
                    code = Some(ended.map_err(|_| Error::unknown("the sandbox's shim has gone"))?);
                }
                () = &mut output, if !copied => copied = true,
                () = &mut input, if !input_done => input_done = true,
                () = &mut sizes => {}
                () = client.closed.cancelled() => {
                    if code.is_none() {
                        process.kill().await;
                    }
                    return Ok(None);
                }
                // What the command left behind may hold its output open for ever.
                () = tokio::time::sleep(STILL), if code.is_some() => copied |= moved.load(Ordering::Relaxed) == before,
            }
            if copied && code.is_some() {
                return Ok(code);
            }
        }
    }

    async fn attach_session(self: Arc<Self>, request: AttachRequest, mut client: ExecStreams) {
        let status = match self.attach_streams(&request, &mut client).await {
            Ok(true) => ExecStatus::Success,
            Ok(false) => return,
            Err(error) => ExecStatus::Error(error.message),
        };
        drop((client.stdout.take(), client.stderr.take()));
        client.status.finish(status).await;
    }

    /// Whether the container's streams ended, and not the client.
    async fn attach_streams(&self, request: &AttachRequest, client: &mut ExecStreams) -> Result<bool> {
        let (container, shim) = self.running(&request.container_id)?;
        let (theirs, ours) = pipes(client).map_err(Error::internal)?;
        let fds: Vec<BorrowedFd<'_>> = [&theirs.stdin, &theirs.stdout, &theirs.stderr].into_iter().flatten().map(|fd| fd.as_fd()).collect();
        let call = Call::Attach {
            container: container.id.clone(),
            stdin: theirs.stdin.is_some(),
            stdout: theirs.stdout.is_some(),
            stderr: theirs.stderr.is_some(),
        };
        shim.call(call, &fds).await.map_err(Error::unknown)?;
        drop(fds);
        drop(theirs);
        let has_output = ours.stdout.is_some() || ours.stderr.is_some();
        let moved = AtomicU64::new(0);
        let output = copy_output(ours.stdout, client.stdout.as_mut(), ours.stderr, client.stderr.as_mut(), &moved);
        let input = copy_input(client.stdin.take(), ours.stdin, false);
        let mut resize = client.resize.take();
        let sizes = async {
            while let Some((width, height)) = next_size(&mut resize).await {
                let _ = shim.tell(Call::Resize { container: container.id.clone(), width, height }).await;
            }
            std::future::pending::<()>().await;
        };
        let end = async {
            // Without output there is only the container's own end to wait for.
            if has_output { output.await } else { crate::container::ended(&container).await }
        };
        let input = async {
            input.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = end => Ok(true),
            () = input => Ok(true),
            () = sizes => Ok(true),
            () = client.closed.cancelled() => Ok(false),
        }
    }

    async fn forward(self: Arc<Self>, sandbox: &str, mut forwards: PortForwards) {
        while let Some(connection) = forwards.next().await {
            let Ok(sandbox) = self.sandbox(sandbox) else { return };
            self.follow(async move {
                forward_one(&sandbox, connection).await;
                Ok(())
            });
        }
    }
}

async fn forward_one(sandbox: &Sandbox, mut connection: PortForward) {
    match dial(sandbox, connection.port).await {
        Ok(mut stream) => {
            // Either side may break off at any time.
            let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
        }
        Err(why) => {
            let port = connection.port;
            let message = format!("error forwarding port {port} to pod {}, uid : failed to connect to localhost:{port} inside namespace: {why}", sandbox.id);
            connection.fail(&message).await;
        }
    }
}

/// Connects within the pod's network: to the loopback of either family.
async fn dial(sandbox: &Sandbox, port: u16) -> std::result::Result<TcpStream, String> {
    let shim = sandbox.shim().ok_or("the sandbox is not running")?;
    let mut why = Vec::new();
    for v6 in [false, true] {
        let connected = async {
            let (_, fds) = shim.call(Call::Dial { port, v6 }, &[]).await?;
            let fd = fds.into_iter().next().ok_or("no socket came")?;
            let stream = TcpStream::from_std(std::net::TcpStream::from(fd)).map_err(|e| e.to_string())?;
            stream.writable().await.map_err(|e| e.to_string())?;
            match stream.take_error().map_err(|e| e.to_string())? {
                Some(error) => Err(error.to_string()),
                None => Ok(stream),
            }
        };
        match connected.await {
            Ok(stream) => return Ok(stream),
            Err(error) => why.push(format!("{}: {error}", if v6 { "IPv6" } else { "IPv4" })),
        }
    }
    Err(why.join(", "))
}

/// Our ends of a process's streams.
#[derive(Default)]
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

/// Pipes for what the client wants: the process's ends and ours.
fn pipes(client: &ExecStreams) -> io::Result<(Streams, Ends)> {
    let (mut theirs, mut ours) = (Streams::default(), Ends::default());
    if client.stdin.is_some() {
        let (read, write) = io::pipe()?;
        theirs.stdin = Some(read.into());
        ours.stdin = Some(pipe::Sender::from_owned_fd(write.into())?);
    }
    if client.stdout.is_some() {
        let (read, write) = io::pipe()?;
        theirs.stdout = Some(write.into());
        ours.stdout = Some(pipe::Receiver::from_owned_fd(read.into())?);
    }
    if client.stderr.is_some() {
        let (read, write) = io::pipe()?;
        theirs.stderr = Some(write.into());
        ours.stderr = Some(pipe::Receiver::from_owned_fd(read.into())?);
    }
    Ok((theirs, ours))
}

/// A terminal's master as input and output: for the event loop it is like a pipe.
fn terminal_ends(master: OwnedFd) -> io::Result<Ends> {
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
    let input = master.try_clone()?;
    Ok(Ends {
        stdin: Some(pipe::Sender::from_owned_fd_unchecked(input)?),
        stdout: Some(pipe::Receiver::from_owned_fd_unchecked(master)?),
        stderr: None,
    })
}

async fn next_size(resize: &mut Option<streaming::server::Resize>) -> Option<(u16, u16)> {
    resize.as_mut()?.recv().await
}

async fn copy_input(from: Option<impl AsyncRead + Unpin>, into: Option<pipe::Sender>, terminal: bool) {
    let Some(mut into) = into else { return };
    if let Some(mut from) = from {
        // The command may close its input; the client may go away. Both are an end.
        let _ = tokio::io::copy(&mut from, &mut into).await;
    }
    if terminal {
        // Closing it would hang the terminal up.
        std::future::pending::<()>().await;
    }
}

async fn copy_output<W: AsyncWrite + Unpin>(
    stdout: Option<pipe::Receiver>,
    to_stdout: Option<&mut W>,
    stderr: Option<pipe::Receiver>,
    to_stderr: Option<&mut W>,
    moved: &AtomicU64,
) {
    tokio::join!(copy(stdout, to_stdout, moved), copy(stderr, to_stderr, moved));
}

async fn copy<W: AsyncWrite + Unpin>(from: Option<pipe::Receiver>, mut into: Option<&mut W>, moved: &AtomicU64) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 << 10];
    // A terminal ends with an I/O error.
    while let Ok(len) = from.read(&mut buffer).await {
        if len == 0 {
            return;
        }
        if let Some(writer) = &mut into
            && (writer.write_all(&buffer[..len]).await.is_err() || writer.flush().await.is_err()) {
                // Read on, so that the command does not block.
                into = None;
            }
        moved.fetch_add(1, Ordering::Relaxed);
    }
}
