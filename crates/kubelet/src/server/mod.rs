//! The kubelet's HTTPS server: upstream's paths. Every request is authenticated (client certificate or
//! token) and authorized by the API server. One task accepts, one a connection serves.

mod auth;
mod cadvisor;
mod exposition;
mod own;
mod resource;
mod route;
mod stats;
mod stream;
mod tls;

pub use tls::acceptor as tls_acceptor;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use reconcile::Tasks;
use tokio::net::TcpListener;

use crate::manager::Pods;
use crate::pod::{self, label};
use crate::worker::Shared;
use crate::{Config, Error, logs};

use route::Route;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The server. Clones share everything.
#[derive(Clone)]
pub struct Server {
    config: Arc<Config>,
    pods: Arc<Pods>,
    shared: Arc<Shared>,
    auth: Arc<auth::Auth>,
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text.into())).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(serde_json::to_vec(value).unwrap_or_default())).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Which instance of a container.
struct Instance {
    id: String,
    log: std::path::PathBuf,
}

impl Server {
    pub fn new(config: Arc<Config>, client: Client, pods: Arc<Pods>, shared: Arc<Shared>) -> Server {
        let auth = Arc::new(auth::Auth::new(client, config.node_name.clone(), &config.client_ca_pem));
        Server { config, pods, shared, auth }
    }

    /// Binds the port and serves in `tasks`.
    pub async fn listen(self, tasks: &Tasks) -> Result<(), Error> {
        let tls = tls::acceptor(self.config.serving.clone()).map_err(Error::Certificate)?;
        let address = self.config.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        let connections = tasks.clone();
        tasks.spawn("kubelet server", async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors, most likely: others have to close first.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let (server, tls, inner) = (self.clone(), tls.clone(), connections.clone());
                connections.spawn("kubelet connection", async move {
                    let _ = stream.set_nodelay(true);
                    let Ok(Ok(stream)) = tokio::time::timeout(std::time::Duration::from_secs(10), tls.accept(stream)).await else { return };
                    let chain: Vec<Vec<u8>> =
                        stream.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.as_ref().to_vec()).collect();
                    let chain = Arc::new(chain);
                    let service = hyper::service::service_fn(move |request| {
                        let (server, chain, tasks) = (server.clone(), chain.clone(), inner.clone());
                        async move { Ok::<_, Infallible>(server.handle(request, &chain, &tasks).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
                    if let Err(error) = connection.await {
                        tracing::debug!("kubelet connection: {error}");
                    }
                });
            }
        });
        Ok(())
    }

    async fn handle(&self, request: Request<Incoming>, chain: &[Vec<u8>], tasks: &Tasks) -> Response<Body> {
        let user = match self.auth.authenticate(&request, chain).await {
            Some(user) => user,
            None => return text(StatusCode::UNAUTHORIZED, "Unauthorized"),
        };
        let path = request.uri().path().to_string();
        let verb = auth::verb(request.method());
        if let Err(why) = self.auth.authorize(&user, verb, &path).await {
            return text(StatusCode::FORBIDDEN, why);
        }
        let Some(route) = Route::parse(request.method(), request.uri()) else {
            return text(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        let result = match route {
            Route::Healthz => Ok(text(StatusCode::OK, "ok")),
            Route::Pods => Ok(self.list(&self.pods.list())),
            Route::RunningPods => {
                let running = |p: &Arc<Pod>| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
                Ok(self.list(&self.pods.list().into_iter().filter(running).collect::<Vec<_>>()))
            }
            Route::Summary => Ok(json(&stats::summary(&self.config, &self.shared, &self.pods).await)),
            Route::ResourceMetrics => Ok(text(StatusCode::OK, resource::metrics(&self.shared, &self.pods).await)),
            Route::Metrics => Ok(text(StatusCode::OK, own::metrics(&self.config, &self.pods, &self.shared).await)),
            Route::CadvisorMetrics => Ok(text(StatusCode::OK, cadvisor::metrics(&self.shared).await)),
            Route::ProbeMetrics => Ok(text(StatusCode::OK, own::probes(&self.shared.probe_counts))),
            Route::Logs { namespace, pod, container, options } => self.logs(&namespace, &pod, &container, options, tasks).await,
            Route::Exec { namespace, pod, uid, container, command, streams } => {
                self.exec(request, &namespace, &pod, uid.as_deref(), &container, command, streams, tasks).await
            }
            Route::Attach { namespace, pod, uid, container, streams } => {
                self.attach(request, &namespace, &pod, uid.as_deref(), &container, streams, tasks).await
            }
            Route::PortForward { namespace, pod, uid, ports } => self.port_forward(request, &namespace, &pod, uid.as_deref(), ports, tasks).await,
        };
        result.unwrap_or_else(|(status, message)| text(status, message))
    }

    fn list(&self, pods: &[Arc<Pod>]) -> Response<Body> {
        let items: Vec<&Pod> = pods.iter().map(|p| &**p).collect();
        json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, (StatusCode, String)> {
        let found = self.pods.find(namespace, name).filter(|p| uid.is_none_or(|u| pod::uid(p) == u));
        found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod {} not found", pod::go_quote(&format!("{name}_{namespace}")))))
    }

    async fn instances(&self, pod: &Pod, container: &str) -> Result<Vec<cri::v1::Container>, (StatusCode, String)> {
        let selector = [(label::POD_UID.to_string(), pod::uid(pod)), (label::CONTAINER_NAME.to_string(), container.to_string())].into();
        let filter = cri::v1::ContainerFilter { label_selector: selector, ..Default::default() };
        let answer = self.shared.runtime.list_containers(cri::v1::ListContainersRequest { filter: Some(filter) }).await;
        let mut all = answer.map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?.containers;
        all.sort_by_key(|c| std::cmp::Reverse((c.metadata.as_ref().map_or(0, |m| m.attempt), c.created_at)));
        Ok(all)
    }

    async fn logs(&self, namespace: &str, name: &str, container: &str, options: logs::Options, tasks: &Tasks) -> Result<Response<Body>, (StatusCode, String)> {
        let pod = self.pod(namespace, name, None)?;
        if pod::member(&pod, container).is_none() && pod::ephemeral(&pod).iter().all(|e| e.name != container) {
            return Err((StatusCode::NOT_FOUND, format!("container {} not found in pod {}", pod::go_quote(container), pod::go_quote(&format!("{name}_{namespace}")))));
        }
        let instances = self.instances(&pod, container).await?;
        let created = cri::v1::ContainerState::Created as i32;
        let mut usable = instances.iter().filter(|c| c.state != created);
        let chosen = if options.previous { usable.nth(1) } else { usable.next() };
        let Some(chosen) = chosen else {
            let (quoted, in_pod) = (pod::go_quote(container), pod::go_quote(name));
            let message = if options.previous {
                format!("previous terminated container {quoted} in pod {in_pod} not found")
            } else {
                let reason = self.shared.reporter.waiting_reason(&pod::uid(&pod), container).unwrap_or_else(|| "ContainerCreating".to_string());
                format!("container {quoted} in pod {in_pod} is waiting to start: {reason}")
            };
            return Err((StatusCode::BAD_REQUEST, message));
        };
        let attempt = chosen.metadata.as_ref().map_or(0, |m| m.attempt);
        let directory = pod::log_directory(&pod.namespace().unwrap_or_default(), &pod.name_any(), &pod::uid(&pod));
        let instance = Instance { id: chosen.id.clone(), log: self.shared.log_root.join(directory).join(container).join(format!("{attempt}.log")) };
        if let Err(error) = tokio::fs::metadata(&instance.log).await {
            return Err((StatusCode::INTERNAL_SERVER_ERROR, format!("failed to try resolving symlinks in path {}: {error}", pod::go_quote(&instance.log.display().to_string()))));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let runtime = self.shared.runtime.clone();
        tasks.spawn("log reader", async move {
            let alive = move || -> futures::future::BoxFuture<'static, bool> {
                let (runtime, id) = (runtime.clone(), instance.id.clone());
                Box::pin(async move { logs::is_alive(&*runtime, &id).await })
            };
            if let Err(error) = logs::read(instance.log, options, alive, sender).await {
                tracing::debug!("a log ends early: {error}");
            }
        });
        let stream = futures::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), receiver)));
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(stream.boxed())));
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    /// The running instance of a container.
    async fn running(&self, pod: &Pod, container: &str) -> Result<String, (StatusCode, String)> {
        let running = cri::v1::ContainerState::Running as i32;
        let found = self.instances(pod, container).await?.into_iter().find(|c| c.state == running);
        found.map(|c| c.id).ok_or_else(|| (StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({})", pod::go_quote(container))))
    }
}

fn method_is_streaming(method: &Method) -> bool {
    method == Method::GET || method == Method::POST
}
