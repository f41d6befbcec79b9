//! Objects of custom resources from the version they are stored in to the one that is asked for, and back.
//!
//! As upstream reads them: unknown fields go and defaults come by the stored version's schema, then the object is
//! converted (by name alone, or by a webhook), then unknown fields go by the wanted version's schema. What comes out is
//! kept beside the cached entry, so that nothing is converted twice.
use std::sync::Arc;

use api::crd::Embedded;
use serde_json::{Value, json};

use super::{Custom, Definition, Version};
use crate::cache::Entry;
use crate::core::Core;
use crate::object;
use crate::types::{Resource, Status};
use crate::webhook::Client;

/// Objects that are sent to a webhook at once.
const AT_ONCE: usize = 500;

impl Core {
    /// The entry as a resource serves it; of a built-in resource the entry itself.
    pub async fn view(&self, resource: &'static Resource, entry: Arc<Entry>) -> Result<Arc<Entry>, Status> {
        if !resource.is_custom() {
            return Ok(entry);
        }
        let custom = self.must_custom(resource)?;
        // on the heap: the futures of all writes hold this one
        let mut views = Box::pin(self.views(&custom, vec![entry])).await?;
        views.pop().ok_or_else(|| api::status::internal("a conversion lost its object"))
    }

    /// As [`Core::view`], of many entries.
    pub async fn views(&self, custom: &Custom, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
        let id = custom.version.id;
        let mut views: Vec<Option<Arc<Entry>>> = entries.iter().map(|e| e.view(id)).collect();
        let missing: Vec<usize> = (0..entries.len()).filter(|i| views[*i].is_none()).collect();
        for part in missing.chunks(AT_ONCE) {
            let stored: Vec<Value> = part.iter().map(|i| entries[*i].parse()).collect();
            let ready = stored.iter().map(|o| custom.definition.from_storage(o.clone())).collect::<Result<Vec<_>, _>>();
            let ready = ready.map_err(api::status::internal)?;
            let converted = Box::pin(self.convert(&custom.definition, ready, &custom.version)).await.map_err(api::status::internal)?;
            for ((i, stored), object) in part.iter().zip(stored).zip(converted) {
                let entry = &entries[*i];
                let view = (object != stored).then(|| Arc::new(Entry::of(&object, entry.revision)));
                entry.keep_view(id, view.clone());
                views[*i] = Some(view.unwrap_or_else(|| entry.clone()));
            }
        }
        Ok(views.into_iter().flatten().collect())
    }

    /// The object as it is stored.
    pub(crate) async fn to_storage(&self, resource: &'static Resource, object: &Value) -> Result<Value, Status> {
        let custom = self.must_custom(resource)?;
        let storage = custom.definition.storage();
        if storage.id == custom.version.id {
            return Ok(object.clone());
        }
        let converting = Box::pin(self.convert(&custom.definition, vec![object.clone()], storage));
        let mut converted = converting.await.map_err(api::status::internal)?;
        converted.pop().ok_or_else(|| api::status::internal("a conversion lost its object"))
    }

    /// An object in the version that a resource is.
    pub(crate) async fn converted(&self, to: &'static Resource, object: Value) -> Result<Value, Status> {
        let custom = self.must_custom(to)?;
        let converting = Box::pin(self.convert(&custom.definition, vec![object], &custom.version));
        let mut converted = converting.await.map_err(api::status::internal)?;
        converted.pop().ok_or_else(|| api::status::internal("a conversion lost its object"))
    }

    /// Brings objects to a version, each of whatever version it is.
    async fn convert(&self, definition: &Definition, mut objects: Vec<Value>, to: &Version) -> Result<Vec<Value>, String> {
        let wanted = to.resource.api_version();
        let others: Vec<usize> = (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != wanted.as_str()).collect();
        match &definition.webhook {
            _ if others.is_empty() => {}
            None => others.iter().for_each(|i| objects[*i]["apiVersion"] = wanted.as_str().into()),
            Some(webhook) => {
                let sent: Vec<Value> = others.iter().map(|i| objects[*i].clone()).collect();
                let from = format!("{}, Kind={}", sent[0]["apiVersion"].as_str().unwrap_or_default(), definition.kind);
                let failed = |why: String| format!("conversion webhook for {from} failed: {why}");
                let converted = self.review(definition, webhook, &sent, &wanted).await.map_err(failed)?;
                if converted.len() != sent.len() {
                    return Err(format!("conversion webhook for {from} returned {} objects, expected {}", converted.len(), sent.len()));
                }
                for ((at, i), (before, after)) in others.iter().enumerate().zip(sent.into_iter().zip(converted)) {
                    let object = accepted(&before, after, &wanted)
                        .map_err(|why| format!("conversion webhook for {from} returned invalid object at index {at}: {why}"))?;
                    objects[*i] = object;
                }
            }
        }
        for i in others {
            definition.settle(to, &mut objects[i], Embedded::Refuse)?;
        }
        Ok(objects)
    }

    /// Asks the webhook.
    async fn review(&self, definition: &Definition, webhook: &Value, objects: &[Value], to: &str) -> Result<Vec<Value>, String> {
        let versions = webhook.get("conversionReviewVersions").and_then(Value::as_array).into_iter().flatten();
        let version = versions.filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
        let version = version.ok_or("no supported conversion review versions")?;
        let uid = object::new_uid();
        let api_version = format!("apiextensions.k8s.io/{version}");
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": api_version,
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
        });
        let config = webhook.get("clientConfig").cloned().unwrap_or_default();
        let client = Client::new(&config)?;
        let name = format!("conversion_webhook_for_{}", definition.name);
        let answer = client.post(&self.services(), &name, &review, crate::webhook::TIMEOUT).await?;
        if version == "v1" && (answer["kind"] != "ConversionReview" || answer["apiVersion"] != api_version.as_str()) {
            let got = format!("{}, Kind={}", text(&answer, "apiVersion"), text(&answer, "kind"));
            return Err(format!("expected webhook response of {api_version}, Kind=ConversionReview, got {got}"));
        }
        let response = answer.get("response").filter(|r| r.is_object()).ok_or("no response provided")?;
        if version == "v1" && text(response, "uid") != uid {
            return Err(format!("expected response.uid={uid:?}, got {:?}", text(response, "uid")));
        }
        let result = response.get("result").cloned().unwrap_or_default();
        if text(&result, "status") != "Success" {
            let message = text(&result, "message");
            return Err(match message {
                "" => format!("response.result.status was '{}', not 'Success'", text(&result, "status")),
                message => message.to_string(),
            });
        }
        Ok(response.get("convertedObjects").and_then(Value::as_array).cloned().unwrap_or_default())
    }
}

impl Definition {
    /// What a stored object is before it is converted.
    fn from_storage(&self, mut object: Value) -> Result<Value, String> {
        let api_version = text(&object, "apiVersion").to_string();
        let (group, name) = api::resources::split_api_version(&api_version);
        let version = self
            .version(name)
            .filter(|_| group == self.group)
            .ok_or_else(|| format!("request to convert CR from an invalid group/version: {api_version}"))?;
        self.settle(version, &mut object, Embedded::Drop)?;
        if let Some(schema) = version.schema() {
            api::crd::apply_defaults(&mut object, schema);
        }
        if object::meta_i64(&object, "generation").unwrap_or(0) == 0 {
            object::meta_mut(&mut object).insert("generation".into(), 1.into());
        }
        Ok(object)
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What a webhook may have changed: everything but the identity; of the metadata, labels and annotations.
fn accepted(before: &Value, mut after: Value, wanted: &str) -> Result<Value, String> {
    if text(&after, "apiVersion") != wanted {
        return Err(format!("invalid groupVersion (expected {wanted}, received {})", text(&after, "apiVersion")));
    }
    if text(before, "kind") != text(&after, "kind") {
        return Err(format!("invalid kind (expected {}, received {})", text(before, "kind"), text(&after, "kind")));
    }
    for (key, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (object::meta(before, key), object::meta(&after, key));
        if was != is {
            return Err(format!("must have the same {what}: {was} != {is}"));
        }
    }
    let given = after.get("metadata").cloned().ok_or("missing metadata in converted object")?;
    if !given.is_object() {
        return Err("invalid metadata in converted object".into());
    }
    let mut metadata = before.get("metadata").cloned().unwrap_or_else(|| json!({}));
    for key in ["labels", "annotations"] {
        match given.get(key).filter(|v| !v.is_null()) {
            None => drop(object::map_of(&mut metadata).remove(key)),
            Some(Value::Object(map)) => {
                if let Some((name, _)) = map.iter().find(|(_, v)| !v.is_string()) {
                    return Err(format!("metadata.{key}[{name}] must be a string in converted object"));
                }
                metadata[key] = Value::Object(map.clone());
            }
            Some(_) => return Err(format!("invalid metadata.{key} in converted object")),
        }
    }
    after["metadata"] = metadata;
    Ok(after)
}
