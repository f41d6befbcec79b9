//! Evaluation: a walk over a planned expression, with upstream's cost counted on the way.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use regex::Regex;

use crate::error::{Error, ErrorKind};
use crate::functions::pattern;
use crate::runtime_cost::CallCost;
use crate::program::{CallNode, FoldNode, Node, Program};
use crate::value::{Key, List, Map, Opaque, OwnedMap, Value, equal};

/// The most that one evaluation may cost.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// What an evaluation came to.
#[derive(Debug)]
pub struct Evaluation<'a> {
    /// The value, or why there is none.
    pub result: Result<Value<'a>, Error>,
    /// What it cost, also when it failed.
    pub cost: u64,
}

/// The values of variables.
///
/// Expressions whose values are variables themselves (`variables.x`) are evaluated when they are first asked for.
#[derive(Debug, Default)]
pub struct Activation<'a> {
    bindings: Vec<(&'a str, Value<'a>)>,
    composed: Vec<(&'a str, Result<&'a Program, String>)>,
    cache: RefCell<Vec<Option<Result<Value<'a>, Error>>>>,
    composed_cost: Cell<u64>,
    patterns: RefCell<Vec<(String, Arc<Regex>)>>,
}

impl<'a> Activation<'a> {
    /// No variables.
    pub fn new() -> Activation<'a> {
        Activation::default()
    }

    /// With a variable.
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Activation<'a> {
        self.bind(name, value);
        self
    }

    /// Sets a variable.
    pub fn bind(&mut self, name: &'a str, value: Value<'a>) {
        match self.bindings.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.bindings.push((name, value)),
        }
    }

    /// Adds a field of `variables`: an expression, or why it does not compile.
    pub fn compose(&mut self, name: &'a str, program: Result<&'a Program, String>) {
        if self.composed.is_empty() {
            self.bind("variables", Value::Map(Map::Composed));
        }
        self.composed.push((name, program));
        self.cache.get_mut().push(None);
    }

    /// What composed variables have cost since this was last asked.
    pub fn take_composed_cost(&self) -> u64 {
        self.composed_cost.take()
    }

    fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.bindings.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    fn composed(&self, name: &str) -> Option<Result<Value<'a>, Error>> {
        let place = self.composed.iter().position(|(n, _)| *n == name)?;
        if let Some(known) = &self.cache.borrow()[place] {
            return Some(known.clone());
        }
        let result = match &self.composed[place].1 {
            Ok(program) => {
                let Evaluation { result, cost } = program.eval(self);
                self.composed_cost.set(self.composed_cost.get().saturating_add(cost));
                result.map_err(|e| match e.kind {
                    ErrorKind::CostExceeded => e,
                    ErrorKind::Value => Error::new(format!("composited variable {name:?} fails to evaluate: {e}")),
                })
            }
            Err(why) => Err(Error::new(format!("composited variable {name:?} fails to compile: {why}"))),
        };
        self.cache.borrow_mut()[place] = Some(result.clone());
        Some(result)
    }

    /// A pattern that is no constant, compiled; the last few are kept.
    pub(crate) fn pattern(&self, text: &str) -> Result<Arc<Regex>, Error> {
        let mut patterns = self.patterns.borrow_mut();
        if let Some((_, regex)) = patterns.iter().find(|(t, _)| t == text) {
            return Ok(regex.clone());
        }
        let regex = Arc::new(pattern::compile(text)?);
        if patterns.len() == 8 {
            patterns.remove(0);
        }
        patterns.push((text.to_string(), regex.clone()));
        Ok(regex)
    }
}

impl Program {
    /// Evaluates the expression, at upstream's usual limit.
    pub fn eval<'a>(&'a self, activation: &Activation<'a>) -> Evaluation<'a> {
        self.eval_within(activation, PER_CALL_LIMIT)
    }

    /// Evaluates the expression; it fails when it costs more than `limit`.
    pub fn eval_within<'a>(&'a self, activation: &Activation<'a>, limit: u64) -> Evaluation<'a> {
        let variables = self.variables.iter().map(|name| activation.get(name)).collect();
        let mut machine = Machine { program: self, activation, variables, locals: Vec::new(), cost: 0, limit };
        let result = machine.eval(&self.root);
        Evaluation { result, cost: machine.cost }
    }
}

struct Machine<'m, 'a> {
    program: &'a Program,
    activation: &'m Activation<'a>,
    variables: Vec<Option<&'m Value<'a>>>,
    locals: Vec<Result<Value<'a>, Error>>,
    cost: u64,
    limit: u64,
}

type Res<'a> = Result<Value<'a>, Error>;

impl<'a> Machine<'_, 'a> {
    fn charge(&mut self, cost: u64) -> Result<(), Error> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Error::cost()) } else { Ok(()) }
    }

    fn eval(&mut self, node: &'a Node) -> Res<'a> {
        match node {
            Node::Const(v) => Ok(v.clone()),
            Node::Text(s) => Ok(Value::borrowed(s)),
            Node::Variable(place) => {
                self.charge(1)?;
                match self.variables[*place as usize] {
                    Some(v) => Ok(v.clone()),
                    None => Err(Error::new(format!("no such attribute(s): {}", self.program.variables[*place as usize]))),
                }
            }
            Node::Local(slot) => {
                self.charge(1)?;
                self.locals[*slot as usize].clone()
            }
            Node::Select { operand, field, optional, relative } => {
                let of = self.eval(operand)?;
                self.charge(u64::from(*relative))?;
                self.field(of, field, *optional)
            }
            Node::Has { operand, field, relative } => {
                let of = self.eval(operand)?;
                self.charge(u64::from(*relative))?;
                self.has(&of, field)
            }
            Node::Index { operand, index, optional, relative } => {
                let of = self.eval(operand)?;
                let at = self.eval(index)?;
                if index.is_attribute() {
                    // The path of an index has no base cost.
                    self.cost = self.cost.saturating_sub(index.base_cost());
                }
                self.charge(u64::from(*relative))?;
                self.index(of, &at, *optional)
            }
            Node::And(left, right) => self.logic(left, right, false),
            Node::Or(left, right) => self.logic(left, right, true),
            Node::Choose { condition, yes, no } => self.choose(condition, yes, no),
            Node::NotFalse(inner) => {
                let value = self.eval(inner);
                self.charge(1)?;
                match value {
                    Ok(Value::Bool(v)) => Ok(Value::Bool(v)),
                    Err(e) if e.kind == ErrorKind::CostExceeded => Err(e),
                    _ => Ok(Value::Bool(true)),
                }
            }
            Node::Equal { left, right, negate } => self.equals(left, right, *negate),
            Node::InConst { item, list } => {
                let item = self.eval(item)?;
                Ok(Value::Bool(list.iter().any(|v| equal(&item, v))))
            }
            Node::Call(call) => self.call(call),
            Node::Pattern { function, args, regex, cost } => self.matching(*function, args, regex, *cost),
            Node::OptionalOr { left, right, value } => match self.eval(left)? {
                Value::Optional(Some(v)) if *value => Ok((*v).clone()),
                Value::Optional(None) => self.eval(right),
                other => Ok(other),
            },
            Node::List(elements) => self.list(elements),
            Node::Map(entries) => self.map(entries),
            Node::Object { name, fields } => self.object(name, fields),
            Node::Fold(fold) => self.fold(fold),
            Node::Append { accu, item } => self.append(*accu, item),
            Node::Insert { accu, args } => self.insert(*accu, args),
        }
    }

    fn choose(&mut self, condition: &'a Node, yes: &'a Node, no: &'a Node) -> Res<'a> {
        let branch = match self.eval(condition)? {
            Value::Bool(true) => yes,
            Value::Bool(false) => no,
            _ => return Err(Error::no_overload()),
        };
        let value = self.eval(branch);
        if branch.is_attribute() {
            self.cost = self.cost.saturating_sub(branch.base_cost());
        }
        value
    }

    fn equals(&mut self, left: &'a Node, right: &'a Node, negate: bool) -> Res<'a> {
        let (left, right) = (self.eval(left), self.eval(right));
        let size = |v: &Res<'a>| v.as_ref().map_or(1, Value::size);
        let cost = match &left {
            Ok(Value::Opaque(o)) if !negate && !matches!(o, Opaque::Object(_)) => 1,
            _ => size(&left).min(size(&right)).div_ceil(10),
        };
        let charged = self.charge(cost);
        let (left, right) = (left?, right?);
        charged?;
        Ok(Value::Bool(equal(&left, &right) != negate))
    }

    fn matching(&mut self, function: pattern::Function, args: &'a [Node], regex: &Regex, cost: CallCost) -> Res<'a> {
        let args = self.args(args)?;
        let value = function.call(regex, &args)?;
        let cost = cost.of_call(&args, &value);
        self.charge(cost)?;
        Ok(value)
    }

    fn list(&mut self, elements: &'a [(Node, bool)]) -> Res<'a> {
        let mut items = Vec::with_capacity(elements.len());
        for (element, optional) in elements {
            match (self.eval(element)?, optional) {
                (Value::Optional(v), true) => items.extend(v.map(|v| (*v).clone())),
                (other, true) => return Err(Error::new(format!("cannot initialize optional list element from non-optional value {}", shown(&other)))),
                (value, false) => items.push(value),
            }
        }
        self.charge(10)?;
        Ok(Value::list(items))
    }

    fn object(&mut self, name: &str, fields: &'a [(String, Node, bool)]) -> Res<'a> {
        let mut out = std::collections::BTreeMap::new();
        for (field, node, optional) in fields {
            match (self.eval(node)?, optional) {
                (Value::Optional(None), true) => {}
                (Value::Optional(Some(v)), true) => drop(out.insert(field.clone(), (*v).clone())),
                (value, _) => drop(out.insert(field.clone(), value)),
            }
        }
        self.charge(40)?;
        let object = crate::value::object_literal(name.to_string(), out);
        Ok(Value::Opaque(Opaque::Object(Arc::new(object))))
    }

    fn append(&mut self, accu: u32, item: &'a Node) -> Res<'a> {
        // As the step it stands for: the variable, the list of one item, the sum.
        self.charge(1)?;
        let item = self.eval(item);
        self.charge(if item.is_ok() { 11 } else { 0 })?;
        let before = std::mem::replace(&mut self.locals[accu as usize], Ok(Value::Null))?;
        let item = item?;
        match before {
            Value::List(List::Owned(mut items, None)) => {
                Arc::make_mut(&mut items).push(item);
                Ok(Value::List(List::Owned(items, None)))
            }
            _ => Err(Error::no_overload()),
        }
    }

    fn insert(&mut self, accu: u32, args: &'a [Node]) -> Res<'a> {
        self.charge(1)?;
        let args = self.args(args);
        self.charge(if args.is_ok() { 1 } else { 0 })?;
        let before = std::mem::replace(&mut self.locals[accu as usize], Ok(Value::Null))?;
        crate::functions::lists::map_insert(before, &args?)
    }

    fn args(&mut self, nodes: &'a [Node]) -> Result<Vec<Value<'a>>, Error> {
        nodes.iter().map(|n| self.eval(n)).collect()
    }

    fn call(&mut self, call: &'a CallNode) -> Res<'a> {
        // Most calls have few arguments: they need no memory of their own.
        match &call.args[..] {
            [one] => match self.eval(one) {
                Ok(v) => self.finish(call, &[v]),
                Err(e) => self.failed(call, e, &[Value::Null]),
            },
            [one, two] => match (self.eval(one), self.eval(two)) {
                (Ok(v), Ok(w)) => self.finish(call, &[v, w]),
                (Err(e), Ok(w)) => self.failed(call, e, &[Value::Null, w]),
                (Ok(v), Err(e)) => self.failed(call, e, &[v, Value::Null]),
                (Err(e), Err(_)) => self.failed(call, e, &[Value::Null, Value::Null]),
            },
            _ => {
                let args = self.args(&call.args)?;
                self.finish(call, &args)
            }
        }
    }

    /// A call with an argument that failed costs what it would have cost, for its error may be absorbed.
    fn failed(&mut self, call: &'a CallNode, error: Error, args: &[Value<'a>]) -> Res<'a> {
        if error.kind == ErrorKind::Value {
            self.charge(call.cost.of_call(args, &Value::Null))?;
        }
        Err(error)
    }

    fn finish(&mut self, call: &'a CallNode, args: &[Value<'a>]) -> Res<'a> {
        if let Some(cost) = call.cost.before(args) {
            self.charge(cost)?;
            return (call.function)(self.activation, args).map_err(|e| named(e, call.name, args));
        }
        let value = (call.function)(self.activation, args).map_err(|e| named(e, call.name, args))?;
        let cost = call.cost.of_call(args, &value);
        self.charge(cost)?;
        Ok(value)
    }

    fn logic(&mut self, left: &'a Node, right: &'a Node, decisive: bool) -> Res<'a> {
        let first = self.eval(left);
        match &first {
            Ok(Value::Bool(v)) if *v == decisive => return first,
            Err(e) if e.kind == ErrorKind::CostExceeded => return first,
            _ => {}
        }
        let second = self.eval(right);
        match &second {
            Ok(Value::Bool(v)) if *v == decisive => return second,
            Err(e) if e.kind == ErrorKind::CostExceeded => return second,
            _ => {}
        }
        match (first, second) {
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok(Value::Bool(!decisive)),
            (Err(e), _) | (Ok(Value::Bool(_)), Err(e)) => Err(e),
            _ => Err(Error::no_overload()),
        }
    }

    fn field(&mut self, of: Value<'a>, field: &str, optional: bool) -> Res<'a> {
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(v)) => ((*v).clone(), true),
            other => (other, optional),
        };
        let found = match &of {
            Value::Map(Map::Composed) => self.activation.composed(field).transpose()?,
            Value::Map(map) => map.field(field).transpose()?,
            Value::Opaque(Opaque::Object(object)) => object.fields.get(field).cloned(),
            _ => None,
        };
        match found {
            Some(v) => {
                self.charge(1)?;
                Ok(if optional { Value::some(v) } else { v })
            }
            None if optional => Ok(Value::Optional(None)),
            None => {
                self.charge(1)?;
                Err(Error::no_key(field))
            }
        }
    }

    fn has(&mut self, of: &Value<'a>, field: &str) -> Res<'a> {
        Ok(Value::Bool(match of {
            Value::Map(Map::Composed) => self.activation.composed(field).is_some(),
            Value::Map(map) => map.field(field).transpose()?.is_some(),
            Value::Optional(Some(v)) => return self.has(v, field),
            Value::Opaque(Opaque::Object(object)) => object.fields.contains_key(field),
            _ => false,
        }))
    }

    fn index(&mut self, of: Value<'a>, at: &Value<'a>, optional: bool) -> Res<'a> {
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(v)) => ((*v).clone(), true),
            other => (other, optional),
        };
        let found = match &of {
            Value::List(list) => {
                let place = match at {
                    Value::Int(v) => *v,
                    Value::Uint(v) => i64::try_from(*v).unwrap_or(-1),
                    Value::Double(v) if v.fract() == 0.0 => *v as i64,
                    _ => return Err(Error::new(format!("unsupported index type '{}' in list", at.type_name()))),
                };
                let found = usize::try_from(place).ok().and_then(|p| list.get(p)).transpose()?;
                if found.is_none() && !optional {
                    self.charge(1)?;
                    return Err(Error::new(format!("index out of bounds: {place}")));
                }
                found
            }
            Value::Map(Map::Composed) => self.activation.composed(at.as_str().unwrap_or_default()).transpose()?,
            Value::Map(map) => map.get(at).transpose()?,
            _ => None,
        };
        match found {
            Some(v) => {
                self.charge(1)?;
                Ok(if optional { Value::some(v) } else { v })
            }
            None if optional => Ok(Value::Optional(None)),
            None => {
                self.charge(1)?;
                Err(Error::no_key(shown(at)))
            }
        }
    }

    fn map(&mut self, entries: &'a [(Node, Node, bool)]) -> Res<'a> {
        let mut map = OwnedMap::default();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            let value = match (value, optional) {
                (Value::Optional(None), true) => continue,
                (Value::Optional(Some(v)), true) => (*v).clone(),
                (other, true) => {
                    return Err(Error::new(format!("cannot initialize optional entry '{}' from non-optional value {}", shown(&key), shown(&other))));
                }
                (value, false) => value,
            };
            let Some(key) = Key::of(&key) else { return Err(Error::new(format!("unsupported key type: {}", key.type_name()))) };
            if map.entries.contains_key(&key) {
                return Err(Error::new(format!("Failed with repeated key: {key}")));
            }
            map.entries.insert(key, value);
        }
        self.charge(30)?;
        Ok(Value::Map(Map::Owned(Arc::new(map))))
    }

    fn fold(&mut self, fold: &'a FoldNode) -> Res<'a> {
        let base = self.locals.len();
        let value = self.fold_inner(fold);
        self.locals.truncate(base);
        value
    }

    fn fold_inner(&mut self, fold: &'a FoldNode) -> Res<'a> {
        if fold.binds {
            let value = self.eval(&fold.init);
            if matches!(&value, Err(e) if e.kind == ErrorKind::CostExceeded) {
                return value;
            }
            self.locals.push(value);
            return self.eval(&fold.result);
        }
        let range = self.eval(&fold.range)?;
        let init = self.eval(&fold.init);
        let accu = self.locals.len();
        self.locals.push(init);
        match range {
            Value::List(list) => {
                for (i, item) in list.iter().enumerate() {
                    if fold.two {
                        self.locals.push(Ok(Value::Int(i as i64)));
                    }
                    self.locals.push(item);
                    if !self.step(fold, accu)? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for key in map.keys() {
                    let value = if fold.two { Some(map.get(&key).unwrap_or_else(|| Err(Error::no_key(shown(&key))))) } else { None };
                    self.locals.push(Ok(key));
                    self.locals.extend(value);
                    if !self.step(fold, accu)? {
                        break;
                    }
                }
            }
            other => return Err(Error::new(format!("got '{}', expected iterable type", other.type_name()))),
        }
        self.locals.truncate(accu + 1);
        self.eval(&fold.result)
    }

    /// One item of a comprehension; false: that was enough.
    fn step(&mut self, fold: &'a FoldNode, accu: usize) -> Result<bool, Error> {
        let condition = self.eval(&fold.condition);
        match condition {
            Ok(Value::Bool(false)) => {
                self.locals.truncate(accu + 1);
                return Ok(false);
            }
            Err(e) if e.kind == ErrorKind::CostExceeded => return Err(e),
            _ => {}
        }
        let value = self.eval(&fold.step);
        self.locals.truncate(accu + 1);
        let failed = match &value {
            Err(e) if e.kind == ErrorKind::CostExceeded => return Err(e.clone()),
            // Where nothing absorbs an error, the first one is the result.
            Err(_) => matches!(fold.condition, Node::Const(_)),
            Ok(_) => false,
        };
        self.locals[accu] = value;
        Ok(!failed)
    }
}

/// An error of a function that does not take its arguments names the function.
fn named(error: Error, name: &str, args: &[Value<'_>]) -> Error {
    if error.message() != "no such overload" {
        return error;
    }
    let types: Vec<String> = args.iter().map(Value::type_name).collect();
    Error::new(format!("no such overload: {name}({})", types.join(", ")))
}

/// A value as a message shows it.
pub(crate) fn shown(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(v) => v.to_string(),
        Value::Int(v) => v.to_string(),
        Value::Uint(v) => v.to_string(),
        Value::Double(v) => crate::functions::convert::double_text(*v),
        Value::String(s) => s.to_string(),
        _ => format!("<{}>", value.type_name()),
    }
}
