//! String formats that schemas may ask for.

use crate::names;
use regex::Regex;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

macro_rules! patterns {
    ($($name:ident = $text:literal;)*) => {
        $(static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($text).ok());)*
    };
}

patterns! {
    UUID = "(?i-u)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = "(?i-u)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = "(?i-u)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = "(?i-u)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$";
    SSN = r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$";
    HEX = "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB = r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*\)$";
    DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$";
    SCALA = r"^((\d+)\s*([A-Za-zµ]+))$";
}

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    pattern.as_ref().is_none_or(|p| p.is_match(text))
}

/// Whether a text is of a format (without dashes); unknown formats are not checked.
pub fn valid(format: &str, text: &str) -> bool {
    match format {
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => text.len() <= 255 && host(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => matches(&UUID, text),
        "uuid3" => matches(&UUID3, text),
        "uuid4" => matches(&UUID4, text),
        "uuid5" => matches(&UUID5, text),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "creditcard" => card(text),
        "ssn" => matches(&SSN, text),
        "hexcolor" => matches(&HEX, text),
        "rgbcolor" => matches(&RGB, text),
        "byte" => base64(text),
        "date" => matches(&DATE, text) && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => crate::gotime::parse_duration(text).is_some() || scala_duration(text),
        "datetime" => text.contains(['T', 't']) && text.parse::<jiff::Timestamp>().is_ok(),
        "k8sshortname" => names::dns1123_label(text).is_empty(),
        "k8slongname" => names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

fn uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    match text.split_once(':') {
        Some((scheme, rest)) => {
            let mut letters = scheme.chars();
            letters.next().is_some_and(|c| c.is_ascii_alphabetic())
                && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
                && !rest.is_empty()
        }
        None => false,
    }
}

fn email(text: &str) -> bool {
    let address = match (text.rfind('<'), text.ends_with('>')) {
        (Some(start), true) => &text[start + 1..text.len() - 1],
        _ => text,
    };
    match address.rsplit_once('@') {
        Some((user, domain)) => {
            let word = |w: &str| !w.is_empty() && !w.starts_with('.') && !w.ends_with('.') && !w.contains("..") && !w.contains([' ', '<', '>', '@', ',', ';', '(', ')']);
            (word(user) || user.len() > 2 && user.starts_with('"') && user.ends_with('"')) && word(domain)
        }
        None => false,
    }
}

fn host(text: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && !l.starts_with('-') && !l.ends_with('-') && l.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    match text.rsplit_once('.') {
        None => label(text),
        Some((front, top)) => front.split('.').all(label) && label(top) && top.len() > 1 && top.chars().all(char::is_alphabetic),
    }
}

fn cidr(text: &str) -> bool {
    let Some((ip, bits)) = text.split_once('/') else { return false };
    let Ok(bits) = bits.parse::<u8>() else { return false };
    ip.parse::<Ipv4Addr>().is_ok() && bits <= 32 || ip.parse::<Ipv6Addr>().is_ok() && bits <= 128
}

fn mac(text: &str) -> bool {
    let hex = |part: &str, len: usize| part.len() == len && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts = |by: char, len: usize, counts: &[usize]| {
        let all: Vec<&str> = text.split(by).collect();
        counts.contains(&all.len()) && all.iter().all(|p| hex(p, len))
    };
    parts(':', 2, &[6, 8, 20]) || parts('-', 2, &[6, 8, 20]) || parts('.', 4, &[3, 4, 10])
}

fn isbn10(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| if c == 'X' { 10 } else { c.to_digit(10).unwrap_or(99) }).collect();
    digits.len() == 10
        && digits.iter().enumerate().all(|(i, d)| *d < 10 || *d == 10 && i == 9)
        && digits.iter().enumerate().map(|(i, d)| (10 - i as u32) * d).sum::<u32>() % 11 == 0
}

fn isbn13(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10).unwrap_or(99)).collect();
    digits.len() == 13
        && digits.iter().all(|d| *d < 10)
        && digits.iter().enumerate().map(|(i, d)| if i % 2 == 0 { *d } else { 3 * d }).sum::<u32>() % 10 == 0
}

fn card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let luhn = |(i, c): (usize, char)| {
        let d = c.to_digit(10).unwrap_or(0);
        if i % 2 == 0 { d } else if d > 4 { 2 * d - 9 } else { 2 * d }
    };
    matches(&CARD, &digits) && digits.chars().rev().enumerate().map(luhn).sum::<u32>() % 10 == 0
}

fn base64(text: &str) -> bool {
    use base64::Engine as _;
    !text.is_empty() && base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn scala_duration(text: &str) -> bool {
    const UNITS: [&str; 25] = [
        "nano", "ns", "nanos", "nanosecond", "nanoseconds", "us", "µs", "micro", "micros", "microsecond", "microseconds", "ms", "milli",
        "millis", "millisecond", "milliseconds", "s", "sec", "secs", "second", "seconds", "minute", "minutes", "hour", "hours",
    ];
    const LONG: [&str; 11] = ["m", "min", "mins", "h", "hr", "hrs", "d", "day", "days", "w", "week"];
    let Some(regex) = SCALA.as_ref() else { return true };
    regex.captures(text.trim()).and_then(|c| c.get(3)).is_some_and(|unit| {
        let unit = unit.as_str().to_lowercase();
        UNITS.contains(&unit.as_str()) || LONG.contains(&unit.as_str()) || unit == "weeks"
    })
}
