//! The log backend: a thread of its own writes events, so that no request waits on the disk longer than it must.
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::config::LogConfig;
use super::counters::Counters;
use super::event::Event;
use super::rotate::{Limits, Rotated};

pub(super) const PLUGIN: &str = "log";
/// Events that may wait for the thread; requests that wait with theirs are no more than are served at once.
const WAITING: usize = 10_000;
/// Events that are written at once.
const AT_ONCE: usize = 256;

/// Events, and who wants to know whether all of them are written.
struct Job {
    events: Vec<Arc<Event>>,
    done: oneshot::Sender<bool>,
}

/// The thread's other end.
#[derive(Clone)]
pub(super) struct Log(mpsc::Sender<Job>);

enum Out {
    Stdout,
    File(Box<Rotated>),
}

impl Log {
    /// Opens the file, and starts the thread.
    pub fn open(config: &LogConfig, counters: Arc<Counters>) -> Result<Log, String> {
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        let limits = Limits {
            size: number(config.max_size) << 20,
            age: Duration::from_secs(number(config.max_age).saturating_mul(86_400)),
            backups: usize::try_from(config.max_backups).unwrap_or(0),
            compress: config.compress,
        };
        let mut out = match config.path.as_str() {
            "-" => Out::Stdout,
            path => Out::File(Box::new(Rotated::open(Path::new(path), limits).map_err(|e| format!("ensureLogFile: {path}: {e}"))?)),
        };
        let legacy = config.format == "legacy";
        let (sender, mut jobs) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            let mut taken = Vec::new();
            while jobs.blocking_recv_many(&mut taken, AT_ONCE) > 0 {
                write(&mut out, legacy, std::mem::take(&mut taken), &counters);
            }
        };
        std::thread::Builder::new().name("audit-log".into()).spawn(work).map_err(|e| e.to_string())?;
        Ok(Log(sender))
    }

    /// Gives events to the thread. The answer comes when they are written; `Err` gives back what there is no room for.
    pub fn offer(&self, events: Vec<Arc<Event>>) -> Result<oneshot::Receiver<bool>, Vec<Arc<Event>>> {
        let (done, written) = oneshot::channel();
        match self.0.try_send(Job { events, done }) {
            Ok(()) => Ok(written),
            Err(mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) => Err(job.events),
        }
    }

    /// Returns when everything is written that was given so far.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.0.send(Job { events: Vec::new(), done }).await.is_ok() {
            let _ = written.await;
        }
    }
}

fn write(out: &mut Out, legacy: bool, jobs: Vec<Job>, counters: &Counters) {
    let line = |event: &Arc<Event>| {
        let mut line = if legacy { event.to_text().into_bytes() } else { event.to_json() };
        line.push(b'\n');
        line
    };
    let lines: Vec<Vec<u8>> = jobs.iter().flat_map(|j| &j.events).map(line).collect();
    let results = match out {
        Out::File(file) => file.write(&lines, Timestamp::now()),
        Out::Stdout => {
            let mut stdout = std::io::stdout().lock();
            let result = stdout.write_all(&lines.concat()).and_then(|()| stdout.flush()).map_err(|e| e.to_string());
            vec![result; lines.len()]
        }
    };
    let mut results = results.into_iter();
    for job in jobs {
        let mut all = true;
        for event in &job.events {
            if let Some(Err(why)) = results.next() {
                counters.failed(PLUGIN, &why, std::slice::from_ref(event));
                all = false;
            }
        }
        // Who asked may have gone.
        let _ = job.done.send(all);
    }
}
