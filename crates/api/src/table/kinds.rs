//! The rows of the kinds that take more than reading fields.

use super::duration::Clock;
use super::rows::{Printer, clip, list, text};
use crate::quantity::Quantity;
use jiff::Timestamp;
use serde_json::Value;

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub fn job(p: &Printer<'_>) -> Vec<Value> {
    let succeeded = p.number("/status/succeeded");
    let completions = match (crate::at(p.obj, "/spec/completions").and_then(Value::as_i64), p.number("/spec/parallelism")) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, n) if n > 1 => format!("{succeeded}/1 of {n}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |at: &str| p.text(at).parse::<Timestamp>().ok();
    let took = time("/status/startTime").map_or_else(String::new, |start| {
        time("/status/completionTime").map_or(p.clock, Clock::At).ago(start)
    });
    let status = if p.is("Complete") {
        "Complete"
    } else if p.is("Failed") {
        "Failed"
    } else if p.deleted() {
        "Terminating"
    } else if p.is("Suspended") {
        "Suspended"
    } else if p.is("FailureTarget") {
        "FailureTarget"
    } else if p.is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let [names, images] = p.containers("/spec/template/spec/containers");
    vec![
        p.name(),
        status.into(),
        completions.into(),
        took.into(),
        p.age(),
        names,
        images,
        p.selector("/spec/selector"),
    ]
}

/// What a node or all containers of a pod together use.
pub fn metrics(p: &Printer<'_>) -> Vec<Value> {
    let sum = |name: &str| {
        let of = |v: &Value| v.pointer(&format!("/usage/{name}")).and_then(|q| Quantity::from_value(q).ok());
        let mut all = p.list("/containers").iter().filter_map(of).chain(of(p.obj));
        let first = all.next().unwrap_or_else(Quantity::zero);
        let sum = all.fold(first, |mut sum, q| {
            sum.add(&q);
            sum
        });
        Value::from(sum.canonical())
    };
    vec![p.name(), sum("cpu"), sum("memory"), p.text("/window").into()]
}

/// Addresses of a load balancer, sorted.
pub fn load_balancer(p: &Printer<'_>) -> String {
    let mut all: Vec<&str> = p
        .list("/status/loadBalancer/ingress")
        .iter()
        .map(|i| match text(i, "/ip") {
            "" => text(i, "/hostname"),
            ip => ip,
        })
        .filter(|s| !s.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

pub fn service(p: &Printer<'_>) -> Vec<Value> {
    let kind = p.text("/spec/type");
    let given: Vec<&str> = p.list("/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    let given = given.join(",");
    let external = match (kind, given.as_str()) {
        ("ExternalName", _) => p.text("/spec/externalName").to_owned(),
        ("ClusterIP" | "NodePort", "") => "<none>".to_owned(),
        ("ClusterIP" | "NodePort", _) => given,
        ("LoadBalancer", _) => match (load_balancer(p), given) {
            (lb, g) if lb.is_empty() && g.is_empty() => "<pending>".to_owned(),
            (lb, g) if lb.is_empty() => g,
            (lb, g) if g.is_empty() => lb,
            (lb, g) => format!("{lb},{g}"),
        },
        _ => "<unknown>".to_owned(),
    };
    let ports = p.list("/spec/ports").iter().map(|port| {
        let n = |k: &str| port.get(k).and_then(Value::as_i64).unwrap_or(0);
        let node = if n("nodePort") > 0 { format!(":{}", n("nodePort")) } else { String::new() };
        format!("{}{node}/{}", n("port"), text(port, "/protocol"))
    });
    let ports = match ports.collect::<Vec<_>>().join(",") {
        s if s.is_empty() => "<none>".to_owned(),
        s => s,
    };
    let address = if p.list("/spec/clusterIPs").is_empty() { "<none>".into() } else { Value::from(p.text("/spec/clusterIPs/0")) };
    vec![p.name(), kind.into(), address, external.into(), ports.into(), p.age(), p.label_map("/spec/selector")]
}

pub fn endpoints(p: &Printer<'_>) -> String {
    let subsets = p.list("/subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for s in subsets {
        let addresses = || list(s, "/addresses").iter().map(|a| text(a, "/ip"));
        let ports = list(s, "/ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = port.get("port").and_then(Value::as_i64).unwrap_or(0);
            all.extend(addresses().map(|ip| host_port(ip, port)));
        }
    }
    clip(&all, "")
}

pub fn node(p: &Printer<'_>) -> Vec<Value> {
    let mut status = match p.condition("Ready") {
        Some(c) if text(c, "/status") == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if p.flag("/spec/unschedulable", false) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = crate::at(p.obj, "/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if k == "kubernetes.io/role" => v.as_str(),
            None => None,
        })
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        let a = p.list("/status/addresses").iter().find(|a| text(a, "/type") == kind);
        Value::from(a.map_or("<none>", |a| text(a, "/address")))
    };
    let info = |k: &str| match p.text(&format!("/status/nodeInfo/{k}")) {
        "" => "<unknown>".to_owned(),
        s => s.to_owned(),
    };
    let mut kernel = info("kernelVersion");
    let architecture = p.text("/status/nodeInfo/architecture");
    if !architecture.is_empty() {
        kernel.push_str(&format!(" ({architecture})"));
    }
    vec![
        p.name(),
        status.into(),
        roles.into(),
        p.age(),
        p.text("/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage").into(),
        kernel.into(),
        info("containerRuntimeVersion").into(),
    ]
}

/// Events of both groups: the newer form has the same facts under other names.
pub fn event(p: &Printer<'_>) -> Vec<Value> {
    let first_of = |keys: &[&str]| keys.iter().map(|k| p.text(k)).find(|s| !s.is_empty()).unwrap_or_default();
    let when = |keys: &[&str]| Value::from(p.clock.since(Some(first_of(keys)).filter(|s| !s.is_empty())));
    let first = when(&["/firstTimestamp", "/deprecatedFirstTimestamp", "/eventTime"]);
    let last = if p.has("/series") {
        p.since("/series/lastObservedTime")
    } else {
        match first_of(&["/lastTimestamp", "/deprecatedLastTimestamp"]) {
            "" => first.clone(),
            t => p.clock.since(Some(t)).into(),
        }
    };
    let count = if p.has("/series") {
        p.number("/series/count")
    } else {
        match p.number("/count") + p.number("/deprecatedCount") {
            0 => 1,
            n => n,
        }
    };
    let object = if p.has("/regarding") { "/regarding" } else { "/involvedObject" };
    let about = |k: &str| p.text(&format!("{object}/{k}"));
    let target = match about("name") {
        "" => about("kind").to_lowercase(),
        name => format!("{}/{name}", about("kind").to_lowercase()),
    };
    let component = first_of(&["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]);
    let instance = first_of(&["/source/host", "/deprecatedSource/host", "/reportingInstance"]);
    let source = if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
    vec![
        last,
        p.text("/type").into(),
        p.text("/reason").into(),
        target.into(),
        about("fieldPath").into(),
        source.into(),
        first_of(&["/message", "/note"]).trim().into(),
        first,
        count.into(),
        p.name(),
    ]
}

pub fn hpa_metrics(p: &Printer<'_>) -> String {
    let specs = p.list("/spec/metrics");
    // autoscaling/v1 knows the processor only
    if specs.is_empty() && p.has("/spec/targetCPUUtilizationPercentage") {
        let current = crate::at(p.obj, "/status/currentCPUUtilizationPercentage").and_then(Value::as_i64);
        let current = current.map_or_else(|| "<unknown>".to_owned(), |c| format!("{c}%"));
        return format!("cpu: {current}/{}%", p.number("/spec/targetCPUUtilizationPercentage"));
    }
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<String> = specs.iter().enumerate().map(|(i, s)| hpa_metric(s, p.list("/status/currentMetrics").get(i))).collect();
    let text = shown[..shown.len().min(2)].join(", ");
    if shown.len() > 2 { format!("{text} + {} more...", shown.len() - 2) } else { text }
}

fn hpa_metric(spec: &Value, status: Option<&Value>) -> String {
    let key = match text(spec, "/type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let target = |k: &str| spec.pointer(&format!("/{key}/target/{k}")).filter(|v| !v.is_null());
    let current = |k: &str| status.and_then(|s| s.pointer(&format!("/{key}/current/{k}"))).filter(|v| !v.is_null());
    let quantity = |v: Option<&Value>, none: &str| {
        v.and_then(|v| Quantity::from_value(v).ok()).map_or_else(|| none.to_owned(), |q| q.canonical())
    };
    let percent = |v: Option<&Value>, none: &str| v.map_or_else(|| none.to_owned(), |v| format!("{v}%"));
    let average = target("averageValue");
    match key {
        "resource" | "containerResource" => {
            let name = text(spec, &format!("/{key}/name"));
            match average {
                Some(t) => format!("{name}: {}/{}", quantity(current("averageValue"), "<unknown>"), quantity(Some(t), "0")),
                None => format!(
                    "{name}: {}/{}",
                    percent(current("averageUtilization"), "<unknown>"),
                    percent(target("averageUtilization"), "<auto>")
                ),
            }
        }
        "pods" => format!("{}/{}", quantity(current("averageValue"), "<unknown>"), quantity(average, "0")),
        _ => match average {
            Some(t) => format!("{}/{} (avg)", quantity(current("averageValue"), "<unknown>"), quantity(Some(t), "0")),
            None => format!("{}/{}", quantity(current("value"), "<unknown>"), quantity(target("value"), "0")),
        },
    }
}
