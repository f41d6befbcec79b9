//! Makes room when etcd refuses writes because its quota is used up.
//!
//! etcd raises an alarm then, and refuses writes until someone disarms it; deletions and compaction still work. What
//! was deleted takes space until it is compacted and each member has rewritten its file. So this compacts, has one
//! member after the other do that, and disarms the alarm. If too little was deleted, the next write raises it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::etcd as pb;
use proto::etcd::method;
use proto::grpc::Status as Failure;

use super::pool::Repeat;
use super::Shared;

/// Rewriting the file of a member may take this long.
const REWRITE: Duration = Duration::from_secs(120);
/// The pause after an attempt, doubled up to the longest one while etcd stays full.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Waits for the lack of space and mends it, for ever.
pub(super) async fn make(shared: Arc<Shared>) {
    let mut pause = PAUSE;
    loop {
        // A longer time without an alarm means that the last attempt has helped.
        if tokio::time::timeout(LONGEST_PAUSE, shared.full.notified()).await.is_err() {
            pause = PAUSE;
            continue;
        }
        match once(&shared).await {
            Ok(disarmed) => tracing::warn!(disarmed, "etcd was full: it was compacted and defragmented, and alarms were disarmed"),
            Err(error) => tracing::error!(%error, "etcd is full, and no room could be made; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(shared: &Shared) -> Result<usize, Failure> {
    let found: pb::RangeResponse = {
        let request = pb::RangeRequest { key: vec![0], count_only: true, ..Default::default() };
        shared.call(method::RANGE, &request, Repeat::Always).await?
    };
    let revision = super::convert::revision(&found.header);
    let request = pb::CompactionRequest { revision, physical: true };
    // It may be compacted there already; whether that helped is seen at the next write.
    let compacted: Result<pb::CompactionResponse, _> = shared.call_within(method::COMPACT, &request, Repeat::Always, REWRITE).await;
    if compacted.is_ok() {
        shared.compacted.fetch_max(revision, Ordering::SeqCst);
        shared.feed.forget(revision);
    }
    for member in 0..shared.pool.len() {
        let Ok(link) = shared.pool.connect(member).await else { continue };
        let rewritten = link.channel.unary::<_, pb::DefragmentResponse>(method::DEFRAGMENT, &pb::DefragmentRequest {}, REWRITE).await;
        if let Err(status) = rewritten {
            tracing::warn!(%status, member, "a member of etcd could not be defragmented");
        }
    }
    let alarm = |action, member_id| pb::AlarmRequest { action: action as i32, member_id, alarm: pb::AlarmType::NoSpace as i32 };
    let raised: pb::AlarmResponse = shared.call(method::ALARM, &alarm(pb::AlarmAction::Get, 0), Repeat::Always).await?;
    let mut disarmed = 0;
    for member in raised.alarms.iter().filter(|a| a.alarm == pb::AlarmType::NoSpace as i32) {
        let _: pb::AlarmResponse = shared.call(method::ALARM, &alarm(pb::AlarmAction::Deactivate, member.member_id), Repeat::Always).await?;
        disarmed += 1;
    }
    Ok(disarmed)
}
