//! `kube-controller-manager`: its flags as the settings of our controllers, and what starts them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use client::Entry;
use controllers::csr::{Authority, SIGNERS, Signing};
use controllers::{CONTROLLERS, Limits, NodeRanges, Selection};
use jiff::SignedDuration;
use kube::Client;
use reconcile::{Informers, Tasks};
use serde_json::{Map, Value, json};

use super::flags::Values;
use super::read;

/// Flags for numbers of workers, and whose they are.
const WORKERS: &[(&str, &str)] = &[
    ("concurrent-deployment-syncs", "deployment-controller"),
    ("concurrent-device-taint-eviction-syncs", "device-taint-eviction-controller"),
    ("concurrent-resourceclaim-syncs", "resourceclaim-controller"),
    ("concurrent-statefulset-syncs", "statefulset-controller"),
    ("concurrent-daemonset-syncs", "daemonset-controller"),
    ("concurrent-endpoint-syncs", "endpoints-controller"),
    ("concurrent-service-endpoint-syncs", "endpointslice-controller"),
    ("mirroring-concurrent-service-endpoint-syncs", "endpointslice-mirroring-controller"),
    ("concurrent-ephemeralvolume-syncs", "ephemeral-volume-controller"),
    ("concurrent-gc-syncs", "garbage-collector-controller"),
    ("concurrent-horizontal-pod-autoscaler-syncs", "horizontal-pod-autoscaler-controller"),
    ("concurrent-job-syncs", "job-controller"),
    ("concurrent-cron-job-syncs", "cronjob-controller"),
    ("concurrent-namespace-syncs", "namespace-controller"),
    ("concurrent-replicaset-syncs", "replicaset-controller"),
    ("concurrent-rc-syncs", "replicationcontroller-controller"),
    ("concurrent-resource-quota-syncs", "resourcequota-controller"),
    ("concurrent-serviceaccount-token-syncs", "serviceaccount-token-controller"),
    ("concurrent-ttl-after-finished-syncs", "ttl-after-finished-controller"),
    ("concurrent-validating-admission-policy-status-syncs", "validatingadmissionpolicy-status-controller"),
];

/// More workers than this help nobody.
const MOST_WORKERS: i64 = 1000;

/// What the flags say.
pub struct Setup {
    config: controllers::Config,
    own_accounts: bool,
}

impl Setup {
    /// Reads the files that the flags name, and checks everything.
    pub fn new(values: &Values) -> Result<Setup> {
        let token_signer = match values.given("service-account-private-key-file") {
            None => None,
            Some(path) => {
                let signer = pki::jwt::Signer::from_pem(&read(&path)?);
                Some(Arc::new(signer.with_context(|| format!("error reading key for service account token controller: {path}"))?))
            }
        };
        let mut workers = BTreeMap::new();
        for (flag, controller) in WORKERS {
            let number = values.int(flag);
            ensure!(number > 0, "{flag} must be greater than 0, but got {number}");
            if values.is_set(flag) {
                workers.insert(*controller, number.min(MOST_WORKERS) as usize);
            }
        }
        let config = controllers::Config {
            controllers: selection(values)?,
            root_ca: values.given("root-ca-file").map(|path| read(&path)).transpose()?,
            signing: signing(values)?,
            token_signer,
            node_ranges: ranges(values)?,
            autoscaling: autoscaling(values)?,
            node_lifecycle: node_lifecycle(values)?,
            // Zero and less turn it off.
            pod_gc: controllers::pod_gc::Settings {
                terminated: usize::try_from(values.int("terminated-pod-gc-threshold")).ok().filter(|n| *n > 0),
                ..Default::default()
            },
            limits: limits(values)?,
            workers,
        };
        Ok(Setup { config, own_accounts: values.bool("use-service-account-credentials") })
    }

    /// Starts the controllers, and says which.
    pub fn start(&self, client: &Client, entry: &Entry, tasks: &Tasks) -> Result<BTreeSet<String>> {
        let mut config = self.config.clone();
        // What proves the API server to us proves it to pods.
        config.root_ca.get_or_insert_with(|| entry.ca.clone());
        let informers = Informers::new(client.clone(), tasks.clone());
        let anonymous = entry.anonymous()?;
        let own = |account: &str| match self.own_accounts {
            true => client::service_account(anonymous.clone(), client.clone(), "kube-system", account),
            false => client.clone(),
        };
        controllers::start(&own, &informers, tasks, &config);
        let selected = CONTROLLERS.iter().filter(|c| config.controllers.has(c));
        let (running, known): (Vec<_>, Vec<_>) = selected.partition(|c| c.start.is_some());
        tracing::info!("started {} controllers; known by name only: {}", running.len(), known.iter().map(|c| c.name).collect::<Vec<_>>().join(" "));
        Ok(running.iter().map(|c| c.name.to_string()).collect())
    }
}

/// Which CA each signer has: one for all, or those that have one of their own.
fn signing(values: &Values) -> Result<Option<Signing>> {
    let authority = |prefix: &str| -> Result<Option<Authority>> {
        let (cert, key) = (format!("{prefix}-cert-file"), format!("{prefix}-key-file"));
        match (values.given(&cert), values.given(&key)) {
            (Some(c), Some(k)) => {
                let authority = Authority::Files(c.clone().into(), k.clone().into());
                authority.load().with_context(|| format!("--{cert} {c} and --{key} {k} cannot sign"))?;
                Ok(Some(authority))
            }
            (None, None) => Ok(None),
            _ => bail!("--{cert} and --{key} belong together: one of them is missing"),
        }
    };
    let general = authority("cluster-signing")?;
    let flags = ["kubelet-serving", "kubelet-client", "kube-apiserver-client", "legacy-unknown"];
    let mut own = BTreeMap::new();
    for (signer, flag) in SIGNERS.into_iter().zip(flags) {
        if let Some(authority) = authority(&format!("cluster-signing-{flag}"))? {
            own.insert(signer, authority);
        }
    }
    ensure!(own.is_empty() || general.is_none(), "cannot specify --cluster-signing-{{cert,key}}-file and other --cluster-signing-*-file flags at the same time");
    let lifetime = signed(values, "cluster-signing-duration")?;
    Ok(match general {
        Some(general) => Some(Signing { lifetime, ..Signing::by(general) }),
        None if own.is_empty() => None,
        None => Some(Signing { authorities: own, lifetime }),
    })
}

fn signed(values: &Values, flag: &str) -> Result<SignedDuration> {
    SignedDuration::try_from(values.duration(flag)).with_context(|| format!("--{flag} is out of range"))
}

fn node_lifecycle(values: &Values) -> Result<controllers::node_lifecycle::Settings> {
    Ok(controllers::node_lifecycle::Settings {
        period: values.duration("node-monitor-period").max(Duration::from_millis(100)),
        grace: signed(values, "node-monitor-grace-period")?,
        startup_grace: signed(values, "node-startup-grace-period")?,
        eviction_rate: values.float("node-eviction-rate"),
        secondary_eviction_rate: values.float("secondary-node-eviction-rate"),
        large_cluster: usize::try_from(values.int("large-cluster-size-threshold")).unwrap_or(0),
        unhealthy_zone: values.float("unhealthy-zone-threshold"),
    })
}

fn limits(values: &Values) -> Result<Limits> {
    let bounded = |flag: &str| {
        let number = values.int(flag);
        ensure!(number >= 1, "{flag} must not be less than 1, but got {number}");
        ensure!(number <= 1000, "{flag} must not be more than 1000, but got {number}");
        Ok(number as usize)
    };
    Ok(Limits {
        unused_tokens: signed(values, "legacy-service-account-token-clean-up-period")?,
        endpoints_per_slice: bounded("max-endpoints-per-slice")?,
        mirrored_per_subset: bounded("mirroring-max-endpoints-per-subset")?,
    })
}

fn autoscaling(values: &Values) -> Result<controllers::podautoscaler::Settings> {
    let duration = |name: &str| values.duration(&format!("horizontal-pod-autoscaler-{name}"));
    let signed = |name: &str| signed(values, &format!("horizontal-pod-autoscaler-{name}"));
    Ok(controllers::podautoscaler::Settings {
        sync_period: duration("sync-period"),
        downscale_stabilization: signed("downscale-stabilization")?,
        tolerance: values.float("horizontal-pod-autoscaler-tolerance"),
        cpu_initialization_period: signed("cpu-initialization-period")?,
        initial_readiness_delay: signed("initial-readiness-delay")?,
    })
}

fn selection(values: &Values) -> Result<Selection> {
    let mut parts = values.list("controllers");
    if !values.bool("enable-garbage-collector") {
        parts.insert(0, "-garbage-collector-controller".into());
    }
    Selection::new(&parts).map_err(|unknown| {
        let all: Vec<String> = unknown.iter().map(|name| format!("{name:?} is not in the list of known controllers")).collect();
        anyhow::Error::msg(if all.len() == 1 { all.concat() } else { format!("[{}]", all.join(", ")) })
    })
}

/// Where nodes get their pod addresses from, if from us.
fn ranges(values: &Values) -> Result<Option<NodeRanges>> {
    if !values.bool("allocate-node-cidrs") {
        return Ok(None);
    }
    let kind = values.text("cidr-allocator-type");
    ensure!(kind == "RangeAllocator", "built-in cloud providers are disabled. The ipam {kind} is not available");
    let text = values.text("cluster-cidr");
    let mut cluster = None;
    for part in text.split(',') {
        let (address, prefix) = part.trim().split_once('/').with_context(|| format!("invalid CIDR address: {part}"))?;
        let prefix: u8 = prefix.parse().ok().with_context(|| format!("invalid CIDR address: {part}"))?;
        if address.contains(':') {
            tracing::warn!("IPv6 is not supported yet: {part} of --cluster-cidr is not used");
            continue;
        }
        let address: Ipv4Addr = address.parse().ok().with_context(|| format!("invalid CIDR address: {part}"))?;
        ensure!(prefix <= 32, "invalid CIDR address: {part}");
        cluster.get_or_insert((address, prefix));
    }
    let cluster = cluster.context("--cluster-cidr has no IPv4 network")?;
    let asked = ["node-cidr-mask-size", "node-cidr-mask-size-ipv4"].map(|flag| values.int(flag)).into_iter().find(|n| *n != 0).unwrap_or(24);
    let node_mask = u8::try_from(asked).ok().filter(|m| *m <= 32).with_context(|| format!("--node-cidr-mask-size {asked} is no prefix length"))?;
    ensure!(node_mask >= cluster.1, "New CIDR set failed; the node CIDR size is too big");
    Ok(Some(NodeRanges { cluster, node_mask }))
}

/// What `/configz` answers: the flags' values under the names of the configuration's parts.
pub fn configz(values: &Values) -> Value {
    let mut election = Map::new();
    for flag in values.flags().iter().filter(|f| f.name.starts_with("leader-elect-")) {
        election.insert(camel(flag.name.trim_start_matches("leader-elect-")), json!(values.text(flag.name)));
    }
    election.insert("leaderElect".into(), json!(values.bool("leader-elect")));
    let generic = json!({
        "Address": values.text("bind-address"),
        "Port": values.int("secure-port"),
        "ClientConnection": {"kubeconfig": values.text("kubeconfig"), "qps": values.float("kube-api-qps"), "burst": values.int("kube-api-burst")},
        "Controllers": values.list("controllers"),
        "LeaderElection": election,
    });
    let shared = json!({
        "UseServiceAccountCredentials": values.bool("use-service-account-credentials"),
        "ClusterCIDR": values.text("cluster-cidr"),
        "AllocateNodeCIDRs": values.bool("allocate-node-cidrs"),
    });
    json!({"kubecontrollermanager.config.k8s.io": {
        "apiVersion": "kubecontrollermanager.config.k8s.io/v1alpha1",
        "kind": "KubeControllerManagerConfiguration",
        "Generic": generic,
        "KubeCloudShared": shared,
    }})
}

fn camel(name: &str) -> String {
    let mut words = name.split('-');
    let first = words.next().unwrap_or("").to_string();
    words.fold(first, |text, word| text + &word[..1].to_uppercase() + &word[1..])
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;

    fn values(args: &[&str]) -> Values {
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        flags::parse("kube-controller-manager", flags::table(include_str!("controller_manager.flags")), &args).expect("flags")
    }

    fn refusal(args: &[&str]) -> String {
        format!("{:#}", Setup::new(&values(args)).err().expect("it is refused"))
    }

    #[test]
    fn every_number_of_workers_is_a_flag_and_a_controller() {
        let flags = flags::table(include_str!("controller_manager.flags"));
        for (flag, controller) in WORKERS {
            assert!(flags.iter().any(|f| f.name == *flag && f.used), "{flag}");
            assert!(CONTROLLERS.iter().any(|c| c.name == *controller), "{controller}");
        }
    }

    #[test]
    fn workers_are_set_where_the_user_says_so() {
        let setup = Setup::new(&values(&["--concurrent-job-syncs=9", "--concurrent_rc_syncs=100000"])).expect("settings");
        assert_eq!(setup.config.workers, BTreeMap::from([("job-controller", 9), ("replicationcontroller-controller", 1000)]));
        assert_eq!(refusal(&["--concurrent-job-syncs=0"]), "concurrent-job-syncs must be greater than 0, but got 0");
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        let names = |args: &[&str]| {
            let setup = Setup::new(&values(args)).expect("settings");
            CONTROLLERS.iter().filter(|c| setup.config.controllers.has(c)).map(|c| c.name).collect::<BTreeSet<_>>()
        };
        assert_eq!(names(&["--controllers=deployment,job-controller"]), BTreeSet::from(["deployment-controller", "job-controller"]));
        assert!(!names(&["--controllers=*,-daemonset,tokencleaner"]).contains("daemonset-controller"));
        assert!(!names(&["--enable-garbage-collector=false"]).contains("garbage-collector-controller"));
        assert_eq!(refusal(&["--controllers=*,nonsense"]), "\"nonsense\" is not in the list of known controllers");
    }

    #[test]
    fn ranges_are_given_to_nodes_when_asked_for() {
        let ranges = |args: &[&str]| ranges(&values(args));
        assert!(ranges(&["--cluster-cidr=10.200.0.0/16"]).expect("settings").is_none());
        let given = ranges(&["--cluster-cidr=10.200.0.0/16", "--allocate-node-cidrs", "--node-cidr-mask-size=25"]).expect("settings").expect("ranges");
        assert_eq!((given.cluster, given.node_mask), ((Ipv4Addr::new(10, 200, 0, 0), 16), 25));
        for wrong in ["--cluster-cidr=10.200.0.0", "--cluster-cidr=x/16", "--cluster-cidr=10.0.0.0/28", "--cluster-cidr="] {
            assert!(ranges(&[wrong, "--allocate-node-cidrs"]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn half_a_key_pair_is_refused() {
        assert!(refusal(&["--cluster-signing-cert-file=/nowhere"]).contains("belong together"));
        assert!(refusal(&["--root-ca-file=/nowhere/ca.crt"]).contains("cannot read /nowhere/ca.crt"));
    }

    #[test]
    fn each_signer_may_have_a_ca_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let pair = |name: &str| {
            let ca = pki::Ca::new(name, jiff::Timestamp::now(), SignedDuration::from_hours(24)).expect("a CA");
            let (cert, key) = (dir.path().join(format!("{name}.crt")), dir.path().join(format!("{name}.key")));
            std::fs::write(&cert, ca.cert_pem()).expect("written");
            std::fs::write(&key, ca.key_pem()).expect("written");
            (cert.display().to_string(), key.display().to_string())
        };
        let ((serving, serving_key), (client, client_key)) = (pair("serving"), pair("client"));
        let flag = |name: &str, file: &str| format!("--cluster-signing-{name}-file={file}");
        let given = |all: &[String]| values(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let own = [
            flag("kubelet-serving-cert", &serving), flag("kubelet-serving-key", &serving_key), flag("kubelet-client-cert", &client),
            flag("kubelet-client-key", &client_key), "--cluster-signing-duration=1h".into(),
        ];
        let signing = Setup::new(&given(&own)).expect("settings").config.signing.expect("signers");
        assert_eq!(signing.authorities.keys().copied().collect::<Vec<_>>(), ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"]);
        assert_eq!(signing.lifetime, SignedDuration::from_hours(1));
        let renewed = pki::Ca::new("renewed", jiff::Timestamp::now(), SignedDuration::from_hours(24)).expect("a CA");
        std::fs::write(&serving, renewed.cert_pem()).expect("written");
        std::fs::write(&serving_key, renewed.key_pem()).expect("written");
        let now = signing.authorities["kubernetes.io/kubelet-serving"].load().expect("a CA");
        assert_eq!(now.cert_pem(), renewed.cert_pem(), "files are read anew");
        let general = [flag("cert", &client), flag("key", &client_key)];
        let all = Setup::new(&given(&general)).expect("settings").config.signing.expect("signers");
        assert_eq!((all.authorities.len(), all.lifetime), (4, SignedDuration::from_hours(8760)));
        let both: Vec<String> = own.into_iter().chain(general).collect();
        let why = format!("{:#}", Setup::new(&given(&both)).err().expect("it is refused"));
        assert!(why.starts_with("cannot specify --cluster-signing-{cert,key}-file and other"), "{why}");
    }

    #[test]
    fn limits_and_the_patience_with_nodes_are_the_users() {
        let config = Setup::new(&values(&[])).expect("settings").config;
        assert_eq!(config.pod_gc.terminated, Some(12500));
        assert_eq!((config.node_lifecycle.grace, config.node_lifecycle.eviction_rate), (SignedDuration::from_secs(50), 0.1));
        let args = ["--terminated-pod-gc-threshold=0", "--node-monitor-grace-period=16s", "--node-eviction-rate=1.5", "--max-endpoints-per-slice=7"];
        let config = Setup::new(&values(&args)).expect("settings").config;
        assert_eq!((config.pod_gc.terminated, config.limits.endpoints_per_slice), (None, 7));
        assert_eq!((config.node_lifecycle.grace, config.node_lifecycle.eviction_rate), (SignedDuration::from_secs(16), 1.5));
        assert_eq!(refusal(&["--max-endpoints-per-slice=0"]), "max-endpoints-per-slice must not be less than 1, but got 0");
        assert_eq!(refusal(&["--mirroring-max-endpoints-per-subset=1001"]), "mirroring-max-endpoints-per-subset must not be more than 1000, but got 1001");
    }

    #[test]
    fn configz_has_what_is_set() {
        let config = configz(&values(&["--leader-elect-lease-duration=30s"]));
        assert_eq!(config["kubecontrollermanager.config.k8s.io"]["Generic"]["LeaderElection"]["leaseDuration"], "30s");
    }
}
