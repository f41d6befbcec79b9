//! `format`: text with `%` clauses, as upstream's string extension has it at version 2.

use super::{LONGEST, Res, convert};
use crate::error::Error;
use crate::types::Type;
use crate::value::{Map, Value};

/// A clause: its letter, and the digits behind the point that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clause {
    letter: char,
    precision: Option<usize>,
}

/// A format string in its parts.
enum Part {
    Text(String),
    Clause(Clause),
}

/// The most digits that are written.
const DIGITS: usize = 1000;

fn split(format: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            text.push('%');
            continue;
        }
        let wrong = |why: &str| format!("could not parse formatting clause: {why}");
        let mut next = chars.next().ok_or("unexpected end of string")?;
        let mut precision = None;
        if next == '.' {
            let mut digits = String::new();
            loop {
                next = chars.next().ok_or_else(|| wrong("error while parsing precision: could not find end of precision specifier"))?;
                if !next.is_ascii_digit() {
                    break;
                }
                digits.push(next);
            }
            precision = Some(digits.parse::<usize>().map_err(|_| {
                wrong(&format!("error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing {digits:?}: invalid syntax"))
            })?);
        }
        if !"sdfebxXo".contains(next) {
            return Err(wrong(&format!("unrecognized formatting clause \"{next}\"")));
        }
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Clause(Clause { letter: next, precision }));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// What a clause does not take.
fn refusal(letter: char, given: &str) -> String {
    let why = match letter {
        's' => "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        _ => "only integers, byte buffers, and strings can be formatted as hex",
    };
    format!("error during formatting: {why}, was given {given}")
}

/// Checks a literal format string against the types of its arguments. The number of the argument is given where one is meant.
pub(crate) fn check(format: &str, types: &[Type]) -> Result<(), (Option<usize>, String)> {
    let mut n = 0;
    for part in split(format).map_err(|e| (None, e))? {
        let Part::Clause(clause) = part else { continue };
        let Some(t) = types.get(n) else { return Err((None, format!("index {n} out of range"))) };
        let fits = match (clause.letter, t) {
            (_, Type::Dyn) => true,
            ('s', Type::Object(_) | Type::Opaque(..)) => false,
            ('s', _) => true,
            ('d' | 'o', t) => matches!(t, Type::Int | Type::Uint),
            ('f' | 'e', t) => matches!(t, Type::Double | Type::String),
            ('b', t) => matches!(t, Type::Int | Type::Uint | Type::Bool),
            (_, t) => matches!(t, Type::Int | Type::Uint | Type::String | Type::Bytes),
        };
        if !fits {
            return Err((Some(n), refusal(clause.letter, t.runtime_name())));
        }
        n += 1;
    }
    if types.len() > n {
        return Err((None, format!("too many arguments supplied to string.format (expected {n}, got {})", types.len())));
    }
    Ok(())
}

/// Formats a list of arguments.
pub(super) fn format<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(format), Value::List(args)] = a else { return Err(Error::no_overload()) };
    let mut out = String::new();
    let mut n = 0;
    for part in split(format).map_err(Error::new)? {
        match part {
            Part::Text(text) => out.push_str(&text),
            Part::Clause(clause) => {
                let arg = args.get(n).ok_or_else(|| Error::new(format!("index {n} out of range")))??;
                n += 1;
                out.push_str(&one(clause, &arg)?);
            }
        }
        if out.len() > LONGEST {
            return Err(Error::new("text is too long"));
        }
    }
    Ok(Value::string(out))
}

fn one(clause: Clause, v: &Value<'_>) -> Result<String, Error> {
    let refused = || Error::new(refusal(clause.letter, &v.type_name()));
    let integer = |radix: u32| {
        let (negative, magnitude) = match v {
            Value::Int(v) => (*v < 0, v.unsigned_abs()),
            Value::Uint(v) => (false, *v),
            _ => return Err(refused()),
        };
        let digits = match radix {
            2 => format!("{magnitude:b}"),
            8 => format!("{magnitude:o}"),
            10 => magnitude.to_string(),
            _ => format!("{magnitude:x}"),
        };
        Ok(format!("{}{digits}", if negative { "-" } else { "" }))
    };
    let double = || match v {
        Value::Double(v) => Ok(*v),
        Value::String(s) if matches!(&**s, "NaN" | "Infinity" | "-Infinity") => Ok(match &**s {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            _ => f64::NEG_INFINITY,
        }),
        _ => Err(refused()),
    };
    let precision = clause.precision.unwrap_or(6).min(DIGITS);
    match clause.letter {
        's' => plain(v).ok_or_else(refused),
        'd' => integer(10),
        'o' => integer(8),
        'b' => match v {
            Value::Bool(v) => Ok(u8::from(*v).to_string()),
            _ => integer(2),
        },
        'f' => Ok(fixed(double()?, precision)),
        'e' => Ok(scientific(double()?, precision)),
        letter => {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let text = match v {
                Value::String(s) => hex(s.as_bytes()),
                Value::Bytes(b) => hex(b),
                _ => integer(16)?,
            };
            Ok(if letter == 'X' { text.to_uppercase() } else { text })
        }
    }
}

fn special(v: f64) -> Option<String> {
    if v.is_nan() {
        return Some("NaN".into());
    }
    v.is_infinite().then(|| if v > 0.0 { "∞".into() } else { "-∞".into() })
}

/// A number with its thousands set apart, as in English.
fn fixed(v: f64, precision: usize) -> String {
    if let Some(text) = special(v) {
        return text;
    }
    let text = format!("{:.precision$}", v.abs());
    let (whole, fraction) = text.split_once('.').map_or((&text[..], None), |(w, f)| (w, Some(f)));
    let mut out = String::from(if v < 0.0 { "-" } else { "" });
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// A number times a power of ten, with the power raised, as in English.
fn scientific(v: f64, precision: usize) -> String {
    if let Some(text) = special(v) {
        return text;
    }
    let text = format!("{v:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = format!("{:02}", exponent.abs());
    let raised = |c: char| match c {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32('⁰' as u32 + c.to_digit(10).unwrap_or(0)).unwrap_or(c),
    };
    format!("{mantissa}×10{}{}", if exponent < 0 { "⁻" } else { "" }, digits.chars().map(raised).collect::<String>())
}

/// A value as `%s` writes it.
fn plain(v: &Value<'_>) -> Option<String> {
    match v {
        Value::Null => Some("null".into()),
        Value::List(list) => {
            let items: Option<Vec<String>> = list.iter().map(|v| v.ok().and_then(|v| nested(&v))).collect();
            Some(format!("[{}]", items?.join(", ")))
        }
        Value::Map(Map::Composed) => None,
        Value::Map(map) => {
            let mut entries = Vec::new();
            for key in map.keys() {
                entries.push(format!("{}:{}", nested(&key)?, nested(&map.get(&key)?.ok()?)?));
            }
            entries.sort();
            Some(format!("{{{}}}", entries.join(", ")))
        }
        Value::Optional(_) | Value::Opaque(_) => None,
        _ => convert::text(v).ok()?.as_str().map(str::to_string),
    }
}

/// A value within a list or map: as an expression would write it.
fn nested(v: &Value<'_>) -> Option<String> {
    let text = plain(v)?;
    Some(match v {
        Value::String(_) => format!("{text:?}"),
        Value::Bytes(_) => format!("b{text:?}"),
        Value::Double(v) => format!("{v:.6}"),
        Value::Timestamp(_) => format!("timestamp({text:?})"),
        Value::Duration(_) => format!("duration({text:?})"),
        Value::Type(_) => format!("type({text})"),
        _ => text,
    })
}
