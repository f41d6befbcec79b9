//! Prometheus' text format: samples out of a page, families into one. Pure.

/// One line of a page.
#[derive(Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, String)>,
    pub value: f64,
    /// Milliseconds since 1970, where the line has them.
    pub timestamp: Option<i64>,
}

impl Sample<'_> {
    /// The value of a label, empty when there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }
}

/// The samples of a page; comments, and lines that are no samples, are passed over.
pub fn samples(page: &str) -> impl Iterator<Item = Sample<'_>> {
    page.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let value = words.next()?.parse().ok()?;
    let timestamp = match words.next() {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    Some(Sample { name, labels, value, timestamp })
}

/// Names with their values.
type Labels<'a> = Vec<(&'a str, String)>;

/// `a="b",c="d"} rest`, after the opening brace.
fn labels(mut text: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once('=')?;
        let quoted = rest.trim_start().strip_prefix('"')?;
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (i, c) in quoted.char_indices() {
            match (escaped, c) {
                (true, 'n') => value.push('\n'),
                (true, c) => value.push(c),
                (false, '\\') => {}
                (false, '"') => {
                    end = Some(i + 1);
                    break;
                }
                (false, c) => value.push(c),
            }
            escaped = !escaped && c == '\\';
        }
        text = &quoted[end?..];
        labels.push((name.trim(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let page = "# HELP a b\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\\n\"} 1.5e+3 1700000000123\nplain 7\n\nbroken{x=\"1 2\nnot a number\n";
        let all: Vec<Sample> = samples(page).collect();
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!((all[0].name, all[0].label("x"), all[0].label("y"), all[0].label("z")), ("a", "1", "q\"}\n", ""));
        assert_eq!((all[0].value, all[0].timestamp), (1500.0, Some(1_700_000_000_123)));
        assert_eq!(all[1], Sample { name: "plain", labels: Vec::new(), value: 7.0, timestamp: None });
    }
}
