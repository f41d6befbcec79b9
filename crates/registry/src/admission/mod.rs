//! The admission plug-ins, in upstream's order.

mod certificates;
mod conditions;
mod configured;
mod defaults;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod pods;
mod pod_security;
pub(crate) mod policy;
mod priority;
mod request;
mod resource_quota;
mod rules;
mod service_account;
mod storage;
pub(crate) mod webhooks;

use std::sync::Arc;

use api::status;
use apiserver::types::Status;
use apiserver::{Admission, Attributes};
use serde_json::Value;

use crate::util::text;

type Make = fn() -> Arc<dyn Admission>;

/// Upstream's plug-ins in upstream's order: whether each runs unless something else is said, and what makes it. What
/// nothing makes is not written, or has its work done elsewhere.
const PLUGINS: &[(&str, bool, Option<Make>)] = &[
    ("AlwaysAdmit", false, None),
    ("NamespaceAutoProvision", false, None),
    ("NamespaceLifecycle", true, Some(|| Arc::new(namespace_lifecycle::NamespaceLifecycle))),
    ("NamespaceExists", false, None),
    ("LimitPodHardAntiAffinityTopology", false, None),
    ("LimitRanger", true, Some(|| Arc::new(limit_ranger::LimitRanger))),
    ("ServiceAccount", true, Some(|| Arc::new(service_account::ServiceAccount))),
    ("NodeRestriction", false, Some(|| Arc::new(node_restriction::NodeRestriction))),
    ("TaintNodesByCondition", true, Some(|| Arc::new(defaults::TaintNodesByCondition))),
    ("AlwaysPullImages", false, Some(|| Arc::new(pods::AlwaysPullImages))),
    ("ImagePolicyWebhook", false, None),
    ("PodSecurity", true, Some(|| Arc::new(pod_security::PodSecurity))),
    ("PodNodeSelector", false, None),
    ("Priority", true, Some(|| Arc::new(priority::Priority))),
    ("DefaultTolerationSeconds", true, Some(|| Arc::new(defaults::DefaultTolerationSeconds))),
    ("PodTolerationRestriction", false, None),
    ("EventRateLimit", false, None),
    ("ExtendedResourceToleration", false, None),
    ("DefaultStorageClass", true, Some(|| Arc::new(defaults::DefaultStorageClass))),
    ("StorageObjectInUseProtection", true, Some(|| Arc::new(storage::StorageObjectInUseProtection))),
    ("PodGroupProtection", true, None),
    ("OwnerReferencesPermissionEnforcement", false, None),
    ("PersistentVolumeClaimResize", true, Some(|| Arc::new(storage::PersistentVolumeClaimResize))),
    ("RuntimeClass", true, Some(|| Arc::new(defaults::RuntimeClass))),
    ("CertificateApproval", true, Some(|| Arc::new(certificates::CertificateApproval))),
    ("CertificateSigning", true, Some(|| Arc::new(certificates::CertificateSigning))),
    ("ClusterTrustBundleAttest", true, None),
    ("CertificateSubjectRestriction", true, Some(|| Arc::new(certificates::CertificateSubjectRestriction))),
    ("DefaultIngressClass", true, Some(|| Arc::new(defaults::DefaultIngressClass))),
    ("DenyServiceExternalIPs", false, None),
    ("PodTopologyLabels", true, Some(|| Arc::new(pods::PodTopologyLabels))),
    ("PodGroupWorkloadExists", true, None),
    ("NodeDeclaredFeatureValidator", true, None),
    ("JobValidation", true, None),
    ("PodResizeValidator", true, None),
    ("MutatingAdmissionPolicy", true, Some(|| Arc::new(policy::MutatingAdmissionPolicy::default()))),
    ("MutatingAdmissionWebhook", true, Some(|| Arc::new(webhooks::Mutating::new()))),
    ("ValidatingAdmissionPolicy", true, Some(|| Arc::new(policy::ValidatingAdmissionPolicy::default()))),
    ("ValidatingAdmissionWebhook", true, Some(|| Arc::new(webhooks::Validating::new()))),
    ("ResourceQuota", true, Some(|| Arc::new(resource_quota::ResourceQuota))),
    ("AlwaysDeny", false, None),
];

/// Which plug-ins run, beside or without those that do by default.
#[derive(Clone, Debug)]
pub struct Plugins {
    enabled: Vec<String>,
    disabled: Vec<String>,
}

/// NodeRestriction, as kubeadm has it.
impl Default for Plugins {
    fn default() -> Plugins {
        Plugins { enabled: vec!["NodeRestriction".into()], disabled: Vec::new() }
    }
}

/// Why plug-ins cannot be chosen so.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PluginError {
    #[error("{0} plugin {1:?} is unknown")]
    Unknown(&'static str, String),
    #[error("[{}] in enable-admission-plugins and disable-admission-plugins overlapped", .0.join(" "))]
    Overlap(Vec<String>),
    #[error("enable-admission-plugins plugin {0:?} is not supported: leave it out")]
    Unsupported(String),
}

impl Plugins {
    /// As the flags `--enable-admission-plugins` and `--disable-admission-plugins` name them.
    pub fn new(enabled: Vec<String>, disabled: Vec<String>) -> Result<Plugins, PluginError> {
        for (flag, names) in [("enable-admission-plugins", &enabled), ("disable-admission-plugins", &disabled)] {
            if let Some(other) = names.iter().find(|n| !PLUGINS.iter().any(|(name, ..)| name == n)) {
                return Err(PluginError::Unknown(flag, other.clone()));
            }
        }
        let both: Vec<String> = enabled.iter().filter(|n| disabled.contains(n)).cloned().collect();
        if !both.is_empty() {
            return Err(PluginError::Overlap(both));
        }
        // Those of upstream's defaults that are not here decide nothing about what is served, and asking for them does no harm.
        let missing = |n: &&String| PLUGINS.iter().any(|(name, default, make)| name == n && !default && make.is_none());
        match enabled.iter().find(missing) {
            Some(name) => Err(PluginError::Unsupported(name.clone())),
            None => Ok(Plugins { enabled, disabled }),
        }
    }

    fn has(&self, name: &str, default: bool) -> bool {
        (default || self.enabled.iter().any(|n| n == name)) && !self.disabled.iter().any(|n| n == name)
    }

    /// The plug-ins that run, in order.
    pub(crate) fn make(&self) -> Vec<Arc<dyn Admission>> {
        PLUGINS.iter().filter(|(name, default, _)| self.has(name, *default)).filter_map(|(_, _, make)| make.map(|make| make())).collect()
    }
}

/// The refusal of a plug-in, about the object that is written.
pub(crate) fn forbidden(attributes: &Attributes<'_>, object: Option<&Value>, why: impl AsRef<str>) -> Status {
    let ctx = attributes.ctx;
    let name = [
        ctx.name.as_str(),
        object.map_or("", |o| text(o, "/metadata/name")),
        object.map_or("", |o| text(o, "/metadata/generateName")),
        "Unknown",
    ]
    .into_iter()
    .find(|n| !n.is_empty())
    .unwrap_or_default();
    status::forbidden(ctx.resource.group, ctx.resource.plural, name, why.as_ref())
}

/// Whether the write is of this resource itself, not of a subresource.
pub(crate) fn is(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    is_sub(attributes, group, plural, "")
}

/// Whether the write is of this subresource.
pub(crate) fn is_sub(attributes: &Attributes<'_>, group: &str, plural: &str, subresource: &str) -> bool {
    let ctx = attributes.ctx;
    ctx.resource.group == group && ctx.resource.plural == plural && ctx.subresource == subresource
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(plugins: &Plugins) -> Vec<&'static str> {
        plugins.make().iter().map(|p| p.name()).collect()
    }

    #[test]
    fn every_plugin_has_the_name_it_is_listed_under() {
        for (name, _, make) in PLUGINS {
            assert!(make.is_none_or(|make| make().name() == *name), "{name}");
        }
    }

    #[test]
    fn plugins_are_chosen_by_name() {
        assert!(names(&Plugins::default()).contains(&"NodeRestriction"));
        let own = |enabled: &[&str], disabled: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(|n| n.to_string()).collect();
            Plugins::new(texts(enabled), texts(disabled))
        };
        let chosen = names(&own(&["AlwaysPullImages"], &["PodSecurity"]).unwrap());
        assert!(chosen.contains(&"AlwaysPullImages") && !chosen.contains(&"PodSecurity") && !chosen.contains(&"NodeRestriction"));
        assert!(chosen.iter().position(|n| *n == "AlwaysPullImages") < chosen.iter().position(|n| *n == "Priority"), "in upstream's order");
        let wrong = |enabled: &[&str], disabled: &[&str]| own(enabled, disabled).unwrap_err().to_string();
        assert_eq!(wrong(&["DenyEscalatingExec"], &[]), "enable-admission-plugins plugin \"DenyEscalatingExec\" is unknown");
        assert_eq!(wrong(&[], &["Nonsense"]), "disable-admission-plugins plugin \"Nonsense\" is unknown");
        assert_eq!(wrong(&["Priority"], &["Priority"]), "[Priority] in enable-admission-plugins and disable-admission-plugins overlapped");
        assert!(wrong(&["ImagePolicyWebhook"], &[]).contains("is not supported"));
        assert!(own(&["PodResizeValidator"], &[]).is_ok());
    }
}
