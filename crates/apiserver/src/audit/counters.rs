//! What /metrics says of auditing, and how a failure is told: counted, and logged with the events that it concerns.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::event::Event;
use super::policy::Level;

/// The counters.
#[derive(Default)]
pub struct Counters {
    events: AtomicU64,
    levels: [AtomicU64; 4],
    rejected: AtomicU64,
    errors: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(super) fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn level(&self, level: Level) {
        self.levels[level as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// These events may not have got to where they should.
    pub(super) fn failed(&self, plugin: &'static str, why: &str, events: &[Arc<Event>]) {
        *self.errors.lock().entry(plugin).or_default() += events.len() as u64;
        tracing::error!(plugin, why, events = events.len(), "audit events are lost");
        for event in events {
            tracing::error!(plugin, "lost: {}", event.to_text());
        }
    }

    /// As Prometheus reads it.
    pub(crate) fn render(&self, out: &mut String) {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let head = |out: &mut String, name: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} [ALPHA] {help}\n# TYPE {name} counter");
        };
        let errors = self.errors.lock();
        if !errors.is_empty() {
            head(out, "apiserver_audit_error_total", "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.");
            for (plugin, count) in errors.iter() {
                let _ = writeln!(out, "apiserver_audit_error_total{{plugin=\"{plugin}\"}} {count}");
            }
        }
        head(out, "apiserver_audit_event_total", "Counter of audit events generated and sent to the audit backend.");
        let _ = writeln!(out, "apiserver_audit_event_total {}", load(&self.events));
        if self.levels.iter().any(|n| load(n) > 0) {
            head(out, "apiserver_audit_level_total", "Counter of policy levels for audit events (1 per request).");
            for (level, count) in Level::ALL.iter().zip(&self.levels).filter(|(_, n)| load(n) > 0) {
                let _ = writeln!(out, "apiserver_audit_level_total{{level=\"{}\"}} {}", level.as_str(), load(count));
            }
        }
        head(out, "apiserver_audit_requests_rejected_total", "Counter of apiserver requests rejected due to an error in audit logging backend.");
        let _ = writeln!(out, "apiserver_audit_requests_rejected_total {}", load(&self.rejected));
    }
}
