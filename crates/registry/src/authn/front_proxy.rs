//! The front proxy: whoever shows a certificate of its CA may say, in headers, who the user is.

use std::sync::Arc;

use apiserver::{AuthnRequest, Authenticator, UserInfo};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pki::Roots;

use super::authenticated;

/// How a front proxy is known, and which headers it sets; `--requestheader-*` upstream.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    /// PEM of the CA that vouches for it.
    pub ca_pem: String,
    /// The common names that it may have; any, if none is given.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name, the first that is there counts: `X-Remote-User`.
    pub username_headers: Vec<String>,
    /// Headers with the user's uid: `X-Remote-Uid`.
    pub uid_headers: Vec<String>,
    /// Headers with the user's groups: `X-Remote-Group`.
    pub group_headers: Vec<String>,
    /// What headers begin with that say more of the user: `X-Remote-Extra-`.
    pub extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// The one that kubeadm sets up: certificates for `front-proxy-client`, and the usual headers.
    pub fn of_cluster(ca_pem: String) -> FrontProxy {
        let one = |name: &str| vec![name.to_owned()];
        FrontProxy {
            ca_pem,
            allowed_names: one("front-proxy-client"),
            username_headers: one("X-Remote-User"),
            uid_headers: one("X-Remote-Uid"),
            group_headers: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }
}

/// The authenticator.
pub(crate) struct FrontProxies {
    roots: ArcSwap<Roots>,
    settings: FrontProxy,
}

impl FrontProxies {
    pub fn new(settings: FrontProxy) -> Result<Self, pki::Error> {
        Ok(Self { roots: ArcSwap::from_pointee(Roots::from_pem(&settings.ca_pem)?), settings })
    }

    /// Other CAs vouch for the proxy from now on.
    pub fn replace(&self, roots: Roots) {
        self.roots.store(Arc::new(roots));
    }
}

fn values<'a>(req: &'a AuthnRequest<'_>, names: &'a [String]) -> impl Iterator<Item = &'a str> {
    names.iter().flat_map(|name| req.headers.get_all(name.as_str())).filter_map(|v| v.to_str().ok()).filter(|v| !v.is_empty())
}

#[async_trait]
impl Authenticator for FrontProxies {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(peer) = req.peer.filter(|p| !p.certs.is_empty()) else { return Ok(None) };
        let settings = &self.settings;
        let Some(name) = values(req, &settings.username_headers).next() else { return Ok(None) };
        let proxy = self.roots.load().verify_client(&peer.certs, req.now).map_err(|e| e.to_string())?;
        if !settings.allowed_names.is_empty() && !settings.allowed_names.contains(&proxy.cn) {
            return Err(format!("subject with cn={} is not in the allowed list", proxy.cn));
        }
        let mut user = UserInfo { name: name.to_owned(), ..UserInfo::default() };
        user.uid = values(req, &settings.uid_headers).next().unwrap_or_default().to_owned();
        user.groups = values(req, &settings.group_headers).map(str::to_owned).collect();
        for prefix in &settings.extra_prefixes {
            let prefix = prefix.to_ascii_lowercase();
            for (header, value) in req.headers {
                if let (Some(key), Ok(value)) = (header.as_str().strip_prefix(&prefix), value.to_str()) {
                    user.extra.entry(apiserver::request::percent_decode(key).to_lowercase()).or_default().push(value.to_owned());
                }
            }
        }
        Ok(Some(authenticated(user)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;
    use http::HeaderMap;
    use jiff::{SignedDuration, Timestamp};

    fn now() -> Timestamp {
        "2026-05-01T10:00:00Z".parse().unwrap()
    }

    fn certificate(ca: &pki::Ca, cn: &str) -> Vec<u8> {
        let lifetime = pki::Lifetime::from_hours(1);
        let request = pki::CertRequest { cn: cn.into(), orgs: Vec::new(), sans: Vec::new(), usages: vec![pki::Usage::Client], lifetime };
        pki::pem_decode(&ca.issue(&request, now()).unwrap().cert_pem).remove(0).der
    }

    #[test]
    fn the_proxy_says_who_it_is_and_nobody_else_does() {
        let ca = pki::Ca::new("front", now(), SignedDuration::from_hours(24)).unwrap();
        let other = pki::Ca::new("other", now(), SignedDuration::from_hours(24)).unwrap();
        let texts = |all: &[&str]| all.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        let settings = FrontProxy {
            ca_pem: ca.cert_pem().into(),
            allowed_names: texts(&["proxy"]),
            username_headers: texts(&["X-Remote-User", "X-User"]),
            uid_headers: texts(&["X-Remote-Uid"]),
            group_headers: texts(&["X-Remote-Group"]),
            extra_prefixes: texts(&["X-Remote-Extra-"]),
        };
        let proxies = FrontProxies::new(settings).unwrap();
        let ask = |cert: Option<Vec<u8>>, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (key, value) in headers {
                map.append(*key, value.parse().unwrap());
            }
            let peer = apiserver::Peer { addr: None, certs: Arc::new(cert.into_iter().collect()) };
            let request = AuthnRequest { headers: &map, path: "/", peer: Some(&peer), bearer: None, audiences: &[], granted: None, now: now() };
            block_on(proxies.authenticate(&request))
        };
        let proxy = || Some(certificate(&ca, "proxy"));
        let jane = [("x-remote-user", "jane"), ("x-remote-group", "dev"), ("x-remote-group", "ops"), ("x-remote-extra-acme.com%2fproject", "x")];
        let user = ask(proxy(), &jane).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("jane", &texts(&["dev", "ops", "system:authenticated"])[..]));
        assert_eq!(user.extra["acme.com/project"], ["x"]);
        assert_eq!(ask(proxy(), &[("x-user", "joe"), ("x-remote-uid", "7")]).unwrap().unwrap().uid, "7");
        assert!(ask(proxy(), &[]).unwrap().is_none(), "it may speak for itself");
        assert!(ask(None, &jane).unwrap().is_none());
        assert!(ask(Some(certificate(&other, "proxy")), &jane).is_err());
        assert!(ask(Some(certificate(&ca, "jane")), &jane).unwrap_err().contains("cn=jane is not in the allowed list"));
    }
}
