//! A small HTTP/1.1 client over TLS: it is to cost as little as it can, for it shares the machine with what it measures.
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How the server of the ceiling is told from others.
pub const CEILING: &str = "load-ceiling";

/// An API server and who we are there.
#[derive(Clone)]
pub struct Target {
    address: String,
    tls: Arc<ClientConfig>,
    token: Option<String>,
}

impl Target {
    /// By the first cluster and the first user of a kubeconfig.
    pub fn new(kubeconfig: &Path) -> Result<Target> {
        let text = std::fs::read_to_string(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
        let config: Value = serde_saphyr::from_str(&text).context("the kubeconfig")?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let address = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://")).context("the kubeconfig has no https server")?;
        let data = |name: &str| -> Result<Option<Vec<u8>>> {
            if let Some(text) = user[format!("{name}-data").as_str()].as_str() {
                return Ok(Some(STANDARD.decode(text)?));
            }
            user[name].as_str().map(|path| std::fs::read(path).with_context(|| path.to_string())).transpose()
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone));
        let mut tls = match (data("client-certificate")?, data("client-key")?) {
            (Some(cert), Some(key)) => {
                let chain = CertificateDer::pem_slice_iter(&cert).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
            }
            _ => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Target { address: address.trim_end_matches('/').into(), tls: Arc::new(tls), token: user["token"].as_str().map(str::to_string) })
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(&self.address).await.with_context(|| self.address.clone())?;
        tcp.set_nodelay(true)?;
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.to_string())?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, tcp).await?;
        Ok(Connection { stream, buffer: vec![0; 256 << 10], filled: 0, at: 0 })
    }

    /// So many connections.
    pub async fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(self.connect().await?);
        }
        Ok(all)
    }

    /// Whether this is the server of the ceiling.
    pub async fn is_ceiling(&self) -> Result<bool> {
        let mut connection = self.connect().await?;
        let (_, body) = connection.fetch(&self.request("GET", "/version", &[], b"")).await?;
        Ok(String::from_utf8_lossy(&body).contains(CEILING))
    }

    /// A request's bytes.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: load/1\r\n", self.address);
        if let Some(token) = &self.token {
            text += &format!("authorization: Bearer {token}\r\n");
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n", body.len());
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// Makes one request on a connection of its own; anything but 2xx and 409 is an error.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = self.request(method, path, &[("content-type", "application/json"), ("accept", "application/json")], body.as_bytes());
        let (code, answer) = self.connect().await?.fetch(&request).await?;
        ensure!(code / 100 == 2 || code == 409, "{method} {path}: {code}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}

/// What an answer's body is like.
enum Length {
    Known(usize),
    Chunked,
}

/// A connection with what has been read and not been used.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    filled: usize,
    at: usize,
}

impl Connection {
    /// Sends a request and reads its answer: the status, and how many bytes the body had.
    pub async fn send(&mut self, request: &[u8]) -> Result<(u16, usize)> {
        self.exchange(request, &mut |_| ()).await
    }

    /// The same with the body.
    pub async fn fetch(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let (code, _) = self.exchange(request, &mut |piece| body.extend_from_slice(piece)).await?;
        Ok((code, body))
    }

    async fn exchange(&mut self, request: &[u8], sink: &mut (dyn FnMut(&[u8]) + Send)) -> Result<(u16, usize)> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let (code, length) = self.head().await?;
        let mut size = 0;
        match length {
            Length::Known(all) => {
                while size < all {
                    let piece = self.piece(all - size).await?;
                    sink(&self.buffer[piece.clone()]);
                    size += piece.len();
                }
            }
            Length::Chunked => {
                while let Some(mut left) = self.chunk().await? {
                    while left > 0 {
                        let piece = self.piece(left).await?;
                        sink(&self.buffer[piece.clone()]);
                        size += piece.len();
                        left -= piece.len();
                    }
                    self.line().await?;
                }
            }
        }
        Ok((code, size))
    }

    /// Begins to watch; the events come by [`Connection::events`].
    pub async fn watch(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        match self.head().await? {
            (200, Length::Chunked) => Ok(()),
            (code, _) => bail!("the watch was answered with {code}"),
        }
    }

    /// Waits for events of a watch, one on each line, and tells how many there are. `bytes` grows by their size.
    pub async fn events(&mut self, left: &mut usize, bytes: &mut usize) -> Result<usize> {
        if *left == 0 {
            *left = self.chunk().await?.context("the watch ended")?;
        }
        let piece = self.piece(*left).await?;
        *left -= piece.len();
        *bytes += piece.len();
        let data = &self.buffer[piece];
        ensure!(!data.starts_with(b"{\"type\":\"ERROR\""), "the watch failed: {}", String::from_utf8_lossy(data));
        // in pieces whose counts fit into a byte, which is many times as fast
        let count = data.chunks(255).map(|c| c.iter().map(|b| u8::from(*b == b'\n')).sum::<u8>() as usize).sum();
        if *left == 0 {
            self.line().await?;
        }
        Ok(count)
    }

    async fn more(&mut self) -> Result<()> {
        if self.at == self.filled {
            (self.at, self.filled) = (0, 0);
        }
        if self.filled == self.buffer.len() {
            ensure!(self.at > 0, "a line is too long");
            self.buffer.copy_within(self.at.., 0);
            (self.filled, self.at) = (self.filled - self.at, 0);
        }
        let count = self.stream.read(&mut self.buffer[self.filled..]).await?;
        ensure!(count > 0, "the server hung up");
        self.filled += count;
        Ok(())
    }

    /// The place of up to `most` bytes, at least one.
    async fn piece(&mut self, most: usize) -> Result<std::ops::Range<usize>> {
        if self.at == self.filled {
            self.more().await?;
        }
        let end = self.filled.min(self.at + most);
        let piece = self.at..end;
        self.at = end;
        Ok(piece)
    }

    /// The place of a line, without its end.
    async fn line(&mut self) -> Result<std::ops::Range<usize>> {
        let mut looked = 0;
        loop {
            let fresh = &self.buffer[self.at + looked..self.filled];
            if let Some(found) = fresh.windows(2).position(|w| w == b"\r\n") {
                let line = self.at..self.at + looked + found;
                self.at = line.end + 2;
                return Ok(line);
            }
            looked = (self.filled - self.at).saturating_sub(1);
            self.more().await?;
        }
    }

    /// The size of the next chunk; nothing at the end.
    async fn chunk(&mut self) -> Result<Option<usize>> {
        let line = self.line().await?;
        let text = std::str::from_utf8(&self.buffer[line])?;
        let size = usize::from_str_radix(text.trim(), 16).with_context(|| format!("{text:?} is no chunk's size"))?;
        if size == 0 {
            self.line().await?;
            return Ok(None);
        }
        Ok(Some(size))
    }

    async fn head(&mut self) -> Result<(u16, Length)> {
        let line = self.line().await?;
        let code = std::str::from_utf8(&self.buffer[line])?.split(' ').nth(1).context("no status")?.parse()?;
        let mut length = Length::Known(0);
        loop {
            let line = self.line().await?;
            let line = &self.buffer[line];
            if line.is_empty() {
                return Ok((code, length));
            }
            if line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:") {
                length = Length::Known(std::str::from_utf8(&line[15..])?.trim().parse()?);
            } else if line.len() > 18 && line[..18].eq_ignore_ascii_case(b"transfer-encoding:") {
                length = Length::Chunked;
            }
        }
    }
}

/// Latencies of many requests.
#[derive(Default)]
pub struct Times(pub Vec<Duration>);

impl Times {
    /// That of the share `of` (0 to 1) of the requests, in milliseconds.
    pub fn quantile(&mut self, of: f64) -> f64 {
        self.0.sort_unstable();
        let at = ((self.0.len() as f64 * of) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    }
}

/// The machine measures itself: nobody is between.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: &ServerName<'_>, _: &[u8], _: UnixTime) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(&self, _: &[u8], _: &CertificateDer<'_>, _: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
