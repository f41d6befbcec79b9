//! Where a cluster's objects are: in the data directory, or in an etcd. Which one is noted, so that a server which is
//! started otherwise does not begin an empty cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use apiserver::{EncryptionKey, Server};
use clap::Args;
use serde::{Deserialize, Serialize};
use store::Store;

use crate::config::Config;
use crate::layout::Layout;
use crate::{files, material};

/// How often the keys' file is looked at.
const RELOAD: Duration = Duration::from_secs(3);

/// Which etcd, as flags and files say it.
#[derive(Args, Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct EtcdArgs {
    /// Members of etcd, as https://host:port
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// CA by which etcd is known
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Certificate that is shown to etcd
    #[arg(long, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What keys in etcd begin with [default: /registry]
    #[arg(long, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
}

/// An etcd that can be opened.
#[derive(Clone)]
pub struct Etcd {
    pub options: store::etcd::Options,
    pub prefix: String,
    args: EtcdArgs,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.args.fmt(f)
    }
}

impl Etcd {
    /// Reads the files; nothing if no server is named.
    pub fn of(args: &EtcdArgs) -> Result<Option<Etcd>> {
        if args.etcd_servers.is_empty() {
            let more = args.etcd_cafile.is_some() || args.etcd_certfile.is_some() || args.etcd_keyfile.is_some() || args.etcd_prefix.is_some();
            ensure!(!more, "--etcd-servers must be specified where other flags of etcd are");
            return Ok(None);
        }
        let options = options(&args.etcd_servers, args.etcd_cafile.as_deref(), args.etcd_certfile.as_deref(), args.etcd_keyfile.as_deref())?;
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone()));
        let args = EtcdArgs {
            etcd_servers: args.etcd_servers.clone(),
            etcd_cafile: absolute(&args.etcd_cafile),
            etcd_certfile: absolute(&args.etcd_certfile),
            etcd_keyfile: absolute(&args.etcd_keyfile),
            etcd_prefix: args.etcd_prefix.clone(),
        };
        Ok(Some(Etcd { options, prefix: args.etcd_prefix.clone().unwrap_or_else(|| "/registry".into()), args }))
    }

    /// Its members.
    pub fn name(&self) -> String {
        self.args.etcd_servers.join(",")
    }

    /// Connects. Keys have their names of etcd.
    pub async fn connect(&self) -> Result<Arc<dyn Store>> {
        store::etcd::open(self.options.clone()).await.with_context(|| format!("etcd in {}", self.name()))
    }

    /// Connects; keys begin with `/registry`.
    pub async fn open(&self) -> Result<Arc<dyn Store>> {
        Ok(store::under(self.connect().await?, &self.prefix))
    }
}

/// The settings of a client of etcd.
pub fn options(servers: &[String], ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Result<store::etcd::Options> {
    let file = |path: Option<&Path>| path.map(|path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))).transpose();
    let identity = match (file(cert)?, file(key)?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => bail!("--etcd-certfile and --etcd-keyfile belong together: one of them is missing"),
    };
    Ok(store::etcd::Options { endpoints: servers.to_vec(), ca: file(ca)?, identity, ..Default::default() })
}

/// The etcd that was noted.
pub fn noted(layout: &Layout) -> Result<Option<EtcdArgs>> {
    let path = layout.etcd();
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged: remove it, and name etcd by --etcd-servers", path.display()))?))
}

/// Notes that the objects are in this etcd; or in the data directory.
pub fn note(layout: &Layout, etcd: Option<&Etcd>) -> Result<()> {
    match etcd {
        Some(etcd) => files::write(&layout.etcd(), &serde_json::to_vec_pretty(&etcd.args)?, 0o600),
        None if !layout.etcd().exists() => Ok(()),
        None => std::fs::remove_file(layout.etcd()).with_context(|| format!("cannot remove {}", layout.etcd().display())),
    }
}

/// Whether there is an embedded store.
pub fn has_embedded(layout: &Layout) -> bool {
    layout.store().join("format").exists()
}

/// The flags must lead to where the objects are.
pub fn check(config: &Config, layout: &Layout) -> Result<()> {
    ensure!(
        has_embedded(layout) || !layout.old_store().exists(),
        "a store was to be replaced, and that was cut short: do it again, or rename {} to {}",
        layout.old_store().display(),
        layout.store().display()
    );
    match (&config.etcd, noted(layout)?) {
        (Some(_), _) if has_embedded(layout) => bail!(
            "the objects of this cluster are in {}, not in etcd: knarr store migrate --to etcd takes them there; or move that directory away",
            layout.store().display()
        ),
        (None, Some(there)) => bail!(
            "the objects of this cluster are in etcd ({}): say --etcd-servers; or take them back with knarr store migrate --to embedded; \
             or, to begin an empty cluster, remove {}",
            there.etcd_servers.join(","),
            layout.etcd().display()
        ),
        _ => Ok(()),
    }
}

/// Opens the cluster's store.
pub async fn open(config: &Config, layout: &Layout) -> Result<Arc<dyn Store>> {
    match &config.etcd {
        Some(etcd) => {
            let store = etcd.connect().await?;
            note(layout, Some(etcd))?;
            Ok(store)
        }
        None => embedded(layout),
    }
}

/// Opens the store in the data directory.
pub fn embedded(layout: &Layout) -> Result<Arc<dyn Store>> {
    store::embedded::open(layout.store(), store::embedded::Options::default())
        .with_context(|| format!("the store in {} cannot be opened", layout.store().display()))
}

/// Has the server use other keys when their file changes.
pub async fn follow_keys(server: &Server, layout: &Layout, mut keys: Vec<EncryptionKey>) {
    loop {
        tokio::time::sleep(RELOAD).await;
        match material::encryption_keys(layout, None) {
            Ok(now) if now.is_empty() || now == keys => {}
            Ok(now) => {
                match server.reload_encryption(&material::encryption(&now)) {
                    Ok(()) => tracing::info!(key = now[0].name, "another encryption key is used from now on"),
                    Err(error) => tracing::error!("the encryption keys have changed and cannot be used: {error}"),
                }
                keys = now;
            }
            Err(error) => tracing::warn!("the encryption keys cannot be read: {error:#}"),
        }
    }
}
