//! The plain bound on what is served at once, where priority and fairness is off: so many requests that read, so many
//! that write, and whoever comes after that is refused.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Zero is no bound.
#[derive(Debug)]
pub struct InFlight {
    limits: [usize; 2],
    served: [AtomicUsize; 2],
}

/// Frees its place when it goes.
pub struct Place(Arc<InFlight>, usize);

impl InFlight {
    pub fn new(reads: usize, writes: usize) -> Arc<InFlight> {
        Arc::new(InFlight { limits: [reads, writes], served: [AtomicUsize::new(0), AtomicUsize::new(0)] })
    }

    /// A place for a request; none when all are taken.
    pub fn enter(self: &Arc<InFlight>, mutating: bool) -> Option<Place> {
        let kind = usize::from(mutating);
        let limit = self.limits[kind];
        let before = self.served[kind].fetch_add(1, Ordering::Relaxed);
        let place = Place(self.clone(), kind);
        (limit == 0 || before < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.served[self.1].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let bound = InFlight::new(1, 0);
        let first = bound.enter(false);
        assert!(first.is_some() && bound.enter(false).is_none());
        assert!(bound.enter(true).is_some() && bound.enter(true).is_some());
        drop(first);
        assert!(bound.enter(false).is_some());
    }
}
