//! Figures of whole clusters: how fast they come to be, what an idle agent takes, how long a snapshot of a gigabyte takes
//! and until it is served again. `cargo xtask bench clusters` runs it; words name the parts that are wanted. Prints a line
//! for each figure: name, tab, value.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::hosts::Hosts;
use e2e::{Env, eventually, output};
use serde_json::json;
use sha2::{Digest, Sha256};

const NETWORK: &str = "198.18.17";
const MASTERS: [&str; 3] = ["bench-m1", "bench-m2", "bench-m3"];
const WORKERS: [&str; 3] = ["bench-w1", "bench-w2", "bench-w3"];
const ROUNDS: usize = 3;
/// How long an agent is left alone before it is looked at.
const IDLE: Duration = Duration::from_secs(90);
/// ConfigMaps of the snapshot, each of some 4 KB.
const OBJECTS: u64 = 250_000;
const PORT: u16 = 21443;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let parts: [(&str, fn(&Env) -> Result<()>); 4] = [("one", one), ("six", six), ("embedded", embedded), ("etcd", etcd)];
    let env = Env::on_port("bench-clusters", PORT)?;
    let bin = env.home.join("bin");
    fs::create_dir_all(&bin)?;
    for (name, program) in [("kubeadm", env.binary.clone()), ("knarr", env.binary.clone()), ("etcd", env.tools.join("etcd"))] {
        ensure!(program.exists(), "{} is missing", program.display());
        // Of an earlier run.
        let _ = fs::remove_file(bin.join(name));
        symlink(program, bin.join(name))?;
    }
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            part(&env).context(name)?;
        }
    }
    Ok(())
}

fn figure(name: &str, value: String) {
    println!("{name}\t{value}");
}

fn seconds(all: &mut [f64]) -> String {
    all.sort_by(f64::total_cmp);
    match &*all {
        [only] => format!("{only:.2} s"),
        [first, .., last] => format!("{:.2} s ({first:.2} to {last:.2})", all[all.len() / 2]),
        [] => String::new(),
    }
}

/// The command by which workers, or control planes, join, as `init` printed it.
fn join_line(said: &str, control_plane: bool) -> Result<String> {
    let text = said.replace("\\\n", " ");
    let lines = text.lines().filter(|l| l.trim_start().starts_with("kubeadm join"));
    let found = lines.filter(|l| l.contains("--control-plane") == control_plane).last().context("init printed no join command")?;
    Ok(found.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn ready(hosts: &Hosts, count: usize) -> Result<()> {
    hosts.until(MASTERS[0], "kubectl get nodes", 60, |text| text.matches(" Ready ").count() == count).map(|_| ())
}

/// A control plane with the embedded store, and a worker.
fn one(env: &Env) -> Result<()> {
    let (mut inits, mut joins) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let hosts = Hosts::new(env, "knarr-bnc", NETWORK, &[MASTERS[0], WORKERS[0]])?;
        let begun = Instant::now();
        let said = hosts.run(MASTERS[0], "kubeadm init --pod-network-cidr 10.244.0.0/16")?;
        ready(&hosts, 1)?;
        inits.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        hosts.run(WORKERS[0], &join_line(&said, false)?)?;
        ready(&hosts, 2)?;
        joins.push(begun.elapsed().as_secs_f64());
        if round + 1 == ROUNDS {
            std::thread::sleep(IDLE);
            idle(&hosts)?;
        }
    }
    figure("init until Ready, embedded", seconds(&mut inits));
    figure("worker join until Ready", seconds(&mut joins));
    Ok(())
}

/// The agent alone, with nothing deployed; then shims beside it.
fn idle(hosts: &Hosts) -> Result<()> {
    let all = |role: &str| -> Result<Vec<u64>> { processes(&hosts.data(WORKERS[0]), role).into_iter().map(pss).collect() };
    let agent = all("agent")?;
    ensure!(agent.len() == 1, "{} agents run", agent.len());
    ensure!(all("shim")?.is_empty(), "pods run on a worker of an empty cluster");
    figure("worker agent, idle", format!("{:.1} MB", agent[0] as f64 / 1e6));
    hosts.run(MASTERS[0], "kubectl create deployment shims --image=knarr.local/echo --replicas=5")?;
    hosts.run(MASTERS[0], "kubectl rollout status deployment/shims --timeout=60s")?;
    std::thread::sleep(IDLE / 3);
    let (agent, shims) = (all("agent")?, all("shim")?);
    figure("the same with five pods; their shims, each", format!("{:.1} MB; {:.2} MB", agent[0] as f64 / 1e6, shims.iter().sum::<u64>() as f64 / 1e6 / shims.len().max(1) as f64));
    Ok(())
}

/// Three control planes with etcd and three workers, one after the other.
fn six(env: &Env) -> Result<()> {
    let names: Vec<&str> = MASTERS.into_iter().chain(WORKERS).collect();
    let (mut inits, mut alls) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let hosts = Hosts::new(env, "knarr-bnc", NETWORK, &names)?;
        let own = hosts.address(MASTERS[0]).to_owned();
        let begun = Instant::now();
        let said = hosts.run(MASTERS[0], &format!("kubeadm init --control-plane-endpoint={own}:6443 --upload-certs --pod-network-cidr=10.244.0.0/16"))?;
        ready(&hosts, 1)?;
        inits.push(begun.elapsed().as_secs_f64());
        for master in &MASTERS[1..] {
            hosts.run(master, &join_line(&said, true)?)?;
        }
        for worker in WORKERS {
            hosts.run(worker, &join_line(&said, false)?)?;
        }
        ready(&hosts, 6)?;
        alls.push(begun.elapsed().as_secs_f64());
    }
    figure("init until Ready, etcd", seconds(&mut inits));
    figure("3 + 3 nodes in sequence", seconds(&mut alls));
    Ok(())
}

/// A server in a data directory of its own; nothing of it stays.
struct Server<'a> {
    env: &'a Env,
    more: Vec<String>,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // What went wrong is told by then.
        let _ = output(&mut self.env.knarr(&["down", "--purge"]));
    }
}

impl Server<'_> {
    fn up(&self) -> Result<Child> {
        let mut command = self.env.knarr(&["up", "--disable", "controllers", "--disable", "scheduler"]);
        let log = File::create(self.env.home.join("up.log"))?;
        command.args(&self.more).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("knarr up")
    }

    /// Starts it; returns when it says that it can serve.
    fn serves(&self) -> Result<()> {
        let mut up = self.up()?;
        let url = format!("https://127.0.0.1:{}/readyz", self.env.port);
        let answer = eventually("the server", 120, || {
            // Its own word on why it does not start comes first.
            ensure!(e2e::curl(&["-k", "-f", &url])? == "ok", "not ready");
            Ok(())
        });
        let log = || fs::read_to_string(self.env.home.join("up.log")).unwrap_or_default();
        answer.with_context(log)?;
        ensure!(up.wait()?.success(), "{}", log());
        Ok(())
    }

    fn objects(&self) -> Result<String> {
        let path = "/api/v1/namespaces/many/configmaps?limit=1";
        let list: serde_json::Value = serde_json::from_str(&self.env.client("kubectl").run(&["get", "--raw", path])?)?;
        Ok((1 + list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0)).to_string())
    }
}

fn embedded(env: &Env) -> Result<()> {
    store(env, "embedded", Vec::new(), &[])
}

fn etcd(env: &Env) -> Result<()> {
    let more = ["--etcd", "--etcd-client-port", "22379", "--etcd-peer-port", "22380", "--etcd-program"].map(String::from);
    let program = env.tools.join("etcd").display().to_string();
    store(env, "etcd", more.into_iter().chain([program]).collect(), &["--new-member"])
}

fn store(env: &Env, engine: &str, more: Vec<String>, restore: &[&str]) -> Result<()> {
    let server = Server { env, more };
    output(&mut env.knarr(&["down", "--purge"]))?;
    let dir = PathBuf::from("/var/lib/knarr-bench-snapshots");
    fs::create_dir_all(&dir)?;
    let (first, second) = (dir.join("first"), dir.join("second"));
    let size = snapshot_of_many(&first, OBJECTS)?;
    server.serves()?;
    let (mut restores, mut servings, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut restore_peak, mut snapshot_peak) = (0, 0);
    for _ in 0..ROUNDS {
        output(&mut env.knarr(&["down"]))?;
        let begun = Instant::now();
        let mut command = env.knarr(&["store", "restore", "--force"]);
        restore_peak = measured(command.args(restore).arg(&first))?.max(restore_peak);
        restores.push(begun.elapsed().as_secs_f64());
        server.serves()?;
        servings.push(begun.elapsed().as_secs_f64());
        let count = server.objects()?;
        ensure!(count == OBJECTS.to_string(), "{count} objects are served");
        let begun = Instant::now();
        let mut command = env.knarr(&["store", "snapshot", "--force"]);
        snapshot_peak = measured(command.arg(&second))?.max(snapshot_peak);
        snapshots.push(begun.elapsed().as_secs_f64());
    }
    fs::remove_dir_all(&dir)?;
    let gigabytes = size as f64 / 1e9;
    figure(&format!("snapshot of {gigabytes:.2} GB while it is served, {engine}"), seconds(&mut snapshots));
    figure("the same: memory of the command", format!("{:.0} MB", snapshot_peak as f64 / 1e6));
    figure(&format!("restoring it until it is served, {engine}"), seconds(&mut servings));
    figure("the same: the command alone; its memory", format!("{}; {:.0} MB", seconds(&mut restores), restore_peak as f64 / 1e6));
    Ok(())
}

/// Runs a command to its end; the most memory that it had.
fn measured(command: &mut Command) -> Result<u64> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut peak = 0;
    while child.try_wait()?.is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let most = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(most.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(peak)
}

/// Writes a snapshot of many objects in knarr's format (`apiserver::offline`), taken just now; its size.
fn snapshot_of_many(path: &Path, objects: u64) -> Result<u64> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut digest = Sha256::new();
    let mut write = |bytes: &[u8]| {
        digest.update(bytes);
        file.write_all(bytes)
    };
    let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let taken = output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    let header = json!({"revision": objects + 10, "engine": "embedded", "taken": taken.trim(), "prefix": "/registry"});
    write(b"knarr snapshot 1\n")?;
    write(&sized(header.to_string().as_bytes()))?;
    for n in 0..objects {
        // Text that a compressor makes half as long, as it does with what clusters hold.
        let noise: String = (0..116).map(|i| hex::encode(&Sha256::digest((n * 116 + i).to_be_bytes())[..16])).collect();
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": format!("map-{n:07}"), "namespace": "many", "uid": format!("{n:08x}-0000-4000-8000-000000000000"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"part": (n % 50).to_string()}}, "data": {"text": noise}});
        // Revisions in another order than keys, each once: 999983 is a prime, and no divisor of the number of objects.
        let revision = (10 + n * 999_983 % objects) as i64;
        write(&[1])?;
        write(&sized(format!("/registry/configmaps/many/map-{n:07}").as_bytes()))?;
        write(&sized(object.to_string().as_bytes()))?;
        for number in [revision, revision, 1] {
            write(&number.to_be_bytes())?;
        }
    }
    write(&[0])?;
    write(&objects.to_be_bytes())?;
    let sum = digest.finalize();
    file.write_all(&sum)?;
    file.into_inner().context("the snapshot")?.sync_all()?;
    Ok(fs::metadata(path)?.len())
}

/// Processes of the copy of knarr below this data directory that have this role.
fn processes(data: &str, role: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|p| p.file_name().to_str()?.parse().ok());
    let ours = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|b| *b == 0).map(String::from_utf8_lossy);
        words.next().is_some_and(|program| program.starts_with(&format!("{data}/bin/knarr-"))) && words.next().is_some_and(|word| word == role)
    };
    numbers.filter(ours).collect()
}

/// The share of a process's memory that is its own, shared pages in parts.
fn pss(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? * 1024)
}
