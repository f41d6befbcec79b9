//! PEM text to DER blocks and back.

use base64::{Engine, engine::general_purpose::STANDARD};

/// One PEM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What stands between `BEGIN` and the dashes: `CERTIFICATE`, `PRIVATE KEY`.
    pub label: String,
    /// The decoded content.
    pub der: Vec<u8>,
}

/// All well formed blocks of `text`, in order; anything between them is skipped, as Go does.
pub fn decode(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) {
            open = Some((label.to_owned(), String::new()));
        } else if let Some(label) = line.strip_prefix("-----END ").and_then(|l| l.strip_suffix("-----")) {
            if let Some((begin, body)) = open.take()
                && begin == label
                && let Ok(der) = STANDARD.decode(body)
            {
                blocks.push(Block { label: begin, der });
            }
        } else if let Some((_, body)) = &mut open
            && !line.contains(':')
        {
            body.push_str(line);
        }
    }
    blocks
}

/// One block as PEM text with lines of 64 characters and a final newline.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
