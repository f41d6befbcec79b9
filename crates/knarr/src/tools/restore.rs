//! `knarr store restore`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use apiserver::encrypt::Transformer;
use apiserver::offline::{self, Item, Snapshot};
use clap::Args;
use jiff::Timestamp;
use store::KeyValue;

use super::{At, Meter, put_in_place, take};
use crate::engine::{self, Etcd};
use crate::layout::Layout;
use crate::files;

/// So many revisions above the snapshot's the store goes on at least, and so many more for each second since then: what
/// was written after it is lost, and its revisions must not come again.
const AT_LEAST: i64 = 100_000;
const A_SECOND: i64 = 20;

#[derive(Args)]
pub struct RestoreArgs {
    /// The snapshot
    pub file: PathBuf,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// Restore into a new cluster of etcd, begun by the member beside this directory's server, which must not run: for
    /// when most members are lost. The others join it anew (knarr server --etcd --etcd-join)
    #[arg(long)]
    pub new_member: bool,
    /// How far above the snapshot's revision the store goes on [default: 100000, and 20 for each second since it was taken]
    #[arg(long, value_name = "NUMBER")]
    pub bump_revision: Option<u32>,
    #[command(flatten)]
    pub at: At,
}

pub async fn run(args: &RestoreArgs) -> Result<()> {
    let snapshot = Snapshot::open(&args.file)?;
    let header = &snapshot.header;
    println!("{}: {} objects at revision {}, taken {}", args.file.display(), snapshot.objects, header.revision, header.taken);
    let age = header.taken.parse::<Timestamp>().map_or(0, |taken| Timestamp::now().duration_since(taken).as_secs().max(0));
    let bump = args.bump_revision.map_or(AT_LEAST + A_SECOND.saturating_mul(age), i64::from);
    let beyond = header.revision + bump;
    match Etcd::of(&args.at.etcd)? {
        None if args.new_member => into_new_member(args, &snapshot, beyond).await,
        Some(_) if args.new_member => bail!("--new-member makes the etcd that it restores into: --etcd-servers names another one"),
        Some(etcd) => into_etcd(args, &snapshot, &etcd, beyond).await,
        None => into_directory(args, &snapshot, beyond).await,
    }
}

/// Brings objects into the store whose keys begin with `prefix`, for what is encrypted is bound to its whole key; and
/// counts those that cannot be read with the keys that are here.
struct Reader {
    moved: Option<(Transformer, Transformer)>,
    here: Transformer,
    unreadable: u64,
    /// The key of one of them.
    under: String,
}

impl Reader {
    fn new(args: &RestoreArgs, snapshot: &Snapshot, prefix: &str) -> Result<Reader> {
        let transformer = || Transformer::new(&args.at.encryption()?).map_err(anyhow::Error::from);
        let same = snapshot.header.prefix.trim_matches('/') == prefix.trim_matches('/');
        let moved = if same { None } else { Some((transformer()?.under(&snapshot.header.prefix), transformer()?.under(prefix))) };
        Ok(Reader { moved, here: transformer()?.under(prefix), unreadable: 0, under: String::new() })
    }

    fn take(&mut self, mut kv: KeyValue) -> KeyValue {
        if let Some((from, to)) = &self.moved
            && apiserver::encrypt::key_of(&kv.value) != "identity"
            && let Ok(plain) = from.open(&kv.key, &kv.value)
            && let Ok(sealed) = to.seal(&kv.key, plain)
        {
            kv.value = sealed;
        }
        if self.here.open(&kv.key, &kv.value).is_err() {
            self.unreadable += 1;
            self.under = apiserver::encrypt::key_of(&kv.value);
        }
        kv
    }

    fn tell(&self) {
        if self.unreadable > 0 {
            println!("{} objects are encrypted under keys that are not here ({}): put the cluster's encryption.key back before the server starts", self.unreadable, self.under);
        }
    }
}

async fn into_etcd(args: &RestoreArgs, snapshot: &Snapshot, etcd: &Etcd, beyond: i64) -> Result<()> {
    let mut reader = Reader::new(args, snapshot, &etcd.prefix)?;
    let store = etcd.open().await?;
    let values = snapshot.objects()?.map(|next| next.map(|kv| reader.take(kv)).map(|kv| (kv.key, kv.value)));
    let mut meter = Meter::default();
    let copied = offline::fill(&store, values, snapshot.objects, beyond, args.force, |what, done, of| meter.say(what, done, of)).await;
    store.close().await;
    let copied = copied.with_context(|| format!("restoring into etcd in {}", etcd.name()))?;
    println!("{} objects are in etcd, which goes on at revision {}", copied.objects, copied.revision);
    reader.tell();
    Ok(())
}

/// The member that is there is only replaced when the new one has everything.
async fn into_new_member(args: &RestoreArgs, snapshot: &Snapshot, beyond: i64) -> Result<()> {
    let layout = args.at.layout()?;
    let _lock = take(&layout)?;
    let quota = crate::etcd::quota()?;
    let anew = crate::etcd::begin_anew(&layout, args.force).await?;
    let etcd = anew.etcd()?;
    let mut reader = Reader::new(args, snapshot, &etcd.prefix)?;
    let objects = snapshot.by_revision()?.map(|next| next.map(|kv| reader.take(kv)));
    let copied = offline::import_member(anew.data(), beyond, quota, objects)?;
    anew.put_in_place()?;
    engine::note(&layout, Some(&etcd))?;
    println!("{} objects are in etcd, which goes on at revision {}", copied.objects, copied.revision);
    reader.tell();
    println!("start the server as before; then the others, each with --etcd-join and this one's URL");
    Ok(())
}

async fn into_directory(args: &RestoreArgs, snapshot: &Snapshot, beyond: i64) -> Result<()> {
    let layout = args.at.layout()?;
    let _lock = take(&layout)?;
    if let Some(there) = engine::noted(&layout)?
        && !args.force
    {
        bail!("this cluster's objects are in etcd ({}): name it by --etcd-servers; or say --force to leave it", there.etcd_servers.join(","));
    }
    let there = engine::has_embedded(&layout);
    ensure!(args.force || !there, "there is a store in {} already: restore into an empty directory, or say --force to replace it", layout.store().display());
    let beyond = if there { above(&layout, beyond).await } else { beyond };
    let files = restore_files(&layout, snapshot, args.force)?;
    if layout.new_store().exists() {
        // Of a restore that was cut short.
        std::fs::remove_dir_all(layout.new_store()).with_context(|| format!("cannot remove {}", layout.new_store().display()))?;
    }
    let mut reader = Reader::new(args, snapshot, "/registry")?;
    let copied = offline::import(&layout.new_store(), beyond, snapshot.objects()?.map(|next| next.map(|kv| reader.take(kv)))).await;
    if copied.is_err() {
        // What is told is why there is no store.
        let _ = std::fs::remove_dir_all(layout.new_store());
    }
    let copied = copied?;
    put_in_place(&layout)?;
    engine::note(&layout, None)?;
    println!("{} objects are in {}, which goes on at revision {}", copied.objects, layout.store().display(), copied.revision);
    if files > 0 {
        println!("{files} keys and certificates are in {}", layout.pki().display());
    }
    reader.tell();
    Ok(())
}

/// A revision above those of the store that is replaced, if it can be read.
async fn above(layout: &Layout, beyond: i64) -> i64 {
    match engine::embedded(layout) {
        Ok(store) => {
            let revision = store.revision().await.unwrap_or(0);
            store.close().await;
            beyond.max(revision + 1)
        }
        Err(error) => {
            println!("the store that is replaced cannot be read, so its revision is guessed: {error:#}");
            beyond
        }
    }
}

/// Puts the cluster's files back that the snapshot holds; those that are there stay.
fn restore_files(layout: &Layout, snapshot: &Snapshot, force: bool) -> Result<usize> {
    let mut found = Vec::new();
    snapshot.read(|item| {
        if let Item::File(name, bytes) = item {
            found.push((name, bytes));
        }
        Ok(())
    })?;
    if found.is_empty() {
        return Ok(0);
    }
    files::private_dir(&layout.pki())?;
    for (name, bytes) in &found {
        let Some(name) = name.strip_prefix("pki/").filter(|n| !n.is_empty() && !n.contains('/') && !n.starts_with('.')) else {
            bail!("the snapshot holds a file named {name:?}: it was not made by knarr");
        };
        let path = layout.pki().join(name);
        if let Ok(there) = std::fs::read(&path)
            && there != *bytes
            && !force
        {
            bail!("{} is there, and is not the one in the snapshot: move it away, or say --force to replace it", path.display());
        }
    }
    for (name, bytes) in &found {
        let name = name.trim_start_matches("pki/");
        let mode = if name.ends_with(".crt") || name.ends_with(".pub") { 0o644 } else { 0o600 };
        files::write(&layout.pki().join(name), bytes, mode)?;
    }
    Ok(found.len())
}
