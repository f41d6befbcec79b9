//! LIST: a consistent page of a snapshot.
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::ListOptions;
use super::options::parse_version;
use crate::cache::{Entry, Resource as Cached, Snapshot};
use crate::core::Core;
use crate::ctx::Ctx;
use crate::custom::Custom;
use crate::select::Selection;
use crate::types::Status;

/// How long a list waits for the version that the client wants.
const WAIT_FOR_VERSION: Duration = Duration::from_secs(3);

/// A page of objects.
pub struct Page {
    pub items: Vec<Arc<Entry>>,
    pub revision: u64,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// Too new a version was asked for.
pub fn too_large_version(wanted: u64, current: u64) -> Status {
    let mut status = api::status::timeout(format!("Too large resource version: {wanted}, current: {current}"), 1);
    status = status.with_cause(api::status::Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    status
}

impl Core {
    /// Selects a page.
    pub async fn list(&self, ctx: &Ctx, selection: &Selection, options: &ListOptions) -> Result<Page, Status> {
        let cached = self.cached(ctx.resource)?;
        let custom = ctx.custom.as_ref();
        if !options.continue_token.is_empty() {
            return self.continued(&cached, custom, selection, options).await;
        }
        let version = parse_version(&options.resource_version)?;
        let (snapshot, revision) = match version {
            // the most recent state
            None => {
                self.catch_up().await?;
                self.latest(&cached)
            }
            Some(0) => self.latest(&cached),
            Some(wanted) => {
                if !self.cache.wait(wanted, WAIT_FOR_VERSION).await {
                    return Err(too_large_version(wanted, self.cache.revision()));
                }
                let exact = options.resource_version_match == "Exact"
                    || options.resource_version_match.is_empty() && options.limit > 0;
                if exact {
                    let snapshot = self.as_of(&cached, wanted).ok_or_else(|| {
                        let oldest = cached.oldest().max(self.cache.compacted());
                        api::status::expired(format!("The provided resource version is too old: {wanted} ({oldest})"))
                    })?;
                    (Arc::new(snapshot), wanted)
                } else {
                    self.latest(&cached)
                }
            }
        };
        self.page(custom, &snapshot, revision, selection, options.limit, None).await
    }

    /// A page of a snapshot; of a custom resource as its version serves it.
    async fn page(&self, custom: Option<&Custom>, snapshot: &Snapshot, revision: u64, selection: &Selection, limit: usize, start: Option<&str>) -> Result<Page, Status> {
        let Some(custom) = custom else { return Ok(page(snapshot, revision, selection, limit, start)) };
        let from = start.unwrap_or(&selection.prefix);
        let covered = snapshot.map.from(from).take_while(|(k, _)| k.starts_with(&selection.prefix)).filter(|(k, _)| selection.covers(k));
        let mut all: Vec<_> = covered.map(|(k, e)| (k.clone(), e.clone())).collect();
        if limit > 0 && selection.everything() {
            all.truncate(limit + 1);
        }
        let entries = Box::pin(self.views(custom, all.iter().map(|(_, e)| e.clone()).collect())).await?;
        let mut viewed = Snapshot::default();
        for ((key, _), entry) in all.into_iter().zip(entries) {
            viewed.map.insert(key, entry);
        }
        let mut page = page(&viewed, revision, selection, limit, start);
        if page.remaining.is_some() {
            let rest = snapshot.map.from(from).take_while(|(k, _)| k.starts_with(&selection.prefix)).count();
            page.remaining = Some((rest - page.items.len()) as u64);
        }
        Ok(page)
    }

    /// The objects as they were at a revision that has not been compacted.
    fn as_of(&self, cached: &Cached, revision: u64) -> Option<Snapshot> {
        if revision < self.cache.compacted() { None } else { cached.snapshot_at(revision) }
    }

    /// A snapshot and the revision it is complete at.
    pub fn latest(&self, cached: &Cached) -> (Arc<Snapshot>, u64) {
        let revision = self.cache.revision();
        let snapshot = cached.snapshot();
        let revision = revision.max(snapshot.revision);
        (snapshot, revision)
    }

    async fn continued(&self, cached: &Cached, custom: Option<&Custom>, selection: &Selection, options: &ListOptions) -> Result<Page, Status> {
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(api::status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (revision, start) = decode_token(&options.continue_token)?;
        if !start.starts_with(&selection.prefix) {
            return Err(api::status::bad_request("invalid continue token: the key is not in the range of the list"));
        }
        if revision < 0 {
            // a list that goes on with whatever there is now, as after an expired token
            self.catch_up().await?;
            let (snapshot, revision) = self.latest(cached);
            return self.page(custom, &snapshot, revision, selection, options.limit, Some(&start)).await;
        }
        let revision = revision as u64;
        match self.as_of(cached, revision) {
            Some(snapshot) => self.page(custom, &snapshot, revision, selection, options.limit, Some(&start)).await,
            None => {
                let status = api::status::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
                );
                Err(Expired { status, token: encode_token(-1, &start) }.into_status())
            }
        }
    }
}

/// An expired token comes with one that goes on inconsistently; it travels in the Status' metadata.
struct Expired {
    status: Status,
    token: String,
}

/// Marks the cause that carries the token as far as `negotiate`, which moves it to the metadata.
pub const CONTINUE_CAUSE: &str = "continue token";

impl Expired {
    fn into_status(self) -> Status {
        self.status.with_cause(api::status::Cause { reason: CONTINUE_CAUSE.into(), message: self.token, field: String::new() })
    }
}

fn page(snapshot: &Snapshot, revision: u64, selection: &Selection, limit: usize, start: Option<&str>) -> Page {
    let mut items = Vec::new();
    if let Some(key) = &selection.key {
        items.extend(snapshot.map.get(key.as_str()).filter(|e| selection.matches(e)).cloned());
        return Page { items, revision, continue_token: String::new(), remaining: None };
    }
    let from = start.unwrap_or(&selection.prefix);
    let mut in_scope = snapshot.map.from(from).take_while(|(k, _)| k.starts_with(&selection.prefix));
    let mut continue_token = String::new();
    let mut remaining = None;
    while let Some((key, entry)) = in_scope.next() {
        if !selection.matches(entry) {
            continue;
        }
        if limit > 0 && items.len() == limit {
            continue_token = encode_token(revision as i64, key);
            if selection.everything() {
                remaining = Some(1 + in_scope.count() as u64);
            }
            break;
        }
        items.push(entry.clone());
    }
    Page { items, revision, continue_token, remaining }
}

fn encode_token(revision: i64, start: &str) -> String {
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(token: &str) -> Result<(i64, String), Status> {
    let bad = |why: &str| api::status::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|e| bad(&e.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if value["v"] != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {}", value["v"])));
    }
    let revision = value["rv"].as_i64().filter(|r| *r != 0).ok_or_else(|| bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"))?;
    let start = value["start"].as_str().filter(|s| !s.is_empty()).ok_or_else(|| bad("encoded start key empty (version meta.k8s.io/v1)"))?;
    Ok((revision, start.to_string()))
}
