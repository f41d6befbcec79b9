//! Semantic versions (semver.org, 2.0.0).

use std::cmp::Ordering;
use std::sync::Arc;

use super::Res;
use crate::error::Error;
use crate::value::{Opaque, Value};

/// A version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Semver {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) patch: u64,
    pre: Vec<Pre>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pre {
    Number(u64),
    Text(String),
}

impl Semver {
    /// Parses a version strictly.
    pub(crate) fn parse(text: &str) -> Result<Semver, Error> {
        let wrong = |why: &str| Error::new(why.to_string());
        if text.is_empty() {
            return Err(wrong("Version string empty"));
        }
        let mut parts = text.splitn(3, '.');
        let (Some(major), Some(minor), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("No Major.Minor.Patch elements found"));
        };
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(r, b)| (r, Some(b)));
        let (patch, pre) = rest.split_once('-').map_or((rest, None), |(p, r)| (p, Some(r)));
        let number = |name: &str, text: &str| {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Error::new(format!("Invalid character(s) found in {name} number {text:?}")));
            }
            if text.len() > 1 && text.starts_with('0') {
                return Err(Error::new(format!("{}{} number must not contain leading zeroes {text:?}", name[..1].to_uppercase(), &name[1..])));
            }
            text.parse::<u64>().map_err(|_| Error::new(format!("{name} number {text:?} is out of range")))
        };
        let identifier = |text: &str| !text.is_empty() && text.bytes().all(|b| b == b'-' || b.is_ascii_alphanumeric());
        let mut version = Semver { major: number("major", major)?, minor: number("minor", minor)?, patch: number("patch", patch)?, pre: Vec::new() };
        for part in pre.into_iter().flat_map(|p| p.split('.')) {
            if part.is_empty() {
                return Err(wrong("Prerelease is empty"));
            }
            if !identifier(part) {
                return Err(Error::new(format!("Invalid character(s) found in prerelease {part:?}")));
            }
            version.pre.push(if part.bytes().all(|b| b.is_ascii_digit()) {
                if part.len() > 1 && part.starts_with('0') {
                    return Err(Error::new(format!("Numeric PreRelease version must not contain leading zeroes {part:?}")));
                }
                Pre::Number(part.parse().map_err(|_| wrong("prerelease number is out of range"))?)
            } else {
                Pre::Text(part.to_string())
            });
        }
        for part in build.into_iter().flat_map(|b| b.split('.')) {
            if part.is_empty() {
                return Err(wrong("Build meta data is empty"));
            }
            if !identifier(part) {
                return Err(Error::new(format!("Invalid character(s) found in build meta data {part:?}")));
            }
        }
        Ok(version)
    }

    /// Parses what is almost a version: with a `v` before it, leading zeros, or without minor and patch.
    fn normalize(text: &str) -> Result<Semver, Error> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_string).collect();
        for part in &mut parts {
            if part.len() > 1 {
                let cut = part.trim_start_matches('0');
                *part = if cut.starts_with(|c: char| c.is_ascii_digit()) { cut.to_string() } else { format!("0{cut}") };
            }
        }
        if parts.len() < 3 {
            if parts.last().is_some_and(|p| p.contains(['+', '-'])) {
                return Err(Error::new("short version cannot contain PreRelease/Build meta data"));
            }
            parts.resize(3, "0".to_string());
        }
        Semver::parse(&parts.join("."))
    }

    /// The order of versions: build data does not count, a pre-release is before its release.
    pub(crate) fn compare(&self, other: &Semver) -> Ordering {
        let numbers = (self.major, self.minor, self.patch).cmp(&(other.major, other.minor, other.patch));
        numbers.then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                for (a, b) in self.pre.iter().zip(&other.pre) {
                    let order = match (a, b) {
                        (Pre::Number(a), Pre::Number(b)) => a.cmp(b),
                        (Pre::Number(_), Pre::Text(_)) => Ordering::Less,
                        (Pre::Text(_), Pre::Number(_)) => Ordering::Greater,
                        (Pre::Text(a), Pre::Text(b)) => a.cmp(b),
                    };
                    if order.is_ne() {
                        return order;
                    }
                }
                self.pre.len().cmp(&other.pre.len())
            }
        })
    }
}

fn of(a: &[Value<'_>]) -> Result<Result<Semver, Error>, Error> {
    match a {
        [Value::String(s)] | [Value::String(s), Value::Bool(false)] => Ok(Semver::parse(s)),
        [Value::String(s), Value::Bool(true)] => Ok(Semver::normalize(s)),
        _ => Err(Error::no_overload()),
    }
}

pub(super) fn semver<'a>(a: &[Value<'a>]) -> Res<'a> {
    of(a)?.map(|v| Value::Opaque(Opaque::Semver(Arc::new(v))))
}

pub(super) fn is_semver<'a>(a: &[Value<'a>]) -> Res<'a> {
    Ok(Value::Bool(of(a)?.is_ok()))
}

pub(super) fn part<'a>(a: &[Value<'a>], part: fn(&Semver) -> u64) -> Res<'a> {
    match a {
        [Value::Opaque(Opaque::Semver(v))] => Ok(Value::Int(part(v) as i64)),
        _ => Err(Error::no_overload()),
    }
}
