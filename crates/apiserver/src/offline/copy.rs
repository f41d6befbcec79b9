//! From one store into another, or from a snapshot: object for object.
//!
//! A new embedded store takes the objects with their revisions. etcd gives revisions itself: it is moved on above the
//! old ones first, so that no revision means two things, and then each object is one write.
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use api::codec::{Gvk, MAGIC};
use bytes::Bytes;
use ring::digest::{Context, SHA256};
use store::embedded::Import;
use store::{KeyValue, Op, RangeRequest, Store, Txn};
use tokio::task::JoinSet;

use super::{ALL, Error, FLEETING, PAGE, Pages, Survey, text, ttl};
use crate::encrypt::Transformer;
use crate::stored::{self, StorageMediaType};

/// Writes that are under way at once.
const WRITES: usize = 64;
/// Revisions that are passed over between two words about it.
const STEP: i64 = 20_000;

/// Brings stored values into the form and under the key that the other store's servers write.
pub struct Converter {
    /// Opens what is there.
    pub from: Transformer,
    /// Seals what is written.
    pub to: Transformer,
    pub form: StorageMediaType,
}

impl Converter {
    /// The value as the other store is to have it. What is no object known here stays as it is.
    pub fn convert(&self, kv: &KeyValue) -> Result<Bytes, Error> {
        let bad = |error: crate::encrypt::Error| Error::Unreadable { key: text(&kv.key), why: error.to_string() };
        let plain = self.from.open(&kv.key, &kv.value).map_err(bad)?;
        let formed = self.formed(&plain);
        if formed.is_none() && self.to.is_stale(&kv.key, &kv.value).is_ok_and(|stale| !stale) {
            return Ok(kv.value.clone());
        }
        let sealed = self.to.seal(&kv.key, formed.unwrap_or_else(|| plain.to_vec())).map_err(bad)?;
        Ok(sealed.into())
    }

    /// Another form; nothing if it has the right one, or can have no other.
    fn formed(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let is_protobuf = plain.starts_with(MAGIC);
        if is_protobuf == (self.form == StorageMediaType::Protobuf) {
            return None;
        }
        let object = stored::tree(plain).ok()?;
        let gvk = Gvk::of(&object);
        let resource = api::resources::find_kind(&gvk.group, &gvk.version, &gvk.kind)?;
        if !is_protobuf && !self.form.is_protobuf(resource) {
            return None;
        }
        self.form.encode(resource, &object).ok()
    }
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    pub objects: u64,
    /// The new store's revision.
    pub revision: i64,
}

/// Counts what is stored under which key.
pub async fn survey(store: Arc<dyn Store>, transformer: &Transformer) -> Result<Survey, Error> {
    super::rewrite::survey(store, transformer).await
}

/// Makes an embedded store in a directory that holds none. It stands at `revision`, and knows nothing of before; objects
/// keep the revisions that they have. Reads it once more when it is complete.
pub async fn import(dir: &Path, revision: i64, objects: Vec<KeyValue>) -> Result<Copied, Error> {
    let mut import = Import::begin(dir)?;
    let (mut count, mut check) = (0, Context::new(&SHA256));
    for kv in objects.iter().filter(|kv| !kv.key.starts_with(FLEETING)) {
        import.put(kv, ttl(&kv.key).map(std::time::Duration::from_secs))?;
        sum(&mut check, &kv.key, &kv.value);
        count += 1;
    }
    import.finish(revision)?;
    drop(objects);
    let store = store::embedded::open(dir, store::embedded::Options::default())?;
    let found = digest(store.clone()).await;
    store.close().await;
    let (found, revision) = found?;
    if found.as_ref() != check.finish().as_ref() {
        return Err(Error::Differs("the checksums of all objects are not the same".into()));
    }
    Ok(Copied { objects: count, revision })
}

/// Writes objects into a store that others may use too, at revisions above `beyond`. With `replace` whatever else is
/// there goes. `say` is told what is done, how far, and of how much.
pub async fn fill(
    store: &Arc<dyn Store>,
    objects: Vec<(Vec<u8>, Bytes)>,
    beyond: i64,
    replace: bool,
    mut say: impl FnMut(&str, u64, u64),
) -> Result<Copied, Error> {
    let there = RangeRequest { count_only: true, ..RangeRequest::prefix(ALL) };
    let there = store.range(there).await?;
    if there.count > 0 && !replace {
        return Err(Error::NotEmpty(there.count));
    }
    let (first, mut at) = (there.revision, there.revision);
    while at < beyond {
        at = store.advance(beyond.min(at + STEP)).await?;
        say("revisions", (at - first).min(beyond - first) as u64, (beyond - first) as u64);
    }
    let total = objects.len() as u64;
    let mut keep: HashSet<Vec<u8>> = HashSet::new();
    let mut check = Context::new(&SHA256);
    let (mut begun, mut done) = (JoinSet::new(), 0u64);
    for (key, value) in objects {
        if key.starts_with(FLEETING) {
            continue;
        }
        sum(&mut check, &key, &value);
        if replace {
            keep.insert(key.clone());
        }
        if begun.len() >= WRITES && let Some(written) = begun.join_next().await {
            written.map_err(|_| Error::Gone)??;
            done += 1;
            say("objects", done, total);
        }
        let store = store.clone();
        let op = Op::Put { ttl_seconds: ttl(&key), key, value };
        begun.spawn(async move { put(&*store, op).await });
    }
    while let Some(written) = begun.join_next().await {
        written.map_err(|_| Error::Gone)??;
        done += 1;
        say("objects", done, total);
    }
    if replace {
        let mut pages = Pages::new(store.clone());
        while let Some(page) = pages.next().await? {
            for kv in page.into_iter().filter(|kv| !keep.contains(&kv.key)) {
                store.txn(Txn::delete(kv.key)).await?;
            }
        }
    }
    let (found, revision) = digest(store.clone()).await?;
    if found.as_ref() != check.finish().as_ref() {
        return Err(Error::Differs("the checksums of all objects are not the same".into()));
    }
    match store.compact(revision).await {
        Ok(()) | Err(store::Error::Compacted { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Copied { objects: done, revision })
}

async fn put(store: &dyn Store, op: Op) -> Result<(), Error> {
    let mut pause = std::time::Duration::from_millis(200);
    loop {
        // The same value twice is as good as once.
        match store.txn(Txn { then: vec![op.clone()], ..Txn::default() }).await {
            Ok(_) => return Ok(()),
            Err(store::Error::Timeout { .. } | store::Error::Unavailable { .. }) if pause.as_secs() < 10 => tokio::time::sleep(pause).await,
            Err(error) => return Err(error.into()),
        }
        pause *= 2;
    }
}

fn sum(check: &mut Context, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        check.update(&(part.len() as u64).to_be_bytes());
        check.update(part);
    }
}

async fn digest(store: Arc<dyn Store>) -> Result<(ring::digest::Digest, i64), Error> {
    let (mut pages, mut check) = (Pages::new(store), Context::new(&SHA256));
    while let Some(page) = pages.next().await? {
        page.iter().for_each(|kv| sum(&mut check, &kv.key, &kv.value));
    }
    Ok((check.finish(), pages.revision))
}

/// All objects of a store at one revision, which is told too.
pub async fn everything(store: Arc<dyn Store>) -> Result<(Vec<KeyValue>, i64), Error> {
    let (mut pages, mut all) = (Pages::new(store), Vec::with_capacity(PAGE));
    while let Some(page) = pages.next().await? {
        all.extend(page);
    }
    Ok((all, pages.revision))
}
