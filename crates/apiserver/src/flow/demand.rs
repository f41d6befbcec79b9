//! How many seats a priority level could use, over time: what borrowing is decided by.

/// By how much of what was smoothed before a period's envelope is outlived: half of it in five minutes of periods.
const SMOOTHING: f64 = 0.977;

/// Integrates a number that changes now and then.
#[derive(Debug, Default)]
pub struct Integrator {
    last: u64,
    now: f64,
    seconds: f64,
    sum: f64,
    squares: f64,
    max: f64,
}

/// What an [`Integrator`] has seen in a period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    pub seconds: f64,
    pub average: f64,
    pub deviation: f64,
    pub max: f64,
}

impl Integrator {
    /// From this time on (nanoseconds) the number is another.
    pub fn set(&mut self, now: u64, x: f64) {
        self.advance(now);
        self.now = x;
        self.max = self.max.max(x);
    }

    fn advance(&mut self, now: u64) {
        let dt = now.saturating_sub(self.last) as f64 / 1e9;
        self.last = self.last.max(now);
        self.seconds += dt;
        self.sum += self.now * dt;
        self.squares += self.now * self.now * dt;
    }

    /// Ends a period and begins the next.
    pub fn reset(&mut self, now: u64) -> Period {
        self.advance(now);
        let of = |sum: f64| if self.seconds > 0.0 { sum / self.seconds } else { 0.0 };
        let average = of(self.sum);
        let variance = of(self.squares) - average * average;
        let period = Period { seconds: self.seconds, average, deviation: variance.max(0.0).sqrt(), max: self.max };
        *self = Integrator { last: self.last, now: self.now, max: self.now, ..Integrator::default() };
        period
    }
}

/// What is known of a level's demand.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Demand {
    pub high: i64,
    pub average: f64,
    pub deviation: f64,
    /// Follows a rise at once and a fall slowly.
    pub smoothed: f64,
}

impl Demand {
    pub fn update(&mut self, period: Period) {
        self.high = period.max.round() as i64;
        if period.seconds <= 0.0 {
            return;
        }
        self.average = period.average;
        self.deviation = period.deviation;
        let envelope = period.average + period.deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn periods() {
        let mut i = Integrator::default();
        i.set(0, 4.0);
        i.set(5 * SECOND, 0.0);
        let period = i.reset(10 * SECOND);
        assert_eq!(period, Period { seconds: 10.0, average: 2.0, deviation: 2.0, max: 4.0 });
        i.set(11 * SECOND, 1.0);
        assert_eq!(i.reset(11 * SECOND).max, 1.0, "what was before the period does not count");
        let mut demand = Demand::default();
        demand.update(period);
        assert_eq!((demand.high, demand.smoothed), (4, 4.0));
        demand.update(Period { seconds: 10.0, average: 0.0, deviation: 0.0, max: 0.0 });
        assert!(demand.high == 0 && (3.9..4.0).contains(&demand.smoothed));
    }
}
