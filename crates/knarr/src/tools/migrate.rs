//! `knarr store migrate`: all objects from the data directory to etcd, or back.
//!
//! Each is brought into the form that the other side's servers write, and under their key. Embedded, objects keep their
//! resource versions; etcd gives new ones, all above the old. What was read from is kept.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use apiserver::encrypt::Transformer;
use apiserver::{StorageMediaType, offline};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use store::KeyValue;

use super::{At, Meter, beside, put_in_place, take};
use crate::engine::Etcd;
use crate::layout::Layout;
use crate::{engine, files, material};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum To {
    Etcd,
    Embedded,
}

#[derive(Args)]
pub struct MigrateArgs {
    /// Where to
    #[arg(long, value_enum)]
    pub to: To,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// The server's configuration file, where the member of etcd is to run beside it [default: that of a node that
    /// init has made]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The program of that member [default: the first one on PATH]
    #[arg(long, value_name = "FILE")]
    pub etcd_program: Option<PathBuf>,
    #[command(flatten)]
    pub at: At,
}

pub async fn run(args: &MigrateArgs) -> Result<()> {
    if args.to == To::Etcd && args.at.etcd.etcd_servers.is_empty() {
        return beside::run(args).await;
    }
    ensure!(args.config.is_none() && args.etcd_program.is_none(), "--config and --etcd-program are for a member of etcd beside the server: --etcd-servers names one that others run");
    let layout = args.at.layout()?;
    let _lock = take(&layout)?;
    match args.to {
        To::Etcd => to_etcd(args, &layout).await,
        To::Embedded => to_embedded(args, &layout).await,
    }
}

/// Converts everything before anything is written.
fn converted(all: Vec<KeyValue>, converter: &offline::Converter) -> Result<Vec<KeyValue>> {
    let convert = |kv: KeyValue| Ok(KeyValue { value: converter.convert(&kv)?, ..kv });
    all.into_iter().map(convert).collect::<Result<_, offline::Error>>().context("nothing was changed")
}

async fn to_etcd(args: &MigrateArgs, layout: &Layout) -> Result<()> {
    let etcd = args.at.etcd()?.context("--etcd-servers must be specified")?;
    into_etcd(args, layout, &etcd).await?;
    println!("start the server with --etcd-servers {}", etcd.name());
    Ok(())
}

/// Copies everything, and sets the store aside.
pub async fn into_etcd(args: &MigrateArgs, layout: &Layout, etcd: &Etcd) -> Result<()> {
    ensure!(engine::has_embedded(layout), "there is no store in {} that could be taken to etcd", layout.data.display());
    let own = material::encryption(&material::encryption_keys(layout, None)?);
    let converter = offline::Converter { from: Transformer::new(&own)?, to: args.at.transformer(Some(etcd))?, form: StorageMediaType::Protobuf };
    let source = engine::embedded(layout)?;
    let read = offline::everything(source.clone()).await;
    source.close().await;
    let (all, revision) = read?;
    let all = converted(all, &converter)?;
    let total = all.len() as u64;
    let values = all.into_iter().map(|kv| Ok((kv.key, kv.value)));
    let target = etcd.open().await?;
    let mut meter = Meter::default();
    let copied = offline::fill(&target, values, total, revision, args.force, |what, done, of| meter.say(what, done, of)).await;
    target.close().await;
    let copied = copied.with_context(|| format!("writing to etcd in {}", etcd.name()))?;
    let kept = layout.data.join(format!("store.migrated-{}", Timestamp::now().as_second()));
    engine::note(layout, Some(etcd))?;
    std::fs::rename(layout.store(), &kept).with_context(|| format!("cannot rename {}", layout.store().display()))?;
    println!("{} objects are in etcd, which goes on at revision {} (here it was {revision})", copied.objects, copied.revision);
    println!("the old store is kept in {}", kept.display());
    Ok(())
}

async fn to_embedded(args: &MigrateArgs, layout: &Layout) -> Result<()> {
    let etcd = args.at.etcd()?.context("--etcd-servers must be specified")?;
    ensure!(args.force || !engine::has_embedded(layout), "there is a store in {} already: name another --data-dir, or say --force to replace it", layout.data.display());
    files::private_dir(&layout.pki())?;
    // Those that are there, or the first of a new cluster.
    let own = material::encryption_keys(layout, Some(&mut |bytes: &mut [u8]| rand::fill(bytes)))?;
    let converter = offline::Converter {
        from: args.at.transformer(Some(&etcd))?,
        to: Transformer::new(&material::encryption(&own))?,
        form: StorageMediaType::Json,
    };
    let source = etcd.open().await?;
    let read = offline::everything(source.clone()).await;
    source.close().await;
    let (all, revision) = read.with_context(|| format!("reading etcd in {}", etcd.name()))?;
    ensure!(!all.is_empty(), "there are no objects in etcd below {}: is that the right --etcd-prefix?", etcd.prefix);
    let all = converted(all, &converter)?;
    if layout.new_store().exists() {
        std::fs::remove_dir_all(layout.new_store()).with_context(|| format!("cannot remove {}", layout.new_store().display()))?;
    }
    let copied = offline::import(&layout.new_store(), revision, all.into_iter().map(Ok)).await?;
    put_in_place(layout)?;
    engine::note(layout, None)?;
    println!("{} objects are in {}, which goes on at revision {}", copied.objects, layout.store().display(), copied.revision);
    println!("start the server without --etcd-servers; what is in etcd stays there");
    Ok(())
}
