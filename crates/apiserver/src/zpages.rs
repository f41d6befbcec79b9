//! What a component says of itself: `/statusz` and `/flagz`, as text for people, or as objects of `config.k8s.io` for
//! those who name them in their Accept header (`application/json;as=Statusz;v=v1beta1;g=config.k8s.io`).
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use http::{HeaderMap, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::negotiate::{self, Accepted, Convert, Format, clauses};
use crate::types::Status;

/// One of the pages.
pub enum Page<'a> {
    /// `/statusz`. Of paths, the first parts are told, without those that serve objects.
    Status { version: &'a str, started: Timestamp, now: Timestamp, paths: &'a [String] },
    /// `/flagz`: all flags with their values.
    Flags(&'a BTreeMap<String, String>),
}

/// A page as somebody wants it.
#[derive(Debug)]
pub struct Shown {
    pub content_type: String,
    /// The value of a `Warning` header.
    pub warning: Option<String>,
    pub bytes: Vec<u8>,
}

const GROUP: &str = "config.k8s.io";
/// First parts of paths that are no help in looking for what is wrong.
const NO_HELP: [&str; 5] = ["apis", "api", "openid", "openapi", ".well-known"];

impl Page<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Page::Status { .. } => "Statusz",
            Page::Flags(_) => "Flagz",
        }
    }

    /// This component's page in the form that is accepted; 406 if there is none.
    pub fn show(&self, component: &str, headers: &HeaderMap) -> Result<Shown, Status> {
        let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        match self.form(&accept.join(",")) {
            None => Err(api::status::not_acceptable(&["application/json", "application/yaml", "text/plain"])),
            Some(None) => Ok(Shown { content_type: "text/plain; charset=utf-8".into(), warning: None, bytes: self.text(component).into() }),
            Some(Some((format, version))) => {
                let old = format!("299 - \"This version of the {} endpoint is deprecated. Please use a newer version.\"", self.kind().to_lowercase());
                let accepted = Accepted { format, convert: Convert::None, pretty: negotiate::is_for_people(headers) };
                Ok(Shown {
                    content_type: format!("{};g={GROUP};v={version};as={}", format.media_type(), self.kind()),
                    warning: (version == "v1alpha1").then_some(old),
                    bytes: negotiate::encode(accepted, &self.object(component, version))?,
                })
            }
        }
    }

    /// Text, or an object: its format and version.
    fn form(&self, accept: &str) -> Option<Option<(Format, &'static str)>> {
        if accept.trim().is_empty() {
            return Some(None);
        }
        for clause in clauses(accept) {
            let get = |name: &str| clause.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
            let fits = |kind: &str, subtype: &str| (clause.kind == kind && (clause.subtype == subtype || clause.subtype == "*")) || (clause.kind == "*" && clause.subtype == "*");
            match (get("as"), get("g"), get("v")) {
                (None, None, None) if fits("text", "plain") => return Some(None),
                (Some(kind), Some(GROUP), Some(version)) if kind == self.kind() => {
                    let Some(version) = ["v1alpha1", "v1beta1"].into_iter().find(|v| *v == version) else { continue };
                    if let Some((format, _)) = [(Format::Json, "json"), (Format::Yaml, "yaml")].into_iter().find(|(_, s)| fits("application", s)) {
                        return Some(Some((format, version)));
                    }
                }
                _ => {}
            }
        }
        None
    }

    fn object(&self, component: &str, version: &str) -> Value {
        let mut object = json!({"kind": self.kind(), "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": component}});
        let fields = match self {
            Page::Status { version, started, now, .. } => json!({
                "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "uptimeSeconds": seconds(*started, *now),
                "goVersion": "",
                "binaryVersion": version.trim_start_matches('v'),
                "emulationVersion": minor(version),
                "paths": self.paths(),
            }),
            Page::Flags(flags) => json!({"flags": flags}),
        };
        if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields) {
            object.extend(fields);
        }
        object
    }

    fn paths(&self) -> Vec<String> {
        let Page::Status { paths, .. } = self else { return Vec::new() };
        let first: BTreeSet<&str> = paths.iter().filter_map(|p| p.strip_prefix('/')?.split('/').next()).collect();
        first.into_iter().filter(|p| !p.is_empty() && !NO_HELP.contains(p)).map(|p| format!("/{p}")).collect()
    }

    fn text(&self, component: &str) -> String {
        let name = self.kind().to_lowercase();
        let mut out = format!(
            "\n{component} {name}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"
        );
        // Writing to memory does not fail.
        let _ = match self {
            Page::Flags(flags) => flags.iter().try_for_each(|(name, value)| writeln!(out, "{name}={value}")),
            Page::Status { version, started, now, .. } => {
                let up = seconds(*started, *now);
                writeln!(
                    out,
                    "\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\nEmulation version: {}\nPaths: {}",
                    started.strftime("%a %b %e %H:%M:%S UTC %Y"),
                    up / 3600,
                    up / 60 % 60,
                    up % 60,
                    version.trim_start_matches('v'),
                    minor(version),
                    self.paths().join(" "),
                )
            }
        };
        out
    }
}

fn seconds(started: Timestamp, now: Timestamp) -> i64 {
    (now.as_second() - started.as_second()).max(0)
}

/// `1.36` of `v1.36.0`.
fn minor(version: &str) -> String {
    version.trim_start_matches('v').split('.').take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(page: &Page<'_>, accept: &str) -> Result<(String, String), u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let shown = page.show("apiserver", &headers).map_err(|status| status.code)?;
        Ok((shown.content_type, String::from_utf8(shown.bytes).unwrap()))
    }

    #[test]
    fn status_in_its_forms() {
        let paths = ["/", "/apis/apps", "/readyz/ping", "/readyz", "/metrics", "/.well-known/x"].map(String::from);
        let started: Timestamp = "2026-11-03T02:57:50Z".parse().unwrap();
        let page = Page::Status { version: "v1.36.0", started, now: started + jiff::SignedDuration::from_secs(3_725), paths: &paths };
        for accept in ["", "*/*", "text/plain", "application/json, */*"] {
            let (kind, text) = shown(&page, accept).unwrap();
            assert_eq!(kind, "text/plain; charset=utf-8");
            assert!(text.starts_with("\napiserver statusz\nWarning: "), "{text}");
            let rest = "\nStarted: Tue Nov  3 02:57:50 UTC 2026\nUp: 1 hr 02 min 05 sec\nBinary version: 1.36.0\nEmulation version: 1.36\nPaths: /metrics /readyz\n";
            assert!(text.ends_with(rest), "{text}");
        }
        let (kind, json) = shown(&page, "application/json;as=Statusz;v=v1beta1;g=config.k8s.io").unwrap();
        assert_eq!(kind, "application/json;g=config.k8s.io;v=v1beta1;as=Statusz");
        let expected = json!({
            "kind": "Statusz", "apiVersion": "config.k8s.io/v1beta1", "metadata": {"name": "apiserver"}, "startTime": "2026-11-03T02:57:50Z",
            "uptimeSeconds": 3725, "goVersion": "", "binaryVersion": "1.36.0", "emulationVersion": "1.36", "paths": ["/metrics", "/readyz"],
        });
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), expected);
        for accept in ["application/json", "application/json;as=Flagz;v=v1beta1;g=config.k8s.io", "application/json;as=Statusz;v=v1;g=config.k8s.io", "application/cbor"] {
            assert_eq!(shown(&page, accept), Err(406), "{accept}");
        }
    }

    #[test]
    fn flags_in_an_older_version() {
        let flags = BTreeMap::from([("v".to_string(), "2".to_string())]);
        let page = Page::Flags(&flags);
        assert!(shown(&page, "").unwrap().1.ends_with("\nv=2\n"));
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, "application/yaml;as=Flagz;v=v1alpha1;g=config.k8s.io".parse().unwrap());
        let shown = page.show("apiserver", &headers).unwrap();
        assert_eq!(shown.warning.as_deref(), Some("299 - \"This version of the flagz endpoint is deprecated. Please use a newer version.\""));
        assert!(String::from_utf8(shown.bytes).unwrap().contains("flags:\n  v: \"2\"\n"));
    }
}
