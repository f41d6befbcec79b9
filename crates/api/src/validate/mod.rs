//! Whether objects are well formed: what each built-in kind demands of new and
//! of changed objects, in upstream's words. Objects are expected in their
//! normal form, with defaults filled in.
//!
//! Not here: that an update names a resource version, quotas, and whatever
//! needs to look at other objects. Kinds without rules of their own have their
//! metadata checked.

mod annotations;
mod at;
mod container;
mod devices;
mod drivers;
mod events;
mod flowcontrol;
mod jobs;
mod limits;
mod meta;
pub(crate) mod net;
mod networks;
mod objects;
mod pod;
mod scaling;
mod scheduling;
mod service;
mod services;
mod sources;
mod storage;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_kinds;
mod volumes;
mod windows;
mod workloads;

pub use crate::field::{ErrorKind, FieldError, Path};

use crate::names;
use crate::resources::Resource;
use at::{At, Errors};
use serde_json::Value;

/// What is wrong with a new object. Kinds that are not stored (reviews, bindings) are for their handlers to check.
pub fn create(resource: &Resource, obj: &Value) -> Vec<FieldError> {
    if resource.storage_prefix.is_empty() {
        return Vec::new();
    }
    let errs = Errors::default();
    let at = At::root(obj, &errs);
    let (group, kind) = (resource.group, resource.kind);
    let spec = at.at("spec");
    if (group, kind) == ("", "Pod") {
        pod::create(&at);
        return errs.into_inner();
    }
    if kind == "Event" {
        events::event(&at, group.is_empty(), None);
        return errs.into_inner();
    }
    meta::create(&at.at("metadata"), resource.namespaced, name_check(group, kind));
    if rounds(group, kind, "").known {
        meta::finalizer_names(&at.at("metadata"));
    }
    if changing(group, kind, &at, None) {
        return errs.into_inner();
    }
    match (group, kind) {
        ("", "Service") => service::service(&at, None),
        ("", "Node") => objects::node(&at, None, false),
        ("", "PersistentVolume") => {
            both(group, kind, &at);
            annotations::mount_options(&at);
        }
        ("networking.k8s.io", "Ingress") => {
            both(group, kind, &at);
            annotations::ingress_class(&at);
        }
        ("apps", "StatefulSet") => workloads::stateful_set(&spec, true),
        ("batch", "Job") => workloads::job(&at, None),
        ("batch", "CronJob") => {
            workloads::cron_job(&spec, None);
            if at.down(&["metadata", "name"]).text().len() > 52 {
                at.down(&["metadata", "name"]).invalid("must be no more than 52 characters");
            }
        }
        ("apps", "ControllerRevision") => {
            at.at("revision").nonnegative();
            if !at.at("data").set() {
                at.at("data").required("data is mandatory");
            }
        }
        ("node.k8s.io", "RuntimeClass") => objects::runtime_class(&at, None),
        ("resource.k8s.io", "ResourceClaim") => devices::claim_spec(&spec),
        ("resource.k8s.io", "ResourceClaimTemplate") => devices::template_spec(&spec),
        ("resource.k8s.io", "ResourceSlice") => devices::slice(&at, None),
        _ => both(group, kind, &at),
    }
    errs.into_inner()
}

/// What is wrong with an object where nothing may be privileged.
pub fn privileged(resource: &Resource, obj: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    if let Some(way) = crate::gates::pod_spec(resource.group, resource.kind) {
        windows::privileged(&At::root(obj, &errs).down(way));
    }
    errs.into_inner()
}

/// What is wrong with a changed object.
pub fn update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    let (at, before) = (At::root(new, &errs), At::root(old, &errs));
    let (group, kind) = (resource.group, resource.kind);
    let (spec, old_spec) = (at.at("spec"), before.at("spec"));
    meta::updated(&at.at("metadata"), &before.at("metadata"), &rounds(group, kind, ""));
    if (group, kind) == ("", "Pod") {
        pod::update(&at, &before);
        return errs.into_inner();
    }
    if kind == "Event" {
        events::event(&at, group.is_empty(), Some(&before));
        return errs.into_inner();
    }
    if changing(group, kind, &at, Some(&before)) {
        return errs.into_inner();
    }
    match (group, kind) {
        ("", "Service") => service::service(&at, Some(&before)),
        ("", "Node") => objects::node(&at, Some(&before), false),
        // may be updated whatever else they say
        ("", "Namespace") => {}
        ("apps", "Deployment" | "ReplicaSet") => {
            both(group, kind, &at);
            spec.at("selector").immutable(&old_spec.at("selector"));
        }
        ("apps", "DaemonSet") => {
            spec.at("selector").immutable(&old_spec.at("selector"));
            both(group, kind, &at);
        }
        ("apps", "StatefulSet") => {
            workloads::stateful_set(&spec, false);
            workloads::stateful_set_update(&spec, &old_spec);
        }
        ("apps", "ControllerRevision") => objects::controller_revision_update(&at, &before),
        ("batch", "Job") => workloads::job_update(&at, &before),
        ("batch", "CronJob") => workloads::cron_job(&spec, Some(&old_spec)),
        ("", "ConfigMap" | "Secret") => {
            if kind == "Secret" {
                at.at("type").immutable(&before.at("type"));
            }
            objects::immutable_data(&at, &before);
            both(group, kind, &at);
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            both(group, kind, &at);
            objects::role_binding_update(&at, &before);
        }
        ("scheduling.k8s.io", "PriorityClass") => objects::priority_class_update(&at, &before),
        ("discovery.k8s.io", "EndpointSlice") => {
            both(group, kind, &at);
            at.at("addressType").immutable(&before.at("addressType"));
        }
        ("storage.k8s.io", "StorageClass") => storage::storage_class_update(&at, &before),
        ("", "PersistentVolumeClaim") => {
            both(group, kind, &at);
            storage::claim_update(&at, &before);
        }
        ("", "PersistentVolume") => {
            // once as an object, once as a change
            both(group, kind, &at);
            annotations::mount_options(&at);
            both(group, kind, &at);
            storage::volume_update(&at, &before);
        }
        ("node.k8s.io", "RuntimeClass") => objects::runtime_class(&at, Some(&before)),
        ("resource.k8s.io", "ResourceClaim") => spec.immutable(&old_spec),
        ("resource.k8s.io", "ResourceClaimTemplate") => {
            devices::template_spec(&spec);
            spec.immutable(&old_spec);
        }
        ("resource.k8s.io", "ResourceSlice") => devices::slice(&at, Some(&before)),
        _ => both(group, kind, &at),
    }
    errs.into_inner()
}

/// Kinds whose rules for new and changed objects are one function, as most newer ones are; whether it is one of them.
fn changing(group: &str, kind: &str, at: &At<'_>, old: Option<&At<'_>>) -> bool {
    let (spec, old_spec) = (at.at("spec"), old.map(|o| o.at("spec")));
    match (group, kind) {
        ("storage.k8s.io", "CSIDriver") => drivers::driver(&spec, old_spec.as_ref()),
        ("storage.k8s.io", "CSINode") => drivers::node(&spec, old_spec.as_ref()),
        ("storage.k8s.io", "CSIStorageCapacity") => drivers::capacity(at, old),
        ("storage.k8s.io", "VolumeAttachment") => drivers::attachment(at, old),
        ("storage.k8s.io", "VolumeAttributesClass") => drivers::attributes_class(at, old),
        ("networking.k8s.io", "IPAddress") => networks::address(&spec, old_spec.as_ref()),
        ("networking.k8s.io", "ServiceCIDR") => networks::service_cidr(&spec, old_spec.as_ref()),
        ("networking.k8s.io", "IngressClass") => networks::ingress_class(&spec, old_spec.as_ref()),
        ("apiregistration.k8s.io", "APIService") => services::api_service(at),
        ("networking.k8s.io", "NetworkPolicy") => service::network_policy(&spec, old_spec.as_ref()),
        ("", "ResourceQuota") => limits::resource_quota(&spec, old_spec.as_ref()),
        ("autoscaling", "HorizontalPodAutoscaler") => scaling::autoscaler(&spec, old_spec.as_ref()),
        _ => return false,
    }
    true
}

/// How upstream looks at the metadata of changed objects of a kind.
fn rounds(group: &str, kind: &str, subresource: &str) -> meta::Rounds {
    let (changes, objects, known) = match (group, kind, subresource) {
        ("certificates.k8s.io", "CertificateSigningRequest", "status") => (1, 1, true),
        ("batch", "CronJob", "status") | ("policy", "PodDisruptionBudget", _) | ("", "Event", _) => (0, 0, false),
        (_, _, "status") => (1, 0, true),
        ("", "PodTemplate" | "ReplicationController" | "Service" | "ResourceQuota", _)
        | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet", _)
        | ("batch", "CronJob", _)
        | ("networking.k8s.io", "NetworkPolicy" | "ServiceCIDR", _)
        | ("autoscaling" | "events.k8s.io" | "scheduling.k8s.io", ..)
        | ("storage.k8s.io", "CSIDriver", _)
        | ("resource.k8s.io", "ResourceSlice", _) => (1, 0, true),
        ("", "LimitRange", _)
        | ("discovery.k8s.io" | crate::flowcontrol::GROUP, ..)
        | ("storage.k8s.io", "CSINode" | "VolumeAttachment", _) => (0, 1, true),
        ("admissionregistration.k8s.io", ..) => (0, 1, false),
        ("apiextensions.k8s.io" | "coordination.k8s.io", ..) => (1, 0, false),
        ("apiregistration.k8s.io" | "node.k8s.io", ..) => (1, 1, false),
        _ => (1, 1, true),
    };
    meta::Rounds { changes, objects, known }
}

/// What is wrong with an object whose status changed.
pub fn update_status(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    let (at, before) = (At::root(new, &errs), At::root(old, &errs));
    let status = at.at("status");
    meta::updated(&at.at("metadata"), &before.at("metadata"), &rounds(resource.group, resource.kind, "status"));
    if (resource.group, resource.kind) == ("", "Pod") {
        pod::update_status(&at, &before);
        return errs.into_inner();
    }
    match (resource.group, resource.kind) {
        ("", "Namespace") => objects::namespace_status(&at),
        ("", "Node") => objects::node(&at, Some(&before), true),
        ("", "Service") => service::balancer_status(&status.at("loadBalancer"), at.down(&["spec", "type"]).text() == "LoadBalancer"),
        ("networking.k8s.io", "Ingress") => service::ingress_status(&status.at("loadBalancer")),
        ("apps", "Deployment") => {
            workloads::status_counts(&status, "replicas", &["updatedReplicas", "readyReplicas", "availableReplicas"]);
            ["unavailableReplicas", "terminatingReplicas"].iter().for_each(|k| status.at(k).nonnegative());
            workloads::collisions(&status, &before.at("status"));
        }
        ("apps", "ReplicaSet") | ("", "ReplicationController") => {
            workloads::status_counts(&status, "replicas", &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]);
            status.at("terminatingReplicas").nonnegative();
        }
        ("apps", "StatefulSet") => {
            workloads::status_counts(&status, "replicas", &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"]);
            workloads::collisions(&status, &before.at("status"));
        }
        ("apps", "DaemonSet") => {
            let counts = [
                "currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady", "observedGeneration",
                "updatedNumberScheduled", "numberAvailable", "numberUnavailable",
            ];
            counts.iter().for_each(|k| status.at(k).nonnegative());
            workloads::collisions(&status, &before.at("status"));
        }
        ("policy", "PodDisruptionBudget") => {
            meta::conditions(&status.at("conditions"));
            ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"].iter().for_each(|k| status.at(k).nonnegative());
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => objects::policy_status(&status),
        ("certificates.k8s.io", "CertificateSigningRequest") => objects::certificate_conditions(&at),
        ("batch", "Job") => jobs::status(&at, &before),
        ("resource.k8s.io", "ResourceClaim") => devices::claim_status(&at, &before),
        (crate::flowcontrol::GROUP, _) => flowcontrol::conditions(&at),
        ("storage.k8s.io", "VolumeAttachment") => drivers::attachment(&at, Some(&before)),
        ("", "ResourceQuota") => limits::quota_status(&status),
        ("", "PersistentVolumeClaim") => storage::claim_status(&at),
        ("autoscaling", "HorizontalPodAutoscaler") => ["currentReplicas", "desiredReplicas"].iter().for_each(|k| status.at(k).nonnegative()),
        ("apiregistration.k8s.io", "APIService") => services::api_service_status(&status),
        _ => {}
    }
    errs.into_inner()
}

/// What is wrong with an object that was changed through a subresource; an empty one is the object itself.
pub fn update_through(resource: &Resource, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
    match subresource {
        "" => update(resource, new, old),
        "status" if resource.kind == "CertificateSigningRequest" => {
            let mut out = update_status(resource, new, old);
            let errs = Errors::default();
            objects::decided_conditions(&At::root(new, &errs), &At::root(old, &errs));
            out.extend(errs.into_inner());
            out
        }
        "approval" => {
            let mut out = update_status(resource, new, old);
            let errs = Errors::default();
            objects::approval(&At::root(new, &errs), &At::root(old, &errs));
            out.extend(errs.into_inner());
            out
        }
        "status" => update_status(resource, new, old),
        "finalize" => namespace_finalize(new, old),
        "ephemeralcontainers" => {
            let errs = Errors::default();
            pod::update_ephemeral(&At::root(new, &errs), &At::root(old, &errs));
            errs.into_inner()
        }
        _ => update(resource, new, old),
    }
}

/// What is wrong with the metadata of a new object of any kind, for custom resources too.
pub fn metadata_create(obj: &Value, namespaced: bool) -> Vec<FieldError> {
    let errs = Errors::default();
    meta::create(&At::root(obj, &errs).at("metadata"), namespaced, names::dns1123_subdomain);
    errs.into_inner()
}

/// What is wrong with the metadata of a changed object of any kind, for custom resources too.
pub fn metadata_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    meta::update(&At::root(new, &errs).at("metadata"), &At::root(old, &errs).at("metadata"));
    errs.into_inner()
}

/// What is wrong with a pod whose containers want other resources; `class` is whether that makes it one of another quality of service.
pub fn pod_resize(new: &Value, old: &Value, class: bool) -> Vec<FieldError> {
    let errs = Errors::default();
    pod::update_resize(&At::root(new, &errs), &At::root(old, &errs), class);
    errs.into_inner()
}

/// What is wrong with the metadata of a Scale, but for its name.
pub fn scale_metadata(scale: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    let metadata = At::root(scale, &errs).at("metadata");
    meta::object(&metadata);
    meta::finalizer_names(&metadata);
    errs.into_inner()
}

/// What is wrong with a service's addresses and their families, before any are given to it.
pub fn service_addresses(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let errs = Errors::default();
    let old = old.map(|o| At::root(o, &errs).at("spec"));
    service::addresses(&At::root(new, &errs).at("spec"), old.as_ref());
    errs.into_inner()
}

/// What is wrong with a `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &Path) -> Vec<FieldError> {
    let errs = Errors::default();
    meta::label_selector(&At::root(selector, &errs).named(path.clone()));
    errs.into_inner()
}

/// What is wrong with the finalizers of a namespace's spec, after a write to its `finalize` subresource.
pub fn namespace_finalize(new: &Value, old: &Value) -> Vec<FieldError> {
    let errs = Errors::default();
    meta::updated(&At::root(new, &errs).at("metadata"), &At::root(old, &errs).at("metadata"), &meta::Rounds { changes: 1, objects: 1, known: true });
    At::root(new, &errs).down(&["spec", "finalizers"]).items().for_each(|f| objects::finalizer(&f));
    errs.into_inner()
}

/// How objects of a kind may be named.
fn name_check(group: &str, kind: &str) -> meta::NameCheck {
    match (group, kind) {
        ("", "Namespace" | "Service") | ("apps", "StatefulSet") => names::dns1123_label,
        ("rbac.authorization.k8s.io", _) => names::path_segment,
        ("certificates.k8s.io", "CertificateSigningRequest") | ("apiregistration.k8s.io", _) => |_| Vec::new(),
        ("coordination.k8s.io", "LeaseCandidate") => names::config_map_key,
        ("networking.k8s.io", "IPAddress") => networks::address_name,
        ("certificates.k8s.io", "ClusterTrustBundle") => names::path_segment,
        _ => names::dns1123_subdomain,
    }
}

/// What holds for new and changed objects alike.
fn both(group: &str, kind: &str, at: &At<'_>) {
    let spec = at.at("spec");
    match (group, kind) {
        ("", "Namespace") => objects::namespace(at),
        ("", "ConfigMap") => objects::config_map(at),
        ("", "Secret") => objects::secret(at),
        ("", "Endpoints") => service::endpoints(at),
        ("", "PodTemplate") => pod::template(&at.at("template")),
        ("", "ReplicationController") => workloads::replication_controller(&spec),
        ("", "LimitRange") => limits::limit_range(&spec),
        ("", "PersistentVolumeClaim") => storage::claim_spec(&spec),
        ("", "PersistentVolume") => storage::volume_spec(&spec),
        ("apps", "Deployment") => workloads::deployment(&spec),
        ("apps", "ReplicaSet") => workloads::replica_set(&spec),
        ("apps", "DaemonSet") => workloads::daemon_set(&spec),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => objects::role(at, kind == "Role"),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => objects::role_binding(at, kind == "RoleBinding"),
        ("policy", "PodDisruptionBudget") => objects::disruption_budget(&spec),
        ("scheduling.k8s.io", "PriorityClass") => objects::priority_class(at),
        ("coordination.k8s.io", "Lease") => objects::lease(&spec),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(at),
        ("networking.k8s.io", "Ingress") => service::ingress(&spec),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(at),
        ("resource.k8s.io", "DeviceClass") => devices::class_spec(&spec),
        ("certificates.k8s.io", "CertificateSigningRequest") => objects::certificate_request(at),
        (crate::flowcontrol::GROUP, "FlowSchema") => flowcontrol::schema(at),
        (crate::flowcontrol::GROUP, _) => flowcontrol::level(at),
        _ => {}
    }
}
