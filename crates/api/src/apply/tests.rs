//! Scenarios of field ownership.

use super::*;
use serde_json::json;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "replicas": {"type": "integer"},
            "paused": {"type": "boolean"},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
            "finalizers": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "containers": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "image": {"type": "string"},
                    "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                        "items": {"type": "object", "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}}}}}
        }},
        "status": {"type": "object", "properties": {"ready": {"type": "integer"}}}
    }})
});

const T1: &str = "2026-01-01T00:00:00Z";
const T2: &str = "2026-01-02T00:00:00Z";

fn target(sub: &'static str) -> Target<'static> {
    Target::new(Node::CustomResource(&SCHEMA), "apps/v1", "Thing", sub, true)
}

fn thing(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Thing", "metadata": {"name": "a", "namespace": "n"}, "spec": spec})
}

fn stored(mut v: Value) -> Value {
    v["metadata"]["uid"] = "u".into();
    v
}

fn owners(v: &Value) -> Vec<(String, String, String)> {
    decode(v["metadata"].get("managedFields"))
        .unwrap()
        .iter()
        .map(|m| {
            let paths: Vec<String> = m.set.paths().iter().map(|p| show_path(p)).collect();
            (m.name.clone(), m.time.clone().unwrap(), paths.join(" "))
        })
        .collect()
}

fn own(name: &str, time: &str, paths: &str) -> (String, String, String) {
    (name.into(), time.into(), paths.into())
}

#[test]
fn create_and_update_are_tracked() {
    let mut v = thing(json!({"replicas": 1, "containers": [{"name": "c", "image": "i:1"}]}));
    track_update(&target(""), None, &mut v, "kubectl-create", T1);
    let c = ".spec.containers .spec.containers[name=\"c\"] .spec.containers[name=\"c\"].image .spec.containers[name=\"c\"].name";
    assert_eq!(owners(&v), [own("kubectl-create", T1, &format!(".spec .spec.containers .spec.replicas {}", &c[".spec.containers ".len()..]))]);
    assert_eq!(v["metadata"]["managedFields"][0]["fieldsType"], "FieldsV1");
    let old = stored(v);
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "i:2".into();
    track_update(&target(""), Some(&old), &mut new, "kubectl-set", T2);
    let got = owners(&new);
    assert_eq!(got[1], own("kubectl-set", T2, ".spec.containers[name=\"c\"].image"));
    assert!(!got[0].2.contains("image") && got[0].1 == T1);
    let mut status = new.clone();
    status["status"] = json!({"ready": 1});
    track_update(&target("status"), Some(&new), &mut status, "controller", T2);
    assert_eq!(status["metadata"]["managedFields"][1]["subresource"], "status");
    assert!(owners(&status).contains(&own("controller", T2, ".status .status.ready")));
}

#[test]
fn unchanged_update_changes_no_entry() {
    let mut v = thing(json!({"replicas": 1}));
    track_update(&target(""), None, &mut v, "a", T1);
    let old = stored(v);
    let mut new = old.clone();
    track_update(&target(""), Some(&old), &mut new, "b", T2);
    assert_eq!(old, new);
}

#[test]
fn apply_creates_updates_and_removes() {
    let t = target("");
    let v = apply(&t, None, &thing(json!({"replicas": 1, "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]})), "ci", false, T1).unwrap();
    assert_eq!(v["metadata"]["managedFields"][0]["operation"], "Apply");
    let live = stored(v);
    let v = apply(&t, Some(&live), &thing(json!({"containers": [{"name": "b", "image": "z"}]})), "ci", false, T2).unwrap();
    assert_eq!(v["spec"], json!({"containers": [{"name": "b", "image": "z"}]}));
    assert_eq!(owners(&v)[0].1, T2);
    // the same again changes nothing, not even the time
    let again = apply(&t, Some(&v), &thing(json!({"containers": [{"name": "b", "image": "z"}]})), "ci", false, "2026-01-03T00:00:00Z").unwrap();
    assert_eq!(again, v);
}

#[test]
fn shared_fields_stay() {
    let t = target("");
    let one = apply(&t, None, &thing(json!({"replicas": 2, "paused": true})), "one", false, T1).unwrap();
    let two = apply(&t, Some(&stored(one)), &thing(json!({"replicas": 2})), "two", false, T1).unwrap();
    let v = apply(&t, Some(&two), &thing(json!({})), "one", false, T2).unwrap();
    assert_eq!(v["spec"], json!({"replicas": 2}));
    let v = apply(&t, Some(&v), &thing(json!({})), "two", false, T2).unwrap();
    assert!(v["spec"].get("replicas").is_none());
}

#[test]
fn conflicts_and_force() {
    let t = target("");
    let v = apply(&t, None, &thing(json!({"replicas": 1})), "one", false, T1).unwrap();
    let live = stored(v);
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 3.into();
    scaled["spec"]["paused"] = true.into();
    track_update(&t, Some(&live), &mut scaled, "kubectl-scale", T2);
    let e = apply(&t, Some(&scaled), &thing(json!({"replicas": 2})), "one", false, T2).unwrap_err();
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas");
    assert_eq!((e.code, e.reason.as_str()), (409, "Conflict"));
    let cause = &e.details.as_ref().unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".spec.replicas"));
    let e = apply(&t, Some(&scaled), &thing(json!({"replicas": 2, "paused": false})), "one", false, T2).unwrap_err();
    assert_eq!(
        e.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-scale\" using apps/v1:\n- .spec.paused\n- .spec.replicas"
    );
    let v = apply(&t, Some(&scaled), &thing(json!({"replicas": 2})), "one", true, T2).unwrap();
    assert_eq!(owners(&v), [own("one", T2, ".spec.replicas"), own("kubectl-scale", T2, ".spec.paused")]);
    // giving the same value is no conflict
    assert!(apply(&t, Some(&scaled), &thing(json!({"replicas": 3})), "two", false, T2).is_ok());
}

#[test]
fn first_apply_over_an_untracked_object() {
    let t = target("");
    let live = stored(thing(json!({"replicas": 1, "paused": true})));
    let e = apply(&t, Some(&live), &thing(json!({"replicas": 2})), "one", false, T1).unwrap_err();
    assert!(e.message.contains("conflict with \"before-first-apply\" using apps/v1: .spec.replicas"), "{}", e.message);
    let v = apply(&t, Some(&live), &thing(json!({"replicas": 2})), "one", true, T1).unwrap();
    assert!(owners(&v).iter().any(|o| o.0 == "before-first-apply" && o.2.contains(".spec.paused")));
}

#[test]
fn kubectl_takes_over_from_client_side_apply() {
    let t = target("");
    let mut v = thing(json!({"replicas": 1, "paused": true}));
    let last = thing(json!({"replicas": 1}));
    v["metadata"]["annotations"] = json!({LAST_APPLIED: last.to_string()});
    track_update(&t, None, &mut v, "kubectl-client-side-apply", T1);
    let live = stored(v);
    let v = apply(&t, Some(&live), &thing(json!({"replicas": 5})), "kubectl", false, T2).unwrap();
    assert_eq!(v["spec"]["replicas"], 5);
    let last: Value = serde_json::from_str(v["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap()).unwrap();
    assert_eq!(last["spec"]["replicas"], 5);
    assert!(apply(&t, Some(&live), &thing(json!({"paused": false})), "kubectl", false, T2).is_err());
}

#[test]
fn lists_and_maps() {
    let t = target("");
    let v = apply(&t, None, &thing(json!({"finalizers": ["a", "b"], "args": ["1", "2"], "selector": {"a": "b"},
        "containers": [{"name": "x", "ports": [{"port": 80}]}]})), "one", false, T1).unwrap();
    let o = &owners(&v)[0].2;
    assert!(o.contains(".spec.finalizers[=\"a\"]") && o.contains(".spec.args ") && o.contains(".spec.selector") && !o.contains(".spec.selector.a"));
    assert!(o.contains(".ports[port=80,protocol=\"TCP\"]"), "{o}");
    let v = apply(&t, Some(&stored(v)), &thing(json!({"finalizers": ["c"]})), "two", false, T2).unwrap();
    assert_eq!(v["spec"]["finalizers"], json!(["a", "b", "c"]));
    let v = apply(&t, Some(&v), &thing(json!({"finalizers": ["b"], "containers": [{"name": "y"}, {"name": "x"}]})), "one", false, T2).unwrap();
    assert_eq!(v["spec"]["finalizers"], json!(["b", "c"]));
    assert_eq!(v["spec"]["containers"], json!([{"name": "y"}, {"name": "x"}]));
    let e = apply(&t, None, &thing(json!({"containers": [{"name": "x"}, {"name": "x"}], "what": 1})), "one", false, T1).unwrap_err();
    assert_eq!(
        e.message,
        "failed to create typed patch object (n/a; apps/v1, Kind=Thing): errors:\n  .spec.containers: duplicate entries for key [name=\"x\"]\n  .spec.what: field not declared in schema"
    );
}

#[test]
fn unknown_types_are_deduced() {
    let t = Target::new(Node::Deduced, "apps/v1", "Thing", "", false);
    let v = apply(&t, None, &thing(json!({"m": {"a": 1}, "l": [1, 2]})), "one", false, T1).unwrap();
    assert_eq!(owners(&v)[0].2, ".spec .spec.l .spec.m .spec.m.a");
}

#[test]
fn scale_keeps_owners() {
    let t = target("");
    let mut v = thing(json!({"replicas": 1, "paused": true}));
    track_update(&t, None, &mut v, "create", T1);
    let mut scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a", "uid": "u"}, "spec": {"replicas": 1}});
    scale["metadata"]["managedFields"] = scale_from_parent(&v, &["spec", "replicas"]);
    let st = Target::new(Node::Deduced, "autoscaling/v1", "Scale", "scale", false);
    let mut new = scale.clone();
    new["spec"]["replicas"] = 4.into();
    track_update(&st, Some(&scale), &mut new, "kubectl", T2);
    v["spec"]["replicas"] = 4.into();
    scale_to_parent(&mut v, &new, "apps/v1", &["spec", "replicas"]);
    assert_eq!(owners(&v), [own("create", T1, ".spec .spec.paused"), own("kubectl", T2, ".spec.replicas")]);
    assert_eq!(v["metadata"]["managedFields"][1]["subresource"], "scale");
}

#[test]
fn unchanged_objects_keep_their_times() {
    let mut v = thing(json!({"replicas": 1}));
    track_update(&target(""), None, &mut v, "a", T1);
    let mut later = v.clone();
    later["metadata"]["managedFields"][0]["time"] = T2.into();
    keep_times_if_unchanged(&v, &mut later);
    assert_eq!(v, later);
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().filter(|_| self.below(2) == 0).cloned().collect()
    }

    fn spec(&mut self) -> Value {
        let mut spec = json!({"finalizers": self.some(&["a", "b", "c"]), "args": self.some(&["x", "y"]), "paused": self.below(2) == 0});
        if self.below(2) == 0 {
            spec["replicas"] = self.below(3).into();
            spec["selector"] = json!({"app": format!("a{}", self.below(2))});
        }
        let names = ["a", "b", "c", "a"];
        let containers: Vec<Value> = (0..self.below(4) as usize).map(|i| {
            let ports: Vec<Value> = (0..self.below(3)).map(|p| json!({"port": if self.below(9) == 0 { json!(1.5) } else { json!(p) }})).collect();
            json!({"name": names[i], "image": format!("i:{}", self.below(2)), "ports": ports})
        }).collect();
        spec["containers"] = containers.into();
        if self.below(4) == 0 { Value::Null } else { spec }
    }

    fn labels(&mut self) -> Value {
        self.some(&["l", "m", "n"]).into_iter().map(|l| (l.to_owned(), json!(self.below(2).to_string()))).collect::<serde_json::Map<_, _>>().into()
    }
}

/// What is done to entries where they are is what reading them all as sets comes to.
#[test]
fn the_short_way_and_the_long_way_meet() {
    let (mut short, mut dice) = ([0, 0], Dice(7));
    for _ in 0..400 {
        let mut live: Option<Value> = None;
        for turn in 0..8 {
            let sub = if turn > 0 && dice.below(4) == 0 { "status" } else { "" };
            let target = target(sub);
            let mut new = live.clone().map_or_else(|| thing(dice.spec()), |live| live);
            new["metadata"]["uid"] = "u".into();
            new["metadata"]["labels"] = dice.labels();
            match sub {
                "status" => new["status"] = json!({"ready": dice.below(3)}),
                _ if dice.below(2) == 0 => new["spec"] = dice.spec(),
                _ => {}
            }
            if dice.below(9) == 0 {
                managers::strip(&mut new);
            }
            let (who, now) = (format!("m{}", dice.below(4)), format!("2026-01-0{}T00:00:00Z", turn + 1));
            let (mut long, acting) = (new.clone(), target.manager(&who, Operation::Update, &now));
            let given = managers::strip(&mut long);
            let kept = live.as_ref().and_then(managers::of);
            short[usize::from(live.is_some())] += i32::from(match &live {
                None => direct::created(target.node, &empty(&target), &long, acting.clone(), &target.reset).is_some(),
                Some(live) => kept.is_some_and(|kept| direct::changed(target.node, live, &long, kept.clone(), acting.clone(), &target.reset).is_some()),
            });
            track_by_sets(&target, live.as_ref(), &mut long, given, acting);
            track_update(&target, live.as_ref(), &mut new, &who, &now);
            assert_eq!(new["metadata"], long["metadata"], "{who} made of {live:?}");
            live = Some(new);
        }
    }
    assert!(short[0] > 200 && short[1] > 2000, "the short way is hardly gone: {short:?}");
}
