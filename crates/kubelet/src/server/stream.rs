//! Exec, attach and port-forward: the runtime prepares a stream and names its place; the client's
//! upgrade request is passed on there, bytes unseen.

use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use reconcile::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::route::Streams;
use super::{Body, Server};

type Answer = Result<Response<Body>, (StatusCode, String)>;

fn failed(error: impl std::fmt::Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Where a stream is to be had.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Unix { socket: String, path: String },
    Tcp { authority: String, path: String },
}

/// Reads the runtime's URL: `unix:///path/to/x.sock/exec/token` or `http://host:port/exec/token`.
fn place(url: &str) -> Option<Place> {
    if let Some(rest) = url.strip_prefix("unix://") {
        let at = rest.find(".sock/")? + ".sock".len();
        return Some(Place::Unix { socket: rest[..at].to_string(), path: rest[at..].to_string() });
    }
    let uri: Uri = url.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    Some(Place::Tcp { authority: uri.authority()?.to_string(), path })
}

impl Server {
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn exec(
        &self,
        request: Request<Incoming>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        container: &str,
        command: Vec<String>,
        streams: Streams,
        tasks: &Tasks,
    ) -> Answer {
        let pod = self.pod(namespace, name, uid)?;
        let id = self.running(&pod, container).await?;
        if !(streams.stdin || streams.stdout || streams.stderr) {
            return Err((StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr".into()));
        }
        let prepare = cri::v1::ExecRequest {
            container_id: id,
            cmd: command,
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            // A terminal has one output.
            stderr: streams.stderr && !streams.tty,
        };
        let url = self.shared.runtime.exec(prepare).await.map_err(failed)?.url;
        pass(request, &url, tasks).await
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) async fn attach(
        &self,
        request: Request<Incoming>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        container: &str,
        streams: Streams,
        tasks: &Tasks,
    ) -> Answer {
        let pod = self.pod(namespace, name, uid)?;
        let id = self.running(&pod, container).await?;
        // The container decides about the terminal, as it was created.
        let tty = crate::pod::member(&pod, container).is_some_and(|m| m.spec.tty == Some(true))
            || crate::pod::ephemeral(&pod).iter().any(|e| e.name == container && e.tty == Some(true));
        let prepare = cri::v1::AttachRequest {
            container_id: id,
            stdin: streams.stdin,
            tty,
            stdout: streams.stdout,
            stderr: streams.stderr && !tty,
        };
        let url = self.shared.runtime.attach(prepare).await.map_err(failed)?.url;
        pass(request, &url, tasks).await
    }

    pub(super) async fn port_forward(
        &self,
        request: Request<Incoming>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        port: Vec<i32>,
        tasks: &Tasks,
    ) -> Answer {
        let pod = self.pod(namespace, name, uid)?;
        let selector = [(crate::pod::label::POD_UID.to_string(), crate::pod::uid(&pod))].into();
        let state = Some(cri::v1::PodSandboxStateValue { state: cri::v1::PodSandboxState::Ready as i32 });
        let filter = cri::v1::PodSandboxFilter { label_selector: selector, state, ..Default::default() };
        let listed = self.shared.runtime.list_pod_sandbox(cri::v1::ListPodSandboxRequest { filter: Some(filter) }).await.map_err(failed)?;
        let sandbox = listed.items.into_iter().max_by_key(|s| s.created_at).ok_or_else(|| failed(format!("pod {name} in namespace {namespace} is not running")))?;
        let prepare = cri::v1::PortForwardRequest { pod_sandbox_id: sandbox.id, port };
        let url = self.shared.runtime.port_forward(prepare).await.map_err(failed)?.url;
        pass(request, &url, tasks).await
    }
}

async fn pass(request: Request<Incoming>, url: &str, tasks: &Tasks) -> Answer {
    match place(url).ok_or_else(|| failed(format!("the runtime's URL is not understood: {url}")))? {
        Place::Unix { socket, path } => {
            let stream = UnixStream::connect(&socket).await.map_err(|e| failed(format!("{socket}: {e}")))?;
            through(request, &path, stream, tasks).await
        }
        Place::Tcp { authority, path } => {
            let stream = TcpStream::connect(&authority).await.map_err(|e| failed(format!("{authority}: {e}")))?;
            through(request, &path, stream, tasks).await
        }
    }
}

async fn through(mut request: Request<Incoming>, path: &str, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, tasks: &Tasks) -> Answer {
    request.headers_mut().remove(http::header::AUTHORIZATION);
    let uri: Uri = path.parse().map_err(failed)?;
    let (response, relay) = streaming::proxy::upgrade(request, uri, stream).await.map_err(failed)?;
    if let Some(relay) = relay {
        tasks.spawn("stream", relay);
    }
    Ok(response.map(BodyExt::boxed_unsync))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(place("unix:///run/k/stream.sock/exec/abc"), Some(Place::Unix { socket: "/run/k/stream.sock".into(), path: "/exec/abc".into() }));
        assert_eq!(place("http://127.0.0.1:4000/exec/abc"), Some(Place::Tcp { authority: "127.0.0.1:4000".into(), path: "/exec/abc".into() }));
        assert_eq!(place("unix:///no-socket"), None);
    }
}
