//! EventRateLimit: how many events are taken a second, of all, of a namespace, of a user, of a source about an object.

use std::collections::HashMap;

use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

use crate::util::text;

/// What events share an allowance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Server,
    Namespace,
    User,
    SourceAndObject,
}

pub(super) const SCOPES: [(&str, Scope); 4] =
    [("Namespace", Scope::Namespace), ("Server", Scope::Server), ("SourceAndObject", Scope::SourceAndObject), ("User", Scope::User)];

/// A limit, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub scope: Scope,
    /// Events a second.
    pub qps: u32,
    /// Events at once.
    pub burst: u32,
    /// How many allowances are kept, of those used last.
    pub cache_size: usize,
}

/// What is left of an allowance, and when it was looked at.
#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
    used: u64,
}

#[derive(Default)]
struct Buckets {
    by_key: HashMap<String, Bucket>,
    clock: u64,
}

pub(super) struct EventRateLimit(Vec<(Limit, Mutex<Buckets>)>);

impl EventRateLimit {
    pub fn new(limits: &[Limit]) -> EventRateLimit {
        EventRateLimit(limits.iter().map(|limit| (limit.clone(), Mutex::default())).collect())
    }
}

impl Limit {
    fn name(&self) -> &'static str {
        SCOPES.iter().find(|(_, scope)| *scope == self.scope).map_or("", |(name, _)| name)
    }

    fn key(&self, attributes: &Attributes<'_>, event: &Value) -> String {
        match self.scope {
            Scope::Server => String::new(),
            Scope::Namespace => attributes.ctx.namespace.clone(),
            Scope::User => attributes.ctx.user.name.clone(),
            Scope::SourceAndObject => {
                // the older API's names, then those of events.k8s.io
                let either = |old: &str, new: &str| if text(event, old).is_empty() { text(event, new).to_owned() } else { text(event, old).to_owned() };
                let source = [either("/source/component", "/deprecatedSource/component"), either("/source/host", "/deprecatedSource/host")];
                let object = ["kind", "namespace", "name", "uid", "apiVersion"].map(|f| either(&format!("/involvedObject/{f}"), &format!("/regarding/{f}")));
                source.into_iter().chain(object).collect()
            }
        }
    }

    /// Takes one of the allowance, if there is any.
    fn take(&self, buckets: &mut Buckets, key: &str, now: Timestamp) -> bool {
        buckets.clock += 1;
        let used = buckets.clock;
        if !buckets.by_key.contains_key(key) {
            if self.scope != Scope::Server && buckets.by_key.len() >= self.cache_size {
                let oldest = buckets.by_key.iter().min_by_key(|(_, b)| b.used).map(|(key, _)| key.clone());
                oldest.map(|key| buckets.by_key.remove(&key));
            }
            buckets.by_key.insert(key.to_owned(), Bucket { tokens: f64::from(self.burst), at: now, used });
        }
        let Some(bucket) = buckets.by_key.get_mut(key) else { return true };
        let passed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed * f64::from(self.qps)).min(f64::from(self.burst));
        (bucket.at, bucket.used) = (now.max(bucket.at), used);
        let enough = bucket.tokens >= 1.0;
        bucket.tokens -= if enough { 1.0 } else { 0.0 };
        enough
    }
}

#[async_trait]
impl Admission for EventRateLimit {
    fn name(&self) -> &'static str {
        "EventRateLimit"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, event: Option<&Value>) -> Result<(), Status> {
        let Some(event) = event.filter(|_| attributes.ctx.resource.kind == "Event" && !attributes.ctx.dry_run) else { return Ok(()) };
        // each limit counts the event, also when another one has refused it
        let refusals: Vec<String> = self
            .0
            .iter()
            .filter_map(|(limit, buckets)| {
                let key = limit.key(attributes, event);
                (!limit.take(&mut buckets.lock(), &key, attributes.ctx.now)).then(|| format!("limit reached on type {} for key {key}", limit.name()))
            })
            .collect();
        if refusals.is_empty() { Ok(()) } else { Err(api::status::too_many(api::field::aggregate(refusals))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn allowances_are_used_up_and_fill_again() {
        let objects = Objects::new();
        let events = api::resources::find("", "v1", "events").unwrap();
        let limit = |scope: Scope, burst: u32, cache_size: usize| Limit { scope, qps: 1, burst, cache_size };
        let plugin = EventRateLimit::new(&[limit(Scope::Server, 5, 0), limit(Scope::SourceAndObject, 2, 2)]);
        let start: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        let send = |name: &str, second: i64| {
            let mut ctx = objects.ctx(events, "a", "", UserInfo::new("ann", &[]));
            ctx.now = start + jiff::SignedDuration::from_secs(second);
            let event = json!({"metadata": {"name": "e"}, "source": {"component": "k"}, "involvedObject": {"kind": "Pod", "name": name}});
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            block_on(plugin.validate(&attributes, Some(&event))).map_err(|e| (e.code, e.message))
        };
        send("p", 0).unwrap();
        send("p", 0).unwrap();
        assert_eq!(send("p", 0).unwrap_err(), (429, "Too many requests: limit reached on type SourceAndObject for key kPodp".into()));
        send("p", 1).unwrap();
        send("q", 1).unwrap();
        // the third kind of events takes the place of the one that was used least lately, which begins anew
        assert!(send("r", 1).is_ok() && send("p", 1).unwrap_err().1.contains("type Server for key "));
        assert!(send("p", 3).is_ok() && send("p", 3).is_ok() && send("p", 3).is_err());
    }
}
