//! Rows that are made once and written at any time: what depends on the time is only how long ago something was.

use serde_json::Value;

use super::duration::{Clock, MARK, human};
use super::rows;
use jiff::Timestamp;

/// The cells and conditions of an object's row as JSON, with the ages left out.
pub struct Row {
    json: Box<[u8]>,
    /// Where an age belongs, and since when it is counted (milliseconds since 1970); in order.
    ages: Box<[(u32, i64)]>,
}

impl Row {
    /// Of an object whose texts have no character U+0001 (see [`Row::can_be_made`]).
    pub fn new(group: &str, kind: &str, obj: &Value) -> Row {
        let cells = rows::row(group, kind, &rows::Printer { obj, clock: Clock::Later });
        let mut text = format!("{{\"cells\":{}", Value::Array(cells));
        if let Some(conditions) = super::row_conditions(group, kind, obj) {
            text += &format!(",\"conditions\":{conditions}");
        }
        let mut json = String::with_capacity(text.len());
        let mut ages = Vec::new();
        // texts and marks in turn
        for (i, part) in text.split(MARK_IN_JSON).enumerate() {
            match part.parse() {
                Ok(since) if i % 2 == 1 => ages.push((json.len() as u32, since)),
                _ => json.push_str(part),
            }
        }
        Row { json: json.into_bytes().into(), ages: ages.into() }
    }

    /// Whether an object's JSON has nothing in it that looks like a mark.
    pub fn can_be_made(json: &[u8]) -> bool {
        let mut rest = json;
        while let Some(at) = rest.iter().position(|b| *b == b'\\') {
            if rest[at..].starts_with(MARK_IN_JSON.as_bytes()) {
                return false;
            }
            rest = rest.get(at + 2..).unwrap_or_default();
        }
        true
    }

    /// Appends `{"cells":[…]`, open for what else a row has, as it is at a time.
    pub fn write(&self, now: Timestamp, out: &mut Vec<u8>) {
        let mut from = 0;
        for (at, since) in &self.ages {
            out.extend_from_slice(&self.json[from..*at as usize]);
            out.extend_from_slice(human((now.as_millisecond() - since) / 1000).as_bytes());
            from = *at as usize;
        }
        out.extend_from_slice(&self.json[from..]);
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.json.len() + self.ages.len() * size_of::<(u32, i64)>() + size_of::<Row>()
    }
}

/// [`MARK`] as JSON writes it.
const MARK_IN_JSON: &str = "\\u0001";
const _: () = assert!(MARK == '\u{1}');

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_is_the_same_at_any_time() {
        let pod = json!({"metadata": {"name": "a\"b", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Failed", "containerStatuses": [{"restartCount": 2, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:58:00Z"}}}]}});
        let event = json!({"metadata": {"name": "e"}, "lastTimestamp": "2026-01-01T00:58:00Z", "firstTimestamp": null, "message": "x"});
        let running = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"containers": []}}}, "status": {"startTime": "2026-01-01T00:00:10Z"}});
        for (group, kind, object) in [("", "Pod", pod), ("", "Event", event), ("batch", "Job", running)] {
            let row = Row::new(group, kind, &object);
            for now in ["2026-01-01T01:00:00Z", "2026-01-01T01:00:01Z", "2027-06-01T00:00:00Z", "2025-01-01T00:00:00Z"] {
                let now: Timestamp = now.parse().unwrap();
                let mut out = Vec::new();
                row.write(now, &mut out);
                out.push(b'}');
                let mut wanted = json!({"cells": super::super::row(group, kind, &object, now)});
                if let Some(conditions) = super::super::row_conditions(group, kind, &object) {
                    wanted["conditions"] = conditions;
                }
                assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), wanted);
            }
        }
    }

    #[test]
    fn marks_of_others_are_seen() {
        assert!(Row::can_be_made(json!({"a": "b\u{2}"}).to_string().as_bytes()));
        assert!(!Row::can_be_made(json!({"a": "\u{1}5\u{1}"}).to_string().as_bytes()));
    }
}
