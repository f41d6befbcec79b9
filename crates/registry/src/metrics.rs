//! What /metrics says of authentication and authorization, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use apiserver::histogram::{DEFAULT_BUCKETS, Histogram};
use parking_lot::Mutex;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Decisions,
    Evaluations,
    FailOpen,
    Reloads(&'static str),
    ReloadTime(&'static str),
    JwksFetch,
}

impl Family {
    /// Name, kind and help.
    fn head(self) -> (String, &'static str, String) {
        let of = |name: &str, kind, help: &str| (name.to_string(), kind, help.to_string());
        match self {
            Family::Decisions => of("apiserver_authorization_decisions_total", "counter", "Total number of terminal decisions made by an authorizer split by authorizer type, name, and decision."),
            Family::Evaluations => of("apiserver_authorization_webhook_evaluations_total", "counter", "Round-trips to authorization webhooks."),
            Family::FailOpen => of("apiserver_authorization_webhook_evaluations_fail_open_total", "counter", "NoOpinion results due to webhook timeout or error."),
            Family::Reloads(what) => (
                format!("apiserver_{what}_config_controller_automatic_reloads_total"),
                "counter",
                format!("Total number of automatic reloads of {what} configuration split by status and apiserver identity."),
            ),
            Family::ReloadTime(what) => (
                format!("apiserver_{what}_config_controller_automatic_reload_last_timestamp_seconds"),
                "gauge",
                format!("Timestamp of the last automatic reload of {what} configuration split by status and apiserver identity."),
            ),
            Family::JwksFetch => of(
                "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds",
                "gauge",
                "Timestamp of the last successful or failed JWKS fetch split by result, api server identity and jwt issuer.",
            ),
        }
    }
}

/// All counters of this crate.
#[derive(Default)]
pub(crate) struct Counters {
    samples: Mutex<BTreeMap<Family, BTreeMap<String, f64>>>,
    webhooks: Mutex<BTreeMap<String, Histogram>>,
    /// `sha256:…` of the server's identity.
    identity: String,
}

fn hash(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold("sha256:".to_owned(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn seconds() -> f64 {
    jiff::Timestamp::now().as_millisecond() as f64 / 1000.0
}

impl Counters {
    /// Those of the server at this address.
    pub fn of(address: &str) -> Counters {
        Counters { identity: hash(address), ..Counters::default() }
    }

    fn add(&self, family: Family, labels: String) {
        *self.samples.lock().entry(family).or_default().entry(labels).or_default() += 1.0;
    }

    fn set(&self, family: Family, labels: String, value: f64) {
        self.samples.lock().entry(family).or_default().insert(labels, value);
    }

    /// An authorizer's decision is counted when somebody looks: `allowed` or `denied`, so many times.
    pub fn decisions(&self, kind: &str, name: &str, decision: &str, count: u64) {
        let labels = format!("decision={},name={},type={}", quoted(decision), quoted(name), quoted(kind));
        self.set(Family::Decisions, labels, count as f64);
    }

    /// A call of an authorization webhook: `success`, `timeout` or `error`.
    pub fn webhook(&self, name: &str, result: &str, took: Duration) {
        let labels = format!("name={},result={}", quoted(name), quoted(result));
        self.webhooks.lock().entry(labels.clone()).or_insert_with(|| Histogram::new(DEFAULT_BUCKETS)).observe(took.as_secs_f64());
        self.add(Family::Evaluations, labels);
    }

    /// A webhook that could not be asked was passed over.
    pub fn failed_open(&self, name: &str, result: &str) {
        self.add(Family::FailOpen, format!("name={},result={}", quoted(name), quoted(result)));
    }

    /// The configuration of `authentication` or `authorization` changed while the server ran.
    pub fn reloaded(&self, what: &'static str, success: bool) {
        let status = if success { "success" } else { "failure" };
        let labels = format!("apiserver_id_hash={},status=\"{status}\"", quoted(&self.identity));
        self.set(Family::ReloadTime(what), labels.clone(), seconds());
        self.add(Family::Reloads(what), labels);
    }

    /// An issuer's keys were fetched.
    pub fn jwks_fetched(&self, issuer: &str, success: bool) {
        let result = if success { "success" } else { "failure" };
        let labels = format!("apiserver_id_hash={},jwt_issuer_hash={},result=\"{result}\"", quoted(&self.identity), quoted(&hash(issuer)));
        self.set(Family::JwksFetch, labels, seconds());
    }

    /// Appends Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        for (family, samples) in self.samples.lock().iter() {
            let (name, kind, help) = family.head();
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        }
        let webhooks = self.webhooks.lock();
        const NAME: &str = "apiserver_authorization_webhook_duration_seconds";
        if !webhooks.is_empty() {
            let _ = writeln!(out, "# HELP {NAME} Request latency in seconds.\n# TYPE {NAME} histogram");
        }
        for (labels, histogram) in webhooks.iter() {
            histogram.render(NAME, labels, out);
        }
    }
}
