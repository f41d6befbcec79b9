//! Field errors: what is wrong with one field of an object, formatted as the
//! API server formats them, and the field paths they point at.
//!
//! Nothing here decides whether a value is right; see [`crate::validate`].

use crate::seen::Seen;
use serde_json::Value;
use smallvec::SmallVec;
use std::fmt;

/// A path to a field, as clients see it: `spec.containers[0].name`,
/// `metadata.labels[example.com/a]`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Path(SmallVec<[u8; INLINE]>);

/// There are many paths, few of them are ever shown, and most are no longer than this: those are made without allocating.
const INLINE: usize = 96;

// All at once: SmallVec's own way is byte by byte.
impl Clone for Path {
    fn clone(&self) -> Path {
        Path(SmallVec::from_slice(&self.0))
    }
}

impl Path {
    /// A path of one name.
    pub fn new(name: &str) -> Path {
        Path(SmallVec::from_slice(name.as_bytes()))
    }

    /// The path of the object itself (prints as `<nil>`, as the API server does).
    pub fn root() -> Path {
        Path::default()
    }

    /// The field `name` of this object; dots in `name` go deeper.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path::new(name) } else { self.with(&[".", name]) }
    }

    /// The field at `inner`, a path within this object.
    pub fn join(&self, inner: &Path) -> Path {
        if inner.0.is_empty() { self.clone() } else { self.child(inner.text()) }
    }

    fn with(&self, parts: &[&str]) -> Path {
        let mut path = self.clone();
        parts.iter().for_each(|p| path.0.extend_from_slice(p.as_bytes()));
        path
    }

    /// The element `index` of this list.
    pub fn index(&self, index: usize) -> Path {
        self.with(&["[", &index.to_string(), "]"])
    }

    /// The entry `key` of this map.
    pub fn key(&self, key: &str) -> Path {
        self.with(&["[", key, "]"])
    }

    fn text(&self) -> &str {
        // made of texts alone
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { self.text() })
    }
}

impl From<&str> for Path {
    fn from(s: &str) -> Path {
        Path::new(s)
    }
}

/// What kind of mistake a [`FieldError`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A referenced value does not exist.
    NotFound,
    /// A value that must be given is missing.
    Required,
    /// A value that must be unique is not.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// A value outside of an enumeration.
    NotSupported,
    /// A well-formed value that is not permitted here.
    Forbidden,
    /// A value that is too long.
    TooLong,
    /// A list with too many items.
    TooMany,
    /// A list with too few items.
    TooFew,
    /// A value that is too short.
    TooShort,
    /// A value of the wrong type.
    TypeInvalid,
    /// A failure that is not the client's.
    Internal,
}

impl ErrorKind {
    /// The machine-readable name used as a status cause's `reason`.
    pub fn cause(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::TooFew => "FieldValueTooFew",
            ErrorKind::TooShort => "FieldValueTooShort",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            ErrorKind::Internal => "InternalError",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::TooFew => "Too few",
            ErrorKind::TooShort => "Too short",
            ErrorKind::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            ErrorKind::Required | ErrorKind::Forbidden | ErrorKind::TooLong | ErrorKind::TooShort | ErrorKind::Internal
        )
    }
}

/// One mistake in one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Where it is.
    pub path: Path,
    /// What kind of mistake.
    pub kind: ErrorKind,
    /// More words; may be empty.
    pub detail: String,
    /// The value as given; shown for the kinds where that helps, unless `None`.
    pub bad_value: Option<Value>,
}

impl FieldError {
    fn make(path: &Path, kind: ErrorKind, bad_value: Option<Value>, detail: impl Into<String>) -> FieldError {
        FieldError { path: path.clone(), kind, detail: detail.into(), bad_value }
    }

    /// A value that must be given is missing.
    pub fn required(path: &Path, detail: impl Into<String>) -> FieldError {
        Self::make(path, ErrorKind::Required, None, detail)
    }

    /// A malformed value.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        Self::make(path, ErrorKind::Invalid, Some(value.into()), detail)
    }

    /// A value of the wrong type.
    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        Self::make(path, ErrorKind::TypeInvalid, Some(value.into()), detail)
    }

    /// A value that is not permitted here.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> FieldError {
        Self::make(path, ErrorKind::Forbidden, None, detail)
    }

    /// A value that must be unique is not.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> FieldError {
        Self::make(path, ErrorKind::Duplicate, Some(value.into()), "")
    }

    /// A referenced value does not exist.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> FieldError {
        Self::make(path, ErrorKind::NotFound, Some(value.into()), "")
    }

    /// A value outside of an enumeration; `valid` are listed in the given order.
    pub fn not_supported(path: &Path, value: impl Into<Value>, valid: &[&str]) -> FieldError {
        let detail = if valid.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = valid.iter().map(|v| go_quote(v)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::make(path, ErrorKind::NotSupported, Some(value.into()), detail)
    }

    /// A value of more than `max` bytes.
    pub fn too_long(path: &Path, max: usize) -> FieldError {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::make(path, ErrorKind::TooLong, None, format!("may not be more than {max} {unit}"))
    }

    /// A list of `actual` items where at most `max` are allowed.
    pub fn too_many(path: &Path, actual: usize, max: usize) -> FieldError {
        let unit = if max == 1 { "item" } else { "items" };
        Self::make(path, ErrorKind::TooMany, Some(actual.into()), format!("must have at most {max} {unit}"))
    }

    /// A failure that is not the client's.
    pub fn internal(path: &Path, detail: impl Into<String>) -> FieldError {
        Self::make(path, ErrorKind::Internal, None, detail)
    }

    /// The message without the path.
    pub fn body(&self) -> String {
        let mut s = self.kind.text().to_owned();
        if self.kind.shows_value()
            && let Some(v) = &self.bad_value
        {
            s.push_str(": ");
            s.push_str(&go_value(v));
        }
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl std::error::Error for FieldError {}

/// Several messages as one: a single one as it is, more in brackets, each text once.
pub fn aggregate<S: AsRef<str>>(messages: impl IntoIterator<Item = S>) -> String {
    let mut seen = Seen::default();
    let mut all: Vec<String> = messages.into_iter().map(|m| m.as_ref().to_owned()).filter(|m| seen.add(m.clone())).collect();
    match all.len() {
        1 => all.remove(0),
        _ => format!("[{}]", all.join(", ")),
    }
}

/// Quotes a string as Go's `%q` does.
pub fn go_quote(s: &str) -> String {
    go_quote_bytes(s.as_bytes())
}

/// Quotes bytes, text or not, as Go's `%q` does.
pub fn go_quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_quoted(&mut out, c));
        chunk.invalid().iter().for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out.push('"');
    out
}

fn push_quoted(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        c if (c as u32) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
        c if c.is_control() || matches!(c as u32, 0xa0 | 0xad | 0x2000..=0x200f | 0x2028..=0x202f | 0xfeff | 0xfff9..=0xffff) => {
            out.push_str(&format!("\\u{:04x}", c as u32));
        }
        c => out.push(c),
    }
}

fn go_value(v: &Value) -> String {
    match v {
        Value::String(s) => go_quote(s),
        v => go_json(v),
    }
}

/// Compact JSON with the characters escaped that Go's encoder escapes.
pub fn go_json(v: &Value) -> String {
    let s = v.to_string();
    if s.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        s.replace('<', "\\u003c")
            .replace('>', "\\u003e")
            .replace('&', "\\u0026")
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029")
    } else {
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages() {
        let p = Path::new("spec").child("containers").index(0).child("name");
        assert_eq!(FieldError::required(&p, "").to_string(), "spec.containers[0].name: Required value");
        assert_eq!(
            FieldError::invalid(&p, "A\"b", "must be lower case").to_string(),
            "spec.containers[0].name: Invalid value: \"A\\\"b\": must be lower case"
        );
        assert_eq!(FieldError::invalid(&p, -1, "no").body(), "Invalid value: -1: no");
        assert_eq!(FieldError::invalid(&p, json!({"a": "<"}), "no").body(), "Invalid value: {\"a\":\"\\u003c\"}: no");
        assert_eq!(
            FieldError::not_supported(&p, "x", &["a", "b"]).body(),
            "Unsupported value: \"x\": supported values: \"a\", \"b\""
        );
        assert_eq!(FieldError::too_long(&p, 63).body(), "Too long: may not be more than 63 bytes");
        assert_eq!(FieldError::too_many(&p, 3, 1).body(), "Too many: 3: must have at most 1 item");
        assert_eq!(FieldError::duplicate(&Path::root(), "x").to_string(), "<nil>: Duplicate value: \"x\"");
        assert_eq!(aggregate(["a", "b", "a"]), "[a, b]");
        assert_eq!(aggregate(["a", "a"]), "a");
    }
}
