//! What is wrong with an expression before it runs: messages with positions, printed with the line they point at.

use std::fmt;

/// Most messages that are kept of one expression.
const MOST: usize = 100;
/// Longest line that is quoted below a message.
const LONGEST_QUOTE: usize = 16384;

/// One message about an expression's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Code points before the place that is meant; none when the expression as a whole is.
    pub offset: Option<u32>,
    /// What is wrong.
    pub message: String,
}

/// All messages about one expression, with its text. `Display` prints them as upstream's clients know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issues {
    source: Vec<char>,
    issues: Vec<Issue>,
    more: usize,
    instantiation: Option<String>,
}

impl Issues {
    pub(crate) fn new(source: &[char]) -> Issues {
        Issues { source: source.to_vec(), issues: Vec::new(), more: 0, instantiation: None }
    }

    pub(crate) fn report(&mut self, offset: Option<u32>, message: impl Into<String>) {
        if self.issues.len() == MOST {
            self.more += 1;
        } else {
            self.issues.push(Issue { offset, message: message.into() });
        }
    }

    /// Says that the expression is right by itself, but can never run.
    pub(crate) fn instantiation(&mut self, message: String) {
        self.instantiation.get_or_insert(message);
    }

    /// What upstream's messages about the issues begin with.
    pub fn prefix(&self) -> &'static str {
        if self.instantiation.is_some() { "program instantiation failed: " } else { "compilation failed: " }
    }

    /// Whether there is nothing wrong.
    pub fn is_empty(&self) -> bool {
        self.issues.is_empty() && self.instantiation.is_none()
    }

    /// The single messages.
    pub fn iter(&self) -> impl Iterator<Item = &Issue> {
        self.issues.iter()
    }

    /// The issues as an error, if there are any.
    pub(crate) fn into_result(self) -> Result<(), Issues> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Line (from 1) and column (from 0) of a code point.
    fn place(&self, offset: u32) -> (usize, usize) {
        let before = &self.source[..(offset as usize).min(self.source.len())];
        let line = before.iter().filter(|c| **c == '\n').count();
        let column = before.iter().rev().take_while(|c| **c != '\n').count();
        (line + 1, column)
    }
}

impl std::error::Error for Issues {}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = &self.instantiation {
            return f.write_str(message);
        }
        let mut sorted: Vec<(Option<(usize, usize)>, &Issue)> = self.issues.iter().map(|i| (i.offset.map(|o| self.place(o)), i)).collect();
        sorted.sort_by_key(|(place, _)| *place);
        for (n, (place, issue)) in sorted.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            if self.source.is_empty() {
                write!(f, "ERROR: <input>:1:0: {}", issue.message)?;
                continue;
            }
            let Some((line, column)) = place else {
                write!(f, "ERROR: <input>:-1:0: {}", issue.message)?;
                continue;
            };
            write!(f, "ERROR: <input>:{line}:{}: {}", column + 1, issue.message)?;
            let text: String = self.source.split(|c| *c == '\n').nth(line - 1).unwrap_or_default().iter().collect();
            if text.len() > LONGEST_QUOTE {
                continue;
            }
            let text = text.replace('\t', " ");
            let mut pointer = String::new();
            let mut rest = text.chars();
            for c in rest.by_ref().take(*column) {
                pointer.push(if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' });
            }
            pointer.push(if rest.next().is_some_and(|c| c.len_utf8() > 1) { '\u{ff3e}' } else { '^' });
            write!(f, "\n | {text}\n | {pointer}")?;
        }
        if self.more > 0 {
            write!(f, "\n{} more errors were truncated", self.more)?;
        }
        Ok(())
    }
}
