//! An address of the control plane as a whole, which is at one of its nodes at a time.
//!
//! Who has it is decided among the nodes by a key in etcd, without the API: who has it writes it again and again, and
//! another one takes it when it has not been written for a while by its own clock. The kernel is told how long the
//! address is good for, each time less than that; so a server that is killed, stopped or cut off loses it by itself
//! before another one can have it. A server that is not ready gives it up, and then the key is gone. Where the store is
//! embedded there is one server, and it has the address while it is ready.
//!
//! One future runs it: [`run`]. What is done when is decided in [`plan`].

pub mod plan;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::time::{Duration, Instant};

use netlink::{Handle, Link, Netlink, Prefix};

use crate::etcd::Cluster;
use plan::{Action, Candidate, Seen};

/// How often it is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the key is written by who has the address.
const BEAT: Duration = Duration::from_millis(900);
/// How long a member of etcd or the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the link is told anew where the address is.
const ANNOUNCE: Duration = Duration::from_secs(20);

/// The address, and whose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address that moves.
    pub address: Ipv4Addr,
    /// This node's own address: the other one is put on the same link.
    pub node: Ipv4Addr,
    /// This node's name.
    pub name: String,
}

/// Says whether the server of this node is ready.
pub type Ready = Box<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send>;

/// Why there can be no such address.
#[derive(Debug, thiserror::Error)]
pub enum VipError {
    /// No link has the node's address.
    #[error("no link has the node's address {0}, so there is none to put the virtual address on")]
    NoLink(Ipv4Addr),
    /// The kernel refused.
    #[error("the virtual address")]
    Kernel(#[from] netlink::Error),
}

/// The address on a link.
struct Place {
    handle: Handle,
    link: Link,
    prefix: Prefix,
    address: Ipv4Addr,
}

impl Place {
    fn find(settings: &Settings) -> Result<Place, VipError> {
        let handle = Handle::open()?;
        for link in handle.links()? {
            if handle.addresses(link.index)?.iter().any(|p| p.address == IpAddr::V4(settings.node)) {
                let prefix = Prefix::host(IpAddr::V4(settings.address));
                return Ok(Place { handle, link, prefix, address: settings.address });
            }
        }
        Err(VipError::NoLink(settings.node))
    }

    fn has(&self) -> bool {
        self.handle.addresses(self.link.index).is_ok_and(|all| all.iter().any(|p| p.address == self.prefix.address))
    }

    fn hold(&self, seconds: u32) {
        if let Err(error) = self.handle.hold_address(self.link.index, self.prefix, seconds) {
            tracing::error!("{} cannot be put on {}: {error}", self.address, self.link.name);
        }
    }

    fn drop(&self) {
        if let Err(error) = self.handle.delete_address(self.link.index, self.prefix) {
            tracing::error!("{} cannot be taken off {}: {error}", self.address, self.link.name);
        }
    }

    fn announce(&self) {
        if let Some(mac) = self.link.mac
            && let Err(error) = netlink::announce(self.link.index, mac, self.address)
        {
            tracing::warn!("{} cannot be announced on {}: {error}", self.address, self.link.name);
        }
    }
}

/// Has the address while this node is the one to have it, until `stop`; and then gives it up.
pub async fn run(settings: Settings, cluster: Option<Cluster>, ready: Ready, stop: impl Future<Output = ()>) -> Result<(), VipError> {
    let place = Place::find(&settings)?;
    // What an earlier run has left runs out by itself; but it is not ours to use.
    if place.has() {
        place.drop();
    }
    let cluster = cluster.map(|c| c.with_patience(PATIENCE));
    let key = format!("/knarr/virtual-addresses/{}", settings.address);
    let mut candidate = Candidate::default();
    // The key's value while it is ours: another one each time.
    let mut own: Option<String> = None;
    let (mut written, mut told) = (Instant::now(), Instant::now());
    tokio::pin!(stop);
    loop {
        let fit = tokio::time::timeout(PATIENCE, ready()).await.unwrap_or(false);
        let asked = Instant::now();
        let seen = match (&cluster, &own) {
            (None, _) => Seen::Mine,
            (Some(_), Some(_)) if written.elapsed() < BEAT => Seen::Unknown,
            (Some(cluster), Some(value)) => match cluster.renew(&key, value).await {
                Ok(true) => {
                    written = asked;
                    Seen::Mine
                }
                Ok(false) => Seen::Lost,
                Err(_) => Seen::Unknown,
            },
            (Some(cluster), None) => match cluster.read(&key).await {
                Ok(Some((_, revision))) => Seen::Others { revision },
                Ok(None) => Seen::Free,
                Err(_) => Seen::Unknown,
            },
        };
        match candidate.decide(fit, seen, asked, Instant::now()) {
            Action::Nothing => {}
            Action::Compete { seen } => {
                if let Some(cluster) = &cluster {
                    let (asked, value) = (Instant::now(), format!("{} {:016x}", settings.name, rand::random::<u64>()));
                    match cluster.replace(&key, seen, &value).await {
                        Ok(true) => {
                            (own, written) = (Some(value), asked);
                            candidate.won(asked);
                            continue;
                        }
                        Ok(false) => {}
                        // If it was written, it is taken for somebody else's.
                        Err(error) => tracing::debug!("{} could not be competed for: {error}", settings.address),
                    }
                }
            }
            Action::Hold { seconds, new } => {
                place.hold(seconds);
                if new {
                    tracing::info!("{} is at this node", settings.address);
                }
                if new || told.elapsed() > ANNOUNCE {
                    told = Instant::now();
                    place.announce();
                }
            }
            Action::Drop { why } => {
                place.drop();
                tracing::warn!("{} is not at this node any more: {why}", settings.address);
                give_up(cluster.as_ref(), &key, own.take()).await;
            }
        }
        if seen == Seen::Lost {
            own = None;
        }
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(TICK) => {}
        }
    }
    place.drop();
    give_up(cluster.as_ref(), &key, own).await;
    Ok(())
}

/// Takes the key away, so that nobody needs to wait.
async fn give_up(cluster: Option<&Cluster>, key: &str, own: Option<String>) {
    if let (Some(cluster), Some(value)) = (cluster, own)
        && let Err(error) = cluster.give_up(key, &value).await
    {
        tracing::debug!("{key} stays until nobody has written it for a while: {error}");
    }
}
