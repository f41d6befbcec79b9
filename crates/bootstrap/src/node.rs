//! A node's certificate, asked of the cluster: a request that its controllers approve and sign.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;
use pki::{CertKey, Credentials};
use serde_json::{Value, json};

use crate::cluster::{Cluster, collection};
use crate::error::{Doing, Result, refused};
use crate::files::{self, Place};
use crate::kubeconfigs;

/// What a certificate of a node is for.
pub struct Purpose<'a> {
    /// Who signs it.
    pub signer: &'static str,
    /// What its key may be used for.
    pub usage: &'static str,
    /// Names and addresses of the node, where it is a server.
    pub names: &'a [String],
}

/// The node as a client of the API server.
pub const CLIENT: Purpose<'static> = Purpose { signer: "kubernetes.io/kube-apiserver-client-kubelet", usage: "client auth", names: &[] };

/// Asks for a certificate of a node, and waits for it. What nobody signs is taken back.
pub async fn certificate(cluster: &Cluster, name: &str, purpose: &Purpose<'_>, patience: Duration) -> Result<CertKey> {
    let request = pki::new_csr(&format!("system:node:{name}"), "system:nodes", purpose.names, None).doing(|| "making a certificate request".into())?;
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"generateName": "csr-"},
        "spec": {"request": STANDARD.encode(&request.cert_pem), "signerName": purpose.signer,
            "usages": ["digital signature", purpose.usage]}});
    let made = cluster.create(&object).await.doing(|| "the cluster refuses the certificate request".into())?;
    let path = format!("{}/{}", collection::<CertificateSigningRequest>(""), made["metadata"]["name"].as_str().unwrap_or_default());
    let (begun, mut pause) = (Instant::now(), Duration::from_millis(5));
    loop {
        let read = cluster.get(&path).await.doing(|| "reading the certificate request".into())?.unwrap_or_default();
        if let Some(encoded) = read["status"]["certificate"].as_str() {
            let bytes = STANDARD.decode(encoded).doing(|| "the signed certificate cannot be read".into())?;
            let cert_pem = String::from_utf8(bytes).doing(|| "the signed certificate cannot be read".into())?;
            return Ok(CertKey { cert_pem, key_pem: request.key_pem });
        }
        let conditions = read["status"]["conditions"].as_array();
        if let Some(no) = conditions.into_iter().flatten().find(|c| c["type"] == "Denied" || c["type"] == "Failed") {
            return refused(format!("the certificate request {path} was refused: {}", no["message"].as_str().unwrap_or_default()));
        }
        if begun.elapsed() > patience {
            if let Err(error) = cluster.delete(&path).await {
                tracing::debug!("the certificate request could not be taken back: {error}");
            }
            return refused(format!("nobody signed the certificate request {path} within {patience:?}: see kubectl describe csr"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Keeps a node's certificate, and the kubeconfig that names it.
pub fn keep(place: &Place, pair: &CertKey, name: &str, entry: &client::Entry, cluster: &str) -> Result<()> {
    let path = place.kubelet_client();
    files::write(&path, format!("{}{}", pair.cert_pem, pair.key_pem).as_bytes(), 0o600)?;
    let file = path.display().to_string();
    let credentials = Credentials::CertificateFiles { cert: file.clone(), key: file };
    let config = kubeconfigs::entry(cluster, &format!("system:node:{name}"), &entry.server, &entry.ca, credentials);
    let text = pki::kubeconfig(&config).doing(|| "writing kubelet.conf".into())?;
    files::write(&place.conf("kubelet"), text.as_bytes(), 0o600)
}

/// Whether a cluster has a node of this name that works.
pub async fn taken(cluster: &Cluster, name: &str) -> Result<bool> {
    let node: Value = cluster.get(&format!("{}/{name}", collection::<Node>(""))).await?.unwrap_or_default();
    Ok(is_ready(&node))
}

/// Whether a node says that it is Ready.
pub fn is_ready(node: &Value) -> bool {
    node["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}
