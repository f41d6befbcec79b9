//! How many seats a request takes: lists by what they read, writes by who watches.
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::queues::Work;
use crate::request::RequestInfo;

const BYTES_PER_SEAT: u64 = 100_000;
/// A list is written out piece by piece: no more of it than this is in memory at once.
const LIST_AT_ONCE: u64 = 1_000_000;
const MAX_LIST_SEATS: u32 = 100;
const MAX_WRITE_SEATS: u32 = 10;
const WATCHES_PER_SEAT: usize = 10;
/// What a seat's worth of watchers takes after each write.
const EVENT: Duration = Duration::from_millis(5);

/// What is stored of a resource.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stored {
    pub objects: u64,
    pub bytes: u64,
}

/// What the size of a request depends on, each asked only where it matters.
pub trait Known {
    /// What is stored of the request's resource; `None` where it is not stored here.
    fn stored(&self) -> Option<Stored>;
    /// How many watches see what the request writes.
    fn watches(&self) -> usize;
}

/// The work of a request, and how many watches were counted for it. A level's requests take `max` seats at most; zero is
/// no bound.
pub fn estimate(info: &RequestInfo, query: &[(String, String)], max: u32, known: &dyn Known) -> (Work, Option<usize>) {
    let bound = |limit: u32| if max == 0 || max > limit { limit } else { max };
    match info.verb.as_str() {
        "list" | "watch" => (Work { initial: list(info, query, bound(MAX_LIST_SEATS), known), ..Work::ONE }, None),
        "create" | "update" | "patch" | "delete" if info.resource_request => {
            if info.resource == "serviceaccounts" && info.subresource == "token" {
                return (Work::ONE, None);
            }
            let watches = known.watches();
            (write(watches, bound(MAX_WRITE_SEATS)), Some(watches))
        }
        _ => (Work::ONE, None),
    }
}

fn list(info: &RequestInfo, query: &[(String, String)], max: u32, known: &dyn Known) -> u32 {
    let param = |name: &str| query.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v.as_str());
    if info.verb == "watch" {
        let initial = matches!(param("sendInitialEvents"), "true" | "1") || matches!(param("resourceVersion"), "" | "0");
        if !initial {
            return 1;
        }
    }
    let Some(stored) = known.stored().filter(|s| s.objects > 0) else { return 1 };
    let limit = param("limit").parse().ok().filter(|n| *n > 0).unwrap_or(u64::MAX);
    let objects = if info.name.is_empty() { stored.objects.min(limit) } else { 1 };
    let bytes = objects.saturating_mul(stored.bytes / stored.objects).min(LIST_AT_ONCE);
    (bytes.div_ceil(BYTES_PER_SEAT) as u32).clamp(1, max)
}

fn write(watches: usize, max: u32) -> Work {
    if watches < WATCHES_PER_SEAT {
        return Work::ONE;
    }
    let seats = watches.div_ceil(WATCHES_PER_SEAT) as u32;
    let last = seats.min(max);
    // what is too wide is made longer instead
    Work { initial: 1, last, latency: EVENT * seats / last.max(1) }
}

/// The watches that are open, by what they see.
#[derive(Debug, Default)]
pub struct Watches {
    hasher: RandomState,
    open: Mutex<HashMap<u64, usize>>,
}

/// Counts a watch while it is kept.
pub struct OpenWatch {
    watches: Arc<Watches>,
    key: u64,
}

impl Watches {
    fn key(&self, info: &RequestInfo, namespace: &str, name: &str) -> u64 {
        self.hasher.hash_one((info.group.as_str(), info.resource.as_str(), namespace, name))
    }

    /// Counts a watch; nothing for one of the pods of a node, of which there are as many as nodes, each seeing its own.
    pub fn open(self: &Arc<Watches>, info: &RequestInfo) -> Option<OpenWatch> {
        let of_node = || {
            let fields = api::selector::Fields::parse(&info.field_selector).ok();
            fields.and_then(|f| f.requires("spec.nodeName").map(|node| !node.is_empty())).unwrap_or(false)
        };
        if info.resource == "pods" && of_node() {
            return None;
        }
        let key = self.key(info, &info.namespace, &info.name);
        *self.open.lock().entry(key).or_default() += 1;
        Some(OpenWatch { watches: self.clone(), key })
    }

    /// How many watches see what this request writes.
    pub fn interested(&self, info: &RequestInfo) -> usize {
        let open = self.open.lock();
        let of = |namespace: &str, name: &str| open.get(&self.key(info, namespace, name)).copied().unwrap_or(0);
        let mut sum = of("", "");
        if !info.namespace.is_empty() {
            sum += of(&info.namespace, "");
        }
        if !info.name.is_empty() {
            sum += of(&info.namespace, &info.name);
        }
        sum
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        let mut open = self.watches.open.lock();
        if let Some(count) = open.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::parse_query;
    use http::Method;

    struct Given(u64, u64, usize);

    impl Known for Given {
        fn stored(&self) -> Option<Stored> {
            Some(Stored { objects: self.0, bytes: self.1 })
        }
        fn watches(&self) -> usize {
            self.2
        }
    }

    fn of(method: Method, uri: &str, max: u32, known: Given) -> Work {
        let uri: http::Uri = uri.parse().unwrap();
        let info = RequestInfo::parse(&method, &uri).unwrap();
        estimate(&info, &parse_query(uri.query().unwrap_or_default()), max, &known).0
    }

    #[test]
    fn lists_and_watches() {
        let list = |uri: &str, max: u32| of(Method::GET, uri, max, Given(5000, 5000 * 1000, 0)).initial;
        assert_eq!(list("/api/v1/pods", 0), 10, "a list is never more than what is written at once");
        assert_eq!(list("/api/v1/pods", 4), 4);
        assert_eq!(list("/api/v1/pods?limit=500", 0), 5);
        assert_eq!(list("/api/v1/pods?limit=500&watch=1", 0), 5);
        assert_eq!(list("/api/v1/pods?watch=1&resourceVersion=7", 0), 1);
        assert_eq!(list("/api/v1/pods?watch=1&resourceVersion=7&sendInitialEvents=true", 0), 10);
        assert_eq!(list("/api/v1/pods?fieldSelector=metadata.name%3Dx", 0), 1);
        assert_eq!(list("/api/v1/namespaces/a/pods/x", 0), 1);
        assert_eq!(of(Method::GET, "/api/v1/pods", 0, Given(0, 0, 0)).initial, 1);
    }

    #[test]
    fn writes() {
        let write = |watches, max| of(Method::POST, "/api/v1/namespaces/a/pods", max, Given(0, 0, watches));
        assert_eq!(write(9, 0), Work::ONE);
        assert_eq!(write(95, 0), Work { initial: 1, last: 10, latency: EVENT });
        assert_eq!(write(400, 0), Work { initial: 1, last: 10, latency: EVENT * 4 }, "the same work in fewer seats");
        assert_eq!(write(400, 2), Work { initial: 1, last: 2, latency: EVENT * 20 });
        assert_eq!(of(Method::POST, "/api/v1/namespaces/a/serviceaccounts/x/token", 0, Given(0, 0, 400)), Work::ONE);
        assert_eq!(of(Method::POST, "/version", 0, Given(0, 0, 400)), Work::ONE);
    }

    #[test]
    fn who_watches() {
        let info = |method: Method, uri: &str| RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap();
        let watches = Arc::new(Watches::default());
        let open = |uri: &str| watches.open(&info(Method::GET, uri));
        let kept = [
            open("/api/v1/pods?watch=1"),
            open("/api/v1/namespaces/a/pods?watch=1"),
            open("/api/v1/namespaces/b/pods?watch=1"),
            open("/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3Dx"),
            open("/apis/apps/v1/deployments?watch=1"),
        ];
        assert!(open("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Dn").is_none());
        assert_eq!(watches.interested(&info(Method::PUT, "/api/v1/namespaces/a/pods/x")), 3);
        assert_eq!(watches.interested(&info(Method::PUT, "/api/v1/namespaces/b/pods/x")), 2);
        assert_eq!(watches.interested(&info(Method::POST, "/apis/apps/v1/namespaces/b/deployments")), 1);
        drop(kept);
        assert!(watches.open.lock().is_empty());
    }
}
