//! The walk over a checked tree that adds up costs, and keeps track of sizes and of where data comes from.

use std::collections::HashMap;

use super::calls::Arg;
use super::{Size, SizeEstimator, calls};
use crate::check::Checked;
use crate::syntax::ast::{Expr, Fold, Id, Kind, Literal};
use crate::types::Type;

/// The static cost of a tree.
pub(super) fn estimate(checked: &Checked, sizes: &dyn SizeEstimator) -> Size {
    let mut coster = Coster { checked, estimator: sizes, paths: HashMap::new(), sizes: HashMap::new(), entries: HashMap::new(), locals: Vec::new() };
    coster.cost(&checked.ast.root)
}

/// The sizes of what is in a list or map.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntrySize {
    list: bool,
    key: Size,
    value: Size,
}

struct Local {
    name: String,
    path: Vec<String>,
    size: Option<Size>,
    entry: Option<EntrySize>,
}

pub(super) struct Coster<'a> {
    checked: &'a Checked,
    estimator: &'a dyn SizeEstimator,
    paths: HashMap<Id, Vec<String>>,
    sizes: HashMap<Id, Size>,
    entries: HashMap<Id, EntrySize>,
    locals: Vec<Local>,
}

const ONE: Size = Size { min: 1, max: 1 };

impl Coster<'_> {
    fn cost(&mut self, e: &Expr) -> Size {
        match &e.kind {
            Kind::Literal(_) => Size::fixed(0),
            Kind::Ident(name) => {
                let path = self.local(name).map_or_else(|| vec![name.clone()], |l| l.path.clone());
                self.paths.insert(e.id, path);
                ONE
            }
            Kind::Select { operand, test: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let mut sum = self.cost(operand);
                if matches!(self.type_of(operand), Type::Map(..) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.add(ONE);
                }
                let mut path = self.path(operand);
                path.push(field.clone());
                self.paths.insert(e.id, path);
                sum
            }
            Kind::Call { function, target, args } => self.call(e, function, target.as_deref(), args),
            Kind::List(elements) => {
                let mut sum = Size::fixed(0);
                let mut item = Size { min: if elements.is_empty() { 0 } else { u64::MAX }, max: 0 };
                for element in elements {
                    sum = sum.add(self.cost(&element.value));
                    item = item.union(self.size_or_unknown(&element.value));
                }
                self.entries.insert(e.id, EntrySize { list: true, key: ONE, value: item });
                sum.add(Size::fixed(10))
            }
            Kind::Map(entries) => {
                let mut sum = Size::fixed(0);
                let start = Size { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
                let (mut key, mut value) = (start, start);
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    key = key.union(self.size_or_unknown(&entry.key));
                    value = value.union(self.size_or_unknown(&entry.value));
                }
                self.entries.insert(e.id, EntrySize { list: false, key, value });
                sum.add(Size::fixed(30))
            }
            Kind::Struct { fields, .. } => fields.iter().fold(Size::fixed(40), |sum, f| sum.add(self.cost(&f.value))),
            Kind::Fold(fold) => self.fold(e, fold),
        }
    }

    fn type_of(&self, e: &Expr) -> &Type {
        self.checked.type_of(e.id)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|l| l.name == name)
    }

    fn path(&self, e: &Expr) -> Vec<String> {
        if let Kind::Ident(name) = &e.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&e.id).cloned().unwrap_or_default()
    }

    /// The size of an expression's value, if anything is known.
    fn size(&mut self, e: &Expr) -> Option<Size> {
        if let Some(size) = self.sizes.get(&e.id) {
            return Some(*size);
        }
        let literal = match &e.kind {
            Kind::Literal(Literal::String(s)) => Some(s.chars().count()),
            Kind::Literal(Literal::Bytes(b)) => Some(b.len()),
            Kind::Literal(_) => Some(1),
            Kind::List(elements) => Some(elements.len()),
            Kind::Map(entries) => Some(entries.len()),
            _ => None,
        };
        if let Some(n) = literal {
            return Some(Size::fixed(n as u64));
        }
        let path = self.path(e);
        if let Some(size) = self.sized(&path, self.type_of(e)) {
            self.sizes.insert(e.id, size);
            return Some(size);
        }
        if self.type_of(e).is_scalar() {
            return Some(ONE);
        }
        match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        }
    }

    /// What the embedder knows of the size of data.
    fn sized(&self, path: &[String], t: &Type) -> Option<Size> {
        if path.is_empty() { None } else { self.estimator.size(path, t) }
    }

    fn size_or_unknown(&mut self, e: &Expr) -> Size {
        self.size(e).unwrap_or(Size::UNKNOWN)
    }

    fn entry(&self, e: &Expr) -> Option<EntrySize> {
        if let Some(entry) = self.entries.get(&e.id) {
            return Some(*entry);
        }
        match &e.kind {
            Kind::Ident(name) => self.local(name).and_then(|l| l.entry),
            _ => None,
        }
    }

    /// What estimates of calls want to know of an argument.
    fn arg(&mut self, e: &Expr) -> Arg {
        let mut path = self.path(e);
        if path.first().is_some_and(|p| p == "@result" || p == "__result__") {
            path.clear();
        }
        let derived = self.size(e);
        // Without a size of its own, the embedder is asked once more, as upstream does.
        let size = derived.or_else(|| self.sized(&path, self.type_of(e))).unwrap_or(Size::UNKNOWN);
        let element = match self.type_of(e) {
            Type::List(of) => Some((**of).clone()),
            Type::Map(key, _) => Some((**key).clone()),
            Type::Opaque(_, of) => of.first().cloned(),
            _ => None,
        };
        let element = element.map(|t| {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push("@items".to_string());
            }
            let size = self.sized(&below, &t).unwrap_or(Size::UNKNOWN);
            (t, size)
        });
        let literal = match &e.kind {
            Kind::Literal(Literal::Int(n)) => Some(*n),
            _ => None,
        };
        Arg { t: self.type_of(e).clone(), size, derived, element, literal }
    }

    fn call(&mut self, e: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) -> Size {
        if function == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(arg).add(ONE);
            if let Some(size) = self.size(arg) {
                self.sizes.insert(e.id, size);
            }
            if let Some(entry) = self.entry(arg) {
                self.entries.insert(e.id, entry);
            }
            return cost;
        }
        let costs: Vec<Size> = args.iter().map(|a| self.cost(a)).collect();
        let facts: Vec<Arg> = args.iter().map(|a| self.arg(a)).collect();
        let checked = self.checked;
        let overloads = checked.overloads_of(e.id);
        if overloads.is_empty() {
            return Size::fixed(0);
        }
        let mut sum = Size::fixed(0);
        let receiver = target.map(|t| {
            sum = sum.add(self.cost(t));
            self.arg(t)
        });
        let mut most = Size { min: u64::MAX, max: 0 };
        let mut result: Option<Size> = None;
        for overload in overloads {
            let (cost, size) = self.overload(e, function, overload, receiver.as_ref(), args, &facts, &costs);
            most = most.union(cost);
            if let Some(size) = size {
                result = Some(result.map_or(size, |r| r.union(size)));
            }
            if let (true, Some(first)) = (matches!(*overload, "index_list" | "index_map"), args.first()) {
                result = self.entry(first).map(|e| e.value);
                let mut path = self.path(first);
                path.push(if *overload == "index_list" { "@items" } else { "@values" }.to_string());
                self.paths.insert(e.id, path);
            }
            if result.is_none() {
                result = self.size(e);
            }
        }
        if let Some(size) = result {
            self.sizes.insert(e.id, size);
        }
        sum.add(most)
    }

    /// The cost of one overload with its arguments, and the size of what it gives.
    #[allow(clippy::too_many_arguments)]
    fn overload(
        &mut self,
        e: &Expr,
        function: &str,
        overload: &str,
        receiver: Option<&Arg>,
        args: &[Expr],
        facts: &[Arg],
        costs: &[Size],
    ) -> (Size, Option<Size>) {
        let all = costs.iter().fold(Size::fixed(0), |sum, c| sum.add(*c));
        if let Some((cost, size)) = calls::extended(function, overload, receiver, facts) {
            return (cost.add(all), size);
        }
        match overload {
            "logical_or" | "logical_and" => (Size { min: costs[0].min, max: costs[0].add(costs[1]).max }, None),
            "conditional" => {
                let size = self.derived(&facts[1]).union(self.derived(&facts[2]));
                if let (Some(yes), Some(no)) = (self.entry(&args[1]), self.entry(&args[2])) {
                    self.entries.insert(e.id, union(yes, no));
                }
                (costs[0].add(costs[1].union(costs[2])), Some(size))
            }
            "add_string" | "add_bytes" | "add_list" => {
                let size = self.derived(&facts[0]).add(self.derived(&facts[1]));
                if let (Some(left), Some(right)) = (self.entry(&args[0]), self.entry(&args[1])) {
                    self.entries.insert(e.id, union(left, right));
                }
                let cost = if overload == "add_list" { ONE } else { size.scale(0.1) };
                (cost.add(all), Some(size))
            }
            _ => {
                let (cost, size) = calls::standard(overload, receiver, facts);
                (cost.add(all), size)
            }
        }
    }

    fn derived(&self, arg: &Arg) -> Size {
        arg.derived.unwrap_or(Size::UNKNOWN)
    }

    fn fold(&mut self, e: &Expr, fold: &Fold) -> Size {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let accu = Local { name: fold.accu.clone(), path: self.path(&fold.init), size: self.size(&fold.init), entry: self.entry(&fold.init) };
        let binds = matches!(&fold.range.kind, Kind::List(items) if items.is_empty())
            && matches!(&fold.condition.kind, Kind::Literal(Literal::Bool(false)));
        self.locals.push(accu);
        if binds {
            sum = sum.add(self.cost(&fold.result));
            let (size, entry) = (self.size(&fold.result), self.entry(&fold.result));
            self.locals.pop();
            self.sizes.extend(size.map(|s| (e.id, s)));
            self.entries.extend(entry.map(|s| (e.id, s)));
            return sum;
        }
        let entry = self.entry(&fold.range);
        let list = entry.map_or(matches!(self.type_of(&fold.range), Type::List(_)), |e| e.list);
        let path = self.path(&fold.range);
        let below = |name: &str| {
            let mut path = path.clone();
            path.push(name.to_string());
            path
        };
        let names = match &fold.var2 {
            Some(var2) => vec![
                (&fold.var, if list { "@indices" } else { "@keys" }, entry.map(|e| e.key)),
                (var2, if list { "@items" } else { "@values" }, entry.map(|e| e.value)),
            ],
            None if list => vec![(&fold.var, "@items", entry.map(|e| e.value))],
            None => vec![(&fold.var, "@keys", entry.map(|e| e.key))],
        };
        let before = self.locals.len();
        for (name, sub, size) in names {
            self.locals.push(Local { name: name.clone(), path: below(sub), size, entry: None });
        }
        let each = self.cost(&fold.condition).add(self.cost(&fold.step));
        self.locals.truncate(before);
        sum = sum.add(self.cost(&fold.result));
        self.locals.pop();
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.times(each));
        match &fold.init.kind {
            Kind::Literal(_) => {
                let size = self.size(&fold.init);
                self.sizes.extend(size.map(|s| (e.id, s)));
            }
            Kind::List(_) | Kind::Map(_) => {
                self.sizes.insert(e.id, count);
                let entry = self.entry(&fold.step);
                self.entries.extend(entry.map(|s| (e.id, s)));
            }
            _ => {}
        }
        sum
    }
}

fn union(a: EntrySize, b: EntrySize) -> EntrySize {
    EntrySize { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) }
}
