//! Tokens → syntax tree, by recursive descent with binding powers. Macros are expanded on the way.
//!
//! Nesting is bounded (upstream's bound), so no text can make the parser, or what later walks the tree, run out of stack.

use super::ast::{Ast, Element, Entry, Expr, FieldInit, Id, Kind, Literal};
use super::lexer::{Tok, Token, lex, printable};
use super::unescape::unescape;
use crate::issues::Issues;

/// Deepest nesting of expressions.
const DEEPEST: u32 = 250;
/// Most nodes of a tree: `optMap` copies its target, so a chain of them doubles with each link.
const MOST: usize = 500_000;
/// Longest expression, in code points.
const LONGEST: usize = 100_000;
/// What an operand can begin with, as upstream's parser tells it.
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// Words that no variable can be named after.
const RESERVED: &[&str] = &[
    "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var",
    "void", "while",
];

/// Which extensions of the syntax are on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// `cel.bind`.
    pub bind: bool,
}

/// Parses an expression.
pub(crate) fn parse(text: &str, options: Options) -> Result<Ast, Issues> {
    let source: Vec<char> = text.chars().collect();
    let mut issues = Issues::new(&source);
    if source.len() > LONGEST {
        issues.report(None, format!("expression code point size exceeds limit: size: {}, limit {LONGEST}", source.len()));
        return Err(issues);
    }
    let (tokens, wrong) = lex(&source);
    for (place, message) in wrong {
        issues.report(Some(place), format!("Syntax error: {message}"));
    }
    let mut parser = Parser { source: &source, tokens, at: 0, nested: 0, places: Vec::new(), depths: Vec::new(), issues, options };
    let root = parser.whole();
    let Parser { places, issues, .. } = parser;
    match root {
        Ok(root) if issues.is_empty() => Ok(Ast { root, source, places }),
        _ => Err(issues),
    }
}

/// A message has been reported: there is no tree.
pub(super) struct Failed;
type Parsed<T = Expr> = Result<T, Failed>;

pub(super) struct Parser<'a> {
    source: &'a [char],
    tokens: Vec<Token>,
    at: usize,
    nested: u32,
    places: Vec<u32>,
    /// How deep the tree below an expression is, by its number.
    depths: Vec<u32>,
    issues: Issues,
    pub(super) options: Options,
}

impl Parser<'_> {
    fn token(&self) -> Token {
        self.tokens[self.at]
    }

    fn is(&self, op: &'static str) -> bool {
        self.token().tok == Tok::Op(op)
    }

    fn next(&mut self) -> Token {
        let token = self.token();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn eat(&mut self, op: &'static str) -> Option<Token> {
        self.is(op).then(|| self.next())
    }

    fn text(&self, token: Token) -> String {
        self.source[token.start as usize..token.end as usize].iter().collect()
    }

    fn shown(&self, token: Token) -> String {
        if token.tok == Tok::End { "<EOF>".to_string() } else { printable(&self.text(token)) }
    }

    /// Reports a message at a place.
    pub(super) fn fail<T>(&mut self, place: u32, message: impl Into<String>) -> Parsed<T> {
        self.issues.report(Some(place), message);
        Err(Failed)
    }

    /// Reports that the next token does not fit.
    fn unexpected<T>(&mut self, expecting: &str) -> Parsed<T> {
        let token = self.token();
        let shown = self.shown(token);
        // Where one token too many is all that is wrong, upstream's parser says so.
        let next = self.tokens.get(self.at + 1).map(|t| self.shown(*t));
        let extraneous = token.tok != Tok::End && next.is_some_and(|n| expecting == n || expecting == format!("'{n}'"));
        let verb = if extraneous { "extraneous" } else { "mismatched" };
        self.fail(token.start, format!("Syntax error: {verb} input '{shown}' expecting {expecting}"))
    }

    fn expect(&mut self, op: &'static str) -> Parsed<Token> {
        match self.eat(op) {
            Some(token) => Ok(token),
            None => self.unexpected(&format!("'{op}'")),
        }
    }

    /// A new expression at a place.
    pub(super) fn node(&mut self, place: u32, kind: Kind) -> Parsed {
        if self.places.len() >= MOST {
            self.issues.report(None, format!("expression is too large: more than {MOST} nodes"));
            return Err(Failed);
        }
        let id = self.places.len() as Id;
        let depth = |e: &Expr| self.depths[e.id as usize];
        let below = match &kind {
            Kind::Literal(_) | Kind::Ident(_) => 0,
            Kind::Select { operand, .. } => 1 + depth(operand),
            Kind::Call { target, args, function } => {
                let own = u32::from(target.is_some() || (function.contains('_') && function != "_&&_" && function != "_||_"));
                own + target.iter().map(|t| depth(t)).chain(args.iter().map(depth)).max().unwrap_or(0)
            }
            Kind::List(elements) => elements.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
            Kind::Map(entries) => entries.iter().map(|e| depth(&e.key).max(depth(&e.value))).max().unwrap_or(0),
            Kind::Struct { fields, .. } => fields.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
            Kind::Fold(fold) => [&fold.range, &fold.init, &fold.condition, &fold.step, &fold.result].into_iter().map(depth).max().unwrap_or(0),
        };
        self.places.push(place);
        self.depths.push(below);
        // What is too deep is let go of here, while it is just not too deep.
        if below > DEEPEST {
            self.issues.report(None, "max recursion depth exceeded");
            return Err(Failed);
        }
        Ok(Expr { id, kind })
    }

    /// The place of an expression.
    pub(super) fn place(&self, e: &Expr) -> u32 {
        self.places[e.id as usize]
    }

    pub(super) fn call(&mut self, place: u32, function: &str, args: Vec<Expr>) -> Parsed {
        self.node(place, Kind::Call { function: function.to_string(), target: None, args })
    }

    pub(super) fn member_call(&mut self, place: u32, function: &str, target: Expr, args: Vec<Expr>) -> Parsed {
        self.node(place, Kind::Call { function: function.to_string(), target: Some(Box::new(target)), args })
    }

    fn whole(&mut self) -> Parsed {
        let e = self.expr()?;
        if self.token().tok != Tok::End {
            return self.unexpected("<EOF>");
        }
        Ok(e)
    }

    fn expr(&mut self) -> Parsed {
        self.nested += 1;
        if self.nested > DEEPEST {
            self.issues.report(None, format!("expression recursion limit exceeded: {DEEPEST}"));
            return Err(Failed);
        }
        let mut e = self.binary(0)?;
        if self.is("?") {
            e = self.choice(e)?;
        }
        self.nested -= 1;
        Ok(e)
    }

    fn choice(&mut self, condition: Expr) -> Parsed {
        let place = self.next().start;
        let yes = self.binary(0)?;
        self.expect(":")?;
        let no = self.expr()?;
        self.call(place, "_?_:_", vec![condition, yes, no])
    }

    /// Terms joined by one logical operator: they become a balanced tree, so that a long row is not deep.
    fn logic(&mut self, first: Expr, op: &'static str, function: &str, power: u8) -> Parsed {
        let mut terms = vec![Some(first)];
        let mut places = Vec::new();
        while let Some(token) = self.eat(op) {
            places.push(token.start);
            terms.push(Some(self.binary(power + 1)?));
        }
        self.balance(function, &mut terms, &places, 0, places.len() - 1)
    }

    fn balance(&mut self, function: &str, terms: &mut [Option<Expr>], places: &[u32], low: usize, high: usize) -> Parsed {
        let mid = (low + high).div_ceil(2);
        let left = if mid == low { terms[mid].take().ok_or(Failed)? } else { self.balance(function, terms, places, low, mid - 1)? };
        let right = if mid == high { terms[mid + 1].take().ok_or(Failed)? } else { self.balance(function, terms, places, mid + 1, high)? };
        self.call(places[mid], function, vec![left, right])
    }

    /// Alternatives (power 0), conjunctions (1), relations (2), sums (3) and products (4), all from left to right.
    fn binary(&mut self, power: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let Tok::Op(op) = self.token().tok else { return Ok(left) };
            let (own, function) = match op {
                "||" => (0, "_||_"),
                "&&" => (1, "_&&_"),
                "<" => (2, "_<_"),
                "<=" => (2, "_<=_"),
                ">" => (2, "_>_"),
                ">=" => (2, "_>=_"),
                "==" => (2, "_==_"),
                "!=" => (2, "_!=_"),
                "in" => (2, "@in"),
                "+" => (3, "_+_"),
                "-" => (3, "_-_"),
                "*" => (4, "_*_"),
                "/" => (4, "_/_"),
                "%" => (4, "_%_"),
                _ => return Ok(left),
            };
            if own < power {
                return Ok(left);
            }
            if own < 2 {
                left = self.logic(left, op, function, own)?;
                continue;
            }
            left = self.operation(left, function, own)?;
        }
    }

    fn operation(&mut self, left: Expr, function: &str, power: u8) -> Parsed {
        let place = self.next().start;
        let right = self.binary(power + 1)?;
        self.call(place, function, vec![left, right])
    }

    fn unary(&mut self) -> Parsed {
        for (op, function) in [("!", "!_"), ("-", "-_")] {
            if !self.is(op) {
                continue;
            }
            let place = self.token().start;
            let mut count = 0;
            while self.is(op) {
                let number = matches!(self.tokens.get(self.at + 1).map(|t| t.tok), Some(Tok::Int | Tok::Double));
                if op == "-" && number {
                    break;
                }
                self.next();
                count += 1;
            }
            let operand = self.member()?;
            return if count % 2 == 0 { Ok(operand) } else { self.call(place, function, vec![operand]) };
        }
        self.member()
    }

    fn member(&mut self) -> Parsed {
        let mut e = self.primary()?;
        while let Tok::Op(op) = self.token().tok {
            e = match op {
                "." => self.dot(e)?,
                "[" => self.index(e)?,
                "{" if e.qualified_name().is_some() => self.object(e)?,
                _ => break,
            };
        }
        Ok(e)
    }

    /// A field or a call behind a dot.
    fn dot(&mut self, e: Expr) -> Parsed {
        let op = self.next();
        let optional = self.eat("?").is_some();
        let token = self.token();
        if token.tok == Tok::Escaped {
            return self.fail(token.start, "unsupported syntax: '`'");
        }
        if token.tok != Tok::Ident {
            return self.unexpected("IDENTIFIER");
        }
        self.next();
        let name = self.text(token);
        if matches!(&name[..], "true" | "false" | "null") {
            return self.fail(token.start, format!("Syntax error: mismatched input '{name}' expecting IDENTIFIER"));
        }
        if optional {
            let field = self.node(token.start, Kind::Literal(Literal::String(name)))?;
            return self.call(op.start, "_?._", vec![e, field]);
        }
        match self.eat("(") {
            Some(open) => {
                let args = self.args()?;
                self.receiver_call(open.start, name, e, args)
            }
            None => self.node(op.start, Kind::Select { operand: Box::new(e), field: name, test: false }),
        }
    }

    fn index(&mut self, e: Expr) -> Parsed {
        let op = self.next();
        let function = if self.eat("?").is_some() { "_[?_]" } else { "_[_]" };
        let index = self.expr()?;
        self.expect("]")?;
        self.call(op.start, function, vec![e, index])
    }

    /// An object literal, behind the name of its type.
    fn object(&mut self, e: Expr) -> Parsed {
        let name = e.qualified_name().unwrap_or_default();
        let place = self.next().start;
        let fields = self.fields()?;
        self.node(place, Kind::Struct { name, fields })
    }

    fn args(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.eat(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.eat(",").is_none() {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn fields(&mut self) -> Parsed<Vec<FieldInit>> {
        let mut fields = Vec::new();
        loop {
            if self.eat("}").is_some() {
                return Ok(fields);
            }
            let optional = self.eat("?").is_some();
            let token = self.token();
            if token.tok != Tok::Ident {
                return self.unexpected("IDENTIFIER");
            }
            self.next();
            let name = self.text(token);
            let colon = self.expect(":")?;
            let value = self.expr()?;
            // The field itself is an expression's number without an expression.
            let id = self.places.len() as Id;
            self.places.push(colon.start);
            self.depths.push(0);
            fields.push(FieldInit { id, name, value, optional });
            if self.eat(",").is_none() {
                self.expect("}")?;
                return Ok(fields);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let token = self.token();
        match token.tok {
            Tok::Op("(") => self.parenthesis(),
            Tok::Op("[") => self.list_literal(),
            Tok::Op("{") => self.map_literal(),
            Tok::Op("-" | ".") | Tok::Ident => self.named(token),
            Tok::Int | Tok::Uint | Tok::Double | Tok::Str | Tok::Bytes => {
                self.next();
                self.literal(token, false)
            }
            _ => self.unexpected(OPERAND),
        }
    }

    fn parenthesis(&mut self) -> Parsed {
        self.next();
        let e = self.expr()?;
        self.expect(")")?;
        Ok(e)
    }

    fn list_literal(&mut self) -> Parsed {
        let place = self.next().start;
        let mut elements = Vec::new();
        while self.eat("]").is_none() {
            let optional = self.eat("?").is_some();
            elements.push(Element { value: self.expr()?, optional });
            if self.eat(",").is_none() {
                self.expect("]")?;
                break;
            }
        }
        self.node(place, Kind::List(elements))
    }

    fn map_literal(&mut self) -> Parsed {
        let place = self.next().start;
        let mut entries = Vec::new();
        while self.eat("}").is_none() {
            let optional = self.eat("?").is_some();
            let key = self.expr()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
            if self.eat(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.node(place, Kind::Map(entries))
    }

    /// What begins with a minus (a number), a dot or an identifier.
    fn named(&mut self, token: Token) -> Parsed {
        self.next();
        if token.tok == Tok::Op("-") {
            let number = self.token();
            if !matches!(number.tok, Tok::Int | Tok::Double) {
                return self.unexpected(OPERAND);
            }
            self.next();
            return self.literal(Token { start: token.start, ..number }, true);
        }
        let dot = token.tok == Tok::Op(".");
        let ident = if dot { self.token() } else { token };
        if ident.tok != Tok::Ident {
            let shown = printable(&self.text(Token { end: ident.end, ..token }));
            return self.fail(ident.start, format!("Syntax error: no viable alternative at input '{shown}'"));
        }
        if dot {
            self.next();
        }
        let name = self.text(ident);
        let literal = match &name[..] {
            "true" => Some(Literal::Bool(true)),
            "false" => Some(Literal::Bool(false)),
            "null" => Some(Literal::Null),
            _ => None,
        };
        if let Some(literal) = literal {
            return self.node(ident.start, Kind::Literal(literal));
        }
        if RESERVED.contains(&&name[..]) {
            return self.fail(token.start, format!("reserved identifier: {name}"));
        }
        let name = if dot { format!(".{name}") } else { name };
        match self.eat("(") {
            Some(open) => {
                let args = self.args()?;
                self.global_call(open.start, name, args)
            }
            None => self.node(ident.start, Kind::Ident(name)),
        }
    }

    fn literal(&mut self, token: Token, negative: bool) -> Parsed {
        let skip = u32::from(negative);
        let text: String = self.text(token);
        let text = text.chars().skip(skip as usize).filter(|c| !c.is_whitespace() || !negative).collect::<String>();
        let sign = if negative { "-" } else { "" };
        let literal = match token.tok {
            Tok::Int => match text.strip_prefix("0x") {
                Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
                None => format!("{sign}{text}").parse(),
            }
            .map(Literal::Int)
            .map_err(|_| "invalid int literal"),
            Tok::Uint => {
                let text = &text[..text.len() - 1];
                match text.strip_prefix("0x") {
                    Some(hex) => u64::from_str_radix(hex, 16),
                    None => text.parse(),
                }
                .map(Literal::Uint)
                .map_err(|_| "invalid uint literal")
            }
            Tok::Double => match format!("{sign}{text}").parse::<f64>() {
                Ok(v) if v.is_finite() => Ok(Literal::Double(v)),
                _ => Err("invalid double literal"),
            },
            Tok::Bytes => bytes_body(&text).and_then(|body| unescape(&body, true)).map(Literal::Bytes),
            _ => unescape(&text, false)
                .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "invalid unicode code point"))
                .map(Literal::String),
        };
        match literal {
            Ok(literal) => self.node(token.start, Kind::Literal(literal)),
            Err(message) => self.fail(token.start, message),
        }
    }
}

/// A bytes literal without its `b`.
fn bytes_body(text: &str) -> Result<String, &'static str> {
    text.strip_prefix(['b', 'B']).map(str::to_string).ok_or("unable to unescape string")
}
