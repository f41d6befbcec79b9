//! From one store into another, or from a snapshot: object for object.
//!
//! A new embedded store, or a new member of etcd that does not run, takes the objects with their revisions. An etcd that
//! runs gives revisions itself: it is moved on above the old ones first, so that no revision means two things, and then
//! the objects are written.
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::codec::{Gvk, MAGIC};
use bytes::Bytes;
use ring::digest::{Context, SHA256};
use store::{KeyValue, Op, RangeRequest, Store, Txn};
use tokio::task::JoinSet;

use super::{ALL, Error, FLEETING, Pages, Survey, text, ttl};
use crate::encrypt::Transformer;
use crate::stored::{self, StorageMediaType};

/// Transactions that are under way at once, and what is put by one of them: etcd takes 128 changes and 1.5 MiB.
const WRITES: usize = 16;
const OPS: usize = 100;
const BYTES: usize = 256 << 10;
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
        let sealed = self.to.seal(&kv.key, formed.map_or(plain, Bytes::from)).map_err(bad)?;
        Ok(sealed)
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
/// come by their keys, and keep the revisions that they have. Reads it once more when it is complete.
pub async fn import(dir: &Path, revision: i64, objects: impl IntoIterator<Item = Result<KeyValue, Error>>) -> Result<Copied, Error> {
    let mut import = store::embedded::Import::begin(dir)?;
    let mut check = Check::default();
    let lasting = objects.into_iter().filter(|next| next.as_ref().is_ok_and(|kv| !kv.key.starts_with(FLEETING)) || next.is_err());
    import.fill(lasting.map(|next| {
        let kv = next?;
        check.add(&kv.key, &kv.value);
        let lasts = ttl(&kv.key).map(Duration::from_secs);
        Ok::<_, Error>((kv, lasts))
    }))?;
    import.finish(revision)?;
    let store = store::embedded::open(dir, store::embedded::Options::default())?;
    let found = check.prove(store.clone()).await;
    store.close().await;
    Ok(Copied { objects: check.objects, revision: found? })
}

/// Writes objects into the data directory of a new member of etcd that does not run, no more than `quota` bytes. The
/// member then stands at `revision`, and knows nothing of before; objects come by their revisions, and keep them. Reads
/// its file once more when it is complete.
pub fn import_member(data: &Path, revision: i64, quota: u64, objects: impl IntoIterator<Item = Result<KeyValue, Error>>) -> Result<Copied, Error> {
    let mut import = store::etcd::Import::begin(data, quota)?;
    let (mut check, mut found) = (Check::default(), Check::default());
    for kv in objects {
        let kv = kv?;
        if !kv.key.starts_with(FLEETING) {
            import.put(&kv, ttl(&kv.key).map(Duration::from_secs))?;
            check.add(&kv.key, &kv.value);
        }
    }
    import.finish(revision, |kv| found.add(&kv.key, &kv.value))?;
    check.compare(&found)?;
    Ok(Copied { objects: check.objects, revision })
}

/// Writes objects, `total` of them, into a store that others may use too, at revisions above `beyond`. With `replace`
/// whatever else is there goes. `say` is told what is done, how far, and of how much.
pub async fn fill(
    store: &Arc<dyn Store>,
    objects: impl IntoIterator<Item = Result<(Vec<u8>, Bytes), Error>>,
    total: u64,
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
    let mut keep: HashSet<Vec<u8>> = HashSet::new();
    let mut check = Check::default();
    let (mut begun, mut done) = (JoinSet::new(), 0u64);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut objects = objects.into_iter();
    loop {
        let next = match objects.next().transpose()? {
            Some((key, _)) if key.starts_with(FLEETING) => continue,
            next => next,
        };
        let more = next.as_ref().map_or(0, |(key, value)| key.len() + value.len());
        if !batch.is_empty() && (next.is_none() || batch.len() >= OPS || bytes + more > BYTES) {
            if begun.len() >= WRITES && let Some(written) = begun.join_next().await {
                done += written.map_err(|_| Error::Gone)??;
                say("objects", done, total);
            }
            let (store, ops) = (store.clone(), std::mem::take(&mut batch));
            bytes = 0;
            begun.spawn(async move { put(&*store, ops).await });
        }
        let Some((key, value)) = next else { break };
        check.add(&key, &value);
        if replace {
            keep.insert(key.clone());
        }
        bytes += more;
        batch.push(Op::Put { ttl_seconds: ttl(&key), key, value });
    }
    while let Some(written) = begun.join_next().await {
        done += written.map_err(|_| Error::Gone)??;
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
    let revision = check.prove(store.clone()).await?;
    match store.compact(revision).await {
        Ok(()) | Err(store::Error::Compacted { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Copied { objects: done, revision })
}

/// Writes them in one transaction; how many there were.
async fn put(store: &dyn Store, ops: Vec<Op>) -> Result<u64, Error> {
    let mut pause = Duration::from_millis(200);
    loop {
        // The same values twice are as good as once.
        match store.txn(Txn { then: ops.clone(), ..Txn::default() }).await {
            Ok(_) => return Ok(ops.len() as u64),
            Err(store::Error::Timeout { .. } | store::Error::Unavailable { .. }) if pause.as_secs() < 10 => tokio::time::sleep(pause).await,
            Err(error) => return Err(error.into()),
        }
        pause *= 2;
    }
}

/// A sum over the checksums of all objects, in whatever order they come.
#[derive(Default, PartialEq, Eq)]
struct Check {
    objects: u64,
    sum: [u64; 4],
}

impl Check {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut context = Context::new(&SHA256);
        for part in [key, value] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let digest = context.finish();
        for (sum, part) in self.sum.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
            *sum = sum.wrapping_add(part.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
        }
        self.objects += 1;
    }

    /// Reads everything and compares; the revision at which it was read.
    async fn prove(&self, store: Arc<dyn Store>) -> Result<i64, Error> {
        let (mut pages, mut found) = (Pages::new(store), Check::default());
        while let Some(page) = pages.next().await? {
            page.iter().for_each(|kv| found.add(&kv.key, &kv.value));
        }
        self.compare(&found)?;
        Ok(pages.revision)
    }

    fn compare(&self, found: &Check) -> Result<(), Error> {
        if found.objects != self.objects {
            return Err(Error::Differs(format!("{} objects instead of {}", found.objects, self.objects)));
        }
        if found != self {
            return Err(Error::Differs("the checksums of all objects are not the same".into()));
        }
        Ok(())
    }
}

/// All objects of a store at one revision, which is told too.
pub async fn everything(store: Arc<dyn Store>) -> Result<(Vec<KeyValue>, i64), Error> {
    let (mut pages, mut all) = (Pages::new(store), Vec::new());
    while let Some(page) = pages.next().await? {
        all.extend(page);
    }
    Ok((all, pages.revision))
}
