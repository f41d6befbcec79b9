//! MutatingAdmissionPolicy: policies change what is written, by configurations that are applied or by JSON patches.
//!
//! Policies are asked one after the other, each sees what those before it made. When one changed the object, all
//! plug-ins look at it once more, and policies that want to be asked again are.

use api::patch::PatchError;
use api::status::{self, Cause};
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use cel::{RUNTIME_BUDGET, Type};
use serde_json::Value;

use super::{Binding, Hook, Invocation, Policy, environment, hooks, invocations, is_exempt, namespace_object};
use crate::admission::conditions::{self, Data, Expression, OUT_OF_BUDGET, Spent};
use crate::admission::configured::Configured;
use crate::admission::forbidden;
use crate::admission::request::View;
use crate::util::{MUTATING_POLICIES, MUTATING_POLICY_BINDINGS, items, text};

const NAME: &str = "MutatingAdmissionPolicy";

/// The plug-in, with what it compiled.
#[derive(Default)]
pub(in crate::admission) struct MutatingAdmissionPolicy {
    hooks: Configured<Hook<Rules>>,
}

/// How a policy changes writes.
struct Rules {
    mutations: Vec<Mutation>,
    /// Whether it wants to be asked again when others changed the object after it.
    again: bool,
}

struct Mutation {
    kind: Kind,
    expression: Expression,
}

/// What the expression of a mutation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ApplyConfiguration,
    JsonPatch,
}

impl Kind {
    /// The name of the field with the expression.
    pub fn field(self) -> &'static str {
        match self {
            Kind::ApplyConfiguration => "applyConfiguration",
            Kind::JsonPatch => "jsonPatch",
        }
    }

    /// The type that the expression must have.
    pub fn result(self) -> Type {
        match self {
            Kind::ApplyConfiguration => Type::object("Object"),
            Kind::JsonPatch => Type::list(Type::object("JSONPatch")),
        }
    }

    pub fn of(mutation: &Value) -> Option<Kind> {
        match text(mutation, "/patchType") {
            "ApplyConfiguration" => Some(Kind::ApplyConfiguration),
            "JSONPatch" => Some(Kind::JsonPatch),
            _ => None,
        }
    }
}

/// Why a mutation did not come about.
enum Failure {
    /// The request fails, whatever the policy says of failures.
    Request(Status),
    /// The policy failed.
    Policy(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Failure::Policy(why)
    }
}

fn compile(policy: &Value) -> Policy<Rules> {
    let environments = [environment(policy, true, false), environment(policy, true, true)];
    Policy::compile(policy, environments, |spec, [_, mutating]| {
        let mutation = |m: &Value| {
            let kind = Kind::of(m)?;
            let expression = m.get(kind.field())?;
            Some(Mutation { kind, expression: Expression::new(mutating, text(expression, "/expression"), &[kind.result()]) })
        };
        Rules { mutations: items(spec, "/mutations").filter_map(mutation).collect(), again: text(spec, "/reinvocationPolicy") == "IfNeeded" }
    })
}

impl Mutation {
    /// What the mutation makes of the object, in the version in which the policy looks at it.
    fn patched(&self, view: &View<'_>, params: Option<&Value>, namespace: Option<&Value>, policy: &Policy<Rules>) -> Result<Value, Failure> {
        if let Some(why) = self.expression.mistake() {
            return Err(why.to_owned().into());
        }
        let data = Data::new(view, params);
        let activation = data.activation(namespace, &policy.variables);
        let mut budget = RUNTIME_BUDGET;
        let made = self.expression.evaluate(&activation, &mut budget).map_err(|Spent| OUT_OF_BUDGET.to_owned())??;
        match self.kind {
            Kind::ApplyConfiguration => {
                let mut configuration = made.to_configuration()?;
                for key in ["apiVersion", "kind"] {
                    configuration[key] = view.object[key].clone();
                }
                let reader = &view.attributes.ctx.backend.reader;
                let merged = reader.merge(view.target, &view.object, &configuration);
                Ok(merged.map_err(|why| format!("error applying patch: {why}"))?)
            }
            Kind::JsonPatch => match api::patch::try_json_patch(&view.object, &made.to_json_patch()?) {
                Ok(patched) => Ok(patched),
                // A test that fails leaves the object as it is.
                Err(PatchError::Test) => Ok(view.object.clone().into_owned()),
                Err(PatchError::Other(why)) => Err(format!("JSON Patch: {why}").into()),
            },
        }
    }

    /// What the mutation makes of the object, ready for who comes next.
    async fn apply(&self, view: &View<'_>, params: Option<&Value>, namespace: Option<&Value>, policy: &Policy<Rules>) -> Result<Value, Failure> {
        let ctx = view.attributes.ctx;
        let patched = ctx.settled(|| self.patched(view, params, namespace, policy)).await?;
        let mut object = view.back(patched).await.map_err(Failure::Request)?;
        let strict = |why: String| Failure::Request(status::internal(format!("strict decoding error: {why}")));
        match (ctx.settle(&mut object), self.kind) {
            (Ok(unknown), Kind::JsonPatch) if !unknown.is_empty() && !ctx.resource.is_custom() => Err(strict(unknown.join(", "))),
            (Ok(_), _) => Ok(object),
            (Err(why), Kind::JsonPatch) => Err(Failure::Request(status::internal(why))),
            (Err(why), Kind::ApplyConfiguration) => Err(why.into()),
        }
    }
}

/// What went wrong with policies that say that failures count.
#[derive(Default)]
struct Wrongs(Vec<(String, &'static str)>);

impl Wrongs {
    fn add(&mut self, policy: &Policy<Rules>, binding: Option<&Binding>, why: &str, reason: &'static str) {
        if policy.fails {
            let of = match binding {
                Some(binding) => format!("policy '{}' with binding '{}'", policy.name, binding.name),
                None => format!("policy {:?}", policy.name),
            };
            self.0.push((format!("{of} denied request: {why}"), reason));
        }
    }

    fn result(self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Status> {
        let Some((message, reason)) = self.0.first().cloned() else { return Ok(()) };
        let mut refused = forbidden(attributes, Some(object), "admission request denied by policy");
        refused.message = message;
        if !reason.is_empty() {
            refused.reason = reason.to_owned();
        }
        Err(self.0.into_iter().fold(refused, |status, (message, _)| status.with_cause(Cause { message, ..Cause::default() })))
    }
}

/// What tells one invocation from others.
fn key(invocation: &Invocation<'_, Rules>) -> String {
    let param = |pointer: &str| invocation.params.as_ref().map_or("", |p| text(p, pointer));
    format!("{}/{}/{}/{}", invocation.policy.name, invocation.binding.name, param("/metadata/namespace"), param("/metadata/name"))
}

#[async_trait]
impl Admission for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        NAME
    }

    /// What is deleted has nothing to change.
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Delete
    }

    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Status> {
        let ctx = attributes.ctx;
        if is_exempt(ctx) {
            return Ok(());
        }
        let hooks = hooks(&self.hooks, ctx, [*MUTATING_POLICIES, *MUTATING_POLICY_BINDINGS], compile);
        let mut wrongs = Wrongs::default();
        // Who is asked is settled before anything changes.
        let mut asked = Vec::new();
        for invocation in invocations(&hooks, attributes, (!object.is_null()).then_some(&*object)).await {
            match invocation {
                Ok(invocation) => asked.push(invocation),
                Err(wrong) => wrongs.add(wrong.policy, wrong.binding, &wrong.why, ""),
            }
        }
        if !asked.is_empty() {
            self.ask(&asked, attributes, object, &mut wrongs).await?;
        }
        wrongs.result(attributes, object)
    }
}

impl MutatingAdmissionPolicy {
    async fn ask(&self, asked: &[Invocation<'_, Rules>], attributes: &Attributes<'_>, object: &mut Value, wrongs: &mut Wrongs) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let namespace = namespace_object(ctx).await?;
        let mut round = ctx.round(NAME);
        if ctx.is_second_round() && round.output.as_ref() != Some(object) {
            round.require_earlier();
        }
        let mut patched = false;
        for invocation in asked {
            let Invocation { policy, binding, target, params } = invocation;
            let view = View::of(attributes, target, Some(object)).await?;
            match ctx.settled(|| conditions::all_hold(&policy.conditions, &Data::new(&view, params.as_deref()), &policy.variables)).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => {
                    wrongs.add(policy, Some(binding), &why, "Invalid");
                    continue;
                }
            }
            drop(view);
            let key = key(invocation);
            if ctx.is_second_round() && !round.required.contains(&key) {
                continue;
            }
            let before = object.clone();
            for mutation in &policy.rules.mutations {
                if object.is_null() {
                    break;
                }
                if attributes.operation == Operation::Connect {
                    return Err(no_type(object));
                }
                let view = View::of(attributes, target, Some(object)).await?;
                let made = mutation.apply(&view, params.as_deref(), namespace.as_deref(), policy).await;
                drop(view);
                match made {
                    Ok(made) => {
                        *object = made;
                        patched = true;
                    }
                    Err(Failure::Request(status)) => return Err(status),
                    Err(Failure::Policy(why)) => wrongs.add(policy, Some(binding), &why, "Invalid"),
                }
            }
            if before != *object {
                round.require_earlier();
                ctx.require_second_round();
            }
            if policy.rules.again {
                round.earlier.insert(key);
            }
        }
        if patched {
            // As upstream has it, a policy that wants to be asked again is so after its own patch, too.
            round.require_earlier();
            ctx.require_second_round();
        }
        round.output = Some(object.clone());
        ctx.keep_round(NAME, round);
        Ok(())
    }
}

/// The options of a connection have no schema by which they could be changed.
fn no_type(object: &Value) -> Status {
    let (group, version) = api::resources::split_api_version(text(object, "/apiVersion"));
    let kind = text(object, "/kind");
    status::unavailable(format!(
        "Resource kind {group}/{version}, Kind={kind} not found. There can be a delay between when CustomResourceDefinitions are created and when they are available."
    ))
}
