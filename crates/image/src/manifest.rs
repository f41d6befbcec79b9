//! Manifests and indexes, as leniently as registries write them.

use std::collections::BTreeMap;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A manifest or an index: which one is told by what it holds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    pub manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: i64,
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// This machine, in Go's words.
pub fn host() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    Platform { architecture: architecture.to_string(), os: "linux".to_string(), variant: String::new() }
}

impl Platform {
    /// Whether what is built for this platform runs on `host`.
    pub fn runs_on(&self, host: &Platform) -> bool {
        // amd64/v2 and above would need a look at the processor; the plain variant is preferred.
        self.os == host.os && self.architecture == host.architecture
    }
}

/// The entry of an index that fits `host` best.
pub fn choose<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| p.runs_on(host));
    let plain = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| matches!(p.variant.as_str(), "" | "v8" | "v1"));
    entries
        .iter()
        .filter(fits)
        .find(plain)
        .or_else(|| entries.iter().find(fits))
        .or_else(|| entries.iter().find(|d| d.platform.is_none() && entries.len() == 1))
}

/// What an index offers, for an error's text.
pub fn offered(entries: &[Descriptor]) -> String {
    let mut all: Vec<String> =
        entries.iter().filter_map(|d| d.platform.as_ref()).filter(|p| p.os != "unknown").map(|p| p.to_string()).collect();
    all.dedup();
    if all.is_empty() { "no platform".to_string() } else { all.join(", ") }
}

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The hexadecimal part of a sha256 digest, when it is one.
pub fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))).then_some(hex)
}

/// The chain ids of a stack of layers, lowest first (OCI image specification, "Layer ChainID").
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        chain.push(match chain.last() {
            None => diff.clone(),
            Some(below) => digest(format!("{below} {diff}").as_bytes()),
        });
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: format!("{os}/{architecture}/{variant}"),
            size: 0,
            platform: Some(Platform { architecture: architecture.into(), os: os.into(), variant: variant.into() }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn the_plain_variant_of_our_platform_is_chosen() {
        let host = Platform { architecture: "amd64".into(), os: "linux".into(), variant: String::new() };
        let all = [entry("linux", "arm64", "v8"), entry("windows", "amd64", ""), entry("linux", "amd64", "v3"), entry("linux", "amd64", "")];
        assert_eq!(choose(&all, &host).unwrap().digest, "linux/amd64/");
        assert!(choose(&all[..2], &host).is_none());
        assert_eq!(offered(&all[..2]), "linux/arm64/v8, windows/amd64");
    }
}
