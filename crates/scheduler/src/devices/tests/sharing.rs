//! Devices that several claims have at once, what a node has in figures, and how good a node's devices are.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde_json::{Value, json};

use super::super::capacity::{consumed, has_room};
use super::super::survey::Survey;
use super::*;

/// A device that gives out `8Gi` of memory by this policy.
fn device(policy: Value) -> Value {
    json!([{"name": "1", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "8Gi", "requestPolicy": policy}}}])
}

/// What is taken for a wish, when the device gives out such an amount.
fn taken_of(policy: Value, wish: &str) -> Option<String> {
    let slice: Slice = read(on_a(device(policy)));
    let wishes: BTreeMap<String, Quantity> = [("memory".to_string(), Quantity::parse(wish).expect("an amount"))].into_iter().filter(|_| !wish.is_empty()).collect();
    has_room(&wishes, &slice.devices[0], &[]).then(|| consumed(&wishes, &slice.devices[0])["memory"].to_string())
}

#[test]
fn wishes_become_what_the_device_gives_out() {
    let range = |wish: &str| taken_of(json!({"default": "1Gi", "validRange": {"min": "1Gi", "max": "6Gi", "step": "2Gi"}}), wish);
    assert_eq!([range("512Mi"), range("1Gi"), range("2Gi"), range("3Gi"), range("5Gi")].map(Option::unwrap_or_default), ["1Gi", "1Gi", "3Gi", "3Gi", "5Gi"]);
    assert_eq!(range("6Gi"), None, "seven are more than it gives to one");
    let open = |wish: &str| taken_of(json!({"default": "1Gi", "validRange": {"min": "1Gi"}}), wish);
    assert_eq!([open("100Mi"), open("1500Mi"), open("8Gi")].map(Option::unwrap_or_default), ["1Gi", "1500Mi", "8Gi"]);
    assert_eq!(open("9Gi"), None);
    let listed = |wish: &str| taken_of(json!({"default": "2Gi", "validValues": ["2Gi", "4Gi"]}), wish);
    assert_eq!([listed("1Gi"), listed("2Gi"), listed("3Gi")].map(Option::unwrap_or_default), ["2Gi", "2Gi", "4Gi"]);
    assert_eq!(listed("5Gi"), None);
    let all = |wish: &str| taken_of(Value::Null, wish);
    assert_eq!((all("3Gi").as_deref(), all("9Gi")), (Some("3Gi"), None));
}

fn sharing(name: &str, memory: &str, at: Option<&str>) -> Value {
    let mut claim = claim(name, json!([exactly("r", json!({"capacity": {"requests": {"memory": memory}}}))]), json!({}));
    if let Some(share) = at {
        claim["status"] = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "pool", "device": "1", "shareID": share, "consumedCapacity": {"memory": memory}}]}}});
    }
    claim
}

#[test]
fn a_share_that_is_given_back_leaves_the_others() {
    let mut world = world(&[on_a(device(Value::Null))], &[sharing("x", "3Gi", Some("1")), sharing("y", "4Gi", Some("2")), sharing("c", "2Gi", None), sharing("d", "5Gi", None)]);
    let fits = |world: &World, name: &str| on(world, &pod(&[name]), "a").is_ok();
    assert!(!fits(&world, "c"), "one is left");
    world.remove_claim(&read(sharing("x", "3Gi", Some("1"))));
    assert!(fits(&world, "c") && !fits(&world, "d"), "four are left");
    world.remove_claim(&read(sharing("y", "4Gi", Some("2"))));
    assert!(fits(&world, "d"));
}

#[test]
fn shares_that_lead_nowhere_are_given_back() {
    // The second claim's first choice leaves too little for the third: its next one must find all as it was.
    let either = claim(
        "b",
        json!([{"name": "r", "firstAvailable": [{"name": "much", "deviceClassName": "gpu", "capacity": {"requests": {"memory": "4Gi"}}}, {"name": "little", "deviceClassName": "gpu", "capacity": {"requests": {"memory": "1Gi"}}}]}]),
        json!({}),
    );
    let slices = [on_a(device(Value::Null))];
    check(&slices, &[sharing("a", "3Gi", None), either.clone(), sharing("c", "4Gi", None)], "r=1 r/little=1 r=1");
    check(&slices, &[sharing("a", "3Gi", None), either, sharing("c", "5Gi", None)], "cannot allocate all claims");
}

#[test]
fn a_shared_device_takes_its_counters_once() {
    let mut device = device(Value::Null);
    device[0]["consumesCounters"] = json!([{"counterSet": "card", "counters": {"units": {"value": "1"}}}]);
    let devices = slice("s", json!({"nodeName": "a", "pool": {"resourceSliceCount": 2}, "devices": device}));
    let counters = slice("counters", json!({"pool": {"resourceSliceCount": 2}, "nodeName": "a", "sharedCounters": [{"name": "card", "counters": {"units": {"value": "1"}}}]}));
    check(&[devices, counters], &[sharing("a", "3Gi", None), sharing("b", "3Gi", None)], "r=1 r=1");
}

fn surveyed(slices: &[Value], claims: &[Value], wanted: Value) -> Survey {
    let all: Vec<Value> = claims.iter().cloned().chain([claim("c", json!([exactly("r", wanted)]), json!({}))]).collect();
    let world = world(slices, &all);
    let pod = pod(&["c"]);
    let needs = Needs::of(&world, &pod, means()).unwrap_or_else(|r| panic!("{:?}", r.reasons(&pod))).expect("it has a claim");
    needs.survey(&world, means(), &pod, &node("a")).remove(0)
}

#[test]
fn a_survey_counts_what_a_node_has() {
    let taint = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
    let soft = json!([{"key": "k", "value": "v", "effect": "None"}]);
    let with = |name: &str, kind: &str, taints: &Value| json!({"name": name, "attributes": {"kind": {"string": kind}}, "taints": taints});
    let slices = [on_a(json!([with("1", "x", &json!([])), with("2", "x", &taint), with("3", "x", &taint), with("4", "x", &soft), with("5", "x", &json!([])), with("6", "y", &json!([]))]))];
    let numbers = |wanted: Value| {
        let s = surveyed(&slices, &[taken(&["1", "2"])], wanted);
        (s.near, s.matching, s.tainted, s.taken, s.free())
    };
    assert_eq!(numbers(json!({"selectors": selected("kind=x")})), (6, 5, 2, 1, 2), "one that is tainted and taken counts as tainted");
    assert_eq!(numbers(json!({"selectors": selected("kind=x"), "tolerations": [{"key": "k", "operator": "Exists"}]})), (6, 5, 0, 2, 3));
    assert_eq!(numbers(json!({"selectors": selected("kind=x"), "tolerations": [{"key": "other", "operator": "Exists"}]})), (6, 5, 2, 1, 2));
    assert_eq!(numbers(json!({"adminAccess": true})), (6, 6, 2, 0, 4), "an administrator may have what others have");
    let spread = [slice("s", json!({"perDeviceNodeSelection": true, "devices": [{"name": "1", "nodeName": "a"}, {"name": "2", "nodeName": "b"}, {"name": "3", "allNodes": true}]}))];
    assert_eq!(surveyed(&spread, &[], json!({})).near, 2, "those that the node reaches");
}

#[test]
fn earlier_alternatives_are_worth_more() {
    let alternatives = |name: &str| {
        let one = |kind: &str| json!({"name": kind, "deviceClassName": "gpu", "selectors": selected(&format!("kind={kind}"))});
        claim(name, json!([{"name": "r", "firstAvailable": [one("best"), one("good"), one("poor")]}]), json!({}))
    };
    let device = |kind: &str| on_a(json!([{"name": "1", "attributes": {"kind": {"string": kind}}}]));
    let worth = |slices: &[Value], claims: &[Value]| {
        let world = world(slices, claims);
        let pod = pod(&["c"]);
        let needs = Needs::of(&world, &pod, means()).unwrap_or_else(|r| panic!("{:?}", r.reasons(&pod))).expect("it has a claim");
        needs.on_node(&world, means(), &pod, &node("a"), None).map(|fit| fit.worth).unwrap_or(-1)
    };
    assert_eq!(["best", "good", "poor", "none"].map(|kind| worth(&[device(kind)], &[alternatives("c")])), [8, 7, 6, -1]);
    // Of a claim that has its devices already it is what it has.
    let given = |request: &str| {
        let mut claim = alternatives("c");
        claim["status"] = json!({"allocation": {"devices": {"results": [{"request": request, "driver": "d.io", "pool": "pool", "device": "1"}]}}});
        worth(&[device("best")], &[claim])
    };
    assert_eq!((given("r/best"), given("r/poor")), (8, 6));
}

mod plugin {
    use parking_lot::RwLock;

    use super::*;
    use crate::cluster::{Cluster, NodeInfo};
    use crate::config::Profile;
    use crate::devices::plugin::DynamicResources;
    use crate::hints::Event;
    use crate::plugin::{Plugin, Prepared, Site};

    fn over(world: World, ready: bool) -> DynamicResources {
        DynamicResources::new(Arc::new(RwLock::new(world)), Arc::new(Simple), Box::new(|name| Some(Arc::new(node(name)))), move || ready, None)
    }

    fn info(name: &str) -> NodeInfo {
        Cluster::new([Arc::new(node(name))], []).node(name).expect("it is there").clone()
    }

    fn fits(plugin: &DynamicResources, pod: &PodInfo) -> bool {
        match plugin.prepare(pod, &Profile::default()) {
            Prepared::Check(check) => check.filter(Site::plain(&info("a"))).is_ok(),
            _ => panic!("it has a claim"),
        }
    }

    fn named(name: &str, claim: &str) -> PodInfo {
        read(json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"containers": [], "resourceClaims": [{"name": "c", "resourceClaimName": claim}]}}))
    }

    fn one(name: &str) -> Value {
        claim(name, json!([exactly("r", json!({}))]), json!({}))
    }

    #[test]
    fn what_is_promised_is_kept_until_it_is_taken_back() {
        let plugin = over(world(&[on_a(plain(&["1"]))], &[one("c"), one("d")]), true);
        let (first, second) = (named("p", "c"), named("q", "d"));
        assert!(fits(&plugin, &first) && fits(&plugin, &second));
        plugin.reserve(&first, "a").expect("it fits");
        assert!(plugin.must_pre_bind(&first, "a") && !plugin.must_pre_bind(&second, "a"));
        assert!(!fits(&plugin, &second) && plugin.reserve(&second, "a").is_err());
        plugin.unreserve(&first, "a");
        assert!(fits(&plugin, &second) && !plugin.must_pre_bind(&first, "a"));
        assert!(!plugin.must_pre_bind(&pod(&[]), "a") && matches!(plugin.prepare(&pod(&[]), &Profile::default()), Prepared::Skip));
        let early = over(world(&[], &[one("c")]), false);
        assert!(matches!(early.prepare(&first, &Profile::default()), Prepared::Reject(_)), "the devices are not known yet");
    }

    #[test]
    fn nodes_are_scored_by_their_best() {
        let alternative = |kind: &str| json!({"name": kind, "deviceClassName": "gpu", "selectors": selected(&format!("kind={kind}"))});
        let alternatives = ["0", "1", "2", "3", "4"].map(alternative);
        let wanted = claim("c", json!([{"name": "r", "firstAvailable": alternatives}]), json!({}));
        let device = |name: &str, kind: &str| slice(name, json!({"nodeName": name, "pool": {"name": name}, "devices": [{"name": "1", "attributes": {"kind": {"string": kind}}}]}));
        let slices = [device("a", "0"), device("b", "4")];
        let nodes = ["a", "b", "c"].map(info);
        let plugin = over(world(&slices, &[wanted, one("d")]), true);
        let scores = |claim: &str| match plugin.prepare(&named("p", claim), &Profile::default()) {
            Prepared::Check(check) => check.score(&nodes.each_ref()),
            _ => panic!("it has a claim"),
        };
        assert_eq!(scores("c"), Some(vec![100, 50, 0]), "eight, four and none");
        assert_eq!(scores("d"), None, "there are no alternatives");
    }

    #[test]
    fn changes_of_nodes_and_of_pods_with_devices_help() {
        let mut all = world(&[on_a(plain(&["1"]))], &[one("c")]);
        class(&mut all, "gpu", json!({"extendedResourceName": "example.com/gpu"}));
        let plugin = over(all, true);
        let waiting = named("p", "c");
        let helps = |event: Event| plugin.helps(&waiting, &event);
        let of = |labels: Value, cpu: &str| Arc::new(read::<NodeView>(json!({"metadata": {"name": "a", "labels": labels}, "status": {"allocatable": {"cpu": cpu}}})));
        let changed = |labels: Value, cpu: &str| Event::Node { old: Some(of(json!({}), "1")), new: of(labels, cpu) };
        assert!(helps(Event::Node { old: None, new: of(json!({}), "1") }));
        assert!(helps(changed(json!({"k": "v"}), "1")) && helps(changed(json!({}), "2")) && !helps(changed(json!({}), "1")));
        assert!(!helps(Event::NodeGone { old: of(json!({}), "1") }));
        let gone = |pod: PodInfo| Event::PodGone { old: Arc::new(pod), node: "a".into() };
        assert!(helps(gone(named("q", "c"))) && !helps(gone(named("p", "c"))), "what it had itself it can have again");
        let with = |resource: &str| read::<PodInfo>(json!({"metadata": {"name": "q", "uid": "q"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {resource: "1"}}}]}}));
        assert!(helps(gone(with("example.com/gpu"))) && !helps(gone(with("example.com/other"))) && !helps(gone(with("cpu"))));
        assert!(plugin.provides("example.com/gpu") && !plugin.provides("example.com/other"));
    }
}
