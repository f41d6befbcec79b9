//! Paths into an object: simple ones (`.spec.replicas`) of subresources and selectable fields, and the part of
//! kubectl's JSONPath that printer columns use.

use serde_json::Value;

/// The value at a simple path, `None` where there is none.
pub fn get<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.trim_start_matches('.').split('.').try_fold(object, |value, key| value.get(key))
}

/// A step of a JSONPath.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>, Option<i64>),
    Wildcard,
    /// `..`: the value and everything in it.
    Deep,
    Filter(Vec<Step>, Operator, Operand),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    None,
    Literal(Value),
    Path(Vec<Step>),
}

/// A JSONPath as printer columns have it, without braces.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let mut parser = Parser { rest: text.trim() };
        let steps = parser.steps()?;
        parser.rest.is_empty().then_some(JsonPath(steps))
    }

    /// All values that the path leads to; what is missing leads nowhere.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        follow(&self.0, vec![object])
    }
}

fn follow<'a>(steps: &[Step], from: Vec<&'a Value>) -> Vec<&'a Value> {
    let mut at = from;
    for step in steps {
        at = at.into_iter().flat_map(|value| next(step, value)).collect();
    }
    at
}

fn next<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let wrap = |index: i64, len: usize| if index < 0 { index + len as i64 } else { index };
    match (step, value) {
        (Step::Key(key), Value::Object(map)) => map.get(key).into_iter().collect(),
        (Step::Index(index), Value::Array(list)) => {
            usize::try_from(wrap(*index, list.len())).ok().and_then(|i| list.get(i)).into_iter().collect()
        }
        (Step::Slice(from, to, step), Value::Array(list)) => {
            let bound = |b: &Option<i64>, default: i64| wrap(b.unwrap_or(default), list.len()).clamp(0, list.len() as i64) as usize;
            let (from, to) = (bound(from, 0), bound(to, list.len() as i64));
            let by = step.unwrap_or(1).max(1) as usize;
            if from < to { list[from..to].iter().step_by(by).collect() } else { Vec::new() }
        }
        (Step::Wildcard, Value::Array(list)) => list.iter().collect(),
        (Step::Wildcard, Value::Object(map)) => map.values().collect(),
        (Step::Deep, _) => {
            let mut all = Vec::new();
            deep(value, &mut all);
            all
        }
        (Step::Filter(path, operator, operand), Value::Array(list)) => {
            list.iter().filter(|item| keeps(path, *operator, operand, item)).collect()
        }
        _ => Vec::new(),
    }
}

fn deep<'a>(value: &'a Value, all: &mut Vec<&'a Value>) {
    all.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|v| deep(v, all)),
        Value::Object(map) => map.values().for_each(|v| deep(v, all)),
        _ => {}
    }
}

fn keeps(path: &[Step], operator: Operator, operand: &Operand, item: &Value) -> bool {
    let Some(left) = follow(path, vec![item]).first().copied() else { return false };
    let right = match operand {
        Operand::None => return true,
        Operand::Literal(value) => value,
        Operand::Path(path) => match follow(path, vec![item]).first().copied() {
            Some(value) => value,
            None => return false,
        },
    };
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        _ => None,
    };
    match operator {
        Operator::Exists => true,
        Operator::Equal => order.map_or(left == right, |o| o.is_eq()),
        Operator::NotEqual => order.map_or(left != right, |o| o.is_ne()),
        Operator::Less => order.is_some_and(|o| o.is_lt()),
        Operator::LessEqual => order.is_some_and(|o| o.is_le()),
        Operator::Greater => order.is_some_and(|o| o.is_gt()),
        Operator::GreaterEqual => order.is_some_and(|o| o.is_ge()),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn steps(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let _ = self.eat("$") || self.eat("@");
        loop {
            if self.eat("..") {
                steps.push(Step::Deep);
                self.key(&mut steps)?;
            } else if self.eat(".") {
                if self.rest.is_empty() && steps.is_empty() {
                    return Some(steps);
                }
                if !self.rest.starts_with('[') {
                    self.key(&mut steps)?;
                }
            } else if self.rest.starts_with('[') {
                self.bracket(&mut steps)?;
            } else {
                return Some(steps);
            }
        }
    }

    /// A name after a dot; a backslash takes the next character as it is.
    fn key(&mut self, steps: &mut Vec<Step>) -> Option<()> {
        if self.eat("*") {
            steps.push(Step::Wildcard);
            return Some(());
        }
        let mut name = String::new();
        let mut characters = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => name.push(characters.next()?.1),
                '.' | '[' | ']' | ' ' | ')' | '(' | '=' | '!' | '<' | '>' | '&' | '|' | ',' => {
                    end = at;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        if name.is_empty() {
            return None;
        }
        steps.push(Step::Key(name));
        Some(())
    }

    fn bracket(&mut self, steps: &mut Vec<Step>) -> Option<()> {
        self.eat("[");
        if self.eat("?(") {
            let path = self.steps()?;
            self.rest = self.rest.trim_start();
            let operators = [
                ("==", Operator::Equal),
                ("!=", Operator::NotEqual),
                ("<=", Operator::LessEqual),
                (">=", Operator::GreaterEqual),
                ("<", Operator::Less),
                (">", Operator::Greater),
            ];
            let operator = operators.into_iter().find(|(token, _)| self.eat(token)).map_or(Operator::Exists, |(_, o)| o);
            self.rest = self.rest.trim_start();
            let operand = if operator == Operator::Exists { Operand::None } else { self.operand()? };
            self.rest = self.rest.trim_start();
            steps.push(Step::Filter(path, operator, operand));
            return (self.eat(")") && self.eat("]")).then_some(());
        }
        let end = self.closing()?;
        let inside = self.rest[..end].trim();
        self.rest = &self.rest[end + 1..];
        let quoted = |t: &str| ['\'', '"'].iter().find_map(|q| Some(t.strip_prefix(*q)?.strip_suffix(*q)?.to_owned()));
        let step = if inside == "*" {
            Step::Wildcard
        } else if let Some(name) = quoted(inside) {
            Step::Key(name)
        } else if inside.contains(':') {
            let mut bounds = inside.split(':').map(|b| if b.is_empty() { Some(None) } else { b.trim().parse().ok().map(Some) });
            Step::Slice(bounds.next().flatten()?, bounds.next().flatten()?, bounds.next().unwrap_or(Some(None))?)
        } else {
            Step::Index(inside.parse().ok()?)
        };
        steps.push(step);
        Some(())
    }

    /// Where the bracket ends, quotes looked through.
    fn closing(&self) -> Option<usize> {
        let mut quote = None;
        for (at, c) in self.rest.char_indices() {
            match (quote, c) {
                (None, ']') => return Some(at),
                (None, '\'' | '"') => quote = Some(c),
                (Some(q), c) if q == c => quote = None,
                _ => {}
            }
        }
        None
    }

    fn operand(&mut self) -> Option<Operand> {
        if let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
            let end = self.rest[1..].find(quote)? + 1;
            let text = self.rest[1..end].to_owned();
            self.rest = &self.rest[end + 1..];
            return Some(Operand::Literal(Value::String(text)));
        }
        if self.rest.starts_with(['@', '$', '.']) {
            return self.steps().map(Operand::Path);
        }
        let end = self.rest.find([')', ' '])?;
        let word = &self.rest[..end];
        self.rest = &self.rest[end..];
        Some(Operand::Literal(serde_json::from_str(word).unwrap_or_else(|_| Value::String(word.to_owned()))))
    }
}

/// The parts of a path: `.`, `[`, `]`, and what is between them; a text in single quotes is one part.
pub(super) fn tokens(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = match first {
            '.' | '[' | ']' => 1,
            '\'' => rest.char_indices().skip(1).find(|(i, c)| *c == '\'' && !rest[..*i].ends_with('\\')).map_or(rest.len(), |(i, _)| i + 1),
            _ => rest.find(['.', '[', ']']).unwrap_or(rest.len()),
        };
        let (token, more) = rest.split_at(end);
        rest = more;
        Some(token)
    })
}
