//! The fields that field selectors may name: which labels a kind knows, and
//! their values in an object. Kinds that are not listed know `metadata.name`
//! and `metadata.namespace`.

use serde_json::Value;

/// The labels of a kind besides `metadata.name` and `metadata.namespace`.
fn labels(group: &str, kind: &str) -> Option<&'static [&'static str]> {
    Some(match (group, kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Node") => &["spec.unschedulable"],
        ("", "ReplicationController") => &["status.replicas"],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "Event") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "Namespace") => &["status.phase"],
        ("", "Secret") => &["type"],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("batch", "Job") => &["status.successful"],
        ("certificates.k8s.io", "CertificateSigningRequest") => &["spec.signerName"],
        ("resource.k8s.io", "ResourceSlice") => &["spec.nodeName", "spec.driver"],
        _ => return None,
    })
}

fn namespaced(group: &str, kind: &str) -> bool {
    !matches!(
        (group, kind),
        ("", "Node" | "Namespace") | ("certificates.k8s.io", "CertificateSigningRequest") | ("resource.k8s.io", "ResourceSlice")
    )
}

/// The label to compare with for one that a client named, or the sentence of a 400 answer.
pub fn convert(group: &str, version: &str, kind: &str, label: &str) -> Result<String, String> {
    let Some(known) = labels(group, kind) else {
        return match label {
            "metadata.name" | "metadata.namespace" => Ok(label.to_owned()),
            _ => Err(format!(
                "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                crate::field::go_quote(label)
            )),
        };
    };
    if label == "metadata.name" || label == "metadata.namespace" && namespaced(group, kind) || known.contains(&label) {
        return Ok(label.to_owned());
    }
    Err(match (group, kind) {
        // what clients of long ago send
        ("", "Pod") if label == "spec.host" => return Ok("spec.nodeName".to_owned()),
        ("batch", "Job") => format!("field label {} not supported for Job", crate::field::go_quote(label)),
        ("resource.k8s.io", _) => format!("field label not supported for {group}/{version}, Kind={kind}: {label}"),
        _ => format!("field label not supported: {label}"),
    })
}

/// The value of a (converted) label in an object, `None` when the kind has no such label.
pub fn get(group: &str, kind: &str, obj: &Value, label: &str) -> Option<String> {
    let at = |path: &str| path.split('.').try_fold(obj, |v, k| v.get(k));
    let text = |path: &str| match at(path) {
        Some(Value::String(s)) => s.clone(),
        Some(v @ (Value::Number(_) | Value::Bool(_))) => v.to_string(),
        _ => String::new(),
    };
    let number = |path: &str| at(path).and_then(Value::as_i64).unwrap_or(0).to_string();
    let flag = |path: &str| at(path).and_then(Value::as_bool).unwrap_or(false).to_string();
    if label == "metadata.name" || label == "metadata.namespace" {
        return Some(text(label));
    }
    if !labels(group, kind).is_some_and(|l| l.contains(&label)) {
        return None;
    }
    Some(match (group, kind, label) {
        ("", "Pod", "spec.hostNetwork") => flag(label),
        ("", "Pod", "status.podIP") => {
            let first = at("status.podIPs").and_then(|v| v.get(0)).and_then(|v| v.get("ip")).and_then(Value::as_str);
            first.map_or_else(|| text(label), str::to_owned)
        }
        // known to the selector, but in no field set
        ("", "Pod", "status.podIPs") => return None,
        ("", "Node", _) => flag(label),
        (_, _, "status.replicas") => number(label),
        ("batch", "Job", _) => number("status.succeeded"),
        ("", "Event", "source") => match text("source.component") {
            s if s.is_empty() => text("reportingComponent"),
            s => s,
        },
        _ => text(label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_and_unknown() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"podIPs": [{"ip": "1.2.3.4"}]}});
        assert_eq!(convert("", "v1", "Pod", "spec.host").unwrap(), "spec.nodeName");
        assert_eq!(get("", "Pod", &pod, "spec.nodeName").unwrap(), "n");
        assert_eq!(get("", "Pod", &pod, "spec.hostNetwork").unwrap(), "false");
        assert_eq!(get("", "Pod", &pod, "status.podIP").unwrap(), "1.2.3.4");
        assert_eq!(convert("", "v1", "Pod", "spec.x").unwrap_err(), "field label not supported: spec.x");
        assert_eq!(
            convert("apps", "v1", "Deployment", "spec.x").unwrap_err(),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(get("batch", "Job", &json!({"status": {"succeeded": 2}}), "status.successful").unwrap(), "2");
    }
}
