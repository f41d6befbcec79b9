//! The figures, measured as whole processes on an empty data directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{release_binary, root, tools};

/// Where all that a server keeps is, on disk.
const DISK: &str = "/var/lib/knarr-bench";
/// A tmpfs of ours: for the run directory, as `/run` is one under systemd, and for data that shall be in memory.
const MEMORY: &str = "/run/knarr-bench";
const RUN: &str = "/run/knarr-bench/run";
const REPEATS: usize = 5;

struct Bench {
    binary: PathBuf,
    kubectl: PathBuf,
    data: &'static str,
    rows: Vec<(String, String, String)>,
}

/// Measures, prints the table and writes it to docs/benchmarks.md.
pub fn run() -> Result<()> {
    let tools = tools::install()?;
    let mut bench = Bench { binary: release_binary()?, kubectl: tools.dir.join("kubectl"), data: DISK, rows: Vec::new() };
    fs::create_dir_all(MEMORY)?;
    shell("mount", &["-t", "tmpfs", "knarr-bench", MEMORY])?;
    let outcome = bench.all();
    // Whatever happened, nothing stays behind.
    bench.knarr(&["down", "--purge"])?;
    shell("umount", &[MEMORY])?;
    fs::remove_dir(MEMORY)?;
    outcome?;
    let mut text = format!(
        "# Benchmarks\n\nMeasured by `cargo xtask bench` as whole processes; medians of {REPEATS} unless said otherwise. Memory is PSS, summed over the server and all shims.\n\nMachine: {}\n\n| figure | to reach | measured |\n|---|---|---|\n",
        machine()
    );
    for (name, goal, value) in &bench.rows {
        text += &format!("| {name} | {goal} | {value} |\n");
    }
    println!("{text}");
    publish("", &text)
}

/// Puts a part into docs/benchmarks.md, in the place of the one with this heading; without one, the first.
pub fn publish(heading: &str, text: &str) -> Result<()> {
    let path = root().join("docs/benchmarks.md");
    let there = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, placed(&there, heading, text)).with_context(|| path.display().to_string())
}

fn placed(there: &str, heading: &str, text: &str) -> String {
    let (first, others) = there.split_once("\n## ").unwrap_or((there, ""));
    let mut parts: Vec<(&str, &str)> = vec![("", first.trim_end())];
    parts.extend(others.split("\n## ").filter_map(|part| part.split_once('\n')).map(|(name, text)| (name, text.trim())));
    match parts.iter_mut().find(|(name, _)| *name == heading) {
        Some(part) => part.1 = text.trim(),
        None => parts.push((heading, text.trim())),
    }
    let all = parts.into_iter().map(|(name, text)| if name.is_empty() { format!("{text}\n") } else { format!("\n## {name}\n\n{text}\n") });
    all.collect()
}

fn shell(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| program.to_string())?;
    ensure!(status.success(), "{program} {args:?}: {status}");
    Ok(())
}

impl Bench {
    fn row(&mut self, name: &str, goal: &str, value: String) {
        println!("{name}: {value} (to reach: {goal})");
        self.rows.push((name.into(), goal.into(), value));
    }

    fn knarr(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(args).args(["--data-dir", self.data, "--run-dir", RUN]).env("HOME", "/tmp/knarr-bench-home").env_remove("KUBECONFIG");
        if args[0] == "up" {
            command.args(["--secure-port", "17443", "--kubelet-port", "17250", "--node-name", "bench"]);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "knarr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.kubectl).args(args).env("KUBECONFIG", format!("{}/admin.conf", self.data)).output()?;
        ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn all(&mut self) -> Result<()> {
        fs::create_dir_all("/tmp/knarr-bench-home")?;
        let size = fs::metadata(&self.binary)?.len();
        self.row("binary, stripped", "≤ 40 MB", format!("{:.1} MB", size as f64 / 1e6));
        let mut ups = Vec::new();
        for _ in 0..REPEATS {
            self.knarr(&["down", "--purge"])?;
            let begin = Instant::now();
            self.knarr(&["up"])?;
            ups.push(begin.elapsed());
        }
        self.row("`up` on an empty data directory → node Ready, DNS answering", "≤ 1.5 s", seconds(median(&mut ups)));

        std::thread::sleep(Duration::from_secs(10));
        let (before, begin) = (cpu_ticks()?, Instant::now());
        std::thread::sleep(Duration::from_secs(20));
        let share = (cpu_ticks()? - before) as f64 / 100.0 / begin.elapsed().as_secs_f64() * 100.0;
        self.row("whole idle node, nothing deployed but DNS: memory", "≤ 80 MB", format!("{:.1} MB", pss()? as f64 / 1e6));
        self.row("the same: processor", "≤ 1 % of a core", format!("{share:.2} %"));

        let mut starts = Vec::new();
        for round in 0..REPEATS * 4 {
            starts.push(self.pods(&format!("single-{round}"), 1)?);
        }
        self.row("pod create → Running, image present", "≤ 45 ms", format!("{:.0} ms", median(&mut starts).as_secs_f64() * 1e3));
        self.crowd("60 pods at once → last Running")?;
        self.shim()?;
        self.restart()?;
        self.knarr(&["down", "--purge"])?;
        // How much of it is the file system's.
        self.data = "/run/knarr-bench/data";
        self.knarr(&["up"])?;
        self.pods("warm", 1)?;
        self.crowd("the same, data directory in memory")
    }

    fn crowd(&mut self, name: &str) -> Result<()> {
        let mut times = Vec::new();
        for round in 0..REPEATS {
            // What those before have left behind is cleaned up after they are gone from the API.
            std::thread::sleep(Duration::from_secs(4));
            times.push(self.pods(&format!("crowd-{round}"), 60)?);
        }
        self.row(name, "≤ 1.2 s", seconds(median(&mut times)));
        Ok(())
    }

    /// Creates pods by one request each, and waits for the last to run by a watch.
    fn pods(&self, name: &str, count: usize) -> Result<Duration> {
        let script = include_str!("pods.py");
        let python = self.kubectl.with_file_name("venv/bin/python3");
        let output = Command::new(python)
            .args(["-c", script, name, &count.to_string()])
            .env("KUBECONFIG", format!("{}/admin.conf", self.data))
            .output()?;
        ensure!(output.status.success(), "pods: {}", String::from_utf8_lossy(&output.stderr));
        let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().context("the script's answer")?;
        Ok(Duration::from_secs_f64(seconds))
    }

    fn shim(&mut self) -> Result<()> {
        self.kubectl(&["create", "deployment", "shims", "--image=knarr.local/echo", "--replicas=5"])?;
        self.kubectl(&["rollout", "status", "deployment/shims", "--timeout=60s"])?;
        let mut sizes: Vec<u64> = processes(|line| line.split(' ').nth(1) == Some("shim") && line.contains(RUN))
            .into_iter()
            .filter_map(|pid| rollup(pid, &["Private_Clean:", "Private_Dirty:"]).ok())
            .collect();
        sizes.sort_unstable();
        let middle = sizes.get(sizes.len() / 2).copied().context("no shim runs")?;
        self.row("shim, per pod, private memory", "≤ 0.5 MB", format!("{:.2} MB", middle as f64 / 1e6));
        self.kubectl(&["delete", "deployment", "shims"])?;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let script = include_str!("objects.py");
        let python = self.kubectl.with_file_name("venv/bin/python3");
        let output = Command::new(python).args(["-c", script, "10000"]).env("KUBECONFIG", format!("{}/admin.conf", self.data)).output()?;
        ensure!(output.status.success(), "objects: {}", String::from_utf8_lossy(&output.stderr));
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            self.knarr(&["down"])?;
            let text = self.knarr(&["up"])?;
            let total: f64 = ["certificates", "store", "API server"]
                .iter()
                .filter_map(|phase| text.lines().find(|l| l.contains(phase))?.split_whitespace().rev().nth(1)?.parse::<f64>().ok())
                .sum();
            times.push(Duration::from_secs_f64(total / 1e3));
        }
        self.row("restart of a server with 10,000 objects → /readyz", "≤ 1 s", seconds(median(&mut times)));
        Ok(())
    }
}

pub fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

pub fn processes(matches: impl Fn(&str) -> bool) -> Vec<u32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|p| p.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            matches(String::from_utf8_lossy(&line).replace('\0', " ").trim())
        })
        .collect()
}

/// The server and its shims; not what runs in pods.
fn ours() -> Vec<u32> {
    processes(|line| line.contains(&format!("{DISK}/bin/knarr-")) && matches!(line.split(' ').nth(1), Some("server" | "shim")))
}

pub fn rollup(pid: u32, names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kilobytes = text.lines().filter(|l| names.iter().any(|n| l.starts_with(n))).filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(kilobytes.sum::<u64>() * 1024)
}

fn pss() -> Result<u64> {
    let all = ours();
    ensure!(!all.is_empty(), "the server does not run");
    all.into_iter().map(|pid| rollup(pid, &["Pss:"])).sum()
}

fn cpu_ticks() -> Result<u64> {
    let mut ticks = 0;
    for pid in ours() {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        ticks += fields.get(11).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0) + fields.get(12).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(ticks)
}

pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1)).unwrap_or("unknown").to_string();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let groups = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" };
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    format!("{cores} cores ({model}), kernel {kernel}, cgroup version {groups}, data directory on {}", file_system())
}

/// The file system of the data directory, and whether it is an ext4 without a journal: there the kernel passes over each
/// inode that was freed in the last minutes whenever it makes a new one.
fn file_system() -> String {
    let found = Command::new("findmnt").args(["-no", "FSTYPE,SOURCE", "-T", "/var/lib"]).output();
    let text = found.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let (kind, source) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let device = source.trim().trim_start_matches("/dev/");
    let journal = fs::read_to_string(format!("/sys/fs/ext4/{device}/journal_task")).unwrap_or_default();
    match journal.trim() {
        "<none>" => format!("{kind} without a journal"),
        _ => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_places() {
        let first = placed("", "", "# Benchmarks\n\nold\n");
        let both = placed(&first, "Clusters", "one\n");
        assert_eq!(both, "# Benchmarks\n\nold\n\n## Clusters\n\none\n");
        let more = placed(&placed(&both, "More", "x"), "Clusters", "two");
        assert_eq!(placed(&more, "", "# Benchmarks\n\nnew"), "# Benchmarks\n\nnew\n\n## Clusters\n\ntwo\n\n## More\n\nx\n");
    }
}
