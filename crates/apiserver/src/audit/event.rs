//! An event of the audit log, and its two forms: JSON (audit.k8s.io/v1) and a line of text.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::field::go_quote;
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use super::policy::{Level, Stage};
use crate::ctx::UserInfo;

/// Longer names of clients are cut.
const LONGEST_AGENT: usize = 1024;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectRef {
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub api_group: String,
    pub api_version: String,
    pub resource_version: String,
    pub subresource: String,
}

/// One event: a request at a stage. Objects are JSON.
#[derive(Clone, Debug)]
pub struct Event {
    pub level: Level,
    pub id: String,
    pub stage: Stage,
    pub uri: String,
    pub verb: String,
    /// Nobody, where nobody was found out.
    pub user: Option<UserInfo>,
    pub impersonated: Option<UserInfo>,
    /// The verb of constrained impersonation by which that was allowed.
    pub constraint: Option<String>,
    pub source_ips: Vec<IpAddr>,
    pub user_agent: String,
    pub object: Option<ObjectRef>,
    /// The Status, at least its code.
    pub status: Option<Value>,
    pub request_object: Option<Bytes>,
    pub response_object: Option<Bytes>,
    pub received: jiff::Timestamp,
    pub at: jiff::Timestamp,
    pub annotations: BTreeMap<String, String>,
}

/// `metav1.MicroTime`.
fn micro(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn user(user: &UserInfo) -> Value {
    let mut info = serde_json::Map::new();
    for (key, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            info.insert(key.into(), text.as_str().into());
        }
    }
    if !user.groups.is_empty() {
        info.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".into(), json!(user.extra));
    }
    Value::Object(info)
}

impl Event {
    /// The fields of the JSON object from `level` on, with the closing brace: what comes before depends on where it goes.
    fn fields(&self) -> Vec<u8> {
        let bodies = [&self.request_object, &self.response_object].iter().map(|o| o.as_ref().map_or(0, Bytes::len)).sum::<usize>();
        let mut out = Vec::with_capacity(bodies + 1024);
        let mut put = |key: &str, value: &Value| {
            if !out.is_empty() {
                out.push(b',');
            }
            // Writing to memory does not fail.
            let _ = serde_json::to_writer(&mut out, key);
            out.push(b':');
            let _ = serde_json::to_writer(&mut out, value);
        };
        put("level", &self.level.as_str().into());
        put("auditID", &self.id.as_str().into());
        put("stage", &self.stage.as_str().into());
        put("requestURI", &self.uri.as_str().into());
        put("verb", &self.verb.as_str().into());
        put("user", &self.user.as_ref().map_or(json!({}), user));
        if let Some(impersonated) = &self.impersonated {
            put("impersonatedUser", &user(impersonated));
        }
        if let Some(constraint) = &self.constraint {
            put("authenticationMetadata", &json!({"impersonationConstraint": constraint}));
        }
        if !self.source_ips.is_empty() {
            put("sourceIPs", &self.source_ips.iter().map(|ip| Value::from(ip.to_string())).collect());
        }
        if !self.user_agent.is_empty() {
            put("userAgent", &self.user_agent.as_str().into());
        }
        if let Some(o) = &self.object {
            let fields = [
                ("resource", &o.resource),
                ("namespace", &o.namespace),
                ("name", &o.name),
                ("uid", &o.uid),
                ("apiGroup", &o.api_group),
                ("apiVersion", &o.api_version),
                ("resourceVersion", &o.resource_version),
                ("subresource", &o.subresource),
            ];
            let there = fields.into_iter().filter(|(_, text)| !text.is_empty());
            put("objectRef", &there.map(|(key, text)| (key.to_string(), Value::from(text.as_str()))).collect());
        }
        if let Some(status) = &self.status {
            put("responseStatus", status);
        }
        for (key, object) in [("requestObject", &self.request_object), ("responseObject", &self.response_object)] {
            if let Some(object) = object {
                out.extend_from_slice(format!(",\"{key}\":").as_bytes());
                out.extend_from_slice(object);
            }
        }
        let times = format!(",\"requestReceivedTimestamp\":\"{}\",\"stageTimestamp\":\"{}\"", micro(self.received), micro(self.at));
        out.extend_from_slice(times.as_bytes());
        if !self.annotations.is_empty() {
            out.extend_from_slice(b",\"annotations\":");
            let _ = serde_json::to_writer(&mut out, &json!(self.annotations));
        }
        out.push(b'}');
        out
    }

    /// One JSON object, without an end of line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = b"{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",".to_vec();
        out.extend_from_slice(&self.fields());
        out
    }

    /// Several as an EventList.
    pub fn list(events: &[Arc<Event>]) -> Vec<u8> {
        let mut out = b"{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\"items\":[".to_vec();
        for (i, event) in events.iter().enumerate() {
            out.extend_from_slice(if i > 0 { b",{" } else { b"{" });
            out.extend_from_slice(&event.fields());
        }
        out.extend_from_slice(b"]}\n");
        out
    }

    /// The most of it as a line of text, without an end of line.
    pub fn to_text(&self) -> String {
        let list = |groups: &[String]| groups.iter().map(|g| go_quote(g)).collect::<Vec<_>>().join(",");
        let or = |text: &str, none: &str| if text.is_empty() { none.to_string() } else { text.to_string() };
        let (name, groups) = match self.user.as_ref().filter(|u| !u.name.is_empty()) {
            Some(user) => (user.name.clone(), or(&list(&user.groups), "<none>")),
            None => ("<none>".into(), "<none>".into()),
        };
        let (other, other_groups) = match &self.impersonated {
            Some(user) => (user.name.clone(), or(&list(&user.groups), "<lookup>")),
            None => ("<self>".into(), "<lookup>".into()),
        };
        let code = self.status.as_ref().and_then(|s| s.get("code")).map_or("<deferred>".to_string(), Value::to_string);
        let ip = self.source_ips.first().map_or("<unknown>".to_string(), IpAddr::to_string);
        let namespace = or(self.object.as_ref().map_or("", |o| &o.namespace), "<none>");
        let q = go_quote;
        format!(
            "{} AUDIT: id={} stage={} ip={} method={} user={} groups={} as={} asgroups={} user-agent={} namespace={} uri={} response=\"{code}\"",
            self.received,
            q(&self.id),
            q(self.stage.as_str()),
            q(&ip),
            q(&self.verb),
            q(&name),
            q(&groups),
            q(&other),
            q(&other_groups),
            q(&self.user_agent),
            q(&namespace),
            q(&self.uri)
        )
    }

    /// The event without its objects, where it is larger than `most` bytes with them. `None`: it still is.
    pub fn truncated(self: &Arc<Event>, most: usize) -> Option<Arc<Event>> {
        if self.to_json().len() < most {
            return Some(self.clone());
        }
        if self.level < Level::Request {
            return None;
        }
        let mut small = Event { request_object: None, response_object: None, ..Event::clone(self) };
        small.annotations.insert("audit.k8s.io/truncated".into(), "true".into());
        (small.to_json().len() < most).then(|| Arc::new(small))
    }
}

/// Where a request comes from: what proxies say, first, then who is at the other end.
pub(super) fn source_ips(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<IpAddr> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut all: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(|part| part.trim().parse().ok()).collect();
    if let Ok(real) = text("x-real-ip").parse::<IpAddr>()
        && !all.contains(&real)
    {
        all.push(real);
    }
    if let Some(peer) = peer.map(|p| p.to_canonical())
        && all.last() != Some(&peer)
    {
        all.push(peer);
    }
    all
}

/// The client's name for itself.
pub(super) fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(http::header::USER_AGENT).map(|v| String::from_utf8_lossy(v.as_bytes())).unwrap_or_default();
    if agent.len() <= LONGEST_AGENT {
        return agent.into_owned();
    }
    let end = (0..=LONGEST_AGENT).rev().find(|at| agent.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...TRUNCATED", &agent[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn event(id: &str) -> Event {
        let at = |text: &str| text.parse().expect("a time");
        Event {
            level: Level::RequestResponse,
            id: id.into(),
            stage: Stage::ResponseComplete,
            uri: "/api/v1/namespaces/a/pods?x=<1>".into(),
            verb: "create".into(),
            user: Some(UserInfo::new("bob", &["g", "h"])),
            impersonated: None,
            constraint: None,
            source_ips: vec!["192.0.2.1".parse().expect("an address")],
            user_agent: "kubectl/v1".into(),
            object: Some(ObjectRef { resource: "pods".into(), namespace: "a".into(), api_version: "v1".into(), ..ObjectRef::default() }),
            status: Some(json!({"metadata": {}, "code": 201})),
            request_object: Some(Bytes::from_static(b"{\"kind\":\"Pod\"}")),
            response_object: None,
            received: at("2026-01-02T03:04:05.000006Z"),
            at: at("2026-01-02T03:04:05.123456789Z"),
            annotations: BTreeMap::from([("a/b".to_string(), "c".to_string())]),
        }
    }

    const TAIL: &str = r#""level":"RequestResponse","auditID":"1","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/a/pods?x=<1>","verb":"create","user":{"groups":["g","h"],"username":"bob"},"sourceIPs":["192.0.2.1"],"userAgent":"kubectl/v1","objectRef":{"apiVersion":"v1","namespace":"a","resource":"pods"},"responseStatus":{"code":201,"metadata":{}},"requestObject":{"kind":"Pod"},"requestReceivedTimestamp":"2026-01-02T03:04:05.000006Z","stageTimestamp":"2026-01-02T03:04:05.123456Z","annotations":{"a/b":"c"}}"#;

    #[test]
    fn forms() {
        let one = Arc::new(event("1"));
        let expected: Value = serde_json::from_str(&format!("{{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",{TAIL}")).expect("JSON");
        assert_eq!(serde_json::from_slice::<Value>(&one.to_json()).expect("JSON"), expected);
        let list: Value = serde_json::from_slice(&Event::list(&[one.clone(), one.clone()])).expect("JSON");
        let item: Value = serde_json::from_str(&format!("{{{TAIL}")).expect("JSON");
        assert_eq!(list, json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": [item, item]}));
        assert_eq!(
            one.to_text(),
            "2026-01-02T03:04:05.000006Z AUDIT: id=\"1\" stage=\"ResponseComplete\" ip=\"192.0.2.1\" method=\"create\" user=\"bob\" groups=\"\\\"g\\\",\\\"h\\\"\" as=\"<self>\" asgroups=\"<lookup>\" user-agent=\"kubectl/v1\" namespace=\"a\" uri=\"/api/v1/namespaces/a/pods?x=<1>\" response=\"201\""
        );
    }

    #[test]
    fn large_ones_lose_their_objects_or_are_too_large() {
        let mut large = event("1");
        large.response_object = Some(format!("\"{}\"", "x".repeat(2000)).into());
        let large = Arc::new(large);
        assert!(large.truncated(4000).expect("small enough").response_object.is_some());
        let small = large.truncated(1000).expect("small enough without");
        assert!(small.request_object.is_none() && small.response_object.is_none());
        assert_eq!(small.annotations["audit.k8s.io/truncated"], "true");
        assert!(large.truncated(300).is_none());
        let metadata = Arc::new(Event { level: Level::Metadata, ..Event::clone(&large) });
        assert!(metadata.truncated(1000).is_none(), "nothing to leave out");
    }

    #[test]
    fn where_from() {
        let ips = |headers: &[(&'static str, &str)], peer: Option<&str>| {
            let headers = headers.iter().map(|(k, v)| (http::HeaderName::from_static(k), v.parse().expect("a value"))).collect();
            source_ips(&headers, peer.map(|p| p.parse().expect("an address"))).iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ips(&[], Some("192.0.2.1")), "192.0.2.1");
        assert_eq!(ips(&[("x-forwarded-for", "10.0.0.1, no, 10.0.0.2"), ("x-real-ip", "10.0.0.3")], Some("192.0.2.1")), "10.0.0.1 10.0.0.2 10.0.0.3 192.0.2.1");
        assert_eq!(ips(&[("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "10.0.0.1")], Some("10.0.0.1")), "10.0.0.1", "nobody twice");
        assert_eq!(ips(&[("x-real-ip", "::1")], Some("::ffff:192.0.2.1")), "::1 192.0.2.1");
        assert_eq!(ips(&[], None), "");
    }

    #[test]
    fn long_names_of_clients_are_cut() {
        let headers = [(http::header::USER_AGENT, "x".repeat(1030).parse().expect("a value"))].into_iter().collect();
        assert_eq!(user_agent(&headers), format!("{}...TRUNCATED", "x".repeat(1024)));
    }
}
