//! Reads a kubeconfig file: its current context becomes a transport.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use crate::https::{Credentials, Https, TlsError};

/// Why a kubeconfig cannot be used. Each says which file and which entry.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file, or one that it names, cannot be read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not a kubeconfig.
    #[error("{path} is not a kubeconfig: {message}")]
    Parse { path: PathBuf, message: String },
    /// An entry that another one names is missing.
    #[error("{path} has no {kind} {name:?}")]
    Missing { path: PathBuf, kind: &'static str, name: String },
    /// TLS material is unusable.
    #[error("{path}: {source}")]
    Tls { path: PathBuf, source: TlsError },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default, deserialize_with = "or_null")]
    clusters: Vec<NamedCluster>,
    #[serde(default, deserialize_with = "or_null")]
    contexts: Vec<NamedContext>,
    #[serde(default, deserialize_with = "or_null")]
    users: Vec<NamedUser>,
}

/// Go writes `null` for a list that is not there.
fn or_null<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(from).map(Option::unwrap_or_default)
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

/// A client for the current context of the kubeconfig at `path`.
pub fn from_kubeconfig(path: &Path) -> Result<kube::Client, KubeconfigError> {
    Ok(crate::https(https_from_kubeconfig(path)?))
}

/// The transport that the current context of the kubeconfig at `path` describes.
pub fn https_from_kubeconfig(path: &Path) -> Result<Https, KubeconfigError> {
    let entry = Entry::read(path)?;
    entry.https().map_err(|source| KubeconfigError::Tls { path: path.into(), source })
}

/// What the current context of a kubeconfig says, with everything that its files name.
pub struct Entry {
    /// `https://host:port`.
    pub server: String,
    /// PEM bundle that the server's certificate must chain to.
    pub ca: String,
    /// Who the user is.
    pub credentials: Credentials,
}

impl Entry {
    /// The transport, as the user.
    pub fn https(&self) -> Result<Https, TlsError> {
        Https::new(&self.server, &self.ca, &self.credentials)
    }

    /// The transport to the same server, as nobody.
    pub fn anonymous(&self) -> Result<Https, TlsError> {
        Https::new(&self.server, &self.ca, &Credentials::default())
    }

    /// Reads the kubeconfig at `path`.
    pub fn read(path: &Path) -> Result<Entry, KubeconfigError> {
        read_entry(path, &read(path)?)
    }

    /// Reads a kubeconfig from a text; its only cluster if it has no context, as `cluster-info` has it.
    pub fn parse(text: &str) -> Result<Entry, KubeconfigError> {
        read_entry(Path::new("kubeconfig"), text)
    }
}

fn read_entry(path: &Path, text: &str) -> Result<Entry, KubeconfigError> {
    let missing = |kind, name: &str| KubeconfigError::Missing { path: path.into(), kind, name: name.into() };
    let mut config: Kubeconfig = serde_saphyr::from_str(text)
        .map_err(|e| KubeconfigError::Parse { path: path.into(), message: e.to_string() })?;
    if let ([only], true) = (&config.clusters[..], config.contexts.is_empty() && config.current_context.is_empty()) {
        config.contexts.push(NamedContext { name: String::new(), context: Context { cluster: only.name.clone(), user: String::new() } });
        config.users.push(NamedUser { name: String::new(), user: User::default() });
    }
    let context = config
        .contexts
        .iter()
        .find(|c| c.name == config.current_context)
        .ok_or_else(|| missing("context", &config.current_context))?;
    let cluster = config
        .clusters
        .iter()
        .find(|c| c.name == context.context.cluster)
        .ok_or_else(|| missing("cluster", &context.context.cluster))?;
    let user = config
        .users
        .iter()
        .find(|u| u.name == context.context.user)
        .ok_or_else(|| missing("user", &context.context.user))?;

    let dir = path.parent().unwrap_or(Path::new("."));
    let pem = |data: &Option<String>, file: &Option<PathBuf>| -> Result<Option<String>, KubeconfigError> {
        match (data, file) {
            (Some(data), _) => decode(path, data).map(Some),
            (None, Some(file)) => read(&dir.join(file)).map(Some),
            (None, None) => Ok(None),
        }
    };
    let user = &user.user;
    let ca = pem(&cluster.cluster.certificate_authority_data, &cluster.cluster.certificate_authority)?
        .ok_or_else(|| missing("certificate authority of cluster", &cluster.name))?;
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => Some(read(&dir.join(file))?.trim().to_string()),
        (None, None) => None,
    };
    let certificate = pem(&user.client_certificate_data, &user.client_certificate)?
        .zip(pem(&user.client_key_data, &user.client_key)?);
    Ok(Entry { server: cluster.cluster.server.clone(), ca, credentials: Credentials { certificate, token } })
}

fn read(path: &Path) -> Result<String, KubeconfigError> {
    std::fs::read_to_string(path).map_err(|source| KubeconfigError::Read { path: path.into(), source })
}

fn decode(path: &Path, data: &str) -> Result<String, KubeconfigError> {
    let parse = |message: String| KubeconfigError::Parse { path: path.into(), message };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(data.trim())
        .map_err(|e| parse(format!("base64 data: {e}")))?;
    String::from_utf8(bytes).map_err(|e| parse(format!("base64 data: {e}")))
}
