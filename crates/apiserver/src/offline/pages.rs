//! Reads everything at one revision, a page at a time.
use std::sync::Arc;

use store::{KeyValue, Steps, Store, Took, prefix_end};

use super::{ALL, FLEETING};

/// All pages of a store, in order.
pub(crate) struct Pages {
    store: Arc<dyn Store>,
    steps: Steps,
    /// Whether all pages are of one revision.
    same: bool,
    /// Of the first page.
    pub revision: i64,
}

impl Pages {
    pub fn new(store: Arc<dyn Store>) -> Pages {
        let steps = Steps::new(ALL, prefix_end(ALL.as_bytes()), store.is_shared());
        Pages { store, steps, same: true, revision: 0 }
    }

    /// Each page as it is when it is read: for what takes longer than history is kept.
    pub fn moving(store: Arc<dyn Store>) -> Pages {
        Pages { same: false, ..Pages::new(store) }
    }

    /// The next page, which may be empty; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, store::Error> {
        let Some(request) = self.steps.next() else { return Ok(None) };
        let page = self.store.range(request.at(if self.same { self.revision } else { 0 })).await?;
        if self.revision == 0 {
            self.revision = page.revision;
        }
        self.steps.took(&Took { kvs: &page.kvs, there: page.count, more: page.more });
        Ok(Some(page.kvs.into_iter().filter(|kv| !kv.key.starts_with(FLEETING)).collect()))
    }
}
