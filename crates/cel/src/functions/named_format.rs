//! Formats of text that Kubernetes has names for.

use base64::Engine as _;

use super::url::Url;
use super::{Builtin, Res, time};
use crate::error::Error;
use crate::value::{Opaque, Value};

/// A format.
#[derive(Debug)]
pub struct NamedFormat {
    pub(crate) name: &'static str,
    check: fn(&str) -> Vec<String>,
    /// The length of a pattern that does the same work, for costs.
    pub(crate) pattern_size: u64,
}

/// All formats.
const FORMATS: &[NamedFormat] = &[
    NamedFormat { name: "dns1123Label", check: api::names::dns1123_label, pattern_size: 30 },
    NamedFormat { name: "dns1123Subdomain", check: api::names::dns1123_subdomain, pattern_size: 60 },
    NamedFormat { name: "dns1035Label", check: api::names::dns1035_label, pattern_size: 30 },
    NamedFormat { name: "qualifiedName", check: api::names::qualified_name, pattern_size: 60 },
    NamedFormat { name: "dns1123LabelPrefix", check: |s| api::names::dns1123_label(&prefix(s)), pattern_size: 30 },
    NamedFormat { name: "dns1123SubdomainPrefix", check: |s| api::names::dns1123_subdomain(&prefix(s)), pattern_size: 60 },
    NamedFormat { name: "dns1035LabelPrefix", check: |s| api::names::dns1035_label(&prefix(s)), pattern_size: 30 },
    NamedFormat { name: "labelValue", check: api::names::label_value, pattern_size: 40 },
    NamedFormat { name: "uri", check: |s| Url::parse(s, false).err().map(|e| e.to_string()).into_iter().collect(), pattern_size: 1103 },
    NamedFormat { name: "uuid", check: |s| unless(is_uuid(s), "does not match the UUID format"), pattern_size: 94 },
    NamedFormat {
        name: "byte",
        check: |s| unless(!s.is_empty() && base64::engine::general_purpose::STANDARD.decode(s).is_ok(), "invalid base64"),
        pattern_size: 84,
    },
    NamedFormat { name: "date", check: |s| unless(time::parse_date(s).is_ok(), "invalid date"), pattern_size: 114 },
    NamedFormat { name: "datetime", check: |s| unless(time::parse_timestamp(s).is_ok(), "invalid datetime"), pattern_size: 114 },
];

/// A name that is only the beginning of one may end with a dash.
fn prefix(s: &str) -> String {
    match s.strip_suffix('-') {
        Some(rest) if s.len() > 1 => format!("{rest}a"),
        _ => s.to_string(),
    }
}

fn unless(good: bool, message: &str) -> Vec<String> {
    if good { Vec::new() } else { vec![message.to_string()] }
}

fn is_uuid(s: &str) -> bool {
    let hex: Vec<u8> = s.bytes().filter(|b| *b != b'-').collect();
    let groups: Vec<usize> = s.split('-').map(str::len).collect();
    hex.len() == 32 && hex.iter().all(u8::is_ascii_hexdigit) && (groups == [8, 4, 4, 4, 12] || groups == [32])
}

fn find(name: &str) -> Option<&'static NamedFormat> {
    FORMATS.iter().find(|f| f.name == name)
}

fn constant<'a>(name: &str) -> Res<'a> {
    find(name).map(|f| Value::Opaque(Opaque::Format(f))).ok_or_else(Error::no_overload)
}

/// The functions that give each format.
pub(super) const FUNCTIONS: &[(&str, Builtin)] = &[
    ("format.dns1123Label", |_, _| constant("dns1123Label")),
    ("format.dns1123Subdomain", |_, _| constant("dns1123Subdomain")),
    ("format.dns1035Label", |_, _| constant("dns1035Label")),
    ("format.qualifiedName", |_, _| constant("qualifiedName")),
    ("format.dns1123LabelPrefix", |_, _| constant("dns1123LabelPrefix")),
    ("format.dns1123SubdomainPrefix", |_, _| constant("dns1123SubdomainPrefix")),
    ("format.dns1035LabelPrefix", |_, _| constant("dns1035LabelPrefix")),
    ("format.labelValue", |_, _| constant("labelValue")),
    ("format.uri", |_, _| constant("uri")),
    ("format.uuid", |_, _| constant("uuid")),
    ("format.byte", |_, _| constant("byte")),
    ("format.date", |_, _| constant("date")),
    ("format.datetime", |_, _| constant("datetime")),
];

/// `format.named`: a format by its name, if there is one.
pub(super) fn named<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(name)] = a else { return Err(Error::no_overload()) };
    Ok(find(name).map_or(Value::Optional(None), |f| Value::some(Value::Opaque(Opaque::Format(f)))))
}

/// What is wrong with a text, if something is.
pub(super) fn validate<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::Opaque(Opaque::Format(format)), Value::String(s)] = a else { return Err(Error::no_overload()) };
    let wrong = (format.check)(s);
    if wrong.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(wrong.into_iter().map(Value::string).collect())))
}
