//! `knarr server --etcd`: a member of etcd beside the server; and `knarr etcd`: looking at the members, removing one.

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bootstrap::etcd::{self, Cluster, Member, Patience, Program, certs};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use reconcile::Tasks;
use serde::{Deserialize, Serialize};

use crate::cli::Place;
use crate::config::Config;
use crate::engine::{self, Etcd, EtcdArgs};
use crate::files;
use crate::layout::Layout;

/// How often it is noted who the other members are.
const REFRESH: Duration = Duration::from_secs(60);

/// How the member beside a server is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beside {
    pub program: Option<PathBuf>,
    /// Members of the cluster that it is to join; none where it begins one, or has joined.
    pub join: Vec<String>,
    pub client_port: u16,
    pub peer_port: u16,
}

/// The cluster's certificates: kubeadm's directory, or our own.
fn pki(config: &Config, layout: &Layout) -> PathBuf {
    config.kubeadm.as_ref().and_then(|k| k.pki_dir.clone()).unwrap_or_else(|| layout.pki())
}

fn member(config: &Config, layout: &Layout, beside: &Beside, address: Ipv4Addr) -> Member {
    let dir = layout.member();
    Member { name: config.node_name.clone(), address, client_port: beside.client_port, peer_port: beside.peer_port, data: dir.join("data"), dir, pki: pki(config, layout) }
}

/// Makes the certificates of a member anew that are about to end. etcd reads its files for each connection.
pub fn renew(config: &Config, layout: &Layout, address: Ipv4Addr) -> Result<()> {
    let subject = certs::Subject { name: &config.node_name, address };
    Ok(certs::ensure(&pki(config, layout), &subject, false, config.certificate_lifetime, Timestamp::now())?)
}

/// Starts the member, has it join if it is to, and waits until it serves. Its process is run by a task of `tasks`.
pub async fn start(config: &Config, layout: &Layout, beside: &Beside, address: Ipv4Addr, tasks: &Tasks) -> Result<Etcd> {
    let member = member(config, layout, beside, address);
    files::private_dir(&member.dir)?;
    if etcd::left(&member.dir).is_none() {
        listening(&member)?;
    }
    let program = etcd::find_program(beside.program.as_deref()).await?;
    let note = member.note();
    let place = MemberPlace { name: member.name.clone(), address, client_port: beside.client_port, peer_port: beside.peer_port, program: beside.program.clone(), pki: member.pki.clone() };
    files::write(&member.dir.join(PLACE), &serde_json::to_vec_pretty(&place)?, 0o600)?;
    let subject = certs::Subject { name: &config.node_name, address };
    certs::ensure(&member.pki, &subject, beside.join.is_empty() && !member.has_data(), config.certificate_lifetime, Timestamp::now())?;
    let access = certs::access(&member.pki, "etcd/healthcheck-client")?;
    // Those that were named may have moved since.
    let mut known = beside.join.clone();
    known.extend(note.others.iter().filter(|url| !beside.join.contains(url)).cloned());
    let others = Cluster::new(&known, Some(&access))?;
    let local = Cluster::new(&[member.local_url()], Some(&access))?;
    etcd::join(&member, &program, (!beside.join.is_empty() || !note.others.is_empty()).then_some(&others), &local, &Patience::default(), |supervisor| {
        let stop = tasks.token();
        tasks.spawn_uncancelled(async move { supervisor.run(stop.cancelled_owned()).await });
    })
    .await?;
    let (kept, asked) = (member.clone(), local);
    tasks.spawn("etcd's members", async move {
        loop {
            tokio::time::sleep(REFRESH).await;
            etcd::refresh(&kept, &asked).await;
        }
    });
    engine_of(&member)
}

/// The server talks to its own member, and to the others while that one does not serve.
fn engine_of(member: &Member) -> Result<Etcd> {
    let mut servers = vec![member.local_url()];
    servers.extend(member.note().others);
    let (cert, key) = certs::pair(&member.pki, "apiserver-etcd-client");
    let ca = certs::pair(&member.pki, "etcd/ca").0;
    let args = EtcdArgs { etcd_servers: servers, etcd_cafile: Some(ca), etcd_certfile: Some(cert), etcd_keyfile: Some(key), etcd_prefix: None };
    Etcd::of(&args)?.context("a member has a URL")
}

/// A cluster of one in the making, with the member that was beside the server of a directory, which does not run. It lies
/// aside until it is put in that one's place.
pub struct Anew {
    member: Member,
    /// The one that was.
    before: Member,
    program: Program,
    local: Cluster,
}

/// How long the new member may take to be made, and then to end.
const MADE: Duration = Duration::from_secs(30);
const ENDED: Duration = Duration::from_secs(10);

/// Makes the member and ends it again. The process of the one that was is ended.
pub async fn begin_anew(layout: &Layout, force: bool) -> Result<Anew> {
    let dir = layout.member();
    let path = dir.join(PLACE);
    let text = std::fs::read(&path).with_context(|| format!("no member of etcd has been beside the server of {}", layout.data.display()))?;
    let place: MemberPlace = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let MemberPlace { name, address, client_port, peer_port, program, pki } = place;
    let before = Member { name, address, client_port, peer_port, data: dir.join("data"), dir, pki };
    if before.has_data() {
        ensure!(force, "{} holds what a member of etcd has kept: where most members are well, start the server instead; where they are lost, say --force to set it aside", before.data.display());
    }
    let dir = before.dir.join("new");
    let member = Member { data: dir.join("data"), dir, ..before.clone() };
    for left in [&before, &member] {
        etcd::end_left(&left.dir);
    }
    if member.dir.exists() {
        // Of an attempt that was cut short.
        std::fs::remove_dir_all(&member.dir).with_context(|| format!("cannot remove {}", member.dir.display()))?;
    }
    files::private_dir(&member.dir)?;
    listening(&member)?;
    let program = etcd::find_program(program.as_deref()).await?;
    let access = certs::access(&member.pki, "etcd/healthcheck-client")?;
    let local = Cluster::new(&[member.local_url()], Some(&access))?;
    let anew = Anew { member, before, program, local };
    anew.make().await.with_context(|| format!("etcd's log is {}", anew.member.log().display()))?;
    Ok(anew)
}

impl Anew {
    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.member.data
    }

    /// How it is reached.
    pub fn etcd(&self) -> Result<Etcd> {
        engine_of(&self.member)
    }

    /// Runs it until it has written what its cluster is, and put a snapshot of that aside: what comes later is not in its
    /// log then, so members that join get its file.
    async fn make(&self) -> Result<()> {
        let member = &self.member;
        let initial = format!("{}={}", member.name, member.peer_url());
        let log = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(member.log())?;
        let mut child = tokio::process::Command::new(&self.program.path)
            .args(member.arguments(Some((&initial, false))))
            // The last one counts.
            .arg("--snapshot-count=1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("etcd has ended ({status})");
            }
            let mut there = std::fs::read_dir(member.data.join("member/snap")).into_iter().flatten().flatten();
            if there.any(|e| e.path().extension().is_some_and(|e| e == "snap")) && self.local.health().await.is_ok_and(|h| h.leader != 0) {
                break;
            }
            ensure!(begun.elapsed() < MADE, "etcd has made no cluster within {MADE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).context("etcd has ended")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        tokio::time::timeout(ENDED, child.wait()).await.context("etcd does not end")??;
        Ok(())
    }

    /// Puts it, which does not run, in the place of the one that was; what that has kept is set aside.
    pub fn put_in_place(&self) -> Result<()> {
        let Anew { member, before, .. } = self;
        if before.has_data() {
            let aside = before.data.with_extension("lost");
            if aside.exists() {
                std::fs::remove_dir_all(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
            }
            std::fs::rename(&before.data, &aside).with_context(|| format!("cannot set {} aside", before.data.display()))?;
            println!("what the member has kept is in {}", aside.display());
        }
        std::fs::rename(&member.data, &before.data).with_context(|| format!("cannot rename {}", member.data.display()))?;
        before.write_note(&etcd::Note::default())?;
        std::fs::File::open(&before.dir)?.sync_all()?;
        std::fs::remove_dir_all(&member.dir).with_context(|| format!("cannot remove {}", member.dir.display()))
    }
}

/// Whether the member's ports are free.
fn listening(member: &Member) -> Result<()> {
    for (flag, address, port) in [("etcd-client-port", Ipv4Addr::LOCALHOST, member.client_port), ("etcd-peer-port", member.address, member.peer_port)] {
        let free = std::net::TcpListener::bind((address, port));
        drop(free.with_context(|| format!("etcd cannot listen on {address}:{port} (ss -ltnp 'sport = :{port}' names who does): stop that, or give --{flag} another port"))?);
    }
    Ok(())
}

/// The bytes that a member's file may have: etcd takes the setting from the environment, as its process gets ours.
pub fn quota() -> Result<u64> {
    const NAME: &str = "ETCD_QUOTA_BACKEND_BYTES";
    let Some(text) = std::env::var_os(NAME) else { return Ok(store::etcd::DEFAULT_QUOTA) };
    let text = text.to_string_lossy();
    quota_of(&text).with_context(|| format!("{NAME}={text} in the environment is no number"))
}

fn quota_of(text: &str) -> Option<u64> {
    Some(match text.parse::<i64>().ok()? {
        0 => store::etcd::DEFAULT_QUOTA,
        // etcd has no limit then.
        number => u64::try_from(number).unwrap_or(u64::MAX),
    })
}

/// What is kept of how a member is started, for when it has to be without its server.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MemberPlace {
    name: String,
    address: Ipv4Addr,
    client_port: u16,
    peer_port: u16,
    program: Option<PathBuf>,
    pki: PathBuf,
}

const PLACE: &str = "place.json";

/// A client of the members of an etcd, for what the store does not do.
pub fn cluster_of(etcd: &Etcd) -> Result<Cluster> {
    let options = &etcd.options;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).context("etcd's certificates are no text");
    let access = match &options.ca {
        None => None,
        Some(ca) => {
            let certificate = options.identity.as_ref().map(|(cert, key)| anyhow::Ok((text(cert)?, text(key)?))).transpose()?;
            Some(etcd::Access { ca: text(ca)?, certificate })
        }
    };
    Ok(Cluster::new(&options.endpoints, access.as_ref())?)
}

/// What can be done about the members.
#[derive(Subcommand)]
pub enum EtcdCommand {
    /// List the members and how they are
    Members(Place),
    /// Take a member off the list: one whose machine is gone for good, or which never came
    Remove(RemoveArgs),
}

#[derive(Args)]
pub struct RemoveArgs {
    /// Its name, or its id
    pub member: String,
    #[command(flatten)]
    pub place: Place,
}

/// Does it.
pub fn run(command: EtcdCommand) -> Result<()> {
    crate::images::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            EtcdCommand::Members(place) => members(&cluster(&place)?).await,
            EtcdCommand::Remove(args) => remove(&cluster(&args.place)?, &args.member).await,
        }
    })
}

/// The cluster of the member that is here.
fn cluster(place: &Place) -> Result<Cluster> {
    let layout = Layout::new(&place.data_dir, &place.run_dir);
    let noted = engine::noted(&layout)?.filter(|_| layout.member().exists());
    let Some(noted) = noted else { bail!("no member of etcd is beside the server of {}: name another --data-dir", layout.data.display()) };
    // Below `etcd/` in the directory of certificates.
    let pki = noted.etcd_cafile.as_deref().and_then(|ca| ca.parent()?.parent()).map_or_else(|| layout.pki(), PathBuf::from);
    let access = certs::access(&pki, "etcd/healthcheck-client")?;
    Ok(Cluster::new(&noted.etcd_servers, Some(&access))?)
}

async fn members(cluster: &Cluster) -> Result<()> {
    let members = cluster.members().await?;
    println!("{:<18} {:<24} {:<28} {:<9} {:<9} HEALTH", "ID", "NAME", "PEERS", "ROLE", "VERSION");
    for member in members {
        let health = cluster.at(&member.client_urls).health().await;
        let role = match &health {
            _ if member.is_learner => "learner",
            Ok(health) if health.leader == member.id => "leader",
            _ => "member",
        };
        let (version, how) = match health {
            Ok(health) if health.leader == 0 => (health.version, "no leader".to_owned()),
            Ok(health) => (health.version, "serves".to_owned()),
            Err(_) if member.name.is_empty() => ("-".into(), "has never come".to_owned()),
            Err(error) => ("-".into(), error.to_string()),
        };
        println!("{:<18} {:<24} {:<28} {role:<9} {version:<9} {how}", format!("{:x}", member.id), member.name, member.peer_urls.join(","));
    }
    Ok(())
}

async fn remove(cluster: &Cluster, which: &str) -> Result<()> {
    let members = cluster.members().await?;
    let named: Vec<_> = members.iter().filter(|m| m.name == which || format!("{:x}", m.id) == which || m.peer_urls.iter().any(|u| u == which)).collect();
    let [member] = named[..] else {
        let all = members.iter().map(|m| format!("{} ({:x})", m.name, m.id)).collect::<Vec<_>>().join(", ");
        bail!("{} of etcd's members are called {which}; there are: {all}", named.len());
    };
    cluster.remove(member.id).await?;
    println!("{} ({:x}) is no member of etcd's cluster any more", member.name, member.id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_as_etcd_reads_it() {
        assert_eq!(["0", "8589934592", "-1"].map(|text| quota_of(text)), [Some(2 << 30), Some(8 << 30), Some(u64::MAX)]);
        assert_eq!(["", "8G"].map(|text| quota_of(text)), [None, None]);
    }
}
