//! Supervised tasks: each has a name, is cancelled with its group, and is waited for on shutdown.

use std::future::Future;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Registry;

/// A group of named tasks. Clones are the same group.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    pub(crate) queues: Registry,
}

impl Tasks {
    /// An empty group.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// A group that is cancelled when this one is, or alone by its own [`Tasks::cancel`]. Its tasks
    /// are waited for by both.
    pub fn child(&self) -> Tasks {
        Tasks { tracker: self.tracker.clone(), stop: self.stop.child_token(), queues: self.queues.clone() }
    }

    /// Runs `future` until it ends or the group is cancelled. A panic is reported under the task's
    /// name and ends that task alone.
    pub fn spawn(&self, name: impl Into<String>, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(name.into(), future.boxed());
    }

    /// Boxed, so that the machinery of a task is compiled once and not for every future that there is.
    fn spawn_boxed(&self, name: String, future: BoxFuture<'static, ()>) {
        let stop = self.stop.clone();
        let inner = self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = future => {}
            }
        });
        self.tracker.spawn(async move {
            if let Err(error) = inner.await
                && error.is_panic()
            {
                tracing::error!(task = name, "the task panicked: {error}");
            }
        });
    }

    /// Runs `future` to its end even when the group is cancelled: for the last writes of a drain.
    pub fn spawn_uncancelled(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(future.boxed());
    }

    /// The counts of the work queues of this group, its parents and children, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.queues.render()
    }

    /// Asks every task of the group to end.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// True once the group has been asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Completes when the group is asked to end.
    pub async fn cancelled(&self) {
        self.stop.cancelled().await;
    }

    /// The token itself, for code that has its own select loop.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancels the group and waits for its tasks, at most `limit`. Returns whether all ended.
    pub async fn shutdown(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_ends_tasks_and_survives_a_panic() {
        let tasks = Tasks::new();
        tasks.spawn("waits", std::future::pending());
        tasks.spawn("panics", async { panic!("as the test wants") });
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_child_ends_without_its_parent() {
        let tasks = Tasks::new();
        let child = tasks.child();
        child.cancel();
        child.cancelled().await;
        assert!(!tasks.is_cancelled());
    }
}
