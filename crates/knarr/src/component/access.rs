//! Who asks a component's own port, and whether they may: client certificates, and for all else the
//! word of the API server (TokenReview, SubjectAccessReview), as upstream delegates it.

use std::time::Duration;

use client::{Delegated, Lifetimes, Target, User};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use parking_lot::RwLock;
use pki::Roots;

use super::flags::Values;

/// The group that may do everything, as upstream has it.
const MASTERS: &str = "system:masters";

/// Authenticates and authorizes.
pub struct Access {
    roots: RwLock<Option<Roots>>,
    /// Reads the CA that the cluster publishes.
    client: Option<Client>,
    delegated: Delegated,
    open: Vec<String>,
}

impl Access {
    /// As the flags say. `roots` are those of `--client-ca-file`.
    pub fn new(values: &Values, roots: Option<Roots>, authentication: Option<Client>, authorization: Option<Client>) -> Access {
        let lifetimes = Lifetimes {
            token: values.duration("authentication-token-webhook-cache-ttl"),
            allowed: values.duration("authorization-webhook-cache-authorized-ttl"),
            denied: values.duration("authorization-webhook-cache-unauthorized-ttl"),
        };
        Access {
            roots: RwLock::new(roots),
            client: authentication.clone(),
            delegated: Delegated::new(authentication, authorization, lifetimes),
            open: values.list("authorization-always-allow-paths"),
        }
    }

    /// Takes over the CA for client certificates that the cluster publishes, until told to stop; an
    /// API server that is not up yet is asked again.
    pub async fn follow_cluster_ca(&self) {
        let Some(client) = self.client.clone() else { return };
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
            let verified = self.roots.read().as_ref().and_then(|roots| User::of_certificate(roots, chain));
            if verified.is_some() {
                return verified;
            }
            authorization?;
        }
        let Some(header) = authorization else { return Some(User::anonymous()) };
        self.delegated.bearer(header).await
    }

    /// Whether `user` may do `verb` on a path that is not open.
    pub async fn may(&self, user: &User, verb: &'static str, path: &str) -> bool {
        if user.groups.iter().any(|g| g == MASTERS) {
            return true;
        }
        let answer = self.delegated.allows(user, verb, Target::Path(path.into())).await;
        answer.inspect_err(|e| tracing::warn!("a right could not be reviewed: {e}")).unwrap_or(false)
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
