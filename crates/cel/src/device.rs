//! Selectors of devices: expressions about the variable `device`, as classes and claims of dynamic resource allocation
//! have them. What compiles, what it may cost, and what it says of a device.

use std::collections::BTreeMap;

use api::quantity::Quantity;

use crate::cost::{Size, SizeEstimator};
use crate::env::Env;
use crate::eval::Activation;
use crate::program::Program;
use crate::types::Type;
use crate::value::Value;

/// The most that a selector may cost, estimated when it is written and counted when it runs.
pub const DEVICE_SELECTOR_LIMIT: u64 = 1_000_000;

const LONGEST_DOMAIN: u64 = 63;
const LONGEST_ID: u64 = 32;
const LONGEST_VALUE: u64 = 64;
const MOST_FACTS: u64 = 32;

/// A value of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceAttribute<'a> {
    Text(&'a str),
    Int(i64),
    Bool(bool),
    Version(&'a str),
    /// Of a type that is not known here.
    Unknown,
}

/// A selector that compiles.
#[derive(Debug)]
pub struct DeviceSelector {
    program: Program,
    /// The most that it can cost.
    pub most_cost: u64,
}

fn env() -> Env {
    let mut env = Env::new().with_bind();
    let by_name = |value: Type| Type::map(Type::String, Type::map(Type::String, value));
    let fields = [
        ("driver", Type::String),
        ("allowMultipleAllocations", Type::Bool),
        ("attributes", by_name(Type::Dyn)),
        ("capacity", by_name(Type::object("kubernetes.Quantity"))),
    ];
    let device = env.declare_object("kubernetes.DRADevice", fields.map(|(name, t)| (name.to_string(), t)));
    env.declare("device", device);
    env
}

/// How large the parts of a device can be.
struct Sizes;

impl SizeEstimator for Sizes {
    fn size(&self, path: &[String], _: &Type) -> Option<Size> {
        let (device, rest) = path.split_first()?;
        if device != "device" {
            return None;
        }
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        let max = match rest[..] {
            [] => 0,
            ["driver"] => LONGEST_DOMAIN,
            ["allowMultipleAllocations"] => 1,
            ["attributes" | "capacity"] | ["attributes" | "capacity", "@values"] => MOST_FACTS,
            ["attributes" | "capacity", "@keys"] => LONGEST_DOMAIN,
            ["attributes" | "capacity", "@values", "@keys"] => LONGEST_ID,
            ["attributes", "@values", name] if name != "@items" => LONGEST_VALUE,
            ["capacity", "@values", "@values"] => 0,
            _ => return None,
        };
        Some(Size { min: 0, max })
    }
}

impl DeviceSelector {
    /// Compiles a selector; says why not, in upstream's words.
    pub fn compile(expression: &str) -> Result<DeviceSelector, String> {
        static ENV: std::sync::LazyLock<Env> = std::sync::LazyLock::new(env);
        let program = ENV.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
        match program.result_type() {
            Type::Bool | Type::Dyn => {}
            other => return Err(format!("must evaluate to bool or the unknown type, not {other}")),
        }
        let most_cost = program.estimate(&Sizes).max;
        Ok(DeviceSelector { program, most_cost })
    }

    /// What it says of a device. Names without a domain belong to the driver's.
    pub fn matches<'a>(
        &'a self,
        driver: &'a str,
        is_shared: bool,
        attributes: impl Iterator<Item = (&'a str, DeviceAttribute<'a>)>,
        capacity: impl Iterator<Item = (&'a str, &'a Quantity)>,
    ) -> Result<bool, String> {
        let mut by_domain: BTreeMap<&str, Vec<(&str, Value<'a>)>> = BTreeMap::new();
        for (name, attribute) in attributes {
            let value = match attribute {
                DeviceAttribute::Text(text) => Value::borrowed(text),
                DeviceAttribute::Int(int) => Value::Int(int),
                DeviceAttribute::Bool(bool) => Value::Bool(bool),
                DeviceAttribute::Version(text) => Value::semver(text).ok_or_else(|| format!("attribute {name}: parse semantic version: {text:?} is none"))?,
                DeviceAttribute::Unknown => return Err(format!("attribute {name}: unsupported attribute value")),
            };
            let (domain, id) = name.split_once('/').unwrap_or((driver, name));
            by_domain.entry(domain).or_default().push((id, value));
        }
        let attributes = with_default(by_domain);
        let mut by_domain: BTreeMap<&str, Vec<(&str, Value<'a>)>> = BTreeMap::new();
        for (name, amount) in capacity {
            let (domain, id) = name.split_once('/').unwrap_or((driver, name));
            by_domain.entry(domain).or_default().push((id, Value::quantity(amount.clone())));
        }
        let capacity = with_default(by_domain);
        let fields = [("driver", Value::borrowed(driver)), ("allowMultipleAllocations", Value::Bool(is_shared)), ("attributes", attributes), ("capacity", capacity)];
        let activation = Activation::new().with("device", Value::map(fields));
        let value = self.program.eval_within(&activation, DEVICE_SELECTOR_LIMIT).result.map_err(|e| e.to_string())?;
        value.as_bool().ok_or_else(|| format!("CEL result of type {} could not be converted to bool: type conversion error from '{0}' to 'bool'", value.type_name()))
    }
}

/// A domain of which nothing is known is empty, rather than missing.
fn with_default<'a>(by_domain: BTreeMap<&str, Vec<(&str, Value<'a>)>>) -> Value<'a> {
    let empty = Value::map(Vec::<(String, Value<'a>)>::new());
    Value::map_with_default(by_domain.into_iter().map(|(domain, entries)| (domain, Value::map(entries))), empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "dra.example.com";

    fn asked(expression: &str, attributes: &[(&str, DeviceAttribute<'_>)], capacity: &[(&str, &str)]) -> (Result<bool, String>, u64) {
        let selector = match DeviceSelector::compile(expression) {
            Ok(selector) => selector,
            Err(why) => return (Err(why), 0),
        };
        let amounts: Vec<(&str, Quantity)> = capacity.iter().map(|(n, q)| (*n, Quantity::parse(q).expect("a quantity"))).collect();
        let said = selector.matches(D, true, attributes.iter().copied(), amounts.iter().map(|(n, q)| (*n, q)));
        (said, selector.most_cost)
    }

    #[test]
    fn selectors_ask_for_attributes_and_capacity() {
        use DeviceAttribute::*;
        let yes = |expression: &str, attributes: &[(&str, DeviceAttribute<'_>)], cost: u64| assert_eq!(asked(expression, attributes, &[("memory", "1Mi")]), (Ok(true), cost), "{expression}");
        yes("true", &[], 0);
        yes(r#"device.driver == "dra.example.com""#, &[], 4);
        yes(r#"device.attributes["dra.example.com"].name"#, &[("name", Bool(true))], 4);
        yes(r#"device.attributes["dra.example.com"]["name"]"#, &[("name", Bool(true))], 4);
        yes(r#"device.attributes["other.example.com"].name"#, &[("other.example.com/name", Bool(true))], 4);
        yes(r#"cel.bind(dra, device.attributes["dra.example.com"], dra.name)"#, &[("name", Bool(true))], 15);
        yes(r#"device.attributes["dra.example.com"].name > 0"#, &[("name", Int(1))], 5);
        yes(r#"device.attributes["dra.example.com"].name == "fish""#, &[("name", Text("fish"))], 5);
        yes(r#"device.attributes["dra.example.com"].name.isGreaterThan(semver("0.0.1"))"#, &[("name", Version("1.0.0"))], 6);
        yes(r#"device.capacity["dra.example.com"].memory.isGreaterThan(quantity("1Ki"))"#, &[], 6);
        yes(r#""dra.example.com" in device.attributes"#, &[("name", Int(1))], 3);
        yes("device.allowMultipleAllocations", &[], 2);
        assert_eq!(asked(r#""no-such-domain" in device.attributes"#, &[("name", Int(1))], &[]).0, Ok(false));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let why = |expression: &str| asked(expression, &[("name", DeviceAttribute::Int(1))], &[]).0.unwrap_err();
        assert!(why("?!").starts_with("compilation failed: ERROR: <input>:1:1: Syntax error"), "{}", why("?!"));
        assert_eq!(why("1"), "must evaluate to bool or the unknown type, not int");
        assert_eq!(why(r#"device.attributes["no-such-domain"].noSuchAttr.isGreaterThan(quantity("0"))"#), "no such key: noSuchAttr");
        assert!(why("device.size").starts_with("compilation failed: ERROR: <input>:1:7: undefined field 'size'"), "{}", why("device.size"));
        assert!(why(r#"device.attributes["dra.example.com"].name"#).starts_with("CEL result of type int could not be converted to bool"));
        assert_eq!(asked("true", &[("name", DeviceAttribute::Unknown)], &[]).0, Err("attribute name: unsupported attribute value".into()));
    }

    #[test]
    fn what_costs_too_much_is_known_beforehand() {
        let deep = r#"device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a + b + c + d != "x"))))"#;
        assert!(DeviceSelector::compile(deep).expect("a selector").most_cost > DEVICE_SELECTOR_LIMIT);
        assert!(DeviceSelector::compile("device.driver.startsWith('x')").expect("a selector").most_cost < 100);
    }
}
