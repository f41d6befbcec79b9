//! Hosts of a network: each with its own network, mounts, name and directories of Kubernetes, joined by a bridge.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{Client, Env, eventually, network_traces, output};

/// Directories that each host has of its own.
const OWN: [&str; 2] = ["/etc/kubernetes", "/var/lib/kubelet"];

/// Several hosts and the bridge between them.
pub struct Hosts {
    env: Env,
    prefix: String,
    network: String,
    all: Vec<Host>,
}

/// One of them, as long as its first process lives.
struct Host {
    name: String,
    address: String,
    holder: Child,
}

/// Runs `ip` with these words.
pub fn ip(text: &str) -> Result<String> {
    output(Command::new("ip").args(text.split(' '))).with_context(|| format!("ip {text}"))
}

/// Makes a network namespace with a bridge, whose address is the gateway of those that hang on it.
pub fn make_lan(lan: &str, gateway: &str) -> Result<()> {
    ip(&format!("netns add {lan}"))?;
    ip(&format!("-n {lan} link set lo up"))?;
    ip(&format!("-n {lan} link add br0 type bridge"))?;
    ip(&format!("-n {lan} addr add {gateway}/24 dev br0"))?;
    ip(&format!("-n {lan} link set br0 up")).map(|_| ())
}

/// Makes a network namespace that hangs on the bridge by its link `p` and `index`.
pub fn make_space(lan: &str, gateway: &str, index: usize, space: &str, address: &str) -> Result<()> {
    ip(&format!("netns add {space}"))?;
    ip(&format!("-n {space} link set lo up"))?;
    ip(&format!("-n {lan} link add p{index} type veth peer name eth0 netns {space}"))?;
    ip(&format!("-n {lan} link set p{index} master br0 up"))?;
    ip(&format!("-n {space} addr add {address}/24 dev eth0"))?;
    ip(&format!("-n {space} link set eth0 up"))?;
    ip(&format!("-n {space} route add default via {gateway}")).map(|_| ())
}

/// The same command in a network namespace.
pub fn inside(space: &str, command: &Command) -> Command {
    let mut entered = Command::new("nsenter");
    entered.arg(format!("--net=/run/netns/{space}")).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => entered.env(name, value),
            None => entered.env_remove(name),
        };
    }
    entered
}

impl Hosts {
    /// Makes hosts of these names, at the addresses 11, 12, … of a network; `prefix` keeps tests apart.
    pub fn new(env: &Env, prefix: &str, network: &str, names: &[&str]) -> Result<Hosts> {
        let mut hosts = Hosts { env: env.clone(), prefix: prefix.into(), network: network.into(), all: Vec::new() };
        hosts.clear(names);
        hosts.programs()?;
        let (lan, gateway) = (hosts.lan(), format!("{network}.1"));
        make_lan(&lan, &gateway)?;
        let known = env.home.join("hosts");
        hosts.known()?;
        for (i, name) in names.iter().enumerate() {
            let (space, address) = (format!("{prefix}-{name}"), format!("{network}.{}", 11 + i));
            make_space(&lan, &gateway, i, &space, &address)?;
            let mounts: String = OWN.iter().map(|dir| format!("mkdir -p {dir}; mount -t tmpfs tmpfs {dir}; ")).collect();
            let script = format!("hostname {name}; mount --bind {} /etc/hosts; {mounts}echo ready; exec sleep infinity", known.display());
            let mut holder = Command::new("nsenter")
                .arg(format!("--net=/run/netns/{space}"))
                .args(["unshare", "--mount", "--uts", "--propagation", "slave", "sh", "-ec", &script])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?;
            let mut said = [0; 6];
            std::io::Read::read_exact(holder.stdout.as_mut().context("no standard output")?, &mut said).context("the host was not made")?;
            hosts.all.push(Host { name: name.to_string(), address, holder });
        }
        hosts.known()?;
        Ok(hosts)
    }

    fn lan(&self) -> String {
        format!("{}-lan", self.prefix)
    }

    /// The network namespace of a host.
    pub fn space(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// What their roots find besides the system's programs and the tools.
    fn programs(&self) -> Result<()> {
        let bin = self.env.home.join("bin");
        std::fs::create_dir_all(&bin)?;
        for (name, program) in [("kubeadm", &self.env.binary), ("knarr", &self.env.binary), ("etcd", &self.env.tools.join("etcd"))] {
            ensure!(program.exists(), "{} is missing", program.display());
            let link = bin.join(name);
            if link.symlink_metadata().is_ok() {
                std::fs::remove_file(&link)?;
            }
            symlink(program, &link)?;
        }
        Ok(())
    }

    /// Gives a host another address of the network, in the place of the one it has.
    pub fn readdress(&mut self, host: &str, last: u8) -> Result<()> {
        let (space, prefix) = (self.space(host), self.network.clone());
        let at = self.all.iter_mut().find(|h| h.name == host).with_context(|| format!("no host {host}"))?;
        let new = format!("{prefix}.{last}");
        ip(&format!("-n {space} addr del {}/24 dev eth0", at.address))?;
        ip(&format!("-n {space} addr add {new}/24 dev eth0"))?;
        ip(&format!("-n {space} route add default via {prefix}.1"))?;
        at.address = new;
        self.known()
    }

    /// Cuts the link of a host, or mends it; the host sees nothing of that.
    pub fn cut(&self, host: &str, cut: bool) -> Result<()> {
        let at = self.all.iter().position(|h| h.name == host).with_context(|| format!("no host {host}"))?;
        ip(&format!("-n {} link set p{at} {}", self.lan(), if cut { "down" } else { "up" })).map(|_| ())
    }

    /// The file by which hosts know each other's names.
    fn known(&self) -> Result<()> {
        let known: String = self.all.iter().map(|h| format!("{} {}\n", h.address, h.name)).collect();
        Ok(std::fs::write(self.env.home.join("hosts"), format!("127.0.0.1 localhost\n{known}"))?)
    }

    /// What an interrupted run has left.
    fn clear(&self, names: &[&str]) {
        for name in names {
            let space = self.space(name);
            if Path::new("/run/netns").join(&space).exists() {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{space}")).arg(&self.env.binary).args(["down", "--purge"]);
                command.arg("--data-dir").arg(self.data(name)).arg("--run-dir").arg(self.run_dir(name)).env("HOME", &self.env.home);
                let _ = output(&mut command);
            }
            let _ = ip(&format!("netns del {}", self.space(name)));
        }
        let _ = ip(&format!("netns del {}", self.lan()));
    }

    /// Where a host's node keeps what lasts: its own, so that it has control groups of its own too.
    pub fn data(&self, host: &str) -> String {
        format!("/var/lib/knarr-{}-{host}", self.prefix)
    }

    /// Where it keeps what a reboot ends.
    pub fn run_dir(&self, host: &str) -> String {
        format!("/run/knarr-{}-{host}", self.prefix)
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> &str {
        self.all.iter().find(|h| h.name == host).map_or("", |h| &h.address)
    }

    /// A command on a host, as its root would type it.
    pub fn command(&self, host: &str, words: &[&str]) -> Result<Command> {
        let host = self.all.iter().find(|h| h.name == host).with_context(|| format!("no host {host}"))?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &host.holder.id().to_string(), "-m", "-u", "-n"]).args(words);
        let tools = format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", self.env.home.join("bin").display(), self.env.tools.display());
        command.env("PATH", tools).env("HOME", &self.env.home).env("KUBECONFIG", "/etc/kubernetes/admin.conf");
        command.env("KNARR_DATA_DIR", self.data(&host.name)).env("KNARR_RUN_DIR", self.run_dir(&host.name));
        Ok(command)
    }

    /// Runs a command line on a host; what it printed.
    pub fn run(&self, host: &str, line: &str) -> Result<String> {
        self.words(host, &line.split_whitespace().collect::<Vec<_>>())
    }

    /// The same with words that hold blanks.
    pub fn words(&self, host: &str, words: &[&str]) -> Result<String> {
        output(&mut self.command(host, words)?).with_context(|| format!("on {host}: {}", words.join(" ")))
    }

    /// Runs a command line that must fail; what it said.
    pub fn fails(&self, host: &str, line: &str) -> Result<String> {
        let output = self.command(host, &line.split_whitespace().collect::<Vec<_>>())?.stdin(Stdio::null()).output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(!output.status.success(), "on {host}: {line} succeeded: {text}");
        Ok(text)
    }

    /// Runs a command line until what it prints is wanted.
    pub fn until(&self, host: &str, line: &str, seconds: u64, wanted: impl Fn(&str) -> bool) -> Result<String> {
        eventually(line, seconds, || {
            let text = self.run(host, line)?;
            ensure!(wanted(&text), "it says: {text}");
            Ok(text)
        })
    }

    /// Files and network of Kubernetes on a host.
    pub fn traces(&self, host: &str) -> Result<Vec<String>> {
        let mut all = network_traces(Some(&self.space(host)))?;
        for dir in OWN {
            all.extend(self.run(host, &format!("find {dir} -mindepth 1"))?.lines().map(|l| format!("file {l}")));
        }
        let mounts = self.run(host, "cat /proc/self/mountinfo")?;
        let own = [self.data(host), self.run_dir(host)];
        all.extend(mounts.lines().filter(|l| own.iter().any(|dir| l.contains(dir.as_str()))).map(|l| format!("mount {l}")));
        all.extend(own.iter().filter(|dir| Path::new(dir).exists()).map(|dir| format!("file {dir}")));
        all.sort();
        Ok(all)
    }

    /// The newest kubectl that is tried.
    pub fn kubectl(&self) -> Client {
        self.env.client("kubectl")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let names: Vec<String> = self.all.iter().map(|h| h.name.clone()).collect();
        self.clear(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for host in &mut self.all {
            // It sleeps; nothing else is lost.
            let _ = host.holder.kill();
            let _ = host.holder.wait();
        }
    }
}
