//! One cached object: its served bytes and what selectors need of it, computed when first asked for.
use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use api::table::Row;

use crate::object;

/// Bytes of other forms than JSON that are kept at once, of all entries; what comes beyond is made anew each time.
const KEEP: usize = 64 << 20;
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// A version of an object.
pub struct Entry {
    /// JSON as served: with resourceVersion.
    pub json: Bytes,
    pub revision: u64,
    /// Where the JSON goes on after kind and apiVersion.
    pub type_prefix: u32,
    /// Where the JSON of the metadata ends, once somebody has looked.
    metadata_end: AtomicU32,
    index: OnceLock<Index>,
    tree: Mutex<Weak<Value>>,
    views: Mutex<Option<Box<Views>>>,
    /// The protobuf message and the table row, kept while there is room for them.
    message: OnceLock<Box<[u8]>>,
    row: OnceLock<Box<Row>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (message, row) = self.other_forms();
        let kept = message.unwrap_or(0) + row.unwrap_or(0);
        if kept > 0 {
            KEPT.fetch_sub(kept, Ordering::Relaxed);
        }
    }
}

/// The same state as versions of a custom resource serve it, each under the version's id; `None` where that is no other.
type Views = Vec<(u64, Option<Arc<Entry>>)>;

/// How many versions' views are kept: definitions that change leave some behind.
const MAX_VIEWS: usize = 4;

/// What selectors look at.
#[derive(Default)]
pub struct Index {
    /// The labels map (Null without labels).
    pub labels: Value,
    /// Field labels and their values, of those that the kind knows.
    pub fields: Vec<(String, String)>,
}

impl Entry {
    pub fn new(stored: &[u8], revision: u64) -> Entry {
        Entry::from_served(object::splice(stored, revision), revision)
    }

    fn from_served(json: Bytes, revision: u64) -> Entry {
        Entry {
            type_prefix: object::type_prefix_len(&json) as u32,
            json,
            revision,
            metadata_end: AtomicU32::new(0),
            index: OnceLock::new(),
            tree: Mutex::new(Weak::new()),
            views: Mutex::new(None),
            message: OnceLock::new(),
            row: OnceLock::new(),
        }
    }

    /// The same state under the revision of its deletion.
    pub fn deleted_at(&self, revision: u64) -> Entry {
        Entry::from_served(object::resplice(&self.json, revision), revision)
    }

    /// An entry of an object that has its resourceVersion in it.
    pub fn of(object: &Value, revision: u64) -> Entry {
        Entry::from_served(object::encode(object).into(), revision)
    }

    /// The state as this version serves it, if it has been made already.
    pub fn view(self: &Arc<Entry>, version: u64) -> Option<Arc<Entry>> {
        let views = self.views.lock();
        let (_, view) = views.as_ref()?.iter().find(|(id, _)| *id == version)?;
        Some(view.clone().unwrap_or_else(|| self.clone()))
    }

    /// Keeps the state as a version serves it; `None` when it is this one.
    pub fn keep_view(&self, version: u64, view: Option<Arc<Entry>>) {
        let mut views = self.views.lock();
        let views = views.get_or_insert_default();
        if views.len() >= MAX_VIEWS {
            views.remove(0);
        }
        views.push((version, view));
    }

    /// The object as a tree, parsed anew (Null if the stored bytes are no JSON, which the feed has excluded).
    pub fn parse(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The object as a tree, shared with others that use it at the same time.
    pub fn tree(&self) -> Arc<Value> {
        self.tree_or_parse().0
    }

    /// The tree, and whether it had to be parsed for this call.
    pub fn tree_or_parse(&self) -> (Arc<Value>, bool) {
        let mut tree = self.tree.lock();
        if let Some(value) = tree.upgrade() {
            return (value, false);
        }
        let value = Arc::new(self.parse());
        *tree = Arc::downgrade(&value);
        (value, true)
    }

    /// The protobuf message, as `make` makes it.
    pub fn message<E>(&self, make: impl FnOnce(&Value) -> Result<Vec<u8>, E>) -> Result<Cow<'_, [u8]>, E> {
        if let Some(message) = self.message.get() {
            return Ok(Cow::Borrowed(message));
        }
        let made = make(&self.parse())?;
        if KEPT.load(Ordering::Relaxed) >= KEEP {
            return Ok(Cow::Owned(made));
        }
        let kept = self.message.get_or_init(|| {
            KEPT.fetch_add(made.len(), Ordering::Relaxed);
            made.into()
        });
        Ok(Cow::Borrowed(kept))
    }

    /// Whether [`Entry::write_row`] can be asked.
    pub fn can_have_row(&self) -> bool {
        self.row.get().is_some() || Row::can_be_made(&self.json)
    }

    /// Appends the row of a table, made by `make`, as it is at a time.
    pub fn write_row(&self, make: impl FnOnce(&Value) -> Row, now: jiff::Timestamp, out: &mut Vec<u8>) {
        if self.row.get().is_none() && KEPT.load(Ordering::Relaxed) >= KEEP {
            return make(&self.parse()).write(now, out);
        }
        let row = self.row.get_or_init(|| {
            let row = make(&self.parse());
            KEPT.fetch_add(row.size(), Ordering::Relaxed);
            Box::new(row)
        });
        row.write(now, out);
    }

    /// Bytes of the protobuf message and of the table row, where they are kept.
    pub fn other_forms(&self) -> (Option<usize>, Option<usize>) {
        (self.message.get().map(|m| m.len()), self.row.get().map(|r| r.size()))
    }

    /// `{…}` of the metadata, as it stands in the JSON.
    pub fn metadata(&self) -> &[u8] {
        let start = object::metadata_start(&self.json, self.type_prefix as usize);
        let end = match self.metadata_end.load(Ordering::Relaxed) as usize {
            0 => {
                let end = object::object_end(&self.json, start);
                self.metadata_end.store(end as u32, Ordering::Relaxed);
                end
            }
            end => end,
        };
        self.json.get(start..end).unwrap_or(b"{}")
    }

    /// The index, made on first use by `make`.
    pub fn indexed(&self, make: impl FnOnce(&Value) -> Index) -> &Index {
        self.index.get_or_init(|| make(&self.tree()))
    }
}
