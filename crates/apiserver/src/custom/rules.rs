//! `x-kubernetes-validations`: rules in CEL, compiled with the schema and asked of every object that is written.
//!
//! A rule that speaks of `oldSelf` is asked only where there is an old value to compare with. What was wrong before an
//! update and has not changed becomes a warning. All rules of one object share a budget.
use std::collections::BTreeMap;

use api::field::{ErrorKind, FieldError, Path};
use cel::{Activation, DeclType, Env, Program, Type, Value as Cel};
use serde_json::Value;

/// The rules of a schema node, and of those in it.
pub struct Rules {
    kind: String,
    own: Option<Own>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
    properties: BTreeMap<String, Rules>,
    list_keys: Option<Vec<(String, Value)>>,
}

struct Own {
    declared: DeclType,
    rules: Vec<Rule>,
}

struct Rule {
    text: String,
    message: String,
    /// An empty rule is passed over.
    program: Option<Result<Program, String>>,
    said: Option<Program>,
    uses_old: bool,
    optional_old: bool,
    reason: String,
    path: String,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The environment of a node's rules.
fn environment(declared: &DeclType, optional: bool) -> Env {
    let mut env = Env::new();
    env.declare_schema("self", "selfType", declared);
    let own = env.register("selfType", declared);
    env.declare("oldSelf", if optional { Type::optional(own) } else { own });
    env
}

impl Rule {
    fn new(rule: &Value, declared: &DeclType) -> Rule {
        let optional_old = flag(rule, "optionalOldSelf");
        let env = environment(declared, optional_old);
        let text_of = |key: &str| text(rule, key).to_string();
        let program = (!text(rule, "rule").trim().is_empty()).then(|| compile(&env, text(rule, "rule")));
        let said = Some(text(rule, "messageExpression")).filter(|t| !t.is_empty()).and_then(|t| env.compile(t).ok());
        Rule {
            text: text(rule, "rule").trim().to_string(),
            message: text(rule, "message").trim().to_string(),
            uses_old: program.as_ref().is_some_and(|p| p.as_ref().is_ok_and(|p| p.uses("oldSelf"))),
            program,
            said,
            optional_old,
            reason: text_of("reason"),
            path: text(rule, "fieldPath").trim_start_matches('.').to_string(),
        }
    }

    fn name(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }
}

fn compile(env: &Env, rule: &str) -> Result<Program, String> {
    let program = env.compile(rule).map_err(|issues| format!("compilation failed: {issues}"))?;
    if *program.result_type() != Type::Bool {
        return Err("cel expression must evaluate to a bool".into());
    }
    Ok(program)
}

impl Rules {
    /// The rules in a schema; `None` when there are none.
    pub fn new(schema: &Value, root: bool) -> Option<Rules> {
        let root = root || flag(schema, "x-kubernetes-embedded-resource");
        let inner = |key: &str| schema.get(key).filter(|s| s.is_object()).and_then(|s| Rules::new(s, false)).map(Box::new);
        let properties: BTreeMap<String, Rules> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, property)| Some((name.clone(), Rules::new(property, false)?)))
            .collect();
        let given = list(schema, "x-kubernetes-validations");
        let own = Some(given).filter(|g| !g.is_empty()).and_then(|given| {
            let declared = DeclType::from_openapi(schema, root)?;
            Some(Own { rules: given.iter().map(|rule| Rule::new(rule, &declared)).collect(), declared })
        });
        let rules = Rules {
            kind: text(schema, "type").to_string(),
            own,
            items: inner("items"),
            additional: inner("additionalProperties"),
            properties,
            list_keys: (text(schema, "x-kubernetes-list-type") == "map").then(|| {
                let keys = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
                let default = |k: &str| schema.pointer(&format!("/items/properties/{k}/default")).cloned().unwrap_or_default();
                keys.map(|k| (k.to_string(), default(k))).collect()
            }),
        };
        let any = rules.own.is_some() || rules.items.is_some() || rules.additional.is_some() || !rules.properties.is_empty();
        any.then_some(rules)
    }

    /// Asks all rules. What is wrong but was so before is told to `warn`.
    pub fn validate(&self, new: &Value, old: Option<&Value>, mut warn: impl FnMut(String)) -> Vec<FieldError> {
        let mut run = Run { errors: Vec::new(), budget: Some(cel::RUNTIME_BUDGET), warn: &mut warn };
        run.node(self, &Path::root(), new, old, old.is_some(), false);
        run.errors
    }
}

struct Run<'w> {
    errors: Vec<FieldError>,
    /// What is left; `None` once it is used up.
    budget: Option<u64>,
    warn: &'w mut dyn FnMut(String),
}

const BUDGET: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

impl Run<'_> {
    /// `tied` says that `old` is what this value was before; `same` that the nearest value around of which that is known has not changed.
    fn node(&mut self, rules: &Rules, path: &Path, value: &Value, old: Option<&Value>, tied: bool, same: bool) {
        if value.is_null() || self.budget.is_none() {
            return;
        }
        let same = if tied { old == Some(value) } else { same };
        if let Some(own) = &rules.own {
            self.rules(own, &rules.kind, path, value, old, same);
        }
        match value {
            Value::Array(items) => {
                let Some(inner) = &rules.items else { return };
                for (i, item) in items.iter().enumerate() {
                    let before = rules.list_keys.as_ref().and_then(|keys| counterpart(old?, keys, item));
                    self.node(inner, &path.index(i), item, before, before.is_some(), same);
                }
            }
            Value::Object(map) => {
                if let Some(inner) = &rules.additional {
                    for (key, item) in map {
                        let before = old.and_then(|o| o.get(key));
                        self.node(inner, &path.key(key), item, before, before.is_some(), same);
                    }
                }
                for (key, item) in map {
                    if let Some(inner) = rules.properties.get(key) {
                        let before = old.and_then(|o| o.get(key));
                        self.node(inner, &path.child(key), item, before, before.is_some(), same);
                    }
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, own: &Own, kind: &str, path: &Path, value: &Value, old: Option<&Value>, same: bool) {
        let wrong = |path: &Path, why: String| FieldError::invalid(path, kind, why);
        let current = match own.declared.value(value) {
            Ok(current) => current,
            Err(error) => return self.errors.push(wrong(path, error.to_string())),
        };
        let before = old.filter(|o| !o.is_null()).and_then(|o| own.declared.value(o).ok());
        for rule in &own.rules {
            let Some(budget) = self.budget else { return };
            let program = match &rule.program {
                None => continue,
                Some(Err(why)) => {
                    self.errors.push(wrong(path, format!("rule compile error: {why}")));
                    continue;
                }
                Some(Ok(program)) => program,
            };
            if rule.uses_old && before.is_none() && !rule.optional_old {
                continue;
            }
            let activation = || -> Activation<'_> {
                let mut activation = Activation::new().with("self", current.clone());
                if rule.optional_old {
                    activation.bind("oldSelf", Cel::optional(before.clone()));
                } else if let Some(before) = &before {
                    activation.bind("oldSelf", before.clone());
                }
                activation
            };
            let evaluation = program.eval(&activation());
            let Some(left) = budget.checked_sub(evaluation.cost) else {
                self.budget = None;
                return self.errors.push(wrong(path, BUDGET.into()));
            };
            self.budget = Some(left);
            let result = match evaluation.result {
                Ok(result) => result.as_bool() == Some(true),
                Err(error) if error.kind == cel::ErrorKind::CostExceeded => {
                    self.budget = None;
                    let why = format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {}", rule.name());
                    return self.errors.push(wrong(path, why));
                }
                Err(error) if error.message().starts_with("no such overload") => {
                    let why = format!("'{error}': call arguments did not match a supported operator, function or macro signature for rule: {}", rule.name());
                    self.errors.push(wrong(path, why));
                    continue;
                }
                Err(error) => {
                    self.errors.push(wrong(path, format!("{error} evaluating rule: {}", rule.name())));
                    continue;
                }
            };
            if result {
                continue;
            }
            let at = if rule.path.is_empty() { path.clone() } else { path.child(&rule.path) };
            let detail = match rule.said.as_ref().map(|said| self.message(said, &activation())) {
                Some(Err(why)) => {
                    self.errors.push(wrong(&at, why));
                    return;
                }
                Some(Ok(Some(message))) => message,
                _ if rule.message.is_empty() => format!("failed rule: {}", rule.text),
                _ => rule.message.clone(),
            };
            let error = failure(&at, kind, value, detail, &rule.reason);
            if same && !rule.uses_old {
                (self.warn)(error.to_string());
            } else {
                self.errors.push(error);
            }
        }
    }

    /// What a rule's own expression says; `None` when it says nothing that can be used.
    fn message<'a>(&mut self, said: &'a Program, activation: &Activation<'a>) -> Result<Option<String>, String> {
        let evaluation = said.eval(activation);
        let Some(left) = self.budget.and_then(|b| b.checked_sub(evaluation.cost)) else {
            self.budget = None;
            return Err("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into());
        };
        self.budget = Some(left);
        let message = evaluation.result.ok().and_then(|v| v.as_str().map(|s| s.trim().to_string()));
        Ok(message.filter(|m| !m.is_empty() && !m.contains('\n') && m.len() <= 5 * 1024))
    }
}

fn failure(at: &Path, kind: &str, value: &Value, detail: String, reason: &str) -> FieldError {
    let shown = if matches!(kind, "object" | "array") { None } else { Some(value.clone()) };
    let error = |kind: ErrorKind, detail: String| FieldError { path: at.clone(), kind, detail, bad_value: shown.clone() };
    match reason {
        "FieldValueForbidden" => error(ErrorKind::Forbidden, detail),
        "FieldValueRequired" => error(ErrorKind::Required, detail),
        "FieldValueDuplicate" => error(ErrorKind::Duplicate, String::new()),
        _ => error(ErrorKind::Invalid, detail),
    }
}

/// The item of the old list with the same keys.
fn counterpart<'a>(old: &'a Value, keys: &[(String, Value)], item: &Value) -> Option<&'a Value> {
    let key = |item: &Value| -> Vec<Value> { keys.iter().map(|(k, default)| item.get(k).unwrap_or(default).clone()).collect() };
    let wanted = key(item);
    old.as_array()?.iter().find(|o| key(o) == wanted)
}

/// Mistakes that keep rules from being asked: their answers would not mean anything.
pub fn blocks(errors: &[FieldError]) -> Option<FieldError> {
    let blocking = |e: &FieldError| {
        matches!(e.kind, ErrorKind::NotSupported | ErrorKind::Required | ErrorKind::TooLong | ErrorKind::TooMany | ErrorKind::TypeInvalid)
    };
    let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    errors.iter().any(blocking).then(|| FieldError::invalid(&Path::root(), Value::Null, why))
}

/// The most that one rule may be estimated to cost, and all of a schema.
const RULE_LIMIT: u64 = 10_000_000;
const SCHEMA_LIMIT: u64 = 100_000_000;

/// What is wrong with the rules of a definition. Schemas that `old` has too may cost what they cost.
pub fn check_definition(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let versions = |d: &Value| d.pointer("/spec/versions").and_then(Value::as_array).cloned().unwrap_or_default();
    let before = old.map(versions).unwrap_or_default();
    let mut errors = Vec::new();
    for (i, version) in versions(definition).iter().enumerate() {
        let Some(schema) = version.pointer("/schema/openAPIV3Schema") else { continue };
        let unchanged = before.iter().any(|b| b["name"] == version["name"] && b.pointer("/schema/openAPIV3Schema") == Some(schema));
        let at = Path::new("spec").child("versions").index(i).child("schema").child("openAPIV3Schema");
        let mut check = Check { errors: Vec::new(), total: 0, costly: Vec::new(), unchanged };
        check.node(schema, &at, true, Some(1), None);
        if check.total > SCHEMA_LIMIT {
            check.costly.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
            for (_, path) in check.costly.iter().take(4) {
                let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
                check.errors.push(FieldError::forbidden(path, why));
            }
            let why = too_costly("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", check.total, SCHEMA_LIMIT);
            check.errors.push(FieldError::forbidden(&at, why));
        }
        errors.extend(check.errors);
    }
    errors
}

struct Check {
    errors: Vec<FieldError>,
    total: u64,
    costly: Vec<(u64, Path)>,
    unchanged: bool,
}

impl Check {
    /// `times` is how often such data can be there at most, if that is bounded; `untied` is where old and new values cannot be told to be the same.
    fn node(&mut self, schema: &Value, at: &Path, root: bool, times: Option<u64>, untied: Option<&Path>) {
        let root = root || flag(schema, "x-kubernetes-embedded-resource");
        let count = |key: &str| schema.get(key).and_then(Value::as_i64).map(|n| n.max(0) as u64);
        let more = match text(schema, "type") {
            "object" if schema.get("additionalProperties").is_some() => count("maxProperties"),
            "array" => count("maxItems"),
            _ => Some(1),
        };
        let inside = times.and_then(|t| Some(t.saturating_mul(more?)));
        if let Some(inner) = schema.get("additionalProperties").filter(|s| s.is_object()) {
            self.node(inner, &at.child("additionalProperties"), false, inside, untied);
        }
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.node(property, &at.child("properties").key(name), false, inside, untied);
        }
        if let Some(inner) = schema.get("items").filter(|s| s.is_object()) {
            let here = (text(schema, "x-kubernetes-list-type") != "map").then_some(at);
            self.node(inner, &at.child("items"), false, inside, untied.or(here));
        }
        let rules = list(schema, "x-kubernetes-validations");
        if rules.is_empty() {
            return;
        }
        let at = at.child("x-kubernetes-validations");
        let Some(declared) = DeclType::from_openapi(schema, root) else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            return self.errors.push(FieldError::internal(&at, why));
        };
        for (i, rule) in rules.iter().enumerate() {
            self.rule(rule, &declared, times.unwrap_or_else(|| declared.max_cardinality()), &at.index(i), untied);
        }
    }

    fn rule(&mut self, rule: &Value, declared: &DeclType, times: u64, at: &Path, untied: Option<&Path>) {
        let expression = text(rule, "rule");
        if expression.trim().is_empty() {
            return;
        }
        let env = environment(declared, flag(rule, "optionalOldSelf"));
        let program = match compile(&env, expression) {
            Ok(program) => program,
            Err(why) => return self.errors.push(FieldError::invalid(&at.child("rule"), shown(rule), why)),
        };
        self.cost(&program, declared, times, &at.child("rule"), "estimated rule cost");
        let said = text(rule, "messageExpression");
        if !said.is_empty() {
            let at = at.child("messageExpression");
            match env.compile(said) {
                Err(issues) => {
                    let why = format!("messageExpression compilation failed: {issues}");
                    self.errors.push(FieldError::invalid(&at, shown(rule), why));
                }
                Ok(program) if *program.result_type() != Type::String => {
                    self.errors.push(FieldError::invalid(&at, shown(rule), "messageExpression must evaluate to a string"));
                }
                Ok(program) => self.cost(&program, declared, 1, &at, "estimated messageExpression cost"),
            }
        }
        if program.uses("oldSelf") {
            if let Some(place) = untied {
                let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {place}");
                self.errors.push(FieldError::invalid(&at.child("rule"), expression, why));
            }
        } else if let Some(optional) = rule.get("optionalOldSelf") {
            let at = at.child("optionalOldSelf");
            self.errors.push(FieldError::invalid(&at, optional.clone(), "may not be set if oldSelf is not used in rule"));
        }
    }

    fn cost(&mut self, program: &Program, declared: &DeclType, times: u64, at: &Path, what: &str) {
        let cost = program.estimate(declared).max.saturating_mul(times);
        if !self.unchanged && cost > RULE_LIMIT {
            self.errors.push(FieldError::forbidden(at, too_costly(what, cost, RULE_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_LIMIT / 100 {
            self.costly.push((cost, at.clone()));
        }
    }
}

/// A rule as upstream's messages show it.
fn shown(rule: &Value) -> Value {
    let get = |key: &str| rule.get(key).cloned();
    serde_json::json!({
        "Rule": get("rule").unwrap_or_else(|| "".into()),
        "Message": get("message").unwrap_or_else(|| "".into()),
        "MessageExpression": get("messageExpression").unwrap_or_else(|| "".into()),
        "Reason": get("reason"),
        "FieldPath": get("fieldPath").unwrap_or_else(|| "".into()),
        "OptionalOldSelf": get("optionalOldSelf"),
    })
}

fn too_costly(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_string()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
