//! The form that `go tool pprof` reads: https://github.com/google/pprof/blob/main/proto/profile.proto, compressed.
use std::collections::HashMap;
use std::io::Write;
use std::time::UNIX_EPOCH;

use api::codec::{put_bytes, put_int};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::report::Report;

/// Numbers of strings, from 1 on; 0 is the empty one.
#[derive(Default)]
struct Strings<'a> {
    all: Vec<&'a str>,
    known: HashMap<&'a str, i64>,
}

impl<'a> Strings<'a> {
    fn number(&mut self, text: &'a str) -> i64 {
        *self.known.entry(text).or_insert_with(|| {
            self.all.push(text);
            self.all.len() as i64
        })
    }
}

pub fn encode(report: &Report) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    // into memory: there is nothing that could fail
    let _ = gzip.write_all(&message(report));
    gzip.finish().unwrap_or_default()
}

/// `Profile`. Each name is a function and a location of its own, under its string's number.
fn message(report: &Report) -> Vec<u8> {
    let (mut out, mut strings) = (Vec::new(), Strings::default());
    for path in report.amounts.keys() {
        for name in path {
            strings.number(name);
        }
    }
    let names = strings.all.len() as i64;
    let mut kinds = report.kinds.iter().map(|(kind, unit)| of_ints(&[(1, strings.number(kind)), (2, strings.number(unit))])).collect::<Vec<_>>();
    kinds.iter().for_each(|kind| put_bytes(&mut out, 1, kind));
    for (path, amount) in &report.amounts {
        let mut sample: Vec<(u32, i64)> = path.iter().rev().map(|name| (1, strings.number(name))).collect();
        sample.extend([(2, amount.count as i64), (2, amount.sum as i64)]);
        put_bytes(&mut out, 2, &of_ints(&sample));
    }
    for id in 1..=names {
        let mut location = of_ints(&[(1, id)]);
        put_bytes(&mut location, 4, &of_ints(&[(1, id)]));
        put_bytes(&mut out, 4, &location);
        put_bytes(&mut out, 5, &of_ints(&[(1, id), (2, id), (3, id)]));
    }
    put_bytes(&mut out, 6, b"");
    strings.all.iter().for_each(|text| put_bytes(&mut out, 6, text.as_bytes()));
    put_int(&mut out, 9, report.taken.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as i64));
    put_int(&mut out, 10, report.duration.as_nanos() as i64);
    if let Some(period_kind) = kinds.pop() {
        put_bytes(&mut out, 11, &period_kind);
        put_int(&mut out, 12, 1);
    }
    out
}

fn of_ints(fields: &[(u32, i64)]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(number, value)| put_int(&mut out, *number, *value));
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::time::Duration;

    use super::super::report::Amount;
    use super::*;

    /// Numbers that are easily wrong and make the file unreadable: those of strings, functions and locations.
    #[test]
    fn the_message() {
        let amounts = BTreeMap::from([(vec!["a".into(), "b".into()], Amount { count: 3, sum: 300 })]);
        let kinds = [("times", "count"), ("cpu", "nanoseconds")];
        let report = Report { file: "profile", kinds, taken: UNIX_EPOCH, duration: Duration::from_nanos(5), amounts };
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&encode(&report)[..]).read_to_end(&mut plain).unwrap();
        let expected: &[&[u8]] = &[
            b"\x0a\x04\x08\x03\x10\x04", b"\x0a\x04\x08\x05\x10\x06", // sample types: strings 3 and 4, 5 and 6
            b"\x12\x09\x08\x02\x08\x01\x10\x03\x10\xac\x02", // b in a: 3 and 300
            b"\x22\x06\x08\x01\x22\x02\x08\x01", b"\x2a\x06\x08\x01\x10\x01\x18\x01", // location and function 1
            b"\x22\x06\x08\x02\x22\x02\x08\x02", b"\x2a\x06\x08\x02\x10\x02\x18\x02",
            b"\x32\x00", b"\x32\x01a", b"\x32\x01b", b"\x32\x05times", b"\x32\x05count", b"\x32\x03cpu", b"\x32\x0bnanoseconds",
            b"\x48\x00", b"\x50\x05", b"\x5a\x04\x08\x05\x10\x06", b"\x60\x01",
        ];
        assert_eq!(plain, expected.concat());
    }
}
