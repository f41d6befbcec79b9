//! How keys, versions, history and deadlines are laid out in the database's one keyspace. No I/O.
//!
//! | key | value |
//! |---|---|
//! | `k` key revision | a version: tombstone flag, create revision, version, value |
//! | `l` revision index | a change: revision of the version it replaced (0: none), key |
//! | `t` deadline key | the revision that expires |
//! | `m` name | a number: `revision`, `compacted` |
//!
//! Numbers are big-endian, so they sort. A key is escaped, so that one that starts with another sorts
//! after all versions of the other.

use bytes::Bytes;

use crate::KeyValue;

pub const REVISION: &[u8] = b"mrevision";
pub const COMPACTED: &[u8] = b"mcompacted";
const VERSION_HEADER: usize = 17;

/// Appends `key` so that order is kept; a range's bound is this, a key has a terminator too.
fn escape(key: &[u8], out: &mut Vec<u8>) {
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
}

/// Takes a terminated key off the front; `None` if the bytes are not one.
fn unescape(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut key = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        match rest {
            [0, 0xff, tail @ ..] => {
                key.push(0);
                rest = tail;
            }
            [0, 1, tail @ ..] => return Some((key, tail)),
            [byte, tail @ ..] if *byte != 0 => {
                key.push(*byte);
                rest = tail;
            }
            _ => return None,
        }
    }
}

fn number(bytes: &[u8]) -> Option<i64> {
    bytes.try_into().ok().map(i64::from_be_bytes)
}

/// The bound of a range of versions: before all versions of `key`, after those of all smaller keys.
pub fn version_bound(key: &[u8]) -> Vec<u8> {
    let mut out = vec![b'k'];
    escape(key, &mut out);
    out
}

/// The key of a version.
pub fn version_key(key: &[u8], revision: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    out.push(b'k');
    escape(key, &mut out);
    out.extend([0, 1]);
    out.extend(revision.to_be_bytes());
    out
}

/// The key and revision of a version's key.
pub fn parse_version_key(bytes: &[u8]) -> Option<(Vec<u8>, i64)> {
    let (key, rest) = unescape(bytes.strip_prefix(b"k")?)?;
    Some((key, number(rest)?))
}

/// The value of a version that exists.
pub fn version_value(kv: &KeyValue) -> Vec<u8> {
    let mut out = Vec::with_capacity(VERSION_HEADER + kv.value.len());
    out.push(1);
    out.extend(kv.create_revision.to_be_bytes());
    out.extend(kv.version.to_be_bytes());
    out.extend(&kv.value);
    out
}

/// The value of a deletion.
pub const TOMBSTONE: &[u8] = &[0];

/// Whether a version's value is a deletion.
pub fn is_tombstone(bytes: &[u8]) -> bool {
    bytes.first() != Some(&1)
}

/// A version from its value; `None` for a deletion.
pub fn parse_version(key: &[u8], revision: i64, bytes: &[u8]) -> Option<KeyValue> {
    if is_tombstone(bytes) || bytes.len() < VERSION_HEADER {
        return None;
    }
    Some(KeyValue {
        key: key.to_vec(),
        value: Bytes::copy_from_slice(&bytes[VERSION_HEADER..]),
        create_revision: number(&bytes[1..9])?,
        mod_revision: revision,
        version: number(&bytes[9..17])?,
    })
}

/// The key of a change; `index` counts within the revision.
pub fn log_key(revision: i64, index: u32) -> Vec<u8> {
    let mut out = vec![b'l'];
    out.extend(revision.to_be_bytes());
    out.extend(index.to_be_bytes());
    out
}

/// The revision of a change's key.
pub fn parse_log_key(bytes: &[u8]) -> Option<i64> {
    number(bytes.strip_prefix(b"l")?.get(..8)?)
}

/// The value of a change.
pub fn log_value(previous: i64, key: &[u8]) -> Vec<u8> {
    let mut out = previous.to_be_bytes().to_vec();
    out.extend(key);
    out
}

/// The replaced version's revision and the key of a change.
pub fn parse_log_value(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (previous, key) = bytes.split_at_checked(8)?;
    Some((number(previous)?, key))
}

/// The key of a deadline, in milliseconds since 1970.
pub fn ttl_key(deadline: i64, key: &[u8]) -> Vec<u8> {
    let mut out = vec![b't'];
    out.extend(deadline.to_be_bytes());
    out.extend(key);
    out
}

/// The deadline and key of a deadline's key.
pub fn parse_ttl_key(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (deadline, key) = bytes.strip_prefix(b"t")?.split_at_checked(8)?;
    Some((number(deadline)?, key))
}

/// A number as stored.
pub fn parse_number(bytes: &[u8]) -> Option<i64> {
    number(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_sort_by_key_then_revision(
            a in proptest::collection::vec(0u8..3, 0..6),
            b in proptest::collection::vec(0u8..3, 0..6),
            ra in 0i64..i64::MAX,
            rb in 0i64..i64::MAX,
        ) {
            let (x, y) = (version_key(&a, ra), version_key(&b, rb));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b).then(ra.cmp(&rb)));
            prop_assert_eq!(version_bound(&b) <= x, b <= a);
            prop_assert_eq!(parse_version_key(&x), Some((a, ra)));
        }
    }
}
