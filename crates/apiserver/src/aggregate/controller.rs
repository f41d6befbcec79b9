//! Keeps what is known of aggregated servers: asks them whether they are there, writes that into the APIServices, and
//! registers an APIService for each group version that is served here.
//!
//! One task. It wakes when APIServices or definitions change, and while other servers are registered also when services
//! and their endpoints do, and every half minute.
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::discovery::Entry;
use api::openapi::Foreign;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::error::Elapsed;
use tokio_rustls::TlsConnector;

use super::plan::{self, Availability, Target};
use super::{Aggregated, Spoken, Table, identity};
use crate::ctx::UserInfo;
use crate::model;
use crate::object;
use crate::server::Server;
use crate::types::Resource;
use crate::webhook;

/// How often servers are asked though nothing changed.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon one that failed is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// Changes of services and endpoints within this time are looked at together.
const BATCH: Duration = Duration::from_millis(200);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Label of APIServices that are made here: `onstart` of what is built in, `true` of what definitions bring.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// What was last seen of a server.
struct Seen {
    target: Target,
    /// Of its service and endpoints.
    essence: String,
    at: Instant,
    availability: Availability,
    entry: Arc<Aggregated>,
}

impl Server {
    /// Runs until dropped.
    pub(crate) async fn keep_aggregated(self: &Arc<Server>) {
        let find = |group: &str, plural: &str| model::find(group, "v1", plural);
        let (Some(registered), Some(services), Some(slices)) =
            (find("apiregistration.k8s.io", "apiservices"), find("", "services"), find("discovery.k8s.io", "endpointslices"))
        else {
            return;
        };
        let cache = |r: &Resource| self.core.cache.resource(r.storage_prefix);
        let (Some(a), Some(b), Some(c)) = (cache(registered), cache(services), cache(slices)) else { return };
        let (mut of_registered, mut of_services, mut of_slices) = (a.changes(), b.changes(), c.changes());
        let definitions = crate::custom::definitions().and_then(cache);
        let mut of_definitions = definitions.map(|d| d.changes());
        let mut seen: HashMap<String, Seen> = HashMap::new();
        loop {
            of_registered.mark_unchanged();
            of_services.mark_unchanged();
            of_slices.mark_unchanged();
            of_definitions.iter_mut().for_each(|d| d.mark_unchanged());
            let all = self.backend.reader.list(registered, None);
            let mut failing = self.register(registered, &all).await;
            let mut known = Vec::new();
            let targets: Vec<Option<Target>> = all.iter().map(|object| Target::of(object)).collect();
            seen.retain(|name, _| targets.iter().flatten().any(|t| t.name == *name));
            for (object, target) in all.iter().zip(targets) {
                let availability = match target {
                    None => plan::local(),
                    Some(target) => {
                        let look = self.look(services, slices, seen.remove(&target.name), target).await;
                        failing |= !look.availability.ok;
                        known.push(look.entry.clone());
                        let availability = look.availability.clone();
                        seen.insert(look.target.name.clone(), look);
                        availability
                    }
                };
                failing |= !self.tell(registered, object, &availability).await;
            }
            let table = Table::new(known);
            let others = !table.all.is_empty();
            if table.generation != self.core.aggregated().generation {
                self.core.aggregates.0.store(Arc::new(table));
            }
            let pause = if failing { AGAIN } else { RESYNC };
            let near = async {
                if others {
                    tokio::select! {
                        _ = of_services.changed() => {}
                        _ = of_slices.changed() => {}
                    }
                    tokio::time::sleep(BATCH).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            let definitions = async {
                if let Some(changes) = &mut of_definitions
                    && changes.changed().await.is_ok()
                {
                    return;
                }
                std::future::pending().await
            };
            tokio::select! {
                _ = of_registered.changed() => {}
                () = definitions => {}
                () = near => {}
                () = tokio::time::sleep(pause), if others || failing => {}
            }
        }
    }

    /// Looks at one server; asks it only when something changed, or when it is time.
    async fn look(&self, services: &'static Resource, slices: &'static Resource, before: Option<Seen>, target: Target) -> Seen {
        let reader = &self.backend.reader;
        let service = reader.get(services, &target.namespace, &target.service);
        let of_service = |s: &&Arc<Value>| {
            s.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str) == Some(target.service.as_str())
        };
        let found = reader.list(slices, Some(&target.namespace));
        let found: Vec<&Value> = found.iter().filter(of_service).map(|s| &**s).collect();
        let version = |o: &Value| object::meta(o, "resourceVersion").to_string();
        let essence = service.iter().map(|s| version(s)).chain(found.iter().map(|s| version(s))).collect::<Vec<_>>().join(" ");
        if let Some(before) = &before
            && before.target == target
            && before.essence == essence
            && before.at.elapsed() < if before.availability.ok { RESYNC } else { AGAIN }
        {
            let entry = before.entry.clone();
            return Seen { target, essence, at: before.at, availability: before.availability.clone(), entry };
        }
        let tls = match before.as_ref().filter(|b| b.target == target && b.entry.tls.is_ok()) {
            Some(before) => before.entry.tls.clone(),
            None => webhook::connector(&target.ca_bundle, target.insecure, self.config.proxy_client.clone()),
        };
        let (availability, resources) = match target.reachable(service.as_deref(), &found) {
            Err(availability) => (availability, None),
            Ok(()) => match self.ask(&target, &tls).await {
                Ok(resources) => (plan::passed(), Some(resources)),
                Err(why) => (plan::failed(why), None),
            },
        };
        // One that does not answer is still shown as it was.
        let mut openapi = before.as_ref().and_then(|b| b.entry.openapi.clone());
        if availability.ok {
            openapi = self.openapi_of(&target, &tls, openapi).await;
        }
        let resources = resources.or_else(|| before.map(|b| b.entry.resources.clone())).unwrap_or_default();
        let entry = Arc::new(Aggregated { target: target.clone(), tls, available: availability.ok, resources, openapi });
        Seen { target, essence, at: Instant::now(), availability, entry }
    }

    /// What a server serves.
    async fn ask(&self, target: &Target, tls: &Result<TlsConnector, String>) -> Result<Vec<Entry>, String> {
        let path = target.path();
        let url = format!("https://{}:{}{path}", target.host(), target.port);
        match self.fetch(target, tls, &path, &UserInfo::new("system:kube-aggregator", &["system:masters"])).await {
            Err(_) => Err(format!("timed out waiting for {url}")),
            Ok(Err(why)) => Err(format!("failing or missing response from {url}: Get {url:?}: {why}")),
            Ok(Ok((code, bytes))) if (200..300).contains(&code) => {
                let list: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                Ok(plan::resources(&list))
            }
            Ok(Ok((code, _))) => Err(format!("failing or missing response from {url}: bad status from {url}: {code}")),
        }
    }

    /// What a server says of its group in its OpenAPI document of version 2; what it said before when it does not answer.
    async fn openapi_of(&self, target: &Target, tls: &Result<TlsConnector, String>, before: Option<Arc<Spoken>>) -> Option<Arc<Spoken>> {
        let why = match self.fetch(target, tls, "/openapi/v2", &UserInfo::new("system:aggregator", &[])).await {
            Err(_) => "it does not answer".to_string(),
            Ok(Err(why)) => why,
            Ok(Ok((404, _))) => return None,
            Ok(Ok((code, bytes))) if (200..300).contains(&code) => {
                let hash = api::openapi::hash(&bytes);
                if before.as_ref().is_some_and(|b| b.hash == hash) {
                    return before;
                }
                match Foreign::read(&bytes, &format!("{}/", target.path())) {
                    Ok(document) => return Some(Arc::new(Spoken { hash, document })),
                    Err(why) => why,
                }
            }
            Ok(Ok((code, _))) => format!("it answers with {code}"),
        };
        tracing::warn!(apiservice = target.name, why, "its OpenAPI document cannot be had");
        before
    }

    /// Asks a server for a path, in somebody's name: code and body. The outer error is one that took too long.
    async fn fetch(&self, target: &Target, tls: &Result<TlsConnector, String>, path: &str, user: &UserInfo) -> Result<Result<(u16, Bytes), String>, Elapsed> {
        let answer = async {
            let tls = tls.as_ref().map_err(Clone::clone)?;
            let addresses = self.core.services().targets(&target.namespace, &target.service, target.port).await?;
            let mut request: Request<Full<Bytes>> = Request::builder()
                .method(Method::GET)
                .uri(path)
                .header(header::HOST, target.host())
                .header(header::ACCEPT, "application/json")
                .body(Full::default())
                .map_err(|e| e.to_string())?;
            request.headers_mut().extend(identity(user));
            webhook::exchange(tls, &target.host(), &addresses, request).await
        };
        tokio::time::timeout(PATIENCE, answer).await
    }

    /// Writes a condition; false when that has to be tried again.
    async fn tell(&self, resource: &'static Resource, object: &Value, availability: &Availability) -> bool {
        if availability.is_told(object) {
            return true;
        }
        let now = crate::ctx::format_time(jiff::Timestamp::now());
        let mut change = |object: &mut Value| {
            availability.tell(object, &now);
            Ok(())
        };
        match self.backend.writer.modify(resource, "", object::name(object), &mut change).await {
            Ok(_) => true,
            Err(status) if status.code == 404 => true,
            Err(status) => {
                tracing::warn!(apiservice = object::name(object), why = %status.message, "its availability cannot be written");
                false
            }
        }
    }

    /// Makes the APIServices of what is served here, and removes those of definitions that are gone; true when some of
    /// that has to be tried again.
    async fn register(&self, resource: &'static Resource, all: &[Arc<Value>]) -> bool {
        let there: BTreeSet<&str> = all.iter().map(|o| object::name(o)).collect();
        let mut wanted = BTreeSet::new();
        let mut again = false;
        let mut built_in = api::discovery::built_in();
        self.core.enablement.retain(&mut built_in);
        let mut customs = Vec::new();
        self.core.customs().discover(&mut customs);
        let fixed = built_in.len();
        let mut missing = Vec::new();
        for (i, group) in built_in.iter().chain(&customs).enumerate() {
            for version in &group.versions {
                let name = format!("{}.{}", version.version, group.name);
                wanted.insert(name.clone());
                if there.contains(name.as_str()) {
                    continue;
                }
                let place = if i < fixed { api::aggregation::priority(&group.name, &version.version) } else { Some((1000, 100)) };
                let Some((group_priority, version_priority)) = place else { continue };
                let label = if i < fixed { "onstart" } else { "true" };
                let mut object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                    "metadata": {"name": name, "labels": {AUTOMANAGED: label}},
                    "spec": {"group": group.name, "version": version.version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority}});
                if group.name.is_empty() {
                    crate::object::map_of(&mut object["spec"]).remove("group");
                }
                plan::local().tell(&mut object, &crate::ctx::format_time(jiff::Timestamp::now()));
                missing.push(async move { (name, self.backend.writer.create(resource, object).await) });
            }
        }
        for (name, outcome) in futures::future::join_all(missing).await {
            if let Err(status) = outcome
                && status.code != 409
            {
                tracing::warn!(apiservice = name, why = %status.message, "a group cannot be registered");
                again = true;
            }
        }
        let managed = |o: &Value| o.pointer("/metadata/labels").and_then(|l| l.get(AUTOMANAGED)).is_some_and(|v| v == "true");
        for object in all.iter().filter(|o| managed(o) && !wanted.contains(object::name(o))) {
            if let Err(status) = self.backend.writer.delete(resource, "", object::name(object), &Value::Null).await
                && status.code != 404
            {
                tracing::warn!(apiservice = object::name(object), why = %status.message, "it cannot be removed");
                again = true;
            }
        }
        again
    }
}
