//! Container logs on disk: reading them as `kubectl logs` asks, and rotating them.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; `P` is a part of a longer line.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri::v1::{ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, ListContainersRequest, ReopenContainerLogRequest};
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::sync::mpsc;

use crate::worker::Shared;

/// What of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: Option<u64>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<String>,
}

/// Turns raw lines into what the client sees. Pure.
struct Filter<'a> {
    options: &'a Options,
    left: Option<u64>,
    /// The last part of a line did not end it.
    in_line: bool,
}

impl Filter<'_> {
    /// One raw line with its newline; `None` when the limit is reached.
    fn line(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let raw = raw.strip_suffix(b"\n").unwrap_or(raw);
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let (Some(time), Some(stream), Some(tag)) = (parts.next(), parts.next(), parts.next()) else { return Some(()) };
        let text = parts.next().unwrap_or_default();
        if let Some(wanted) = &self.options.stream
            && stream != wanted.as_bytes()
        {
            return Some(());
        }
        if let Some(since) = self.options.since
            && std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t < since)
        {
            return Some(());
        }
        let mut line = Vec::with_capacity(raw.len() + 1);
        if self.options.timestamps && !self.in_line {
            line.extend_from_slice(time);
            line.push(b' ');
        }
        line.extend_from_slice(text);
        self.in_line = tag.starts_with(b"P");
        if !self.in_line {
            line.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            let take = usize::try_from(*left).unwrap_or(usize::MAX).min(line.len());
            out.extend_from_slice(&line[..take]);
            *left -= take as u64;
            return (*left > 0).then_some(());
        }
        out.extend_from_slice(&line);
        Some(())
    }
}

/// Where the last `lines` lines begin.
async fn tail_offset(file: &mut tokio::fs::File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 32 << 10;
    let mut at = file.metadata().await?.len();
    if lines == 0 {
        return Ok(at);
    }
    // The newline that ends the last line does not count.
    let mut wanted = lines + 1;
    while at > 0 {
        let from = at.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(at - from).unwrap_or(0)];
        file.seek(SeekFrom::Start(from)).await?;
        file.read_exact(&mut block).await?;
        for (i, byte) in block.iter().enumerate().rev() {
            if *byte == b'\n' {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(from + i as u64 + 1);
                }
            }
        }
        at = from;
    }
    Ok(0)
}

/// Sends a log to `out`. `alive` tells whether more may come. Ends when the receiver does.
pub async fn read(path: PathBuf, options: Options, alive: impl Fn() -> BoxFuture<'static, bool> + Send + Sync, out: mpsc::Sender<Bytes>) -> io::Result<()> {
    let mut file = tokio::fs::File::open(&path).await?;
    if let Some(lines) = options.tail {
        let at = tail_offset(&mut file, lines).await?;
        file.seek(SeekFrom::Start(at)).await?;
    }
    let mut filter = Filter { options: &options, left: options.limit, in_line: false };
    let mut pending: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut position = file.stream_position().await?;
    let mut last_look = false;
    loop {
        let n = file.read(&mut buffer).await?;
        position += n as u64;
        if n > 0 {
            pending.extend_from_slice(&buffer[..n]);
            let mut sent = Vec::new();
            let mut used = 0;
            let mut more = Some(());
            while let Some(end) = pending[used..].iter().position(|b| *b == b'\n') {
                more = filter.line(&pending[used..=used + end], &mut sent);
                used += end + 1;
                if more.is_none() {
                    break;
                }
            }
            pending.drain(..used);
            if !sent.is_empty() && out.send(Bytes::from(sent)).await.is_err() {
                return Ok(());
            }
            if more.is_none() {
                return Ok(());
            }
            continue;
        }
        if !options.follow || last_look || out.is_closed() {
            return Ok(());
        }
        // Rotated: the rest is in another file of the same name.
        if let Ok(now) = tokio::fs::metadata(&path).await {
            use std::os::unix::fs::MetadataExt;
            let mine = file.metadata().await?;
            if (now.dev(), now.ino()) != (mine.dev(), mine.ino()) || now.len() < position {
                file = tokio::fs::File::open(&path).await?;
                position = 0;
                continue;
            }
        }
        if !alive().await {
            // What was written between our last read and its end.
            last_look = true;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// Whether a container runs or may still start.
pub async fn is_alive(runtime: &dyn cri::RuntimeService, id: &str) -> bool {
    let request = ContainerStatusRequest { container_id: id.to_string(), verbose: false };
    let answer = runtime.container_status(request).await;
    answer.ok().and_then(|a| a.status).is_some_and(|s| s.state == ContainerState::Running as i32 || s.state == ContainerState::Created as i32)
}

const MAX_SIZE: u64 = 10 << 20;
const MAX_FILES: usize = 5;

/// Rotates the logs of running containers that have grown over 10 MiB, and keeps five files of each. Never ends.
pub async fn rotate(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let filter = ContainerFilter { state: Some(ContainerStateValue { state: ContainerState::Running as i32 }), ..Default::default() };
        let Ok(listed) = shared.runtime.list_containers(ListContainersRequest { filter: Some(filter) }).await else { continue };
        for container in listed.containers {
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let directory = crate::pod::log_directory(&label(crate::pod::label::POD_NAMESPACE), &label(crate::pod::label::POD_NAME), &label(crate::pod::label::POD_UID));
            let attempt = container.metadata.as_ref().map_or(0, |m| m.attempt);
            let path = shared.log_root.join(directory).join(label(crate::pod::label::CONTAINER_NAME)).join(format!("{attempt}.log"));
            if std::fs::metadata(&path).is_ok_and(|m| m.len() > MAX_SIZE)
                && let Err(error) = rotate_one(&path, Timestamp::now())
            {
                tracing::warn!("the log {} cannot be rotated: {error}", path.display());
                continue;
            } else if !path.exists() {
                let request = ReopenContainerLogRequest { container_id: container.id.clone() };
                if let Err(error) = shared.runtime.reopen_container_log(request).await {
                    tracing::warn!("a rotated log is not opened anew: {error}");
                }
            }
        }
    }
}

/// Renames a log, and removes the oldest ones.
fn rotate_one(path: &Path, now: Timestamp) -> io::Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
    let mut old: Vec<PathBuf> = Vec::new();
    if let Some(parent) = path.parent() {
        for entry in std::fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|n| n.starts_with(&format!("{name}."))) {
                old.push(entry.path());
            }
        }
    }
    old.sort();
    // The current one and the one that it becomes count.
    let excess = (old.len() + 2).saturating_sub(MAX_FILES);
    for path in &old[..excess.min(old.len())] {
        std::fs::remove_file(path)?;
    }
    std::fs::rename(path, path.with_file_name(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S"))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F three\n";

    async fn check(options: Options, expect: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        read(path, options.clone(), || Box::pin(async { false }), sender).await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            text.extend_from_slice(&bytes);
        }
        assert_eq!(String::from_utf8(text).unwrap(), expect, "{options:?}");
    }

    #[tokio::test]
    async fn options() {
        check(Options::default(), "one\ntwo\nthree\n").await;
        check(Options { tail: Some(1), ..Default::default() }, "three\n").await;
        check(Options { tail: Some(0), ..Default::default() }, "").await;
        check(Options { tail: Some(99), ..Default::default() }, "one\ntwo\nthree\n").await;
        check(Options { timestamps: true, tail: Some(1), ..Default::default() }, "2026-01-01T00:00:03Z three\n").await;
        check(Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..Default::default() }, "two\nthree\n").await;
        check(Options { limit: Some(5), ..Default::default() }, "one\nt").await;
        check(Options { stream: Some("stderr".into()), ..Default::default() }, "two\n").await;
    }

    #[tokio::test]
    async fn following_crosses_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t stdout F one\n").unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let (sender, mut receiver) = mpsc::channel(16);
        let reader = tokio::spawn({
            let (path, alive) = (path.clone(), alive.clone());
            async move {
                let alive = move || -> BoxFuture<'static, bool> {
                    let alive = alive.clone();
                    Box::pin(async move { alive.load(Ordering::SeqCst) })
                };
                read(path, Options { follow: true, ..Default::default() }, alive, sender).await
            }
        });
        assert_eq!(receiver.recv().await.unwrap(), "one\n");
        rotate_one(&path, Timestamp::now()).unwrap();
        std::fs::write(&path, "t stdout F two\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "two\n");
        alive.store(false, Ordering::SeqCst);
        assert!(receiver.recv().await.is_none());
        reader.await.unwrap().unwrap();
    }

    #[test]
    fn five_files_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for second in 0..8 {
            std::fs::write(&path, "x").unwrap();
            rotate_one(&path, Timestamp::from_second(second).unwrap()).unwrap();
        }
        std::fs::write(&path, "x").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
    }
}
