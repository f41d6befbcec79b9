//! Sets of completion indexes as the status writes them: `1,3-5,7`.

use std::collections::BTreeSet;

/// Parses the compressed form; what is no number is passed over.
pub fn parse(text: &str) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
            all.extend(from..=to);
        }
    }
    all
}

/// Writes the compressed form; two neighbours are written with a comma.
pub fn format(indexes: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, to)) if *to + 1 == index => *to = index,
            _ => runs.push((index, index)),
        }
    }
    let write = |(from, to): (u32, u32)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    };
    runs.into_iter().map(write).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "0,1,5-9"] {
            assert_eq!(format(&parse(text)), text);
        }
    }
}
