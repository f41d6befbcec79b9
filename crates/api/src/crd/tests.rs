//! What schemas do with objects, and what definitions may say: the words are upstream's.

use super::path::JsonPath;
use super::*;
use serde_json::json;

fn errors(value: Value, schema: Value) -> Vec<String> {
    validate(&value, &Schema::new(&schema)).iter().map(ToString::to_string).collect()
}

fn object(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

#[test]
fn values_are_checked_in_upstreams_words() {
    let check = |property: Value, value: Value, expect: &[&str]| {
        assert_eq!(errors(json!({"spec": {"x": value}}), object(json!({"x": property}))), expect, "{property}");
    };
    check(json!({"type": "integer"}), json!("a"), &[r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#]);
    check(json!({"type": "string"}), json!(null), &[r#"spec.x: Invalid value: "null": spec.x in body must be of type string: "null""#]);
    check(json!({"type": "string", "nullable": true}), json!(null), &[]);
    check(json!({"type": "number"}), json!(1), &[]);
    check(json!({"type": "integer"}), json!(2.0), &[]);
    check(json!({"x-kubernetes-int-or-string": true}), json!("50%"), &[]);
    check(json!({"x-kubernetes-int-or-string": true}), json!(true), &[r#"spec.x: Invalid value: "boolean": spec.x in body must be of type integer,string: "boolean""#]);
    check(json!({"type": "string", "enum": ["a", "b"]}), json!("c"), &[r#"spec.x: Unsupported value: "c": supported values: "a", "b""#]);
    check(json!({"type": "integer", "minimum": 3}), json!(1), &["spec.x: Invalid value: 1: spec.x in body should be greater than or equal to 3"]);
    check(json!({"type": "integer", "maximum": 3, "exclusiveMaximum": true}), json!(3), &["spec.x: Invalid value: 3: spec.x in body should be less than 3"]);
    check(json!({"type": "string", "maxLength": 2}), json!("abc"), &["spec.x: Too long: may not be more than 2 bytes"]);
    check(json!({"type": "string", "pattern": "^a+$"}), json!("b"), &[r#"spec.x: Invalid value: "b": spec.x in body should match '^a+$'"#]);
    check(json!({"type": "string", "format": "ipv4"}), json!("1.2.3"), &[r#"spec.x: Invalid value: "1.2.3": spec.x in body must be of type ipv4: "1.2.3""#]);
    check(json!({"type": "string", "format": "nonsense"}), json!("1.2.3"), &[]);
    check(json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}), json!(["a", "b"]), &["spec.x: Too many: 2: must have at most 1 item"]);
    check(json!({"type": "array", "items": {"type": "string"}}), json!(["a", 1]), &[r#"spec.x[1]: Invalid value: "integer": spec.x[1] in body must be of type string: "integer""#]);
    check(json!({"type": "object", "required": ["y"]}), json!({}), &["spec.x.y: Required value"]);
    check(json!({"type": "object", "additionalProperties": {"type": "string"}}), json!({"k": 1}), &[r#"spec.x.k: Invalid value: "integer": spec.x.k in body must be of type string: "integer""#]);
    check(
        json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}),
        json!({"a": "", "b": ""}),
        &[r#"<nil>: Invalid value: "": "spec.x" must validate one and only one schema (oneOf). Found 2 valid alternatives"#],
    );
    check(json!({"type": "integer", "not": {"enum": [3]}}), json!(3), &[r#"<nil>: Invalid value: "": "spec.x" must not validate the schema (not)"#]);
}

#[test]
fn what_was_wrong_may_stay() {
    let schema = Schema::new(&object(json!({"x": {"type": "string", "maxLength": 1}, "l": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "properties": {"name": {"type": "string"}, "v": {"type": "integer", "minimum": 5}}}}})));
    let old = json!({"spec": {"x": "long", "l": [{"name": "a", "v": 1}]}});
    let check = |new: Value| validate_update("", &new, Some(&old), &schema).len();
    assert_eq!(check(json!({"spec": {"x": "long", "other": 1, "l": [{"name": "b", "v": 6}, {"name": "a", "v": 1}]}})), 0);
    assert_eq!(check(json!({"spec": {"x": "longer"}})), 1);
    assert_eq!(check(json!({"spec": {"l": [{"name": "a", "v": 2}]}})), 1);
}

#[test]
fn unknown_fields_go_and_defaults_come() {
    let schema = Schema::new(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": {"type": "string", "default": "A"}, "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"k": {"type": "object", "properties": {}}}},
        "n": {"type": "string", "nullable": true, "default": "N"}, "list": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "integer", "default": 1}}}},
        "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}}}}));
    let mut value = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "top": 1, "spec": {"b": 1, "n": null, "a": null, "open": {"x": {"y": 1}, "k": {"z": 1}},
        "list": [{"e": 2}], "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "bad": 1}, "other": 1}}});
    assert_eq!(prune(&mut value, &schema, true), ["spec.b", "spec.inner.other", "spec.list[0].e", "spec.open.k.z", "top"]);
    assert_eq!(Embedded::Refuse.settle(&mut value, &schema).unwrap(), ["spec.inner.metadata.bad"]);
    prune_nulls(&mut value, Some(&schema));
    apply_defaults(&mut value, &schema);
    assert_eq!(
        value["spec"],
        json!({"a": "A", "n": null, "open": {"x": {"y": 1}, "k": {}}, "list": [{"d": 1}], "inner": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}})
    );
}

#[test]
fn items_of_sets_and_maps_are_there_once() {
    let schema = Schema::new(&object(json!({"s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}})));
    let found = validate_lists(&json!({"spec": {"s": ["a", "b", "a"], "m": [{"k": "x"}, {"k": "x", "v": 1}]}}), &schema);
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts, [r#"spec.m[1]: Duplicate value: {"k":"x"}"#, r#"spec.s[2]: Duplicate value: "a""#]);
}

#[test]
fn formats() {
    for (format, good, bad) in [
        ("uri", "https://a.b/c", "a b"),
        ("email", "a@b.c", "a.b"),
        ("hostname", "a.example.com", "a_b"),
        ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
        ("mac", "01:02:03:04:05:06", "01:02"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "x"),
        ("isbn", "978-0321751041", "978-0321751042"),
        ("hexcolor", "#FFF", "#FFFF"),
        ("byte", "aGk=", "a!"),
        ("date", "2006-01-02", "2006-13-02"),
        ("duration", "22 ns", "soon"),
        ("date-time", "2014-12-15T19:30:20Z", "2014-12-15"),
        ("k8s-short-name", "a-b", "A"),
    ] {
        let schema = object(json!({"x": {"type": "string", "format": format}}));
        assert_eq!(errors(json!({"spec": {"x": good}}), schema.clone()), Vec::<String>::new(), "{format}");
        assert_eq!(errors(json!({"spec": {"x": bad}}), schema).len(), 1, "{format}");
    }
}

#[test]
fn paths_of_columns() {
    let value = json!({"spec": {"a": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "m": {"k.l": "dot"}}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let check = |path: &str, expect: Value| {
        let found: Vec<&Value> = JsonPath::parse(path).unwrap_or_else(|| panic!("{path}")).find(&value);
        assert_eq!(json!(found), expect, "{path}");
    };
    check(".spec.a[0].n", json!(["x"]));
    check(".spec.a[-1].n", json!(["y"]));
    check(".spec.a[*].v", json!([1, 2]));
    check(".spec.a[?(@.n==\"y\")].v", json!([2]));
    check(".status.conditions[?(@.type=='Ready')].status", json!(["True"]));
    check(".spec.m.k\\.l", json!(["dot"]));
    check(".spec.m['k.l']", json!(["dot"]));
    check(".spec.a[?(@.v > 1)].n", json!(["y"]));
    check("..n", json!(["x", "y"]));
    check(".spec.none", json!([]));
    assert!(JsonPath::parse(".a[").is_none());
}

fn definition(schema: Value) -> Value {
    json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced", "conversion": {"strategy": "None"},
        "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
        "status": {"storedVersions": ["v1"]}})
}

#[test]
fn definitions_must_be_structural() {
    let check = |schema: Value, expect: &[&str]| {
        let found: Vec<String> = definition::create(&definition(schema.clone())).iter().map(ToString::to_string).collect();
        assert_eq!(found, expect, "{schema}");
    };
    let at = "spec.versions[0].schema.openAPIV3Schema";
    check(json!({"type": "object"}), &[]);
    check(json!({"type": "object", "properties": {"spec": {}}}), &[&format!("{at}.properties[spec].type: Required value: must not be empty for specified object fields")]);
    check(json!({"type": "object", "properties": {"l": {"type": "array"}}}), &[&format!("{at}.properties[l].items: Required value: must be specified")]);
    check(
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"properties": {"b": {"minLength": 1}}}]}),
        &[&format!("{at}.properties[b]: Required value: because it is defined in {at}.anyOf[0].properties[b]")],
    );
    check(
        json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
        &[&format!("{at}.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"")],
    );
    check(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
        &[&format!("{at}.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified")],
    );
    let mut other = definition(json!({"type": "object"}));
    other["metadata"]["name"] = "x".into();
    other["spec"]["scope"] = "Galaxy".into();
    let found: Vec<String> = definition::create(&other).iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            r#"metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group"#,
            r#"spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced""#,
        ]
    );
}

#[test]
fn names_are_accepted_once() {
    let now = "2026-01-01T00:00:00Z";
    let mut foo = definition(json!({"type": "object"}));
    for expect in [("True", "False"), ("True", "True")] {
        let plan = conditions::plan(&foo, &[]);
        plan.apply(&mut foo, now);
        assert_eq!((conditions::condition(&foo, "NamesAccepted"), conditions::condition(&foo, "Established")), expect);
    }
    assert!(conditions::plan(&foo, &[]).is_empty());
    let mut bar = definition(json!({"type": "object"}));
    bar["spec"]["names"] = json!({"plural": "bars", "singular": "foo", "kind": "Bar", "listKind": "BarList"});
    conditions::plan(&bar, &[&foo]).apply(&mut bar, now);
    let condition = items(&bar, "/status/conditions")[0].clone();
    assert_eq!((&condition["status"], &condition["reason"], &condition["message"]), (&json!("False"), &json!("SingularConflict"), &json!("\"foo\" is already in use")));
    assert!(conditions::plan(&bar, &[&foo]).is_empty());
    // the other gone, the name is free
    conditions::plan(&bar, &[]).apply(&mut bar, now);
    assert!(conditions::is_true(&bar, "NamesAccepted"));
}

#[test]
fn versions_in_order() {
    let mut all = vec!["v1alpha1", "foo1", "v2", "v1beta1", "v1", "v11", "v1beta2", "bar"];
    all.sort_by(|a, b| compare_versions(b, a));
    assert_eq!(all, ["v11", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "bar", "foo1"]);
}
