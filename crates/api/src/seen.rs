//! What has been met in a list, for lists that are short as a rule and may be as long as a request allows.

use std::collections::HashSet;
use std::hash::Hash;

/// So many are compared one by one, which is faster than hashing them.
const FEW: usize = 16;

/// A set that costs little while it is small.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    few: Vec<T>,
    many: HashSet<T>,
}

impl<T> Default for Seen<T> {
    fn default() -> Seen<T> {
        Seen { few: Vec::new(), many: HashSet::new() }
    }
}

impl<T: Eq + Hash> Seen<T> {
    /// Whether it has been met.
    pub fn has(&self, item: &T) -> bool {
        if self.many.is_empty() { self.few.contains(item) } else { self.many.contains(item) }
    }

    pub fn is_empty(&self) -> bool {
        self.few.is_empty() && self.many.is_empty()
    }

    /// Meets it. Answers whether that was for the first time.
    pub fn add(&mut self, item: T) -> bool {
        if self.many.is_empty() {
            if self.few.contains(&item) {
                return false;
            }
            if self.few.len() < FEW {
                self.few.push(item);
                return true;
            }
            self.many.extend(self.few.drain(..));
        }
        self.many.insert(item)
    }
}

impl<T: Eq + Hash> FromIterator<T> for Seen<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Seen<T> {
        let mut seen = Seen::default();
        items.into_iter().for_each(|item| _ = seen.add(item));
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_new_once() {
        let mut seen = Seen::default();
        for item in 0..3 * FEW {
            assert!(!seen.has(&item) && seen.add(item) && seen.has(&item) && !seen.add(item), "{item}");
        }
        assert!((0..3 * FEW).all(|item| seen.has(&item)) && !seen.has(&(3 * FEW)));
        let few: Seen<_> = ["a", "b", "a"].into_iter().collect();
        assert!(few.has(&"b") && !few.has(&"c"));
    }
}
