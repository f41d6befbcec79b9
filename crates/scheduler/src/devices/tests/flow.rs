//! What a pod waits for, promises, and what is given back.

use serde_json::json;

use super::super::needs::{Readiness, readiness};
use super::*;

fn one(name: &str) -> Value {
    claim(name, json!([exactly("r", json!({}))]), json!({}))
}

fn given(name: &str, device: &str, more: Value) -> Value {
    let mut all = one(name);
    all["status"] = json!({"allocation": {"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "pool", "device": device}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}});
    merge(&mut all, more);
    all
}

#[test]
fn a_pod_waits_for_its_claims() {
    let world = world(&[on_a(plain(&["1"]))], &[one("c"), {
        let mut going = one("going");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        going
    }]);
    let why = |pod: &PodInfo| world.claims_of(pod).map(|_| ());
    assert_eq!(why(&pod(&["c"])), Ok(()));
    assert_eq!(why(&pod(&["x"])), Err("could not find ResourceClaim \"default/x\"".into()));
    assert_eq!(why(&pod(&["going"])), Err("resourceclaim \"going\" is being deleted".into()));
    let templated = |status: Value| -> PodInfo {
        read(json!({"metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {"containers": [], "resourceClaims": [{"name": "t", "resourceClaimTemplateName": "t"}]}, "status": status}))
    };
    assert_eq!(why(&templated(json!({}))), Err("pod \"default/p\": ResourceClaim not created yet".into()));
    assert_eq!(why(&templated(json!({"resourceClaimStatuses": [{"name": "t"}]}))), Ok(()), "none is needed");
    let made = templated(json!({"resourceClaimStatuses": [{"name": "t", "resourceClaimName": "c"}]}));
    assert_eq!(why(&made), Err("ResourceClaim default/c was not created for Pod default/p (Pod is not owner)".into()));
}

#[test]
fn classes_must_exist() {
    let foreign = claim("c", json!([exactly("r", json!({"deviceClassName": "none"}))]), json!({}));
    check(&[], &[foreign], "request r: device class none does not exist");
    let alternative = claim("c", json!([{"name": "r", "firstAvailable": [{"name": "s", "deviceClassName": "none"}]}]), json!({}));
    check(&[], &[alternative], "request r/s: device class none does not exist");
    check(&[], &[claim("c", json!([{"name": "r"}]), json!({}))], "resource claim default/c, request r: unknown request type");
}

#[test]
fn what_is_promised_is_not_given_to_others() {
    let mut world = world(&[on_a(plain(&["1", "2"]))], &[one("c"), one("d"), one("e")]);
    let mut promise = |name: &str| {
        let allocation = on(&world, &pod(&[name]), "a").map(|mut g| Arc::new(g.remove(0)));
        let allocation = allocation?;
        world.promise(&format!("uid-{name}"), allocation.clone());
        Ok::<_, String>(devices(&[allocation.as_ref().clone()]))
    };
    assert_eq!((promise("c"), promise("d"), promise("e")), (Ok("r=1".into()), Ok("r=2".into()), Err("cannot allocate all claims".into())));
    assert_eq!(on(&world, &pod(&["c"]), "a"), Err("resource claim default/c is in the process of being allocated".into()));
    // Written down, it counts as before; taken back, it is free.
    world.end_promise("uid-c", Some(&Arc::new(read(given("c", "1", json!({"metadata": {"resourceVersion": "5"}}))))));
    assert_eq!(on(&world, &pod(&["e"]), "a"), Err("cannot allocate all claims".into()));
    world.put_claim(&Arc::new(read(one("c"))));
    assert_eq!(on(&world, &pod(&["e"]), "a"), Err("cannot allocate all claims".into()), "what is older does not count");
    world.end_promise("uid-d", None);
    assert_eq!(on(&world, &pod(&["e"]), "a").map(|g| devices(&g)), Ok("r=2".into()));
    let mut freed = one("c");
    freed["metadata"]["resourceVersion"] = json!("6");
    world.put_claim(&Arc::new(read(freed)));
    assert_eq!(on(&world, &pod(&["e"]), "a").map(|g| devices(&g)), Ok("r=1".into()));
    assert!(world.taken.devices.is_empty() && world.taken.shares.is_empty());
    world.remove_claim(&read(one("e")));
    assert!(world.claims_of(&pod(&["e"])).is_err());
}

#[test]
fn an_allocated_claim_is_used_where_it_is() {
    let slices = [on_a(plain(&["1"]))];
    check_at("a", &slices, &[given("c", "1", json!({}))], "");
    check_at("b", &slices, &[given("c", "1", json!({}))], "resourceclaim not available on the node");
    let after = |reserved: Value| {
        let world = world(&slices, &[given("c", "1", json!({"status": {"reservedFor": reserved}}))]);
        let needs = Needs::of(&world, &pod(&["c"]), means()).expect("needs").expect("claims");
        let refusal = needs.on_node(&world, means(), &pod(&["c"]), &node("b"), None).expect_err("not there");
        let after = needs.after(&pod(&["c"]), refusal.unavailable.into_iter());
        (after.message, after.give_back)
    };
    let idle = ("deallocation of ResourceClaim completed", Some("c".to_string()));
    assert_eq!(after(json!([])), idle);
    assert_eq!(after(json!([{"resource": "pods", "name": "p", "uid": "p"}])), idle);
    assert_eq!(after(json!([{"resource": "pods", "name": "q", "uid": "q"}])), ("still not schedulable", None), "somebody else uses it");
}

#[test]
fn devices_get_ready_or_do_not() {
    let with = |conditions: Value, since: &str| {
        let mut all = given("c", "1", json!({"status": {"allocation": {"allocationTimestamp": since}, "devices": [{"driver": "d.io", "pool": "pool", "device": "1", "conditions": conditions}]}}));
        let result = &mut all["status"]["allocation"]["devices"]["results"][0];
        result["bindingConditions"] = json!(["Attached"]);
        result["bindingFailureConditions"] = json!(["Broken"]);
        all
    };
    let condition = |name: &str, status: &str| json!({"type": name, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let state = |conditions: Value| readiness(&read(with(conditions, "1970-01-12T13:40:00Z")));
    assert_eq!(state(json!([])), Readiness::Waiting);
    assert_eq!(state(json!([condition("Attached", "False")])), Readiness::Waiting);
    assert_eq!(state(json!([condition("Attached", "True"), condition("Broken", "False")])), Readiness::Ready);
    assert_eq!(state(json!([condition("Attached", "True"), condition("Broken", "True")])), Readiness::Failed("device binding failed: claim=c, reason=R, message=\"m\"".into()));
    // What is said of another device of that name counts for nothing.
    for (field, value) in [("driver", "e.io"), ("pool", "other"), ("device", "2")] {
        let mut elsewhere = with(json!([condition("Attached", "True")]), "1970-01-12T13:40:00Z");
        elsewhere["status"]["devices"][0][field] = json!(value);
        assert_eq!(readiness(&read(elsewhere)), Readiness::Waiting, "{field}");
    }
    // It is second 1,000,000, and devices have ten minutes.
    let slices = [on_a(plain(&["1"]))];
    check(&slices, &[with(json!([]), "1970-01-12T13:40:00Z")], "");
    check(&slices, &[with(json!([]), "1970-01-12T13:20:00Z")], "resourceclaim not available on the node");
    check(&slices, &[with(json!([condition("Attached", "True")]), "1970-01-12T13:20:00Z")], "");
    check(&slices, &[with(json!([condition("Broken", "True")]), "1970-01-12T13:46:30Z")], "resourceclaim not available on the node");
}

#[test]
fn pools_whose_devices_must_get_ready_come_last() {
    let early = slice("s1", json!({"nodeName": "a", "pool": {"name": "a"}, "devices": [{"name": "slow", "bindingConditions": ["x"]}]}));
    let late = slice("s2", json!({"nodeName": "a", "pool": {"name": "b"}, "devices": [{"name": "fast"}]}));
    check(&[early, late], &[claim("c", json!([exactly("r", json!({"count": 2}))]), json!({}))], "r=fast r=slow");
}
