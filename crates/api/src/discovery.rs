//! Discovery documents: the legacy lists (`/api`, `/apis`, `/apis/<group>/<version>`) and the
//! aggregated form (`apidiscovery.k8s.io/v2`). Pure: what is served comes in as [`Entry`]s, which
//! built-in resources and custom ones give alike.

use crate::resources::{self, Resource, api_version};
use serde_json::{Map, Value, json};

/// A resource as discovery shows it.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// Only the legacy lists show it.
    pub storage_version_hash: Option<String>,
    pub subresources: Vec<SubEntry>,
}

/// A subresource as discovery shows it.
#[derive(Clone, Debug, Default)]
pub struct SubEntry {
    pub name: String,
    pub kind: String,
    /// Group and version of the kind where they are not the resource's own.
    pub group_version: Option<(String, String)>,
    pub verbs: Vec<String>,
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

impl From<&Resource> for Entry {
    fn from(r: &Resource) -> Entry {
        Entry {
            plural: r.plural.into(),
            singular: r.singular.into(),
            kind: r.kind.into(),
            namespaced: r.namespaced,
            verbs: owned(r.verbs),
            short_names: owned(r.short_names),
            categories: owned(r.categories),
            storage_version_hash: r.storage_version_hash.map(Into::into),
            subresources: r
                .subresources
                .iter()
                .map(|s| SubEntry {
                    name: s.name.into(),
                    kind: s.kind.into(),
                    group_version: s.foreign.then(|| (s.group.into(), s.version.into())),
                    verbs: owned(s.verbs),
                })
                .collect(),
        }
    }
}

/// One version of a group.
#[derive(Clone, Debug)]
pub struct VersionEntry {
    pub version: String,
    pub resources: Vec<Entry>,
    /// The last answer of an aggregated server was not fresh.
    pub stale: bool,
}

/// A group with its versions, the preferred one first.
#[derive(Clone, Debug)]
pub struct GroupEntry {
    /// Empty for the core group.
    pub name: String,
    pub versions: Vec<VersionEntry>,
}

/// The built-in groups, the core group first.
pub fn built_in() -> Vec<GroupEntry> {
    let version = |group: &str, version: &&str| VersionEntry {
        version: (*version).to_owned(),
        resources: resources::all().iter().filter(|r| r.group == group && r.version == *version).map(Entry::from).collect(),
        stale: false,
    };
    resources::groups()
        .iter()
        .map(|g| GroupEntry { name: g.name.to_owned(), versions: g.versions.iter().map(|v| version(g.name, v)).collect() })
        .collect()
}

/// `/api`; the address is `host:port` as clients reach the server.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`, without the core group.
pub fn api_group_list(groups: &[GroupEntry]) -> Value {
    let groups: Vec<Value> = groups.iter().filter(|g| !g.name.is_empty()).map(group_body).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`
pub fn api_group(group: &GroupEntry) -> Value {
    let mut body = group_body(group);
    body["kind"] = "APIGroup".into();
    body["apiVersion"] = "v1".into();
    body
}

fn group_body(group: &GroupEntry) -> Value {
    let version = |v: &VersionEntry| json!({"groupVersion": api_version(&group.name, &v.version), "version": v.version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

/// `/api/v1` and `/apis/<group>/<version>`
pub fn api_resource_list(group: &str, version: &str, entries: &[Entry]) -> Value {
    let mut list = Vec::new();
    for entry in entries {
        let mut item = Map::new();
        item.insert("name".into(), entry.plural.as_str().into());
        item.insert("singularName".into(), entry.singular.as_str().into());
        item.insert("namespaced".into(), entry.namespaced.into());
        item.insert("kind".into(), entry.kind.as_str().into());
        item.insert("verbs".into(), entry.verbs.clone().into());
        if !entry.short_names.is_empty() {
            item.insert("shortNames".into(), entry.short_names.clone().into());
        }
        if !entry.categories.is_empty() {
            item.insert("categories".into(), entry.categories.clone().into());
        }
        if let Some(hash) = &entry.storage_version_hash {
            item.insert("storageVersionHash".into(), hash.as_str().into());
        }
        list.push(Value::Object(item));
        for sub in &entry.subresources {
            let mut item = json!({
                "name": format!("{}/{}", entry.plural, sub.name),
                "singularName": "",
                "namespaced": entry.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if let Some((group, version)) = &sub.group_version {
                if !group.is_empty() {
                    item["group"] = group.as_str().into();
                }
                item["version"] = version.as_str().into();
            }
            list.push(item);
        }
    }
    let mut document = json!({"kind": "APIResourceList", "groupVersion": api_version(group, version), "resources": list});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    document
}

/// The aggregated document: `/api` takes the core group, `/apis` all others.
///
/// `api_version` is `v2` or `v2beta1`.
pub fn aggregated<'a>(version: &str, groups: impl IntoIterator<Item = &'a GroupEntry>) -> Value {
    let items: Vec<Value> = groups.into_iter().map(aggregated_group).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &GroupEntry) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| {
            json!({
                "version": v.version,
                "resources": v.resources.iter().map(aggregated_resource).collect::<Vec<_>>(),
                "freshness": if v.stale { "Stale" } else { "Current" },
            })
        })
        .collect();
    let mut metadata = Map::new();
    if !group.name.is_empty() {
        metadata.insert("name".into(), group.name.as_str().into());
    }
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(entry: &Entry) -> Value {
    let mut item = json!({
        "resource": entry.plural,
        "responseKind": {"group": "", "version": "", "kind": entry.kind},
        "scope": if entry.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": entry.singular,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        item["shortNames"] = entry.short_names.clone().into();
    }
    if !entry.categories.is_empty() {
        item["categories"] = entry.categories.clone().into();
    }
    if !entry.subresources.is_empty() {
        let subresource = |sub: &SubEntry| {
            let (group, version) = sub.group_version.clone().unwrap_or_default();
            json!({
                "subresource": sub.name,
                "responseKind": {"group": group, "version": version, "kind": sub.kind},
                "verbs": sub.verbs,
            })
        };
        item["subresources"] = entry.subresources.iter().map(subresource).collect();
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aggregated_form_shows_scale_and_its_kind() {
        let groups = built_in();
        let document = aggregated("v2", groups.iter().filter(|g| !g.name.is_empty()));
        let apps = document["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let deployments = apps["versions"][0]["resources"].as_array().unwrap().iter().find(|r| r["resource"] == "deployments").unwrap();
        assert_eq!(
            *deployments,
            json!({"resource": "deployments", "responseKind": {"group": "", "version": "", "kind": "Deployment"}, "scope": "Namespaced",
                "singularResource": "deployment", "shortNames": ["deploy"], "categories": ["all"],
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                "subresources": [
                    {"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}, "verbs": ["get", "patch", "update"]},
                    {"subresource": "status", "responseKind": {"group": "", "version": "", "kind": "Deployment"}, "verbs": ["get", "patch", "update"]}]})
        );
        assert_eq!(document["items"][0]["metadata"]["name"], "apiregistration.k8s.io");
    }

    #[test]
    fn legacy_lists_are_as_upstreams() {
        let groups = built_in();
        let batch = groups.iter().find(|g| g.name == "batch").unwrap();
        assert_eq!(
            api_resource_list("batch", "v1", &batch.versions[0].resources)["resources"][0],
            json!({"name": "cronjobs", "singularName": "cronjob", "namespaced": true, "kind": "CronJob", "shortNames": ["cj"], "categories": ["all"],
                "storageVersionHash": "sd5LIXh4Fjs=", "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
        );
        assert_eq!(api_group(batch)["preferredVersion"], json!({"groupVersion": "batch/v1", "version": "v1"}));
        let core = api_resource_list("", "v1", &groups[0].versions[0].resources);
        assert_eq!(core.get("apiVersion"), None);
        let token = core["resources"].as_array().unwrap().iter().find(|r| r["name"] == "serviceaccounts/token").unwrap().clone();
        assert_eq!(token["group"], "authentication.k8s.io");
        assert_eq!(api_group_list(&groups)["groups"][1]["name"], "apps");
    }
}
