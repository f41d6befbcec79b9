//! Formats of names: DNS labels and subdomains, qualified names, label values,
//! port names and the like. Each check answers with sentences, none when the
//! value is right.

use regex::Regex;
use std::sync::LazyLock;

macro_rules! pattern {
    ($name:ident, $re:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($re).expect("a constant pattern"));
    };
}

const DNS1123_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS1123_SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const DNS1123_SUBDOMAIN_UNDERSCORE: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const DNS1035_LABEL: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_NAME: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY: &str = "[-._a-zA-Z0-9]+";
const HEADER_NAME: &str = "[-A-Za-z0-9]+";
const PERCENT: &str = "[0-9]+%";
const C_IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";
const WILDCARD_SUBDOMAIN: &str = "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";

/// Longest DNS label and label value, in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
pub const SUBDOMAIN_MAX: usize = 253;

fn full(re: &str) -> String {
    format!("^(?:{re})$")
}

pattern!(LABEL_RE, &full(DNS1123_LABEL));
pattern!(SUBDOMAIN_RE, &full(DNS1123_SUBDOMAIN));
pattern!(SUBDOMAIN_UNDERSCORE_RE, &full(DNS1123_SUBDOMAIN_UNDERSCORE));
pattern!(DNS1035_RE, &full(DNS1035_LABEL));
pattern!(QUALIFIED_RE, &full(QUALIFIED_NAME));
pattern!(LABEL_VALUE_RE, &full(LABEL_VALUE));
pattern!(CONFIG_KEY_RE, &full(CONFIG_KEY));
pattern!(HEADER_RE, &full(HEADER_NAME));
pattern!(PERCENT_RE, &full(PERCENT));
pattern!(C_IDENTIFIER_RE, &full(C_IDENTIFIER));
pattern!(WILDCARD_RE, &full(WILDCARD_SUBDOMAIN));

fn max_len(n: usize) -> String {
    format!("must be no more than {n} bytes")
}

fn max_chars(n: usize) -> String {
    format!("must be no more than {n} characters")
}

/// A sentence with examples and the pattern that was used.
pub fn regex_error(msg: &str, re: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{re}')");
    }
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{msg} (e.g. {}regex used for validation is '{re}')", examples.join(" or "))
}

/// `must be between {lo} and {hi}, inclusive`
pub fn range_error(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

/// What is wrong with a text that has a longest form and a pattern, which `text` tells.
fn of_form(v: &str, most: usize, re: &Regex, text: impl FnOnce() -> String) -> Vec<String> {
    let long = (v.len() > most).then(|| max_chars(most));
    long.into_iter().chain((!re.is_match(v)).then(text)).collect()
}

/// A DNS label as of RFC 1123, in lower case.
pub fn dns1123_label(v: &str) -> Vec<String> {
    of_form(v, LABEL_MAX, &LABEL_RE, || {
        if SUBDOMAIN_RE.is_match(v) {
            return "must not contain dots".into();
        }
        regex_error(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
            DNS1123_LABEL,
            &["my-name", "123-abc"],
        )
    })
}

fn subdomain_text() -> String {
    regex_error(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
        DNS1123_SUBDOMAIN,
        &["example.com"],
    )
}

/// A DNS subdomain as of RFC 1123, in lower case.
pub fn dns1123_subdomain(v: &str) -> Vec<String> {
    of_form(v, SUBDOMAIN_MAX, &SUBDOMAIN_RE, subdomain_text)
}

/// A DNS subdomain whose labels may have underscores.
pub fn dns1123_subdomain_with_underscore(v: &str) -> Vec<String> {
    of_form(v, SUBDOMAIN_MAX, &SUBDOMAIN_UNDERSCORE_RE, || {
        regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            DNS1123_SUBDOMAIN_UNDERSCORE,
            &["example.com"],
        )
    })
}

/// `*.` and a DNS subdomain.
pub fn wildcard_dns1123_subdomain(v: &str) -> Vec<String> {
    of_form(v, SUBDOMAIN_MAX, &WILDCARD_RE, || {
        regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            WILDCARD_SUBDOMAIN,
            &["*.example.com"],
        )
    })
}

/// A DNS label as of RFC 1035, which starts with a letter.
pub fn dns1035_label(v: &str) -> Vec<String> {
    of_form(v, LABEL_MAX, &DNS1035_RE, || {
        regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            DNS1035_LABEL,
            &["my-name", "abc-123"],
        )
    })
}

/// Whether a resource is an extended one: its domain is not Kubernetes' own, and quotas can name it.
pub fn is_extended_resource(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.") && qualified_name(&format!("requests.{name}")).is_empty()
}

/// A label key: a name of up to 63 bytes with an optional DNS subdomain and a slash before it.
pub fn qualified_name(v: &str) -> Vec<String> {
    const TEXT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let text = |head: &str| format!("{head}{}", regex_error(TEXT, QUALIFIED_NAME, &["MyName", "my.name", "123-abc"]));
    let mut errs = Vec::new();
    let name = match v.split_once('/') {
        None => v,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "{} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                text("a valid label key ")
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".into());
            } else {
                if prefix.len() > SUBDOMAIN_MAX {
                    errs.push(format!("prefix part {}", max_len(SUBDOMAIN_MAX)));
                }
                if !SUBDOMAIN_RE.is_match(prefix) {
                    errs.push(format!("prefix part {}", subdomain_text()));
                }
            }
            name
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errs.push(format!("name part {}", max_len(LABEL_MAX)));
    }
    if !QUALIFIED_RE.is_match(name) {
        errs.push(text("name part "));
    }
    errs
}

/// A label value: empty, or up to 63 bytes that start and end with a letter or digit.
pub fn label_value(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > LABEL_MAX {
        errs.push(max_len(LABEL_MAX));
    }
    if !LABEL_VALUE_RE.is_match(v) {
        errs.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            LABEL_VALUE,
            &["MyValue", "my_value", "12345"],
        ));
    }
    errs
}

/// The name of a port of a container: up to 15 of `a-z`, `0-9` and `-`.
pub fn port_name(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 15 {
        errs.push(max_chars(15));
    }
    if v.is_empty() || v.bytes().any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')) {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !v.bytes().any(|b| b.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if v.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if v.starts_with('-') || v.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

/// A port number.
pub fn port_number(v: i64) -> Vec<String> {
    in_range(v, 1, 65535)
}

/// A number between two bounds, inclusive.
pub fn in_range(v: i64, lo: i64, hi: i64) -> Vec<String> {
    if (lo..=hi).contains(&v) { Vec::new() } else { vec![range_error(lo, hi)] }
}

/// `12%`
pub fn percent(v: &str) -> Vec<String> {
    if PERCENT_RE.is_match(v) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        PERCENT,
        &["1%", "93%"],
    )]
}

/// The name of an HTTP header.
pub fn http_header_name(v: &str) -> Vec<String> {
    if HEADER_RE.is_match(v) {
        return Vec::new();
    }
    vec![regex_error("a valid HTTP header must consist of alphanumeric characters or '-'", HEADER_NAME, &["X-Header-Name"])]
}

/// A C identifier.
pub fn c_identifier(v: &str) -> Vec<String> {
    if C_IDENTIFIER_RE.is_match(v) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        C_IDENTIFIER,
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var_name(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.is_empty() {
        errs.push("environment variable name must be non-empty".into());
    }
    if v.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        errs.push("a valid environment variable name must consist only of printable ASCII characters other than '='".into());
    }
    errs
}

/// A key of a ConfigMap or Secret, which is also a file name.
pub fn config_map_key(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > SUBDOMAIN_MAX {
        errs.push(max_chars(SUBDOMAIN_MAX));
    }
    if !CONFIG_KEY_RE.is_match(v) {
        errs.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            CONFIG_KEY,
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if v == "." {
        errs.push("must not be '.'".into());
    } else if v == ".." {
        errs.push("must not be '..'".into());
    } else if v.starts_with("..") {
        errs.push("must not start with '..'".into());
    }
    errs
}

/// `acme.io/foo`: the parts that are wrong, each with why. Nothing at all is for the caller to judge.
pub fn domain_prefixed_path(v: &str) -> Vec<(&str, String)> {
    let Some((host, path)) = v.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty()) else {
        return vec![(v, "must be a domain-prefixed path (such as \"acme.io/foo\")".into())];
    };
    let mut wrong: Vec<_> = dns1123_subdomain(host).into_iter().map(|why| (host, why)).collect();
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
        wrong.push((path, regex_error("Invalid path", "[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+", &[])));
    }
    wrong
}

/// A name that is one segment of a URL path.
pub fn path_segment(v: &str) -> Vec<String> {
    if v == "." || v == ".." {
        return vec![format!("may not be '{v}'")];
    }
    ['/', '%'].iter().filter(|c| v.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        assert_eq!(
            dns1123_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert!(dns1123_label("a-b").is_empty() && dns1123_label("a.b") == ["must not contain dots"]);
        assert!(dns1123_label("A")[0].contains("(e.g. 'my-name',  or '123-abc', regex used"));
        assert!(qualified_name("example.com/a_b").is_empty() && !qualified_name("a/b/c").is_empty());
        assert!(label_value("").is_empty() && !label_value("-").is_empty());
        assert!(port_name("http").is_empty() && port_name("8080")[0].contains("at least one letter"));
        assert_eq!(path_segment("a/b%"), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(config_map_key("..a"), ["must not start with '..'"]);
    }
}
