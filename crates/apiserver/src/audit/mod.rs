//! Auditing: who asked for what, and what came of it (audit.k8s.io/v1).
//!
//! A policy says how much of a request is recorded. Each request that it wants recorded has a [`Record`], which makes an
//! event of it at every stage, and hands that to the backends:
//!
//! ```text
//! request ─ Record ─┬─ log:     thread ─ file, with rotation
//!                   └─ webhook: tasks  ─ POST, with retries
//! batch:    the request goes on; a buffer, batches.    blocking, blocking-strict: it waits until the event is there.
//! ```
//!
//! Nobody waits for long: what a backend has not taken after [`WAIT`] is still on its way, but the request goes on.
//! Nothing is lost without being counted and logged. Without a policy there are no records.
mod config;
mod counters;
mod event;
mod hook;
mod latency;
mod log;
mod policy;
mod record;
mod rotate;
mod sink;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use config::{BatchConfig, Config, LogConfig, TruncateConfig, WebhookConfig};
pub use latency::Layer;
pub use policy::{Level, Policy, PolicyError};

pub(crate) use counters::Counters;
pub(crate) use record::{Incoming, Record};

use event::Event;
use hook::Hook;
use log::Log;
use sink::{Backend, Offered, Sink};

/// The longest that a request waits for a backend that blocks.
const WAIT: Duration = Duration::from_secs(30);
/// How long a shutdown waits for backends.
const FLUSH: Duration = Duration::from_secs(20);

/// Why there can be no auditing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", api::field::aggregate(.0))]
    Config(Vec<String>),
    #[error("loading audit policy file: failed to read file path {path:?}: {why}")]
    Read { path: String, why: String },
    #[error("loading audit policy file: {error}: from file {path}")]
    Policy { path: String, error: PolicyError },
    #[error("{0}")]
    Log(String),
    #[error("initializing audit webhook: {0}")]
    Webhook(String),
    #[error("events are gathered by tasks: a runtime is needed")]
    Runtime,
}

/// A policy, and where events go.
pub(crate) struct Auditor {
    policy: Policy,
    sinks: Vec<Sink>,
    counters: Arc<Counters>,
    closing: CancellationToken,
}

impl Config {
    /// Whether the settings can be used, and the policy is one.
    pub fn check(&self) -> Result<(), Error> {
        self.policy().map(drop)
    }

    fn policy(&self) -> Result<Option<Policy>, Error> {
        let mistakes = self.mistakes();
        if !mistakes.is_empty() {
            return Err(Error::Config(mistakes));
        }
        self.policy_file.as_deref().map(read).transpose()
    }
}

impl Auditor {
    /// Checks the settings, reads what they name and starts the backends. Nothing, where nothing is to be recorded.
    pub fn open(config: &Config, counters: Arc<Counters>) -> Result<Option<Arc<Auditor>>, Error> {
        let policy = config.policy()?;
        let has_log = !config.log.path.is_empty();
        if has_log || config.webhook.config_file.is_some() {
            if policy.is_none() {
                tracing::info!("no audit policy file is given: no events will be recorded");
            }
            tokio::runtime::Handle::try_current().map_err(|_| Error::Runtime)?;
        }
        let closing = CancellationToken::new();
        let mut sinks = Vec::new();
        if has_log {
            let c = &config.log;
            let backend = Backend::Log(Log::open(c, counters.clone()).map_err(Error::Log)?);
            if policy.is_some() {
                sinks.push(Sink::start(backend, &c.mode, &c.batch, &c.truncate, counters.clone()));
            }
        }
        if let (Some(path), Some(_)) = (&config.webhook.config_file, &policy) {
            let c = &config.webhook;
            let hook = Hook::open(c, path, counters.clone(), closing.clone()).map_err(Error::Webhook)?;
            sinks.push(Sink::start(Backend::Hook(Arc::new(hook)), &c.mode, &c.batch, &c.truncate, counters.clone()));
        }
        let Some(policy) = policy.filter(|_| !sinks.is_empty()) else { return Ok(None) };
        Ok(Some(Arc::new(Auditor { policy, sinks, counters, closing })))
    }

    /// Gives an event to all backends. The answer is false if one lost it that no request may do without.
    async fn process(&self, event: Arc<Event>) -> bool {
        let mut fine = true;
        let waits: Vec<_> = self.offer(&event).collect();
        for (strict, offered) in waits {
            let there = match offered {
                Offered::Done(there) => there,
                Offered::Waits(done) => matches!(tokio::time::timeout(WAIT, done).await, Ok(Ok(true))),
            };
            fine &= there || !strict;
        }
        fine
    }

    /// The same without waiting for anyone.
    fn offer<'a>(&'a self, event: &'a Arc<Event>) -> impl Iterator<Item = (bool, Offered)> + 'a {
        self.counters.event();
        self.sinks.iter().map(move |sink| (sink.strict, sink.offer(event)))
    }

    /// Delivers what waits, the last stage of a shutdown: what fails now is not tried again for long.
    pub async fn flush(&self) {
        self.closing.cancel();
        let all = futures::future::join_all(self.sinks.iter().map(Sink::flush));
        if tokio::time::timeout(FLUSH, all).await.is_err() {
            let waiting: usize = self.sinks.iter().map(Sink::waiting).sum();
            tracing::error!(waiting, "audit events are lost: their backend took them too slowly at the end");
        }
    }
}

fn read(path: &Path) -> Result<Policy, Error> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::Read { path: name.clone(), why: e.to_string() })?;
    Policy::from_text(&text).map_err(|error| Error::Policy { path: name, error })
}
