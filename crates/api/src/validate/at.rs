//! A value with its path, from which errors are reported where they are found.

use crate::field::{FieldError, Path};
use crate::quantity::Quantity;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashMap;

/// Where errors are gathered.
pub type Errors = RefCell<Vec<FieldError>>;

/// So many mistakes of an object are told.
const MOST_ERRORS: usize = 10_000;

static NULL: Value = Value::Null;

/// A value (null when it is missing), its path, and where its errors go.
#[derive(Clone)]
pub struct At<'a> {
    pub v: &'a Value,
    pub path: Path,
    pub errs: &'a Errors,
}

impl<'a> At<'a> {
    pub fn root(v: &'a Value, errs: &'a Errors) -> At<'a> {
        At { v, path: Path::root(), errs }
    }

    /// Another value with a path of its own.
    pub fn with(&self, v: &'a Value, path: Path) -> At<'a> {
        At { v, path, errs: self.errs }
    }

    /// The field `name`.
    pub fn at(&self, name: &str) -> At<'a> {
        self.with(self.v.get(name).unwrap_or(&NULL), self.path.child(name))
    }

    /// The field under a row of names.
    pub fn down(&self, names: &[&str]) -> At<'a> {
        names.iter().fold(self.clone(), |a, n| a.at(n))
    }

    /// The same value under another path.
    pub fn named(&self, path: Path) -> At<'a> {
        self.with(self.v, path)
    }

    pub fn set(&self) -> bool {
        !self.v.is_null()
    }

    pub fn text(&self) -> &'a str {
        self.v.as_str().unwrap_or_default()
    }

    /// Text that is neither missing nor empty.
    pub fn filled(&self) -> Option<&'a str> {
        self.v.as_str().filter(|s| !s.is_empty())
    }

    pub fn int(&self) -> Option<i64> {
        self.v.as_i64()
    }

    pub fn int_or(&self, default: i64) -> i64 {
        self.int().unwrap_or(default)
    }

    pub fn yes(&self) -> bool {
        self.v.as_bool().unwrap_or(false)
    }

    pub fn quantity(&self) -> Option<Quantity> {
        if self.set() { Quantity::from_value(self.v).ok() } else { None }
    }

    pub fn len(&self) -> usize {
        match self.v {
            Value::Array(l) => l.len(),
            Value::Object(m) => m.len(),
            _ => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = At<'a>> + use<'a> {
        let (path, errs) = (self.path.clone(), self.errs);
        let list = self.v.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().map(move |(i, v)| At { v, path: path.index(i), errs })
    }

    /// The entries of a map.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, At<'a>)> + use<'a> {
        let (path, errs) = (self.path.clone(), self.errs);
        let map = self.v.as_object().into_iter().flatten();
        map.map(move |(k, v)| (k.as_str(), At { v, path: path.key(k), errs }))
    }

    pub fn push(&self, e: FieldError) {
        let mut errors = self.errs.borrow_mut();
        if errors.len() < MOST_ERRORS {
            errors.push(e);
        }
    }

    pub fn required(&self, detail: &str) {
        self.push(FieldError::required(&self.path, detail));
    }

    pub fn invalid(&self, detail: impl Into<String>) {
        self.push(FieldError::invalid(&self.path, self.shown(), detail));
    }

    pub fn invalid_as(&self, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldError::invalid(&self.path, value, detail));
    }

    pub fn forbidden(&self, detail: impl Into<String>) {
        self.push(FieldError::forbidden(&self.path, detail));
    }

    pub fn duplicate(&self) {
        self.push(FieldError::duplicate(&self.path, self.shown()));
    }

    pub fn not_found(&self) {
        self.push(FieldError::not_found(&self.path, self.shown()));
    }

    pub fn too_long(&self, max: usize) {
        self.push(FieldError::too_long(&self.path, max));
    }

    pub fn not_supported(&self, valid: &[&str]) {
        self.push(FieldError::not_supported(&self.path, self.shown(), valid));
    }

    /// Like [`At::not_supported`], of text: missing is shown as empty.
    pub fn not_supported_as(&self, valid: &[&str]) {
        self.push(FieldError::not_supported(&self.path, self.text(), valid));
    }

    /// A missing string is shown as an empty one.
    fn shown(&self) -> Value {
        self.v.clone()
    }

    /// Reports each sentence about the text.
    pub fn check(&self, f: impl Fn(&str) -> Vec<String>) {
        for m in f(self.text()) {
            self.invalid_as(self.text(), m);
        }
    }

    /// Like [`At::check`], for text that may be missing or empty.
    pub fn check_if_filled(&self, f: impl Fn(&str) -> Vec<String>) {
        if self.filled().is_some() {
            self.check(f);
        }
    }

    /// Required, and one of `valid` (sorted, as it is listed).
    pub fn one_of(&self, valid: &[&str]) {
        match self.filled() {
            None => self.required(""),
            Some(s) if !valid.contains(&s) => self.not_supported(valid),
            _ => {}
        }
    }

    /// One of `valid` when it is there.
    pub fn one_of_if_set(&self, valid: &[&str]) {
        if self.set() && !valid.contains(&self.text()) {
            self.not_supported(valid);
        }
    }

    /// A number that is not negative, when there is one.
    pub fn nonnegative(&self) {
        if self.int().is_some_and(|n| n < 0) {
            self.invalid("must be greater than or equal to 0");
        }
    }

    /// A number in a range, when there is one.
    pub fn in_range(&self, lo: i64, hi: i64) {
        if let Some(n) = self.int() {
            for m in crate::names::in_range(n, lo, hi) {
                self.invalid(m);
            }
        }
    }

    /// Must be as in `old`.
    pub fn immutable(&self, old: &At<'_>) {
        if !same(self.v, old.v) {
            self.invalid("field is immutable");
        }
    }
}

/// Items by their names; of equal names the first.
pub fn by_name<'a>(items: impl Iterator<Item = At<'a>>) -> HashMap<&'a str, At<'a>> {
    let mut all = HashMap::new();
    items.for_each(|item| _ = all.entry(item.at("name").text()).or_insert(item));
    all
}

/// Whether two values mean the same: missing, null and an empty list are one. An empty object is a structure that is there.
pub fn same(a: &Value, b: &Value) -> bool {
    fn empty(v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::Array(l) => l.is_empty(),
            _ => false,
        }
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => x
            .iter()
            .all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
            && y.iter().all(|(k, v)| x.contains_key(k) || empty(v)),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        (a, b) if empty(a) && empty(b) => true,
        (a, b) => a == b,
    }
}
