//! The engine over etcd when etcd is not well: members killed and stopped, wires cut, history compacted, no space.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::etcd::{StatusRequest, StatusResponse, method};
use proto::grpc::Settings;
use store::etcd::{self, OpenError, Options};
use store::{Error, Event, Op, RangeRequest, Store, Txn, WatchEvent, WatchStream};

mod common;

use common::etcd::{Cluster, Wire};
use common::history::{self, History, WATCHERS, WRITERS};

async fn within<T>(seconds: u64, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), what).await.expect("done in time")
}

async fn put(store: &Arc<dyn Store>, key: &str, value: &str) -> i64 {
    let response = store.txn(Txn::put(key, value.to_owned())).await.unwrap();
    assert!(response.succeeded);
    response.revision
}

/// Puts until it works.
async fn put_at_last(store: &Arc<dyn Store>, key: &str) -> i64 {
    loop {
        match store.txn(Txn::put(key, format!("again-{}", rand::random::<u64>()))).await {
            Ok(response) => return response.revision,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The revision of the next change and its keys.
async fn next(watch: &mut WatchStream) -> (i64, Vec<String>) {
    loop {
        if let WatchEvent::Events { revision, events } = within(30, watch.next()).await.expect("open").expect("no error") {
            return (revision, events.iter().map(|event| String::from_utf8_lossy(event.key()).into_owned()).collect());
        }
    }
}

/// Kills and starts each of three members in turn while writers and watchers work, and checks the history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_killed_under_load() {
    let mut cluster = Cluster::start(3);
    let options = Options { request_timeout: Duration::from_secs(5), feed_bytes: 64 << 10, ..cluster.options() };
    let store = etcd::open(options).await.unwrap();
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let say: history::Say = Arc::new(move |line| drop(sender.send(line)));
    say(history::opened(&store.range(RangeRequest::prefix("")).await.unwrap()));
    let mut watchers = tokio::task::JoinSet::new();
    for watcher in 0..WATCHERS {
        let mut watch = store.watch(b"", 2).await.unwrap();
        let say = say.clone();
        watchers.spawn(async move {
            let mut last = 1;
            while let Some(item) = watch.next().await {
                match item.unwrap() {
                    WatchEvent::Events { revision, events } if events.iter().any(|event| event.key() == b"the end") => return last.max(revision),
                    WatchEvent::Events { revision, events } => {
                        say(history::seen(watcher, revision, &events));
                        last = revision;
                    }
                    other => panic!("every revision has changes: {other:?}"),
                }
            }
            panic!("the watch ended");
        });
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(history::write(store.clone(), writer, true, say.clone()));
    }
    for round in 0..6 {
        let member = round % 3;
        cluster.kill(member);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // Two of three go on.
        within(20, put_at_last(&store, "alive")).await;
        cluster.run(member);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    // All of them at once: nothing works, then everything again.
    (0..3).for_each(|member| cluster.kill(member));
    assert!(matches!(store.txn(Txn::put("x", "y")).await, Err(Error::Unavailable { .. } | Error::Timeout { .. })));
    (0..3).for_each(|member| cluster.run(member));
    within(30, put_at_last(&store, "alive")).await;
    writers.shutdown().await;
    // Writers were ended in the middle of something; that comes before this.
    let state = store.range(RangeRequest::prefix("")).await.unwrap();
    put(&store, "the end", "").await;
    while let Some(ended) = within(60, watchers.join_next()).await {
        ended.unwrap();
    }
    let mut history = History { at: [1; WATCHERS], ..History::default() };
    lines.close();
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line);
    }
    all.iter().for_each(|line| history.take(line));
    if history.at[0] == state.revision {
        history.take(&history::opened(&state));
    }
    history.check();
    assert!(history.done.len() > 100, "the writers do too little to test anything: {}", history.done.len());
    println!("{} revisions, {} acknowledged", history.seen.len(), history.done.len());
    store.close().await;
}

/// The only member stops and goes on: requests fail in their time, and work again by themselves.
#[tokio::test]
async fn a_member_that_stops() {
    let cluster = Cluster::start(1);
    let options = Options { request_timeout: Duration::from_secs(2), ..cluster.options() };
    let store = etcd::open(options).await.unwrap();
    let mut watch = store.watch(b"", 0).await.unwrap();
    put(&store, "a", "1").await;
    cluster.stop(0);
    let start = Instant::now();
    let (write, read) = tokio::join!(store.txn(Txn::put("b", "1")), store.range(RangeRequest::key("a")));
    for error in [write.unwrap_err(), read.unwrap_err(), store.revision().await.unwrap_err()] {
        assert!(matches!(&error, Error::Timeout { path, .. } if path.to_str() == Some(cluster.url(0).as_str())), "{error:?}");
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    cluster.go_on(0);
    let revision = within(15, put_at_last(&store, "c")).await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(at, _)| *at < revision) {
        seen.push(next(&mut watch).await);
    }
    // What the failed write did is not known, but nothing is missing.
    assert_eq!(seen.iter().map(|(at, _)| *at).collect::<Vec<_>>(), (2..=revision).collect::<Vec<_>>());
    store.close().await;
}

/// One of three members stops: what waits for it goes to another one.
#[tokio::test]
async fn one_of_three_that_stops() {
    let cluster = Cluster::start(3);
    let store = cluster.open().await;
    let mut watch = store.watch(b"", 0).await.unwrap();
    // The first endpoint is the one in use.
    put(&store, "a", "1").await;
    assert_eq!(next(&mut watch).await, (2, vec!["a".to_owned()]));
    cluster.stop(0);
    assert!(within(10, store.range(RangeRequest::key("a"))).await.is_ok());
    let revision = within(10, put_at_last(&store, "b")).await;
    assert_eq!(next(&mut watch).await, (revision, vec!["b".to_owned()]));
    cluster.go_on(0);
    assert_eq!(store.revision().await.unwrap(), revision);
    store.close().await;
}

/// Whether it leads the others.
async fn leads(cluster: &Cluster, at: usize) -> bool {
    let stream = tokio::net::TcpStream::connect(cluster.address(at)).await.unwrap();
    let (channel, connection) = proto::grpc::connect(stream, &cluster.url(at), Settings::default()).await.unwrap();
    tokio::spawn(connection);
    let status: StatusResponse = channel.unary(method::STATUS, &StatusRequest {}, Duration::from_secs(5)).await.unwrap();
    status.header.is_some_and(|header| header.member_id == status.leader)
}

/// Calls leave a member that has lost its leader; the watch goes with them, and does not mind when that member stops.
#[tokio::test]
async fn a_member_that_stops_when_calls_have_left_it() {
    let cluster = Cluster::start(3);
    let mut order = vec![0, 1, 2];
    while leads(&cluster, order[0]).await {
        order.rotate_left(1);
    }
    let leader = if leads(&cluster, order[1]).await { order[1] } else { order[2] };
    let store = etcd::open(Options { endpoints: order.iter().map(|at| cluster.url(*at)).collect(), ..cluster.options() }).await.unwrap();
    let mut watch = store.watch(b"", 0).await.unwrap();
    put(&store, "a", "1").await;
    assert_eq!(next(&mut watch).await, (2, vec!["a".to_owned()]));
    cluster.stop(leader);
    // It waits for the old leader, and fails when there is another.
    assert!(within(15, store.range(RangeRequest::key("a"))).await.is_ok());
    cluster.go_on(leader);
    cluster.stop(order[0]);
    let revision = within(15, put_at_last(&store, "b")).await;
    assert_eq!(within(15, next(&mut watch)).await, (revision, vec!["b".to_owned()]));
    cluster.go_on(order[0]);
    store.close().await;
}

/// A member that is not there costs nothing worth mentioning; nor does one that takes connections and says nothing.
#[tokio::test]
async fn dead_endpoints_are_passed_over() {
    let cluster = Cluster::start(1);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let endpoints = vec!["http://127.0.0.1:1".to_owned(), silent, cluster.url(0)];
    let start = Instant::now();
    let store = etcd::open(Options { endpoints, ..Options::default() }).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let start = Instant::now();
    put(&store, "a", "1").await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    store.close().await;
}

/// A watcher goes on where it was when its connection broke, however often.
#[tokio::test]
async fn a_watch_resumes() {
    let cluster = Cluster::start(1);
    let wire = Wire::to(cluster.address(0)).await;
    let store = etcd::open(Options { endpoints: vec![wire.url.clone()], ..Options::default() }).await.unwrap();
    let other = cluster.open().await;
    let mut watch = store.watch(b"", 0).await.unwrap();
    let mut expected = 2;
    for round in 0..3 {
        put(&other, "a", "1").await;
        assert_eq!(next(&mut watch).await.0, expected);
        wire.cut();
        for _ in 0..5 {
            put(&other, "missed", &round.to_string()).await;
        }
        wire.mend();
        for at in expected + 1..=expected + 5 {
            assert_eq!(next(&mut watch).await, (at, vec!["missed".to_owned()]));
        }
        expected += 6;
    }
    assert!(store.status().await.unwrap().error.is_none());
    store.close().await;
    other.close().await;
}

/// Others compact what a watcher has not read yet, while it is connected and while it is not.
#[tokio::test]
async fn compaction_while_a_watcher_is_behind() {
    let cluster = Cluster::start(1);
    let wire = Wire::to(cluster.address(0)).await;
    let options = Options { endpoints: vec![wire.url.clone()], feed_bytes: 1000, ..Options::default() };
    let store = etcd::open(options).await.unwrap();
    let other = cluster.open().await;
    let mut behind = store.watch(b"", 0).await.unwrap();
    let mut last = 0;
    for _ in 0..30 {
        last = put(&other, "a", &"x".repeat(500)).await;
    }
    other.compact(20).await.unwrap();
    let error = within(10, behind.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Compacted { revision: 20 }), "{error}");
    let old = store.range(RangeRequest::key("a").at(10)).await.unwrap_err();
    assert!(matches!(old, Error::Compacted { revision: 20 }), "{old}");
    assert!(matches!(store.watch(b"", 20).await.err(), Some(Error::Compacted { revision: 20 })));
    let mut follows = store.watch(b"", 21).await.unwrap();
    for at in 21..=last {
        assert_eq!(next(&mut follows).await.0, at);
    }
    // The engine's own watch is cut off, and what it missed is compacted.
    wire.cut();
    for _ in 0..5 {
        last = put(&other, "b", "1").await;
    }
    other.compact(last).await.unwrap();
    wire.mend();
    let error = within(20, follows.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Compacted { revision } if revision == last), "{error}");
    let mut anew = store.watch(b"", 0).await.unwrap();
    let revision = put(&store, "c", "1").await;
    assert_eq!(next(&mut anew).await, (revision, vec!["c".to_owned()]));
    store.close().await;
    other.close().await;
}

/// Keys that expire share leases, and are deleted together; one that is put again lives on.
#[tokio::test]
async fn leases_expire() {
    let cluster = Cluster::start(1);
    let store = cluster.open().await;
    let mut watch = store.watch(b"", 0).await.unwrap();
    let put_for = |key: &str, ttl| Txn { then: vec![Op::Put { key: key.into(), value: "x".into(), ttl_seconds: Some(ttl) }], ..Txn::default() };
    // 40 seconds are the least that leases are shared for; and one lease here is for a short time.
    for key in ["a", "b"] {
        store.txn(put_for(key, 40)).await.unwrap();
    }
    let mut both = put_for("c", 1);
    both.then.extend(put_for("d", 1).then);
    store.txn(both).await.unwrap();
    let start = Instant::now();
    let mut deleted = Vec::new();
    while deleted.len() < 2 {
        if let WatchEvent::Events { events, .. } = within(20, watch.next()).await.unwrap().unwrap() {
            deleted.extend(events.iter().filter_map(|event| match event {
                Event::Delete { key, prev, .. } => {
                    assert_eq!(prev.as_ref().unwrap().value, "x");
                    Some(String::from_utf8_lossy(key).into_owned())
                }
                Event::Put { .. } => None,
            }));
        }
    }
    deleted.sort();
    assert_eq!(deleted, ["c", "d"]);
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    let left = store.range(RangeRequest::prefix("")).await.unwrap();
    assert_eq!(left.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), [b"a", b"b"]);
    store.close().await;
}

/// etcd is full: the error says so, reads go on, and there is room again without anyone's help.
#[tokio::test]
async fn a_full_store_makes_room() {
    let cluster = Cluster::start_with(1, false, &["--quota-backend-bytes", "8388608"]);
    let store = cluster.open().await;
    let value = "x".repeat(1 << 20);
    let error = loop {
        if let Err(error) = store.txn(Txn::put("a", value.clone())).await {
            break error;
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(error.to_string().contains("quota"), "{error}");
    assert_eq!(store.range(RangeRequest::prefix("")).await.unwrap().kvs.len(), 1);
    within(60, put_at_last(&store, "b")).await;
    store.txn(Txn::put("a", value)).await.unwrap();
    store.close().await;
}

/// etcd comes back from an older backup, or with nothing: it is moved on above all that was seen, and whoever knows older
/// revisions is told to read anew.
#[tokio::test]
async fn an_etcd_that_went_back() {
    let mut cluster = Cluster::start(1);
    let store = cluster.open().await;
    put(&store, "kept", "1").await;
    cluster.kill(0);
    let copy = cluster.backup(0);
    cluster.run(0);
    within(20, put_at_last(&store, "a")).await;
    for lose_all in [false, true] {
        let mut watch = store.watch(b"", 0).await.unwrap();
        let mut seen = 0;
        for n in 0..700 {
            seen = put(&store, "lost", &n.to_string()).await;
        }
        while next(&mut watch).await.0 < seen {}
        cluster.kill(0);
        if lose_all { cluster.lose(0) } else { cluster.put_back(0, &copy) }
        cluster.run(0);
        let revision = within(30, put_at_last(&store, "new")).await;
        let found = within(30, async {
            loop {
                // What is written before that is noticed may have a low revision, once.
                let revision = put_at_last(&store, "new").await;
                if revision > seen { return revision }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let found = found.await.max(revision);
        let error = within(20, watch.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Compacted { revision } if revision > seen && revision < found), "{error}");
        for old in [2, seen - 300, seen] {
            assert!(matches!(store.watch(b"", old).await.err(), Some(Error::Compacted { .. })), "{old}");
            assert!(matches!(store.range(RangeRequest::key("lost").at(old)).await, Err(Error::Compacted { .. })), "{old}");
        }
        let keys = store.range(RangeRequest::prefix("")).await.unwrap().kvs;
        let keys: Vec<_> = keys.iter().map(|kv| String::from_utf8_lossy(&kv.key)).collect();
        let expected: &[&str] = if lose_all { &["new"] } else { &["kept", "new"] };
        assert_eq!(keys, expected, "{}", cluster.log(0));
        let mut anew = store.watch(b"", 0).await.unwrap();
        let revision = put(&store, "after", "1").await;
        assert_eq!(next(&mut anew).await, (revision, vec!["after".to_owned()]));
        store.txn(Txn::delete("after")).await.unwrap();
        assert!(store.status().await.unwrap().error.is_none());
    }
    store.close().await;
}

/// Revisions are passed over without a change to what is stored.
#[tokio::test]
async fn advancing() {
    let cluster = Cluster::start(1);
    let store = cluster.open().await;
    put(&store, "a", "1").await;
    let start = Instant::now();
    let revision = store.advance(5000).await.unwrap();
    println!("5000 revisions in {:?}", start.elapsed());
    assert!((5001..5010).contains(&revision), "{revision}");
    let all = store.range(RangeRequest::prefix("")).await.unwrap();
    assert_eq!((all.revision, all.kvs.len(), all.kvs[0].mod_revision), (revision, 1, 2));
    let on = store.advance(10).await.unwrap();
    assert!(on > revision && on < revision + 10, "{on}");
    store.close().await;
}

/// What etcd refuses for its size is told as that; it applied nothing.
#[tokio::test]
async fn requests_that_are_too_large() {
    let cluster = Cluster::start(1);
    let store = cluster.open().await;
    for size in [1_600_000, 3_000_000] {
        let error = store.txn(Txn::put("a", vec![0; size])).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 1_572_864, .. }), "{size}: {error}");
    }
    let many = Txn { then: (0..200).map(|i| Op::Delete { key: format!("k{i}").into() }).collect(), ..Txn::default() };
    assert!(matches!(store.txn(many).await, Err(Error::Invalid(_))));
    assert_eq!(store.revision().await.unwrap(), 1);
    // More than a page, and more than a frame of HTTP/2.
    let value = "v".repeat(1000);
    for chunk in 0..45 {
        let op = |i| Op::Put { key: format!("/n/{chunk:02}-{i:03}").into(), value: value.clone().into(), ttl_seconds: None };
        store.txn(Txn { then: (0..100).map(op).collect(), ..Txn::default() }).await.unwrap();
    }
    let all = store.range(RangeRequest::prefix("/n/")).await.unwrap();
    assert_eq!((all.kvs.len(), all.count, all.more), (4500, 4500, false));
    assert!(all.kvs.windows(2).all(|pair| pair[0].key < pair[1].key));
    store.close().await;
}

#[tokio::test]
async fn what_cannot_be_opened() {
    let open = async |endpoints: &[&str]| {
        let options = Options { endpoints: endpoints.iter().map(|e| (*e).to_owned()).collect(), ..Options::default() };
        etcd::open(options).await.err().unwrap()
    };
    assert!(matches!(open(&[]).await, OpenError::NoEndpoint));
    for bad in ["127.0.0.1:2379", "ftp://127.0.0.1", "http://127.0.0.1/x", ""] {
        assert!(matches!(open(&[bad]).await, OpenError::Endpoint { .. }), "{bad}");
    }
    assert!(matches!(open(&["https://127.0.0.1:1"]).await, OpenError::Tls { what: "CA", .. }));
    // A server that another CA vouches for.
    let (right, wrong) = (Cluster::start_tls(), Cluster::start_tls());
    let options = Options { endpoints: vec![right.url(0)], ..wrong.options() };
    let error = within(40, etcd::open(options)).await.err().unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(matches!(error, OpenError::Unreachable(_)) && cause.contains("certificate"), "{cause}");
}

async fn all(store: &Arc<dyn Store>) -> Vec<store::KeyValue> {
    store.range(RangeRequest::prefix("k")).await.unwrap().kvs
}

/// A member's file that is written without etcd: keys with their revisions, at a revision far above; etcd works on it, and
/// members that join get all of it.
#[tokio::test]
async fn a_new_member_is_filled() {
    let mut cluster = Cluster::start_with(1, false, &["--snapshot-count", "1"]);
    let snapshots = cluster.data(0).join("member/snap");
    let start = Instant::now();
    while !snapshots.read_dir().unwrap().flatten().any(|e| e.path().extension().is_some_and(|e| e == "snap")) {
        assert!(start.elapsed().as_secs() < 20, "{}", cluster.log(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.end(0);
    let data = cluster.data(0);
    // Keys in another order than revisions, two of each revision, of all sizes.
    let kv = |n: i64| store::KeyValue {
        key: format!("k{:05}", n * 7919 % 10_007).into_bytes(),
        value: vec![b'a' + (n % 26) as u8; (n * 31 % 9000) as usize].into(),
        create_revision: 5 + n / 4,
        mod_revision: 10 + n / 2,
        version: 1 + n % 3,
    };
    let mut import = etcd::Import::begin(&data, 1 << 20).unwrap();
    import.put(&kv(100), None).unwrap();
    assert!(matches!(import.put(&kv(3), None), Err(etcd::ImportError::Order { .. })));
    let full = (100..4000).find_map(|n| import.put(&kv(n), None).err()).unwrap().to_string();
    assert!(full.contains("1048576 bytes") && full.contains("ETCD_QUOTA_BACKEND_BYTES"), "{full}");
    // Nothing was changed by that.
    let mut import = etcd::Import::begin(&data, etcd::DEFAULT_QUOTA).unwrap();
    for n in 0..3000 {
        import.put(&kv(n), (n == 17).then_some(Duration::from_secs(2))).unwrap();
    }
    let mut read = Vec::new();
    import.finish(100_000, |kv| read.push(kv)).unwrap();
    assert!(read == (0..3000).map(kv).collect::<Vec<_>>());
    let again = etcd::Import::begin(&data, etcd::DEFAULT_QUOTA).err().unwrap().to_string();
    assert!(again.contains("there are keys in it"), "{again}");

    cluster.run(0);
    let store = cluster.open().await;
    let mut wanted: Vec<_> = (0..3000).map(kv).collect();
    wanted.sort_by(|a, b| a.key.cmp(&b.key));
    let found = store.range(RangeRequest::prefix("k")).await.unwrap();
    assert_eq!(found.revision, 100_000);
    assert!(found.kvs == wanted, "{} keys", found.kvs.len());
    assert!(matches!(store.range(RangeRequest::prefix("k").at(99_999)).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch(b"", 100_001).await.unwrap();
    let old = kv(5);
    let changed = store.txn(Txn::put(old.key.clone(), "new").when(old.key.clone(), old.mod_revision)).await.unwrap();
    assert!(changed.succeeded && changed.revision == 100_001, "{changed:?}");
    assert_eq!(next(&mut watch).await, (100_001, vec![String::from_utf8(old.key.clone()).unwrap()]));
    // What has a time to live goes.
    let short = String::from_utf8(kv(17).key).unwrap();
    assert_eq!(next(&mut watch).await, (100_002, vec![short]));
    // Pages are split, emptied and merged.
    for n in (0..3000).step_by(2) {
        let op = if n % 4 == 0 { Txn::delete(kv(n).key) } else { Txn::put(kv(n).key, vec![b'z'; 700]) };
        store.txn(op).await.unwrap();
    }
    let revision = store.revision().await.unwrap();
    store.compact(revision).await.unwrap();
    let now = all(&store).await;
    assert!((2240..2260).contains(&now.len()), "{}", now.len());
    store.close().await;
    cluster.kill(0);
    cluster.run(0);
    let store = cluster.open().await;
    assert!(all(&store).await == now);
    store.close().await;

    let address = cluster.address(0);
    let joined = cluster
        .join(|url| async move {
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let (channel, connection) = proto::grpc::connect(stream, &format!("http://{address}"), Default::default()).await.unwrap();
            tokio::spawn(connection);
            let request = proto::etcd::MemberAddRequest { peer_urls: vec![url], is_learner: false };
            let _: proto::etcd::MemberAddResponse = channel.unary(proto::etcd::method::MEMBER_ADD, &request, Duration::from_secs(10)).await.unwrap();
        })
        .await;
    let second = etcd::open(Options { endpoints: vec![cluster.url(joined)], ..cluster.options() }).await.unwrap();
    assert!(all(&second).await == now, "{}", cluster.log(joined));
    second.close().await;
}
