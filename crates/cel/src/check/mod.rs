//! From a syntax tree to a checked one: which overloads are meant, and what type each expression has.

mod checker;
pub(crate) mod decls;
mod literals;

use crate::env::Env;
use crate::issues::Issues;
use crate::syntax::ast::{Ast, Id};
use crate::types::Type;

/// A tree with what the checker found out about its expressions.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub ast: Ast,
    /// By the number of an expression.
    pub types: Vec<Option<Type>>,
    /// The overloads that a call may mean, by its number.
    pub overloads: Vec<Vec<&'static str>>,
    /// Identifiers that name a type, by their number.
    pub constants: Vec<Option<Type>>,
}

impl Checked {
    /// The type of an expression.
    pub fn type_of(&self, id: Id) -> &Type {
        self.types.get(id as usize).and_then(Option::as_ref).unwrap_or(&Type::Dyn)
    }

    /// The overloads of a call.
    pub fn overloads_of(&self, id: Id) -> &[&'static str] {
        self.overloads.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

/// Checks a tree against what an environment declares.
pub(crate) fn check(env: &Env, ast: Ast) -> Result<Checked, Issues> {
    let checked = checker::run(env, ast)?;
    literals::validate(&checked)?;
    Ok(checked)
}
