//! A component's HTTPS port: health, metrics, and what it is set to, under upstream's paths.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::zpages::Page;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use parking_lot::RwLock;
use pki::Renewable;
use reconcile::Tasks;
use reconcile::leader::Leadership;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::access::Access;
use super::flags::Values;
use crate::follow::Certificate;
use crate::server::KUBERNETES;

/// How long a client may take to shake hands or to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);

/// Where something is.
const PATHS: [&str; 8] = ["/configz", "/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"];

/// What the port tells of.
pub struct Site {
    pub component: &'static str,
    pub values: Values,
    pub access: Access,
    /// The election, where there is one, by the name of its lease.
    pub election: RwLock<Option<(String, Leadership)>>,
    /// What runs now, by name.
    pub running: RwLock<BTreeSet<String>>,
    /// What /configz answers.
    pub config: Value,
    pub started: Timestamp,
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code.as_u16()});
    answer(code, "application/json", status.to_string())
}

/// Binds the port and serves `site` in `tasks`; without a port nothing is served.
pub async fn start(site: Arc<Site>, tasks: &Tasks) -> Result<()> {
    let values = &site.values;
    let port = u16::try_from(values.int("secure-port")).with_context(|| format!("--secure-port {} must be between 0 and 65535, inclusive. 0 for turning off secure port", values.int("secure-port")))?;
    if port == 0 {
        return Ok(());
    }
    let ip: IpAddr = values.text("bind-address").trim().parse().context("--bind-address")?;
    let (cert_pem, key_pem) = certificate(site.component, values)?;
    let shown = match values.given("tls-cert-file").zip(values.given("tls-private-key-file")) {
        Some((cert, key)) => {
            let files = Certificate::read([cert, key])?;
            let shown = files.shown.clone();
            files.start(tasks);
            shown
        }
        None => Renewable::new(&pki::CertKey { cert_pem, key_pem }).context("the serving certificate cannot be used")?,
    };
    let tls = kubelet::tls_acceptor(shown).map_err(|e| anyhow::anyhow!("the serving certificate cannot be used: {e}"))?;
    let address = SocketAddr::from((ip, port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("failed to create listener: failed to listen on {address}"))?;
    tracing::info!("serving securely on {address}");
    if values.given("client-ca-file").is_none() && !values.bool("authentication-skip-lookup") {
        let site = site.clone();
        tasks.spawn("cluster CA", async move { site.access.follow_cluster_ca().await });
    }
    let connections = tasks.clone();
    tasks.spawn("port", async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (site, tls) = (site.clone(), tls.clone());
            connections.spawn("connection", async move {
                let Ok(Ok(stream)) = tokio::time::timeout(HEAD, tls.accept(stream)).await else { return };
                let chain: Vec<Vec<u8>> = stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.as_ref().to_vec()).collect();
                let chain = Arc::new(chain);
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (site, chain) = (site.clone(), chain.clone());
                    async move { Ok::<_, Infallible>(site.handle(&request, &chain).await) }
                });
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(180));
                if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!("a connection ended: {error}");
                }
            });
        }
    });
    Ok(())
}

/// The serving certificate and its key: of the flags, of `--cert-dir`, or a new one of our own.
pub fn certificate(component: &str, values: &Values) -> Result<(String, String)> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    match (values.given("tls-cert-file"), values.given("tls-private-key-file")) {
        (Some(cert), Some(key)) => return Ok((read(Path::new(&cert))?, read(Path::new(&key))?)),
        (None, None) => {}
        _ => anyhow::bail!("--tls-cert-file and --tls-private-key-file belong together: one of them is missing"),
    }
    let files = values.given("cert-dir").map(|dir| {
        let dir = Path::new(&dir);
        (dir.join(format!("{component}.crt")), dir.join(format!("{component}.key")))
    });
    if let Some((cert, key)) = &files
        && cert.exists()
        && key.exists()
    {
        return Ok((read(cert)?, read(key)?));
    }
    let now = Timestamp::now();
    let year = SignedDuration::from_hours(24 * 365);
    let ca = pki::Ca::new(&format!("localhost-ca@{}", now.as_second()), now, year)?;
    let sans = ["localhost", "127.0.0.1"].map(String::from).to_vec();
    let request = pki::CertRequest { cn: format!("localhost@{}", now.as_second()), sans, usages: vec![pki::Usage::Server], lifetime: year, ..pki::CertRequest::default() };
    let pair = ca.issue(&request, now)?;
    let chain = format!("{}{}", pair.cert_pem, ca.cert_pem());
    if let Some((cert, key)) = &files {
        crate::files::public_dir(cert.parent().unwrap_or(Path::new("/")))?;
        crate::files::write(key, pair.key_pem.as_bytes(), 0o600)?;
        crate::files::write(cert, chain.as_bytes(), 0o644)?;
    }
    tracing::info!("generated self-signed serving certificate");
    Ok((chain, pair.key_pem))
}

impl Site {
    async fn handle(&self, request: &Request<Incoming>, chain: &[Vec<u8>]) -> Answer {
        let path = request.uri().path();
        let verb = match *request.method() {
            Method::POST => "post",
            Method::PUT => "put",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::HEAD => "head",
            Method::OPTIONS => "options",
            _ => "get",
        };
        let credentials = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let Some(user) = self.access.authenticate(chain, credentials).await else {
            return failure(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        };
        if !self.access.is_open(path) && !self.access.may(&user, verb, path).await {
            return failure(StatusCode::FORBIDDEN, "Forbidden", &format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name));
        }
        self.page(path, request.uri().query().unwrap_or(""), request.headers())
    }

    /// What a path holds, for those who may see it.
    pub fn page(&self, path: &str, query: &str, headers: &http::HeaderMap) -> Answer {
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (first, rest) = (parts.next().unwrap_or(""), parts.next());
        match (first, rest) {
            ("healthz" | "livez" | "readyz", rest) => self.health(first, rest, query),
            ("metrics", None) => answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics()),
            ("configz", None) => answer(StatusCode::OK, "application/json", self.config.to_string()),
            ("version", None) => answer(StatusCode::OK, "application/json", json!({"major": "1", "minor": "36", "gitVersion": KUBERNETES}).to_string()),
            ("flagz", None) => own(&Page::Flags(&self.values.shown()), self.component, headers),
            ("statusz", None) => {
                let paths = PATHS.map(String::from);
                own(&Page::Status { version: KUBERNETES, started: self.started, now: Timestamp::now(), paths: &paths }, self.component, headers)
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    fn checks(&self) -> Vec<(String, Result<(), String>)> {
        let mut checks = vec![("ping".to_string(), Ok(()))];
        if let Some((name, leadership)) = &*self.election.read() {
            checks.push(("leaderElection".into(), leadership.check(name)));
        }
        checks.extend(self.running.read().iter().map(|name| (name.clone(), Ok(()))));
        checks
    }

    fn health(&self, page: &str, one: Option<&str>, query: &str) -> Answer {
        let mut parameters = query.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        let excluded: BTreeSet<&str> = query.split('&').filter_map(|p| p.strip_prefix("exclude=")).collect();
        let verbose = parameters.any(|(name, _)| name == "verbose");
        let mut checks = self.checks();
        if let Some(one) = one {
            checks.retain(|(name, _)| name == one);
            if checks.is_empty() {
                return text(StatusCode::NOT_FOUND, "404 page not found\n");
            }
        }
        let (mut lines, mut failed) = (String::new(), Vec::new());
        for (name, result) in &checks {
            if excluded.contains(name.as_str()) {
                let _ = writeln!(lines, "[+]{name} excluded: ok");
                continue;
            }
            match result {
                Ok(()) => {
                    let _ = writeln!(lines, "[+]{name} ok");
                }
                Err(why) => {
                    // Why is for the log: whoever asks may be anybody.
                    tracing::warn!(check = name, "health check failed: {why}");
                    failed.push(name);
                    let _ = writeln!(lines, "[-]{name} failed: reason withheld");
                }
            }
        }
        if !failed.is_empty() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{page} check failed\n"));
        }
        text(StatusCode::OK, if verbose { format!("{lines}{page} check passed\n") } else { "ok".into() })
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, series: &[(String, f64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in series {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        metric("kubernetes_build_info", "gauge", "The version that runs.", &[(format!("{{git_version={KUBERNETES:?},major=\"1\",minor=\"36\"}}"), 1.0)]);
        if let Some((name, leadership)) = &*self.election.read() {
            let leads = f64::from(u8::from(leadership.is_leader()));
            metric("leader_election_master_status", "gauge", "Whether this process has the lease: 1, or 0.", &[(format!("{{name={name:?}}}"), leads)]);
        }
        let running: Vec<_> = self.running.read().iter().map(|name| (format!("{{manager={:?},name={name:?}}}", self.component), 1.0)).collect();
        if self.component == "kube-controller-manager" {
            metric("running_managed_controllers", "gauge", "Controllers that run now.", &running);
        }
        let health: Vec<_> = self.checks().iter().map(|(name, r)| (format!("{{name={name:?},type=\"healthz\"}}"), f64::from(u8::from(r.is_ok())))).collect();
        metric("kubernetes_healthcheck", "gauge", "The last result of each health check.", &health);
        metric("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970.", &[(String::new(), self.started.as_second() as f64)]);
        let process = process();
        if let Some((cpu, resident, open)) = process {
            metric("process_cpu_seconds_total", "counter", "CPU time of the process.", &[(String::new(), cpu)]);
            metric("process_resident_memory_bytes", "gauge", "Resident memory of the process.", &[(String::new(), resident)]);
            metric("process_open_fds", "gauge", "Open file descriptors.", &[(String::new(), open)]);
        }
        out
    }
}

/// One of the pages that all components have.
fn own(page: &Page<'_>, component: &str, headers: &http::HeaderMap) -> Answer {
    let shown = match page.show(component, headers) {
        Ok(shown) => shown,
        Err(status) => return failure(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", &status.message),
    };
    let mut response = text(StatusCode::OK, shown.bytes);
    let header = |value: &str| header::HeaderValue::from_str(value).ok();
    response.headers_mut().extend(header(&shown.content_type).map(|v| (header::CONTENT_TYPE, v)));
    response.headers_mut().extend(shown.warning.as_deref().and_then(header).map(|v| (header::WARNING, v)));
    response
}

/// CPU seconds, resident bytes and open descriptors of this process.
fn process() -> Option<(f64, f64, f64)> {
    // The kernel tells processes' times in hundredths of a second, whatever it counts in itself.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse::<f64>().ok()?;
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as f64;
    Some((ticks / TICKS, resident * 1024.0, open))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::flags;
    use super::*;

    fn site() -> Site {
        let values = flags::parse("kube-controller-manager", flags::table(include_str!("controller_manager.flags")), &["--v=3".to_string()]).expect("flags");
        Site {
            component: "kube-controller-manager",
            access: Access::new(&values, None, None, None),
            values,
            election: RwLock::new(Some(("kube-controller-manager".into(), Leadership::default()))),
            running: RwLock::new(BTreeSet::from(["job-controller".to_string()])),
            config: json!({"a": 1}),
            started: Timestamp::UNIX_EPOCH,
        }
    }

    async fn get(path: &str, query: &str) -> (u16, String) {
        let response = site().page(path, query, &http::HeaderMap::new());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn health_is_brief_unless_asked() {
        assert_eq!(get("/healthz", "").await, (200, "ok".into()));
        let lines = "[+]ping ok\n[+]leaderElection ok\n[+]job-controller ok\nreadyz check passed\n";
        assert_eq!(get("/readyz", "verbose").await, (200, lines.into()));
        assert_eq!(get("/healthz/leaderElection", "").await, (200, "ok".into()));
        assert_eq!(get("/livez/none", "").await.0, 404);
        assert!(get("/livez", "verbose&exclude=ping").await.1.starts_with("[+]ping excluded: ok\n"));
    }

    #[tokio::test]
    async fn metrics_tell_who_leads_and_what_runs() {
        let (_, text) = get("/metrics", "").await;
        assert!(text.contains("\nleader_election_master_status{name=\"kube-controller-manager\"} 0\n"), "{text}");
        assert!(text.contains("\nrunning_managed_controllers{manager=\"kube-controller-manager\",name=\"job-controller\"} 1\n"), "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }

    #[tokio::test]
    async fn what_is_set_can_be_read() {
        assert_eq!(get("/configz", "").await, (200, "{\"a\":1}".into()));
        assert!(get("/flagz", "").await.1.contains("\nv=3\n"));
        assert!(get("/statusz", "").await.1.contains("Binary version: 1.36"));
        assert_eq!(get("/nothing", "").await.0, 404);
    }
}
