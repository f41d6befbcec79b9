//! Plays kubelet, and scheduler where there is none: pods are bound, run and become ready at once; those
//! that are deleted end. A pod with the label `idle` is left as it is.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions, Request};
use reconcile::{Informers, Tasks};
use serde_json::json;

/// How often nodes give a sign of life: on a machine that is busy a scenario may last longer than they may be silent.
const LIFE: Duration = Duration::from_secs(5);

/// Starts to play; `binds` says whether the scheduler too.
pub fn start(client: kube::Client, tasks: &Tasks, binds: bool) {
    let living = client.clone();
    tasks.spawn("leases", async move {
        loop {
            // What fails is tried again soon enough.
            let _ = live(&living).await;
            tokio::time::sleep(LIFE).await;
        }
    });
    let mut changes = Informers::new(client.clone(), tasks.clone()).of::<Pod>().subscribe();
    tasks.spawn("kubelet", async move {
        while let Some(change) = changes.recv().await {
            if let Some(pod) = change.new.filter(|p| !p.labels().contains_key("idle")) {
                // What fails is out of date, and the next change says so.
                let _ = look_after(&client, &pod, binds).await;
            }
        }
    });
}

async fn live(client: &kube::Client) -> kube::Result<()> {
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    for node in Api::<Node>::all(client.clone()).list(&ListParams::default()).await? {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node.name_any()},
            "spec": {"holderIdentity": node.name_any(), "leaseDurationSeconds": 40, "renewTime": now}});
        leases.patch(&node.name_any(), &PatchParams::apply("kubelet").force(), &Patch::Apply(lease)).await?;
    }
    Ok(())
}

async fn look_after(client: &kube::Client, pod: &Pod, binds: bool) -> kube::Result<()> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api = Api::<Pod>::namespaced(client.clone(), &namespace);
    if pod.metadata.deletion_timestamp.is_some() {
        let this_one = Preconditions { uid: pod.uid(), resource_version: None };
        return api.delete(&name, &DeleteParams::default().grace_period(0).preconditions(this_one)).await.map(|_| ());
    }
    let spec = pod.spec.as_ref();
    if spec.is_some_and(|s| s.node_name.is_none()) {
        if !binds {
            return Ok(());
        }
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": wanted_node(pod).unwrap_or_else(|| "n0".into())});
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "uid": pod.uid()}, "target": target});
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
        let request = request.create_subresource("binding", &name, &Default::default(), binding.to_string().into_bytes());
        client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
    }
    let conditions = || pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if conditions().any(|c| c.type_ == "PodScheduled" && c.status == "False") {
        // A scheduler that is late with what it says does not have the last word.
        let scheduled = json!({"type": "PodScheduled", "status": "True", "reason": null, "message": null});
        let status = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [scheduled]}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    }
    if pod.status.as_ref().is_some_and(|s| s.phase.as_deref() != Some("Pending")) {
        return Ok(());
    }
    let condition = json!({"type": "Ready", "status": "True", "lastTransitionTime": jiff::Timestamp::now()});
    let status = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Running", "startTime": jiff::Timestamp::now(), "conditions": [condition]}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await.map(|_| ())
}

/// The node that a daemon's pod is meant for.
fn wanted_node(pod: &Pod) -> Option<String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.first()?;
    field.values.as_ref()?.first().cloned()
}
