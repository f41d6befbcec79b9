//! `reset`: takes back what `init` or `join` has done to this machine.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::config::ResetConfiguration;
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::Machine;
use crate::phases::Phase;
use crate::{etcd, fixes, preflight};

/// How long etcd may take to let its member go.
const LEAVING: Duration = Duration::from_secs(20);

/// The phases in their order.
pub const PHASES: &[Phase] =
    &[Phase { name: "preflight", parts: &[] }, Phase { name: "remove-etcd-member", parts: &[] }, Phase { name: "cleanup-node", parts: &[] }];

/// Runs one phase.
pub fn run(machine: &Machine<'_>, config: &ResetConfiguration, ignored: &[String], phase: &str) -> Result<()> {
    match phase {
        "preflight" => {
            if !config.force && !config.dry_run {
                confirm()?;
            }
            println!("[preflight] Running pre-flight checks");
            preflight::root(&preflight::ignored(ignored, &config.ignore_preflight_errors)?)
        }
        "remove-etcd-member" => {
            leave_etcd(machine, config.dry_run);
            Ok(())
        }
        "cleanup-node" => clean(machine, config),
        _ => Ok(()),
    }
}

/// Takes this machine's member off etcd's list, while it still serves. Nothing of that may keep a machine from being reset.
fn leave_etcd(machine: &Machine<'_>, dry_run: bool) {
    let dir = machine.host.data_dir().join("etcd");
    if !dir.exists() {
        return;
    }
    if dry_run {
        println!("[dryrun] Would remove the etcd member of this node from the etcd cluster");
        return;
    }
    println!("[reset] Removing the etcd member of this node from the etcd cluster");
    match Machine::wait(async { tokio::time::timeout(LEAVING, leave(machine, dir)).await.doing(|| "etcd does not answer".into())? }) {
        Ok(true) => println!("[reset] The member has left"),
        Ok(false) => println!("[reset] It is the only member: its data go with this machine's"),
        Err(error) => eprintln!("[reset] WARNING: the member stays on etcd's list: {}; knarr etcd remove on another control plane takes it off", error.chain()),
    }
}

async fn leave(machine: &Machine<'_>, dir: PathBuf) -> Result<bool> {
    let text = files::read(&machine.place.process())?;
    let settings: Value = serde_saphyr::from_str(&text).doing(|| "the settings of the node's process are no YAML".into())?;
    let word = |at: &str| settings.pointer(at).and_then(Value::as_str).unwrap_or_default().to_string();
    let address = word("/node-ip").parse().doing(|| "the settings of the node's process name no address".into())?;
    let pki = PathBuf::from(word("/kubeadm/pki-dir"));
    let access = etcd::certs::access(&pki, "etcd/healthcheck-client").doing(|| "etcd's certificates".into())?;
    let member = etcd::Member { name: word("/node-name"), address, client_port: 2379, peer_port: 2380, data: dir.join("data"), dir, pki };
    let local = etcd::Cluster::new(&[member.local_url()], Some(&access)).doing(|| "etcd on this machine".into())?;
    etcd::leave(&member, &local).await.doing(|| "etcd on this machine".into())
}

fn confirm() -> Result<()> {
    eprintln!("[reset] WARNING: Changes made to this host by 'kubeadm init' or 'kubeadm join' will be reverted.");
    print!("[reset] Are you sure you want to proceed? [y/N]: ");
    let mut answer = String::new();
    std::io::stdout().flush().and_then(|()| std::io::stdin().lock().read_line(&mut answer)).doing(|| "couldn't read from standard input".into())?;
    if answer.trim().eq_ignore_ascii_case("y") { Ok(()) } else { refused("won't proceed; the user didn't answer (Y|y) in order to continue") }
}

fn clean(machine: &Machine<'_>, config: &ResetConfiguration) -> Result<()> {
    let place = &machine.place;
    let mut dirs = vec![place.kubernetes.join("manifests"), place.kubelet.clone(), PathBuf::from(&config.certificates_dir)];
    if config.cleanup_tmp_dir {
        dirs.push(place.kubernetes.join("tmp"));
    }
    let mut conf: Vec<PathBuf> =
        ["admin", "super-admin", "kubelet", "bootstrap-kubelet", "controller-manager", "scheduler"].iter().map(|name| place.conf(name)).collect();
    conf.push(place.process());
    let words = |paths: &[PathBuf]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
    if config.dry_run {
        println!("[dryrun] Would stop the kubelet service");
        println!("[dryrun] Would remove Kubernetes-managed containers, their network, and {}", machine.host.data_dir().display());
        println!("[dryrun] Would delete contents of directories: [{}]", words(&dirs));
        println!("[dryrun] Would delete files: [{}]", words(&conf));
        return fixes::take_back(place, true);
    }
    println!("[reset] Stopping the kubelet service");
    machine.host.stop().doing(|| "the node's process could not be stopped".into())?;
    println!("[reset] Removing Kubernetes-managed containers, their network, and {}", machine.host.data_dir().display());
    machine.host.purge().doing(|| "what the node's process kept could not be removed".into())?;
    println!("[reset] Deleting contents of directories: [{}]", words(&dirs));
    for dir in &dirs {
        // Directories that were not there before go too, once they are empty.
        if files::clean(dir)? || dir.exists() {
            let _ = std::fs::remove_dir(dir);
        }
    }
    println!("[reset] Deleting files: [{}]", words(&conf));
    for path in &conf {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).doing(|| format!("cannot remove {}", path.display())),
            _ => {}
        }
    }
    fixes::take_back(place, false)?;
    let _ = std::fs::remove_dir(&place.kubernetes);
    println!("\nThe reset process does not remove kubeconfig files of users (as $HOME/.kube/config), and Node objects: kubectl delete node on a control plane does.\n");
    Ok(())
}
