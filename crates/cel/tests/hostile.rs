//! Input that wants to exhaust stack, memory or time.

use std::time::{Duration, Instant};

use cel::{Activation, AccessRequest, Authorizer, Decision, Env, ErrorKind, NoSizes, Type, Value};
use serde_json::json;

fn compile_error(text: &str) -> String {
    Env::new().compile(text).unwrap_err().to_string()
}

#[test]
fn nesting_is_bounded() {
    let limit = "ERROR: <input>:-1:0: expression recursion limit exceeded: 250";
    for (open, close) in [("(", ")"), ("[", "]"), ("{1: ", "}"), ("dyn(", ")"), ("[1].all(x, ", ")"), ("true ? 1 : ", "")] {
        let text = format!("{}1{}", open.repeat(5_000), close.repeat(5_000));
        assert_eq!(compile_error(&text), limit, "{open}");
    }
    let deep = "ERROR: <input>:-1:0: max recursion depth exceeded";
    assert_eq!(compile_error(&format!("1{}", " + 1".repeat(5_000))), deep);
    assert_eq!(compile_error(&format!("dyn(1){}", ".a".repeat(5_000))), deep);
    assert_eq!(compile_error(&format!("dyn(1){}", "[0]".repeat(5_000))), deep);
    // A long row of terms is balanced, and many signs are few.
    Env::new().compile(&format!("true{}", " && true".repeat(5_000))).unwrap();
    Env::new().compile(&format!("{}true", "!".repeat(5_000))).unwrap();
    let program = Env::new().compile(&format!("{}1{}", "(".repeat(240), ")".repeat(240))).unwrap();
    assert_eq!(program.eval(&Activation::new()).result.unwrap().as_int(), Some(1));
    let nested = format!("{}true{}", "[1].all(x, ".repeat(80), ")".repeat(80));
    let program = Env::new().compile(&nested).unwrap();
    assert_eq!(program.eval(&Activation::new()).result.unwrap().as_bool(), Some(true));
    assert!(program.estimate(&NoSizes).max > 0);
}

#[test]
fn size_is_bounded() {
    assert!(compile_error(&"1".repeat(100_001)).contains("expression code point size exceeds limit: size: 100001, limit 100000"));
    assert!(compile_error(&"9".repeat(1_000)).contains("invalid int literal"));
    // Each link of the chain copies what is before it.
    let chain = format!("optional.of(1){}", ".optMap(x, x)".repeat(100));
    assert!(compile_error(&chain).contains("expression is too large"));
}

#[test]
fn no_text_makes_it_panic() {
    let pieces = [
        "1", "x", "'a'", "b'\\xff'", "(", ")", "[", "]", "{", "}", "?", ":", ".", ",", "+", "-", "!", "&&", "||", "==", "in", "has(", "all(", "@", "`a`",
        "\"\"\"", "r'", "\\", "0x", "1e", "👑", "\n", "//", "null", "true", ".map(i, ", "[?", "?.", "cel.bind(", "1u",
    ];
    // A generator of our own: the same texts each time.
    let mut state: u64 = 42;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..1 + state % 12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        if let Ok(program) = Env::new().variable_of("x", Type::Dyn).compile(&text) {
            let _ = program.estimate(&NoSizes);
            let _ = program.eval(&Activation::new().with("x", Value::Int(1)));
        }
    }
}

#[test]
fn cost_stops_what_would_not_end() {
    let start = Instant::now();
    let list = format!("[{}]", vec!["1"; 100].join(","));
    let program = Env::new().compile(&format!("{list}.all(a, {list}.all(b, {list}.all(c, {list}.all(d, a == d))))")).unwrap();
    let evaluation = program.eval(&Activation::new());
    let error = evaluation.result.unwrap_err();
    assert_eq!((error.kind, error.message()), (ErrorKind::CostExceeded, "operation cancelled: actual cost limit exceeded"));
    assert!(evaluation.cost >= cel::PER_CALL_LIMIT);
    for text in [
        // No operator absorbs that the cost is exceeded.
        "lists.range(1000000000).size() == 0 || true",
        "lists.range(300000).map(i, i).map(i, i).size() > 0 || true",
        "lists.range(5000).distinct().size() > 0",
        "sets.contains(lists.range(5000), lists.range(5000))",
        "lists.range(200000).transformMap(i, v, v).size() > 0",
        "lists.range(100000).map(i, string(i)).join(',').replace('', ',').replace('', ',').replace('', ',').split('').map(x, x).size() > 0",
    ] {
        let program = Env::new().compile(text).unwrap();
        assert_eq!(program.eval(&Activation::new()).result.unwrap_err().kind, ErrorKind::CostExceeded, "{text}");
    }
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn text_does_not_grow_without_bound() {
    let long = "a".repeat(1 << 20);
    let env = Env::new().variable_of("s", Type::String);
    let program = env.compile("s.replace('', s)").unwrap();
    let digits = env.compile("'%.99999999f'.format([1.0])").unwrap();
    let activation = Activation::new().with("s", Value::borrowed(&long));
    assert_eq!(program.eval(&activation).result.unwrap_err().message(), "text is too long");
    assert!(digits.eval(&activation).result.unwrap().as_str().unwrap().len() < 2_000);
}

struct OnlyPods;

impl Authorizer for OnlyPods {
    fn authorize(&self, request: &AccessRequest) -> Decision {
        let allowed = request.resource == "pods" && request.verb == "list" && request.service_account.is_none();
        Decision { allowed, reason: format!("{} {}", request.verb, request.namespace), error: None }
    }
}

#[test]
fn the_authorizer_is_asked() {
    let env = Env::new().variable_of("authorizer", Type::object("kubernetes.authorization.Authorizer"));
    for (text, wanted) in [
        ("authorizer.group('').resource('pods').namespace('x').check('list').allowed()", "true"),
        ("authorizer.group('').resource('pods').namespace('x').check('list').reason() == 'list x'", "true"),
        ("authorizer.group('').resource('nodes').check('list').allowed()", "false"),
        ("authorizer.serviceAccount('default', 'x').group('').resource('pods').check('list').allowed()", "false"),
        ("authorizer.path('/healthz').check('get').errored()", "false"),
        ("authorizer.path(' ').check('get').allowed()", "path must not be empty"),
        ("authorizer.serviceAccount('A b', 'x').path('/x').check('get').allowed()", "Invalid service account namespace"),
    ] {
        let program = env.compile(text).unwrap();
        let activation = Activation::new().with("authorizer", Value::authorizer(&OnlyPods));
        let evaluation = program.eval(&activation).result.map(|v| v.as_bool().unwrap().to_string());
        assert_eq!(evaluation.unwrap_or_else(|e| e.to_string()), wanted, "{text}");
    }
    // Two checks are all that the cost of one expression allows.
    let check = "authorizer.path('/x').check('get').allowed()";
    let three = env.compile(&format!("[{check}, {check}, {check}].size() == 3")).unwrap();
    let activation = Activation::new().with("authorizer", Value::authorizer(&OnlyPods));
    assert_eq!(three.eval(&activation).result.unwrap_err().kind, ErrorKind::CostExceeded);
}

#[test]
fn variables_are_evaluated_once_and_when_needed() {
    let env = Env::new().variable_of("object", Type::Dyn);
    let first = env.compile("object.a + 1").unwrap();
    let failing = env.compile("object.missing").unwrap();
    let mut env = env;
    let variables = env.declare_object("kubernetes.variables", [("a".to_string(), Type::Dyn), ("b".to_string(), Type::Dyn), ("c".to_string(), Type::Dyn)]);
    env.declare("variables", variables);
    let second = env.compile("variables.a + variables.a").unwrap();
    let program = env.compile("variables.b == 4").unwrap();
    let broken = env.compile("variables.c == 1").unwrap();
    assert_eq!(program.fields_of("variables"), ["b"]);
    let object = json!({"a": 1});
    let mut activation = Activation::new().with("object", Value::from_json(&object));
    activation.compose("a", Ok(&first));
    activation.compose("b", Ok(&second));
    activation.compose("c", Ok(&failing));
    activation.compose("d", Err("no".into()));
    assert_eq!(program.eval(&activation).result.unwrap().as_bool(), Some(true));
    // Of `object.a + 1` once (3), and of the sum of it twice (5).
    assert_eq!(activation.take_composed_cost(), 3 + 5);
    assert_eq!(activation.take_composed_cost(), 0);
    let error = broken.eval(&activation).result.unwrap_err();
    assert_eq!(error.message(), "composited variable \"c\" fails to evaluate: no such key: missing");
}

#[test]
fn mutations_are_written() {
    let env = Env::new().with_mutation().variable_of("object", Type::Dyn);
    let program = env.compile("Object{spec: Object.spec{replicas: object.n + 1, ?x: optional.none()}}").unwrap();
    assert_eq!(program.result_type().to_string(), "Object");
    let object = json!({"n": 1});
    let patch = env.compile("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b~c'), value: 1}]").unwrap();
    let activation = Activation::new().with("object", Value::from_json(&object));
    assert_eq!(program.eval(&activation).result.unwrap().to_json().unwrap(), json!({"spec": {"replicas": 2}}));
    let value = patch.eval(&activation).result.unwrap().to_json().unwrap();
    assert_eq!(value, json!([{"op": "add", "path": "/metadata/labels/a~1b~0c", "value": 1}]));
    assert!(env.compile("JSONPatch{foo: 1}").unwrap_err().to_string().contains("undefined field 'foo'"));
}
