//! The file that holds everything at one revision: stored values as they are, so what is encrypted stays so.
//!
//! ```text
//! "knarr snapshot 1\n"  length, header in JSON   items…              0 count  SHA-256 of all before
//!                                                1 key value create mod version
//!                                                2 name bytes        (a file of the cluster's, where it was asked for)
//! ```
//! Lengths have four bytes, numbers eight, the highest first.
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use store::{KeyValue, Store};
use tokio::sync::mpsc;

use super::{Error, Pages};

const MAGIC: &[u8] = b"knarr snapshot ";
const VERSION: u32 = 1;
const END: u8 = 0;
const OBJECT: u8 = 1;
const FILE: u8 = 2;
/// No key or value is longer; what says so is damage.
const LONGEST: usize = 64 << 20;

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The store's revision at which it was taken.
    pub revision: i64,
    /// The engine that it was taken of.
    pub engine: String,
    /// When (RFC 3339).
    pub taken: String,
    /// What the keys begin with in the store that it was taken of: sealed values are bound to that.
    pub prefix: String,
}

impl Header {
    fn to_value(&self) -> Value {
        json!({"revision": self.revision, "engine": self.engine, "taken": self.taken, "prefix": self.prefix})
    }

    fn from_value(value: &Value) -> Option<Header> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        Some(Header { revision: value.get("revision")?.as_i64()?, engine: text("engine")?, taken: text("taken")?, prefix: text("prefix")? })
    }
}

/// A part of a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    Object(KeyValue),
    /// A file of the cluster's: its name and what is in it.
    File(String, Vec<u8>),
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

/// Writes chunks, and their checksum at the end.
struct Sink<'a> {
    to: &'a mpsc::Sender<Bytes>,
    digest: Context,
}

impl Sink<'_> {
    async fn send(&mut self, chunk: Vec<u8>) -> Result<(), Error> {
        self.digest.update(&chunk);
        self.to.send(chunk.into()).await.map_err(|_| Error::Gone)
    }
}

fn head(header: &Header) -> Vec<u8> {
    let mut out = [MAGIC, VERSION.to_string().as_bytes(), b"\n"].concat();
    sized(&mut out, header.to_value().to_string().as_bytes());
    out
}

fn encode(item: &Item, out: &mut Vec<u8>) {
    match item {
        Item::File(name, bytes) => {
            out.push(FILE);
            sized(out, name.as_bytes());
            sized(out, bytes);
        }
        Item::Object(kv) => {
            out.push(OBJECT);
            sized(out, &kv.key);
            sized(out, &kv.value);
            for number in [kv.create_revision, kv.mod_revision, kv.version] {
                out.extend(number.to_be_bytes());
            }
        }
    }
}

/// Sends a snapshot of the store as it is now. It is whole when its end was sent. Returns how many objects are in it.
pub async fn send(store: Arc<dyn Store>, prefix: &str, to: mpsc::Sender<Bytes>) -> Result<u64, Error> {
    let engine = store.status().await?.engine.to_owned();
    let mut pages = Pages::new(store);
    let mut page = pages.next().await?;
    let header = Header { revision: pages.revision, engine, taken: jiff::Timestamp::now().to_string(), prefix: prefix.into() };
    let mut sink = Sink { to: &to, digest: Context::new(&SHA256) };
    let mut out = head(&header);
    let mut count = 0u64;
    while let Some(kvs) = page {
        for kv in kvs {
            count += 1;
            encode(&Item::Object(kv), &mut out);
        }
        if !out.is_empty() {
            sink.send(std::mem::take(&mut out)).await?;
        }
        page = pages.next().await?;
    }
    out.push(END);
    out.extend(count.to_be_bytes());
    sink.send(out).await?;
    let checksum = sink.digest.finish();
    to.send(Bytes::copy_from_slice(checksum.as_ref())).await.map_err(|_| Error::Gone)?;
    Ok(count)
}

/// A snapshot whose checksum was found right.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    pub header: Header,
    /// How many objects it holds.
    pub objects: u64,
    /// The files that it holds.
    pub files: Vec<String>,
}

struct Source<'a, R = BufReader<File>> {
    path: &'a Path,
    file: R,
    /// Of all that was read, where that is asked for.
    digest: Option<Context>,
    /// Bytes that were read.
    at: u64,
}

impl<R: Read> Source<'_, R> {
    fn fill(&mut self, bytes: &mut [u8], why: &'static str) -> Result<(), Error> {
        let path = || self.path.to_owned();
        self.file.read_exact(bytes).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Cut { path: path(), why },
            _ => Error::File { path: path(), action: "read", source },
        })?;
        self.at += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        Ok(())
    }

    fn number(&mut self) -> Result<i64, Error> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes, "within a number")?;
        Ok(i64::from_be_bytes(bytes))
    }

    fn sized(&mut self) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        self.fill(&mut length, "within a length")?;
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(self.damaged("a length that cannot be"));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, "within an object")?;
        Ok(bytes)
    }

    fn damaged(&self, why: &'static str) -> Error {
        Error::Damaged { path: self.path.to_owned(), why }
    }

    /// What comes next; the count of objects at the end.
    fn item(&mut self) -> Result<Result<Item, u64>, Error> {
        let mut kind = [0];
        self.fill(&mut kind, "the end is missing")?;
        Ok(match kind[0] {
            END => Err(self.number()? as u64),
            OBJECT => {
                let (key, value) = (self.sized()?, self.sized()?.into());
                Ok(Item::Object(KeyValue { key, value, create_revision: self.number()?, mod_revision: self.number()?, version: self.number()? }))
            }
            FILE => {
                let name = String::from_utf8(self.sized()?).map_err(|_| self.damaged("a name that is no text"))?;
                Ok(Item::File(name, self.sized()?))
            }
            _ => return Err(self.damaged("something that is no object")),
        })
    }
}

impl Snapshot {
    /// Opens a file, and reads it to its end to see that it is whole.
    pub fn open(path: &Path) -> Result<Snapshot, Error> {
        let (mut source, header) = begin(path, Some(Context::new(&SHA256)))?;
        let (mut objects, mut files, mut last) = (0, Vec::new(), Vec::new());
        let count = loop {
            match source.item()? {
                Ok(Item::Object(kv)) if kv.key <= last => return Err(source.damaged("its keys are not in order")),
                Ok(Item::Object(kv)) => {
                    objects += 1;
                    last = kv.key;
                }
                Ok(Item::File(name, _)) => files.push(name),
                Err(count) => break count,
            }
        };
        let wanted = source.digest.take().map(Context::finish);
        let mut found = [0; 32];
        source.fill(&mut found, "the checksum is missing")?;
        if wanted.is_none_or(|wanted| wanted.as_ref() != found) {
            return Err(source.damaged("its checksum does not fit"));
        }
        if count != objects {
            return Err(source.damaged("it has another number of objects than it says"));
        }
        if source.file.read(&mut [0]).is_ok_and(|n| n > 0) {
            return Err(source.damaged("something follows its end"));
        }
        Ok(Snapshot { path: path.to_owned(), header, objects, files })
    }

    /// Writes the same with these files in it.
    pub fn with_files(&self, files: Vec<(String, Vec<u8>)>, to: &mut dyn Write) -> Result<(), Error> {
        let mut digest = Context::new(&SHA256);
        let failed = |source| Error::File { path: self.path.clone(), action: "copied", source };
        let mut write = |bytes: &[u8]| {
            digest.update(bytes);
            to.write_all(bytes).map_err(failed)
        };
        let mut out = head(&self.header);
        files.into_iter().for_each(|(name, bytes)| encode(&Item::File(name, bytes), &mut out));
        write(&out)?;
        self.read(|item| {
            out.clear();
            encode(&item, &mut out);
            write(&out)
        })?;
        write(&[END])?;
        write(&self.objects.to_be_bytes())?;
        to.write_all(digest.finish().as_ref()).map_err(failed)
    }

    /// Gives everything in it, in order.
    pub fn read(&self, mut take: impl FnMut(Item) -> Result<(), Error>) -> Result<(), Error> {
        let (mut source, _) = begin(&self.path, None)?;
        while let Ok(item) = source.item()? {
            take(item)?;
        }
        Ok(())
    }

    /// Gives all objects, by their keys.
    pub fn objects(&self) -> Result<impl Iterator<Item = Result<KeyValue, Error>> + Send, Error> {
        let (mut source, _) = begin(&self.path, None)?;
        Ok(std::iter::from_fn(move || {
            loop {
                match source.item() {
                    Ok(Ok(Item::Object(kv))) => return Some(Ok(kv)),
                    Ok(Ok(Item::File(..))) => {}
                    Ok(Err(_)) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        }))
    }

    /// Gives all objects, by their revisions. Where each lies is kept meanwhile, in 24 bytes.
    pub fn by_revision(&self) -> Result<impl Iterator<Item = Result<KeyValue, Error>> + Send, Error> {
        let (mut source, _) = begin(&self.path, None)?;
        let mut places = Vec::with_capacity(self.objects as usize);
        let mut from = source.at;
        while let Ok(item) = source.item()? {
            if let Item::Object(kv) = item {
                places.push((kv.mod_revision, from, source.at - from));
            }
            from = source.at;
        }
        places.sort_unstable();
        let (path, file) = (self.path.clone(), source.file.into_inner());
        let mut bytes = Vec::new();
        Ok(places.into_iter().map(move |(_, from, length)| {
            bytes.resize(length as usize, 0);
            file.read_exact_at(&mut bytes, from).map_err(|source| Error::File { path: path.clone(), action: "read", source })?;
            match (Source { path: &path, file: bytes.as_slice(), digest: None, at: from }).item()? {
                Ok(Item::Object(kv)) => Ok(kv),
                _ => Err(Error::Damaged { path: path.clone(), why: "it has changed while it was read" }),
            }
        }))
    }
}

fn begin(path: &Path, digest: Option<Context>) -> Result<(Source<'_>, Header), Error> {
    let file = File::open(path).map_err(|source| Error::File { path: path.to_owned(), action: "opened", source })?;
    let mut source = Source { path, file: BufReader::with_capacity(1 << 20, file), digest, at: 0 };
    let not = || Error::NotASnapshot { path: path.to_owned() };
    let mut magic = [0; MAGIC.len()];
    match source.fill(&mut magic, "") {
        Ok(()) if magic == MAGIC => {}
        Ok(()) | Err(Error::Cut { .. }) => return Err(not()),
        Err(other) => return Err(other),
    }
    let mut version = String::new();
    loop {
        let mut byte = [0];
        source.fill(&mut byte, "within its first line")?;
        match byte[0] {
            b'\n' => break,
            _ if version.len() < 20 => version.push(byte[0].into()),
            _ => return Err(not()),
        }
    }
    if version != VERSION.to_string() {
        return Err(Error::Version { path: path.to_owned(), found: version, known: VERSION });
    }
    let header = source.sized()?;
    let header = serde_json::from_slice(&header).ok().and_then(|value| Header::from_value(&value));
    let header = header.ok_or_else(|| source.damaged("its header cannot be read"))?;
    Ok((source, header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{Txn, memory};

    async fn taken() -> Vec<u8> {
        let store = memory::new();
        for n in 0..1203 {
            store.txn(Txn::put(format!("/registry/pods/a/p{n:04}"), format!("value {n}"))).await.unwrap();
        }
        store.txn(Txn::put("/registry/masterleases/10.0.0.1", "x")).await.unwrap();
        store.txn(Txn::put("compact_rev_key", "7")).await.unwrap();
        let (to, mut from) = mpsc::channel(2);
        let sending = tokio::spawn(async move { send(store, "/registry", to).await });
        let mut all = Vec::new();
        while let Some(chunk) = from.recv().await {
            all.extend(chunk);
        }
        assert_eq!(sending.await.unwrap().unwrap(), 1203);
        all
    }

    #[tokio::test]
    async fn what_was_sent_is_read() {
        let dir = std::env::temp_dir().join(format!("knarr-snapshot-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a");
        std::fs::write(&path, taken().await).unwrap();
        let mut bytes = Vec::new();
        Snapshot::open(&path).unwrap().with_files(vec![("pki/ca.key".into(), b"secret".to_vec())], &mut bytes).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!((snapshot.header.revision, snapshot.header.engine.as_str(), snapshot.objects), (1206, "memory", 1203));
        assert_eq!(snapshot.files, ["pki/ca.key"]);
        let mut seen = 0;
        snapshot
            .read(|item| {
                match item {
                    Item::Object(kv) => {
                        assert_eq!(kv.key, format!("/registry/pods/a/p{seen:04}").into_bytes());
                        assert_eq!((kv.value, kv.mod_revision, kv.version), (format!("value {seen}").into(), seen + 2, 1));
                        seen += 1;
                    }
                    Item::File(name, bytes) => assert_eq!((name.as_str(), bytes.as_slice()), ("pki/ca.key", &b"secret"[..])),
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, 1203);
        let why = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Snapshot::open(&path).unwrap_err()
        };
        // Cut anywhere, it is not taken.
        for length in (0..bytes.len()).step_by(997).chain([bytes.len() - 1, bytes.len() - 32, bytes.len() - 33]) {
            let error = why(&bytes[..length]);
            assert!(matches!(error, Error::Cut { .. } | Error::NotASnapshot { .. }), "{length}: {error}");
        }
        for at in (20..bytes.len()).step_by(1009) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            let error = why(&bad);
            assert!(matches!(error, Error::Cut { .. } | Error::Damaged { .. }), "{at}: {error}");
        }
        assert!(matches!(why(&[&bytes[..], b"x"].concat()), Error::Damaged { .. }));
        assert!(matches!(why(b"a letter, not a snapshot"), Error::NotASnapshot { .. }));
        let mut newer = bytes.clone();
        newer[MAGIC.len()] = b'9';
        assert!(why(&newer).to_string().contains("another version (9)"));
        assert!(matches!(Snapshot::open(&dir.join("none")).unwrap_err(), Error::File { .. }));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
