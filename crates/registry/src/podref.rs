//! What a pod refers to (secrets, config maps, claims, its service account), and what it asks for.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde_json::Value;

use crate::util::{items, map, text};

/// A kind that a pod can refer to by name in its own namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// Every reference of a pod's specification (and, for resource claims, status).
pub(crate) fn references(pod: &Value) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            found.push((kind, name.to_owned()));
        }
    };
    add(Kind::ServiceAccount, text(pod, "/spec/serviceAccountName"));
    for secret in items(pod, "/spec/imagePullSecrets") {
        add(Kind::Secret, text(secret, "/name"));
    }
    for list in ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"] {
        for container in items(pod, list) {
            for env in items(container, "/env") {
                add(Kind::Secret, text(env, "/valueFrom/secretKeyRef/name"));
                add(Kind::ConfigMap, text(env, "/valueFrom/configMapKeyRef/name"));
            }
            for env in items(container, "/envFrom") {
                add(Kind::Secret, text(env, "/secretRef/name"));
                add(Kind::ConfigMap, text(env, "/configMapRef/name"));
            }
        }
    }
    for volume in items(pod, "/spec/volumes") {
        add(Kind::Secret, text(volume, "/secret/secretName"));
        add(Kind::ConfigMap, text(volume, "/configMap/name"));
        add(Kind::Claim, text(volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some() {
            add(Kind::Claim, &format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")));
        }
        for source in items(volume, "/projected/sources") {
            add(Kind::Secret, text(source, "/secret/name"));
            add(Kind::ConfigMap, text(source, "/configMap/name"));
        }
        add(Kind::Secret, text(volume, "/azureFile/secretName"));
        add(Kind::Secret, text(volume, "/csi/nodePublishSecretRef/name"));
        for source in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
            add(Kind::Secret, text(volume, &format!("/{source}/secretRef/name")));
        }
    }
    for claim in items(pod, "/spec/resourceClaims") {
        add(Kind::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    for claim in items(pod, "/status/resourceClaimStatuses") {
        add(Kind::ResourceClaim, text(claim, "/resourceClaimName"));
    }
    add(Kind::ResourceClaim, text(pod, "/status/extendedResourceClaimStatus/resourceClaimName"));
    found
}

/// Whether this is the API server's picture of a pod that a kubelet runs from a file.
pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some()
}

/// Resource amounts by name.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// A container's `requests` or `limits`.
pub(crate) fn amounts(container: &Value, which: &str) -> Amounts {
    quantities(map(container, &format!("/resources/{which}")))
}

/// The amounts of a resource list.
pub(crate) fn quantities(map: Option<&serde_json::Map<String, Value>>) -> Amounts {
    map.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?))).collect()
}

/// What a whole pod asks for: the sum of its containers, or the largest init container.
pub(crate) fn total(pod: &Value, which: &str) -> Amounts {
    let mut sum = Amounts::new();
    let mut largest = Amounts::new();
    let add = |to: &mut Amounts, k: String, q: &Quantity| match to.get_mut(&k) {
        Some(sum) => sum.add(q),
        None => drop(to.insert(k, q.clone())),
    };
    for container in items(pod, "/spec/containers") {
        amounts(container, which).into_iter().for_each(|(k, q)| add(&mut sum, k, &q));
    }
    let mut sidecars = Amounts::new();
    for container in items(pod, "/spec/initContainers") {
        let wants = amounts(container, which);
        let sidecar = text(container, "/restartPolicy") == "Always";
        let mut at_once = sidecars.clone();
        for (k, q) in wants {
            add(&mut at_once, k.clone(), &q);
            if sidecar {
                add(&mut sidecars, k.clone(), &q);
                add(&mut sum, k, &q);
            }
        }
        for (k, q) in at_once {
            if largest.get(&k).is_none_or(|l| q > *l) {
                largest.insert(k, q);
            }
        }
    }
    for (k, q) in largest {
        if sum.get(&k).is_none_or(|s| q > *s) {
            sum.insert(k, q);
        }
    }
    for (k, q) in quantities(map(pod, &format!("/spec/resources/{which}"))) {
        sum.insert(k, q);
    }
    for (k, q) in quantities(map(pod, "/spec/overhead")) {
        if sum.contains_key(&k) || which == "requests" {
            add(&mut sum, k, &q);
        }
    }
    sum
}
