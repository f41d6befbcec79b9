//! The certificates that control planes share, sealed in a Secret for two hours (AES-GCM, as upstream seals them).

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, JOINING, collection, group, readable};
use crate::config::{BootstrapToken, ClusterConfiguration};
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::Machine;
use crate::tokens;

const SECRET: &str = "kubeadm-certs";

fn key(digits: &str) -> Result<LessSafeKey> {
    let bytes = hex::decode(digits).doing(|| "error decoding certificate key".into())?;
    match UnboundKey::new(&AES_256_GCM, &bytes) {
        Ok(key) => Ok(LessSafeKey::new(key)),
        Err(_) => refused(format!("invalid certificate key size {}, the key must be an AES key of size 32", bytes.len())),
    }
}

fn seal(key: &LessSafeKey, mut data: Vec<u8>, nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>> {
    if key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut data).is_err() {
        return refused("the certificates cannot be encrypted");
    }
    Ok([&nonce[..], &data].concat())
}

fn open(key: &LessSafeKey, sealed: &[u8]) -> Result<Vec<u8>> {
    let Some((nonce, data)) = sealed.split_first_chunk::<NONCE_LEN>() else {
        return refused("size of data is less than the nonce");
    };
    let mut data = data.to_vec();
    match key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut data) {
        Ok(plain) => Ok(plain.to_vec()),
        Err(_) => refused("error decoding secret data with provided key: cipher: message authentication failed"),
    }
}

/// What is shared: names of the Secret's entries, and files. The last one, by which Secrets are encrypted at rest, is
/// knarr's own; upstream's control planes pass over it.
fn files_of(dir: &Path, cluster: &ClusterConfiguration) -> Vec<(String, PathBuf)> {
    let mut all: Vec<(String, PathBuf)> =
        ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.pub", "sa.key"].map(|name| (name.to_string(), dir.join(name))).to_vec();
    match &cluster.etcd.external {
        Some(external) => {
            for (name, path) in [("external-etcd-ca.crt", &external.ca_file), ("external-etcd.crt", &external.cert_file), ("external-etcd.key", &external.key_file)] {
                all.push((name.into(), path.into()));
            }
        }
        None => all.extend(["ca.crt", "ca.key"].map(|name| (format!("etcd-{name}"), dir.join("etcd").join(name)))),
    }
    all.push(("encryption.key".into(), dir.join("encryption.key")));
    all
}

/// Puts them into the cluster; they go with a token that ends in two hours.
pub async fn upload(cluster: &Cluster, config: &ClusterConfiguration, dir: &Path, certificate_key: &str) -> Result<()> {
    println!("[upload-certs] Storing the certificates in Secret {SECRET:?} in the \"kube-system\" Namespace");
    let key = key(certificate_key)?;
    let mut data = Map::new();
    for (name, path) in files_of(dir, config) {
        let sealed = match std::fs::read(&path) {
            Ok(plain) => {
                let mut nonce = [0; NONCE_LEN];
                rand::fill(&mut nonce[..]);
                seal(&key, plain, nonce)?
            }
            // What is not there (a CA's key that somebody else holds, etcd without TLS) is said to be empty.
            Err(_) => Vec::new(),
        };
        data.insert(name, STANDARD.encode(sealed).into());
    }
    let token = BootstrapToken {
        token: Machine::random_token(),
        description: "Proxy for managing TTL for the kubeadm-certs secret".into(),
        ttl: Some("2h0m0s".into()),
        ..BootstrapToken::default()
    };
    let owner = cluster.create(&tokens::secret(&token, Timestamp::now())?).await.doing(|| "error creating token".into())?;
    let owner = json!([{"apiVersion": "v1", "kind": "Secret", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true}]);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": data,
        "metadata": {"name": SECRET, "namespace": "kube-system", "ownerReferences": owner}});
    cluster.put(&secret).await?;
    for object in readable("kube-system", "kubeadm:kubeadm-certs", "secrets", SECRET, json!([group(JOINING)])) {
        cluster.put(&object).await?;
    }
    Ok(())
}

/// Takes them out of the cluster.
pub async fn download(cluster: &Cluster, config: &ClusterConfiguration, dir: &Path, certificate_key: &str) -> Result<()> {
    println!("[download-certs] Downloading the certificates in Secret {SECRET:?} in the \"kube-system\" Namespace");
    let key = key(certificate_key)?;
    let Some(secret) = cluster.get(&format!("{}/{SECRET}", collection::<Secret>("kube-system"))).await.doing(|| "error downloading the secret".into())? else {
        return refused(format!(
            "error downloading the secret: Secret {SECRET:?} was not found in the \"kube-system\" Namespace. This Secret might have expired. \
             Please, run `kubeadm init phase upload-certs --upload-certs` on a control plane to generate a new one"
        ));
    };
    let mut plain = Vec::new();
    for (name, path) in files_of(dir, config) {
        let Some(sealed) = secret["data"].get(&name).and_then(Value::as_str) else {
            if name == "encryption.key" {
                continue;
            }
            return refused(format!("the Secret does not include the required certificate or key - name: {name}, path: {}", path.display()));
        };
        let sealed = STANDARD.decode(sealed).doing(|| format!("{name} of the Secret cannot be read"))?;
        if !sealed.is_empty() {
            plain.push((path, open(&key, &sealed)?));
        }
    }
    println!("[download-certs] Saving the certificates to the folder: {:?}", dir.display().to_string());
    for (path, bytes) in plain {
        let public = path.extension().is_some_and(|e| e == "crt");
        files::write(&path, &bytes, if public { 0o644 } else { 0o600 })?;
    }
    Ok(())
}

/// What a control plane needs of the others when nothing is downloaded.
pub fn missing(dir: &Path, config: &ClusterConfiguration) -> Vec<PathBuf> {
    files_of(dir, config).into_iter().map(|(_, path)| path).filter(|p| !p.as_os_str().is_empty() && !p.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_with_one_key_and_opened_with_no_other() {
        let one = key(&"0f".repeat(32)).expect("a key");
        let sealed = seal(&one, b"secret".to_vec(), [7; NONCE_LEN]).expect("sealed");
        assert_eq!(sealed.len(), 12 + 6 + 16, "nonce, text, tag: Go's order");
        assert_eq!(open(&one, &sealed).expect("opened"), b"secret");
        let other = key(&"0e".repeat(32)).expect("a key");
        assert!(open(&other, &sealed).expect_err("another key").to_string().contains("message authentication failed"));
        assert!(open(&one, &sealed[..5]).is_err());
        assert!(key("abcd").expect_err("short").to_string().contains("key size 2"));
    }
}
