//! Which resources an API server serves, for the controllers that treat all kinds alike.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

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

/// All resources of all groups, each once. A group that does not answer is an error: acting on half
/// of the picture would delete what it must not.
pub async fn served(client: &Client) -> kube::Result<Vec<Served>> {
    let mut all = Vec::new();
    for resource in client.list_core_api_resources("v1").await?.resources {
        all.extend(convert("", "v1", resource));
    }
    for group in client.list_api_groups().await?.groups {
        let preferred = group.preferred_version.map(|v| v.version);
        let mut versions: Vec<String> = group.versions.iter().map(|v| v.version.clone()).collect();
        versions.sort_by_key(|v| Some(v) != preferred.as_ref());
        for version in versions {
            for resource in client.list_api_group_resources(&format!("{}/{version}", group.name)).await?.resources {
                let known = |s: &Served| s.resource.group == group.name && s.resource.plural == resource.name;
                if !all.iter().any(known) {
                    all.extend(convert(&group.name, &version, resource));
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
