//! From text to a syntax tree: lexer, parser, and the macros that the parser expands.

pub(crate) mod ast;
mod lexer;
mod macros;
mod parser;
mod unescape;

pub(crate) use parser::{Options, parse};
