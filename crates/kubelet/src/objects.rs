//! What pods refer to: config maps, secrets, tokens of service accounts, read from the API when they
//! are needed; and a task for each object that a volume shows, which wakes the pods that show it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use reconcile::{Feed, Sink, Tasks};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The kinds that volumes and environments take values from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

/// Reads what pods refer to. A trait, so that tests need no API server.
#[async_trait]
pub trait Objects: Send + Sync {
    /// `None` when there is none; an error is the API's text.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String>;
    /// `None` when there is none.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String>;
    /// `None` when there is none.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String>;
    /// `None` when there is none.
    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, String>;
    /// A token bound to the pod. `audience` empty: the API server's own.
    async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String>;
}

/// The API server's objects.
pub struct ApiObjects {
    client: Client,
    tokens: Mutex<HashMap<(String, String, i64), Token>>,
}

struct Token {
    text: String,
    /// From here on a new one is wanted.
    renew: Timestamp,
    expires: Timestamp,
}

impl ApiObjects {
    pub fn new(client: Client) -> ApiObjects {
        ApiObjects { client, tokens: Mutex::default() }
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.tokens.lock().retain(|(uid, ..), _| uid != pod_uid);
    }
}

/// The time of the next renewal: after 80 % of the life, at most a day (upstream's token manager).
fn renewal(now: Timestamp, seconds: i64) -> Timestamp {
    let after = (seconds * 4 / 5).clamp(1, 24 * 3600);
    now + jiff::SignedDuration::from_secs(after)
}

#[async_trait]
impl Objects for ApiObjects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        Api::<ConfigMap>::namespaced(self.client.clone(), namespace).get_opt(name).await.map_err(|e| text(&e))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        Api::<Secret>::namespaced(self.client.clone(), namespace).get_opt(name).await.map_err(|e| text(&e))
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, String> {
        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace).get_opt(name).await.map_err(|e| text(&e))
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, String> {
        Api::<PersistentVolume>::all(self.client.clone()).get_opt(name).await.map_err(|e| text(&e))
    }

    async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
        let key = (pod.uid().unwrap_or_default(), audience.to_string(), seconds);
        let now = Timestamp::now();
        if let Some(token) = self.tokens.lock().get(&key)
            && now < token.renew
        {
            return Ok(token.text.clone());
        }
        let account =
            pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_string()].into_iter().filter(|a| !a.is_empty()).collect()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name_any()),
                    uid: pod.uid(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let answer: Result<TokenRequest, kube::Error> = api.create_subresource("token", &account, &PostParams::default(), &request).await;
        match answer {
            Ok(answer) => {
                let status = answer.status.ok_or("the API server answered no token")?;
                let text = status.token.unwrap_or_default();
                let expires = status.expiration_timestamp.map_or_else(|| now + jiff::SignedDuration::from_secs(seconds), |t| t.0);
                let life = (expires - now).total(jiff::Unit::Second).map_or(seconds, |s| s as i64);
                let token = Token { text: text.clone(), renew: renewal(now, life), expires };
                self.tokens.lock().insert(key, token);
                Ok(text)
            }
            Err(error) => {
                // The old one is still good for a while.
                match self.tokens.lock().get(&key) {
                    Some(token) if now < token.expires => Ok(token.text.clone()),
                    _ => Err(format!("failed to fetch token: {}", text(&error))),
                }
            }
        }
    }
}

fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

type Key = (Kind, String, String);

struct Watched {
    /// uids of pods.
    users: HashSet<String>,
    tasks: Tasks,
}

/// The watches of objects that volumes show.
pub struct Watches {
    client: Option<Client>,
    tasks: Tasks,
    wake: Arc<dyn Fn(&str) + Send + Sync>,
    watched: Arc<Mutex<HashMap<Key, Watched>>>,
}

impl Watches {
    /// `wake` is called with the uid of a pod that shows an object that changed. Without a client nothing is watched.
    pub fn new(client: Option<Client>, tasks: Tasks, wake: Arc<dyn Fn(&str) + Send + Sync>) -> Watches {
        Watches { client, tasks, wake, watched: Arc::default() }
    }

    /// The pod shows exactly these objects from now on.
    pub fn set(&self, namespace: &str, uid: &str, objects: HashSet<(Kind, String)>) {
        let Some(client) = &self.client else { return };
        let mut watched = self.watched.lock();
        watched.retain(|(kind, ns, name), entry| {
            if ns != namespace || !objects.contains(&(*kind, name.clone())) {
                entry.users.remove(uid);
            }
            if entry.users.is_empty() {
                entry.tasks.cancel();
            }
            !entry.users.is_empty()
        });
        for (kind, name) in objects {
            let key = (kind, namespace.to_string(), name.clone());
            let entry = watched.entry(key.clone()).or_insert_with(|| {
                let tasks = self.tasks.child();
                let (wake, all) = (self.wake.clone(), self.watched.clone());
                let changed = move || {
                    let users: Vec<String> = all.lock().get(&key).map(|w| w.users.iter().cloned().collect()).unwrap_or_default();
                    users.iter().for_each(|uid| wake(uid));
                };
                let path = match kind {
                    Kind::ConfigMap => ConfigMap::url_path(&(), Some(&namespace)),
                    Kind::Secret => Secret::url_path(&(), Some(&namespace)),
                };
                let feed = Feed::new(client.clone(), path).selected(&format!("metadata.name={name}"));
                let mut seen = Seen { changed, last: None, listed: None };
                tasks.spawn(format!("watch of {kind:?} {namespace}/{name}"), async move { feed.follow(&mut seen).await });
                Watched { users: HashSet::new(), tasks }
            });
            entry.users.insert(uid.to_string());
        }
    }
}

/// Calls `changed` whenever the object is another one.
struct Seen<F> {
    changed: F,
    /// The version that was last seen, if there was an object; None before the first list.
    last: Option<Option<String>>,
    /// That of the list that is being taken in.
    listed: Option<String>,
}

#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

fn version(object: &RawValue) -> Option<String> {
    serde_json::from_str::<Head>(object.get()).ok()?.metadata.resource_version
}

impl<F: Fn() + Send> Sink for Seen<F> {
    fn begin(&mut self) {
        self.listed = None;
    }

    fn page(&mut self, objects: &[&RawValue]) {
        self.listed = objects.first().and_then(|object| version(object)).or(self.listed.take());
    }

    fn listed(&mut self) {
        let now = self.listed.take();
        if self.last.replace(now.clone()).is_some_and(|last| last != now) {
            (self.changed)();
        }
    }

    fn put(&mut self, object: &RawValue) {
        self.last = Some(version(object));
        (self.changed)();
    }

    fn remove(&mut self, _: &RawValue) {
        self.last = Some(None);
        (self.changed)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_end() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(renewal(now, 3607).as_second(), 2885);
        assert_eq!(renewal(now, 10 * 24 * 3600).as_second(), 24 * 3600);
    }
}
