//! What the cluster's owners configured admission with, compiled when it changed and not when it is asked.

use std::sync::Arc;

use apiserver::Ctx;
use apiserver::types::Resource;
use parking_lot::RwLock;

/// What was made of all objects of some resources, kept while none of them changes.
pub(super) struct Configured<T> {
    kept: RwLock<Option<Kept<T>>>,
}

struct Kept<T> {
    versions: Vec<u64>,
    all: Arc<Vec<T>>,
}

impl<T> Default for Configured<T> {
    fn default() -> Self {
        Self { kept: RwLock::new(None) }
    }
}

impl<T> Configured<T> {
    /// What the objects of these resources come to now. `compile` gets what they came to before.
    pub fn get(&self, ctx: &Ctx, resources: &[&Resource], compile: impl FnOnce(&[T]) -> Vec<T>) -> Arc<Vec<T>> {
        let reader = &ctx.backend.reader;
        // Read before the objects: what changes meanwhile is looked at again.
        let versions = resources.iter().map(|r| reader.version(r));
        let mut before = Arc::default();
        if let Some(kept) = &*self.kept.read() {
            if versions.clone().eq(kept.versions.iter().copied()) {
                return kept.all.clone();
            }
            before = kept.all.clone();
        }
        let versions = versions.collect();
        let all = Arc::new(compile(&before));
        *self.kept.write() = Some(Kept { versions, all: all.clone() });
        all
    }
}
