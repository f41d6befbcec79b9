//! Services, endpoints and what leads to them from outside.

use super::at::{At, same};
use super::container::{PROTOCOLS, port};
use super::{meta, net};
use crate::field::FieldError;
use crate::names;
use crate::seen::Seen;
use serde_json::Value;

fn headless(spec: &At<'_>) -> bool {
    let ips = spec.at("clusterIPs");
    ips.len() == 1 && ips.items().all(|i| i.text() == "None")
}

/// A service; `old` is there for an update.
pub fn service(svc: &At<'_>, old: Option<&At<'_>>) {
    let spec = svc.at("spec");
    if let Some(o) = old {
        addresses_update(&spec, &o.at("spec"));
        balancer_class(&spec, Some(&o.at("spec")));
    }
    let kind = spec.at("type");
    let ports = spec.at("ports");
    let external_name = kind.text() == "ExternalName";
    if ports.is_empty() && !headless(&spec) && !external_name {
        ports.required("");
    }
    match kind.text() {
        "LoadBalancer" | "NodePort" if headless(&spec) => {
            for i in spec.at("clusterIPs").items() {
                i.invalid(format!("may not be set to 'None' for {} services", kind.text()));
            }
        }
        "ExternalName" => {
            for k in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let a = spec.at(k);
                if a.set() && (!a.v.is_array() || !a.is_empty()) {
                    a.forbidden("may not be set for ExternalName services");
                }
            }
            let name = spec.at("externalName");
            match name.text().trim_end_matches('.') {
                "" => name.required(""),
                n => {
                    for m in names::dns1123_subdomain(n) {
                        name.invalid_as(n, m);
                    }
                }
            }
        }
        _ => {}
    }
    let mut seen = Seen::default();
    for p in ports.items() {
        let name = p.at("name");
        match name.filled() {
            None if ports.len() > 1 => name.required(""),
            None => {}
            Some(n) => {
                name.check(names::dns1123_label);
                if !seen.add(n) {
                    name.duplicate();
                }
            }
        }
        for m in names::port_number(p.at("port").int_or(0)) {
            p.at("port").invalid_as(p.at("port").int_or(0), m);
        }
        p.at("protocol").one_of(PROTOCOLS);
        port(&p.at("targetPort"));
        if p.at("appProtocol").set() {
            p.at("appProtocol").check(names::qualified_name);
        }
    }
    meta::labels(&spec.at("selector"));
    session_affinity(&spec);
    if !external_name {
        addresses(&spec, old.map(|o| o.at("spec")).as_ref());
    }
    let was = old.map(|o| o.down(&["spec", "externalIPs"]));
    let was: Seen<&str> = was.iter().flat_map(|b| b.items()).map(|i| i.text()).collect();
    for e in spec.at("externalIPs").items() {
        if let Some(ip) = net::new_ip(&e, &was) {
            net::endpoint_ip(&e, ip);
        }
    }
    kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let (mut node_ports, mut own_ports) = (Seen::default(), Seen::default());
    for p in ports.items() {
        let node = p.at("nodePort");
        let number = node.int_or(0);
        if number != 0 {
            if kind.text() == "ClusterIP" {
                node.forbidden("may not be used when `type` is 'ClusterIP'");
            }
            let id = (p.at("protocol").text(), number);
            if !node_ports.add(id) {
                node.duplicate();
            }
        }
        let id = (p.at("protocol").text(), p.at("port").int_or(0));
        if !own_ports.add(id) {
            let shown = serde_json::json!({"protocol": id.0, "port": id.1});
            p.push(FieldError::duplicate(&p.path, shown));
        }
    }
    load_balancer(&spec, old.map(|o| o.at("spec")).as_ref());
    traffic(&spec, old);
}

fn session_affinity(spec: &At<'_>) {
    let affinity = spec.at("sessionAffinity");
    affinity.one_of(&["ClientIP", "None"]);
    let config = spec.at("sessionAffinityConfig");
    match affinity.text() {
        "ClientIP" => {
            let client = config.at("clientIP");
            let timeout = client.at("timeoutSeconds");
            for a in [&config, &client, &timeout] {
                if !a.set() {
                    a.required("when session affinity type is ClientIP");
                    return;
                }
            }
            if !(1..=86_400).contains(&timeout.int_or(0)) {
                timeout.invalid("must be greater than 0 and less than 86400");
            }
        }
        "None" if config.set() => config.forbidden("must not be set when session affinity is None"),
        _ => {}
    }
}

/// Cluster addresses and their families.
pub fn addresses(spec: &At<'_>, old: Option<&At<'_>>) {
    let before = old.map(|o| o.at("clusterIPs"));
    let before: Seen<&str> = before.iter().flat_map(|b| b.items()).map(|i| i.text()).collect();
    let (one, all) = (spec.at("clusterIP"), spec.at("clusterIPs"));
    match one.filled() {
        Some(_) if all.is_empty() => all.required(""),
        Some(ip) if all.items().next().is_some_and(|f| f.text() != ip) => all.invalid("first value must match `clusterIP`"),
        None if !all.is_empty() => all.invalid("must be empty when `clusterIP` is not specified"),
        _ => {}
    }
    let mut seen = Seen::default();
    for f in spec.at("ipFamilies").items() {
        f.one_of_text(&["IPv4", "IPv6"]);
        if !seen.add(f.text()) {
            f.duplicate();
        }
    }
    spec.at("ipFamilyPolicy").one_of_if_set(&["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let mut ips = Vec::new();
    let mut good = true;
    for (i, a) in all.items().enumerate() {
        if i == 0 && a.text() == "None" {
            if all.len() > 1 {
                good = false;
                all.invalid("'None' must be the first and only value");
            }
            continue;
        }
        match net::new_ip(&a, &before) {
            Some(ip) => ips.push((a, ip)),
            None => good = false,
        }
    }
    if all.len() > 2 {
        all.invalid("may only hold up to 2 values");
    }
    if !good {
        return;
    }
    let plain: Vec<_> = ips.iter().map(|(_, ip)| *ip).collect();
    if plain.len() > 1 && !net::one_a_family(&plain) {
        all.invalid("may specify no more than one IP for each IP family");
    }
    for (i, ((a, ip), family)) in ips.iter().zip(spec.at("ipFamilies").items()).enumerate() {
        if family.text() == if ip.is_ipv4() { "IPv6" } else { "IPv4" } {
            a.invalid(format!("expected an {} value as indicated by `ipFamilies[{i}]`", family.text()));
        }
    }
}

fn addresses_update(new: &At<'_>, old: &At<'_>) {
    let external = |s: &At<'_>| s.at("type").text() == "ExternalName";
    if external(new) || external(old) || headless(new) && headless(old) {
        return;
    }
    let mut fields = vec![("clusterIPs", "primary clusterIP can not be unset", "secondary clusterIP")];
    if headless(new) == headless(old) {
        fields.push(("ipFamilies", "primary ipFamily can not be unset", "secondary ipFamily"));
    }
    for (field, unset, secondary) in fields {
        let (a, b) = (new.at(field), old.at(field));
        let get = |l: &At<'_>, i: usize| l.v.get(i).cloned().unwrap_or(Value::Null);
        let report = |i: usize, m: &str| a.with(a.v, a.path.index(i)).invalid(m);
        if a.len() == b.len() {
            for i in (0..b.len()).filter(|i| get(&a, *i) != get(&b, *i)) {
                report(if field == "ipFamilies" { 0 } else { i }, "may not change once set");
            }
        } else if a.is_empty() {
            report(0, unset);
        } else {
            if !b.is_empty() && get(&a, 0) != get(&b, 0) {
                report(0, "may not change once set");
            }
            let policy = new.at("ipFamilyPolicy");
            if b.len() > a.len() && a.len() == 1 && policy.text() != "SingleStack" {
                policy.invalid(format!("must be set to 'SingleStack' when releasing the {secondary}"));
            }
        }
    }
}

/// A class is for balanced services alone, and stays.
fn balancer_class(new: &At<'_>, old: Option<&At<'_>>) {
    let lb = |s: &At<'_>| s.at("type").text() == "LoadBalancer";
    let class = new.at("loadBalancerClass");
    if old.is_some_and(|o| lb(new) && lb(o) && !same(class.v, o.at("loadBalancerClass").v)) {
        class.invalid("may not change once set");
    }
    if class.set() && lb(new) {
        class.check(names::qualified_name);
    } else if class.set() {
        class.forbidden("may only be used when `type` is 'LoadBalancer'");
    }
}

fn load_balancer(spec: &At<'_>, old: Option<&At<'_>>) {
    let lb = spec.at("type").text() == "LoadBalancer";
    let ranges = spec.at("loadBalancerSourceRanges").named(spec.path.child("LoadBalancerSourceRanges"));
    if !ranges.is_empty() && !lb {
        ranges.forbidden("may only be used when `type` is 'LoadBalancer'");
    }
    let was = old.map(|o| o.at("loadBalancerSourceRanges"));
    let was: Seen<&str> = was.iter().flat_map(|b| b.items()).map(|i| i.text().trim()).collect();
    // blanks around them were taken from the first
    let plain: Value = ranges.items().map(|r| r.text().trim()).collect();
    At { v: &plain, path: ranges.path.clone(), errs: ranges.errs }.items().for_each(|r| {
        net::new_cidr(&r, &was);
    });
    let allocate = spec.at("allocateLoadBalancerNodePorts");
    if allocate.set() && !lb {
        allocate.forbidden("may only be used when `type` is 'LoadBalancer'");
    }
    if !allocate.set() && lb {
        allocate.named("allocateLoadBalancerNodePorts".into()).required("");
    }
    balancer_class(spec, None);
}

fn traffic(spec: &At<'_>, old: Option<&At<'_>>) {
    let kind = spec.at("type").text();
    let accessible = kind == "LoadBalancer" || kind == "NodePort" || kind == "ClusterIP" && !spec.at("externalIPs").is_empty();
    let policy = spec.at("externalTrafficPolicy");
    if accessible {
        policy.one_of(&["Cluster", "Local"]);
    } else if policy.filled().is_some() {
        policy.invalid("may only be set for externally-accessible services");
    }
    let health = spec.at("healthCheckNodePort");
    let needs = |s: &At<'_>| s.at("type").text() == "LoadBalancer" && s.at("externalTrafficPolicy").text() == "Local";
    match (needs(spec), health.int_or(0)) {
        (true, 0) => health.required(""),
        (true, _) => health.in_range(1, 65535),
        (false, 0) => {}
        (false, _) => health.invalid("may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"),
    }
    if let Some(o) = old.map(|o| o.at("spec"))
        && needs(&o)
        && needs(spec)
        && health.int_or(0) != o.at("healthCheckNodePort").int_or(0)
    {
        health.forbidden("field is immutable");
    }
    let internal = spec.at("internalTrafficPolicy");
    if !internal.set() && ["NodePort", "LoadBalancer", "ClusterIP"].contains(&kind) {
        internal.required("");
    }
    internal.one_of_if_set(&["Cluster", "Local"]);
    spec.at("trafficDistribution").one_of_if_set(&["PreferClose", "PreferSameZone", "PreferSameNode"]);
}

/// An `Endpoints` object.
pub fn endpoints(at: &At<'_>) {
    for s in at.at("subsets").items() {
        if s.at("addresses").is_empty() && s.at("notReadyAddresses").is_empty() {
            s.required("must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            for a in s.at(list).items() {
                match net::ip(&a.at("ip")) {
                    Some(ip) => net::endpoint_ip(&a.at("ip"), ip),
                    None if net::sloppy_ip(a.at("ip").text()).is_none() => a.at("ip").invalid_as(a.at("ip").text(), "must be a valid IP address"),
                    None => {}
                }
                a.at("hostname").check_if_filled(names::dns1123_label);
                if a.at("nodeName").set() {
                    a.at("nodeName").check(names::dns1123_subdomain);
                }
            }
        }
        let ports = s.at("ports");
        for p in ports.items() {
            match p.at("name").filled() {
                None if ports.len() > 1 => p.at("name").required(""),
                None => {}
                Some(_) => p.at("name").check(names::dns1123_label),
            }
            for m in names::port_number(p.at("port").int_or(0)) {
                p.at("port").invalid_as(p.at("port").int_or(0), m);
            }
            p.at("protocol").one_of(PROTOCOLS);
            if p.at("appProtocol").set() {
                p.at("appProtocol").check(names::qualified_name);
            }
        }
    }
}

/// An `EndpointSlice`.
pub fn endpoint_slice(at: &At<'_>) {
    let kind = at.at("addressType");
    kind.one_of(&["FQDN", "IPv4", "IPv6"]);
    let mut seen = Seen::default();
    for p in at.at("ports").items() {
        let name = p.at("name");
        name.check_if_filled(names::dns1123_label);
        if !seen.add(name.text()) {
            name.duplicate();
        }
        if p.at("protocol").set() {
            p.at("protocol").one_of_text(PROTOCOLS);
        } else {
            p.at("protocol").required("");
        }
        if p.at("appProtocol").set() {
            p.at("appProtocol").check(names::qualified_name);
        }
    }
    let all = at.at("endpoints");
    if all.len() > 1000 {
        all.push(FieldError::too_many(&all.path, all.len(), 1000));
        return;
    }
    for e in all.items() {
        let addresses = e.at("addresses");
        if addresses.is_empty() {
            addresses.required("must contain at least 1 address");
        } else if addresses.len() > 100 {
            addresses.push(FieldError::too_many(&addresses.path, addresses.len(), 100));
        }
        for a in addresses.items() {
            match kind.text() {
                "IPv4" | "IPv6" => {
                    let Some(ip) = net::ip(&a) else { continue };
                    if ip.is_ipv4() != (kind.text() == "IPv4") {
                        a.named(addresses.path.clone()).invalid(format!("must be an {} address", kind.text()));
                    }
                    net::endpoint_ip(&a, ip);
                }
                "FQDN" => a.check(names::dns1123_subdomain),
                _ => {}
            }
        }
        if e.at("nodeName").set() {
            e.at("nodeName").check(names::dns1123_subdomain);
        }
        meta::labels(&e.at("deprecatedTopology"));
        if e.at("hostname").set() {
            e.at("hostname").check(names::dns1123_label);
        }
        for (list, check) in [("forZones", names::label_value as fn(&str) -> Vec<String>), ("forNodes", names::dns1123_subdomain)] {
            let all = e.at("hints").at(list);
            if all.len() > 8 {
                all.push(FieldError::too_many(&all.path, all.len(), 8));
                break;
            }
            let mut seen = Seen::default();
            for h in all.items() {
                let name = h.at("name");
                if !seen.add(name.text()) {
                    name.duplicate();
                }
                name.check(check);
            }
        }
    }
}

/// An ingress's spec.
pub fn ingress(spec: &At<'_>) {
    let (rules, default) = (spec.at("rules"), spec.at("defaultBackend"));
    if rules.is_empty() && !default.set() {
        spec.invalid_as(rules.v.clone(), "either `defaultBackend` or `rules` must be specified");
    }
    if default.set() {
        ingress_backend(&default);
    }
    for r in rules.items() {
        let host = r.at("host");
        if host.filled().is_some() {
            if host.text().parse::<std::net::IpAddr>().is_ok() {
                host.invalid("must be a DNS name, not an IP address");
            } else if host.text().contains('*') {
                host.check(names::wildcard_dns1123_subdomain);
            } else {
                host.check(names::dns1123_subdomain);
            }
        }
        let http = r.at("http");
        let paths = http.at("paths");
        if http.set() && paths.is_empty() {
            paths.required("");
        }
        for p in paths.items() {
            let (path, kind) = (p.at("path"), p.at("pathType"));
            if !kind.set() {
                kind.required("pathType must be specified");
                continue;
            }
            match kind.text() {
                "Exact" | "Prefix" => {
                    if !path.text().starts_with('/') {
                        path.invalid_as(path.text(), "must be an absolute path");
                    }
                    for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                        if path.text().contains(bad) {
                            path.invalid(format!("must not contain '{bad}'"));
                        }
                    }
                    for bad in ["/..", "/."] {
                        if path.text().ends_with(bad) {
                            path.invalid(format!("cannot end with '{bad}'"));
                        }
                    }
                }
                "ImplementationSpecific" => {
                    if path.filled().is_some_and(|p| !p.starts_with('/')) {
                        path.invalid("must be an absolute path");
                    }
                }
                _ => kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"]),
            }
            ingress_backend(&p.at("backend"));
        }
    }
    for t in spec.at("tls").items() {
        for h in t.at("hosts").items() {
            if h.text().contains('*') {
                h.check(names::wildcard_dns1123_subdomain);
            } else {
                h.check(names::dns1123_subdomain);
            }
        }
        t.at("secretName").check_if_filled(names::dns1123_subdomain);
    }
    if spec.at("ingressClassName").set() {
        spec.at("ingressClassName").check(names::dns1123_subdomain);
    }
}

fn ingress_backend(at: &At<'_>) {
    let (svc, resource) = (at.at("service"), at.at("resource"));
    match (svc.set(), resource.set()) {
        (true, true) => at.invalid_as("", "cannot set both resource and service backends"),
        (false, false) => at.invalid_as("", "resource or service backend is required"),
        (true, false) => {
            match svc.at("name").filled() {
                None => svc.at("name").required(""),
                Some(_) => svc.at("name").check(names::dns1123_label),
            }
            let (name, number) = (svc.down(&["port", "name"]), svc.down(&["port", "number"]));
            let has_number = number.int_or(0) != 0;
            match (name.filled().is_some(), has_number) {
                (true, true) => at.invalid_as("", "cannot set both port name & port number"),
                (false, false) => at.required("port name or number is required"),
                (true, false) => name.check(names::port_name),
                (false, true) => number.in_range(1, 65535),
            }
        }
        (false, true) => {
            if resource.at("apiGroup").set() {
                resource.at("apiGroup").check(names::dns1123_subdomain);
            }
            for field in ["kind", "name"] {
                match resource.at(field).filled() {
                    None => resource.at(field).required(""),
                    Some(_) => resource.at(field).check(names::path_segment),
                }
            }
        }
    }
}

/// The ranges of a network policy.
fn ranges(spec: &At<'_>) -> Vec<String> {
    let mut all = Vec::new();
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for block in spec.at(list).items().flat_map(|r| r.at(peers).items()).map(|p| p.at("ipBlock")) {
            all.extend(block.at("cidr").filled().map(str::to_owned));
            all.extend(block.at("except").items().filter_map(|e| e.filled().map(str::to_owned)));
        }
    }
    all
}

/// A network policy's spec. Ranges that it had before may be in any form.
pub fn network_policy(spec: &At<'_>, old: Option<&At<'_>>) {
    let before = old.map(ranges).unwrap_or_default();
    let before: Seen<&str> = before.iter().map(String::as_str).collect();
    meta::label_selector(&spec.at("podSelector"));
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(list).items() {
            rule.at("ports").items().for_each(|p| policy_port(&p));
            rule.at(peers).items().for_each(|p| policy_peer(&p, &before));
        }
    }
    let kinds = spec.at("policyTypes");
    if kinds.len() > 2 {
        kinds.invalid("may not specify more than two policyTypes");
        return;
    }
    kinds.items().for_each(|k| k.one_of_if_set(&["Ingress", "Egress"]));
}

fn policy_port(p: &At<'_>) {
    if p.at("protocol").set() {
        p.at("protocol").one_of_text(&["TCP", "UDP", "SCTP"]);
    }
    let (from, to) = (p.at("port"), p.at("endPort"));
    match from.v {
        Value::Null => {
            if to.set() {
                to.invalid("may not be specified when `port` is not specified");
            }
        }
        Value::String(_) => {
            if to.set() {
                to.invalid("may not be specified when `port` is non-numeric");
            }
            from.check(names::port_name);
        }
        _ => {
            from.in_range(1, 65535);
            if let Some(end) = to.int() {
                if end < from.int_or(0) {
                    to.invalid_as(from.int_or(0), "must be greater than or equal to `port`");
                }
                to.in_range(1, 65535);
            }
        }
    }
}

fn policy_peer(p: &At<'_>, before: &Seen<&str>) {
    let block = p.at("ipBlock");
    let mut peers = 0;
    for k in ["podSelector", "namespaceSelector"] {
        if p.at(k).set() {
            peers += 1;
            meta::label_selector(&p.at(k));
        }
    }
    if block.set() {
        peers += 1;
        let range = block.at("cidr");
        if range.filled().is_none() {
            range.required("");
        } else if let Some(outer) = net::new_cidr(&range, before) {
            for e in block.at("except").items() {
                let Some((ip, bits)) = net::new_cidr(&e, before) else { continue };
                if !net::contains(outer, ip) || outer.1 >= bits {
                    e.invalid("must be a strict subset of `cidr`");
                }
            }
        }
    }
    if peers == 0 {
        p.required("must specify a peer");
    } else if peers > 1 && block.set() {
        p.forbidden("may not specify both ipBlock and another peer");
    }
}

/// Where a load balancer is reached.
pub fn balancer_status(at: &At<'_>, balanced: bool) {
    let ingress = at.at("ingress");
    if !balanced && !ingress.is_empty() {
        ingress.forbidden("may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for i in ingress.items() {
        let (ip, mode) = (i.at("ip"), i.at("ipMode"));
        if ip.filled().is_some() {
            net::ip(&ip);
        }
        match (ip.filled().is_some(), mode.set()) {
            (true, false) => mode.required("must be specified when `ip` is set"),
            (false, true) => mode.forbidden("may not be specified when `ip` is not set"),
            _ => mode.one_of_if_set(&["Proxy", "VIP"]),
        }
        balancer_name(&i.at("hostname"));
    }
}

/// The same of an ingress.
pub fn ingress_status(at: &At<'_>) {
    for i in at.at("ingress").items() {
        if i.at("ip").filled().is_some() {
            net::ip(&i.at("ip"));
        }
        balancer_name(&i.at("hostname"));
    }
}

fn balancer_name(at: &At<'_>) {
    at.check_if_filled(names::dns1123_subdomain);
    if at.text().parse::<std::net::IpAddr>().is_ok() {
        at.invalid("must be a DNS name, not an IP address");
    }
}
