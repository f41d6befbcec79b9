//! Who asks, and whether they may: client certificates of our CA and tokens, and the API server's word.

use std::time::Duration;

use client::{Delegated, Lifetimes, Target, User};
use http::{Method, Request};
use kube::Client;
use pki::Roots;

/// Authenticates and authorizes.
pub struct Auth {
    node: String,
    roots: Option<Roots>,
    delegated: Delegated,
}

/// How long the API server's word counts, as upstream.
const LIFETIMES: Lifetimes =
    Lifetimes { token: Duration::from_secs(120), allowed: Duration::from_secs(300), denied: Duration::from_secs(30) };

/// The verb of a method, in the API's words.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of the node that allow a path: any one does (KEP 2862).
pub fn subresources(path: &str) -> &'static [&'static str] {
    let below = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
    if below("/stats") {
        &["stats"]
    } else if below("/metrics") {
        &["metrics"]
    } else if below("/logs") {
        &["log"]
    } else if below("/healthz") {
        &["healthz", "proxy"]
    } else if below("/pods") || below("/runningpods") {
        &["pods", "proxy"]
    } else {
        &["proxy"]
    }
}

impl Auth {
    pub fn new(client: Client, node: String, client_ca_pem: &str) -> Auth {
        let roots = Roots::from_pem(client_ca_pem)
            .inspect_err(|e| tracing::warn!("no client certificate will be accepted: {e}"))
            .ok();
        Auth { node, roots, delegated: Delegated::new(Some(client.clone()), Some(client), LIFETIMES) }
    }

    /// `None`: nobody we know.
    pub async fn authenticate<B>(&self, request: &Request<B>, chain: &[Vec<u8>]) -> Option<User> {
        if let Some(roots) = &self.roots
            && let Some(user) = User::of_certificate(roots, chain)
        {
            return Some(user);
        }
        self.delegated.bearer(request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?).await
    }

    /// An error is the text of the refusal.
    pub async fn authorize(&self, user: &User, verb: &'static str, path: &str) -> Result<(), String> {
        let about = |subresource: &str| format!("(user={}, verb={verb}, resource=nodes, {subresource})", user.name);
        let wanted = subresources(path);
        for subresource in wanted {
            let target = Target::Node { name: self.node.clone(), subresource };
            match self.delegated.allows(user, verb, target).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(format!("Authorization error {}: {error}", about(&format!("subresource={subresource}")))),
            }
        }
        Err(format!("Forbidden {}\n", about(&format!("subresource(s)=[{}]", wanted.join(" ")))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources() {
        for (path, expect) in [("/exec/n/p/c", "proxy"), ("/stats/summary", "stats"), ("/metrics", "metrics"), ("/statsx", "proxy"), ("/pods", "pods")] {
            assert_eq!(subresources(path)[0], expect, "{path}");
        }
        assert_eq!((verb(&Method::POST), verb(&Method::HEAD)), ("create", "get"));
    }
}
