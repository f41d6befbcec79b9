//! Records core/v1 Events as upstream's recorder does: the same event again raises its count, many that
//! differ in their message alone become one, and an object that floods is silenced ([`Correlator`]).
//! One task writes them; a full queue or a failing API server drops events, never the caller's time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
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

/// What makes two events the same. Of events that have been combined the message does not count.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Sameness {
    uid: String,
    namespace: String,
    name: String,
    field_path: String,
    kind: EventType,
    reason: String,
    message: Option<String>,
}

struct Known {
    namespace: String,
    name: String,
    count: i32,
}

/// Events with different messages of one reason about one object that are written as they are; more
/// are combined.
const SIMILAR: usize = 10;
/// Similar events further apart than this are not.
const SIMILAR_FOR: SignedDuration = SignedDuration::from_secs(600);
/// Events about one object that are written at once.
const BURST: f64 = 25.0;
/// Time after which an object that has used up its burst may have one more.
const REFILL_SECONDS: f64 = 300.0;

/// Decides what is written, combined or left out.
#[derive(Default)]
struct Correlator {
    similar: HashMap<Sameness, (HashSet<String>, Timestamp)>,
    budgets: HashMap<(String, String, String), (f64, Timestamp)>,
}

impl Correlator {
    /// By what an event is counted, with its message put into its final form; nothing when it is left out.
    fn admit(&mut self, message: &mut Message) -> Option<Sameness> {
        if self.similar.len() >= REMEMBERED {
            self.similar.clear();
        }
        if self.budgets.len() >= REMEMBERED {
            self.budgets.clear();
        }
        let regarding = &message.regarding;
        let mut same = Sameness {
            uid: regarding.uid.clone(),
            namespace: regarding.namespace.clone(),
            name: regarding.name.clone(),
            field_path: regarding.field_path.clone(),
            kind: message.kind,
            reason: message.reason.clone(),
            message: None,
        };
        let object = (regarding.uid.clone(), regarding.namespace.clone(), regarding.name.clone());
        let (messages, last) = self.similar.entry(same.clone()).or_insert_with(|| (HashSet::new(), message.at));
        if message.at.duration_since(*last) > SIMILAR_FOR {
            messages.clear();
        }
        *last = message.at;
        if messages.len() >= SIMILAR && !messages.contains(&message.message) {
            message.message = format!("(combined from similar events): {}", message.message);
        } else {
            messages.insert(message.message.clone());
            same.message = Some(message.message.clone());
        }
        let (tokens, last) = self.budgets.entry(object).or_insert((BURST, message.at));
        *tokens = (*tokens + message.at.duration_since(*last).as_secs_f64() / REFILL_SECONDS).min(BURST);
        *last = message.at;
        if *tokens < 1.0 {
            return None;
        }
        *tokens -= 1.0;
        Some(same)
    }
}

async fn write(mut receiver: mpsc::Receiver<Message>, client: Client, component: String, host: Option<String>) {
    let source = Arc::new(EventSource { component: Some(component.clone()), host });
    let mut known: HashMap<Sameness, Known> = HashMap::new();
    let mut correlator = Correlator::default();
    while let Some(mut message) = receiver.recv().await {
        let Some(same) = correlator.admit(&mut message) else { continue };
        if let Some(entry) = known.get_mut(&same) {
            let api = Api::<Event>::namespaced(client.clone(), &entry.namespace);
            let patch = serde_json::json!({"count": entry.count + 1, "lastTimestamp": Time(message.at), "message": message.message});
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(object: &str, text: &str, second: i64) -> Message {
        Message {
            regarding: Reference { name: object.into(), uid: object.into(), ..Reference::default() },
            kind: EventType::Normal,
            reason: "R".into(),
            message: text.into(),
            at: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second),
        }
    }

    #[test]
    fn the_same_event_is_counted_and_similar_ones_are_combined() {
        let mut correlator = Correlator::default();
        let mut admit = |text: &str, second| {
            let mut m = message("a", text, second);
            (correlator.admit(&mut m), m.message)
        };
        let (first, text) = admit("0", 0);
        assert_eq!(text, "0");
        assert!(admit("0", 1).0 == first, "counted as the same");
        for n in 1..10 {
            assert_eq!(admit(&n.to_string(), 2).1, n.to_string());
        }
        let (ten, text) = admit("10", 3);
        assert_eq!(text, "(combined from similar events): 10");
        assert!(admit("11", 4).0 == ten && ten != first);
        assert!(admit("0", 5).0 == first, "one that is known is not combined");
        assert_eq!(admit("12", 3000).1, "12", "those before are too long ago");
    }

    #[test]
    fn an_object_that_floods_is_silenced_for_a_while() {
        let mut correlator = Correlator::default();
        let mut admitted = |object: &str, second| correlator.admit(&mut message(object, "m", second)).is_some();
        assert!((0..25).all(|_| admitted("a", 0)));
        assert!(!admitted("a", 0) && !admitted("a", 200));
        assert!(admitted("b", 200), "others are not");
        assert!(admitted("a", 301) && !admitted("a", 302));
    }
}
