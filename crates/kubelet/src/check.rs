//! One attempt at a probe's or a hook's action: exec, httpGet, tcpSocket, grpc.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::v1::ExecSyncRequest;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, HTTPHeader, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

/// How an attempt went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// The container says no; the text is for the event.
    Failure(String),
    /// The attempt itself could not be made.
    Error(String),
}

/// Most bytes of an answer that are looked at, as upstream.
const MAX_BODY: usize = 10 * 1024;

/// Runs a command in a container.
pub async fn exec(runtime: &dyn cri::RuntimeService, id: &str, command: &[String], timeout: Duration) -> Outcome {
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(0);
    let request = ExecSyncRequest { container_id: id.to_string(), cmd: command.to_vec(), timeout: seconds };
    match runtime.exec_sync(request).await {
        Ok(answer) if answer.exit_code == 0 => Outcome::Success,
        Ok(answer) => {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(MAX_BODY);
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(error) if error.code == cri::Code::DeadlineExceeded => {
            Outcome::Failure(format!("command timed out: {} timed out after {seconds}s", crate::pod::go_quote(&command.join(" "))))
        }
        Err(error) => Outcome::Error(error.to_string()),
    }
}

/// The number of a port that may be a name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)) {
            Some(port) => port.container_port,
            None => name.parse().map_err(|_| format!("couldn't find port: {name} in container {}", container.name))?,
        },
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Connects.
pub async fn tcp(action: &TCPSocketAction, container: &Container, ip: Option<IpAddr>, timeout: Duration) -> Outcome {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(error) => return Outcome::Error(error),
    };
    let host = action.host.clone().filter(|h| !h.is_empty()).or(ip.map(|i| i.to_string())).unwrap_or_default();
    match connect(&host, port, timeout).await {
        Ok(_) => Outcome::Success,
        Err(error) => Outcome::Failure(error),
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = authority(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let why = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
                std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_string(),
                std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_string(),
                _ => error.to_string(),
            };
            Err(format!("dial tcp {address}: {why}"))
        }
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Asks, and takes a status from 200 to 399 for success.
pub async fn http(action: &HTTPGetAction, container: &Container, ip: Option<IpAddr>, timeout: Duration) -> Outcome {
    let port = match port(&action.port, container) {
        Ok(port) => port,
        Err(error) => return Outcome::Error(error),
    };
    let host = action.host.clone().filter(|h| !h.is_empty()).or(ip.map(|i| i.to_string())).unwrap_or_default();
    let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let url = format!("{scheme}://{}{path}", authority(&host, port));
    let ask = async {
        let stream = connect(&host, port, timeout).await?;
        if scheme == "https" {
            let name = rustls::pki_types::ServerName::try_from(host.clone()).map_err(|e| e.to_string())?;
            let stream = tokio_rustls::TlsConnector::from(trusting()).connect(name, stream).await.map_err(|e| e.to_string())?;
            get(stream, &authority(&host, port), &path, action.http_headers.as_deref().unwrap_or_default()).await
        } else {
            get(stream, &authority(&host, port), &path, action.http_headers.as_deref().unwrap_or_default()).await
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(Ok(200..=399)) => Outcome::Success,
        Ok(Ok(code)) => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
        Ok(Err(error)) => Outcome::Failure(format!("Get \"{url}\": {error}")),
        Err(_) => Outcome::Failure(format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
    }
}

async fn get<S>(stream: S, authority: &str, path: &str, headers: &[HTTPHeader]) -> Result<u16, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let mut request = http::Request::get(path);
    let given = |name: &str| headers.iter().any(|h| h.name.eq_ignore_ascii_case(name));
    if !given("host") {
        request = request.header("Host", authority);
    }
    if !given("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    if !given("accept") {
        request = request.header("Accept", "*/*");
    }
    for header in headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.header("Connection", "close").body(Full::<Bytes>::default()).map_err(|e| e.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| if e.is_incomplete_message() { "EOF".to_string() } else { e.to_string() })?;
        let code = answer.status().as_u16();
        // The rest may be endless; what was promised within the limit is read, so that the server sees no reset.
        let _ = Limited::new(answer.into_body(), MAX_BODY).collect().await;
        Ok(code)
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// Probes do not verify certificates (upstream neither): they ask the pod's own address.
fn trusting() -> Arc<rustls::ClientConfig> {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    #[derive(Debug)]
    struct Any(Vec<rustls::SignatureScheme>);
    impl ServerCertVerifier for Any {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(&self, _: &[u8], _: &rustls::pki_types::CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(&self, _: &[u8], _: &rustls::pki_types::CertificateDer<'_>, _: &rustls::DigitallySignedStruct) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.clone()
        }
    }
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> = std::sync::LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let schemes = provider.signature_verification_algorithms.supported_schemes();
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("ring has the default versions");
        Arc::new(builder.dangerous().with_custom_certificate_verifier(Arc::new(Any(schemes))).with_no_client_auth())
    });
    CONFIG.clone()
}

/// Asks `grpc.health.v1.Health`.
pub async fn grpc(action: &GRPCAction, ip: Option<IpAddr>, timeout: Duration) -> Outcome {
    let service = action.service.clone().unwrap_or_default();
    let host = ip.map(|i| i.to_string()).unwrap_or_default();
    let Ok(port) = u16::try_from(action.port) else { return Outcome::Error(format!("invalid port number: {}", action.port)) };
    let ask = async {
        let stream = connect(&host, port, timeout).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // HealthCheckRequest: field 1 is the service's name; a message of a stream has 5 bytes before it.
        let mut message = Vec::new();
        if !service.is_empty() {
            message.extend([0x0a, u8::try_from(service.len()).map_err(|_| "service name too long")?]);
            message.extend(service.as_bytes());
        }
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
        body.extend(message);
        let request = http::Request::post(format!("http://{}/grpc.health.v1.Health/Check", authority(&host, port)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let headers = answer.headers().clone();
            let collected = answer.into_body().collect().await.map_err(|e| e.to_string())?;
            let trailers = collected.trailers().cloned().unwrap_or_default();
            Ok::<_, String>((headers, trailers, collected.to_bytes()))
        };
        tokio::pin!(connection);
        tokio::pin!(exchange);
        let mut open = true;
        loop {
            tokio::select! {
                result = &mut exchange => return result,
                _ = &mut connection, if open => open = false,
            }
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Err(_) => Outcome::Failure(format!("timeout: failed to connect service {} within {}", crate::pod::go_quote(&authority(&host, port)), crate::pod::go_duration(timeout))),
        Ok(Err(error)) => Outcome::Failure(format!("error: health rpc probe failed: {error}")),
        Ok(Ok((headers, trailers, body))) => {
            let find = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
            match find("grpc-status").as_str() {
                "" | "0" => {}
                code => return Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {}", find("grpc-message"))),
            }
            let serving = body.get(5..7) == Some(&[0x08, 0x01]);
            let name = match body.get(6) {
                Some(2) => "NOT_SERVING",
                Some(3) => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            if serving { Outcome::Success } else { Outcome::Failure(format!("service unhealthy (responded with \"{name}\")")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn server(answer: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    let n = stream.read(&mut buffer).await.unwrap_or(0);
                    assert!(buffer[..n].windows(10).any(|w| w == b"kube-probe") || n == 0);
                    let _ = stream.write_all(answer.as_bytes()).await;
                    if answer.is_empty() {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        port
    }

    async fn ask(port: u16) -> Outcome {
        let action = HTTPGetAction { path: Some("/h".into()), port: IntOrString::Int(i32::from(port)), ..Default::default() };
        http(&action, &Container::default(), Some("127.0.0.1".parse().unwrap()), Duration::from_millis(300)).await
    }

    #[tokio::test]
    async fn http_outcomes() {
        assert_eq!(ask(server("HTTP/1.1 204 No\r\n\r\n").await).await, Outcome::Success);
        let failed = ask(server("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").await).await;
        assert_eq!(failed, Outcome::Failure("HTTP probe failed with statuscode: 503".into()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(ask(port).await, Outcome::Failure(format!("Get \"http://127.0.0.1:{port}/h\": dial tcp 127.0.0.1:{port}: connect: connection refused")));
        let port = server("").await;
        assert_eq!(
            ask(port).await,
            Outcome::Failure(format!("Get \"http://127.0.0.1:{port}/h\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        );
    }

    #[test]
    fn ports_by_name() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "a", "ports": [{"name": "web", "containerPort": 80}]})).unwrap();
        assert_eq!(port(&IntOrString::String("web".into()), &container), Ok(80));
        assert!(port(&IntOrString::String("x".into()), &container).is_err());
        assert!(port(&IntOrString::Int(0), &container).is_err());
    }
}
