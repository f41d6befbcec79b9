//! What one of several servers does at a time, by a Lease: controllers and the scheduler, in upstream's leases, so that
//! upstream's own may stand by too.

use std::time::Duration;

use anyhow::Result;
use kube::Client;
use reconcile::leader::{Elector, Settings, Timing};
use reconcile::{Recorder, Tasks};

/// How long the work of a leader may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Who this server is in elections: its node, and a number that no other process has.
pub fn identity(node: &str) -> String {
    format!("{node}_{}", hex::encode(rand::random::<[u8; 16]>()))
}

/// Has `work` started whenever this server leads, and ended when it does not. With no `identity` there is nobody else.
pub fn when_leading(name: &'static str, client: Client, identity: Option<&str>, control: &Tasks, work: impl Fn(&Tasks) -> Result<()> + Send + 'static) -> Result<()> {
    let Some(identity) = identity else { return work(control) };
    let settings = Settings { namespace: "kube-system".into(), name: name.into(), identity: identity.into(), timing: Timing::default() };
    let recorder = Recorder::new(control, client.clone(), name, None);
    let mut elector = Elector::new(client, settings, recorder);
    let stop = control.token();
    control.spawn_uncancelled(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = elector.acquire() => {}
            }
            let doing = Tasks::new();
            if let Err(error) = work(&doing) {
                tracing::error!("{name} cannot be started: {error:#}");
            }
            tokio::select! {
                () = stop.cancelled() => {
                    if doing.shutdown(DRAIN).await {
                        elector.release().await;
                    } else {
                        tracing::warn!("some tasks of {name} did not end in time: the lease is left to end by itself");
                    }
                    return;
                }
                () = elector.renew() => {
                    // Another one may work already: nothing is drained.
                    if !doing.shutdown(DRAIN).await {
                        tracing::warn!("some tasks of {name} go on without the lease");
                    }
                }
            }
        }
    });
    Ok(())
}
