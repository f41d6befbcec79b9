//! The value of a string or bytes literal.

/// The bytes that a literal's text stands for: a string's are UTF-8.
pub(crate) fn unescape(text: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    const BAD: &str = "unable to unescape string";
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let raw = text.starts_with(['r', 'R']);
    let text = if raw { &text[1..] } else { &text[..] };
    let triple = text.len() >= 6 && (text.starts_with("'''") || text.starts_with("\"\"\""));
    let width = if triple { 3 } else { 1 };
    if text.len() < 2 * width {
        return Err(BAD);
    }
    let body = &text[width..text.len() - width];
    if raw || !body.contains('\\') {
        return Ok(body.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        let Some(c) = chars.next() else { return Err("unable to unescape string, found '\\' as last character") };
        match c {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' | '\'' | '"' | '`' | '?' => out.push(c as u8),
            'x' | 'X' | 'u' | 'U' => {
                let n = match c {
                    'x' | 'X' => 2,
                    'u' if !bytes => 4,
                    'U' if !bytes => 8,
                    _ => return Err(BAD),
                };
                let mut v: u32 = 0;
                for _ in 0..n {
                    let digit = chars.next().and_then(|c| c.to_digit(16)).ok_or(BAD)?;
                    v = v.wrapping_shl(4) | digit;
                }
                code(&mut out, v, bytes)?;
            }
            '0'..='3' => {
                let mut v = c as u32 - '0' as u32;
                for _ in 0..2 {
                    v = v * 8 + chars.next().and_then(|c| c.to_digit(8)).ok_or("unable to unescape octal sequence in string")?;
                }
                code(&mut out, v, bytes)?;
            }
            _ => return Err(BAD),
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// A code point of a string, or a single byte.
fn code(out: &mut Vec<u8>, v: u32, bytes: bool) -> Result<(), &'static str> {
    if bytes {
        out.push(v as u8);
    } else {
        push(out, char::from_u32(v).ok_or("invalid unicode code point")?);
    }
    Ok(())
}
