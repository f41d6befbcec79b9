//! The controllers as data: the names that `--controllers` knows, upstream's older names for them, the
//! service account that each acts as, and what starts it. To add a controller, give its row a start.

use crate::{
    Config, Context, bootstrap_tokens, clusterrole_aggregation, cronjob, csr, daemonset, deployment, device_taint_eviction,
    disruption, endpoints, endpointslice, endpointslice_mirroring, garbage_collector, job, legacy_token_cleaner, namespace,
    node_ipam, node_lifecycle, pod_gc, policy_status, replicaset, resource_claim, resource_quota, root_ca, service_account, service_account_token,
    service_cidr, statefulset, taint_eviction, ttl, ttl_after_finished, volume,
};

/// Starts a controller as tasks of its context.
pub type Start = fn(&Context, &Config);

/// One controller.
pub struct Controller {
    /// Upstream's name.
    pub name: &'static str,
    /// The name that upstream had for it before 1.28, or nothing.
    pub alias: &'static str,
    /// The service account in `kube-system` that it acts as; empty for the controller manager itself.
    pub account: &'static str,
    /// Whether `*` means it too.
    pub on_by_default: bool,
    /// What starts it. Without, the name is known and nothing runs: upstream has it behind a feature
    /// gate that is off or in the cloud's own manager, or it is not written yet.
    pub start: Option<Start>,
}

const fn on(name: &'static str, alias: &'static str, account: &'static str, start: Option<Start>) -> Controller {
    Controller { name, alias, account, on_by_default: true, start }
}

const fn off(name: &'static str, alias: &'static str, account: &'static str, start: Option<Start>) -> Controller {
    Controller { name, alias, account, on_by_default: false, start }
}

/// What runs in a cloud's own manager does not run here, and upstream says so.
fn skip(controller: &str) {
    tracing::info!(controller, "Skipping a cloud provider controller");
}

/// All of them, in the order in which they start: those that make credentials first.
#[rustfmt::skip]
pub const CONTROLLERS: &[Controller] = &[
    on("serviceaccount-token-controller", "serviceaccount-token", "", Some(|c, config| {
        if let Some(signer) = &config.token_signer {
            service_account_token::start(c, config.root_ca.clone().unwrap_or_default(), signer.clone());
        }
    })),

    on("endpoints-controller", "endpoint", "endpoint-controller", Some(|c, _| endpoints::start(c))),

    on("endpointslice-controller", "endpointslice", "endpointslice-controller", Some(|c, config| endpointslice::start(c, config.limits.endpoints_per_slice))),

    on("endpointslice-mirroring-controller", "endpointslicemirroring", "endpointslicemirroring-controller", Some(|c, config| endpointslice_mirroring::start(c, config.limits.mirrored_per_subset))),

    on("replicationcontroller-controller", "replicationcontroller", "replication-controller", Some(|c, _| replicaset::start_replication_controllers(c))),

    on("pod-garbage-collector-controller", "podgc", "pod-garbage-collector", Some(|c, config| pod_gc::start(c, config.pod_gc.clone()))),

    on("resourcequota-controller", "resourcequota", "resourcequota-controller", Some(|c, _| resource_quota::start(c))),

    on("namespace-controller", "namespace", "namespace-controller", Some(|c, _| namespace::start(c))),

    on("serviceaccount-controller", "serviceaccount", "service-account-controller", Some(|c, _| service_account::start(c))),

    on("garbage-collector-controller", "garbagecollector", "generic-garbage-collector", Some(|c, _| garbage_collector::start(c))),

    on("daemonset-controller", "daemonset", "daemon-set-controller", Some(|c, _| daemonset::start(c))),

    on("job-controller", "job", "job-controller", Some(|c, _| job::start(c))),

    on("deployment-controller", "deployment", "deployment-controller", Some(|c, _| deployment::start(c))),

    on("replicaset-controller", "replicaset", "replicaset-controller", Some(|c, _| replicaset::start(c))),

    on("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling", "horizontal-pod-autoscaler", Some(|c, config| crate::podautoscaler::start(c, config.autoscaling.clone()))),

    on("disruption-controller", "disruption", "disruption-controller", Some(|c, _| disruption::start(c))),

    on("statefulset-controller", "statefulset", "statefulset-controller", Some(|c, _| statefulset::start(c))),

    on("cronjob-controller", "cronjob", "cronjob-controller", Some(|c, _| cronjob::start(c))),

    on("certificatesigningrequest-signing-controller", "csrsigning", "certificate-controller", Some(|c, config| {
        if let Some(signing) = &config.signing {
            csr::start_signer(c, signing.clone());
        }
    })),

    on("certificatesigningrequest-approving-controller", "csrapproving", "certificate-controller", Some(|c, _| csr::start_approver(c))),

    on("certificatesigningrequest-cleaner-controller", "csrcleaner", "certificate-controller", Some(|c, _| csr::start_cleaner(c))),

    on("podcertificaterequest-cleaner-controller", "", "podcertificaterequestcleaner", None),

    on("ttl-controller", "ttl", "ttl-controller", Some(|c, _| ttl::start(c))),

    off("bootstrap-signer-controller", "bootstrapsigner", "bootstrap-signer", Some(|c, _| bootstrap_tokens::start_signer(c))),

    off("token-cleaner-controller", "tokencleaner", "token-cleaner", Some(|c, _| bootstrap_tokens::start_cleaner(c))),

    on("node-ipam-controller", "nodeipam", "node-controller", Some(|c, config| {
        if let Some(ranges) = &config.node_ranges {
            node_ipam::start(c, ranges.cluster, ranges.node_mask);
        }
    })),

    on("node-lifecycle-controller", "nodelifecycle", "node-controller", Some(|c, config| node_lifecycle::start(c, config.node_lifecycle.clone()))),

    on("taint-eviction-controller", "", "node-controller", Some(|c, _| taint_eviction::start(c))),

    on("service-lb-controller", "service", "service-controller", Some(|_, _| skip("service-lb-controller"))),

    on("node-route-controller", "route", "route-controller", Some(|_, _| skip("node-route-controller"))),

    on("cloud-node-lifecycle-controller", "cloud-node-lifecycle", "node-controller", Some(|_, _| skip("cloud-node-lifecycle-controller"))),

    on("persistentvolume-binder-controller", "persistentvolume-binder", "persistent-volume-binder", Some(|c, _| volume::binder::start(c))),

    on("persistentvolume-attach-detach-controller", "attachdetach", "attachdetach-controller", Some(|c, _| volume::attach::start(c))),

    on("persistentvolume-expander-controller", "persistentvolume-expander", "expand-controller", Some(|c, _| volume::expand::start(c))),

    on("clusterrole-aggregation-controller", "clusterrole-aggregation", "clusterrole-aggregation-controller", Some(|c, _| clusterrole_aggregation::start(c))),

    on("persistentvolumeclaim-protection-controller", "pvc-protection", "pvc-protection-controller", Some(|c, _| volume::protection::start_claims(c))),

    on("persistentvolume-protection-controller", "pv-protection", "pv-protection-controller", Some(|c, _| volume::protection::start_volumes(c))),

    on("volumeattributesclass-protection-controller", "", "volumeattributesclass-protection-controller", Some(|c, _| volume::protection::start_classes(c))),

    on("ttl-after-finished-controller", "ttl-after-finished", "ttl-after-finished-controller", Some(|c, _| ttl_after_finished::start(c))),

    on("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", "root-ca-cert-publisher", Some(|c, config| {
        if let Some(bundle) = &config.root_ca {
            root_ca::start(c, bundle.clone());
        }
    })),

    on("kube-apiserver-serving-clustertrustbundle-publisher-controller", "", "kube-apiserver-serving-clustertrustbundle-publisher", None),

    on("ephemeral-volume-controller", "ephemeral-volume", "ephemeral-volume-controller", Some(|c, _| volume::ephemeral::start(c))),

    on("storageversion-garbage-collector-controller", "storage-version-gc", "storage-version-garbage-collector", None),

    on("resourceclaim-controller", "resource-claim-controller", "resource-claim-controller", Some(|c, _| resource_claim::start(c))),

    on("resourcepoolstatusrequest-controller", "", "resourcepoolstatusrequest-controller", None),

    on("device-taint-eviction-controller", "", "device-taint-eviction-controller", Some(|c, _| device_taint_eviction::start(c))),

    on("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner", "legacy-service-account-token-cleaner", Some(|c, config| legacy_token_cleaner::start(c, config.limits.unused_tokens))),

    on("validatingadmissionpolicy-status-controller", "", "validatingadmissionpolicy-status-controller", Some(|c, _| policy_status::start(c))),

    on("service-cidr-controller", "", "service-cidrs-controller", Some(|c, _| service_cidr::start(c))),

    on("podgroup-protection-controller", "", "podgroup-protection-controller", None),

    on("storage-version-migrator-controller", "svm", "storage-version-migrator-controller", None),

    off("selinux-warning-controller", "", "selinux-warning-controller", None),
];

/// Which controllers run, as `--controllers` says it: `*` is all that are on by default, `foo` turns
/// one on, `-foo` off; what is first decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<String>);

impl Default for Selection {
    fn default() -> Selection {
        Selection(vec!["*".into()])
    }
}

impl Selection {
    /// Reads the parts of a comma-separated list. Older names become today's; an error holds those
    /// that nobody knows.
    pub fn new<S: AsRef<str>>(parts: &[S]) -> Result<Selection, Vec<String>> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for part in parts.iter().map(AsRef::as_ref) {
            let (sign, name) = part.strip_prefix('-').map_or(("", part), |name| ("-", name));
            let found = CONTROLLERS.iter().find(|c| !name.is_empty() && (c.name == name || c.alias == name));
            match found {
                Some(controller) => known.push(format!("{sign}{}", controller.name)),
                None if part == "*" => known.push("*".into()),
                None => unknown.push(name.to_string()),
            }
        }
        if unknown.is_empty() { Ok(Selection(known)) } else { Err(unknown) }
    }

    /// Whether a controller is to run.
    pub fn has(&self, controller: &Controller) -> bool {
        for part in &self.0 {
            if part == controller.name {
                return true;
            }
            if part.strip_prefix('-') == Some(controller.name) {
                return false;
            }
        }
        controller.on_by_default && self.0.iter().any(|part| part == "*")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn selected(parts: &[&str]) -> BTreeSet<&'static str> {
        let selection = Selection::new(parts).expect("known names");
        CONTROLLERS.iter().filter(|c| selection.has(c)).map(|c| c.name).collect()
    }

    #[test]
    fn a_star_is_what_is_on_by_default() {
        let all = selected(&["*"]);
        assert!(all.contains("deployment-controller") && !all.contains("token-cleaner-controller"));
        assert_eq!(all.len(), CONTROLLERS.iter().filter(|c| c.on_by_default).count());
        assert!(selected(&[]).is_empty());
    }

    #[test]
    fn names_and_older_names_turn_on_and_off() {
        assert_eq!(selected(&["deployment", "job-controller"]), BTreeSet::from(["deployment-controller", "job-controller"]));
        let most = selected(&["*", "tokencleaner", "-csrapproving"]);
        assert!(most.contains("token-cleaner-controller"));
        assert!(!most.contains("certificatesigningrequest-approving-controller"));
        // what is first decides
        assert!(selected(&["job", "-job"]).contains("job-controller"));
        assert!(!selected(&["-job", "job", "*"]).contains("job-controller"));
    }

    #[test]
    fn names_that_nobody_knows_are_told() {
        assert_eq!(Selection::new(&["*", "-foo", "job", ""]), Err(vec!["foo".to_string(), String::new()]));
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<&str> = CONTROLLERS.iter().flat_map(|c| [c.name, c.alias]).filter(|n| !n.is_empty()).collect();
        // resourceclaim-controller's older name is its account's, nobody else's
        assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
    }
}
