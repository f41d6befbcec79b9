//! The static cost of an expression: the least and the most that it can cost, given how large data can be.

mod calls;
mod walk;

use crate::program::Program;
use crate::types::Type;

/// A range of sizes or of costs. Sums and products stop at the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub min: u64,
    pub max: u64,
}

/// How large the data at a path can be. The first element of a path is a variable's name; then come field names, `@items`
/// of lists, `@values` and `@keys` of maps.
pub trait SizeEstimator {
    /// The size of the data, if it is known.
    fn size(&self, path: &[String], t: &Type) -> Option<Size>;
}

/// Knows nothing about sizes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSizes;

impl SizeEstimator for NoSizes {
    fn size(&self, _: &[String], _: &Type) -> Option<Size> {
        None
    }
}

impl Program {
    /// The least and the most that the expression can cost.
    pub fn estimate(&self, sizes: &dyn SizeEstimator) -> Size {
        walk::estimate(&self.checked, sizes)
    }
}

impl Size {
    pub(crate) const UNKNOWN: Size = Size { min: 0, max: u64::MAX };

    pub(crate) fn fixed(n: u64) -> Size {
        Size { min: n, max: n }
    }

    pub(crate) fn add(self, other: Size) -> Size {
        Size { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    pub(crate) fn times(self, other: Size) -> Size {
        Size { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    /// The range that holds both.
    pub(crate) fn union(self, other: Size) -> Size {
        Size { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// So many units each, rounded up, in doubles as upstream computes it.
    pub(crate) fn scale(self, factor: f64) -> Size {
        let one = |n: u64| {
            let n = n as f64;
            if n > 0.0 && factor > 0.0 && n > u64::MAX as f64 / factor {
                return u64::MAX;
            }
            let product = (n * factor).ceil();
            if product >= u64::MAX as f64 { u64::MAX } else { product as u64 }
        };
        Size { min: one(self.min), max: one(self.max) }
    }
}
