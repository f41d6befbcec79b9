//! Where a connecting subresource (log, exec, attach, portforward, proxy) leads. The registry answers; `proxy` streams.
use async_trait::async_trait;

use crate::ctx::Ctx;
use crate::types::Status;

/// How to speak TLS with the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    None,
    /// The backend is a kubelet: verify it against the cluster CA, show our kubelet client certificate.
    Kubelet,
    /// HTTPS to a pod or service: any certificate goes and none is shown, as upstream's proxy does.
    Unverified,
}

/// A backend address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub tls: Tls,
    /// Address or name, without port or brackets.
    pub host: String,
    pub port: u16,
    /// Path and query to ask for, beginning with `/`.
    pub path_and_query: String,
    /// True for `proxy` subresources: locations in redirects and HTML links get the proxy's prefix, as upstream's transport does.
    pub rewrite: bool,
    /// Other addresses to try, in order, when connecting fails (a service's other endpoints).
    pub alternatives: Vec<(String, u16)>,
}

/// What the client asked for.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    pub method: http::Method,
    /// The rest of the path after `/proxy`, beginning with `/`, or empty; always empty for log, exec, attach, portforward.
    pub path: String,
    /// The raw query.
    pub query: String,
}

impl ConnectRequest {
    /// The decoded query parameters in order.
    pub fn params(&self) -> Vec<(String, String)> {
        crate::request::parse_query(&self.query)
    }

    /// The first value of a parameter.
    pub fn param(&self, name: &str) -> Option<String> {
        self.params().into_iter().find(|(k, _)| k == name).map(|(_, v)| v)
    }
}

/// Finds the backend of a connecting subresource, after checking that it can be used (container exists, pod has a node).
/// For `services/NAME/proxy` and the like `ctx.name` is what stands in the path (`https:web:http`).
#[async_trait]
pub trait Locator: Send + Sync {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status>;
}
