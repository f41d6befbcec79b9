//! The webhook backend: events are posted as an EventList to a server that a kubeconfig names.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::config::WebhookConfig;
use super::counters::Counters;
use super::event::Event;
use crate::webhook;

pub(super) const PLUGIN: &str = "webhook";
/// The longest a call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a call is made before its events are given up.
const ATTEMPTS: u32 = 5;
/// Answers are read to be let go.
const MAX_ANSWER: usize = 1 << 20;

/// How the caller shows who it is.
enum Credentials {
    None,
    /// The value of the header.
    Header(String),
    /// A file with a bearer token, read for each call: tokens are renewed.
    TokenFile(PathBuf),
}

/// The server, and how it is reached.
pub(super) struct Hook {
    uri: Uri,
    host: String,
    port: u16,
    /// The name that the certificate is for; none: no TLS.
    tls: Option<(TlsConnector, String)>,
    credentials: Credentials,
    backoff: Duration,
    counters: Arc<Counters>,
    /// The server is shutting down: nothing is waited for.
    closing: CancellationToken,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What an entry of a kubeconfig's list says under its name.
fn named<'a>(config: &'a Value, list: &str, name: &str, what: &str) -> Option<&'a Value> {
    config.get(list)?.as_array()?.iter().find(|e| text(e, "name") == name)?.get(what)
}

/// What is in the configuration itself, or in a file that it names, from its own folder on.
fn data(value: &Value, key: &str, folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let inline = text(value, &format!("{key}-data"));
    if !inline.is_empty() {
        return STANDARD.decode(inline).map(Some).map_err(|e| format!("{key}-data: {e}"));
    }
    match text(value, key) {
        "" => Ok(None),
        path => std::fs::read(folder.join(path)).map(Some).map_err(|e| format!("unable to read {key} {path}: {e}")),
    }
}

impl Hook {
    /// Reads the kubeconfig.
    pub fn open(config: &WebhookConfig, path: &Path, counters: Arc<Counters>, closing: CancellationToken) -> Result<Hook, String> {
        let file = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let value: Value = serde_saphyr::from_str(&file).map_err(|e| e.to_string())?;
        let none = Value::Null;
        let context = named(&value, "contexts", text(&value, "current-context"), "context").unwrap_or(&none);
        let cluster = named(&value, "clusters", text(context, "cluster"), "cluster").ok_or("no configuration has been provided: its current context has no cluster")?;
        let user = named(&value, "users", text(context, "user"), "user").unwrap_or(&none);
        let server = text(cluster, "server");
        let uri: Uri = if server.contains("://") { server.parse() } else { format!("https://{server}").parse() }.map_err(|e| format!("the server {server:?} is no URL: {e}"))?;
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("the server {server:?} has no host"))?.to_string();
        let secure = uri.scheme_str() == Some("https");
        let words = |data: Option<Vec<u8>>| data.map(|d| String::from_utf8_lossy(&d).into_owned());
        let tls = if secure {
            let bundle = data(cluster, "certificate-authority", folder)?.unwrap_or_default();
            let insecure = cluster.get("insecure-skip-tls-verify").and_then(Value::as_bool).unwrap_or(false);
            let own = words(data(user, "client-certificate", folder)?).zip(words(data(user, "client-key", folder)?));
            let name = Some(text(cluster, "tls-server-name")).filter(|n| !n.is_empty()).unwrap_or(&host);
            Some((webhook::connector(&bundle, insecure, own.as_ref())?, name.to_string()))
        } else {
            None
        };
        let credentials = match (text(user, "token"), text(user, "tokenFile"), text(user, "username")) {
            ("", "", "") => Credentials::None,
            ("", "", name) => Credentials::Header(format!("Basic {}", STANDARD.encode(format!("{name}:{}", text(user, "password"))))),
            ("", file, _) => Credentials::TokenFile(folder.join(file)),
            (token, ..) => Credentials::Header(format!("Bearer {token}")),
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Hook { uri, host, port, tls, credentials, backoff: config.initial_backoff, counters, closing })
    }

    /// Sends events; again, and ever more slowly, while that fails. What is given up is counted and logged.
    pub async fn deliver(&self, events: &[Arc<Event>]) -> bool {
        let body = Bytes::from(Event::list(events));
        let mut pause = self.backoff;
        let mut attempt = 1;
        let why = loop {
            let why = match tokio::time::timeout(TIMEOUT, self.post(body.clone())).await {
                Ok(Ok(())) => return true,
                Ok(Err(why)) => why,
                Err(_) => "context deadline exceeded".to_string(),
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
        self.counters.failed(PLUGIN, &format!("Post {:?}: {why}", self.uri.to_string()), events);
        false
    }

    async fn post(&self, body: Bytes) -> Result<(), String> {
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{path}{separator}timeout={}s", TIMEOUT.as_secs()))
            .header(HOST, self.uri.authority().map_or(self.host.as_str(), |a| a.as_str()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .header(USER_AGENT, "kube-apiserver");
        let bearer = match &self.credentials {
            Credentials::None => None,
            Credentials::Header(value) => Some(value.clone()),
            Credentials::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path).await.map_err(|e| format!("failed to read token file {}: {e}", path.display()))?;
                Some(format!("Bearer {}", token.trim()))
            }
        };
        if let Some(value) = bearer {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::from(body)).map_err(|e| e.to_string())?;
        let target = (self.host.trim_matches(['[', ']']).to_string(), self.port);
        let (code, answer) = match &self.tls {
            Some((connector, name)) => {
                let tls = webhook::connect(connector, name, &[target]).await?;
                webhook::over(TokioIo::new(tls), request, MAX_ANSWER).await?
            }
            None => {
                let tcp = TcpStream::connect((target.0.as_str(), target.1)).await.map_err(|e| format!("dial tcp {}:{}: {e}", target.0, target.1))?;
                webhook::over(TokioIo::new(tcp), request, MAX_ANSWER).await?
            }
        };
        if (200..300).contains(&code) {
            return Ok(());
        }
        let status: Value = serde_json::from_slice(&answer).unwrap_or_default();
        match text(&status, "message") {
            "" => Err(format!("the server responded with the status code {code} but did not return more information")),
            said => Err(said.to_string()),
        }
    }
}
