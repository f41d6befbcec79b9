//! Kills a process that uses the embedded engine, again and again, and checks what it told.
//!
//! The child (this test binary once more) runs concurrent writers and two watchers and prints what was
//! acknowledged and what was seen, one line each. The parent kills it by SIGKILL at a random moment,
//! checks the lines, and starts it again on the same directory; watchers go on where they had been.
//! `STORE_CRASHES` sets the number of kills (200).

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rand::RngExt;
use store::embedded::{self, Options};
use store::{RangeRequest, WatchEvent};

mod common;

use common::history::{self, History, WATCHERS, WRITERS};

/// A line of the child's: one write, so that lines do not mix.
fn say(line: String) {
    let _ = std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes());
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
        say(history::opened(&opened));
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
                    say(history::seen(watcher, revision, &events));
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
            tokio::spawn(history::write(store.clone(), writer, false, Arc::new(say)));
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
