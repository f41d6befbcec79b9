//! Asks kubelets for their `/metrics/resource`: HTTPS with a client certificate, one connection a
//! node, kept while it is used.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::{Credentials, server_name, tls_config};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use reconcile::Tasks;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest page that is read: a few hundred bytes a container, and room.
const LARGEST: usize = 32 << 20;
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses of a node, the one to try first.
const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];
const PORT: u16 = 10250;

/// Why a kubelet could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's status has no address.
    #[error("the node has no address")]
    Address,
    /// The certificates cannot be used, or the address is none.
    #[error(transparent)]
    Tls(#[from] client::TlsError),
    /// No connection.
    #[error("connecting to {0}: {1}")]
    Connect(String, std::io::Error),
    /// The connection broke, or what came over it is no HTTP.
    #[error("talking to the kubelet")]
    Http(#[from] hyper::Error),
    /// The request could not be built.
    #[error("asking the kubelet")]
    Request(#[from] http::Error),
    /// The kubelet refused.
    #[error("the kubelet answered {0}: {1}")]
    Refused(StatusCode, String),
    /// The page is too large or ended early.
    #[error("reading the kubelet's answer: {0}")]
    Body(String),
}

/// How all kubelets are talked to. Clones share it.
#[derive(Clone)]
pub struct Kubelets {
    tls: TlsConnector,
    tasks: Tasks,
}

/// A connection to one kubelet, made when it is first needed.
#[derive(Default)]
pub(crate) struct Connection {
    to: String,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Kubelets {
    /// Kubelets whose certificates the PEM bundle `ca` vouches for, asked with these credentials.
    /// Connections are tasks of `tasks`.
    pub fn new(ca: &str, credentials: &Credentials, tasks: &Tasks) -> Result<Kubelets, Error> {
        let mut config = tls_config(ca, credentials)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Kubelets { tls: TlsConnector::from(Arc::new(config)), tasks: tasks.clone() })
    }

    async fn connect(&self, host: &str, to: &str) -> Result<SendRequest<Empty<Bytes>>, Error> {
        let name = server_name(host)?;
        let connect = async {
            let tcp = TcpStream::connect(to).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(name, tcp).await
        };
        let stream = tokio::time::timeout(CONNECT, connect)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|e| Error::Connect(to.to_string(), e))?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("kubelet connection of metrics", async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the connection to a kubelet ended");
            }
        });
        Ok(sender)
    }

    /// The page of a node.
    pub(crate) async fn page(&self, node: &Node, connection: &mut Connection) -> Result<String, Error> {
        let (host, port) = address(node).ok_or(Error::Address)?;
        let to = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let request = || Request::get("/metrics/resource").header(header::HOST, &to).body(Empty::new());
        if connection.to != to {
            *connection = Connection { to: to.clone(), sender: None };
        }
        // A connection that was kept may have been closed meanwhile: then once more with a new one.
        let answer = match connection.sender.take() {
            Some(mut sender) => match sender.send_request(request()?).await {
                Ok(answer) => Some((sender, answer)),
                Err(_) => None,
            },
            None => None,
        };
        let (sender, answer) = match answer {
            Some(kept) => kept,
            None => {
                let mut sender = self.connect(&host, &to).await?;
                let answer = sender.send_request(request()?).await?;
                (sender, answer)
            }
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| Error::Body(e.to_string()))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if status != StatusCode::OK {
            return Err(Error::Refused(status, text.trim().to_string()));
        }
        connection.sender = Some(sender);
        Ok(text)
    }
}

/// Where a node's kubelet is reached.
fn address(node: &Node) -> Option<(String, u16)> {
    let status = node.status.as_ref()?;
    let addresses = status.addresses.as_deref().unwrap_or_default();
    let found = ADDRESS_TYPES.iter().find_map(|kind| addresses.iter().find(|a| a.type_ == *kind))?;
    let port = status.daemon_endpoints.as_ref().and_then(|e| e.kubelet_endpoint.as_ref()).map(|e| e.port);
    let port = port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0).unwrap_or(PORT);
    Some((found.address.clone(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_internal_address_and_the_announced_port_lead_to_a_kubelet() {
        let node = |status| -> Node { serde_json::from_value(json!({"metadata": {"name": "n"}, "status": status})).expect("a node") };
        let both = json!({"addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 12250}}});
        assert_eq!(address(&node(both)), Some(("10.0.0.1".into(), 12250)));
        assert_eq!(address(&node(json!({"addresses": [{"type": "Hostname", "address": "h"}]}))), Some(("h".into(), 10250)));
        assert_eq!(address(&node(json!({}))), None);
    }
}
