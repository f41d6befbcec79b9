//! How a long range is read page by page. No I/O.
//!
//! etcd passes over all keys of a range for each page of it, to count them. So there, ranges are made as short as pages
//! are long: they end where keys begin otherwise than the last ones, at as many bytes as it has shown to take.

use crate::{KeyValue, RangeRequest, prefix_end};

/// Keys that are read at once; of an etcd, as many as have about these bytes, up to the longest page.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 4 << 20;
const LONGEST_PAGE: usize = 2000;

/// Leads through a range: ask for what [`Steps::next`] says, and tell [`Steps::took`] what came of it, until there is no
/// next one.
pub struct Steps {
    /// What all keys begin with, in bytes.
    base: usize,
    end: Vec<u8>,
    /// The first key of the next range.
    next: Option<Vec<u8>>,
    /// Whether ranges are to be short.
    short: bool,
    /// It ends with the keys that have these many bytes of the first one; 0: with those of its kind.
    depth: usize,
    limit: usize,
}

/// What a page had.
pub struct Took<'a> {
    /// Its keys.
    pub kvs: &'a [KeyValue],
    /// How many there are in the range that was asked for; counts where ranges are short.
    pub there: usize,
    /// Whether the limit left some out.
    pub more: bool,
}

impl Steps {
    /// Through all keys from `key` on that are before `end`; in short ranges if the store counts for each page.
    pub fn new(key: impl Into<Vec<u8>>, end: Vec<u8>, short: bool) -> Steps {
        let key = key.into();
        Steps { base: key.len(), end, next: Some(key), short, depth: 0, limit: PAGE }
    }

    /// The next range; its revision is the caller's.
    pub fn next(&self) -> Option<RangeRequest> {
        let key = self.next.clone()?;
        let end = match self.kind_end(&key) {
            None => self.end.clone(),
            Some(kind) if self.depth > 0 && key.len() >= self.depth => prefix_end(&key[..self.depth]).min(kind),
            Some(kind) => kind,
        };
        Some(RangeRequest::page(key, end, self.limit))
    }

    /// Goes on after that.
    pub fn took(&mut self, page: &Took<'_>) {
        let Some(RangeRequest { key, end: Some(end), .. }) = self.next() else { return };
        let kind = self.kind_end(&key);
        if let (true, Some(first), Some(last)) = (page.more, page.kvs.first(), page.kvs.last()) {
            if kind.is_some() {
                let bytes: usize = page.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
                self.limit = (PAGE_BYTES * page.kvs.len() / bytes.max(1)).clamp(PAGE, LONGEST_PAGE);
                if page.there > 4 * self.limit {
                    let same = first.key.iter().zip(&last.key).take_while(|(a, b)| a == b).count();
                    self.depth = self.depth.max(same + 1);
                }
            }
            self.next = Some([last.key.as_slice(), &[0]].concat());
            return;
        }
        let Some(kind) = kind.filter(|kind| end < *kind) else {
            // The next kind may have other keys, and longer values.
            (self.depth, self.limit) = (0, PAGE);
            self.next = (end < self.end).then_some(end);
            return;
        };
        // All keys with this beginning were few: shorter beginnings have more.
        let few = key.len() == self.depth && page.there < self.limit / 4;
        self.depth = self.depth.min(end.len()) - usize::from(few);
        if self.depth + 1 < kind.len() {
            self.depth = 0;
        }
        self.next = Some(end);
    }

    /// The key behind all that have the same part up to the next slash: after `/registry/`, `/registry/pods0` for
    /// `/registry/pods/…`. Values of a part are alike, so that long ones do not come by surprise.
    fn kind_end(&self, key: &[u8]) -> Option<Vec<u8>> {
        let part = key.get(self.base..).filter(|_| self.short)?.iter().position(|b| *b == b'/')?;
        Some(prefix_end(&key[..=self.base + part]).min(self.end.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Reads these keys with values of such lengths: how many ranges that took, and how many keys were passed over for it.
    fn read(keys: &BTreeMap<Vec<u8>, usize>, short: bool) -> (usize, usize) {
        let mut steps = Steps::new("/registry/", prefix_end(b"/registry/"), short);
        let (mut seen, mut ranges, mut passed) = (Vec::new(), 0, 0);
        let value = bytes::Bytes::from(vec![0; 4000]);
        while let Some(RangeRequest { key, end: Some(end), limit, .. }) = steps.next() {
            assert!(key < end, "{key:?} {end:?}");
            let there = keys.range(key.clone()..end.clone()).count();
            let kv = |(key, length): (&Vec<u8>, &usize)| KeyValue { key: key.clone(), value: value.slice(..*length), create_revision: 1, mod_revision: 1, version: 1 };
            let kvs: Vec<_> = keys.range(key..end).take(limit).map(kv).collect();
            steps.took(&Took { kvs: &kvs, there, more: there > kvs.len() });
            seen.extend(kvs.into_iter().map(|kv| kv.key));
            (ranges, passed) = (ranges + 1, passed + there);
        }
        assert!(seen.iter().eq(keys.keys()), "each key once, in order");
        (ranges, passed)
    }

    fn keys(names: impl IntoIterator<Item = String>) -> BTreeMap<Vec<u8>, usize> {
        names.into_iter().map(|name| (format!("/registry/{name}").into_bytes(), 4000)).collect()
    }

    #[test]
    fn ranges_are_as_short_as_pages() {
        let mut random = 7u64;
        let mut number = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 33
        };
        let many = 100_000;
        let names: [(&str, Vec<String>); 5] = [
            ("counted", (0..many).map(|n| format!("configmaps/many/map-{n:07}")).collect()),
            ("without zeros", (0..many).map(|n| format!("configmaps/many/map-{n}")).collect()),
            ("in many namespaces", (0..many).map(|n| format!("pods/ns-{}/web-{:08x}-{:05x}", n % 5000, number(), number() & 0xfffff)).collect()),
            ("in one", (0..many).map(|n| format!("pods/default/web-{:08x}-{n}", number())).collect()),
            ("kinds with little, and one with much", (0..many).map(|n| if n < 3000 { format!("kind{}/a/{n}", n % 100) } else { format!("events/default/e.{:016x}", number() * n) }).collect()),
        ];
        for (what, names) in names {
            let keys = keys(names);
            let (ranges, passed) = read(&keys, true);
            assert!(ranges < 900 && passed < 12 * keys.len(), "{what}: {ranges} ranges, {passed} keys of {}", keys.len());
            let (plain, all) = read(&keys, false);
            assert!(plain <= keys.len() / PAGE + 1 && all > 90 * keys.len(), "{what}: {plain} {all}");
        }
    }

    #[test]
    fn few_and_strange_keys() {
        assert_eq!(read(&BTreeMap::new(), true), (1, 0));
        let strange = ["", "x", "pods", "pods/", "pods/\u{ff}\u{ff}", "pods/a/b/c/d", "pods0", "a.b.c/d.e.f/x", "\u{10ffff}/y"];
        read(&keys(strange.map(String::from)), true);
        let mut raw = keys((0..3000).map(|n| format!("pods/a/{n}")));
        for n in 0..3000u16 {
            raw.insert([b"/registry/raw/\xff\xff".as_slice(), &n.to_be_bytes(), b"\xff"].concat(), 10);
        }
        read(&raw, true);
    }

    #[test]
    fn kinds_end() {
        let steps = Steps::new("/registry/", prefix_end(b"/registry/"), true);
        let end = |key: &str| steps.kind_end(key.as_bytes()).map(|end| String::from_utf8(end).unwrap());
        assert_eq!(end("/registry/pods/a/b\0").as_deref(), Some("/registry/pods0"));
        assert_eq!(end("/registry/pods/").as_deref(), Some("/registry/pods0"));
        assert_eq!([end("/registry/"), end("/registry/pods0")], [None, None]);
    }
}
