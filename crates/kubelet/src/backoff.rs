//! Growing pauses by key: 10 seconds, doubling, at most 5 minutes, as upstream's for images and containers. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

struct Entry {
    pause: Duration,
    since: Instant,
}

/// Pauses by key.
#[derive(Default)]
pub struct Backoff {
    entries: HashMap<String, Entry>,
}

impl Backoff {
    /// How long the key still has to wait.
    pub fn waits(&self, key: &str, now: Instant) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        (entry.since + entry.pause).checked_duration_since(now).filter(|d| !d.is_zero())
    }

    /// The length of the key's current pause.
    pub fn pause(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |e| e.pause)
    }

    /// The key failed at `now`: it waits, longer than last time unless that is long ago.
    pub fn failed(&mut self, key: &str, now: Instant) {
        let pause = match self.entries.get(key) {
            Some(entry) if now.saturating_duration_since(entry.since) <= LONGEST * 2 => (entry.pause * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entries.insert(key.to_string(), Entry { pause, since: now });
    }

    /// A container ended at `finished` and is to start again: now (the next pause is noted), or after
    /// the time in the error. The first restart is immediate.
    pub fn restart(&mut self, key: &str, finished: Instant, now: Instant) -> Result<(), Duration> {
        let pause = match self.entries.get(key) {
            Some(entry) if finished.saturating_duration_since(entry.since) <= LONGEST * 2 => {
                let left = (finished + entry.pause).saturating_duration_since(now);
                if !left.is_zero() {
                    return Err(left);
                }
                (entry.pause * 2).min(LONGEST)
            }
            _ => FIRST,
        };
        self.entries.insert(key.to_string(), Entry { pause, since: now });
        Ok(())
    }

    /// The key works.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// All keys with this start are of no interest any more.
    pub fn forget_prefix(&mut self, prefix: &str) {
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }

    /// The shortest wait of the keys with this start.
    pub fn next_with(&self, prefix: &str, now: Instant) -> Option<Duration> {
        self.entries.keys().filter(|k| k.starts_with(prefix)).filter_map(|k| self.waits(k, now)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_from_the_end_of_the_container_on() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(backoff.restart("a", at(0), at(0)), Ok(()));
        assert_eq!(backoff.restart("a", at(1), at(1)), Err(Duration::from_secs(10)));
        assert_eq!(backoff.restart("a", at(1), at(11)), Ok(()));
        assert_eq!(backoff.restart("a", at(12), at(12)), Err(Duration::from_secs(20)));
        assert_eq!(backoff.restart("a", at(700), at(700)), Ok(()), "it ran for long");
        assert_eq!(backoff.pause("a"), FIRST);
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_start_anew_after_a_good_while() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            backoff.failed("a", now);
            let wait = backoff.waits("a", now).unwrap();
            pauses.push(wait.as_secs());
            now += wait;
            assert!(backoff.waits("a", now).is_none());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
        backoff.failed("a", now + LONGEST * 3);
        assert_eq!(backoff.pause("a"), FIRST);
    }
}
