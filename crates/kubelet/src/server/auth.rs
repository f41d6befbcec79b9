//! Who asks, and whether they may: client certificates of our CA and tokens, and the API server's word.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use http::{Method, Request};
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use pki::Roots;

/// Somebody who has been authenticated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

type Decision = Result<(), String>;
/// Who, which verb, and on which subresource of the node.
type Question = (User, &'static str, &'static str);

/// Authenticates and authorizes.
pub struct Auth {
    client: Client,
    node: String,
    roots: Option<Roots>,
    decisions: Mutex<HashMap<Question, (Instant, Decision)>>,
    tokens: Mutex<HashMap<String, (Instant, Option<User>)>>,
}

/// How long the API server's word counts, as upstream.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
const TOKEN: Duration = Duration::from_secs(120);
const REMEMBERED: usize = 1000;

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
        Auth { client, node, roots, decisions: Mutex::default(), tokens: Mutex::default() }
    }

    /// `None`: nobody we know.
    pub async fn authenticate<B>(&self, request: &Request<B>, chain: &[Vec<u8>]) -> Option<User> {
        if let (Some(roots), false) = (&self.roots, chain.is_empty())
            && let Ok(peer) = roots.verify_client(chain, Timestamp::now())
        {
            let mut groups = peer.orgs;
            groups.push("system:authenticated".into());
            return Some(User { name: peer.cn, groups, ..User::default() });
        }
        let header = request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?;
        let token = header.strip_prefix("Bearer ")?.trim().to_string();
        if let Some((at, user)) = self.tokens.lock().get(&token)
            && at.elapsed() < TOKEN
        {
            return user.clone();
        }
        let review = TokenReview { spec: TokenReviewSpec { token: token.clone(), audiences: None }, ..TokenReview::default() };
        let answer = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await.ok()?;
        let user = answer.status.filter(|s| s.authenticated == Some(true)).and_then(|s| s.user).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
            extra: u.extra.unwrap_or_default(),
        });
        let mut tokens = self.tokens.lock();
        if tokens.len() >= REMEMBERED {
            tokens.clear();
        }
        tokens.insert(token, (Instant::now(), user.clone()));
        user
    }

    /// An error is the text of the refusal.
    pub async fn authorize(&self, user: &User, verb: &'static str, path: &str) -> Decision {
        let mut refusal = Err(String::new());
        for subresource in subresources(path) {
            let key = (user.clone(), verb, *subresource);
            let known = self.decisions.lock().get(&key).cloned();
            if let Some((at, decision)) = known
                && at.elapsed() < if decision.is_ok() { ALLOWED } else { DENIED }
            {
                if decision.is_ok() {
                    return decision;
                }
                refusal = decision;
                continue;
            }
            let decision = self.ask(user, verb, subresource).await?;
            let mut decisions = self.decisions.lock();
            if decisions.len() >= REMEMBERED {
                decisions.clear();
            }
            decisions.insert(key, (Instant::now(), decision.clone()));
            if decision.is_ok() {
                return decision;
            }
            refusal = decision;
        }
        refusal
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<Decision, String> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| format!("Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource}): {e}", user.name))?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        Ok(if allowed { Ok(()) } else { Err(format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n", user.name)) })
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
