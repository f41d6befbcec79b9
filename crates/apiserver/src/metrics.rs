//! /metrics: the counters that dashboards for upstream's API server look for first.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;

use crate::histogram::Histogram;
use crate::request::RequestInfo;
use crate::types::Resource;

const BUCKETS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Bytes.
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const IMPERSONATION_BUCKETS: &[f64] = &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// What upstream tells requests apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    scope: &'static str,
    component: &'static str,
}

/// What the answer to a request was, and what it asked for beside its path.
pub struct Answered {
    pub code: u16,
    pub took: Duration,
    /// Bytes of the answer.
    pub size: u64,
    /// `All` or nothing.
    pub dry_run: &'static str,
    /// A component of the control plane that asked.
    pub system_client: &'static str,
}

/// All of the server's counters.
#[derive(Default)]
pub struct Metrics {
    /// By what they were, dry run, code and system client.
    requests: Mutex<BTreeMap<(Labels, &'static str, u16, &'static str), u64>>,
    durations: Mutex<BTreeMap<(Labels, &'static str), Histogram>>,
    sizes: Mutex<BTreeMap<Labels, Histogram>>,
    /// Group, version, resource and subresource of what was asked for though it is deprecated.
    deprecated: Mutex<BTreeSet<[&'static str; 4]>>,
    inflight: Mutex<[i64; 2]>,
    long_running: Mutex<BTreeMap<Labels, i64>>,
    /// By endpoint and check: how it was last, how often it was good, and how often not.
    health: Mutex<BTreeMap<(String, String), (bool, [u64; 2])>>,
    /// By mode and decision.
    impersonations: Mutex<BTreeMap<(&'static str, bool), Histogram>>,
    impersonation_checks: Mutex<BTreeMap<(&'static str, bool), Histogram>>,
}

impl Metrics {
    /// Nothing for what is not counted: paths of clients' invention would make endless series.
    fn labels(info: &RequestInfo, known: Option<&'static Resource>, verb: &'static str) -> Option<Labels> {
        let Some(known) = known else {
            let health = ["/healthz", "/livez", "/readyz"].into_iter().find(|path| !info.resource_request && info.path == *path)?;
            return Some(Labels { verb, group: "", version: "", resource: "", subresource: health, scope: "", component: "" });
        };
        Some(Labels {
            verb,
            group: known.group,
            version: known.version,
            resource: known.plural,
            subresource: known.subresource(&info.subresource).map_or("", |s| s.name),
            scope: scope(info),
            component: "apiserver",
        })
    }

    /// Counts a finished request.
    pub fn request(&self, info: &RequestInfo, known: Option<&'static Resource>, method: &Method, applies: bool, answered: &Answered) {
        let Some(labels) = Self::labels(info, known, verb(info, method, applies)) else { return };
        let Answered { code, took, size, dry_run, system_client } = *answered;
        *self.requests.lock().entry((labels, dry_run, code, system_client)).or_default() += 1;
        if info.long_running() {
            return;
        }
        self.durations.lock().entry((labels, dry_run)).or_insert_with(|| Histogram::new(BUCKETS)).observe(took.as_secs_f64());
        if matches!(info.verb.as_str(), "get" | "list") {
            self.sizes.lock().entry(labels).or_insert_with(|| Histogram::new(SIZES)).observe(size as f64);
        }
        if let Some(r) = known.filter(|r| crate::model::deprecation(r).is_some()) {
            self.deprecated.lock().insert([r.group, r.version, r.plural, labels.subresource]);
        }
    }

    /// Counts requests that are being served.
    pub fn inflight(&self, mutating: bool, by: i64) {
        self.inflight.lock()[mutating as usize] += by;
    }

    /// Counts watches and streams that are open.
    pub fn long_running(&self, info: &RequestInfo, known: Option<&'static Resource>, by: i64) {
        let Some(labels) = Self::labels(info, known, verb(info, &Method::GET, false)) else { return };
        *self.long_running.lock().entry(labels).or_default() += by;
    }

    /// Counts a health check.
    pub fn health(&self, endpoint: &str, check: &str, good: bool) {
        let mut all = self.health.lock();
        let (last, counts) = all.entry((endpoint.into(), check.into())).or_default();
        *last = good;
        counts[usize::from(!good)] += 1;
    }

    /// What health checks have said, in Prometheus' text format.
    pub fn render_health(&self) -> String {
        let (mut gauges, mut counters) = (String::new(), String::new());
        head(&mut gauges, "kubernetes_healthcheck", "gauge", "[STABLE] This metric records the result of a single healthcheck.");
        head(&mut counters, "kubernetes_healthchecks_total", "counter", "[STABLE] This metric records the results of all healthcheck.");
        for ((endpoint, check), (last, counts)) in self.health.lock().iter() {
            let _ = writeln!(gauges, "kubernetes_healthcheck{{name=\"{check}\",type=\"{endpoint}\"}} {}", u8::from(*last));
            for (status, count) in ["success", "error"].iter().zip(counts).filter(|(_, count)| **count > 0) {
                let _ = writeln!(counters, "kubernetes_healthchecks_total{{name=\"{check}\",status=\"{status}\",type=\"{endpoint}\"}} {count}");
            }
        }
        gauges + &counters
    }

    /// Counts an attempt to act as somebody else, by the mode that allowed it.
    pub fn impersonation(&self, mode: &'static str, allowed: bool, took: Duration) {
        let mut all = self.impersonations.lock();
        all.entry((mode, allowed)).or_insert_with(|| Histogram::new(IMPERSONATION_BUCKETS)).observe(took.as_secs_f64());
    }

    /// Counts what was asked of authorizers for that.
    pub fn impersonation_check(&self, mode: &'static str, allowed: bool, took: Duration) {
        let mut all = self.impersonation_checks.lock();
        all.entry((mode, allowed)).or_insert_with(|| Histogram::new(IMPERSONATION_BUCKETS)).observe(took.as_secs_f64());
    }

    /// Prometheus' text format.
    pub fn render(&self, objects: &[(String, usize)]) -> String {
        let mut out = String::new();
        let l = |l: &Labels| {
            format!(
                "component=\"{}\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
                l.component, l.group, l.resource, l.scope, l.subresource, l.verb, l.version
            )
        };
        head(&mut out, "apiserver_request_total", "counter", "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.");
        for ((labels, dry_run, code, client), count) in self.requests.lock().iter() {
            let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",dry_run=\"{dry_run}\",system_client=\"{client}\",{}}} {count}", l(labels));
        }
        head(&mut out, "apiserver_request_duration_seconds", "histogram", "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.");
        for ((labels, dry_run), h) in self.durations.lock().iter() {
            h.render("apiserver_request_duration_seconds", &format!("dry_run=\"{dry_run}\",{}", l(labels)), &mut out);
        }
        head(&mut out, "apiserver_response_sizes", "histogram", "[STABLE] Response size distribution in bytes for each group, version, verb, resource, subresource, scope and component.");
        for (labels, h) in self.sizes.lock().iter() {
            h.render("apiserver_response_sizes", &l(labels), &mut out);
        }
        head(&mut out, "apiserver_requested_deprecated_apis", "gauge", "[STABLE] Gauge of deprecated APIs that have been requested, broken out by API group, version, resource, subresource, and removed_release.");
        for [group, version, resource, subresource] in self.deprecated.lock().iter() {
            let _ = writeln!(out, "apiserver_requested_deprecated_apis{{group=\"{group}\",removed_release=\"\",resource=\"{resource}\",subresource=\"{subresource}\",version=\"{version}\"}} 1");
        }
        head(&mut out, "apiserver_current_inflight_requests", "gauge", "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in last second.");
        let inflight = *self.inflight.lock();
        let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {}", inflight[1]);
        let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {}", inflight[0]);
        head(&mut out, "apiserver_longrunning_requests", "gauge", "[STABLE] Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.");
        for (labels, count) in self.long_running.lock().iter() {
            let _ = writeln!(out, "apiserver_longrunning_requests{{{}}} {count}", l(labels));
        }
        let all = [
            ("attempts", &self.impersonations, "impersonation attempts"),
            ("authorization_attempts", &self.impersonation_checks, "authorization checks made by the impersonation handler"),
        ];
        for (name, all, what) in all {
            let all = all.lock();
            if all.is_empty() {
                continue;
            }
            let labels = |(mode, allowed): &(&str, bool)| format!("decision=\"{}\",mode=\"{mode}\"", if *allowed { "allowed" } else { "denied" });
            head(&mut out, &format!("apiserver_impersonation_{name}_total"), "counter", &format!("[ALPHA] Total number of {what} split by mode and decision."));
            for (key, histogram) in all.iter() {
                let _ = writeln!(out, "apiserver_impersonation_{name}_total{{{}}} {}", labels(key), histogram.total());
            }
            head(&mut out, &format!("apiserver_impersonation_{name}_duration_seconds"), "histogram", &format!("[ALPHA] Latency of {what} in seconds split by mode and decision."));
            for (key, histogram) in all.iter() {
                histogram.render(&format!("apiserver_impersonation_{name}_duration_seconds"), &labels(key), &mut out);
            }
        }
        process(&mut out);
        head(&mut out, "apiserver_storage_objects", "gauge", "[STABLE] Number of stored objects at the time of last check split by kind.");
        for (resource, count) in objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}");
        }
        out
    }
}

pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Methods as upstream tells of them.
fn verb(info: &RequestInfo, method: &Method, applies: bool) -> &'static str {
    let connects = matches!(info.subresource.as_str(), "log" | "exec" | "portforward" | "attach" | "proxy");
    match *method {
        _ if info.resource_request && connects => "CONNECT",
        _ if info.verb == "watch" => "WATCH",
        Method::GET | Method::HEAD if matches!(scope(info), "resource" | "") => "GET",
        Method::GET | Method::HEAD => "LIST",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH if applies => "APPLY",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    match () {
        _ if !info.resource_request => "",
        _ if !info.name.is_empty() || info.verb == "create" => "resource",
        _ if !info.namespace.is_empty() => "namespace",
        _ => "cluster",
    }
}

/// What every Prometheus client says of its process.
fn process(out: &mut String) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let stat = read("stat");
    // fields after the command, which may hold spaces: utime and stime are the 12th and 13th, start time the 20th
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    const TICKS: f64 = 100.0;
    let boot: f64 = std::fs::read_to_string("/proc/stat")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("btime ")?.parse().ok())
        .unwrap_or(0.0);
    let resident: f64 = read("statm").split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0.0);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        head(out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    };
    one("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", (number(11) + number(12)) / TICKS);
    one("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident * 4096.0);
    one("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", boot + number(19) / TICKS);
    one("process_open_fds", "gauge", "Number of open file descriptors.", files as f64);
}
