//! Where a volume can be reached, in the words of its driver's nodes: node affinity by the driver's label
//! instead of the one for zones, taken from the volume's labels where it has no affinity of its own.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume};
use kube::ResourceExt;

use super::sources::BETWEEN_ZONES;

/// The labels of a zone and its region.
type Labels = (&'static str, &'static str);

const CURRENT: Labels = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region");
/// Their names before Kubernetes 1.17.
const OLDER: Labels = ("failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region");

/// What a volume's label says of its zones; empty when there is none.
pub(super) fn zones_label(volume: &PersistentVolume) -> &str {
    let of = |key: &str| volume.labels().get(key).map(String::as_str).filter(|v| !v.is_empty());
    of(OLDER.0).or_else(|| of(CURRENT.0)).unwrap_or_default()
}

fn requirements(volume: &PersistentVolume) -> impl Iterator<Item = &NodeSelectorRequirement> {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()?.required.as_ref());
    required.into_iter().flat_map(|r| &r.node_selector_terms).flat_map(|t| t.match_expressions.iter().flatten())
}

/// Whether there is anything to rename.
fn has_values(volume: &PersistentVolume, key: &str) -> bool {
    requirements(volume).any(|r| r.key == key && r.values.as_ref().is_some_and(|v| !v.is_empty()))
}

/// The labels that a volume uses: those of its affinity before its own, newer ones before older.
fn labels_used(volume: &PersistentVolume) -> Labels {
    let in_affinity = |labels: &Labels| requirements(volume).any(|r| r.key == labels.0);
    let on_it = |labels: &Labels| volume.labels().contains_key(labels.0);
    let all = [CURRENT, OLDER];
    all.into_iter().find(in_affinity).or_else(|| all.into_iter().find(on_it)).unwrap_or(CURRENT)
}

fn rename(volume: &mut PersistentVolume, from: &str, to: &str) {
    let required = volume.spec.as_mut().and_then(|s| s.node_affinity.as_mut()?.required.as_mut());
    let terms = required.into_iter().flat_map(|r| &mut r.node_selector_terms);
    terms.flat_map(|t| t.match_expressions.iter_mut().flatten()).filter(|r| r.key == from).for_each(|r| r.key = to.into());
}

/// Adds `key in (values)` to each term, and makes one where there is none.
fn require<'a>(volume: &mut PersistentVolume, key: &str, values: impl Iterator<Item = &'a str>) {
    let values: BTreeSet<&str> = values.map(str::trim).filter(|v| !v.is_empty()).collect();
    if values.is_empty() {
        return;
    }
    let values: Vec<String> = values.into_iter().map(str::to_string).collect();
    let affinity = volume.spec.get_or_insert_default().node_affinity.get_or_insert_default();
    let terms = &mut affinity.required.get_or_insert_default().node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    for term in terms {
        let requirement = NodeSelectorRequirement { key: key.into(), operator: "In".into(), values: Some(values.clone()) };
        term.match_expressions.get_or_insert_default().push(requirement);
    }
}

/// For a driver that labels nodes with their zones. Regions stay, by their present name.
pub(super) fn to_zone(volume: &mut PersistentVolume, key: &str) {
    let (zone, region) = labels_used(volume);
    if has_values(volume, zone) {
        rename(volume, zone, key);
    } else if let Some(zones) = volume.labels().get(zone).cloned() {
        require(volume, key, zones.split(BETWEEN_ZONES));
    }
    if region == OLDER.1 && has_values(volume, region) {
        rename(volume, region, CURRENT.1);
    }
}

/// For a driver that labels nodes with their zones and regions. Neither is ever several.
pub(super) fn to_zone_and_region(volume: &mut PersistentVolume, zone_key: &str, region_key: &str) {
    let (zone, region) = labels_used(volume);
    for (label, key) in [(zone, zone_key), (region, region_key)] {
        if has_values(volume, label) {
            rename(volume, label, key);
        } else if let Some(value) = volume.labels().get(label).cloned() {
            require(volume, key, std::iter::once(value.as_str()));
        }
    }
}
