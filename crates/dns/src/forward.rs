//! Asks the node's resolvers for what is not the cluster's. A resolver that does not answer is left
//! alone for a while, so that a node without network fails fast instead of letting every question
//! wait.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::Resolvers;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a resolver is left alone that did not answer.
const REST: Duration = Duration::from_secs(2);
/// How often the file is looked at.
const REREAD: Duration = Duration::from_secs(5);

/// The resolvers of a node.
pub struct Upstreams {
    source: Resolvers,
    own: Vec<IpAddr>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<Server>,
}

#[derive(Clone)]
struct Server {
    address: SocketAddr,
    resting: Option<Instant>,
}

/// The name servers of a file like `/etc/resolv.conf`.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                return None;
            }
            // A zone (fe80::1%eth0) needs the link's number, which the parser takes as a number only.
            let address: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(address, 53))
        })
        .collect()
}

impl Upstreams {
    /// These resolvers without those that are ourselves.
    pub fn new(source: Resolvers, own: Vec<IpAddr>) -> Self {
        Self { source, own, state: Mutex::new(State::default()) }
    }

    /// The resolvers to ask, in order.
    fn servers(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if state.looked.is_none_or(|at| now - at > REREAD) {
            state.looked = Some(now);
            let found = match &self.source {
                Resolvers::Fixed(servers) if state.servers.is_empty() => Some(servers.clone()),
                Resolvers::Fixed(_) => None,
                Resolvers::File(path) => {
                    let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                    let changed = modified != state.modified || modified.is_none();
                    state.modified = modified;
                    changed.then(|| name_servers(&std::fs::read_to_string(path).unwrap_or_default()))
                }
            };
            if let Some(found) = found {
                let servers = found.into_iter().filter(|s| !self.own.contains(&s.ip()));
                state.servers = servers.map(|address| Server { address, resting: None }).collect();
            }
        }
        let awake = state.servers.iter().filter(|s| s.resting.is_none_or(|until| until <= now));
        awake.map(|s| s.address).collect()
    }

    fn rest(&self, address: SocketAddr, until: Option<Instant>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for server in state.servers.iter_mut().filter(|s| s.address == address) {
            server.resting = until;
        }
    }

    /// Asks with the message as it came; the answer carries the same identifier. `None` when nobody
    /// answers.
    pub async fn ask(&self, request: &[u8], stream: bool) -> Option<Vec<u8>> {
        let original: [u8; 2] = request.get(..2)?.try_into().ok()?;
        for server in self.servers() {
            // Our own random identifier and a port of its own make answers hard to forge.
            let mut question = request.to_vec();
            question[..2].copy_from_slice(&Message::query().metadata.id.to_be_bytes());
            let answer = match stream {
                true => timeout(PATIENCE, over_tcp(server, &question)).await,
                false => timeout(PATIENCE, over_udp(server, &question)).await,
            };
            match answer {
                Ok(Ok(mut answer)) => {
                    self.rest(server, None);
                    answer[..2].copy_from_slice(&original);
                    return Some(answer);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%server, "resolver: {error}");
                    self.rest(server, Some(Instant::now() + REST));
                }
                Err(_) => {
                    tracing::debug!(%server, "resolver does not answer");
                    self.rest(server, Some(Instant::now() + REST));
                }
            }
        }
        None
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answer.len() < 12 || answer[..2] != question[..2] {
        return Err(io::Error::other("the answer is to another question"));
    }
    Ok(answer)
}
