//! The part of an object's metadata that the collector reads; nothing else is even decoded.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Deserialize, Deserializer};

/// An object of any kind.
#[derive(Debug, Clone, Deserialize)]
pub struct Slim {
    #[serde(default)]
    pub metadata: Meta,
}

/// Its metadata.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    #[serde(deserialize_with = "or_empty")]
    pub owner_references: Vec<OwnerReference>,
    #[serde(deserialize_with = "or_empty")]
    pub finalizers: Vec<String>,
    pub deletion_timestamp: Option<String>,
}

/// A list that may be `null`, as Go prints an empty one.
fn or_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
