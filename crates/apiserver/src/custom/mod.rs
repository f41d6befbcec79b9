//! Custom resources: which there are, in which versions, and what is particular to them on the common road.
//!
//! The table ([`Table`]) is made from the cached definitions when somebody asks after they changed; what did not change
//! is kept. A [`Custom`] is one version of one definition, held by a request for as long as it lasts. The parts:
//! [`convert`] brings objects from one version to another, [`strategy`] is the strategy of all custom resources,
//! [`controller`] keeps the status of definitions and empties those that are deleted.
mod controller;
mod convert;
pub mod rules;
mod strategy;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use api::crd::columns::{self, Column};
use api::crd::{self, Schema, conditions};
use api::discovery::{Entry as Listed, GroupEntry, VersionEntry};
use api::openapi::CustomKind;
use arc_swap::ArcSwap;
use base64::Engine;
use parking_lot::Mutex;
use serde_json::Value;

use crate::cache::Entry;
use crate::core::Core;
use crate::model;
use crate::types::{Resource, Status};

pub use rules::Rules;
pub use strategy::CustomStrategy;

/// Where a scale's figures are in an object.
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: String,
}

/// One version of a definition.
pub struct Version {
    pub name: String,
    /// No other version of any definition has it, nor this one after a change.
    pub id: u64,
    /// Clients may use it.
    served: bool,
    pub resource: &'static Resource,
    pub columns: Vec<Column>,
    /// Field selectors beside the common ones, without the leading dot.
    pub selectable: Vec<String>,
    pub scale: Option<Scale>,
    /// What every answer warns of.
    pub deprecation: Option<String>,
    at: usize,
    entry: Arc<Entry>,
    source: OnceLock<Option<Value>>,
    schema: OnceLock<Option<Schema>>,
    rules: OnceLock<Option<Rules>>,
}

impl Version {
    /// The `openAPIV3Schema`.
    pub fn source(&self) -> Option<&Value> {
        self.source
            .get_or_init(|| {
                let mut definition = self.entry.parse();
                definition.pointer_mut(&format!("/spec/versions/{}/schema/openAPIV3Schema", self.at)).map(Value::take)
            })
            .as_ref()
    }

    /// The same, compiled.
    pub fn schema(&self) -> Option<&Schema> {
        self.schema.get_or_init(|| self.source().map(Schema::new)).as_ref()
    }

    /// Its rules, compiled.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.get_or_init(|| self.source().and_then(|s| Rules::new(s, true))).as_ref()
    }
}

/// A definition whose names are accepted.
pub struct Definition {
    pub name: String,
    group: String,
    pub kind: String,
    versions: Vec<Arc<Version>>,
    /// The version that objects are stored in.
    storage: usize,
    /// Unknown fields stay (a setting from before there were structural schemas).
    preserve: bool,
    /// `spec.conversion.webhook`, where that is the strategy.
    webhook: Option<Value>,
    /// Changes with the spec and the accepted names.
    essence: u64,
}

impl Definition {
    fn version(&self, name: &str) -> Option<&Arc<Version>> {
        self.versions.iter().find(|v| v.name == name)
    }

    /// The versions that clients may use.
    pub(crate) fn served(&self) -> Vec<&'static Resource> {
        self.versions.iter().filter(|v| v.served).map(|v| v.resource).collect()
    }

    pub(crate) fn storage(&self) -> &Arc<Version> {
        &self.versions[self.storage]
    }
}

/// One version of a definition, as a request uses it.
#[derive(Clone)]
pub struct Custom {
    pub definition: Arc<Definition>,
    pub version: Arc<Version>,
    /// The definition is being deleted: nothing new may come.
    pub terminating: bool,
    /// Discovery shows it.
    established: bool,
}

/// All definitions that are served.
#[derive(Default)]
pub struct Table {
    /// The version of the definitions' cache that this is of.
    seen: u64,
    /// Changes with everything that discovery and OpenAPI show.
    pub generation: u64,
    /// By plural.
    customs: HashMap<String, Vec<Custom>>,
    /// Every definition by name: the revision it was looked at, its essence, and what is served of it.
    known: HashMap<String, Arc<Definition>>,
}

impl Table {
    /// The version that is served at this path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Custom> {
        self.customs.get(plural)?.iter().find(|c| c.version.served && c.version.name == version && c.definition.group == group)
    }

    fn of(&self, resource: &Resource) -> Option<&Custom> {
        self.customs.get(resource.plural)?.iter().find(|c| c.version.name == resource.version && c.definition.group == resource.group)
    }

    fn shown(&self) -> Vec<&Custom> {
        let mut all: Vec<&Custom> = self.customs.values().flatten().filter(|c| c.established && c.version.served).collect();
        all.sort_by_key(|c| (c.version.resource.group, c.version.resource.plural));
        all
    }

    /// Adds what discovery shows to the groups that there are without.
    pub fn discover(&self, groups: &mut Vec<GroupEntry>) {
        for custom in self.shown() {
            let resource = custom.version.resource;
            if model::find(resource.group, resource.version, resource.plural).is_some() {
                continue;
            }
            let at = groups.iter().position(|g| g.name == resource.group).unwrap_or_else(|| {
                groups.push(GroupEntry { name: resource.group.to_string(), versions: Vec::new() });
                groups.len() - 1
            });
            let versions = &mut groups[at].versions;
            let at = versions.iter().position(|v| v.version == resource.version).unwrap_or_else(|| {
                versions.push(VersionEntry { version: resource.version.to_string(), resources: Vec::new(), stale: false });
                versions.len() - 1
            });
            versions[at].resources.push(custom.listed());
            versions.sort_by(|a, b| crd::compare_versions(&b.version, &a.version));
        }
    }

    /// What OpenAPI shows, by group version (`apis/example.com/v1`) with a text that changes when it does.
    pub fn published(&self) -> Vec<(String, String, Vec<&Custom>)> {
        let mut all: Vec<(String, String, Vec<&Custom>)> = Vec::new();
        for custom in self.shown() {
            let resource = custom.version.resource;
            let path = format!("apis/{}/{}", resource.group, resource.version);
            let mark = format!("{}:{:x};", resource.plural, custom.definition.essence);
            match all.iter_mut().find(|(p, _, _)| *p == path) {
                Some((_, marks, customs)) => {
                    marks.push_str(&mark);
                    customs.push(custom);
                }
                None => all.push((path, mark, vec![custom])),
            }
        }
        all
    }
}

impl Custom {
    pub fn resource(&self) -> &'static Resource {
        self.version.resource
    }

    /// The entry of discovery.
    fn listed(&self) -> Listed {
        let r = self.version.resource;
        let mut entry = Listed::from(r);
        if self.terminating {
            entry.verbs.retain(|v| !matches!(v.as_str(), "create" | "update" | "patch"));
        }
        let storage = self.definition.storage();
        if storage.served {
            let text = format!("{}/{}/{}", self.definition.group, storage.name, self.definition.kind);
            let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
            entry.storage_version_hash = Some(base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8]));
        }
        entry
    }

    /// What OpenAPI shows.
    pub fn openapi(&self) -> CustomKind {
        let r = self.version.resource;
        let entry = Listed::from(r);
        CustomKind {
            group: r.group.to_string(),
            version: r.version.to_string(),
            entry,
            list_kind: r.list_kind.to_string(),
            schema: self.version.source().cloned(),
            selectable: self.version.selectable.clone(),
            preserve: self.definition.preserve,
        }
    }

    /// Brings an object of a client into shape: metadata of the right types, no unknown fields, no nulls that may not
    /// be. Answers the paths of unknown fields, or why it cannot be done.
    pub fn settle(&self, value: &mut Value) -> Result<Vec<String>, String> {
        self.definition.settle(&self.version, value, crd::Embedded::Refuse)
    }

    /// The field label to select by, or the sentence of a 400 answer.
    pub fn field_label(&self, label: &str) -> Result<String, String> {
        let known = label == "metadata.name"
            || label == "metadata.namespace" && self.version.resource.namespaced
            || self.version.selectable.iter().any(|s| s == label);
        if known { Ok(label.to_string()) } else { Err(format!("field label not supported: {label}")) }
    }

    /// The value of a field label in an object.
    pub fn field(&self, object: &Value, label: &str) -> Option<String> {
        Some(match crd::path::get(object, label) {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
            _ => String::new(),
        })
    }

    /// Fills in defaults.
    pub fn apply_defaults(&self, value: &mut Value) {
        if let Some(schema) = self.version.schema() {
            crd::apply_defaults(value, schema);
        }
    }
}

impl Definition {
    fn settle(&self, version: &Version, value: &mut Value, embedded: crd::Embedded) -> Result<Vec<String>, String> {
        let mut unknown = Vec::new();
        if let Some(metadata) = value.get_mut("metadata") {
            let fields = crd::object_meta(metadata)?;
            unknown.extend(fields.into_iter().map(|f| format!("metadata.{f}")));
        }
        let empty = Schema::default();
        let schema = version.schema();
        if !self.preserve {
            unknown.extend(crd::prune(value, schema.unwrap_or(&empty), true));
            crd::prune_nulls(value, schema);
        }
        if let Some(schema) = schema {
            unknown.extend(embedded.settle(value, schema)?);
        }
        Ok(unknown)
    }
}

/// The table, made anew when definitions changed.
#[derive(Default)]
pub struct Customs {
    table: ArcSwap<Table>,
    making: Mutex<()>,
}

/// The resource that definitions are.
pub(crate) fn definitions() -> Option<&'static Resource> {
    static RESOURCE: OnceLock<Option<&'static Resource>> = OnceLock::new();
    *RESOURCE.get_or_init(|| model::find(crd::GROUP, "v1", crd::PLURAL))
}

impl Core {
    /// The custom resources that are served now.
    pub(crate) fn customs(&self) -> Arc<Table> {
        let table = self.customs.table.load_full();
        let Some(cache) = definitions().and_then(|d| self.cache.resource(d.storage_prefix)) else { return table };
        if table.seen == cache.version() {
            return table;
        }
        let _making = self.customs.making.lock();
        let table = self.customs.table.load_full();
        let seen = cache.version();
        if table.seen == seen {
            return table;
        }
        let entries: Vec<Arc<Entry>> = cache.snapshot().map.from("").map(|(_, entry)| entry.clone()).collect();
        let table = Arc::new(make(&table, seen, &entries));
        self.customs.table.store(table.clone());
        table
    }

    /// The version of a definition that a request's resource is.
    pub(crate) fn custom(&self, resource: &Resource) -> Option<Custom> {
        if resource.is_custom() { self.customs().of(resource).cloned() } else { None }
    }

    /// As [`Core::custom`], of a custom resource that somebody works with.
    fn must_custom(&self, resource: &Resource) -> Result<Custom, Status> {
        self.custom(resource).ok_or_else(api::status::page_not_found)
    }
}

static IDS: AtomicU64 = AtomicU64::new(1);

fn make(before: &Table, seen: u64, entries: &[Arc<Entry>]) -> Table {
    let mut table = Table { seen, ..Table::default() };
    let mut shown = DefaultHasher::new();
    for entry in entries {
        let definition = entry.tree();
        let (accepted, established) = (conditions::is_true(&definition, "NamesAccepted"), conditions::is_true(&definition, "Established"));
        let terminating = conditions::is_true(&definition, "Terminating");
        if !accepted && !established {
            continue;
        }
        let name = crate::object::name(&definition).to_string();
        let essence = essence(&definition);
        let kept = before.known.get(&name).filter(|d| d.essence == essence).cloned();
        let Some(made) = kept.or_else(|| read(&definition, entry, essence).map(Arc::new)) else { continue };
        (essence, established, terminating).hash(&mut shown);
        for version in &made.versions {
            let custom = Custom { definition: made.clone(), version: version.clone(), terminating, established };
            table.customs.entry(version.resource.plural.to_string()).or_default().push(custom);
        }
        table.known.insert(name, made);
    }
    table.generation = shown.finish();
    table
}

fn essence(definition: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for pointer in ["/metadata/uid", "/spec", "/status/acceptedNames"] {
        definition.pointer(pointer).unwrap_or(&Value::Null).to_string().hash(&mut hasher);
    }
    hasher.finish()
}

fn read(definition: &Value, entry: &Arc<Entry>, essence: u64) -> Option<Definition> {
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_string();
    let flag = |value: &Value, key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
    let (group, kind) = (text("/spec/group"), text("/status/acceptedNames/kind"));
    let plural = text("/status/acceptedNames/plural");
    if kind.is_empty() || plural.is_empty() {
        return None;
    }
    let all = definition.pointer("/spec/versions")?.as_array()?;
    let versions = all.iter().enumerate().map(|(at, version)| {
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default().to_string();
        let scale = version.pointer("/subresources/scale").map(|scale| {
            let path = |key: &str| scale.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            Scale { spec_replicas: path("specReplicasPath"), status_replicas: path("statusReplicasPath"), selector: path("labelSelectorPath") }
        });
        let selectable = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
        Arc::new(Version {
            name,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            served: flag(version, "served"),
            resource: crd::resource(definition, version),
            columns: columns::columns(version),
            selectable: selectable
                .filter_map(|f| Some(f.get("jsonPath")?.as_str()?.trim_start_matches('.').to_string()))
                .collect(),
            scale,
            deprecation: crd::definition::deprecation(definition, version),
            at,
            entry: entry.clone(),
            source: OnceLock::new(),
            schema: OnceLock::new(),
            rules: OnceLock::new(),
        })
    });
    let storage = all.iter().position(|v| flag(v, "storage"))?;
    let webhook = Some(text("/spec/conversion/strategy")).filter(|s| s == "Webhook");
    Some(Definition {
        name: text("/metadata/name"),
        versions: versions.collect(),
        storage,
        preserve: definition.get("spec").is_some_and(|s| flag(s, "preserveUnknownFields")),
        webhook: webhook.and_then(|_| definition.pointer("/spec/conversion/webhook").cloned()),
        group,
        kind,
        essence,
    })
}
