//! Timestamps and durations.

use jiff::tz::{Offset, TimeZone};

use super::Res;
use crate::error::Error;
use crate::value::{Timestamp, Value};

/// The first and last second that a timestamp can be: of the years 1 and 9999.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

/// Whether a second is one that a timestamp can be.
pub(crate) fn check_seconds(seconds: i64) -> Result<(), Error> {
    if (FIRST..=LAST).contains(&seconds) { Ok(()) } else { Err(Error::new("timestamp overflow")) }
}

/// A moment after a duration.
pub(super) fn shift<'a>(t: Timestamp, nanos: i64) -> Res<'a> {
    let total = i128::from(t.seconds) * 1_000_000_000 + i128::from(t.nanos) + i128::from(nanos);
    let seconds = i64::try_from(total.div_euclid(1_000_000_000)).map_err(|_| Error::new("timestamp overflow"))?;
    check_seconds(seconds)?;
    Ok(Value::Timestamp(Timestamp { seconds, nanos: total.rem_euclid(1_000_000_000) as u32, offset: t.offset }))
}

/// Parses an RFC 3339 time.
pub(crate) fn parse_timestamp(text: &str) -> Result<Timestamp, Error> {
    let wrong = || Error::new(api::gotime::parse_error(text));
    let (seconds, nanos) = api::gotime::parse(text).ok_or_else(wrong)?;
    check_seconds(seconds)?;
    // The offset that was written, which the moment itself no longer tells.
    let tail = text.get(19..).unwrap_or_default();
    let offset = match tail.rfind(['+', '-']) {
        Some(at) => {
            let (hours, minutes) = tail[at + 1..].split_once(':').ok_or_else(wrong)?;
            let minutes = hours.parse::<i32>().map_err(|_| wrong())? * 60 + minutes.parse::<i32>().map_err(|_| wrong())?;
            if tail.as_bytes()[at] == b'-' { -minutes * 60 } else { minutes * 60 }
        }
        None => 0,
    };
    Ok(Timestamp { seconds, nanos, offset })
}

/// Parses a full date: its first second.
pub(crate) fn parse_date(text: &str) -> Result<Timestamp, Error> {
    let wrong = || Error::new(format!("parsing time {text:?} as \"2006-01-02\": cannot parse it"));
    if text.len() != 10 {
        return Err(wrong());
    }
    let (seconds, _) = api::gotime::parse(&format!("{text}T00:00:00Z")).ok_or_else(wrong)?;
    Ok(Timestamp { seconds, nanos: 0, offset: 0 })
}

/// Parses a Go duration.
pub(crate) fn parse_duration(text: &str) -> Result<i64, Error> {
    api::gotime::parse_duration(text).ok_or_else(|| Error::new(format!("time: invalid duration {text:?}")))
}

/// A duration as text: seconds, with as many digits as it needs.
pub(crate) fn format_duration(nanos: i64) -> String {
    let n = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = format!("{:09}", n % 1_000_000_000);
    match fraction.trim_end_matches('0') {
        "" => format!("{sign}{}s", n / 1_000_000_000),
        fraction => format!("{sign}{}.{fraction}s", n / 1_000_000_000),
    }
}

/// A moment as text, in the zone in which it was written.
pub(crate) fn format_timestamp(t: Timestamp) -> String {
    let mut text = api::gotime::format(t.seconds + i64::from(t.offset));
    text.pop();
    let fraction = format!("{:09}", t.nanos);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        text = format!("{text}.{fraction}");
    }
    if t.offset == 0 {
        return text + "Z";
    }
    let minutes = t.offset.abs() / 60;
    format!("{text}{}{:02}:{:02}", if t.offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
}

/// What can be asked of a moment or a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    FullYear,
    Month,
    DayOfYear,
    DayOfMonth,
    Date,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// A part of a moment, in UTC or in a zone, or of a duration.
pub(super) fn get<'a>(a: &[Value<'a>], part: Part) -> Res<'a> {
    let (t, zone) = match a {
        [Value::Duration(d)] => {
            return Ok(Value::Int(match part {
                Part::Hours => d / 3_600_000_000_000,
                Part::Minutes => d / 60_000_000_000,
                Part::Seconds => d / 1_000_000_000,
                Part::Milliseconds => d / 1_000_000,
                _ => return Err(Error::no_overload()),
            }));
        }
        [Value::Timestamp(t)] => (t, TimeZone::UTC),
        [Value::Timestamp(t), Value::String(name)] => (t, zone(name)?),
        _ => return Err(Error::no_overload()),
    };
    let at = jiff::Timestamp::new(t.seconds, t.nanos as i32).map_err(|_| Error::new("timestamp overflow"))?.to_zoned(zone);
    Ok(Value::Int(match part {
        Part::FullYear => i64::from(at.year()),
        Part::Month => i64::from(at.month()) - 1,
        Part::DayOfYear => i64::from(at.day_of_year()) - 1,
        Part::DayOfMonth => i64::from(at.day()) - 1,
        Part::Date => i64::from(at.day()),
        Part::DayOfWeek => i64::from(at.weekday().to_sunday_zero_offset()),
        Part::Hours => i64::from(at.hour()),
        Part::Minutes => i64::from(at.minute()),
        Part::Seconds => i64::from(at.second()),
        Part::Milliseconds => i64::from(t.nanos / 1_000_000),
    }))
}

/// A zone by its name, or by its offset (`+01:30`).
fn zone(name: &str) -> Result<TimeZone, Error> {
    let unknown = || Error::new(format!("unknown time zone {name}"));
    let Some((hours, minutes)) = name.split_once(':') else {
        return if matches!(name, "UTC" | "") { Ok(TimeZone::UTC) } else { TimeZone::get(name).map_err(|_| unknown()) };
    };
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    let total = if name.starts_with('-') { hours * 60 - minutes } else { hours * 60 + minutes };
    Offset::from_seconds(total.saturating_mul(60)).map(TimeZone::fixed).map_err(|_| unknown())
}
