//! What a request's line asks for.

use apiserver::request::{RequestInfo, parse_query, percent_decode};
use http::{Method, Uri};

/// A method, a space and a path with a query.
pub fn url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = parse_query(text);
    let decoded = percent_decode(text);
    assert!(decoded.contains('%') || percent_decode(&decoded) == decoded);
    let (method, path) = text.split_once(' ').unwrap_or(("GET", text));
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), path.parse::<Uri>()) else { return };
    let Ok(info) = RequestInfo::parse(&method, &uri) else { return };
    let _ = info.long_running();
    let _ = info.path_name();
}
