//! Three servers, each with a member of etcd, and a worker, each in a network namespace of its own, joined by a bridge.
//! Under load through the worker's load balancer, the server whose member leads is killed with all its processes, cut
//! off, slowed down, and stopped in order, and a disk fills up; what clients saw is checked in the end, and how long writes took is told.
//!
//! `KNARR_ROUNDS` says how often the leader is killed (3).

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::hosts::{inside, ip, make_lan, make_space};
use e2e::{Env, begin, eventually, network_traces, output, output_with, run_steps, steps_of, traces};

const LAN: &str = "knarr-ha-lan";
const LAN_IP: &str = "198.18.11.1";
/// Hosts and their addresses: three masters and a worker.
const HOSTS: [(&str, &str); 4] = [("knarr-ha-a", "198.18.11.11"), ("knarr-ha-b", "198.18.11.12"), ("knarr-ha-c", "198.18.11.13"), ("knarr-ha-w", "198.18.11.14")];
const WORKER: usize = 3;
/// The master whose data are on a small disk of their own.
const FULL: usize = 2;
const BALANCER: &str = "6444";
const PORT: u16 = 16443;
/// At one of the masters at a time.
const VIP: &str = "198.18.11.100";
/// What all masters have in common.
const SHARED: [&str; 9] = ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub", "encryption.key", "etcd/ca.crt", "etcd/ca.key"];

fn main() {
    let test = begin(Test::new());
    let before = traces(Path::new("/run/knarr-ha-none")).unwrap_or_default();
    begin(test.take_away().and_then(|()| test.make_hosts()));
    let mut steps = steps_of(test, STEPS);
    steps.push((
        "nothing is left",
        Box::new(move || {
            test.take_away()?;
            let left: Vec<String> = traces(Path::new("/run/knarr-ha-none"))?.into_iter().filter(|t| !before.contains(t) && t.contains("knarr-ha-")).collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
            Ok(())
        }),
    ));
    run_steps(steps, &["the first server", "two more servers", "a worker", "load"]);
}

struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: std::thread::JoinHandle<()>,
    lines: Arc<Mutex<Vec<String>>>,
}

struct Test {
    env: Env,
    processes: Mutex<[Option<Child>; 4]>,
    load: Mutex<Option<Load>>,
    /// From a kill to the next write, in seconds.
    outages: Mutex<Vec<f64>>,
    /// When the virtual address was seen at two masters.
    doubled: Arc<Mutex<Vec<String>>>,
    container: Mutex<String>,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The same command on a host.
fn on(host: usize, command: &Command) -> Command {
    inside(HOSTS[host].0, command)
}

impl Test {
    fn new() -> Result<Test> {
        let env = Env::new("ha")?;
        Ok(Test { env, processes: Mutex::default(), load: Mutex::default(), outages: Mutex::default(), doubled: Arc::default(), container: Mutex::default() })
    }

    fn place(&self, host: usize) -> Env {
        let name = HOSTS[host].0;
        Env { data: PathBuf::from(format!("/var/lib/{name}")), run: PathBuf::from(format!("/run/{name}")), ..self.env.clone() }
    }

    fn make_hosts(&self) -> Result<()> {
        make_lan(LAN, LAN_IP)?;
        for (index, (name, address)) in HOSTS.iter().enumerate() {
            make_space(LAN, LAN_IP, index, name, address)?;
        }
        let data = self.place(FULL).data;
        std::fs::create_dir_all(&data)?;
        output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=600m", "tmpfs"]).arg(&data))?;
        Ok(())
    }

    /// Ends and removes everything, also what an earlier run has left.
    fn take_away(&self) -> Result<()> {
        if let Some(mut load) = self.load.lock().expect("not poisoned").take() {
            load.child.kill()?;
            load.child.wait()?;
        }
        for (host, (name, _)) in HOSTS.iter().enumerate() {
            if Path::new("/run/netns").join(name).exists() {
                output(&mut on(host, &self.place(host).knarr(&["down", "--purge"])))?;
                self.kill(host)?;
                ip(&format!("netns del {name}"))?;
            }
        }
        let data = self.place(FULL).data;
        if data.exists() {
            // Only this test mounts there; it is not mounted where it was cut short before that.
            let _ = Command::new("umount").arg("-q").arg(&data).status()?;
            std::fs::remove_dir(&data).with_context(|| format!("{} is not empty", data.display()))?;
        }
        if Path::new("/run/netns").join(LAN).exists() {
            ip(&format!("netns del {LAN}"))?;
        }
        Ok(())
    }

    fn command(&self, host: usize, more: &[&str]) -> Command {
        let place = self.place(host);
        let (name, address) = HOSTS[host];
        let mut command = Command::new(&place.binary);
        command.arg(if host == WORKER { "agent" } else { "server" });
        command.arg("--data-dir").arg(&place.data).arg("--run-dir").arg(&place.run);
        command.args(["--node-name", name, "--node-ip", address, "--secure-port", &PORT.to_string()]).args(more);
        command.env("HOME", &place.home);
        if host != WORKER {
            command.arg("--etcd").arg("--etcd-program").arg(place.tools.join("etcd"));
            command.args(["--control-plane-vip", VIP, "--snapshot-interval", "15s", "--snapshot-keep", "2"]);
        }
        on(host, &command)
    }

    fn log(&self, host: usize) -> PathBuf {
        self.env.home.join(format!("{}.log", HOSTS[host].0))
    }

    fn start(&self, host: usize, more: &[&str]) -> Result<()> {
        let log = std::fs::File::create(self.log(host))?;
        let child = self.command(host, more).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        self.processes.lock().expect("not poisoned")[host] = Some(child);
        eventually(HOSTS[host].0, 90, || {
            let log = std::fs::read_to_string(self.log(host))?;
            let ended = self.processes.lock().expect("not poisoned")[host].as_mut().map(Child::try_wait);
            ensure!(log.contains("ready in"), "{ended:?}: {log}");
            Ok(())
        })
    }

    /// As it would be started again by its unit.
    fn start_again(&self, host: usize) -> Result<()> {
        let first = format!("https://{}:2379", HOSTS[0].1);
        let join: &[&str] = if host == 0 { &[] } else { &["--etcd-join", &first] };
        self.start(host, join)
    }

    /// SIGKILL for everything on a host; when that was.
    fn kill(&self, host: usize) -> Result<f64> {
        let all = ip(&format!("netns pids {}", HOSTS[host].0))?;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            // Some end while others are killed.
            let _ = Command::new("kill").arg("-9").args(&all).stderr(Stdio::null()).status()?;
        }
        let moment = now();
        if let Some(mut child) = self.processes.lock().expect("not poisoned")[host].take() {
            child.wait()?;
        }
        Ok(moment)
    }

    /// kubectl on the worker, through its load balancer.
    fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.env.tools.join("kubectl"));
        command.arg(format!("--server=https://127.0.0.1:{BALANCER}")).args(args);
        command.env("HOME", &self.env.home).env("KUBECONFIG", self.place(0).data.join("admin.conf"));
        on(WORKER, &command)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(&mut self.kubectl_command(args)).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// The members as a master sees them: host, role, health.
    fn members(&self, through: usize) -> Result<Vec<(String, String, String)>> {
        let place = self.place(through);
        let mut command = Command::new(&place.binary);
        command.args(["etcd", "members", "--data-dir"]).arg(&place.data);
        let text = output(&mut on(through, &command))?;
        let line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some((words.get(1)?.to_string(), words.get(3)?.to_string(), words[5..].join(" ")))
        };
        Ok(text.lines().skip(1).filter_map(line).collect())
    }

    fn leader(&self) -> Result<usize> {
        let members = self.members(0).or_else(|_| self.members(1))?;
        let leader = members.iter().find(|(_, role, _)| role == "leader").with_context(|| format!("no leader: {members:?}"))?;
        HOSTS.iter().position(|(name, _)| *name == leader.0).context("an unknown leader")
    }

    fn all_serve(&self) -> Result<()> {
        eventually("all members", 40, || {
            let members = self.members(0)?;
            ensure!(members.len() == 3 && members.iter().all(|(_, role, health)| role != "learner" && health == "serves"), "{members:?}");
            Ok(())
        })
    }

    fn acks(&self) -> Result<Vec<(f64, f64)>> {
        let load = self.load.lock().expect("not poisoned");
        let lines = load.as_ref().context("there is no load")?.lines.lock().expect("not poisoned").clone();
        if let Some(failed) = lines.iter().find(|l| l.starts_with("FAILED")) {
            anyhow::bail!("{failed}");
        }
        let ack = |line: &String| {
            let mut words = line.strip_prefix("ack ")?.split(' ').map(str::parse::<f64>);
            Some((words.next()?.ok()?, words.next()?.ok()?))
        };
        Ok(lines.iter().filter_map(ack).collect())
    }

    /// How long after `moment` the first write was acknowledged that began then or later; and all writers go on.
    fn next_write(&self, moment: f64) -> Result<f64> {
        let outage = eventually("the next write", 30, || {
            let after = self.acks()?.into_iter().filter(|(begin, _)| *begin >= moment).map(|(_, end)| end - moment).fold(f64::INFINITY, f64::min);
            ensure!(after.is_finite(), "no write since");
            Ok(after)
        })?;
        Ok(outage)
    }
}

type Named = (&'static str, fn(&Test) -> Result<()>);
const STEPS: &[Named] = &[
    ("the first server", first),
    ("two more servers", more),
    ("a worker", worker),
    ("all stand behind the service kubernetes, and one of them leads", leases),
    ("the virtual address is at one of them", virtual_address),
    ("load", load),
    ("a server is told to end: nobody waits long", drain),
    ("the leader is killed with all its processes, again and again", kills),
    ("the leader is cut off", partition),
    ("the leader is slow, and stands still", slow),
    ("a disk is full", disk),
    ("the virtual address moves", moves),
    ("controllers and the scheduler go on elsewhere", failover),
    ("what clients saw", history),
    ("a snapshot is restored elsewhere", restored),
    ("most members are lost: one is restored, the others join it", quorum_lost),
    ("pods of the worker are untouched", untouched),
];

fn first(t: &Test) -> Result<()> {
    t.start(0, &[])
}

fn more(t: &Test) -> Result<()> {
    for host in [1, 2] {
        let (from, to) = (t.place(0).data, t.place(host).data);
        std::fs::create_dir_all(to.join("pki/etcd"))?;
        std::fs::copy(from.join("knarr.json"), to.join("knarr.json"))?;
        for file in SHARED {
            std::fs::copy(from.join("pki").join(file), to.join("pki").join(file))?;
        }
        t.start(host, &["--etcd-join", &format!("https://{}:2379", HOSTS[0].1)])?;
    }
    t.all_serve()
}

fn worker(t: &Test) -> Result<()> {
    let token = output(&mut t.place(0).knarr(&["token"]))?;
    t.start(WORKER, &["--server", &format!("https://{}:{PORT}", HOSTS[0].1), "--token", token.trim(), "--balancer-port", BALANCER])?;
    let nodes = t.kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(nodes.lines().count() == 4, "{nodes}");
    let pod = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "echo"}, "spec": {
        "selector": {"matchLabels": {"app": "echo"}}, "template": {"metadata": {"labels": {"app": "echo"}}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": "knarr-ha-w"}, "containers": [{"name": "echo", "image": "knarr.local/echo"}]}}}}"#;
    output_with(&mut t.kubectl_command(&["apply", "-f", "-"]), pod)?;
    t.kubectl(&["rollout", "status", "deployment/echo", "--timeout=60s"])?;
    *t.container.lock().expect("not poisoned") = container(t)?;
    Ok(())
}

/// Which container there is, and how often it was started again.
fn container(t: &Test) -> Result<String> {
    t.kubectl(&["get", "pods", "-l", "app=echo", "-o", "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.phase};{end}"])
}

fn leases(t: &Test) -> Result<()> {
    eventually("endpoints", 30, || {
        let slice = t.kubectl(&["get", "endpointslice", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}"])?;
        ensure!((0..3).all(|host| slice.contains(HOSTS[host].1)), "{slice}");
        let remembered = std::fs::read_to_string(t.place(WORKER).data.join("api-servers.json"))?;
        ensure!((0..3).all(|host| remembered.contains(HOSTS[host].1)), "{remembered}");
        Ok(())
    })?;
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        let holder = t.kubectl(&["-n", "kube-system", "get", "lease", lease, "-o", "jsonpath={.spec.holderIdentity}"])?;
        ensure!(holder.starts_with("knarr-ha-"), "{lease}: {holder}");
    }
    Ok(())
}

/// The process of the member beside a server.
fn member(t: &Test, host: usize) -> Result<String> {
    let file = t.place(host).data.join("etcd/pid");
    Ok(std::fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().to_string())
}

fn signal(process: &str, name: &str) -> Result<()> {
    output(Command::new("kill").args(["-s", name, process])).map(|_| ())
}

/// It answers late for a while, and then not at all: another one leads, and what it believed when it wakes is not told.
fn slow(t: &Test) -> Result<()> {
    let leader = t.leader()?;
    let process = member(t, leader)?;
    let moment = now();
    for _ in 0..8 {
        signal(&process, "STOP")?;
        std::thread::sleep(Duration::from_millis(300));
        signal(&process, "CONT")?;
        std::thread::sleep(Duration::from_millis(400));
    }
    let mut ends: Vec<f64> = t.acks()?.into_iter().map(|(_, end)| end).filter(|end| *end > moment).collect();
    ends.sort_by(f64::total_cmp);
    let longest = ends.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
    println!("    {} slow: {} writes in {:.1} s, the longest pause {longest:.3} s", HOSTS[leader].0, ends.len(), now() - moment);
    ensure!(longest < 3.0 && !ends.is_empty(), "nobody wrote for {longest:.1} s");
    let leader = t.leader()?;
    let process = member(t, leader)?;
    let moment = now();
    signal(&process, "STOP")?;
    let written = t.next_write(moment);
    std::thread::sleep(Duration::from_secs(4));
    signal(&process, "CONT")?;
    let outage = written?;
    println!("    {} stands still: {outage:.3} s until the next write", HOSTS[leader].0);
    ensure!(outage < 20.0, "writes waited for {outage:.1} s");
    t.all_serve()?;
    t.next_write(now()).map(|_| ())
}

/// The member there cannot even start; the others go on, and it catches up once there is space.
fn disk(t: &Test) -> Result<()> {
    let filler = t.place(FULL).data.join("filler");
    let said = Command::new("dd").args(["if=/dev/zero", "bs=64K"]).arg(format!("of={}", filler.display())).output()?;
    ensure!(String::from_utf8_lossy(&said.stderr).contains("No space left"), "the disk is not full: {said:?}");
    signal(&member(t, FULL)?, "KILL")?;
    let moment = now();
    let outage = t.next_write(moment);
    std::thread::sleep(Duration::from_secs(8));
    let later = t.next_write(now());
    let serving = t.members(0)?.iter().filter(|(_, _, health)| health == "serves").count();
    std::fs::remove_file(&filler)?;
    println!("    {} without space: {:.3} s until the next write; {serving} members serve meanwhile", HOSTS[FULL].0, outage?);
    later?;
    t.all_serve()?;
    let readyz = format!("https://{}:{PORT}/readyz", HOSTS[FULL].1);
    eventually("the server on it", 40, || {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "2", "--noproxy", "*", "--cacert"]).arg(t.place(0).data.join("pki/ca.crt")).arg(&readyz);
        let text = output(&mut on(WORKER, &command))?;
        ensure!(text == "ok", "{text}");
        Ok(())
    })?;
    t.next_write(now()).map(|_| ())
}

/// The masters that have the virtual address.
fn holders() -> Vec<usize> {
    (0..3).filter(|host| ip(&format!("-n {} -o addr show dev eth0", HOSTS[*host].0)).is_ok_and(|text| text.contains(&format!(" {VIP}/32")))).collect()
}

/// What answers at the virtual address, asked from the bridge.
fn at_vip(t: &Test) -> Result<usize> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", LAN, "curl", "-sS", "--max-time", "1", "--noproxy", "*", "--cacert"]).arg(t.place(0).data.join("pki/ca.crt")).arg(format!("https://{VIP}:{PORT}/readyz"));
    let text = output(&mut command)?;
    ensure!(text.trim() == "ok", "{text}");
    let holders = holders();
    ensure!(holders.len() == 1, "it is at {holders:?}");
    Ok(holders[0])
}

fn virtual_address(t: &Test) -> Result<()> {
    eventually("the virtual address", 20, || at_vip(t))?;
    let doubled = t.doubled.clone();
    std::thread::spawn(move || {
        while Path::new("/run/netns").join(LAN).exists() {
            // They are asked one after the other: it may have moved in between.
            if holders().len() > 1 && holders().len() > 1 {
                doubled.lock().expect("not poisoned").push(format!("{:?}", SystemTime::now()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    Ok(())
}

fn moves(t: &Test) -> Result<()> {
    for killed in [true, false] {
        let holder = eventually("the virtual address", 20, || at_vip(t))?;
        let begun = Instant::now();
        if killed {
            t.kill(holder)?;
        } else {
            let mut child = t.processes.lock().expect("not poisoned")[holder].take().context("it does not run")?;
            output(Command::new("kill").arg(child.id().to_string()))?;
            child.wait()?;
        }
        let now = eventually("the virtual address elsewhere", 20, || {
            let now = at_vip(t)?;
            ensure!(now != holder, "it is still at {}", HOSTS[holder].0);
            Ok(now)
        })?;
        println!("    {} was {}: {VIP} answers from {} after {:.1?}", HOSTS[holder].0, if killed { "killed" } else { "told to end" }, HOSTS[now].0, begun.elapsed());
        t.start_again(holder)?;
        t.all_serve()?;
    }
    let doubled = t.doubled.lock().expect("not poisoned");
    ensure!(doubled.is_empty(), "it was at two masters: {doubled:?}");
    Ok(())
}

fn failover(t: &Test) -> Result<()> {
    let read = || t.kubectl(&["-n", "kube-system", "get", "lease", "kube-controller-manager", "-o", "jsonpath={.spec.holderIdentity} {.spec.renewTime}"]);
    let holder = |text: &str| text.split(' ').next().unwrap_or_default().to_string();
    // One that lives: the last one may have been killed a moment ago.
    let before = eventually("a leader", 40, || {
        let one = read()?;
        std::thread::sleep(Duration::from_secs(4));
        let other = read()?;
        ensure!(one != other && holder(&one) == holder(&other), "{one} is not renewed");
        Ok(holder(&one))
    })?;
    let host = HOSTS.iter().position(|(name, _)| before.starts_with(&format!("{name}_"))).with_context(|| format!("{before} is nobody"))?;
    let begun = Instant::now();
    t.kill(host)?;
    let deployment = r#"{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "later"}, "spec": {
        "selector": {"matchLabels": {"app": "later"}}, "template": {"metadata": {"labels": {"app": "later"}}, "spec": {
        "nodeSelector": {"kubernetes.io/hostname": "knarr-ha-w"}, "containers": [{"name": "echo", "image": "knarr.local/echo"}]}}}}"#;
    output_with(&mut t.kubectl_command(&["apply", "-f", "-"]), deployment)?;
    t.kubectl(&["rollout", "status", "deployment/later", "--timeout=60s"])?;
    let after = holder(&read()?);
    ensure!(after != before, "{before} is gone, and still holds the lease");
    println!("    {} was killed: a new deployment runs after {:.1?}", HOSTS[host].0, begun.elapsed());
    t.start_again(host)?;
    t.all_serve()
}

fn restored(t: &Test) -> Result<()> {
    let dir = t.place(1).data.join("snapshots");
    let mut all: Vec<PathBuf> = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "snapshot")).collect();
    all.sort();
    ensure!((1..=2).contains(&all.len()), "{all:?}");
    let elsewhere = tempfile(t, "restored")?;
    std::fs::create_dir_all(elsewhere.join("pki"))?;
    std::fs::copy(t.place(1).data.join("knarr.json"), elsewhere.join("knarr.json"))?;
    std::fs::copy(t.place(1).data.join("pki/encryption.key"), elsewhere.join("pki/encryption.key"))?;
    let run = |args: &[&str]| output(Command::new(&t.env.binary).args(args).arg("--data-dir").arg(&elsewhere));
    let told = run(&["store", "restore", &all[0].to_string_lossy()])?;
    ensure!(told.contains("objects are in") && !told.contains("keys that are not here"), "{told}");
    let verified = run(&["store", "verify"])?;
    ensure!(verified.contains("values at revision"), "{verified}");
    println!("    {}", told.lines().last().unwrap_or_default());
    std::fs::remove_dir_all(&elsewhere)?;
    Ok(())
}

fn quorum_lost(t: &Test) -> Result<()> {
    let list: serde_json::Value = serde_json::from_str(&t.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"])?)?;
    let old = list["metadata"]["resourceVersion"].as_str().context("no version")?.to_string();
    let snapshot = t.env.home.join("lost.snapshot");
    let mut command = t.place(1).knarr(&["store", "snapshot", "--force"]);
    output(&mut on(1, command.arg(&snapshot)))?;
    for host in 0..3 {
        t.kill(host)?;
    }
    let mut command = t.place(1).knarr(&["store", "restore", "--new-member"]);
    command.arg(&snapshot).args(["--bump-revision", "5000"]);
    let refused = output(&mut on(1, &command));
    ensure!(matches!(&refused, Err(error) if format!("{error:#}").contains("say --force")), "{refused:?}");
    let begun = Instant::now();
    let told = output(&mut on(1, command.arg("--force")))?;
    ensure!(told.contains("objects are in etcd") && told.contains("--etcd-join"), "{told}");
    let restored = begun.elapsed();
    t.start(1, &[])?;
    println!("    restored within {restored:.1?}; the first one serves after {:.1?}", begun.elapsed());
    let join = format!("https://{}:2379", HOSTS[1].1);
    for host in [0, 2] {
        t.start(host, &["--etcd-join", &join])?;
    }
    t.all_serve()?;
    eventually("the worker", 30, || {
        let there = t.kubectl(&["get", "configmap", "count-0", "-o", "name"])?;
        ensure!(there.contains("count-0"), "{there}");
        Ok(())
    })?;
    let watch = t.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=2&resourceVersion={old}")]);
    let said = watch.unwrap_or_else(|error| format!("{error:#}"));
    ensure!(said.contains("410") || said.contains("Expired") || said.contains("too old"), "a watch from {old} on goes on: {said}");
    eventually("nodes", 60, || {
        let ready = t.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"])?;
        ensure!(ready.split(' ').filter(|s| *s == "True").count() == 4, "{ready}");
        Ok(())
    })
}

/// A directory that is not there.
fn tempfile(t: &Test, name: &str) -> Result<PathBuf> {
    let path = t.env.home.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path)?;
    }
    Ok(path)
}

fn load(t: &Test) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/masters.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(BALANCER).arg(t.place(0).data.join("pki"));
    let mut child = on(WORKER, &command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("python3")?;
    let (lines, output) = (Arc::new(Mutex::new(Vec::new())), child.stdout.take().context("no output")?);
    let kept = lines.clone();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            kept.lock().expect("not poisoned").push(line);
        }
    });
    let stdin = child.stdin.take();
    *t.load.lock().expect("not poisoned") = Some(Load { child, stdin, reader, lines });
    let begun = now();
    t.next_write(begun).map(|_| ())
}

fn drain(t: &Test) -> Result<()> {
    // The one that the worker is connected to, for one; all of them, to be sure.
    for host in 0..3 {
        let pid = t.processes.lock().expect("not poisoned")[host].as_ref().map(Child::id).context("it does not run")?;
        let begun = Instant::now();
        let moment = now();
        output(Command::new("kill").arg(pid.to_string()))?;
        if let Some(mut child) = t.processes.lock().expect("not poisoned")[host].take() {
            let status = child.wait()?;
            ensure!(status.success(), "{status}");
        }
        let took = begun.elapsed();
        let ended = now();
        std::thread::sleep(Duration::from_secs(1));
        // Between two acknowledged writes of all, while it ended.
        let mut ends: Vec<f64> = t.acks()?.into_iter().map(|(_, end)| end).filter(|end| *end > moment - 1.0 && *end < ended + 1.0).collect();
        ends.sort_by(f64::total_cmp);
        let longest = ends.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        println!("    {} ended within {took:.1?}; the longest pause between writes: {longest:.3} s", HOSTS[host].0);
        ensure!(longest < 3.0, "nobody wrote for {longest:.1} s");
        t.start_again(host)?;
        t.all_serve()?;
    }
    Ok(())
}

fn kills(t: &Test) -> Result<()> {
    let rounds = std::env::var("KNARR_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    for _ in 0..rounds {
        let leader = t.leader()?;
        let moment = t.kill(leader)?;
        let outage = t.next_write(moment)?;
        println!("    {} killed: {outage:.3} s until the next write", HOSTS[leader].0);
        t.outages.lock().expect("not poisoned").push(outage);
        std::thread::sleep(Duration::from_secs(2));
        t.start_again(leader)?;
        t.all_serve()?;
        // It is up to date, and ready for the next one.
        std::thread::sleep(Duration::from_secs(1));
    }
    let mut outages = t.outages.lock().expect("not poisoned").clone();
    outages.sort_by(f64::total_cmp);
    let at = |part: f64| outages[((outages.len() - 1) as f64 * part).round() as usize];
    println!("    leader killed until the next write: p50 {:.3} s, p99 {:.3} s, longest {:.3} s of {rounds}", at(0.5), at(0.99), at(1.0));
    ensure!(at(0.99) <= 5.0, "writes waited for {:.1} s", at(0.99));
    Ok(())
}

fn partition(t: &Test) -> Result<()> {
    let leader = t.leader()?;
    let moment = now();
    ip(&format!("-n {LAN} link set p{leader} down"))?;
    let outage = t.next_write(moment)?;
    println!("    {} cut off: {outage:.3} s until the next write", HOSTS[leader].0);
    std::thread::sleep(Duration::from_secs(8));
    ip(&format!("-n {LAN} link set p{leader} up"))?;
    ensure!(outage < 10.0, "writes waited for {outage:.1} s");
    t.all_serve()?;
    t.next_write(now()).map(|_| ())
}

fn history(t: &Test) -> Result<()> {
    let mut load = t.load.lock().expect("not poisoned").take().context("there is no load")?;
    drop(load.stdin.take());
    let status = load.child.wait()?;
    // All that it said has been read then.
    if load.reader.join().is_err() {
        anyhow::bail!("the load's output could not be read");
    }
    let lines = load.lines.lock().expect("not poisoned");
    let waits: Vec<f64> = lines.iter().filter_map(|l| l.strip_prefix("read ")?.split_once(' ')).filter_map(|(a, b)| Some(b.parse::<f64>().ok()? - a.parse::<f64>().ok()?)).collect();
    let longest = waits.iter().copied().fold(0.0, f64::max);
    println!("    {}; {} reads were tried again, the longest for {longest:.3} s", lines.last().cloned().unwrap_or_default(), waits.len());
    let failed: Vec<&String> = lines.iter().filter(|l| l.starts_with("FAILED")).collect();
    ensure!(status.success() && failed.is_empty(), "{status}: {failed:?}");
    let written = lines.iter().filter(|l| l.starts_with("ack ")).count();
    ensure!(written > 200, "only {written} writes: that tests nothing");
    Ok(())
}

fn untouched(t: &Test) -> Result<()> {
    let now = container(t)?;
    let before = t.container.lock().expect("not poisoned").clone();
    ensure!(now == before, "{before} has become {now}");
    let links = network_traces(Some(HOSTS[WORKER].0))?;
    ensure!(links.iter().any(|l| l.starts_with("nf_tables")), "{links:?}");
    Ok(())
}
