//! `init`: a cluster's first control plane, phase by phase.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::certs::{self, Authority, External, endpoint, local_endpoint};
use crate::cluster::{self, Cluster};
use crate::config::{ClusterConfiguration, InitConfig, duration, to_yaml};
use crate::error::{Doing, Result, refused};
use crate::files;
use crate::host::{Machine, Role};
use crate::patches::Patches;
use crate::phases::Phase;
use crate::{fixes, kubeconfigs, kubelet, preflight, process, shared_certs, tokens};

/// The phases in their order, each with its parts.
pub const PHASES: &[Phase] = &[
    Phase { name: "preflight", parts: &[] },
    Phase {
        name: "certs",
        parts: &[
            "ca",
            "apiserver",
            "apiserver-kubelet-client",
            "front-proxy-ca",
            "front-proxy-client",
            "etcd-ca",
            "etcd-server",
            "etcd-peer",
            "etcd-healthcheck-client",
            "apiserver-etcd-client",
            "sa",
        ],
    },
    Phase { name: "kubeconfig", parts: &["admin", "super-admin", "kubelet", "controller-manager", "scheduler"] },
    Phase { name: "etcd", parts: &["local"] },
    Phase { name: "control-plane", parts: &["apiserver", "controller-manager", "scheduler"] },
    Phase { name: "kubelet-start", parts: &[] },
    Phase { name: "wait-control-plane", parts: &[] },
    Phase { name: "upload-config", parts: &["kubeadm", "kubelet"] },
    Phase { name: "upload-certs", parts: &[] },
    Phase { name: "mark-control-plane", parts: &[] },
    Phase { name: "bootstrap-token", parts: &[] },
    Phase { name: "kubelet-finalize", parts: &["enable-client-cert-rotation"] },
    Phase { name: "addon", parts: &["coredns", "kube-proxy"] },
    Phase { name: "show-join-command", parts: &[] },
];

/// What was asked besides the configuration.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Checks whose findings are warnings.
    pub ignored: BTreeSet<String>,
    /// Put the certificates into the cluster.
    pub upload_certs: bool,
    /// Do not print the token, the key.
    pub hide_token: bool,
    /// Do not print the key of the certificates.
    pub hide_key: bool,
    /// As whom the cluster is changed; `admin.conf` when none.
    pub kubeconfig: Option<PathBuf>,
    /// Check, and change nothing.
    pub dry_run: bool,
    /// Mend what preflight checks find, where that is safe.
    pub fix: bool,
    /// The program of etcd, where a member of it runs beside the control plane.
    pub etcd_program: Option<PathBuf>,
    /// A file has settings of a local etcd that nobody reads.
    pub unused_etcd: bool,
}

impl Wishes {
    /// What checks find, once what can be mended is, if that is wanted.
    pub fn mended(&self, place: &files::Place, look: impl Fn() -> preflight::Findings) -> Result<preflight::Findings> {
        let found = look();
        let fixes = found.fixes();
        if !self.fix || fixes.is_empty() {
            return Ok(found);
        }
        fixes::apply(place, &fixes, self.dry_run)?;
        Ok(look())
    }
}

/// An `init` under way.
pub struct Init<'a> {
    machine: &'a Machine<'a>,
    config: InitConfig,
    wishes: Wishes,
    certificates: PathBuf,
    patches: Patches,
    external: bool,
    cluster: Option<Cluster>,
    begun: Instant,
}

impl<'a> Init<'a> {
    /// Of a configuration that was completed and checked.
    pub fn new(machine: &'a Machine<'a>, config: InitConfig, wishes: Wishes) -> Result<Init<'a>> {
        let certificates = machine.certificates(&config.cluster.certificates_dir);
        let patches = Patches::read(config.init.patches.as_ref().map_or("", |p| p.directory.as_str()))?;
        let mut init = Init { machine, config, wishes, certificates, patches, external: false, cluster: None, begun: Instant::now() };
        let authority = init.authority();
        let external = authority.external(External::Cluster)?;
        if external {
            kubeconfigs::given(&authority, &machine.place, init.port(), &["controller-manager", "scheduler", "admin", "super-admin", "kubelet"])?;
        }
        let front_proxy = authority.external(External::FrontProxy)?;
        if init.wishes.upload_certs && (external || front_proxy) {
            return refused("can't use upload-certs with an external CA or an external front-proxy CA");
        }
        init.external = external;
        Ok(init)
    }

    fn authority(&self) -> Authority<'_> {
        Authority {
            dir: self.certificates.clone(),
            cluster: &self.config.cluster,
            node: &self.config.init.node_registration.name,
            address: &self.config.init.local_api_endpoint.advertise_address,
            now: Timestamp::now(),
        }
    }

    fn port(&self) -> u16 {
        self.config.init.local_api_endpoint.bind_port
    }

    fn admin(&self) -> PathBuf {
        self.wishes.kubeconfig.clone().unwrap_or_else(|| self.machine.place.conf("admin"))
    }

    /// The cluster, as its administrator, at this machine's own API server. Once the administrators' group has its rights.
    async fn cluster(&mut self) -> Result<Cluster> {
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.clone());
        }
        let place = &self.machine.place;
        let own = self.wishes.kubeconfig.is_none();
        let local = local_endpoint(&self.config.init.local_api_endpoint.advertise_address, self.port());
        let cluster = Cluster::of(&self.admin(), own.then_some(local.as_str()))?;
        if own {
            let binding = cluster::cluster_binding("kubeadm:cluster-admins", "cluster-admin", json!([cluster::group("kubeadm:cluster-admins")]));
            match cluster.create(&binding).await {
                Err(error) if Cluster::is_forbidden(&error) => {
                    let path = place.conf("super-admin");
                    let told = || "could not bootstrap the admin user in file admin.conf: unable to create the kubeadm:cluster-admins ClusterRoleBinding by using super-admin.conf".into();
                    Cluster::of(&path, Some(&local)).doing(told)?.put(&binding).await.doing(told)?;
                }
                // It is there already, or something is wrong that what comes next will say.
                _ => {}
            }
        }
        self.cluster = Some(cluster.clone());
        Ok(cluster)
    }

    /// Runs one phase, or one part of it.
    pub async fn run(&mut self, phase: &str, part: &str) -> Result<()> {
        match (phase, part) {
            ("preflight", _) => self.preflight().await,
            ("certs", "") => {
                println!("[certs] Using certificateDir folder {:?}", self.certificates.display().to_string());
                Ok(())
            }
            ("certs", "sa") => {
                if self.external && self.certificates.join("sa.key").exists() {
                    println!("[certs] Using existing sa keys");
                }
                self.authority().service_account()
            }
            ("certs", name) => self.certificate(name),
            ("kubeconfig", "") => {
                println!("[kubeconfig] Using kubeconfig folder {:?}", self.machine.place.kubernetes.display().to_string());
                Ok(())
            }
            ("kubeconfig", name) if self.external => {
                println!("[kubeconfig] External CA mode: Using user provided {name}.conf");
                Ok(())
            }
            ("kubeconfig", name) => match kubeconfigs::ALL.iter().find(|s| s.file == name) {
                Some(spec) => kubeconfigs::write(&self.authority(), &self.machine.place, self.port(), spec),
                None => Ok(()),
            },
            ("etcd", "local") => {
                let etcd = &self.config.cluster.etcd;
                match (&etcd.local, &etcd.external) {
                    (Some(local), _) => println!("[etcd] A member of etcd runs beside the node's own process, with its data in {:?}", local.data_dir),
                    (None, None) => println!("[etcd] The embedded store serves this control plane: no member of etcd is made"),
                    (None, Some(_)) => {}
                }
                Ok(())
            }
            ("control-plane", "") => self.control_plane(),
            ("kubelet-start", _) => self.start(),
            ("wait-control-plane", _) => self.check().await,
            ("upload-config", "kubeadm") => self.upload_config().await,
            ("upload-config", "kubelet") => self.upload_kubelet_config().await,
            ("upload-certs", _) => self.upload_certs().await,
            ("mark-control-plane", _) => {
                let cluster = self.cluster().await?;
                mark(&cluster, &self.config).await
            }
            ("bootstrap-token", _) => self.bootstrap_tokens().await,
            ("addon", "coredns") => {
                println!("[addons] Cluster DNS runs in each node's own process: nothing is applied");
                Ok(())
            }
            ("addon", "kube-proxy") => {
                println!("[addons] The service proxy runs in each node's own process: nothing is applied");
                Ok(())
            }
            ("show-join-command", _) => self.show(),
            _ => Ok(()),
        }
    }

    async fn preflight(&self) -> Result<()> {
        println!("[preflight] Running pre-flight checks");
        preflight::root(&self.wishes.ignored)?;
        let (host, place) = (self.machine.host, &self.machine.place);
        let mut findings = self.wishes.mended(place, || preflight::init(host, place, &self.config, true, false))?;
        preflight::extra_flags(&mut findings, &self.config);
        kubelet::unused(&mut findings, &self.config.init.node_registration);
        self.patches.check(&mut findings);
        gates(&mut findings, &self.config.cluster);
        let driver = kubelet::cgroup_driver(&kubelet::yaml(&self.config)?);
        preflight::runtime::check(&mut findings, &self.config.init.node_registration.cri_socket, &driver).await;
        if let Some(external) = &self.config.cluster.etcd.external {
            preflight::etcd::check(&mut findings, external).await;
        }
        if self.external {
            findings.warn(
                "ExternalCA",
                "the CA's key is not on this machine: certificate requests of nodes that join, and of kubelets as servers, are not signed here; whoever holds the key signs them \
                 (kubectl get csr; status.certificate), and renews this machine's certificates (kubeadm certs generate-csr)",
            );
        }
        if self.wishes.unused_etcd {
            findings.warn("LocalEtcd", "etcd.local has no effect: the embedded store keeps the objects; --etcd runs a member of etcd beside this control plane, etcd.external names one that others run");
        }
        findings.report(&self.wishes.ignored)?;
        println!("[preflight] Nothing needs pulling: the components are in this binary");
        Ok(())
    }

    fn certificate(&self, name: &str) -> Result<()> {
        let Some(cert) = certs::named(name) else { return refused(format!("there is no certificate {name:?}")) };
        let etcd = cert.base == "etcd/ca" || cert.ca == Some("etcd-ca");
        if etcd && self.config.cluster.etcd.external.is_some() {
            println!("[certs] External etcd mode: Skipping {} certificate {}generation", cert.base, if cert.ca.is_none() { "authority " } else { "" });
            return Ok(());
        }
        self.authority().make(&cert)
    }

    fn control_plane(&self) -> Result<()> {
        let path = self.machine.place.process();
        println!("[control-plane] The control plane runs in the node's own process: writing its settings to {:?}", path.display().to_string());
        process::write(self.machine, &process::server(self.machine, &self.config, &self.certificates, &process::Member { program: self.wishes.etcd_program.clone(), join: Vec::new() })?)
    }

    /// Starts the node's own process; the control plane in it serves once that returns.
    fn start(&self) -> Result<()> {
        kubelet::start_files(&self.machine.place, &self.config, &self.patches)?;
        println!("[kubelet-start] Starting the kubelet, and the control plane in the same process. This can take up to 4m0s");
        let begun = Instant::now();
        self.machine.host.start(Role::ControlPlane, &self.machine.place.process()).doing(|| "failed while waiting for the control plane to start".into())?;
        println!("[kubelet-check] The kubelet is healthy, and the node is Ready, after {:.2} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn check(&mut self) -> Result<()> {
        println!("[control-plane-check] Waiting for healthy control plane components. This can take up to 4m0s");
        let patience = self.config.init.timeouts.as_ref().and_then(|t| duration(&t.control_plane_component_health_check)).unwrap_or(Duration::from_secs(240));
        let cluster = self.cluster().await?;
        let begun = Instant::now();
        while let Err(error) = cluster.healthy().await {
            if begun.elapsed() > patience {
                return Err(error).doing(|| "failed while waiting for the control plane to start".into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("[control-plane-check] All control plane components are healthy after {:.2} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    async fn upload_config(&mut self) -> Result<()> {
        println!("[upload-config] Storing the configuration used in ConfigMap \"kubeadm-config\" in the \"kube-system\" Namespace");
        let cluster = self.cluster().await?;
        let yaml = to_yaml("ClusterConfiguration", &self.config.cluster)?;
        for object in cluster::kubeadm_config(&yaml) {
            cluster.put(&object).await.doing(|| "error uploading the kubeadm ClusterConfiguration".into())?;
        }
        Ok(())
    }

    async fn upload_kubelet_config(&mut self) -> Result<()> {
        println!("[kubelet] Creating a ConfigMap \"kubelet-config\" in namespace kube-system with the configuration for the kubelets in the cluster");
        let cluster = self.cluster().await?;
        for object in cluster::kubelet_config(&kubelet::yaml(&self.config)?) {
            cluster.put(&object).await.doing(|| "error creating kubelet configuration ConfigMap".into())?;
        }
        Ok(())
    }

    async fn upload_certs(&mut self) -> Result<()> {
        if !self.wishes.upload_certs {
            println!("[upload-certs] Skipping phase. Please see --upload-certs");
            return Ok(());
        }
        let cluster = self.cluster().await?;
        if self.config.init.certificate_key.is_empty() {
            self.config.init.certificate_key = Machine::random_hex::<32>();
        }
        let key = &self.config.init.certificate_key;
        shared_certs::upload(&cluster, &self.config.cluster, &self.certificates, key).await.doing(|| "error uploading certs".into())?;
        if !self.wishes.hide_key {
            println!("[upload-certs] Using certificate key:\n{key}");
        }
        Ok(())
    }

    async fn bootstrap_tokens(&mut self) -> Result<()> {
        let cluster = self.cluster().await?;
        let all: Vec<&str> = self.config.init.bootstrap_tokens.iter().map(|t| t.token.as_str()).collect();
        match &all[..] {
            _ if self.wishes.hide_token => {}
            [one] => println!("[bootstrap-token] Using token: {one}"),
            all => println!("[bootstrap-token] Using tokens: [{}]", all.join(" ")),
        }
        println!("[bootstrap-token] Configuring bootstrap tokens, cluster-info ConfigMap, RBAC Roles");
        for token in &self.config.init.bootstrap_tokens {
            cluster.put(&tokens::secret(token, Timestamp::now())?).await.doing(|| "error updating or creating token".into())?;
        }
        for (said, objects) in cluster::joining() {
            for object in &objects {
                cluster.put(object).await?;
            }
            println!("[bootstrap-token] {said}");
        }
        println!("[bootstrap-token] Creating the \"cluster-info\" ConfigMap in the \"kube-public\" namespace");
        let server = endpoint(&self.config.cluster, &self.config.init.local_api_endpoint.advertise_address, self.port());
        let ca = files::read(&self.certificates.join("ca.crt"))?;
        for object in cluster::cluster_info(&server, &ca)? {
            cluster.put(&object).await.doing(|| "error creating bootstrap ConfigMap".into())?;
        }
        Ok(())
    }

    fn show(&self) -> Result<()> {
        let path = self.admin();
        let entry = client::Entry::read(&path).doing(|| "failed to load kubeconfig".into())?;
        for token in &self.config.init.bootstrap_tokens {
            print!("{}", self.done(&entry, &token.token, &path.display().to_string())?);
        }
        tracing::debug!("init took {:?}", self.begun.elapsed());
        Ok(())
    }

    /// What upstream says at the end; the pod network is there already.
    fn done(&self, entry: &client::Entry, token: &str, admin: &str) -> Result<String> {
        const WITHHELD: &str = "<value withheld>";
        let token = if self.wishes.hide_token { WITHHELD } else { token };
        let key = if self.wishes.hide_key { WITHHELD } else { &self.config.init.certificate_key };
        let mut text = format!(
            "\nYour Kubernetes control-plane has initialized successfully!\n\nTo start using your cluster, you need to run the following as a regular user:\n\n  \
             mkdir -p $HOME/.kube\n  sudo cp -i {admin} $HOME/.kube/config\n  sudo chown $(id -u):$(id -g) $HOME/.kube/config\n\n\
             Alternatively, if you are the root user, you can run:\n\n  export KUBECONFIG=/etc/kubernetes/admin.conf\n\n\
             A pod network is there already: each node's own process serves it. There is nothing to deploy.\n\n"
        );
        if !self.config.cluster.control_plane_endpoint.is_empty() {
            if self.wishes.upload_certs {
                let command = tokens::join_lines(entry, token, Some(Some(key)))?;
                text.push_str(&format!(
                    "You can now join any number of control-plane nodes running the following command on each as root:\n\n  {command}\n\n\
                     Please note that the certificate-key gives access to cluster sensitive data, keep it secret!\n\
                     As a safeguard, uploaded-certs will be deleted in two hours; If necessary, you can use\n\
                     \"kubeadm init phase upload-certs --upload-certs\" to reload certs afterward.\n\n"
                ));
            } else {
                let command = tokens::join_lines(entry, token, Some(None))?;
                text.push_str(&format!(
                    "You can now join any number of control-plane nodes by copying certificate authorities\n\
                     and service account keys on each node and then running the following as root:\n\n  {command}\n\n"
                ));
            }
        }
        let command = tokens::join_lines(entry, token, None)?;
        text.push_str(&format!("Then you can join any number of worker nodes by running the following on each as root:\n\n{command}\n"));
        Ok(text)
    }
}

/// Feature gates that change nothing here.
fn gates(findings: &mut preflight::Findings, cluster: &ClusterConfiguration) {
    if cluster.feature_gates.get("RootlessControlPlane") == Some(&true) {
        findings.warn("FeatureGates", "RootlessControlPlane has no effect: the control plane runs in the node's own process, which makes namespaces and mounts and is root; take it out");
    }
    if cluster.feature_gates.get("PublicKeysECDSA") == Some(&true) && cluster.encryption_algorithm.starts_with("RSA") {
        findings.warn("FeatureGates", format!("PublicKeysECDSA has no effect: encryptionAlgorithm says {}; take one of them out", cluster.encryption_algorithm));
    }
}

/// Marks this node as a control plane.
pub async fn mark(cluster: &Cluster, config: &InitConfig) -> Result<()> {
    let node = &config.init.node_registration;
    let taints: Vec<Value> = node.taints.iter().flatten().map(|t| serde_json::to_value(t).unwrap_or_default()).collect();
    println!(
        "[mark-control-plane] Marking the node {} as control-plane by adding the labels: [node-role.kubernetes.io/control-plane node.kubernetes.io/exclude-from-external-load-balancers]",
        node.name
    );
    if !taints.is_empty() {
        let words: Vec<String> = node.taints.iter().flatten().map(process::taint).collect();
        println!("[mark-control-plane] Marking the node {} as control-plane by adding the taints [{}]", node.name, words.join(" "));
    }
    let path = format!("{}/{}", cluster::collection::<Node>(""), node.name);
    let mut last = None;
    for _ in 0..100 {
        match cluster.get(&path).await? {
            Some(there) => match cluster.patch(&path, &cluster::mark(&there, &taints)).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                Err(error) if Cluster::is_forbidden(&error) => return Err(error),
                // Somebody was faster: the node is read again.
                Err(error) => last = Some(error),
            },
            None => {}
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    match last {
        Some(error) => Err(error),
        None => refused(format!("the node {} has not registered", node.name)),
    }
}
