//! Go's normal forms of time: `metav1.Time` (RFC 3339, whole seconds, UTC), `metav1.MicroTime`
//! (six decimals) and `metav1.Duration`. Pure text and numbers, no clock.

/// Seconds since 1970 of 0001-01-01T00:00:00Z, Go's zero time, which JSON shows as `null`.
pub const ZERO: i64 = -62_135_596_800;

/// The seconds that can be written: four digits of a year are read again.
pub const WRITABLE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// Parses RFC 3339: seconds since 1970 and nanoseconds.
pub fn parse(text: &str) -> Option<(i64, u32)> {
    let b = text.as_bytes();
    let digits = |from: usize, to: usize| {
        b.get(from..to)?.iter().try_fold(0i64, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
    };
    let is = |at: usize, c: u8| b.get(at) == Some(&c);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day < 1 || day > last || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (mut at, mut nanos) = (19, 0u32);
    if is(at, b'.') {
        at += 1;
        let start = at;
        while b.get(at).is_some_and(u8::is_ascii_digit) {
            if at - start < 9 {
                nanos = nanos * 10 + u32::from(b[at] - b'0');
            }
            at += 1;
        }
        if at == start {
            return None;
        }
        for _ in (at - start)..9 {
            nanos *= 10;
        }
    }
    let offset = match b.get(at)? {
        b'Z' if b.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if b.len() == at + 6 && is(at + 3, b':') => {
            let (h, m) = (digits(at + 1, at + 3)?, digits(at + 4, at + 6)?);
            if h > 23 || m > 59 {
                return None;
            }
            (h * 3600 + m * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    Some((days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos))
}

/// `2006-01-02T15:04:05Z`
pub fn format(seconds: i64) -> String {
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let s = seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// `2006-01-02T15:04:05.000000Z`
pub fn format_micro(seconds: i64, nanos: u32) -> String {
    let mut text = format(seconds);
    text.pop();
    format!("{text}.{:06}Z", nanos / 1000)
}

/// Why a time cannot be read, in the words of Go's time package.
pub fn parse_error(text: &str) -> String {
    let rest = |at: usize| text.get(at..).unwrap_or("");
    let fail = |value: &str, element: &str| {
        format!("parsing time {} as \"2006-01-02T15:04:05Z07:00\": cannot parse {} as \"{element}\"", quote(text), quote(value))
    };
    let b = text.as_bytes();
    let elements = [(0, 4, "2006"), (4, 1, "-"), (5, 2, "01"), (7, 1, "-"), (8, 2, "02"), (10, 1, "T"), (11, 2, "15"), (13, 1, ":"), (14, 2, "04"), (16, 1, ":"), (17, 2, "05")];
    for (at, len, element) in elements {
        let part = b.get(at..at + len);
        let fits = part.is_some_and(|p| if len == 1 { p == element.as_bytes() } else { p.iter().all(u8::is_ascii_digit) });
        if !fits {
            return fail(rest(at), element);
        }
    }
    match b.get(19) {
        None | Some(b'.') => fail(rest(19), "Z07:00"),
        Some(b'Z') => format!("parsing time {}: extra text: {}", quote(text), quote(rest(20))),
        _ => format!("parsing time {}: day out of range", quote(text)),
    }
}

fn quote(text: &str) -> String {
    format!("\"{text}\"")
}

/// Parses a time with exactly six digits behind the second. The error is Go's.
pub fn parse_micro(text: &str) -> Result<(i64, u32), String> {
    let micro = |m: String| m.replacen("15:04:05Z07:00", "15:04:05.000000Z07:00", 1);
    let parsed = parse(text).ok_or_else(|| micro(parse_error(text)))?;
    // it has been parsed, so the seconds end here
    let rest = text.get(19..).unwrap_or_default();
    let digits = rest.strip_prefix('.').map_or(0, |d| d.bytes().take_while(u8::is_ascii_digit).count());
    let (at, element) = match digits {
        6 => return Ok(parsed),
        0..6 => (rest, ".000000"),
        _ => (&rest[7..], "Z07:00"),
    };
    Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse {at:?} as {element:?}"))
}

/// Parses a Go duration (`1h30m`, `1.5s`, `-2us`) into nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(scale)?)?;
        let mut unit_part = scale;
        for digit in fraction.bytes().take(15) {
            unit_part /= 10;
            total += i128::from(digit - b'0') * unit_part;
        }
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// What Go says of a text that [`parse_duration`] does not take.
pub fn duration_error(text: &str) -> String {
    let quoted = crate::field::go_quote(text);
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    while rest.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        let unit_on = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let unit_on = unit_on.strip_prefix('.').map_or(unit_on, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
        if unit_on.len() + 1 == rest.len() && rest.starts_with('.') {
            break;
        }
        let end = unit_on.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_on.len());
        match &unit_on[..end] {
            "" => return format!("time: missing unit in duration {quoted}"),
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" => rest = &unit_on[end..],
            unit => return format!("time: unknown unit {} in duration {quoted}", crate::field::go_quote(unit)),
        }
    }
    format!("time: invalid duration {quoted}")
}

/// Go's `Duration.String`: `1h30m0s`, `1.5s`, `2µs`, `0s`.
pub fn format_duration(nanos: i64) -> String {
    let n = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let trim = |whole: u64, fraction: u64, digits: usize, unit: &str| {
        let fraction = format!("{fraction:0digits$}");
        match fraction.trim_end_matches('0') {
            "" => format!("{sign}{whole}{unit}"),
            f => format!("{sign}{whole}.{f}{unit}"),
        }
    };
    match n {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{n}ns"),
        1_000..1_000_000 => trim(n / 1_000, n % 1_000, 3, "µs"),
        1_000_000..1_000_000_000 => trim(n / 1_000_000, n % 1_000_000, 6, "ms"),
        _ => {
            let seconds = n / 1_000_000_000;
            let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let mut text = sign.to_owned();
            if h > 0 {
                text += &format!("{h}h");
            }
            if seconds >= 60 {
                text += &format!("{m}m");
            }
            let f = format!("{:09}", n % 1_000_000_000);
            match f.trim_end_matches('0') {
                "" => text + &format!("{s}s"),
                f => text + &format!("{s}.{f}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        for text in ["2026-01-02T03:04:05Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "2024-02-29T23:59:59Z"] {
            assert_eq!(format(parse(text).unwrap().0), text);
        }
        assert_eq!(parse("0001-01-01T00:00:00Z"), Some((ZERO, 0)));
        assert_eq!(parse("2026-01-02T03:04:05.25+02:00").map(|(s, n)| format_micro(s, n)).unwrap(), "2026-01-02T01:04:05.250000Z");
        for bad in ["", "2026-01-02", "2026-02-30T00:00:00Z", "2026-01-02T03:04:05", "2026-01-02 03:04:05Z"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse_error("x"), "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\"");
    }

    #[test]
    fn six_digits() {
        assert_eq!(parse_micro("2026-01-02T03:04:05.250000Z").unwrap().1, 250_000_000);
        let end = |text: &str| parse_micro(text).unwrap_err().rsplit(": ").next().unwrap().to_owned();
        assert_eq!(end("2026-01-02T03:04:05Z"), "cannot parse \"Z\" as \".000000\"");
        assert_eq!(end("2026-01-02T03:04:05.25Z"), "cannot parse \".25Z\" as \".000000\"");
        assert_eq!(end("2026-01-02T03:04:05.1234567Z"), "cannot parse \"7Z\" as \"Z07:00\"");
    }

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "1h30m0s", "1.5s", "2µs", "100ms", "-3s", "1m0s", "24h0m0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("90m").map(format_duration).unwrap(), "1h30m0s");
        assert_eq!(parse_duration("5"), None);
    }

    #[test]
    fn wrong_durations_are_told_as_by_go() {
        for (text, expected) in [
            ("invalid", "time: invalid duration \"invalid\""),
            ("30", "time: missing unit in duration \"30\""),
            ("1.5s3", "time: missing unit in duration \"1.5s3\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("-.s", "time: invalid duration \"-.s\""),
            ("", "time: invalid duration \"\""),
        ] {
            assert_eq!(parse_duration(text), None);
            assert_eq!(duration_error(text), expected);
        }
    }
}
