//! Sets of completion indexes as the status writes them: `1,3-5,7`. Kept as ranges, so that a rule
//! over two thousand million indexes costs what it takes to write it down.

use std::fmt;

/// An ordered set of indexes: disjoint ranges that do not touch, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(u32, u32)>);

impl Indexes {
    /// Reads the compressed form. What is no number is passed over, and so is what is not below
    /// `completions`.
    pub fn parse(text: &str, completions: u32) -> Indexes {
        let mut ranges = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>())
                && from < completions
                && from <= to
            {
                ranges.push((from, to.min(completions - 1)));
            }
        }
        Indexes::from_ranges(ranges)
    }

    fn from_ranges(mut ranges: Vec<(u32, u32)>) -> Indexes {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Indexes(merged)
    }

    /// The set with more indexes in it.
    pub fn with(&self, more: impl IntoIterator<Item = u32>) -> Indexes {
        Indexes::from_ranges(self.0.iter().copied().chain(more.into_iter().map(|i| (i, i))).collect())
    }

    /// What is in either set.
    pub fn union(&self, other: &Indexes) -> Indexes {
        Indexes::from_ranges(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many indexes there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(from, to)| (to - from) as usize + 1).sum()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an index is in the set.
    pub fn contains(&self, index: u32) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    /// How many indexes are in both sets.
    pub fn common(&self, other: &Indexes) -> usize {
        let (mut a, mut b, mut common) = (0, 0, 0);
        while let (Some(x), Some(y)) = (self.0.get(a), other.0.get(b)) {
            let (from, to) = (x.0.max(y.0), x.1.min(y.1));
            if from <= to {
                common += (to - from) as usize + 1;
            }
            if x.1 < y.1 { a += 1 } else { b += 1 }
        }
        common
    }

    /// The first indexes below `completions` that are not in the set, at most `count`.
    pub fn missing(&self, completions: u32, count: usize) -> Vec<u32> {
        let mut found = Vec::new();
        let mut next = 0;
        for &(from, to) in self.0.iter().chain(&[(completions, completions)]) {
            found.extend((next..from.min(completions)).take(count - found.len()));
            next = to.saturating_add(1);
            if found.len() >= count || next >= completions {
                break;
            }
        }
        found
    }
}

impl fmt::Display for Indexes {
    /// Writes the compressed form; two neighbours are written with a comma.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (from, to)) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match to - from {
                0 => write!(f, "{from}")?,
                1 => write!(f, "{from},{to}")?,
                _ => write!(f, "{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "0,1,5-9"] {
            assert_eq!(Indexes::parse(text, 100).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-5,x,9-3,7,12", 8).to_string(), "0-5,7");
        assert_eq!(Indexes::parse("0-2147483646", u32::MAX).len(), 2_147_483_647);
        assert_eq!((Indexes::parse("3-9", 5).to_string().as_str(), Indexes::parse("5-9", 5).to_string().as_str()), ("3,4", ""));
    }

    #[test]
    fn sums_and_gaps() {
        let set = Indexes::parse("1,3-5,9", 10);
        assert_eq!((set.len(), set.contains(4), set.contains(6), set.contains(0)), (5, true, false, false));
        assert_eq!(set.with([2, 6]).to_string(), "1-6,9");
        assert_eq!(set.union(&Indexes::parse("0,2", 10)).to_string(), "0-5,9");
        assert_eq!(set.common(&Indexes::parse("0-3,9", 10)), 3);
        assert_eq!(set.common(&Indexes::default()), 0);
        assert_eq!(set.missing(10, 3), [0, 2, 6]);
        assert_eq!(set.missing(10, 100), [0, 2, 6, 7, 8]);
        assert_eq!(set.missing(4, 100), [0, 2]);
        assert_eq!(Indexes::default().missing(2, 5), [0, 1]);
        assert!(Indexes::parse("0,1", 2).missing(2, 5).is_empty());
        assert!(set.missing(10, 0).is_empty());
    }
}
