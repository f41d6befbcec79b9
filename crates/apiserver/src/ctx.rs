//! What a strategy, admission plug-in or creater knows about the request it serves.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use api::warnings::Warnings;
use parking_lot::Mutex;

use crate::audit::{Layer, Level, Record};
use crate::authn::Authenticator;
use crate::authz::{self, Authorizer, AuthzAttributes, Decision};
use crate::custom::Custom;
use crate::storage::{Reader, Unserved, Writer};
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
    pub unserved: Arc<dyn Unserved>,
    pub authorizer: Arc<dyn Authorizer>,
    pub authenticator: Arc<dyn Authenticator>,
}

/// How far mutating admission has got: a change by webhooks or policies makes all plug-ins look at the object once more.
#[derive(Debug, Default)]
struct Rounds {
    second: bool,
    required: bool,
    plugins: BTreeMap<&'static str, Round>,
}

/// What the webhooks or policies of one plug-in have done so far.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// Those that were asked and want to know of changes after them.
    pub earlier: BTreeSet<String>,
    /// Those to ask again in the second round, where nobody else is asked.
    pub required: BTreeSet<String>,
    /// The object as they left it.
    pub output: Option<serde_json::Value>,
}

impl Round {
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
    /// What is recorded of the request, if anything is.
    pub(crate) audit: Option<Arc<Record>>,
    rounds: Arc<Mutex<Rounds>>,
    warnings: Arc<Mutex<Warnings>>,
    questions: Arc<Mutex<Questions>>,
}

/// What is asked of authorizers by code that cannot wait for them.
#[derive(Default)]
struct Questions {
    open: Vec<AuthzAttributes>,
    answers: Vec<(AuthzAttributes, (Decision, String))>,
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
            audit: None,
            rounds: Arc::default(),
            warnings: Arc::default(),
            questions: Arc::default(),
        }
    }

    /// Whether something is allowed, for code that decides at once. What takes time to find out is not allowed until it
    /// is known: run such code by [`Ctx::settled`].
    pub fn authorize(&self, question: &AuthzAttributes) -> (Decision, String) {
        let answer = self.backend.authorizer.authorize(question);
        if answer.0 != Decision::Ask {
            return answer;
        }
        let mut questions = self.questions.lock();
        if let Some((_, answer)) = questions.answers.iter().find(|(asked, _)| asked == question) {
            return answer.clone();
        }
        if !questions.open.contains(question) {
            questions.open.push(question.clone());
        }
        (Decision::NoOpinion, String::new())
    }

    /// What `decide` decides once all that it asks by [`Ctx::authorize`] is known: it is run again when something had to be
    /// found out, and must change nothing.
    pub async fn settled<T>(&self, mut decide: impl FnMut() -> T) -> T {
        loop {
            {
                let decided = decide();
                if self.questions.lock().open.is_empty() {
                    return decided;
                }
            }
            let open = std::mem::take(&mut self.questions.lock().open);
            for question in open {
                let answer = authz::decide(&*self.backend.authorizer, &question).await;
                self.questions.lock().answers.push((question, answer));
            }
        }
    }

    /// Adds a `Warning` header to the response (once for each text).
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().push(text.into());
    }

    /// Adds an annotation to the request's audit events, if there are any: only then is the value made. The first value
    /// of a key stays.
    pub fn audit(&self, key: &str, value: impl FnOnce() -> String) {
        self.audit_at(Level::Metadata, key, value);
    }

    /// What a part of the request takes is told, if it is recorded and slow.
    pub async fn timed<T>(&self, layer: Layer, part: impl Future<Output = T>) -> T {
        let Some(record) = &self.audit else { return part.await };
        let began = Instant::now();
        let result = part.await;
        record.took(layer, began.elapsed());
        result
    }

    /// Whether anybody sees audit annotations.
    pub fn is_audited(&self) -> bool {
        self.audit.is_some()
    }

    /// As [`Ctx::audit`], where this level or more is recorded. A key has a prefix, a slash and a name.
    pub fn audit_at(&self, level: Level, key: &str, value: impl FnOnce() -> String) {
        let Some(record) = &self.audit else { return };
        if key.split('/').count() != 2 || !api::names::qualified_name(key).is_empty() {
            tracing::warn!(key, "an audit annotation has no key that could be one, and is left out");
            return;
        }
        record.annotate(level, key, value);
    }

    /// What a plug-in's webhooks or policies have done so far in the admission of this write.
    pub fn round(&self, plugin: &'static str) -> Round {
        self.rounds.lock().plugins.get(plugin).cloned().unwrap_or_default()
    }

    /// Keeps what [`Ctx::round`] answers.
    pub fn keep_round(&self, plugin: &'static str, round: Round) {
        self.rounds.lock().plugins.insert(plugin, round);
    }

    /// Whether plug-ins look at the object once more.
    pub fn is_second_round(&self) -> bool {
        self.rounds.lock().second
    }

    /// Somebody else than the server changed the object: all plug-ins are to look at it once more.
    pub fn require_second_round(&self) {
        self.rounds.lock().required = true;
    }

    /// Begins the second round, if one is required.
    pub(crate) fn begin_second_round(&self) -> bool {
        let mut rounds = self.rounds.lock();
        rounds.second = rounds.required;
        rounds.second
    }

    /// Forgets the rounds: what comes next is another write.
    pub(crate) fn end_rounds(&self) {
        *self.rounds.lock() = Rounds::default();
    }

    /// Brings an object that admission changed into the shape that a decoded one has, defaults included. Answers what is
    /// to be said of the unknown fields that were dropped.
    pub fn settle(&self, object: &mut serde_json::Value) -> Result<Vec<String>, String> {
        crate::model::settle_changed(self, object)
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().all().to_vec()
    }

    /// The warnings so far, and those that are still to come.
    pub(crate) fn warned(&self) -> Arc<Mutex<Warnings>> {
        self.warnings.clone()
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
