//! A load of random transactions, told line by line, and the check of such a history.
//!
//! `OPEN revision state`: what a range found. `SEEN watcher revision changes`: what a watch yielded. `DONE revision
//! changes`: what was acknowledged. Every value has a name that is used once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use store::{Event, KeyValue, Op, RangeRequest, RangeResponse, Store, Txn};

pub const WATCHERS: usize = 2;
pub const WRITERS: usize = 6;
const KEYS: usize = 30;

/// Takes a line.
pub type Say = Arc<dyn Fn(String) + Send + Sync>;

pub fn name(kv: &KeyValue) -> String {
    let text = String::from_utf8_lossy(&kv.value);
    text.split(' ').next().unwrap_or_default().to_owned()
}

pub fn key(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The line for what a range of everything found.
pub fn opened(found: &RangeResponse) -> String {
    let state: Vec<_> = found.kvs.iter().map(|kv| format!("{}={}@{}", key(&kv.key), name(kv), kv.mod_revision)).collect();
    format!("OPEN {} {}", found.revision, state.join(","))
}

/// The line for what a watcher saw.
pub fn seen(watcher: usize, revision: i64, events: &[Event]) -> String {
    let show = |event: &Event| match event {
        Event::Put { kv, prev } => {
            let prev = prev.as_ref().map_or("-".to_owned(), name);
            format!("{}={}<{prev}", key(&kv.key), name(kv))
        }
        Event::Delete { key: deleted, prev, .. } => {
            format!("{}=-<{}", key(deleted), prev.as_ref().map_or("-".to_owned(), name))
        }
    };
    let events: Vec<_> = events.iter().map(show).collect();
    format!("SEEN {watcher} {revision} {}", events.join(","))
}

/// Writes for ever, and says what was acknowledged. `patient`: after an error, whose outcome is unknown, it goes on
/// with what it reads then.
pub async fn write(store: Arc<dyn Store>, writer: usize, patient: bool, say: Say) {
    for n in 0.. {
        match write_one(&store, writer, n).await {
            Ok(Some(done)) => say(done),
            Ok(None) => {}
            Err(error) => {
                assert!(patient, "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn write_one(store: &Arc<dyn Store>, writer: usize, n: usize) -> Result<Option<String>, store::Error> {
    let (chosen, other, padding, kind, ttl) = {
        let mut random = rand::rng();
        let chosen = random.random_range(0..KEYS);
        let other = (chosen + random.random_range(1..KEYS)) % KEYS;
        (chosen, other, random.random_range(0..3000), random.random_range(0..10), random.random_range(1..3))
    };
    let chosen = format!("key-{chosen}");
    let value = |what: usize| format!("{}-{writer}-{n}-{what} {}", std::process::id(), "x".repeat(padding));
    let put = |key: &str, what, ttl_seconds| Op::Put { key: key.into(), value: value(what).into(), ttl_seconds };
    let current = store.range(RangeRequest::key(chosen.as_str())).await?.kvs.pop();
    let txn = match kind {
        // One that would be applied twice if it were sent twice.
        5 => Txn::default(),
        _ => Txn::default().when(chosen.as_str(), current.map_or(0, |kv| kv.mod_revision)),
    };
    let then = match kind {
        0..6 => vec![put(&chosen, 0, None)],
        6 => vec![put(&chosen, 0, Some(ttl))],
        7 => vec![put(&chosen, 0, None), put(&format!("key-{other}"), 1, None)],
        _ => vec![Op::Delete { key: chosen.clone().into() }],
    };
    let before = store.revision().await?;
    let response = store.txn(Txn { then: then.clone(), ..txn }).await?;
    let changed = response.previous.iter().any(Option::is_some) || !matches!(then[0], Op::Delete { .. });
    if !response.succeeded || !changed {
        return Ok(None);
    }
    assert!(response.revision > before);
    let show = |op: &Op| match op {
        Op::Put { key: put, value, .. } => format!("{}={}", key(put), String::from_utf8_lossy(value).split(' ').next().unwrap()),
        Op::Delete { key: deleted } => format!("{}=-", key(deleted)),
    };
    let shown: Vec<_> = then.iter().map(show).collect();
    Ok(Some(format!("DONE {} {}", response.revision, shown.join(","))))
}

/// What is known of the history.
#[derive(Default)]
pub struct History {
    /// Revision → "key=value<previous" of each change.
    pub seen: BTreeMap<i64, String>,
    /// Acknowledged revision → "key=value" of each change.
    pub done: BTreeMap<i64, String>,
    /// Each watcher's last revision.
    pub at: [i64; WATCHERS],
    /// (revision, state) when the store was opened.
    pub opened: Vec<(i64, String)>,
}

impl History {
    /// Takes a line.
    pub fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        match word() {
            "OPEN" => {
                let (revision, state) = (word().parse().unwrap(), word().to_owned());
                let known = self
                    .at
                    .into_iter()
                    .chain(self.done.keys().next_back().copied())
                    .max()
                    .unwrap();
                assert!(
                    revision >= known,
                    "opened at {revision}, but {known} was there before"
                );
                self.opened.push((revision, state));
            }
            "SEEN" => {
                let (watcher, revision): (usize, i64) =
                    (word().parse().unwrap(), word().parse().unwrap());
                assert_eq!(
                    revision,
                    self.at[watcher] + 1,
                    "watcher {watcher} skipped or repeated"
                );
                self.at[watcher] = revision;
                let changes = word().to_owned();
                let known = self.seen.entry(revision).or_insert_with(|| changes.clone());
                assert_eq!(*known, changes, "revision {revision} was used twice");
            }
            "DONE" => {
                let revision = word().parse().unwrap();
                let before = self.done.insert(revision, word().to_owned());
                assert_eq!(before, None, "revision {revision} was acknowledged twice");
            }
            // The test harness talks too.
            _ => {}
        }
    }

    /// Replays what was seen, and compares it with what was acknowledged and read.
    pub fn check(&self) {
        let mut state: BTreeMap<&str, (&str, i64)> = BTreeMap::new();
        let mut written = BTreeSet::new();
        let mut opened = self.opened.iter().peekable();
        let mut compare = |state: &BTreeMap<&str, (&str, i64)>, revision| {
            while let Some((_, found)) = opened.next_if(|(at, _)| *at == revision) {
                let expected: Vec<_> = state
                    .iter()
                    .map(|(key, (name, at))| format!("{key}={name}@{at}"))
                    .collect();
                assert_eq!(*found, expected.join(","), "state at {revision}");
            }
        };
        compare(&state, 1);
        for (&revision, changes) in &self.seen {
            let mut plain = Vec::new();
            for change in changes.split(',') {
                let (assignment, previous) = change.split_once('<').unwrap();
                let (key, value) = assignment.split_once('=').unwrap();
                assert!(value == "-" || written.insert(value), "{assignment} was applied twice, the second time at {revision}");
                let before = match value {
                    "-" => state.remove(key),
                    value => state.insert(key, (value, revision)),
                };
                assert_eq!(
                    before.map_or("-", |(name, _)| name),
                    previous,
                    "previous of {change} at {revision}"
                );
                plain.push(assignment);
            }
            if let Some(done) = self.done.get(&revision) {
                assert_eq!(
                    *done,
                    plain.join(","),
                    "revision {revision} is not what was acknowledged"
                );
            }
            compare(&state, revision);
        }
        for revision in self.done.keys() {
            assert!(
                self.seen.contains_key(revision),
                "acknowledged revision {revision} was lost"
            );
        }
        assert_eq!(
            opened.next(),
            None,
            "every opening is at a revision that watchers saw"
        );
    }
}
