//! The syntax tree, after macros are expanded. Every expression has a number; its place in the text is looked up by it.

/// A number that names one expression of a tree.
pub(crate) type Id = u32;

/// An expression.
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub id: Id,
    pub kind: Kind,
}

/// What an expression is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(String),
    Select { operand: Box<Expr>, field: String, test: bool },
    Call { function: String, target: Option<Box<Expr>>, args: Vec<Expr> },
    List(Vec<Element>),
    Map(Vec<Entry>),
    Struct { name: String, fields: Vec<FieldInit> },
    Fold(Box<Fold>),
}

/// An element of a list literal.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub value: Expr,
    pub optional: bool,
}

/// An entry of a map literal.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

/// A field of an object literal.
#[derive(Clone, Debug)]
pub(crate) struct FieldInit {
    pub id: Id,
    pub name: String,
    pub value: Expr,
    pub optional: bool,
}

/// A comprehension: `result` after `step` ran for each item of `range` while `condition` held.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    pub range: Expr,
    pub var: String,
    pub var2: Option<String>,
    pub accu: String,
    pub init: Expr,
    pub condition: Expr,
    pub step: Expr,
    pub result: Expr,
}

/// A value that is written down.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

/// A parsed expression.
#[derive(Clone, Debug)]
pub(crate) struct Ast {
    pub root: Expr,
    pub source: Vec<char>,
    /// The place of each expression, by its number.
    pub places: Vec<u32>,
}

impl Ast {
    /// The place of an expression.
    pub fn place(&self, id: Id) -> Option<u32> {
        self.places.get(id as usize).copied()
    }
}

impl Expr {
    /// The dotted name that an expression spells, if it does.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.clone()),
            Kind::Select { operand, field, test: false } => Some(format!("{}.{field}", operand.qualified_name()?)),
            _ => None,
        }
    }

    /// Calls `f` for this expression and all below it, parents first.
    pub fn walk<'a>(&'a self, f: &mut dyn FnMut(&'a Expr)) {
        f(self);
        match &self.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => operand.walk(f),
            Kind::Call { target, args, .. } => {
                target.iter().for_each(|t| t.walk(f));
                args.iter().for_each(|a| a.walk(f));
            }
            Kind::List(elements) => elements.iter().for_each(|e| e.value.walk(f)),
            Kind::Map(entries) => entries.iter().for_each(|e| {
                e.key.walk(f);
                e.value.walk(f);
            }),
            Kind::Struct { fields, .. } => fields.iter().for_each(|e| e.value.walk(f)),
            Kind::Fold(fold) => [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result].into_iter().for_each(|e| e.walk(f)),
        }
    }
}
