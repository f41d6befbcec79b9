//! What the scheduler keeps of a node object.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::requests::{List, Resources};
use crate::selector::Labels;

/// A taint's effect on pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
    #[serde(other)]
    Unknown,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Taint {
    pub key: Box<str>,
    #[serde(default)]
    pub value: Box<str>,
    pub effect: Effect,
}

impl Taint {
    /// Whether pods that do not tolerate it are kept away.
    pub fn is_hard(&self) -> bool {
        matches!(self.effect, Effect::NoSchedule | Effect::NoExecute)
    }
}

/// The part of a node object that decisions rest on.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    meta: ObjectMeta,
    pub labels: Labels,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
    /// Sizes of images by name, in bytes.
    pub images: Vec<(Box<str>, i64)>,
    /// Features that the node has declared, ordered.
    pub features: Vec<Box<str>>,
}

impl NodeView {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    /// Whether the node has declared that it can do this.
    pub fn declares(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f.as_ref() == feature)
    }

    /// Whether nothing that decisions rest on differs.
    pub fn same(&self, other: &NodeView) -> bool {
        self.labels == other.labels
            && self.unschedulable == other.unschedulable
            && self.taints == other.taints
            && self.allocatable == other.allocatable
            && self.images == other.images
            && self.features == other.features
    }
}

#[derive(Deserialize)]
struct RawNode {
    metadata: RawMeta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawMeta {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub generation: Option<i64>,
    pub deletion_timestamp: Option<String>,
    pub creation_timestamp: Option<String>,
    pub owner_references: Option<Vec<RawOwner>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RawOwner {
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
    pub controller: Option<bool>,
}

impl RawMeta {
    /// What of the metadata is kept: names and versions.
    pub(crate) fn kept(&mut self) -> ObjectMeta {
        ObjectMeta {
            name: self.name.take(),
            namespace: self.namespace.take(),
            uid: self.uid.take(),
            resource_version: self.resource_version.take(),
            ..ObjectMeta::default()
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSpec {
    unschedulable: Option<bool>,
    taints: Option<Vec<Taint>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    allocatable: Option<List>,
    capacity: Option<List>,
    images: Option<Vec<RawImage>>,
    declared_features: Option<Vec<Box<str>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawImage {
    names: Option<Vec<Box<str>>>,
    size_bytes: Option<i64>,
}

impl<'de> Deserialize<'de> for NodeView {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<NodeView, D::Error> {
        let mut raw = RawNode::deserialize(d)?;
        let list = raw.status.allocatable.or(raw.status.capacity).unwrap_or_default();
        let images = raw.status.images.unwrap_or_default().into_iter();
        Ok(NodeView {
            labels: raw.metadata.labels.take().unwrap_or_default().into_iter().collect(),
            meta: raw.metadata.kept(),
            unschedulable: raw.spec.unschedulable.unwrap_or(false),
            taints: raw.spec.taints.unwrap_or_default(),
            allocatable: Resources::parse(&list),
            images: images.flat_map(|i| i.names.unwrap_or_default().into_iter().map(move |n| (n, i.size_bytes.unwrap_or(0)))).collect(),
            features: raw.status.declared_features.unwrap_or_default(),
        })
    }
}

reconcile::resource_as!(NodeView, meta, Node);
