//! What a request asks for, from its path and query alone: upstream's RequestInfo.
use http::Method;

/// The parsed path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub resource_request: bool,
    pub path: String,
    /// get, list, watch, create, …; for non-resource requests the lower-case method.
    pub verb: String,
    pub prefix: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, with a leading slash, undecoded (`proxy` paths).
    pub rest: String,
    /// The name came from a field selector, not from the path.
    pub name_from_selector: bool,
    pub field_selector: String,
    pub label_selector: String,
    /// The deprecated `/watch/` form.
    pub watch_prefix: bool,
}

impl RequestInfo {
    /// Parses; the error is a 400's message.
    pub fn parse(method: &Method, uri: &http::Uri) -> Result<RequestInfo, String> {
        let raw = uri.path();
        let mut info = RequestInfo {
            path: percent_decode(raw),
            verb: method.as_str().to_ascii_lowercase(),
            ..RequestInfo::default()
        };
        let raw_parts: Vec<&str> = raw.trim_matches('/').split('/').collect();
        let parts: Vec<String> = raw_parts.iter().map(|p| percent_decode(p)).collect();
        if parts.len() < 3 || !matches!(parts[0].as_str(), "api" | "apis") {
            return Ok(info);
        }
        let mut at = 1;
        if parts[0] == "apis" {
            if parts.len() < 4 {
                return Ok(info);
            }
            info.group = parts[1].clone();
            at = 2;
        }
        info.prefix = parts[0].clone();
        info.resource_request = true;
        info.version = parts[at].clone();
        at += 1;
        let special = matches!(parts[at].as_str(), "watch" | "proxy");
        if special {
            info.verb = parts[at].clone();
            info.watch_prefix = info.verb == "watch";
            at += 1;
            if at >= parts.len() {
                return Err(format!("unable to determine kind and namespace from url, {uri}"));
            }
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .to_string();
        }
        if parts[at] == "namespaces" && parts.len() > at + 1 {
            info.namespace = parts[at + 1].clone();
            if parts.len() > at + 2 && !matches!(parts[at + 2].as_str(), "status" | "finalize") {
                at += 2;
            }
        }
        let n = parts.len() - at;
        info.resource = parts[at].clone();
        if n >= 2 {
            info.name = parts[at + 1].clone();
        }
        if n >= 3 && !special {
            info.subresource = parts[at + 2].clone();
            if n >= 4 {
                info.rest = format!("/{}", raw_parts[at + 3..].join("/"));
                if raw.ends_with('/') {
                    info.rest.push('/');
                }
            } else if raw.ends_with('/') {
                info.rest = "/".to_string();
            }
        }
        let query = parse_query(uri.query().unwrap_or_default());
        let first = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        if info.name.is_empty() && info.verb == "get" {
            let watch = first("watch").is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"));
            info.verb = if watch { "watch" } else { "list" }.to_string();
            if let Some(fields) = first("fieldSelector")
                && let Ok(fields) = api::selector::Fields::parse(fields)
                && let Some(name) = fields.requires("metadata.name")
                && !name.is_empty()
                && !name.contains(['/', '%'])
                && name != "."
                && name != ".."
            {
                info.name = name.to_string();
                info.name_from_selector = true;
            }
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".to_string();
        }
        if !special && matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.field_selector = first("fieldSelector").unwrap_or_default().to_string();
            info.label_selector = first("labelSelector").unwrap_or_default().to_string();
        }
        Ok(info)
    }

    /// The name in the path; a name from a field selector does not count.
    pub fn path_name(&self) -> &str {
        if self.name_from_selector { "" } else { &self.name }
    }

    /// Requests that may change something, as upstream counts them.
    pub fn mutating(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Requests that stay open: watches, streams, and profiles; they have no deadline.
    pub fn long_running(&self) -> bool {
        if !self.resource_request {
            return crate::profile::below(&self.path).is_some();
        }
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

/// Decodes a query string in order; bad escapes are kept as they are.
pub fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|s| !s.is_empty())
        .map(|pair| {
            let (k, v) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(&k.replace('+', " ")), percent_decode(&v.replace('+', " ")))
        })
        .collect()
}

/// Percent-decodes; what is not valid UTF-8 afterwards becomes U+FFFD.
pub fn percent_decode(s: &str) -> String {
    if !s.contains('%') {
        return s.to_string();
    }
    let bytes = s.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        if bytes[i] == b'%'
            && i + 2 < bytes.len()
            && let (Some(h), Some(l)) = (hex(bytes[i + 1]), hex(bytes[i + 2]))
        {
            out.push(h << 4 | l);
            i += 3;
            continue;
        }
        out.push(bytes[i]);
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().unwrap()).unwrap()
    }

    #[test]
    fn paths() {
        let check = |method: Method, uri: &str, expect: [&str; 7]| {
            let i = info(method, uri);
            let got = [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.name, &i.subresource];
            assert_eq!(got, expect, "{uri}");
        };
        check(Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]);
        check(Method::PUT, "/api/v1/namespaces/a/finalize", ["update", "", "v1", "a", "namespaces", "a", "finalize"]);
        check(Method::GET, "/api/v1/namespaces/a/pods?watch=1", ["watch", "", "v1", "a", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods?watch=false", ["list", "", "v1", "a", "pods", "", ""]);
        check(Method::DELETE, "/apis/apps/v1/namespaces/a/deployments", ["deletecollection", "apps", "v1", "a", "deployments", "", ""]);
        check(Method::GET, "/apis/apps/v1/watch/namespaces/a/deployments/x", ["watch", "apps", "v1", "a", "deployments", "x", ""]);
        check(Method::POST, "/api/v1/namespaces/a/pods/p/exec?command=ls", ["create", "", "v1", "a", "pods", "p", "exec"]);
        check(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx", ["list", "", "v1", "", "pods", "x", ""]);
        assert!(!info(Method::GET, "/healthz").resource_request);
        assert!(!info(Method::GET, "/apis/apps/v1").resource_request);
        assert_eq!(info(Method::GET, "/api/v1/namespaces/a/services/s:80/proxy/a%20b/c/").rest, "/a%20b/c/");
        assert_eq!(info(Method::GET, "/api/v1/nodes/n/proxy/").rest, "/");
    }

    #[test]
    fn queries() {
        assert_eq!(parse_query("a=b+c&d=%2f&e&f=%zz"), [("a", "b c"), ("d", "/"), ("e", ""), ("f", "%zz")].map(|(a, b)| (a.to_string(), b.to_string())));
    }
}
