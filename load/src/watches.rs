//! Many watchers of the same pods.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::client::{Connection, Target};
use crate::reads::scattered;
use crate::writes::{NAMESPACE, patch_request};
use crate::{Run, figure, memory};

/// Who writes, and how far ahead of the watchers they may get: who is too far behind is told to list again.
const WRITERS: usize = 8;
const AHEAD: usize = 400;

/// Patches pods until the time is up, while all watch. Counts what they were told.
pub async fn watch(target: &Target, run: &Run, fixed: bool) -> Result<()> {
    let list: Value = match fixed {
        true => Value::Null,
        false => serde_json::from_slice(&target.ask("GET", &format!("/api/v1/namespaces/{NAMESPACE}/pods?limit=1"), None).await?)?,
    };
    let from = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    // How many events the server of the ceiling sends each of them.
    let sent = (run.seconds * 400.0) as usize;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?watch=true&resourceVersion={from}{}", if fixed { format!("&events={sent}") } else { String::new() });
    let request = target.request("GET", &path, &[("accept", "application/json")], b"");
    let before = memory::of(&run.pid)?;
    let mut connections = target.connections(run.watchers).await?;
    let seen = Arc::new(AtomicUsize::new(0));
    let size = Arc::new(AtomicUsize::new(0));
    let begin = Instant::now();
    for connection in &mut connections {
        connection.watch(&request).await?;
    }
    if let (Some(before), Some(now)) = (before, memory::of(&run.pid)?) {
        figure("memory for each watcher", format!("{:.1} KB", (now as f64 - before as f64) / run.watchers as f64 / 1e3));
    }
    let begin = if fixed { begin } else { Instant::now() };
    let mut watchers = Vec::new();
    for connection in connections {
        watchers.push(tokio::spawn(follow(connection, seen.clone(), size.clone())));
    }
    let written = if fixed { sent.div_ceil(100) * 100 } else { write(target, run, &seen).await? };
    let all = written * run.watchers;
    let patience = Instant::now();
    while seen.load(Ordering::Relaxed) < all {
        ensure!(patience.elapsed() < Duration::from_secs(60), "{} of {all} events came", seen.load(Ordering::Relaxed));
        if let Some(failed) = watchers.iter().position(|w| w.is_finished()).filter(|_| !fixed) {
            return watchers.swap_remove(failed).await?.context("a watcher");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    watchers.iter().for_each(|w| w.abort());
    figure("watch", format!("{:.0} events/s ({:.0} MB/s) to {} watchers", all as f64 / seconds, size.load(Ordering::Relaxed) as f64 / seconds / 1e6, run.watchers));
    Ok(())
}

async fn follow(mut connection: Connection, seen: Arc<AtomicUsize>, size: Arc<AtomicUsize>) -> Result<()> {
    let (mut left, mut bytes) = (0, 0);
    loop {
        let count = connection.events(&mut left, &mut bytes).await?;
        seen.fetch_add(count, Ordering::Relaxed);
        size.fetch_add(std::mem::take(&mut bytes), Ordering::Relaxed);
    }
}

/// Patches as fast as the watchers can follow. Answers how many there were.
async fn write(target: &Target, run: &Run, seen: &Arc<AtomicUsize>) -> Result<usize> {
    let written = Arc::new(AtomicUsize::new(0));
    let (begin, duration) = (Instant::now(), run.duration());
    let mut tasks = Vec::new();
    for (who, mut connection) in target.connections(WRITERS).await?.into_iter().enumerate() {
        let (target, written, seen, pods, watchers) = (target.clone(), written.clone(), seen.clone(), run.pods, run.watchers);
        tasks.push(tokio::spawn(async move {
            let mut turn = 0;
            while begin.elapsed() < duration {
                if written.load(Ordering::Relaxed) > seen.load(Ordering::Relaxed) / watchers + AHEAD {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                // other values than those of the patches before
                let request = patch_request(&target, scattered(who, turn, pods), 1_000_000_000 + who * 1_000_000 + turn);
                let (code, _) = connection.send(&request).await?;
                ensure!(code == 200, "a patch was answered with {code}");
                written.fetch_add(1, Ordering::Relaxed);
                turn += 1;
            }
            Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(written.load(Ordering::Relaxed))
}
