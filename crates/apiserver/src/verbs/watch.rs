//! WATCH: initial events where wanted, then changes as they come, bookmarks in between, until the time is up.
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ListOptions;
use super::list::too_large_version;
use super::options::parse_version;
use crate::body::BodyError;
use crate::cache::{Change, ChangeKind, Entry, Snapshot, Watcher};
use crate::core::Core;
use crate::ctx::Ctx;
use crate::custom::Custom;
use crate::model;
use crate::negotiate::Accepted;
use crate::present::{Include, Presenter};
use crate::select::Selection;
use crate::server::Occupied;
use crate::types::{Resource, Status};

/// Bookmarks come this often on a quiet watch, and once this long before the end.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// Events written out at once at most.
const BATCH: usize = 100;

/// A watch that can be run: what it starts with, and where it goes on.
pub struct Watch {
    core: Arc<Core>,
    resource: &'static Resource,
    custom: Option<Custom>,
    /// Told when definitions change: a watch of a custom resource ends with what it is of.
    definitions: Option<tokio::sync::watch::Receiver<u64>>,
    selection: Selection,
    accepted: Accepted,
    include: Include,
    initial: Option<(Arc<Snapshot>, u64)>,
    watcher: Watcher,
    /// Why it cannot go on from where the client is.
    failure: Option<Status>,
    bookmarks: bool,
    /// The client waits for a bookmark at the end of the initial events.
    end_mark: bool,
    /// Changes up to here are not wanted (they matter when a version from the future was asked for).
    after: u64,
    /// Bookmarks never say less than what the client has.
    sent: u64,
    deadline: Instant,
}

impl Core {
    /// Prepares a watch; failures come before the response starts.
    pub async fn watch(
        self: &Arc<Core>,
        ctx: &Ctx,
        selection: Selection,
        options: &ListOptions,
        accepted: Accepted,
        include: Include,
    ) -> Result<Watch, Status> {
        let resource = ctx.resource;
        let cached = self.cached(resource)?;
        let definitions = ctx.custom.as_ref().and_then(|_| Some(self.cache.resource(crate::custom::definitions()?.storage_prefix)?.changes()));
        let version = parse_version(&options.resource_version)?;
        let send_initial = options.send_initial_events;
        if send_initial == Some(true) && !options.allow_bookmarks {
            return Err(api::status::invalid(
                "meta.k8s.io",
                "ListOptions",
                "",
                &[api::field::FieldError::forbidden(
                    &api::field::Path::new("sendInitialEvents"),
                    "sendInitialEvents requires setting allowWatchBookmarks to true",
                )],
            ));
        }
        let from_now = match (send_initial, version) {
            (Some(true), _) => true,
            (Some(false), None | Some(0)) => false,
            (None, None | Some(0)) => true,
            _ => false,
        };
        let mut sent = version.unwrap_or(0);
        let mut failure = None;
        let (initial, watcher) = if from_now {
            match version {
                None => self.catch_up().await?,
                Some(wanted) => {
                    if !self.cache.wait(wanted, Duration::from_secs(3)).await {
                        return Err(too_large_version(wanted, self.cache.revision()));
                    }
                }
            }
            let revision = self.cache.revision();
            let (snapshot, watcher) = cached.watch_from_now();
            let revision = revision.max(snapshot.revision);
            sent = revision;
            (Some((snapshot, revision)), watcher)
        } else {
            let after = match version {
                Some(version) if version > 0 => version,
                _ => {
                    self.catch_up().await?;
                    self.cache.revision()
                }
            };
            sent = sent.max(after);
            // a version from the future is waited for, as upstream does
            match cached.watch_after(after) {
                Ok(watcher) => (None, watcher),
                Err(e) => {
                    // this is told by an event, as upstream tells it: clients look for it there
                    failure = Some(api::status::too_old_resource_version(after, e.oldest));
                    (None, cached.watch_from_now().1)
                }
            }
        };
        let timeout = match options.timeout_seconds {
            Some(seconds) => Duration::from_secs(seconds),
            // this long, and up to twice as long
            None => self.watch_timeout.mul_f64(1.0 + rand::random::<f64>()),
        };
        let deadline = Instant::now() + timeout.min(Duration::from_secs(86400 * 365));
        Ok(Watch {
            core: self.clone(),
            resource,
            custom: ctx.custom.clone(),
            definitions,
            selection,
            accepted,
            include,
            initial,
            watcher,
            failure,
            bookmarks: options.allow_bookmarks,
            end_mark: send_initial == Some(true),
            after: sent,
            sent,
            deadline,
        })
    }
}

/// Returns once the custom resource is not any more what it was when the watch began.
async fn replaced(core: &Arc<Core>, custom: Option<&Custom>, definitions: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    let (Some(custom), Some(definitions)) = (custom, definitions) else { return std::future::pending().await };
    loop {
        definitions.mark_unchanged();
        if core.custom(custom.resource()).is_none_or(|now| now.version.id != custom.version.id) {
            return;
        }
        if definitions.changed().await.is_err() {
            return;
        }
    }
}

enum State {
    Initial(Vec<Arc<Entry>>, usize, u64),
    Live,
    Ended,
}

struct Run {
    watch: Watch,
    /// Held until the initial events are out.
    occupied: Option<Occupied>,
    state: State,
    first_table: bool,
    next_bookmark: Instant,
    end_bookmark_sent: bool,
}

impl Watch {
    pub fn content_type(&self) -> &'static str {
        self.presenter().watch_type()
    }

    fn presenter(&self) -> Presenter<'_> {
        Presenter { core: &self.core, resource: self.resource, custom: self.custom.as_ref(), accepted: self.accepted, include: self.include, now: jiff::Timestamp::now() }
    }

    async fn views(&self, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
        match &self.custom {
            Some(custom) => self.core.views(custom, entries).await,
            None => Ok(entries),
        }
    }

    /// What a change means to this watch, and the object to show.
    async fn seen(&self, change: &Change) -> Result<Option<(ChangeKind, Arc<Entry>)>, Status> {
        let selection = &self.selection;
        let Some(custom) = &self.custom else {
            let kind = change.seen(|entry| selection.matches(entry));
            return Ok(kind.and_then(|kind| Some((kind, change.entry(kind)?.clone()))));
        };
        let mut states = Vec::new();
        for state in [&change.previous, &change.current] {
            states.push(match state {
                Some(entry) => self.core.views(custom, vec![entry.clone()]).await?.pop().filter(|e| selection.matches(e)),
                None => None,
            });
        }
        let (now, before) = (states.pop().flatten(), states.pop().flatten());
        Ok(match (before, now) {
            (None, Some(now)) => Some((ChangeKind::Added, now)),
            (Some(_), Some(now)) => Some((ChangeKind::Modified, now)),
            (Some(before), None) => {
                let gone = if before.revision == change.revision { before } else { Arc::new(before.deleted_at(change.revision)) };
                Some((ChangeKind::Deleted, gone))
            }
            (None, None) => None,
        })
    }

    /// The events as chunks of the response's body. What the request occupies is free once the initial ones are out.
    pub(crate) fn stream(mut self, occupied: Option<Occupied>) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
        let state = match self.initial.take() {
            Some((snapshot, revision)) => {
                let entries = snapshot
                    .map
                    .from(&self.selection.prefix)
                    .take_while(|(k, _)| k.starts_with(&self.selection.prefix))
                    .filter(|(k, e)| self.selection.covers(k) && (self.custom.is_some() || self.selection.matches(e)))
                    .map(|(_, e)| e.clone())
                    .collect();
                State::Initial(entries, 0, revision)
            }
            None => State::Live,
        };
        let occupied = occupied.filter(|_| matches!(state, State::Initial(..)));
        let run = Run { watch: self, occupied, state, first_table: true, next_bookmark: Instant::now() + BOOKMARK_EVERY, end_bookmark_sent: false };
        futures::stream::unfold(run, |mut run| async move { run.next().await.map(|chunk| (Ok(chunk), run)) })
    }
}

impl Run {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(status) = self.watch.failure.take() {
            return Some(self.fail(status));
        }
        loop {
            match &mut self.state {
                State::Ended => return None,
                State::Initial(entries, at, revision) => {
                    let revision = *revision;
                    if *at < entries.len() {
                        let to = (*at + BATCH).min(entries.len());
                        let batch: Vec<_> = entries[*at..to].to_vec();
                        *at = to;
                        let mut out = BytesMut::new();
                        let batch = match self.watch.views(batch).await {
                            Ok(batch) => batch,
                            Err(status) => return Some(self.fail(status)),
                        };
                        for entry in batch {
                            if self.watch.custom.is_some() && !self.watch.selection.matches(&entry) {
                                continue;
                            }
                            let ready = || crate::cache::frame("ADDED", &entry.json);
                            match self.watch.presenter().event("ADDED", &entry, ready, self.first_table) {
                                Ok(frame) => out.extend_from_slice(&frame),
                                Err(status) => return Some(self.fail(status)),
                            }
                            self.first_table = false;
                        }
                        if out.is_empty() {
                            continue;
                        }
                        return Some(out.freeze());
                    }
                    self.state = State::Live;
                    self.occupied = None;
                    if self.watch.end_mark {
                        return Some(self.bookmark(revision, true));
                    }
                }
                State::Live => {
                    if let Some(chunk) = self.live().await {
                        return Some(chunk);
                    }
                }
            }
        }
    }

    async fn live(&mut self) -> Option<Bytes> {
        let before_poll = self.watch.core.cache.revision();
        let changes = match self.watch.watcher.poll(BATCH) {
            Ok(changes) => changes,
            Err(e) => return Some(self.fail(api::status::too_old_resource_version(self.watch.sent, e.oldest))),
        };
        let more = changes.len() == BATCH;
        let mut out = BytesMut::new();
        for change in changes {
            self.watch.sent = self.watch.sent.max(change.revision);
            if change.revision <= self.watch.after || !self.watch.selection.covers(&change.key) {
                continue;
            }
            let (kind, entry) = match self.watch.seen(&change).await {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(status) => return Some(self.fail(status)),
            };
            let ready = || match change.entry(kind) {
                Some(stored) if Arc::ptr_eq(stored, &entry) => change.frame(kind),
                _ => crate::cache::frame(kind.as_str(), &entry.json),
            };
            match self.watch.presenter().event(kind.as_str(), &entry, ready, self.first_table) {
                Ok(frame) => out.extend_from_slice(&frame),
                Err(status) => return Some(self.fail(status)),
            }
            self.first_table = false;
        }
        if !more {
            self.watch.sent = self.watch.sent.max(before_poll);
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        if more {
            return None;
        }
        let last_bookmark = self.watch.deadline.checked_sub(BOOKMARK_BEFORE_END);
        let mut wake = self.watch.deadline;
        if self.watch.bookmarks {
            wake = wake.min(self.next_bookmark);
            if let Some(at) = last_bookmark.filter(|_| !self.end_bookmark_sent) {
                wake = wake.min(at);
            }
        }
        tokio::select! {
            _ = self.watch.watcher.changed() => return None,
            () = self.watch.core.closing.cancelled() => {
                self.state = State::Ended;
                return None;
            }
            () = replaced(&self.watch.core, self.watch.custom.as_ref(), &mut self.watch.definitions) => {
                self.state = State::Ended;
                return None;
            }
            _ = tokio::time::sleep_until(wake) => {}
        }
        let now = Instant::now();
        if now >= self.watch.deadline {
            self.state = State::Ended;
            return None;
        }
        if self.watch.bookmarks {
            self.next_bookmark = now + BOOKMARK_EVERY;
            if last_bookmark.is_some_and(|at| now >= at) {
                self.end_bookmark_sent = true;
            }
            // everything up to here was sent, unless something came in since
            if self.watch.watcher.drained() {
                return Some(self.bookmark(self.watch.sent, false));
            }
        }
        None
    }

    fn bookmark(&self, revision: u64, end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.watch.resource.kind,
            "apiVersion": model::api_version(self.watch.resource),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": Value::Null},
        });
        if end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.watch.presenter().event_value("BOOKMARK", object, self.first_table).unwrap_or_default()
    }

    /// An ERROR event, after which the watch ends.
    fn fail(&mut self, status: Status) -> Bytes {
        self.state = State::Ended;
        self.watch.presenter().event_value("ERROR", status.to_value(), false).unwrap_or_default()
    }
}
