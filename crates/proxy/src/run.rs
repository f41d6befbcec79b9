//! Keeps the kernel's tables as the Services and EndpointSlices say. One task; it reads everything
//! again on each change, at once for the first and then at most every [`PAUSE`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nft::{Family, Nftables, RuleSet};
use reconcile::{Informer, Informers, Tasks};
use tokio::sync::{Notify, watch};

use crate::{Config, Model, pods, rules, stale};

/// The least time between two transactions.
const PAUSE: Duration = Duration::from_millis(10);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Why services are not in force.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The transaction failed.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// The blocking work was cut short.
    #[error("the work was cut short")]
    Interrupted,
}

/// Starts the proxy. The receiver turns true when all Services are in force for the first time.
pub fn run(config: Config, nft: Arc<dyn Nftables>, informers: &Informers, tasks: &Tasks) -> watch::Receiver<bool> {
    let (ready, receiver) = watch::channel(false);
    let (services, slices) = (informers.of::<Service>(), informers.of::<EndpointSlice>());
    tasks.spawn("proxy", follow(config, nft, services, slices, ready));
    receiver
}

/// Deletes the tables of this prefix; says how many there were.
pub fn purge(nft: &dyn Nftables, prefix: &str) -> nft::Result<usize> {
    let mut count = 0;
    for table in [format!("{prefix}-services"), pods::table(prefix)] {
        for family in [Family::Ip, Family::Ip6] {
            count += usize::from(nft.delete(family, &table)?);
        }
    }
    Ok(count)
}

/// What is in force.
#[derive(Default)]
struct InForce(BTreeMap<Family, (Model, RuleSet)>);

async fn follow(
    config: Config,
    nft: Arc<dyn Nftables>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    ready: watch::Sender<bool>,
) {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    services.on_change(move |_| notify.notify_one());
    let notify = changed.clone();
    slices.on_change(move |_| notify.notify_one());
    services.synced().await;
    slices.synced().await;
    let config = Arc::new(config);
    let mut in_force = InForce::default();
    loop {
        let (services, slices) = (services.list(), slices.list());
        let (work_config, work_nft) = (config.clone(), nft.clone());
        let work = tokio::task::spawn_blocking(move || {
            let result = sync(&work_config, work_nft.as_ref(), &mut in_force, &services, &slices);
            (result, in_force)
        });
        let (result, after) = match work.await {
            Ok((result, after)) => (result, after),
            Err(_) => (Err(Error::Interrupted), InForce::default()),
        };
        in_force = after;
        match result {
            Ok(()) => {
                ready.send_if_modified(|now| !std::mem::replace(now, true));
                tokio::time::sleep(PAUSE).await;
                changed.notified().await;
            }
            Err(error) => {
                tracing::warn!("services are not in force: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Brings both families up to date.
fn sync(
    config: &Config,
    nft: &dyn Nftables,
    in_force: &mut InForce,
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
) -> Result<(), Error> {
    for family in [Family::Ip, Family::Ip6] {
        let model = Model::new(family, &config.node_name, services, slices);
        // Without IPv6 services there is no IPv6 table, which a machine without IPv6 would refuse.
        if family == Family::Ip6 && model.ports.is_empty() {
            if in_force.0.remove(&family).is_some() {
                nft.delete(family, &config.table())?;
            }
            continue;
        }
        let before = in_force.0.remove(&family);
        if before.as_ref().is_some_and(|(old, _)| *old == model) {
            in_force.0.extend(before.map(|before| (family, before)));
            continue;
        }
        let rules = rules::compile(config, &model);
        let previous = before.as_ref().map(|(_, rules)| rules);
        let mut applied = nft.apply(previous, &rules);
        if let (Err(error), true) = (&applied, previous.is_some()) {
            tracing::warn!("writing all services again: {error}");
            applied = nft.apply(None, &rules);
        }
        applied?;
        if let Some(test) = stale(before.as_ref().map(|(model, _)| model), &model) {
            // Connections age by themselves; failing to hurry them is no reason to stop.
            if let Err(error) = nft.forget_connections(&test) {
                tracing::warn!("forgetting connections to former endpoints: {error}");
            }
        }
        in_force.0.insert(family, (model, rules));
    }
    Ok(())
}
