//! Where log, exec, attach, port-forward and the proxies lead: a kubelet, a pod, or one of a
//! service's endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use api::status;
use apiserver::types::Status;
use apiserver::{ConnectRequest, Ctx, Location, Locator, Tls};
use async_trait::async_trait;
use serde_json::Value;

use crate::util::{ENDPOINT_SLICES, NODES, PODS, SERVICES, items, number, text};

/// Kinds of addresses of a node, the one to try first.
pub(crate) const ADDRESS_TYPES: [&str; 5] = ["InternalIP", "ExternalIP", "Hostname", "InternalDNS", "ExternalDNS"];
const KUBELET_PORT: u16 = 10250;

/// How kubelets are reached.
#[derive(Clone)]
pub(crate) struct Kubelets {
    /// Kinds of addresses, the best first.
    pub address_types: Arc<[String]>,
}

impl Kubelets {
    /// The kubelet of a node.
    fn of(&self, ctx: &Ctx, node: &str, path_and_query: String) -> Result<Location, Status> {
        let object = ctx.backend.reader.get(&NODES, "", node).ok_or_else(|| status::not_found("", "nodes", node))?;
        let known = || items(&object, "/status/addresses");
        let host = self.address_types.iter().find_map(|kind| known().find(|a| text(a, "/type") == *kind)).map(|a| text(a, "/address").to_owned());
        let host = host.ok_or_else(|| {
            let known: Vec<String> = known().map(|a| format!("{{{} {}}}", text(a, "/type"), text(a, "/address"))).collect();
            status::internal(format!("no preferred addresses found; known addresses: [{}]", known.join(" ")))
        })?;
        let port = number(&object, "/status/daemonEndpoints/kubeletEndpoint/Port").filter(|p| *p > 0).unwrap_or(KUBELET_PORT.into());
        Ok(Location { tls: Tls::Kubelet, host, port: port as u16, path_and_query, rewrite: false, alternatives: Vec::new() })
    }
}

fn pod(ctx: &Ctx, name: &str) -> Result<std::sync::Arc<Value>, Status> {
    ctx.backend.reader.get(&PODS, &ctx.namespace, name).ok_or_else(|| status::not_found("", "pods", name))
}

/// The container that is meant; the only one if none is named.
fn container(pod: &Value, wanted: &str) -> Result<String, Status> {
    let name = text(pod, "/metadata/name");
    let all = || {
        ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"]
            .iter()
            .flat_map(|list| items(pod, list))
            .map(|c| text(c, "/name"))
    };
    if !wanted.is_empty() {
        return match all().any(|c| c == wanted) {
            true => Ok(wanted.to_owned()),
            false => Err(status::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        };
    }
    let main: Vec<&str> = items(pod, "/spec/containers").map(|c| text(c, "/name")).collect();
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(status::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => {
            let names: Vec<&str> = all().collect();
            Err(status::bad_request(format!("a container name must be specified for pod {name}, choose one of: [{}]", names.join(" "))))
        }
    }
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The parameters a kubelet understands, of those the client gave.
fn query(request: &ConnectRequest, known: &[(&str, &str)]) -> String {
    let mut parts = Vec::new();
    for (key, value) in request.params() {
        if let Some((_, kubelet)) = known.iter().find(|(k, _)| *k == key) {
            let truth = matches!(key.as_str(), "stdin" | "stdout" | "stderr" | "tty" | "follow" | "previous" | "timestamps");
            match (truth, value.as_str()) {
                (true, "false" | "0" | "") => {}
                (true, _) if matches!(key.as_str(), "stdin" | "stdout" | "stderr" | "tty") => parts.push(format!("{kubelet}=1")),
                (true, _) => parts.push(format!("{kubelet}=true")),
                (false, value) => parts.push(format!("{kubelet}={}", encode(value))),
            }
        }
    }
    if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
}

/// `log`.
pub(crate) struct Log(pub Kubelets);

#[async_trait]
impl Locator for Log {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        let pod = pod(ctx, &ctx.name)?;
        let container = container(&pod, &request.param("container").unwrap_or_default())?;
        let node = text(&pod, "/spec/nodeName");
        if node.is_empty() {
            return Err(status::bad_request(format!("pod {} does not have a host assigned", ctx.name)));
        }
        let same = ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];
        let known: Vec<(&str, &str)> = same.iter().map(|k| (*k, *k)).collect();
        let path = format!("/containerLogs/{}/{}/{container}{}", ctx.namespace, ctx.name, query(request, &known));
        self.0.of(ctx, node, path)
    }
}

/// `exec`, `attach` and `portforward`.
pub(crate) struct Stream {
    pub kubelets: Kubelets,
    /// The kubelet's path: `exec`, `attach` or `portForward`.
    pub path: &'static str,
}

#[async_trait]
impl Locator for Stream {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        let pod = pod(ctx, &ctx.name)?;
        let ports = self.path == "portForward";
        let container = match ports {
            true => String::new(),
            false => format!("/{}", container(&pod, &request.param("container").unwrap_or_default())?),
        };
        let node = text(&pod, "/spec/nodeName");
        if node.is_empty() {
            return Err(status::bad_request(format!("pod {} does not have a host assigned", ctx.name)));
        }
        let known: &[(&str, &str)] = match self.path {
            "portForward" => &[("ports", "port"), ("port", "port")],
            "attach" => &[("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")],
            _ => &[("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty"), ("command", "command")],
        };
        self.kubelets.of(ctx, node, format!("/{}/{}/{}{container}{}", self.path, ctx.namespace, ctx.name, query(request, known)))
    }
}

/// Splits `scheme:name:port`; each of scheme and port may be missing.
fn split(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    let fine = matches!(scheme, "" | "http" | "https") && !name.is_empty() && !(scheme.is_empty() && parts.len() > 1 && port.is_empty());
    fine.then_some((scheme, name, port))
}

fn target(request: &ConnectRequest) -> String {
    let path = if request.path.is_empty() { "/" } else { &request.path };
    if request.query.is_empty() { path.to_owned() } else { format!("{path}?{}", request.query) }
}

fn through(scheme: &str, host: &str, port: u16, request: &ConnectRequest, alternatives: Vec<(String, u16)>) -> Result<Location, Status> {
    let allowed = host.parse::<IpAddr>().is_ok_and(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_multicast() && !v6.is_unspecified(),
    });
    if !allowed {
        return Err(status::bad_request("address not allowed"));
    }
    let tls = if scheme == "https" { Tls::Unverified } else { Tls::None };
    Ok(Location { tls, host: host.to_owned(), port, path_and_query: target(request), rewrite: true, alternatives })
}

/// `pods/NAME/proxy`.
pub(crate) struct PodProxy;

#[async_trait]
impl Locator for PodProxy {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        let bad = || status::bad_request(format!("invalid pod request {:?}", ctx.name));
        let (scheme, name, port) = split(&ctx.name).ok_or_else(bad)?;
        let pod = pod(ctx, name)?;
        let default = if scheme == "https" { 443 } else { 80 };
        let port = match port {
            "" => items(&pod, "/spec/containers")
                .find_map(|c| items(c, "/ports").next())
                .and_then(|p| number(p, "/containerPort"))
                .unwrap_or(default) as u16,
            port => port.parse().map_err(|_| bad())?,
        };
        through(scheme, text(&pod, "/status/podIP"), port, request, Vec::new())
    }
}

/// `nodes/NAME/proxy`: the kubelet itself, or another port of the node.
pub(crate) struct NodeProxy(pub Kubelets);

#[async_trait]
impl Locator for NodeProxy {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        let bad = || status::bad_request(format!("invalid node request {:?}", ctx.name));
        let (scheme, name, port) = split(&ctx.name).ok_or_else(bad)?;
        let mut location = self.0.of(ctx, name, target(request))?;
        location.rewrite = true;
        if !port.is_empty() {
            let port: u16 = port.parse().map_err(|_| bad())?;
            if port != location.port {
                return through(scheme, &location.host, port, request, Vec::new());
            }
        }
        Ok(location)
    }
}

/// `services/NAME/proxy`: a random ready endpoint.
pub(crate) struct ServiceProxy;

#[async_trait]
impl Locator for ServiceProxy {
    async fn locate(&self, ctx: &Ctx, request: &ConnectRequest) -> Result<Location, Status> {
        use rand::seq::SliceRandom;
        let (scheme, name, wanted) =
            split(&ctx.name).ok_or_else(|| status::bad_request(format!("invalid service request {:?}", ctx.name)))?;
        let reader = &ctx.backend.reader;
        let service =
            reader.get(&SERVICES, &ctx.namespace, name).ok_or_else(|| status::not_found("", "services", name))?;
        let none = || status::unavailable(format!("no endpoints available for service {name:?}"));
        // A port is named by name or number; slices know names only.
        let port_name = match (wanted, items(&service, "/spec/ports").collect::<Vec<_>>().as_slice()) {
            ("", [only]) => text(only, "/name").to_owned(),
            ("", _) => String::new(),
            (wanted, ports) => ports
                .iter()
                .find(|p| number(p, "/port").is_some_and(|n| wanted.parse() == Ok(n)))
                .map_or(wanted.to_owned(), |p| text(p, "/name").to_owned()),
        };
        let mut found: Vec<(String, u16)> = Vec::new();
        for slice in reader.list(&ENDPOINT_SLICES, Some(&ctx.namespace)) {
            if slice.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str) != Some(name) {
                continue;
            }
            let Some(port) = items(&slice, "/ports").find(|p| text(p, "/name") == port_name).and_then(|p| number(p, "/port")) else {
                continue;
            };
            for endpoint in items(&slice, "/endpoints") {
                if endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false))
                    && let Some(address) = items(endpoint, "/addresses").next().and_then(Value::as_str)
                {
                    found.push((address.to_owned(), port as u16));
                }
            }
        }
        found.shuffle(&mut rand::rng());
        let (host, port) = found.pop().ok_or_else(none)?;
        through(scheme, &host, port, request, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::UserInfo;
    use serde_json::json;

    fn connect(path: &str, query: &str) -> ConnectRequest {
        ConnectRequest { method: http::Method::GET, path: path.into(), query: query.into() }
    }

    #[test]
    fn names() {
        assert_eq!(split("web"), Some(("", "web", "")));
        assert_eq!(split("web:http"), Some(("", "web", "http")));
        assert_eq!(split("https:web:"), Some(("https", "web", "")));
        assert_eq!(split("ftp:web:1"), None);
        assert_eq!(split("web:"), None);
    }

    #[test]
    fn kubelet_locations() {
        let objects = Objects::new();
        objects.put(&NODES, json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}}}}));
        objects.put(&PODS, json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n", "containers": [{"name": "c"}, {"name": "d"}]}}));
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let kubelets = || Kubelets { address_types: ADDRESS_TYPES.map(String::from).into() };
        let by_name = Kubelets { address_types: [String::from("Hostname")].into() };
        assert_eq!(by_name.of(&ctx, "n", "/".into()).unwrap().host, "n");
        let nowhere = Kubelets { address_types: [String::from("ExternalIP")].into() };
        assert!(nowhere.of(&ctx, "n", "/".into()).unwrap_err().message.contains("no preferred addresses found; known addresses: [{Hostname n} {InternalIP 192.0.2.7}]"));
        let log = |query: &str| block_on(Log(kubelets()).locate(&ctx, &connect("", query)));
        let location = log("container=c&follow=true&tailLines=5").unwrap();
        assert_eq!((location.host.as_str(), location.port), ("192.0.2.7", 10251));
        assert_eq!(location.path_and_query, "/containerLogs/a/p/c?follow=true&tailLines=5");
        assert_eq!(log("").unwrap_err().message, "a container name must be specified for pod p, choose one of: [c d]");
        assert_eq!(log("container=x").unwrap_err().message, "container x is not valid for pod p");
        let exec = block_on(Stream { kubelets: kubelets(), path: "exec" }.locate(&ctx, &connect("", "command=ls&command=-l%20a&container=c&stdin=true&stdout=1&tty=false"))).unwrap();
        assert_eq!(exec.path_and_query, "/exec/a/p/c?command=ls&command=-l%20a&input=1&output=1");
    }

    #[test]
    fn service_proxy_finds_a_ready_endpoint() {
        let objects = Objects::new();
        objects.put(&SERVICES, json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"ports": [{"name": "http", "port": 80}, {"name": "b", "port": 81}]}}));
        let ctx = objects.ctx(&SERVICES, "a", "web:80", UserInfo::default());
        let locate = || block_on(ServiceProxy.locate(&ctx, &connect("/x", "q=1")));
        assert_eq!(locate().unwrap_err().message, "no endpoints available for service \"web\"");
        objects.put(&ENDPOINT_SLICES, json!({"metadata": {"name": "web-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.0.5"], "conditions": {"ready": true}}, {"addresses": ["10.244.0.6"], "conditions": {"ready": false}}]}));
        let location = locate().unwrap();
        assert_eq!((location.host.as_str(), location.port, location.path_and_query.as_str()), ("10.244.0.5", 8080, "/x?q=1"));
    }
}
