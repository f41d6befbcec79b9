//! A checked expression, planned: names resolved to slots, constants computed, patterns compiled, costs attached.

use std::sync::Arc;

use regex::Regex;

use crate::check::Checked;
use crate::error::Error;
use crate::functions::{self, Builtin, pattern};
use crate::issues::Issues;
use crate::runtime_cost::CallCost;
use crate::syntax::ast::{Expr, Fold, Id, Kind, Literal};
use crate::types::Type;
use crate::value::{Key, Map, OwnedMap, Value};

/// A compiled expression. It can be evaluated any number of times, on any thread.
#[derive(Debug)]
pub struct Program {
    pub(crate) checked: Checked,
    pub(crate) root: Node,
    /// The variables that it refers to; nodes name them by their place here.
    pub(crate) variables: Vec<String>,
}

/// A step of evaluation.
#[derive(Debug)]
pub(crate) enum Node {
    Const(Value<'static>),
    Text(Box<str>),
    Variable(u32),
    /// A variable of a comprehension, by its depth on the stack.
    Local(u32),
    Select { operand: Box<Node>, field: Box<str>, optional: bool, relative: bool },
    Has { operand: Box<Node>, field: Box<str>, relative: bool },
    Index { operand: Box<Node>, index: Box<Node>, optional: bool, relative: bool },
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Choose { condition: Box<Node>, yes: Box<Node>, no: Box<Node> },
    NotFalse(Box<Node>),
    Equal { left: Box<Node>, right: Box<Node>, negate: bool },
    /// `in` a list of constants.
    InConst { item: Box<Node>, list: Vec<Value<'static>> },
    Call(Box<CallNode>),
    /// A function whose pattern is a constant.
    Pattern { function: pattern::Function, args: Vec<Node>, regex: Box<Regex>, cost: CallCost },
    OptionalOr { left: Box<Node>, right: Box<Node>, value: bool },
    List(Vec<(Node, bool)>),
    Map(Vec<(Node, Node, bool)>),
    Object { name: String, fields: Vec<(String, Node, bool)> },
    Fold(Box<FoldNode>),
    /// Appends one item to the list that a comprehension gathers.
    Append { accu: u32, item: Box<Node> },
    /// Adds an entry (key and value), or the entries of a map, to the map that a comprehension gathers.
    Insert { accu: u32, args: Vec<Node> },
}

#[derive(Debug)]
pub(crate) struct CallNode {
    pub name: &'static str,
    pub function: Builtin,
    pub args: Vec<Node>,
    pub cost: CallCost,
}

#[derive(Debug)]
pub(crate) struct FoldNode {
    pub range: Node,
    pub two: bool,
    pub init: Node,
    pub condition: Node,
    pub step: Node,
    pub result: Node,
    /// Only a name for a value: nothing is gone through.
    pub binds: bool,
}

impl Node {
    /// Whether it is a path into a variable, whose base costs nothing where it is only part of something (upstream's attributes).
    pub fn is_attribute(&self) -> bool {
        matches!(
            self,
            Node::Variable(_) | Node::Local(_) | Node::Select { .. } | Node::Has { .. } | Node::Index { .. } | Node::Choose { .. }
        )
    }

    /// What the base of the path costs when it is evaluated by itself.
    pub fn base_cost(&self) -> u64 {
        match self {
            Node::Variable(_) | Node::Local(_) => 1,
            Node::Select { operand, relative, .. } | Node::Index { operand, relative, .. } => {
                if *relative { 1 } else { operand.base_cost() }
            }
            _ => 0,
        }
    }

    fn constant(&self) -> Option<Value<'static>> {
        match self {
            Node::Const(v) => Some(v.clone()),
            Node::Text(s) => Some(Value::string(&**s)),
            _ => None,
        }
    }
}

impl Program {
    /// Plans a checked expression; what cannot be, like a constant conversion that fails, is reported.
    pub(crate) fn plan(checked: Checked) -> Result<Program, Issues> {
        let mut planner = Planner { checked: &checked, variables: Vec::new(), locals: Vec::new(), issues: Issues::new(&checked.ast.source) };
        let root = planner.node(&checked.ast.root);
        let Planner { variables, issues, .. } = planner;
        issues.into_result()?;
        Ok(Program { root, variables, checked })
    }

    /// The type of the expression's value.
    pub fn result_type(&self) -> &Type {
        self.checked.type_of(self.checked.ast.root.id)
    }

    /// Whether the expression refers to a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.iter().any(|v| v == variable)
    }

    /// The fields of a variable that the expression refers to, like `variables.x` or `variables.?x`; sorted, each once.
    pub fn fields_of(&self, variable: &str) -> Vec<&str> {
        let mut fields = Vec::new();
        self.checked.ast.root.walk(&mut |e| {
            if let Kind::Select { operand, field, .. } = &e.kind
                && matches!(&operand.kind, Kind::Ident(name) if name == variable)
            {
                fields.push(&field[..]);
            }
            if let Kind::Call { function, args, .. } = &e.kind
                && function == "_?._"
                && let [of, field] = args.as_slice()
                && let (Kind::Ident(name), Kind::Literal(Literal::String(field))) = (&of.kind, &field.kind)
                && name == variable
            {
                fields.push(field);
            }
        });
        fields.sort_unstable();
        fields.dedup();
        fields
    }
}

struct Planner<'c> {
    checked: &'c Checked,
    variables: Vec<String>,
    locals: Vec<String>,
    issues: Issues,
}

impl Planner<'_> {
    fn boxed(&mut self, e: &Expr) -> Box<Node> {
        Box::new(self.node(e))
    }

    fn report(&mut self, id: Id, error: &Error) {
        self.issues.report(self.checked.ast.place(id), error.to_string());
    }

    fn node(&mut self, e: &Expr) -> Node {
        match &e.kind {
            Kind::Literal(literal) => match literal {
                Literal::Null => Node::Const(Value::Null),
                Literal::Bool(v) => Node::Const(Value::Bool(*v)),
                Literal::Int(v) => Node::Const(Value::Int(*v)),
                Literal::Uint(v) => Node::Const(Value::Uint(*v)),
                Literal::Double(v) => Node::Const(Value::Double(*v)),
                Literal::String(s) => Node::Text(s.as_str().into()),
                Literal::Bytes(b) => Node::Const(Value::Bytes(b.as_slice().into())),
            },
            Kind::Ident(name) => {
                if let Some(t) = &self.checked.constants[e.id as usize] {
                    return Node::Const(Value::Type(Arc::new(t.clone())));
                }
                if let Some(slot) = self.locals.iter().rposition(|l| l == name) {
                    return Node::Local(slot as u32);
                }
                let place = self.variables.iter().position(|v| v == name).unwrap_or_else(|| {
                    self.variables.push(name.clone());
                    self.variables.len() - 1
                });
                Node::Variable(place as u32)
            }
            Kind::Select { operand, field, test } => {
                let operand = self.boxed(operand);
                let (field, relative) = (field.as_str().into(), !operand.is_attribute());
                if *test { Node::Has { operand, field, relative } } else { Node::Select { operand, field, optional: false, relative } }
            }
            Kind::Call { function, target, args } => self.call(e, function, target.as_deref(), args),
            Kind::List(elements) => {
                let nodes: Vec<(Node, bool)> = elements.iter().map(|e| (self.node(&e.value), e.optional)).collect();
                let constants: Option<Vec<Value<'static>>> =
                    nodes.iter().map(|(n, optional)| if *optional { None } else { n.constant() }).collect();
                constants.map_or(Node::List(nodes), |items| Node::Const(Value::list(items)))
            }
            Kind::Map(entries) => {
                let nodes: Vec<(Node, Node, bool)> =
                    entries.iter().map(|e| (self.node(&e.key), self.node(&e.value), e.optional)).collect();
                let constants: Option<Vec<(Key, Value<'static>)>> = nodes
                    .iter()
                    .map(|(k, v, optional)| if *optional { None } else { Some((Key::of(&k.constant()?)?, v.constant()?)) })
                    .collect();
                match constants {
                    Some(entries) => {
                        let mut map = OwnedMap::default();
                        for (key, value) in entries {
                            if map.entries.contains_key(&key) {
                                return Node::Map(nodes);
                            }
                            map.entries.insert(key, value);
                        }
                        Node::Const(Value::Map(Map::Owned(Arc::new(map))))
                    }
                    None => Node::Map(nodes),
                }
            }
            Kind::Struct { name, fields } => {
                let fields = fields.iter().map(|f| (f.name.clone(), self.node(&f.value), f.optional)).collect();
                Node::Object { name: name.clone(), fields }
            }
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Node {
        let range = self.node(&fold.range);
        let init = self.node(&fold.init);
        self.locals.push(fold.accu.clone());
        let accu = (self.locals.len() - 1) as u32;
        self.locals.push(fold.var.clone());
        self.locals.extend(fold.var2.clone());
        let condition = self.node(&fold.condition);
        let binds = matches!(condition, Node::Const(Value::Bool(false)));
        let step = if binds { Node::Const(Value::Null) } else { self.node(&fold.step) };
        self.locals.truncate(accu as usize + 1);
        let result = self.node(&fold.result);
        self.locals.pop();
        let step = append(step, accu);
        Node::Fold(Box::new(FoldNode { range, two: fold.var2.is_some(), init, condition, step, result, binds }))
    }

    fn call(&mut self, e: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Node {
        let overloads = self.checked.overloads_of(e.id);
        let mut nodes: Vec<Node> = target.into_iter().chain(args).map(|a| self.node(a)).collect();
        let mut pop = || Box::new(nodes.pop().unwrap_or(Node::Const(Value::Null)));
        match function {
            "_&&_" | "_||_" => {
                let (right, left) = (pop(), pop());
                return if function == "_&&_" { Node::And(left, right) } else { Node::Or(left, right) };
            }
            "_?_:_" => {
                let (no, yes, condition) = (pop(), pop(), pop());
                return Node::Choose { condition, yes, no };
            }
            "_==_" | "_!=_" => {
                let (right, left) = (pop(), pop());
                return Node::Equal { left, right, negate: function == "_!=_" };
            }
            "@not_strictly_false" => return Node::NotFalse(pop()),
            "_[_]" | "_[?_]" => {
                let (index, operand) = (pop(), pop());
                let relative = !operand.is_attribute();
                return Node::Index { operand, index, optional: function == "_[?_]", relative };
            }
            "_?._" => {
                let (field, operand) = (pop(), pop());
                let relative = !operand.is_attribute();
                let field = match *field {
                    Node::Text(s) => s,
                    _ => "".into(),
                };
                return Node::Select { operand, field, optional: true, relative };
            }
            "or" | "orValue" => {
                let (right, left) = (pop(), pop());
                return Node::OptionalOr { left, right, value: function == "orValue" };
            }
            "@in" if overloads == ["in_list"] => {
                let list = match &nodes[1] {
                    Node::Const(Value::List(list)) => list.to_vec().ok(),
                    _ => None,
                };
                let plain = |v: &Value<'_>| {
                    matches!(v, Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::String(_) | Value::Null)
                };
                if let Some(list) = list.filter(|l| l.iter().all(plain)) {
                    if list.is_empty() {
                        return Node::Const(Value::Bool(false));
                    }
                    return Node::InConst { item: Box::new(nodes.swap_remove(0)), list };
                }
            }
            _ => {}
        }
        let cost = CallCost::of(function, overloads);
        if let Some(pattern_function) = pattern::Function::of(function)
            && let Some(Node::Text(text)) = nodes.get(1)
        {
            match pattern::compile(text) {
                Ok(regex) => return Node::Pattern { function: pattern_function, args: nodes, regex: Box::new(regex), cost },
                Err(error) => {
                    self.issues.instantiation(error.to_string());
                    return Node::Const(Value::Null);
                }
            }
        }
        if function == "sum" {
            let zero = match overloads {
                ["list_uint_sum_uint"] => Some(Value::Uint(0)),
                ["list_double_sum_double"] => Some(Value::Double(0.0)),
                ["list_duration_sum_duration"] => Some(Value::Duration(0)),
                _ => None,
            };
            nodes.extend(zero.map(Node::Const));
        }
        let Some((name, builtin)) = functions::lookup(function) else {
            self.report(e.id, &Error::new(format!("no such overload: {function}")));
            return Node::Const(Value::Null);
        };
        // Conversions of constants are done now, and what they cannot convert is known now.
        if functions::is_conversion(function)
            && nodes.len() == 1
            && let Some(argument) = nodes[0].constant()
        {
            return match builtin(&crate::eval::Activation::new(), &[argument]) {
                Ok(value) => Node::Const(value),
                Err(error) => {
                    self.issues.instantiation(error.to_string());
                    Node::Const(Value::Null)
                }
            };
        }
        Node::Call(Box::new(CallNode { name, function: builtin, args: nodes, cost }))
    }
}

/// A step that adds a list of one item to what is gathered appends to it instead.
fn append(step: Node, accu: u32) -> Node {
    match step {
        Node::Call(call) if call.name == "_+_" && matches!(&call.args[..], [Node::Local(l), Node::List(items)] if *l == accu && matches!(&items[..], [(_, false)])) => {
            let Some(Node::List(mut items)) = call.args.into_iter().nth(1) else { return Node::Const(Value::Null) };
            let Some((item, _)) = items.pop() else { return Node::Const(Value::Null) };
            Node::Append { accu, item: Box::new(item) }
        }
        Node::Call(mut call) if call.name == "cel.@mapInsert" && matches!(call.args.first(), Some(Node::Local(l)) if *l == accu) => {
            Node::Insert { accu, args: call.args.split_off(1) }
        }
        Node::Choose { condition, yes, no } => Node::Choose { condition, yes: Box::new(append(*yes, accu)), no },
        other => other,
    }
}
