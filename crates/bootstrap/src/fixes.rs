//! `--fix`: what `init` and `join` change on a machine so that its preflight checks pass, as far as that is safe and can
//! be taken back. Each change is noted before it is made, and `reset` takes exactly those back.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::files::{self, Place};

/// What would take a finding away.
#[derive(Debug, Clone, PartialEq)]
pub enum Fix {
    /// A setting of the kernel, as its path below `/proc/sys`, until the next boot.
    Sysctl(&'static str, &'static str),
    /// Modules of the kernel, until the next boot.
    Modules(Vec<String>),
    /// No swap until the next boot.
    SwapOff,
    /// Ports of firewalld's default zone, now and after its next start.
    Firewalld(Vec<String>),
    /// A line of `/etc/hosts`.
    Host {
        /// The address.
        address: String,
        /// Its name.
        name: String,
    },
}

/// What was changed, and what was before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
enum Change {
    Sysctl { name: String, before: String, after: String },
    Module { name: String },
    Swap { device: String, priority: i32 },
    FirewalldPort { zone: String, port: String },
    HostsLine { line: String },
}

/// What fixes do to a machine.
pub trait System {
    /// Reads a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Writes a file.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Runs a program; what it printed, or its complaint.
    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<String>;
}

/// This machine.
pub struct Real;

impl System for Real {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // In place: `/etc/hosts` may be a mount point, and settings of the kernel are no files.
        std::fs::write(path, text)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<String> {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
        }
        Err(io::Error::other(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
    }
}

const HOSTS: &str = "/etc/hosts";
const SWAPS: &str = "/proc/swaps";
const MEMORY: &str = "/proc/meminfo";

fn setting(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// Where the changes are noted.
pub fn record(place: &Place) -> PathBuf {
    place.kubernetes.join("knarr-fixes.json")
}

fn noted(system: &dyn System, path: &Path) -> Result<Vec<Change>> {
    match system.read(path) {
        Ok(text) => serde_json::from_str(&text).doing(|| format!("{} is damaged: what --fix has changed is not known; remove it once you have looked", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).doing(|| format!("cannot read {}", path.display())),
    }
}

/// Applies fixes, and says what was done; what could not be done is said too, and stays a finding.
pub fn apply(place: &Place, fixes: &[Fix], dry_run: bool) -> Result<()> {
    apply_to(&Real, place, fixes, dry_run, |path, text| files::write(path, text.as_bytes(), 0o600))
}

fn apply_to(system: &dyn System, place: &Place, fixes: &[Fix], dry_run: bool, keep: impl Fn(&Path, &str) -> Result<()>) -> Result<()> {
    let path = record(place);
    let mut all = noted(system, &path)?;
    for fix in fixes {
        let changes = match plan(system, fix) {
            Ok(changes) => changes,
            Err(why) => {
                eprintln!("[preflight] --fix: {why}");
                continue;
            }
        };
        for change in changes {
            if dry_run {
                println!("[dryrun] Would fix: {}", said(&change));
                continue;
            }
            all.push(change.clone());
            keep(&path, &serde_json::to_string_pretty(&all).doing(|| "writing JSON".into())?)?;
            match make(system, &change) {
                Ok(()) => println!("[preflight] Fixed: {}", said(&change)),
                Err(error) => {
                    all.pop();
                    keep(&path, &serde_json::to_string_pretty(&all).doing(|| "writing JSON".into())?)?;
                    eprintln!("[preflight] --fix: {} failed: {error}", said(&change));
                }
            }
        }
    }
    Ok(())
}

/// The changes that a fix comes to on this machine; or why none is safe.
fn plan(system: &dyn System, fix: &Fix) -> std::result::Result<Vec<Change>, String> {
    let read = |path: &str| system.read(Path::new(path)).map_err(|e| format!("{path} cannot be read: {e}"));
    match fix {
        Fix::Sysctl(name, value) => {
            let before = system.read(&setting(name)).map_err(|e| format!("{} cannot be read: {e}", setting(name).display()))?;
            Ok(vec![Change::Sysctl { name: name.to_string(), before: before.trim().into(), after: value.to_string() }])
        }
        Fix::Modules(names) => Ok(names.iter().map(|name| Change::Module { name: name.clone() }).collect()),
        Fix::SwapOff => {
            let kb = |text: &str, key: &str| text.lines().find(|l| l.starts_with(key)).and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
            let memory = read(MEMORY)?;
            let (used, free) = (kb(&memory, "SwapTotal:").saturating_sub(kb(&memory, "SwapFree:")), kb(&memory, "MemAvailable:"));
            if used > free / 2 {
                return Err(format!("swap stays on: {} MB are in it, and {} MB of memory are free; end what needs so much first", used >> 10, free >> 10));
            }
            let swaps = read(SWAPS)?;
            let one = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                Some(Change::Swap { device: words.first()?.to_string(), priority: words.get(4)?.parse().ok()? })
            };
            Ok(swaps.lines().skip(1).filter_map(one).collect())
        }
        Fix::Firewalld(ports) => {
            let zone = system.run("firewall-cmd", &["--get-default-zone"]).map_err(|e| format!("firewalld does not answer: {e}"))?;
            Ok(ports.iter().map(|port| Change::FirewalldPort { zone: zone.clone(), port: port.clone() }).collect())
        }
        Fix::Host { address, name } => Ok(vec![Change::HostsLine { line: format!("{address} {name} # by kubeadm --fix") }]),
    }
}

fn said(change: &Change) -> String {
    match change {
        Change::Sysctl { name, before, after } => format!("{} is {after} instead of {before}, until the next boot", name.replace('/', ".")),
        Change::Module { name } => format!("the kernel's module {name} is loaded, until the next boot"),
        Change::Swap { device, .. } => format!("swap on {device} is off, until the next boot: take it out of /etc/fstab for later ones"),
        Change::FirewalldPort { zone, port } => format!("firewalld's zone {zone} lets {port} in"),
        Change::HostsLine { line } => format!("/etc/hosts has the line {line:?}"),
    }
}

fn make(system: &dyn System, change: &Change) -> io::Result<()> {
    match change {
        Change::Sysctl { name, after, .. } => system.write(&setting(name), after),
        Change::Module { name } => system.run("modprobe", &[name]).map(|_| ()),
        Change::Swap { device, .. } => system.run("swapoff", &[device]).map(|_| ()),
        Change::FirewalldPort { zone, port } => firewalld(system, zone, "--add-port", port),
        Change::HostsLine { line } => {
            let mut text = system.read(Path::new(HOSTS))?;
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            system.write(Path::new(HOSTS), &format!("{text}{line}\n"))
        }
    }
}

/// Undoes a change as far as it is still there, so that one that was never made, or that somebody has undone, is harmless.
fn undo(system: &dyn System, change: &Change) -> io::Result<()> {
    match change {
        Change::Sysctl { name, before, after } => {
            let now = system.read(&setting(name))?;
            if now.trim() == after { system.write(&setting(name), before) } else { Ok(()) }
        }
        Change::Module { name } => system.run("modprobe", &["-r", name]).map(|_| ()),
        Change::Swap { device, priority } => {
            if system.read(Path::new(SWAPS))?.lines().any(|l| l.split_whitespace().next() == Some(device)) {
                return Ok(());
            }
            let priority = priority.to_string();
            // Negative ones are the kernel's own choice, and cannot be asked for.
            let arguments: Vec<&str> = if priority.starts_with('-') { vec![device] } else { vec!["-p", &priority, device] };
            system.run("swapon", &arguments).map(|_| ())
        }
        Change::FirewalldPort { zone, port } => firewalld(system, zone, "--remove-port", port),
        Change::HostsLine { line } => {
            let text = system.read(Path::new(HOSTS))?;
            let kept: String = text.lines().filter(|l| l != line).map(|l| format!("{l}\n")).collect();
            if kept == text { Ok(()) } else { system.write(Path::new(HOSTS), &kept) }
        }
    }
}

fn firewalld(system: &dyn System, zone: &str, what: &str, port: &str) -> io::Result<()> {
    let (zone, what) = (format!("--zone={zone}"), format!("{what}={port}"));
    system.run("firewall-cmd", &[&zone, &what])?;
    system.run("firewall-cmd", &["--permanent", &zone, &what]).map(|_| ())
}

/// Takes back what `--fix` has changed; the last first.
pub fn take_back(place: &Place, dry_run: bool) -> Result<()> {
    take_back_on(&Real, place, dry_run)?;
    let path = record(place);
    if dry_run {
        return Ok(());
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

fn take_back_on(system: &dyn System, place: &Place, dry_run: bool) -> Result<()> {
    for change in noted(system, &record(place))?.iter().rev() {
        if dry_run {
            println!("[dryrun] Would take back: {}", said(change));
            continue;
        }
        match undo(system, change) {
            Ok(()) => println!("[reset] Taken back: {}", said(change)),
            Err(error) => eprintln!("[reset] WARNING: not taken back: {}: {error}", said(change)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_dry_run_forgets_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place { kubernetes: dir.path().into(), kubelet: dir.path().into() };
        std::fs::write(record(&place), "[]").expect("written");
        take_back(&place, true).expect("told");
        assert!(record(&place).exists());
        take_back(&place, false).expect("taken back");
        assert!(!record(&place).exists());
        take_back(&place, false).expect("nothing to take back");
    }

    /// A machine in memory, with a firewall and swap that programs change.
    #[derive(Default)]
    struct Fake {
        files: RefCell<BTreeMap<PathBuf, String>>,
        ran: RefCell<Vec<String>>,
        /// A program that fails.
        broken: &'static str,
    }

    impl System for Fake {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.files.borrow().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn write(&self, path: &Path, text: &str) -> io::Result<()> {
            self.files.borrow_mut().insert(path.into(), text.into());
            Ok(())
        }

        fn run(&self, program: &str, arguments: &[&str]) -> io::Result<String> {
            if program == self.broken {
                return Err(io::Error::other("broken"));
            }
            if arguments == ["--get-default-zone"] {
                return Ok("public".into());
            }
            self.ran.borrow_mut().push(format!("{program} {}", arguments.join(" ")));
            if program == "swapoff" {
                self.write(Path::new(SWAPS), "Filename Type Size Used Priority\n")?;
            }
            Ok(String::new())
        }
    }

    impl Fake {
        fn with(files: &[(&str, &str)]) -> Fake {
            Fake { files: RefCell::new(files.iter().map(|(p, t)| (PathBuf::from(p), t.to_string())).collect()), ..Fake::default() }
        }

        fn apply(&self, fixes: &[Fix], dry_run: bool) {
            apply_to(self, &Place::default(), fixes, dry_run, |path, text| self.write(path, text).doing(|| "writing".into())).expect("applied");
        }

        fn text(&self, path: &str) -> String {
            self.read(Path::new(path)).expect(path)
        }
    }

    const SETTING: &str = "/proc/sys/net/ipv4/ip_forward";

    fn machine() -> Fake {
        Fake::with(&[
            (SETTING, "0\n"),
            (HOSTS, "127.0.0.1 localhost"),
            (SWAPS, "Filename Type Size Used Priority\n/dev/sda2 partition 1000 10 -2\n"),
            (MEMORY, "MemAvailable: 4000000 kB\nSwapTotal: 1000 kB\nSwapFree: 990 kB\n"),
        ])
    }

    #[test]
    fn what_is_changed_is_noted_and_taken_back() {
        let machine = machine();
        let host = Fix::Host { address: "10.0.0.1".into(), name: "n1".into() };
        machine.apply(&[Fix::Sysctl("net/ipv4/ip_forward", "1"), host, Fix::SwapOff, Fix::Firewalld(vec!["6443/tcp".into()]), Fix::Modules(vec!["vxlan".into()])], false);
        assert_eq!(machine.text(SETTING), "1");
        assert_eq!(machine.text(HOSTS), "127.0.0.1 localhost\n10.0.0.1 n1 # by kubeadm --fix\n");
        let ran = machine.ran.take();
        assert_eq!(ran, ["swapoff /dev/sda2", "firewall-cmd --zone=public --add-port=6443/tcp", "firewall-cmd --permanent --zone=public --add-port=6443/tcp", "modprobe vxlan"]);
        // a line that somebody else has added since stays
        machine.write(Path::new(HOSTS), &format!("{}10.0.0.2 n2\n", machine.text(HOSTS))).expect("written");
        take_back_on(&machine, &Place::default(), false).expect("taken back");
        assert_eq!(machine.text(SETTING), "0");
        assert_eq!(machine.text(HOSTS), "127.0.0.1 localhost\n10.0.0.2 n2\n");
        let ran = machine.ran.take();
        assert_eq!(ran, ["modprobe -r vxlan", "firewall-cmd --zone=public --remove-port=6443/tcp", "firewall-cmd --permanent --zone=public --remove-port=6443/tcp", "swapon /dev/sda2"]);
    }

    #[test]
    fn what_was_changed_since_is_left() {
        let machine = machine();
        machine.apply(&[Fix::Sysctl("net/ipv4/ip_forward", "1"), Fix::SwapOff], false);
        machine.write(Path::new(SETTING), "2").expect("written");
        machine.write(Path::new(SWAPS), "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n").expect("written");
        machine.ran.take();
        take_back_on(&machine, &Place::default(), false).expect("taken back");
        assert_eq!((machine.text(SETTING).as_str(), machine.ran.take()), ("2", Vec::new()));
    }

    #[test]
    fn what_fails_or_is_not_safe_is_not_noted() {
        let noted = |machine: &Fake| noted(machine, &record(&Place::default())).expect("a record");
        let full = Fake::with(&[(SWAPS, "Filename\n/swap file 9000000 5000000 1\n"), (MEMORY, "MemAvailable: 4000000 kB\nSwapTotal: 9000000 kB\nSwapFree: 4000000 kB\n")]);
        full.apply(&[Fix::SwapOff, Fix::Sysctl("net/none", "1")], false);
        assert!(full.ran.take().is_empty() && noted(&full).is_empty());
        let broken = Fake { broken: "modprobe", ..machine() };
        broken.apply(&[Fix::Modules(vec!["a".into()]), Fix::Sysctl("net/ipv4/ip_forward", "1")], false);
        assert_eq!(noted(&broken), [Change::Sysctl { name: "net/ipv4/ip_forward".into(), before: "0".into(), after: "1".into() }]);
        let dry = machine();
        dry.apply(&[Fix::SwapOff], true);
        assert!(dry.ran.take().is_empty() && noted(&dry).is_empty());
        dry.write(&record(&Place::default()), "{").expect("written");
        assert!(take_back_on(&dry, &Place::default(), false).expect_err("damaged").to_string().contains("is damaged"));
    }
}
