//! Compaction of the store's history, in turns with other servers of the same store.
//!
//! The turn is upstream's: whoever finds the key `compact_rev_key` as it was left an interval ago writes the revision
//! into it that was current then, and compacts there. Who finds another's writing waits for another interval.
use store::{Store, Txn};

const KEY: &str = "compact_rev_key";

pub(crate) struct Turns {
    /// Whether there may be other servers.
    shared: bool,
    /// The key's version when it was seen last; 0: absent.
    seen: i64,
    /// The revision that was current then.
    revision: i64,
}

impl Turns {
    pub fn new(shared: bool) -> Turns {
        Turns { shared, seen: 0, revision: 0 }
    }

    /// To be taken once an interval. Returns the compacted revision as far as it is known, 0 if it is not.
    pub async fn take(&mut self, store: &dyn Store) -> Result<i64, store::Error> {
        let now = if self.shared {
            let turn = store.txn(Txn::put(KEY, self.revision.to_string()).when(KEY, self.seen)).await?;
            if !turn.succeeded {
                let other = turn.current.into_iter().flatten().next();
                self.seen = other.as_ref().map_or(0, |kv| kv.mod_revision);
                self.revision = turn.revision;
                return Ok(other.and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok()).unwrap_or(0));
            }
            self.seen = turn.revision;
            turn.revision
        } else {
            store.revision().await?
        };
        let before = std::mem::replace(&mut self.revision, now);
        if before == 0 {
            return Ok(0);
        }
        match store.compact(before).await {
            // Somebody else was first; there is nothing left to do.
            Ok(()) | Err(store::Error::Compacted { .. }) => Ok(before),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{RangeRequest, memory};

    async fn key(store: &dyn Store) -> (i64, String) {
        let kv = store.range(RangeRequest::key(KEY)).await.unwrap().kvs.remove(0);
        (kv.version, String::from_utf8(kv.value.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn servers_take_turns() {
        let store = memory::new();
        let (mut one, mut other) = (Turns::new(true), Turns::new(true));
        // Nothing is known of before: nobody compacts.
        assert_eq!(one.take(&*store).await.unwrap(), 0);
        assert_eq!(other.take(&*store).await.unwrap(), 0);
        assert_eq!(key(&*store).await, (1, "0".into()));
        for n in 0..5 {
            store.txn(Txn::put("/registry/a", n.to_string())).await.unwrap();
        }
        // The first comes first again; the other one learns what it did, and goes on when it is gone.
        assert_eq!(one.take(&*store).await.unwrap(), 2);
        assert_eq!(other.take(&*store).await.unwrap(), 2);
        assert_eq!((key(&*store).await, store.status().await.unwrap().compacted), ((2, "2".into()), 2));
        store.txn(Txn::put("/registry/a", "x")).await.unwrap();
        assert_eq!(other.take(&*store).await.unwrap(), 8);
        assert_eq!(one.take(&*store).await.unwrap(), 8);
        assert_eq!((key(&*store).await, store.status().await.unwrap().compacted), ((3, "8".into()), 8));
        // Someone has deleted it.
        store.txn(Txn::delete(KEY)).await.unwrap();
        assert_eq!(one.take(&*store).await.unwrap(), 0);
        assert_eq!(one.take(&*store).await.unwrap(), 11);
    }

    #[tokio::test]
    async fn a_store_of_ones_own_needs_no_turns() {
        let store = memory::new();
        let mut turns = Turns::new(false);
        store.txn(Txn::put("/registry/a", "x")).await.unwrap();
        assert_eq!(turns.take(&*store).await.unwrap(), 0);
        store.txn(Txn::put("/registry/a", "y")).await.unwrap();
        assert_eq!(turns.take(&*store).await.unwrap(), 2);
        assert_eq!(store.range(RangeRequest::key(KEY)).await.unwrap().count, 0);
    }
}
