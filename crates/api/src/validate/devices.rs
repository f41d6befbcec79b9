//! Claims on devices and their templates, classes of devices, and slices with the devices of drivers.
//! That selectors compile is looked at elsewhere.

use super::at::{At, same};
use super::{meta, net};
use super::scheduling::node_selector;
use crate::field::{FieldError, go_quote_bytes};
use crate::names;
use crate::quantity::Quantity;
use crate::seen::Seen;
use serde_json::{Value, json};
use std::collections::HashSet;

const MOST_REQUESTS: usize = 32;
const MOST_CONSTRAINTS: usize = 32;
const MOST_CONFIGS: usize = 32;
const MOST_SELECTORS: usize = 32;
const MOST_ALTERNATIVES: usize = 8;
const MOST_CONSUMERS: usize = 256;
const MOST_DEVICES: usize = 128;
const MOST_ADVANCED_DEVICES: usize = 64;
const MOST_TAINTS: usize = 16;
const MOST_FACTS: usize = 32;
const MOST_COUNTERS: usize = 32;
const MOST_COUNTER_SETS: usize = 8;
const MOST_CONSUMPTIONS: usize = 2;
const MOST_BINDING_CONDITIONS: usize = 4;
const MOST_OPTIONS: usize = 10;
const MOST_DEVICE_CONDITIONS: usize = 8;
const MOST_IPS: usize = 16;
const LONGEST_EXPRESSION: usize = 10 * 1024;
const LONGEST_PARAMETERS: usize = 10 * 1024;
const LONGEST_VALUE: usize = 64;
const LONGEST_ID: usize = 32;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const NO_REQUEST: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// False when a list has more items than it may; then nothing else is said of it.
fn fits(list: &At<'_>, most: usize) -> bool {
    let fits = list.len() <= most;
    if !fits {
        list.push(FieldError::too_many(&list.path, list.len(), most));
    }
    fits
}

/// The items of a list that has not too many.
fn items<'a>(list: &At<'a>, most: usize) -> impl Iterator<Item = At<'a>> + use<'a> {
    fits(list, most).then(|| list.items()).into_iter().flatten()
}

/// Reports items that are there twice.
fn once<'a>(list: &At<'a>, key: impl Fn(&At<'a>) -> Value) {
    let mut seen = HashSet::new();
    for item in list.items() {
        let key = key(&item);
        if !seen.insert(key.to_string()) {
            item.push(FieldError::duplicate(&item.path, key));
        }
    }
}

fn once_by(list: &At<'_>, field: &str) {
    once(list, |item| item.at(field).v.clone());
}

fn driver(at: &At<'_>) {
    match at.filled() {
        None => at.required(""),
        Some(name) => {
            if name.len() > 63 {
                at.too_long(63);
            }
            names::dns1123_subdomain(&name.to_lowercase()).into_iter().for_each(|m| at.invalid(m));
        }
    }
}

fn pool(at: &At<'_>) {
    match at.filled() {
        None => at.required(""),
        Some(name) => {
            if name.len() > 253 {
                at.too_long(253);
            }
            name.split('/').flat_map(|part| names::dns1123_subdomain(part).into_iter().map(move |m| (part, m))).for_each(|(part, m)| at.invalid_as(part, m));
        }
    }
}

/// The names of a claim's requests, with their alternatives.
struct Requests<'a>(Vec<(&'a str, Vec<&'a str>)>);

impl<'a> Requests<'a> {
    fn of(devices: &At<'a>) -> Requests<'a> {
        Requests(devices.at("requests").items().map(|r| (r.at("name").text(), r.at("firstAvailable").items().map(|s| s.at("name").text()).collect())).collect())
    }

    fn has(&self, name: &str) -> bool {
        let (request, alternative) = name.split_once('/').map_or((name, None), |(r, a)| (r, Some(a)));
        self.0.iter().any(|(r, all)| *r == request && alternative.is_none_or(|a| all.contains(&a)))
    }

    fn refer(&self, at: &At<'_>) {
        if at.text().split('/').count() > 2 {
            return at.invalid(NO_REQUEST);
        }
        at.text().split('/').for_each(|part| names::dns1123_label(part).into_iter().for_each(|m| at.invalid_as(part, m)));
        if !self.has(at.text()) {
            at.invalid(NO_REQUEST);
        }
    }

    fn refer_all(&self, list: &At<'_>) {
        items(list, MOST_REQUESTS).for_each(|r| self.refer(&r));
        if list.len() <= MOST_REQUESTS {
            once(list, |r| r.v.clone());
        }
    }
}

/// A claim's spec.
pub fn claim_spec(spec: &At<'_>) {
    let devices = spec.at("devices");
    let known = Requests::of(&devices);
    let requests = devices.at("requests");
    items(&requests, MOST_REQUESTS).for_each(|r| request(&r));
    if requests.len() <= MOST_REQUESTS {
        once_by(&requests, "name");
    }
    for constraint in items(&devices.at("constraints"), MOST_CONSTRAINTS) {
        known.refer_all(&constraint.at("requests"));
        match (constraint.at("matchAttribute"), constraint.at("distinctAttribute")) {
            (m, _) if m.set() => full_name(&m),
            (_, d) if d.set() => full_name(&d),
            _ => constraint.required("exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
        }
    }
    for config in items(&devices.at("config"), MOST_CONFIGS) {
        known.refer_all(&config.at("requests"));
        configuration(&config);
    }
}

fn request(at: &At<'_>) {
    at.at("name").check(names::dns1123_label);
    let (exactly, alternatives) = (at.at("exactly"), at.at("firstAvailable"));
    match (exactly.set(), !alternatives.is_empty()) {
        (false, false) => at.required("exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => at.invalid_as(Value::Null, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"),
        (true, false) => exact(&exactly),
        (false, true) => {
            for one in items(&alternatives, MOST_ALTERNATIVES) {
                one.at("name").check(names::dns1123_label);
                exact(&one);
            }
            if alternatives.len() <= MOST_ALTERNATIVES {
                once_by(&alternatives, "name");
            }
        }
    }
}

fn exact(at: &At<'_>) {
    let class = at.at("deviceClassName");
    match class.filled() {
        None => class.required(""),
        Some(_) => class.check(names::dns1123_subdomain),
    }
    selectors(&at.at("selectors"));
    let (mode, count) = (at.at("allocationMode"), at.at("count"));
    match mode.text() {
        "All" if count.int_or(0) != 0 => count.invalid("must not be specified when allocationMode is 'All'"),
        "ExactCount" if count.int_or(0) <= 0 => count.invalid_as(count.int_or(0), "must be greater than zero"),
        "All" | "ExactCount" => {}
        _ => mode.not_supported(&["All", "ExactCount"]),
    }
    for toleration in at.at("tolerations").items() {
        toleration.at("key").check_if_filled(names::qualified_name);
        let (operator, value) = (toleration.at("operator"), toleration.at("value"));
        match operator.text() {
            "Exists" if value.filled().is_some() => value.invalid("must be empty for operator `Exists`"),
            "Exists" => {}
            "Equal" => value.check(names::label_value),
            _ => operator.one_of(&["Equal", "Exists"]),
        }
        if toleration.at("effect").filled().is_some() {
            toleration.at("effect").one_of(EFFECTS);
        }
    }
}

fn selectors(list: &At<'_>) {
    for selector in items(list, MOST_SELECTORS) {
        let cel = selector.at("cel");
        if !cel.set() {
            cel.required("");
        } else if cel.at("expression").text().len() > LONGEST_EXPRESSION {
            cel.at("expression").too_long(LONGEST_EXPRESSION);
        }
    }
}

fn configuration(at: &At<'_>) {
    let opaque = at.at("opaque");
    if !opaque.set() {
        return opaque.required("");
    }
    driver(&opaque.at("driver"));
    json_object(&opaque.at("parameters"), LONGEST_PARAMETERS);
}

fn json_object(at: &At<'_>, longest: usize) {
    if !at.set() {
        at.required("");
    } else if at.v.to_string().len() > longest {
        at.too_long(longest);
    } else if !at.v.is_object() {
        at.invalid_as("<value omitted>", "must be a valid JSON object");
    }
}

/// A name with an optional domain before it.
fn name(at: &At<'_>, text: &str) {
    let identifier = |id: &str| {
        if id.len() > LONGEST_ID {
            at.too_long(LONGEST_ID);
        }
        names::c_identifier(id).into_iter().for_each(|m| at.invalid_as(id, m));
    };
    match text.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(id),
        [domain, id] => {
            if domain.is_empty() {
                at.invalid_as("", "the domain must not be empty");
            } else {
                if domain.len() > 63 {
                    at.too_long(63);
                }
                names::dns1123_subdomain(&domain.to_lowercase()).into_iter().for_each(|m| at.invalid_as(domain, m));
            }
            if id.is_empty() {
                at.invalid_as("", "the name must not be empty");
            } else {
                identifier(id);
            }
        }
        _ => {}
    }
}

fn full_name(at: &At<'_>) {
    name(at, at.text());
    if !at.text().contains('/') {
        at.invalid("a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// The claims of a pod.
pub fn pod_claims(list: &At<'_>) {
    let mut seen = HashSet::new();
    for claim in list.items() {
        let name = claim.at("name");
        match name.filled() {
            None => name.required(""),
            Some(text) if !seen.insert(text) => name.duplicate(),
            Some(_) => name.check(names::dns1123_label),
        }
        let (named, made) = (claim.at("resourceClaimName"), claim.at("resourceClaimTemplateName"));
        match (named.set(), made.set()) {
            (true, true) => claim.invalid("at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"),
            (false, false) => claim.invalid("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
            _ => {}
        }
        [named, made].iter().filter(|n| n.set()).for_each(|n| n.check(names::dns1123_subdomain));
    }
}

/// A class of devices.
pub fn class_spec(spec: &At<'_>) {
    selectors(&spec.at("selectors"));
    items(&spec.at("config"), MOST_CONFIGS).for_each(|c| configuration(&c));
    let resource = spec.at("extendedResourceName");
    if resource.set() && !names::is_extended_resource(resource.text()) {
        resource.invalid("must be a valid extended resource name");
    }
}

/// Which of some fields say where devices are; exactly one must. `flags` may only be true.
fn places(at: &At<'_>, fields: &[&str], missing: &str, too_many: &str, empty_name: &str) {
    let mut set = Vec::new();
    for field in fields {
        let value = at.at(field);
        match *field {
            _ if !value.set() => continue,
            "nodeName" if value.filled().is_none() => {
                value.invalid(empty_name.to_string());
                continue;
            }
            "nodeName" => value.check(names::dns1123_subdomain),
            "nodeSelector" => {
                node_selector(&value);
                // slices are merged, devices are not
                let terms = value.at("nodeSelectorTerms");
                if fields.contains(&"perDeviceNodeSelection") && terms.len() != 1 {
                    terms.invalid("must have exactly one node selector term");
                }
            }
            _ if !value.yes() => {
                value.invalid("must be either unset or set to true");
                continue;
            }
            _ => {}
        }
        set.push(format!("`{field}`"));
    }
    match set.len() {
        0 => at.required(missing),
        1 => {}
        _ => at.invalid_as(format!("{{{}}}", set.join(", ")), too_many),
    }
}

/// What claims are made from.
pub fn template_spec(spec: &At<'_>) {
    meta::labels(&spec.down(&["metadata", "labels"]));
    meta::annotations(&spec.down(&["metadata", "annotations"]));
    claim_spec(&spec.at("spec"));
}

/// A slice of a driver's devices.
pub fn slice(at: &At<'_>, old: Option<&At<'_>>) {
    let spec = at.at("spec");
    driver(&spec.at("driver"));
    let of = spec.at("pool");
    pool(&of.at("name"));
    if of.at("resourceSliceCount").int_or(0) <= 0 {
        of.at("resourceSliceCount").invalid_as(of.at("resourceSliceCount").int_or(0), "must be greater than zero");
    }
    if of.at("generation").int_or(0) < 0 {
        of.at("generation").invalid("must be greater than or equal to zero");
    }
    if let Some(before) = old.map(|o| o.at("spec")) {
        of.at("name").immutable(&before.down(&["pool", "name"]));
        spec.at("driver").immutable(&before.at("driver"));
        spec.at("nodeName").immutable(&before.at("nodeName"));
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    places(&spec, &["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"], ONE, &format!("{ONE}, but multiple fields are set"), "must be either unset or set to a non-empty string");
    let (devices, counters) = (spec.at("devices"), spec.at("sharedCounters"));
    if devices.set() && counters.set() {
        spec.invalid_as("", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = devices.items().any(|d| !d.at("taints").is_empty() || !d.at("consumesCounters").is_empty() || d.at("attributes").entries().any(|(_, a)| ["bools", "ints", "strings", "versions"].iter().any(|l| a.at(l).set())));
    let most = if advanced { MOST_ADVANCED_DEVICES } else { MOST_DEVICES };
    items(&devices, most).for_each(|d| device(&d, spec.at("perDeviceNodeSelection").yes()));
    if devices.len() <= most {
        once_by(&devices, "name");
    }
    for set in items(&counters, MOST_COUNTER_SETS) {
        counter_set(&set, "name");
    }
    if counters.len() <= MOST_COUNTER_SETS {
        once_by(&counters, "name");
    }
}

fn counter_set(at: &At<'_>, field: &str) {
    let (set, counters) = (at.at(field), at.at("counters"));
    match set.filled() {
        None => set.required(""),
        Some(_) => set.check(names::dns1123_label),
    }
    if counters.is_empty() {
        counters.required("");
    } else if fits(&counters, MOST_COUNTERS) {
        counters.entries().for_each(|(key, _)| names::dns1123_label(key).into_iter().for_each(|m| counters.invalid_as(key, m)));
    }
}

fn device(at: &At<'_>, by_device: bool) {
    at.at("name").check(names::dns1123_label);
    let (attributes, capacity) = (at.at("attributes"), at.at("capacity"));
    let facts = attributes.len() + capacity.len();
    if facts > MOST_FACTS {
        at.invalid_as(facts, format!("the total number of attributes and capacities must not exceed {MOST_FACTS}"));
    }
    for (key, value) in attributes.entries() {
        name(&attributes, key);
        attribute(&value.named(attributes.path.key(&shortened(key))));
    }
    for (key, value) in capacity.entries() {
        name(&capacity, key);
        let value = value.named(capacity.path.key(&shortened(key)));
        let policy = value.at("requestPolicy");
        if policy.set() && !at.at("allowMultipleAllocations").yes() {
            policy.forbidden("allowMultipleAllocations must be true");
        } else if policy.set() {
            request_policy(&policy, &value.at("value").quantity().unwrap_or_else(Quantity::zero));
        }
    }
    for taint in items(&at.at("taints"), MOST_TAINTS) {
        taint.at("key").check(names::qualified_name);
        taint.at("value").check_if_filled(names::label_value);
        taint.at("effect").one_of(EFFECTS);
    }
    let consumes = at.at("consumesCounters");
    items(&consumes, MOST_CONSUMPTIONS).for_each(|c| counter_set(&c, "counterSet"));
    if consumes.len() <= MOST_CONSUMPTIONS {
        once_by(&consumes, "counterSet");
    }
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let fields = ["nodeName", "nodeSelector", "allNodes"];
    if by_device {
        places(at, &fields, ONE, ONE, "must not be empty");
    } else if fields.iter().any(|f| at.at(f).set()) {
        at.invalid_as(Value::Null, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec");
    }
    binding_conditions(at);
}

/// A key as it is shown in paths: of a long one the ends alone.
fn shortened(key: &str) -> String {
    const LONGEST: usize = 63 + 1 + LONGEST_ID;
    if key.len() <= LONGEST {
        return key.to_owned();
    }
    let room = LONGEST - 3;
    let bytes = |range: std::ops::Range<usize>| String::from_utf8_lossy(&key.as_bytes()[range]).into_owned();
    format!("{}...{}", bytes(0..room.div_ceil(2)), bytes(key.len() - room / 2..key.len()))
}

fn binding_conditions(at: &At<'_>) {
    let (wanted, failed) = (at.at("bindingConditions"), at.at("bindingFailureConditions"));
    for list in [&wanted, &failed] {
        items(list, MOST_BINDING_CONDITIONS).for_each(|c| c.check(names::qualified_name));
        once(list, |c| c.v.clone());
    }
    let both: Seen<&Value> = wanted.items().map(|w| w.v).collect();
    for condition in failed.items().filter(|f| both.has(&f.v)) {
        condition.invalid("bindingFailureConditions must not overlap with bindingConditions");
    }
    match (wanted.is_empty(), failed.is_empty()) {
        (true, false) => wanted.invalid("bindingConditions are required to use bindingFailureConditions"),
        (false, true) => failed.invalid("bindingFailureConditions are required to use bindingConditions"),
        _ => {}
    }
}

fn attribute(at: &At<'_>) {
    const KINDS: &[&str] = &["bool", "int", "string", "version", "bools", "ints", "strings", "versions"];
    let too_long = |value: &At<'_>| {
        if value.text().len() > LONGEST_VALUE {
            value.too_long(LONGEST_VALUE);
        }
    };
    too_long(&at.at("string"));
    let version = at.at("version");
    if version.set() {
        if !is_version(version.text()) {
            version.invalid("must be a string compatible with semver.org spec 2.0.0");
        }
        too_long(&version);
    }
    match KINDS.iter().filter(|k| at.at(k).set()).count() {
        0 => at.invalid_as("", "exactly one value must be specified"),
        1 => {}
        _ => at.invalid("exactly one value must be specified"),
    }
}

/// Whether a text is a version as semver.org has it.
fn is_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| digits(s) && (s.len() == 1 || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|p| p.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|b| b.split('.').all(word))
}

fn request_policy(at: &At<'_>, all: &Quantity) {
    let (values, range, default) = (at.at("validValues"), at.at("validRange"), at.at("default"));
    let shown = |q: &Quantity| q.canonical();
    if !values.is_empty() && range.set() {
        return at.forbidden("exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time");
    }
    let kind = if !values.is_empty() { "validValues" } else { "validRange" };
    if values.is_empty() && !range.set() {
        return;
    }
    let Some(default) = default.quantity() else { return default.required(&format!("required when {kind} is defined")) };
    if !values.is_empty() {
        let amounts: Vec<Quantity> = values.items().filter_map(|v| v.quantity()).collect();
        for (i, pair) in amounts.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
            values.with(values.v, values.path.index(i + 1)).invalid_as(shown(&pair[1]), "values must be sorted in ascending order");
        }
        for option in items(&values, MOST_OPTIONS) {
            if let Some(amount) = option.quantity().filter(|q| q > all) {
                option.invalid_as(shown(&amount), format!("option is larger than capacity value: {}", shown(all)));
            }
        }
        if values.len() <= MOST_OPTIONS {
            once(&values, |v| v.quantity().map_or(Value::Null, |q| q.value().to_string().into()));
        }
        if values.len() > MOST_OPTIONS || !amounts.contains(&default) {
            values.invalid_as(shown(&default), "default value is not valid according to the requestPolicy");
        }
        return;
    }
    let (min, max, step) = (range.at("min"), range.at("max"), range.at("step"));
    let Some(least) = min.quantity() else { return min.required("required when validRange is defined") };
    if least > *all {
        min.invalid_as(shown(&least), format!("min is larger than capacity value: {}", shown(all)));
    }
    if default < least {
        min.invalid_as(shown(&default), format!("default is less than min: {}", shown(&least)));
    }
    let most = max.quantity();
    if let Some(most) = &most {
        if least > *most {
            max.invalid_as(shown(&least), format!("min is larger than max: {}", shown(most)));
        }
        if most > all {
            max.invalid_as(shown(most), format!("max is larger than capacity value: {}", shown(all)));
        }
        if default > *most {
            max.invalid_as(shown(&default), format!("default is more than max: {}", shown(most)));
        }
    }
    if let Some(by) = step.quantity() {
        let mut first = least.clone();
        first.add(&by);
        if first > *all {
            step.invalid_as(shown(&by), format!("one step {} is larger than capacity value: {}", shown(&first), shown(all)));
        }
        for value in [Some(default), most].into_iter().flatten() {
            if by.value() == 0 || (value.value() - least.value()) % by.value() != 0 {
                step.invalid_as(shown(&value), format!("value is not a multiple of a given step ({}) from ({})", shown(&by), shown(&least)));
            }
        }
    }
}

/// A device by its names, with the share of it.
fn device_id(at: &At<'_>) -> Value {
    let part = |name: &str| at.at(name).text();
    json!({"driver": part("driver"), "pool": part("pool"), "device": part("device"), "shareID": part("shareID")})
}

/// Whether a list has only items of another.
fn all_within(list: &At<'_>, other: &At<'_>) -> bool {
    let there: Seen<&Value> = other.items().map(|i| i.v).collect();
    list.items().all(|i| there.has(&i.v))
}

/// A change of a claim's status.
pub fn claim_status(at: &At<'_>, old: &At<'_>) {
    let (status, before) = (at.at("status"), old.at("status"));
    let (reserved, allocation) = (status.at("reservedFor"), status.at("allocation"));
    for consumer in items(&reserved, MOST_CONSUMERS) {
        for field in ["resource", "name", "uid"] {
            if consumer.at(field).filled().is_none() {
                consumer.at(field).required("");
            }
        }
    }
    if reserved.len() <= MOST_CONSUMERS {
        once_by(&reserved, "uid");
    }
    let allocated: Seen<Value> = allocation.down(&["devices", "results"]).items().map(|r| device_id(&r)).collect();
    let devices = status.at("devices");
    devices.items().for_each(|d| device_status(&d, &allocated));
    once(&devices, device_id);
    if !reserved.is_empty() && !allocation.set() {
        reserved.forbidden("may not be specified when `allocated` is not set");
    } else if at.down(&["metadata", "deletionTimestamp"]).set() && !all_within(&reserved, &before.at("reservedFor")) {
        reserved.forbidden("new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set");
    }
    match (before.at("allocation"), &allocation) {
        (was, now) if was.set() && now.set() => {
            if !same(was.v, now.v) {
                now.invalid("field is immutable");
            }
        }
        (_, now) if now.set() => allocated_result(now, &Requests::of(&at.down(&["spec", "devices"]))),
        _ => {}
    }
}

fn allocated_result(at: &At<'_>, known: &Requests<'_>) {
    let devices = at.at("devices");
    for result in items(&devices.at("results"), MOST_REQUESTS) {
        known.refer(&result.at("request"));
        driver(&result.at("driver"));
        pool(&result.at("pool"));
        result.at("device").check(names::dns1123_label);
        binding_conditions(&result);
        share_id(&result.at("shareID"));
    }
    for config in items(&devices.at("config"), 2 * MOST_CONFIGS) {
        config.at("source").one_of(&["FromClaim", "FromClass"]);
        known.refer_all(&config.at("requests"));
        configuration(&config);
    }
    if at.at("nodeSelector").set() {
        node_selector(&at.at("nodeSelector"));
    }
}

/// What is wrong with a text as a UUID in any of its forms (RFC 4122, with braces, as a URN, without dashes).
fn uuid_mistake(text: &str) -> Option<String> {
    let dashed = |s: &[u8]| s.iter().enumerate().all(|(i, b)| if matches!(i, 8 | 13 | 18 | 23) { *b == b'-' } else { b.is_ascii_hexdigit() });
    let good = match text.len() {
        32 => text.bytes().all(|b| b.is_ascii_hexdigit()),
        36 => dashed(text.as_bytes()),
        38 => match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(inner) => dashed(inner.as_bytes()),
            None => return Some("invalid bracketed UUID format".into()),
        },
        45 => match text.as_bytes().split_at(9) {
            (prefix, rest) if prefix.eq_ignore_ascii_case(b"urn:uuid:") => dashed(rest),
            (prefix, _) => return Some(format!("invalid urn prefix: {}", go_quote_bytes(prefix))),
        },
        length => return Some(format!("invalid UUID length: {length}")),
    };
    (!good).then(|| "invalid UUID format".into())
}

fn share_id(at: &At<'_>) {
    if !at.set() {
        return;
    }
    if let Some(why) = uuid_mistake(at.text()) {
        at.invalid(format!("error validating uid: {why}"));
    } else if at.text().len() != 36 || at.text().bytes().any(|b| b.is_ascii_uppercase()) {
        at.invalid("uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters");
    }
}

fn device_status(at: &At<'_>, allocated: &Seen<Value>) {
    driver(&at.at("driver"));
    pool(&at.at("pool"));
    at.at("device").check(names::dns1123_label);
    share_id(&at.at("shareID"));
    let id = device_id(at);
    if !allocated.has(&id) {
        at.invalid_as(id, "must be an allocated device in the claim");
    }
    fits(&at.at("conditions"), MOST_DEVICE_CONDITIONS);
    super::meta::conditions(&at.at("conditions"));
    if at.at("data").set() {
        json_object(&at.at("data"), LONGEST_PARAMETERS);
    }
    let network = at.at("networkData");
    for (field, longest) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if network.at(field).text().len() > longest {
            network.at(field).too_long(longest);
        }
    }
    let ips = network.at("ips");
    items(&ips, MOST_IPS).for_each(|ip| net::interface_address(&ip));
    if ips.len() <= MOST_IPS {
        once(&ips, |ip| ip.v.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::uuid_mistake;

    #[test]
    fn uuids_come_in_four_forms() {
        let plain = "123e4567-e89b-12d3-a456-426614174000";
        for good in [plain.to_owned(), plain.replace('-', ""), format!("{{{plain}}}"), format!("URN:uuid:{plain}")] {
            assert_eq!(uuid_mistake(&good), None, "{good}");
        }
        // a text of 45 bytes whose ninth is within a character
        let split = format!("urn:uuidé{}", &plain[1..]);
        assert_eq!(uuid_mistake(&split).as_deref(), Some(r#"invalid urn prefix: "urn:uuid\xc3""#));
        assert_eq!(uuid_mistake(&format!("urn-uuid:{plain}")).as_deref(), Some(r#"invalid urn prefix: "urn-uuid:""#));
        assert_eq!(uuid_mistake(&plain.replace('1', "é")[..36]).as_deref(), Some("invalid UUID format"));
        assert_eq!(uuid_mistake("é").as_deref(), Some("invalid UUID length: 2"));
    }
}
