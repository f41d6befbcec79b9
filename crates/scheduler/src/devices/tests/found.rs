//! The allocator.

use serde_json::{Value, json};

use super::*;

const NONE: &str = "cannot allocate all claims";

#[test]
fn devices_are_taken_in_their_order_and_once() {
    let slices = [on_a(plain(&["1", "2", "3"]))];
    check(&slices, &[claim("c", json!([exactly("r", json!({}))]), json!({}))], "r=1");
    check(&slices, &[claim("c", json!([exactly("r", json!({"count": 2})), exactly("q", json!({}))]), json!({}))], "r=1 r=2 q=3");
    check(&slices, &[claim("c", json!([exactly("r", json!({"count": 4}))]), json!({}))], NONE);
    check(&slices, &[claim("c", json!([exactly("r", json!({}))]), json!({})), claim("d", json!([exactly("r", json!({"count": 2}))]), json!({}))], "r=1 r=2 r=3");
    check(&slices, &[claim("c", json!([exactly("r", json!({}))]), json!({})), taken(&["1", "2"])], "r=3");
    check(&slices, &[claim("c", json!([exactly("r", json!({}))]), json!({})), taken(&["1", "2", "3"])], NONE);
    check(&[], &[claim("c", json!([]), json!({}))], "");
}

#[test]
fn selectors_of_class_and_request_choose_and_the_search_goes_back() {
    let gpu = |name: &str, model: &str| json!({"name": name, "attributes": {"model": {"string": model}, "d.io/kind": {"string": "gpu"}}});
    let slices = [on_a(json!([gpu("1", "big"), gpu("2", "small"), gpu("3", "big")]))];
    let wants = |model: &str| exactly("r", json!({"selectors": selected(&format!("model={model}"))}));
    check(&slices, &[claim("c", json!([wants("small")]), json!({}))], "r=2");
    check(&slices, &[claim("c", json!([wants("tiny")]), json!({}))], NONE);
    // Taking the first for the first leaves nothing for the second.
    let any = exactly("any", json!({}));
    let big = exactly("big", json!({"selectors": selected("d.io/model=big"), "count": 2}));
    check(&slices, &[claim("c", json!([any, big]), json!({}))], "any=2 big=1 big=3");
    let mut world = world(&slices, &[claim("c", json!([wants("big")]), json!({}))]);
    class(&mut world, "gpu", json!({"selectors": selected("kind=cpu")}));
    assert_eq!(on(&world, &pod(&["c"]), "a"), Err(NONE.into()), "`kind` is not the same as `d.io/kind`");
    class(&mut world, "gpu", json!({"selectors": selected("d.io/kind=gpu")}));
    assert_eq!(on(&world, &pod(&["c"]), "a").map(|d| devices(&d)), Ok("r=1".into()));
    class(&mut world, "gpu", json!({"selectors": selected("fails")}));
    assert_eq!(on(&world, &pod(&["c"]), "a"), Err("class gpu: selector #0: CEL runtime error: no such key: x".into()));
    check(&slices, &[claim("c", json!([exactly("r", json!({"selectors": selected("?")}))]), json!({}))], "claim default/c: selector #0: CEL compile error: syntax error");
}

#[test]
fn all_means_all() {
    let slices = [on_a(json!([{"name": "1", "attributes": {"m": {"string": "x"}}}, {"name": "2"}, {"name": "3", "attributes": {"m": {"string": "x"}}}]))];
    let all = |more: Value| {
        let mut request = json!({"allocationMode": "All", "count": 0});
        merge(&mut request, more);
        claim("c", json!([exactly("r", request)]), json!({}))
    };
    check(&slices, &[all(json!({"selectors": selected("m=x")}))], "r=1 r=3");
    check(&slices, &[all(json!({})), taken(&["2"])], NONE);
    check(&slices, &[all(json!({"adminAccess": true})), taken(&["2"])], "r=1 r=2 r=3");
    check(&slices, &[all(json!({"selectors": selected("m=y")}))], NONE);
    let many: Vec<String> = (0..33).map(|i| format!("d{i:02}")).collect();
    let many = [on_a(many.iter().map(|n| json!({"name": n})).collect())];
    check(&many, &[all(json!({}))], "claim default/c: number of requested devices 33 exceeds the claim limit of 32");
    let half = [slice("s", json!({"nodeName": "a", "pool": {"resourceSliceCount": 2}, "devices": plain(&["1"])}))];
    check(&half, &[all(json!({}))], "claim default/c, request r: asks for all devices, but resource pool d.io/pool is currently being updated");
}

#[test]
fn the_first_alternative_that_works_is_taken() {
    let small = json!({"attributes": {"size": {"string": "small"}}});
    let device = |name: &str| {
        let mut d = json!({"name": name});
        merge(&mut d, small.clone());
        d
    };
    let slices = [on_a(json!([device("1"), device("2")]))];
    let sub = |name: &str, size: &str, count: i64| json!({"name": name, "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": count, "selectors": selected(&format!("size={size}"))});
    let either = |subs: Value| claim("c", json!([{"name": "r", "firstAvailable": subs}]), json!({"config": [{"requests": ["r/b"], "opaque": {"driver": "d.io", "parameters": {"x": 1}}}, {"requests": ["r/a"], "opaque": {"driver": "d.io", "parameters": {}}}]}));
    check(&slices, &[either(json!([sub("a", "big", 1), sub("b", "small", 2)]))], "r/b=1 r/b=2");
    check(&slices, &[either(json!([sub("a", "big", 1), sub("b", "small", 3)]))], NONE);
    check(&slices, &[either(json!([sub("a", "small", 40), sub("b", "small", 1)]))], "r/b=1");
    let world = world(&slices, &[either(json!([sub("a", "big", 1), sub("b", "small", 1)]))]);
    let given = on(&world, &pod(&["c"]), "a").expect("devices");
    let config = given[0].devices.as_ref().and_then(|d| d.config.as_deref()).unwrap_or_default();
    assert_eq!(config.len(), 1, "only what concerns the alternative that was taken");
    assert_eq!(config[0].requests.as_deref(), Some(&["r/b".to_string()][..]));
    let needs = Needs::of(&world, &pod(&["c"]), means()).expect("needs").expect("claims");
    assert_eq!(needs.on_node(&world, means(), &pod(&["c"]), &node("a"), None).expect("a fit").worth, 7);
}

#[test]
fn constraints_hold_between_devices() {
    let on = |name: &str, board: &str| json!({"name": name, "attributes": {"board": {"string": board}}});
    let slices = [on_a(json!([on("1", "x"), on("2", "y"), on("3", "y"), {"name": "4"}]))];
    let two = |constraint: Value| claim("c", json!([exactly("r", json!({"count": 2}))]), json!({"constraints": [constraint]}));
    check(&slices, &[two(json!({"matchAttribute": "d.io/board"}))], "r=2 r=3");
    check(&slices, &[two(json!({"distinctAttribute": "d.io/board"}))], "r=1 r=2");
    check(&slices, &[two(json!({"distinctAttribute": "other.io/board"}))], NONE);
    check(&slices, &[two(json!({"matchAttribute": "d.io/board", "requests": ["q"]}))], "r=1 r=2");
    let three = |constraint: Value| claim("c", json!([exactly("r", json!({"count": 3}))]), json!({"constraints": [constraint]}));
    check(&slices, &[three(json!({"matchAttribute": "d.io/board"}))], NONE);
    check(&slices, &[three(json!({"distinctAttribute": "d.io/board"}))], NONE);
    let all = claim("c", json!([exactly("r", json!({"allocationMode": "All"}))]), json!({"constraints": [{"matchAttribute": "d.io/board"}]}));
    check(&slices, &[all], "claim default/c, request r: cannot add device d.io/pool/2 because a claim constraint would not be satisfied");
    check(&slices, &[two(json!({}))], "claim default/c, constraint #0: empty constraint (unsupported constraint type?)");
}

#[test]
fn attributes_of_every_type_are_compared() {
    let alike = || [claim("c", json!([exactly("r", json!({"count": 2}))]), json!({"constraints": [{"matchAttribute": "d.io/x"}]}))];
    let with = |values: [Value; 3]| {
        let devices: Vec<Value> = values.into_iter().enumerate().map(|(n, v)| json!({"name": format!("{}", n + 1), "attributes": {"x": v}})).collect();
        [on_a(json!(devices))]
    };
    check(&with([json!({"bool": true}), json!({"bool": false}), json!({"bool": false})]), &alike(), "r=2 r=3");
    check(&with([json!({"version": "1.0.0"}), json!({"version": "2.0.0"}), json!({"version": "1.0.0"})]), &alike(), "r=1 r=3");
    check(&with([json!({"int": 1}), json!({"int": 2}), json!({"int": 2})]), &alike(), "r=2 r=3");
    check(&with([json!({"string": "1.0.0"}), json!({"version": "1.0.0"}), json!({"int": 1})]), &alike(), NONE);
    // What is of a type that is not known equals nothing.
    check(&with([json!({}), json!({}), json!({})]), &alike(), NONE);
}

#[test]
fn a_claim_may_have_just_as_many_devices_as_the_limit() {
    let many = |n: usize| [on_a((0..n).map(|i| json!({"name": format!("d{i:02}")})).collect())];
    let given = |n: usize, request: Value| on(&world(&many(n), &[claim("c", json!([exactly("r", request)]), json!({}))]), &pod(&["c"]), "a");
    let number = |given: Result<Vec<AllocationResult>, String>| given.map(|all| all[0].devices.iter().flat_map(|d| d.results.iter().flatten()).count());
    assert_eq!(number(given(32, json!({"count": 32}))), Ok(32));
    assert_eq!(number(given(32, json!({"allocationMode": "All", "count": 0}))), Ok(32));
    assert!(given(40, json!({"count": 33})).is_err());
    let first = json!({"name": "r", "firstAvailable": [
        {"name": "greedy", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 20},
        {"name": "modest", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 12}]});
    let both = claim("c", json!([exactly("q", json!({"count": 20})), first]), json!({}));
    let got = on(&world(&many(40), &[both]), &pod(&["c"]), "a").expect("devices");
    let texts = devices(&got);
    assert_eq!((texts.matches("q=").count(), texts.matches("r/modest=").count()), (20, 12), "twenty and twenty would be too many: {texts}");
}

#[test]
fn administrators_see_devices_that_others_have() {
    let slices = [on_a(plain(&["1"]))];
    let admin = claim("c", json!([exactly("r", json!({"adminAccess": true}))]), json!({}));
    check(&slices, &[admin.clone(), taken(&["1"])], "r=1");
    let twice = claim("c", json!([exactly("r", json!({"adminAccess": true})), exactly("q", json!({"adminAccess": true}))]), json!({}));
    check(&slices, &[twice], NONE);
    let given = on(&world(&slices, &[admin]), &pod(&["c"]), "a").expect("devices");
    let results = given[0].devices.as_ref().and_then(|d| d.results.as_deref()).unwrap_or_default();
    assert_eq!(results[0].admin_access, Some(true));
    let mut seen = claim("other", json!([]), json!({}));
    seen["status"] = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "pool", "device": "1", "adminAccess": true}]}}});
    check(&slices, &[claim("c", json!([exactly("r", json!({}))]), json!({})), seen], "r=1");
}

#[test]
fn taints_keep_claims_away_that_do_not_tolerate_them() {
    let slices = [on_a(json!([{"name": "1", "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}, {"name": "2", "taints": [{"key": "k", "effect": "None"}]}]))];
    let with = |tolerations: Value| claim("c", json!([exactly("r", json!({"tolerations": tolerations}))]), json!({}));
    check(&slices, &[with(json!([]))], "r=2");
    check(&slices, &[with(json!([{"key": "k", "operator": "Equal", "value": "v"}]))], "r=1");
    check(&slices, &[with(json!([{"operator": "Exists", "effect": "NoSchedule"}]))], "r=1");
    check(&slices, &[with(json!([{"key": "k", "operator": "Equal", "value": "w"}]))], "r=2");
    check(&slices, &[with(json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]))], "r=2");
    let all = claim("c", json!([exactly("r", json!({"allocationMode": "All"}))]), json!({}));
    check(&slices, &[all], NONE);
}

#[test]
fn partitions_share_counters() {
    let part = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "card", "counters": {"memory": {"value": memory}}}]});
    let two = json!({"pool": {"resourceSliceCount": 2}, "nodeName": "a"});
    let mut counters = slice("counters", json!({"sharedCounters": [{"name": "card", "counters": {"memory": {"value": "10Gi"}}}]}));
    merge(&mut counters["spec"], two.clone());
    let mut parts = slice("parts", json!({"devices": [part("whole", "10Gi"), part("half1", "5Gi"), part("half2", "5Gi"), {"name": "free"}]}));
    merge(&mut parts["spec"], two);
    let slices = [counters.clone(), parts.clone()];
    let want = |count: i64| claim("c", json!([exactly("r", json!({"count": count}))]), json!({}));
    check(&slices, &[want(1)], "r=whole");
    check(&slices, &[want(2)], "r=whole r=free");
    check(&slices, &[want(3)], "r=half1 r=half2 r=free");
    check(&slices, &[want(4)], NONE);
    check(&slices, &[want(1), taken(&["half1"])], "r=half2");
    check(&slices, &[want(2), taken(&["whole"])], NONE);
    parts["spec"]["devices"][1]["consumesCounters"][0]["counterSet"] = json!("other");
    check(&[counters, parts], &[want(1)], "invalid resource pools were encountered");
}

#[test]
fn pools_count_when_whole_and_newest() {
    let of = |name: &str, generation: i64, count: i64, devices: &[&str]| slice(name, json!({"nodeName": "a", "pool": {"generation": generation, "resourceSliceCount": count}, "devices": plain(devices)}));
    let want = || [claim("c", json!([exactly("r", json!({}))]), json!({}))];
    check(&[of("s1", 1, 2, &["1"])], &want(), NONE);
    check(&[of("s2", 1, 2, &["2"]), of("s1", 1, 2, &["1"])], &want(), "r=1");
    check(&[of("s1", 1, 1, &["1"]), of("s2", 2, 1, &["2"])], &want(), "r=2");
    check(&[of("s1", 1, 1, &["1"]), of("s2", 2, 2, &["2"])], &want(), NONE);
    check(&[of("s1", 1, 2, &["1"]), of("s2", 1, 2, &["1"])], &want(), "invalid resource pools were encountered");
    // A slice for another node belongs to the pool all the same.
    let elsewhere = |generation: i64| slice("s3", json!({"nodeName": "b", "pool": {"generation": generation, "resourceSliceCount": 2}, "devices": plain(&["3"])}));
    check(&[of("s1", 1, 2, &["1"]), elsewhere(1)], &want(), "r=1");
    check(&[of("s1", 1, 2, &["1"]), elsewhere(2)], &want(), NONE);
    let mut world = world(&[of("s1", 1, 2, &["1"]), elsewhere(1)], &want());
    world.slices.remove("s3");
    assert_eq!(on(&world, &pod(&["c"]), "a"), Err(NONE.into()), "a slice is gone");
}

#[test]
fn devices_are_reached_from_where_their_slices_say() {
    let want = || [claim("c", json!([exactly("r", json!({}))]), json!({}))];
    let selector = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]});
    let selected = [slice("s", json!({"nodeSelector": selector, "devices": plain(&["1"])}))];
    let everywhere = [slice("s", json!({"allNodes": true, "devices": plain(&["1"])}))];
    let each = [slice("s", json!({"perDeviceNodeSelection": true, "devices": [{"name": "1", "nodeName": "b"}, {"name": "2", "nodeSelector": selector}, {"name": "3", "allNodes": true}]}))];
    let reach = |slices: &[Value], at: &str| {
        let given = on(&world(slices, &want()), &pod(&["c"]), at).expect("devices");
        (devices(&given), serde_json::to_value(&given[0].node_selector).expect("json"))
    };
    let named = |node: &str| json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]});
    assert_eq!(reach(&[on_a(plain(&["1"]))], "a"), ("r=1".into(), named("a")));
    check_at("b", &[on_a(plain(&["1"]))], &want(), NONE);
    assert_eq!(reach(&selected, "a"), ("r=1".into(), selector.clone()));
    check_at("b", &selected, &want(), NONE);
    assert_eq!(reach(&everywhere, "b"), ("r=1".into(), Value::Null));
    assert_eq!(reach(&each, "b"), ("r=1".into(), named("b")));
    assert_eq!(reach(&each, "a"), ("r=2".into(), selector));
    assert_eq!(reach(&each, "c"), ("r=3".into(), Value::Null));
    // What several devices want of the node is said once.
    let zone = |key: &str, value: &str| json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}]});
    let pair = |one: Value, other: Value| {
        let devices = json!([{"name": "1", "nodeSelector": one}, {"name": "2", "nodeSelector": other}]);
        let two = [claim("c", json!([exactly("r", json!({"count": 2}))]), json!({}))];
        let given = on(&world(&[slice("s", json!({"perDeviceNodeSelection": true, "devices": devices}))], &two), &pod(&["c"]), "a").expect("devices");
        serde_json::to_value(&given[0].node_selector).expect("json")["nodeSelectorTerms"][0]["matchExpressions"].as_array().map(Vec::len)
    };
    assert_eq!(pair(zone("zone", "a"), zone("zone", "a")), Some(1));
    let several = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}]});
    assert_eq!(pair(zone("zone", "a"), several), Some(2), "they differ in their values");
    let exists = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]});
    assert_eq!(pair(zone("zone", "a"), exists), Some(2), "and in their operators");
    let bound = [slice("s", json!({"allNodes": true, "devices": [{"name": "1", "bindsToNode": true}]}))];
    assert_eq!(reach(&bound, "c"), ("r=1".into(), named("c")));
    check(&[slice("s", json!({"devices": plain(&["1"])}))], &want(), NONE);
}

#[test]
fn shared_devices_give_out_their_capacity() {
    let policy = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "2Gi"}});
    let slices = [on_a(json!([{"name": "1", "allowMultipleAllocations": true, "capacity": {"memory": {"value": "8Gi", "requestPolicy": policy}}}]))];
    let want = |name: &str, memory: Option<&str>| {
        let capacity = memory.map_or(json!({}), |m| json!({"capacity": {"requests": {"memory": m}}}));
        claim(name, json!([exactly("r", capacity)]), json!({}))
    };
    let got = |claims: &[Value], names: &[&str]| -> Result<Vec<String>, String> {
        let given = on(&world(&slices, claims), &pod(names), "a")?;
        let results = given.iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
        Ok(results.map(|r| format!("{} {} {}", r.device, r.share_id.as_deref().unwrap_or_default(), r.consumed_capacity.as_ref().map_or("", |c| &c["memory"].0))).collect())
    };
    assert_eq!(got(&[want("c", Some("2Gi"))], &["c"]), Ok(vec!["1 share-1 3Gi".into()]), "rounded up");
    assert_eq!(got(&[want("c", None), want("d", Some("5Gi"))], &["c", "d"]), Ok(vec!["1 share-1 1Gi".into(), "1 share-2 5Gi".into()]));
    assert_eq!(got(&[want("c", Some("5Gi")), want("d", Some("5Gi"))], &["c", "d"]), Err(NONE.into()));
    assert_eq!(got(&[want("c", Some("9Gi"))], &["c"]), Err(NONE.into()));
    let other = claim("c", json!([exactly("r", json!({"capacity": {"requests": {"lanes": "1"}}}))]), json!({}));
    assert_eq!(got(&[other], &["c"]), Err(NONE.into()), "it has no such capacity");
    let mut held = claim("other", json!([]), json!({}));
    held["status"] = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "pool", "device": "1", "shareID": "x", "consumedCapacity": {"memory": "5Gi"}}]}}});
    assert_eq!(got(&[want("c", Some("3Gi")), held.clone()], &["c"]), Ok(vec!["1 share-1 3Gi".into()]));
    assert_eq!(got(&[want("c", Some("4Gi")), held], &["c"]), Err(NONE.into()));
    // Of a device that is not shared that much must be there, and all of it is had.
    let own = [on_a(json!([{"name": "1", "capacity": {"memory": {"value": "8Gi"}}}, {"name": "2", "capacity": {"memory": {"value": "16Gi"}}}]))];
    check(&own, &[want("c", Some("10Gi"))], "r=2");
    check(&own, &[want("c", Some("1Gi")), want("d", Some("1Gi"))], "r=1 r=2");
}

#[test]
fn configuration_is_of_the_classes_first_and_each_once() {
    let opaque = |x: i64| json!({"opaque": {"driver": "d.io", "parameters": {"x": x}}});
    let mut own = opaque(2);
    own["requests"] = json!(["q"]);
    let mut world = world(&[on_a(plain(&["1", "2"]))], &[claim("c", json!([exactly("r", json!({})), exactly("q", json!({}))]), json!({"config": [own, opaque(3)]}))]);
    class(&mut world, "gpu", json!({"config": [opaque(1)]}));
    let given = on(&world, &pod(&["c"]), "a").expect("devices");
    let config = serde_json::to_value(given[0].devices.as_ref().and_then(|d| d.config.clone())).expect("json");
    let entry = |source: &str, requests: Option<Value>, x: i64| {
        let mut entry = opaque(x);
        entry["source"] = json!(source);
        requests.into_iter().for_each(|r| entry["requests"] = r);
        entry
    };
    assert_eq!(config, json!([entry("FromClass", Some(json!(["r", "q"])), 1), entry("FromClaim", Some(json!(["q"])), 2), entry("FromClaim", None, 3)]));
}

#[test]
fn a_search_that_leads_nowhere_ends() {
    // Any two of many devices, and then one that is not there: all pairs are tried, but not for ever.
    let names: Vec<String> = (0..60).map(|i| format!("d{i:02}")).collect();
    let slices = [on_a(names.iter().map(|n| json!({"name": n})).collect())];
    let none = exactly("q", json!({"selectors": selected("x=y")}));
    let claims = [claim("c", json!([exactly("r", json!({"count": 20})), none]), json!({}))];
    check(&slices, &claims, "node a: timed out trying to allocate devices");
}
