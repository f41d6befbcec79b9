//! Non-resource paths: version, health, metrics, discovery, OpenAPI, fixed documents.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Method, Response};
use serde_json::{Value, json};

use crate::body::{self, Body};
use crate::metrics::head;
use crate::negotiate::{self, Endpoint};
use crate::profile;
use crate::resource::page_not_found;
use crate::server::{Rq, Server};
use crate::types::Status;
use crate::zpages::{Page, Shown};

/// How long a health check waits for the store (upstream's `--etcd-healthcheck-timeout`).
const PROBE: Duration = Duration::from_secs(2);
/// What priority and fairness is doing.
const FLOW_DUMPS: &str = "/debug/api_priority_and_fairness/";

/// Upstream's names for what is done here once the watch cache has what is in the store.
const ON_SYNC: [&str; 12] = [
    "storage-readiness",
    "generic-apiserver-start-informers",
    "start-apiserver-admission-initializer",
    "start-apiextensions-informers",
    "start-apiextensions-controllers",
    "crd-informer-synced",
    "start-kube-aggregator-informers",
    "kube-apiserver-autoregistration",
    "apiservice-registration-controller",
    "apiservice-status-local-available-controller",
    "apiservice-status-remote-available-controller",
    "apiservice-openapi-controller",
];

/// Labels of the build's metric, and what they are called in `/version`.
const BUILD: [(&str, &str); 9] = [
    ("build_date", "buildDate"),
    ("compiler", "compiler"),
    ("git_commit", "gitCommit"),
    ("git_tree_state", "gitTreeState"),
    ("git_version", "gitVersion"),
    ("go_version", "goVersion"),
    ("major", "major"),
    ("minor", "minor"),
    ("platform", "platform"),
];

/// As which part of Kubernetes it tells of itself.
const COMPONENT: &str = "apiserver";

fn shown(page: Shown) -> Response<Body> {
    let mut response = body::response(200, &page.content_type, page.bytes);
    let warning = page.warning.and_then(|w| http::HeaderValue::from_str(&w).ok());
    response.headers_mut().extend(warning.map(|w| (http::header::WARNING, w)));
    response
}

impl Server {
    pub(crate) async fn document(self: &Arc<Server>, rq: Rq) -> Result<Response<Body>, Status> {
        if let Some(what) = rq.info.path.strip_prefix("/knarr/store/") {
            return Ok(self.tend_store(&rq, what).await);
        }
        if !matches!(*rq.request.method(), Method::GET | Method::HEAD) {
            return Ok(page_not_found());
        }
        let path = rq.info.path.trim_end_matches('/');
        if let Some((content_type, bytes)) = self.core.parts().documents.get(path) {
            return Ok(body::response(200, content_type, bytes.clone()));
        }
        match path {
            "/version" => self.json(&rq, &self.version()),
            "/metrics" => Ok(body::response(200, "text/plain; version=0.0.4; charset=utf-8", self.render_metrics().await)),
            "/metrics/slis" => Ok(body::response(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render_health())),
            "" => self.json(&rq, &json!({"paths": self.paths()})),
            "/statusz" => {
                let (version, paths) = (&self.config.git_version, self.paths());
                Ok(shown(Page::Status { version, started: self.started, now: rq.now, paths: &paths }.show(COMPONENT, rq.headers())?))
            }
            "/flagz" if !self.config.flags.is_empty() => Ok(shown(Page::Flags(&self.config.flags).show(COMPONENT, rq.headers())?)),
            p if p == "/healthz" || p.starts_with("/healthz/") => Ok(self.health(&rq, "healthz", p).await),
            p if p == "/livez" || p.starts_with("/livez/") => Ok(self.health(&rq, "livez", p).await),
            p if p == "/readyz" || p.starts_with("/readyz/") => Ok(self.health(&rq, "readyz", p).await),
            p if p == "/api" || p.starts_with("/api/") || p == "/apis" || p.starts_with("/apis/") => self.discovery(&rq, p),
            p if p == profile::PATH || profile::below(p).is_some() => self.profile(&rq, profile::below(p).unwrap_or_default()).await,
            p if p.starts_with(FLOW_DUMPS) => {
                let details = rq.param("includeRequestDetails").is_some_and(|v| !v.is_empty());
                let dump = self.flow().and_then(|flow| flow.dump(&p[FLOW_DUMPS.len()..], details));
                Ok(dump.map_or_else(page_not_found, |dump| text(200, dump)))
            }
            p if p.starts_with("/openapi/") => {
                let other = p.strip_prefix("/openapi/v3").and_then(|below| self.core.aggregated().route(below).cloned());
                match other {
                    Some(other) => self.aggregate(rq, &other).await,
                    None => self.openapi(&rq, p),
                }
            }
            _ => Ok(page_not_found()),
        }
    }

    fn json(&self, rq: &Rq, value: &Value) -> Result<Response<Body>, Status> {
        let accepted = negotiate::negotiate(rq.headers(), rq.param("pretty"), Endpoint::Plain)
            .unwrap_or(negotiate::Accepted { format: negotiate::Format::Json, convert: negotiate::Convert::None, pretty: false });
        let accepted = negotiate::Accepted { format: negotiate::Format::Json, ..accepted };
        // upstream writes these for people: indented
        let bytes = negotiate::indent(&serde_json::to_vec(value).map_err(api::status::internal)?);
        let _ = accepted;
        Ok(body::response(200, "application/json", bytes))
    }

    /// `version.Info`.
    pub(crate) fn version(&self) -> Value {
        let git = &self.config.git_version;
        let mut numbers = git.trim_start_matches('v').split('.');
        json!({
            "major": numbers.next().unwrap_or_default(),
            "minor": numbers.next().unwrap_or_default(),
            "emulationMajor": git.trim_start_matches('v').split('.').next().unwrap_or_default(),
            "emulationMinor": git.split('.').nth(1).unwrap_or_default(),
            "minCompatibilityMajor": git.trim_start_matches('v').split('.').next().unwrap_or_default(),
            "minCompatibilityMinor": git.split('.').nth(1).and_then(|m| m.parse::<u32>().ok()).map(|m| (m - m.min(1)).to_string()).unwrap_or_default(),
            "gitVersion": git,
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
        })
    }

    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = vec!["/api".into(), "/api/v1".into(), "/apis".into()];
        for group in self.groups().iter().filter(|g| !g.name.is_empty()) {
            paths.push(format!("/apis/{}", group.name));
            paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{}", group.name, v.version)));
        }
        for endpoint in ["healthz", "livez", "readyz"] {
            paths.push(format!("/{endpoint}"));
            paths.extend(self.checks(endpoint).into_iter().map(|(name, _)| format!("/{endpoint}/{name}")));
        }
        paths.extend(["/metrics", "/metrics/slis", "/openapi/v2", "/openapi/v3", "/statusz", "/version"].map(String::from));
        paths.extend((!self.config.flags.is_empty()).then(|| "/flagz".to_string()));
        paths.extend(self.core.parts().documents.keys().cloned());
        paths.sort();
        paths
    }

    async fn render_metrics(&self) -> String {
        let mut objects: Vec<(String, usize)> = crate::model::all()
            .iter()
            .filter(|r| crate::model::is_stored(r) && crate::model::is_storage_version(r))
            .filter_map(|r| Some((r.group_resource(), self.core.cache.resource(r.storage_prefix)?.snapshot().map.len())))
            .collect();
        objects.sort();
        objects.dedup_by(|a, b| a.0 == b.0);
        let mut out = self.metrics.render(&objects);
        let version = self.version();
        head(&mut out, "kubernetes_build_info", "gauge", "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.");
        let labels = BUILD.map(|(label, key)| format!("{label}=\"{}\"", version[key].as_str().unwrap_or_default()));
        out.push_str(&format!("kubernetes_build_info{{{}}} 1\n", labels.join(",")));
        if let Ok(Ok(status)) = tokio::time::timeout(PROBE, self.core.store.status()).await {
            head(&mut out, "apiserver_storage_size_bytes", "gauge", "[STABLE] Size of the storage database file physically allocated in bytes.");
            out.push_str(&format!("apiserver_storage_size_bytes{{storage_cluster_id=\"etcd-0\"}} {}\n", status.size_bytes));
        }
        if let Some(flow) = self.flow() {
            flow.render(&mut out);
        }
        self.audited.render(&mut out);
        let parts = self.core.parts();
        parts.admitted.render(&mut out);
        parts.admission.iter().for_each(|plugin| plugin.metrics(&mut out));
        parts.metrics.iter().for_each(|render| render(&mut out));
        out
    }

    /// The checks of an endpoint, in order, and what they say.
    fn checks(&self, endpoint: &str) -> Vec<(String, Result<(), String>)> {
        let mut checks = vec![("ping".to_string(), Ok(()))];
        let loaded = *self.loaded.borrow();
        let undecodable = self.core.cache.undecodable();
        checks.push(("log".into(), Ok(())));
        checks.push(("etcd".into(), if loaded { Ok(()) } else { Err("the store has not been read yet".into()) }));
        if endpoint == "readyz" {
            checks.push(("etcd-readiness".into(), if loaded { Ok(()) } else { Err("the store has not been read yet".into()) }));
            checks.push(("informer-sync".into(), if loaded { Ok(()) } else { Err("the watch cache is empty".into()) }));
        }
        let pending = self.pending.lock().clone();
        let own: &[&str] = match self.flow() {
            Some(_) => &["priority-and-fairness-config-consumer", "priority-and-fairness-filter", crate::flow::PRODUCER],
            None => &["max-in-flight-filter"],
        };
        let synced = if loaded { Ok(()) } else { Err("the store has not been read yet".to_string()) };
        checks.extend(ON_SYNC.iter().map(|name| (format!("poststarthook/{name}"), synced.clone())));
        checks.push(("autoregister-completion".into(), synced));
        let installed = self.core.parts().post_start.iter().map(|(name, _)| name.as_str());
        for name in own.iter().copied().chain(installed) {
            let done = if pending.iter().any(|p| p == name) { Err("not finished".to_string()) } else { Ok(()) };
            let also = self.core.parts().also_known.get(name).copied().unwrap_or_default();
            checks.extend(std::iter::once(name).chain(also.iter().copied()).map(|name| (format!("poststarthook/{name}"), done.clone())));
        }
        for (name, check) in &self.core.parts().checks {
            checks.push((name.clone(), check()));
        }
        if undecodable > 0 && endpoint != "livez" {
            tracing::debug!(undecodable, "stored objects that cannot be read");
        }
        if endpoint == "readyz" {
            let down = self.shutting_down.load(Ordering::Relaxed);
            checks.push(("shutdown".into(), if down { Err("process is shutting down".into()) } else { Ok(()) }));
        }
        checks
    }

    /// Whether the store works: asked now, or a moment ago. A full one serves reads, and counts as well.
    async fn store_health(&self) -> Result<(), String> {
        let mut last = self.probe.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < PROBE / 2
        {
            return result.clone();
        }
        let result = match tokio::time::timeout(PROBE, self.core.store.status()).await {
            Ok(Ok(status)) if status.full => Ok(()),
            Ok(Ok(status)) => status.error.map_or(Ok(()), Err),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the store has not answered within {PROBE:?}")),
        };
        *last = Some((Instant::now(), result.clone()));
        result
    }

    async fn health(&self, rq: &Rq, endpoint: &str, path: &str) -> Response<Body> {
        let mut checks = self.checks(endpoint);
        for check in checks.iter_mut().filter(|(name, so_far)| name.starts_with("etcd") && so_far.is_ok()) {
            check.1 = self.store_health().await;
        }
        let one = path.trim_start_matches('/').strip_prefix(endpoint).unwrap_or_default().trim_start_matches('/');
        if !one.is_empty() {
            let check = checks.into_iter().find(|(n, _)| n == one);
            if let Some((name, result)) = &check {
                self.metrics.health(endpoint, name, result.is_ok());
            }
            return match check {
                None => page_not_found(),
                Some((_, Ok(()))) => text(200, "ok".into()),
                Some((_, Err(why))) => text(500, format!("internal server error: {why}\n")),
            };
        }
        let excluded: Vec<&str> = rq.query.iter().filter(|(k, _)| k == "exclude").map(|(_, v)| v.as_str()).collect();
        let (mut lines, mut failed) = (String::new(), false);
        for (name, result) in &checks {
            if excluded.contains(&name.as_str()) {
                lines.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            self.metrics.health(endpoint, name, result.is_ok());
            match result {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(why) => {
                    failed = true;
                    tracing::info!(endpoint, check = name, why, "a health check fails");
                    lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                }
            }
        }
        if failed {
            return text(500, format!("{lines}{endpoint} check failed\n"));
        }
        if rq.query.iter().any(|(k, _)| k == "verbose") {
            return text(200, format!("{lines}{endpoint} check passed\n"));
        }
        text(200, "ok".into())
    }
}

pub(crate) fn text(code: u16, text: String) -> Response<Body> {
    let mut response = body::response(code, "text/plain; charset=utf-8", text);
    response.headers_mut().insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}
