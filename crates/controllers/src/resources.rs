//! Which resources an API server serves, for the controllers that treat all kinds alike.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

use crate::pods;

/// One resource that can be listed, in its group's preferred version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Served {
    /// Whether a verb is served.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// What is served, as far as it could be found out.
#[derive(Debug, Default)]
pub struct Discovered {
    /// All resources of all groups, each once.
    pub resources: Vec<Served>,
    /// Group versions that did not answer, and what they said instead.
    pub failures: Vec<(String, String)>,
}

impl Discovered {
    /// Whether some of a group did not answer: what is not found in it may be there all the same.
    pub fn is_partial(&self, group: &str) -> bool {
        self.failures.iter().any(|(version, _)| version.split('/').next() == Some(group))
    }
}

/// Asks for all resources. A group that does not answer is a failure of its own: what it serves is
/// not known then, and nobody may act as if it served nothing.
pub async fn discover(client: &Client) -> kube::Result<Discovered> {
    let mut all = Discovered::default();
    for resource in client.list_core_api_resources("v1").await?.resources {
        all.resources.extend(convert("", "v1", resource));
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let mut versions: Vec<String> = group.versions.iter().map(|v| v.version.clone()).collect();
        versions.sort_by_key(|v| Some(v) != preferred.as_ref());
        for version in versions {
            let name = format!("{}/{version}", group.name);
            let served = match client.list_api_group_resources(&name).await {
                Ok(served) => served.resources,
                // It went away between the two questions.
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => {
                    all.failures.push((name, pods::text(&error)));
                    continue;
                }
            };
            for resource in served {
                let known = |s: &Served| s.resource.group == group.name && s.resource.plural == resource.name;
                if !all.resources.iter().any(known) {
                    all.resources.extend(convert(&group.name, &version, resource));
                }
            }
        }
    }
    Ok(all)
}

fn convert(group: &str, version: &str, resource: APIResource) -> Option<Served> {
    if resource.name.contains('/') {
        return None;
    }
    let kind = GroupVersionKind::gvk(group, version, &resource.kind);
    Some(Served {
        resource: ApiResource::from_gvk_with_plural(&kind, &resource.name),
        namespaced: resource.namespaced,
        verbs: resource.verbs,
    })
}
