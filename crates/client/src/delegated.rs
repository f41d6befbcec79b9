//! Authentication and authorization by an API server's word (TokenReview, SubjectAccessReview), for
//! servers of their own beside it: what it has said is remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use pki::Roots;

/// Answers of each kind that are remembered at most.
const REMEMBERED: usize = 1000;

/// Somebody who has been authenticated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid, or empty.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Who asks without any credentials.
    pub fn anonymous() -> User {
        User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..User::default() }
    }

    /// The owner of a client certificate, as the chain (leaf first, DER) says it; `None` when it leads to none of `roots`.
    pub fn of_certificate(roots: &Roots, chain: &[Vec<u8>]) -> Option<User> {
        let peer = roots.verify_client(chain, Timestamp::now()).ok()?;
        let mut groups = peer.orgs;
        groups.push("system:authenticated".into());
        Some(User { name: peer.cn, groups, ..User::default() })
    }
}

/// What somebody wants to act on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A path that is no resource's.
    Path(String),
    /// A subresource of a node.
    Node {
        /// The node's name.
        name: String,
        /// As `proxy`.
        subresource: &'static str,
    },
}

/// How long an answer counts.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Who a token belongs to, or that it is nobody's.
    pub token: Duration,
    /// That something is allowed.
    pub allowed: Duration,
    /// That something is not.
    pub denied: Duration,
}

/// Asks the API server, and remembers.
pub struct Delegated {
    authentication: Option<Client>,
    authorization: Option<Client>,
    lifetimes: Lifetimes,
    tokens: Memory<String, Option<User>>,
    decisions: Memory<(User, &'static str, Target), bool>,
}

impl Delegated {
    /// Without a client for tokens they are all refused, without one for rights nobody has any.
    pub fn new(authentication: Option<Client>, authorization: Option<Client>, lifetimes: Lifetimes) -> Delegated {
        Delegated { authentication, authorization, lifetimes, tokens: Memory::default(), decisions: Memory::default() }
    }

    /// Whose the bearer token of an `Authorization` header is; `None` when it is nobody's, or the API server cannot be asked.
    pub async fn bearer(&self, header: &str) -> Option<User> {
        let token = header.strip_prefix("Bearer ")?.trim();
        if let Some(user) = self.tokens.get(&token.to_string(), |_| self.lifetimes.token) {
            return user;
        }
        let client = self.authentication.clone()?;
        let review = TokenReview { spec: TokenReviewSpec { token: token.into(), audiences: None }, ..TokenReview::default() };
        let answer = Api::<TokenReview>::all(client).create(&PostParams::default(), &review).await;
        let answer = answer.inspect_err(|e| tracing::warn!("a token could not be reviewed: {e}")).ok()?;
        let user = answer.status.filter(|s| s.authenticated == Some(true)).and_then(|s| s.user).map(|u| User {
            name: u.username.unwrap_or_default(),
            uid: u.uid.unwrap_or_default(),
            groups: u.groups.unwrap_or_default(),
            extra: u.extra.unwrap_or_default(),
        });
        self.tokens.put(token.into(), user.clone());
        user
    }

    /// Whether somebody may do `verb`.
    ///
    /// # Errors
    /// When the API server cannot be asked; nothing is remembered then.
    pub async fn allows(&self, user: &User, verb: &'static str, target: Target) -> kube::Result<bool> {
        let question = (user.clone(), verb, target);
        let lifetime = |allowed: &bool| if *allowed { self.lifetimes.allowed } else { self.lifetimes.denied };
        if let Some(allowed) = self.decisions.get(&question, lifetime) {
            return Ok(allowed);
        }
        let Some(client) = self.authorization.clone() else { return Ok(false) };
        let mut spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
            ..SubjectAccessReviewSpec::default()
        };
        match &question.2 {
            Target::Path(path) => {
                spec.non_resource_attributes = Some(NonResourceAttributes { path: Some(path.clone()), verb: Some(verb.into()) });
            }
            Target::Node { name, subresource } => {
                spec.resource_attributes = Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some((*subresource).into()),
                    name: Some(name.clone()),
                    ..ResourceAttributes::default()
                });
            }
        }
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        self.decisions.put(question, allowed);
        Ok(allowed)
    }
}

/// Answers with their times.
struct Memory<Q, A>(Mutex<HashMap<Q, (Instant, A)>>);

impl<Q, A> Default for Memory<Q, A> {
    fn default() -> Self {
        Memory(Mutex::default())
    }
}

impl<Q: Hash + Eq, A: Clone> Memory<Q, A> {
    fn get(&self, question: &Q, lifetime: impl Fn(&A) -> Duration) -> Option<A> {
        let known = self.0.lock();
        let (at, answer) = known.get(question)?;
        (at.elapsed() < lifetime(answer)).then(|| answer.clone())
    }

    fn put(&self, question: Q, answer: A) {
        let mut known = self.0.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(question, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    /// An API server that counts reviews; it knows the token `good`, and lets everybody get all but `/no`.
    fn delegated(lifetime: Duration) -> (Delegated, Arc<Mutex<usize>>) {
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let client = crate::in_process(move |request: Request<Body>| {
            *count.lock() += 1;
            async move {
                let token = request.uri().path().ends_with("/tokenreviews");
                let body = request.into_body().collect_bytes().await.expect("a body");
                let mut review: serde_json::Value = serde_json::from_slice(&body).expect("a review");
                review["status"] = if token {
                    serde_json::json!({"authenticated": review["spec"]["token"] == "good", "user": {"username": "u", "groups": ["g"]}})
                } else {
                    serde_json::json!({"allowed": review["spec"]["nonResourceAttributes"]["path"] != "/no"})
                };
                Response::new(http_body_util::Full::new(bytes::Bytes::from(review.to_string())))
            }
        });
        let lifetimes = Lifetimes { token: lifetime, allowed: lifetime, denied: Duration::ZERO };
        (Delegated::new(Some(client.clone()), Some(client), lifetimes), asked)
    }

    #[tokio::test]
    async fn a_token_is_reviewed_once_in_its_time() {
        let (delegated, asked) = delegated(Duration::from_secs(60));
        let user = delegated.bearer("Bearer good").await.expect("known");
        assert_eq!((&*user.name, &*user.groups), ("u", &["g".to_string()][..]));
        assert_eq!(delegated.bearer("Bearer good").await, Some(user));
        assert_eq!(delegated.bearer("Bearer bad").await, None);
        assert_eq!(delegated.bearer("Bearer bad").await, None);
        assert_eq!(delegated.bearer("Basic good").await, None);
        assert_eq!(*asked.lock(), 2);
    }

    #[tokio::test]
    async fn rights_are_remembered_by_user_verb_and_target() {
        let (delegated, asked) = delegated(Duration::from_secs(60));
        let somebody = User::anonymous();
        let path = |path: &str| Target::Path(path.into());
        assert!(delegated.allows(&somebody, "get", path("/yes")).await.expect("asked"));
        assert!(delegated.allows(&somebody, "get", path("/yes")).await.expect("asked"));
        assert_eq!(*asked.lock(), 1);
        assert!(delegated.allows(&User::default(), "get", path("/yes")).await.expect("asked"));
        assert!(delegated.allows(&somebody, "create", path("/yes")).await.expect("asked"));
        assert!(delegated.allows(&somebody, "get", Target::Node { name: "n".into(), subresource: "proxy" }).await.expect("asked"));
        assert_eq!(*asked.lock(), 4);
        for _ in 0..2 {
            assert!(!delegated.allows(&somebody, "get", path("/no")).await.expect("asked"));
        }
        assert_eq!(*asked.lock(), 6, "a refusal counts for no time here");
    }
}
