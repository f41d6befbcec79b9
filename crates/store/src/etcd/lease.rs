//! Leases for keys that expire. As upstream does it, one lease serves many keys: it is granted for a little longer
//! than asked, and used again for that little (a twentieth of the time, at most a minute), or for 1,000 keys. So a key
//! may live that much longer than asked.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const LONGEST_REUSE: u64 = 60;
const MOST_KEYS: u32 = 1000;

struct Lease {
    id: i64,
    expires: Instant,
    keys: u32,
}

/// The leases that may be used again, by the time they were asked for.
#[derive(Default)]
pub(super) struct Leases(HashMap<u64, Lease>);

/// How long to ask for, so that a lease can be shared.
pub(super) fn extended(ttl: u64) -> u64 {
    ttl.saturating_add((ttl / 20).min(LONGEST_REUSE))
}

impl Leases {
    /// A lease that lasts for `ttl` seconds from now on, and hardly more; counts one more key.
    pub fn find(&mut self, ttl: u64, now: Instant) -> Option<i64> {
        self.0.retain(|_, lease| lease.expires > now);
        let lease = self.0.get_mut(&ttl)?;
        let lasts = now + Duration::from_secs(ttl.min(u64::from(u32::MAX))) < lease.expires;
        if !lasts || lease.keys >= MOST_KEYS {
            return None;
        }
        lease.keys += 1;
        Some(lease.id)
    }

    /// A lease that was granted for [`extended`] seconds at `now`, for one key so far.
    pub fn granted(&mut self, ttl: u64, id: i64, now: Instant) {
        let expires = now + Duration::from_secs(extended(ttl).min(u64::from(u32::MAX)));
        self.0.insert(ttl, Lease { id, expires, keys: 1 });
    }

    /// etcd does not know these (any more).
    pub fn forget(&mut self, ids: &[i64]) {
        self.0.retain(|_, lease| !ids.contains(&lease.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shared_for_a_twentieth_of_its_time() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((extended(3600), extended(100), extended(10)), (3660, 105, 10));
        assert_eq!(leases.find(3600, start), None);
        leases.granted(3600, 7, start);
        leases.granted(100, 8, start);
        assert_eq!(leases.find(3600, after(59)), Some(7));
        assert_eq!(leases.find(3600, after(60)), None);
        assert_eq!(leases.find(100, after(4)), Some(8));
        assert_eq!(leases.find(100, after(5)), None);
        // A short one is not shared at all.
        leases.granted(1, 9, start);
        assert_eq!(leases.find(1, start), None);
        leases.forget(&[7]);
        assert_eq!(leases.find(3600, after(1)), None);
    }

    #[test]
    fn a_lease_is_shared_by_a_thousand_keys() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.granted(3600, 7, now);
        for _ in 1..MOST_KEYS {
            assert_eq!(leases.find(3600, now), Some(7));
        }
        assert_eq!(leases.find(3600, now), None);
    }
}
