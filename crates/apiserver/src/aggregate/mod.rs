//! Aggregation: groups that other servers answer for, as APIServices name them.
//!
//! A request goes through authentication, impersonation and authorization here. Then it is passed on with headers that
//! say whose it is, over a connection that shows the front proxy's certificate.
mod controller;
mod plan;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use api::discovery::{Entry, GroupEntry, VersionEntry};
use api::openapi::Foreign;
use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio_rustls::TlsConnector;

use crate::body::{self, Body};
use crate::core::Core;
use crate::ctx::UserInfo;
use crate::location::{Location, Tls};
use crate::server::{Rq, Server};
use crate::types::Status;
use crate::webhook;
use plan::Target;

/// A server that answers for a version of a group.
pub(crate) struct Aggregated {
    target: Target,
    tls: Result<TlsConnector, String>,
    available: bool,
    /// What it served when it was last asked.
    resources: Vec<Entry>,
    openapi: Option<Arc<Spoken>>,
}

/// What a server's OpenAPI document of version 2 says of its group version, with a hash of the whole document.
struct Spoken {
    hash: String,
    document: Foreign,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Table {
    /// Changes with everything that discovery and OpenAPI show; 0 while there is none.
    pub generation: u64,
    all: Vec<Arc<Aggregated>>,
}

/// The servers that are known now.
#[derive(Default)]
pub struct Aggregates(ArcSwap<Table>);

impl Table {
    fn new(mut all: Vec<Arc<Aggregated>>) -> Table {
        all.sort_by(|a, b| (b.target.priority, &a.target.name).cmp(&(a.target.priority, &b.target.name)));
        let mut hasher = DefaultHasher::new();
        for a in &all {
            (&a.target, a.available, format!("{:?}", a.resources), a.openapi.as_ref().map(|o| &o.hash)).hash(&mut hasher);
        }
        Table { generation: if all.is_empty() { 0 } else { hasher.finish() }, all }
    }

    /// Who answers a request for this path, if not we ourselves.
    pub fn route(&self, path: &str) -> Option<&Arc<Aggregated>> {
        self.all.iter().find(|a| a.target.covers(path))
    }

    /// What those that are available have OpenAPI documents of, as `apis/GROUP/VERSION`.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        self.all.iter().filter(|a| a.available).map(|a| a.target.path().trim_start_matches('/').to_string())
    }

    /// What they say of their groups, for the OpenAPI document of version 2.
    pub fn spoken(&self) -> Vec<&Foreign> {
        self.all.iter().filter_map(|a| a.openapi.as_ref()).map(|o| &o.document).collect()
    }

    /// Adds to the groups of discovery. `fixed` of them are built in, and come first whatever others say.
    pub fn discover(&self, groups: &mut Vec<GroupEntry>, fixed: usize) {
        let mut at = fixed;
        for a in self.all.iter().filter(|a| !a.target.group.is_empty()) {
            let version = VersionEntry { version: a.target.version.clone(), resources: a.resources.clone(), stale: !a.available };
            match groups.iter_mut().find(|g| g.name == a.target.group) {
                Some(group) => {
                    group.versions.retain(|v| v.version != version.version);
                    group.versions.push(version);
                }
                None => {
                    // Groups of definitions have 1000 upstream.
                    let group = GroupEntry { name: a.target.group.clone(), versions: vec![version] };
                    if a.target.priority.0 > 1000 {
                        groups.insert(at, group);
                        at += 1;
                    } else {
                        groups.push(group);
                    }
                }
            }
        }
    }
}

impl Core {
    /// The servers that answer for groups.
    pub(crate) fn aggregated(&self) -> Arc<Table> {
        self.aggregates.0.load_full()
    }
}

impl Server {
    /// Passes a request on to the server that answers for its group.
    pub(crate) async fn aggregate(self: &Arc<Server>, rq: Rq, to: &Aggregated) -> Result<Response<Body>, Status> {
        if !to.available {
            return Ok(plain(503, "service unavailable"));
        }
        let tls = match &to.tls {
            Ok(tls) => tls,
            Err(why) => return Ok(plain(500, why)),
        };
        let target = &to.target;
        let addresses = match self.core.services().targets(&target.namespace, &target.service, target.port).await {
            Ok(addresses) => addresses,
            Err(why) => {
                tracing::debug!(service = target.service, why, "an aggregated server cannot be found");
                return Ok(plain(503, "service unavailable"));
            }
        };
        let host = target.host();
        let io = match webhook::connect(tls, &host, &addresses).await {
            Ok(io) => io,
            Err(why) => return Ok(plain(503, &format!("error trying to reach service: {why}"))),
        };
        let location = Location {
            tls: Tls::None,
            host,
            port: target.port,
            path_and_query: rq.request.uri().path_and_query().map_or("/", |p| p.as_str()).to_string(),
            rewrite: false,
            alternatives: Vec::new(),
        };
        let identity = identity(&rq.user);
        self.pass_on(rq, Box::new(io), &location, None, identity).await
    }
}

impl Target {
    /// The name that the server's certificate is for.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

fn plain(code: u16, text: &str) -> Response<Body> {
    let mut response = body::response(code, "text/plain; charset=utf-8", format!("{text}\n"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// The headers of the front proxy: who asks.
fn identity(user: &UserInfo) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|group| add("x-remote-group", group));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        values.iter().for_each(|value| add(&name, value));
    }
    headers
}

/// A key as part of a header's name: what cannot stand there is percent-encoded.
fn escaped(key: &str) -> String {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    key.bytes().fold(String::new(), |text, b| if fine(b) { text + char::from(b).encode_utf8(&mut [0; 4]) } else { format!("{text}%{b:02X}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(group: &str, version: &str, priority: (i64, i64), available: bool) -> Arc<Aggregated> {
        let target = Target {
            name: format!("{version}.{group}"),
            group: group.into(),
            version: version.into(),
            namespace: "ns".into(),
            service: "api".into(),
            port: 443,
            ca_bundle: Vec::new(),
            insecure: true,
            priority,
        };
        Arc::new(Aggregated { target, tls: Err(String::new()), available, resources: Vec::new(), openapi: None })
    }

    #[test]
    fn groups_have_their_places() {
        let table = Table::new(vec![
            server("low.io", "v1", (100, 1), true),
            server("high.io", "v1beta1", (2000, 5), false),
            server("high.io", "v1", (2000, 15), true),
            server("built.in", "v2", (3000, 1), true),
        ]);
        let entry = |name: &str| GroupEntry { name: name.into(), versions: vec![VersionEntry { version: "v1".into(), resources: Vec::new(), stale: false }] };
        let mut groups = vec![entry("built.in"), entry("custom.io")];
        table.discover(&mut groups, 1);
        let shown: Vec<String> = groups
            .iter()
            .map(|g| {
                let versions: Vec<String> = g.versions.iter().map(|v| format!("{}{}", v.version, if v.stale { "!" } else { "" })).collect();
                format!("{} {}", g.name, versions.join(","))
            })
            .collect();
        assert_eq!(shown, ["built.in v1,v2", "high.io v1,v1beta1!", "custom.io v1", "low.io v1"]);
        assert!(table.route("/apis/low.io/v1/things").is_some() && table.route("/apis/low.io/v2").is_none());
        assert_eq!(Table::default().generation, 0);
    }

    #[test]
    fn who_asks() {
        let mut user = UserInfo::new("ann", &["a", "b"]);
        user.extra.insert("example.com/scope%".into(), vec!["x".into()]);
        let headers = identity(&user);
        assert_eq!(headers["x-remote-user"], "ann");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert_eq!(headers["x-remote-extra-example.com%2fscope%25"], "x");
        assert!(headers.get("x-remote-uid").is_none());
    }
}
