//! Records core/v1 Events as upstream's recorder does: the same event again raises its count.
//! One task writes them; a full queue or a failing API server drops events, never the caller's time.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::mpsc;

use crate::Tasks;

/// The two types of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information.
    Normal,
    /// Something may be wrong.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// The object that an event is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    /// Empty for cluster-wide kinds; their events are kept in `default`.
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// As `spec.containers{name}`; empty for the object itself.
    pub field_path: String,
}

impl Reference {
    /// The reference of an object.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Reference {
        Reference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            resource_version: object.resource_version().unwrap_or_default(),
            field_path: String::new(),
        }
    }

    /// The same object, one field of it.
    pub fn field(mut self, path: impl Into<String>) -> Reference {
        self.field_path = path.into();
        self
    }
}

struct Message {
    regarding: Reference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records the events of one component. Clones share the queue.
#[derive(Clone)]
pub struct Recorder {
    sender: Option<mpsc::Sender<Message>>,
}

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1000;
/// Events remembered for counting.
const REMEMBERED: usize = 4096;

impl Recorder {
    /// A recorder that writes as `component` (and, for a kubelet, of `host`).
    pub fn new(tasks: &Tasks, client: Client, component: impl Into<String>, host: Option<String>) -> Recorder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let component = component.into();
        tasks.spawn(format!("events of {component}"), write(receiver, client, component, host));
        Recorder { sender: Some(sender) }
    }

    /// A recorder that writes nothing, for tests.
    pub fn none() -> Recorder {
        Recorder { sender: None }
    }

    /// Records an event; never waits.
    pub fn event(&self, regarding: &Reference, kind: EventType, reason: &str, message: impl Into<String>) {
        let Some(sender) = &self.sender else { return };
        let message = Message {
            regarding: regarding.clone(),
            kind,
            reason: reason.to_string(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if let Err(error) = sender.try_send(message) {
            tracing::debug!("an event is dropped: {error}");
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Sameness {
    uid: String,
    name: String,
    field_path: String,
    kind: EventType,
    reason: String,
    message: String,
}

struct Known {
    namespace: String,
    name: String,
    count: i32,
}

async fn write(mut receiver: mpsc::Receiver<Message>, client: Client, component: String, host: Option<String>) {
    let source = Arc::new(EventSource { component: Some(component.clone()), host });
    let mut known: HashMap<Sameness, Known> = HashMap::new();
    while let Some(message) = receiver.recv().await {
        let same = Sameness {
            uid: message.regarding.uid.clone(),
            name: message.regarding.name.clone(),
            field_path: message.regarding.field_path.clone(),
            kind: message.kind,
            reason: message.reason.clone(),
            message: message.message.clone(),
        };
        if let Some(entry) = known.get_mut(&same) {
            let api = Api::<Event>::namespaced(client.clone(), &entry.namespace);
            let patch = serde_json::json!({"count": entry.count + 1, "lastTimestamp": Time(message.at)});
            match api.patch(&entry.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    entry.count += 1;
                    continue;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::debug!("an event could not be counted: {error}");
                    continue;
                }
            }
        }
        let event = event(&message, &source, &component);
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let name = event.name_any();
        let api = Api::<Event>::namespaced(client.clone(), &namespace);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(same, Known { namespace, name, count: 1 });
            }
            Err(error) => tracing::debug!(reason = message.reason, "an event could not be written: {error}"),
        }
    }
}

fn event(message: &Message, source: &EventSource, component: &str) -> Event {
    let regarding = &message.regarding;
    let namespace = if regarding.namespace.is_empty() { "default" } else { &regarding.namespace };
    let text = |s: &str| Some(s.to_string()).filter(|s| !s.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", regarding.name, message.at.as_nanosecond())),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: text(&regarding.api_version),
            kind: text(&regarding.kind),
            namespace: text(&regarding.namespace),
            name: text(&regarding.name),
            uid: text(&regarding.uid),
            resource_version: text(&regarding.resource_version),
            field_path: text(&regarding.field_path),
        },
        type_: Some(message.kind.as_str().to_string()),
        reason: Some(message.reason.clone()),
        message: Some(message.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(message.at)),
        last_timestamp: Some(Time(message.at)),
        source: Some(source.clone()),
        reporting_component: Some(component.to_string()),
        reporting_instance: source.host.clone().or_else(|| Some(String::new())),
        ..Event::default()
    }
}
