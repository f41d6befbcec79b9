//! Label and field selectors: their text forms, `metav1.LabelSelector`, and
//! matching. Parse errors are the sentences that upstream answers with.

use crate::field::{FieldError, Path, go_quote};
use crate::names;
use serde_json::Value;
use std::fmt;

/// How a [`Requirement`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`
    Equals,
    /// `==`
    DoubleEquals,
    /// `!=`
    NotEquals,
    /// `in`
    In,
    /// `notin`
    NotIn,
    /// the key alone
    Exists,
    /// `!` before the key
    DoesNotExist,
    /// `>`
    GreaterThan,
    /// `<`
    LessThan,
}

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// The values compared with, sorted.
    pub values: Vec<String>,
}

/// A label selector: all requirements must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Labels {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Labels {
    /// Matches every object.
    pub fn everything() -> Labels {
        Labels::default()
    }

    /// Matches no object.
    pub fn nothing() -> Labels {
        Labels { requirements: Vec::new(), nothing: true }
    }

    /// Reads the text form, as in `?labelSelector=` and `kubectl -l`.
    pub fn parse(s: &str) -> Result<Labels, String> {
        let mut requirements = Parser::new(s).parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// Reads a `metav1.LabelSelector`; `null` matches nothing, `{}` everything.
    pub fn from_label_selector(v: &Value) -> Result<Labels, String> {
        if v.is_null() {
            return Ok(Labels::nothing());
        }
        let mut requirements = Vec::new();
        for (k, v) in v.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            requirements.push(Requirement::new(k, Operator::Equals, vec![v.as_str().unwrap_or_default().to_owned()])?);
        }
        for e in v.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", go_quote(other))),
            };
            let values = e.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(|v| v.as_str().map(str::to_owned)).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// Equality with every entry of a map (the selector of a Service or a ReplicationController).
    pub fn from_map(v: &Value) -> Labels {
        let entries = v.as_object().into_iter().flatten();
        let requirements = entries.map(|(k, v)| Requirement {
            key: k.clone(),
            operator: Operator::Equals,
            values: vec![v.as_str().unwrap_or_default().to_owned()],
        });
        Labels { requirements: requirements.collect(), nothing: false }
    }

    /// Whether an object with these labels (an object, or `null` for none) is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        let map = labels.as_object();
        self.matches_with(|k| map.and_then(|m| m.get(k)).and_then(Value::as_str))
    }

    /// [`Labels::matches`] for any kind of map.
    pub fn matches_with<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }

    /// Whether every object is selected.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// The terms, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms: Vec<String> = self.requirements.iter().map(ToString::to_string).collect();
        f.write_str(&terms.join(","))
    }
}

impl Requirement {
    /// A checked term.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Requirement, String> {
        let mut errs = Vec::new();
        let bad_key = names::qualified_name(key);
        if !bad_key.is_empty() {
            errs.push(FieldError::invalid(&Path::new("key"), key, bad_key.join("; ")));
        }
        let path = Path::new("values");
        let shown = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errs.push(FieldError::invalid(&path, shown(), "for 'in', 'notin' operators, values set can't be empty"));
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errs.push(FieldError::invalid(&path, shown(), "exact-match compatibility requires one single value"));
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errs.push(FieldError::invalid(&path, shown(), "values set must be empty for exists and does not exist"));
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errs.push(FieldError::invalid(&path, shown(), "for 'Gt', 'Lt' operators, exactly one value is required"));
                }
                for (i, v) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let text = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errs.push(FieldError::invalid(&path.index(i), v.as_str(), text));
                }
            }
            _ => {}
        }
        for (i, v) in values.iter().enumerate() {
            let bad = names::label_value(v);
            if !bad.is_empty() {
                errs.push(FieldError::invalid(&path.index(i).key(key), v.as_str(), bad.join("; ")));
            }
        }
        if !errs.is_empty() {
            return Err(crate::field::aggregate(errs.iter().map(ToString::to_string)));
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    /// Whether a label with this value (or none) fulfils the term.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::In | Operator::Equals | Operator::DoubleEquals, v) => v.is_some_and(has),
            (Operator::NotIn | Operator::NotEquals, v) => !v.is_some_and(has),
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, v) => v.is_none(),
            (Operator::GreaterThan | Operator::LessThan, None) => false,
            (op, Some(v)) => {
                let bound = self.values.first().and_then(|b| b.parse::<i64>().ok());
                let (Ok(v), Some(bound)) = (v.parse::<i64>(), bound) else { return false };
                if op == Operator::GreaterThan { v > bound } else { v < bound }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (k, v) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{k}={v}"),
            Operator::DoubleEquals => write!(f, "{k}=={v}"),
            Operator::NotEquals => write!(f, "{k}!={v}"),
            Operator::In => write!(f, "{k} in ({v})"),
            Operator::NotIn => write!(f, "{k} notin ({v})"),
            Operator::Exists => write!(f, "{k}"),
            Operator::DoesNotExist => write!(f, "!{k}"),
            Operator::GreaterThan => write!(f, "{k}>{v}"),
            Operator::LessThan => write!(f, "{k}<{v}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Error,
    End,
    Close,
    Open,
    Comma,
    Not,
    Identifier,
    In,
    NotIn,
    Compare(Operator),
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

fn symbol(s: &str) -> Option<Token> {
    Some(match s {
        ")" => Token::Close,
        "(" => Token::Open,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::Compare(Operator::DoubleEquals),
        "=" => Token::Compare(Operator::Equals),
        "!=" => Token::Compare(Operator::NotEquals),
        ">" => Token::Compare(Operator::GreaterThan),
        "<" => Token::Compare(Operator::LessThan),
        _ => return None,
    })
}

fn scan(s: &str) -> Vec<(Token, String)> {
    let special = |c: char| "=!(),><".contains(c);
    let blank = |c: char| " \t\r\n".contains(c);
    let mut rest = s;
    let mut out = Vec::new();
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next().filter(|c| *c != '\0') else {
            out.push((Token::End, String::new()));
            return out;
        };
        let len;
        if special(first) {
            // The longest known operator that starts here; letters of an unknown one are an error.
            let run = rest.find(|c| !special(c)).unwrap_or(rest.len());
            let known = (1..=run).take_while(|n| symbol(&rest[..*n]).is_some()).last();
            match known {
                Some(n) => {
                    len = n;
                    out.push((symbol(&rest[..n]).unwrap_or(Token::Error), rest[..n].to_owned()));
                }
                None => {
                    len = run;
                    out.push((Token::Error, format!("error expected: keyword found '{}'", &rest[..run])));
                }
            }
        } else {
            len = rest.find(|c| special(c) || blank(c) || c == '\0').unwrap_or(rest.len());
            let word = &rest[..len];
            let token = match word {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            out.push((token, word.to_owned()));
        }
        rest = &rest[len..];
    }
}

impl Parser {
    fn new(s: &str) -> Parser {
        Parser { tokens: scan(s), at: 0 }
    }

    /// The current token, where `in` and `notin` are plain words unless an operator is looked for.
    fn peek(&self, operator: bool) -> (Token, &str) {
        let (t, s) = &self.tokens[self.at.min(self.tokens.len() - 1)];
        let t = if !operator && matches!(t, Token::In | Token::NotIn) { Token::Identifier } else { *t };
        (t, s)
    }

    fn next(&mut self, operator: bool) -> (Token, String) {
        let (t, s) = self.peek(operator);
        let out = (t, s.to_owned());
        self.at += 1;
        out
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek(false) {
                (Token::Identifier | Token::Not, _) => {
                    out.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.next(false) {
                        (Token::End, _) => return Ok(out),
                        (Token::Comma, _) => {
                            let (t, s) = self.peek(false);
                            if t != Token::Identifier && t != Token::Not {
                                return Err(format!("found '{s}', expected: identifier after ','"));
                            }
                        }
                        (_, s) => return Err(format!("found '{s}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(out),
                (_, s) => return Err(format!("found '{s}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut t, mut key) = self.next(false);
        let negated = t == Token::Not;
        if negated {
            (t, key) = self.next(false);
        }
        if t != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let bad = names::qualified_name(&key);
        if !bad.is_empty() {
            return Err(FieldError::invalid(&Path::root(), key, bad.join("; ")).to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(false).0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (operator, values) = match self.next(true) {
            (Token::In, _) => (Operator::In, self.set()?),
            (Token::NotIn, _) => (Operator::NotIn, self.set()?),
            (Token::Compare(op), _) => (op, vec![self.exact()?]),
            (_, s) => return Err(format!("found '{s}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        Requirement::new(&key, operator, values)
    }

    fn exact(&mut self) -> Result<String, String> {
        if matches!(self.peek(false).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next(false) {
            (Token::Identifier, s) => Ok(s),
            (_, s) => Err(format!("found '{s}', expected: identifier")),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, String> {
        let (t, s) = self.next(false);
        if t != Token::Open {
            return Err(format!("found '{s}' expected: '('"));
        }
        let (t, s) = self.peek(false);
        let first = s.to_owned();
        match t {
            Token::Identifier | Token::Comma => {
                let values = self.list()?;
                match self.next(false).0 {
                    Token::Close => Ok(values),
                    _ => Err(format!("found '{first}', expected: ')'")),
                }
            }
            Token::Close => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            _ => Err(format!("found '{first}', expected: ',', ')' or identifier")),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let mut values: Vec<String> = Vec::new();
        loop {
            match self.next(false) {
                (Token::Identifier, s) => {
                    values.push(s);
                    match self.peek(false) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, s) => return Err(format!("found '{s}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek(false).0 {
                        Token::Close => {
                            values.push(String::new());
                            break;
                        }
                        Token::Comma => values.push(String::new()),
                        _ => {}
                    }
                }
                (_, s) => return Err(format!("found '{s}', expected: ',', or identifier")),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field's label, for example `spec.nodeName`.
    pub path: String,
    /// The value compared with.
    pub value: String,
    /// Whether the comparison is `!=`.
    pub negated: bool,
}

/// A field selector: all terms must hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Fields {
    terms: Vec<FieldTerm>,
}

impl Fields {
    /// Reads the text form, as in `?fieldSelector=`.
    pub fn parse(s: &str) -> Result<Fields, String> {
        let mut parts = split_terms(s);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let unclear = || format!("invalid selector: '{s}'; can't understand '{part}'");
            let at = part.find(['=', '!']).ok_or_else(unclear)?;
            let at = if part[at..].starts_with('!') && !part[at..].starts_with("!=") {
                part.find('=').map(|e| if part[..e].ends_with('!') { e - 1 } else { e }).ok_or_else(unclear)?
            } else {
                at
            };
            let (path, rest) = part.split_at(at);
            let (negated, value) = match (rest.strip_prefix("!="), rest.strip_prefix("=="), rest.strip_prefix('=')) {
                (Some(v), _, _) => (true, v),
                (_, Some(v), _) | (_, _, Some(v)) => (false, v),
                _ => return Err(unclear()),
            };
            terms.push(FieldTerm { path: path.to_owned(), value: unescape(value)?, negated });
        }
        Ok(Fields { terms })
    }

    /// Renames each term's path, or fails with the sentence that `f` gives
    /// (`field label not supported: …`).
    pub fn convert(mut self, f: impl Fn(&str) -> Result<String, String>) -> Result<Fields, String> {
        for t in &mut self.terms {
            t.path = f(&t.path)?;
        }
        Ok(self)
    }

    /// Whether an object is selected; `get` gives the value of a path, and a missing one counts as empty.
    pub fn matches(&self, get: impl Fn(&str) -> Option<String>) -> bool {
        self.terms.iter().all(|t| (get(&t.path).unwrap_or_default() == t.value) != t.negated)
    }

    /// Whether every object is selected.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `path` must have, when there is one.
    pub fn requires(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.path == path && !t.negated).map(|t| t.value.as_str())
    }

    /// The terms.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let value = t.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{value}", t.path, if t.negated { "!=" } else { "=" })?;
        }
        Ok(())
    }
}

fn split_terms(s: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in s.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&s[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&s[start..]);
    out
}

fn unescape(s: &str) -> Result<String, String> {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {}", c as u32)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn matching(s: &str, labels: &Map<String, Value>) -> bool {
        Labels::parse(s).unwrap().matches(&Value::Object(labels.clone()))
    }

    #[test]
    fn labels() {
        let l = json!({"app": "web", "n": "5", "in": "notin"});
        let l = l.as_object().unwrap();
        for s in ["", "app", "app=web", "app==web", "app in (web, x)", "app!=x", "!z", "z notin (a)", "n>4,n<6", "in in (notin)", "z!=", " app = web , n "] {
            assert!(matching(s, l), "{s}");
        }
        for s in ["z", "app=x", "app notin (web)", "!app", "n>5", "app in ()", "z=", "n<5"] {
            assert!(!matching(s, l), "{s}");
        }
        assert_eq!(Labels::parse("b in (y,x),a=1,!c").unwrap().to_string(), "a=1,b in (x,y),!c");
    }

    #[test]
    fn label_errors() {
        let e = |s| Labels::parse(s).unwrap_err();
        assert_eq!(e("a,"), "found '', expected: identifier after ','");
        assert_eq!(e("=a"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(e("a b"), "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
        assert_eq!(e("a in b"), "unable to parse requirement: found 'b' expected: '('");
        assert_eq!(e("a in (b"), "unable to parse requirement: found '', expected: ',' or ')'");
        assert!(e("-a").starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"));
        assert!(e("a=-").starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label must be"));
        assert!(e("a>x").contains("for 'Gt', 'Lt' operators, the value must be an integer"));
    }

    #[test]
    fn label_selector_objects() {
        let s = json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["x"]}]});
        let s = Labels::from_label_selector(&s).unwrap();
        assert!(s.matches(&json!({"a": "1"})) && !s.matches(&json!({"a": "1", "b": "x"})));
        assert!(!Labels::from_label_selector(&Value::Null).unwrap().matches(&json!({})));
        assert!(Labels::from_label_selector(&json!({})).unwrap().matches(&Value::Null));
        let bad = json!({"matchExpressions": [{"key": "b", "operator": "Near"}]});
        assert_eq!(Labels::from_label_selector(&bad).unwrap_err(), "\"Near\" is not a valid label selector operator");
    }

    #[test]
    fn fields() {
        let f = Fields::parse("spec.nodeName=a\\,b,status.phase!=Failed,x==").unwrap();
        assert!(f.matches(|p| (p == "spec.nodeName").then(|| "a,b".into())));
        assert_eq!(f.requires("spec.nodeName"), Some("a,b"));
        assert_eq!(f.to_string(), "spec.nodeName=a\\,b,status.phase!=Failed,x=");
        assert_eq!(Fields::parse("abc").unwrap_err(), "invalid selector: 'abc'; can't understand 'abc'");
        assert_eq!(Fields::parse("a=b=c").unwrap_err(), "invalid field selector: unescaped character in value: 61");
    }
}
