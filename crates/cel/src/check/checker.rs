//! Type inference: bottom up, with unification of type variables.

use super::Checked;
use super::decls::{Function, Overload, function};
use crate::env::Env;
use crate::issues::Issues;
use crate::syntax::ast::{Ast, Expr, Fold, Id, Kind, Literal};
use crate::types::{Bindings, Type, most_general};

/// Checks a tree: names resolved, overloads chosen, types assigned.
pub(super) fn run(env: &Env, mut ast: Ast) -> Result<Checked, Issues> {
    let size = ast.places.len();
    let mut checker = Checker {
        env,
        issues: Issues::new(&ast.source),
        places: std::mem::take(&mut ast.places),
        bindings: Bindings::default(),
        fresh: 26,
        scope: Vec::new(),
        types: vec![None; size],
        overloads: vec![Vec::new(); size],
        constants: vec![None; size],
    };
    checker.check(&mut ast.root);
    let Checker { bindings, mut types, overloads, constants, issues, places, .. } = checker;
    issues.into_result()?;
    types.iter_mut().flatten().for_each(|t| *t = bindings.substitute(t, true));
    ast.places = places;
    Ok(Checked { ast, types, overloads, constants })
}

struct Checker<'a> {
    env: &'a Env,
    issues: Issues,
    places: Vec<u32>,
    bindings: Bindings,
    fresh: u32,
    scope: Vec<(String, Type)>,
    types: Vec<Option<Type>>,
    overloads: Vec<Vec<&'static str>>,
    constants: Vec<Option<Type>>,
}

impl Checker<'_> {
    fn report(&mut self, id: Id, message: String) {
        let place = self.places.get(id as usize).copied();
        self.issues.report(place, message);
    }

    fn set(&mut self, id: Id, t: Type) {
        self.types[id as usize] = Some(t);
    }

    fn get(&self, e: &Expr) -> Type {
        self.types[e.id as usize].clone().unwrap_or(Type::Error)
    }

    fn fresh(&mut self) -> Type {
        self.fresh += 1;
        Type::Param(self.fresh - 1)
    }

    fn undeclared(&mut self, id: Id, name: &str) {
        self.report(id, format!("undeclared reference to '{name}' (in container '')"));
        self.set(id, Type::Error);
    }

    /// The type of a variable, or the type that a name names.
    fn resolve(&self, name: &str) -> Option<(Type, Option<Type>)> {
        let absolute = name.strip_prefix('.');
        if absolute.is_none()
            && let Some((_, t)) = self.scope.iter().rev().find(|(n, _)| n == name)
        {
            return Some((t.clone(), None));
        }
        let name = absolute.unwrap_or(name);
        if let Some(t) = self.env.variable(name) {
            return Some((t.clone(), None));
        }
        named_type(name).map(|t| (Type::Type(Some(t.clone().into())), Some(t)))
    }

    fn check(&mut self, e: &mut Expr) {
        let id = e.id;
        match &mut e.kind {
            Kind::Literal(literal) => {
                let t = match literal {
                    Literal::Null => Type::Null,
                    Literal::Bool(_) => Type::Bool,
                    Literal::Int(_) => Type::Int,
                    Literal::Uint(_) => Type::Uint,
                    Literal::Double(_) => Type::Double,
                    Literal::String(_) => Type::String,
                    Literal::Bytes(_) => Type::Bytes,
                };
                self.set(id, t);
            }
            Kind::Ident(name) => match self.resolve(name) {
                Some((t, constant)) => {
                    if let Some(absolute) = name.strip_prefix('.') {
                        *name = absolute.to_string();
                    }
                    self.constants[id as usize] = constant;
                    self.set(id, t);
                }
                None => {
                    let name = name.clone();
                    self.undeclared(id, &name);
                }
            },
            Kind::Select { .. } => self.select(e),
            Kind::Call { .. } => self.call(e),
            Kind::List(elements) => {
                let mut joined = None;
                for element in elements {
                    self.check(&mut element.value);
                    let t = self.optional_element(&element.value, element.optional);
                    joined = Some(self.join(joined, t));
                }
                let of = joined.unwrap_or_else(|| self.fresh());
                self.set(id, Type::list(of));
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for entry in entries {
                    self.check(&mut entry.key);
                    let key = self.get(&entry.key);
                    keys = Some(self.join(keys, key));
                    self.check(&mut entry.value);
                    let value = self.optional_element(&entry.value, entry.optional);
                    values = Some(self.join(values, value));
                }
                let key = keys.unwrap_or_else(|| self.fresh());
                let value = values.unwrap_or_else(|| self.fresh());
                self.set(id, Type::map(key, value));
            }
            Kind::Struct { .. } => self.object(e),
            Kind::Fold(fold) => self.fold(id, fold),
        }
    }

    /// The type of an element, unwrapped where it is marked as optional.
    fn optional_element(&mut self, e: &Expr, optional: bool) -> Type {
        let t = self.get(e);
        if !optional {
            return t;
        }
        let t = self.bindings.substitute(&t, false);
        match t.unwrap_optional() {
            Some(inner) => inner.clone(),
            None => {
                if t != Type::Dyn {
                    self.mismatch(e.id, &Type::optional(t.clone()), &t);
                }
                t
            }
        }
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        self.report(id, format!("expected type '{expected}' but found '{found}'"));
    }

    /// The type of elements seen so far and one more. Mixed elements are refused later, where they are not arguments of `format`.
    fn join(&mut self, before: Option<Type>, t: Type) -> Type {
        let Some(before) = before else { return t };
        if self.bindings.assignable(&before, &t) { most_general(&before, &t).clone() } else { Type::Dyn }
    }

    fn select(&mut self, e: &mut Expr) {
        let id = e.id;
        // A dotted name may be one name, like that of a type.
        if let Some(name) = e.qualified_name() {
            let root = name.split('.').next().unwrap_or_default();
            let local = self.scope.iter().any(|(n, _)| n == root) || self.env.variable(root).is_some();
            let found = if let Some(t) = self.env.variable(&name) { Some((t.clone(), None)) } else { None };
            let found = found.or_else(|| if local { None } else { named_type(&name).map(|t| (Type::Type(Some(t.clone().into())), Some(t))) });
            if let Some((t, constant)) = found {
                e.kind = Kind::Ident(name);
                self.constants[id as usize] = constant;
                return self.set(id, t);
            }
        }
        let Kind::Select { operand, field, test } = &mut e.kind else { return };
        self.check(operand);
        let t = self.field(id, operand, field, false);
        let t = if *test { Type::Bool } else { self.bindings.substitute(&t, false) };
        self.set(id, t);
    }

    /// The type of a field of a checked operand.
    fn field(&mut self, id: Id, operand: &Expr, field: &str, optional: bool) -> Type {
        let of = self.bindings.substitute(&self.get(operand), false);
        let unwrapped = of.unwrap_optional();
        let was_optional = unwrapped.is_some();
        let target = unwrapped.unwrap_or(&of);
        let t = match target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(name) => match self.env.field(name, field) {
                Some(t) => t,
                None => {
                    self.report(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, target);
                Type::Dyn
            }
            _ => {
                if !target.is_dyn_or_error() {
                    self.report(id, format!("type '{target}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if was_optional || optional { Type::optional(t) } else { t }
    }

    fn call(&mut self, e: &mut Expr) {
        let id = e.id;
        let Kind::Call { function: name, target, args } = &mut e.kind else { return };
        if name == "_?._" {
            let (operand, field) = args.split_at_mut(1);
            self.check(&mut operand[0]);
            self.check(&mut field[0]);
            let Kind::Literal(Literal::String(field)) = &field[0].kind else { return };
            let t = self.field(id, &operand[0], field, true);
            let t = self.bindings.substitute(&t, false);
            self.set(id, t);
            self.overloads[id as usize] = vec!["select_optional_field"];
            return;
        }
        args.iter_mut().for_each(|a| self.check(a));
        if let Some(before) = target {
            // What stands before the dot is a value, or the first part of the function's name.
            let qualified = before.qualified_name().map(|prefix| format!("{prefix}.{name}"));
            if let Some(function) = qualified.and_then(|q| self.function(&q)) {
                *name = function.name.clone();
                *target = None;
                return self.resolve_overload(id, function, None, args);
            }
            self.check(before);
        }
        let plain = name.strip_prefix('.').unwrap_or(name).to_string();
        match self.function(&plain) {
            Some(function) => {
                *name = plain;
                self.resolve_overload(id, function, target.as_deref(), args);
            }
            None => {
                let name = name.clone();
                self.undeclared(id, &name);
            }
        }
    }

    fn function(&self, name: &str) -> Option<&'static Function> {
        function(name).filter(|f| !f.extra || self.env.has_extra())
    }

    fn resolve_overload(&mut self, id: Id, function: &'static Function, target: Option<&Expr>, args: &[Expr]) {
        let given: Vec<Type> = target.into_iter().chain(args).map(|a| self.get(a)).collect();
        if matches!(&function.name[..], "_&&_" | "_||_") {
            let mut wrong = false;
            for (arg, t) in args.iter().zip(&given) {
                if !self.bindings.assignable(t, &Type::Bool) {
                    let t = self.bindings.substitute(t, true);
                    self.mismatch(arg.id, &Type::Bool, &t);
                    wrong = true;
                }
            }
            self.overloads[id as usize] = vec![&function.overloads[0].id];
            return self.set(id, if wrong { Type::Error } else { Type::Bool });
        }
        let mut result: Option<Type> = None;
        let mut chosen: Vec<&'static str> = Vec::new();
        for overload in function.overloads.iter().filter(|o| o.member == target.is_some() && o.args.len() == given.len()) {
            let (wanted, gives) = self.instance(overload);
            if !self.bindings.assignable_all(&given, &wanted) {
                continue;
            }
            chosen.push(&overload.id);
            let gives = self.bindings.substitute(&gives, false);
            match &result {
                None => result = Some(gives),
                Some(before) if *before != Type::Dyn && *before != gives => result = Some(Type::Dyn),
                Some(_) => {}
            }
        }
        match result {
            Some(t) => {
                self.overloads[id as usize] = chosen;
                self.set(id, t);
            }
            None => {
                let shown: Vec<String> = given.iter().map(|t| self.bindings.substitute(t, true).to_string()).collect();
                let (before, rest) = if target.is_some() { (format!("{}.", shown[0]), &shown[1..]) } else { (String::new(), &shown[..]) };
                let signature = format!("{before}({})", rest.join(", "));
                self.report(id, format!("found no matching overload for '{}' applied to '{signature}'", function.name));
                self.set(id, Type::Error);
            }
        }
    }

    /// What an overload takes and gives, with fresh type variables.
    fn instance(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        if !overload.generic {
            return (overload.args.clone(), overload.result.clone());
        }
        let base = self.fresh;
        self.fresh += 26;
        (overload.args.iter().map(|t| t.instantiate(base)).collect(), overload.result.instantiate(base))
    }

    fn object(&mut self, e: &mut Expr) {
        let id = e.id;
        let Kind::Struct { name, fields } = &mut e.kind else { return };
        let plain = name.strip_prefix('.').unwrap_or(name).to_string();
        if !self.env.constructible(&plain) {
            let name = name.clone();
            return self.undeclared(id, &name);
        }
        *name = plain.clone();
        self.set(id, Type::object(&plain));
        for field in fields {
            self.check(&mut field.value);
            let wanted = self.env.field(&plain, &field.name).unwrap_or_else(|| {
                self.report(field.id, format!("undefined field '{}'", field.name));
                Type::Error
            });
            let given = self.optional_element(&field.value, field.optional);
            if !self.bindings.assignable(&wanted, &given) {
                let given = self.bindings.substitute(&given, true);
                let message = format!("expected type of field '{}' is '{wanted}' but provided type is '{given}'", field.name);
                self.report(field.id, message);
            }
        }
    }

    fn fold(&mut self, id: Id, fold: &mut Fold) {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.bindings.substitute(&self.get(&fold.range), false);
        let accu = self.get(&fold.init);
        self.scope.push((fold.accu.clone(), accu.clone()));
        let two = fold.var2.is_some();
        let (first, second) = match &range {
            Type::List(of) if two => (Type::Int, (**of).clone()),
            Type::List(of) => ((**of).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.bindings.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            _ => {
                let message = format!("expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)");
                self.report(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        self.scope.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scope.push((var2.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accu);
        self.scope.truncate(self.scope.len() - if two { 2 } else { 1 });
        self.check(&mut fold.result);
        self.scope.pop();
        let t = self.bindings.substitute(&self.get(&fold.result), false);
        self.set(id, t);
    }

    fn assert(&mut self, e: &Expr, wanted: &Type) {
        let found = self.get(e);
        if !self.bindings.assignable(wanted, &found) {
            let (wanted, found) = (self.bindings.substitute(wanted, true), self.bindings.substitute(&found, true));
            self.mismatch(e.id, &wanted, &found);
        }
    }
}

/// The types that can be named in expressions.
pub(crate) fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "double" => Type::Double,
        "google.protobuf.Duration" => Type::Duration,
        "int" => Type::Int,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "null_type" => Type::Null,
        "string" => Type::String,
        "google.protobuf.Timestamp" => Type::Timestamp,
        "type" => Type::Type(None),
        "uint" => Type::Uint,
        "optional_type" => Type::optional(Type::Dyn),
        "net.IP" | "net.CIDR" => Type::Opaque(name.into(), [].into()),
        _ => return None,
    })
}
