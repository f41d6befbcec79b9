//! Regular expressions in Go's dialect: its letter classes are of ASCII, and it has `\Q…\E` and `\z`.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use super::Res;
use crate::error::Error;
use crate::eval::Activation;
use crate::value::Value;

/// The functions that take a pattern as their second argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Matches,
    Find,
    FindAll,
}

impl Function {
    /// The function of a name.
    pub fn of(name: &str) -> Option<Function> {
        Some(match name {
            "matches" => Function::Matches,
            "find" => Function::Find,
            "findAll" => Function::FindAll,
            _ => return None,
        })
    }

    /// Calls it with a compiled pattern.
    pub fn call<'a>(self, regex: &Regex, args: &[Value<'a>]) -> Res<'a> {
        let Some(Value::String(text)) = args.first() else { return Err(Error::no_overload()) };
        Ok(match self {
            Function::Matches => Value::Bool(regex.is_match(text)),
            Function::Find => Value::string(regex.find(text).map_or("", |m| m.as_str())),
            Function::FindAll => {
                let limit = match args.get(2) {
                    None => usize::MAX,
                    Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                    Some(_) => return Err(Error::no_overload()),
                };
                // An empty match right after a match is none in Go.
                let mut end = None;
                let found = regex.find_iter(text).filter(|m| {
                    let adjacent = m.is_empty() && end == Some(m.start());
                    end = Some(m.end());
                    !adjacent
                });
                Value::list(found.take(limit).map(|m| Value::string(m.as_str())).collect())
            }
        })
    }
}

/// Calls a function whose pattern is not a constant.
pub(super) fn dynamic<'a>(activation: &Activation<'a>, function: Function, args: &[Value<'a>]) -> Res<'a> {
    let Some(Value::String(pattern)) = args.get(1) else { return Err(Error::no_overload()) };
    let regex: Arc<Regex> = activation.pattern(pattern)?;
    function.call(&regex, args)
}

/// Compiles a pattern.
pub(crate) fn compile(pattern: &str) -> Result<Regex, Error> {
    if let Some(operators) = nested_repetition(pattern) {
        return Err(Error::new(format!("error parsing regexp: invalid nested repetition operator: `{operators}`")));
    }
    RegexBuilder::new(&translate(pattern))
        .size_limit(2 << 20)
        .dfa_size_limit(1 << 20)
        .nest_limit(250)
        .build()
        .map_err(|e| {
            let text = e.to_string();
            let why = match text.lines().last().unwrap_or_default().trim_start_matches("error: ") {
                "unopened group" => "unexpected )",
                "unclosed group" => "missing closing )",
                "unclosed character class" => "missing closing ]",
                "repetition operator missing expression" => "missing argument to repetition operator",
                "unrecognized escape sequence" => "invalid escape sequence",
                other => other,
            };
            Error::new(format!("error parsing regexp: {why}: `{pattern}`"))
        })
}

/// Two repetitions in a row, which Go takes for a mistake.
fn nested_repetition(pattern: &str) -> Option<String> {
    let chars: Vec<char> = pattern.chars().collect();
    let (mut i, mut class, mut before) = (0, false, None);
    while i < chars.len() {
        let start = i;
        let repeats = match chars[i] {
            '\\' => {
                i += 1;
                false
            }
            '[' if !class => {
                class = true;
                // A bracket that comes first is text.
                i += usize::from(chars.get(i + 1) == Some(&'^'));
                i += usize::from(chars.get(i + 1) == Some(&']'));
                false
            }
            ']' if class => {
                class = false;
                false
            }
            '*' | '+' | '?' if !class && start > 0 && chars[start - 1] != '(' => true,
            '{' if !class => {
                let end = chars[i..].iter().position(|c| *c == '}').map(|e| i + e);
                let body = end.map(|e| &chars[i + 1..e]);
                let counts = body.is_some_and(|b| b.first().is_some_and(char::is_ascii_digit) && b.iter().all(|c| c.is_ascii_digit() || *c == ','));
                if let (true, Some(end)) = (counts, end) {
                    i = end;
                }
                counts
            }
            _ => false,
        };
        if repeats {
            if let Some(before) = before {
                return Some(chars[before..=i].iter().collect());
            }
            // A question mark behind it makes it lazy.
            i += usize::from(chars.get(i + 1) == Some(&'?'));
            before = Some(start);
        } else {
            before = None;
        }
        i += 1;
    }
    None
}

/// A pattern of Go's dialect in that of the `regex` crate.
fn translate(pattern: &str) -> String {
    let mut translator = Translator { chars: pattern.chars().collect(), at: 0, out: String::with_capacity(pattern.len() + 16), folds: vec![false] };
    translator.run();
    translator.out
}

struct Translator {
    chars: Vec<char>,
    at: usize,
    out: String,
    /// Whether case does not matter, in each group that is open. (The crate's own way needs tables that are not built in.)
    folds: Vec<bool>,
}

impl Translator {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn fold(&self) -> bool {
        self.folds.last().copied().unwrap_or(false)
    }

    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            self.at += 1;
            match c {
                '\\' => self.escape(false),
                '[' => self.class(),
                '(' => self.group(),
                ')' => {
                    if self.folds.len() > 1 {
                        self.folds.pop();
                    }
                    self.out.push(')');
                }
                c if self.fold() && c.is_ascii_alphabetic() => {
                    self.out.extend(['[', c.to_ascii_lowercase(), c.to_ascii_uppercase(), ']']);
                }
                c => self.out.push(c),
            }
        }
    }

    fn group(&mut self) {
        self.out.push('(');
        let mut fold = self.fold();
        let end = self.chars[self.at..].iter().position(|c| matches!(c, ')' | ':'));
        let flags: Option<Vec<char>> = end.map(|e| self.chars[self.at..self.at + e].to_vec());
        let flags = flags.filter(|f| f.first() == Some(&'?') && f[1..].iter().all(|c| "imsU-".contains(*c)));
        let (Some(flags), Some(end)) = (flags, end) else { return self.folds.push(fold) };
        let mut on = true;
        let (mut kept, mut dropped) = (String::new(), String::new());
        for c in &flags[1..] {
            match c {
                '-' => on = false,
                'i' => fold = on,
                c if on => kept.push(*c),
                c => dropped.push(*c),
            }
        }
        let close = self.chars[self.at + end];
        self.at += end + 1;
        let flags = if dropped.is_empty() { kept } else { format!("{kept}-{dropped}") };
        if close == ':' {
            self.out.push_str(&format!("?{flags}:"));
            return self.folds.push(fold);
        }
        // Flags without a group are for what follows in this one.
        if let Some(last) = self.folds.last_mut() {
            *last = fold;
        }
        if flags.is_empty() {
            self.out.push_str("?:)");
        } else {
            self.out.push_str(&format!("?{flags})"));
        }
    }

    fn escape(&mut self, class: bool) {
        let Some(c) = self.peek(0) else { return self.out.push('\\') };
        self.at += 1;
        match c {
            'd' => self.out.push_str("[0-9]"),
            'D' => self.out.push_str("[^0-9]"),
            'w' => self.out.push_str("[0-9A-Za-z_]"),
            'W' => self.out.push_str("[^0-9A-Za-z_]"),
            's' => self.out.push_str(r"[\t\n\f\r ]"),
            'S' => self.out.push_str(r"[^\t\n\f\r ]"),
            'b' if !class => self.out.push_str(r"(?-u:\b)"),
            'Q' if !class => {
                let rest = &self.chars[self.at..];
                let end = rest.windows(2).position(|w| w == ['\\', 'E']);
                let quoted: String = rest[..end.unwrap_or(rest.len())].iter().collect();
                self.at += end.map_or(rest.len(), |e| e + 2);
                self.out.push_str(&regex::escape(&quoted));
            }
            'E' => {}
            c => self.out.extend(['\\', c]),
        }
    }

    fn class(&mut self) {
        self.out.push('[');
        if self.peek(0) == Some('^') {
            self.at += 1;
            self.out.push('^');
        }
        let mut first = true;
        while let Some(c) = self.peek(0) {
            self.at += 1;
            match c {
                ']' if !first => {
                    self.out.push(']');
                    return;
                }
                ']' => self.out.push_str("\\]"),
                '\\' => self.escape(true),
                '[' if self.peek(0) == Some(':') => {
                    self.out.push('[');
                    while let Some(c) = self.peek(0) {
                        self.at += 1;
                        self.out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
                // Go takes for text what the crate takes for operators.
                '[' | '&' | '~' => self.out.extend(['\\', c]),
                '-' if self.peek(0) == Some('-') => self.out.push_str("\\-"),
                c if self.fold() && c.is_ascii_alphabetic() => {
                    let to = match (self.peek(0), self.peek(1)) {
                        (Some('-'), Some(to)) if to.is_ascii_alphabetic() => {
                            self.at += 2;
                            to
                        }
                        _ => c,
                    };
                    self.out.extend([c, '-', to]);
                    if c.is_ascii_lowercase() == to.is_ascii_lowercase() {
                        let other = |c: char| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
                        self.out.extend([other(c), '-', other(to)]);
                    }
                }
                c => self.out.push(c),
            }
            first = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_patterns() {
        for (pattern, text, matches) in [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢", false),
            (r"^[\w-]+$", "a-b_c", true),
            (r"^[\d.]+%$", "1.5%", true),
            (r"\Qa.b\E+", "a.bbb", true),
            (r"\Qa.b\E", "axb", false),
            (r"[]a]", "]", true),
            (r"^[a&&b]$", "&", true),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^.$", "👑", true),
            (r"(?i)ABC", "xabcx", true),
            (r"(?i)^a[b-d]é$", "ACé", true),
            (r"^(?i:a)b$", "Ab", true),
            (r"^(?i:a)b$", "AB", false),
            (r"a+?b??c{1,2}?[+*]", "aaac+", true),
            (r"(?s)a.b", "a\nb", true),
            (r"^a[[]b$", "a[b", true),
        ] {
            assert_eq!(compile(pattern).unwrap().is_match(text), matches, "{pattern} {text}");
        }
        for bad in ["x++", "x*{2}", "(", "[a", "a{1000}{1000}{1000}", r"\8", "(?=a)"] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
