//! The filters and scores once more, plain and slow: each counts everything anew from nodes and pods.
//! A test compares them with the fast ones over thousands of clusters that grow and change at random.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::cluster::{Cluster, NodeIx};
use crate::config::{Profile, Strategy};
use crate::filters::Cycle;
use crate::node::{Effect, NodeView};
use crate::pod::{PodInfo, PodTerm, Spread};
use crate::selector::{Labels, Operator, Requirement, Selector};

#[derive(Clone, Default)]
struct World {
    nodes: BTreeMap<String, Arc<NodeView>>,
    /// With the name of their node.
    pods: Vec<(String, Arc<PodInfo>)>,
    namespaces: BTreeMap<String, Labels>,
    services: BTreeMap<String, Vec<(String, String)>>,
}

impl World {
    fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.pods.iter().filter(move |(n, _)| n == node).map(|(_, p)| p)
    }

    fn selects(&self, term: &PodTerm, pod: &PodInfo) -> bool {
        let own = self.namespaces.get(pod.namespace()).cloned().unwrap_or_default();
        let namespace = term.namespaces.iter().any(|n| **n == *pod.namespace()) || term.namespace_selector.as_ref().is_some_and(|s| s.matches(&own));
        namespace && term.selector.as_ref().is_some_and(|s| s.matches(&pod.shape.labels))
    }

    /// Pods for which `test` holds on nodes of the same domain as `node`.
    fn near(&self, node: &NodeView, topology: &str, test: impl Fn(&PodInfo) -> bool) -> i64 {
        let Some(value) = node.labels.get(topology) else { return 0 };
        let same = |n: &str| self.nodes.get(n).is_some_and(|n| n.labels.get(topology) == Some(value));
        self.pods.iter().filter(|(n, p)| same(n) && test(p)).count() as i64
    }

    fn counts_for(&self, constraint: &Spread, all: &[Spread], pod: &PodInfo, node: &NodeView, needs_all: bool) -> bool {
        (!needs_all || all.iter().all(|c| node.labels.get(&c.topology).is_some()))
            && (!constraint.honors_affinity || pod.shape.rule.allows(node.name(), &node.labels))
            && (!constraint.honors_taints || node.taints.iter().filter(|t| t.is_hard()).all(|t| pod.shape.tolerates(t)))
    }

    fn matching(&self, constraint: &Spread, pod: &PodInfo, node: &str) -> i64 {
        let selects = |p: &PodInfo| match &constraint.selector {
            Some(s) => !s.0.is_empty() && s.matches(&p.shape.labels),
            None => false,
        };
        self.on(node).filter(|p| p.namespace() == pod.namespace() && !p.terminating && selects(p)).count() as i64
    }

    fn reject(&self, pod: &PodInfo, node: &NodeView) -> Option<(&'static str, Vec<String>)> {
        let shape = &pod.shape;
        let no = |plugin, reason: &str| Some((plugin, vec![reason.to_string()]));
        let cordon = crate::node::Taint { key: "node.kubernetes.io/unschedulable".into(), value: "".into(), effect: Effect::NoSchedule };
        if node.unschedulable && !shape.tolerates(&cordon) {
            return no("NodeUnschedulable", "node(s) were unschedulable");
        }
        if node.taints.iter().any(|t| t.is_hard() && !shape.tolerates(t)) {
            return no("TaintToleration", "node(s) had untolerated taint(s)");
        }
        if !shape.rule.allows(node.name(), &node.labels) {
            return no("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
        }
        if self.on(node.name()).any(|p| p.shape.ports.iter().any(|a| shape.ports.iter().any(|b| a.collides(b)))) {
            return no("NodePorts", "node(s) didn't have free ports for the requested pod ports");
        }
        let mut lacking = Vec::new();
        if self.on(node.name()).count() as i64 + 1 > node.allocatable.get("pods") {
            lacking.push("Too many pods".to_string());
        }
        for (name, wanted) in shape.requests.iter() {
            let used: i64 = self.on(node.name()).map(|p| p.shape.requests.get(name)).sum();
            if wanted > 0 && wanted > node.allocatable.get(name) - used {
                lacking.push(format!("Insufficient {name}"));
            }
        }
        if !lacking.is_empty() {
            return Some(("NodeResourcesFit", lacking));
        }
        self.reject_spread(pod, node).or_else(|| self.reject_pods(pod, node)).or_else(|| {
            let missing = shape.features.iter().any(|f| !node.features.iter().any(|declared| **declared == **f));
            if missing { no("NodeDeclaredFeatures", "node(s) didn't match Pod's required features") } else { None }
        })
    }

    fn reject_spread(&self, pod: &PodInfo, node: &NodeView) -> Option<(&'static str, Vec<String>)> {
        let hard: Vec<Spread> = pod.shape.spread.iter().filter(|c| c.hard).cloned().collect();
        for c in &hard {
            let Some(value) = node.labels.get(&c.topology) else {
                return Some(("PodTopologySpread", vec!["node(s) didn't match pod topology spread constraints (missing required label)".into()]));
            };
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for n in self.nodes.values().filter(|n| self.counts_for(c, &hard, pod, n, true)) {
                *domains.entry(n.labels.get(&c.topology).expect("it has all labels")).or_default() += self.matching(c, pod, n.name());
            }
            let least = if (domains.len() as i64) < i64::from(c.min_domains) { 0 } else { domains.values().min().copied().unwrap_or(0) };
            let own = i64::from(c.selector.as_ref().is_some_and(|s| s.matches(&pod.shape.labels)));
            if domains.get(value).copied().unwrap_or(0) + own - least > i64::from(c.max_skew) {
                return Some(("PodTopologySpread", vec!["node(s) didn't match pod topology spread constraints".into()]));
            }
        }
        None
    }

    fn reject_pods(&self, pod: &PodInfo, node: &NodeView) -> Option<(&'static str, Vec<String>)> {
        let no = |reason: &str| Some(("InterPodAffinity", vec![reason.to_string()]));
        let required = &pod.shape.affinity.required;
        let all = |p: &PodInfo| required.iter().all(|t| self.selects(t, p));
        if required.iter().any(|t| node.labels.get(&t.topology).is_none()) {
            return no("node(s) didn't match pod affinity rules");
        }
        if required.iter().any(|t| self.near(node, &t.topology, all) == 0) {
            let anywhere = |t: &PodTerm| self.pods.iter().any(|(n, p)| all(p) && self.nodes.get(n).is_some_and(|n| n.labels.get(&t.topology).is_some()));
            if required.iter().any(anywhere) || !all(pod) {
                return no("node(s) didn't match pod affinity rules");
            }
        }
        if pod.shape.affinity.required_anti.iter().any(|t| self.near(node, &t.topology, |p| self.selects(t, p)) > 0) {
            return no("node(s) didn't match pod anti-affinity rules");
        }
        for (at, other) in &self.pods {
            for term in &other.shape.affinity.required_anti {
                let value = self.nodes.get(at).and_then(|n| n.labels.get(&term.topology));
                if self.selects(term, pod) && value.is_some() && node.labels.get(&term.topology) == value {
                    return no("node(s) didn't satisfy existing pods anti-affinity rules");
                }
            }
        }
        None
    }

    fn score(&self, pod: &PodInfo, nodes: &[Arc<NodeView>], profile: &Profile) -> Vec<i64> {
        let shape = &pod.shape;
        let mut totals = vec![0; nodes.len()];
        let mut add = |weight: i64, scores: Vec<i64>| scores.into_iter().enumerate().for_each(|(i, s)| totals[i] += weight * s);
        let most = |raw: &[i64]| raw.iter().copied().max().unwrap_or(0);

        let raw: Vec<i64> = nodes.iter().map(|n| n.taints.iter().filter(|t| t.effect == Effect::PreferNoSchedule && !shape.tolerates(t)).count() as i64).collect();
        add(3, raw.iter().map(|r| if most(&raw) == 0 { 100 } else { 100 - 100 * r / most(&raw) }).collect());
        let preferred = |n: &NodeView| shape.preferred_nodes.iter().filter(|(_, t)| t.matches(n.name(), &n.labels)).map(|(w, _)| w).sum();
        let raw: Vec<i64> = nodes.iter().map(|n| preferred(n)).collect();
        add(2, raw.iter().map(|r| if most(&raw) == 0 { 0 } else { 100 * r / most(&raw) }).collect());

        let fit = |n: &Arc<NodeView>| {
            let cpu = shape.nonzero.0 + self.on(n.name()).map(|p| p.shape.nonzero.0).sum::<i64>();
            let memory = shape.nonzero.1 + self.on(n.name()).map(|p| p.shape.nonzero.1).sum::<i64>();
            let parts = [(cpu, n.allocatable.cpu), (memory, n.allocatable.memory)];
            let known: Vec<_> = parts.into_iter().filter(|(_, all)| *all > 0).collect();
            let one = |(used, all): &(i64, i64)| match profile.strategy {
                Strategy::LeastAllocated => if used > all { 0 } else { (all - used) * 100 / all },
                _ => used.min(all) * 100 / all,
            };
            if known.is_empty() { 0 } else { known.iter().map(one).sum::<i64>() / known.len() as i64 }
        };
        add(1, nodes.iter().map(fit).collect());
        let even = |n: &Arc<NodeView>| {
            let used = |name: &str| self.on(n.name()).map(|p| p.shape.requests.get(name)).sum::<i64>();
            let score = |with: i64| {
                let part = |name: &str| ((used(name) + with * shape.requests.get(name)) as f64 / n.allocatable.get(name) as f64).min(1.0);
                let has = |name: &str| n.allocatable.get(name) > 0;
                let deviation = if has("cpu") && has("memory") { ((part("cpu") - part("memory")) / 2.0).abs() } else { 0.0 };
                ((1.0 - deviation) * 100.0) as i64
            };
            50 + (50 + score(1) - score(0)) / 2
        };
        if shape.requests.cpu != 0 || shape.requests.memory != 0 {
            add(1, nodes.iter().map(even).collect());
        }
        add(2, self.score_spread(pod, nodes));
        add(2, self.score_pods(pod, nodes));
        let images = |n: &Arc<NodeView>| {
            let one = |name: &str| {
                let size = n.images.iter().find(|(i, _)| **i == *name)?.1;
                let holders = self.nodes.values().filter(|n| n.images.iter().any(|(i, _)| **i == *name)).count();
                Some((size as f64 * (holders as f64 / self.nodes.len() as f64)) as i64)
            };
            let sum: i64 = shape.images.iter().filter_map(|i| one(i)).sum();
            let (low, high) = (23 << 20, (1000 << 20) * i64::from(shape.containers));
            100 * (sum.clamp(low, high) - low) / (high - low)
        };
        add(1, nodes.iter().map(images).collect());
        totals
    }

    fn score_spread(&self, pod: &PodInfo, nodes: &[Arc<NodeView>]) -> Vec<i64> {
        let mut soft: Vec<Spread> = pod.shape.spread.iter().filter(|c| !c.hard).cloned().collect();
        let needs_all = !pod.shape.spread.is_empty();
        if !needs_all {
            let mut selector = Selector::default();
            for wanted in self.services.iter().filter(|(key, _)| key.starts_with(&format!("{}/", pod.namespace()))).map(|(_, w)| w) {
                if wanted.iter().all(|(k, v)| pod.shape.labels.get(k) == Some(v)) {
                    selector.0.extend(wanted.iter().map(|(k, v)| Requirement { key: k.as_str().into(), operator: Operator::In, values: vec![v.as_str().into()] }));
                }
            }
            if !selector.0.is_empty() {
                for (topology, max_skew) in [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)] {
                    soft.push(Spread { max_skew, topology: topology.into(), hard: false, selector: Some(selector.clone()), min_domains: 1, honors_affinity: true, honors_taints: false });
                }
            }
        }
        if soft.is_empty() {
            return vec![0; nodes.len()];
        }
        let takes_part = |n: &NodeView| !needs_all || soft.iter().all(|c| n.labels.get(&c.topology).is_some());
        let part: Vec<&Arc<NodeView>> = nodes.iter().filter(|n| takes_part(n)).collect();
        let raw = |n: &Arc<NodeView>| {
            let mut score = 0.0;
            for c in &soft {
                let Some(value) = n.labels.get(&c.topology) else { continue };
                let host = *c.topology == *"kubernetes.io/hostname";
                let domains = if host { part.len() } else { part.iter().map(|n| n.labels.get(&c.topology)).collect::<BTreeSet<_>>().len() };
                let in_domain = |o: &&Arc<NodeView>| o.labels.get(&c.topology) == Some(value) && self.counts_for(c, &soft, pod, o, needs_all);
                let count = if host {
                    self.matching(c, pod, n.name())
                } else {
                    self.nodes.values().filter(in_domain).map(|o| self.matching(c, pod, o.name())).sum()
                };
                score += count as f64 * ((domains + 2) as f64).ln() + f64::from(c.max_skew - 1);
            }
            score.round() as i64
        };
        let raws: Vec<i64> = part.iter().map(|n| raw(n)).collect();
        let (least, most) = (raws.iter().min().copied().unwrap_or(0), raws.iter().max().copied().unwrap_or(0));
        let normal = |n: &Arc<NodeView>| match takes_part(n) {
            false => 0,
            true if most == 0 => 100,
            true => 100 * (most + least - raw(n)) / most,
        };
        nodes.iter().map(normal).collect()
    }

    fn score_pods(&self, pod: &PodInfo, nodes: &[Arc<NodeView>]) -> Vec<i64> {
        let raw = |n: &Arc<NodeView>| {
            let mut score = 0;
            for (weight, term) in &pod.shape.affinity.preferred {
                score += weight * self.near(n, &term.topology, |p| self.selects(term, p));
            }
            for (at, other) in &self.pods {
                let Some(there) = self.nodes.get(at) else { continue };
                let same = |topology: &str| there.labels.get(topology).is_some() && there.labels.get(topology) == n.labels.get(topology);
                let a = &other.shape.affinity;
                let terms = a.required.iter().map(|t| (1, t)).chain(a.preferred.iter().map(|(w, t)| (*w, t)));
                score += terms.filter(|(_, t)| same(&t.topology) && self.selects(t, pod)).map(|(w, _)| w).sum::<i64>();
            }
            score
        };
        let raws: Vec<i64> = nodes.iter().map(raw).collect();
        let (least, most) = (raws.iter().min().copied().unwrap_or(0), raws.iter().max().copied().unwrap_or(0));
        raws.iter().map(|r| if most > least { (100.0 * ((r - least) as f64 / (most - least) as f64)) as i64 } else { 0 }).collect()
    }
}

/// Chance, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }

    fn node(&mut self, name: &str) -> Arc<NodeView> {
        let mut labels = json!({});
        if !self.one_in(8) {
            labels["kubernetes.io/hostname"] = json!(name);
        }
        if !self.one_in(6) {
            labels["topology.kubernetes.io/zone"] = json!(self.of(&["a", "b", "c"]));
        }
        if self.one_in(2) {
            labels["disk"] = json!(self.of(&["ssd", "hdd"]));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute", "PreferNoSchedule"];
        let taints: Vec<Value> = (0..self.below(6).saturating_sub(3)).map(|i| json!({"key": format!("t{i}"), "effect": effects[self.below(4) as usize]})).collect();
        let images: Vec<Value> = (0..self.below(3)).map(|i| json!({"names": [format!("image{i}:latest")], "sizeBytes": (self.below(900) << 20)})).collect();
        let known = ["ExtendWebSocketsToKubelet", "RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport"];
        let features: Vec<&str> = known.into_iter().filter(|_| self.one_in(2)).collect();
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"unschedulable": self.one_in(12), "taints": taints},
            "status": {"allocatable": {"cpu": self.below(3) + 1, "memory": format!("{}Gi", self.below(4)), "pods": 3 + self.below(4), "example.com/gpu": self.below(3)}, "images": images, "declaredFeatures": features}});
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    fn selector(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"matchExpressions": [{"key": "app", "operator": self.of(&["Exists", "DoesNotExist"])}]}),
            1 => json!({"matchExpressions": [{"key": "app", "operator": self.of(&["In", "NotIn"]), "values": [self.of(&["x", "y"])]}]}),
            2 if self.one_in(4) => json!({}),
            _ => json!({"matchLabels": {"app": self.of(&["x", "y", "z"])}}),
        }
    }

    fn topology(&mut self) -> &'static str {
        self.of(&["kubernetes.io/hostname", "topology.kubernetes.io/zone", "topology.kubernetes.io/zone", "disk"])
    }

    fn term(&mut self) -> Value {
        let mut term = json!({"labelSelector": self.selector(), "topologyKey": self.topology()});
        match self.below(4) {
            0 => term["namespaces"] = json!(["n1"]),
            1 => term["namespaceSelector"] = json!({"matchLabels": {"team": self.of(&["red", "blue"])}}),
            _ => {}
        }
        term
    }

    fn terms(&mut self) -> Value {
        let list: Vec<Value> = (0..1 + self.below(2)).map(|_| self.term()).collect();
        json!(list)
    }

    fn weighted(&mut self) -> Value {
        let list: Vec<Value> = (0..1 + self.below(2)).map(|_| json!({"weight": 1 + self.below(100), "podAffinityTerm": self.term()})).collect();
        json!(list)
    }

    fn pod(&mut self, name: &str) -> Arc<PodInfo> {
        let mut spec = json!({"priority": self.below(3) * 10, "containers": [{"name": "c", "image": format!("image{}", self.below(4)), "resources": {"requests": {}}}]});
        if self.one_in(2) {
            spec["containers"][0]["resources"]["requests"]["cpu"] = json!(format!("{}m", self.below(8) * 100));
        }
        if self.one_in(3) {
            spec["containers"][0]["resources"]["requests"]["memory"] = json!(format!("{}Mi", self.below(8) * 128));
        }
        if self.one_in(8) {
            spec["containers"][0]["resources"]["requests"]["example.com/gpu"] = json!("1");
        }
        if self.one_in(6) {
            spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80 + self.below(2), "hostIP": self.of(&["", "10.0.0.1", "10.0.0.2"])}]);
        }
        if self.one_in(8) {
            spec["containers"][0]["restartPolicyRules"] = json!([{"action": self.of(&["Restart", "RestartAllContainers"])}]);
        }
        if self.one_in(8) {
            spec["hostNetwork"] = json!(true);
            spec["hostUsers"] = json!(self.one_in(2));
        }
        if self.one_in(2) {
            spec["tolerations"] = json!([{"key": format!("t{}", self.below(2)), "operator": "Exists"}]);
        }
        if self.one_in(6) {
            spec["nodeSelector"] = json!({"disk": self.of(&["ssd", "hdd"])});
        }
        let mut affinity = json!({});
        if self.one_in(6) {
            let list = [json!({"key": "disk", "operator": self.of(&["In", "NotIn"]), "values": ["ssd"]})];
            affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": [{"matchExpressions": list}]});
        }
        if self.one_in(4) {
            let list = [json!({"key": "topology.kubernetes.io/zone", "operator": "In", "values": [self.of(&["a", "b"])]})];
            affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([{"weight": 1 + self.below(50), "preference": {"matchExpressions": list}}]);
        }
        for kind in ["podAffinity", "podAntiAffinity"] {
            if self.one_in(4) {
                affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = self.terms();
            }
            if self.one_in(4) {
                affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] = self.weighted();
            }
        }
        spec["affinity"] = affinity;
        if self.one_in(3) {
            let one = |c: &mut Chance| json!({"maxSkew": 1 + c.below(2), "topologyKey": c.topology(), "whenUnsatisfiable": c.of(&["DoNotSchedule", "ScheduleAnyway"]),
                "labelSelector": c.selector(), "minDomains": if c.one_in(4) { json!(2 + c.below(2)) } else { Value::Null },
                "nodeAffinityPolicy": c.of(&["Honor", "Ignore"]), "nodeTaintsPolicy": c.of(&["Honor", "Ignore"])});
            let list: Vec<Value> = (0..1 + self.below(2)).map(|_| one(self)).collect();
            spec["topologySpreadConstraints"] = json!(list);
        }
        let mut meta = json!({"name": name, "uid": name, "namespace": self.of(&["n1", "n2"]), "labels": {"app": self.of(&["x", "y", "z"])}});
        if self.one_in(8) {
            meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("a pod"))
    }

    /// Changes the world and the cluster alike.
    fn step(&mut self, world: &mut World, cluster: &mut Cluster, number: usize) {
        match self.below(12) {
            0 | 1 => {
                let name = format!("node{}", self.below(6));
                let node = self.node(&name);
                cluster.set_node(node.clone());
                world.nodes.insert(node.name().into(), node);
            }
            2 if self.one_in(3) => {
                let name = format!("node{}", self.below(6));
                cluster.remove_node(&name);
                world.nodes.remove(&name);
            }
            3 if !world.pods.is_empty() => {
                let (_, pod) = world.pods.swap_remove(self.below(world.pods.len() as u64) as usize);
                assert!(cluster.remove_pod(pod.uid()).is_some());
            }
            4 if self.one_in(3) => {
                let (name, labels) = (self.of(&["n1", "n2"]), Labels::from_iter([("team", self.of(&["red", "blue"]))]));
                cluster.set_namespace(name, Some(labels.clone()));
                world.namespaces.insert(name.into(), labels);
            }
            5 => {
                let (namespace, wanted) = (self.of(&["n1", "n2"]), vec![("app".to_string(), self.of(&["x", "y"]).to_string())]);
                cluster.workloads.services.insert((namespace.into(), "s".into()), wanted.clone());
                cluster.workloads.generation += 1;
                world.services.insert(format!("{namespace}/s"), wanted);
            }
            _ => {
                let (pod, node) = (self.pod(&format!("pod{number}")), format!("node{}", self.below(6)));
                cluster.place(&node, &pod);
                world.pods.push((node, pod));
            }
        }
    }
}

fn compare(seed: u64, profile: &Profile) -> (usize, usize) {
    let mut chance = Chance(seed);
    let (mut world, mut cluster) = (World::default(), Cluster::default());
    let (mut asked, mut fitted) = (0, 0);
    for number in 0..60 {
        chance.step(&mut world, &mut cluster, number);
        let pod = chance.pod("incoming");
        let resolved = cluster.resolve(&pod.shape, profile, 0);
        let (cycle, whole) = Cycle::new(&cluster, profile, &[], &pod, resolved);
        assert_eq!(whole, None);
        let mut fitting: Vec<(NodeIx, Arc<NodeView>)> = Vec::new();
        for node in world.nodes.values() {
            let ix = cluster.ix(node.name()).expect("both have the node");
            let fast = cycle.filter(ix).err().map(|r| (r.plugin, r.reasons(&pod)));
            assert_eq!(fast, world.reject(&pod, node), "seed {seed}, step {number}, {}", node.name());
            asked += 1;
            if fast.is_none() {
                fitting.push((ix, node.clone()));
            } else {
                without_lower(&cycle, &world, &pod, node, ix, seed);
            }
        }
        fitted += fitting.len();
        let (ixs, views): (Vec<NodeIx>, Vec<Arc<NodeView>>) = fitting.into_iter().unzip();
        assert_eq!(cycle.score(&ixs, world.nodes.len()), world.score(&pod, &views, profile), "seed {seed}, step {number}");
    }
    (asked, fitted)
}

/// What preemption asks: would it fit without the pods of lower priority?
fn without_lower(cycle: &Cycle<'_>, world: &World, pod: &PodInfo, node: &NodeView, ix: NodeIx, seed: u64) {
    let lower: Vec<Arc<PodInfo>> = world.on(node.name()).filter(|p| p.shape.priority < pod.shape.priority).cloned().collect();
    let mut less = world.clone();
    less.pods.retain(|(_, p)| !lower.iter().any(|l| l.uid() == p.uid()));
    let fast = cycle.without(ix, &lower).err().map(|r| (r.plugin, r.reasons(pod)));
    assert_eq!(fast, less.reject(pod, node), "seed {seed}, without {} pods of {}", lower.len(), node.name());
}

#[test]
fn the_fast_path_decides_as_the_plain_one() {
    let least = Profile::default();
    let mut most = Profile::default();
    most.strategy = Strategy::MostAllocated;
    let (mut asked, mut fitted) = (0, 0);
    for seed in 0..60 {
        let (a, f) = compare(seed * 7919 + 1, if seed % 2 == 0 { &least } else { &most });
        asked += a;
        fitted += f;
    }
    // Neither answer is rare, or the comparison would say little.
    assert!(fitted * 20 > asked && fitted * 2 < asked, "{fitted} of {asked} fit");
}
