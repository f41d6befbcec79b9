//! Where time goes: names that nest as work runs, and the threads' clocks.
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};

use super::report::{Amount, Path, Report};
use crate::body::{self, Body, BodyError};
use crate::request::RequestInfo;

/// What a piece of work is called.
pub type Name = Cow<'static, str>;

/// How many profiles are being taken.
static TAKING: AtomicUsize = AtomicUsize::new(0);
/// By thread and path, since the first of them began.
static SPENT: Mutex<BTreeMap<(i32, Path), Amount>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// What this thread is in the middle of, outermost first.
    static OPEN: RefCell<Vec<Open>> = const { RefCell::new(Vec::new()) };
}

struct Open {
    name: Name,
    began: Duration,
    /// Of the time since then, what was spent under names of their own.
    nested: Duration,
}

/// Whether anybody takes a profile.
pub fn is_taken() -> bool {
    TAKING.load(Ordering::Relaxed) > 0
}

/// What this thread has had of a processor.
fn clock() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Work under a name, until it is dropped; it cannot go to another thread.
#[must_use]
pub struct Part {
    open: bool,
    _here: PhantomData<*const ()>,
}

/// What comes from here on has this name, if a profile is being taken.
pub fn part(name: &'static str) -> Part {
    enter(|| Some(name.into()))
}

fn enter(name: impl FnOnce() -> Option<Name>) -> Part {
    let name = if is_taken() { name() } else { None };
    let open = name.map(|name| OPEN.with_borrow_mut(|all| all.push(Open { name, began: clock(), nested: Duration::ZERO })));
    Part { open: open.is_some(), _here: PhantomData }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let now = clock();
        OPEN.with_borrow_mut(|all| {
            let path: Path = all.iter().map(|open| open.name.clone()).collect();
            let Some(done) = all.pop() else { return };
            let took = now.saturating_sub(done.began);
            if let Some(around) = all.last_mut() {
                around.nested += took;
            }
            let amount = Amount { count: 1, sum: took.saturating_sub(done.nested).as_nanos() as u64 };
            *SPENT.lock().entry((gettid().as_raw_nonzero().get(), path)).or_default() += amount;
        });
    }
}

/// Work under a name, whenever it goes on.
pub async fn named<F: Future + Unpin>(name: &'static str, work: F) -> F::Output {
    entered(|| Some(name.into()), work).await
}

/// A request, under its verb and resource.
pub async fn requested<F: Future + Unpin>(info: &RequestInfo, work: F) -> F::Output {
    entered(|| Some(name_of(info)), work).await
}

/// What is done for a user, if a profile was being taken when it was found out who that is.
pub async fn asked_by<F: Future + Unpin>(user: Option<String>, work: F) -> F::Output {
    entered(|| user.clone().map(Name::from), work).await
}

async fn entered<F: Future + Unpin>(name: impl Fn() -> Option<Name>, mut work: F) -> F::Output {
    poll_fn(|cx| {
        let _part = enter(&name);
        work.poll_unpin(cx)
    })
    .await
}

/// `create pods`, `update deployments.apps/status`, `get /metrics`.
fn name_of(info: &RequestInfo) -> Name {
    if !info.resource_request {
        return format!("{} {}", info.verb, info.path).into();
    }
    let dot = if info.group.is_empty() { "" } else { "." };
    let slash = if info.subresource.is_empty() { "" } else { "/" };
    format!("{} {}{dot}{}{slash}{}", info.verb, info.resource, info.group, info.subresource).into()
}

/// Work that another task does for what this one is in the middle of.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let path = here();
    async move {
        let mut work = pin!(work);
        poll_fn(|cx| within(&path, || work.poll_unpin(cx))).await
    }
}

/// A body that is made while it is sent, for what this task is in the middle of.
pub fn carried_body(body: Body) -> Body {
    let path = here();
    if path.is_empty() { body } else { body::boxed(Carried { body, path }) }
}

/// What a watch tells, under its verb and resource.
pub fn streamed<S>(info: Arc<RequestInfo>, stream: S) -> impl Stream<Item = S::Item> + Send
where
    S: Stream + Send,
{
    let mut stream = Box::pin(stream);
    futures::stream::poll_fn(move |cx| {
        let _part = enter(|| Some(name_of(&info)));
        stream.poll_next_unpin(cx)
    })
}

struct Carried {
    body: Body,
    path: Path,
}

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Carried { body, path } = &mut *self;
        within(path, || Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The names of what this thread is in the middle of.
fn here() -> Path {
    if is_taken() { OPEN.with_borrow(|all| all.iter().map(|open| open.name.clone()).collect()) } else { Path::new() }
}

fn within<T>(path: &[Name], work: impl FnOnce() -> T) -> T {
    match path.split_first() {
        None => work(),
        Some((name, rest)) => {
            let _part = enter(|| Some(name.clone()));
            within(rest, work)
        }
    }
}

/// Counts for as long as it is there.
struct Taking;

impl Taking {
    fn begin() -> Taking {
        let mut spent = SPENT.lock();
        if TAKING.fetch_add(1, Ordering::Relaxed) == 0 {
            spent.clear();
        }
        Taking
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        TAKING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What all threads do in that time.
pub async fn take(time: Duration) -> io::Result<Report> {
    let taking = Taking::begin();
    let (taken, before, threads) = (SystemTime::now(), SPENT.lock().clone(), threads()?);
    tokio::time::sleep(time).await;
    let (after, threads_after) = (SPENT.lock().clone(), self::threads()?);
    drop(taking);
    let mut amounts: BTreeMap<Path, Amount> = BTreeMap::new();
    let mut rest: BTreeMap<i32, u64> =
        threads_after.iter().map(|(id, (_, ran))| (*id, ran.saturating_sub(threads.get(id).map_or(0, |(_, ran)| *ran)))).collect();
    for ((thread, path), amount) in after {
        let old = before.get(&(thread, path.clone())).copied().unwrap_or_default();
        let amount = Amount { count: amount.count - old.count, sum: amount.sum - old.sum };
        if let Some(rest) = rest.get_mut(&thread) {
            *rest = rest.saturating_sub(amount.sum);
        }
        if amount.count > 0 {
            *amounts.entry(path).or_default() += amount;
        }
    }
    for (thread, sum) in rest.into_iter().filter(|(_, ran)| *ran > 0) {
        let name = format!("thread {}", threads_after[&thread].0);
        *amounts.entry(vec![name.into()]).or_default() += Amount { count: 0, sum };
    }
    Ok(Report { file: "profile", kinds: [("times", "count"), ("cpu", "nanoseconds")], taken, duration: time, amounts })
}

/// Name, and nanoseconds on a processor, of each of this process's threads.
fn threads() -> io::Result<BTreeMap<i32, (String, u64)>> {
    let mut threads = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let read = |file: &str| std::fs::read_to_string(path.join(file));
        // one that is gone meanwhile is none
        let (Ok(name), Ok(ran)) = (read("comm"), read("schedstat")) else { continue };
        let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        let ran = ran.split(' ').next().and_then(|n| n.parse().ok());
        if let (Some(id), Some(ran)) = (id, ran) {
            threads.insert(id, (name.trim_end().to_string(), ran));
        }
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work_for(time: Duration) {
        let until = clock() + time;
        while clock() < until {
            std::hint::spin_loop();
        }
    }

    fn sum(report: &Report, path: &[&'static str]) -> Option<Amount> {
        report.amounts.get(&path.iter().map(|name| Name::from(*name)).collect::<Path>()).copied()
    }

    #[tokio::test]
    async fn names_nest_and_what_is_below_counts_there() {
        let info = RequestInfo { resource_request: true, verb: "update".into(), group: "apps".into(), resource: "deployments".into(), subresource: "status".into(), ..RequestInfo::default() };
        // nobody takes a profile: nothing is kept
        named("before", pin!(async { work_for(Duration::from_millis(1)) })).await;
        let work = async {
            while !is_taken() {
                tokio::task::yield_now().await;
            }
            let request = pin!(async {
                work_for(Duration::from_millis(3));
                tokio::task::yield_now().await;
                let inner = pin!(async {
                    let inner = carried(async { named("stage", pin!(async { work_for(Duration::from_millis(6)) })).await });
                    tokio::spawn(inner).await.unwrap();
                });
                asked_by(is_taken().then(|| "ann".into()), inner).await;
            });
            requested(&info, request).await;
        };
        let (report, ()) = tokio::join!(take(Duration::from_millis(200)), work);
        let report = report.unwrap();
        let ms = |path: &[&'static str]| sum(&report, path).unwrap_or_else(|| panic!("{path:?} in {:?}", report.amounts)).sum / 1_000_000;
        assert!((3..6).contains(&ms(&["update deployments.apps/status"])), "{:?}", report.amounts);
        assert!((6..9).contains(&ms(&["update deployments.apps/status", "ann", "stage"])), "{:?}", report.amounts);
        assert_eq!(sum(&report, &["update deployments.apps/status", "ann", "stage"]).unwrap().count, 1);
        assert_eq!(sum(&report, &["before"]), None);
        assert!(report.amounts.keys().any(|path| path[0].starts_with("thread ")), "{:?}", report.amounts);
    }
}
