//! Another address: of this machine, or of the control plane. What of the node names the old one is made anew, its
//! process is started again while its pods go on, and the cluster is told; in the end it is said what is to be done
//! elsewhere.
//!
//! What was begun is noted, so that a move that was cut short anywhere goes on when it is asked for again.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::certs::{self, local_endpoint};
use crate::cluster::{Cluster, collection};
use crate::config::{duration, host_port};
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::{Machine, Role};
use crate::kubeconfigs;
use crate::renew::Keeper;

/// How long the API server is asked again after its process was started.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The machine's new address; the present one of its default route when none.
    pub to: Option<Ipv4Addr>,
    /// Where the control plane is from now on; then nothing is done about the machine's own address.
    pub server: Option<String>,
    /// Say what would be done.
    pub dry_run: bool,
}

/// A move that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    from: Ipv4Addr,
    to: Ipv4Addr,
}

/// A node that `init` or `join` has made, by the settings of its process.
struct Placed<'a> {
    machine: &'a Machine<'a>,
    settings: Value,
    dry_run: bool,
}

/// Does it.
pub fn run(machine: &Machine<'_>, wishes: &Wishes) -> Result<()> {
    let path = machine.place.process();
    if !path.exists() {
        return refused(format!("{} is not there: this is for nodes that init or join has made; others take another address when they are started with it (--node-ip)", path.display()));
    }
    let settings = serde_saphyr::from_str(&files::read(&path)?).doing(|| format!("{} is no YAML", path.display()))?;
    let node = Placed { machine, settings, dry_run: wishes.dry_run };
    match &wishes.server {
        Some(server) => node.follow(server),
        None => node.go(wishes.to),
    }
}

impl Placed<'_> {
    fn text(&self, at: &str) -> &str {
        self.settings.pointer(at).and_then(Value::as_str).unwrap_or_default()
    }

    fn role(&self) -> Role {
        if self.settings["kubeadm"]["pki-dir"].is_string() { Role::ControlPlane } else { Role::Worker }
    }

    fn port(&self) -> u16 {
        self.settings["secure-port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(6443)
    }

    /// Says what is done; whether it is.
    fn does(&self, what: &str) -> bool {
        println!("[{}] {what}", if self.dry_run { "dryrun" } else { "readdress" });
        !self.dry_run
    }

    fn restart(&self) -> Result<()> {
        if self.does("Starting the node's process again; its pods go on") {
            self.machine.host.restart(self.role(), &self.machine.place.process()).doing(|| "the node's process does not start".into())?;
        }
        Ok(())
    }

    /// The control plane is elsewhere.
    fn follow(&self, server: &str) -> Result<()> {
        let named = server.strip_prefix("https://").unwrap_or(server);
        let (host, port) = host_port(named).doing(|| format!("--server {server:?}: https://HOST:PORT is meant"))?;
        let server = local_endpoint(&host, port.unwrap_or(6443));
        let place = &self.machine.place;
        let own = local_endpoint(self.text("/node-ip"), self.port());
        // A control plane's own clients stay with it.
        let files: Vec<PathBuf> = match self.role() {
            Role::Worker => vec![place.conf("kubelet")],
            Role::ControlPlane => kubeconfigs::ALL.iter().filter(|s| !s.is_local()).map(|s| place.conf(s.file)).filter(|p| p.exists()).collect(),
        };
        let Some(first) = files.first() else { return refused("this machine has no kubeconfig that leads to the control plane") };
        // Before anything is changed: is it the cluster, and does it know this node?
        let name = self.text("/node-name").to_string();
        let node = Machine::wait(async {
            let path = format!("{}/{name}", collection::<Node>(""));
            let asked = async { Cluster::of(first, Some(&server))?.get(&path).await };
            tokio::time::timeout(PATIENCE, asked).await.doing(|| "it does not answer".into())?
        });
        if node.doing(|| format!("{server} cannot be used"))?.is_none() {
            return refused(format!("{server} is an API server of another cluster, or the node {name} was deleted: nothing was changed"));
        }
        let mut changed = false;
        for path in files {
            let text = files::read(&path)?;
            let others = |url: &str| (url != own && url != server).then(|| server.clone());
            if let Some(new) = with_server(&text, others).doing(|| format!("{} cannot be changed", path.display()))? {
                changed = true;
                if self.does(&format!("{} leads to {server}", path.display())) {
                    files::write(&path, new.as_bytes(), 0o600)?;
                }
            }
        }
        match self.role() {
            Role::Worker if changed || self.machine.host.running().is_none() => self.restart(),
            _ if changed => Ok(()),
            _ => {
                println!("[readdress] This node is led to {server} already");
                Ok(())
            }
        }
    }

    /// This machine is elsewhere.
    fn go(&self, to: Option<Ipv4Addr>) -> Result<()> {
        let host = self.machine.host;
        let to = match to {
            Some(to) => to,
            None => host.facts().address.parse().doing(|| "this machine has no route by default: name its address by --to".into())?,
        };
        if UdpSocket::bind((to, 0)).is_err() {
            return refused(format!("{to} is no address of this machine: give it to a link first (ip addr add), or name another by --to"));
        }
        let Ok(from) = self.text("/node-ip").parse::<Ipv4Addr>() else {
            // A worker that was told no address takes the one that it finds when it is started.
            println!("[readdress] The node {} is to be at {to}", self.text("/node-name"));
            return self.restart();
        };
        let note = self.machine.place.kubernetes.join("readdress.json");
        let begun = match std::fs::read(&note) {
            Ok(text) => serde_json::from_slice(&text).doing(|| format!("{} is damaged: remove it", note.display()))?,
            Err(_) => Begun { from, to },
        };
        if begun.to != to {
            return refused(format!("a move from {} to {} has not been finished: finish it first, by --to {}", begun.from, begun.to, begun.to));
        }
        if begun.from == to {
            println!("[readdress] The node {} is at {to} already: nothing is to be done", self.text("/node-name"));
            return Ok(());
        }
        println!("[readdress] The node {} moves from {} to {to}", self.text("/node-name"), begun.from);
        if !self.dry_run {
            files::write(&note, &serde_json::to_vec(&begun).doing(|| "noting the move".into())?, 0o600)?;
        }
        let (old, new) = (begun.from.to_string(), to.to_string());
        if self.role() == Role::ControlPlane {
            self.certificates(&old, &new)?;
        }
        self.kubeconfigs(&old, &new)?;
        self.settings(&old, &new)?;
        self.restart()?;
        let shared = match self.role() {
            Role::ControlPlane => Machine::wait(self.objects(&old, &new))?,
            Role::Worker => None,
        };
        if !self.dry_run {
            std::fs::remove_file(&note).doing(|| format!("cannot remove {}", note.display()))?;
        }
        self.elsewhere(&old, &new, shared);
        Ok(())
    }

    /// Certificates that name the old address, with the new one in its place.
    fn certificates(&self, from: &str, to: &str) -> Result<()> {
        let lifetime = duration(self.text("/certificate-validity-period")).and_then(|d| SignedDuration::try_from(d).ok()).unwrap_or(SignedDuration::from_hours(24 * 365));
        let keeper = Keeper { place: &self.machine.place, dir: PathBuf::from(self.text("/kubeadm/pki-dir")), lifetime };
        for cert in certs::ALL.iter().filter(|c| c.ca.is_some()) {
            let path = keeper.dir.join(format!("{}.crt", cert.base));
            if !path.exists() {
                continue;
            }
            let names = pki::names_of(&files::read(&path)?).doing(|| format!("{} cannot be read", path.display()))?;
            if names.iter().any(|n| n == from) && self.does(&format!("The {} is made anew", cert.about)) {
                let names = names.into_iter().map(|n| if n == from { to.to_string() } else { n });
                keeper.replace(cert, unique(names), Timestamp::now())?;
            }
        }
        Ok(())
    }

    fn kubeconfigs(&self, from: &str, to: &str) -> Result<()> {
        for spec in &kubeconfigs::ALL {
            let path = self.machine.place.conf(spec.file);
            if !path.exists() {
                continue;
            }
            let text = files::read(&path)?;
            if let Some(new) = with_server(&text, |url| moved(url, from, to)).doing(|| format!("{} cannot be changed", path.display()))?
                && self.does(&format!("{} leads to {to}", path.display()))
            {
                files::write(&path, new.as_bytes(), 0o600)?;
            }
        }
        Ok(())
    }

    /// Those of the node's process, and the kubelet's flags beside them.
    fn settings(&self, from: &str, to: &str) -> Result<()> {
        let flags = self.machine.place.kubelet.join("kubeadm-flags.env");
        let (old, new) = (format!("--node-ip={from}"), format!("--node-ip={to}"));
        if let Ok(text) = std::fs::read_to_string(&flags)
            && text.split([' ', '"']).any(|flag| flag == old)
            && self.does(&format!("{} names {to}", flags.display()))
        {
            let text: Vec<&str> = text.split(' ').collect();
            let text = text.iter().map(|flag| if flag.trim_end_matches(['"', '\n']).ends_with(&old) { flag.replace(&old, &new) } else { flag.to_string() });
            files::write(&flags, text.collect::<Vec<_>>().join(" ").as_bytes(), 0o644)?;
        }
        let path = self.machine.place.process();
        if self.text("/node-ip") == from && self.does(&format!("{} names {to}", path.display())) {
            let mut settings = self.settings.clone();
            settings["node-ip"] = to.into();
            crate::process::write(self.machine, &settings)?;
        }
        Ok(())
    }

    /// What the cluster says of itself, if that names the old address; then the other nodes, which know it from there.
    async fn objects(&self, from: &str, to: &str) -> Result<Option<Vec<String>>> {
        let local = local_endpoint(to, self.port());
        let maps = [("kube-public", "cluster-info", "kubeconfig"), ("kube-system", "kubeadm-config", "ClusterConfiguration")];
        if self.dry_run {
            println!("[dryrun] The ConfigMaps {} and {} are changed where they name {from}", maps[0].1, maps[1].1);
            return Ok(None);
        }
        let cluster = Cluster::of(&self.machine.place.conf("admin"), Some(&local))?;
        let asked = async {
            while cluster.healthy().await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, asked).await.is_err() {
            cluster.healthy().await.doing(|| format!("{local} is not ready; say the same again when it is"))?;
        }
        let mut shared = false;
        for (namespace, name, key) in maps {
            let Some(text) = cluster.config_map(namespace, name, key).await? else { continue };
            let new = match key {
                "kubeconfig" => with_server(&text, |url| moved(url, from, to)),
                _ => with_endpoint(&text, from, to),
            };
            if let Some(new) = new.doing(|| format!("the ConfigMap {name} cannot be changed"))? {
                self.does(&format!("The ConfigMap {name} names {to}"));
                cluster.patch(&format!("{}/{name}", collection::<ConfigMap>(namespace)), &json!({"data": {key: new}})).await?;
                shared |= key == "kubeconfig";
            }
        }
        if !shared {
            return Ok(None);
        }
        let nodes = cluster.get(&collection::<Node>("")).await?.unwrap_or_default();
        let names = nodes["items"].as_array().into_iter().flatten().filter_map(|n| n["metadata"]["name"].as_str());
        Ok(Some(names.filter(|n| *n != self.text("/node-name")).map(String::from).collect()))
    }

    fn elsewhere(&self, from: &str, to: &str, shared: Option<Vec<String>>) {
        let server = local_endpoint(to, self.port());
        println!("\nThis node is at {to} now. Elsewhere:");
        if let Some(others) = shared {
            if !others.is_empty() {
                println!("* The cluster was joined by {from}. On each of {}, say:\n\n\tknarr readdress --server {server}\n", others.join(", "));
            }
            println!("* Join commands that were printed before name the old address; kubeadm token create --print-join-command prints one with the new.");
        }
        if self.role() == Role::ControlPlane {
            println!("* Users' kubeconfigs that name {from}: sudo cp -i {} $HOME/.kube/config", self.machine.place.conf("admin").display());
            println!("* A load balancer before the control planes has to be told.");
        }
        println!("* Firewalls, and names that lead to {from}, in DNS and /etc/hosts.\n");
    }
}

fn unique(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    names.filter(|name| seen.insert(name.clone())).collect()
}

/// A URL with another host, if it has this one.
fn moved(url: &str, from: &str, to: &str) -> Option<String> {
    let (host, port) = host_port(url.strip_prefix("https://")?).ok()?;
    let port = port.map(|p| format!(":{p}")).unwrap_or_default();
    (host == from).then(|| format!("https://{to}{port}"))
}

type Changed = std::result::Result<Option<String>, Box<dyn std::error::Error + Send + Sync>>;

/// A kubeconfig whose clusters are elsewhere, where `to` says so.
fn with_server(text: &str, to: impl Fn(&str) -> Option<String>) -> Changed {
    let mut document: Value = serde_saphyr::from_str(text)?;
    let mut changed = false;
    for cluster in document.pointer_mut("/clusters").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(server) = cluster.pointer_mut("/cluster/server") else { continue };
        if let Some(new) = server.as_str().and_then(&to) {
            (*server, changed) = (new.into(), true);
        }
    }
    Ok(if changed { Some(serde_saphyr::to_string(&document)?) } else { None })
}

/// A ClusterConfiguration with another endpoint and other names for the API server.
fn with_endpoint(text: &str, from: &str, to: &str) -> Changed {
    let mut document: Value = serde_saphyr::from_str(text)?;
    let mut changed = false;
    if let Some(endpoint) = document["controlPlaneEndpoint"].as_str()
        && let Ok((host, port)) = host_port(endpoint)
        && host == from
    {
        let port = port.map(|p| format!(":{p}")).unwrap_or_default();
        (document["controlPlaneEndpoint"], changed) = (format!("{to}{port}").into(), true);
    }
    for name in document.pointer_mut("/apiServer/certSANs").and_then(Value::as_array_mut).into_iter().flatten() {
        if name.as_str().and_then(|n| n.parse::<IpAddr>().ok()) == from.parse().ok() {
            (*name, changed) = (to.into(), true);
        }
    }
    Ok(if changed { Some(serde_saphyr::to_string(&document)?) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_move_with_their_host_alone() {
        assert_eq!(moved("https://10.0.0.1:6443", "10.0.0.1", "10.0.0.2").as_deref(), Some("https://10.0.0.2:6443"));
        assert_eq!(moved("https://10.0.0.11:6443", "10.0.0.1", "10.0.0.2"), None);
        assert_eq!(moved("https://lb:6443", "10.0.0.1", "10.0.0.2"), None);
    }

    #[test]
    fn what_names_the_old_address_is_changed_and_nothing_else() {
        let config = "clusters:\n- name: a\n  cluster:\n    server: https://10.0.0.1:6443\n- name: b\n  cluster:\n    server: https://10.0.0.9:6443\nusers: []\n";
        let new = with_server(config, |url| moved(url, "10.0.0.1", "10.0.0.2")).expect("a kubeconfig").expect("changed");
        assert!(new.contains("https://10.0.0.2:6443") && new.contains("https://10.0.0.9:6443") && new.contains("users"), "{new}");
        assert!(with_server(config, |url| moved(url, "10.0.0.3", "10.0.0.2")).expect("a kubeconfig").is_none());
        let config = "controlPlaneEndpoint: 10.0.0.1:6443\napiServer:\n  certSANs: [10.0.0.1, lb]\nclusterName: kubernetes\n";
        let new = with_endpoint(config, "10.0.0.1", "10.0.0.2").expect("a configuration").expect("changed");
        assert!(!new.contains("10.0.0.1") && new.matches("10.0.0.2").count() == 2 && new.contains("lb") && new.contains("clusterName: kubernetes"), "{new}");
        let bare = with_endpoint("controlPlaneEndpoint: 10.0.0.1:6443\n", "10.0.0.1", "10.0.0.2").expect("a configuration").expect("changed");
        assert_eq!(bare.trim(), "controlPlaneEndpoint: 10.0.0.2:6443", "nothing is added");
        assert!(with_endpoint("controlPlaneEndpoint: lb:6443\n", "10.0.0.1", "10.0.0.2").expect("a configuration").is_none());
    }
}
