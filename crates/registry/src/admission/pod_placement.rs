//! Two plug-ins that a namespace, or the cluster, says by where its pods may go: by node selectors and by tolerations.

use std::collections::BTreeMap;

use api::status::failed;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{is, request};
use crate::strategy::pod::qos_class;
use crate::util::{items, list, map, number, object, text};

type Labels = BTreeMap<String, String>;

/// An annotation of the pod's namespace.
async fn annotation(attributes: &Attributes<'_>, key: &str) -> Result<Option<String>, Status> {
    let namespace = request::namespace(attributes.ctx, &attributes.ctx.namespace).await?;
    Ok(namespace["metadata"]["annotations"].get(key).and_then(Value::as_str).map(str::to_owned))
}

/// `a=b,c=d`
fn labels(selector: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for term in selector.split(',').filter(|_| !selector.is_empty()) {
        let pair = term.split_once('=').filter(|(_, value)| !value.contains('=')).ok_or_else(|| format!("invalid selector: [{term}]"))?;
        let (key, value) = (pair.0.trim(), pair.1.trim());
        let wrong = api::names::qualified_name(key).into_iter().chain(api::names::label_value(value)).next();
        match wrong {
            Some(why) => return Err(format!("invalid label key or value in {term:?}: {why}")),
            None => labels.insert(key.to_owned(), value.to_owned()),
        };
    }
    Ok(labels)
}

/// Pods take their namespace's node selector on.
pub(super) struct PodNodeSelector {
    /// By namespace, what its pods may select; under `clusterDefaultNodeSelector`, what they select where it says nothing.
    pub selectors: BTreeMap<String, String>,
}

impl PodNodeSelector {
    async fn of_namespace(&self, attributes: &Attributes<'_>) -> Result<Labels, Status> {
        let own = annotation(attributes, "scheduler.alpha.kubernetes.io/node-selector").await?;
        let default = || self.selectors.get("clusterDefaultNodeSelector").cloned().unwrap_or_default();
        labels(&own.unwrap_or_else(default)).map_err(failed)
    }

    fn check(&self, attributes: &Attributes<'_>, pod: &Value, wanted: &Labels) -> Result<(), Status> {
        let refuse = |why: &str| Err(api::status::forbidden("", "pods", text(pod, "/metadata/name"), why));
        let selected = || map(pod, "/spec/nodeSelector").into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()));
        if selected().any(|(key, value)| wanted.get(key).is_some_and(|w| w != value)) {
            return refuse("pod node label selector conflicts with its namespace node label selector");
        }
        let allowed = labels(self.selectors.get(&attributes.ctx.namespace).map_or("", String::as_str)).map_err(failed)?;
        if !allowed.is_empty() && selected().any(|(key, value)| allowed.get(key).is_none_or(|a| a != value)) {
            return refuse("pod node label selector labels conflict with its namespace whitelist");
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") {
            return Ok(());
        }
        let wanted = self.of_namespace(attributes).await?;
        for (key, value) in &wanted {
            let spec = object(pod, "spec");
            let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
            if let Some(selector) = selector.as_object_mut() {
                selector.entry(key.clone()).or_insert_with(|| value.as_str().into());
            }
        }
        self.check(attributes, pod, &wanted)
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        match pod.filter(|_| is(attributes, "", "pods")) {
            Some(pod) => self.check(attributes, pod, &self.of_namespace(attributes).await?),
            None => Ok(()),
        }
    }
}

/// Pods take their namespace's tolerations on, and may have no others than it allows.
pub(super) struct PodTolerationRestriction {
    /// Where the namespace says nothing.
    pub default: Vec<Value>,
    pub whitelist: Vec<Value>,
}

/// The tolerations in an annotation of the namespace.
async fn tolerations(attributes: &Attributes<'_>, key: &str) -> Result<Option<Vec<Value>>, Status> {
    match annotation(attributes, key).await? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(Some(Vec::new())),
        Some(text) => serde_json::from_str(&text).map(Some).map_err(|error| failed(error.to_string())),
    }
}

/// Whether a toleration tolerates all that another one does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let (w, n) = (|key: &str| text(wide, key), |key: &str| text(narrow, key));
    if wide == narrow {
        return true;
    }
    if n("/key") != w("/key") && !(w("/key").is_empty() && w("/operator") == "Exists") || n("/effect") != w("/effect") && !w("/effect").is_empty() {
        return false;
    }
    if w("/effect") == "NoExecute"
        && let Some(longest) = number(wide, "/tolerationSeconds")
        && number(narrow, "/tolerationSeconds").is_none_or(|s| s > longest)
    {
        return false;
    }
    match w("/operator") {
        "Equal" | "" => n("/operator") == "Equal" && n("/value") == w("/value"),
        "Exists" => true,
        _ => false,
    }
}

/// Both lists as one, without what another one covers.
fn merged(first: &[Value], second: &[Value]) -> Vec<Value> {
    let all: Vec<&Value> = first.iter().chain(second).collect();
    let mut merged: Vec<Value> = Vec::new();
    for (i, toleration) in all.iter().enumerate() {
        let later = || all[i + 1..].iter().any(|other| other != toleration && covers(other, toleration));
        if !merged.iter().any(|m| covers(m, toleration)) && !later() {
            merged.push((*toleration).clone());
        }
    }
    merged
}

#[async_trait]
impl Admission for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is(attributes, "", "pods") {
            return Ok(());
        }
        let mut more = Vec::new();
        if attributes.operation == Operation::Create {
            more = tolerations(attributes, "scheduler.alpha.kubernetes.io/defaultTolerations").await?.unwrap_or_else(|| self.default.clone());
        }
        if qos_class(pod) != "BestEffort" {
            more.push(json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}));
        }
        if !more.is_empty() {
            let own = list(object(pod, "spec"), "tolerations");
            *own = merged(own, &more);
        }
        self.validate(attributes, Some(pod)).await
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Some(pod) = pod.filter(|pod| is(attributes, "", "pods") && items(pod, "/spec/tolerations").next().is_some()) else { return Ok(()) };
        let own = tolerations(attributes, "scheduler.alpha.kubernetes.io/tolerationsWhitelist").await?;
        let scope = if own.is_some() { "namespace" } else { "cluster" };
        let allowed = own.as_ref().unwrap_or(&self.whitelist);
        if allowed.is_empty() || items(pod, "/spec/tolerations").all(|t| allowed.iter().any(|a| covers(a, t))) {
            return Ok(());
        }
        Err(failed(format!("pod tolerations (possibly merged with namespace default tolerations) conflict with its {scope} whitelist")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::{NAMESPACES, PODS};
    use apiserver::UserInfo;

    fn admit(plugin: &dyn Admission, annotations: Value, spec: Value) -> Result<Value, String> {
        let objects = Objects::new();
        objects.put(&NAMESPACES, json!({"metadata": {"name": "a", "annotations": annotations}}));
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let mut pod = json!({"metadata": {"name": "p"}, "spec": spec});
        block_on(plugin.admit(&attributes, &mut pod)).map_err(|e| e.message)?;
        block_on(plugin.validate(&attributes, Some(&pod))).map_err(|e| e.message)?;
        Ok(pod["spec"].clone())
    }

    #[test]
    fn node_selectors_come_from_the_namespace() {
        let plugin = PodNodeSelector { selectors: [("clusterDefaultNodeSelector", "tier=any"), ("a", "tier=any,zone=1,disk=ssd")].map(|(k, v)| (k.to_string(), v.to_string())).into() };
        let own = |selector: &str| json!({"scheduler.alpha.kubernetes.io/node-selector": selector});
        assert_eq!(admit(&plugin, Value::Null, json!({})).unwrap(), json!({"nodeSelector": {"tier": "any"}}));
        assert_eq!(admit(&plugin, own("zone=1"), json!({"nodeSelector": {"disk": "ssd"}})).unwrap(), json!({"nodeSelector": {"zone": "1", "disk": "ssd"}}));
        assert_eq!(
            admit(&plugin, own("zone=1"), json!({"nodeSelector": {"zone": "2"}})).unwrap_err(),
            "pods \"p\" is forbidden: pod node label selector conflicts with its namespace node label selector"
        );
        assert_eq!(
            admit(&plugin, own("zone=1"), json!({"nodeSelector": {"other": "x"}})).unwrap_err(),
            "pods \"p\" is forbidden: pod node label selector labels conflict with its namespace whitelist"
        );
        assert_eq!(admit(&plugin, own("zone"), json!({})).unwrap_err(), "invalid selector: [zone]");
    }

    #[test]
    fn tolerations_are_merged_and_bounded() {
        let gpu = json!({"key": "gpu", "operator": "Exists"});
        let plugin = PodTolerationRestriction { default: vec![gpu.clone()], whitelist: vec![gpu.clone(), json!({"key": "x", "operator": "Equal", "value": "1"})] };
        assert_eq!(admit(&plugin, Value::Null, json!({})).unwrap()["tolerations"], json!([gpu]));
        // what another one covers goes
        let narrow = json!({"key": "gpu", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        assert_eq!(admit(&plugin, Value::Null, json!({"tolerations": [narrow]})).unwrap()["tolerations"], json!([gpu]));
        let why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its";
        assert_eq!(admit(&plugin, Value::Null, json!({"tolerations": [{"key": "y", "operator": "Exists"}]})).unwrap_err(), format!("{why} cluster whitelist"));
        let own = json!({"scheduler.alpha.kubernetes.io/tolerationsWhitelist": "[{\"key\": \"y\", \"operator\": \"Exists\"}]", "scheduler.alpha.kubernetes.io/defaultTolerations": ""});
        assert_eq!(admit(&plugin, own.clone(), json!({"tolerations": [{"key": "y", "operator": "Exists"}]})).unwrap()["tolerations"][0]["key"], "y");
        assert_eq!(admit(&plugin, own, json!({"tolerations": [gpu]})).unwrap_err(), format!("{why} namespace whitelist"));
        let burstable = json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}]});
        let lenient = PodTolerationRestriction { default: Vec::new(), whitelist: Vec::new() };
        assert_eq!(admit(&lenient, Value::Null, burstable).unwrap()["tolerations"][0]["key"], "node.kubernetes.io/memory-pressure");
    }
}
