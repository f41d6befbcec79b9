//! Ages for people: two or three figures, as `kubectl` shows them.

use jiff::Timestamp;

/// A duration in whole seconds, with two or three figures: `5m30s`, `3d4h`, `2y10d`.
pub fn human(seconds: i64) -> String {
    let s = seconds;
    let (minutes, hours) = (s / 60, s / 3600);
    let two = |a: i64, unit: &str, b: i64, sub: &str| if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{sub}") };
    match s {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if s < 120 => format!("{s}s"),
        _ if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// A duration in whole seconds, with one figure: `5m`, `3d`.
pub fn short(seconds: i64) -> String {
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => format!("{}m", s / 60),
        s if s < 86_400 => format!("{}h", s / 3600),
        s if s < 86_400 * 365 => format!("{}d", s / 86_400),
        s => format!("{}y", s / 86_400 / 365),
    }
}

/// When ages are told.
#[derive(Clone, Copy)]
pub enum Clock {
    /// At this time.
    At(Timestamp),
    /// Later: a mark with the time since when they are counted stands for them.
    Later,
}

/// What a mark begins and ends with; the milliseconds since 1970 are between.
pub const MARK: char = '\u{1}';

impl Clock {
    /// The time since this one, truncated towards zero.
    pub fn ago(self, then: Timestamp) -> String {
        match self {
            Clock::At(now) => human((now.as_millisecond() - then.as_millisecond()) / 1000),
            Clock::Later => format!("{MARK}{}{MARK}", then.as_millisecond()),
        }
    }

    /// The time since an RFC 3339 time, `<unknown>` when there is none.
    pub fn since(self, time: Option<&str>) -> String {
        time.and_then(|t| t.parse().ok()).map_or_else(|| "<unknown>".to_owned(), |then| self.ago(then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        const D: i64 = 86_400;
        for (s, want) in [
            (-5, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"),
            (3 * 3600 - 1, "179m"), (3 * 3600, "3h"), (3 * 3600 + 300, "3h5m"), (8 * 3600 + 300, "8h"), (47 * 3600, "47h"),
            (2 * D, "2d"), (2 * D + 3600, "2d1h"), (8 * D + 3600, "8d"), (729 * D, "729d"), (730 * D, "2y"),
            (731 * D, "2y1d"), (8 * 365 * D, "8y"),
        ] {
            assert_eq!(human(s), want);
        }
        assert_eq!((short(59), short(61), short(7200), short(3 * D), short(800 * D)), ("59s".into(), "1m".into(), "2h".into(), "3d".into(), "2y".into()));
    }
}
