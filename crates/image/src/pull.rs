//! Pulling from registries: resolve, choose the platform, fetch what is missing, unpack in order.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::At;
use crate::manifest::{self, Descriptor, Manifest, Platform, choose, host, offered};
use crate::name::Name;
use crate::store::{layers_of, parse_config};
use crate::{Error, Image, Result, Store};

/// Credentials for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// None.
    #[default]
    Anonymous,
    /// User and password.
    Basic { user: String, password: String },
    /// A bearer token of the registry.
    Token(String),
}

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Registries (`host` or `host:port`) that speak plain HTTP. Those on a loopback address are
    /// asked, and need no entry.
    pub plain_http: Vec<String>,
    /// More certificate authorities, as PEM (each may hold several certificates).
    pub extra_ca_pem: Vec<Vec<u8>>,
}

/// How a pull gets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The image is known: so many layers, so many of them are to be fetched, with so many bytes.
    Resolved { layers: usize, missing: usize, bytes: u64 },
    /// A layer has been fetched.
    Fetched { digest: String, bytes: u64 },
    /// A layer has been unpacked.
    Unpacked { digest: String },
}

const ACCEPT: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// Layers fetched at a time, as containerd does.
const PARALLEL: usize = 3;
const MAX_CONFIG: i64 = 8 << 20;

impl Store {
    /// Fetches an image, unless all of it is here, and names it. Pulls of one name wait for each other.
    pub async fn pull(&self, name: &str, auth: &Auth, options: &Options, progress: impl Fn(Progress) + Send + Sync) -> Result<Image> {
        let name = Name::parse(name)?;
        let turn = self.0.pulling.lock().entry(name.to_string()).or_default().clone();
        let result = {
            let _turn = turn.lock().await;
            self.pull_now(&name, auth, options, &progress).await
        };
        let mut pulling = self.0.pulling.lock();
        if Arc::strong_count(&turn) == 2 {
            pulling.remove(&name.to_string());
        }
        result
    }

    async fn pull_now(&self, name: &Name, auth: &Auth, options: &Options, progress: &(impl Fn(Progress) + Send + Sync)) -> Result<Image> {
        let text = name.to_string();
        let failed = |e: OciDistributionError| failure(&text, e);
        let client = client(name, auth, options).await?;
        let auth = match auth {
            Auth::Anonymous => RegistryAuth::Anonymous,
            Auth::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.clone()),
            Auth::Token(token) => RegistryAuth::Bearer(token.clone()),
        };
        let invalid = |detail: String| Error::InvalidImage { name: text.clone(), detail };

        let (bytes, _) = client.pull_manifest_raw(&name.reference, &auth, ACCEPT).await.map_err(failed)?;
        let top = manifest::digest(&bytes);
        if let Some(expected) = name.digest()
            && expected != top
        {
            return Err(Error::Digest { what: "manifest".into(), expected: expected.to_string(), actual: top });
        }
        let mut blobs = vec![bytes];
        let mut parsed: Manifest = serde_json::from_slice(&blobs[0]).map_err(|e| invalid(format!("manifest: {e}")))?;
        let host = host();
        if let Some(entries) = &parsed.manifests {
            let chosen = choose(entries, &host).ok_or_else(|| Error::NoPlatform {
                name: format!("{}@{top}", name.repository()),
                found: offered(entries),
                wanted: host.to_string(),
            })?;
            let (bytes, _) =
                client.pull_manifest_raw(&name.reference.clone_with_digest(chosen.digest.clone()), &auth, ACCEPT).await.map_err(failed)?;
            let actual = manifest::digest(&bytes);
            if actual != chosen.digest {
                return Err(Error::Digest { what: "manifest".into(), expected: chosen.digest.clone(), actual });
            }
            parsed = serde_json::from_slice(&bytes).map_err(|e| invalid(format!("manifest: {e}")))?;
            blobs.push(bytes);
        }
        let config = parsed.config.ok_or_else(|| invalid("neither a manifest nor an index".into()))?;
        if config.size > MAX_CONFIG {
            return Err(invalid(format!("a configuration of {} bytes", config.size)));
        }
        let mut config_bytes = Vec::new();
        client.pull_blob(&name.reference, &descriptor(&config), &mut config_bytes).await.map_err(failed)?;
        let id = manifest::digest(&config_bytes);
        if id != config.digest {
            return Err(Error::Digest { what: "configuration".into(), expected: config.digest, actual: id });
        }
        let configuration = parse_config(&text, &config_bytes)?;
        let built_for = Platform {
            architecture: configuration.architecture().to_string(),
            os: configuration.os().to_string(),
            variant: String::new(),
        };
        if !built_for.runs_on(&host) {
            return Err(Error::NoPlatform { name: format!("{}@{top}", name.repository()), found: built_for.to_string(), wanted: host.to_string() });
        }
        let (diffs, chain) = layers_of(&configuration);
        if diffs.len() != parsed.layers.len() {
            return Err(invalid(format!("{} layers, but {} in its configuration", parsed.layers.len(), diffs.len())));
        }

        let hold = self.hold_for_pull(&chain)?;
        let present = self.present(&chain)?;
        let missing = &parsed.layers[present..];
        progress(Progress::Resolved {
            layers: diffs.len(),
            missing: missing.len(),
            bytes: missing.iter().map(|l| u64::try_from(l.size).unwrap_or(0)).sum(),
        });
        let mut fetched = stream::iter(missing.to_vec()).map(|layer| fetch(self, &client, &name.reference, &text, layer)).buffered(PARALLEL);
        let mut at = present;
        while let Some((layer, file)) = fetched.try_next().await? {
            progress(Progress::Fetched { digest: layer.digest.clone(), bytes: u64::try_from(layer.size).unwrap_or(0) });
            let (store, chain, diff) = (self.clone(), chain[..=at].to_vec(), diffs[at].clone());
            let unpacked = tokio::task::spawn_blocking(move || {
                let reader = std::fs::File::open(file.path()).at(file.path())?;
                store.add_layer(&chain, &diff, reader)
            });
            unpacked.await.unwrap_or_else(|e| Err(Error::Registry { name: text.clone(), detail: e.to_string() }))?;
            progress(Progress::Unpacked { digest: layer.digest.clone() });
            at += 1;
        }
        let mut kept = Vec::new();
        for blob in &blobs {
            kept.push(self.write_blob(blob)?);
        }
        self.write_blob(&config_bytes)?;
        let digest = format!("{}@{top}", name.repository());
        let tags: Vec<String> = name.tagged().into_iter().collect();
        let image = self.enter_image(&id, chain, &tags, &[digest], kept);
        drop(hold);
        image
    }
}

async fn fetch(store: &Store, client: &Client, reference: &Reference, name: &str, layer: Descriptor) -> Result<(Descriptor, tempfile::NamedTempFile)> {
    let tmp = store.root().join("tmp");
    let file = tempfile::NamedTempFile::new_in(&tmp).at(&tmp)?;
    let mut out = tokio::io::BufWriter::with_capacity(256 << 10, tokio::fs::File::from_std(file.reopen().at(&tmp)?));
    client.pull_blob(reference, &descriptor(&layer), &mut out).await.map_err(|e| failure(name, e))?;
    out.flush().await.at(file.path())?;
    Ok((layer, file))
}

fn descriptor(d: &Descriptor) -> OciDescriptor {
    OciDescriptor { media_type: d.media_type.clone(), digest: d.digest.clone(), size: d.size, ..OciDescriptor::default() }
}

fn failure(name: &str, error: OciDistributionError) -> Error {
    let name = name.to_string();
    match error {
        OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
            Error::Digest { what: name, expected, actual }
        }
        OciDistributionError::ImageManifestNotFoundError(_) => Error::NotFound { name },
        OciDistributionError::ServerError { code: 404, .. } => Error::NotFound { name },
        OciDistributionError::RegistryError { ref envelope, .. } => {
            let text = envelope.errors.iter().map(|e| format!("{:?}: {}", e.code, e.message)).collect::<Vec<_>>().join("; ");
            use oci_client::errors::OciErrorCode as Code;
            if envelope.errors.iter().any(|e| matches!(e.code, Code::ManifestUnknown | Code::NameUnknown | Code::NotFound | Code::BlobUnknown)) {
                Error::NotFound { name }
            } else if envelope.errors.iter().any(|e| matches!(e.code, Code::Unauthorized | Code::Denied)) {
                Error::Unauthorized { name, detail: text }
            } else {
                Error::Registry { name, detail: text }
            }
        }
        OciDistributionError::UnauthorizedError { url } => Error::Unauthorized { name, detail: format!("{url}: 401 Unauthorized") },
        OciDistributionError::AuthenticationFailure(detail) => Error::Unauthorized { name, detail },
        OciDistributionError::IoError(source) => Error::Io { path: name.into(), source },
        other => Error::Registry { name, detail: chain(&other) },
    }
}

/// An error with its causes: what reqwest itself says ("error sending request") helps nobody.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

async fn client(name: &Name, auth: &Auth, options: &Options) -> Result<Client> {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else installing one at the same moment is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let registry = name.reference.resolve_registry();
    let plain = options.plain_http.iter().any(|r| r == registry || r == name.registry()) || (is_loopback(registry) && speaks_plain_http(registry).await);
    let extra_root_certificates: Vec<Certificate> = options
        .extra_ca_pem
        .iter()
        .flat_map(|pem| certificates(pem))
        .map(|data| Certificate { encoding: CertificateEncoding::Pem, data })
        .collect();
    let config = |accept_invalid_certificates| ClientConfig {
        protocol: if plain { ClientProtocol::HttpsExcept(vec![registry.to_string()]) } else { ClientProtocol::Https },
        extra_root_certificates: extra_root_certificates.clone(),
        accept_invalid_certificates,
        connect_timeout: Some(Duration::from_secs(30)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("knarr/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    match Client::try_from(config(false)) {
        Ok(client) => Ok(client),
        // A machine without any CA certificates cannot make a TLS client; none is needed, and no
        // secret is at stake.
        Err(_) if plain && *auth == Auth::Anonymous => Client::try_from(config(true)).map_err(|e| failure(&name.to_string(), e)),
        Err(error) => Err(Error::Registry {
            name: name.to_string(),
            detail: format!("{}; does this machine have CA certificates (package ca-certificates)?", chain(&error)),
        }),
    }
}

/// Each certificate of a PEM file as its own PEM.
fn certificates(pem: &[u8]) -> Vec<Vec<u8>> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(pem);
    text.split_inclusive(END)
        .filter_map(|part| part.find("-----BEGIN CERTIFICATE-----").map(|at| format!("{}\n", &part[at..]).into_bytes()))
        .collect()
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Asks a registry for its version without TLS and without credentials. A TLS port answers 400, or nothing.
async fn speaks_plain_http(registry: &str) -> bool {
    let address = if registry.rsplit_once(':').is_some_and(|(_, p)| p.bytes().all(|b| b.is_ascii_digit())) {
        registry.to_string()
    } else {
        format!("{registry}:80")
    };
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(&address).await.ok()?;
        stream.write_all(format!("GET /v2/ HTTP/1.1\r\nHost: {registry}\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = [0u8; 12];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer.starts_with(b"HTTP/1.") && &answer[9..] != b"400")
    };
    tokio::time::timeout(Duration::from_secs(3), ask).await.ok().flatten().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_registries_are_known() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["registry.example", "10.0.0.1:5000", "localhost.example:5000"] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn a_pem_file_may_hold_several_certificates() {
        let pem = b"# one\n-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nBB\n-----END CERTIFICATE-----\n";
        let all = certificates(pem);
        assert_eq!(all.len(), 2);
        assert!(all[1].starts_with(b"-----BEGIN CERTIFICATE-----\nBB"));
    }
}
