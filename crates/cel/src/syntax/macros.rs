//! The macros: calls that stand for a presence test, a comprehension or a choice, and become one while parsing.

use super::ast::{Element, Expr, Fold, Kind, Literal};
use super::parser::{Failed, Parser};

/// The variable in which a comprehension gathers its result. No text can name it.
const ACCU: &str = "@result";
/// The variable of a comprehension that only binds a name.
const UNUSED: &str = "#unused";

type Expanded = Result<Expr, Failed>;

impl Parser<'_> {
    /// A call of a global function, or what a macro of that name makes of it.
    pub(super) fn global_call(&mut self, place: u32, function: String, mut args: Vec<Expr>) -> Expanded {
        if function == "has" && args.len() == 1 {
            let arg = args.remove(0);
            let at = self.place(&arg);
            return match arg.kind {
                Kind::Select { operand, field, test: false } => self.node(place, Kind::Select { operand, field, test: true }),
                _ => self.fail(at, "invalid argument to has() macro"),
            };
        }
        self.call(place, &function, args)
    }

    /// A call of a member function, or what a macro of that name makes of it.
    pub(super) fn receiver_call(&mut self, place: u32, function: String, target: Expr, args: Vec<Expr>) -> Expanded {
        let cel = matches!(&target.kind, Kind::Ident(name) if name == "cel");
        match (&function[..], args.len()) {
            ("all" | "exists" | "exists_one" | "existsOne", 2 | 3) => self.quantifier(place, &function, target, args),
            ("map", 2 | 3) => self.list(place, target, args, 1),
            ("filter", 2) => self.filter(place, target, args),
            ("transformList", 3 | 4) => self.list(place, target, args, 2),
            ("transformMap", 3 | 4) => self.transform_map(place, target, args, false),
            ("transformMapEntry", 3 | 4) => self.transform_map(place, target, args, true),
            ("optMap" | "optFlatMap", 2) => self.opt_map(place, &function, target, args),
            ("sortBy", 2) => self.sort_by(place, target, args),
            ("bind", 3) if cel && self.options.bind => self.bind(place, args),
            _ => self.member_call(place, &function, target, args),
        }
    }

    fn ident(&mut self, place: u32, name: &str) -> Expanded {
        self.node(place, Kind::Ident(name.to_string()))
    }

    fn lit(&mut self, place: u32, literal: Literal) -> Expanded {
        self.node(place, Kind::Literal(literal))
    }

    /// The variables of a comprehension, taken off the front of its arguments.
    fn variables(&mut self, args: &mut Vec<Expr>, count: usize, wrong: &str) -> Result<(String, Option<String>), Failed> {
        let mut names = Vec::new();
        let given: Vec<Expr> = args.drain(..count).collect();
        for arg in &given {
            match &arg.kind {
                Kind::Ident(name) => names.push(name.clone()),
                _ => return self.fail(self.place(arg), wrong),
            }
        }
        if count == 2 && names[0] == names[1] {
            return self.fail(self.place(&given[1]), format!("duplicate variable name: {}", names[0]));
        }
        if let Some(n) = names.iter().position(|n| n == ACCU || n == "__result__") {
            return self.fail(self.place(&given[n]), "iteration variable overwrites accumulator variable");
        }
        let second = if count == 2 { names.pop() } else { None };
        Ok((names.remove(0), second))
    }

    fn quantifier(&mut self, place: u32, kind: &str, range: Expr, mut args: Vec<Expr>) -> Expanded {
        let count = args.len() - 1;
        let (var, var2) = self.variables(&mut args, count, "argument must be a simple name")?;
        let predicate = args.remove(0);
        let accu = self.ident(place, ACCU)?;
        let (init, condition, step, result);
        match kind {
            "all" => {
                init = self.lit(place, Literal::Bool(true))?;
                condition = self.call(place, "@not_strictly_false", vec![accu])?;
                let accu = self.ident(place, ACCU)?;
                step = self.call(place, "_&&_", vec![accu, predicate])?;
                result = self.ident(place, ACCU)?;
            }
            "exists" => {
                init = self.lit(place, Literal::Bool(false))?;
                let not = self.call(place, "!_", vec![accu])?;
                condition = self.call(place, "@not_strictly_false", vec![not])?;
                let accu = self.ident(place, ACCU)?;
                step = self.call(place, "_||_", vec![accu, predicate])?;
                result = self.ident(place, ACCU)?;
            }
            _ => {
                init = self.lit(place, Literal::Int(0))?;
                condition = self.lit(place, Literal::Bool(true))?;
                let one = self.lit(place, Literal::Int(1))?;
                let more = self.call(place, "_+_", vec![accu, one])?;
                let same = self.ident(place, ACCU)?;
                step = self.call(place, "_?_:_", vec![predicate, more, same])?;
                let accu = self.ident(place, ACCU)?;
                let one = self.lit(place, Literal::Int(1))?;
                result = self.call(place, "_==_", vec![accu, one])?;
            }
        }
        self.fold(place, Fold { range, var, var2, accu: ACCU.into(), init, condition, step, result })
    }

    fn fold(&mut self, place: u32, fold: Fold) -> Expanded {
        self.node(place, Kind::Fold(Box::new(fold)))
    }

    /// A comprehension that gathers with `step`, for those items that pass the filter, and gives what it gathered.
    fn gather(&mut self, place: u32, range: Expr, vars: (String, Option<String>), init: Expr, step: Expr, filter: Option<Expr>) -> Expanded {
        let condition = self.lit(place, Literal::Bool(true))?;
        let step = match filter {
            Some(filter) => {
                let accu = self.ident(place, ACCU)?;
                self.call(place, "_?_:_", vec![filter, step, accu])?
            }
            None => step,
        };
        let result = self.ident(place, ACCU)?;
        self.fold(place, Fold { range, var: vars.0, var2: vars.1, accu: ACCU.into(), init, condition, step, result })
    }

    /// `map` with one variable and `transformList` with two.
    fn list(&mut self, place: u32, range: Expr, mut args: Vec<Expr>, count: usize) -> Expanded {
        let wrong = if count == 1 { "argument is not an identifier" } else { "argument must be a simple name" };
        let vars = self.variables(&mut args, count, wrong)?;
        let filter = if args.len() == 2 { Some(args.remove(0)) } else { None };
        let transform = args.remove(0);
        let init = self.node(place, Kind::List(Vec::new()))?;
        let accu = self.ident(place, ACCU)?;
        let item = self.node(place, Kind::List(vec![Element { value: transform, optional: false }]))?;
        let step = self.call(place, "_+_", vec![accu, item])?;
        self.gather(place, range, vars, init, step, filter)
    }

    fn filter(&mut self, place: u32, range: Expr, mut args: Vec<Expr>) -> Expanded {
        let item_place = self.place(&args[0]);
        let vars = self.variables(&mut args, 1, "argument is not an identifier")?;
        let filter = args.remove(0);
        let init = self.node(place, Kind::List(Vec::new()))?;
        let accu = self.ident(place, ACCU)?;
        let value = self.ident(item_place, &vars.0)?;
        let item = self.node(place, Kind::List(vec![Element { value, optional: false }]))?;
        let step = self.call(place, "_+_", vec![accu, item])?;
        self.gather(place, range, vars, init, step, Some(filter))
    }

    fn transform_map(&mut self, place: u32, range: Expr, mut args: Vec<Expr>, entry: bool) -> Expanded {
        let vars = self.variables(&mut args, 2, "argument must be a simple name")?;
        let filter = if args.len() == 2 { Some(args.remove(0)) } else { None };
        let transform = args.remove(0);
        let init = self.node(place, Kind::Map(Vec::new()))?;
        let mut given = vec![self.ident(place, ACCU)?];
        if !entry {
            given.push(self.ident(place, &vars.0)?);
        }
        given.push(transform);
        let step = self.call(place, "cel.@mapInsert", given)?;
        self.gather(place, range, vars, init, step, filter)
    }

    /// `result` with a name for a value: a comprehension over nothing.
    fn binding(&mut self, place: u32, name: &str, value: Expr, result: Expr) -> Expanded {
        let range = self.node(place, Kind::List(Vec::new()))?;
        let condition = self.lit(place, Literal::Bool(false))?;
        let step = self.ident(place, name)?;
        self.fold(place, Fold { range, var: UNUSED.into(), var2: None, accu: name.to_string(), init: value, condition, step, result })
    }

    fn bind(&mut self, place: u32, mut args: Vec<Expr>) -> Expanded {
        let Kind::Ident(name) = args[0].kind.clone() else {
            return self.fail(self.place(&args[0]), "cel.bind() variable names must be simple identifiers");
        };
        let result = args.remove(2);
        let value = args.remove(1);
        self.binding(place, &name, value, result)
    }

    fn opt_map(&mut self, place: u32, function: &str, target: Expr, mut args: Vec<Expr>) -> Expanded {
        let Kind::Ident(name) = args[0].kind.clone() else {
            return self.fail(self.place(&args[0]), format!("{function}() variable name must be a simple identifier"));
        };
        let result = args.remove(1);
        let copy = self.copy(&target)?;
        let has = self.member_call(place, "hasValue", target, Vec::new())?;
        let value = self.member_call(place, "value", copy, Vec::new())?;
        let mut some = self.binding(place, &name, value, result)?;
        if function == "optMap" {
            some = self.call(place, "optional.of", vec![some])?;
        }
        let none = self.call(place, "optional.none", Vec::new())?;
        self.call(place, "_?_:_", vec![has, some, none])
    }

    fn sort_by(&mut self, place: u32, target: Expr, args: Vec<Expr>) -> Expanded {
        const INPUT: &str = "@__sortBy_input__";
        if matches!(target.kind, Kind::Literal(_) | Kind::Map(_) | Kind::Struct { .. }) {
            let message = "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
            return self.fail(self.place(&target), message);
        }
        let input = self.ident(place, INPUT)?;
        let keys = self.list(place, input, args, 1)?;
        let input = self.ident(place, INPUT)?;
        let call = self.member_call(place, "@sortByAssociatedKeys", input, vec![keys])?;
        self.binding(place, INPUT, target, call)
    }

    /// The same expression with numbers of its own.
    fn copy(&mut self, e: &Expr) -> Expanded {
        let place = self.place(e);
        let kind = match &e.kind {
            Kind::Literal(_) | Kind::Ident(_) => e.kind.clone(),
            Kind::Select { operand, field, test } => Kind::Select { operand: Box::new(self.copy(operand)?), field: field.clone(), test: *test },
            Kind::Call { function, target, args } => Kind::Call {
                function: function.clone(),
                target: target.as_ref().map(|t| self.copy(t)).transpose()?.map(Box::new),
                args: args.iter().map(|a| self.copy(a)).collect::<Result<_, _>>()?,
            },
            Kind::List(elements) => Kind::List(
                elements.iter().map(|e| Ok(Element { value: self.copy(&e.value)?, optional: e.optional })).collect::<Result<_, Failed>>()?,
            ),
            Kind::Map(entries) => Kind::Map(
                entries
                    .iter()
                    .map(|e| Ok(super::ast::Entry { key: self.copy(&e.key)?, value: self.copy(&e.value)?, optional: e.optional }))
                    .collect::<Result<_, Failed>>()?,
            ),
            Kind::Struct { name, fields } => Kind::Struct {
                name: name.clone(),
                fields: fields
                    .iter()
                    .map(|f| Ok(super::ast::FieldInit { id: f.id, name: f.name.clone(), value: self.copy(&f.value)?, optional: f.optional }))
                    .collect::<Result<_, Failed>>()?,
            },
            Kind::Fold(fold) => Kind::Fold(Box::new(Fold {
                range: self.copy(&fold.range)?,
                var: fold.var.clone(),
                var2: fold.var2.clone(),
                accu: fold.accu.clone(),
                init: self.copy(&fold.init)?,
                condition: self.copy(&fold.condition)?,
                step: self.copy(&fold.step)?,
                result: self.copy(&fold.result)?,
            })),
        };
        self.node(place, kind)
    }
}
