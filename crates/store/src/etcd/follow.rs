//! What etcd's watches send becomes batches: one for each revision, whole, in order, none left out.
//!
//! The engine watches all keys, so every revision has an event, and a gap can be seen. A watch starts one revision
//! early, and what is known is dropped: etcd ends a watch only when it starts before the compacted revision, and of
//! that revision itself the deletions are gone.

use proto::etcd as pb;
use proto::etcd::watch_request::RequestUnion;
use proto::etcd::{WatchRequest, WatchResponse, method};
use proto::grpc::{Code, Requests, Status, Streaming};
use tokio::time::Instant;

use super::convert;
use super::pool::Link;
use crate::watch::Batch;

/// Why a watch cannot go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The revisions that come next are compacted; which revision is, if it was told.
    Compacted(Option<i64>),
    /// This is not the etcd, or not the state of it, that was followed before.
    Lost,
    /// The connection, or etcd. A new watch may do better.
    Failed(Status),
}

impl From<Status> for Broken {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// Makes batches of responses.
#[derive(Debug)]
pub(super) struct Assembler {
    /// The last revision that was given out whole.
    pub last: i64,
    /// Changes of the next revision, of which more may come.
    open: Option<Batch>,
}

impl Assembler {
    pub fn new(last: i64) -> Self {
        Self { last, open: None }
    }

    /// Takes a response; gives the revisions that are whole now.
    pub fn take(&mut self, response: WatchResponse) -> Result<Vec<Batch>, Broken> {
        if response.compact_revision > 0 {
            return Err(Broken::Compacted(Some(response.compact_revision)));
        }
        if response.canceled {
            return Err(Broken::Failed(Status::new(Code::Unavailable, format!("etcd ended the watch: {}", response.cancel_reason))));
        }
        let mut whole = Vec::new();
        for event in response.events {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if revision <= self.last {
                continue;
            }
            let event = convert::event(event).ok_or(Broken::Compacted(None))?;
            match &mut self.open {
                Some(batch) if batch.revision == revision => batch.events.push(event),
                open => {
                    if let Some(before) = open.replace(Batch { revision, events: vec![event] }) {
                        whole.push(before);
                    }
                }
            }
        }
        // Fragments of a response may part a revision; responses do not.
        if !response.fragment {
            whole.extend(self.open.take());
        }
        for batch in &whole {
            if batch.revision != self.last + 1 {
                // Nothing but compaction removes a revision.
                return Err(Broken::Compacted(None));
            }
            self.last = batch.revision;
        }
        Ok(whole)
    }
}

/// A watch of all keys.
pub(super) struct Follow {
    responses: Streaming<WatchResponse>,
    assembler: Assembler,
    /// Dropped with this: etcd takes that for the end.
    _requests: Requests<WatchRequest>,
}

impl Follow {
    /// Watches what comes after revision `last`. Also tells the member's revision and cluster.
    pub async fn start(link: &Link, last: i64, deadline: Instant) -> Result<(Self, i64, u64), Broken> {
        let create = pb::WatchCreateRequest {
            key: vec![0],
            range_end: vec![0],
            start_revision: last.max(1),
            prev_kv: true,
            fragment: true,
            ..Default::default()
        };
        let begin = async {
            let (requests, call) = link.channel.stream::<WatchRequest, WatchResponse>(method::WATCH);
            requests.send(&WatchRequest { request_union: Some(RequestUnion::Create(create)) }).await?;
            let mut responses = call.await?;
            let Some(created) = responses.message().await? else {
                return Err(Broken::Failed(Status::new(Code::Unavailable, "etcd ended the watch")));
            };
            let revision = convert::revision(&created.header);
            let cluster = created.header.as_ref().map_or(0, |header| header.cluster_id);
            let mut assembler = Assembler::new(last);
            assembler.take(created)?;
            Ok((Self { responses, assembler, _requests: requests }, revision, cluster))
        };
        let late = || Broken::Failed(Status::new(Code::DeadlineExceeded, "etcd did not begin the watch in time"));
        tokio::time::timeout_at(deadline, begin).await.unwrap_or_else(|_| Err(late()))
    }

    /// The next revisions; may be none.
    pub async fn next(&mut self) -> Result<Vec<Batch>, Broken> {
        match self.responses.message().await? {
            Some(response) => self.assembler.take(response),
            None => Err(Broken::Failed(Status::new(Code::Unavailable, "etcd ended the watch"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    fn put(key: &str, revision: i64, version: i64) -> pb::Event {
        let kv = |mod_revision, version| {
            Some(pb::KeyValue { key: key.into(), mod_revision, version, create_revision: revision + 1 - version, ..Default::default() })
        };
        let prev_kv = if version > 1 { kv(revision - 1, version - 1) } else { None };
        pb::Event { r#type: 0, kv: kv(revision, version), prev_kv }
    }

    fn response(events: Vec<pb::Event>, fragment: bool) -> WatchResponse {
        WatchResponse { events, fragment, ..Default::default() }
    }

    fn shown(batches: Vec<Batch>) -> Vec<(i64, String)> {
        let keys = |b: &Batch| b.events.iter().map(|e: &Event| String::from_utf8_lossy(e.key())).collect::<Vec<_>>().join(",");
        batches.iter().map(|b| (b.revision, keys(b))).collect()
    }

    #[test]
    fn what_is_known_is_dropped() {
        let mut assembler = Assembler::new(4);
        let found = assembler.take(response(vec![put("a", 4, 1), put("b", 5, 1), put("c", 5, 1), put("a", 6, 3)], false));
        assert_eq!(shown(found.unwrap()), [(5, "b,c".into()), (6, "a".into())]);
        assert_eq!(assembler.last, 6);
        assert!(assembler.take(response(vec![], false)).unwrap().is_empty());
    }

    #[test]
    fn a_revision_in_fragments_stays_whole() {
        let mut assembler = Assembler::new(4);
        assert_eq!(shown(assembler.take(response(vec![put("a", 5, 1), put("b", 6, 1)], true)).unwrap()), [(5, "a".into())]);
        assert!(assembler.take(response(vec![put("c", 6, 1)], true)).unwrap().is_empty());
        let found = assembler.take(response(vec![put("d", 6, 1), put("e", 7, 1)], false)).unwrap();
        assert_eq!(shown(found), [(6, "b,c,d".into()), (7, "e".into())]);
    }

    #[test]
    fn a_gap_is_a_compaction() {
        let broken = Assembler::new(4).take(response(vec![put("a", 6, 1)], false));
        assert!(matches!(broken, Err(Broken::Compacted(None))), "{broken:?}");
        // What a change replaced is gone.
        let mut change = put("a", 5, 2);
        change.prev_kv = None;
        assert!(matches!(Assembler::new(4).take(response(vec![change], false)), Err(Broken::Compacted(None))));
        let told = WatchResponse { compact_revision: 9, canceled: true, ..Default::default() };
        assert!(matches!(Assembler::new(4).take(told), Err(Broken::Compacted(Some(9)))));
        let ended = WatchResponse { canceled: true, ..Default::default() };
        assert!(matches!(Assembler::new(4).take(ended), Err(Broken::Failed(_))));
    }
}
