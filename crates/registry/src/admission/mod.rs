//! The admission plug-ins, in upstream's order.

mod certificates;
mod conditions;
mod configured;
mod defaults;
mod event_rate_limit;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod optional;
mod owner_references;
mod pod_placement;
mod pods;
mod pod_security;
pub(crate) mod policy;
mod priority;
mod request;
mod resource_quota;
mod rules;
mod service_account;
mod settings;
mod storage;
pub(crate) mod webhooks;

pub(crate) use request::served;

use std::sync::Arc;

use api::status;
use apiserver::types::Status;
use apiserver::{Admission, Attributes};
use serde_json::Value;

use crate::util::text;
use pod_placement::{PodNodeSelector, PodTolerationRestriction};
pub use settings::Settings;

type Make = fn(&Settings) -> Arc<dyn Admission>;

/// Upstream's plug-ins in upstream's order: whether each runs unless something else is said, and what makes it. What
/// nothing makes is not written, or has its work done elsewhere.
const PLUGINS: &[(&str, bool, Option<Make>)] = &[
    ("AlwaysAdmit", false, Some(|_| Arc::new(optional::AlwaysAdmit))),
    ("NamespaceAutoProvision", false, Some(|_| Arc::new(optional::NamespaceAutoProvision))),
    ("NamespaceLifecycle", true, Some(|_| Arc::new(namespace_lifecycle::NamespaceLifecycle))),
    ("NamespaceExists", false, Some(|_| Arc::new(optional::NamespaceExists))),
    ("LimitPodHardAntiAffinityTopology", false, Some(|_| Arc::new(optional::LimitPodHardAntiAffinityTopology))),
    ("LimitRanger", true, Some(|_| Arc::new(limit_ranger::LimitRanger))),
    ("ServiceAccount", true, Some(|_| Arc::new(service_account::ServiceAccount))),
    ("NodeRestriction", false, Some(|_| Arc::new(node_restriction::NodeRestriction))),
    ("TaintNodesByCondition", true, Some(|_| Arc::new(defaults::TaintNodesByCondition))),
    ("AlwaysPullImages", false, Some(|_| Arc::new(pods::AlwaysPullImages))),
    ("ImagePolicyWebhook", false, None),
    ("PodSecurity", true, Some(|s| Arc::new(s.pod_security.clone()))),
    ("PodNodeSelector", false, Some(|s| Arc::new(PodNodeSelector { selectors: s.node_selectors.clone() }))),
    ("Priority", true, Some(|_| Arc::new(priority::Priority))),
    ("DefaultTolerationSeconds", true, Some(|s| Arc::new(defaults::DefaultTolerationSeconds { not_ready: s.not_ready_seconds, unreachable: s.unreachable_seconds }))),
    ("PodTolerationRestriction", false, Some(|s| Arc::new(PodTolerationRestriction { default: s.default_tolerations.clone(), whitelist: s.allowed_tolerations.clone() }))),
    ("EventRateLimit", false, Some(|s| Arc::new(event_rate_limit::EventRateLimit::new(&s.events)))),
    ("ExtendedResourceToleration", false, Some(|_| Arc::new(optional::ExtendedResourceToleration))),
    ("DefaultStorageClass", true, Some(|_| Arc::new(defaults::DefaultStorageClass))),
    ("StorageObjectInUseProtection", true, Some(|_| Arc::new(storage::StorageObjectInUseProtection))),
    ("PodGroupProtection", true, None),
    ("OwnerReferencesPermissionEnforcement", false, Some(|_| Arc::new(owner_references::OwnerReferencesPermissionEnforcement))),
    ("PersistentVolumeClaimResize", true, Some(|_| Arc::new(storage::PersistentVolumeClaimResize))),
    ("RuntimeClass", true, Some(|_| Arc::new(defaults::RuntimeClass))),
    ("CertificateApproval", true, Some(|_| Arc::new(certificates::CertificateApproval))),
    ("CertificateSigning", true, Some(|_| Arc::new(certificates::CertificateSigning))),
    ("ClusterTrustBundleAttest", true, None),
    ("CertificateSubjectRestriction", true, Some(|_| Arc::new(certificates::CertificateSubjectRestriction))),
    ("DefaultIngressClass", true, Some(|_| Arc::new(defaults::DefaultIngressClass))),
    ("DenyServiceExternalIPs", false, Some(|_| Arc::new(optional::DenyServiceExternalIps))),
    ("PodTopologyLabels", true, Some(|_| Arc::new(pods::PodTopologyLabels))),
    ("PodGroupWorkloadExists", true, None),
    ("NodeDeclaredFeatureValidator", true, None),
    ("JobValidation", true, None),
    ("PodResizeValidator", true, Some(|_| Arc::new(pods::PodResizeValidator))),
    ("MutatingAdmissionPolicy", true, Some(|_| Arc::new(policy::MutatingAdmissionPolicy::default()))),
    ("MutatingAdmissionWebhook", true, Some(|_| Arc::new(webhooks::Mutating::new()))),
    ("ValidatingAdmissionPolicy", true, Some(|_| Arc::new(policy::ValidatingAdmissionPolicy::default()))),
    ("ValidatingAdmissionWebhook", true, Some(|_| Arc::new(webhooks::Validating::new()))),
    ("ResourceQuota", true, Some(|_| Arc::new(resource_quota::ResourceQuota))),
    ("AlwaysDeny", false, Some(|_| Arc::new(optional::AlwaysDeny))),
];

/// Whether upstream has such a plug-in.
fn is_known(name: &str) -> bool {
    PLUGINS.iter().any(|(known, ..)| *known == name)
}

/// Which plug-ins run, beside or without those that do by default.
#[derive(Clone, Debug)]
pub struct Plugins {
    enabled: Vec<String>,
    disabled: Vec<String>,
    settings: Settings,
}

/// NodeRestriction, as kubeadm has it.
impl Default for Plugins {
    fn default() -> Plugins {
        Plugins { enabled: vec!["NodeRestriction".into()], disabled: Vec::new(), settings: Settings::default() }
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
    #[error("EventRateLimit needs a configuration: limits: Invalid value: []: must not be empty (--admission-control-config-file)")]
    NoLimits,
}

impl Plugins {
    /// As the flags `--enable-admission-plugins` and `--disable-admission-plugins` name them, and as they are configured.
    pub fn new(enabled: Vec<String>, disabled: Vec<String>, settings: Settings) -> Result<Plugins, PluginError> {
        for (flag, names) in [("enable-admission-plugins", &enabled), ("disable-admission-plugins", &disabled)] {
            if let Some(other) = names.iter().find(|n| !is_known(n)) {
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
            None if enabled.iter().any(|n| n == "EventRateLimit") && settings.events.is_empty() => Err(PluginError::NoLimits),
            None => Ok(Plugins { enabled, disabled, settings }),
        }
    }

    fn has(&self, name: &str, default: bool) -> bool {
        (default || self.enabled.iter().any(|n| n == name)) && !self.disabled.iter().any(|n| n == name)
    }

    /// Plug-ins that run and had better not.
    pub fn deprecated(&self) -> impl Iterator<Item = &'static str> {
        ["AlwaysAdmit", "AlwaysDeny"].into_iter().filter(|name| self.has(name, false))
    }

    /// The plug-ins that run, in order.
    pub(crate) fn make(&self) -> Vec<Arc<dyn Admission>> {
        PLUGINS.iter().filter(|(name, default, _)| self.has(name, *default)).filter_map(|(_, _, make)| make.map(|make| make(&self.settings))).collect()
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
            assert!(make.is_none_or(|make| make(&Settings::default()).name() == *name), "{name}");
        }
    }

    #[test]
    fn plugins_are_chosen_by_name() {
        assert!(names(&Plugins::default()).contains(&"NodeRestriction"));
        let own = |enabled: &[&str], disabled: &[&str]| {
            let texts = |all: &[&str]| all.iter().map(|n| n.to_string()).collect();
            Plugins::new(texts(enabled), texts(disabled), Settings::default())
        };
        let chosen = names(&own(&["AlwaysPullImages"], &["PodSecurity"]).unwrap());
        assert!(chosen.contains(&"AlwaysPullImages") && !chosen.contains(&"PodSecurity") && !chosen.contains(&"NodeRestriction"));
        assert!(chosen.iter().position(|n| *n == "AlwaysPullImages") < chosen.iter().position(|n| *n == "Priority"), "in upstream's order");
        let wrong = |enabled: &[&str], disabled: &[&str]| own(enabled, disabled).unwrap_err().to_string();
        assert_eq!(wrong(&["DenyEscalatingExec"], &[]), "enable-admission-plugins plugin \"DenyEscalatingExec\" is unknown");
        assert_eq!(wrong(&[], &["Nonsense"]), "disable-admission-plugins plugin \"Nonsense\" is unknown");
        assert_eq!(wrong(&["Priority"], &["Priority"]), "[Priority] in enable-admission-plugins and disable-admission-plugins overlapped");
        assert!(wrong(&["ImagePolicyWebhook"], &[]).contains("is not supported"));
        assert!(wrong(&["EventRateLimit"], &[]).contains("needs a configuration"));
        assert_eq!(own(&["AlwaysDeny"], &[]).unwrap().deprecated().collect::<Vec<_>>(), ["AlwaysDeny"]);
        assert!(own(&["PodResizeValidator"], &[]).is_ok());
    }
}
