//! Who asks a component's own port, and whether they may: client certificates, and for all else the
//! word of the API server (TokenReview, SubjectAccessReview), as upstream delegates it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::{Mutex, RwLock};
use pki::Roots;

use super::flags::Values;

/// Answers of the API server that are remembered at most.
const REMEMBERED: usize = 1000;
/// The group that may do everything, as upstream has it.
const MASTERS: &str = "system:masters";

/// Somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    fn anonymous() -> User {
        User { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..User::default() }
    }
}

/// Which verb on which path, and who.
type Question = (User, &'static str, String);

/// Authenticates and authorizes.
pub struct Access {
    roots: RwLock<Option<Roots>>,
    /// Asks about tokens; without, everybody with a token is refused.
    authentication: Option<Client>,
    /// Asks about rights; without, nothing but the open paths is allowed.
    authorization: Option<Client>,
    open: Vec<String>,
    token_time: Duration,
    allowed_time: Duration,
    denied_time: Duration,
    tokens: Mutex<HashMap<String, (Instant, Option<User>)>>,
    decisions: Mutex<HashMap<Question, (Instant, bool)>>,
}

impl Access {
    /// As the flags say. `roots` are those of `--client-ca-file`.
    pub fn new(values: &Values, roots: Option<Roots>, authentication: Option<Client>, authorization: Option<Client>) -> Access {
        Access {
            roots: RwLock::new(roots),
            authentication,
            authorization,
            open: values.list("authorization-always-allow-paths"),
            token_time: values.duration("authentication-token-webhook-cache-ttl"),
            allowed_time: values.duration("authorization-webhook-cache-authorized-ttl"),
            denied_time: values.duration("authorization-webhook-cache-unauthorized-ttl"),
            tokens: Mutex::default(),
            decisions: Mutex::default(),
        }
    }

    /// Takes over the CA for client certificates that the cluster publishes, until told to stop; an
    /// API server that is not up yet is asked again.
    pub async fn follow_cluster_ca(&self) {
        let Some(client) = self.authentication.clone() else { return };
        let maps = Api::<ConfigMap>::namespaced(client, "kube-system");
        loop {
            let pause = match maps.get("extension-apiserver-authentication").await {
                Ok(map) => {
                    let pem = map.data.and_then(|mut d| d.remove("client-ca-file")).unwrap_or_default();
                    match Roots::from_pem(&pem) {
                        Ok(roots) => *self.roots.write() = Some(roots),
                        Err(error) => tracing::warn!("the cluster's CA for client certificates cannot be used: {error}"),
                    }
                    Duration::from_secs(60)
                }
                Err(error) => {
                    tracing::debug!("the cluster's CA for client certificates cannot be read yet: {error}");
                    Duration::from_secs(2)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether a path needs no right. A `*` at its end stands for anything.
    pub fn is_open(&self, path: &str) -> bool {
        self.open.iter().any(|open| match open.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == open,
        })
    }

    /// `None`: the credentials are no good. Without any, it is somebody anonymous.
    pub async fn authenticate(&self, chain: &[Vec<u8>], authorization: Option<&str>) -> Option<User> {
        if !chain.is_empty() {
            let verified = self.roots.read().as_ref().and_then(|roots| roots.verify_client(chain, Timestamp::now()).ok());
            if let Some(peer) = verified {
                let mut groups = peer.orgs;
                groups.push("system:authenticated".into());
                return Some(User { name: peer.cn, groups, ..User::default() });
            }
            authorization?;
        }
        let Some(header) = authorization else { return Some(User::anonymous()) };
        self.token(header.strip_prefix("Bearer ")?.trim()).await
    }

    async fn token(&self, token: &str) -> Option<User> {
        if let Some((at, user)) = self.tokens.lock().get(token)
            && at.elapsed() < self.token_time
        {
            return user.clone();
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
        let mut tokens = self.tokens.lock();
        if tokens.len() >= REMEMBERED {
            tokens.clear();
        }
        tokens.insert(token.into(), (Instant::now(), user.clone()));
        user
    }

    /// Whether `user` may do `verb` on a path that is not open.
    pub async fn may(&self, user: &User, verb: &'static str, path: &str) -> bool {
        if user.groups.iter().any(|g| g == MASTERS) {
            return true;
        }
        let question = (user.clone(), verb, path.to_string());
        if let Some((at, allowed)) = self.decisions.lock().get(&question)
            && at.elapsed() < if *allowed { self.allowed_time } else { self.denied_time }
        {
            return *allowed;
        }
        let Some(client) = self.authorization.clone() else { return false };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                non_resource_attributes: Some(NonResourceAttributes { path: Some(path.into()), verb: Some(verb.into()) }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = Api::<SubjectAccessReview>::all(client).create(&PostParams::default(), &review).await;
        let Ok(answer) = answer.inspect_err(|e| tracing::warn!("a right could not be reviewed: {e}")) else { return false };
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut decisions = self.decisions.lock();
        if decisions.len() >= REMEMBERED {
            decisions.clear();
        }
        decisions.insert(question, (Instant::now(), allowed));
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;

    fn access(paths: &str) -> Access {
        let table = flags::table(include_str!("scheduler.flags"));
        let args: Vec<String> = if paths.is_empty() { Vec::new() } else { vec![format!("--authorization-always-allow-paths={paths}")] };
        Access::new(&flags::parse("kube-scheduler", table, &args).expect("flags"), None, None, None)
    }

    #[tokio::test]
    async fn health_is_open_and_the_rest_is_not() {
        let access = access("");
        for path in ["/healthz", "/livez", "/readyz"] {
            assert!(access.is_open(path), "{path}");
        }
        for path in ["/metrics", "/configz", "/healthz/ping", "/"] {
            assert!(!access.is_open(path), "{path}");
        }
        let nobody = access.authenticate(&[], None).await.expect("anonymous");
        assert_eq!(nobody.name, "system:anonymous");
        assert!(!access.may(&nobody, "get", "/metrics").await);
    }

    #[tokio::test]
    async fn bad_credentials_are_not_anonymous() {
        let access = access("");
        assert_eq!(access.authenticate(&[], Some("Bearer x")).await, None);
        assert_eq!(access.authenticate(&[], Some("Basic x")).await, None);
    }

    #[tokio::test]
    async fn masters_need_nobodys_word() {
        let admin = User { name: "a".into(), groups: vec![MASTERS.into()], ..User::default() };
        assert!(access("").may(&admin, "get", "/metrics").await);
    }

    #[test]
    fn a_star_opens_what_is_below() {
        let access = access("/metrics,/debug/*");
        assert!(access.is_open("/metrics") && access.is_open("/debug/pprof") && !access.is_open("/healthz"));
    }
}
