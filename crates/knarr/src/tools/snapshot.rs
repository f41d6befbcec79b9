//! `knarr store snapshot` and `knarr store verify`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use apiserver::encrypt::key_of;
use apiserver::offline::{self, Item, Snapshot};
use clap::Args;
use http::Method;

use super::{At, Place, ask, ask_value, chunk, judge, print_keys, told};
use crate::engine;
use crate::layout::Layout;

#[derive(Args)]
pub struct SnapshotArgs {
    /// File to write; it must not be there yet
    pub file: PathBuf,
    /// Put the cluster's keys and certificates in too: who has the file then has the cluster
    #[arg(long)]
    pub with_keys: bool,
    /// Replace the file
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub at: At,
}

#[derive(Args)]
pub struct VerifyArgs {
    /// A snapshot; without one, the store is read
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub at: At,
}

/// A file in the making; removed if it is not finished.
struct Part {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Part {
    fn new(path: &Path) -> Result<Part> {
        let mut name = path.file_name().context("that is no name of a file")?.to_os_string();
        name.push(".part");
        let path = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Part { file: BufWriter::with_capacity(1 << 20, file), path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Sees that it is whole.
    fn whole(&mut self) -> Result<Snapshot> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(Snapshot::open(&self.path)?)
    }

    fn rename(self, to: &Path) -> Result<()> {
        fs::rename(&self.path, to).with_context(|| format!("cannot write {}", to.display()))?;
        let dir = to.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all().with_context(|| format!("cannot write {}", dir.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}

/// The files of the cluster that a snapshot can hold.
fn keys(layout: &Layout) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = layout.pki();
    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name().and_then(|n| n.to_str())) {
            files.push((format!("pki/{name}"), fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?));
        }
    }
    files.sort();
    Ok(files)
}

async fn receive(client: &kube::Client, part: &mut Part) -> Result<()> {
    let mut body = ask(client, Method::GET, "/knarr/store/snapshot").await?;
    loop {
        match chunk(&mut body).await {
            Ok(Some(bytes)) => part.write(&bytes)?,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error.context("the server did not send the snapshot to its end: see its log")),
        }
    }
}

/// A snapshot through a server; how many objects it has.
pub async fn through(client: &kube::Client, file: &Path) -> Result<u64> {
    let mut part = Part::new(file)?;
    receive(client, &mut part).await?;
    let snapshot = part.whole()?;
    part.rename(file)?;
    Ok(snapshot.objects)
}

pub async fn run(args: &SnapshotArgs) -> Result<()> {
    ensure!(args.force || !args.file.exists(), "{} is there already: choose another name, or say --force to replace it", args.file.display());
    let keys = if args.with_keys { Some(keys(&args.at.layout()?)?) } else { None };
    let mut part = Part::new(&args.file)?;
    let place = args.at.place()?;
    let store = match &place {
        Place::Server(client) => {
            receive(client, &mut part).await?;
            None
        }
        Place::Embedded(_) => Some(engine::embedded(&args.at.layout()?)?),
        Place::Etcd(etcd) => Some(etcd.open().await?),
    };
    if let Some(store) = store {
        let (to, mut from) = tokio::sync::mpsc::channel(4);
        let prefix = if let Place::Etcd(etcd) = &place { etcd.prefix.clone() } else { "/registry".into() };
        let read = store.clone();
        let sending = tokio::spawn(async move { offline::send(read, &prefix, to).await });
        while let Some(bytes) = from.recv().await {
            part.write(&bytes)?;
        }
        sending.await??;
        store.close().await;
    }
    let mut snapshot = part.whole()?;
    if let Some(keys) = keys {
        let mut second = Part::new(&args.file.with_extension("keys"))?;
        snapshot.with_files(keys, &mut second.file)?;
        snapshot = second.whole()?;
        part = second;
    }
    part.rename(&args.file)?;
    let with = if snapshot.files.is_empty() { "" } else { ", and the cluster's keys: keep it secret" };
    println!("{}: {} objects at revision {} ({}){with}", args.file.display(), snapshot.objects, snapshot.header.revision, snapshot.header.engine);
    Ok(())
}

/// How many values of a snapshot are under which key.
pub fn sealed(snapshot: &Snapshot) -> Result<BTreeMap<String, u64>> {
    let mut keys = BTreeMap::new();
    snapshot.read(|item| {
        if let Item::Object(kv) = item {
            *keys.entry(key_of(&kv.value)).or_default() += 1;
        }
        Ok(())
    })?;
    Ok(keys)
}

pub async fn verify(args: &VerifyArgs) -> Result<()> {
    if let Some(file) = &args.file {
        let snapshot = Snapshot::open(file)?;
        let header = &snapshot.header;
        println!("{} is whole: {} objects at revision {}, taken of {} on {}", file.display(), snapshot.objects, header.revision, header.engine, header.taken);
        print_keys(sealed(&snapshot)?);
        snapshot.files.iter().for_each(|name| println!("  {name}"));
        return Ok(());
    }
    match args.at.place()? {
        Place::Server(client) => {
            let found = ask_value(&client, "/knarr/store/verify").await?;
            let Some(keys) = found["keys"].as_object() else { bail!("the API server's answer cannot be read") };
            println!("{} values at revision {}", found["values"], found["revision"]);
            print_keys(keys.iter().map(|(k, n)| (k.clone(), n.as_u64().unwrap_or_default())));
            let examples: Vec<String> = found["examples"].as_array().into_iter().flatten().filter_map(|e| Some(e.as_str()?.into())).collect();
            judge(found["unreadable"].as_u64().unwrap_or_default(), &examples)
        }
        Place::Embedded(_lock) => {
            let store = engine::embedded(&args.at.layout()?)?;
            let found = offline::survey(store.clone(), &args.at.transformer(None)?).await;
            store.close().await;
            told(&found?)
        }
        Place::Etcd(etcd) => told(&offline::survey(etcd.open().await?, &args.at.transformer(Some(&etcd))?).await?),
    }
}
