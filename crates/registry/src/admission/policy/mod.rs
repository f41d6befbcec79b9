//! Admission policies: expressions that the cluster's owners wrote as objects judge and change writes.
//!
//! Policies are compiled when they change, not when they are asked. Here is what is the same for all of them: which
//! writes a policy and its bindings are for, with which parameters, and what stands in the way of asking it.

mod mistakes;
mod mutating;
mod params;
mod validating;

use std::collections::HashMap;
use std::sync::Arc;

use apiserver::types::{Resource, Status};
use apiserver::{Attributes, Ctx};
use cel::admission::{Variables, env};
use cel::{Env, Type};
use serde_json::Value;

use super::conditions::{self, Expression, Variable};
use super::configured::Configured;
use super::matching::Matcher;
use super::request::{self, is_configuration, is_namespace};
use crate::util::{items, text};

pub(crate) use mistakes::{of_binding, of_mutating, of_validating};
pub(super) use mutating::MutatingAdmissionPolicy;
pub(super) use validating::ValidatingAdmissionPolicy;

/// A policy, compiled. What it does is in `rules`.
struct Policy<R> {
    name: String,
    /// Name and resourceVersion: another text is another policy.
    version: String,
    /// Whether what goes wrong refuses the write.
    fails: bool,
    matcher: Matcher,
    /// The kind of its parameters.
    param_kind: Option<Value>,
    variables: Vec<Variable>,
    conditions: Vec<Expression>,
    rules: R,
}

/// A binding of a policy.
struct Binding {
    name: String,
    matcher: Option<Matcher>,
    object: Arc<Value>,
}

/// A policy with its bindings.
struct Hook<R> {
    policy: Arc<Policy<R>>,
    bindings: Vec<Binding>,
}

/// What a policy's expressions may name.
fn environment(policy: &Value, authorizer: bool, mutation: bool) -> Env {
    env(Variables { params: policy.pointer("/spec/paramKind").is_some(), authorizer, mutation, ..Variables::default() })
}

/// What tells a policy's text from every other.
fn version_of(policy: &Value) -> String {
    format!("{} {} {}", text(policy, "/metadata/name"), text(policy, "/metadata/uid"), text(policy, "/metadata/resourceVersion"))
}

impl<R> Policy<R> {
    /// Compiles a policy. `rules` gets its spec, and the environment, with variables, once more for each of `environments`.
    fn compile<const N: usize>(policy: &Value, mut environments: [Env; N], rules: impl FnOnce(&Value, &[Env; N]) -> R) -> Self {
        let mut variables = Vec::new();
        for variable in items(policy, "/spec/variables") {
            let name = text(variable, "/name");
            let program = environments[0].compile(text(variable, "/expression")).map_err(|e| format!("{}{e}", e.prefix()));
            let t = program.as_ref().map_or(Type::Dyn, |p| p.result_type().clone());
            for env in &mut environments {
                env.declare_composed(name, t.clone());
            }
            variables.push((name.to_owned(), program));
        }
        Self {
            name: text(policy, "/metadata/name").to_owned(),
            version: version_of(policy),
            fails: text(policy, "/spec/failurePolicy") != "Ignore",
            matcher: Matcher::of_resources(&policy["spec"]["matchConstraints"]),
            param_kind: policy.pointer("/spec/paramKind").cloned(),
            conditions: conditions::read(&environments[0], &policy["spec"]),
            rules: rules(&policy["spec"], &environments),
            variables,
        }
    }
}

impl Binding {
    fn read(object: Arc<Value>) -> Self {
        let name = text(&object, "/metadata/name").to_owned();
        Self { name, matcher: object.pointer("/spec/matchResources").map(Matcher::of_resources), object }
    }
}

/// All policies that have bindings, in the order of their names. Those that did not change are not compiled again.
fn hooks<R>(configured: &Configured<Hook<R>>, ctx: &Ctx, [policies, bindings]: [&Resource; 2], compile: fn(&Value) -> Policy<R>) -> Arc<Vec<Hook<R>>> {
    configured.get(ctx, &[policies, bindings], |before| {
        let reader = &ctx.backend.reader;
        let known: HashMap<&str, &Arc<Policy<R>>> = before.iter().map(|h| (&h.policy.version[..], &h.policy)).collect();
        let mut bound: HashMap<String, Vec<Binding>> = HashMap::new();
        for binding in reader.list(bindings, None) {
            bound.entry(text(&binding, "/spec/policyName").to_owned()).or_default().push(Binding::read(binding));
        }
        let hook = |object: Arc<Value>| {
            let bindings = bound.remove(text(&object, "/metadata/name"))?;
            let policy = known.get(&version_of(&object)[..]).copied().cloned();
            Some(Hook { policy: policy.unwrap_or_else(|| Arc::new(compile(&object))), bindings })
        };
        reader.list(policies, None).into_iter().filter_map(hook).collect()
    })
}

/// Whether the write is of what no policy is asked about: configurations of admission, and questions of authentication
/// and authorization, which the cluster would not run without.
fn is_exempt(ctx: &Ctx) -> bool {
    is_configuration(ctx)
        || match ctx.resource.group {
            "authentication.k8s.io" => matches!(ctx.resource.plural, "selfsubjectreviews" | "tokenreviews"),
            "authorization.k8s.io" => true,
            _ => false,
        }
}

/// A policy that is to be asked: for a binding, with a parameter or none, about the write as one of the target.
struct Invocation<'h, R> {
    policy: &'h Policy<R>,
    binding: &'h Binding,
    target: &'static Resource,
    params: Option<Arc<Value>>,
}

/// Why a policy, or a binding of it, cannot be asked.
struct Misconfigured<'h, R> {
    policy: &'h Policy<R>,
    binding: Option<&'h Binding>,
    why: String,
}

/// Who is to be asked about a write, in order.
async fn invocations<'h, R>(hooks: &'h [Hook<R>], attributes: &Attributes<'_>, object: Option<&Value>) -> Vec<Result<Invocation<'h, R>, Misconfigured<'h, R>>> {
    let mut out = Vec::new();
    for hook in hooks {
        let policy = &*hook.policy;
        let target = match policy.matcher.matches(attributes, object).await {
            Ok(Some(target)) => target,
            Ok(None) => continue,
            Err(status) => {
                let why = format!("failed to configure policy: {}", status.message);
                out.push(Err(Misconfigured { policy, binding: None, why }));
                continue;
            }
        };
        for binding in &hook.bindings {
            let matched = match &binding.matcher {
                Some(matcher) => matcher.matches(attributes, object).await.map(|target| target.is_some()),
                None => Ok(true),
            };
            let params = match matched {
                Ok(false) => continue,
                Ok(true) => params::params(attributes.ctx, policy.param_kind.as_ref(), binding.object.pointer("/spec/paramRef")),
                Err(status) => Err(status.message),
            };
            match params {
                Ok(params) => out.extend(params.into_iter().map(|params| Ok(Invocation { policy, binding, target, params }))),
                Err(why) => out.push(Err(Misconfigured { policy, binding: Some(binding), why: format!("failed to configure binding: {why}") })),
            }
        }
    }
    out
}

/// The namespace that expressions see; what is in none, and namespaces themselves, have none.
async fn namespace_object(ctx: &Ctx) -> Result<Option<Arc<Value>>, Status> {
    if ctx.namespace.is_empty() || is_namespace(ctx) {
        return Ok(None);
    }
    request::namespace(ctx, &ctx.namespace).await.map(Some)
}

#[cfg(test)]
mod mutating_tests;
#[cfg(test)]
mod tests;
