//! Snapshots of all objects that a server makes by itself, now and then; the newest ones are kept.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::Client;

use crate::{files, tools};

/// How long after a start the first one is made, if one is due; and how soon it is tried again.
const SOON: Duration = Duration::from_secs(120);
const NAME: (&str, &str) = ("auto-", ".snapshot");

/// Makes one whenever the newest is older than `every`, and keeps `keep`.
pub async fn run(client: Client, dir: PathBuf, every: Duration, keep: usize) {
    loop {
        let newest = made(&dir).pop().and_then(|path| path.metadata().ok()?.modified().ok());
        let age = newest.map(|then| SystemTime::now().duration_since(then).unwrap_or_default());
        let due = age.map_or(Duration::ZERO, |age| every.saturating_sub(age));
        tokio::time::sleep(due.max(SOON.min(every))).await;
        match make(&client, &dir, Timestamp::now(), keep).await {
            Ok((path, objects)) => tracing::info!(objects, "a snapshot is in {}", path.display()),
            Err(error) => tracing::error!("no snapshot could be made: {error:#}"),
        }
    }
}

/// Those that are there, the oldest first: their names tell when they were made.
fn made(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let ours = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(NAME.0) && n.ends_with(NAME.1));
    let mut all: Vec<PathBuf> = entries.filter(ours).collect();
    all.sort();
    all
}

async fn make(client: &Client, dir: &Path, now: Timestamp, keep: usize) -> Result<(PathBuf, u64)> {
    files::private_dir(dir)?;
    let path = dir.join(format!("{}{}{}", NAME.0, now.strftime("%Y%m%dT%H%M%SZ"), NAME.1));
    let objects = tools::snapshot(client, &path).await?;
    let all = made(dir);
    for old in &all[..all.len().saturating_sub(keep.max(1))] {
        std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok((path, objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ours_count_and_the_oldest_come_first() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["auto-20260102T000000Z.snapshot", "auto-20260101T000000Z.snapshot", "mine.snapshot", "auto-20260103T000000Z.snapshot.part"] {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        let names: Vec<_> = made(dir.path()).iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["auto-20260101T000000Z.snapshot", "auto-20260102T000000Z.snapshot"]);
        assert!(made(Path::new("/nowhere")).is_empty());
    }
}
