//! A cluster for end-to-end tests, the clients that ask it, and a runner that counts as the test
//! harness does. Needs root, and the tools that `cargo xtask tools` installs.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub mod debian;
pub mod hosts;
pub mod images;
pub mod registry;

/// Where things are.
#[derive(Clone)]
pub struct Env {
    pub binary: PathBuf,
    pub tools: PathBuf,
    pub data: PathBuf,
    pub run: PathBuf,
    pub home: PathBuf,
    /// Of the API server; the kubelet's is [`Env::kubelet_port`].
    pub port: u16,
}

impl Env {
    /// From the variables that `cargo xtask test` sets.
    pub fn new(name: &str) -> Result<Env> {
        Env::on_port(name, 16443)
    }

    /// The same with another port for the API server, so that tests do not meet.
    pub fn on_port(name: &str, port: u16) -> Result<Env> {
        let var = |name: &str| std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set: run cargo xtask test"));
        let home = std::env::temp_dir().join(format!("knarr-{name}-home"));
        std::fs::create_dir_all(&home)?;
        Ok(Env {
            binary: var("KNARR_BIN")?,
            tools: var("KNARR_TOOLS")?,
            data: PathBuf::from(format!("/var/lib/knarr-{name}")),
            run: PathBuf::from(format!("/run/knarr-{name}")),
            home,
            port,
        })
    }

    /// `knarr …` with this environment's directories where the command takes them.
    pub fn knarr(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("HOME", &self.home).env_remove("KUBECONFIG");
        let placed = matches!(args.first(), Some(&("up" | "server" | "status" | "down" | "token")));
        if placed {
            command.arg("--data-dir").arg(&self.data).arg("--run-dir").arg(&self.run);
        }
        if matches!(args.first(), Some(&("image" | "store"))) {
            command.arg("--data-dir").arg(&self.data);
        }
        if matches!(args.first(), Some(&("up" | "server"))) {
            command.args(["--secure-port", &self.port.to_string(), "--kubelet-port", &self.kubelet_port().to_string(), "--node-name", "one"]);
        }
        command
    }

    /// The port of the kubelet.
    pub fn kubelet_port(&self) -> u16 {
        self.port - 5193
    }

    /// A client of the cluster.
    pub fn client(&self, name: &'static str) -> Client {
        Client { name, path: self.tools.join(name), env: self.clone() }
    }

    /// The two kubectls: the newest and the oldest that are tried.
    pub fn kubectls(&self) -> [Client; 2] {
        [self.client("kubectl"), self.client("kubectl-1.20")]
    }
}

/// A program that talks to the cluster.
#[derive(Clone)]
pub struct Client {
    pub name: &'static str,
    path: PathBuf,
    env: Env,
}

impl Client {
    /// The command, with the cluster's kubeconfig.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(args).env("HOME", &self.env.home).env("KUBECONFIG", self.env.data.join("admin.conf"));
        command
    }

    /// Runs it; its standard output. A failure is an error with all that it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        output(&mut self.command(args)).with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    /// Runs it with an input.
    pub fn run_with(&self, args: &[&str], input: &str) -> Result<String> {
        output_with(&mut self.command(args), input).with_context(|| format!("{} {}", self.name, args.join(" ")))
    }

    /// Runs it; it must fail. What it said.
    pub fn fails(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).stdin(Stdio::null()).output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(!output.status.success(), "{} {} succeeded: {text}", self.name, args.join(" "));
        Ok(text)
    }

    /// `get … -o json`, parsed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all)?)?)
    }

    /// Starts it in the background.
    pub fn spawn(&self, args: &[&str]) -> Result<Background> {
        let child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Background(child))
    }
}

/// A process that is ended when it is let go.
pub struct Background(pub Child);

impl Background {
    /// Ends it and returns what it printed.
    pub fn finish(mut self) -> Result<String> {
        self.0.kill()?;
        let mut text = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            out.read_to_string(&mut text)?;
        }
        self.0.wait()?;
        Ok(text)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; its standard output, or an error with all that it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    check(output)
}

fn check(output: Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// The same with an input.
pub fn output_with(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    check(child.wait_with_output()?)
}

/// Waits until `probe` is content; its last complaint when it never is.
pub fn eventually<T>(what: &str, seconds: u64, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => return Err(error.context(format!("{what}: not within {seconds} s"))),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Runs this program again on a host of its own, a network namespace that is made for it and taken away, with the
/// variable `inside` set; and ends with its code.
pub fn on_host(host: &str, inside: &str) -> ! {
    let ip = |text: &str| output(Command::new("ip").args(text.split(' '))).with_context(|| format!("ip {text}"));
    let run = || -> Result<i32> {
        if Path::new("/run/netns").join(host).exists() {
            ip(&format!("netns del {host}"))?;
        }
        ip(&format!("netns add {host}"))?;
        ip(&format!("-n {host} link set lo up"))?;
        ip(&format!("-n {host} link add eth0 type veth peer name other"))?;
        ip(&format!("-n {host} link set other up"))?;
        ip(&format!("-n {host} addr add 198.18.9.1/24 dev eth0"))?;
        ip(&format!("-n {host} link set eth0 up"))?;
        ip(&format!("-n {host} route add default via 198.18.9.2"))?;
        // Not by `ip netns exec`, which would hide the control groups behind another /sys.
        let mut own = Command::new("nsenter");
        own.arg(format!("--net=/run/netns/{host}")).arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(inside, "1");
        let status = own.status()?;
        ip(&format!("netns del {host}"))?;
        Ok(status.code().unwrap_or(1))
    };
    let code = run().unwrap_or_else(|error| {
        println!("{error:?}");
        1
    });
    std::process::exit(code)
}

/// An HTTP GET of a URL by curl.
pub fn curl(args: &[&str]) -> Result<String> {
    output(Command::new("curl").args(["-sS", "--max-time", "5", "--noproxy", "*"]).args(args))
}

/// The first process in a container's cgroup.
pub fn container_process(container: &str) -> Result<String> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(container) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    bail!("no process is in a cgroup of {container}")
}

/// Links, routes and packet filter tables of a network namespace, or of this process's own.
pub fn network_traces(namespace: Option<&str>) -> Result<Vec<String>> {
    let ask = |program: &str, args: &[&str]| {
        let mut command = match namespace {
            Some(_) => Command::new("nsenter"),
            None => Command::new(program),
        };
        if let Some(name) = namespace {
            command.arg(format!("--net=/run/netns/{name}")).arg(program);
        }
        output(command.args(args))
    };
    let mut all = Vec::new();
    for link in ask("ip", &["-o", "link"])?.lines() {
        // `7: name@peer: <…>`: what a peer is called depends on where it is.
        let name = link.split(' ').nth(1).unwrap_or_default();
        all.push(format!("link {}", name.split(['@', ':']).next().unwrap_or_default()));
    }
    all.extend(ask("ip", &["route"])?.lines().map(|l| format!("route {}", l.trim())));
    all.extend(ask("nft", &["list", "tables"])?.lines().map(|l| format!("nf_tables {}", l.trim())));
    Ok(all)
}

/// Everything on this machine that a cluster could leave behind.
pub fn traces(run: &Path) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    all.extend(mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(|m| format!("mount {m}")));
    all.extend(network_traces(None)?);
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten().filter(|h| h.path().is_dir()) {
        for group in std::fs::read_dir(hierarchy.path())?.flatten().filter(|g| g.path().is_dir()) {
            all.push(format!("cgroup {}", group.path().display()));
        }
    }
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        all.push(format!("netns {}", entry.file_name().to_string_lossy()));
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("knarr-") && line.contains(&*run.to_string_lossy()) {
            all.push(format!("process {line}"));
        }
    }
    for path in [run] {
        if path.exists() {
            all.push(format!("file {}", path.display()));
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// A named step.
pub type Step = (&'static str, Box<dyn FnOnce() -> Result<()>>);

/// What a test needs, for as long as the program runs; where it cannot be made, the program ends and says why.
pub fn begin<T>(made: Result<T>) -> &'static T {
    match made {
        Ok(test) => Box::leak(Box::new(test)),
        Err(error) => {
            println!("{error:?}");
            std::process::exit(1);
        }
    }
}

/// Steps that share a test.
pub fn steps_of<T: Sync>(test: &'static T, steps: &[(&'static str, fn(&T) -> Result<()>)]) -> Vec<Step> {
    steps.iter().map(|&(name, step)| -> Step { (name, Box::new(move || step(test))) }).collect()
}

/// Runs steps in order and reports as the test harness does. A step whose failure makes the others
/// pointless is named in `vital`.
pub fn run_steps(steps: Vec<Step>, vital: &[&str]) -> ! {
    let filter: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<Step> = steps
        .into_iter()
        .filter(|(name, _)| filter.is_empty() || vital.contains(name) || filter.iter().any(|f| name.contains(f.as_str())))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let (mut passed, mut failed, total) = (0, Vec::new(), chosen.len());
    let start = Instant::now();
    for (name, step) in chosen {
        let begin = Instant::now();
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(step)).unwrap_or_else(|_| bail!("it panicked")) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({:.1} s)", begin.elapsed().as_secs_f64());
            }
            Err(error) => {
                println!("test {name} ... FAILED ({:.1} s)\n    {}", begin.elapsed().as_secs_f64(), format!("{error:#}").replace('\n', "\n    "));
                failed.push(name);
                if vital.contains(&name) {
                    break;
                }
            }
        }
    }
    let not_run = total - passed - failed.len();
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {} failed; {not_run} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n", failed.len(), start.elapsed().as_secs_f64());
    std::process::exit(i32::from(!failed.is_empty()));
}
