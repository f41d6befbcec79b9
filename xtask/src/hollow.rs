//! A large cluster of hollow nodes (nodes with no kubelet behind them): what the scheduler binds and the controllers
//! create and delete beside an API server, each as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::{median, rollup};
use crate::{release_binary, tools};

const DATA: &str = "/var/lib/knarr-hollow";
const RUN: &str = "/run/knarr-hollow";
const NODES: usize = 5_000;
const PODS: usize = 10_000;
const MANY_PODS: usize = 150_000;

/// Measures and prints a table.
pub fn run() -> Result<()> {
    let tools = tools::install()?;
    let binary = release_binary()?;
    let knarr = |args: &[&str]| -> Result<()> {
        let output = Command::new(&binary).args(args).args(["--data-dir", DATA, "--run-dir", RUN]).env("HOME", RUN).output()?;
        ensure!(output.status.success(), "knarr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    fs::create_dir_all(RUN)?;
    knarr(&["down", "--purge"])?;
    knarr(&["up", "--secure-port", "18443", "--kubelet-port", "18250", "--node-name", "real", "--disable", "controllers", "--disable", "scheduler"])?;
    let cluster = Cluster { binary: binary.clone(), kubectl: tools.dir.join("kubectl") };
    let outcome = cluster.measure(&tools.dir.join("venv/bin/python3"));
    // Whatever happened, nothing stays behind.
    knarr(&["down", "--purge"])?;
    outcome
}

struct Cluster {
    binary: std::path::PathBuf,
    kubectl: std::path::PathBuf,
}

/// A component that ends with its scope.
struct Component(Child);

impl Drop for Component {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The script that plays clients and kubelets.
struct Script {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    process: Component,
}

impl Script {
    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").with_context(|| line.to_string())
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the script ended: {:?}", self.process.0.wait());
        Ok(line.trim().to_string())
    }

    /// Seconds that it took.
    fn ask(&mut self, line: &str) -> Result<f64> {
        self.say(line)?;
        self.hear()?.parse().with_context(|| line.to_string())
    }
}

fn row(name: &str, goal: &str, value: String) {
    println!("| {name} | {goal} | {value} |");
}

impl Cluster {
    fn component(&self, name: &str, args: &[&str]) -> Result<Component> {
        let log = fs::File::create(format!("{RUN}/{name}.log"))?;
        let config = format!("--kubeconfig={DATA}/admin.conf");
        let command = Command::new(&self.binary).arg(name).args([&config, "--secure-port=0"]).args(args).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Component(command.with_context(|| name.to_string())?))
    }

    fn scheduler(&self) -> Result<Component> {
        self.component("kube-scheduler", &["--leader-elect=false"])
    }

    fn kubectl(&self, args: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new(&self.kubectl).args(args).env("KUBECONFIG", format!("{DATA}/admin.conf")).output()?;
        ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    fn measure(&self, python: &std::path::Path) -> Result<()> {
        // The nodes have no heartbeat: who watches those would taint them.
        let controllers = self.component("kube-controller-manager", &["--leader-elect=false", "--controllers=*,-node-lifecycle-controller"])?;
        let mut script = Command::new(python)
            .args(["-c", include_str!("hollow.py")])
            .env("KUBECONFIG", format!("{DATA}/admin.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (script.stdin.take().context("its input")?, script.stdout.take().context("its output")?);
        let mut script = Script { input, output: BufReader::new(output), process: Component(script) };
        self.kubectl(&["cordon", "real"])?;
        script.ask(&format!("nodes {NODES}"))?;
        println!("| {NODES} hollow nodes | to reach | measured |\n|---|---|---|");

        for (kind, goal) in [("basic", "≥ 4,000 pods/s"), ("anti-affinity", "≥ 1,500 pods/s"), ("spread", "≥ 1,500 pods/s")] {
            script.ask(&format!("namespace {kind}"))?;
            script.ask(&format!("pods {kind} {PODS} {kind}"))?;
            let rate = self.bound(&mut script, PODS)?;
            row(&format!("{PODS} pods bound, {kind}"), goal, format!("{rate:.0} pods/s"));
            script.ask(&format!("gone {kind}"))?;
        }

        let scheduler = self.scheduler()?;
        script.ask("namespace big")?;
        let seconds = script.ask(&format!("deployment big {PODS}"))?;
        row(&format!("deployment of {PODS} replicas until all pods are stored"), "≤ 5 s", format!("{seconds:.1} s"));
        // Bound pods are what a kubelet has to finish.
        while !String::from_utf8(self.kubectl(&["get", "pods", "-n", "big", "--field-selector=spec.nodeName=", "-o", "name"])?)?.trim().is_empty() {
            sleep(Duration::from_millis(200));
        }
        let seconds = script.ask("gone big")?;
        row("deleting its namespace, pods ended by the bench", "≤ 10 s", format!("{seconds:.1} s"));
        drop(scheduler);

        script.ask("priority high 1000")?;
        script.ask("namespace low")?;
        script.ask(&format!("pods low {} low-{NODES}", NODES * 4))?;
        script.ask("namespace high")?;
        script.ask(&format!("pods high {NODES} high"))?;
        let rate = self.bound(&mut script, NODES)?;
        row(&format!("{NODES} pods that preempt three each"), "≥ 500 pods/s", format!("{rate:.0} pods/s"));
        script.ask("gone high")?;
        script.ask("gone low")?;

        self.leader_loss()?;

        script.ask("namespace many")?;
        script.ask(&format!("pods many {MANY_PODS} placed-{NODES}"))?;
        let scheduler = self.scheduler()?;
        sleep(Duration::from_secs(20));
        let memory = rollup(scheduler.0.id(), &["Pss:"])? + rollup(controllers.0.id(), &["Pss:"])?;
        row(&format!("{MANY_PODS} pods: memory of scheduler and controllers"), "≤ 800 MB", format!("{:.0} MB", memory as f64 / 1e6));
        Ok(())
    }

    /// Starts a scheduler with these pods waiting: how many it binds a second, as a watch sees it, from the first to the last.
    fn bound(&self, script: &mut Script, pods: usize) -> Result<f64> {
        script.say(&format!("bound {pods}"))?;
        ensure!(script.hear()? == "watching", "the script does not watch");
        let _scheduler = self.scheduler()?;
        Ok(pods as f64 / script.hear()?.parse::<f64>()?)
    }

    /// From the end of a lost leader's lease to the standby's first write.
    fn leader_loss(&self) -> Result<()> {
        let lease = || -> Result<Value> { Ok(serde_json::from_slice(&self.kubectl(&["get", "lease", "-n", "kube-system", "kube-scheduler", "-o", "json"])?)?) };
        let mut times = Vec::new();
        for _ in 0..3 {
            let leader = self.component("kube-scheduler", &["--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=1s"])?;
            sleep(Duration::from_secs(6));
            let standby = self.component("kube-scheduler", &["--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=1s"])?;
            sleep(Duration::from_secs(2));
            let before = lease()?;
            drop(leader);
            let begin = Instant::now();
            let after = loop {
                let now = lease()?;
                if now["spec"]["holderIdentity"] != before["spec"]["holderIdentity"] {
                    break now;
                }
                ensure!(begin.elapsed() < Duration::from_secs(30), "nobody takes over");
                sleep(Duration::from_millis(50));
            };
            let time = |lease: &Value, field: &str| -> Result<jiff::Timestamp> { Ok(lease["spec"][field].as_str().context("a time")?.parse()?) };
            // The leader may have renewed it once more after we looked: that makes the figure worse, not better.
            let end = time(&before, "renewTime")? + jiff::SignedDuration::from_secs(4);
            let late = time(&after, "acquireTime")?.duration_since(end).as_secs_f64().max(0.0);
            times.push(Duration::from_secs_f64(late));
            drop(standby);
        }
        row("leader lost: from the end of its lease until the standby leads", "≤ 2 s", format!("{:.2} s", median(&mut times).as_secs_f64()));
        Ok(())
    }
}
