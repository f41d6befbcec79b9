//! Moves etcd on to a higher revision. Revisions come one by one, so each one that is passed over costs a write.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::etcd as pb;
use proto::etcd::method;
use proto::grpc::{Code, Status as Failure};
use tokio::task::JoinSet;

use super::lease::Leases;
use super::pool::{Pool, Repeat};
use super::{SCRATCH, Shared, convert};
use crate::Txn;

/// Writes that are under way at once.
const WRITES: usize = 256;
/// After so many revisions, progress is told.
const TOLD: i64 = 100_000;

async fn write(pool: &Pool, limit: Duration, txn: &Txn) -> Result<i64, Failure> {
    // Twice is as good as once.
    let done: pb::TxnResponse = pool.call(method::TXN, &convert::txn(txn, &[]), Repeat::Always, limit).await?;
    Ok(convert::revision(&done.header))
}

/// Goes to a revision above `beyond`, and returns it.
pub(super) async fn advance(pool: &Arc<Pool>, limit: Duration, beyond: i64) -> Result<i64, Failure> {
    let request = pb::RangeRequest { key: vec![0], count_only: true, ..Default::default() };
    let found: pb::RangeResponse = pool.call(method::RANGE, &request, Repeat::Always, limit).await?;
    let mut revision = convert::revision(&found.header);
    let (mut told, mut writes, mut begun) = (revision, JoinSet::new(), revision);
    while begun < beyond || !writes.is_empty() {
        while begun < beyond && writes.len() < WRITES {
            let pool = pool.clone();
            writes.spawn(async move { write(&pool, limit, &Txn::put(SCRATCH, "")).await });
            begun += 1;
        }
        match writes.join_next().await {
            Some(Ok(done)) => revision = revision.max(done?),
            Some(Err(_)) => return Err(Failure::new(Code::Internal, "a task ended early")),
            None => break,
        }
        if revision - told >= TOLD {
            told = revision;
            tracing::info!(revision, to = beyond, "etcd is moved on to a higher revision");
        }
    }
    write(pool, limit, &Txn::put(SCRATCH, "")).await?;
    write(pool, limit, &Txn::delete(SCRATCH)).await
}

/// Passes over all revisions that were seen here and are lost.
pub(super) async fn pass(shared: &Arc<Shared>) -> Result<(), Failure> {
    let seen = shared.feed.revision();
    let revision = advance(&shared.pool, shared.timeout, seen).await?;
    let request = pb::CompactionRequest { revision, physical: false };
    let compacted: Result<pb::CompactionResponse, _> = shared.pool.call(method::COMPACT, &request, Repeat::Always, shared.timeout).await;
    match compacted {
        Ok(_) => {}
        // Another server was faster.
        Err(failure) if failure.message == "etcdserver: mvcc: required revision has been compacted" => {}
        Err(failure) => return Err(failure),
    }
    // Leases are those of another time.
    *shared.leases.lock() = Leases::default();
    shared.compacted.fetch_max(revision, Ordering::SeqCst);
    shared.feed.forget(revision);
    shared.feed.skip_to(revision);
    shared.went_back.store(false, Ordering::Relaxed);
    *shared.error.lock() = None;
    tracing::warn!(revision, seen, "etcd goes on above all that was seen before; everything is read anew");
    Ok(())
}
