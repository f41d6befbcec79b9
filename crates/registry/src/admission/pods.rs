//! Plug-ins about pods: images that are pulled each time, the place of its node that a pod learns of, and how far it grows there.

use api::field::{FieldError, Path};
use api::quantity::Quantity;
use api::quota;
use api::status::Cause;
use apiserver::types::Status;
use apiserver::{Admission, Attributes, Operation};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, is, is_sub};
use crate::util::{NODES, object, quote, text};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Every image is pulled for every pod: who may not pull it may not use it either.
pub(super) struct AlwaysPullImages;

/// The pull policies of a pod's images, with where they are and which image is meant.
fn policies(pod: &Value) -> Vec<(Path, String, String)> {
    let spec = Path::new("spec");
    let entries = |list: &str| pod["spec"][list].as_array().cloned().unwrap_or_default().into_iter().enumerate();
    let of = |list: &'static str| {
        let at = spec.child(list);
        entries(list).map(move |(i, c)| (at.index(i).child("imagePullPolicy"), text(&c, "/imagePullPolicy").to_owned(), text(&c, "/image").to_owned()))
    };
    let volumes = entries("volumes").filter(|(_, v)| v["image"].is_object()).map(|(i, v)| {
        let at = spec.child("volumes").index(i).child("image").child("pullPolicy");
        (at, text(&v, "/image/pullPolicy").to_owned(), text(&v, "/image/reference").to_owned())
    });
    CONTAINERS.into_iter().flat_map(of).chain(volumes).collect()
}

/// Whether an update names an image that was not there before.
fn is_about_images(attributes: &Attributes<'_>, pod: &Value) -> bool {
    let of_pod = is(attributes, "", "pods") || is_sub(attributes, "", "pods", "ephemeralcontainers");
    of_pod
        && match attributes.old {
            None => true,
            Some(old) => {
                let before = policies(old);
                policies(pod).iter().any(|(_, _, image)| !before.iter().any(|(_, _, b)| b == image))
            }
        }
}

#[async_trait]
impl Admission for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
        if !is_about_images(attributes, pod) {
            return Ok(());
        }
        for list in CONTAINERS {
            for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container["imagePullPolicy"] = json!("Always");
            }
        }
        for volume in pod["spec"].get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            if volume["image"].is_object() {
                volume["image"]["pullPolicy"] = json!("Always");
            }
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let Some(pod) = pod.filter(|p| is_about_images(attributes, p)) else { return Ok(()) };
        let wrong = policies(pod).into_iter().filter(|(_, policy, _)| policy != "Always");
        let errors: Vec<String> = wrong.map(|(at, policy, _)| FieldError::not_supported(&at, policy, &["Always"]).to_string()).collect();
        if errors.is_empty() { Ok(()) } else { Err(forbidden(attributes, Some(pod), api::field::aggregate(errors))) }
    }
}

/// A pod gets the labels of its node that say in which zone and region it is: a binding carries them.
pub(super) struct PodTopologyLabels;

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attributes: &Attributes<'_>, given: &mut Value) -> Result<(), Status> {
        let node = if is(attributes, "", "pods") {
            text(given, "/spec/nodeName")
        } else if is_sub(attributes, "", "pods", "binding") && text(given, "/target/kind") == "Node" {
            text(given, "/target/name")
        } else {
            return Ok(());
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(labels) = attributes.ctx.backend.reader.labels(&NODES, "", node) else { return Ok(()) };
        for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
            if let Some(place) = labels.get(key) {
                object(&mut given["metadata"], "labels").insert(key.into(), place.clone());
            }
        }
        Ok(())
    }
}

/// Pods grow no larger than their node is, and on Linux alone.
pub(super) struct PodResizeValidator;

#[async_trait]
impl Admission for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>, pod: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (pod, attributes.old) else { return Ok(()) };
        let node = text(new, "/spec/nodeName");
        if !is_sub(attributes, "", "pods", "resize") || node.is_empty() || new.get("spec") == old.get("spec") {
            return Ok(());
        }
        let refused = |why: String, cause: &str| {
            let mut status = forbidden(attributes, pod, why);
            let details = status.details.get_or_insert_default();
            details.causes.extend((!cause.is_empty()).then(|| Cause { reason: cause.into(), ..Cause::default() }));
            Err(status)
        };
        let Some(node) = attributes.ctx.backend.reader.get(&NODES, "", node) else {
            return refused(format!("node {} not found", quote(node)), "");
        };
        let system = node.pointer("/metadata/labels/kubernetes.io~1os").and_then(Value::as_str).unwrap_or("linux");
        if system != "linux" {
            let why = format!("pod resize is only supported on linux nodes, node {} is {}", quote(text(&node, "/metadata/name")), quote(system));
            return refused(why, "UnsupportedPlatform");
        }
        let (wanted, there) = (quota::pod_total(new, "requests"), quota::amounts_at(&node, "/status/allocatable"));
        let lacking = ["cpu", "memory"].into_iter().filter_map(|name| {
            let [wanted, there] = [&wanted, &there].map(|all| all.get(name).cloned().unwrap_or_else(Quantity::zero));
            let number = |q: &Quantity| if name == "cpu" { q.milli_value() } else { q.value() };
            (wanted > there).then(|| format!("{name}, requested: {}, allocatable: {}", number(&wanted), number(&there)))
        });
        let lacking: Vec<String> = lacking.collect();
        if lacking.is_empty() {
            return Ok(());
        }
        refused(format!("node didn't have enough allocatable resources: {}", lacking.join("; ")), "NodeCapacity")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::UserInfo;

    #[test]
    fn pods_learn_where_their_node_is() {
        let objects = Objects::new();
        let labels = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "kubernetes.io/arch": "amd64"});
        objects.put(&NODES, json!({"metadata": {"name": "n", "labels": labels}}));
        let admitted = |subresource: &str, mut given: Value| {
            let mut ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
            ctx.subresource = subresource.into();
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            block_on(PodTopologyLabels.admit(&attributes, &mut given)).unwrap();
            given["metadata"]["labels"].clone()
        };
        let place = json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r"});
        assert_eq!(admitted("binding", json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}})), place);
        assert_eq!(admitted("", json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}})), place);
        let own = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "mine", "a": "b"}}, "target": {"kind": "Node", "name": "n"}});
        assert_eq!(admitted("binding", own), json!({"topology.kubernetes.io/zone": "z", "topology.kubernetes.io/region": "r", "a": "b"}));
        assert!(admitted("", json!({"metadata": {"name": "p"}, "spec": {}})).is_null(), "it has no node yet");
        assert!(admitted("binding", json!({"metadata": {}, "target": {"kind": "Node", "name": "unknown"}})).is_null());
        assert!(admitted("status", json!({"metadata": {}, "spec": {"nodeName": "n"}})).is_null());
    }

    #[test]
    fn pods_grow_as_far_as_their_node() {
        let objects = Objects::new();
        objects.put(&NODES, json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2", "memory": "1Gi"}}}));
        objects.put(&NODES, json!({"metadata": {"name": "w", "labels": {"kubernetes.io/os": "windows"}}}));
        let mut ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        ctx.subresource = "resize".into();
        let pod = |node: &str, cpu: &str, memory: &str| {
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
        };
        let resize = |node: &str, cpu: &str, memory: &str| {
            let old = pod(node, "1", "1Gi");
            let attributes = Attributes { ctx: &ctx, operation: Operation::Update, old: Some(&old), options: &Value::Null };
            block_on(PodResizeValidator.validate(&attributes, Some(&pod(node, cpu, memory)))).map_err(|status| {
                let cause = status.details.and_then(|d| d.causes.first().map(|c| c.reason.clone())).unwrap_or_default();
                (status.message.trim_start_matches("pods \"p\" is forbidden: ").to_string(), cause)
            })
        };
        assert_eq!(resize("n", "2", "512Mi"), Ok(()));
        assert_eq!(resize("none", "1", "1Gi"), Ok(()), "nothing changes");
        assert_eq!(resize("", "5", "5Gi"), Ok(()), "it has no node yet");
        let refused = |why: &str, cause: &str| Err((why.to_string(), cause.to_string()));
        assert_eq!(resize("none", "2", "1Gi"), refused("node \"none\" not found", ""));
        assert_eq!(resize("w", "2", "1Gi"), refused("pod resize is only supported on linux nodes, node \"w\" is \"windows\"", "UnsupportedPlatform"));
        let both = "node didn't have enough allocatable resources: cpu, requested: 2500, allocatable: 2000; memory, requested: 2147483648, allocatable: 1073741824";
        assert_eq!(resize("n", "2500m", "2Gi"), refused(both, "NodeCapacity"));
    }

    #[test]
    fn images_are_always_pulled() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let pod = |policy: &str| {
            json!({"spec": {"initContainers": [{"image": "i", "imagePullPolicy": policy}], "containers": [{"image": "a", "imagePullPolicy": policy}],
                "volumes": [{"name": "v", "image": {"reference": "r", "pullPolicy": policy}}, {"name": "e", "emptyDir": {}}]}})
        };
        let old = pod("IfNotPresent");
        let attributes = |old| Attributes { ctx: &ctx, operation: if old { Operation::Update } else { Operation::Create }, old: None, options: &Value::Null };
        let mut new = pod("Never");
        let why = block_on(AlwaysPullImages.validate(&attributes(false), Some(&new))).unwrap_err().message;
        assert!(why.contains("spec.initContainers[0].imagePullPolicy: Unsupported value: \"Never\": supported values: \"Always\""), "{why}");
        assert!(why.contains("spec.volumes[0].image.pullPolicy"), "{why}");
        block_on(AlwaysPullImages.admit(&attributes(false), &mut new)).unwrap();
        assert_eq!(new, pod("Always"));
        assert!(block_on(AlwaysPullImages.validate(&attributes(false), Some(&new))).is_ok());
        let unchanged = Attributes { old: Some(&old), ..attributes(true) };
        let mut same = old.clone();
        block_on(AlwaysPullImages.admit(&unchanged, &mut same)).unwrap();
        assert_eq!(same, old, "what runs is left as it is");
        assert!(block_on(AlwaysPullImages.validate(&unchanged, Some(&same))).is_ok());
        same["spec"]["containers"][0]["image"] = json!("b");
        assert!(block_on(AlwaysPullImages.validate(&unchanged, Some(&same))).is_err(), "another image");
    }
}
