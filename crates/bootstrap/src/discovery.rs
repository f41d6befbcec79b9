//! How a machine that trusts nothing yet comes to know a cluster: by a token and a pin of its CA, or by a file.

use std::time::{Duration, Instant};

use client::{Credentials, Entry, Web, WebTls};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::certs;
use crate::cluster::{Cluster, collection};
use crate::config::{BootstrapTokenDiscovery, JoinConfiguration, duration};
use crate::error::{Doing, Error, Result, refused};
use crate::preflight::peers::Clock;

/// How often a cluster that does not answer is asked.
const RETRY: Duration = Duration::from_millis(500);
/// How long a cluster that answers may take to sign for a token that it has just got.
const SIGNING: Duration = Duration::from_secs(5);
/// How long a discovery file may take to arrive, and how long it may be.
const FETCH: Duration = Duration::from_secs(30);
const LARGEST: usize = 1 << 20;
/// How long it may take to say what time it is.
const SLOW: Duration = Duration::from_secs(2);

/// The cluster, and as whom the certificate of this node is asked for.
pub async fn discover(config: &JoinConfiguration) -> Result<Entry> {
    let patience = config.timeouts.as_ref().and_then(|t| duration(&t.discovery)).unwrap_or(Duration::from_secs(300));
    let found = match (&config.discovery.file, &config.discovery.bootstrap_token) {
        (Some(file), _) => by_file(&file.kube_config_path, patience).await,
        (None, Some(token)) => by_token(token, patience).await,
        (None, None) => refused("couldn't find a valid discovery configuration"),
    };
    let mut entry = found.doing(|| "couldn't validate the identity of the API Server".into())?;
    if !config.discovery.tls_bootstrap_token.is_empty() {
        entry.credentials = Credentials { certificate: None, token: Some(config.discovery.tls_bootstrap_token.clone()) };
    }
    if entry.credentials.certificate.is_none() && entry.credentials.token.is_none() {
        return refused(
            "could not find authentication credentials for the TLS bootstrap process. Please use Token discovery, a discovery file with embedded \
             authentication credentials or a discovery file without authentication credentials but with the TLSBootstrapToken flag",
        );
    }
    Ok(entry)
}

/// How the API server's clock goes, before anything is believed of it; none where that does not answer soon, which
/// discovery says more about.
pub async fn clock(config: &JoinConfiguration) -> Option<Clock> {
    let url = match (&config.discovery.bootstrap_token, &config.discovery.file) {
        (Some(token), _) => format!("https://{}", token.api_server_endpoint),
        (None, Some(file)) => Entry::read(std::path::Path::new(&file.kube_config_path)).ok()?.server,
        (None, None) => return None,
    };
    let stranger = Cluster::new(client::https(client::Https::unverified(&url).ok()?));
    let begun = Instant::now();
    let date = tokio::time::timeout(SLOW, stranger.date()).await.ok()?.ok()?;
    Clock::read(&date, Timestamp::now() - SignedDuration::try_from(begun.elapsed() / 2).ok()?)
}

async fn by_token(wanted: &BootstrapTokenDiscovery, patience: Duration) -> Result<Entry> {
    let url = format!("https://{}", wanted.api_server_endpoint);
    let Some((id, secret)) = pki::bootstrap_token::parse(&wanted.token) else {
        return refused(format!("the bootstrap token {:?} is invalid", wanted.token));
    };
    let pins = pins(&wanted.ca_cert_hashes)?;
    // Nothing secret is sent, and nothing is believed before its signature is checked.
    let stranger = client::Https::unverified(&url).doing(|| format!("{url} cannot be asked"))?;
    let text = signed(&Cluster::new(client::https(stranger)), id, secret, patience).await?;
    let found = Entry::parse(&text).doing(|| "couldn't parse the kubeconfig file in the cluster-info ConfigMap".into())?;
    if pins.is_empty() {
        return Ok(found);
    }
    let shown = certs::pin(&found.ca)?;
    if !shown.iter().any(|pin| pins.contains(pin)) {
        return refused(format!("cluster CA found in cluster-info ConfigMap is invalid: none of the public keys {:?} are pinned", shown.join(":")));
    }
    // Asked again over a connection that the pinned CA vouches for: nobody was in between.
    let known = client::Https::new(&url, &found.ca, &Credentials::default()).doing(|| format!("{url} cannot be asked"))?;
    let again = signed(&Cluster::new(client::https(known)), id, secret, patience).await?;
    if again != text {
        return refused("the second kubeconfig from the cluster-info ConfigMap (using validated TLS) was different from the first");
    }
    Ok(found)
}

/// Checks the form of pins.
fn pins(texts: &[String]) -> Result<Vec<String>> {
    let mut pins = Vec::new();
    for text in texts {
        let said = |why: &str| format!("invalid discovery token CA certificate hash: invalid hash {text:?}, {why}");
        let Some((format, digits)) = text.split_once(':') else {
            return refused("invalid discovery token CA certificate hash: invalid hash, expected \"format:hex-value\". Known format(s) are: sha256");
        };
        if !format.eq_ignore_ascii_case("sha256") {
            return refused(format!("invalid discovery token CA certificate hash: unknown hash format {format:?}. Known format(s) are: sha256"));
        }
        match hex::decode(digits) {
            Ok(bytes) if bytes.len() == 32 => pins.push(format!("sha256:{}", digits.to_lowercase())),
            Ok(bytes) => return refused(said(&format!("expected a 32 byte SHA-256 hash, found {} bytes", bytes.len()))),
            Err(error) => return refused(said(&format!("could not decode SHA-256 from hex: {error}"))),
        }
    }
    Ok(pins)
}

/// The kubeconfig of `cluster-info`, once it is signed for the token.
async fn signed(cluster: &Cluster, id: &str, secret: &str, patience: Duration) -> Result<String> {
    let path = format!("{}/cluster-info", collection::<ConfigMap>("kube-public"));
    let end = Instant::now() + patience;
    let mut unsigned = None;
    loop {
        let error = match cluster.get(&path).await {
            Ok(Some(map)) => {
                let Some(text) = map["data"]["kubeconfig"].as_str().filter(|t| !t.is_empty()) else {
                    return refused("there is no kubeconfig key in the cluster-info ConfigMap. This API Server isn't set up for token bootstrapping, can't connect");
                };
                match map["data"][format!("jws-kubeconfig-{id}")].as_str() {
                    Some(signature) if pki::jws::verify_detached(signature, text, id, secret) => return Ok(text.into()),
                    Some(_) => return refused("failed to verify JWS signature of received cluster info object, can't trust this API Server"),
                    None => {
                        let error = Error::Refused(format!(
                            "token id {id:?} is invalid for this cluster or it has expired. Use \"kubeadm token create\" on the control-plane node to create a new valid token"
                        ));
                        if unsigned.get_or_insert_with(Instant::now).elapsed() > SIGNING {
                            return Err(error);
                        }
                        error
                    }
                }
            }
            Ok(None) => Error::Refused("there is no cluster-info ConfigMap: this API Server isn't set up for token bootstrapping".into()),
            Err(error) => Error::While { what: "failed to request the cluster-info ConfigMap".into(), source: error.into() },
        };
        if Instant::now() + RETRY > end {
            return Err(error);
        }
        tracing::debug!("retrying discovery: {}", error.chain());
        tokio::time::sleep(RETRY).await;
    }
}

/// The text of a discovery file: on this machine, or at an `https` URL whose server the machine trusts.
async fn text(path: &str) -> Result<String> {
    if !path.starts_with("https://") {
        return crate::files::read(std::path::Path::new(path));
    }
    let said = || format!("the discovery file at {path} cannot be fetched");
    let web = Web::new(path, &WebTls::default(), FETCH).doing(said)?;
    let (status, body) = web.get(LARGEST).await.doing(said)?;
    if !status.is_success() {
        return refused(format!("{}: the server answered {status}", said()));
    }
    String::from_utf8(body.to_vec()).doing(said)
}

async fn by_file(path: &str, patience: Duration) -> Result<Entry> {
    let entry = Entry::parse(&text(path).await?).doing(|| format!("{path} cannot be used"))?;
    // What the cluster says of itself may be newer, and is believed as the file's CA vouches for it.
    let anonymous = Cluster::entry(&Entry { server: entry.server.clone(), ca: entry.ca.clone(), credentials: Credentials::default() })?;
    let end = Instant::now() + patience;
    loop {
        let error = match anonymous.config_map("kube-public", "cluster-info", "kubeconfig").await {
            Ok(Some(text)) => {
                let newer = Entry::parse(&text).doing(|| "couldn't parse the kubeconfig file in the cluster-info ConfigMap".into())?;
                return Ok(Entry { credentials: entry.credentials, ..newer });
            }
            Ok(None) => return Ok(entry),
            // Who may not read it has the file alone.
            Err(error) if Cluster::is_forbidden(&error) => {
                println!("[discovery] Could not access the cluster-info ConfigMap for refreshing the cluster-info information, but the TLS cert is valid so proceeding...");
                return Ok(entry);
            }
            Err(error) => error,
        };
        // Another try would not make its certificate good.
        let final_answer = error.chain().contains("invalid peer certificate");
        if final_answer || Instant::now() + RETRY > end {
            return Err(error).doing(|| format!("Abort reading the cluster-info ConfigMap after timeout of {patience:?}"));
        }
        tracing::debug!("retrying discovery: {}", error.chain());
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_have_a_form() {
        let good = format!("SHA256:{}", "Ab".repeat(32));
        assert_eq!(pins(&[good]).expect("good"), [format!("sha256:{}", "ab".repeat(32))]);
        for (bad, why) in [("abcd", "expected \"format:hex-value\""), ("md5:ab", "unknown hash format"), ("sha256:abcd", "found 2 bytes"), ("sha256:zz", "could not decode")] {
            let error = pins(&[bad.into()]).expect_err(bad).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
