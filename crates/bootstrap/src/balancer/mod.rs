//! The load balancer that each node has: its connections to the API go to a server that serves, without a machine in
//! between that could fail.
//!
//! Servers are learned from the cluster and remembered on disk; the address that the node joined by is a seed, and the
//! last resort. Two futures are to be run: [`Balancer::probe`] asks each server's /readyz, the one in use every second;
//! [`Balancer::listen`], if wanted, serves other programs of the machine. A server that is not ready gets no new
//! connections; the connections to one that is dead are cut, so that who waits on them goes elsewhere. TLS is between
//! the client and the server: nothing is looked into here.

mod servers;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use client::{Credentials, Dial, Https, Link, TlsError};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::client::Body;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

pub use servers::{Answer, Health, Server, Servers};

/// How often the server in use is asked, and the others.
const PERIOD: Duration = Duration::from_secs(1);
const OTHERS: u32 = 3;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long connecting may take, and after what time the next server is tried meanwhile.
const CONNECT: Duration = Duration::from_secs(2);
const HESITATION: Duration = Duration::from_millis(200);

/// Clones are the same balancer.
#[derive(Clone)]
pub struct Balancer(Arc<Inner>);

struct Inner {
    /// `https://host:port`, as the node joined by it.
    url: String,
    file: PathBuf,
    servers: Mutex<Servers>,
    /// By address: becomes true when the connections there are to be cut.
    cuts: Mutex<HashMap<String, watch::Sender<bool>>>,
    /// The server of the last connection.
    used: Mutex<String>,
    /// Told when servers should be asked at once.
    ask: Notify,
}

/// Why there is no balancer.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no URL of an API server: https://HOST:PORT is meant")]
pub struct UrlError(String);

impl Balancer {
    /// With the URL that the node joined by. What is learned is remembered in `file`. `node` spreads nodes.
    pub fn new(url: &str, file: PathBuf, node: &str) -> Result<Balancer, UrlError> {
        let uri: http::Uri = url.parse().map_err(|_| UrlError(url.into()))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(|| UrlError(url.into()))?;
        let seed = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let remembered: Vec<String> = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let offset = node.bytes().fold(7usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % 1024;
        let servers = Mutex::new(Servers::new(&seed, &remembered, offset));
        Ok(Balancer(Arc::new(Inner { url: url.into(), file, servers, cuts: Mutex::default(), used: Mutex::default(), ask: Notify::new() })))
    }

    /// A transport over it.
    pub fn https(&self, ca: &str, credentials: &Credentials) -> Result<Https, TlsError> {
        Https::over(Arc::new(self.clone()), &self.0.url, ca, credentials)
    }

    /// The servers in the order in which they are turned to.
    pub fn servers(&self) -> Vec<Server> {
        self.0.servers.lock().order()
    }

    /// Takes in where the cluster says that its servers are.
    pub fn learn(&self, addresses: &[String]) {
        let (news, gone) = self.0.servers.lock().learn(addresses);
        for address in gone {
            // It has left the cluster: its own drain sees to its clients, and if it has died, this does.
            tracing::info!(address, "an API server is gone");
            self.0.ask.notify_one();
        }
        if news {
            let learned = self.0.servers.lock().learned();
            tracing::info!("the cluster's API servers are {}", learned.join(", "));
            if let Err(error) = self.remember(&learned) {
                tracing::warn!("{} cannot be written: {error}", self.0.file.display());
            }
        }
    }

    fn remember(&self, learned: &[String]) -> io::Result<()> {
        let temporary = self.0.file.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(learned)?)?;
        std::fs::rename(&temporary, &self.0.file)
    }

    fn report(&self, address: &str, answer: Answer) {
        let (before, cut, after) = {
            let mut servers = self.0.servers.lock();
            let before = servers.health(address);
            let cut = servers.report(address, answer);
            (before, cut, servers.health(address))
        };
        if before != after && (before != Some(Health::Unknown) || after != Some(Health::Ready)) {
            tracing::info!(address, "the API server is {after:?}");
        }
        if cut && let Some(cut) = self.0.cuts.lock().remove(address) {
            cut.send_replace(true);
        }
    }

    fn cut_of(&self, address: &str) -> watch::Receiver<bool> {
        self.0.cuts.lock().entry(address.to_owned()).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// A connection to the first server that takes one: the next one is tried as soon as one refuses, or hesitates.
    async fn connect(&self) -> io::Result<(Link, String)> {
        let mut last = io::Error::other("no API server is known");
        let mut waiting = self.servers().into_iter();
        let mut trying = tokio::task::JoinSet::new();
        loop {
            let next = waiting.next();
            let more = next.is_some();
            if let Some(Server { address, .. }) = next {
                trying.spawn(async move {
                    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&address)).await;
                    (address, stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
                });
            }
            let tried = async {
                match more {
                    true => tokio::time::timeout(HESITATION, trying.join_next()).await,
                    false => Ok(trying.join_next().await),
                }
            };
            match tried.await {
                Ok(Some(Ok((address, Ok(stream))))) => {
                    let link = Link::new(stream, Some(self.cut_of(&address)))?;
                    *self.0.used.lock() = address.clone();
                    let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host).to_owned();
                    return Ok((link, host));
                }
                Ok(Some(Ok((address, Err(error))))) => {
                    match error.kind() {
                        io::ErrorKind::ConnectionRefused => self.report(&address, Answer::Refused),
                        _ => self.0.ask.notify_one(),
                    }
                    last = io::Error::new(error.kind(), format!("{address}: {error}"));
                }
                // Nobody is asked any more.
                Ok(None) if !more => return Err(last),
                Ok(_) => {}
                Err(_) => self.0.ask.notify_one(),
            }
        }
    }

    /// Asks servers how they are, for ever, and shows them `own`.
    pub async fn probe(self, ca: String, own: Arc<pki::Renewable>) {
        let mut clients: HashMap<String, kube::Client> = HashMap::new();
        let mut turn = 0u32;
        loop {
            let servers = self.servers();
            clients.retain(|address, _| servers.iter().any(|s| s.address == *address));
            let used = self.0.used.lock().clone();
            let due = servers.iter().filter(|s| s.address == used || s.health != Health::Ready || turn.is_multiple_of(OTHERS));
            let mut asking = tokio::task::JoinSet::new();
            for server in due {
                let address = server.address.clone();
                let client = match clients.get(&address) {
                    Some(client) => client.clone(),
                    None => match Https::new(&format!("https://{address}"), &ca, &Credentials::default()) {
                        Ok(https) => clients.entry(address.clone()).or_insert_with(|| client::https(https.showing(own.clone()))).clone(),
                        Err(error) => {
                            tracing::warn!(address, "the API server cannot be asked: {error}");
                            continue;
                        }
                    },
                };
                asking.spawn(async move {
                    let answer = ask(&client, &address).await;
                    (address, answer)
                });
            }
            let mut again = false;
            while let Some(asked) = asking.join_next().await {
                let Ok((address, answer)) = asked else { continue };
                self.report(&address, answer);
                if answer == Answer::Silent && self.0.servers.lock().health(&address) != Some(Health::Dead) {
                    // Over a new connection, at once: is it really gone?
                    clients.remove(&address);
                    again = true;
                }
            }
            turn = turn.wrapping_add(1);
            if !again {
                let _ = tokio::time::timeout(PERIOD, self.0.ask.notified()).await;
            }
        }
    }

    /// Leads whoever connects to a server, for ever.
    pub async fn listen(self, listener: TcpListener) {
        // They end with this future.
        let mut led = tokio::task::JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = led.join_next() => continue,
            };
            let mut client = match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let balancer = self.clone();
            led.spawn(async move {
                let _ = client.set_nodelay(true);
                match balancer.connect().await {
                    // It ends with either side, or is cut.
                    Ok((mut link, _)) => drop(tokio::io::copy_bidirectional(&mut client, &mut link).await),
                    Err(error) => tracing::debug!("no API server can be reached: {error}"),
                }
            });
        }
    }
}

impl Dial for Balancer {
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<(Link, String)>> + Send + '_>> {
        Box::pin(self.connect())
    }
}

async fn ask(client: &kube::Client, address: &str) -> Answer {
    let Ok(request) = http::Request::get("/readyz").body(Body::empty()) else { return Answer::Silent };
    match tokio::time::timeout(PATIENCE, client.send(request)).await {
        Ok(Ok(response)) if response.status().is_success() => Answer::Ready,
        Ok(Ok(_)) => Answer::NotReady,
        Ok(Err(error)) => {
            let refused = refused(&error);
            tracing::debug!(address, "asking an API server failed: {error}");
            if refused { Answer::Refused } else { Answer::Silent }
        }
        Err(_) => Answer::Silent,
    }
}

/// Whether nobody listens there.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}

/// Where the slices of the service `kubernetes` say that servers are.
pub fn addresses<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> Vec<String> {
    let mut all = Vec::new();
    for slice in slices {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        if slice.metadata.namespace.as_deref() != Some("default") || service.map(String::as_str) != Some("kubernetes") {
            continue;
        }
        let ports = slice.ports.iter().flatten().filter(|p| p.name.as_deref() == Some("https")).filter_map(|p| p.port);
        for port in ports {
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                let shown = |a: &String| if a.contains(':') { format!("[{a}]:{port}") } else { format!("{a}:{port}") };
                all.extend(endpoint.addresses.iter().filter(|_| ready).map(shown));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests;
