//! How many seats each priority level has: nominally by its shares, and at the moment by what all levels could use, so
//! that one lends what it does not need and another borrows it.

use super::demand::Demand;

/// Of a level's nominal seats a request takes this part at most.
const MAX_SEATS_PART: f64 = 0.15;
/// Targets below count as this one: they are divided by.
const MIN_TARGET: f64 = 0.001;
const EPSILON: f64 = 1e-7;

/// Bounds on a level's seats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub nominal: i64,
    pub min: i64,
    pub max: i64,
}

impl Bounds {
    /// `server` seats are split by shares; percentages are of the nominal seats.
    pub fn of(server: i64, shares: i64, sum: i64, lendable: Option<i64>, borrowing: Option<i64>) -> Bounds {
        let nominal = if sum > 0 { (server as f64 * shares as f64 / sum as f64).ceil() as i64 } else { 0 };
        let percent = |p: i64| (nominal as f64 * p as f64 / 100.0).round() as i64;
        Bounds { nominal, min: nominal - lendable.map_or(0, percent), max: nominal + borrowing.map_or(server, percent) }
    }

    /// What a new level begins with: half of what it may lend is lent.
    pub fn initial(&self) -> i64 {
        self.nominal - (self.nominal - self.min) / 2
    }

    /// As many seats a request takes at most at a level with hands of this size.
    pub fn max_seats(&self, hand: i64) -> u32 {
        let part = (self.nominal as f64 * MAX_SEATS_PART).ceil() as i64;
        part.min(self.nominal / hand.max(1)).max(1) as u32
    }
}

/// A level that takes part in sharing.
#[derive(Debug, Clone, Copy)]
pub struct Party {
    pub exempt: bool,
    pub bounds: Bounds,
    pub demand: Demand,
    pub current: i64,
}

/// What sharing comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    /// A level's seats from now on, in the parties' order.
    pub current: Vec<i64>,
    /// What each would have liked to have.
    pub targets: Vec<f64>,
    /// The part of its target that each level gets whose bounds do not say otherwise.
    pub fair: f64,
}

/// Shares the nominal seats of all parties by what they could use.
pub fn share(parties: &[Party]) -> Shared {
    let total: i64 = parties.iter().map(|p| p.bounds.nominal).sum();
    // the least that a level keeps: what it used lately, within its nominal seats and what it may not lend
    let least = |p: &Party| match p.exempt {
        true => p.bounds.min.max(p.demand.high),
        false => p.bounds.min.max(p.bounds.nominal.min(p.demand.high)),
    };
    let targets: Vec<f64> = parties.iter().map(|p| (least(p) as f64).max(p.demand.smoothed)).collect();
    let taken: i64 = parties.iter().filter(|p| p.exempt).map(least).sum();
    let limited = || parties.iter().filter(|p| !p.exempt);
    let left = total - taken;
    let min: i64 = limited().map(|p| p.bounds.min).sum();
    let wanted: i64 = limited().map(least).sum();
    let mut fair = 0.0;
    let mut current: Vec<i64> = if left <= min {
        parties.iter().map(|p| p.bounds.min).collect()
    } else if left <= wanted {
        let part = (left - min) as f64 / (wanted - min) as f64;
        parties.iter().map(|p| p.bounds.min + ((least(p) - p.bounds.min) as f64 * part).round() as i64).collect()
    } else {
        let classes: Vec<Class> = parties
            .iter()
            .zip(&targets)
            .filter(|(p, _)| !p.exempt)
            .map(|(p, target)| Class { low: least(p) as f64, high: p.bounds.max as f64, target: *target })
            .collect();
        match allocate(total as f64, &classes) {
            Some((seats, part)) => {
                fair = part;
                let mut seats = seats.into_iter();
                parties.iter().map(|p| if p.exempt { 0 } else { seats.next().map_or(p.current, |s| s.round() as i64) }).collect()
            }
            None => parties.iter().map(|p| p.current).collect(),
        }
    };
    for (party, current) in parties.iter().zip(&mut current) {
        if party.exempt {
            *current = least(party);
        }
    }
    Shared { current, targets, fair }
}

/// One that seats are allocated to.
struct Class {
    low: f64,
    high: f64,
    target: f64,
}

/// Splits `total` so that each class gets the same part of its target, or its bound where that part is beyond it.
/// `None` when the bounds leave no way. Answers the seats and the part.
fn allocate(total: f64, classes: &[Class]) -> Option<(Vec<f64>, f64)> {
    let target = |c: &Class| c.target.max(MIN_TARGET);
    if total < 0.0 || classes.iter().any(|c| c.low < 0.0 || target(c) < c.low || c.high < c.low) {
        return None;
    }
    let at = |part: f64| -> Vec<f64> { classes.iter().map(|c| (part * target(c)).clamp(c.low, c.high)).collect() };
    let sum = |part: f64| at(part).iter().sum::<f64>();
    let (low, high): (f64, f64) = (classes.iter().map(|c| c.low).sum(), classes.iter().map(|c| c.high).sum());
    if low - total > EPSILON || total - high > EPSILON {
        return None;
    }
    // The sum grows with the part, in straight lines between the parts at which a class meets a bound.
    let mut bends: Vec<f64> = classes.iter().flat_map(|c| [c.low / target(c), c.high / target(c)]).collect();
    bends.sort_by(f64::total_cmp);
    let mut before = 0.0;
    for bend in bends {
        let (from, to) = (sum(before), sum(bend));
        if to >= total {
            let part = if to > from { before + (bend - before) * (total - from) / (to - from) } else { bend };
            return Some((at(part), part));
        }
        before = bend;
    }
    Some((at(before), before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(nominal: i64, min: i64, max: i64, high: i64, smoothed: f64) -> Party {
        let demand = Demand { high, smoothed, ..Demand::default() };
        Party { exempt: false, bounds: Bounds { nominal, min, max }, demand, current: nominal }
    }

    #[test]
    fn bounds_of_upstreams_levels() {
        // 600 seats, 245 shares
        let of = |shares, lendable| Bounds::of(600, shares, 245, Some(lendable), None);
        assert_eq!(of(30, 33), Bounds { nominal: 74, min: 50, max: 674 });
        assert_eq!(of(100, 90), Bounds { nominal: 245, min: 24, max: 845 });
        assert_eq!(of(5, 0), Bounds { nominal: 13, min: 13, max: 613 });
        assert_eq!((of(100, 90).initial(), of(100, 90).max_seats(6), of(10, 0).max_seats(4)), (135, 37, 4));
        assert_eq!(Bounds::of(600, 1, 1, None, Some(50)), Bounds { nominal: 600, min: 600, max: 900 });
    }

    #[test]
    fn an_idle_level_lends_and_a_busy_one_borrows() {
        let parties = [party(100, 10, 700, 0, 0.0), party(100, 50, 700, 190, 190.0)];
        let shared = share(&parties);
        assert_eq!(shared.current.iter().sum::<i64>(), 200, "{shared:?}");
        assert!(shared.current[1] > 180 && shared.current[0] >= 10, "{shared:?}");
        // … no more than it may
        let bounded = [parties[0], party(100, 50, 120, 190, 190.0)];
        assert_eq!(share(&bounded).current, [80, 120]);
        // … and what the lender needs again comes back to it
        let busy = [party(100, 10, 700, 100, 100.0), parties[1]];
        assert_eq!(share(&busy).current, [100, 100]);
    }

    #[test]
    fn exempt_requests_count_but_are_not_bound() {
        let exempt = Party { exempt: true, bounds: Bounds::default(), demand: Demand { high: 150, ..Demand::default() }, current: 0 };
        let shared = share(&[exempt, party(100, 40, 700, 100, 100.0), party(100, 40, 700, 100, 100.0)]);
        assert_eq!(shared.current, [150, 40, 40], "nothing is left beyond what is not lent");
        let exempt = Party { demand: Demand { high: 40, ..Demand::default() }, ..exempt };
        let shared = share(&[exempt, party(100, 40, 700, 100, 100.0), party(100, 40, 700, 100, 100.0)]);
        assert_eq!(shared.current, [40, 80, 80]);
    }

    #[test]
    fn allocations() {
        let class = |low: f64, high: f64, target: f64| Class { low, high, target };
        let of = |total: f64, classes: &[Class]| allocate(total, classes);
        assert_eq!(of(10.0, &[class(0.0, 100.0, 1.0), class(0.0, 100.0, 4.0)]), Some((vec![2.0, 8.0], 2.0)));
        let (seats, part) = of(10.0, &[class(0.0, 1.0, 1.0), class(3.0, 100.0, 3.0), class(0.0, 100.0, 3.0)]).unwrap();
        assert!((part - 1.5).abs() < 1e-9 && (seats[0] - 1.0).abs() < 1e-9 && (seats[2] - 4.5).abs() < 1e-9, "{seats:?}");
        assert_eq!(of(5.0, &[class(2.0, 2.0, 2.0)]), None, "more than all may have");
        assert_eq!(of(1.0, &[class(2.0, 2.0, 2.0)]), None, "less than all must have");
    }
}
