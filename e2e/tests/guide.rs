//! A control plane as the guides make it, by hand: certificates by openssl, etcd of the distribution with TLS, and
//! `kube-apiserver`, `kube-controller-manager` and `kube-scheduler` by the lines of the guide.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Client, Env, Step, begin, eventually, on_host, output, run_steps};
use serde_json::{Value, json};

/// The host: a network namespace.
const HOST: &str = "knarr-guide";
/// Set for the process that runs the steps, which is in that namespace.
const INSIDE: &str = "KNARR_GUIDE";
/// The host's address.
const SERVER: &str = "198.18.9.1";

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        on_host(HOST, INSIDE);
    }
    let env = begin(Env::on_port("guide", 6443));
    let test = begin(Ok(Test { env: env.clone(), running: Mutex::default() }));
    let step = |name: &'static str, f: fn(&Test) -> Result<()>| -> Step { (name, Box::new(move || f(test))) };
    let steps = vec![
        step("certificates by openssl", certificates),
        step("bad command lines have upstream's words", command_lines),
        step("etcd of the distribution, with TLS", etcd),
        step("the guide's line starts kube-apiserver", apiserver),
        step("the guide's lines start the others", others),
        step("a deployment's pods are bound", deployment),
        step("secrets are sealed in etcd, and objects are protobuf", sealed),
        step("a client of the same CA cannot speak for another", no_other_name),
        step("SIGKILL of the API server loses nothing", killed),
        step("an etcd that stops is told, and waited for", stopped),
        step("all ends when it is told to", end),
    ];
    run_steps(steps, &["certificates by openssl", "etcd of the distribution, with TLS", "the guide's line starts kube-apiserver"]);
}

struct Test {
    env: Env,
    running: Mutex<Vec<(&'static str, Child)>>,
}

impl Test {
    fn dir(&self) -> PathBuf {
        self.env.home.join("certificates")
    }

    fn kubectl(&self) -> Client {
        self.env.client("kubectl")
    }

    /// kubectl with the administrator's kubeconfig.
    fn run(&self, args: &[&str]) -> Result<String> {
        let config = self.dir().join("admin.kubeconfig").display().to_string();
        self.kubectl().run(&[&["--kubeconfig", &config], args].concat())
    }

    fn apply(&self, object: &Value) -> Result<String> {
        let config = self.dir().join("admin.kubeconfig").display().to_string();
        self.kubectl().run_with(&["--kubeconfig", &config, "apply", "-f", "-"], &object.to_string())
    }

    /// The binary under a component's name.
    fn binary(&self, component: &str) -> Result<PathBuf> {
        let link = self.env.home.join(component);
        if !link.exists() {
            symlink(&self.env.binary, &link)?;
        }
        Ok(link)
    }

    fn start(&self, name: &'static str, program: &Path, line: &str) -> Result<()> {
        let log = File::create(self.env.home.join(format!("{name}.log")))?;
        let child = Command::new(program).args(line.split_whitespace()).stdout(Stdio::null()).stderr(log).spawn()?;
        self.running.lock().unwrap().push((name, child));
        Ok(())
    }

    fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let running = self.running.lock().unwrap();
        let (_, child) = running.iter().find(|(n, _)| *n == name).with_context(|| format!("{name} does not run"))?;
        output(Command::new("kill").arg(signal).arg(child.id().to_string())).map(drop)
    }

    fn line(&self) -> String {
        let dir = self.dir();
        let dir = dir.display();
        format!(
            "--advertise-address={SERVER} --allow-privileged=true --authorization-mode=Node,RBAC --client-ca-file={dir}/ca.crt \
             --enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota \
             --enable-bootstrap-token-auth=true --etcd-cafile={dir}/ca.crt --etcd-certfile={dir}/etcd.crt --etcd-keyfile={dir}/etcd.key \
             --etcd-servers=https://127.0.0.1:2379 --kubelet-client-certificate={dir}/kube-api.crt --kubelet-client-key={dir}/kube-api.key \
             --service-account-key-file={dir}/service-account.crt --service-cluster-ip-range=10.32.0.0/24 --tls-cert-file={dir}/kube-api.crt \
             --tls-private-key-file={dir}/kube-api.key --requestheader-client-ca-file={dir}/ca.crt --service-node-port-range=30000-32767 \
             --audit-log-maxage=30 --audit-log-maxbackup=3 --audit-log-maxsize=100 --audit-log-path={dir}/audit.log --bind-address=0.0.0.0 \
             --event-ttl=1h --service-account-key-file={dir}/service-account.crt --service-account-signing-key-file={dir}/service-account.key \
             --service-account-issuer=https://{SERVER}:6443 --encryption-provider-config={dir}/encryption-at-rest.yaml --v=2"
        )
    }

    /// Waits until the API server answers.
    fn ready(&self) -> Result<()> {
        eventually("the API server is ready", 30, || self.run(&["get", "--raw", "/readyz"]).map(drop))
    }
}

/// As the guide makes them: those without extensions are X.509 version 1.
fn certificates(t: &Test) -> Result<()> {
    let dir = t.dir();
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let openssl = |args: &str| output(Command::new("openssl").args(args.split(' ')).current_dir(&dir)).map(drop);
    openssl("genrsa -out ca.key 2048")?;
    openssl("req -new -key ca.key -subj /CN=KUBERNETES-CA -out ca.csr")?;
    openssl("x509 -req -in ca.csr -signkey ca.key -CAcreateserial -out ca.crt -days 365")?;
    let usage = "basicConstraints = CA:FALSE\nkeyUsage = nonRepudiation, digitalSignature, keyEncipherment\n";
    let etcd = format!("{usage}subjectAltName = IP:{SERVER}, IP:127.0.0.1\n");
    let api = format!(
        "{usage}subjectAltName = DNS:kubernetes, DNS:kubernetes.default, DNS:kubernetes.default.svc, DNS:kubernetes.default.svc.cluster.local, IP:127.0.0.1, IP:{SERVER}, IP:10.32.0.1\n"
    );
    for (name, subject, extensions) in [
        ("etcd", "/CN=etcd", etcd.as_str()),
        ("kube-api", "/CN=kube-apiserver", &api),
        ("service-account", "/CN=service-accounts", ""),
        ("admin", "/CN=admin/O=system:masters", ""),
        ("jane", "/CN=jane", ""),
        ("kube-controller-manager", "/CN=system:kube-controller-manager", ""),
        ("kube-scheduler", "/CN=system:kube-scheduler", ""),
    ] {
        openssl(&format!("genrsa -out {name}.key 2048"))?;
        openssl(&format!("req -new -key {name}.key -subj {subject} -out {name}.csr"))?;
        let mut sign = format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 365");
        if !extensions.is_empty() {
            fs::write(dir.join("extensions"), extensions)?;
            sign += " -extfile extensions";
        }
        openssl(&sign)?;
    }
    let key = output(Command::new("openssl").args(["rand", "-base64", "32"]))?;
    fs::write(
        dir.join("encryption-at-rest.yaml"),
        format!(
            "kind: EncryptionConfig\napiVersion: v1\nresources:\n  - resources:\n      - secrets\n    providers:\n      - aescbc:\n          keys:\n            - name: key1\n              secret: {}\n      - identity: {{}}\n",
            key.trim()
        ),
    )?;
    for name in ["admin", "kube-controller-manager", "kube-scheduler"] {
        let config = dir.join(format!("{name}.kubeconfig")).display().to_string();
        let file = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
        let set = |args: &[&str]| t.kubectl().run(&[&["--kubeconfig", &config, "config"], args].concat()).map(drop);
        let ca = dir.join("ca.crt").display().to_string();
        set(&["set-cluster", "guide", &format!("--server=https://{SERVER}:6443"), &format!("--certificate-authority={ca}"), "--embed-certs"])?;
        let (cert, key) = (format!("--client-certificate={}", file("crt")), format!("--client-key={}", file("key")));
        set(&["set-credentials", name, &cert, &key, "--embed-certs"])?;
        set(&["set-context", "default", "--cluster=guide", &format!("--user={name}")])?;
        set(&["use-context", "default"])?;
    }
    Ok(())
}

fn command_lines(t: &Test) -> Result<()> {
    let fails = |more: &[&str]| -> Result<String> {
        let line = t.line();
        // What is said here is not said before.
        let before = line.split_whitespace().filter(|w| !more.iter().any(|m| m.split('=').next() == w.split('=').next()));
        let out = Command::new(t.binary("kube-apiserver")?).args(before).args(more).output()?;
        ensure!(!out.status.success(), "it started");
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for (more, words) in [
        (&["--insecure-port=8080"][..], &["Error: unknown flag: --insecure-port", "Hint: upstream removed --insecure-port"][..]),
        (&["--enable-admission-plugins=DenyEscalatingExec"], &["plugin \"DenyEscalatingExec\" is unknown", "Hint: upstream removed it"]),
        (&["--etcd-servers="], &["--etcd-servers must be specified"]),
        (&["--authorization-mode=Trust"], &["authorization-mode \"Trust\" is not a valid mode"]),
    ] {
        let text = fails(more)?;
        for word in words {
            ensure!(text.contains(word), "{more:?}: {word:?} is not in:\n{text}");
        }
    }
    Ok(())
}

fn etcd(t: &Test) -> Result<()> {
    let dir = t.dir();
    let data = t.env.home.join("etcd");
    let _ = fs::remove_dir_all(&data);
    let (dir, data) = (dir.display(), data.display());
    let line = format!(
        "--cert-file={dir}/etcd.crt --key-file={dir}/etcd.key --trusted-ca-file={dir}/ca.crt --client-cert-auth \
         --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 --data-dir={data}"
    );
    t.start("etcd", &t.env.tools.join("etcd"), &line)
}

fn apiserver(t: &Test) -> Result<()> {
    t.start("kube-apiserver", &t.binary("kube-apiserver")?, &t.line())?;
    t.ready()
}

fn others(t: &Test) -> Result<()> {
    let dir = t.dir();
    let dir = dir.display();
    let config = |name: &str| format!("--kubeconfig={dir}/{name}.kubeconfig --authentication-kubeconfig={dir}/{name}.kubeconfig --authorization-kubeconfig={dir}/{name}.kubeconfig");
    let manager = format!(
        "{} --bind-address=0.0.0.0 --service-cluster-ip-range=10.32.0.0/24 --cluster-cidr=10.200.0.0/16 --leader-elect=true \
         --cluster-signing-cert-file={dir}/ca.crt --cluster-signing-key-file={dir}/ca.key --root-ca-file={dir}/ca.crt \
         --service-account-private-key-file={dir}/service-account.key --use-service-account-credentials=true --v=2",
        config("kube-controller-manager")
    );
    t.start("kube-controller-manager", &t.binary("kube-controller-manager")?, &manager)?;
    t.start("kube-scheduler", &t.binary("kube-scheduler")?, &format!("{} --bind-address=127.0.0.1 --leader-elect=true", config("kube-scheduler")))?;
    eventually("there are accounts", 30, || t.run(&["get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).map(drop))
}

fn deployment(t: &Test) -> Result<()> {
    t.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "hollow"}}))?;
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}).to_string();
    t.run(&["patch", "node", "hollow", "--subresource=status", "-p", &status])?;
    t.run(&["create", "deployment", "web", "--image=example.com/web", "--replicas=3"])?;
    eventually("three pods are bound", 30, || {
        let nodes = t.run(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        ensure!(nodes.split_whitespace().filter(|n| *n == "hollow").count() == 3, "{nodes:?}");
        Ok(())
    })
}

/// Whether etcd's files have this text.
fn is_in_etcd(t: &Test, text: &str) -> Result<bool> {
    let found = Command::new("grep").args(["-raqF", "-e", text]).arg(t.env.home.join("etcd/member/wal")).status()?;
    ensure!(matches!(found.code(), Some(0 | 1)), "grep: {found}");
    Ok(found.success())
}

fn sealed(t: &Test) -> Result<()> {
    t.run(&["create", "secret", "generic", "password", "--from-literal=password=correct-horse-battery"])?;
    t.run(&["create", "configmap", "plain", "--from-literal=word=in-plain-sight-it-is"])?;
    ensure!(is_in_etcd(t, "k8s:enc:aescbc:v1:key1:")?, "nothing is sealed");
    ensure!(!is_in_etcd(t, "correct-horse-battery")? && !is_in_etcd(t, "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5")?, "the password is in etcd's files");
    ensure!(is_in_etcd(t, "in-plain-sight-it-is")? && !is_in_etcd(t, "\"in-plain-sight-it-is\"")?, "the map is not stored as protobuf");
    let word = t.run(&["get", "secret", "password", "-o", "jsonpath={.data.password}"])?;
    ensure!(word.trim() == "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5", "{word}");
    Ok(())
}

/// The line names one CA for clients and for the front proxy.
fn no_other_name(t: &Test) -> Result<()> {
    let dir = t.dir();
    let file = |name: &str| dir.join(name).display().to_string();
    let ask = |header: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--cacert", &file("ca.crt"), "--cert", &file("jane.crt"), "--key", &file("jane.key"), "-H", header]);
        output(curl.arg(format!("https://{SERVER}:6443/api/v1/secrets")))
    };
    for header in ["X-Remote-User: admin", "X-Remote-Group: system:masters"] {
        let answer = ask(header)?;
        ensure!(answer.contains("secrets is forbidden: User \\\"jane\\\" cannot list"), "{header}: {answer}");
    }
    Ok(())
}

fn killed(t: &Test) -> Result<()> {
    let before = t.run(&["get", "deployments,pods,configmaps,secrets", "-A", "-o", "name"])?;
    t.signal("kube-apiserver", "-KILL")?;
    let mut gone: Vec<Child> = {
        let mut running = t.running.lock().unwrap();
        let at = running.iter().position(|(name, _)| *name == "kube-apiserver").context("it ran")?;
        vec![running.remove(at).1]
    };
    gone.iter_mut().try_for_each(|child| child.wait().map(drop))?;
    apiserver(t)?;
    let after = t.run(&["get", "deployments,pods,configmaps,secrets", "-A", "-o", "name"])?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    t.run(&["scale", "deployment", "web", "--replicas=5"])?;
    eventually("five pods are bound", 40, || {
        let nodes = t.run(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
        ensure!(nodes.split_whitespace().count() == 5, "{nodes:?}");
        Ok(())
    })
}

fn stopped(t: &Test) -> Result<()> {
    t.signal("etcd", "-STOP")?;
    let start = Instant::now();
    let written = t.run(&["create", "configmap", "late", "--from-literal=a=b"]);
    let took = start.elapsed();
    t.signal("etcd", "-CONT")?;
    let why = format!("{:#}", written.err().context("it was written while etcd stood still")?);
    ensure!(took < Duration::from_secs(45), "the answer took {took:?}: {why}");
    ensure!(why.contains("the store in https://127.0.0.1:2379"), "{why}");
    eventually("it works again", 30, || t.run(&["create", "configmap", "later", "--from-literal=a=b"]).map(drop))
}

fn end(t: &Test) -> Result<()> {
    let mut running = std::mem::take(&mut *t.running.lock().unwrap());
    // etcd last: those who use it say goodbye.
    running.sort_by_key(|(name, _)| *name == "etcd");
    for (name, child) in &mut running {
        output(Command::new("kill").arg(child.id().to_string()))?;
        let code = eventually(&format!("{name} ends"), 30, || child.try_wait()?.context("it runs"))?;
        ensure!(code.success() || *name == "etcd", "{name}: {code}");
    }
    fs::remove_dir_all(&t.env.home)?;
    Ok(())
}
