//! The decision of one candidate for a lease: given what it has seen of the lease, and when, what it
//! does next. No clock, no API.
//!
//! Whether a lease is over is measured on the candidate's own steady clock, from when it saw the lease
//! change; the times in the lease are for people. So a clock that jumps, here or at the holder, neither
//! ends a lease nor prolongs it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long others wait, since the last change that they saw, before they take the lease.
    pub lease: Duration,
    /// How long a holder tries to renew before it gives up.
    pub renew: Duration,
    /// Between two tries, and between two renewals.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

impl Timing {
    /// Refuses times under which two could hold the lease at once. The texts are upstream's.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.lease <= self.renew {
            return Err("leaseDuration must be greater than renewDeadline");
        }
        if self.renew <= self.retry.mul_f64(1.2) {
            return Err("renewDeadline must be greater than retryPeriod*JitterFactor");
        }
        if self.retry.is_zero() {
            return Err("retryPeriod must be greater than zero");
        }
        Ok(())
    }
}

/// A lease as it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The object, for its revision.
    pub lease: Lease,
    /// When its content was first seen like this.
    pub since: Instant,
}

impl Seen {
    /// What is known after `lease` was read at `now`. A revision alone is no sign of life.
    pub fn after(before: Option<Seen>, lease: Lease, now: Instant) -> Seen {
        match before {
            Some(seen) if seen.lease.spec == lease.spec && seen.lease.metadata.uid == lease.metadata.uid => Seen { lease, since: seen.since },
            _ => Seen { lease, since: now },
        }
    }

    fn spec(&self) -> LeaseSpec {
        self.lease.spec.clone().unwrap_or_default()
    }

    /// Who holds it; empty when it was released.
    pub fn holder(&self) -> String {
        self.spec().holder_identity.unwrap_or_default()
    }

    /// When it is over unless it changes.
    pub fn ends(&self) -> Instant {
        let seconds = self.spec().lease_duration_seconds.unwrap_or(0);
        self.since + Duration::from_secs(seconds.try_into().unwrap_or(0))
    }
}

/// What a candidate or a holder does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// There is no lease: make it, and have it.
    Create(LeaseSpec),
    /// Take it, or renew it: write this over the revision that was seen.
    Update(LeaseSpec),
    /// Somebody has it until then, unless it changes.
    Wait(Instant),
}

/// Decides for `me`. `wall` is what the clock on the wall says, for the record.
pub fn decide(me: &str, timing: &Timing, seen: Option<&Seen>, now: Instant, wall: Timestamp) -> Step {
    let mine = LeaseSpec {
        holder_identity: Some(me.to_string()),
        lease_duration_seconds: Some(timing.lease.as_secs().try_into().unwrap_or(i32::MAX)),
        acquire_time: Some(MicroTime(wall)),
        renew_time: Some(MicroTime(wall)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(seen) = seen else { return Step::Create(mine) };
    let (spec, holder) = (seen.spec(), seen.holder());
    let transitions = spec.lease_transitions.unwrap_or(0);
    if holder == me {
        let acquire_time = spec.acquire_time.or(mine.acquire_time.clone());
        return Step::Update(LeaseSpec { acquire_time, lease_transitions: Some(transitions), ..mine });
    }
    if !holder.is_empty() && seen.ends() > now {
        return Step::Wait(seen.ends());
    }
    Step::Update(LeaseSpec { lease_transitions: Some(transitions.saturating_add(1)), ..mine })
}

/// What a holder writes to give the lease up: nobody has it, and nobody need wait for it.
pub fn released(seen: &Seen, wall: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(MicroTime(wall)),
        renew_time: Some(MicroTime(wall)),
        lease_transitions: seen.spec().lease_transitions,
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn wall(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn lease(holder: &str, seconds: i32, renewed: i64, transitions: i32) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            acquire_time: Some(MicroTime(wall(500))),
            renew_time: Some(MicroTime(wall(renewed))),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    fn step(seen: &Seen, now: Instant, clock: i64) -> Step {
        decide("me", &Timing::default(), Some(seen), now, wall(clock))
    }

    #[test]
    fn without_a_lease_it_is_made() {
        let Step::Create(spec) = decide("me", &Timing::default(), None, Instant::now(), wall(1000)) else { panic!("it must be made") };
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds, spec.lease_transitions), (Some("me"), Some(15), Some(0)));
        assert_eq!((spec.acquire_time.map(|t| t.0), spec.renew_time.map(|t| t.0)), (Some(wall(1000)), Some(wall(1000))));
    }

    #[test]
    fn one_that_another_holds_is_waited_for_and_then_taken() {
        let start = Instant::now();
        let seen = Seen::after(None, lease("other", 15, 1000, 3), start);
        assert_eq!(step(&seen, start, 1000), Step::Wait(start + 15 * SECOND));
        assert_eq!(step(&seen, start + 14 * SECOND, 1014), Step::Wait(start + 15 * SECOND));
        let Step::Update(spec) = step(&seen, start + 15 * SECOND, 1015) else { panic!("it is over") };
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("me"), Some(4)));
        assert_eq!(spec.acquire_time.map(|t| t.0), Some(wall(1015)));
    }

    #[test]
    fn each_renewal_puts_the_end_off_and_a_new_revision_alone_does_not() {
        let start = Instant::now();
        let seen = Seen::after(None, lease("other", 15, 1000, 0), start);
        let renewed = Seen::after(Some(seen.clone()), lease("other", 15, 1002, 0), start + 2 * SECOND);
        assert_eq!(step(&renewed, start + 16 * SECOND, 1016), Step::Wait(start + 17 * SECOND));
        let mut touched = lease("other", 15, 1000, 0);
        touched.metadata.resource_version = Some("7".into());
        let touched = Seen::after(Some(seen), touched, start + 5 * SECOND);
        assert_eq!(touched.lease.metadata.resource_version.as_deref(), Some("7"));
        assert!(matches!(step(&touched, start + 15 * SECOND, 1015), Step::Update(_)));
    }

    #[test]
    fn a_released_one_is_taken_at_once() {
        let start = Instant::now();
        let seen = Seen::after(None, lease("other", 15, 1000, 3), start);
        let spec = released(&seen, wall(1001));
        assert_eq!((spec.lease_duration_seconds, spec.lease_transitions), (Some(1), Some(3)));
        let seen = Seen::after(Some(seen), Lease { spec: Some(spec), ..Lease::default() }, start + SECOND);
        let Step::Update(spec) = step(&seen, start + SECOND, 1001) else { panic!("nobody has it") };
        assert_eq!(spec.lease_transitions, Some(4));
    }

    #[test]
    fn a_holder_renews_and_keeps_when_it_began() {
        let start = Instant::now();
        let seen = Seen::after(None, lease("me", 15, 1000, 3), start);
        for after in [2 * SECOND, 100 * SECOND] {
            let Step::Update(spec) = step(&seen, start + after, 1002) else { panic!("a holder renews") };
            assert_eq!((spec.acquire_time.map(|t| t.0), spec.lease_transitions), (Some(wall(500)), Some(3)));
            assert_eq!(spec.renew_time.map(|t| t.0), Some(wall(1002)));
        }
    }

    #[test]
    fn jumping_clocks_neither_end_a_lease_nor_prolong_it() {
        let start = Instant::now();
        // the holder's clock is a year behind, or a year ahead, or ours is
        for renewed in [0, 1000, 40_000_000] {
            for ours in [0, 1000, 80_000_000] {
                let seen = Seen::after(None, lease("other", 15, renewed, 0), start);
                assert_eq!(step(&seen, start + 14 * SECOND, ours), Step::Wait(start + 15 * SECOND), "{renewed} {ours}");
                assert!(matches!(step(&seen, start + 15 * SECOND, ours), Step::Update(_)), "{renewed} {ours}");
            }
        }
        // the holder's clock is set back between two renewals: a sign of life nevertheless
        let seen = Seen::after(None, lease("other", 15, 1000, 0), start);
        let seen = Seen::after(Some(seen), lease("other", 15, 10, 0), start + 2 * SECOND);
        assert_eq!(seen.ends(), start + 17 * SECOND);
    }

    #[test]
    fn a_lease_made_anew_is_seen_anew() {
        let start = Instant::now();
        let mut old = lease("other", 15, 1000, 0);
        old.metadata.uid = Some("1".into());
        let mut new = old.clone();
        new.metadata.uid = Some("2".into());
        let seen = Seen::after(Some(Seen::after(None, old, start)), new, start + 9 * SECOND);
        assert_eq!(seen.ends(), start + 24 * SECOND);
    }

    #[test]
    fn a_lease_without_content_or_with_absurd_content_blocks_nobody() {
        let start = Instant::now();
        for lease in [Lease::default(), lease("other", 0, 1000, i32::MAX), lease("other", -5, 1000, 0)] {
            assert!(matches!(step(&Seen::after(None, lease, start), start, 1000), Step::Update(_)));
        }
        let forever = Seen::after(None, lease("other", i32::MAX, 1000, 0), start);
        assert!(matches!(step(&forever, start + 1000 * SECOND, 2000), Step::Wait(_)));
    }

    #[test]
    fn times_under_which_two_could_lead_are_refused() {
        assert_eq!(Timing::default().check(), Ok(()));
        let short = Timing { lease: 10 * SECOND, ..Timing::default() };
        assert_eq!(short.check(), Err("leaseDuration must be greater than renewDeadline"));
        let eager = Timing { renew: 2 * SECOND, ..Timing::default() };
        assert_eq!(eager.check(), Err("renewDeadline must be greater than retryPeriod*JitterFactor"));
        assert!(Timing { retry: Duration::ZERO, ..Timing::default() }.check().is_err());
    }
}
