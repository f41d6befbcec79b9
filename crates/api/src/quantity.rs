//! `resource.Quantity`: decimal and binary fixed-point numbers with a suffix,
//! and their normal form.
//!
//! Numbers keep 38 significant digits and exponents up to 999,999, where
//! upstream's have no bound; what leaves that range saturates.

use serde_json::Value;
use std::cmp::Ordering;
use std::fmt;

/// Which family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySI,
    /// `12M`
    DecimalSI,
}

/// Why a text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text as a whole is not of the form.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number before the suffix is none.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// A number with its way of being written. Equality and order are of the number.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// value × 10^scale. It is never the least `i128`, which has no counterpart.
    value: i128,
    scale: i32,
    format: Format,
    /// The text it was parsed from, when that is taken for the normal form.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;
/// The largest exponent that is told from larger ones; a multiple of three, as those of the normal form are.
const MAX_EXPONENT: i32 = 999_999;

impl Quantity {
    /// A whole number.
    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity { value: value.into(), scale: 0, format, text: None }
    }

    /// A number of thousandths.
    pub fn new_milli(value: i64, format: Format) -> Quantity {
        Quantity { value: value.into(), scale: -3, format, text: None }
    }

    /// Zero.
    pub fn zero() -> Quantity {
        Quantity::new(0, Format::DecimalSI)
    }

    /// Reads a quantity.
    pub fn parse(s: &str) -> Result<Quantity, QuantityError> {
        if s.is_empty() {
            return Err(QuantityError::Format);
        }
        if s == "0" {
            return Ok(Quantity { text: Some("0".into()), ..Quantity::zero() });
        }
        let p = split(s)?;
        let (binary, exponent, format) = suffix(p.suffix).ok_or(QuantityError::Suffix)?;
        let digits = (p.num.len() + p.denom.len()) as i64;
        // The short path decides which texts are kept as they are.
        let (precision, mut scale, mantissa) = if !binary {
            (18 - digits, exponent, 1i64)
        } else if p.denom.is_empty() {
            (15 - p.num.len() as i64 - i64::from(exponent * 3 / 10) - 1, 0, 1i64 << exponent)
        } else {
            (-1, 0, 1)
        };
        let shifted = format!("{}{}", p.num, p.denom);
        if precision >= 0 {
            scale = scale.saturating_sub(p.denom.len() as i32);
            if scale >= NANO {
                let value: i64 = shifted.parse().map_err(|_| QuantityError::Numeric)?;
                if let Some(mut v) = value.checked_mul(mantissa) {
                    if p.negative {
                        v = -v;
                    }
                    let keep = if binary {
                        exponent % 10 == 0 && value & 7 != 0
                    } else {
                        scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0')
                    };
                    return Ok(Quantity { value: v.into(), scale, format, text: keep.then(|| s.into()) });
                }
            }
        }
        let mut value: i128 = if shifted.is_empty() || p.num.is_empty() && p.denom.is_empty() {
            return Err(QuantityError::Numeric);
        } else {
            shifted.parse().map_err(|_| QuantityError::Numeric)?
        };
        let mut scale = -(p.denom.len() as i32);
        let mut format = format;
        const MAX: i128 = i64::MAX as i128;
        if binary {
            match value.checked_mul(1i128 << exponent) {
                Some(v) => value = v,
                None => (value, scale) = (MAX, 0),
            }
        } else {
            scale = scale.saturating_add(exponent);
        }
        (value, scale) = round_up(value, scale, NANO);
        if binary && cmp((value, scale), (MAX, 0)) == Ordering::Greater {
            (value, scale) = (MAX, 0);
        }
        if binary && value > 0 && cmp((value, scale), (1, 0)) == Ordering::Less {
            format = Format::DecimalSI;
        }
        if p.negative {
            value = -value;
        }
        Ok(Quantity { value, scale, format, text: None })
    }

    /// Reads a quantity from a JSON string or number.
    pub fn from_value(v: &Value) -> Result<Quantity, QuantityError> {
        match v {
            Value::String(s) => Quantity::parse(s.trim()),
            Value::Number(n) => Quantity::parse(&n.to_string()),
            Value::Null => Ok(Quantity::zero()),
            _ => Err(QuantityError::Format),
        }
    }

    /// The text that the API server stores and serves for this quantity.
    pub fn canonical(&self) -> String {
        if let Some(t) = &self.text {
            return t.to_string();
        }
        if self.value == 0 {
            return "0".to_owned();
        }
        let mut format = self.format;
        if format == Format::BinarySI {
            let small = cmp((self.value, self.scale), (-1024, 0)) == Ordering::Greater
                && cmp((self.value, self.scale), (1024, 0)) == Ordering::Less;
            if small || !self.is_whole() {
                format = Format::DecimalSI;
            }
        }
        if format == Format::BinarySI {
            let (mut v, mut s) = round_up(self.value, self.scale, 0);
            while s > 0 {
                v = times(v, 10);
                s -= 1;
            }
            let mut e = 0;
            while v % 1024 == 0 && v != 0 {
                v /= 1024;
                e += 1;
            }
            const NAMES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            return format!("{v}{}", NAMES.get(e).unwrap_or(&""));
        }
        let (mut v, mut e) = trim(self.value, self.scale);
        e = e.min(MAX_EXPONENT);
        while e % 3 != 0 {
            v = times(v, 10);
            e -= 1;
        }
        if format == Format::DecimalExponent {
            return if e == 0 { v.to_string() } else { format!("{v}e{e}") };
        }
        let name = match e {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        format!("{v}{name}")
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The number, rounded away from zero to a whole one; saturates.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// The number of thousandths, rounded away from zero; saturates.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// The number in units of 10^`scale`, rounded away from zero; saturates.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let (mut v, mut s) = round_up(self.value, self.scale, scale);
        while s > scale && v != 0 {
            v = times(v, 10);
            s -= 1;
            if v.unsigned_abs() > i64::MAX as u128 {
                break;
            }
        }
        v.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// The number when it is a whole one that fits.
    pub fn as_i64(&self) -> Option<i64> {
        let (v, s) = trim(self.value, self.scale);
        if s < 0 {
            return None;
        }
        let factor = 10i64.checked_pow(s as u32)?;
        i64::try_from(v).ok()?.checked_mul(factor)
    }

    /// The number, nearly.
    pub fn as_f64(&self) -> f64 {
        self.value as f64 * 10f64.powi(self.scale)
    }

    /// Whether the number has no fraction.
    pub fn is_whole(&self) -> bool {
        trim(self.value, self.scale).1 >= 0
    }

    /// Whether the number has no part below a thousandth.
    pub fn is_whole_milli(&self) -> bool {
        trim(self.value, self.scale).1 >= -3
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.value == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.value.signum() as i32
    }

    /// Adds; zero takes over the format of `other`.
    pub fn add(&mut self, other: &Quantity) {
        self.text = None;
        if self.value == 0 {
            self.format = other.format;
        }
        (self.value, self.scale) = sum((self.value, self.scale), (other.value, other.scale));
    }

    /// Subtracts; zero takes over the format of `other`.
    pub fn sub(&mut self, other: &Quantity) {
        self.text = None;
        if self.value == 0 {
            self.format = other.format;
        }
        (self.value, self.scale) = sum((self.value, self.scale), (-other.value, other.scale));
    }

    /// Multiplies by a whole number.
    pub fn mul(&mut self, by: i64) {
        self.text = None;
        self.value = times(self.value, by.into());
    }

    /// Changes the sign.
    pub fn neg(&mut self) {
        self.text = None;
        self.value = -self.value;
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical())
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        cmp((self.value, self.scale), (other.value, other.scale))
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(s)
    }
}

struct Parts<'a> {
    negative: bool,
    num: &'a str,
    denom: &'a str,
    suffix: &'a str,
}

fn split(s: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match s.as_bytes()[0] {
        b'-' => (true, &s[1..]),
        b'+' => (false, &s[1..]),
        _ => (false, s),
    };
    let digits = |s: &str| s.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(s.len());
    let rest = rest.trim_start_matches('0');
    let (mut num, mut rest) = rest.split_at(digits(rest));
    if num.is_empty() {
        num = "0";
    }
    let mut denom = "";
    if let Some(r) = rest.strip_prefix('.') {
        (denom, rest) = r.split_at(digits(r));
    }
    let suffix = rest;
    let letters = suffix.bytes().position(|b| !b"eEinumkKMGTP".contains(&b)).unwrap_or(suffix.len());
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, num, denom, suffix })
}

/// Whether the base is 2, the exponent, and the family.
fn suffix(s: &str) -> Option<(bool, i32, Format)> {
    let decimal = |e| Some((false, e, Format::DecimalSI));
    let binary = |e| Some((true, e, Format::BinarySI));
    match s {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let e = s.strip_prefix(['e', 'E'])?.parse::<i64>().ok()?;
            Some((false, e.clamp((-MAX_EXPONENT).into(), MAX_EXPONENT.into()) as i32, Format::DecimalExponent))
        }
    }
}

/// Moves factors of ten into the scale.
fn trim(mut v: i128, mut scale: i32) -> (i128, i32) {
    if v == 0 {
        return (0, 0);
    }
    while v % 10 == 0 {
        v /= 10;
        scale += 1;
    }
    (v, scale)
}

/// Rounds away from zero to units of 10^`to`, when finer than that.
fn round_up(mut v: i128, mut scale: i32, to: i32) -> (i128, i32) {
    let mut inexact = false;
    let sign = v.signum();
    while scale < to {
        inexact |= v % 10 != 0;
        v /= 10;
        scale += 1;
        if v == 0 {
            return if inexact { (sign, to) } else { (0, 0) };
        }
    }
    (if inexact { v + sign } else { v }, scale)
}

fn times(v: i128, by: i128) -> i128 {
    v.saturating_mul(by).max(-i128::MAX)
}

fn digits(v: i128) -> i64 {
    v.unsigned_abs().checked_ilog10().map_or(0, |d| i64::from(d) + 1)
}

fn cmp(a: (i128, i32), b: (i128, i32)) -> Ordering {
    let signs = a.0.signum().cmp(&b.0.signum());
    if signs != Ordering::Equal || a.0 == 0 {
        return signs;
    }
    let (a, b) = (trim(a.0, a.1), trim(b.0, b.1));
    let magnitude = (digits(a.0) + i64::from(a.1)).cmp(&(digits(b.0) + i64::from(b.1)));
    let order = if magnitude != Ordering::Equal {
        magnitude
    } else {
        let low = a.1.min(b.1);
        let scaled = |x: (i128, i32)| x.0.unsigned_abs().saturating_mul(10u128.saturating_pow((x.1 - low) as u32));
        scaled(a).cmp(&scaled(b))
    };
    if a.0 < 0 { order.reverse() } else { order }
}

fn sum(a: (i128, i32), b: (i128, i32)) -> (i128, i32) {
    if a.0 == 0 {
        return b;
    }
    if b.0 == 0 {
        return a;
    }
    let exact = |a: (i128, i32), b: (i128, i32)| {
        let low = a.1.min(b.1);
        let scaled = |x: (i128, i32)| x.0.checked_mul(10i128.checked_pow((x.1 - low) as u32)?);
        let sum = scaled(a)?.checked_add(scaled(b)?).filter(|v| *v != i128::MIN)?;
        Some((sum, low))
    };
    exact(a, b)
        .or_else(|| exact(trim(a.0, a.1), trim(b.0, b.1)))
        .unwrap_or_else(|| if cmp((a.0.saturating_abs(), a.1), (b.0.saturating_abs(), b.1)) == Ordering::Less { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_can_be_negated() {
        let mut least = Quantity::parse("-9223322332233203767208720854").unwrap();
        least.mul(i64::MAX);
        least.mul(i64::MAX);
        let mut other = least.clone();
        other.neg();
        assert!(other > least && other.sign() == 1);
        other.sub(&least);
        assert!(other.sign() == 1);
    }

    #[test]
    fn what_is_too_large_to_be_written_can_be_read() {
        let mut sum = Quantity::parse("1300m").unwrap();
        sum.sub(&Quantity::parse("200E33").unwrap());
        assert_eq!(sum.canonical(), format!("-{}m", i128::MAX));
        assert!(Quantity::parse(&sum.canonical()).is_ok());
    }

    fn canon(s: &str) -> String {
        Quantity::parse(s).map_or_else(|e| format!("{e:?}"), |q| q.canonical())
    }

    #[test]
    fn normal_forms() {
        for (input, want) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("0.5Gi", "512Mi"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1024Mi", "1Gi"),
            ("1023Ki", "1023Ki"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("1e3", "1e3"),
            ("12e5", "1200e3"),
            ("1E", "1E"),
            ("100Mi", "100Mi"),
            ("8Mi", "8Mi"),
            ("0.0000000001", "1n"),
            ("-0.0000000001", "-1n"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("1.001Ki", "1025024m"),
            ("100Ei", "9223372036854775807"),
            ("-5", "-5"),
            ("1Ki1", "Suffix"),
            ("", "Format"),
            ("a", "Format"),
            ("1x", "Format"),
            ("1 Gi", "Format"),
            ("1ei", "Suffix"),
            ("123456789012345678901", "123456789012345678901"),
            ("0.000001m", "1n"),
            ("400000E009223372036854775807", "4e999999"),
            ("40000000000000000000e999998", "4e999999"),
            ("12345678901234567890e1000003", "1234567890123456789e999999"),
            ("1e-9223372036854775808", "1e-9"),
        ] {
            assert_eq!(canon(input), want, "{input}");
            assert!(Quantity::parse(want).is_err() || canon(want) == want, "{input}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        let mut a = q("100m");
        a.add(&q("1"));
        assert_eq!(a.canonical(), "1100m");
        a.sub(&q("1100m"));
        assert!(a.is_zero());
        a.add(&q("1Gi"));
        assert_eq!(a.canonical(), "1Gi");
        assert!(q("1Gi") > q("1G"));
        assert!(q("-1") < q("1n"));
        assert_eq!(q("1000m"), q("1"));
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("1.5").milli_value(), 1500);
        assert_eq!(q("1e100").value(), i64::MAX);
        assert_eq!(q("2Ki").as_i64(), Some(2048));
        assert_eq!(q("1m").as_i64(), None);
    }
}
