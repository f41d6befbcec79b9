//! What a strategy, admission plug-in or creater knows about the request it serves.
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::custom::Custom;
use crate::storage::{Reader, Writer};
use crate::types::Resource;

/// Who makes a request, as an authenticator found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with these groups and nothing else.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> UserInfo {
        UserInfo {
            name: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..UserInfo::default()
        }
    }

    /// Whether the user is in this group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The parts of the server that registry code may use while it serves a request.
#[derive(Clone)]
pub struct Backend {
    pub reader: Arc<dyn Reader>,
    pub writer: Arc<dyn Writer>,
    pub authorizer: Arc<dyn Authorizer>,
    pub authenticator: Arc<dyn Authenticator>,
}

/// What mutating webhooks did: a change makes all plug-ins look at the object once more.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    /// This is the second round: only hooks that are required are asked.
    pub again: bool,
    /// A hook changed the object.
    pub changed: bool,
    /// Hooks that were asked and want to know of changes after them.
    pub earlier: std::collections::BTreeSet<String>,
    /// Hooks to ask again.
    pub required: std::collections::BTreeSet<String>,
    /// The object as the hooks left it.
    pub output: Option<serde_json::Value>,
}

impl Rounds {
    /// The object changed: whoever wants to know of it is asked again.
    pub fn require_earlier(&mut self) {
        self.required.append(&mut self.earlier);
    }
}

/// One request, as far as it concerns a resource. Also made for work without a request (the `Writer`), with the user `system:apiserver`.
#[derive(Clone)]
pub struct Ctx {
    pub resource: &'static Resource,
    /// Empty when the resource itself is meant.
    pub subresource: String,
    /// Empty for cluster-scoped resources.
    pub namespace: String,
    /// Empty for collections and for creates with generateName (until the name is generated).
    pub name: String,
    pub user: UserInfo,
    /// The time of the request; strategies take the time from here only.
    pub now: jiff::Timestamp,
    pub dry_run: bool,
    pub backend: Backend,
    /// The version of the definition, when the resource is a custom one.
    pub(crate) custom: Option<Custom>,
    rounds: Arc<Mutex<Rounds>>,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Ctx {
    pub fn new(resource: &'static Resource, namespace: &str, name: &str, user: UserInfo, now: jiff::Timestamp, backend: Backend) -> Ctx {
        Ctx {
            resource,
            subresource: String::new(),
            namespace: namespace.to_string(),
            name: name.to_string(),
            user,
            now,
            dry_run: false,
            backend,
            custom: None,
            rounds: Arc::default(),
            warnings: Arc::default(),
        }
    }

    /// Adds a `Warning` header to the response (once for each text).
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// What mutating webhooks have done so far in the admission of this write.
    pub fn rounds(&self) -> Rounds {
        self.rounds.lock().clone()
    }

    /// Keeps what [`Ctx::rounds`] answers.
    pub fn keep_rounds(&self, rounds: Rounds) {
        *self.rounds.lock() = rounds;
    }

    /// Brings an object that admission changed into the shape that a decoded one has, defaults included.
    pub fn settle(&self, object: &mut serde_json::Value) -> Result<(), String> {
        crate::model::settle_changed(self, object)
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// The time of the request as the API writes it (RFC 3339, whole seconds, `Z`).
    pub fn now_string(&self) -> String {
        format_time(self.now)
    }
}

/// `metav1.Time`'s JSON form.
pub fn format_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
