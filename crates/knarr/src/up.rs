//! `knarr up`: starts a server in the background from a copy of this executable, shows its phases,
//! and adds the cluster to the user's kubeconfig.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::config::{Config, Flags};
use crate::files::{self, State};
use crate::layout::Layout;
use crate::{engine, material, preflight, progress};

/// Does it.
pub fn run(flags: &Flags) -> Result<()> {
    preflight::root()?;
    let config = flags.resolve()?;
    let layout = Layout::new(&config.data_dir, &config.run_dir);
    if let Some(pid) = files::holder(&layout.lock()) {
        let state = State::read(&layout.state());
        let what = state.map_or(String::new(), |s| format!(", {} on {}", s.role, s.server));
        println!("knarr is already running (process {pid}{what}); nothing was changed");
        return Ok(());
    }
    engine::check(&config, &layout)?;
    preflight::check(&config, &layout, &[("secure-port", config.secure_port), ("kubelet-port", config.kubelet_port)])?;
    files::public_dir(&layout.data)?;
    preflight::mark(&layout)?;
    let exe = install(&layout)?;

    let ready = spawn(&layout, &exe, "server", &flags.arguments(), true)?;
    if config.kubeadm.is_some() {
        println!("knarr is {ready}: node {}, https://127.0.0.1:{}; export KUBECONFIG=/etc/kubernetes/admin.conf", config.node_name, config.secure_port);
        return Ok(());
    }
    let kubeconfig = merge(&layout, &config)?;
    println!("knarr is {ready}: node {}, https://127.0.0.1:{}", config.node_name, config.secure_port);
    println!("context \"knarr\" is in {}; try: kubectl get nodes", kubeconfig.display());
    Ok(())
}

/// Starts a server or an agent in the background, and waits until it says that it is ready: that line. Its phases are shown
/// where that is wanted.
pub fn spawn(layout: &Layout, exe: &Path, role: &str, arguments: &[std::ffi::OsString], show: bool) -> Result<String> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(layout.log())
        .with_context(|| format!("cannot open {}", layout.log().display()))?;
    let log_start = log.metadata()?.len();
    let spinner = progress::spinner("starting");
    let mut child = Command::new(exe)
        .arg(role)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        // Its own group: an interrupt at this terminal is not meant for the cluster.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", exe.display()))?;
    let output = child.stdout.take().context("the server has no standard output")?;
    let mut ready = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line.starts_with(progress::READY) {
            ready = Some(line);
            break;
        }
        match &spinner {
            _ if !show => {}
            Some(bar) => bar.println(&line),
            None => println!("{line}"),
        }
    }
    if let Some(bar) = spinner {
        bar.finish_and_clear();
    }
    let Some(ready) = ready else {
        let status = child.wait()?;
        let tail = tail(&layout.log(), log_start);
        bail!("the {role} did not start ({status}); the end of {} says:\n{tail}", layout.log().display());
    };
    Ok(ready)
}

/// Puts a copy of this executable where it stays, under its hash: shims and the server run that copy,
/// whatever becomes of the original.
pub fn install(layout: &Layout) -> Result<PathBuf> {
    let own = std::env::current_exe().context("this executable cannot be found")?;
    files::public_dir(&layout.bin())?;
    if own.parent() == Some(layout.bin().as_path()) {
        return Ok(own);
    }
    let mut bytes = Vec::new();
    fs::File::open(&own).and_then(|mut f| f.read_to_end(&mut bytes)).with_context(|| format!("cannot read {}", own.display()))?;
    let hash = hex::encode(Sha256::digest(&bytes));
    let copy = layout.bin().join(format!("knarr-{}", &hash[..16]));
    if fs::metadata(&copy).map(|m| m.len()).ok() != Some(bytes.len() as u64) {
        files::write(&copy, &bytes, 0o755)?;
    }
    Ok(copy)
}

/// Adds the context `knarr` to the user's kubeconfig and makes it current.
fn merge(layout: &Layout, config: &Config) -> Result<PathBuf> {
    let path = user_kubeconfig();
    let existing = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let entry = material::admin_of(layout, config.secure_port)?;
    let merged = pki::merge_kubeconfig(&existing, &entry, true)
        .with_context(|| format!("{} cannot be added to; use {} instead", path.display(), layout.admin().display()))?;
    if merged != existing {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        files::write(&path, merged.as_bytes(), 0o600)?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

/// `~/.kube/config`, or the first file that KUBECONFIG names.
pub fn user_kubeconfig() -> PathBuf {
    let named = std::env::var_os("KUBECONFIG").and_then(|list| std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty()));
    named.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".kube/config"))
}

fn tail(path: &Path, from: u64) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(from as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
