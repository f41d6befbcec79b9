//! The node's pod network as the container runtime and the node's supervisor see it. One task keeps
//! the tunnel as the Node objects say; set-up and teardown of pods run on blocking threads.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use netlink::{LinkKind, Netlink, netns};
use parking_lot::Mutex;
use reconcile::{Informer, Informers, Tasks};
use tokio::sync::{Notify, watch};

use crate::apply::{Host, apply};
use crate::record::Records;
use crate::veth::{self, Veth};
use crate::{Config, Desired, Error, FilterRules, HostPort, Ipam, NodeView, PacketFilter, Record, Sandbox, plan};

/// How often the kernel's state is compared with the plan when nothing seems to change.
const RESYNC: Duration = Duration::from_secs(60);
/// The pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(1);

/// The pod network of one node. Clones share it.
#[derive(Clone)]
pub struct Overlay(Arc<Inner>);

struct Inner {
    config: Config,
    host: Host,
    filter: Arc<dyn PacketFilter>,
    records: Records,
    state: Mutex<State>,
    /// Held while the packet filter is written, so that an older state never replaces a newer one.
    filtering: Mutex<()>,
    gateway: watch::Sender<Option<Ipv4Addr>>,
}

#[derive(Default)]
struct State {
    ipam: Option<Ipam>,
    mtu: u32,
    pods: HashMap<String, Record>,
    problem: Option<String>,
}

impl Overlay {
    /// Reads what is known of this node's pods. If the node's pod range is known from before, the
    /// network is put in place at once and is ready on return.
    pub fn open(config: Config, filter: Arc<dyn PacketFilter>) -> Result<Self, Error> {
        Self::open_in(config, filter, None)
    }

    /// The same for a node that lives in another network namespace than this process.
    pub fn open_in(config: Config, filter: Arc<dyn PacketFilter>, netns: Option<OwnedFd>) -> Result<Self, Error> {
        if config.prefix.is_empty() || config.prefix.len() > 5 {
            return Err(Error::Config(format!("the link prefix {:?} needs 1 to 5 bytes", config.prefix)));
        }
        let host = Host::open(netns)?;
        let records = Records::open(&config.data_dir)?;
        let mut state = State::default();
        for record in records.load()? {
            state.pods.insert(record.sandbox.id.clone(), record);
        }
        let known = records.range();
        let overlay = Self(Arc::new(Inner {
            config,
            host,
            filter,
            records,
            state: Mutex::new(state),
            filtering: Mutex::new(()),
            gateway: watch::Sender::new(None),
        }));
        if let Some(desired) = known.and_then(Desired::alone) {
            // Remote routes that are still in place are left to the first look at the Node objects.
            if let Err(error) = overlay.0.adopt(&desired) {
                overlay.0.state.lock().problem = Some(chain(&error));
            }
        }
        Ok(overlay)
    }

    /// Starts the task that follows the Node objects.
    pub fn start(&self, informers: &Informers, tasks: &Tasks) {
        tasks.spawn("overlay", self.clone().follow(informers.of::<Node>()));
    }

    /// The gateway of this node's pods (where cluster DNS listens), once the network is in place.
    pub fn gateway(&self) -> watch::Receiver<Option<Ipv4Addr>> {
        self.0.gateway.subscribe()
    }

    /// Whether pods can be connected; if not, why.
    pub async fn ready(&self) -> Result<(), String> {
        if self.0.gateway.borrow().is_some() {
            return Ok(());
        }
        let problem = self.0.state.lock().problem.clone();
        Err(problem.unwrap_or_else(|| format!("node {} has no pod range yet", self.0.config.node_name)))
    }

    /// Connects a sandbox: gives it an address and a link. Repeating it is harmless.
    pub async fn setup(
        &self,
        sandbox: &Sandbox,
        netns: &Path,
        host_ports: Vec<HostPort>,
    ) -> Result<Vec<IpAddr>, Error> {
        let (inner, sandbox, netns) = (self.0.clone(), sandbox.clone(), netns.to_owned());
        blocking(move || inner.setup(sandbox, &netns, host_ports)).await
    }

    /// Disconnects a sandbox and frees its address. Repeating it is harmless, and so is a sandbox
    /// that was never connected.
    pub async fn teardown(&self, id: &str) -> Result<(), Error> {
        let (inner, id) = (self.0.clone(), id.to_owned());
        blocking(move || inner.teardown(&id)).await
    }

    /// Disconnects every sandbox that is not among the living ones.
    pub async fn retain(&self, living: &[String]) -> Result<(), Error> {
        let dead: Vec<String> = {
            let state = self.0.state.lock();
            state.pods.keys().filter(|id| !living.contains(id)).cloned().collect()
        };
        for id in dead {
            self.teardown(&id).await?;
        }
        Ok(())
    }

    /// Puts the node's network in place for these nodes; the task of [`Overlay::start`] does it for
    /// Node objects.
    pub async fn apply(&self, nodes: &[NodeView]) -> Result<(), Error> {
        let Some(desired) = plan(&self.0.config.node_name, nodes) else {
            return Err(Error::NotReady(format!("node {} has no pod range yet", self.0.config.node_name)));
        };
        let inner = self.0.clone();
        blocking(move || inner.place(&desired)).await
    }

    /// Removes every link of ours (and with them routes and neighbours) and the records.
    pub fn purge(config: &Config) -> Result<(), Error> {
        Self::purge_in(config, None)
    }

    /// The same for a node that lives in another network namespace than this process.
    pub fn purge_in(config: &Config, netns: Option<OwnedFd>) -> Result<(), Error> {
        let host = Host::open(netns)?;
        for link in host.net.links()? {
            let tunnel = link.name == config.vxlan_name() && matches!(link.kind, LinkKind::Vxlan { .. });
            let pod = link.kind == LinkKind::Veth && veth::is_ours(&config.prefix, &link.name);
            if tunnel || pod {
                host.net.delete_link(&link.name)?;
            }
        }
        match std::fs::remove_dir_all(&config.data_dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(crate::file_error(&config.data_dir)(e)),
            _ => Ok(()),
        }
    }

    async fn follow(self, nodes: Informer<Node>) {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        nodes.on_change(move |_| notify.notify_one());
        nodes.synced().await;
        let mut done: Option<Vec<NodeView>> = None;
        let mut pause = RESYNC;
        loop {
            let views: Vec<NodeView> = nodes.list().iter().map(|n| NodeView::from(n.as_ref())).collect();
            if done.as_ref() != Some(&views) {
                match self.apply(&views).await {
                    Ok(()) => {
                        self.0.state.lock().problem = None;
                        done = Some(views);
                        pause = RESYNC;
                    }
                    Err(error) => {
                        let text = chain(&error);
                        if self.0.state.lock().problem.replace(text.clone()).as_ref() != Some(&text) {
                            tracing::warn!("pod network: {text}");
                        }
                        pause = RETRY;
                    }
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(pause) => done = None,
            }
        }
    }
}

impl Inner {
    /// Puts the whole plan in place.
    fn place(&self, desired: &Desired) -> Result<(), Error> {
        let mtu = apply(self.host.net.as_ref(), &self.config, desired)?;
        self.settle(desired, mtu)
    }

    /// Puts the node's own part in place and leaves routes to other nodes alone.
    fn adopt(&self, desired: &Desired) -> Result<(), Error> {
        let mtu = match self.host.net.link(&self.config.vxlan_name())? {
            Some(link) => link.mtu,
            None => apply(self.host.net.as_ref(), &self.config, desired)?,
        };
        self.settle(desired, mtu)
    }

    fn settle(&self, desired: &Desired, mtu: u32) -> Result<(), Error> {
        self.host.sysctls(&[("ipv4/ip_forward".into(), "1")])?;
        let localhost = format!("ipv4/conf/{}/route_localnet", self.config.vxlan_name());
        if let Err(error) = self.host.sysctls(&[(localhost, "1")]) {
            tracing::debug!("node ports by 127.0.0.1 lead to pods of this node only: {}", chain(&error));
        }
        {
            let mut state = self.state.lock();
            state.mtu = mtu;
            if state.ipam.as_ref().map(Ipam::range) != Some(desired.range) {
                self.records.save_range(desired.range)?;
                let mut ipam = Ipam::new(desired.range).ok_or(Error::Exhausted(desired.range))?;
                for (id, record) in &state.pods {
                    ipam.occupy(record.address, id);
                }
                state.ipam = Some(ipam);
            }
        }
        self.filter()?;
        self.gateway.send_if_modified(|now| now.replace(desired.gateway) != Some(desired.gateway));
        Ok(())
    }

    fn filter(&self) -> Result<(), Error> {
        let _order = self.filtering.lock();
        let rules = {
            let state = self.state.lock();
            let Some(ipam) = &state.ipam else { return Ok(()) };
            let mut host_ports: Vec<_> = state
                .pods
                .values()
                .flat_map(|record| record.host_ports.iter().map(|port| (port.clone(), record.address)))
                .collect();
            host_ports.sort();
            FilterRules {
                pod_cidr: ipam.range(),
                cluster_cidrs: self.config.cluster_cidrs.clone(),
                link_prefix: self.config.prefix.clone(),
                host_ports,
            }
        };
        self.filter.apply(&rules).map_err(Error::Filter)
    }

    fn setup(&self, sandbox: Sandbox, netns: &Path, host_ports: Vec<HostPort>) -> Result<Vec<IpAddr>, Error> {
        let pod = netns::open(netns)?;
        let (record, gateway, mtu) = {
            let mut state = self.state.lock();
            let mtu = state.mtu;
            let earlier = state.pods.get(&sandbox.id).map(|r| r.address);
            let ipam = state
                .ipam
                .as_mut()
                .ok_or_else(|| Error::NotReady(format!("node {} has no pod range yet", self.config.node_name)))?;
            let gateway = ipam.gateway();
            let address = match earlier {
                Some(address) => address,
                None => ipam.allocate(&sandbox.id).ok_or(Error::Exhausted(ipam.range()))?,
            };
            let link = veth::name(&self.config.prefix, &sandbox.id);
            let record = Record { sandbox, address, link, host_ports };
            state.pods.insert(record.sandbox.id.clone(), record.clone());
            (record, gateway, mtu)
        };
        let connect = || {
            // The record comes first: whatever happens after, teardown knows what to remove.
            self.records.save(&record)?;
            let link = Veth { name: &record.link, address: record.address, gateway, mtu };
            veth::connect(&self.host, &pod, &link)?;
            if record.host_ports.is_empty() { Ok(()) } else { self.filter() }
        };
        if let Err(error) = connect() {
            if let Err(second) = self.teardown(&record.sandbox.id) {
                tracing::warn!(sandbox = record.sandbox.id, "undoing a failed network set-up: {}", chain(&second));
            }
            return Err(error);
        }
        Ok(vec![record.address.into()])
    }

    fn teardown(&self, id: &str) -> Result<(), Error> {
        let Some(record) = self.state.lock().pods.get(id).cloned() else { return Ok(()) };
        self.host.net.delete_link(&record.link)?;
        if !record.host_ports.is_empty() {
            if let Some(record) = self.state.lock().pods.get_mut(id) {
                record.host_ports.clear();
            }
            self.filter()?;
        }
        self.records.remove(id)?;
        let mut state = self.state.lock();
        state.pods.remove(id);
        if let Some(ipam) = &mut state.ipam {
            ipam.release(id);
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Interrupted),
        },
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
