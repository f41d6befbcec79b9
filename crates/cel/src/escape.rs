//! Field names as expressions write them: what cannot be an identifier is spelled out (`__dot__`, `__namespace__` …).

/// Words that the language keeps for itself.
const RESERVED: &[&str] = &[
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
    "namespace", "return", "var", "void", "while",
];

/// Whether a word is kept by the language.
pub(crate) fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word)
}

/// A field's name as an expression writes it; none when it cannot be written.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    if name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) && !name.contains("__") {
        return Some(name.to_string());
    }
    let mut out = String::with_capacity(name.len() + 8);
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '_' if chars.peek() == Some(&'_') => {
                chars.next();
                out.push_str("__underscores__");
            }
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c == '_' || c.is_ascii_alphanumeric() => out.push(c),
            _ => return None,
        }
    }
    Some(out)
}

/// The field that an escaped name means; none when it means none.
pub fn unescape(name: &str) -> Option<String> {
    if !name.contains("__") {
        return Some(name.to_string());
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(start) = rest.find("__") {
        let inner = &rest[start + 2..];
        // `__word__`, where the word has no underscore.
        let word = inner.find('_').filter(|end| *end > 0 && inner[*end..].starts_with("__")).map(|end| &inner[..end]);
        let Some(word) = word else {
            let skip = start + 1;
            out.push_str(&rest[..skip]);
            rest = &rest[skip..];
            continue;
        };
        out.push_str(&rest[..start]);
        match word {
            "underscores" => out.push_str("__"),
            "dot" => out.push('.'),
            "dash" => out.push('-'),
            "slash" => out.push('/'),
            _ if is_reserved(word) && word.len() + 4 == name.len() => out.push_str(word),
            _ => return None,
        }
        rest = &inner[word.len() + 2..];
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_there_and_back() {
        for (plain, escaped) in [
            ("true", "__true__"),
            ("namespace", "__namespace__"),
            ("a", "a"),
            ("a.b", "a__dot__b"),
            ("a-b", "a__dash__b"),
            ("a__b", "a__underscores__b"),
            ("a.-/__b", "a__dot____dash____slash____underscores__b"),
            ("_abc", "_abc"),
            ("trueX", "trueX"),
            ("__if__", "__underscores__if__underscores__"),
            ("int", "int"),
        ] {
            assert_eq!(escape(plain).as_deref(), Some(escaped), "{plain}");
            assert_eq!(unescape(escaped).as_deref(), Some(plain), "{escaped}");
        }
        for bad in ["", "0a", "a b", "a$", "ü"] {
            assert_eq!(escape(bad), None, "{bad}");
        }
        for bad in ["a__foo__b", "x__true__"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
        assert_eq!(unescape("a_b__c").as_deref(), Some("a_b__c"));
    }
}
