//! Kills a process that uses the embedded engine, again and again, and checks what it told.
//!
//! The child (this test binary once more) runs concurrent writers and two watchers and prints what was
//! acknowledged and what was seen, one line each. The parent kills it by SIGKILL at a random moment,
//! checks the lines, and starts it again on the same directory; watchers go on where they had been.
//! `STORE_CRASHES` sets the number of kills (200).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::RngExt;
use store::embedded::{self, Options};
use store::{Event, KeyValue, Op, RangeRequest, Store, Txn, WatchEvent};

const WATCHERS: usize = 2;
const WRITERS: usize = 6;
const KEYS: usize = 30;

/// A line of the child's: one write, so that lines do not mix.
fn say(line: String) {
    let _ = std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
}

fn name(kv: &KeyValue) -> String {
    let text = String::from_utf8_lossy(&kv.value);
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn key(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The process that is killed; does nothing when it is run as a test.
#[test]
fn child() {
    let Ok(dir) = std::env::var("STORE_CRASH_DIR") else {
        return;
    };
    let from: Vec<i64> = std::env::var("STORE_CRASH_FROM")
        .unwrap()
        .split(',')
        .map(|revision| revision.parse().unwrap())
        .collect();
    let until: i64 = std::env::var("STORE_CRASH_UNTIL").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // Small, so that tables are written and merged all the time.
    let options = Options {
        memtable_bytes: 128 << 10,
        feed_bytes: 64 << 10,
        ..Options::default()
    };
    let store = embedded::open(&dir, options).unwrap();
    runtime.block_on(async {
        let opened = store.range(RangeRequest::prefix("")).await.unwrap();
        let state: Vec<_> = opened
            .kvs
            .iter()
            .map(|kv| format!("{}={}@{}", key(&kv.key), name(kv), kv.mod_revision))
            .collect();
        say(format!("OPEN {} {}", opened.revision, state.join(",")));
        if until > 0 {
            assert!(opened.revision >= until);
        }
        let last = opened.revision;
        let positions: Vec<_> = from
            .iter()
            .map(|revision| Arc::new(AtomicI64::new(revision - 1)))
            .collect();
        let mut watchers = Vec::new();
        for (watcher, position) in positions.iter().cloned().enumerate() {
            let mut watch = store
                .watch(b"", position.load(Ordering::SeqCst) + 1)
                .await
                .unwrap();
            watchers.push(tokio::spawn(async move {
                while until == 0 || position.load(Ordering::SeqCst) < last {
                    let (revision, events) = match watch.next().await.unwrap().unwrap() {
                        WatchEvent::Events { revision, events } => (revision, events),
                        other => panic!("every revision has changes: {other:?}"),
                    };
                    let show = |event: &Event| match event {
                        Event::Put { kv, prev } => {
                            let prev = prev.as_ref().map_or("-".to_owned(), name);
                            format!("{}={}<{prev}", key(&kv.key), name(kv))
                        }
                        Event::Delete {
                            key: deleted, prev, ..
                        } => {
                            format!(
                                "{}=-<{}",
                                key(deleted),
                                prev.as_ref().map_or("-".to_owned(), name)
                            )
                        }
                    };
                    let events: Vec<_> = events.iter().map(show).collect();
                    say(format!("SEEN {watcher} {revision} {}", events.join(",")));
                    position.store(revision, Ordering::SeqCst);
                }
            }));
        }
        if until > 0 {
            for watcher in watchers {
                watcher.await.unwrap();
            }
            return;
        }
        for writer in 0..WRITERS {
            tokio::spawn(write(store.clone(), writer));
        }
        // Forgets what both watchers have told, so that compaction is interrupted too.
        loop {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let seen = positions
                .iter()
                .map(|position| position.load(Ordering::SeqCst))
                .min()
                .unwrap();
            // Fails while there is nothing to forget.
            let _ = store.compact(seen - 40).await;
        }
    });
}

async fn write(store: Arc<dyn Store>, writer: usize) {
    for n in 0.. {
        let (chosen, other, padding, kind, ttl) = {
            let mut random = rand::rng();
            let chosen = random.random_range(0..KEYS);
            let other = (chosen + random.random_range(1..KEYS)) % KEYS;
            (
                chosen,
                other,
                random.random_range(0..3000),
                random.random_range(0..10),
                random.random_range(1..3),
            )
        };
        let chosen = format!("key-{chosen}");
        let value = |what: usize| {
            format!(
                "{}-{writer}-{n}-{what} {}",
                std::process::id(),
                "x".repeat(padding)
            )
        };
        let put = |key: &str, what, ttl_seconds| Op::Put {
            key: key.into(),
            value: value(what).into(),
            ttl_seconds,
        };
        let current = store
            .range(RangeRequest::key(chosen.as_str()))
            .await
            .unwrap()
            .kvs
            .pop();
        let txn = Txn::default().when(chosen.as_str(), current.map_or(0, |kv| kv.mod_revision));
        let then = match kind {
            0..6 => vec![put(&chosen, 0, None)],
            6 => vec![put(&chosen, 0, Some(ttl))],
            7 => vec![put(&chosen, 0, None), put(&format!("key-{other}"), 1, None)],
            _ => vec![Op::Delete {
                key: chosen.clone().into(),
            }],
        };
        let before = store.revision().await.unwrap();
        let response = store
            .txn(Txn {
                then: then.clone(),
                ..txn
            })
            .await
            .unwrap();
        let changed =
            response.previous.iter().any(Option::is_some) || !matches!(then[0], Op::Delete { .. });
        if response.succeeded && changed {
            assert!(response.revision > before);
            let show = |op: &Op| match op {
                Op::Put {
                    key: put, value, ..
                } => {
                    format!(
                        "{}={}",
                        key(put),
                        String::from_utf8_lossy(value).split(' ').next().unwrap()
                    )
                }
                Op::Delete { key: deleted } => format!("{}=-", key(deleted)),
            };
            let shown: Vec<_> = then.iter().map(show).collect();
            say(format!("DONE {} {}", response.revision, shown.join(",")));
        }
    }
}

/// What is known of the history.
#[derive(Default)]
struct History {
    /// Revision → "key=value<previous" of each change.
    seen: BTreeMap<i64, String>,
    /// Acknowledged revision → "key=value" of each change.
    done: BTreeMap<i64, String>,
    /// Each watcher's last revision.
    at: [i64; WATCHERS],
    /// (revision, state) when the store was opened.
    opened: Vec<(i64, String)>,
}

impl History {
    fn take(&mut self, line: &str) {
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
    fn check(&self) {
        let mut state: BTreeMap<&str, (&str, i64)> = BTreeMap::new();
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

struct Kill {
    after: Duration,
    /// Count from the opening, not from the start.
    opened: bool,
}

/// Runs the child. It is killed some time after its start, or after the store was opened; or never,
/// and then it ends when the watchers have seen everything.
fn run(dir: &std::path::Path, history: &mut History, kill: Option<Kill>) {
    let from: Vec<_> = history.at.iter().map(|at| (at + 1).to_string()).collect();
    let until = if kill.is_some() {
        0
    } else {
        history.done.keys().next_back().copied().unwrap_or(1)
    };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("STORE_CRASH_DIR", dir)
        .env("STORE_CRASH_FROM", from.join(","))
        .env("STORE_CRASH_UNTIL", until.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let (opened, wait_opened) = std::sync::mpsc::channel();
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut all = Vec::new();
            loop {
                let mut line = String::new();
                match lines.read_line(&mut line) {
                    // A line that was cut off was not told.
                    Ok(n) if n > 0 && line.ends_with('\n') => {
                        if line.starts_with("OPEN") {
                            let _ = opened.send(());
                        }
                        all.push(line);
                    }
                    _ => return all,
                }
            }
        });
        match kill {
            Some(Kill { after, opened }) => {
                if opened {
                    let bound = Duration::from_secs(20);
                    wait_opened
                        .recv_timeout(bound)
                        .expect("the child opens the store");
                }
                std::thread::sleep(after);
                let _ = child.kill();
                let _ = child.wait();
            }
            None => assert!(child.wait().unwrap().success()),
        }
        reader.join().unwrap()
    });
    for line in read {
        history.take(line.trim_end());
    }
}

#[test]
fn survives_sigkill() {
    let crashes: u32 = std::env::var("STORE_CRASHES").map_or(200, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let mut history = History {
        at: [1; WATCHERS],
        ..History::default()
    };
    for crash in 0..crashes {
        let opened = crash == 0 || rand::rng().random_bool(0.8);
        let after = Duration::from_millis(rand::rng().random_range(0..50));
        run(&dir, &mut history, Some(Kill { after, opened }));
    }
    run(&dir, &mut history, None);
    history.check();
    let (opened, revisions) = (history.opened.len(), history.seen.len());
    println!(
        "{crashes} kills, {opened} of them after opening; {revisions} revisions, {} acknowledged",
        history.done.len()
    );
    assert!(
        crashes < 50 || (opened > 20 && history.done.len() > 100),
        "the child does too little to test anything"
    );
}
