//! The server: one task a listening address for UDP and one for TCP, and one that keeps the zone as
//! the Services and EndpointSlices say. Answers from the zone are given on the spot; forwarded
//! questions wait in tasks that belong to their listener and end with it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, Query};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::{Informer, Informers, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{encode_udp, failure};
use crate::{Config, Reply, Upstreams, Zone, respond};

/// The least time between two zones.
const PAUSE: Duration = Duration::from_millis(10);
/// Forwarded questions, or connections, a listener has at once.
const MOST: usize = 1000;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// The pause before trying again to listen.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Server {
    zone: Arc<ArcSwap<Zone>>,
    upstreams: Arc<Upstreams>,
}

/// Starts the server. The receiver turns true when it has the cluster's names and listens everywhere.
pub fn run(config: Config, informers: &Informers, tasks: &Tasks) -> watch::Receiver<bool> {
    let (ready, receiver) = watch::channel(false);
    // One part for the zone, two for each address.
    let parts = Arc::new(watch::Sender::new(1 + 2 * config.listen.len()));
    let empty = Zone::new(&config.domain, 0, &[] as &[&Service], &[] as &[&EndpointSlice]);
    let own = config.own.iter().copied().chain(config.listen.iter().map(SocketAddr::ip)).collect();
    let server = Server {
        zone: Arc::new(ArcSwap::from_pointee(empty)),
        upstreams: Arc::new(Upstreams::new(config.upstreams.clone(), own)),
    };
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    tasks.spawn("dns zone", follow(config.domain, server.zone.clone(), services, slices, parts.clone()));
    for address in config.listen {
        tasks.spawn(format!("dns udp {address}"), serve_udp(server.clone(), address, parts.clone()));
        tasks.spawn(format!("dns tcp {address}"), serve_tcp(server.clone(), address, parts.clone()));
    }
    let mut left = parts.subscribe();
    tasks.spawn("dns readiness", async move {
        if left.wait_for(|left| *left == 0).await.is_ok() {
            ready.send_replace(true);
            // Kept until nobody wants to know any more.
            ready.closed().await;
        }
    });
    receiver
}

async fn follow(
    domain: String,
    zone: Arc<ArcSwap<Zone>>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    parts: Arc<watch::Sender<usize>>,
) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    services.on_change(move |_| notify.notify_one());
    let notify = changed.clone();
    slices.on_change(move |_| notify.notify_one());
    services.synced().await;
    slices.synced().await;
    let mut first = true;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let serial = u32::try_from(now & u64::from(u32::MAX)).unwrap_or_default();
        zone.store(Arc::new(Zone::new(&domain, serial, &services.list(), &slices.list())));
        if std::mem::take(&mut first) {
            parts.send_modify(|left| *left -= 1);
        }
        tokio::time::sleep(PAUSE).await;
        changed.notified().await;
    }
}

/// Tries until it works: the address may appear later.
async fn listen<T, F: Future<Output = std::io::Result<T>>>(
    what: &'static str,
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> F,
) -> T {
    let mut told = false;
    loop {
        match open(address).await {
            Ok(opened) => return opened,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("DNS cannot listen on {address} over {what} yet: {error}");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn serve_udp(server: Server, address: SocketAddr, parts: Arc<watch::Sender<usize>>) {
    let socket = Arc::new(listen("UDP", address, UdpSocket::bind).await);
    parts.send_modify(|left| *left -= 1);
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        while waiting.try_join_next().is_some() {}
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer was refused by its asker.
            Err(error) => {
                tracing::debug!("DNS over UDP: {error}");
                continue;
            }
        };
        let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
        let reply = respond(&server.zone.load(), &request);
        let answer = match reply {
            Reply::Message(message) => encode_udp(message, &request),
            Reply::Silence => None,
            later if waiting.len() < MOST => {
                let (server, socket, bytes) = (server.clone(), socket.clone(), buffer[..length].to_vec());
                waiting.spawn(async move {
                    if let Some(answer) = server.later(later, &request, &bytes, false).await {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                });
                None
            }
            _ => encode_udp(failure(&request), &request),
        };
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

async fn serve_tcp(server: Server, address: SocketAddr, parts: Arc<watch::Sender<usize>>) {
    let listener = listen("TCP", address, TcpListener::bind).await;
    parts.send_modify(|left| *left -= 1);
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) if open.len() < MOST => {
                let server = server.clone();
                open.spawn(async move {
                    // Whoever breaks a connection off knows it.
                    let _ = server.converse(stream).await;
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!("DNS over TCP: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

impl Server {
    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
            let mut bytes = vec![0; usize::from(length?)];
            timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let Ok(request) = Message::from_vec(&bytes) else { return Ok(()) };
            let reply = respond(&self.zone.load(), &request);
            let answer = match reply {
                Reply::Message(message) => message.to_vec().ok(),
                Reply::Silence => None,
                later => self.later(later, &request, &bytes, true).await,
            };
            let Some(answer) = answer else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            stream.write_all(&framed).await?;
        }
    }

    /// Answers what needs somebody else.
    async fn later(&self, reply: Reply, request: &Message, bytes: &[u8], stream: bool) -> Option<Vec<u8>> {
        let encode = |message: Message| if stream { message.to_vec().ok() } else { encode_udp(message, request) };
        match reply {
            Reply::Forward => match self.upstreams.ask(bytes, stream).await {
                Some(answer) => Some(answer),
                None => encode(failure(request)),
            },
            Reply::Complete(mut message, target) => {
                let kind = request.queries.first()?.query_type();
                let mut question = Message::query();
                question.metadata.recursion_desired = true;
                question.add_query(Query::query(target, kind));
                let question = question.to_vec().ok()?;
                let found = self.upstreams.ask(&question, stream).await;
                if let Some(found) = found.and_then(|answer| Message::from_vec(&answer).ok()) {
                    message.add_answers(found.answers);
                }
                encode(message)
            }
            Reply::Message(message) => encode(message),
            Reply::Silence => None,
        }
    }
}
