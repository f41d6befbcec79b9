//! How long refused clients are told to stay away: a second, and twice as long each time that many were refused in as
//! many seconds, back again one by one.
use std::collections::VecDeque;

const MAX: u64 = 32;

/// Refusals of one priority level.
#[derive(Debug)]
pub struct Dropped {
    /// Seconds with refusals, and how many; the last one may still grow.
    history: VecDeque<(u64, u64)>,
    retry_after: u64,
    raised: u64,
}

impl Default for Dropped {
    fn default() -> Dropped {
        Dropped { history: VecDeque::new(), retry_after: 1, raised: 0 }
    }
}

impl Dropped {
    /// A request is refused in this second. Answers after how many seconds to try again.
    pub fn record(&mut self, second: u64) -> u64 {
        match self.history.back_mut() {
            Some((at, count)) if *at == second => *count += 1,
            _ => {
                let oldest = second.saturating_sub((2 * self.retry_after).min(MAX));
                self.history.retain(|(at, _)| *at >= oldest);
                self.review(second);
                self.history.push_back((second, 1));
            }
        }
        self.retry_after
    }

    fn review(&mut self, second: u64) {
        let since = second.saturating_sub(self.retry_after);
        let dropped: u64 = self.history.iter().filter(|(at, _)| *at >= since).map(|(_, count)| count).sum();
        if second.saturating_sub(self.raised) >= self.retry_after && dropped >= 3 * self.retry_after {
            self.retry_after = (2 * self.retry_after).min(MAX);
            self.raised = second;
        } else if dropped < self.retry_after && self.retry_after > 1 {
            self.retry_after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_keep_clients_away_longer() {
        let mut d = Dropped::default();
        let mut second = |at: u64, count: u64| (0..count).map(|_| d.record(at)).last().unwrap();
        assert_eq!(second(100, 3), 1);
        assert_eq!(second(101, 6), 2);
        assert_eq!(second(102, 1), 2, "it was raised a moment ago");
        assert_eq!(second(103, 1), 4);
        assert_eq!(second(200, 1), 3, "nothing was refused for long");
        assert_eq!(second(300, 1), 2);
    }
}
