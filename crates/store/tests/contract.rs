//! The contract of `store::Store`, run by every engine.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use store::{
    Error, Event, Op, RangeRequest, Store, Txn, WatchEvent, WatchStream, embedded, memory,
};

mod common;

macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test] async fn $name() { super::soon(super::$name(super::memory::new())).await; })*
        }
        mod on_disk {
            $(#[tokio::test] async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let store = super::embedded::open(dir.path(), super::embedded::Options::default()).unwrap();
                super::soon(super::$name(store.clone())).await;
                store.close().await;
            })*
        }
        mod on_etcd {
            $(#[tokio::test] async fn $name() {
                let cluster = super::common::etcd::Cluster::start(1);
                let store = cluster.open().await;
                super::soon(super::$name(store.clone())).await;
                store.close().await;
            })*
        }
        mod on_etcd_behind_tls {
            $(#[tokio::test] async fn $name() {
                let cluster = super::common::etcd::Cluster::start_tls();
                let store = cluster.open().await;
                super::soon(super::$name(store.clone())).await;
                store.close().await;
            })*
        }
    };
}

contract!(
    an_empty_store_is_at_revision_1,
    put_get_delete,
    comparisons_guard_all_operations,
    ranges,
    pages,
    advancing,
    reads_at_older_revisions,
    bad_requests,
    a_watch_replays_and_follows,
    a_watch_filters_and_reports_progress,
    compaction,
    a_slow_watcher_misses_nothing,
    keys_expire,
    concurrent_writers_get_distinct_revisions,
    closing_ends_everything,
);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what)
        .await
        .expect("done in time")
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> i64 {
    let response = store.txn(Txn::put(key, value.to_owned())).await.unwrap();
    assert!(response.succeeded);
    response.revision
}

async fn delete(store: &Arc<dyn Store>, key: &str) -> i64 {
    store.txn(Txn::delete(key)).await.unwrap().revision
}

/// "key=value@mod/create/version" of each.
async fn dump(store: &Arc<dyn Store>, request: RangeRequest) -> Vec<String> {
    let found = store.range(request).await.unwrap().kvs;
    let show = |kv: &store::KeyValue| {
        let (key, value) = (
            String::from_utf8_lossy(&kv.key),
            String::from_utf8_lossy(&kv.value),
        );
        format!(
            "{key}={value}@{}/{}/{}",
            kv.mod_revision, kv.create_revision, kv.version
        )
    };
    found.iter().map(show).collect()
}

/// "revision:key=value(previous)" or "revision:key-(previous)" of each change; "revision." for progress.
async fn next(watch: &mut WatchStream) -> Vec<String> {
    match watch.next().await.expect("open").expect("no error") {
        WatchEvent::Progress { revision } => vec![format!("{revision}.")],
        WatchEvent::Events { revision, events } => {
            events.iter().map(|event| show(revision, event)).collect()
        }
    }
}

fn show(at: i64, event: &Event) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let previous =
        |prev: &Option<store::KeyValue>| prev.as_ref().map_or(String::new(), |kv| text(&kv.value));
    match event {
        Event::Put { kv, prev } => {
            assert_eq!(kv.mod_revision, at);
            format!(
                "{at}:{}={}({})",
                text(&kv.key),
                text(&kv.value),
                previous(prev)
            )
        }
        Event::Delete {
            key,
            revision,
            prev,
        } => {
            assert_eq!(*revision, at);
            format!("{at}:{}-({})", text(key), previous(prev))
        }
    }
}

async fn an_empty_store_is_at_revision_1(store: Arc<dyn Store>) {
    assert_eq!(store.revision().await.unwrap(), 1);
    let found = store.range(RangeRequest::prefix("")).await.unwrap();
    assert_eq!(
        (found.revision, found.kvs.len(), found.count, found.more),
        (1, 0, 0, false)
    );
    // Changes nothing, so it gets no revision.
    assert_eq!(delete(&store, "a").await, 1);
    assert_eq!(put(&store, "a", "1").await, 2);
}

async fn put_get_delete(store: Arc<dyn Store>) {
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    assert_eq!(dump(&store, RangeRequest::key("a")).await, ["a=2@3/2/2"]);
    let deleted = store.txn(Txn::delete("a")).await.unwrap();
    assert_eq!(
        (
            deleted.revision,
            deleted.previous[0].as_ref().unwrap().mod_revision
        ),
        (4, 3)
    );
    assert!(dump(&store, RangeRequest::key("a")).await.is_empty());
    put(&store, "a", "3").await;
    assert_eq!(dump(&store, RangeRequest::key("a")).await, ["a=3@5/5/1"]);
    // Binary keys, among them zero bytes and one that starts with another.
    for key in [&b"b"[..], b"b\0", b"b\0\xff", b"b\x01", b"\xff\xff"] {
        store.txn(Txn::put(key, "x")).await.unwrap();
    }
    let keys: Vec<_> = store
        .range(RangeRequest::prefix("b"))
        .await
        .unwrap()
        .kvs
        .into_iter()
        .map(|kv| kv.key)
        .collect();
    assert_eq!(keys, [&b"b"[..], b"b\0", b"b\0\xff", b"b\x01"]);
    assert_eq!(
        store
            .range(RangeRequest::key(&b"\xff\xff"[..]))
            .await
            .unwrap()
            .kvs
            .len(),
        1
    );
    let status = store.status().await.unwrap();
    assert_eq!(status.revision, 10);
    assert!(status.size_bytes > 0 && status.error.is_none());
}

async fn comparisons_guard_all_operations(store: Arc<dyn Store>) {
    let create = Txn::put("a", "1").when("a", 0);
    assert!(store.txn(create.clone()).await.unwrap().succeeded);
    let again = store.txn(create).await.unwrap();
    assert!(!again.succeeded);
    assert_eq!(
        (
            again.revision,
            again.current[0].as_ref().unwrap().mod_revision
        ),
        (2, 2)
    );
    let mut both = Txn::put("a", "2").when("a", 2).when("b", 0);
    both.then.push(Op::Put {
        key: b"b".to_vec(),
        value: "2".into(),
        ttl_seconds: None,
    });
    assert_eq!(store.txn(both.clone()).await.unwrap().revision, 3);
    assert_eq!(
        dump(&store, RangeRequest::prefix("")).await,
        ["a=2@3/2/2", "b=2@3/3/1"]
    );
    let failed = store.txn(both).await.unwrap();
    assert!(!failed.succeeded && failed.previous.is_empty());
    assert_eq!(
        failed
            .current
            .iter()
            .flatten()
            .map(|kv| kv.mod_revision)
            .collect::<Vec<_>>(),
        [3, 3]
    );
    assert_eq!(store.revision().await.unwrap(), 3);
    // A comparison only.
    let check = Txn {
        then: Vec::new(),
        ..Txn::default().when("b", 3)
    };
    let checked = store.txn(check).await.unwrap();
    assert_eq!((checked.succeeded, checked.revision), (true, 3));
}

async fn ranges(store: Arc<dyn Store>) {
    for key in ["/a/1", "/a/2", "/a/3", "/b/1"] {
        put(&store, key, "v").await;
    }
    delete(&store, "/a/2").await;
    let page = store
        .range(RangeRequest::prefix("/a/").limit(1))
        .await
        .unwrap();
    assert_eq!((page.kvs.len(), page.count, page.more), (1, 2, true));
    let rest = RangeRequest {
        key: b"/a/1\0".to_vec(),
        ..RangeRequest::prefix("/a/")
    };
    assert_eq!(dump(&store, rest).await, ["/a/3=v@4/4/1"]);
    let count = store
        .range(RangeRequest {
            count_only: true,
            ..RangeRequest::prefix("/")
        })
        .await
        .unwrap();
    assert_eq!((count.count, count.kvs.len(), count.more), (3, 0, false));
    let backwards = RangeRequest {
        key: b"b".to_vec(),
        end: Some(b"a".to_vec()),
        ..Default::default()
    };
    assert!(dump(&store, backwards).await.is_empty());
    assert_eq!(dump(&store, RangeRequest::prefix("")).await.len(), 3);
}

async fn reads_at_older_revisions(store: Arc<dyn Store>) {
    put(&store, "a", "1").await;
    put(&store, "b", "1").await;
    put(&store, "a", "2").await;
    delete(&store, "b").await;
    put(&store, "b", "3").await;
    let expected: [&[&str]; 6] = [
        &[],
        &["a=1@2/2/1"],
        &["a=1@2/2/1", "b=1@3/3/1"],
        &["a=2@4/2/2", "b=1@3/3/1"],
        &["a=2@4/2/2"],
        &["a=2@4/2/2", "b=3@6/6/1"],
    ];
    for (revision, expected) in (1..).zip(expected) {
        assert_eq!(
            dump(&store, RangeRequest::prefix("").at(revision)).await,
            expected,
            "at {revision}"
        );
        let b = expected
            .iter()
            .find(|kv| kv.starts_with('b'))
            .map(|kv| kv.to_string());
        assert_eq!(
            dump(&store, RangeRequest::key("b").at(revision))
                .await
                .pop(),
            b,
            "at {revision}"
        );
    }
    let future = store.range(RangeRequest::prefix("").at(7)).await;
    assert!(
        matches!(
            future,
            Err(Error::Future {
                requested: 7,
                current: 6
            })
        ),
        "{future:?}"
    );
}

async fn bad_requests(store: Arc<dyn Store>) {
    let mut twice = Txn::put("a", "1");
    twice.then.push(Op::Delete { key: b"a".to_vec() });
    assert!(matches!(store.txn(twice).await, Err(Error::Invalid(_))));
    assert!(matches!(
        store.txn(Txn::put("", "1")).await,
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        store.txn(Txn::default().when("", 0)).await,
        Err(Error::Invalid(_))
    ));
    assert!(matches!(
        store.txn(Txn::put(vec![b'k'; 70_000], "1")).await,
        Err(Error::Invalid(_))
    ));
    let large = store
        .txn(Txn::put("a", vec![0; store::MAX_TXN_BYTES]))
        .await;
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    assert_eq!(store.revision().await.unwrap(), 1);
}

async fn a_watch_replays_and_follows(store: Arc<dyn Store>) {
    put(&store, "a", "1").await;
    put(&store, "a", "2").await;
    let mut all = store.watch(b"", 2).await.unwrap();
    let mut new = store.watch(b"", 0).await.unwrap();
    let mut later = store.watch(b"", 5).await.unwrap();
    assert_eq!(next(&mut all).await, ["2:a=1()"]);
    assert_eq!(next(&mut all).await, ["3:a=2(1)"]);
    delete(&store, "a").await;
    let mut both = Txn::put("c", "1");
    both.then.insert(
        0,
        Op::Put {
            key: b"b".to_vec(),
            value: "1".into(),
            ttl_seconds: None,
        },
    );
    store.txn(both).await.unwrap();
    for watch in [&mut all, &mut new] {
        assert_eq!(next(watch).await, ["4:a-(2)"]);
    }
    for watch in [&mut all, &mut new, &mut later] {
        assert_eq!(next(watch).await, ["5:b=1()", "5:c=1()"]);
    }
}

async fn a_watch_filters_and_reports_progress(store: Arc<dyn Store>) {
    let mut watch = store.watch(b"/a/", 0).await.unwrap();
    put(&store, "/b/1", "x").await;
    assert_eq!(next(&mut watch).await, ["2."]);
    let mut both = Txn::put("/b/1", "y");
    both.then.push(Op::Put {
        key: b"/a/1".to_vec(),
        value: "1".into(),
        ttl_seconds: None,
    });
    store.txn(both).await.unwrap();
    assert_eq!(next(&mut watch).await, ["3:/a/1=1()"]);
}

async fn compaction(store: Arc<dyn Store>) {
    put(&store, "a", "1").await;
    put(&store, "b", "1").await;
    put(&store, "a", "2").await;
    delete(&store, "b").await;
    put(&store, "a", "3").await;
    let mut behind = store.watch(b"", 3).await.unwrap();
    store.compact(5).await.unwrap();
    let compacted = |error| matches!(error, Error::Compacted { revision: 5 });
    assert!(compacted(
        store
            .range(RangeRequest::prefix("").at(4))
            .await
            .unwrap_err()
    ));
    assert!(compacted(store.watch(b"", 5).await.err().unwrap()));
    assert!(compacted(behind.next().await.unwrap().unwrap_err()));
    assert!(compacted(store.compact(5).await.unwrap_err()));
    assert!(matches!(store.compact(7).await, Err(Error::Future { .. })));
    assert_eq!(
        dump(&store, RangeRequest::prefix("").at(5)).await,
        ["a=2@4/2/2"]
    );
    assert_eq!(dump(&store, RangeRequest::prefix("")).await, ["a=3@6/2/3"]);
    // The version before the compaction is still told as the previous one.
    let mut watch = store.watch(b"", 6).await.unwrap();
    assert_eq!(next(&mut watch).await, ["6:a=3(2)"]);
    assert_eq!(store.status().await.unwrap().compacted, 5);
    store.compact(6).await.unwrap();
    put(&store, "b", "2").await;
    assert_eq!(next(&mut watch).await, ["7:b=2()"]);
    assert_eq!(
        dump(&store, RangeRequest::prefix("")).await,
        ["a=3@6/2/3", "b=2@7/7/1"]
    );
}

async fn a_slow_watcher_misses_nothing(store: Arc<dyn Store>) {
    let mut watch = store.watch(b"", 0).await.unwrap();
    // More than is held in memory for watchers.
    let value = "x".repeat(10_000);
    let writes = (0..400).map(|i| {
        let (store, value) = (store.clone(), value.clone());
        tokio::spawn(async move { put(&store, &format!("key-{i:03}"), &value).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    for revision in 2..402 {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::Events {
                revision: found,
                events,
            } => assert_eq!((found, events.len()), (revision, 1)),
            other => panic!("{other:?}"),
        }
    }
}

async fn keys_expire(store: Arc<dyn Store>) {
    let put_for = |key: &str, ttl| Txn {
        then: vec![Op::Put {
            key: key.into(),
            value: "x".into(),
            ttl_seconds: Some(ttl),
        }],
        ..Txn::default()
    };
    let mut watch = store.watch(b"", 0).await.unwrap();
    store.txn(put_for("long", 3600)).await.unwrap();
    store.txn(put_for("renewed", 1)).await.unwrap();
    store.txn(put_for("short", 1)).await.unwrap();
    put(&store, "renewed", "y").await;
    for expected in [
        "2:long=x()",
        "3:renewed=x()",
        "4:short=x()",
        "5:renewed=y(x)",
        "6:short-(x)",
    ] {
        assert_eq!(next(&mut watch).await, [expected]);
    }
    assert_eq!(
        dump(&store, RangeRequest::prefix("")).await,
        ["long=x@2/2/1", "renewed=y@5/3/2"]
    );
}

async fn concurrent_writers_get_distinct_revisions(store: Arc<dyn Store>) {
    let mut watch = store.watch(b"", 0).await.unwrap();
    // Each increments the same counter 20 times, by compare and swap.
    let tasks = (0..8).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            while revisions.len() < 20 {
                let old = store
                    .range(RangeRequest::key("counter"))
                    .await
                    .unwrap()
                    .kvs
                    .pop();
                let count = old.as_ref().map_or(0, |kv| {
                    String::from_utf8_lossy(&kv.value).parse::<u32>().unwrap()
                });
                let swap = Txn::put("counter", (count + 1).to_string());
                let swap = swap.when("counter", old.map_or(0, |kv| kv.mod_revision));
                let response = store.txn(swap).await.unwrap();
                if response.succeeded {
                    revisions.push(response.revision);
                }
            }
            revisions
        })
    });
    let mut revisions = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        revisions.extend(task.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (2..162).collect::<Vec<_>>());
    assert_eq!(
        dump(&store, RangeRequest::key("counter")).await,
        ["counter=160@161/2/160"]
    );
    for revision in 2..162 {
        let previous = if revision == 2 {
            String::new()
        } else {
            (revision - 2).to_string()
        };
        assert_eq!(
            next(&mut watch).await,
            [format!("{revision}:counter={}({previous})", revision - 1)]
        );
    }
}

async fn closing_ends_everything(store: Arc<dyn Store>) {
    let mut watch = store.watch(b"", 0).await.unwrap();
    let waiting = tokio::spawn(async move { watch.next().await.is_none() });
    tokio::task::yield_now().await;
    store.close().await;
    assert!(waiting.await.unwrap());
    store.close().await;
}

/// The embedded engine agrees with the model, across restarts and compactions.
#[tokio::test]
async fn engines_agree() {
    let dir = tempfile::tempdir().unwrap();
    let options = embedded::Options {
        memtable_bytes: 64 << 10,
        feed_bytes: 10_000,
        ..Default::default()
    };
    agree(3000, async || {
        embedded::open(dir.path(), options.clone()).unwrap()
    })
    .await;
}

/// etcd agrees with the model, across compactions and new connections.
#[tokio::test]
async fn etcd_agrees() {
    let cluster = common::etcd::Cluster::start(1);
    let options = store::etcd::Options {
        feed_bytes: 10_000,
        ..cluster.options()
    };
    agree(800, async || {
        store::etcd::open(options.clone()).await.unwrap()
    })
    .await;
}

/// An engine and the model do the same on a long random history.
async fn agree(steps: usize, open: impl AsyncFn() -> Arc<dyn Store>) {
    let mut disk = open().await;
    let model = memory::new();
    let mut random = StdRng::seed_from_u64(7);
    let mut compacted = 1;
    for step in 0..steps {
        let key = |random: &mut StdRng| {
            format!(
                "/{}/{}",
                random.random_range(0..3),
                random.random_range(0..12)
            )
        };
        let revision = model.revision().await.unwrap();
        match random.random_range(0..100) {
            0..70 => {
                let mut txn = match random.random_bool(0.7) {
                    true => Txn::put(
                        key(&mut random),
                        "v".repeat(random.random_range(0..300)) + &step.to_string(),
                    ),
                    false => Txn::delete(key(&mut random)),
                };
                if random.random_bool(0.5) {
                    let key = key(&mut random);
                    let current = model
                        .range(RangeRequest::key(key.as_str()))
                        .await
                        .unwrap()
                        .kvs
                        .pop();
                    let wrong = i64::from(random.random_bool(0.2));
                    txn = txn.when(key, current.map_or(0, |kv| kv.mod_revision) + wrong);
                }
                let (a, b) = (
                    disk.txn(txn.clone()).await.unwrap(),
                    model.txn(txn).await.unwrap(),
                );
                assert_eq!(format!("{a:?}"), format!("{b:?}"));
            }
            70..95 => {
                let mut request = RangeRequest::prefix(format!("/{}", random.random_range(0..4)));
                request.revision = random.random_range(compacted..=revision);
                request.limit = random.random_range(0..8);
                let (a, b) = (
                    disk.range(request.clone()).await.unwrap(),
                    model.range(request).await.unwrap(),
                );
                assert_eq!(format!("{a:?}"), format!("{b:?}"));
            }
            95..98 => {
                let to = random.random_range(compacted..=revision);
                if to > compacted {
                    disk.compact(to).await.unwrap();
                    model.compact(to).await.unwrap();
                    compacted = to;
                }
                if revision > compacted {
                    let from = random.random_range(compacted..revision) + 1;
                    let mut a = disk.watch(b"", from).await.unwrap();
                    let mut b = model.watch(b"", from).await.unwrap();
                    for expected in from..=revision {
                        let (a, b) = (next(&mut a).await, next(&mut b).await);
                        assert!(
                            a[0].starts_with(&format!("{expected}:")),
                            "{a:?} at {expected}"
                        );
                        assert_eq!(a, b);
                    }
                }
            }
            _ => {
                disk.close().await;
                disk = open().await;
                assert_eq!(disk.revision().await.unwrap(), revision);
            }
        }
    }
}

async fn pages(store: Arc<dyn Store>) {
    for n in 0..25 {
        store.txn(Txn::put(format!("/p/{n:02}"), "1")).await.unwrap();
    }
    let at = store.revision().await.unwrap();
    store.txn(Txn::put("/p/24x", "later")).await.unwrap();
    store.txn(Txn::delete("/p/03")).await.unwrap();
    for (revision, wanted) in [(at, 25), (0, 25)] {
        let (mut found, mut key) = (Vec::new(), b"/p/".to_vec());
        loop {
            let page = store.range(RangeRequest::page(key, "/p0", 10).at(revision)).await.unwrap();
            assert!(page.kvs.len() == 10 || !page.more);
            found.extend(page.kvs.into_iter().map(|kv| kv.key));
            if !page.more {
                break;
            }
            key = found.last().unwrap().clone();
            key.push(0);
        }
        assert_eq!(found.len(), wanted);
        assert!(found.is_sorted() && found.contains(&b"/p/03".to_vec()) == (revision == at));
    }
    // Just as many as there are: there is no more.
    let page = store.range(RangeRequest::page("/p/", "/p0", 25)).await.unwrap();
    assert_eq!((page.kvs.len(), page.more), (25, false));
}

async fn advancing(store: Arc<dyn Store>) {
    store.txn(Txn::put("a", "1")).await.unwrap();
    let mut watch = store.watch(b"a", 0).await.unwrap();
    let revision = store.advance(50).await.unwrap();
    assert!(revision > 50, "{revision}");
    let all = store.range(RangeRequest::prefix("")).await.unwrap();
    assert_eq!((all.revision, all.kvs.len(), all.kvs[0].mod_revision), (revision, 1, 2));
    // It goes on also from there.
    assert!(store.advance(0).await.unwrap() > revision);
    let changed = store.txn(Txn::put("a", "2")).await.unwrap().revision;
    loop {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::Progress { .. } => {}
            WatchEvent::Events { revision, .. } => break assert_eq!(revision, changed),
        }
    }
}
