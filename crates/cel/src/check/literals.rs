//! Mistakes in literals that would surface only when the expression runs: times and patterns that do not parse, mixed
//! elements, format strings that do not fit their arguments.

use super::Checked;
use crate::functions::{format, pattern, time};
use crate::issues::Issues;
use crate::syntax::ast::{Expr, Kind, Literal};
use crate::types::Type;

/// Checks all literals of a tree.
pub(super) fn validate(checked: &Checked) -> Result<(), Issues> {
    let mut validator = Validator { checked, issues: Issues::new(&checked.ast.source) };
    validator.visit(&checked.ast.root, false);
    validator.issues.into_result()
}

struct Validator<'a> {
    checked: &'a Checked,
    issues: Issues,
}

impl Validator<'_> {
    fn report(&mut self, e: &Expr, message: String) {
        self.issues.report(self.checked.ast.place(e.id), message);
    }

    fn visit(&mut self, e: &Expr, formatted: bool) {
        match &e.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select { operand, .. } => self.visit(operand, formatted),
            Kind::Call { function, target, args } => {
                self.call(e, function, target.as_deref(), args);
                let formatted = formatted || function == "format";
                target.iter().for_each(|t| self.visit(t, formatted));
                args.iter().for_each(|a| self.visit(a, formatted));
            }
            Kind::List(elements) => {
                if !formatted {
                    let types = elements.iter().map(|e| (&e.value, self.element(&e.value, e.optional))).collect::<Vec<_>>();
                    self.alike(&types);
                }
                elements.iter().for_each(|e| self.visit(&e.value, formatted));
            }
            Kind::Map(entries) => {
                if !formatted {
                    let keys = entries.iter().map(|e| (&e.key, self.element(&e.key, false))).collect::<Vec<_>>();
                    let values = entries.iter().map(|e| (&e.value, self.element(&e.value, e.optional))).collect::<Vec<_>>();
                    self.alike(&keys);
                    self.alike(&values);
                }
                for entry in entries {
                    self.visit(&entry.key, formatted);
                    self.visit(&entry.value, formatted);
                }
            }
            Kind::Struct { fields, .. } => fields.iter().for_each(|f| self.visit(&f.value, formatted)),
            Kind::Fold(fold) => {
                [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result].into_iter().for_each(|e| self.visit(e, formatted));
            }
        }
    }

    fn element(&self, e: &Expr, optional: bool) -> Type {
        let t = self.checked.type_of(e.id);
        if optional { t.unwrap_optional().cloned().unwrap_or(Type::Dyn) } else { t.clone() }
    }

    fn alike(&mut self, types: &[(&Expr, Type)]) {
        let Some((_, first)) = types.first() else { return };
        if let Some((e, t)) = types.iter().find(|(_, t)| !equivalent(t, first)) {
            self.report(e, format!("expected type '{first}' but found '{t}'"));
        }
    }

    fn call(&mut self, e: &Expr, function: &str, target: Option<&Expr>, args: &[Expr]) {
        let literal = |e: &Expr| match &e.kind {
            Kind::Literal(Literal::String(text)) => Some(text.clone()),
            _ => None,
        };
        let Some(first) = args.first() else { return };
        let wrong = match (function, literal(first)) {
            ("duration", Some(text)) => time::parse_duration(&text).is_err(),
            ("timestamp", Some(text)) => time::parse_timestamp(&text).is_err(),
            ("matches", Some(text)) => {
                let text = if target.is_some() { Some(text) } else { args.get(1).and_then(literal) };
                text.is_some_and(|text| pattern::compile(&text).is_err())
            }
            _ => false,
        };
        if wrong {
            self.report(first, format!("invalid {function} argument"));
        }
        if let ("timestamp", Kind::Literal(Literal::Int(seconds))) = (function, &first.kind)
            && time::check_seconds(*seconds).is_err()
        {
            self.report(first, "invalid timestamp argument".to_string());
        }
        if let ("format", Some(text), Kind::List(elements)) = (function, target.and_then(literal), &first.kind) {
            let types: Vec<Type> = elements.iter().map(|e| self.checked.type_of(e.value.id).clone()).collect();
            if let Err((n, message)) = format::check(&text, &types) {
                let at = n.map_or(e, |n| &elements[n].value);
                self.report(at, message);
            }
        }
    }
}

/// The same type, whatever runtime parameters objects have.
fn equivalent(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Type(_), Type::Type(_)) => true,
        (Type::List(a), Type::List(b)) => equivalent(a, b),
        (Type::Map(ak, av), Type::Map(bk, bv)) => equivalent(ak, bk) && equivalent(av, bv),
        _ => a == b,
    }
}
