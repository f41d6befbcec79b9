//! Paths and queries → what is asked. Pure.

use http::{Method, Uri};
use jiff::Timestamp;

use crate::logs;

/// Which streams a command gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A request that is understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Pods,
    RunningPods,
    Summary,
    Metrics,
    ResourceMetrics,
    CadvisorMetrics,
    ProbeMetrics,
    Logs { namespace: String, pod: String, container: String, options: logs::Options },
    Exec { namespace: String, pod: String, uid: Option<String>, container: String, command: Vec<String>, streams: Streams },
    Attach { namespace: String, pod: String, uid: Option<String>, container: String, streams: Streams },
    PortForward { namespace: String, pod: String, uid: Option<String>, ports: Vec<i32> },
}

/// The pairs of a query, decoded.
fn query(uri: &Uri) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let raw = text.as_bytes();
        let mut i = 0;
        while i < raw.len() {
            match raw[i] {
                b'+' => bytes.push(b' '),
                b'%' => match text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) {
                    Some(byte) => {
                        bytes.push(byte);
                        i += 2;
                    }
                    None => bytes.push(b'%'),
                },
                byte => bytes.push(byte),
            }
            i += 1;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty());
    pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

impl Route {
    /// `None`: there is no such path.
    pub fn parse(method: &Method, uri: &Uri) -> Option<Route> {
        let query = query(uri);
        let get = |key: &str| query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        let flag = |key: &str| matches!(get(key), Some("1" | "true" | "True"));
        let parts: Vec<&str> = uri.path().split('/').filter(|p| !p.is_empty()).collect();
        let own = |s: &str| s.to_string();
        let streams = Streams {
            stdin: flag("input") || flag("stdin"),
            stdout: flag("output") || flag("stdout"),
            stderr: flag("error") || flag("stderr"),
            tty: flag("tty"),
        };
        if method == Method::GET {
            match parts.as_slice() {
                ["healthz"] | ["healthz", "ping" | "syncloop" | "log"] => return Some(Route::Healthz),
                ["pods"] => return Some(Route::Pods),
                ["runningpods"] => return Some(Route::RunningPods),
                ["stats", "summary"] | ["stats"] => return Some(Route::Summary),
                ["metrics"] => return Some(Route::Metrics),
                ["metrics", "resource"] => return Some(Route::ResourceMetrics),
                ["metrics", "cadvisor"] => return Some(Route::CadvisorMetrics),
                ["metrics", "probes"] => return Some(Route::ProbeMetrics),
                ["containerLogs", namespace, pod, container] => {
                    let number = |key: &str| get(key).and_then(|v| v.parse::<u64>().ok());
                    let since = get("sinceTime").and_then(|t| t.parse::<Timestamp>().ok());
                    let ago = number("sinceSeconds").and_then(|s| i64::try_from(s).ok()).map(|s| Timestamp::now() - jiff::SignedDuration::from_secs(s));
                    let stream = get("stream").map(str::to_lowercase).filter(|s| s == "stdout" || s == "stderr");
                    return Some(Route::Logs {
                        namespace: own(namespace),
                        pod: own(pod),
                        container: own(container),
                        options: logs::Options {
                            follow: flag("follow"),
                            previous: flag("previous"),
                            timestamps: flag("timestamps"),
                            tail: number("tailLines"),
                            since: since.or(ago),
                            limit: number("limitBytes"),
                            stream,
                        },
                    });
                }
                _ => {}
            }
        }
        if !super::method_is_streaming(method) {
            return None;
        }
        let command = || query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
        let (kind, rest) = parts.split_first()?;
        let (namespace, pod, uid, container) = match (*kind, rest) {
            ("portForward", [ns, pod]) => (ns, pod, None, ""),
            ("portForward", [ns, pod, uid]) => (ns, pod, Some(own(uid)), ""),
            (_, [ns, pod, container]) => (ns, pod, None, *container),
            (_, [ns, pod, uid, container]) => (ns, pod, Some(own(uid)), *container),
            _ => return None,
        };
        let (namespace, pod, container) = (own(namespace), own(pod), own(container));
        match *kind {
            "exec" => Some(Route::Exec { namespace, pod, uid, container, command: command(), streams }),
            "attach" => Some(Route::Attach { namespace, pod, uid, container, streams }),
            "portForward" => {
                let ports = query.iter().filter(|(k, _)| k == "port" || k == "ports").flat_map(|(_, v)| v.split(',').filter_map(|p| p.parse().ok()).collect::<Vec<_>>());
                Some(Route::PortForward { namespace, pod, uid, ports: ports.collect() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> Option<Route> {
        Route::parse(&method.parse().unwrap(), &uri.parse().unwrap())
    }

    #[test]
    fn paths() {
        let Some(Route::Exec { command, streams, uid, container, .. }) = parse("POST", "/exec/n/p/c?command=sh&command=-c&command=echo%20%22a+b%22&input=1&tty=1") else { panic!() };
        assert_eq!(command, ["sh", "-c", "echo \"a b\""]);
        assert_eq!((streams, uid, container.as_str()), (Streams { stdin: true, tty: true, ..Default::default() }, None, "c"));
        let Some(Route::Logs { options, .. }) = parse("GET", "/containerLogs/n/p/c?follow=true&tailLines=5&timestamps=true") else { panic!() };
        assert!(options.follow && options.timestamps && options.tail == Some(5) && options.since.is_none());
        assert_eq!(
            parse("GET", "/portForward/n/p?port=80&port=443"),
            Some(Route::PortForward { namespace: "n".into(), pod: "p".into(), uid: None, ports: vec![80, 443] })
        );
        assert!(matches!(parse("GET", "/attach/n/p/u/c"), Some(Route::Attach { uid: Some(_), .. })));
        assert_eq!(parse("GET", "/pods/"), Some(Route::Pods));
        for none in ["/", "/exec/n", "/other/n/p/c", "/containerLogs/n/p"] {
            assert_eq!(parse("GET", none), None, "{none}");
        }
        assert_eq!(parse("DELETE", "/exec/n/p/c"), None);
    }
}
