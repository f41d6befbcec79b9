//! URLs as Go's `net/url` reads them: absolute ones and absolute paths.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Res;
use crate::error::Error;
use crate::value::{Opaque, Value};

/// A URL in its parts, unescaped.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Url {
    pub(crate) scheme: String,
    user: String,
    opaque: String,
    pub(crate) host: String,
    path: String,
    raw_path: String,
    query: String,
    fragment: String,
}

impl Url {
    /// Parses a URL that could stand in a request. A fragment is taken as part of what it is next to (as `isURL` does)
    /// unless `fragment`.
    pub(crate) fn parse(text: &str, fragment: bool) -> Result<Url, Error> {
        let wrong = |why: String| Error::new(format!("parse {text:?}: {why}"));
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err(wrong("net/url: invalid control character in URL".into()));
        }
        if text.is_empty() {
            return Err(wrong("empty url".into()));
        }
        let mut url = Url::default();
        let (text_part, tail) = if fragment { text.split_once('#').unwrap_or((text, "")) } else { (text, "") };
        url.fragment = unescape(tail, false).map_err(wrong)?;
        let (scheme, rest) = scheme(text_part).map_err(|e| wrong(e.into()))?;
        url.scheme = scheme.to_ascii_lowercase();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        url.query = query.to_string();
        if !rest.starts_with('/') {
            if url.scheme.is_empty() {
                return Err(wrong("invalid URI for request".into()));
            }
            url.opaque = rest.to_string();
            return Ok(url);
        }
        let mut path = rest;
        if !url.scheme.is_empty()
            && let Some(after) = rest.strip_prefix("//")
        {
            let end = after.find('/').unwrap_or(after.len());
            let (authority, after) = after.split_at(end);
            path = after;
            let host = match authority.rsplit_once('@') {
                Some((user, host)) => {
                    if !user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b)) {
                        return Err(wrong("net/url: invalid userinfo".into()));
                    }
                    url.user = unescape(user, false).map_err(wrong)?;
                    host
                }
                None => authority,
            };
            url.host = host_of(host).map_err(wrong)?;
        }
        url.path = unescape(path, false).map_err(wrong)?;
        url.raw_path = path.to_string();
        Ok(url)
    }

    /// The host without its port and brackets.
    pub(crate) fn hostname(&self) -> &str {
        if let Some(rest) = self.host.strip_prefix('[') {
            return rest.split(']').next().unwrap_or_default();
        }
        self.host.split_once(':').map_or(&self.host, |(h, _)| h)
    }

    /// The port, as text.
    pub(crate) fn port(&self) -> &str {
        let after = match self.host.rfind(']') {
            Some(end) => &self.host[end + 1..],
            None => self.host.find(':').map_or("", |c| &self.host[c..]),
        };
        after.strip_prefix(':').unwrap_or_default()
    }

    /// The path, escaped as it was written where that is valid.
    pub(crate) fn escaped_path(&self) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
        let valid = self.raw_path.bytes().all(|b| plain(b) || b"!'()*[]%".contains(&b));
        if valid {
            return self.raw_path.clone();
        }
        let mut out = String::new();
        for b in self.path.bytes() {
            if plain(b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }
}

/// The scheme, and what is after it.
fn scheme(text: &str) -> Result<(&str, &str), &'static str> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme"),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn host_of(host: &str) -> Result<String, String> {
    let port = |text: &str| match text.strip_prefix(':') {
        None if text.is_empty() => Ok(()),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(format!("invalid port {text:?} after host")),
    };
    if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        port(&host[end + 1..])?;
    } else if let Some(colon) = host.find(':') {
        // More than one colon is a port that is none.
        port(&host[colon..])?;
    }
    if let Some(c) = host.chars().find(|c| c.is_ascii() && !c.is_ascii_alphanumeric() && !"-_.~!$&'()*+,;=:[]<>\"%".contains(*c)) {
        return Err(format!("invalid character {:?} in host name", c.to_string()));
    }
    unescape(host, false)
}

/// Text with its `%xx` replaced, and `+` too where that is a space.
fn unescape(text: &str, plus: bool) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let code = bytes.get(i + 1..i + 3).filter(|h| h.iter().all(u8::is_ascii_hexdigit));
                let code = code.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
                let Some(code) = code else {
                    let end = (i + 3).min(bytes.len());
                    return Err(format!("invalid URL escape {:?}", String::from_utf8_lossy(&bytes[i..end])));
                };
                out.push(code);
                i += 3;
                continue;
            }
            b'+' if plus => out.push(b' '),
            b => out.push(b),
        }
        i += 1;
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

pub(super) fn parse<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(s)] = a else { return Err(Error::no_overload()) };
    let checked = Url::parse(s, false).and_then(|_| Url::parse(s, true));
    let url = checked.map_err(|e| Error::new(format!("URL parse error during conversion from string: {e}")))?;
    Ok(Value::Opaque(Opaque::Url(Arc::new(url))))
}

pub(super) fn is_url<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::String(s)] = a else { return Err(Error::no_overload()) };
    Ok(Value::Bool(Url::parse(s, false).is_ok()))
}

pub(super) fn part<'a>(a: &[Value<'a>], part: fn(&Url) -> String) -> Res<'a> {
    match a {
        [Value::Opaque(Opaque::Url(url))] => Ok(Value::string(part(url))),
        _ => Err(Error::no_overload()),
    }
}

/// The query as a map from keys to all their values.
pub(super) fn query<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::Opaque(Opaque::Url(url))] = a else { return Err(Error::no_overload()) };
    let mut out: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // What is not escaped well is left out.
        if let (Ok(key), Ok(value)) = (unescape(key, true), unescape(value, true)) {
            out.entry(key).or_default().push(Value::string(value));
        }
    }
    Ok(Value::map(out.into_iter().map(|(k, v)| (k, Value::list(v)))))
}
