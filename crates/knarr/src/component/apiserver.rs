//! `kube-apiserver`: its flags as the settings of our API server, over etcd.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use apiserver::audit::{self, BatchConfig, LogConfig, TruncateConfig, WebhookConfig};
use apiserver::{Builder, Concurrency, Enablement, EncryptionConfig, NamedCertificate, Server, ServingTls, TlsOptions};
use pki::jwt::{Signer, Verifier};
use reconcile::Tasks;
use registry::{Access, AdmissionSettings, EndpointReconciler, FrontProxy, Plugins, StaticTokens};

use super::flags::Values;
use super::{apiserver_access, read, serve};
use crate::follow::{Certificate, Files, Followed};
use crate::server::{KUBERNETES, Signals};

/// How often the encryption configuration is looked at.
const RELOAD: Duration = Duration::from_secs(60);
/// How long requests may take to end when the server is told to.
const DRAIN: Duration = Duration::from_secs(60);

/// What the flags say.
pub struct Setup {
    server: apiserver::Config,
    registry: registry::Config,
    address: SocketAddr,
    etcd: store::etcd::Options,
    encryption_file: Option<PathBuf>,
    tls: TlsOptions,
    files: Files,
}

impl Setup {
    /// Reads the files that the flags name, and checks everything.
    pub fn new(values: &Values) -> Result<Setup> {
        refuse(values)?;
        let etcd = etcd(values)?;
        let bind: IpAddr = values.text("bind-address").trim().parse().context("--bind-address")?;
        let port = values.int("secure-port");
        let port = u16::try_from(port).ok().filter(|p| *p > 0).with_context(|| {
            format!("--secure-port {port} must be between 1 and 65535, inclusive. It cannot be turned off with 0")
        })?;
        let advertise = match values.given("advertise-address") {
            Some(text) => text.trim().parse().context("--advertise-address")?,
            None if bind.is_unspecified() => IpAddr::V4(crate::preflight::own_address()),
            None => bind,
        };
        let encryption_file = values.given("encryption-provider-config").map(PathBuf::from);
        let reloads = values.bool("encryption-provider-config-automatic-reload");
        ensure!(encryption_file.is_some() || !reloads, "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config");
        let encryption = match &encryption_file {
            Some(path) => EncryptionConfig::from_text(&read(&path.to_string_lossy())?).with_context(|| format!("error while parsing encryption provider configuration file {path:?}"))?,
            None => EncryptionConfig::default(),
        };
        let pair = |cert: &str, key: &str| -> Result<Option<Certificate>> {
            match (values.given(cert), values.given(key)) {
                (Some(c), Some(k)) => Certificate::read([c, k]).with_context(|| format!("--{cert}")).map(Some),
                (None, None) => Ok(None),
                _ => bail!("--{cert} and --{key} belong together: one of them is missing"),
            }
        };
        let audit = audit(values);
        audit.check()?;
        let (registry, anonymous, mut files) = registry_config(values, advertise, port)?;
        files.client_ca = values.given("client-ca-file").zip(registry.client_ca_pem.clone()).map(|(path, text)| Followed { path: path.into(), text });
        files.front_proxy_ca = values.given("requestheader-client-ca-file").zip(registry.access.front_proxy.as_ref()).map(|(path, proxy)| Followed { path: path.into(), text: proxy.ca_pem.clone() });
        let (kubelet, proxy) = (pair("kubelet-client-certificate", "kubelet-client-key")?, pair("proxy-client-cert-file", "proxy-client-key-file")?);
        let shown = |certificate: &Option<Certificate>| certificate.as_ref().map(|c| c.shown.clone());
        let server = apiserver::Config {
            audit,
            encryption,
            kubelet_ca: values.given("kubelet-certificate-authority").map(|path| read(&path)).transpose()?,
            kubelet_client: shown(&kubelet),
            proxy_client: shown(&proxy),
            storage_media_type: Some(media_type(values)?),
            storage_prefix: values.text("etcd-prefix"),
            compact_every: values.duration("etcd-compaction-interval"),
            event_ttl: values.duration("event-ttl").as_secs().max(1),
            allow_privileged: values.bool("allow-privileged"),
            enablement: enablement(values)?,
            anonymous: anonymous.enabled,
            anonymous_paths: anonymous.paths,
            concurrency: concurrency(values)?,
            timeouts: apiserver::Timeouts::default(),
            min_request_timeout: seconds(values, "min-request-timeout")?,
            cors_allowed_origins: values.list("cors-allowed-origins"),
            strict_transport_security: values.list("strict-transport-security-directives"),
            request_timeout: values.duration("request-timeout"),
            profiling: values.bool("profiling"),
            flags: values.shown(),
            git_version: KUBERNETES.into(),
            advertise_address: None,
        };
        files.clients = kubelet.into_iter().chain(proxy).collect();
        Ok(Setup {
            server,
            registry,
            address: SocketAddr::from((bind, port)),
            etcd,
            encryption_file: encryption_file.filter(|_| reloads),
            tls: tls(values)?,
            files,
        })
    }

    /// Serves until a signal.
    pub async fn run(mut self, values: &Values, signals: &mut Signals) -> Result<()> {
        let (cert, key) = serve::certificate("apiserver", values)?;
        let serving = ServingTls::with(&cert, &key, self.tls).context("the serving certificate cannot be used")?;
        self.files.serving = values.given("tls-cert-file").zip(values.given("tls-private-key-file")).map(|(cert_file, key_file)| {
            let [cert, key] = [(cert_file, cert), (key_file, key)].map(|(path, text)| Followed { path: path.into(), text });
            ([cert, key], String::new())
        });
        let listener = tokio::net::TcpListener::bind(self.address).await;
        let listener = listener.with_context(|| format!("failed to create listener: failed to listen on {}", self.address))?;
        let store = store::etcd::open(self.etcd).await.context("etcd")?;
        let mut builder = Builder::new(self.server, store)?;
        let live = registry::install(&mut builder, self.registry)?;
        let server = builder.build()?;
        let tasks = Tasks::new();
        let (running, stop) = (server.clone(), tasks.token());
        tasks.spawn_uncancelled(async move { running.run(stop).await });
        let (listening, used, stop) = (server.clone(), serving.clone(), tasks.token());
        tasks.spawn_uncancelled(async move { listening.listen(listener, used, stop).await });
        tracing::info!("serving securely on {}", self.address);
        self.files.start(&serving, live, &tasks);
        if let Some(path) = self.encryption_file {
            let server = server.clone();
            tasks.spawn("encryption", async move { follow_encryption(&path, &server).await });
        }
        signals.wait().await;
        server.drain();
        tokio::time::sleep(values.duration("shutdown-delay-duration")).await;
        if !tasks.shutdown(DRAIN).await {
            tracing::warn!("some requests did not end in time");
        }
        Ok(())
    }
}

/// What is not served here is refused where its absence would be noticed too late.
fn refuse(values: &Values) -> Result<()> {
    let backend = values.text("storage-backend");
    ensure!(matches!(backend.as_str(), "" | "etcd3"), "--storage-backend invalid, allowed values: etcd3. If not specified, it will default to 'etcd3'");
    Ok(())
}

fn concurrency(values: &Values) -> Result<Concurrency> {
    let count = |flag: &str| usize::try_from(values.int(flag)).with_context(|| format!("--{flag} can not be negative value"));
    let (reads, writes) = (count("max-requests-inflight")?, count("max-mutating-requests-inflight")?);
    let fair = values.bool("enable-priority-and-fairness");
    let both = "--max-requests-inflight and --max-mutating-requests-inflight";
    ensure!(!fair || reads + writes > 0, "invalid configuration: MaxRequestsInFlight={reads} and MaxMutatingRequestsInFlight={writes}; they must add up to something positive ({both})");
    Ok(Concurrency { fair, reads, writes })
}

/// Which resources are served.
fn enablement(values: &Values) -> Result<Enablement> {
    let given = values.all("runtime-config");
    let words = given.iter().flat_map(|text| text.split(',')).filter(|word| !word.is_empty());
    let pairs = words.map(|word| word.split_once('=').unwrap_or((word, ""))).map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned())).collect();
    let enablement = Enablement::from_pairs(&pairs).map_err(anyhow::Error::msg).context("--runtime-config")?;
    if !enablement.absent.is_empty() {
        tracing::warn!("--runtime-config: these are not served here: {}", enablement.absent.join(", "));
    }
    Ok(enablement)
}

/// A flag that counts seconds.
fn seconds(values: &Values, flag: &str) -> Result<Duration> {
    u64::try_from(values.int(flag)).map(Duration::from_secs).map_err(|_| anyhow::anyhow!("--{flag} can not be negative value"))
}

/// How the port is secured.
fn tls(values: &Values) -> Result<TlsOptions> {
    let version = values.text("tls-min-version");
    let only_13 = match version.as_str() {
        "" | "VersionTLS12" => false,
        "VersionTLS13" => true,
        "VersionTLS10" | "VersionTLS11" => {
            tracing::warn!("--tls-min-version {version}: nothing older than VersionTLS12 is spoken here");
            false
        }
        other => bail!("unknown tls version {other:?}"),
    };
    let names = values.list("tls-cipher-suites");
    let (suites, unspoken) = TlsOptions::suites(&names).map_err(anyhow::Error::msg)?;
    if !unspoken.is_empty() {
        tracing::warn!("--tls-cipher-suites: these are weak and not spoken here: {}", unspoken.join(", "));
    }
    let goaway_chance = values.float("goaway-chance");
    ensure!((0.0..=0.02).contains(&goaway_chance), "--goaway-chance can not be less than 0 or greater than 0.02");
    let max_streams = values.int("http2-max-streams-per-connection");
    let max_streams = u32::try_from(max_streams).with_context(|| format!("--http2-max-streams-per-connection {max_streams} can not be negative value"))?;
    let usual = TlsOptions::default();
    Ok(TlsOptions {
        only_13,
        suites,
        named: values.all("tls-sni-cert-key").iter().map(|text| named_certificate(text)).collect::<Result<_>>()?,
        http2: !values.bool("disable-http2-serving"),
        max_streams: if max_streams == 0 { usual.max_streams } else { max_streams },
        goaway_chance,
    })
}

/// `cert,key` or `cert,key:host,host`.
fn named_certificate(text: &str) -> Result<NamedCertificate> {
    let (files, hosts) = text.split_once(':').unwrap_or((text, ""));
    let pair = files.split_once(',').filter(|(cert, key)| !cert.trim().is_empty() && !key.trim().is_empty() && !key.contains(','));
    let (cert, key) = pair.with_context(|| format!("--tls-sni-cert-key {text:?}: expected comma separated certificate and key file paths"))?;
    let hosts = hosts.split(',').map(|host| host.trim().to_string()).filter(|host| !host.is_empty()).collect();
    Ok(NamedCertificate { hosts, cert_pem: read(cert.trim())?, key_pem: read(key.trim())? })
}

/// What admission plug-ins are told.
fn admission(values: &Values) -> Result<AdmissionSettings> {
    let mut settings = AdmissionSettings::default();
    settings.not_ready_seconds = values.int("default-not-ready-toleration-seconds");
    settings.unreachable_seconds = values.int("default-unreachable-toleration-seconds");
    if let Some(path) = values.given("admission-control-config-file") {
        let folder = PathBuf::from(&path).parent().map(PathBuf::from).unwrap_or_default();
        // paths in there are from where the file is
        let file = |other: &str| read(&folder.join(other).to_string_lossy()).map_err(|error| format!("{error:#}"));
        let wrong = |why: String| anyhow::anyhow!("failed to read plugin config: unable to read admission control configuration from {path:?} [{why}]");
        settings.configure(&read(&path)?, &file).map_err(wrong)?;
    }
    Ok(settings)
}

/// The longest life of service account tokens, if there is one.
fn max_token_seconds(values: &Values) -> Result<Option<i64>> {
    let longest = values.duration("service-account-max-token-expiration").as_secs();
    ensure!(longest == 0 || (3600..=1 << 32).contains(&longest), "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds");
    Ok(i64::try_from(longest).ok().filter(|s| *s > 0))
}

fn media_type(values: &Values) -> Result<apiserver::StorageMediaType> {
    let text = values.text("storage-media-type");
    let allowed = "application/json, application/vnd.kubernetes.protobuf";
    apiserver::StorageMediaType::parse(&text).with_context(|| format!("--storage-media-type {text:?} invalid, allowed values: {allowed}"))
}

fn audit(values: &Values) -> audit::Config {
    let batch = |plugin: &str| BatchConfig {
        buffer_size: values.int(&format!("audit-{plugin}-batch-buffer-size")),
        max_size: values.int(&format!("audit-{plugin}-batch-max-size")),
        max_wait: values.duration(&format!("audit-{plugin}-batch-max-wait")),
        throttle: values.bool(&format!("audit-{plugin}-batch-throttle-enable")),
        qps: values.float(&format!("audit-{plugin}-batch-throttle-qps")),
        burst: values.int(&format!("audit-{plugin}-batch-throttle-burst")),
    };
    let truncate = |plugin: &str| TruncateConfig {
        enabled: values.bool(&format!("audit-{plugin}-truncate-enabled")),
        max_event_size: values.int(&format!("audit-{plugin}-truncate-max-event-size")),
        max_batch_size: values.int(&format!("audit-{plugin}-truncate-max-batch-size")),
    };
    audit::Config {
        policy_file: values.given("audit-policy-file").map(PathBuf::from),
        log: LogConfig {
            path: values.text("audit-log-path"),
            format: values.text("audit-log-format"),
            version: values.text("audit-log-version"),
            max_age: values.int("audit-log-maxage"),
            max_backups: values.int("audit-log-maxbackup"),
            max_size: values.int("audit-log-maxsize"),
            compress: values.bool("audit-log-compress"),
            mode: values.text("audit-log-mode"),
            batch: batch("log"),
            truncate: truncate("log"),
        },
        webhook: WebhookConfig {
            config_file: values.given("audit-webhook-config-file").map(PathBuf::from),
            initial_backoff: values.duration("audit-webhook-initial-backoff"),
            version: values.text("audit-webhook-version"),
            mode: values.text("audit-webhook-mode"),
            batch: batch("webhook"),
            truncate: truncate("webhook"),
        },
    }
}

fn etcd(values: &Values) -> Result<store::etcd::Options> {
    let servers = values.list("etcd-servers");
    ensure!(!servers.is_empty(), "--etcd-servers must be specified");
    let file = |flag: &str| values.given(flag).map(PathBuf::from);
    crate::engine::options(&servers, file("etcd-cafile").as_deref(), file("etcd-certfile").as_deref(), file("etcd-keyfile").as_deref())
}

fn plugins(values: &Values) -> Result<Plugins> {
    let (old, enabled, disabled) = (values.list("admission-control"), values.list("enable-admission-plugins"), values.list("disable-admission-plugins"));
    ensure!(
        old.is_empty() || (enabled.is_empty() && disabled.is_empty()),
        "admission-control and enable-admission-plugins/disable-admission-plugins flags are mutually exclusive"
    );
    let enabled = if old.is_empty() { enabled } else { old };
    let plugins = Plugins::new(enabled, disabled, admission(values)?).map_err(|error| match removed_plugin(&error.to_string()) {
        Some(hint) => anyhow::anyhow!("{error}\nHint: upstream removed it: {hint}"),
        None => error.into(),
    })?;
    for name in plugins.deprecated() {
        tracing::warn!("{name} admission controller is deprecated. Please remove this controller from your configuration files and scripts.");
    }
    Ok(plugins)
}

/// What to say of a plug-in that upstream had and has no more.
fn removed_plugin(error: &str) -> Option<&'static str> {
    let of = |name: &str| error.contains(&format!("{name:?}"));
    match () {
        () if of("DenyEscalatingExec") || of("DenyExecOnPrivileged") => Some("gone since 1.21: PodSecurity keeps pods from being privileged in the first place"),
        () if of("PodSecurityPolicy") => Some("gone since 1.25: label namespaces for PodSecurity"),
        () if of("SecurityContextDeny") => Some("gone since 1.30: label namespaces for PodSecurity"),
        () if of("PodPreset") => Some("gone since 1.20: a mutating admission policy does the same"),
        () if of("PersistentVolumeLabel") => Some("gone since 1.31: the cloud's own controller labels volumes"),
        () if of("Initializers") => Some("gone since 1.14: webhooks took its place"),
        () => None,
    }
}

fn front_proxy(values: &Values) -> Result<Option<FrontProxy>> {
    let Some(path) = values.given("requestheader-client-ca-file") else { return Ok(None) };
    let or = |flag: &str, usual: &str| Some(values.list(flag)).filter(|l| !l.is_empty()).unwrap_or_else(|| vec![usual.to_string()]);
    let ca_pem = read(&path)?;
    let allowed_names = values.list("requestheader-allowed-names");
    let certificates = |text: &str| pki::pem_decode(text).into_iter().map(|b| b.der).collect::<Vec<_>>();
    let clients = values.given("client-ca-file").map(|path| read(&path)).transpose()?.map(|text| certificates(&text)).unwrap_or_default();
    if allowed_names.is_empty() && certificates(&ca_pem).iter().any(|c| clients.contains(c)) {
        // Upstream refuses to start; guides of before have such lines.
        tracing::warn!(
            "--requestheader-client-ca-file and --client-ca-file contain overlapping certificates; --requestheader-allowed-names must be specified to ensure regular client certificates cannot set authenticating proxy headers for arbitrary users: no front proxy is taken at its word"
        );
        return Ok(None);
    }
    Ok(Some(FrontProxy {
        ca_pem,
        allowed_names,
        username_headers: or("requestheader-username-headers", "X-Remote-User"),
        uid_headers: values.list("requestheader-uid-headers"),
        group_headers: or("requestheader-group-headers", "X-Remote-Group"),
        extra_prefixes: or("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
    }))
}

/// What the registry is to be, whether anybody may be nobody, and the files that say so.
fn registry_config(values: &Values, advertise: IpAddr, port: u16) -> Result<(registry::Config, registry::AnonymousConfig, Files)> {
    let issuers = values.list("service-account-issuer");
    let signing = values.given("service-account-signing-key-file");
    let (Some(issuer), Some(signing)) = (issuers.first().cloned(), signing) else {
        bail!("--service-account-signing-key-file and --service-account-issuer are required flags");
    };
    let signer = Signer::from_pem(&read(&signing)?).with_context(|| format!("failed to parse service-account-issuer-key-file {signing}"))?;
    let mut old_keys = Verifier::default();
    let files = values.list("service-account-key-file");
    ensure!(!files.is_empty(), "either `--service-account-key-file` or `--service-account-signing-endpoint` must be set");
    for path in files {
        old_keys.extend(&Verifier::from_pem(&read(&path)?).with_context(|| format!("error parsing public key file {path}"))?);
    }
    let range = values.text("service-cluster-ip-range");
    let range = range.split(',').map(str::trim).find(|r| !r.contains(':')).unwrap_or_default();
    let service_cidr = match range {
        "" => {
            tracing::warn!("No CIDR for service cluster IPs specified. Default value which is 10.0.0.0/24 will be used");
            "10.0.0.0/24"
        }
        range => range,
    };
    let ports = values.text("service-node-port-range");
    let (first, last) = ports.split_once('-').with_context(|| format!("--service-node-port-range {ports:?} is no range of ports"))?;
    let number = |text: &str| text.trim().parse::<u16>().with_context(|| format!("--service-node-port-range {ports:?} is no range of ports"));
    let client_ca = values.given("client-ca-file").map(|path| read(&path)).transpose()?;
    let static_tokens = values.given("token-auth-file").map(|path| Ok::<_, anyhow::Error>(StaticTokens::from_text(&read(&path)?).with_context(|| path)?)).transpose()?;
    let (authentication, anonymous, authentication_file) = apiserver_access::authentication(values, &issuers)?;
    let (authorization, authorization_file) = apiserver_access::authorization(values)?;
    let config = registry::Config {
        client_ca_pem: client_ca,
        signer: Arc::new(signer),
        old_keys,
        issuer,
        other_issuers: issuers[1..].to_vec(),
        audiences: values.list("api-audiences"),
        jwks_uri: values.given("service-account-jwks-uri"),
        max_token_seconds: max_token_seconds(values)?,
        extend_tokens: values.bool("service-account-extend-token-expiration"),
        // by default, addresses that need no names to be known
        kubelet_address_types: if values.is_set("kubelet-preferred-address-types") { values.list("kubelet-preferred-address-types") } else { Vec::new() },
        service_cidr: service_cidr.into(),
        node_ports: number(first)?..=number(last)?,
        advertise_address: advertise,
        secure_port: port,
        endpoint_reconciler: endpoint_reconciler(values)?,
        hostname: crate::config::host_name()?,
        cluster_ca_pem: String::new(),
        join_token: None,
        components: Vec::new(),
        access: Access {
            front_proxy: front_proxy(values)?,
            bootstrap_tokens: values.bool("enable-bootstrap-token-auth"),
            static_tokens,
            authentication,
            token_webhook: apiserver_access::token_webhook(values),
            authorization,
            plugins: plugins(values)?,
        },
    };
    Ok((config, anonymous, Files { authentication: authentication_file, authorization: authorization_file, ..Files::default() }))
}

fn endpoint_reconciler(values: &Values) -> Result<EndpointReconciler> {
    let count = values.int("apiserver-count");
    ensure!(count > 0, "--apiserver-count should be a positive number, but value '{count}' provided");
    Ok(match values.text("endpoint-reconciler-type").as_str() {
        "lease" => EndpointReconciler::Lease,
        "master-count" => EndpointReconciler::MasterCount(count as usize),
        "none" => EndpointReconciler::None,
        other => bail!("--endpoint-reconciler-type {other:?} is none of master-count, lease, none"),
    })
}

async fn follow_encryption(path: &std::path::Path, server: &Server) {
    let mut last = std::fs::read_to_string(path).unwrap_or_default();
    loop {
        tokio::time::sleep(RELOAD).await;
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        if text == last {
            continue;
        }
        let reloaded = EncryptionConfig::from_text(&text).map_err(anyhow::Error::from).and_then(|config| Ok(server.reload_encryption(&config)?));
        match reloaded {
            Ok(()) => tracing::info!("another encryption configuration is used from now on"),
            Err(error) => tracing::error!("the encryption configuration has changed and cannot be used: {error:#}"),
        }
        last = text;
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;
    use registry::AuthorizationMode;
    use std::path::Path;

    /// A directory as the guides make it.
    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        let now = jiff::Timestamp::now();
        let ca = pki::Ca::new("KUBERNETES-CA", now, jiff::SignedDuration::from_hours(24)).expect("a CA");
        put("ca.crt", ca.cert_pem());
        for name in ["etcd", "kube-api", "service-account"] {
            let request = pki::CertRequest { cn: name.into(), orgs: Vec::new(), sans: Vec::new(), usages: Vec::new(), lifetime: pki::Lifetime::from_hours(1) };
            let pair = ca.issue(&request, now).expect("a certificate");
            put(&format!("{name}.crt"), &pair.cert_pem);
            put(&format!("{name}.key"), &pair.key_pem);
        }
        put(
            "encryption-at-rest.yaml",
            "kind: EncryptionConfig\napiVersion: v1\nresources:\n- resources:\n  - secrets\n  providers:\n  - aescbc:\n      keys:\n      - name: key1\n        secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n  - identity: {}\n",
        );
        dir
    }

    /// The line of a guide of 2024, with the files of `dir`.
    fn line(dir: &Path) -> Vec<String> {
        let text = "--advertise-address=192.0.2.7 --allow-privileged=true --authorization-mode=Node,RBAC --client-ca-file=/root/certificates/ca.crt --enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota --enable-bootstrap-token-auth=true --etcd-cafile=/root/certificates/ca.crt --etcd-certfile=/root/certificates/etcd.crt --etcd-keyfile=/root/certificates/etcd.key --etcd-servers=https://127.0.0.1:2379 --kubelet-client-certificate=/root/certificates/kube-api.crt --kubelet-client-key=/root/certificates/kube-api.key --service-account-key-file=/root/certificates/service-account.crt --service-cluster-ip-range=10.32.0.0/24 --tls-cert-file=/root/certificates/kube-api.crt --tls-private-key-file=/root/certificates/kube-api.key --requestheader-client-ca-file=/root/certificates/ca.crt --service-node-port-range=30000-32767 --audit-log-maxage=30 --audit-log-maxbackup=3 --audit-log-maxsize=100 --audit-log-path=/var/log/kube-api-audit.log --bind-address=0.0.0.0 --event-ttl=1h --service-account-key-file=/root/certificates/service-account.crt --service-account-signing-key-file=/root/certificates/service-account.key --service-account-issuer=https://192.0.2.7:6443 --encryption-provider-config=/root/certificates/encryption-at-rest.yaml --v=2";
        text.split(' ').map(|word| word.replace("/root/certificates", &dir.display().to_string())).collect()
    }

    fn setup(line: &[String]) -> Result<Setup> {
        let values = flags::parse("kube-apiserver", flags::table(include_str!("apiserver.flags")), line).expect("flags");
        Setup::new(&values)
    }

    /// The line with some of its flags said differently.
    fn with(dir: &Path, changes: &[&str]) -> Result<Setup> {
        let mut line = line(dir);
        for change in changes {
            let (name, value) = change.split_once('=').unwrap_or((change, ""));
            line.retain(|word| !word.starts_with(&format!("{name}=")));
            if !value.is_empty() {
                line.push(format!("{name}={}", value.replace("DIR", &dir.display().to_string())));
            }
        }
        setup(&line)
    }

    fn refusal(dir: &Path, changes: &[&str]) -> String {
        format!("{:#}", with(dir, changes).err().expect("it is refused"))
    }

    #[test]
    fn the_line_of_a_guide_is_taken() {
        let dir = files();
        let setup = setup(&line(dir.path())).expect("settings");
        assert_eq!((setup.address, setup.registry.advertise_address), ("0.0.0.0:6443".parse().expect("an address"), "192.0.2.7".parse().expect("an address")));
        assert_eq!((setup.registry.issuer.as_str(), setup.registry.service_cidr.as_str()), ("https://192.0.2.7:6443", "10.32.0.0/24"));
        assert_eq!(setup.registry.node_ports, 30000..=32767);
        assert_eq!(setup.registry.access.authorization, [AuthorizationMode::Node, AuthorizationMode::Rbac]);
        assert!(setup.server.anonymous && setup.registry.access.bootstrap_tokens);
        assert!(setup.registry.access.front_proxy.is_none(), "every client could speak for others");
        let named = with(dir.path(), &["--requestheader-allowed-names=front-proxy-client"]).expect("settings");
        assert_eq!(named.registry.access.front_proxy.expect("it is known by name").allowed_names, ["front-proxy-client"]);
        assert_eq!(setup.server.encryption.0[0].resources, ["secrets"]);
        assert_eq!(setup.etcd.endpoints, ["https://127.0.0.1:2379"]);
        assert!(setup.etcd.ca.is_some() && setup.etcd.identity.is_some());
        assert_eq!(setup.server.event_ttl, 3600);
        assert_eq!(setup.server.storage_media_type, Some(apiserver::StorageMediaType::Protobuf));
        let mut audit = audit::Config::default();
        (audit.log.path, audit.log.max_age, audit.log.max_backups) = ("/var/log/kube-api-audit.log".into(), 30, 3);
        assert_eq!(setup.server.audit, audit, "the flags' defaults are ours");
    }

    #[test]
    fn what_cannot_be_is_refused_in_upstreams_words() {
        let dir = files();
        let why = |changes: &[&str]| refusal(dir.path(), changes);
        assert_eq!(why(&["--etcd-servers"]), "--etcd-servers must be specified");
        assert_eq!(why(&["--authorization-mode=Node,Sesame"]), "authorization-mode \"Sesame\" is not a valid mode");
        assert_eq!(why(&["--authorization-mode=RBAC,RBAC"]), "authorization-mode \"RBAC\" has mode specified more than once");
        assert_eq!(why(&["--service-account-issuer"]), "--service-account-signing-key-file and --service-account-issuer are required flags");
        assert!(why(&["--service-account-key-file"]).starts_with("either `--service-account-key-file`"));
        assert!(why(&["--etcd-keyfile"]).contains("belong together"));
        assert!(why(&["--storage-media-type=application/cbor"]).starts_with("--storage-media-type \"application/cbor\" invalid, allowed values: "));
        assert!(why(&["--storage-backend=etcd2"]).starts_with("--storage-backend invalid"));
        assert!(why(&["--oidc-issuer-url=https://example.com"]).contains("oidc-client-id must be specified together"));
        assert!(why(&["--client-ca-file=/nowhere/ca.crt"]).contains("cannot read /nowhere/ca.crt"));
        let old = why(&["--enable-admission-plugins=NodeRestriction,DenyEscalatingExec"]);
        assert!(old.starts_with("enable-admission-plugins plugin \"DenyEscalatingExec\" is unknown\nHint: upstream removed it"), "{old}");
        assert_eq!(why(&["--audit-log-mode=fast"]), "invalid audit log mode fast, allowed modes are \"batch,blocking,blocking-strict\"");
        assert_eq!(why(&["--audit-log-maxsize=-1"]), "--audit-log-maxsize -1 can't be a negative number");
        let wrong = why(&["--audit-policy-file=DIR/ca.crt"]);
        assert!(wrong.starts_with("loading audit policy file: ") && wrong.ends_with("ca.crt"), "{wrong}");
        let both = why(&["--admission-control=NodeRestriction"]);
        assert!(both.contains("mutually exclusive"), "{both}");
        assert!(why(&["--encryption-provider-config", "--encryption-provider-config-automatic-reload=true"]).contains("must be set with"));
        std::fs::write(dir.path().join("bad.yaml"), "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\n").expect("written");
        assert!(why(&["--encryption-provider-config=DIR/bad.yaml"]).contains("resources: Required value"));
    }

    #[test]
    fn hardening_flags_do_what_they_say() {
        let dir = files();
        std::fs::create_dir(dir.path().join("admission")).expect("a folder");
        let put = |name: &str, text: &str| std::fs::write(dir.path().join("admission").join(name), text).expect("written");
        put("config.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: [{name: EventRateLimit, path: events.yaml}]\n");
        put("events.yaml", "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\nlimits: [{type: Server, qps: 50, burst: 100}]\n");
        let line = [
            "--profiling=false",
            "--tls-min-version=VersionTLS13",
            "--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA",
            "--tls-sni-cert-key=DIR/kube-api.crt,DIR/kube-api.key:a.example,*.b.example",
            "--goaway-chance=0.001",
            "--strict-transport-security-directives=max-age=31536000,includeSubDomains",
            "--cors-allowed-origins=^https://console$",
            "--min-request-timeout=600",
            "--service-account-max-token-expiration=24h",
            "--service-account-extend-token-expiration=false",
            "--service-account-jwks-uri=https://keys.example/jwks",
            "--kubelet-preferred-address-types=Hostname,InternalIP",
            "--default-not-ready-toleration-seconds=30",
            "--enable-admission-plugins=EventRateLimit,AlwaysPullImages,DenyServiceExternalIPs",
            "--admission-control-config-file=DIR/admission/config.yaml",
        ];
        let setup = with(dir.path(), &line).expect("settings");
        assert!(!setup.server.profiling && setup.tls.only_13 && setup.tls.suites.len() == 1 && setup.tls.goaway_chance == 0.001);
        assert_eq!(setup.tls.named[0].hosts, ["a.example", "*.b.example"]);
        assert_eq!(setup.server.strict_transport_security, ["max-age=31536000", "includeSubDomains"]);
        assert_eq!((setup.server.cors_allowed_origins.len(), setup.server.min_request_timeout), (1, Duration::from_secs(600)));
        assert_eq!((setup.registry.max_token_seconds, setup.registry.extend_tokens), (Some(86400), false));
        assert_eq!((setup.registry.jwks_uri.as_deref(), &setup.registry.kubelet_address_types[..]), (Some("https://keys.example/jwks"), &["Hostname".to_string(), "InternalIP".to_string()][..]));
        let why = |changes: &[&str]| refusal(dir.path(), changes);
        assert_eq!(why(&["--tls-min-version=VersionTLS14"]), "unknown tls version \"VersionTLS14\"");
        assert_eq!(why(&["--tls-cipher-suites=TLS_X"]), "Cipher suite TLS_X not supported or doesn't exist");
        assert!(why(&["--tls-sni-cert-key=DIR/kube-api.crt"]).contains("expected comma separated certificate and key file paths"));
        assert_eq!(why(&["--goaway-chance=0.5"]), "--goaway-chance can not be less than 0 or greater than 0.02");
        assert_eq!(why(&["--min-request-timeout=-1"]), "--min-request-timeout can not be negative value");
        assert!(why(&["--service-account-max-token-expiration=10m"]).contains("must be between 1 hour and 2^32 seconds"));
        assert!(why(&["--enable-admission-plugins=EventRateLimit"]).contains("--admission-control-config-file"));
        put("config.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: [{name: EventRateLimit, path: gone.yaml}]\n");
        let gone = why(&["--admission-control-config-file=DIR/admission/config.yaml"]);
        assert!(gone.contains("unable to read admission control configuration") && gone.contains("admission/gone.yaml"), "{gone}");
    }

    #[test]
    fn how_many_are_served_at_once() {
        let dir = files();
        let of = |flags: &[&str]| with(dir.path(), flags).expect("settings").server.concurrency;
        assert_eq!(of(&[]), Concurrency { fair: true, reads: 400, writes: 200 });
        let plain = ["--enable-priority-and-fairness=false", "--max-requests-inflight=0", "--max-mutating-requests-inflight=7"];
        assert_eq!(of(&plain), Concurrency { fair: false, reads: 0, writes: 7 });
        let why = refusal(dir.path(), &["--max-requests-inflight=0", "--max-mutating-requests-inflight=0"]);
        assert!(why.contains("they must add up to something positive"), "{why}");
        assert!(refusal(dir.path(), &["--max-requests-inflight=-1"]).contains("can not be negative"));
    }

    #[test]
    fn with_always_allow_nobody_is_anonymous() {
        let dir = files();
        for mode in ["--authorization-mode=AlwaysAllow", "--authorization-mode"] {
            let setup = with(dir.path(), &[mode]).expect("settings");
            assert_eq!((setup.server.anonymous, setup.registry.access.authorization), (false, vec![AuthorizationMode::AlwaysAllow]));
        }
        assert!(!with(dir.path(), &["--anonymous-auth=false"]).expect("settings").server.anonymous);
        let tokens = dir.path().join("tokens.csv");
        std::fs::write(&tokens, "secret,jane,7\n").expect("written");
        assert!(with(dir.path(), &["--token-auth-file=DIR/tokens.csv"]).expect("settings").registry.access.static_tokens.is_some());
        std::fs::write(&tokens, "secret,jane\n").expect("written");
        assert!(refusal(dir.path(), &["--token-auth-file=DIR/tokens.csv"]).contains("at least 3 columns"));
    }
}
