//! Scores in figures.

use super::*;
use crate::filters::Cycle;
use crate::scores::{Evenness, on_shape};

/// The total scores of these nodes under a profile in which only one plug-in gives any.
fn scored(plugin: &str, change: impl FnOnce(&mut Profile), nodes: &[Arc<NodeView>], pods: &[(&str, Arc<PodInfo>)], wanted: &PodInfo) -> Vec<i64> {
    let mut profile = Profile::default();
    crate::config::DEFAULT_PLUGINS.iter().filter(|(n, _)| *n != plugin).for_each(|(n, _)| profile.disable(Some(Point::Score), n));
    profile.enable(None, plugin, 1);
    change(&mut profile);
    let mut cluster = cluster(nodes, pods);
    let resolved = cluster.resolve(&wanted.shape, &profile, 0);
    let (cycle, _) = Cycle::new(&cluster, &profile, &[], wanted, resolved);
    let order: Vec<_> = nodes.iter().map(|n| cluster.ix(n.name()).expect("a node")).collect();
    cycle.score(&order, nodes.len())
}

fn asking(requests: Value) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
}

#[test]
fn resources_are_scored_by_weight() {
    let nodes = [node("a", json!({}))];
    let wanted = pod("p", asking(json!({"cpu": "1", "memory": "4Gi"})));
    let fit = |strategy: Strategy, cpu: i64, memory: i64| {
        let change = |p: &mut Profile| (p.strategy, p.fit_resources) = (strategy, vec![("cpu".into(), cpu), ("memory".into(), memory)]);
        scored("NodeResourcesFit", change, &nodes, &[], &wanted)[0]
    };
    assert_eq!(fit(Strategy::LeastAllocated, 1, 1), (75 + 50) / 2);
    assert_eq!(fit(Strategy::LeastAllocated, 3, 1), (3 * 75 + 50) / 4);
    assert_eq!(fit(Strategy::MostAllocated, 3, 1), (3 * 25 + 50) / 4);
    let shape = || Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 10)]);
    assert_eq!((fit(shape(), 1, 1), fit(shape(), 3, 1)), (38, 31), "rounded: 37.5 and 31.25");
    let none = Strategy::RequestedToCapacityRatio(vec![(0, 0), (100, 0)]);
    assert_eq!(fit(none, 1, 1), 0, "what scores nothing does not count");
}

#[test]
fn unusual_resources_count_for_those_who_ask_for_them() {
    let gpu = "example.com/gpu";
    let nodes = [node("a", json!({"status": {"allocatable": {gpu: "4"}}})), node("b", json!({"status": {"allocatable": {gpu: "4"}}})), node("c", json!({}))];
    let used = [("a", pod("x", asking(json!({gpu: "2", "cpu": "1"}))))];
    let packed = |p: &mut Profile| (p.strategy, p.fit_resources) = (Strategy::MostAllocated, vec![(gpu.into(), 1)]);
    assert_eq!(scored("NodeResourcesFit", packed, &nodes, &used, &pod("p", asking(json!({gpu: "1"})))), [75, 25, 0]);
    assert_eq!(scored("NodeResourcesFit", packed, &nodes, &used, &pod("p", asking(json!({"cpu": "1"})))), [0, 0, 0]);
}

#[test]
fn utilization_is_read_off_the_shape() {
    let shape = [(20, 2), (40, 10), (80, 0)];
    let at = |utilization| on_shape(&shape, utilization);
    assert_eq!([0, 20, 30, 40, 50, 60, 80, 100].map(at), [20, 20, 60, 100, 75, 50, 0, 0]);
    assert_eq!(on_shape(&[(50, 3)], 90), 30, "beyond the last point");
    assert_eq!(on_shape(&[], 50), 0);
}

#[test]
fn evenness_is_the_lack_of_deviation() {
    let of = |used: &[i64]| {
        let mut evenness = Evenness::default();
        used.iter().for_each(|u| evenness.add(*u, 100));
        evenness.score()
    };
    assert_eq!((of(&[]), of(&[70])), (100, 100));
    assert_eq!((of(&[20, 80]), of(&[80, 20]), of(&[150, 100])), (70, 70, 100), "no more than all is used");
    assert_eq!(of(&[0, 0, 90]), 57, "a deviation of 0.4243");
    assert_eq!(of(&[0, 0, 0, 100]), 56, "a deviation of 0.4330");
    assert_eq!(of(&[0; 9]), 100, "there is a most that counts");
}

#[test]
fn images_are_worth_their_size_where_they_are() {
    let image = |name: &str, mib: i64| node(name, json!({"status": {"images": [{"names": ["web:latest"], "sizeBytes": mib << 20}]}}));
    let one = pod("p", json!({"containers": [{"name": "c", "image": "web"}]}));
    let two = pod("p", json!({"containers": [{"name": "c", "image": "web"}, {"name": "d", "image": "other"}]}));
    let local = |nodes: &[Arc<NodeView>], wanted: &PodInfo| scored("ImageLocality", |_| {}, nodes, &[], wanted);
    // (500 - 23) of (1000 - 23) MiB, and of (2000 - 23).
    assert_eq!(local(&[image("a", 500)], &one), [48]);
    assert_eq!(local(&[image("a", 500)], &two), [24]);
    assert_eq!(local(&[image("a", 500), node("b", json!({}))], &one), [23, 0], "half as much when half of the nodes have it");
    assert_eq!(local(&[image("a", 5000), image("b", 20)], &one), [100, 0], "there is a most and a least");
}

#[test]
fn plugins_of_others_score_by_weight() {
    let nodes = ["a", "c", "b"].map(|n| node(n, json!({})));
    let scores = |weight: Option<i64>| {
        let mut profile = Profile::default();
        profile.disable(None, "*");
        match weight {
            Some(weight) => profile.enable(None, "VolumeZone", weight),
            None => {
                profile.enable(None, "VolumeZone", 3);
                profile.disable(Some(Point::Score), "VolumeZone");
            }
        }
        let (mut cluster, wanted) = (cluster(&nodes, &[]), pod("p", json!({})));
        let resolved = cluster.resolve(&wanted.shape, &profile, 0);
        let plugins: [Arc<dyn Plugin>; 1] = [Arc::new(Refuses("a"))];
        let (cycle, _) = Cycle::new(&cluster, &profile, &plugins, &wanted, resolved);
        cycle.score(&nodes.iter().map(|n| cluster.ix(n.name()).expect("a node")).collect::<Vec<_>>(), 3)
    };
    assert_eq!(scores(Some(5)), [0, 500, 0]);
    assert_eq!(scores(None), [0, 0, 0]);
}
