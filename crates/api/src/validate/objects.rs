//! Nodes, namespaces, configuration, permissions, budgets and the like.

use super::at::{At, same};
use super::container::resource_amount;
use super::meta::{at_most_100_percent, int_or_percent, label_selector};
use super::{net, scheduling};
use crate::field::{FieldError, Path};
use crate::names;
use crate::seen::Seen;
use base64::Engine;
use serde_json::Value;

/// Most bytes of data in a ConfigMap or Secret.
const DATA_MAX: usize = 1024 * 1024;
const RBAC: &str = "rbac.authorization.k8s.io";

/// A node.
pub fn node(node: &At<'_>, old: Option<&At<'_>>, status: bool) {
    let spec = node.at("spec");
    let taints = spec.at("taints").named(Path::new("metadata").child("taints"));
    scheduling::taints(&taints);
    for k in ["capacity", "allocatable"] {
        let list = node.down(&["status", k]);
        for (name, q) in list.entries() {
            resource_amount(&q.named(list.path.child(name)), name);
        }
    }
    declared_features(&node.down(&["status", "declaredFeatures"]));
    if !status {
        let ranges = spec.at("podCIDRs");
        let parsed: Vec<_> = ranges.items().filter_map(|r| net::cidr(&r)).map(|(ip, _)| ip).collect();
        if parsed.len() == ranges.len() && !net::one_a_family(&parsed) {
            ranges.invalid("may specify no more than one CIDR for each IP family");
        }
    }
    let Some(old) = old else { return };
    if !status {
        scheduling::taints(&taints);
    }
    let (before, ranges) = (old.at("spec"), spec.at("podCIDRs"));
    if spec.at("externalID").text() != before.at("externalID").text() {
        spec.at("externalID").forbidden("may not be updated");
    }
    if !before.at("podCIDRs").is_empty() && !same(ranges.v, before.at("podCIDRs").v) {
        ranges.forbidden("node updates may not change podCIDR except from \"\" to valid");
    }
    let provider = spec.at("providerID");
    if before.at("providerID").filled().is_some_and(|p| p != provider.text()) {
        provider.forbidden("node updates may not change providerID except from \"\" to valid");
    }
    let mut addresses = Seen::default();
    for address in node.down(&["status", "addresses"]).items() {
        if !addresses.add(address.v) {
            address.duplicate();
        }
    }
}

/// The features that a kubelet says it has: named as features are, and sorted.
fn declared_features(list: &At<'_>) {
    let word = |s: &str| s.starts_with(|c: char| c.is_ascii_alphabetic()) && s.bytes().all(|c| c.is_ascii_alphanumeric());
    let good = |n: &str| n.starts_with(|c: char| c.is_ascii_uppercase()) && n.split('/').all(word);
    let mut before: Option<&str> = None;
    for f in list.items() {
        let name = f.text();
        match before {
            Some(b) if b == name => f.duplicate(),
            Some(b) if b > name => f.invalid_as(name, "list must be sorted alphabetically"),
            _ => {}
        }
        if name.len() > 253 {
            f.invalid_as(name, format!("invalid feature name {}: must be no more than 253 characters", crate::field::go_quote(name)));
        } else if !good(name) {
            f.invalid_as(
                name,
                format!(
                    "invalid feature name {}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
                    crate::field::go_quote(name)
                ),
            );
        }
        before = Some(name);
    }
}

/// A namespace.
pub fn namespace(at: &At<'_>) {
    let list = at.down(&["spec", "finalizers"]);
    for f in list.items() {
        finalizer(&f.named(list.path.clone()));
    }
}

/// A finalizer of a namespace's spec.
pub fn finalizer(f: &At<'_>) {
    f.check(names::qualified_name);
    if !f.text().contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&f.text()) {
        f.invalid("name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// A namespace whose status changed.
pub fn namespace_status(at: &At<'_>) {
    let phase = at.at("status").at("phase").named(Path::new("status").child("Phase"));
    match (at.down(&["metadata", "deletionTimestamp"]).set(), phase.text()) {
        (false, p) if p != "Active" => phase.invalid_as(p, "may only be 'Active' if `deletionTimestamp` is empty"),
        (true, p) if p != "Terminating" => phase.invalid_as(p, "may only be 'Terminating' if `deletionTimestamp` is not empty"),
        _ => {}
    }
}

fn decoded_len(v: &At<'_>) -> usize {
    let s = v.text();
    s.len() / 4 * 3 - s.bytes().rev().take_while(|b| *b == b'=').count().min(s.len() / 4 * 3)
}

/// A ConfigMap.
pub fn config_map(at: &At<'_>) {
    let mut size = 0;
    for (k, v) in at.at("data").entries() {
        for m in names::config_map_key(k) {
            v.invalid_as(k, m);
        }
        if at.at("binaryData").at(k).set() {
            v.invalid_as(k, "duplicate of key present in binaryData");
        }
        size += v.text().len();
    }
    for (k, v) in at.at("binaryData").entries() {
        for m in names::config_map_key(k) {
            v.invalid_as(k, m);
        }
        size += decoded_len(&v);
    }
    if size > DATA_MAX {
        at.named(Path::root()).push(FieldError::too_long(&Path::new(""), DATA_MAX));
    }
}

/// A Secret.
pub fn secret(at: &At<'_>) {
    let data = at.at("data");
    let mut size = 0;
    for (k, v) in data.entries() {
        for m in names::config_map_key(k) {
            v.invalid_as(k, m);
        }
        size += decoded_len(&v);
    }
    if size > DATA_MAX {
        data.too_long(DATA_MAX);
    }
    let entry = |k: &str| data.at(k).named(data.path.key(k));
    let needed = |k: &str| {
        if !entry(k).set() {
            entry(k).required("");
        }
    };
    match at.at("type").text() {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let annotations = at.down(&["metadata", "annotations"]);
            if annotations.at(key).filled().is_none() {
                annotations.named(annotations.path.key(key)).required("");
            }
        }
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if kind.ends_with("json") { ".dockerconfigjson" } else { ".dockercfg" };
            needed(key);
            if entry(key).set() {
                let bytes = base64::engine::general_purpose::STANDARD.decode(entry(key).text()).unwrap_or_default();
                if serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).is_err() {
                    entry(key).invalid_as("<secret contents redacted>", "unexpected end of JSON input");
                }
            }
        }
        "kubernetes.io/basic-auth" if !entry("username").set() && !entry("password").set() => {
            needed("username");
            needed("password");
        }
        "kubernetes.io/ssh-auth" if entry("ssh-privatekey").filled().is_none() => {
            entry("ssh-privatekey").required("");
        }
        "kubernetes.io/tls" => {
            needed("tls.crt");
            needed("tls.key");
        }
        _ => {}
    }
}

/// What cannot change once a ConfigMap or Secret is immutable.
pub fn immutable_data(new: &At<'_>, old: &At<'_>) {
    if !old.at("immutable").yes() {
        return;
    }
    if !new.at("immutable").yes() {
        new.at("immutable").forbidden("field is immutable when `immutable` is set");
    }
    for k in ["data", "binaryData"] {
        if !same(new.at(k).v, old.at(k).v) {
            new.at(k).forbidden("field is immutable when `immutable` is set");
        }
    }
}

/// A Role or ClusterRole.
pub fn role(at: &At<'_>, namespaced: bool) {
    for r in at.at("rules").items() {
        if r.at("verbs").is_empty() {
            r.at("verbs").required("verbs must contain at least one value");
        }
        let urls = r.at("nonResourceURLs");
        if !urls.is_empty() {
            if namespaced {
                urls.invalid("namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|k| !r.at(k).is_empty()) {
                urls.invalid("rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if r.at("apiGroups").is_empty() {
            r.at("apiGroups").required("resource rules must supply at least one api group");
        }
        if r.at("resources").is_empty() {
            r.at("resources").required("resource rules must supply at least one resource");
        }
    }
    let aggregation = at.at("aggregationRule");
    if aggregation.set() {
        let selectors = aggregation.at("clusterRoleSelectors");
        if selectors.is_empty() {
            selectors.required("at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        selectors.items().for_each(|s| label_selector(&s));
    }
}

/// A RoleBinding or ClusterRoleBinding.
pub fn role_binding(at: &At<'_>, namespaced: bool) {
    let r = at.at("roleRef");
    r.at("apiGroup").named(r.path.child("apiGroup")).one_of_text(&[RBAC]);
    r.at("kind").one_of_text(if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] });
    match r.at("name").filled() {
        None => r.at("name").required(""),
        Some(_) => r.at("name").check(names::path_segment),
    }
    for s in at.at("subjects").items() {
        let name = s.at("name");
        if name.filled().is_none() {
            name.required("");
        }
        match s.at("kind").text() {
            "ServiceAccount" => {
                name.check_if_filled(names::dns1123_subdomain);
                if s.at("apiGroup").filled().is_some() {
                    s.at("apiGroup").not_supported(&[""]);
                }
                if !namespaced && s.at("namespace").filled().is_none() {
                    s.at("namespace").required("");
                }
            }
            "User" | "Group" => s.at("apiGroup").one_of_text(&[RBAC]),
            _ => s.at("kind").one_of_text(&["ServiceAccount", "User", "Group"]),
        }
    }
}

impl At<'_> {
    /// One of `valid`, where a missing text is shown as empty.
    pub fn one_of_text(&self, valid: &[&str]) {
        if !valid.contains(&self.text()) {
            self.push(FieldError::not_supported(&self.path, self.text(), valid));
        }
    }
}

/// A change of a binding: the role stays.
pub fn role_binding_update(new: &At<'_>, old: &At<'_>) {
    if !same(new.at("roleRef").v, old.at("roleRef").v) {
        new.at("roleRef").invalid("cannot change roleRef");
    }
}

/// A disruption budget's spec.
pub fn disruption_budget(spec: &At<'_>) {
    let (min, max) = (spec.at("minAvailable"), spec.at("maxUnavailable"));
    if min.set() && max.set() {
        spec.invalid("minAvailable and maxUnavailable cannot be both set");
    }
    for a in [&min, &max] {
        if a.set() {
            int_or_percent(a);
            at_most_100_percent(a);
        }
    }
    label_selector(&spec.at("selector"));
    spec.at("unhealthyPodEvictionPolicy").one_of_if_set(&["AlwaysAllow", "IfHealthyBudget"]);
}

/// What has been found out about the expressions of a policy.
pub fn policy_status(status: &At<'_>) {
    for w in status.down(&["typeChecking", "expressionWarnings"]).items() {
        if w.at("warning").filled().is_none() {
            w.at("warning").required("");
        }
        if w.at("fieldRef").filled().is_none() {
            w.at("fieldRef").required("");
        }
    }
    super::meta::conditions(&status.at("conditions"));
}

/// A priority class.
pub fn priority_class(at: &At<'_>) {
    let (name, value) = (at.down(&["metadata", "name"]), at.at("value"));
    let system = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    if name.text().starts_with("system-") {
        let why = match system.iter().find(|(n, _)| *n == name.text()) {
            None => Some(format!("{} is not a known system priority class", name.text())),
            Some((n, v)) if value.int_or(0) != *v => {
                Some(format!("value of {n} PriorityClass must be {v}"))
            }
            Some((n, _)) if at.at("globalDefault").yes() => Some(format!("globalDefault of {n} PriorityClass must be false")),
            _ => None,
        };
        if let Some(why) = why {
            name.forbidden(format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"));
        }
    } else if value.int_or(0) > 1_000_000_000 {
        value.forbidden("maximum allowed value of a user defined priority is 1000000000");
    }
    at.at("preemptionPolicy").one_of_if_set(&["PreemptLowerPriority", "Never"]);
}

/// A change of a priority class.
pub fn priority_class_update(new: &At<'_>, old: &At<'_>) {
    if new.at("value").int_or(0) != old.at("value").int_or(0) {
        new.at("value").forbidden("may not be changed in an update.");
    }
    new.at("preemptionPolicy").immutable(&old.at("preemptionPolicy"));
}

/// A lease's spec.
pub fn lease(spec: &At<'_>) {
    if spec.at("leaseDurationSeconds").int().is_some_and(|d| d <= 0) {
        spec.at("leaseDurationSeconds").invalid("must be greater than 0");
    }
    spec.at("leaseTransitions").nonnegative();
    if spec.at("preferredHolder").filled().is_some() && spec.at("strategy").filled().is_none() {
        spec.at("preferredHolder").forbidden("may only be specified if `strategy` is defined");
    }
}

const USAGES: &[&str] = &[
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only",
    "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement",
    "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping",
];

/// A certificate signing request. The request itself is for whoever has a parser to see to.
pub fn certificate_request(at: &At<'_>) {
    let spec = at.at("spec");
    let request = spec.at("request");
    let bytes = base64::engine::general_purpose::STANDARD.decode(request.text()).unwrap_or_default();
    if !String::from_utf8_lossy(&bytes).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        request.invalid_as(request.text(), "PEM block type must be CERTIFICATE REQUEST");
    }
    let usages = spec.at("usages");
    if usages.is_empty() {
        usages.required("");
    }
    let mut seen = Seen::default();
    for u in usages.items() {
        u.one_of_if_set(USAGES);
        if !seen.add(u.text()) {
            u.duplicate();
        }
    }
    let signer = spec.at("signerName");
    match signer.text().split_once('/') {
        _ if signer.filled().is_none() => signer.required(""),
        _ if signer.text() == "kubernetes.io/legacy-unknown" => {
            signer.invalid("the legacy signerName is not allowed via this API version");
        }
        Some((domain, path)) if !path.is_empty() && domain.contains('.') => {
            for m in names::dns1123_subdomain(domain) {
                signer.invalid(format!("validating label \"{domain}\": {m}"));
            }
        }
        _ => signer.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'"),
    }
    if spec.at("expirationSeconds").int().is_some_and(|s| s < 600) {
        spec.at("expirationSeconds").invalid("may not specify a duration less than 600 seconds (10 minutes)");
    }
    certificate_conditions(at);
}

/// The conditions of a certificate signing request.
pub fn certificate_conditions(at: &At<'_>) {
    let list = at.down(&["status", "conditions"]);
    let mut before = Seen::default();
    for c in list.items() {
        let (kind, status) = (c.at("type"), c.at("status"));
        if kind.filled().is_none() {
            kind.required("");
        }
        match kind.text() {
            "Approved" | "Denied" | "Failed" => status.one_of(&["True"]),
            _ => status.one_of(&["False", "True", "Unknown"]),
        }
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        let excluded = !other.is_empty() && before.has(&other);
        if !before.add(kind.text()) {
            kind.duplicate();
        }
        if excluded {
            list.invalid_as(kind.text(), "Approved and Denied conditions are mutually exclusive");
        }
    }
}

/// What was decided about a request is not taken back.
pub fn approval(at: &At<'_>, old: &At<'_>) {
    let list = at.down(&["status", "conditions"]);
    let count = |a: &At<'_>, t: &str| a.down(&["status", "conditions"]).items().filter(|c| c.at("type").text() == t).count();
    for t in ["Approved", "Denied", "Failed"] {
        if count(at, t) < count(old, t) {
            list.forbidden(format!("updates may not remove a condition of type {}", crate::field::go_quote(t)));
        }
    }
}

/// What a certificate must be: blocks of PEM, all of them certificates.
fn certificate(at: &At<'_>) {
    let bytes = base64::engine::general_purpose::STANDARD.decode(at.text()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let wrong = |why: String| at.invalid_as("<certificate data>", why);
    let kinds: Vec<&str> = text.match_indices("-----BEGIN ").filter_map(|(i, begin)| text[i + begin.len()..].split_once("-----").map(|(kind, _)| kind)).collect();
    if let Some(other) = kinds.iter().find(|k| **k != "CERTIFICATE") {
        wrong(format!("only CERTIFICATE PEM blocks are allowed, found {}", crate::field::go_quote(other)));
    } else if kinds.is_empty() {
        wrong("must contain at least one CERTIFICATE PEM block".into());
    }
}

/// Through `status` the decision about a request stays as it is.
pub fn decided_conditions(at: &At<'_>, old: &At<'_>) {
    let of = |a: &At<'_>, t: &str| -> Vec<Value> {
        a.down(&["status", "conditions"]).items().filter(|c| c.at("type").text() == t).map(|c| c.v.clone()).collect()
    };
    let list = at.down(&["status", "conditions"]);
    approval(at, old);
    for t in ["Approved", "Denied"] {
        if of(at, t).len() > of(old, t).len() {
            list.forbidden(format!("updates may not add a condition of type {}", crate::field::go_quote(t)));
        }
    }
    let (new, before) = (at.down(&["status", "certificate"]), old.down(&["status", "certificate"]));
    if before.filled().is_some() && new.text() != before.text() {
        new.forbidden("updates may not modify existing certificate content");
    } else if new.filled().is_some() && new.text() != before.text() {
        certificate(&new);
    }
}

/// A change of the kept state of a controller: there is none.
pub fn controller_revision_update(new: &At<'_>, old: &At<'_>) {
    new.at("revision").nonnegative();
    new.at("data").immutable(&old.at("data"));
}

/// A runtime class.
pub fn runtime_class(at: &At<'_>, old: Option<&At<'_>>) {
    match at.at("handler").filled() {
        None => at.at("handler").required(""),
        Some(_) => at.at("handler").check(names::dns1123_label),
    }
    if let Some(o) = old {
        at.at("handler").immutable(&o.at("handler"));
    }
    super::container::overhead(&at.down(&["overhead", "podFixed"]).named(Path::new("overhead")));
    let scheduling = at.at("scheduling");
    super::meta::labels(&scheduling.at("nodeSelector"));
    let tolerations = scheduling.at("tolerations");
    scheduling::tolerations(&tolerations);
    let mut seen = Seen::default();
    for toleration in tolerations.items() {
        let given: Option<Vec<(&String, &Value)>> = toleration.v.as_object().map(|t| t.iter().filter(|(_, v)| !v.is_null()).collect());
        if !seen.add(given) {
            toleration.duplicate();
        }
    }
}
