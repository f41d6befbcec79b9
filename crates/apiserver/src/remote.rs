//! Servers outside the cluster that the API server asks: those that a kubeconfig names (webhooks of authentication,
//! authorization and auditing), and documents at a URL (issuers of tokens). One connection a call.
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::webhook::{connect, connector, drive};

/// Answers are no longer than this.
const MAX_ANSWER: usize = 4 << 20;
/// How often a document may be said to be elsewhere.
const REDIRECTS: usize = 10;

/// How the caller shows who it is.
enum Credentials {
    None,
    /// The value of the header.
    Header(String),
    /// A file with a bearer token, read for each call: tokens are renewed.
    TokenFile(PathBuf),
}

/// A server that a kubeconfig names.
pub struct Remote {
    uri: Uri,
    host: String,
    port: u16,
    /// The name that the certificate is for; none: no TLS.
    tls: Option<(TlsConnector, String)>,
    credentials: Credentials,
}

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub why: String,
    /// The answer's code, if there was one.
    pub code: Option<u16>,
    /// Whether time ran out.
    pub timeout: bool,
    /// Whether trying again may help, in upstream's judgement.
    pub transient: bool,
}

impl Failure {
    fn new(why: String) -> Failure {
        let transient = why.contains("connection reset") || why.contains("Connection reset");
        Failure { why, code: None, timeout: false, transient }
    }
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

impl Remote {
    /// Reads a kubeconfig, and the files that it names. What gets credentials by running a program is refused.
    pub fn open(path: &Path) -> Result<Remote, String> {
        let file = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let value: Value = serde_saphyr::from_str(&file).map_err(|e| e.to_string())?;
        let none = Value::Null;
        let context = named(&value, "contexts", text(&value, "current-context"), "context").unwrap_or(&none);
        let cluster = named(&value, "clusters", text(context, "cluster"), "cluster").ok_or("no configuration has been provided: its current context has no cluster")?;
        let user = named(&value, "users", text(context, "user"), "user").unwrap_or(&none);
        if user.get("exec").is_some_and(|e| !e.is_null()) {
            return Err("credentials by a program (exec) are not supported: give a token, a tokenFile or a client certificate".into());
        }
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
            let own = own.map(|(cert_pem, key_pem)| pki::Renewable::new(&pki::CertKey { cert_pem, key_pem })).transpose().map_err(|e| e.to_string())?;
            Some((connector(&bundle, insecure, own)?, name.to_string()))
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
        Ok(Remote { uri, host, port, tls, credentials })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        self.uri.to_string()
    }

    /// Posts JSON, and answers the body that comes back with a code that is no error's.
    pub async fn post(&self, body: Bytes, timeout: Duration) -> Result<Bytes, Failure> {
        match tokio::time::timeout(timeout, self.exchange(body, timeout)).await {
            Err(_) => Err(Failure { why: format!("Post {:?}: context deadline exceeded", self.url()), code: None, timeout: true, transient: false }),
            Ok(Err(why)) => Err(Failure::new(format!("Post {:?}: {why}", self.url()))),
            Ok(Ok((code, _, answer))) if (200..300).contains(&code) => Ok(answer),
            Ok(Ok((code, headers, answer))) => {
                let status: Value = serde_json::from_slice(&answer).unwrap_or_default();
                let why = match text(&status, "message") {
                    "" => format!("the server responded with the status code {code} but did not return more information"),
                    said => said.to_string(),
                };
                let later = headers.contains_key(RETRY_AFTER) && (code == 429 || code >= 500);
                Err(Failure { why, code: Some(code), timeout: code == 504, transient: later || matches!(code, 429 | 500 | 504) })
            }
        }
    }

    /// Posts until there is an answer, or trying again does not help; `attempted` is told of each call.
    pub async fn post_patiently(&self, body: Bytes, timeout: Duration, mut attempted: impl FnMut(&Result<Bytes, Failure>, Duration)) -> Result<Bytes, Failure> {
        const ATTEMPTS: u32 = 5;
        let mut pause = Duration::from_millis(500);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let started = tokio::time::Instant::now();
            let answer = self.post(body.clone(), timeout).await;
            attempted(&answer, started.elapsed());
            match answer {
                Err(failure) if failure.transient && attempt < ATTEMPTS => {
                    tracing::debug!(why = failure.why, attempt, "a webhook gave no answer; trying again");
                    tokio::time::sleep(pause.mul_f64(1.0 + rand::random::<f64>() * 0.2)).await;
                    pause = pause.mul_f64(1.5);
                }
                answer => return answer,
            }
        }
    }

    async fn exchange(&self, body: Bytes, timeout: Duration) -> Result<(u16, HeaderMap, Bytes), String> {
        let path = self.uri.path_and_query().map_or("/", |p| p.as_str());
        let separator = if path.contains('?') { '&' } else { '?' };
        let nanos = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{path}{separator}timeout={}", api::gotime::format_duration(nanos)))
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
        let tls = self.tls.as_ref().map(|(connector, name)| (connector, name.as_str()));
        exchange(tls, (&self.host, self.port), request).await
    }
}

async fn exchange(tls: Option<(&TlsConnector, &str)>, (host, port): (&str, u16), request: Request<Full<Bytes>>) -> Result<(u16, HeaderMap, Bytes), String> {
    let target = (host.trim_matches(['[', ']']).to_string(), port);
    match tls {
        Some((connector, name)) => over(connect(connector, name, &[target]).await?, request).await,
        None => {
            let tcp = TcpStream::connect((target.0.as_str(), target.1)).await.map_err(|e| format!("dial tcp {}:{}: {e}", target.0, target.1))?;
            over(tcp, request).await
        }
    }
}

async fn over<I>(io: I, request: Request<Full<Bytes>>) -> Result<(u16, HeaderMap, Bytes), String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let read = async |response: http::Response<hyper::body::Incoming>| {
        let (parts, body) = response.into_parts();
        let bytes = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((parts.status.as_u16(), parts.headers, bytes))
    };
    drive(TokioIo::new(io), request, read).await
}

/// Whose certificates are trusted when documents are fetched.
pub struct Trust(Result<TlsConnector, String>);

impl Trust {
    /// The CAs of a PEM bundle; without one, those of the machine. One that cannot be used makes every call fail.
    pub fn new(bundle: &str) -> Trust {
        Trust(connector(bundle.as_bytes(), false, None))
    }

    /// Fetches what is at an `https` URL, also when it has moved: the code, and the body. A bearer token stays with the
    /// host that it is for.
    pub async fn get(&self, url: &str, bearer: Option<&str>, timeout: Duration) -> Result<(u16, Bytes), String> {
        let fetched = tokio::time::timeout(timeout, self.follow(url, bearer)).await;
        fetched.unwrap_or_else(|_| Err("context deadline exceeded".into())).map_err(|why| format!("Get {url:?}: {why}"))
    }

    async fn follow(&self, url: &str, bearer: Option<&str>) -> Result<(u16, Bytes), String> {
        let connector = self.0.as_ref().map_err(Clone::clone)?;
        let mut uri: Uri = url.parse().map_err(|e| format!("{url:?} is no URL: {e}"))?;
        let first = uri.authority().cloned();
        for _ in 0..=REDIRECTS {
            if uri.scheme_str() != Some("https") {
                return Err(format!("{uri} is not reached by https"));
            }
            let host = uri.host().filter(|h| !h.is_empty()).ok_or("no host in request URL")?;
            let mut request = Request::builder()
                .uri(uri.path_and_query().map_or("/", |p| p.as_str()))
                .header(HOST, uri.authority().map_or(host, |a| a.as_str()))
                .header(USER_AGENT, "kube-apiserver");
            if let Some(token) = bearer.filter(|_| uri.authority() == first.as_ref()) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Full::default()).map_err(|e| e.to_string())?;
            let (code, headers, body) = exchange(Some((connector, host)), (host, uri.port_u16().unwrap_or(443)), request).await?;
            let elsewhere = headers.get(LOCATION).and_then(|l| l.to_str().ok()).filter(|_| matches!(code, 301 | 302 | 303 | 307 | 308));
            let Some(elsewhere) = elsewhere else { return Ok((code, body)) };
            let base = format!("https://{}", uri.authority().map_or(host, |a| a.as_str()));
            let next = match elsewhere {
                absolute if absolute.contains("://") => absolute.to_string(),
                path if path.starts_with('/') => format!("{base}{path}"),
                relative => {
                    let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
                    format!("{base}{folder}/{relative}")
                }
            };
            uri = next.parse().map_err(|e| format!("it is said to be at {next:?}, which is no URL: {e}"))?;
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    }
}
