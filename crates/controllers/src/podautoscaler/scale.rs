//! The target of an autoscaler: any kind that has a scale, found by discovery.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use http::Request;
use kube::Client;
use parking_lot::Mutex;

use super::plan::Target;
use crate::pods;

/// How long what discovery says counts.
const KNOWN: Duration = Duration::from_secs(30);

/// Versions of a group, the preferred one first, each with its resources.
type Group = Arc<Vec<(String, Vec<APIResource>)>>;

/// Discovers kinds and reads and writes scales. Clones share what was discovered.
#[derive(Clone)]
pub struct Targets {
    client: Client,
    groups: Arc<Mutex<HashMap<String, (Instant, Group)>>>,
}

/// A scale and where it was found.
pub struct Found {
    path: String,
    scale: Scale,
}

impl Found {
    /// What matters of it.
    pub fn target(&self) -> Target {
        let status = self.scale.status.as_ref();
        Target {
            replicas: self.scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0),
            status_replicas: status.map_or(0, |s| s.replicas),
            selector: status.and_then(|s| s.selector.clone()).unwrap_or_default(),
        }
    }
}

impl Targets {
    pub fn new(client: Client) -> Targets {
        Targets { client, groups: Arc::default() }
    }

    async fn group(&self, name: &str) -> kube::Result<Group> {
        if let Some((at, group)) = self.groups.lock().get(name)
            && at.elapsed() < KNOWN
        {
            return Ok(group.clone());
        }
        let mut versions = Vec::new();
        if name.is_empty() {
            versions.push(("v1".to_string(), self.client.list_core_api_resources("v1").await?.resources));
        } else if let Some(group) = self.client.list_api_groups().await?.groups.into_iter().find(|g| g.name == name) {
            let preferred = group.preferred_version.map(|v| v.version);
            let mut all: Vec<String> = group.versions.into_iter().map(|v| v.version).collect();
            all.sort_by_key(|v| Some(v) != preferred.as_ref());
            for version in all {
                let resources = self.client.list_api_group_resources(&format!("{name}/{version}")).await?.resources;
                versions.push((version, resources));
            }
        }
        let group = Arc::new(versions);
        self.groups.lock().insert(name.to_string(), (Instant::now(), group.clone()));
        Ok(group)
    }

    /// The first of these versions that a group is served in.
    pub async fn preferred(&self, group: &str, wanted: &[&str]) -> Result<Option<String>, String> {
        let group = self.group(group).await.map_err(|e| pods::text(&e))?;
        Ok(wanted.iter().find(|w| group.iter().any(|(v, _)| v == *w)).map(|v| v.to_string()))
    }

    /// The plural of a kind.
    pub async fn plural(&self, group: &str, kind: &str) -> Result<String, String> {
        let known = self.group(group).await.map_err(|e| pods::text(&e))?;
        plurals(&known, kind).next().map(|(_, plural)| plural.to_string()).ok_or_else(|| no_match(group, kind))
    }

    /// The scale of an object, by its kind.
    pub async fn get(&self, namespace: &str, api_version: &str, kind: &str, name: &str) -> Result<Found, String> {
        let group = match api_version.split('/').collect::<Vec<_>>()[..] {
            [_] => "",
            [group, _] => group,
            _ => return Err(format!("unexpected GroupVersion string: {api_version}")),
        };
        let known = self.group(group).await.map_err(|e| pods::text(&e))?;
        let mut first = None;
        for (version, plural) in plurals(&known, kind) {
            let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
            let path = format!("{root}/namespaces/{namespace}/{plural}/{name}/scale");
            match self.read(&path).await {
                Ok(scale) => return Ok(Found { path, scale }),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| no_match(group, kind)))
    }

    async fn read(&self, path: &str) -> Result<Scale, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
        self.client.request(request).await.map_err(|e| match &e {
            kube::Error::Api(status) if status.code == 404 && status.message.starts_with("404 page not found") => {
                "the server could not find the requested resource".to_string()
            }
            e => pods::text(e),
        })
    }

    /// Sets the number of replicas; a conflict is met with what is there now, a few times.
    pub async fn set(&self, found: &Found, replicas: i32) -> Result<(), String> {
        let mut scale = found.scale.clone();
        let mut tries = 5;
        loop {
            scale.spec.get_or_insert_default().replicas = Some(replicas);
            let body = serde_json::to_vec(&scale).map_err(|e| e.to_string())?;
            let request = Request::put(&found.path).header("content-type", "application/json").body(body).map_err(|e| e.to_string())?;
            match self.client.request::<Scale>(request).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 && tries > 1 => {
                    tries -= 1;
                    if let Ok(latest) = self.read(&found.path).await {
                        scale = latest;
                    }
                }
                Err(error) => return Err(pods::text(&error)),
            }
        }
    }
}

fn no_match(group: &str, kind: &str) -> String {
    if group.is_empty() { format!("no matches for kind {kind:?} in version \"v1\"") } else { format!("no matches for kind {kind:?} in group {group:?}") }
}

/// Versions with the plural of a kind in them.
fn plurals<'a>(group: &'a Group, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    group.iter().filter_map(move |(version, resources)| {
        let found = resources.iter().find(|r| r.kind == kind && !r.name.contains('/'))?;
        Some((version.as_str(), found.name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_says_how_many_there_are_and_of_which_pods() {
        let of = |scale: serde_json::Value| Found { path: String::new(), scale: serde_json::from_value(scale).expect("a scale") }.target();
        let whole = of(serde_json::json!({"metadata": {}, "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=a"}}));
        assert_eq!((whole.replicas, whole.status_replicas, whole.selector.as_str()), (3, 2, "app=a"));
        let bare = of(serde_json::json!({"metadata": {}}));
        assert_eq!((bare.replicas, bare.status_replicas, bare.selector.as_str()), (0, 0, ""));
    }

    #[test]
    fn an_unknown_kind_is_told_by_its_group() {
        assert_eq!(no_match("example.com", "Thing"), "no matches for kind \"Thing\" in group \"example.com\"");
        assert_eq!(no_match("", "Thing"), "no matches for kind \"Thing\" in version \"v1\"");
    }
}
