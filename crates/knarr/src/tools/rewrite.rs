//! `knarr store rewrite`: everything under today's encryption key, and the proof.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::StatusCode;
use apiserver::encrypt::Transformer;
use apiserver::{EncryptionKey, offline};
use clap::Args;
use http::Method;
use serde_json::Value;
use store::Store;

use super::{At, Meter, Place, Refused, ask, chunk};
use crate::layout::Layout;
use crate::{engine, material};

/// How long a running server may take to use another key.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Args)]
pub struct RewriteArgs {
    /// Make a new key first; for a cluster whose key is in the data directory
    #[arg(long)]
    pub new_key: bool,
    /// Forget the old keys afterwards: snapshots that were taken before cannot be read without a copy of them
    #[arg(long)]
    pub forget_old_keys: bool,
    /// Through the server of this kubeconfig, which has today's EncryptionConfiguration
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Begin when the server writes Secrets under this key, as aescbc:key2: it looks at its configuration now and then
    #[arg(long, value_name = "PROVIDER:NAME", conflicts_with = "new_key")]
    pub key: Option<String>,
    #[command(flatten)]
    pub at: At,
}

/// What was counted.
struct Outcome {
    rewritten: u64,
    before: Vec<(String, u64)>,
    after: Vec<(String, u64)>,
    stale: u64,
    unreadable: u64,
    example: String,
    revision: i64,
    proved: bool,
}

pub async fn run(args: &RewriteArgs) -> Result<()> {
    let own = args.new_key || args.forget_old_keys;
    ensure!(!own || (args.kubeconfig.is_none() && args.at.encryption_provider_config.is_none()), "--new-key and --forget-old-keys are for the key in the data directory; otherwise change the EncryptionConfiguration");
    let place = match &args.kubeconfig {
        Some(path) => Place::Server(client::from_kubeconfig(path)?),
        None => args.at.place()?,
    };
    let layout = args.at.layout()?;
    let key = if args.new_key { Some(new_key(&layout)?) } else { args.key.clone() };
    let outcome = match &place {
        Place::Server(client) => through(client, key.as_deref()).await?,
        Place::Embedded(_) | Place::Etcd(_) if args.key.as_ref().is_some_and(|key| at_writes(args).is_ok_and(|writes| writes != *key)) => {
            bail!("the configuration at hand writes Secrets under {}", at_writes(args)?)
        }
        Place::Embedded(_lock) => direct(engine::embedded(&layout)?, args.at.transformer(None)?).await?,
        Place::Etcd(etcd) => direct(etcd.open().await?, args.at.transformer(Some(etcd))?).await?,
    };
    println!("{} values were rewritten; under which key values are:", outcome.rewritten);
    println!("  {:<28} {:>9} {:>9}", "", "before", "after");
    let mut names: Vec<&String> = outcome.before.iter().chain(&outcome.after).map(|(k, _)| k).collect();
    names.sort();
    names.dedup();
    let count = |of: &[(String, u64)], name: &str| of.iter().find(|(k, _)| k == name).map_or(0, |(_, n)| *n);
    for name in names {
        println!("  {name:<28} {:>9} {:>9}", count(&outcome.before, name), count(&outcome.after, name));
    }
    ensure!(outcome.unreadable == 0, "{} values can be read with no key that is configured, {} for one: they were left as they are", outcome.unreadable, outcome.example);
    ensure!(outcome.stale == 0, "{} values are still stored otherwise: does another server write under an older configuration?", outcome.stale);
    ensure!(outcome.proved, "it could not be proved that nothing is left under another key");
    println!("nothing is left under another key than today's, at revision {}; what was before cannot be read any more", outcome.revision);
    if args.forget_old_keys {
        let keys = material::encryption_keys(&layout, None)?;
        ensure!(!keys.is_empty(), "there is no key in {}", layout.pki().display());
        material::write_encryption_keys(&layout, &keys[..1])?;
        println!("{} old keys are forgotten", keys.len() - 1);
    }
    Ok(())
}

/// The key under which Secrets are written by the configuration at hand.
fn at_writes(args: &RewriteArgs) -> Result<String> {
    Ok(args.at.transformer(None)?.writes(b"/registry/secrets/default/x"))
}

/// Puts a new key before those that are there. Its name as values have it.
fn new_key(layout: &Layout) -> Result<String> {
    let mut keys = material::encryption_keys(layout, None)?;
    ensure!(!keys.is_empty(), "there is no key in {}: this cluster's servers have an EncryptionConfiguration of their own", layout.pki().display());
    let number = keys.iter().filter_map(|k| k.name.strip_prefix("key")?.parse::<u64>().ok()).max().unwrap_or(0) + 1;
    let mut secret = vec![0; 32];
    rand::fill(&mut secret[..]);
    let name = format!("key{number}");
    keys.insert(0, EncryptionKey { name: name.clone(), secret });
    material::write_encryption_keys(layout, &keys)?;
    println!("{name} is the key that writes from now on");
    Ok(format!("aesgcm:{name}"))
}

async fn direct(store: Arc<dyn Store>, transformer: Transformer) -> Result<Outcome> {
    let mut meter = Meter::default();
    let done = offline::rewrite(store.clone(), Arc::new(transformer), |done, of| meter.say("rewritten", done, of)).await;
    store.close().await;
    let done = done?;
    let counts = |survey: &offline::Survey| survey.keys.clone().into_iter().collect();
    Ok(Outcome {
        rewritten: done.rewritten,
        before: counts(&done.before),
        after: counts(&done.after),
        stale: done.after.stale,
        unreadable: done.after.unreadable,
        example: done.after.examples.first().cloned().unwrap_or_default(),
        revision: done.after.revision,
        proved: done.is_proved(),
    })
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::CONFLICT)
}

async fn through(client: &kube::Client, key: Option<&str>) -> Result<Outcome> {
    let path = format!("/knarr/store/rewrite{}", key.map_or(String::new(), |key| format!("?key={key}")));
    let start = Instant::now();
    let mut body = loop {
        match ask(client, Method::POST, &path).await {
            Ok(body) => break body,
            // It has not looked at the file yet.
            Err(error) if key.is_some() && is_conflict(&error) && start.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(error) => return Err(error),
        }
    };
    let (mut text, mut meter) = (Vec::new(), Meter::default());
    while let Some(bytes) = chunk(&mut body).await.context("the server did not come to the end of it: see its log")? {
        text.extend_from_slice(&bytes);
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let said: Value = serde_json::from_slice(&line).context("the server's words cannot be read")?;
            if let Some(why) = said["error"].as_str() {
                bail!("the server could not rewrite everything: {why}");
            }
            if said["done"].is_object() {
                return Ok(outcome(&said["done"]));
            }
            meter.say("rewritten", said["rewritten"].as_u64().unwrap_or(0), said["of"].as_u64().unwrap_or(0));
        }
    }
    bail!("the server did not come to the end of it: see its log")
}

fn outcome(done: &Value) -> Outcome {
    let counts = |survey: &Value| survey["keys"].as_object().into_iter().flatten().map(|(k, n)| (k.clone(), n.as_u64().unwrap_or(0))).collect();
    let (before, after) = (&done["before"], &done["after"]);
    Outcome {
        rewritten: done["rewritten"].as_u64().unwrap_or(0),
        before: counts(before),
        after: counts(after),
        stale: after["stale"].as_u64().unwrap_or(u64::MAX),
        unreadable: after["unreadable"].as_u64().unwrap_or(u64::MAX),
        example: after["examples"][0].as_str().unwrap_or_default().into(),
        revision: after["revision"].as_i64().unwrap_or(0),
        proved: done["proved"].as_bool().unwrap_or(false),
    }
}

