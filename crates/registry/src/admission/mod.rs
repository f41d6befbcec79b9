//! The admission plug-ins, in upstream's order.

mod certificates;
mod conditions;
mod configured;
mod defaults;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
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

/// All plug-ins that upstream enables by default (of those that need no controller of their own),
/// and NodeRestriction, which kubeadm enables.
pub(crate) fn plugins() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle),
        Arc::new(limit_ranger::LimitRanger),
        Arc::new(service_account::ServiceAccount),
        Arc::new(node_restriction::NodeRestriction),
        Arc::new(defaults::TaintNodesByCondition),
        Arc::new(pod_security::PodSecurity),
        Arc::new(priority::Priority),
        Arc::new(defaults::DefaultTolerationSeconds),
        Arc::new(defaults::DefaultStorageClass),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(storage::PersistentVolumeClaimResize),
        Arc::new(defaults::RuntimeClass),
        Arc::new(certificates::CertificateApproval),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(defaults::DefaultIngressClass),
        Arc::new(policy::MutatingAdmissionPolicy::default()),
        Arc::new(webhooks::Mutating::new()),
        Arc::new(policy::ValidatingAdmissionPolicy::default()),
        Arc::new(webhooks::Validating::new()),
        Arc::new(resource_quota::ResourceQuota),
    ]
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
