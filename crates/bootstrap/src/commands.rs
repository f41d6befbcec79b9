//! From the command line to the work.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::Credentials;
use serde_json::json;

use crate::certs::{Authority, endpoint};
use crate::cli::*;
use crate::cluster::Cluster;
use crate::config::{self, *};
use crate::error::{Doing, Result, refused};
use crate::files::{self, Place};
use crate::host::{Host, Machine};
use crate::init::{Init, Wishes};
use crate::join::Join;
use crate::renew::Keeper;
use crate::{init, join, kubeconfigs, kubelet, phases, preflight, renew, reset, tokens};

impl Command {
    /// Where the node's process of this command keeps its files.
    pub fn dirs(&self) -> (PathBuf, PathBuf) {
        match self {
            Command::Init(args) => args.place.dirs(),
            Command::Join(args) => args.place.dirs(),
            Command::Reset(args) => args.place.dirs(),
            _ => PlaceArgs::default().dirs(),
        }
    }

    /// Does it.
    pub fn run(self, host: &dyn Host) -> Result<()> {
        let machine = Machine { host, place: Place::default() };
        match self {
            Command::Init(args) => run_init(&machine, *args),
            Command::Join(args) => run_join(&machine, *args),
            Command::Token(command) => run_token(&machine, command),
            Command::Certs(command) => run_certs(&machine, command),
            Command::Kubeconfig(KubeconfigCommand::User { client_name, config, org, token, validity_period }) => {
                run_user(&machine, &client_name, config.as_deref(), &org, token, &validity_period)
            }
            Command::Config(command) => run_config(&machine, command),
            Command::Reset(args) => run_reset(&machine, *args),
            Command::Version(args) => version(&host.facts().version, &args.output),
        }
    }
}

/// `--config` stands alone, but for flags that say how and not what.
fn unmixed(config: bool, given: &[(&str, bool)]) -> Result<()> {
    let mixed: Vec<&str> = given.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    if config && !mixed.is_empty() {
        return refused(format!("can not mix '--config' with arguments [{}]", mixed.join(" ")));
    }
    Ok(())
}

/// Upstream's feature gates of `init`, and whether they can still be turned off.
const GATES: [(&str, bool); 3] = [("NodeLocalCRISocket", true), ("PublicKeysECDSA", false), ("RootlessControlPlane", false)];

fn gates(text: &str) -> Result<std::collections::BTreeMap<String, bool>> {
    let mut all = std::collections::BTreeMap::new();
    for pair in text.split(',').filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=').map(|(k, v)| (k.trim(), v.trim())) else {
            return refused(format!("missing bool value for feature-gate key:{pair}"));
        };
        let value = match value {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => true,
            "false" | "False" | "FALSE" | "f" | "F" | "0" => false,
            _ => return refused(format!("invalid value {value} for feature-gate key: {key}, use true|false instead")),
        };
        all.insert(key.to_string(), value);
    }
    Ok(all)
}

/// Whether gates, of flags or of a file, are upstream's.
fn known_gates(all: &std::collections::BTreeMap<String, bool>) -> Result<()> {
    for (key, value) in all {
        match GATES.iter().find(|(name, _)| name == key) {
            None => return refused(format!("unrecognized feature-gate key: {key}")),
            Some((_, true)) if !value => return refused(format!("cannot set feature gate {key} to {value}, feature is locked to true")),
            Some(("PublicKeysECDSA", _)) => eprintln!("[config] WARNING: Setting deprecated feature gate {key}={value}. It will be removed in a future release."),
            Some(_) => {}
        }
    }
    Ok(())
}

fn loaded_init(args: &InitArgs, machine: &Machine<'_>) -> Result<InitConfig> {
    let own = [
        ("apiserver-advertise-address", args.apiserver_advertise_address.is_some()),
        ("apiserver-bind-port", args.apiserver_bind_port.is_some()),
        ("apiserver-cert-extra-sans", !args.apiserver_cert_extra_sans.is_empty()),
        ("cert-dir", args.cert_dir.is_some()),
        ("certificate-key", args.certificate_key.is_some()),
        ("control-plane-endpoint", args.control_plane_endpoint.is_some()),
        ("cri-socket", args.cri_socket.is_some()),
        ("feature-gates", args.feature_gates.is_some()),
        ("image-repository", args.image_repository.is_some()),
        ("kubernetes-version", args.kubernetes_version.is_some()),
        ("patches", args.patches.is_some()),
        ("pod-network-cidr", args.pod_network_cidr.is_some()),
        ("service-cidr", args.service_cidr.is_some()),
        ("service-dns-domain", args.service_dns_domain.is_some()),
        ("token", args.token.is_some()),
        ("token-ttl", args.token_ttl.is_some()),
    ];
    unmixed(args.config.is_some(), &own)?;
    let mut config = match &args.config {
        Some(path) => Documents::read(path)?.init()?,
        None => InitConfig::default(),
    };
    let set = |field: &mut String, value: &Option<String>| {
        if let Some(value) = value {
            field.clone_from(value);
        }
    };
    let (init, cluster) = (&mut config.init, &mut config.cluster);
    set(&mut init.node_registration.name, &args.node_name);
    if args.config.is_none() {
        set(&mut init.local_api_endpoint.advertise_address, &args.apiserver_advertise_address);
        init.local_api_endpoint.bind_port = args.apiserver_bind_port.unwrap_or_default();
        set(&mut init.certificate_key, &args.certificate_key);
        set(&mut init.node_registration.cri_socket, &args.cri_socket);
        set(&mut cluster.certificates_dir, &args.cert_dir);
        set(&mut cluster.control_plane_endpoint, &args.control_plane_endpoint);
        set(&mut cluster.image_repository, &args.image_repository);
        set(&mut cluster.kubernetes_version, &args.kubernetes_version);
        set(&mut cluster.networking.pod_subnet, &args.pod_network_cidr);
        set(&mut cluster.networking.service_subnet, &args.service_cidr);
        set(&mut cluster.networking.dns_domain, &args.service_dns_domain);
        cluster.api_server.cert_sans.clone_from(&args.apiserver_cert_extra_sans);
        cluster.feature_gates = gates(args.feature_gates.as_deref().unwrap_or_default())?;
        init.patches = args.patches.clone().map(|directory| Patches { directory });
        init.bootstrap_tokens.push(BootstrapToken {
            token: args.token.clone().unwrap_or_default(),
            ttl: args.token_ttl.as_deref().map(go_duration),
            description: "The default bootstrap token generated by 'kubeadm init'.".into(),
            ..BootstrapToken::default()
        });
    }
    complete(&mut config, machine)?;
    Ok(config)
}

/// `0` is a duration for flags.
fn go_duration(text: &str) -> String {
    if text == "0" { "0s".into() } else { text.into() }
}

fn complete(config: &mut InitConfig, machine: &Machine<'_>) -> Result<()> {
    let facts = machine.host.facts();
    known_gates(&config.cluster.feature_gates)?;
    complete_init(&mut config.init, &facts, &mut Machine::random_token);
    complete_cluster(&mut config.cluster, config.init.local_api_endpoint.bind_port, &facts)?;
    validate_init(&config.init, &config.cluster)
}

fn run_init(machine: &Machine<'_>, args: InitArgs) -> Result<()> {
    let alone = match args.words.first().map(String::as_str) {
        None => None,
        Some("phase") => Some(phases::one(init::PHASES, "init", &args.words[1..])?),
        Some(other) => return refused(format!("unknown command {other:?} for \"kubeadm init\"")),
    };
    let mut config = loaded_init(&args, machine)?;
    // A phase alone, of a cluster that is there: what the cluster is, it knows best.
    if args.config.is_none()
        && args.words.get(1).is_some_and(|phase| phase == "upload-certs")
        && let Ok(Some(text)) = published(&admin(machine, &args.kubeconfig))
    {
        config.cluster = Documents::parse(&text)?.init()?.cluster;
    }
    let (etcd_program, unused_etcd) = choose_etcd(machine, &args, &mut config, alone.is_some())?;
    let skipped = if args.skip_phases.is_empty() { &config.init.skip_phases } else { &args.skip_phases };
    let steps = match alone {
        Some(steps) => steps,
        None => {
            println!("[init] Using Kubernetes version: {}", config.cluster.kubernetes_version);
            phases::all(init::PHASES, skipped)?
        }
    };
    let wishes = Wishes {
        ignored: preflight::ignored(&args.ignore_preflight_errors, &config.init.node_registration.ignore_preflight_errors)?,
        upload_certs: args.upload_certs,
        hide_token: args.skip_token_print,
        hide_key: args.skip_certificate_key_print,
        kubeconfig: args.kubeconfig.clone(),
        dry_run: args.dry_run || config.init.dry_run,
        fix: args.fix,
        etcd_program,
        unused_etcd,
    };
    let dry = wishes.dry_run;
    let mut init = Init::new(machine, config, wishes)?;
    Machine::wait(async {
        for (phase, part) in steps {
            if dry && phase != "preflight" {
                would(phase, part);
                continue;
            }
            init.run(phase, part).await.doing(|| format!("error execution phase {phase}{}{part}", if part.is_empty() { "" } else { "/" }))?;
        }
        Ok(())
    })
}

/// Where the objects will be: in an etcd that others run, in one beside the control planes, or in the embedded store.
/// The program of the second, and whether a file has settings of it that nobody reads.
fn choose_etcd(machine: &Machine<'_>, args: &InitArgs, config: &mut InitConfig, alone: bool) -> Result<(Option<PathBuf>, bool)> {
    let etcd = &mut config.cluster.etcd;
    if etcd.external.is_some() {
        return if args.etcd { refused("--etcd runs an etcd, and etcd.external names one that others run: say one of them") } else { Ok((None, false)) };
    }
    let announced = args.upload_certs && !config.cluster.control_plane_endpoint.is_empty() && !alone;
    if args.etcd || announced {
        match Machine::wait(async { crate::etcd::find_program(args.etcd_program.as_deref()).await.doing(|| "--etcd".into()) }) {
            Ok(_) => {
                let local = etcd.local.get_or_insert_default();
                local.data_dir = machine.host.data_dir().join("etcd/data").display().to_string();
                return Ok((args.etcd_program.clone(), false));
            }
            Err(error) if args.etcd => return Err(error),
            Err(error) => eprintln!("[etcd] WARNING: further control planes need an etcd, and there is none here ({}): the embedded store serves this one alone", error.chain()),
        }
    }
    let given = etcd.local.take().unwrap_or_default();
    let set = !given.extra_args.is_empty() || !given.extra_envs.is_empty() || !given.image_repository.is_empty() || !given.image_tag.is_empty();
    Ok((None, set || !matches!(given.data_dir.as_str(), "" | "/var/lib/etcd")))
}

fn would(phase: &str, part: &str) {
    if part.is_empty() {
        println!("[dryrun] Would run the phase {phase}");
    }
}

fn loaded_join(args: &JoinArgs, endpoint: Option<&String>, machine: &Machine<'_>) -> Result<JoinConfiguration> {
    let own = [
        ("apiserver-advertise-address", args.apiserver_advertise_address.is_some()),
        ("apiserver-bind-port", args.apiserver_bind_port.is_some()),
        ("certificate-key", args.certificate_key.is_some()),
        ("control-plane", args.control_plane),
        ("cri-socket", args.cri_socket.is_some()),
        ("discovery-file", args.discovery_file.is_some()),
        ("discovery-token", args.discovery_token.is_some()),
        ("discovery-token-ca-cert-hash", !args.discovery_token_ca_cert_hash.is_empty()),
        ("discovery-token-unsafe-skip-ca-verification", args.discovery_token_unsafe_skip_ca_verification),
        ("patches", args.patches.is_some()),
        ("tls-bootstrap-token", args.tls_bootstrap_token.is_some()),
        ("token", args.token.is_some()),
    ];
    unmixed(args.config.is_some(), &own)?;
    let mut config = match &args.config {
        Some(path) => Documents::read(path)?.join()?,
        None => {
            let token = args.token.clone().unwrap_or_default();
            let discovery_token = args.discovery_token.clone().unwrap_or_else(|| token.clone());
            let control_plane = JoinControlPlane {
                local_api_endpoint: ApiEndpoint {
                    advertise_address: args.apiserver_advertise_address.clone().unwrap_or_default(),
                    bind_port: args.apiserver_bind_port.unwrap_or_default(),
                },
                certificate_key: args.certificate_key.clone().unwrap_or_default(),
            };
            if !args.control_plane && control_plane != JoinControlPlane::default() {
                eprintln!("[preflight] WARNING: --control-plane is also required when passing control-plane related flags such as [certificate-key, apiserver-advertise-address, apiserver-bind-port]");
            }
            JoinConfiguration {
                discovery: Discovery {
                    bootstrap_token: endpoint.map(|endpoint| BootstrapTokenDiscovery {
                        token: discovery_token,
                        api_server_endpoint: endpoint.clone(),
                        ca_cert_hashes: args.discovery_token_ca_cert_hash.clone(),
                        unsafe_skip_ca_verification: args.discovery_token_unsafe_skip_ca_verification,
                    }),
                    file: args.discovery_file.clone().map(|kube_config_path| FileDiscovery { kube_config_path }),
                    tls_bootstrap_token: args.tls_bootstrap_token.clone().unwrap_or(token),
                },
                control_plane: args.control_plane.then_some(control_plane),
                node_registration: NodeRegistration { cri_socket: args.cri_socket.clone().unwrap_or_default(), ..NodeRegistration::default() },
                patches: args.patches.clone().map(|directory| Patches { directory }),
                ..JoinConfiguration::default()
            }
        }
    };
    if let Some(name) = &args.node_name {
        config.node_registration.name.clone_from(name);
    }
    complete_join(&mut config, &machine.host.facts());
    validate_join(&config)?;
    Ok(config)
}

fn run_join(machine: &Machine<'_>, args: JoinArgs) -> Result<()> {
    let (alone, endpoint) = if args.words.first().is_some_and(|w| w == "phase") {
        // `phase NAME [PART] [ENDPOINT]`
        let mut words = args.words[1..].to_vec();
        let endpoint = words.iter().position(|w| w.contains(':')).map(|at| words.remove(at));
        (Some(phases::one(join::PHASES, "join", &words)?), endpoint)
    } else {
        if args.words.len() > 1 {
            return refused(format!("accepts at most 1 arg(s), received {}", args.words.len()));
        }
        (None, args.words.first().cloned())
    };
    let config = loaded_join(&args, endpoint.as_ref(), machine)?;
    let skipped = if args.skip_phases.is_empty() { config.skip_phases.clone() } else { args.skip_phases.clone() };
    let whole = alone.is_none();
    let steps = match alone {
        Some(steps) => steps,
        None => phases::all(join::PHASES, &skipped)?,
    };
    let wishes = Wishes {
        ignored: preflight::ignored(&args.ignore_preflight_errors, &config.node_registration.ignore_preflight_errors)?,
        dry_run: args.dry_run || config.dry_run,
        fix: args.fix,
        etcd_program: args.etcd_program.clone(),
        ..Wishes::default()
    };
    let dry = wishes.dry_run;
    let mut join = Join::new(machine, config, wishes)?;
    let result = Machine::wait(async {
        for (phase, part) in steps {
            if dry && phase != "preflight" {
                would(phase, part);
                continue;
            }
            join.run(phase, part).await.doing(|| format!("error execution phase {phase}{}{part}", if part.is_empty() { "" } else { "/" }))?;
        }
        Ok(())
    });
    match result {
        Ok(()) if whole && !dry => print!("{}", join.done()),
        Err(_) if whole => join.take_back(),
        _ => {}
    }
    result
}

fn admin(machine: &Machine<'_>, given: &Option<PathBuf>) -> PathBuf {
    let own = machine.place.conf("admin");
    if let Some(path) = given {
        return path.clone();
    }
    if own.exists() {
        return own;
    }
    std::env::var_os("KUBECONFIG").and_then(|list| std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty())).unwrap_or(own)
}

fn run_token(machine: &Machine<'_>, command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Generate => {
            println!("{}", Machine::random_token());
            Ok(())
        }
        TokenCommand::Delete { tokens: named, cluster } => {
            if named.is_empty() {
                return refused("missing argument; 'token delete' is missing token of form \"\\\\A([a-z0-9]{6})\\\\.([a-z0-9]{16})\\\\z\" or \"\\\\A([a-z0-9]{6})\\\\z\"");
            }
            let path = admin(machine, &cluster.kubeconfig);
            Machine::wait(async { tokens::delete(&Cluster::of(&path, None)?, &named).await })
        }
        TokenCommand::List { output, cluster } => {
            let path = admin(machine, &cluster.kubeconfig);
            Machine::wait(async { tokens::list(&Cluster::of(&path, None)?, output == "json").await })
        }
        TokenCommand::Create { token, config, certificate_key, description, groups, print_join_command, ttl, usages, cluster } => {
            let given = [("description", description.is_some()), ("groups", !groups.is_empty()), ("ttl", ttl.is_some()), ("usages", !usages.is_empty())];
            unmixed(config.is_some(), &given)?;
            if certificate_key.is_some() && !print_join_command {
                return refused("cannot use --certificate-key without --print-join-command");
            }
            let mut all = match config {
                Some(path) => Documents::read(&path)?.init()?,
                None => InitConfig::default(),
            };
            if all.init.bootstrap_tokens.is_empty() {
                all.init.bootstrap_tokens.push(BootstrapToken { description: description.unwrap_or_default(), groups, usages, ttl: ttl.as_deref().map(go_duration), ..Default::default() });
            }
            if let Some(token) = token {
                all.init.bootstrap_tokens[0].token = token;
            }
            complete(&mut all, machine)?;
            let path = admin(machine, &cluster.kubeconfig);
            Machine::wait(async {
                let cluster = Cluster::of(&path, None)?;
                for token in &all.init.bootstrap_tokens {
                    tokens::create(&cluster, token).await?;
                }
                Ok(())
            })?;
            let token = &all.init.bootstrap_tokens[0].token;
            if !print_join_command {
                println!("{token}");
                return Ok(());
            }
            let entry = client::Entry::read(&path).doing(|| "failed to load kubeconfig".into())?;
            println!("{}", tokens::join_command(&entry, token, certificate_key.as_deref())?);
            Ok(())
        }
    }
}

/// What the cluster of a kubeconfig says that it is.
fn published(kubeconfig: &Path) -> Result<Option<String>> {
    Machine::wait(async {
        let asked = async { Cluster::of(kubeconfig, None)?.config_map("kube-system", "kubeadm-config", "ClusterConfiguration").await };
        // A control plane that is down must not keep its certificates from being renewed.
        match tokio::time::timeout(std::time::Duration::from_secs(5), asked).await {
            Ok(result) => result,
            Err(_) => refused("the cluster does not answer"),
        }
    })
}

/// The cluster's configuration: of a file, of the cluster, or what it is by default.
fn cluster_configuration(machine: &Machine<'_>, config: Option<&Path>, kubeconfig: Option<&PathBuf>, said: &str) -> Result<InitConfig> {
    let mut all = InitConfig::default();
    if let Some(path) = config {
        all = Documents::read(path)?.init()?;
    } else {
        let path = kubeconfig.cloned().unwrap_or_else(|| machine.place.conf("admin"));
        if path.exists() {
            match published(&path) {
                Ok(Some(text)) => {
                    all = Documents::parse(&text)?.init()?;
                    println!("[{said}] Reading configuration from the \"kubeadm-config\" ConfigMap in namespace \"kube-system\"...");
                    println!("[{said}] Use 'kubeadm init phase upload-config kubeadm --config your-config-file' to re-upload it.\n");
                }
                _ => println!("[{said}] Error reading configuration from the Cluster. Falling back to default configuration\n"),
            }
        }
    }
    complete(&mut all, machine)?;
    Ok(all)
}

fn lifetime(text: &str) -> SignedDuration {
    config::duration(text).and_then(|d| SignedDuration::try_from(d).ok()).unwrap_or(SignedDuration::from_hours(24 * 365))
}

fn run_certs(machine: &Machine<'_>, command: CertsCommand) -> Result<()> {
    let keeper = |certs: &CertsArgs, said: &str| -> Result<(PathBuf, SignedDuration)> {
        let all = cluster_configuration(machine, certs.config.as_deref(), certs.kubeconfig.as_ref(), said)?;
        let dir = certs.cert_dir.clone().unwrap_or_else(|| machine.certificates(&all.cluster.certificates_dir));
        Ok((dir, lifetime(&all.cluster.certificate_validity_period)))
    };
    match command {
        CertsCommand::CertificateKey => {
            println!("{}", Machine::random_hex::<32>());
            Ok(())
        }
        CertsCommand::CheckExpiration { output, certs } => {
            let (dir, lifetime) = keeper(&certs, "check-expiration")?;
            print!("{}", Keeper { place: &machine.place, dir, lifetime }.expiration(output == "json", Timestamp::now())?);
            Ok(())
        }
        CertsCommand::Renew { certificate, certs } => {
            let (dir, lifetime) = keeper(&certs, "renew")?;
            let keeper = Keeper { place: &machine.place, dir, lifetime };
            if certificate != "all" {
                return keeper.renew(&certificate, Timestamp::now());
            }
            for name in renew::names() {
                keeper.renew(&name, Timestamp::now())?;
            }
            println!("\nDone renewing certificates. A control plane that runs takes them within a minute, without a restart.");
            Ok(())
        }
        CertsCommand::GenerateCsr { kubeconfig_dir, certs } => {
            let mut all = match &certs.config {
                Some(path) => Documents::read(path)?.init()?,
                None => InitConfig::default(),
            };
            complete(&mut all, machine)?;
            let authority = Authority {
                dir: certs.cert_dir.unwrap_or_else(|| machine.certificates(&all.cluster.certificates_dir)),
                cluster: &all.cluster,
                node: &all.init.node_registration.name,
                address: &all.init.local_api_endpoint.advertise_address,
                now: Timestamp::now(),
            };
            let dir = kubeconfig_dir.unwrap_or_else(|| machine.place.kubernetes.clone());
            renew::requests(&all.cluster, &authority, &dir, all.init.local_api_endpoint.bind_port)
        }
    }
}

fn run_user(machine: &Machine<'_>, name: &str, config: Option<&Path>, groups: &[String], token: Option<String>, validity: &str) -> Result<()> {
    let Some(valid) = config::duration(validity) else {
        return refused(format!("invalid argument {validity:?} for \"--validity-period\" flag: it is no duration"));
    };
    let mut all = match config {
        Some(path) => Documents::read(path)?.init()?,
        // Without a file, the cluster that is here.
        None => {
            let mut all = InitConfig::default();
            if let Ok(there) = client::Entry::read(&machine.place.conf("admin")) {
                all.cluster.control_plane_endpoint = there.server.trim_start_matches("https://").into();
            }
            all
        }
    };
    complete(&mut all, machine)?;
    let (cluster, port) = (&all.cluster, all.init.local_api_endpoint.bind_port);
    let authority = Authority {
        dir: machine.certificates(&cluster.certificates_dir),
        cluster,
        node: &all.init.node_registration.name,
        address: &all.init.local_api_endpoint.advertise_address,
        now: Timestamp::now(),
    };
    let server = endpoint(cluster, authority.address, port);
    let text = match token {
        Some(token) => {
            let ca = files::read(&authority.dir.join("ca.crt"))?;
            let entry = kubeconfigs::entry(&cluster.cluster_name, name, &server, &ca, Credentials::Token(token));
            pki::kubeconfig(&entry).doing(|| "writing a kubeconfig".into())?
        }
        None => kubeconfigs::for_user(&authority, &server, name, groups, SignedDuration::try_from(valid).unwrap_or(SignedDuration::from_hours(24 * 365)))?,
    };
    println!("{text}");
    Ok(())
}

const PLACEHOLDER: &str = "abcdef.0123456789abcdef";

fn defaults(machine: &Machine<'_>) -> Result<InitConfig> {
    let mut all = InitConfig::default();
    let facts = Facts { host: "node".into(), address: "1.2.3.4".into(), ..machine.host.facts() };
    complete_init(&mut all.init, &facts, &mut || PLACEHOLDER.into());
    complete_cluster(&mut all.cluster, 6443, &facts)?;
    Ok(all)
}

fn run_config(machine: &Machine<'_>, command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Images(ImagesCommand::List(args)) => {
            if args.output.as_deref() == Some("json") {
                println!("{}", json!({"kind": "Images", "apiVersion": "output.kubeadm.k8s.io/v1alpha3", "images": []}));
            } else {
                eprintln!("no images are needed: the control plane, DNS and the service proxy are in this binary");
            }
            Ok(())
        }
        ConfigCommand::Images(ImagesCommand::Pull(_)) => {
            println!("[config/images] Nothing needs pulling: the control plane, DNS and the service proxy are in this binary");
            Ok(())
        }
        ConfigCommand::Migrate { old_config, new_config, .. } => {
            let text = migrated(machine, &files::read(&old_config)?)?;
            match new_config {
                Some(path) => files::write(&path, text.as_bytes(), 0o644),
                None => {
                    print!("{text}");
                    Ok(())
                }
            }
        }
        ConfigCommand::Validate { config, allow_deprecated_api, .. } => {
            let text = files::read(&config)?;
            if Documents::parse(&text)?.migrated && !allow_deprecated_api {
                eprintln!("your configuration file uses a deprecated API spec: \"kubeadm.k8s.io/v1beta3\". Please use 'kubeadm config migrate --old-config old-config-file --new-config new-config-file', which will write the new, similar spec using a newer API version.");
            }
            migrated(machine, &text)?;
            println!("ok");
            Ok(())
        }
        ConfigCommand::Print(PrintCommand::InitDefaults { component_configs }) => {
            let all = defaults(machine)?;
            print!("{}---\n{}", to_yaml("ClusterConfiguration", &all.cluster)?, to_yaml("InitConfiguration", &all.init)?);
            for kind in component_configs {
                match kind.as_str() {
                    "KubeletConfiguration" => print!("---\n{}", kubelet::yaml(&all)?),
                    _ => return refused("--component-configs needs to contain some of [KubeletConfiguration]"),
                }
            }
            Ok(())
        }
        ConfigCommand::Print(PrintCommand::JoinDefaults) => {
            let mut config = JoinConfiguration::default();
            config.discovery.bootstrap_token =
                Some(BootstrapTokenDiscovery { token: PLACEHOLDER.into(), api_server_endpoint: "kube-apiserver:6443".into(), unsafe_skip_ca_verification: true, ..Default::default() });
            complete_join(&mut config, &machine.host.facts());
            print!("{}", to_yaml("JoinConfiguration", &config)?);
            Ok(())
        }
        ConfigCommand::Print(PrintCommand::ResetDefaults) => {
            let mut config = ResetConfiguration::default();
            complete_reset(&mut config);
            print!("{}", to_yaml("ResetConfiguration", &config)?);
            Ok(())
        }
    }
}

/// A file in the newest version, completed and checked.
fn migrated(machine: &Machine<'_>, text: &str) -> Result<String> {
    let documents = Documents::parse(text)?;
    let mut parts = Vec::new();
    if documents.has("InitConfiguration") || documents.has("ClusterConfiguration") {
        let mut all = Documents::parse(text)?.init()?;
        complete(&mut all, machine)?;
        parts.push(to_yaml("ClusterConfiguration", &all.cluster)?);
        parts.push(to_yaml("InitConfiguration", &all.init)?);
    }
    if documents.has("JoinConfiguration") {
        let mut config = Documents::parse(text)?.join()?;
        complete_join(&mut config, &machine.host.facts());
        validate_join(&config)?;
        parts.push(to_yaml("JoinConfiguration", &config)?);
    }
    if documents.has("ResetConfiguration") {
        let mut config = Documents::parse(text)?.reset()?;
        complete_reset(&mut config);
        parts.push(to_yaml("ResetConfiguration", &config)?);
    }
    if parts.is_empty() {
        return refused("the configuration holds no InitConfiguration, ClusterConfiguration, JoinConfiguration or ResetConfiguration");
    }
    Ok(parts.join("---\n"))
}

fn run_reset(machine: &Machine<'_>, args: ResetArgs) -> Result<()> {
    unmixed(args.config.is_some(), &[("cert-dir", args.cert_dir.is_some()), ("force", args.force), ("cleanup-tmp-dir", args.cleanup_tmp_dir), ("cri-socket", args.cri_socket.is_some())])?;
    let mut config = match &args.config {
        Some(path) => Documents::read(path)?.reset()?,
        None => ResetConfiguration { certificates_dir: args.cert_dir.clone().unwrap_or_default(), force: args.force, cleanup_tmp_dir: args.cleanup_tmp_dir, ..Default::default() },
    };
    config.dry_run |= args.dry_run;
    complete_reset(&mut config);
    let skipped = if args.skip_phases.is_empty() { config.skip_phases.clone() } else { args.skip_phases.clone() };
    let steps = match args.words.first().map(String::as_str) {
        None => phases::all(reset::PHASES, &skipped)?,
        Some("phase") => phases::one(reset::PHASES, "reset", &args.words[1..])?,
        Some(other) => return refused(format!("unknown command {other:?} for \"kubeadm reset\"")),
    };
    for (phase, _) in steps {
        reset::run(machine, &config, &args.ignore_preflight_errors, phase).doing(|| format!("error execution phase {phase}"))?;
    }
    Ok(())
}

fn version(version: &str, output: &str) -> Result<()> {
    let info = json!({"clientVersion": {"major": "1", "minor": version.split('.').nth(1).unwrap_or_default(), "gitVersion": version, "platform": "linux/amd64"}});
    match output {
        "" => println!("kubeadm version: &version.Info{{Major:\"1\", Minor:{:?}, GitVersion:{version:?}, Platform:\"linux/amd64\"}}", version.split('.').nth(1).unwrap_or_default()),
        "short" => println!("{version}"),
        "json" => println!("{}", serde_json::to_string_pretty(&info).unwrap_or_default()),
        "yaml" => print!("{}", serde_saphyr::to_string(&info).doing(|| "writing YAML".into())?),
        other => return refused(format!("invalid output format: {other}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_upstreams() {
        let checked = |text: &str| gates(text).and_then(|all| known_gates(&all).map(|()| all)).map_err(|e| e.to_string());
        assert_eq!(checked("RootlessControlPlane=true, NodeLocalCRISocket=1").expect("known").len(), 2);
        assert!(checked("").expect("none").is_empty());
        for (bad, why) in [
            ("EtcdLearnerMode=true", "unrecognized feature-gate key: EtcdLearnerMode"),
            ("PublicKeysECDSA", "missing bool value for feature-gate key:PublicKeysECDSA"),
            ("PublicKeysECDSA=yes", "invalid value yes for feature-gate key: PublicKeysECDSA, use true|false instead"),
            ("NodeLocalCRISocket=false", "feature is locked to true"),
        ] {
            assert!(checked(bad).expect_err(bad).contains(why), "{bad}");
        }
    }
}
