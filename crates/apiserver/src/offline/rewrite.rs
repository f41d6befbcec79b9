//! Writes again what is not stored as it would be today, and counts afterwards under which key everything is.
use std::collections::BTreeMap;
use std::sync::Arc;

use store::{Op, RangeRequest, Store, Txn};

use super::{Error, Pages, text, ttl};
use crate::encrypt::{self, Transformer};

/// Values that are under way at once.
const WRITES: usize = 32;
/// As often as this is what others wrote meanwhile under an old key written again.
const ROUNDS: usize = 5;

/// How many values are stored under which key: `aesgcm:key1`, or `identity` for plain ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub keys: BTreeMap<String, u64>,
    /// Values that would be stored otherwise today.
    pub stale: u64,
    /// Values that no key opens; the first few of them by name.
    pub unreadable: u64,
    pub examples: Vec<String>,
    /// The revision at which this was so.
    pub revision: i64,
}

impl Survey {
    fn take(&mut self, transformer: &Transformer, kv: &store::KeyValue) -> bool {
        *self.keys.entry(encrypt::key_of(&kv.value)).or_default() += 1;
        match transformer.is_stale(&kv.key, &kv.value) {
            Ok(stale) => {
                self.stale += u64::from(stale);
                stale
            }
            Err(_) => {
                self.unreadable += 1;
                if self.examples.len() < 5 {
                    self.examples.push(text(&kv.key));
                }
                false
            }
        }
    }

    pub fn values(&self) -> u64 {
        self.keys.values().sum()
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    pub before: Survey,
    pub after: Survey,
    pub rewritten: u64,
}

impl Rewritten {
    /// Whether everything is stored as it would be today.
    pub fn is_proved(&self) -> bool {
        self.after.stale == 0 && self.after.unreadable == 0
    }
}

/// Counts.
pub async fn survey(store: Arc<dyn Store>, transformer: &Transformer) -> Result<Survey, Error> {
    let (mut pages, mut found) = (Pages::new(store), Survey::default());
    while let Some(page) = pages.next().await? {
        for kv in page {
            found.take(transformer, &kv);
        }
    }
    found.revision = pages.revision;
    Ok(found)
}

/// One value, which may change or go meanwhile. Whether it was written.
async fn again(store: &dyn Store, transformer: &Transformer, key: &[u8]) -> Result<bool, Error> {
    loop {
        let found = store.range(RangeRequest::key(key)).await?;
        let Some(kv) = found.kvs.into_iter().next() else { return Ok(false) };
        // Unreadable ones are counted, not written.
        if !transformer.is_stale(&kv.key, &kv.value).unwrap_or(false) {
            return Ok(false);
        }
        let bad = |error: encrypt::Error| Error::Unreadable { key: text(key), why: error.to_string() };
        let plain = transformer.open(&kv.key, &kv.value).map_err(bad)?;
        let value = transformer.seal(&kv.key, plain).map_err(bad)?;
        let op = Op::Put { key: kv.key.clone(), value, ttl_seconds: ttl(&kv.key) };
        let txn = Txn { then: vec![op], ..Txn::default() }.when(kv.key, kv.mod_revision);
        if store.txn(txn).await?.succeeded {
            return Ok(true);
        }
    }
}

/// Writes again what is stored under another key than today's, until nothing is; then has the store forget what was
/// before. `say` is told how many of how many are done.
pub async fn rewrite(store: Arc<dyn Store>, transformer: Arc<Transformer>, mut say: impl FnMut(u64, u64)) -> Result<Rewritten, Error> {
    let before = survey(store.clone(), &transformer).await?;
    let total = before.stale;
    let mut rewritten = 0;
    say(0, total);
    for _ in 0..ROUNDS {
        let (mut pages, mut found, mut begun) = (Pages::moving(store.clone()), 0, tokio::task::JoinSet::new());
        while let Some(page) = pages.next().await? {
            for kv in page {
                if !transformer.is_stale(&kv.key, &kv.value).unwrap_or(false) {
                    continue;
                }
                found += 1;
                if begun.len() >= WRITES && let Some(done) = begun.join_next().await {
                    rewritten += u64::from(done.map_err(|_| Error::Gone)??);
                    say(rewritten, total);
                }
                let (store, transformer) = (store.clone(), transformer.clone());
                begun.spawn(async move { again(&*store, &transformer, &kv.key).await });
            }
        }
        while let Some(done) = begun.join_next().await {
            rewritten += u64::from(done.map_err(|_| Error::Gone)??);
            say(rewritten, total);
        }
        if found == 0 {
            break;
        }
    }
    let after = survey(store.clone(), &transformer).await?;
    let done = Rewritten { before, after, rewritten };
    if done.is_proved() {
        // Older versions are under older keys.
        match store.compact(done.after.revision).await {
            Ok(()) | Err(store::Error::Compacted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encrypt::{EncryptionConfig, EncryptionKey, Provider};
    use store::memory;

    fn transformer(names: &[&str]) -> Arc<Transformer> {
        let keys = names.iter().map(|n| EncryptionKey { name: (*n).into(), secret: vec![n.len() as u8; 32] }).collect();
        Arc::new(Transformer::new(&EncryptionConfig::of(&["secrets"], vec![Provider::AesGcm(keys), Provider::Identity])).unwrap())
    }

    #[tokio::test]
    async fn nothing_is_left_under_an_old_key() {
        let (old, new) = (transformer(&["k1"]), transformer(&["key2", "k1"]));
        let store = memory::new();
        for n in 0..700 {
            let secret = format!("/registry/secrets/a/s{n}");
            let value = if n % 7 == 0 { "{}".into() } else { old.seal(secret.as_bytes(), "{}".into()).unwrap() };
            store.txn(Txn::put(secret, value)).await.unwrap();
            store.txn(Txn::put(format!("/registry/pods/a/p{n}"), "{}")).await.unwrap();
        }
        let counts = |s: &Survey| s.keys.iter().map(|(k, n)| format!("{k} {n}")).collect::<Vec<_>>().join(", ");
        let mut told = Vec::new();
        let done = rewrite(store.clone(), new.clone(), |n, of| told.push((n, of))).await.unwrap();
        assert_eq!(counts(&done.before), "aesgcm:k1 600, identity 800");
        assert_eq!(counts(&done.after), "aesgcm:key2 700, identity 700");
        assert!(done.is_proved() && done.rewritten == 700);
        assert_eq!((told.first(), told.last()), (Some(&(0, 700)), Some(&(700, 700))));
        let only = transformer(&["key2"]);
        let all = store.range(RangeRequest::prefix("/registry/secrets/")).await.unwrap().kvs;
        assert!(all.iter().all(|kv| &only.open(&kv.key, &kv.value).unwrap()[..] == b"{}"));
        // Nor can what was before be read.
        let past = store.range(RangeRequest::prefix("/registry/secrets/").at(done.after.revision - 1)).await;
        assert!(matches!(past, Err(store::Error::Compacted { .. })), "{past:?}");
        // Once more there is nothing to do.
        assert_eq!(rewrite(store.clone(), new.clone(), |_, _| {}).await.unwrap().rewritten, 0);
        // What no key opens is told.
        let strange = transformer(&["strange"]).seal(b"/registry/secrets/a/x", "{}".into()).unwrap();
        store.txn(Txn::put("/registry/secrets/a/x", strange)).await.unwrap();
        let done = rewrite(store, new, |_, _| {}).await.unwrap();
        assert!(!done.is_proved() && done.after.unreadable == 1 && done.after.examples == ["/registry/secrets/a/x"]);
        assert!(counts(&done.after).contains("aesgcm:strange 1"));
    }
}
