//! Leader election over a Lease, as client-go does it, so that ours and upstream's can stand by for
//! each other. The decision is in [`plan`]; this asks the API server and waits.
//!
//! A standby watches the lease: it sees each renewal when it happens, and tries in the moment in which
//! the lease ends. Upstream's asks every few seconds.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use plan::{Seen, Step, Timing, decide, released};

use crate::{EventType, Recorder, Reference};

/// Between two looks at a lease that may be read and not watched.
const LOOK: Duration = Duration::from_secs(1);
/// How long past the end of its lease a leader may be before it counts as ill.
const TOLERANCE: Duration = Duration::from_secs(20);

/// Which lease, for whom.
#[derive(Clone, Debug)]
pub struct Settings {
    pub namespace: String,
    pub name: String,
    /// Who asks: different for each process that ever asks.
    pub identity: String,
    pub timing: Timing,
}

/// What others in the process may know of the election. Clones share it.
#[derive(Clone, Default)]
pub struct Leadership(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    /// When the lease was last ours, and how long it lasts.
    renewed: Option<(Instant, Duration)>,
}

impl Leadership {
    /// Whether this process has the lease.
    pub fn is_leader(&self) -> bool {
        self.0.lock().renewed.is_some()
    }

    /// Fails when this process believes to lead and could not renew for far too long: then it hangs.
    pub fn check(&self, name: &str) -> Result<(), String> {
        match self.0.lock().renewed {
            Some((at, lease)) if at.elapsed() > lease + TOLERANCE => Err(format!("failed election to renew leadership on lease {name}")),
            _ => Ok(()),
        }
    }
}

/// One candidate. First [`Elector::acquire`], then [`Elector::renew`], and at a clean end
/// [`Elector::release`].
pub struct Elector {
    api: Api<Lease>,
    settings: Settings,
    recorder: Recorder,
    seen: Option<Seen>,
    leadership: Leadership,
}

/// How a try to have the lease went.
enum Tried {
    Ours,
    /// Somebody has it until then, unless it changes.
    Until(Instant),
    /// The API server did not take it: try again.
    Failed,
}

impl Elector {
    /// A candidate that has asked for nothing yet.
    pub fn new(client: Client, settings: Settings, recorder: Recorder) -> Elector {
        let api = Api::namespaced(client, &settings.namespace);
        Elector { api, settings, recorder, seen: None, leadership: Leadership::default() }
    }

    /// What others in the process may know.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    fn lock(&self) -> String {
        format!("{}/{}", self.settings.namespace, self.settings.name)
    }

    fn limit(&self) -> Duration {
        self.settings.timing.renew / 2
    }

    /// Completes when the lease is ours.
    pub async fn acquire(&mut self) {
        tracing::info!(lock = self.lock(), "attempting to acquire leader lease");
        let mut leader = String::new();
        loop {
            let tried = match self.read().await {
                Ok(()) => self.attempt().await,
                Err(()) => Tried::Failed,
            };
            let holder = self.seen.as_ref().map(Seen::holder).unwrap_or_default();
            if holder != leader {
                tracing::info!(lock = self.lock(), identity = holder, "new leader elected");
                leader = holder;
            }
            match tried {
                Tried::Ours => break,
                Tried::Until(end) => self.stand_by(end).await,
                Tried::Failed => sleep(self.settings.timing.retry).await,
            }
        }
        tracing::info!(lock = self.lock(), "successfully acquired lease");
        self.record("became leader");
    }

    /// Renews for as long as that works, and completes when the lease is lost.
    pub async fn renew(&mut self) {
        'renewed: loop {
            sleep(self.settings.timing.retry).await;
            let deadline = Instant::now() + self.settings.timing.renew;
            while Instant::now() < deadline {
                // First over what was seen last, which is ours unless something happened.
                let mut tried = self.attempt().await;
                if matches!(tried, Tried::Failed) && self.read().await.is_ok() {
                    tried = self.attempt().await;
                }
                match tried {
                    Tried::Ours => continue 'renewed,
                    Tried::Until(_) => {
                        self.lost("another one has it");
                        return;
                    }
                    Tried::Failed => sleep(self.settings.timing.retry.min(deadline.saturating_duration_since(Instant::now()))).await,
                }
            }
            self.lost("it could not be renewed in time");
            return;
        }
    }

    fn lost(&mut self, why: &str) {
        self.leadership.0.lock().renewed = None;
        self.record("stopped leading");
        tracing::error!(lock = self.lock(), why, "failed to renew lease");
    }

    /// Gives the lease up, so that another need not wait for its end. Everything that it guards must
    /// have ended before.
    pub async fn release(&mut self) {
        if !self.leadership.is_leader() {
            return;
        }
        self.leadership.0.lock().renewed = None;
        if self.read().await.is_err() {
            return;
        }
        let Some(seen) = self.seen.clone().filter(|s| s.holder() == self.settings.identity) else { return };
        let lease = Lease { spec: Some(released(&seen, Timestamp::now())), ..seen.lease };
        match timeout(self.limit(), self.api.replace(&self.settings.name, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => tracing::info!(lock = self.lock(), "released lease"),
            Ok(Err(error)) => tracing::warn!(lock = self.lock(), "failed to release lease: {error}"),
            Err(_) => tracing::warn!(lock = self.lock(), "failed to release lease: no answer in time"),
        }
    }

    /// Takes in what the API server has.
    async fn read(&mut self) -> Result<(), ()> {
        match timeout(self.limit(), self.api.get_opt(&self.settings.name)).await {
            Ok(Ok(lease)) => {
                self.saw(lease);
                Ok(())
            }
            Ok(Err(error)) => {
                tracing::error!(lock = self.lock(), "error retrieving lease lock: {error}");
                Err(())
            }
            Err(_) => {
                tracing::error!(lock = self.lock(), "error retrieving lease lock: no answer in time");
                Err(())
            }
        }
    }

    fn saw(&mut self, lease: Option<Lease>) {
        self.seen = lease.map(|lease| Seen::after(self.seen.take(), lease, Instant::now()));
    }

    /// Writes what is decided for what was seen.
    async fn attempt(&mut self) -> Tried {
        let asked = Instant::now();
        let decided = decide(&self.settings.identity, &self.settings.timing, self.seen.as_ref(), asked, Timestamp::now());
        let write = async {
            match decided {
                Step::Wait(end) => Ok(Err(end)),
                Step::Create(spec) => self.api.create(&PostParams::default(), &self.lease(spec)).await.map(Ok),
                Step::Update(spec) => {
                    let seen = self.seen.as_ref().map(|s| s.lease.clone()).unwrap_or_default();
                    let lease = Lease { spec: Some(spec), ..seen };
                    self.api.replace(&self.settings.name, &PostParams::default(), &lease).await.map(Ok)
                }
            }
        };
        match timeout(self.limit(), write).await {
            Ok(Ok(Ok(lease))) => {
                self.saw(Some(lease));
                // Others count from when they see it, which is not before we asked.
                self.leadership.0.lock().renewed = Some((asked, self.settings.timing.lease));
                Tried::Ours
            }
            Ok(Ok(Err(end))) => Tried::Until(end),
            Ok(Err(error)) => {
                tracing::debug!(lock = self.lock(), "the lease could not be written: {error}");
                Tried::Failed
            }
            Err(_) => {
                tracing::debug!(lock = self.lock(), "the lease could not be written: no answer in time");
                Tried::Failed
            }
        }
    }

    fn lease(&self, spec: LeaseSpec) -> Lease {
        let metadata = ObjectMeta {
            name: Some(self.settings.name.clone()),
            namespace: Some(self.settings.namespace.clone()),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// Follows the lease until it may be ours, or until it has to be read again.
    async fn stand_by(&mut self, mut end: Instant) {
        let version = self.seen.as_ref().and_then(|s| s.lease.resource_version()).unwrap_or_default();
        let params = WatchParams::default().fields(&format!("metadata.name={}", self.settings.name)).timeout(290);
        let mut events = match timeout(self.limit(), self.api.watch(&params, &version)).await {
            Ok(Ok(events)) => events.boxed(),
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(lock = self.lock(), "the lease cannot be watched: {error}");
                }
                return sleep_until(end.min(Instant::now() + LOOK)).await;
            }
        };
        loop {
            let event = tokio::select! {
                () = sleep_until(end) => return,
                event = events.try_next() => event,
            };
            match event {
                Ok(Some(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                    self.saw(Some(lease));
                    match decide(&self.settings.identity, &self.settings.timing, self.seen.as_ref(), Instant::now(), Timestamp::now()) {
                        Step::Wait(until) => end = until,
                        Step::Create(_) | Step::Update(_) => return,
                    }
                }
                Ok(Some(WatchEvent::Deleted(_))) => return self.saw(None),
                Ok(Some(WatchEvent::Bookmark(_))) => {}
                Ok(None | Some(WatchEvent::Error(_))) | Err(_) => {
                    return sleep_until(end.min(Instant::now() + LOOK)).await;
                }
            }
        }
    }

    fn record(&self, what: &str) {
        let Some(seen) = &self.seen else { return };
        let message = format!("{} {what}", self.settings.identity);
        self.recorder.event(&Reference::of(&seen.lease), EventType::Normal, "LeaderElection", message);
    }
}

#[cfg(test)]
mod tests;
