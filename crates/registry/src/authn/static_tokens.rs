//! Tokens in a file (`--token-auth-file`): comma separated, `token,user,uid,"group1,group2"`.

use std::collections::HashMap;

use apiserver::{AuthnRequest, Authenticator, UserInfo};
use async_trait::async_trait;

use super::authenticated;

/// The users by their tokens.
#[derive(Clone, Default)]
pub struct StaticTokens(HashMap<String, UserInfo>);

/// What is wrong with a file of tokens.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TokenFileError {
    /// Too few columns.
    #[error("line {0}: token file must have at least 3 columns (token, user name, user uid), found {1}")]
    Columns(usize, usize),
    /// No token.
    #[error("line {0}: empty token has been found in token file")]
    Empty(usize),
    /// The same token again.
    #[error("line {0}: duplicate token has been found in token file")]
    Duplicate(usize),
    /// A quote that does not end.
    #[error("line {0}: a quote does not end")]
    Quote(usize),
}

impl StaticTokens {
    /// Reads a file's text.
    pub fn from_text(text: &str) -> Result<Self, TokenFileError> {
        let mut tokens = HashMap::new();
        for (n, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line)) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let columns = columns(line).ok_or(TokenFileError::Quote(n))?;
            let [token, name, uid, rest @ ..] = columns.as_slice() else { return Err(TokenFileError::Columns(n, columns.len())) };
            if token.is_empty() {
                return Err(TokenFileError::Empty(n));
            }
            let groups = rest.first().map(|g| g.split(',').map(str::to_owned).collect()).unwrap_or_default();
            let user = UserInfo { name: name.clone(), uid: uid.clone(), groups, ..UserInfo::default() };
            if tokens.insert(token.clone(), user).is_some() {
                return Err(TokenFileError::Duplicate(n));
            }
        }
        Ok(Self(tokens))
    }
}

/// The columns of a line, of which each may be quoted; a doubled quote in quotes is one.
fn columns(line: &str) -> Option<Vec<String>> {
    let (mut columns, mut column, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(std::mem::take(&mut column).trim().to_owned()),
            _ => column.push(c),
        }
    }
    columns.push(column.trim().to_owned());
    (!quoted).then_some(columns)
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let known = req.bearer.and_then(|token| self.0.get(token));
        Ok(known.cloned().map(authenticated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_users() {
        let tokens = StaticTokens::from_text("# users\nsecret,jane,7,\"dev,ops\"\n\nother,joe,8\n").unwrap();
        let jane = &tokens.0["secret"];
        assert_eq!((jane.name.as_str(), jane.uid.as_str(), jane.groups.join(" ")), ("jane", "7", "dev ops".into()));
        assert_eq!(tokens.0["other"].groups, [""; 0]);
        let wrong = |text: &str| StaticTokens::from_text(text).err().unwrap();
        assert_eq!(wrong("a,b"), TokenFileError::Columns(1, 2));
        assert_eq!(wrong("\n,b,c"), TokenFileError::Empty(2));
        assert_eq!(wrong("a,b,c\na,d,e"), TokenFileError::Duplicate(2));
        assert_eq!(wrong("a,b,c,\"d"), TokenFileError::Quote(1));
    }
}
