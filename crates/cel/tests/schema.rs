//! Expressions over data with a schema: types, what JSON becomes, and costs before and while they run.

use cel::{Activation, DeclType, Env, Type, Value};
use serde_json::{Value as Json, json};

fn schema() -> Json {
    let string = json!({"type": "string"});
    json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 10},
        "free": string,
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "kind": {"type": "string", "enum": ["Pending", "Available"]},
        "port": {"x-kubernetes-int-or-string": true},
        "at": {"type": "string", "format": "date-time"},
        "day": {"type": "string", "format": "date"},
        "wait": {"type": "string", "format": "duration"},
        "raw": {"type": "string", "format": "byte"},
        "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 5},
        "set": {"type": "array", "items": string, "x-kubernetes-list-type": "set"},
        "other": {"type": "array", "items": string, "x-kubernetes-list-type": "set"},
        "entries": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": string, "v": string}}},
        "more": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": string, "v": string}}},
        "labels": {"type": "object", "additionalProperties": string},
        "maybe": {"type": "string", "nullable": true},
        "never": {"type": "string"},
        "namespace": string,
        "dashed-name": string,
        "dotted.name": {"type": "object", "properties": {"a__b": {"type": "integer"}}},
        "opaque": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "left": {"type": "object", "properties": {"known": {"type": "integer"}}, "x-kubernetes-preserve-unknown-fields": true},
        "right": {"type": "object", "properties": {"known": {"type": "integer"}}, "x-kubernetes-preserve-unknown-fields": true},
    }})
}

fn data() -> Json {
    json!({
        "name": "Rook 👑", "free": "abc", "count": 3, "ratio": 2, "kind": "Pending", "port": "25%",
        "at": "2011-08-18T19:03:37.01+01:00", "day": "1997-07-16", "wait": "1h2m3s4ms", "raw": "QUI=",
        "list": [3, 1, 2], "set": ["a", "b"], "other": ["b", "c"],
        "entries": [{"k": "a", "v": "1"}, {"k": "b", "v": "2"}], "more": [{"k": "b", "v": "2"}, {"k": "a", "v": "1"}],
        "labels": {"x/y": "z", "app": "web"}, "maybe": null, "never": null, "namespace": "ns", "dashed-name": "d",
        "dotted.name": {"a__b": 7}, "opaque": {"x": 1}, "left": {"known": 1, "z": 1}, "right": {"known": 1, "z": 2},
    })
}

fn env(decl: &DeclType) -> Env {
    let mut env = Env::new();
    env.declare_schema("self", "selfType", decl);
    let t = env.variable("self").unwrap().clone();
    env.variable_of("oldSelf", Type::optional(t))
}

/// Rules that hold for the data above.
#[test]
fn rules_hold() {
    let decl = DeclType::from_openapi(&schema(), true).unwrap();
    let (env, data) = (env(&decl), data());
    let old = json!({"count": 2});
    for rule in [
        "self.name.size() == 6 && self.name.endsWith('👑')",
        "self.ratio == 2.0 && type(self.ratio) == double",
        "type(self.port) == string && self.port.matches(r'^\\d+%$')",
        "self.at.getHours() == 18 && self.at == timestamp('2011-08-18T18:03:37.01Z')",
        "self.day.getDate() == 16",
        "self.wait == duration('1h2m3s4ms')",
        "self.raw == b'AB'",
        "self.list.isSorted() == false && self.list.sort() == [1, 2, 3]",
        "self.list.exists(i, i == 2) && 2 in self.list",
        "self.set == ['b', 'a']",
        "self.set + self.other == ['c', 'a', 'b']",
        "size(self.set + self.other) == 3",
        "dyn(self.entries) == dyn(self.more)",
        "dyn(self.entries) + dyn([self.more[0]]) == dyn(self.entries)",
        "self.entries.all(e, e.k in ['a', 'b'])",
        "self.entries.map(e, e.v).join(',') == '1,2'",
        "self.labels['x/y'] == 'z' && self.labels.app == 'web' && 'app' in self.labels",
        "self.labels.all(k, self.labels[k].size() > 0)",
        "self.labels.transformList(k, v, k + v).sort() == ['appweb', 'x/yz']",
        "!has(self.maybe) && !has(self.never)",
        "self.__namespace__ == 'ns' && self.namespace == 'ns'",
        "self.dashed__dash__name == 'd'",
        "self.dotted__dot__name.a__underscores__b == 7",
        "dyn(self.left) != dyn(self.right) && self.left.known == self.right.known",
        "self.kind in ['Pending', 'Available']",
        "oldSelf.count.hasValue() && oldSelf.count.value() < self.count",
        "oldSelf.optMap(o, o.count + 1).value() == self.count",
        "oldSelf.?name.orValue('none') == 'none'",
        "has(self.metadata) == false",
    ] {
        let program = env.compile(rule).unwrap_or_else(|e| panic!("{rule}:\n{e}"));
        let activation = Activation::new()
            .with("self", decl.value(&data).unwrap())
            .with("oldSelf", Value::optional(Some(decl.value(&old).unwrap())));
        let evaluation = program.eval(&activation);
        assert_eq!(evaluation.result.as_ref().ok().and_then(|v| v.as_bool()), Some(true), "{rule}: {:?}", evaluation.result);
    }
}

/// Mistakes are told in upstream's words, at the right place.
#[test]
fn mistakes_are_told() {
    let decl = DeclType::from_openapi(&schema(), true).unwrap();
    let env = env(&decl);
    for (rule, message) in [
        ("self.nope", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope\n | ....^"),
        (
            "self.count + self.name > 1",
            "ERROR: <input>:1:12: found no matching overload for '_+_' applied to '(int, string)'\n | self.count + self.name > 1\n | ...........^",
        ),
        ("self.opaque.x == 1", "ERROR: <input>:1:12: undefined field 'x'\n | self.opaque.x == 1\n | ...........^"),
        ("self.true", "ERROR: <input>:1:6: Syntax error: mismatched input 'true' expecting IDENTIFIER\n | self.true\n | .....^"),
        ("self.entries[0].k.foo", "ERROR: <input>:1:18: type 'string' does not support field selection\n | self.entries[0].k.foo\n | .................^"),
        ("self.list == self.set", "ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(list(int), list(string))'\n | self.list == self.set\n | ..........^"),
        (
            "self.left == self.dotted__dot__name",
            "ERROR: <input>:1:11: found no matching overload for '_==_' applied to '(selfType.left, selfType.dotted__dot__name)'\n | self.left == self.dotted__dot__name\n | ..........^",
        ),
        ("'👑' +\n  self.nope", "ERROR: <input>:2:7: undefined field 'nope'\n |   self.nope\n | ......^"),
        ("'👑' + 1", "ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | '👑' + 1\n | .．..^"),
        (
            "foo + self.nope",
            "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo + self.nope\n | ^\nERROR: <input>:1:11: undefined field 'nope'\n | foo + self.nope\n | ..........^",
        ),
    ] {
        assert_eq!(env.compile(rule).unwrap_err().to_string(), message, "{rule}");
    }
    assert_eq!(env.compile("'a'.find(')') == ''").unwrap_err().prefix(), "program instantiation failed: ");
}

/// Data that does not fit its schema is an error where it is looked at.
#[test]
fn data_that_does_not_fit() {
    let decl = DeclType::from_openapi(&schema(), false).unwrap();
    let env = env(&decl);
    let data = json!({"count": "x", "port": 1.5, "list": {}, "labels": [], "at": "never", "raw": "?", "entries": [null]});
    for (rule, message) in [
        ("self.count == 1", "invalid data, expected int, got string"),
        ("self.port == 1", "invalid data, expected XIntOrString value to be either a string or integer"),
        ("has(self.list)", "invalid data, expected an array for the provided schema with type=array"),
        ("has(self.labels)", "invalid data, expected a map for the provided schema with type=object"),
        ("self.entries[0].k == ''", "invalid data, got null for schema with nullable=false"),
        ("self.name == ''", "no such key: name"),
    ] {
        let program = env.compile(rule).unwrap();
        let activation = Activation::new().with("self", decl.value(&data).unwrap());
        assert_eq!(program.eval(&activation).result.unwrap_err().to_string(), message, "{rule}");
    }
}

/// Costs as upstream counts them: while running, and at most.
#[test]
fn costs() {
    let decl = DeclType::from_openapi(&schema(), true).unwrap();
    let (env, data) = (env(&decl), data());
    for (rule, runtime, estimate) in [
        ("true", 0, 0),
        ("self.count == 3", 3, 2),
        ("self.name == 'a'", 3, 3),
        ("self.kind in ['Pending', 'Available']", 2, 4 + 10),
        ("has(self.count)", 1, 1),
        ("self.list[0] == 3", 4, 3),
        ("1 in self.list", 5, 7),
        // Three times: condition 2, variable 1, element 1, comparison 1; the range 2, the result 1.
        ("self.list.all(i, i > 0)", 2 + 3 * 5 + 1, 2 + 5 * 5 + 1),
        ("self.list.all(i, i > 2)", 2 + 2 * 5 + 2 + 1, 2 + 5 * 5 + 1),
        ("self.list.exists(i, i == 9)", 2 + 3 * 6 + 1, 2 + 5 * 5 + 1),
        ("self.name.matches('^[a-z]+$')", 2 + 2, 2 + 5 * 2),
        ("self.free.startsWith('abc')", 3, 3),
        ("true ? self.count == 1 : self.count == 2", 3, 2),
        ("self.list.map(i, i * 2).size() == 3", 2 + 3 * 14 + 1 + 2, 2 + 5 * 14 + 10 + 1 + 2),
    ] {
        let program = env.compile(rule).unwrap();
        let activation = Activation::new().with("self", decl.value(&data).unwrap());
        let evaluation = program.eval(&activation);
        assert!(evaluation.result.is_ok(), "{rule}");
        assert_eq!((evaluation.cost, program.estimate(&decl).max), (runtime, estimate), "{rule}");
    }
    // Without bounds, sizes follow from the largest request.
    let unbounded = env.compile("self.set.all(a, self.set.all(b, a != b + 'x'))").unwrap();
    assert!(unbounded.estimate(&decl).max > 100_000_000);
    assert_eq!(decl.max_cardinality(), cel::MAX_REQUEST_SIZE / 3);
}
