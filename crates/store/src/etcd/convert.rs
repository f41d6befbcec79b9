//! Between the contract's types and etcd's messages. Pure.

use bytes::Bytes;
use proto::etcd as pb;
use proto::etcd::request_op::Request;
use proto::etcd::response_op::Response;

use crate::{Event, KeyValue, Op, Txn, TxnResponse};

pub(super) fn key_value(kv: pb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: Bytes::from(kv.value),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

/// The revision of a response's header.
pub(super) fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// A transaction; `leases` are those of its puts that expire, in their order.
pub(super) fn txn(txn: &Txn, leases: &[i64]) -> pb::TxnRequest {
    let mut leases = leases.iter().copied();
    let compare = txn.compare.iter().map(|compare| pb::Compare {
        result: pb::CompareResult::Equal as i32,
        target: pb::CompareTarget::Mod as i32,
        key: compare.key.clone(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(compare.mod_revision)),
        range_end: Vec::new(),
    });
    let success = txn.then.iter().map(|op| match op {
        Op::Put { key, value, ttl_seconds } => Request::Put(pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease: ttl_seconds.and_then(|_| leases.next()).unwrap_or(0),
            prev_kv: true,
            ..Default::default()
        }),
        Op::Delete { key } => Request::DeleteRange(pb::DeleteRangeRequest { key: key.clone(), prev_kv: true, ..Default::default() }),
    });
    let failure = txn.compare.iter().map(|c| Request::Range(pb::RangeRequest { key: c.key.clone(), ..Default::default() }));
    let op = |request| pb::RequestOp { request: Some(request) };
    pb::TxnRequest { compare: compare.collect(), success: success.map(op).collect(), failure: failure.map(op).collect() }
}

/// What a transaction did.
pub(super) fn txn_response(response: pb::TxnResponse) -> TxnResponse {
    let revision = revision(&response.header);
    let versions = response.responses.into_iter().map(|op| {
        let kv = match op.response {
            Some(Response::Range(range)) => range.kvs.into_iter().next(),
            Some(Response::Put(put)) => put.prev_kv,
            Some(Response::DeleteRange(delete)) => delete.prev_kvs.into_iter().next(),
            None => None,
        };
        kv.map(key_value)
    });
    let versions = versions.collect();
    let (current, previous) = if response.succeeded { (Vec::new(), versions) } else { (versions, Vec::new()) };
    TxnResponse { succeeded: response.succeeded, revision, current, previous }
}

/// A change; `None` if what it replaced has been compacted, and so cannot be told.
pub(super) fn event(event: pb::Event) -> Option<Event> {
    let deleted = event.r#type == pb::EventType::Delete as i32;
    let kv = event.kv?;
    let prev = event.prev_kv.map(key_value);
    if deleted {
        prev.as_ref()?;
        return Some(Event::Delete { key: kv.key, revision: kv.mod_revision, prev });
    }
    if prev.is_none() && kv.version > 1 {
        return None;
    }
    Some(Event::Put { kv: key_value(kv), prev })
}
