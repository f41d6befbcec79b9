//! Text → tokens with their places.

/// What a token is. Punctuation and keywords that are operators are `Op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tok {
    Ident,
    /// An identifier between backquotes.
    Escaped,
    Int,
    Uint,
    Double,
    Str,
    Bytes,
    Op(&'static str),
    End,
}

/// A token: code points from `start` to `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub tok: Tok,
    pub start: u32,
    pub end: u32,
}

/// Operators, longest first.
const OPS: &[&str] = &[
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", ",", ".", "(", ")", "[", "]", "{", "}",
];

/// All tokens of a text, and a message for each character that begins none.
pub(crate) fn lex(source: &[char]) -> (Vec<Token>, Vec<(u32, String)>) {
    let mut lexer = Lexer { source, at: 0, tokens: Vec::new(), wrong: Vec::new() };
    lexer.run();
    let end = source.len() as u32;
    lexer.tokens.push(Token { tok: Tok::End, start: end, end });
    (lexer.tokens, lexer.wrong)
}

struct Lexer<'a> {
    source: &'a [char],
    at: usize,
    tokens: Vec<Token>,
    wrong: Vec<(u32, String)>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> char {
        self.source.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn run(&mut self) {
        while self.at < self.source.len() {
            let start = self.at;
            let c = self.peek(0);
            if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
                continue;
            }
            if c == '/' && self.peek(1) == '/' {
                while self.at < self.source.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
                continue;
            }
            let tok = if let Some(tok) = self.string() {
                tok
            } else if c == '_' || c.is_ascii_alphabetic() {
                while self.peek(0) == '_' || self.peek(0).is_ascii_alphanumeric() {
                    self.at += 1;
                }
                Some(if self.source[start..self.at] == ['i', 'n'] { Tok::Op("in") } else { Tok::Ident })
            } else if c == '`' {
                self.escaped()
            } else if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
                Some(self.number())
            } else {
                let op = OPS.iter().find(|op| op.chars().enumerate().all(|(i, c)| self.peek(i) == c));
                op.map(|op| {
                    self.at += op.len();
                    Tok::Op(op)
                })
            };
            match tok {
                Some(tok) => self.tokens.push(Token { tok, start: start as u32, end: self.at as u32 }),
                None => {
                    self.at = self.at.max(start + 1);
                    let text: String = self.source[start..self.at].iter().collect();
                    self.wrong.push((start as u32, format!("token recognition error at: '{}'", printable(&text))));
                }
            }
        }
    }

    fn escaped(&mut self) -> Option<Tok> {
        self.at += 1;
        let begin = self.at;
        while matches!(self.peek(0), '_' | '.' | '-' | '/' | ' ') || self.peek(0).is_ascii_alphanumeric() {
            self.at += 1;
        }
        if self.peek(0) != '`' || self.at == begin {
            return None;
        }
        self.at += 1;
        Some(Tok::Escaped)
    }

    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Tok {
        let mut double = false;
        if self.peek(0) == '0' && self.peek(1) == 'x' && self.peek(2).is_ascii_hexdigit() {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                self.at += 1;
            }
        } else {
            self.digits();
            if self.peek(0) == '.' && self.peek(1).is_ascii_digit() {
                double = true;
                self.at += 1;
                self.digits();
            }
            let sign = usize::from(matches!(self.peek(1), '+' | '-'));
            if matches!(self.peek(0), 'e' | 'E') && self.peek(1 + sign).is_ascii_digit() {
                double = true;
                self.at += 1 + sign;
                self.digits();
            }
        }
        if double {
            return Tok::Double;
        }
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return Tok::Uint;
        }
        Tok::Int
    }

    /// A string or bytes literal. None: there is none here; `Some(None)`: it does not end.
    fn string(&mut self) -> Option<Option<Tok>> {
        let (mut raw, mut bytes, mut n) = (false, false, 0);
        loop {
            match self.peek(n) {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                '"' | '\'' => break,
                _ => return None,
            }
            n += 1;
        }
        let quote = self.peek(n);
        self.at += n;
        let triple = self.peek(1) == quote && self.peek(2) == quote;
        let width = if triple { 3 } else { 1 };
        self.at += width;
        loop {
            if self.at >= self.source.len() {
                return Some(None);
            }
            let c = self.peek(0);
            if c == '\\' && !raw {
                self.at = (self.at + 2).min(self.source.len());
                continue;
            }
            if !triple && (c == '\n' || c == '\r') {
                return Some(None);
            }
            if c == quote && (!triple || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += width;
                return Some(Some(if bytes { Tok::Bytes } else { Tok::Str }));
            }
            self.at += 1;
        }
    }
}

/// A text as a message shows it.
pub(crate) fn printable(text: &str) -> String {
    text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}
