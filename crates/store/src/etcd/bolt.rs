//! The file format of bbolt, in which a member of etcd keeps its data: a small file is read whole, and a new one is
//! written from entries that come in order. No free pages are kept, as in etcd's own files.
//!
//! | page | content |
//! |---|---|
//! | 0, 1 | meta: where the root is, how many pages there are; the one of the later transaction counts |
//! | branch | first key of each page below, and its number |
//! | leaf | keys and values; a bucket is a value: its root's page, or, if it is small, a page of its own |
//!
//! A page that is longer than the file's page size is followed by as many others as it needs. Numbers are little-endian.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::JoinHandle;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// There is no list of free pages: who opens the file looks for them.
const NO_FREE_LIST: u64 = u64::MAX;
const HEADER: usize = 16;
const ELEMENT: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
/// Of a leaf's element: its value is a bucket.
const BUCKET: u32 = 1;
/// A meta page's bytes that its checksum is of.
const META_BYTES: usize = 56;
/// Pages are filled up to this: long ones, since values of some thousand bytes leave gaps in short ones.
const LEAF_BYTES: usize = 64 << 10;
/// Bytes that go to the disk at once.
const SYNCED: u64 = 32 << 20;
/// No tree is deeper.
const DEEPEST: usize = 32;

/// A file that is not as this expects it.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a file of bbolt of version 2, or damaged ({0})")]
    Damaged(&'static str),
}

/// A bucket that was read: keys and values in order. Buckets within it are not followed, etcd has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub name: Vec<u8>,
    pub sequence: u64,
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a file holds.
#[derive(Debug)]
pub struct Content {
    pub page_size: usize,
    /// The last transaction.
    pub transaction: u64,
    pub buckets: Vec<Bucket>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BoltError> {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or(BoltError::Damaged("a page is cut short"))
}

fn short(bytes: &[u8], at: usize) -> Result<u16, BoltError> {
    Ok(u16::from_le_bytes(number(bytes, at)?))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BoltError> {
    Ok(u32::from_le_bytes(number(bytes, at)?))
}

fn long(bytes: &[u8], at: usize) -> Result<u64, BoltError> {
    Ok(u64::from_le_bytes(number(bytes, at)?))
}

/// FNV-1a of 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

fn meta(file: &File, at: u64) -> Option<Meta> {
    let mut meta = [0; META_BYTES + 8];
    file.read_exact_at(&mut meta, at + HEADER as u64).ok()?;
    let sound = word(&meta, 0).ok()? == MAGIC && word(&meta, 4).ok()? == VERSION && long(&meta, META_BYTES).ok()? == checksum(&meta[..META_BYTES]);
    let page_size = word(&meta, 8).ok()? as usize;
    (sound && page_size.is_power_of_two() && page_size >= 512).then_some(Meta { page_size, root: long(&meta, 16).ok()?, transaction: long(&meta, 48).ok()? })
}

/// Takes key, value and kind of each entry of a tree, in order.
type Take<'a> = dyn FnMut(&[u8], &[u8], u32) -> Result<(), BoltError> + 'a;

struct Reader {
    file: File,
    size: u64,
    page_size: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<(Reader, Meta), BoltError> {
        let file = File::open(path)?;
        let sizes = (9..=16).map(|bits| 1u64 << bits);
        let metas = std::iter::once(0).chain(sizes).filter_map(|at| meta(&file, at));
        let meta = metas.max_by_key(|m| m.transaction).ok_or(BoltError::Damaged("no page says where the others are"))?;
        Ok((Reader { size: file.metadata()?.len(), page_size: meta.page_size as u64, file }, meta))
    }

    fn page(&self, number: u64) -> Result<Vec<u8>, BoltError> {
        let missing = BoltError::Damaged("a page is not there");
        let Some(at) = number.checked_mul(self.page_size).filter(|at| at.saturating_add(self.page_size) <= self.size) else { return Err(missing) };
        let mut head = [0; HEADER];
        self.file.read_exact_at(&mut head, at)?;
        let length = (u64::from(word(&head, 12)?) + 1) * self.page_size;
        if at + length > self.size {
            return Err(missing);
        }
        let mut page = vec![0; length as usize];
        self.file.read_exact_at(&mut page, at)?;
        Ok(page)
    }

    fn walk(&self, page: &[u8], depth: usize, take: &mut Take<'_>) -> Result<(), BoltError> {
        let (flags, count) = (short(page, 8)?, short(page, 10)? as usize);
        if depth > DEEPEST || !matches!(flags, BRANCH | LEAF) {
            return Err(BoltError::Damaged("a page of another kind than expected"));
        }
        for at in (0..count).map(|i| HEADER + i * ELEMENT) {
            if flags == BRANCH {
                self.walk(&self.page(long(page, at + 8)?)?, depth + 1, take)?;
                continue;
            }
            let (kind, pos, key, value) = (word(page, at)?, word(page, at + 4)? as usize, word(page, at + 8)? as usize, word(page, at + 12)? as usize);
            let data = page.get(at + pos..at + pos + key + value).ok_or(BoltError::Damaged("an entry is cut short"))?;
            take(&data[..key], &data[key..], kind)?;
        }
        Ok(())
    }

    /// The entries of the bucket that has this value.
    fn entries(&self, bucket: &[u8], take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BoltError> {
        let root = long(bucket, 0)?;
        let page = if root == 0 { bucket.get(16..).unwrap_or_default().to_vec() } else { self.page(root)? };
        self.walk(&page, 0, &mut |key, value, kind| {
            if kind == BUCKET {
                return Err(BoltError::Damaged("a bucket in a bucket"));
            }
            take(key, value);
            Ok(())
        })
    }

    /// Names and values of all buckets.
    fn buckets(&self, root: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>, BoltError> {
        let mut found = Vec::new();
        self.walk(&self.page(root)?, 0, &mut |name, value, kind| {
            if kind != BUCKET {
                return Err(BoltError::Damaged("an entry outside of all buckets"));
            }
            found.push((name.to_vec(), value.to_vec()));
            Ok(())
        })?;
        Ok(found)
    }
}

/// Reads a file whole; for small ones, that nobody has open.
pub fn read(path: &Path) -> Result<Content, BoltError> {
    let (reader, meta) = Reader::open(path)?;
    let mut buckets = Vec::new();
    for (name, value) in reader.buckets(meta.root)? {
        let mut bucket = Bucket { name, sequence: long(&value, 8)?, entries: Vec::new() };
        reader.entries(&value, &mut |key, value| bucket.entries.push((key.to_vec(), value.to_vec())))?;
        buckets.push(bucket);
    }
    Ok(Content { page_size: meta.page_size, transaction: meta.transaction, buckets })
}

/// Reads the entries of one bucket, in order.
pub fn read_bucket(path: &Path, name: &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<(), BoltError> {
    let (reader, meta) = Reader::open(path)?;
    let buckets = reader.buckets(meta.root)?;
    let bucket = buckets.iter().find(|(found, _)| found == name).ok_or(BoltError::Damaged("a bucket is not there"))?;
    reader.entries(&bucket.1, &mut take)
}

/// A file in the making.
pub struct Writer {
    file: BufWriter<File>,
    page_size: usize,
    /// The number of the next page.
    next: u64,
    /// What is written goes to the disk meanwhile, in a thread.
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// The page from which on none has gone there.
    unsynced: u64,
}

/// The leaves of a bucket whose entries come one by one.
#[derive(Default)]
pub struct Tree {
    page: Page,
    /// First key and page of each leaf that is written.
    below: Vec<(Vec<u8>, u64)>,
}

/// Elements, and the keys and values that they are of.
#[derive(Default)]
struct Page {
    /// Where key and value begin, and how long they are.
    elements: Vec<(usize, usize, usize)>,
    data: Vec<u8>,
}

impl Page {
    fn size(&self) -> usize {
        HEADER + self.elements.len() * ELEMENT + self.data.len()
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.elements.push((self.data.len(), key.len(), value.len()));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn first(&self) -> Vec<u8> {
        self.elements.first().map(|(at, key, _)| self.data[*at..at + key].to_vec()).unwrap_or_default()
    }

    /// As a leaf; `kind` is of all of its elements.
    fn leaf(&self, kind: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        for (i, (at, key, value)) in self.elements.iter().enumerate() {
            let pos = (self.elements.len() - i) * ELEMENT + at;
            [kind, pos as u32, *key as u32, *value as u32].iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        out.extend_from_slice(&self.data);
        out
    }
}

impl Writer {
    /// Begins a file; one that is there is replaced.
    pub fn create(path: &Path, page_size: usize) -> io::Result<Writer> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.seek(SeekFrom::Start(2 * page_size as u64))?;
        Ok(Writer { file: BufWriter::with_capacity(1 << 20, file), page_size, next: 2, syncing: None, unsynced: 2 })
    }

    /// Bytes that the file will have, if nothing follows.
    pub fn size(&self) -> u64 {
        self.next * self.page_size as u64
    }

    /// Adds an entry; keys come in order, each once.
    pub fn put(&mut self, tree: &mut Tree, key: &[u8], value: &[u8]) -> io::Result<()> {
        let more = ELEMENT + key.len() + value.len();
        if !tree.page.elements.is_empty() && tree.page.size() + more > LEAF_BYTES {
            self.flush(tree)?;
        }
        tree.page.add(key, value);
        Ok(())
    }

    fn flush(&mut self, tree: &mut Tree) -> io::Result<()> {
        let page = std::mem::take(&mut tree.page);
        let number = self.page(LEAF, page.elements.len(), &page.leaf(0))?;
        tree.below.push((page.first(), number));
        Ok(())
    }

    /// Writes what is left of a bucket; the page at which it begins.
    pub fn finish_tree(&mut self, mut tree: Tree) -> io::Result<u64> {
        if tree.below.is_empty() || !tree.page.elements.is_empty() {
            self.flush(&mut tree)?;
        }
        let mut level = tree.below;
        while level.len() > 1 {
            let (mut above, mut from) = (Vec::new(), 0);
            while from < level.len() {
                let (mut bytes, mut to) = (HEADER, from);
                // Two at least, or it would have no end.
                while to < level.len() && (to < from + 2 || bytes + ELEMENT + level[to].0.len() <= self.page_size) {
                    bytes += ELEMENT + level[to].0.len();
                    to += 1;
                }
                let number = self.branch(&level[from..to])?;
                above.push((level[from].0.clone(), number));
                from = to;
            }
            level = above;
        }
        Ok(level[0].1)
    }

    fn branch(&mut self, below: &[(Vec<u8>, u64)]) -> io::Result<u64> {
        let (mut out, mut keys) = (Vec::new(), Vec::new());
        for (i, (key, number)) in below.iter().enumerate() {
            let pos = (below.len() - i) * ELEMENT + keys.len();
            [pos as u32, key.len() as u32].iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(number.to_le_bytes());
            keys.extend_from_slice(key);
        }
        out.extend(keys);
        self.page(BRANCH, below.len(), &out)
    }

    fn page(&mut self, flags: u16, count: usize, body: &[u8]) -> io::Result<u64> {
        let number = self.next;
        let pages = (HEADER + body.len()).div_ceil(self.page_size);
        self.file.write_all(&header(number, flags, count, pages - 1)?)?;
        self.file.write_all(body)?;
        let rest = pages * self.page_size - HEADER - body.len();
        self.file.write_all(&vec![0; rest])?;
        self.next += pages as u64;
        if (self.next - self.unsynced) * self.page_size as u64 >= SYNCED && self.syncing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.synced()?;
            self.file.flush()?;
            let file = self.file.get_ref().try_clone()?;
            self.syncing = Some(std::thread::Builder::new().name("store-import".into()).spawn(move || file.sync_data())?);
            self.unsynced = self.next;
        }
        Ok(number)
    }

    /// Waits for what is on its way to the disk.
    fn synced(&mut self) -> io::Result<()> {
        match self.syncing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(done) => done.unwrap_or_else(|_| Err(io::Error::other("a thread ended early"))),
        }
    }

    /// Completes the file, durably: buckets by name, with the page of each or what it holds if that is little. Returns
    /// the file's size.
    pub fn finish(mut self, mut buckets: Vec<(Bucket, Option<u64>)>, transaction: u64) -> io::Result<u64> {
        buckets.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let mut root = Page::default();
        for (bucket, written) in buckets {
            let at = match written {
                Some(page) => page,
                None if bucket.entries.is_empty() => 0,
                None => {
                    let mut tree = Tree::default();
                    for (key, value) in &bucket.entries {
                        self.put(&mut tree, key, value)?;
                    }
                    self.finish_tree(tree)?
                }
            };
            let mut value = [at.to_le_bytes(), bucket.sequence.to_le_bytes()].concat();
            if at == 0 {
                // An empty page within the value.
                value.extend(header(0, LEAF, 0, 0)?);
            }
            root.add(&bucket.name, &value);
        }
        let root = self.page(LEAF, root.elements.len(), &root.leaf(BUCKET))?;
        let size = self.size();
        self.synced()?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        // All of it before what says that it is there.
        file.sync_data()?;
        for number in 0..2u64 {
            // The place tells whose turn it is: even or odd transactions.
            let transaction = (transaction | 1) + 1 + number;
            let mut meta = Vec::with_capacity(META_BYTES + 8);
            [MAGIC, VERSION, self.page_size as u32, 0].iter().for_each(|n| meta.extend(n.to_le_bytes()));
            [root, 0, NO_FREE_LIST, self.next, transaction].iter().for_each(|n| meta.extend(n.to_le_bytes()));
            meta.extend(checksum(&meta).to_le_bytes());
            file.seek(SeekFrom::Start(number * self.page_size as u64))?;
            file.write_all(&header(number, META, 0, 0)?)?;
            file.write_all(&meta)?;
        }
        file.set_len(size)?;
        file.sync_all()?;
        Ok(size)
    }
}

fn header(number: u64, flags: u16, count: usize, overflow: usize) -> io::Result<[u8; HEADER]> {
    let many = |_| io::Error::other("too much for one page");
    let (count, overflow) = (u16::try_from(count).map_err(many)?, u32::try_from(overflow).map_err(many)?);
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&number.to_le_bytes());
    out[8..10].copy_from_slice(&flags.to_le_bytes());
    out[10..12].copy_from_slice(&count.to_le_bytes());
    out[12..].copy_from_slice(&overflow.to_le_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, entries: impl IntoIterator<Item = (String, usize)>) -> Bucket {
        let entries = entries.into_iter().map(|(key, size)| (key.into_bytes(), vec![b'x'; size])).collect();
        Bucket { name: name.into(), sequence: 7, entries }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        // Short and long values, more than one level of branches, and nothing at all.
        let buckets = [
            bucket("big", (0..3000).map(|n| (format!("key {n:06} of some length, so that branches are full soon"), n % 700 * 9))),
            bucket("empty", []),
            bucket("huge", [("a".into(), 3 << 20), ("b".into(), 1)]),
            bucket("small", [("a".into(), 1), ("b".into(), 0)]),
        ];
        for page_size in [4096, 16384] {
            let mut writer = Writer::create(&path, page_size).unwrap();
            let mut tree = Tree::default();
            for (key, value) in &buckets[0].entries {
                writer.put(&mut tree, key, value).unwrap();
            }
            let at = writer.finish_tree(tree).unwrap();
            // In any order.
            let given = [3, 0, 2, 1].map(|i| (Bucket { entries: if i == 0 { Vec::new() } else { buckets[i].entries.clone() }, ..buckets[i].clone() }, (i == 0).then_some(at)));
            let size = writer.finish(given.to_vec(), 8).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
            let found = read(&path).unwrap();
            assert_eq!((found.page_size, found.transaction % 2, found.buckets.as_slice()), (page_size, 1, buckets.as_slice()));
            assert!(found.transaction > 8);
            let mut at = buckets[0].entries.iter();
            read_bucket(&path, b"big", |key, value| assert!(at.next().is_some_and(|(k, v)| k == key && v == value))).unwrap();
            assert!(at.next().is_none() && read_bucket(&path, b"none", |_, _| {}).is_err());
        }
        // The other meta page does alone; without both, or with a cut, it is told.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16384 + 30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap().buckets, buckets);
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(read(&path).unwrap_err(), BoltError::Damaged(_)));
        bytes[30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("no page says"));
    }
}
