//! `join`: a machine becomes a node of a cluster, or another of its control planes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::Entry;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::certs::{ALL, Authority, External};
use crate::cluster::Cluster;
use crate::config::{ClusterConfiguration, Documents, InitConfig, InitConfiguration, JoinConfiguration, duration};
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::{Machine, Role};
use crate::init::{self, Wishes};
use crate::patches::Patches;
use crate::phases::Phase;
use crate::{discovery, kubeconfigs, kubelet, node, preflight, process, shared_certs};

/// The phases in their order.
pub const PHASES: &[Phase] = &[
    Phase { name: "preflight", parts: &[] },
    Phase { name: "control-plane-prepare", parts: &["download-certs", "certs", "kubeconfig", "control-plane"] },
    Phase { name: "check-etcd", parts: &[] },
    Phase { name: "kubelet-start", parts: &[] },
    Phase { name: "etcd-join", parts: &[] },
    Phase { name: "kubelet-wait-bootstrap", parts: &[] },
    Phase { name: "control-plane-join", parts: &["mark-control-plane"] },
    Phase { name: "wait-control-plane", parts: &[] },
];

/// What is known once the cluster was found.
struct Found {
    entry: Entry,
    cluster: Cluster,
    /// The cluster's configuration, with this machine's part of it.
    config: InitConfig,
    kubelet: String,
}

/// A `join` under way.
pub struct Join<'a> {
    machine: &'a Machine<'a>,
    config: JoinConfiguration,
    wishes: Wishes,
    patches: Patches,
    found: Option<Found>,
    /// What was written, to be taken back if it comes to nothing.
    written: Vec<PathBuf>,
    /// Directories that were not there before, and may be taken away whole.
    fresh: Vec<PathBuf>,
    /// Directories that were not there before, and go if nothing else is in them; the deepest first.
    made: Vec<PathBuf>,
    /// Whether the node's process kept nothing here before.
    first: bool,
    started: bool,
}

impl<'a> Join<'a> {
    /// Of a configuration that was completed and checked.
    pub fn new(machine: &'a Machine<'a>, config: JoinConfiguration, wishes: Wishes) -> Result<Join<'a>> {
        let patches = Patches::read(config.patches.as_ref().map_or("", |p| p.directory.as_str()))?;
        Ok(Join { machine, config, wishes, patches, found: None, written: Vec::new(), fresh: Vec::new(), made: Vec::new(), first: std::fs::read_dir(machine.host.data_dir()).map_or(true, |mut all| all.next().is_none()), started: false })
    }

    fn control_plane(&self) -> bool {
        self.config.control_plane.is_some()
    }

    fn name(&self) -> &str {
        &self.config.node_registration.name
    }

    /// Finds the cluster, and reads what it is.
    async fn found(&mut self) -> Result<&Found> {
        if self.found.is_none() {
            let entry = discovery::discover(&self.config).await?;
            let cluster = Cluster::entry(&entry)?;
            let read = cluster.config_map("kube-system", "kubeadm-config", "ClusterConfiguration").await;
            let said = || "unable to fetch the kubeadm-config ConfigMap".to_string();
            println!("[preflight] Reading configuration from the \"kubeadm-config\" ConfigMap in namespace \"kube-system\"...");
            println!("[preflight] Use 'kubeadm init phase upload-config kubeadm --config your-config-file' to re-upload it.");
            let Some(text) = read.doing(said)? else {
                return refused(format!("{}: there is none: was this cluster made by init?", said()));
            };
            let mut config = Documents::parse(&text).and_then(Documents::init).doing(said)?;
            let kubelet = cluster.config_map("kube-system", "kubelet-config", "kubelet").await?.unwrap_or_default();
            config.init = InitConfiguration { node_registration: self.config.node_registration.clone(), ..InitConfiguration::default() };
            if let Some(control_plane) = &self.config.control_plane {
                config.init.local_api_endpoint = control_plane.local_api_endpoint.clone();
            }
            self.found = Some(Found { entry, cluster, config, kubelet });
        }
        match &self.found {
            Some(found) => Ok(found),
            None => refused("the cluster was not found"),
        }
    }

    fn dir(machine: &Machine<'_>, cluster: &ClusterConfiguration) -> PathBuf {
        machine.certificates(&cluster.certificates_dir)
    }

    /// Runs one phase, or one part of it.
    pub async fn run(&mut self, phase: &str, part: &str) -> Result<()> {
        let control_plane = self.control_plane();
        match (phase, part) {
            ("preflight", _) => self.preflight().await,
            ("control-plane-prepare", part) if control_plane && !part.is_empty() => self.prepare(part).await,
            ("kubelet-start", _) => self.bootstrap().await,
            ("kubelet-wait-bootstrap", _) => self.start().await,
            ("control-plane-join", "mark-control-plane") if control_plane => {
                let port = self.config.control_plane.as_ref().map_or(6443, |c| c.local_api_endpoint.bind_port);
                let address = self.config.control_plane.as_ref().map(|c| c.local_api_endpoint.advertise_address.clone()).unwrap_or_default();
                let local = crate::certs::local_endpoint(&address, port);
                let cluster = Cluster::of(&self.machine.place.conf("admin"), Some(&local))?;
                let found = self.found().await?;
                init::mark(&cluster, &found.config).await.doing(|| "error applying control-plane label and taints".into())
            }
            ("wait-control-plane", _) if control_plane => {
                println!("[control-plane-check] All control plane components of this node are healthy");
                Ok(())
            }
            ("etcd-join", _) if control_plane => {
                match &self.found().await?.config.cluster.etcd.local {
                    Some(_) => println!("[etcd] A member of etcd is started beside the node's own process, and joins the others"),
                    None => println!("[control-plane-join] Using external etcd - no local stacked instance added"),
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn preflight(&mut self) -> Result<()> {
        println!("[preflight] Running pre-flight checks");
        preflight::root(&self.wishes.ignored)?;
        let (host, place) = (self.machine.host, &self.machine.place);
        let mut findings = self.wishes.mended(place, || preflight::join(host, place, &self.config))?;
        kubelet::unused(&mut findings, &self.config.node_registration);
        self.patches.check(&mut findings);
        preflight::peers::clock(&mut findings, discovery::clock(&self.config).await);
        findings.report(&self.wishes.ignored)?;
        let (host, place, ignored) = (self.machine.host, self.machine.place.clone(), self.wishes.ignored.clone());
        let key = self.config.control_plane.as_ref().map(|c| c.certificate_key.clone());
        let (name, program, wishes) = (self.name().to_string(), self.wishes.etcd_program.clone(), self.wishes.clone());
        let machine = self.machine;
        let socket = self.config.node_registration.cri_socket.clone();
        let found = self.found().await?;
        let mut findings = preflight::Findings::default();
        preflight::peers::duplicates(&mut findings, &preflight::peers::Own::read(), &name, &found.cluster.nodes().await?);
        preflight::runtime::check(&mut findings, &socket, &kubelet::cgroup_driver(&found.kubelet)).await;
        findings.report(&ignored)?;
        if node::taken(&found.cluster, &name).await.doing(|| format!("reading the node {name:?}"))? {
            let mut findings = preflight::Findings::default();
            let text = format!("a Node with name {name:?} and status \"Ready\" already exists in the cluster. You must delete the existing Node or change the name of this new joining Node (--node-name)");
            findings.error("NodeName", text);
            findings.report(&ignored)?;
        }
        let Some(key) = key else { return Ok(()) };
        let cluster = &found.config.cluster;
        if cluster.control_plane_endpoint.is_empty() {
            return refused(
                "One or more conditions for hosting a new control plane instance is not satisfied.\n\nunable to add a new control plane instance to a cluster that doesn't have a stable controlPlaneEndpoint address\n\n\
                 Please ensure that:\n* The cluster has a stable controlPlaneEndpoint address.\n* The certificates that must be shared among control plane instances are provided.\n",
            );
        }
        if cluster.etcd.external.is_none() && cluster.etcd.local.is_none() {
            return refused(
                "this cluster's objects are in the embedded store of one control plane, which another one cannot share: make the cluster with \
                 `kubeadm init --etcd`, or move the objects to an etcd (knarr store migrate --to etcd on the first) and name it in etcd.external of kubeadm-config",
            );
        }
        if cluster.etcd.local.is_some() {
            let mut findings = preflight::Findings::default();
            if let Err(error) = crate::etcd::find_program(program.as_deref()).await {
                findings.error("Etcd", format!("{error}: a member of etcd runs beside each control plane of this cluster; install the package etcd-server, or name the program with --etcd-program"));
            }
            findings.report(&ignored)?;
        }
        if key.is_empty() {
            preflight::control_plane_files(&shared_certs::missing(&Self::dir(machine, cluster), cluster))?;
        }
        println!("[preflight] Running pre-flight checks before initializing the new control plane instance");
        let findings = wishes.mended(&place, || preflight::init(host, &place, &found.config, false, !key.is_empty()))?;
        findings.report(&ignored)?;
        println!("[preflight] Nothing needs pulling: the components are in this binary");
        Ok(())
    }

    async fn prepare(&mut self, part: &str) -> Result<()> {
        let key = self.config.control_plane.as_ref().map(|c| c.certificate_key.clone()).unwrap_or_default();
        let (machine, program) = (self.machine, self.wishes.etcd_program.clone());
        let dir = Self::dir(machine, &self.found().await?.config.cluster);
        if !dir.exists() {
            self.fresh.push(dir.clone());
        }
        let confs = ["admin", "controller-manager", "scheduler"].map(|name| machine.place.conf(name));
        let new = confs.into_iter().chain([machine.place.process()]).filter(|path| !path.exists());
        self.written.extend(new);
        let found = self.found().await?;
        let config = &found.config;
        let endpoint = &config.init.local_api_endpoint;
        let authority = Authority {
            dir: dir.clone(),
            cluster: &config.cluster,
            node: &config.init.node_registration.name,
            address: &endpoint.advertise_address,
            now: Timestamp::now(),
        };
        match part {
            "download-certs" if !key.is_empty() => shared_certs::download(&found.cluster, &config.cluster, &dir, &key).await.doing(|| "error downloading certs".into()),
            "certs" => {
                println!("[certs] Using certificateDir folder {:?}", dir.display().to_string());
                let external = config.cluster.etcd.external.is_some();
                for cert in ALL.iter().filter(|c| !external || (c.name != "etcd-ca" && c.ca != Some("etcd-ca"))) {
                    authority.make(cert)?;
                }
                authority.service_account()
            }
            "kubeconfig" => {
                let wanted = ["admin", "controller-manager", "scheduler"];
                if authority.external(External::Cluster)? {
                    kubeconfigs::given(&authority, &machine.place, endpoint.bind_port, &wanted)?;
                    wanted.iter().for_each(|name| println!("[kubeconfig] External CA mode: Using user provided {name}.conf"));
                    return Ok(());
                }
                println!("[kubeconfig] Generating kubeconfig files");
                println!("[kubeconfig] Using kubeconfig folder {:?}", machine.place.kubernetes.display().to_string());
                for spec in kubeconfigs::ALL.iter().filter(|s| wanted.contains(&s.file)) {
                    kubeconfigs::write(&authority, &machine.place, endpoint.bind_port, spec)?;
                }
                Ok(())
            }
            "control-plane" => {
                let path = machine.place.process();
                println!("[control-plane] The control plane runs in the node's own process: writing its settings to {:?}", path.display().to_string());
                let mut member = process::Member { program, join: Vec::new() };
                if config.cluster.etcd.local.is_some() {
                    let cluster = Cluster::of(&machine.place.conf("admin"), Some(&found.entry.server))?;
                    member.join = members(&cluster).await.doing(|| "looking for the members of etcd".into())?;
                }
                process::write(machine, &process::server(machine, config, &dir, &member)?)
            }
            _ => Ok(()),
        }
    }

    /// Asks for the node's certificate, and writes what its process is started with.
    async fn bootstrap(&mut self) -> Result<()> {
        let machine = self.machine;
        let (worker, ca_path) = (!self.control_plane(), PathBuf::from(&self.config.ca_cert_path));
        let patience = self.config.timeouts.as_ref().and_then(|t| duration(&t.tls_bootstrap)).unwrap_or(Duration::from_secs(300));
        let (name, registration) = (self.name().to_string(), self.config.node_registration.clone());
        let yaml = self.found().await?.kubelet.clone();
        let patched = self.patches.apply(&yaml)?;
        let place = &machine.place;
        let mut written = vec![place.kubelet_client(), place.conf("kubelet"), place.process(), place.kubelet.join("kubeadm-flags.env"), place.kubelet.join("config.yaml")];
        if worker {
            written.push(ca_path.clone());
        }
        // Noted before anything is written: a disk may be full in the middle.
        let missing = |path: &&Path| !path.exists();
        let mut made: Vec<PathBuf> = written.iter().flat_map(|path| path.ancestors().skip(1).filter(missing).map(PathBuf::from)).collect();
        made.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
        self.made.extend(made);
        self.written.extend(written.into_iter().filter(|path| !path.exists()));
        let found = self.found().await?;
        println!("[kubelet-start] Performing the TLS Bootstrap");
        let pair = node::certificate(&found.cluster, &name, &node::CLIENT, patience).await.doing(|| "failed while waiting for TLS bootstrap".into())?;
        node::keep(&machine.place, &pair, &name, &found.entry, &found.config.cluster.cluster_name)?;
        if worker {
            files::write(&ca_path, found.entry.ca.as_bytes(), 0o644)?;
            process::write(machine, &process::agent(machine, &registration, &found.config.cluster)?)?;
        }
        kubelet::write_files(&machine.place, &registration, worker, &patched)
    }

    async fn start(&mut self) -> Result<()> {
        println!("[kubelet-start] Starting the kubelet");
        let role = if self.control_plane() { Role::ControlPlane } else { Role::Worker };
        let begun = Instant::now();
        self.started = true;
        self.machine.host.start(role, &self.machine.place.process()).doing(|| "failed while waiting for the kubelet to start".into())?;
        println!("[kubelet-check] The node is Ready after {:.2} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Takes back what a join that failed has written, so that nothing half-joined stays and it can be tried again.
    pub fn take_back(&self) {
        let host = self.machine.host;
        if self.started
            && let Err(error) = host.stop().and_then(|()| if self.first { host.purge() } else { Ok(()) })
        {
            eprintln!("[join] the node's process could not be taken away: {error}");
        }
        for dir in &self.fresh {
            if let Err(error) = std::fs::remove_dir_all(dir)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("[join] {} could not be removed: {error}", dir.display());
            }
        }
        for path in &self.written {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("[join] {} could not be removed: {error}", path.display());
            }
        }
        for dir in &self.made {
            // Somebody else may have put something there meanwhile.
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// What upstream says at the end.
    pub fn done(&self) -> String {
        if !self.control_plane() {
            return "\nThis node has joined the cluster:\n* Certificate signing request was sent to apiserver and a response was received.\n\
                    * The Kubelet was informed of the new secure connection details.\n\nRun 'kubectl get nodes' on the control-plane to see this node join the cluster.\n\n"
                .into();
        }
        let admin = self.machine.place.conf("admin");
        let stacked = self.found.as_ref().is_some_and(|f| f.config.cluster.etcd.local.is_some());
        let etcd = if stacked { "* A new etcd member was added to the local/stacked etcd cluster." } else { "" };
        format!(
            "\nThis node has joined the cluster and a new control plane instance was created:\n\n\
             * Certificate signing request was sent to apiserver and approval was received.\n* The Kubelet was informed of the new secure connection details.\n\
             * Control plane label and taint were applied to the new node.\n* The Kubernetes control plane instances scaled up.\n{etcd}\n\n\
             To start administering your cluster from this node, you need to run the following as a regular user:\n\n\
             \tmkdir -p $HOME/.kube\n\tsudo cp -i {} $HOME/.kube/config\n\tsudo chown $(id -u):$(id -g) $HOME/.kube/config\n\n\
             Run 'kubectl get nodes' to see this node join the cluster.\n\n",
            admin.display()
        )
    }
}

/// The port on which members of etcd serve clients.
const ETCD: u16 = 2379;

/// Where the members of etcd beside the control planes are.
async fn members(cluster: &Cluster) -> Result<Vec<String>> {
    let path = format!("{}?labelSelector=node-role.kubernetes.io%2Fcontrol-plane", crate::cluster::collection::<Node>(""));
    let nodes = cluster.get(&path).await?.unwrap_or_default();
    let mut all = Vec::new();
    for node in nodes["items"].as_array().into_iter().flatten() {
        let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        all.extend(addresses.filter(|a| a["type"] == "InternalIP").filter_map(|a| Some(format!("https://{}:{ETCD}", a["address"].as_str()?))));
    }
    if all.is_empty() { refused("the cluster has no control plane with an address") } else { Ok(all) }
}
