//! Where a cluster's objects are: in the data directory, or in an etcd. Which one is noted, so that a server which is
//! started otherwise does not begin an empty cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use apiserver::{EncryptionKey, Server};
use clap::Args;
use reconcile::Tasks;
use serde::{Deserialize, Serialize};
use store::Store;

use crate::config::Config;
use crate::follow::Certificate;
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
    /// The certificate that is shown to it.
    certificate: Option<Certificate>,
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
        let mut options = options(&args.etcd_servers, args.etcd_cafile.as_deref(), args.etcd_certfile.as_deref(), args.etcd_keyfile.as_deref())?;
        let certificate = match (&args.etcd_certfile, &args.etcd_keyfile) {
            (Some(cert), Some(key)) => Some(Certificate::read([cert, key])?),
            _ => None,
        };
        options.shown = certificate.as_ref().map(|c| -> Arc<dyn rustls::client::ResolvesClientCert> { c.shown.clone() });
        let absolute = |path: &Option<PathBuf>| path.as_ref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.clone()));
        let args = EtcdArgs {
            etcd_servers: args.etcd_servers.clone(),
            etcd_cafile: absolute(&args.etcd_cafile),
            etcd_certfile: absolute(&args.etcd_certfile),
            etcd_keyfile: absolute(&args.etcd_keyfile),
            etcd_prefix: args.etcd_prefix.clone(),
        };
        Ok(Some(Etcd { options, prefix: args.etcd_prefix.clone().unwrap_or_else(|| "/registry".into()), args, certificate }))
    }

    /// Has another certificate shown to it when that lies in the files.
    pub fn follow(&self, tasks: &Tasks) {
        if let Some(certificate) = self.certificate.clone() {
            certificate.start(tasks);
        }
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
        _ if (config.etcd.is_some() || config.member.is_some()) && has_embedded(layout) => bail!(
            "the objects of this cluster are in {}, not in etcd: knarr store migrate --to etcd takes them there; or move that directory away",
            layout.store().display()
        ),
        (None, Some(_)) if config.member.is_some() => Ok(()),
        (None, Some(_)) if layout.member().exists() => bail!("the objects of this cluster are in the etcd that this server runs a member of: say --etcd"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn etcd() -> EtcdArgs {
        EtcdArgs { etcd_servers: vec!["https://a:2379".into(), "https://b:2379".into()], ..EtcdArgs::default() }
    }

    #[test]
    fn a_server_finds_its_objects_or_does_not_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path(), dir.path());
        let config = |servers: &[String]| Flags { node_name: Some("n".into()), etcd_servers: servers.to_vec(), ..Flags::default() }.resolve().expect("a configuration");
        let (own, there) = (config(&[]), config(&etcd().etcd_servers));
        assert!(check(&own, &layout).is_ok() && check(&there, &layout).is_ok(), "a new cluster may have either");
        note(&layout, there.etcd.as_ref()).expect("noted");
        assert_eq!(noted(&layout).expect("read"), Some(etcd()));
        let why = check(&own, &layout).expect_err("an empty cluster").to_string();
        assert!(why.contains("https://a:2379,https://b:2379") && why.contains("--etcd-servers"), "{why}");
        assert!(check(&there, &layout).is_ok());
        note(&layout, None).expect("noted");
        note(&layout, None).expect("noted again");
        std::fs::create_dir(layout.old_store()).expect("a directory");
        assert!(check(&own, &layout).expect_err("half restored").to_string().contains("cut short"));
        std::fs::rename(layout.old_store(), layout.store()).expect("renamed");
        std::fs::write(layout.store().join("format"), "").expect("written");
        assert!(check(&own, &layout).is_ok());
        let why = check(&there, &layout).expect_err("the objects are here").to_string();
        assert!(why.contains("knarr store migrate --to etcd"), "{why}");
    }

    #[test]
    fn flags_of_etcd() {
        let alone = EtcdArgs { etcd_prefix: Some("/x".into()), ..EtcdArgs::default() };
        assert!(Etcd::of(&alone).expect_err("which etcd?").to_string().contains("--etcd-servers"));
        assert!(Etcd::of(&EtcdArgs::default()).expect("fine").is_none());
        let half = EtcdArgs { etcd_certfile: Some("/dev/null".into()), ..etcd() };
        assert!(Etcd::of(&half).expect_err("a key is missing").to_string().contains("belong together"));
        let missing = EtcdArgs { etcd_cafile: Some("/nowhere/ca".into()), ..etcd() };
        assert!(Etcd::of(&missing).expect_err("no file").to_string().contains("/nowhere/ca"));
        let flags = Flags { node_name: Some("n".into()), etcd_servers: etcd().etcd_servers, etcd_prefix: Some("/x".into()), ..Flags::default() };
        let found = flags.resolve().expect("a configuration").etcd.expect("an etcd");
        assert_eq!((found.options.endpoints.len(), found.prefix.as_str()), (2, "/x"));
        let arguments = flags.arguments().join(std::ffi::OsStr::new(" "));
        assert!(arguments.to_string_lossy().contains("--etcd-servers https://a:2379 --etcd-servers https://b:2379 --etcd-prefix /x"), "{arguments:?}");
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path(), dir.path());
        assert!(material::encryption_keys(&layout, None).expect("none").is_empty());
        files::private_dir(&layout.pki()).expect("a directory");
        let first = material::encryption_keys(&layout, Some(&mut |bytes: &mut [u8]| bytes.fill(7))).expect("made");
        assert_eq!(first, [EncryptionKey { name: "key1".into(), secret: vec![7; 32] }]);
        let both = [EncryptionKey { name: "key2".into(), secret: vec![8; 32] }, first[0].clone()];
        material::write_encryption_keys(&layout, &both).expect("written");
        assert_eq!(material::encryption_keys(&layout, None).expect("read"), both);
        std::fs::write(layout.pki().join("encryption.key"), "key1:7g\n").expect("written");
        assert!(material::encryption_keys(&layout, None).expect_err("no key").to_string().contains("64 hexadecimal digits"));
    }
}
