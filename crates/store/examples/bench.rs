//! Compares settings of the embedded engine: `cargo run --release -p store --example bench`.
//!
//! Each setting runs in a process of its own, so that memory can be told apart. 10,000 objects of
//! 3.3 KB are created by 64 tasks, and half of them updated by one task; then the store is opened
//! again, and listed.

use std::process::Command;
use std::time::{Duration, Instant};

use rand::RngExt;
use store::embedded::{Options, open};
use store::{RangeRequest, Txn};

const OBJECTS: usize = 10_000;
const TASKS: usize = 64;
const UPDATES: usize = 1_000;

fn main() {
    let mut args = std::env::args().skip(1);
    if let (Some(memtable), Some(cache), Some(dir)) = (args.next(), args.next(), args.next()) {
        let options = Options {
            memtable_bytes: memtable.parse::<u64>().expect("bytes"),
            cache_bytes: cache.parse::<u64>().expect("bytes"),
            ..Options::default()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime
            .expect("a runtime")
            .block_on(measure(options, &dir, args.next().is_some()));
        return;
    }
    println!(
        "{:>9} {:>7} | {:>9} {:>8} {:>8} | {:>8} {:>8} {:>8} | {:>8} {:>8} {:>8} {:>8}",
        "memtable",
        "cache",
        "64 tasks",
        "median",
        "99 %",
        "1 task",
        "median",
        "memory",
        "reopen",
        "list",
        "idle",
        "disk"
    );
    for (memtable, cache) in [
        (64 << 20, 32 << 20),
        (16 << 20, 8 << 20),
        (8 << 20, 1 << 20),
        (4 << 20, 1 << 20),
        (2 << 20, 1 << 20),
        (1 << 20, 256 << 10),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        print!("{:>7}Ki {:>5}Ki |", memtable >> 10, cache >> 10);
        for again in [None, Some("again")] {
            let mut child = Command::new(std::env::current_exe().expect("own path"));
            child.args([
                memtable.to_string(),
                cache.to_string(),
                dir.path().join("s").display().to_string(),
            ]);
            child.args(again);
            assert!(child.status().expect("a child").success());
        }
        println!();
    }
}

async fn measure(options: Options, dir: &str, again: bool) {
    use std::io::Write;
    let base = memory();
    let started = Instant::now();
    let store = open(dir, options).expect("a store");
    let opened = started.elapsed();
    if again {
        let idle = memory() - base;
        let started = Instant::now();
        let found = store.range(RangeRequest::prefix("")).await.expect("a list");
        assert_eq!(found.count, OBJECTS);
        let listed = started.elapsed();
        drop(found);
        let size = store.status().await.expect("a status").size_bytes;
        print!(
            " {:>6}ms {:>6}ms {:>6}Ki {:>6}Mi",
            opened.as_millis(),
            listed.as_millis(),
            idle,
            size >> 20
        );
        return store.close().await;
    }
    let value: Vec<u8> = {
        let mut random = rand::rng();
        (0..3300).map(|_| random.random_range(b' '..b'~')).collect()
    };
    let started = Instant::now();
    let tasks = (0..TASKS).map(|task| {
        let (store, value) = (store.clone(), value.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for i in (task..OBJECTS).step_by(TASKS) {
                let key = format!("/registry/pods/default/pod-{i:06}");
                let started = Instant::now();
                let create = Txn::put(key.as_str(), value.clone()).when(key.as_str(), 0);
                assert!(store.txn(create).await.expect("a write").succeeded);
                times.push(started.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.expect("no panic"));
    }
    report(started.elapsed(), &mut times, true);
    let started = Instant::now();
    let mut times = Vec::new();
    for i in 0..UPDATES {
        let started = Instant::now();
        let key = format!("/registry/pods/default/pod-{:06}", i * 7 % OBJECTS);
        store
            .txn(Txn::put(key, value.clone()))
            .await
            .expect("a write");
        times.push(started.elapsed());
    }
    report(started.elapsed(), &mut times, false);
    print!(" {:>6}Ki |", memory() - base);
    std::io::stdout().flush().expect("output");
    store.close().await;
}

fn report(total: Duration, times: &mut [Duration], tail: bool) {
    times.sort();
    let at =
        |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros() as f64 / 1000.0;
    print!(
        " {:>7.0}/s {:>6.2}ms",
        times.len() as f64 / total.as_secs_f64(),
        at(0.5)
    );
    if tail {
        print!(" {:>6.2}ms |", at(0.99));
    }
}

/// Resident private memory in KiB.
fn memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .expect("RssAnon");
    line.split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a number")
}
