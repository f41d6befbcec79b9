//! The resource table: every built-in resource that Kubernetes 1.36 serves by default.
//!
//! It is the text `data/resources.txt`, parsed once: `G group`, `V version package`, `R` a
//! resource, `S` a subresource, groups in upstream's discovery order, the preferred version first.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

static TEXT: &str = include_str!("../data/resources.txt");

/// A subresource, or its request kind where it has one of its own.
#[derive(Debug)]
pub struct Subresource {
    /// `status`, `scale`, …
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// Discovery names group and version: the kind is of another group version than the parent.
    pub foreign: bool,
    pub verbs: &'static [&'static str],
}

/// One served resource of one version.
#[derive(Debug)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// `PodList`; also set for kinds that cannot be listed.
    pub list_kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// `/registry/pods/`; empty for what is not stored.
    pub storage_prefix: &'static str,
    /// Group and version of the stored form where it is not this one (autoscaling/v1 → v2).
    pub storage_version: Option<(&'static str, &'static str)>,
    /// Stored as JSON, not protobuf.
    pub storage_json: bool,
    pub storage_version_hash: Option<&'static str>,
    /// `io.k8s.api.core.v1.Pod`
    pub type_name: &'static str,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether a definition brought the resource, so that it has no type in the fact table.
    pub fn is_custom(&self) -> bool {
        self.type_name.is_empty() && !self.storage_prefix.is_empty()
    }

    /// The type of the list.
    pub fn list_type_name(&self) -> String {
        format!("{}List", self.type_name)
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// An API group with its versions, the preferred one first.
#[derive(Debug)]
pub struct Group {
    /// Empty for the core group.
    pub name: &'static str,
    pub versions: Vec<&'static str>,
}

/// All resources, in discovery order.
pub fn all() -> &'static [Resource] {
    &table().resources
}

/// The groups in discovery order, the core group first.
pub fn groups() -> &'static [Group] {
    &table().groups
}

/// The resource served at a group, version and plural name.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.plural == plural && r.version == version && r.group == group)
}

/// Kinds that upstream has stored in versions that are no longer served, or not by default, and that became `v1` as they
/// were: the fields and their numbers are the same.
const BECAME_V1: &[(&str, &[&str], &[&str])] = &[
    ("admissionregistration.k8s.io", &["v1alpha1", "v1beta1"], &["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"]),
    ("batch", &["v1beta1"], &["CronJob"]),
    ("certificates.k8s.io", &["v1beta1"], &["CertificateSigningRequest"]),
    ("coordination.k8s.io", &["v1beta1"], &["Lease"]),
    ("flowcontrol.apiserver.k8s.io", &["v1beta3"], &["FlowSchema", "PriorityLevelConfiguration"]),
    ("networking.k8s.io", &["v1beta1"], &["IPAddress", "ServiceCIDR"]),
    ("node.k8s.io", &["v1beta1"], &["RuntimeClass"]),
    ("policy", &["v1beta1"], &["PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", &["v1beta1"], &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("resource.k8s.io", &["v1beta2"], &["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"]),
    ("scheduling.k8s.io", &["v1beta1"], &["PriorityClass"]),
    ("storage.k8s.io", &["v1beta1"], &["CSIDriver", "CSINode", "CSIStorageCapacity", "StorageClass", "VolumeAttachment", "VolumeAttributesClass"]),
];

/// The version that a stored object of an older one is read as.
pub fn stable_version(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    let old = BECAME_V1.iter().find(|(g, versions, kinds)| *g == group && versions.contains(&version) && kinds.contains(&kind));
    old.map(|_| "v1")
}

/// The resource of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    all().iter().find(|r| r.kind == kind && r.version == version && r.group == group)
}

/// The name of the type that a kind has: resources, lists, options and meta kinds.
///
/// `ListOptions`, `DeleteOptions`, `WatchEvent`, `Status` and their like live in every group.
pub fn type_name(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    // evictions are still taken in the version that older clients send
    let version = if (group, version, kind) == ("policy", "v1beta1", "Eviction") { "v1" } else { version };
    let package = table().packages.iter().find(|(g, v, _)| *g == group && *v == version).map(|(_, _, p)| *p);
    let own = package.and_then(|p| crate::facts::type_by_name(&format!("{p}.{kind}")));
    own.or_else(|| {
        let meta = matches!(
            kind,
            "Status" | "List" | "DeleteOptions" | "ListOptions" | "GetOptions" | "CreateOptions" | "UpdateOptions"
                | "PatchOptions" | "ApplyOptions" | "WatchEvent" | "APIVersions" | "APIGroup" | "APIGroupList"
                | "APIResourceList" | "PartialObjectMetadata" | "PartialObjectMetadataList" | "Table" | "TableOptions"
        );
        if !meta {
            return None;
        }
        crate::facts::type_by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
    })
    .map(|t| t.name)
}

/// What the table says of a custom resource in one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Custom {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub status: bool,
    pub scale: bool,
}

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];

impl Custom {
    /// The row of the table. The same description always has the same row; rows stay for as long as the process lives,
    /// some hundred bytes each, so that requests can hold them whatever becomes of the definition.
    pub fn row(&self) -> &'static Resource {
        static ROWS: OnceLock<Mutex<HashMap<Custom, &'static Resource>>> = OnceLock::new();
        let mut rows = ROWS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(row) = rows.get(self) {
            return row;
        }
        let row: &'static Resource = Box::leak(Box::new(self.leak()));
        rows.insert(self.clone(), row);
        row
    }

    fn leak(&self) -> Resource {
        let text = |s: &str| -> &'static str { s.to_owned().leak() };
        let list = |l: &[String]| -> &'static [&'static str] { l.iter().map(|s| text(s)).collect::<Vec<_>>().leak() };
        let (group, version, kind) = (text(&self.group), text(&self.version), text(&self.kind));
        let mut subresources = Vec::new();
        if self.status {
            subresources.push(Subresource { name: "status", group, version, kind, foreign: false, verbs: &SUBRESOURCE_VERBS });
        }
        if self.scale {
            let (group, version) = ("autoscaling", "v1");
            subresources.push(Subresource { name: "scale", group, version, kind: "Scale", foreign: true, verbs: &SUBRESOURCE_VERBS });
        }
        Resource {
            group,
            version,
            kind,
            list_kind: text(&self.list_kind),
            plural: text(&self.plural),
            singular: text(&self.singular),
            short_names: list(&self.short_names),
            categories: list(&self.categories),
            namespaced: self.namespaced,
            verbs: &VERBS,
            subresources: subresources.leak(),
            storage_prefix: text(&format!("/registry/{}/{}/", self.group, self.plural)),
            storage_version: None,
            storage_json: true,
            storage_version_hash: None,
            type_name: "",
        }
    }
}

/// What clients of before call a kind that is read under its new version alone and looks the same.
pub fn also_read(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("policy", "Eviction") => &["policy/v1beta1"],
        _ => &[],
    }
}

/// Splits an apiVersion into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

struct Table {
    groups: Vec<Group>,
    resources: Vec<Resource>,
    packages: Vec<(&'static str, &'static str, &'static str)>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(parse)
}

fn parse() -> Table {
    // kinds that are no resource of a served group version
    let mut packages = vec![
        ("admission.k8s.io", "v1", "io.k8s.api.admission.v1"),
        ("apidiscovery.k8s.io", "v2", "io.k8s.api.apidiscovery.v2"),
        ("meta.k8s.io", "v1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
        ("meta.k8s.io", "v1beta1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
        ("metrics.k8s.io", "v1beta1", "io.k8s.metrics.pkg.apis.metrics.v1beta1"),
    ];
    let mut groups: Vec<Group> = Vec::new();
    let mut resources: Vec<Resource> = Vec::new();
    let mut subresources: Vec<Subresource> = Vec::new();
    let (mut group, mut version, mut package) = ("", "", "");
    for line in TEXT.lines() {
        let w: Vec<&'static str> = line.split(' ').collect();
        if w[0] != "S"
            && !subresources.is_empty()
            && let Some(last) = resources.last_mut()
        {
            last.subresources = std::mem::take(&mut subresources).leak();
        }
        match w[0] {
            "G" => {
                group = dash(w[1]).unwrap_or("");
                groups.push(Group { name: group, versions: Vec::new() });
            }
            "V" => {
                (version, package) = (w[1], w[2]);
                packages.push((group, version, package));
                if let Some(g) = groups.last_mut() {
                    g.versions.push(version);
                }
            }
            "R" => resources.push(Resource {
                group,
                version,
                plural: w[1],
                singular: w[2],
                kind: w[3],
                list_kind: format!("{}List", w[3]).leak(),
                namespaced: w[4] == "n",
                verbs: verbs(w[5]),
                short_names: list(w[6]),
                categories: list(w[7]),
                storage_version_hash: dash(w[8]),
                storage_prefix: dash(w[9]).unwrap_or(""),
                storage_version: dash(w[10]).map(split_api_version),
                storage_json: matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io"),
                subresources: &[],
                type_name: format!("{package}.{}", w[3]).leak(),
            }),
            _ => {
                let foreign = dash(w[3]).map(split_api_version);
                let (g, v) = foreign.unwrap_or((group, version));
                let foreign = foreign.is_some();
                subresources.push(Subresource { name: w[1], kind: w[2], group: g, version: v, foreign, verbs: verbs(w[4]) });
            }
        }
    }
    if let Some(last) = resources.last_mut().filter(|_| !subresources.is_empty()) {
        last.subresources = subresources.leak();
    }
    Table { groups, resources, packages }
}

fn dash(word: &'static str) -> Option<&'static str> {
    (word != "-").then_some(word)
}

fn list(word: &'static str) -> &'static [&'static str] {
    match dash(word) {
        Some(word) => word.split(',').collect::<Vec<_>>().leak(),
        None => &[],
    }
}

fn verbs(letters: &str) -> &'static [&'static str] {
    let name = |c| match c {
        'c' => "create",
        'd' => "delete",
        'D' => "deletecollection",
        'g' => "get",
        'l' => "list",
        'p' => "patch",
        'u' => "update",
        _ => "watch",
    };
    letters.chars().map(name).collect::<Vec<_>>().leak()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::type_by_name;

    #[test]
    fn every_resource_and_list_has_a_type() {
        assert!(all().len() > 60);
        for r in all() {
            assert!(type_by_name(r.type_name).is_some(), "{}", r.type_name);
            if r.has_verb("list") {
                assert!(type_by_name(&r.list_type_name()).is_some(), "{}", r.list_type_name());
                assert!(r.storage_prefix.starts_with("/registry/") || r.plural == "componentstatuses", "{r:?}");
            }
            for s in r.subresources {
                assert!(type_name(s.group, s.version, s.kind).is_some(), "{s:?}");
            }
        }
    }

    #[test]
    fn pods_are_as_upstream_serves_them() {
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!((pods.kind, pods.short_names, pods.categories), ("Pod", &["po"][..], &["all"][..]));
        assert_eq!(pods.storage_prefix, "/registry/pods/");
        assert_eq!(pods.subresource("eviction").map(|s| (s.group, s.version, s.kind)), Some(("policy", "v1", "Eviction")));
        assert_eq!(find("", "v1", "nodes").unwrap().storage_prefix, "/registry/minions/");
        assert_eq!(groups()[0].name, "");
        assert_eq!(groups().iter().find(|g| g.name == "autoscaling").unwrap().versions, ["v2", "v1"]);
    }
}
