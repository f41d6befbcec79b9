//! Puts `metrics.k8s.io` into the API server: the seam between its computed resources and the service
//! that knows what is used.

use std::sync::Arc;

use anyhow::{Context, Result};
use api::status::Status;
use apiserver::{Builder, Ctx, Virtual};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use metrics::{ACCOUNT, GROUP, Kubelets, RESOURCES, Service};
use pki::{CertRequest, Usage};
use reconcile::{Informers, Tasks};
use serde_json::Value;

use crate::material::Material;

struct Nodes(Service);
struct Pods(Service);

#[async_trait]
impl Virtual for Nodes {
    async fn get(&self, _: &Ctx, name: &str) -> Result<Value, Status> {
        self.0.node(name).await
    }

    async fn list(&self, _: &Ctx) -> Result<Vec<Value>, Status> {
        self.0.nodes().await
    }
}

#[async_trait]
impl Virtual for Pods {
    async fn get(&self, ctx: &Ctx, name: &str) -> Result<Value, Status> {
        self.0.pod(&ctx.namespace, name).await
    }

    async fn list(&self, ctx: &Ctx) -> Result<Vec<Value>, Status> {
        self.0.pods(&ctx.namespace).await
    }
}

/// Installs the group. It answers once the service has been started.
pub fn install(builder: &mut Builder) -> Service {
    let service = Service::new();
    builder.parts.served_group(&RESOURCES);
    builder.parts.virtual_resource(GROUP, "nodes", Arc::new(Nodes(service.clone())));
    builder.parts.virtual_resource(GROUP, "pods", Arc::new(Pods(service.clone())));
    service
}

/// Starts the service. Kubelets know it by a certificate of its service account's name, which lives as
/// long as this process; or by the API server's, where the CA is somebody else's.
pub fn start(service: &Service, material: &Material, informers: &Informers, tasks: &Tasks) -> Result<()> {
    let request = CertRequest {
        cn: format!("system:serviceaccount:kube-system:{ACCOUNT}"),
        orgs: ["system:serviceaccounts", "system:serviceaccounts:kube-system"].map(String::from).to_vec(),
        sans: Vec::new(),
        usages: vec![Usage::Client],
        lifetime: SignedDuration::from_hours(24 * 365),
    };
    let own = match &material.ca {
        Some(ca) => ca.issue(&request, Timestamp::now())?,
        None => material.kubelet_client.clone(),
    };
    let credentials = client::Credentials { certificate: Some((own.cert_pem, own.key_pem)), token: None };
    let kubelets = Kubelets::new(&material.kubelet_ca, &credentials, tasks).context("talking to kubelets for metrics")?;
    service.start(informers, kubelets, tasks);
    Ok(())
}
