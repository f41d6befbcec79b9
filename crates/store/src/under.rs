//! A store whose keys lie under another prefix than `/registry` (upstream's `--etcd-prefix`): they are renamed on the way.

use std::sync::Arc;

use crate::{Error, Event, KeyValue, Op, RangeRequest, RangeResponse, Status, Store, Txn, TxnResponse, WatchEvent, WatchStream, Watcher};

/// What keys begin with here. A slash follows, or what follows a slash, which ends a range.
const HERE: &[u8] = b"/registry";

/// The store with all keys under `/registry/` kept under `prefix`. Other keys are passed on as they are.
pub fn under(store: Arc<dyn Store>, prefix: &str) -> Arc<dyn Store> {
    let prefix = prefix.trim_matches('/');
    let there = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
    if there.as_bytes() == HERE {
        return store;
    }
    Arc::new(Under { store, names: Names { there: there.into_bytes() } })
}

#[derive(Clone)]
struct Names {
    there: Vec<u8>,
}

impl Names {
    fn there(&self, key: Vec<u8>) -> Vec<u8> {
        match key.strip_prefix(HERE) {
            Some(rest @ [b'/' | b'0', ..]) => [&self.there, rest].concat(),
            _ => key,
        }
    }

    fn here(&self, key: Vec<u8>) -> Vec<u8> {
        match key.strip_prefix(self.there.as_slice()) {
            Some(rest @ [b'/', ..]) => [HERE, rest].concat(),
            _ => key,
        }
    }

    fn kv(&self, kv: KeyValue) -> KeyValue {
        KeyValue { key: self.here(kv.key), ..kv }
    }

    fn event(&self, event: Event) -> Event {
        let prev = |prev: Option<KeyValue>| prev.map(|kv| self.kv(kv));
        match event {
            Event::Put { kv, prev: p } => Event::Put { kv: self.kv(kv), prev: prev(p) },
            Event::Delete { key, revision, prev: p } => Event::Delete { key: self.here(key), revision, prev: prev(p) },
        }
    }
}

struct Under {
    store: Arc<dyn Store>,
    names: Names,
}

struct Renamed {
    stream: WatchStream,
    names: Names,
}

#[async_trait::async_trait]
impl Watcher for Renamed {
    async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        Some(self.stream.next().await?.map(|event| match event {
            WatchEvent::Events { revision, events } => {
                WatchEvent::Events { revision, events: events.into_iter().map(|e| self.names.event(e)).collect() }
            }
            progress => progress,
        }))
    }
}

#[async_trait::async_trait]
impl Store for Under {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let names = &self.names;
        let request = RangeRequest { key: names.there(request.key), end: request.end.map(|end| names.there(end)), ..request };
        let response = self.store.range(request).await?;
        Ok(RangeResponse { kvs: response.kvs.into_iter().map(|kv| names.kv(kv)).collect(), ..response })
    }

    async fn txn(&self, mut txn: Txn) -> Result<TxnResponse, Error> {
        let names = &self.names;
        txn.compare.iter_mut().for_each(|c| c.key = names.there(std::mem::take(&mut c.key)));
        for op in &mut txn.then {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            *key = names.there(std::mem::take(key));
        }
        let response = self.store.txn(txn).await?;
        let all = |kvs: Vec<Option<KeyValue>>| kvs.into_iter().map(|kv| kv.map(|kv| names.kv(kv))).collect();
        Ok(TxnResponse { current: all(response.current), previous: all(response.previous), ..response })
    }

    async fn watch(&self, prefix: &[u8], from_revision: i64) -> Result<WatchStream, Error> {
        let stream = self.store.watch(&self.names.there(prefix.to_vec()), from_revision).await?;
        Ok(WatchStream::new(Box::new(Renamed { stream, names: self.names.clone() })))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn revision(&self) -> Result<i64, Error> {
        self.store.revision().await
    }

    async fn advance(&self, beyond: i64) -> Result<i64, Error> {
        self.store.advance(beyond).await
    }

    async fn status(&self) -> Result<Status, Error> {
        self.store.status().await
    }

    fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    #[tokio::test]
    async fn keys_are_renamed_both_ways() {
        for (prefix, stored) in [("/other", "/other/pods/a"), ("deep/er/", "/deep/er/pods/a"), ("/", "/pods/a")] {
            let inner = memory::new();
            let store = under(inner.clone(), prefix);
            let mut watch = store.watch(b"/registry/", 0).await.unwrap();
            assert!(store.txn(Txn::put("/registry/pods/a", "1").when("/registry/pods/a", 0)).await.unwrap().succeeded);
            assert_eq!(inner.range(RangeRequest::prefix("")).await.unwrap().kvs[0].key, stored.as_bytes());
            let all = store.range(RangeRequest::prefix("/registry/")).await.unwrap();
            assert_eq!((all.kvs.len(), all.kvs[0].key.as_slice()), (1, &b"/registry/pods/a"[..]));
            let failed = store.txn(Txn::delete("/registry/pods/a").when("/registry/pods/a", 0)).await.unwrap();
            assert_eq!(failed.current[0].as_ref().unwrap().key, b"/registry/pods/a");
            let Some(Ok(WatchEvent::Events { events, .. })) = watch.next().await else { panic!("no event") };
            assert_eq!(events[0].key(), b"/registry/pods/a");
            // What lies elsewhere is not of this cluster.
            inner.txn(Txn::put("/registry/pods/b", "2")).await.unwrap();
            let count = store.range(RangeRequest::prefix("/registry/")).await.unwrap().count;
            assert_eq!(count, if prefix == "/" { 2 } else { 1 });
            store.txn(Txn::put("compact_rev_key", "7")).await.unwrap();
            assert_eq!(inner.range(RangeRequest::key("compact_rev_key")).await.unwrap().count, 1);
        }
        let inner = memory::new();
        assert!(Arc::ptr_eq(&inner, &under(inner.clone(), "registry/")));
    }
}
