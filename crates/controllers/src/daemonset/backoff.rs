//! How long a daemon pod that failed is left alone, per set and node, so that a node which refuses the
//! pod is not asked again at once.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

/// First delay; it doubles with each further failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay. An entry that was not touched for twice as long is forgotten.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Delays by set and node.
#[derive(Debug, Default)]
pub struct Backoff(HashMap<String, (Duration, Timestamp)>);

impl Backoff {
    /// The delay that is still running for `key`, counted from its start.
    pub fn running(&self, key: &str, now: Timestamp) -> Option<Duration> {
        let (delay, since) = self.0.get(key)?;
        (now.duration_since(*since).unsigned_abs() < *delay).then_some(*delay)
    }

    /// Starts the next delay for `key`.
    pub fn next(&mut self, key: &str, now: Timestamp) {
        self.0.retain(|_, (_, since)| now.duration_since(*since).unsigned_abs() <= LONGEST * 2);
        let entry = self.0.entry(key.to_string()).and_modify(|(delay, _)| *delay = (*delay * 2).min(LONGEST)).or_insert((FIRST, now));
        entry.1 = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn delays_double_and_are_forgotten() {
        let mut backoff = Backoff::default();
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        assert_eq!(backoff.running("a", start), None);
        backoff.next("a", start);
        assert_eq!(backoff.running("a", start), Some(FIRST));
        assert_eq!(backoff.running("a", at(1)), None);
        assert_eq!(backoff.running("b", start), None);
        backoff.next("a", at(1));
        assert_eq!(backoff.running("a", at(2)), Some(FIRST * 2));
        for _ in 0..20 {
            backoff.next("a", at(2));
        }
        assert_eq!(backoff.running("a", at(3)), Some(LONGEST));
        backoff.next("a", at(1000));
        assert_eq!(backoff.running("a", at(1000)), Some(LONGEST), "a quarter of an hour is not long");
        backoff.next("a", at(1000 + 1801));
        assert_eq!(backoff.running("a", at(1000 + 1801)), Some(FIRST), "after half an hour it starts anew");
    }
}
