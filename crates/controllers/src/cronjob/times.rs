//! Which of a schedule's times is due, and when to look again. Pure.

use std::time::Duration;

use api::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::CronJob;

/// Looking again a little late makes sure that the time has come.
const MARGIN: SignedDuration = SignedDuration::from_millis(100);
/// More missed times than this are worth a warning.
const MANY: i64 = 100;

/// A schedule on the clock of a zone.
#[derive(Debug, Clone)]
pub struct Clock {
    pub schedule: Schedule,
    pub zone: TimeZone,
}

/// What the schedule says of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// From when on times count.
    pub since: Timestamp,
    /// The last time that has come.
    pub time: Option<Timestamp>,
    pub missed: Missed,
}

/// How many times have come since a job was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    None,
    Few,
    Many,
}

/// A schedule whose times are no times.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("time difference between two schedules is less than 1 second")]
pub struct NoTimes;

impl Clock {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }

    /// The last time that has come since the cron job was made or last made a job. With `deadline`,
    /// times that are too long ago to start a job are passed over.
    pub fn due(&self, cron: &CronJob, now: Timestamp, deadline: bool) -> Result<Due, NoTimes> {
        let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
        let mut since = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
        let limit = cron.spec.starting_deadline_seconds.filter(|_| deadline);
        if let Some(seconds) = limit {
            since = since.max(now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN));
        }
        let none = Due { since, time: None, missed: Missed::None };
        let first = self.next(since).ok_or(NoTimes)?;
        if now < first {
            return Ok(none);
        }
        let second = self.next(first).ok_or(NoTimes)?;
        if now < second {
            return Ok(Due { time: Some(first), ..none });
        }
        let between = second.duration_since(first).as_secs();
        if between < 1 {
            return Err(NoTimes);
        }
        // Jump near the end by the first distance, then walk. Times come at uneven distances: a jump
        // beyond the last one is made shorter, down to none.
        let count = now.duration_since(first).as_secs() / between + 1;
        let (mut time, mut steps) = (None, count - 2);
        while time.is_none() {
            let from = first.saturating_add(SignedDuration::from_secs(between.saturating_mul(steps))).unwrap_or(now);
            let mut at = self.next(from);
            while let Some(t) = at.filter(|t| *t <= now) {
                time = Some(t);
                at = self.next(t);
            }
            if steps <= 0 {
                break;
            }
            steps /= 2;
        }
        Ok(Due { since, time, missed: if count > MANY { Missed::Many } else { Missed::Few } })
    }

    /// How long until the next time.
    pub fn wait(&self, cron: &CronJob, now: Timestamp) -> Option<Duration> {
        let from = match self.due(cron, now, false) {
            Err(NoTimes) => now,
            Ok(Due { time: Some(time), .. }) => time,
            Ok(Due { since, missed: Missed::None, .. }) => since,
            Ok(_) => now,
        };
        let left = self.next(from)?.saturating_add(MARGIN).ok()?.duration_since(now);
        Some(if left.is_negative() { Duration::ZERO } else { left.unsigned_abs() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().expect("a time")
    }

    fn cron(last: Option<&str>, deadline: Option<i64>) -> CronJob {
        let spec: Value = json!({"schedule": "", "jobTemplate": {}, "startingDeadlineSeconds": deadline});
        serde_json::from_value(json!({"metadata": {"creationTimestamp": at("00:00:30").to_string()}, "spec": spec,
            "status": {"lastScheduleTime": last.map(|l| at(l).to_string())}}))
        .expect("a cron job")
    }

    fn clock(schedule: &str) -> Clock {
        Clock { schedule: api::cron::parse(schedule).expect(schedule), zone: TimeZone::UTC }
    }

    #[test]
    fn the_last_time_is_due() {
        let hourly = clock("0 * * * *");
        let due = |last: Option<&str>, deadline: Option<i64>, now: &str| {
            let due = hourly.due(&cron(last, deadline), at(now), true).expect("times");
            (due.time, due.missed)
        };
        assert_eq!(due(None, None, "00:59:59"), (None, Missed::None));
        assert_eq!(due(None, None, "01:00:00"), (Some(at("01:00:00")), Missed::None));
        assert_eq!(due(Some("01:00:00"), None, "01:30:00"), (None, Missed::None));
        assert_eq!(due(None, None, "02:00:00"), (Some(at("02:00:00")), Missed::Few), "to the second");
        let seconds = clock("@every 1s").due(&cron(None, None), at("00:00:40"), true).expect("times");
        assert_eq!(seconds.time, Some(at("00:00:40")));
        assert_eq!(due(Some("01:00:00"), None, "05:30:00"), (Some(at("05:00:00")), Missed::Few));
        assert_eq!(due(Some("01:00:00"), Some(600), "05:30:00"), (None, Missed::None), "05:00 is too long ago");
        assert_eq!(due(Some("01:00:00"), Some(600), "05:05:00"), (Some(at("05:00:00")), Missed::None));
    }

    #[test]
    fn more_than_a_hundred_are_many() {
        let minutes = clock("* * * * *");
        let due = |now: &str| minutes.due(&cron(None, None), at(now), true).expect("times");
        assert_eq!((due("01:40:30").time, due("01:40:30").missed), (Some(at("01:40:00")), Missed::Few));
        assert_eq!((due("01:41:30").time, due("01:41:30").missed), (Some(at("01:41:00")), Missed::Many));
    }

    #[test]
    fn uneven_times_are_found() {
        // At 10:00, 11:00 and 23:00 each day.
        let uneven = clock("0 10,11,23 * * *");
        let due = uneven.due(&cron(None, None), "2026-01-03T12:00:00Z".parse().expect("a time"), true).expect("times");
        assert_eq!(due.time, Some("2026-01-03T11:00:00Z".parse().expect("a time")));
        assert_eq!(clock("0 0 31 2 *").due(&cron(None, None), at("01:00:00"), true), Err(NoTimes));
    }

    #[test]
    fn waits_for_the_next_time() {
        let wait = |last: Option<&str>, now: &str| clock("0 * * * *").wait(&cron(last, None), at(now)).map(|d| d.as_millis());
        assert_eq!(wait(None, "00:59:00"), Some(60_100));
        assert_eq!(wait(Some("01:00:00"), "01:00:01"), Some(3_599_100));
        assert_eq!(wait(None, "05:30:00"), Some(1_800_100));
        assert_eq!(clock("0 0 31 2 *").wait(&cron(None, None), at("01:00:00")), None);
    }
}
