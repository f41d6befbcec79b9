//! ValidatingAdmissionPolicy: writes are judged by expressions that the cluster's owners wrote as objects.
//!
//! Policies are compiled when they change, not when they are asked. [`matching`] says which writes a policy is for,
//! [`compiled`] what its expressions say.

mod compiled;
mod matching;

use std::collections::HashMap;
use std::sync::Arc;

use api::status::Cause;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use parking_lot::RwLock;
use serde_json::Value;

pub(crate) use compiled::mistakes;
use compiled::{Input, Outcome, Policy};

use super::forbidden;
use crate::util::{ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS, NAMESPACES, text, texts};

/// The plug-in, with what it compiled.
#[derive(Default)]
pub(super) struct ValidatingAdmissionPolicy {
    hooks: RwLock<Option<Hooks>>,
}

/// All policies with their bindings, in the order of their names.
#[derive(Clone)]
struct Hooks {
    versions: (u64, u64),
    all: Arc<Vec<Hook>>,
}

struct Hook {
    policy: Arc<Policy>,
    bindings: Vec<Arc<Value>>,
}

/// A write that is refused: by which policy and binding, and why.
struct Denial {
    message: String,
    reason: String,
}

impl ValidatingAdmissionPolicy {
    /// The policies as they are now; those that did not change are not compiled again.
    fn hooks(&self, attributes: &Attributes<'_>) -> Arc<Vec<Hook>> {
        let reader = &attributes.ctx.backend.reader;
        let versions = (reader.version(&ADMISSION_POLICIES), reader.version(&ADMISSION_POLICY_BINDINGS));
        let before = self.hooks.read().clone();
        if let Some(hooks) = &before
            && hooks.versions == versions
        {
            return hooks.all.clone();
        }
        let known: HashMap<String, Arc<Policy>> =
            before.iter().flat_map(|h| h.all.iter()).map(|h| (h.policy.version.clone(), h.policy.clone())).collect();
        let mut bindings: HashMap<String, Vec<Arc<Value>>> = HashMap::new();
        for binding in reader.list(&ADMISSION_POLICY_BINDINGS, None) {
            bindings.entry(text(&binding, "/spec/policyName").to_owned()).or_default().push(binding);
        }
        // A policy without a binding judges nothing.
        let hook = |object: Arc<Value>| {
            let bindings = bindings.remove(text(&object, "/metadata/name"))?;
            let policy = known.get(&Policy::version_of(&object)).cloned();
            Some(Hook { policy: policy.unwrap_or_else(|| Arc::new(Policy::compile(&object))), bindings })
        };
        let all = Arc::new(reader.list(&ADMISSION_POLICIES, None).into_iter().filter_map(hook).collect::<Vec<_>>());
        *self.hooks.write() = Some(Hooks { versions, all: all.clone() });
        all
    }
}

/// Resources that no policy is asked about: without them nobody could put a wrong policy right.
fn exempt(group: &str, plural: &str) -> bool {
    match group {
        "admissionregistration.k8s.io" => true,
        "authentication.k8s.io" => matches!(plural, "selfsubjectreviews" | "tokenreviews"),
        "authorization.k8s.io" => true,
        _ => false,
    }
}

#[async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    fn handles(&self, _: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let ctx = attributes.ctx;
        if exempt(ctx.resource.group, ctx.resource.plural) {
            return Ok(());
        }
        let hooks = self.hooks(attributes);
        let mut denials = Vec::new();
        for hook in hooks.iter() {
            judge(hook, attributes, object, &mut denials)?;
        }
        let Some(denial) = denials.into_iter().next() else { return Ok(()) };
        let mut status = forbidden(attributes, object, &denial.message).with_cause(Cause { message: denial.message, ..Cause::default() });
        status.reason = if denial.reason.is_empty() { "Invalid".to_string() } else { denial.reason };
        status.code = match &status.reason[..] {
            "Forbidden" => 403,
            "Unauthorized" => 401,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        Err(status)
    }
}

/// Lets one policy judge a write.
fn judge(hook: &Hook, attributes: &Attributes<'_>, object: Option<&Value>, denials: &mut Vec<Denial>) -> Result<(), Status> {
    let ctx = attributes.ctx;
    let policy = &hook.policy;
    let name = &policy.name;
    // What is wrong with the configuration refuses the write, unless the policy says that failures do not count.
    let misconfigured = |denials: &mut Vec<Denial>, binding: &str, why: &str| {
        if policy.fails {
            let message = match binding {
                "" => format!("ValidatingAdmissionPolicy '{name}' denied request: failed to configure policy: {why}"),
                _ => format!("ValidatingAdmissionPolicy '{name}' with binding '{binding}' denied request: failed to configure binding: {why}"),
            };
            denials.push(Denial { message, reason: String::new() });
        }
    };
    let target = match matching::matches(attributes, object, policy.constraints()) {
        Ok(Some(target)) => target,
        Ok(None) => return Ok(()),
        Err(why) => {
            misconfigured(denials, "", &why);
            return Ok(());
        }
    };
    let namespace = if ctx.namespace.is_empty() || ctx.resource.plural == "namespaces" && ctx.resource.group.is_empty() {
        None
    } else {
        let found = ctx.backend.reader.get(&NAMESPACES, "", &ctx.namespace);
        Some(found.ok_or_else(|| api::status::not_found("", "namespaces", &ctx.namespace))?)
    };
    for binding in &hook.bindings {
        let binding_name = text(binding, "/metadata/name");
        let matched = match binding.pointer("/spec/matchResources") {
            Some(resources) => matching::matches(attributes, object, resources).map(|target| target.is_some()),
            None => Ok(true),
        };
        let params = match matched {
            Ok(false) => continue,
            Ok(true) => matching::params(ctx, policy.param_kind(), binding.pointer("/spec/paramRef")),
            Err(why) => Err(why),
        };
        let params = match params {
            Ok(params) => params,
            Err(why) => {
                misconfigured(denials, binding_name, &why);
                continue;
            }
        };
        for params in params {
            let input = Input { attributes, object, target: &target, params: params.as_deref(), namespace: namespace.as_deref() };
            let of = format!("ValidatingAdmissionPolicy '{name}' with binding '{binding_name}'");
            for outcome in policy.evaluate(&input) {
                match outcome {
                    Outcome::Denied { message, reason } => {
                        for action in texts(binding, "/spec/validationActions") {
                            match action {
                                "Deny" => denials.push(Denial { message: format!("{of} denied request: {message}"), reason: reason.clone() }),
                                "Warn" => ctx.warn(format!("Validation failed for {of}: {message}")),
                                // Nobody audits yet.
                                _ => {}
                            }
                        }
                    }
                    // Whatever the binding wants done, an annotation that cannot be made refuses.
                    Outcome::Annotation { message } => denials.push(Denial { message: format!("{of} denied request: {message}"), reason: String::new() }),
                }
            }
        }
    }
    Ok(())
}


#[cfg(test)]
mod tests;
