//! The webhook backend: events are posted as an EventList to a server that a kubeconfig names.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::config::WebhookConfig;
use super::counters::Counters;
use super::event::Event;
use crate::remote::Remote;

pub(super) const PLUGIN: &str = "webhook";
/// The longest a call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call is made before its events are given up.
const ATTEMPTS: u32 = 5;

/// The server, and how it is reached.
pub(super) struct Hook {
    remote: Remote,
    backoff: Duration,
    counters: Arc<Counters>,
    /// The server is shutting down: nothing is waited for.
    closing: CancellationToken,
}

impl Hook {
    /// Reads the kubeconfig.
    pub fn open(config: &WebhookConfig, path: &Path, counters: Arc<Counters>, closing: CancellationToken) -> Result<Hook, String> {
        Ok(Hook { remote: Remote::open(path)?, backoff: config.initial_backoff, counters, closing })
    }

    /// Sends events; again, and ever more slowly, while that fails. What is given up is counted and logged.
    pub async fn deliver(&self, events: &[Arc<Event>]) -> bool {
        let body = Bytes::from(Event::list(events));
        let mut pause = self.backoff;
        let mut attempt = 1;
        let why = loop {
            let why = match self.remote.post(body.clone(), TIMEOUT).await {
                Ok(_) => return true,
                Err(failure) => failure.why,
            };
            if attempt == ATTEMPTS || self.closing.is_cancelled() {
                break why;
            }
            tracing::debug!(why, attempt, "audit events could not be sent; trying again");
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() * 0.2)) => {}
                // the last attempt
                () = self.closing.cancelled() => {}
            }
            pause = pause.mul_f64(1.5);
            attempt += 1;
        };
        self.counters.failed(PLUGIN, &why, events);
        false
    }
}
