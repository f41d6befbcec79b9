//! What is remembered for a while: a map with a bound, whose entries end.

use std::collections::HashMap;
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};

/// Values by keys, each until its time has come.
pub(crate) struct Expiring<K, V> {
    map: HashMap<K, (Timestamp, V)>,
    most: usize,
}

impl<K: Hash + Eq, V> Expiring<K, V> {
    /// For so many values.
    pub fn new(most: usize) -> Self {
        Self { map: HashMap::new(), most }
    }

    /// The value, if it has not ended.
    pub fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        self.map.get(key).filter(|(end, _)| now < *end).map(|(_, value)| value)
    }

    /// Keeps a value for so long. When there are too many, those that ended go; if none has, all do.
    pub fn insert(&mut self, key: K, value: V, now: Timestamp, keep: SignedDuration) {
        if keep <= SignedDuration::ZERO {
            return;
        }
        if self.map.len() >= self.most {
            self.map.retain(|_, (end, _)| now < *end);
        }
        if self.map.len() >= self.most {
            self.map.clear();
        }
        self.map.insert(key, (now.saturating_add(keep).unwrap_or(Timestamp::MAX), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut map = Expiring::new(2);
        map.insert("a", 1, at(0), SignedDuration::from_secs(10));
        map.insert("b", 2, at(0), SignedDuration::from_secs(20));
        map.insert("none", 3, at(0), SignedDuration::ZERO);
        assert_eq!((map.get(&"a", at(9)), map.get(&"a", at(10)), map.get(&"b", at(10)), map.get(&"none", at(0))), (Some(&1), None, Some(&2), None));
        map.insert("c", 4, at(10), SignedDuration::from_secs(10));
        assert_eq!((map.get(&"b", at(10)), map.get(&"c", at(10))), (Some(&2), Some(&4)));
        map.insert("d", 5, at(10), SignedDuration::from_secs(10));
        assert_eq!((map.map.len(), map.get(&"d", at(10))), (1, Some(&5)));
    }
}
