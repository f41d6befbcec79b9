//! Deployments, daemon sets, jobs, nodes: what their strategies add to the generic one.

use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{Ctx, DefaultGc, Strategy};
use serde_json::{Value, json};

use crate::util::{flag, number, object, text};

/// Deployments: a changed annotation counts as a new generation too.
pub(crate) struct Deployments;

impl Strategy for Deployments {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        // The controller notes revisions through the status, which is no new wish.
        if !ctx.subresource.is_empty() {
            return;
        }
        let before = number(old, "/metadata/generation").unwrap_or(0);
        let differs = |pointer: &str| new.pointer(pointer) != old.pointer(pointer);
        if differs("/spec") || differs("/metadata/annotations") {
            object(new, "metadata").insert("generation".into(), (before + 1).into());
        }
    }
}

/// Daemon sets: the template's own generation is kept in an annotation.
pub(crate) struct DaemonSets;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

impl Strategy for DaemonSets {
    fn prepare_create(&self, ctx: &Ctx, set: &mut Value) {
        generic_prepare_create(ctx, set);
        object(&mut set["metadata"], "annotations").insert(TEMPLATE_GENERATION.into(), "1".into());
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        let before: i64 = text(&old["metadata"]["annotations"], &format!("/{TEMPLATE_GENERATION}")).parse().unwrap_or(0);
        let differs = |pointer: &str| new.pointer(pointer) != old.pointer(pointer);
        let now = before + i64::from(differs("/spec/template"));
        object(&mut new["metadata"], "annotations").insert(TEMPLATE_GENERATION.into(), now.to_string().into());
    }
}

/// Jobs: the selector and the template's labels name the job's uid, unless the user says otherwise.
pub(crate) struct Jobs;

impl Strategy for Jobs {
    fn prepare_create(&self, ctx: &Ctx, job: &mut Value) {
        generic_prepare_create(ctx, job);
        if flag(job, "/spec/manualSelector") {
            return;
        }
        let (uid, name) = (text(job, "/metadata/uid").to_owned(), text(job, "/metadata/name").to_owned());
        let template = object(job, "spec").entry("template").or_insert_with(|| json!({}));
        let labels = object(&mut template["metadata"], "labels");
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            labels.entry(key).or_insert_with(|| value.clone().into());
        }
        // A job without labels of its own has its pods'.
        let labels = labels.clone();
        let own = object(&mut job["metadata"], "labels");
        if own.is_empty() {
            *own = labels;
        }
        let spec = object(job, "spec");
        let selector = spec.entry("selector").or_insert_with(|| json!({}));
        object(selector, "matchLabels").entry("batch.kubernetes.io/controller-uid").or_insert_with(|| uid.into());
    }

    fn default_gc(&self) -> DefaultGc {
        DefaultGc::Orphan
    }

    fn warning_of_default_gc(&self) -> Option<&'static str> {
        Some("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning")
    }
}

/// Nodes: a kubelet registers with its status.
pub(crate) struct Nodes;

impl Strategy for Nodes {
    fn prepare_create(&self, ctx: &Ctx, node: &mut Value) {
        api::gates::drop_disabled(ctx.resource.group, ctx.resource.kind, node, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use apiserver::UserInfo;

    #[test]
    fn generations_of_deployments() {
        let deployments = api::resources::find("apps", "v1", "deployments").unwrap();
        let mut ctx = Objects::new().ctx(deployments, "a", "d", UserInfo::default());
        let old = json!({"metadata": {"name": "d", "generation": 3}, "spec": {"replicas": 1}});
        let annotated = json!({"metadata": {"name": "d", "generation": 3, "annotations": {"a": "b"}}, "spec": {"replicas": 1}});
        let generation = |ctx: &Ctx, from: &Value| {
            let mut new = from.clone();
            Deployments.prepare_update(ctx, &mut new, &old);
            new["metadata"]["generation"].clone()
        };
        assert_eq!((generation(&ctx, &old), generation(&ctx, &annotated)), (json!(3), json!(4)));
        ctx.subresource = "status".into();
        assert_eq!(generation(&ctx, &annotated), 3);
    }

    #[test]
    fn job_selector() {
        let jobs = api::resources::find("batch", "v1", "jobs").unwrap();
        let ctx = Objects::new().ctx(jobs, "a", "j", UserInfo::default());
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        Jobs.prepare_create(&ctx, &mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]);
        let mut own = json!({"metadata": {"name": "j", "uid": "u", "labels": {"a": "b"}}, "spec": {"template": {"spec": {}}}});
        Jobs.prepare_create(&ctx, &mut own);
        assert_eq!(own["metadata"]["labels"], json!({"a": "b"}));
    }
}
