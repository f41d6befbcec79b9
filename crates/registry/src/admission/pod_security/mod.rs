//! PodSecurity: the pod security standards, chosen by namespace labels or by configuration
//! (https://kubernetes.io/docs/concepts/security/pod-security-standards/). `enforce` refuses,
//! `warn` warns and `audit` tells the audit log, also about the templates of workloads.

mod checks;
mod policy;

use std::collections::{BTreeMap, BTreeSet};

use api::status;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::Value;

use super::{forbidden, is, is_sub, request};
use crate::util::{PODS, flag, items, text};
use checks::{Violation, violations};
pub(super) use policy::{LATEST, Level, Policy, Standard, Version};

/// The plug-in as it is configured.
#[derive(Clone, Debug)]
pub(super) struct PodSecurity {
    /// What namespaces ask for that say nothing.
    pub defaults: Policy,
    pub exempt: Exempt,
}

/// Who is not looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Exempt {
    pub users: Vec<String>,
    pub namespaces: Vec<String>,
    pub runtime_classes: Vec<String>,
}

impl Default for PodSecurity {
    fn default() -> PodSecurity {
        PodSecurity { defaults: Policy::PRIVILEGED, exempt: Exempt::default() }
    }
}

/// What the audit log is told.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const VIOLATIONS: &str = "pod-security.kubernetes.io/audit-violations";
const EXEMPT: &str = "pod-security.kubernetes.io/exempt";
const ERROR: &str = "pod-security.kubernetes.io/error";

/// Most pods of a namespace that are looked at when what it enforces changes.
const MAX_PODS: usize = 3000;

/// Where the pod template is in the kinds that have one.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "replicationcontrollers", "/spec/template"),
    ("", "podtemplates", "/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<(), Status> {
        let Some(object) = object else { return Ok(()) };
        if is(attributes, "", "namespaces") {
            return self.namespace(attributes, object);
        }
        if ["", "ephemeralcontainers", "resize"].iter().any(|sub| is_sub(attributes, "", "pods", sub)) {
            let namespace = request::namespace(attributes.ctx, &attributes.ctx.namespace).await;
            let namespace = namespace.map_err(|_| status::internal(format!("failed to lookup namespace {:?}", attributes.ctx.namespace)))?;
            return self.workload(attributes, &namespace, object, object, true);
        }
        let template = TEMPLATES.iter().find(|(g, p, _)| is(attributes, g, p)).and_then(|(_, _, at)| object.pointer(at));
        let Some(template) = template else { return Ok(()) };
        match request::namespace(attributes.ctx, &attributes.ctx.namespace).await {
            Ok(namespace) => self.workload(attributes, &namespace, object, template, false),
            // its pods will be asked about
            Err(_) => Ok(()),
        }
    }
}

impl PodSecurity {
    fn policy(&self, namespace: &Value) -> (Policy, Vec<api::field::FieldError>) {
        Policy::of(&namespace["metadata"]["labels"], self.defaults)
    }

    /// Labels must be good ones; whoever enforces more is told which pods would not have come in.
    fn namespace(&self, attributes: &Attributes<'_>, namespace: &Value) -> Result<(), Status> {
        let (policy, errors) = self.policy(namespace);
        let (name, ctx) = (text(namespace, "/metadata/name"), attributes.ctx);
        let before = attributes.old.map(|old| self.policy(old));
        if !errors.is_empty() && before.as_ref().is_none_or(|(_, old)| *old != errors) {
            return Err(status::invalid("", "Namespace", name, &errors));
        }
        if let Some((old, _)) = &before {
            let relaxed = policy.enforce.version == old.enforce.version && policy.enforce.level <= old.enforce.level;
            if policy.enforce == old.enforce || policy.enforce.level == Level::Privileged || relaxed {
                return Ok(());
            }
        }
        if self.exempt.namespaces.iter().any(|exempt| exempt == name) {
            if let Some(warning) = policy.ignored(name, &namespace["metadata"]["labels"], &self.defaults) {
                ctx.warn(warning);
            }
        } else if before.is_some() {
            let pods = ctx.backend.reader.list(&PODS, Some(name));
            self.existing(name, policy.enforce, pods.iter().map(|pod| &**pod)).into_iter().for_each(|warning| ctx.warn(warning));
        }
        Ok(())
    }

    /// What is said of pods that are there and would be refused now: of those of one controller, one comes before all others.
    fn existing<'a>(&self, namespace: &str, standard: Standard, pods: impl Iterator<Item = &'a Value>) -> Vec<String> {
        let (mut first, mut others, mut controllers) = (Vec::new(), Vec::new(), BTreeSet::new());
        for pod in pods.filter(|pod| !self.is_exempt_class(&pod["spec"])) {
            let controller = items(pod, "/metadata/ownerReferences").find(|r| flag(r, "/controller")).map(|r| text(r, "/uid"));
            let new = controller.is_none_or(|uid| controllers.insert(uid));
            if new { first.push(pod) } else { others.push(pod) }
        }
        first.append(&mut others);
        let total = first.len();
        first.truncate(MAX_PODS);
        let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for pod in &first {
            let all = violations(standard, &pod["metadata"], &pod["spec"]);
            if !all.is_empty() {
                let reasons: Vec<String> = all.into_iter().map(|v| v.reason).collect();
                found.entry(reasons.join(", ")).or_default().push(text(pod, "/metadata/name"));
            }
        }
        let mut warnings = Vec::new();
        if first.len() < total {
            warnings.push(format!("new PodSecurity enforce level only checked against the first {} of {total} existing pods", first.len()));
        }
        if !found.is_empty() {
            warnings.push(format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""));
        }
        let told = |(reasons, pods): (String, Vec<&str>)| {
            let name = pods.iter().min().copied().unwrap_or_default();
            match pods.len() - 1 {
                0 => format!("{name}: {reasons}"),
                1 => format!("{name} (and 1 other pod): {reasons}"),
                more => format!("{name} (and {more} other pods): {reasons}"),
            }
        };
        let mut each: Vec<String> = found.into_iter().map(told).collect();
        each.sort();
        warnings.append(&mut each);
        warnings
    }

    fn is_exempt_class(&self, spec: &Value) -> bool {
        let class = text(spec, "/runtimeClassName");
        !class.is_empty() && self.exempt.runtime_classes.iter().any(|exempt| exempt == class)
    }

    /// A pod, or what has a template: `pod` has metadata and specification of it.
    fn workload(&self, attributes: &Attributes<'_>, namespace: &Value, object: &Value, pod: &Value, enforce: bool) -> Result<(), Status> {
        let ctx = attributes.ctx;
        let exempt = |why: &str| {
            ctx.audit(EXEMPT, || why.to_owned());
            Ok(())
        };
        if self.exempt.namespaces.contains(&ctx.namespace) {
            return exempt("namespace");
        }
        if self.exempt.users.contains(&ctx.user.name) {
            return exempt("user");
        }
        let (policy, errors) = self.policy(namespace);
        if errors.is_empty() && policy.is_privileged() {
            if enforce {
                ctx.audit(ENFORCED, || Standard::PRIVILEGED.to_string());
            }
            return Ok(());
        }
        let silent = policy.warn.level == Level::Privileged && policy.audit.level == Level::Privileged;
        if !enforce && errors.is_empty() && silent {
            return Ok(());
        }
        let spec = &pod["spec"];
        if enforce && attributes.old.is_some_and(|old| !has_other_images(spec, &old["spec"])) {
            return Ok(());
        }
        if self.is_exempt_class(spec) {
            return exempt("runtimeClass");
        }
        if !errors.is_empty() {
            ctx.audit(ERROR, || format!("Failed to parse policy: {}", api::field::aggregate(errors.iter().map(ToString::to_string))));
        }
        let violates = |standard: Standard| {
            let all = violations(standard, &pod["metadata"], spec);
            let told = |v: &Violation| if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) };
            (!all.is_empty()).then(|| format!("violate PodSecurity \"{standard}\": {}", all.iter().map(told).collect::<Vec<_>>().join(", ")))
        };
        if ctx.is_audited() {
            if enforce {
                ctx.audit(ENFORCED, || policy.enforce.to_string());
            }
            if let Some(what) = violates(policy.audit) {
                ctx.audit(VIOLATIONS, || format!("would {what}"));
            }
        }
        if enforce && let Some(what) = violates(policy.enforce) {
            return Err(forbidden(attributes, Some(object), what.replacen("violate", "violates", 1)));
        }
        if let Some(what) = violates(policy.warn) {
            ctx.warn(format!("would {what}"));
        }
        Ok(())
    }
}

/// Whether an update brings in what was not judged: containers, or their images. Other fields that may change say nothing
/// about what a pod may.
fn has_other_images(new: &Value, old: &Value) -> bool {
    let images = |spec: &Value, list: &str| items(spec, list).map(|c| text(c, "/image").to_owned()).collect::<Vec<_>>();
    let differ = |list: &str| images(new, list) != images(old, list);
    let debugs = |c: &Value| items(old, "/ephemeralContainers").any(|o| o["name"] == c["name"] && o["image"] == c["image"]);
    differ("/containers") || differ("/initContainers") || !items(new, "/ephemeralContainers").all(debugs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::NAMESPACES;
    use apiserver::UserInfo;
    use serde_json::json;

    fn namespace(labels: Value) -> Value {
        json!({"metadata": {"name": "a", "labels": labels}})
    }

    fn label(mode: &str, level: &str) -> Value {
        json!({format!("pod-security.kubernetes.io/{mode}"): level})
    }

    #[test]
    fn levels() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let check = |level: &str, spec: Value| {
            objects.put(&NAMESPACES, namespace(label("enforce", level)));
            let pod = json!({"metadata": {"name": "p"}, "spec": spec});
            block_on(PodSecurity::default().validate(&attributes, Some(&pod))).map_err(|e| e.message)
        };
        let plain = json!({"containers": [{"name": "c"}]});
        check("privileged", json!({"hostNetwork": true, "containers": [{"name": "c", "securityContext": {"privileged": true}}]})).unwrap();
        check("baseline", plain.clone()).unwrap();
        assert_eq!(
            check("baseline", json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}], "volumes": [{"name": "v", "hostPath": {}}]})).unwrap_err(),
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": hostPath volumes (volume \"v\"), privileged (container \"c\" must not set securityContext.privileged=true)"
        );
        assert_eq!(
            check("restricted", plain).unwrap_err(),
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn defaults_and_exemptions_are_configured() {
        let objects = Objects::new();
        objects.put(&NAMESPACES, namespace(Value::Null));
        let baseline = Standard { level: Level::Baseline, version: Version(30) };
        let mut plugin = PodSecurity { defaults: Policy { enforce: baseline, ..Policy::PRIVILEGED }, exempt: Exempt::default() };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"hostPID": true, "runtimeClassName": "vm", "containers": []}});
        let ask = |plugin: &PodSecurity| {
            let ctx = objects.ctx(&PODS, "a", "", UserInfo::new("ann", &[]));
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            block_on(plugin.validate(&attributes, Some(&pod))).map_err(|e| e.message)
        };
        assert_eq!(ask(&plugin).unwrap_err(), "pods \"p\" is forbidden: violates PodSecurity \"baseline:v1.30\": host namespaces (hostPID=true)");
        for exempt in [
            Exempt { users: vec!["ann".into()], ..Exempt::default() },
            Exempt { namespaces: vec!["a".into()], ..Exempt::default() },
            Exempt { runtime_classes: vec!["vm".into()], ..Exempt::default() },
        ] {
            plugin.exempt = exempt;
            ask(&plugin).unwrap();
        }
    }

    #[test]
    fn an_update_is_judged_by_its_images() {
        let objects = Objects::new();
        objects.put(&NAMESPACES, namespace(label("enforce", "baseline")));
        let ctx = objects.ctx(&PODS, "a", "", UserInfo::default());
        let old = json!({"metadata": {"name": "p"}, "spec": {"hostPID": true, "containers": [{"name": "c", "image": "i:1"}]}});
        let attributes = Attributes { ctx: &ctx, operation: Operation::Update, old: Some(&old), options: &Value::Null };
        let update = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            block_on(PodSecurity::default().validate(&attributes, Some(&new))).is_ok()
        };
        assert!(update(|_| {}) && update(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(5)));
        assert!(!update(|pod| pod["spec"]["containers"][0]["image"] = json!("i:2")));
        assert!(!update(|pod| pod["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i:1"}])));
    }

    #[test]
    fn who_enforces_more_learns_of_the_pods_that_are_there() {
        let objects = Objects::new();
        let controlled = |name: &str| json!({"metadata": {"name": name, "namespace": "a", "ownerReferences": [{"uid": "u", "controller": true}]}, "spec": {"hostPID": true, "containers": [{"name": "c"}]}});
        for pod in [controlled("x-2"), controlled("x-1"), controlled("x-3"), json!({"metadata": {"name": "fine", "namespace": "a"}, "spec": {"containers": []}})] {
            objects.put(&PODS, pod);
        }
        let update = |old: Value, new: Value| {
            let ctx = objects.ctx(&NAMESPACES, "", "a", UserInfo::default());
            let old = namespace(old);
            let attributes = Attributes { ctx: &ctx, operation: Operation::Update, old: Some(&old), options: &Value::Null };
            let result = block_on(PodSecurity::default().validate(&attributes, Some(&namespace(new)))).map_err(|e| e.message);
            let warnings = ctx.warnings();
            result.map(|()| warnings)
        };
        assert_eq!(
            update(Value::Null, label("enforce", "baseline")).unwrap(),
            ["existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"", "x-1 (and 2 other pods): host namespaces"]
        );
        assert!(update(label("enforce", "restricted"), label("enforce", "baseline")).unwrap().is_empty());
        assert!(update(Value::Null, label("warn", "baseline")).unwrap().is_empty());
        let wrong = label("enforce", "high");
        assert_eq!(
            update(Value::Null, wrong.clone()).unwrap_err(),
            "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"high\": must be one of privileged, baseline, restricted"
        );
        assert!(update(wrong.clone(), wrong).is_ok(), "what is wrong already may stay");
    }
}
