//! The Common Expression Language as Kubernetes 1.36 uses it: parser, type checker, cost model and evaluator. No async,
//! HTTP or clocks.
//!
//! An expression is compiled once against an [`Env`] (variables with types, often from OpenAPI schemas) and evaluated many
//! times with an [`Activation`] (their values, which are views of JSON):
//!
//! ```ignore
//! use cel::{Activation, DeclType, Env, Type, Value};
//! use serde_json::json;
//!
//! let schema = DeclType::from_openapi(
//!     &json!({"type": "object", "properties": {"replicas": {"type": "integer"}, "max": {"type": "integer"}}}),
//!     false,
//! )
//! .unwrap();
//! let mut env = Env::new();
//! env.declare_schema("self", "selfType", &schema);
//! let program = env.compile("self.replicas <= self.max").unwrap();
//! assert_eq!(*program.result_type(), Type::Bool);
//! assert!(program.estimate(&schema).max < cel::MAX_REQUEST_SIZE);
//!
//! let object = json!({"replicas": 3, "max": 2});
//! let activation = Activation::new().with("self", schema.value(&object).unwrap());
//! let evaluation = program.eval(&activation);
//! assert_eq!(evaluation.result.unwrap().as_bool(), Some(false));
//!
//! // Without a schema, data is dynamic.
//! let program = Env::new().variable_of("object", Type::Dyn).compile("object.max.foo").unwrap();
//! let activation = Activation::new().with("object", Value::from_json(&object));
//! assert_eq!(program.eval(&activation).result.unwrap_err().to_string(), "no such key: foo");
//!
//! // What does not compile says why, in upstream's words.
//! let issues = Env::new().compile("1 + 'a'").unwrap_err();
//! assert!(issues.to_string().starts_with("ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'"));
//! ```
//!
//! - [`Env::compile`] gives a [`Program`] or [`Issues`], whose `Display` is upstream's error text with the quoted line.
//!   Functions and libraries are those of upstream's base environment for 1.36; [`Env::with_bind`] adds `cel.bind` (device
//!   selectors have it), [`Env::with_mutation`] `Object{}`, `JSONPatch{}` and `jsonpatch.escapeKey`, which
//!   [`Value::to_configuration`] and [`Value::to_json_patch`] read.
//! - [`DeclType::from_openapi`] reads a structural schema; [`DeclType::value`] makes a lazy [`Value`] of JSON under it (list
//!   types, int-or-string, formats, nullable); [`Env::declare_schema`] declares a variable of it. An optional `oldSelf` is
//!   `Type::optional(env.register(name, &schema))` with the value `Value::optional(..)`.
//! - [`Program::eval`] gives value (or [`Error`]) and cost; it stops at [`PER_CALL_LIMIT`], [`Program::eval_within`] at a
//!   limit of the caller, who keeps the budget over several expressions ([`RUNTIME_BUDGET`]).
//! - [`Program::estimate`] is the static cost, with sizes from a [`SizeEstimator`] (a [`DeclType`] is one).
//! - [`Activation::compose`] gives `variables.name` from expressions, evaluated when first used.
//! - [`Authorizer`] answers `authorizer.group('').resource('pods').check('list')`; see [`Value::authorizer`].
//! - [`admission`] has the variables of admission policies and match conditions, with the types of `request` and
//!   `namespaceObject`.
//! - [`authentication`] and [`authorization`] have those of the configurations of these names.
//! - [`escape`] and [`unescape`] are Kubernetes' spelling of field names.
#![forbid(unsafe_code)]

pub mod admission;
pub mod authentication;
pub mod authorization;
mod check;
mod cost;
mod device;
mod env;
mod error;
mod escape;
mod eval;
mod functions;
mod issues;
mod mutation;
mod program;
mod runtime_cost;
mod schema;
mod syntax;
mod types;
mod value;

pub use cost::{NoSizes, Size, SizeEstimator};
pub use device::{DEVICE_SELECTOR_LIMIT, DeviceAttribute, DeviceSelector};
pub use env::Env;
pub use error::{Error, ErrorKind};
pub use escape::{escape, unescape};
pub use eval::{Activation, Evaluation, PER_CALL_LIMIT};
pub use issues::{Issue, Issues};
pub use program::Program;
pub use schema::{DeclType, MAX_REQUEST_SIZE};
pub use types::Type;
pub use value::{AccessRequest, Authorizer, Decision, Key, List, Map, Opaque, OwnedMap, Str, Timestamp, Value};

/// The most that all expressions of one object may cost when they run.
pub const RUNTIME_BUDGET: u64 = 10_000_000;
