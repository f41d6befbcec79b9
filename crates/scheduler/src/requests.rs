//! What a pod asks of a node, and what a node has: amounts by resource name, cpu in thousandths of a
//! core, everything else in whole units (bytes, pods, devices).

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Amounts by resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Parses a resource list. What is no quantity counts as nothing: the API server refuses it.
    pub fn parse(list: &BTreeMap<String, Text>) -> Amounts {
        Amounts(list.iter().map(|(name, text)| (name.clone(), amount(name, &text.0))).collect())
    }

    /// The amount of one resource.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_insert(0) += amount;
        }
    }

    /// Takes `other` away.
    pub fn subtract(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_insert(0) -= amount;
        }
    }

    fn raise(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_insert(0);
            *own = (*own).max(*amount);
        }
    }
}

fn amount(name: &str, text: &str) -> i64 {
    let Ok(quantity) = Quantity::parse(text) else { return 0 };
    if name == "cpu" { quantity.milli_value() } else { quantity.value() }
}

fn container(container: &Container) -> Amounts {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.map(Amounts::parse).unwrap_or_default()
}

/// What a pod asks for: its containers and sidecars together, or more while its init containers run
/// one by one, plus the overhead of its runtime class. Requests on the pod itself go before.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut total = Amounts::default();
    spec.containers.iter().for_each(|c| total.add(&container(c)));
    let (mut sidecars, mut init) = (Amounts::default(), Amounts::default());
    for c in spec.init_containers.iter().flatten() {
        let mut now = container(c);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&now);
            init.raise(&sidecars);
        } else {
            now.add(&sidecars);
            init.raise(&now);
        }
    }
    total.add(&sidecars);
    total.raise(&init);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        total.0.extend(Amounts::parse(whole).0);
    }
    if let Some(overhead) = &spec.overhead {
        total.add(&Amounts::parse(overhead));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_one_by_one_and_sidecars_always() {
        let cpu = |c: &str| json!({"requests": {"cpu": c}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "overhead": {"cpu": "5m"},
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("100m")},
                {"name": "init", "resources": cpu("1")}],
            "containers": [{"name": "a", "resources": cpu("300m")}, {"name": "b", "resources": cpu("0.2")}]}}))
        .expect("a pod");
        assert_eq!(pod_requests(&pod).get("cpu"), 1105);
    }
}
