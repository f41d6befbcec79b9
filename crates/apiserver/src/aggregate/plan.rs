//! What an APIService says, whether the service behind it can be reached, and what discovery shows of it: pure.
use api::discovery::{Entry, SubEntry};
use base64::Engine;
use serde_json::Value;

/// An APIService that leads to another server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// PEM; empty for what the machine trusts.
    pub ca_bundle: Vec<u8>,
    pub insecure: bool,
    /// Of the group among groups, and of the version among those of its group; the larger one comes first.
    pub priority: (i64, i64),
}

/// Why a server is not available, or that it is: reason and message of the condition `Available`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    pub ok: bool,
    pub reason: &'static str,
    pub message: String,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

impl Target {
    /// Reads an APIService; nothing when the group is served here.
    pub fn of(object: &Value) -> Option<Target> {
        let service = object.pointer("/spec/service").filter(|s| s.is_object())?;
        let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
        Some(Target {
            name: text(object, "/metadata/name").into(),
            group: text(object, "/spec/group").into(),
            version: text(object, "/spec/version").into(),
            namespace: text(service, "/namespace").into(),
            service: text(service, "/name").into(),
            port: service.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            ca_bundle: base64::engine::general_purpose::STANDARD.decode(text(object, "/spec/caBundle")).unwrap_or_default(),
            insecure: object.pointer("/spec/insecureSkipTLSVerify") == Some(&Value::Bool(true)),
            priority: (number("/spec/groupPriorityMinimum"), number("/spec/versionPriority")),
        })
    }

    /// The path under which the server has to answer.
    pub fn path(&self) -> String {
        if self.group.is_empty() { format!("/api/{}", self.version) } else { format!("/apis/{}/{}", self.group, self.version) }
    }

    /// Whether a request's path belongs to it.
    pub fn covers(&self, path: &str) -> bool {
        path.strip_prefix(self.path().as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// What can be said without asking the server: its service is there, and has endpoints.
    pub fn reachable(&self, service: Option<&Value>, slices: &[&Value]) -> Result<(), Availability> {
        let (name, namespace, port) = (&self.service, &self.namespace, self.port);
        let no = |reason, message| Err(Availability { ok: false, reason, message });
        let Some(service) = service else {
            return no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
        };
        if text(service, "/spec/type") != "ClusterIP" {
            return Ok(());
        }
        let found = items(service, "/spec/ports").find(|p| p.get("port").and_then(Value::as_u64) == Some(u64::from(port)));
        let Some(found) = found else {
            return no("ServicePortError", format!("service/{name} in {namespace:?} is not listening on port {port}"));
        };
        if slices.is_empty() {
            return no("EndpointsNotFound", format!("cannot find endpointslices for service/{name} in {namespace:?}"));
        }
        let port_name = text(found, "/name");
        let ready = |endpoint: &Value| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)) && items(endpoint, "/addresses").next().is_some();
        let has = |slice: &&&Value| items(slice, "/ports").any(|p| text(p, "/name") == port_name) && items(slice, "/endpoints").any(ready);
        if !slices.iter().any(|s| has(&s)) {
            return no("MissingEndpoints", format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"));
        }
        Ok(())
    }
}

/// The condition of an APIService without a service.
pub fn local() -> Availability {
    Availability { ok: true, reason: "Local", message: "Local APIServices are always available".into() }
}

/// The condition of one that passed.
pub fn passed() -> Availability {
    Availability { ok: true, reason: "Passed", message: "all checks passed".into() }
}

/// The condition of one whose server did not answer as it should.
pub fn failed(message: String) -> Availability {
    Availability { ok: false, reason: "FailedDiscoveryCheck", message }
}

impl Availability {
    /// Whether an APIService says so already.
    pub fn is_told(&self, object: &Value) -> bool {
        let (status, reason, message) = self.parts();
        items(object, "/status/conditions")
            .any(|c| text(c, "/type") == "Available" && (text(c, "/status"), text(c, "/reason"), text(c, "/message")) == (status, reason, message))
    }

    fn parts(&self) -> (&'static str, &'static str, &str) {
        (if self.ok { "True" } else { "False" }, self.reason, &self.message)
    }

    /// Writes the condition; its time changes with its status alone.
    pub fn tell(&self, object: &mut Value, now: &str) {
        let (status, reason, message) = self.parts();
        let conditions = &mut object["status"]["conditions"];
        if !conditions.is_array() {
            *conditions = Value::Array(Vec::new());
        }
        let Some(list) = conditions.as_array_mut() else { return };
        let before = list.iter().position(|c| text(c, "/type") == "Available").map(|i| list.remove(i));
        let since = before.filter(|c| text(c, "/status") == status).map(|c| text(&c, "/lastTransitionTime").to_string());
        let since = since.filter(|s| !s.is_empty()).unwrap_or_else(|| now.to_string());
        list.push(serde_json::json!({"type": "Available", "status": status, "reason": reason, "message": message, "lastTransitionTime": since}));
    }
}

/// The resources of an APIResourceList, subresources with their own.
pub fn resources(list: &Value) -> Vec<Entry> {
    let words = |r: &Value, key: &str| r.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(String::from).collect();
    let mut all: Vec<Entry> = Vec::new();
    for r in items(list, "/resources") {
        let name = text(r, "/name");
        let Some((parent, sub)) = name.split_once('/') else {
            all.push(Entry {
                plural: name.into(),
                singular: text(r, "/singularName").into(),
                kind: text(r, "/kind").into(),
                namespaced: r.get("namespaced") == Some(&Value::Bool(true)),
                verbs: words(r, "verbs"),
                short_names: words(r, "shortNames"),
                categories: words(r, "categories"),
                storage_version_hash: Some(text(r, "/storageVersionHash").to_string()).filter(|h| !h.is_empty()),
                subresources: Vec::new(),
            });
            continue;
        };
        if let Some(parent) = all.iter_mut().find(|e| e.plural == parent) {
            let foreign = (text(r, "/group"), text(r, "/version"));
            parent.subresources.push(SubEntry {
                name: sub.into(),
                kind: text(r, "/kind").into(),
                group_version: (!foreign.1.is_empty()).then(|| (foreign.0.to_string(), foreign.1.to_string())),
                verbs: words(r, "verbs"),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target() -> Target {
        let object = json!({"metadata": {"name": "v1.x.io"}, "spec": {"group": "x.io", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 10,
            "service": {"namespace": "ns", "name": "api", "port": 8443}}});
        Target::of(&object).expect("a service")
    }

    #[test]
    fn paths() {
        let t = target();
        for (path, ours) in [("/apis/x.io/v1", true), ("/apis/x.io/v1/things", true), ("/apis/x.io/v1beta1", false), ("/apis/x.io", false)] {
            assert_eq!(t.covers(path), ours, "{path}");
        }
        assert_eq!(Target::of(&json!({"spec": {"group": "apps", "version": "v1"}})), None);
    }

    #[test]
    fn what_is_missing_is_said() {
        let t = target();
        let service = |port: u16| json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": port}]}});
        let slice = |ready: bool| json!({"ports": [{"name": "https", "port": 443}], "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]});
        let why = |service: Option<&Value>, slices: &[&Value]| t.reachable(service, slices).expect_err("it is not").message;
        assert_eq!(why(None, &[]), "service/api in \"ns\" is not present");
        assert_eq!(why(Some(&service(443)), &[]), "service/api in \"ns\" is not listening on port 8443");
        assert_eq!(why(Some(&service(8443)), &[]), "cannot find endpointslices for service/api in \"ns\"");
        let missing = "endpointslices for service/api in \"ns\" have no addresses with port name \"https\"";
        assert_eq!(why(Some(&service(8443)), &[&slice(false)]), missing);
        assert_eq!(t.reachable(Some(&service(8443)), &[&slice(true)]), Ok(()));
        assert_eq!(t.reachable(Some(&json!({"spec": {"type": "ExternalName"}})), &[]), Ok(()));
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let mut object = json!({});
        failed("no".into()).tell(&mut object, "t1");
        failed("still no".into()).tell(&mut object, "t2");
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "t1");
        assert!(failed("still no".into()).is_told(&object) && !failed("no".into()).is_told(&object));
        passed().tell(&mut object, "t3");
        assert_eq!((&object["status"]["conditions"][0]["lastTransitionTime"], object["status"]["conditions"].as_array().map(Vec::len)), (&json!("t3"), Some(1)));
    }

    #[test]
    fn resources_of_a_list() {
        let list = json!({"resources": [{"name": "things", "singularName": "thing", "kind": "Thing", "namespaced": true, "verbs": ["get"], "shortNames": ["th"]},
            {"name": "things/scale", "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]}]});
        let all = resources(&list);
        assert_eq!((all.len(), all[0].plural.as_str(), all[0].namespaced), (1, "things", true));
        assert_eq!(all[0].subresources[0].group_version, Some(("autoscaling".to_string(), "v1".to_string())));
    }
}
