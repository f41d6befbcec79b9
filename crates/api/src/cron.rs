//! Schedules of cron jobs: the five fields of cron, the names for common ones, and `@every`. They
//! are read and complained about as the library that upstream uses does it.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

use crate::field::go_quote;
use crate::gotime;

/// A schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The zone that the schedule itself names, as `TZ=Asia/Tokyo 0 0 * * *`.
    pub zone: Option<TimeZone>,
    when: When,
}

#[derive(Debug, Clone, PartialEq)]
enum When {
    Every(SignedDuration),
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
}

/// The values of one field.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Field {
    bits: u64,
    /// Written as `*` or `?`: then the other one of day and weekday decides alone.
    star: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        self.bits & (1 << value) != 0
    }
}

/// Smallest and largest value of a field, and names for its values.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOUR: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAY: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTH: Bounds =
    Bounds { min: 1, max: 12, names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"] };
const WEEKDAY: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Reads a schedule; the error is upstream's sentence.
pub fn parse(text: &str) -> Result<Schedule, String> {
    if text.is_empty() {
        return Err("empty spec string".into());
    }
    let mut rest = text;
    let mut in_zone = None;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (name, schedule) = text
            .split_once(' ')
            .ok_or("invalid schedule format: runtime error: slice bounds out of range [:-1]")?;
        let name = name.split_once('=').map_or("", |(_, n)| n);
        in_zone = Some(zone(name).map_err(|e| format!("provided bad location {name}: {e}"))?);
        rest = schedule.trim();
    }
    let when = if rest.starts_with('@') { descriptor(rest)? } else { fields(rest)? };
    Ok(Schedule { zone: in_zone, when })
}

fn descriptor(text: &str) -> Result<When, String> {
    match text {
        "@yearly" | "@annually" => fields("0 0 1 1 *"),
        "@monthly" => fields("0 0 1 * *"),
        "@weekly" => fields("0 0 * * 0"),
        "@daily" | "@midnight" => fields("0 0 * * *"),
        "@hourly" => fields("0 * * * *"),
        _ => {
            let every = text.strip_prefix("@every ").ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            let nanos = gotime::parse_duration(every)
                .ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {}", go_quote(every)))?;
            Ok(When::Every(SignedDuration::from_secs((nanos / 1_000_000_000).max(1))))
        }
    }
}

fn fields(text: &str) -> Result<When, String> {
    let all: Vec<&str> = text.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = all.as_slice() else {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", all.len(), all.join(" ")));
    };
    Ok(When::Fields {
        minute: field(minute, &MINUTE)?,
        hour: field(hour, &HOUR)?,
        day: field(day, &DAY)?,
        month: field(month, &MONTH)?,
        weekday: field(weekday, &WEEKDAY)?,
    })
}

fn field(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let mut sum = Field { bits: 0, star: false };
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let one = range(part, bounds)?;
        sum.bits |= one.bits;
        sum.star |= one.star;
    }
    Ok(sum)
}

fn range(part: &str, bounds: &Bounds) -> Result<Field, String> {
    let by_slash: Vec<&str> = part.split('/').collect();
    let by_hyphen: Vec<&str> = by_slash[0].split('-').collect();
    let mut star = matches!(by_hyphen[0], "*" | "?");
    let (from, mut to) = if star {
        (bounds.min, bounds.max)
    } else {
        let from = value(by_hyphen[0], bounds)?;
        match by_hyphen.as_slice() {
            [_] => (from, from),
            [_, to] => (from, value(to, bounds)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    let step = match by_slash.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if by_hyphen.len() == 1 {
                to = bounds.max;
            }
            star &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    let Bounds { min, max, .. } = bounds;
    if from < *min {
        return Err(format!("beginning of range ({from}) below minimum ({min}): {part}"));
    }
    if to > *max {
        return Err(format!("end of range ({to}) above maximum ({max}): {part}"));
    }
    if from > to {
        return Err(format!("beginning of range ({from}) beyond end of range ({to}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(Field { bits: (from..=to).step_by(step as usize).fold(0, |bits, v| bits | 1 << v), star })
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let named = bounds.names.iter().position(|n| text.eq_ignore_ascii_case(n));
    named.map_or_else(|| number(text), |at| Ok(at as u32 + bounds.min))
}

fn number(text: &str) -> Result<u32, String> {
    let invalid = |why| format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", go_quote(text));
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid("invalid syntax"));
    }
    let n: i64 = text.parse().map_err(|_| invalid("value out of range"))?;
    if n < 0 {
        return Err(format!("negative number ({n}) not allowed: {text}"));
    }
    Ok(u32::try_from(n).unwrap_or(u32::MAX))
}

impl Schedule {
    /// The first time after `after`, on a clock of the schedule's own zone or else of `zone`. None
    /// when there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        let (minute, hour, day, month, weekday) = match &self.when {
            When::Every(delay) => return whole.checked_add(*delay).ok(),
            When::Fields { minute, hour, day, month, weekday } => (minute, hour, day, month, weekday),
        };
        let zone = self.zone.as_ref().unwrap_or(zone);
        let mut at = whole.checked_add(SignedDuration::from_secs(1)).ok()?.to_zoned(zone.clone());
        let last = at.year() + 5;
        while at.year() <= last {
            let (on_day, on_weekday) = (day.has(at.day()), weekday.has(at.weekday().to_sunday_zero_offset()));
            let day_fits = if day.star || weekday.star { on_day && on_weekday } else { on_day || on_weekday };
            if !month.has(at.month()) {
                at = start_of(at.date().first_of_month().checked_add(1.month()).ok()?, zone)?;
            } else if !day_fits {
                at = start_of(at.date().tomorrow().ok()?, zone)?;
            } else if !hour.has(at.hour()) {
                // By the length of an hour, not by the clock: that is right when the clock is changed.
                at = later(&at, 3600 - i64::from(at.minute()) * 60 - i64::from(at.second()))?;
            } else if !minute.has(at.minute()) || at.second() != 0 {
                at = later(&at, 60 - i64::from(at.second()))?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }
}

fn start_of(date: Date, zone: &TimeZone) -> Option<Zoned> {
    date.to_zoned(zone.clone()).ok()
}

fn later(at: &Zoned, seconds: i64) -> Option<Zoned> {
    at.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// Where systems keep the time zone database.
const DATABASES: [&str; 3] = ["/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/etc/zoneinfo"];

/// The time zone of this name, from the machine's database. The error is Go's sentence.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    if matches!(name, "" | "UTC") {
        return Ok(TimeZone::UTC);
    }
    if name.starts_with(['/', '\\']) || name.split('/').any(|p| p == "..") {
        return Err("time: invalid location name".into());
    }
    let read = DATABASES.iter().find_map(|base| std::fs::read(format!("{base}/{name}")).ok());
    read.and_then(|bytes| TimeZone::tzif(name, &bytes).ok()).ok_or_else(|| format!("unknown time zone {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let next = parse(schedule).expect(schedule).next(after.parse().expect("a time"), &TimeZone::UTC);
        next.map_or("never".into(), |t| t.to_string())
    }

    #[test]
    fn times() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2025-12-31T23:59:59.5Z", "2026-01-01T00:00:00Z"),
            ("*/15 * * * *", "2026-01-01T00:46:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 * * * *", "2026-01-01T00:25:00Z", "2026-01-01T00:45:00Z"),
            ("30 8-10/2 * * *", "2026-01-01T08:30:00Z", "2026-01-01T10:30:00Z"),
            ("0 0 * * MON", "2026-01-01T00:00:00Z", "2026-01-05T00:00:00Z"),
            ("0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 13 * ?", "2026-01-01T00:00:00Z", "2026-01-13T00:00:00Z"),
            ("0 0 */2 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 12 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T12:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@daily", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00.7Z", "2026-01-01T01:30:00Z"),
            ("@every 1ms", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ] {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn clocks_that_change() {
        // Half a year of each: in spring 02:30 does not exist, in autumn it comes twice.
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone");
        let next = |after: &str| parse("30 2 * * *").expect("a schedule").next(after.parse().expect("a time"), &zone).expect("a time").to_string();
        assert_eq!(next("2026-03-27T12:00:00Z"), "2026-03-28T01:30:00Z");
        assert_eq!(next("2026-03-28T12:00:00Z"), "2026-03-30T00:30:00Z", "the 29th has no such time");
        assert_eq!(next("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
    }

    #[test]
    fn complaints() {
        for (schedule, expected) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=0", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
            ("TZ=No/Where * * * * *", "provided bad location No/Where: unknown time zone No/Where"),
        ] {
            assert_eq!(parse(schedule).expect_err(schedule), expected);
        }
        assert_eq!(zone("../passwd"), Err("time: invalid location name".into()));
    }
}
