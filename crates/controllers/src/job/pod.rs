//! The pods of a job: what is read from one, and how a new one looks.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{self, EnvVar, EnvVarSource, ObjectFieldSelector};
use kube::ResourceExt;

use super::plan::NewPod;
use super::{FINALIZER, INDEX, INDEX_FAILURES, INDEX_IGNORED};
use crate::pod::Pod;
use crate::{ownership, pods};

/// Longest prefix that the API server's generated names keep whole.
const LONGEST_PREFIX: usize = 58;

/// Whether the pod still has to be counted.
pub fn tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|f| f == FINALIZER)
}

/// The completion index of a pod.
pub fn index(pod: &Pod) -> Option<u32> {
    pod.annotations().get(INDEX)?.parse().ok().filter(|i| i32::try_from(*i).is_ok())
}

/// How often pods of the same index failed before this one: those that count, and those that do not.
pub fn index_failures(pod: &Pod) -> (u32, u32) {
    let number = |key: &str| pod.annotations().get(key).and_then(|v| v.parse::<i32>().ok()).map_or(0, |n| n.max(0) as u32);
    (number(INDEX_FAILURES), number(INDEX_IGNORED))
}

/// A new pod of the job.
pub fn new_pod(job: &Job, wanted: &NewPod) -> v1::Pod {
    let name = job.name_any();
    let spec = job.spec.as_ref();
    let template = spec.map(|s| s.template.clone()).unwrap_or_default();
    let generate = match wanted.index {
        None => format!("{name}-"),
        Some(index) => {
            let suffix = format!("-{index}-");
            let kept = name.len().min(LONGEST_PREFIX - suffix.len());
            format!("{}{suffix}", &name[..kept])
        }
    };
    let mut pod = pods::from_template(&job.namespace().unwrap_or_default(), generate, &template, ownership::controller_reference(job));
    let finalizers = pod.finalizers_mut();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let Some(index) = wanted.index else { return pod };
    pod.annotations_mut().insert(INDEX.into(), index.to_string());
    pod.labels_mut().insert(INDEX.into(), index.to_string());
    if spec.is_some_and(|s| s.backoff_limit_per_index.is_some()) {
        pod.annotations_mut().insert(INDEX_FAILURES.into(), wanted.failures.to_string());
        if wanted.ignored > 0 {
            pod.annotations_mut().insert(INDEX_IGNORED.into(), wanted.ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|e| e.name == "JOB_COMPLETION_INDEX") {
                let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
                let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
                env.push(EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: None, value_from: Some(source) });
            }
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_of_an_index() {
        let name = "j".repeat(60);
        let job: Job = serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "uid": "u"}, "spec": {"completionMode": "Indexed",
            "backoffLimitPerIndex": 2, "template": {"metadata": {"labels": {"x": "y"}}, "spec": {
                "initContainers": [{"name": "i"}], "containers": [{"name": "c", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]}]}}}}))
        .expect("a job");
        let pod = new_pod(&job, &NewPod { index: Some(12), failures: 1, ignored: 0 });
        assert_eq!(pod.metadata.generate_name, Some(format!("{}-12-", "j".repeat(54))));
        assert_eq!((pod.labels()[INDEX].as_str(), pod.labels()["x"].as_str()), ("12", "y"));
        let seen = Pod::unmade(pod.metadata.clone());
        assert_eq!((index(&seen), index_failures(&seen), tracked(&seen)), (Some(12), (1, 0), true));
        assert!(!seen.annotations().contains_key(INDEX_IGNORED));
        let ignored = new_pod(&job, &NewPod { index: Some(12), failures: 1, ignored: 2 });
        assert_eq!(ignored.annotations()[INDEX_IGNORED], "2");
        let spec = pod.spec.expect("a spec");
        assert_eq!(spec.hostname, Some(format!("{name}-12")));
        assert_eq!(spec.containers[0].env.as_ref().expect("env").len(), 1, "the user's variable stays");
        let env = &spec.init_containers.as_ref().expect("init")[0].env.as_ref().expect("env")[0];
        let path = env.value_from.as_ref().and_then(|s| s.field_ref.as_ref()).map(|f| f.field_path.as_str());
        assert_eq!(path, Some("metadata.labels['batch.kubernetes.io/job-completion-index']"));
    }

    #[test]
    fn a_pod_without_an_index() {
        let job: Job = serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "a", "uid": "u"},
            "spec": {"template": {"metadata": {"finalizers": [FINALIZER]}, "spec": {"containers": [{"name": "c"}]}}}}))
        .expect("a job");
        let pod = new_pod(&job, &NewPod::default());
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-"));
        assert_eq!(pod.metadata.finalizers, Some(vec![FINALIZER.to_string()]));
        assert_eq!((index(&Pod::unmade(pod.metadata.clone())), pod.spec.expect("a spec").hostname), (None, None));
    }
}
