//! `kube-controller-manager` and `kube-scheduler` as processes of their own, started as the guides start
//! them, beside a server that has neither. Two of each: one leads, the other stands by.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Client, Env, Step, begin, curl, eventually, on_host, output, run_steps};
use serde_json::Value;

/// The host: a network namespace.
const HOST: &str = "knarr-components";
/// Set for the process that runs the steps, which is in that namespace.
const INSIDE: &str = "KNARR_COMPONENTS";
/// Length of a lease, as upstream's default.
const LEASE: Duration = Duration::from_secs(15);

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        on_host(HOST, INSIDE);
    }
    let env = begin(Env::on_port("components", 16643));
    let _ = env.knarr(&["down", "--purge"]).output();
    let test = begin(Ok(Test { env: env.clone(), running: Mutex::default() }));
    let step = |name: &'static str, f: fn(&Test) -> Result<()>| -> Step { (name, Box::new(move || f(test))) };
    let steps = vec![
        step("bad command lines have upstream's words", command_lines),
        step("a server without controllers and scheduler", server),
        step("kubeconfigs as in the guides", kubeconfigs),
        step("the lines of the guides start both", start),
        step("a deployment's pods run", deployment),
        step("health, metrics and rights on the ports", ports),
        step("each controller is an account of its own", accounts),
        step("another controller manager leads after SIGKILL", |t| take_over(t, "kube-controller-manager", 11257, 12257)),
        step("another scheduler leads after SIGKILL", |t| take_over(t, "kube-scheduler", 11259, 12259)),
        step("and the work goes on", after),
        step("a clean stop releases the lease", release),
        step("down --purge", purge),
    ];
    run_steps(steps, &["a server without controllers and scheduler", "kubeconfigs as in the guides", "the lines of the guides start both"]);
}

struct Test {
    env: Env,
    /// Processes by component and port.
    running: Mutex<Vec<(String, u16, Child)>>,
}

impl Test {
    fn dir(&self) -> PathBuf {
        self.env.home.join("certificates")
    }

    fn kubectl(&self) -> Client {
        self.env.client("kubectl")
    }

    fn binary(&self, component: &str) -> PathBuf {
        self.env.home.join(component)
    }

    /// Starts a component with the flags of the guides, on a port of its own.
    fn start(&self, component: &str, port: u16, flags: &str) -> Result<()> {
        let log = File::create(self.env.home.join(format!("{component}-{port}.log")))?;
        let mut command = Command::new(self.binary(component));
        command.args(flags.split_whitespace()).arg(format!("--secure-port={port}")).stderr(log);
        self.running.lock().unwrap().push((component.into(), port, command.spawn()?));
        Ok(())
    }

    fn manager(&self, port: u16) -> Result<()> {
        let (dir, pki) = (self.dir(), self.env.data.join("pki"));
        let (dir, pki) = (dir.display(), pki.display());
        // The line of the guides, with paths of this test; and the two flags that make pods' addresses.
        let line = format!(
            "--bind-address=0.0.0.0 --service-cluster-ip-range=10.96.0.0/16 --cluster-cidr=10.244.0.0/16 \
             --kubeconfig={dir}/kube-controller-manager.kubeconfig --authentication-kubeconfig={dir}/kube-controller-manager.kubeconfig \
             --authorization-kubeconfig={dir}/kube-controller-manager.kubeconfig --leader-elect=true \
             --cluster-signing-cert-file={pki}/ca.crt --cluster-signing-key-file={pki}/ca.key --root-ca-file={pki}/ca.crt \
             --service-account-private-key-file={pki}/sa.key --use-service-account-credentials=true --v=2 --allocate-node-cidrs"
        );
        self.start("kube-controller-manager", port, &line)
    }

    fn scheduler(&self, port: u16) -> Result<()> {
        let dir = self.dir();
        let dir = dir.display();
        let line = format!(
            "--kubeconfig={dir}/kube-scheduler.kubeconfig --authentication-kubeconfig={dir}/kube-scheduler.kubeconfig \
             --authorization-kubeconfig={dir}/kube-scheduler.kubeconfig --bind-address=127.0.0.1 --leader-elect=true"
        );
        self.start("kube-scheduler", port, &line)
    }

    fn lease(&self, name: &str) -> Result<Value> {
        self.kubectl().json(&["get", "lease", name, "-n", "kube-system"])
    }

    fn end(&self, component: &str, port: u16, signal: &str) -> Result<()> {
        let mut running = self.running.lock().unwrap();
        let at = running.iter().position(|(c, p, _)| c == component && *p == port).context("it does not run")?;
        let (_, _, mut child) = running.remove(at);
        output(Command::new("kill").args([signal, &child.id().to_string()]))?;
        let end = Instant::now() + Duration::from_secs(20);
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "{component} does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        for (_, _, child) in self.running.lock().unwrap().iter_mut() {
            let _ = child.kill();
        }
    }
}

fn command_lines(test: &Test) -> Result<()> {
    for component in ["kube-controller-manager", "kube-scheduler"] {
        let path = test.binary(component);
        let _ = fs::remove_file(&path);
        symlink(&test.env.binary, &path)?;
        let said = |args: &[&str]| -> Result<(bool, String)> {
            let output = Command::new(&path).args(args).output()?;
            Ok((output.status.success(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))))
        };
        ensure!(said(&["--version"])? == (true, "Kubernetes v1.36.0\n".into()), "{:?}", said(&["--version"])?);
        let (good, help) = said(&["--help"])?;
        ensure!(good && help.contains("--leader-elect-lease-duration duration") && help.contains("Usage:\n  "), "{help}");
        let (good, text) = said(&["--nonsense=1"])?;
        ensure!(!good && text.ends_with("Error: unknown flag: --nonsense\n"), "{text}");
        let (good, text) = said(&["--port=0"])?;
        ensure!(!good && text.contains("Error: unknown flag: --port\nHint: "), "{text}");
        let (good, text) = said(&[])?;
        ensure!(!good && text.contains("no configuration has been provided"), "{text}");
    }
    let output = test.env.knarr(&["kube-scheduler", "--version"]).output()?;
    ensure!(output.stdout == b"Kubernetes v1.36.0\n", "called by its first argument: {output:?}");
    Ok(())
}

fn server(test: &Test) -> Result<()> {
    output(&mut test.env.knarr(&["up", "--disable", "controllers,scheduler"]))?;
    let made = test.kubectl().run(&["create", "deployment", "early", "--image=busybox"])?;
    ensure!(made.contains("created"), "{made}");
    let seen = test.kubectl().fails(&["wait", "--for=jsonpath={.status.observedGeneration}=1", "deployment/early", "--timeout=2s"])?;
    ensure!(seen.contains("timed out"), "somebody runs the deployment controller: {seen}");
    test.kubectl().run(&["delete", "deployment", "early"]).map(|_| ())
}

/// Keys, certificates and kubeconfigs by the commands of the guides.
fn kubeconfigs(test: &Test) -> Result<()> {
    let (dir, pki) = (test.dir(), test.env.data.join("pki"));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let openssl = |args: &str| output(Command::new("openssl").current_dir(&dir).args(args.split_whitespace())).map(|_| ());
        openssl(&format!("genrsa -out {name}.key 2048"))?;
        openssl(&format!("req -new -key {name}.key -subj /CN=system:{name} -out {name}.csr"))?;
        let (ca, key) = (pki.join("ca.crt"), pki.join("ca.key"));
        openssl(&format!("x509 -req -in {name}.csr -CA {} -CAkey {} -set_serial 7 -out {name}.crt -days 365", ca.display(), key.display()))?;
        let config = |args: &str| {
            let kubectl = test.kubectl();
            let mut command = kubectl.command(&["config"]);
            output(command.current_dir(&dir).args(args.split_whitespace()).arg(format!("--kubeconfig={name}.kubeconfig"))).map(|_| ())
        };
        config(&format!("set-cluster from-scratch --certificate-authority={} --embed-certs=true --server=https://127.0.0.1:{}", ca.display(), test.env.port))?;
        config(&format!("set-credentials system:{name} --client-certificate={name}.crt --client-key={name}.key --embed-certs=true"))?;
        config(&format!("set-context default --cluster=from-scratch --user=system:{name}"))?;
        config("use-context default")?;
    }
    Ok(())
}

fn start(test: &Test) -> Result<()> {
    test.manager(11257)?;
    test.scheduler(11259)?;
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let lease = eventually("a leader", 30, || test.lease(name))?;
        let spec = &lease["spec"];
        ensure!(spec["leaseDurationSeconds"] == 15 && spec["leaseTransitions"] == 0, "{lease}");
        let holder = spec["holderIdentity"].as_str().context("a holder")?;
        ensure!(holder.rsplit_once('_').is_some_and(|(_, id)| id.len() == 36), "{holder}");
        eventually("an event", 10, || {
            let events = test.kubectl().json(&["get", "events", "-n", "kube-system", "--field-selector", &format!("reason=LeaderElection,involvedObject.name={name}")])?;
            let message = events["items"][0]["message"].as_str().unwrap_or_default().to_string();
            ensure!(message == format!("{holder} became leader"), "{events}");
            Ok(())
        })?;
    }
    // Those that stand by.
    test.manager(12257)?;
    test.scheduler(12259)
}

fn ready(test: &Test, name: &str, number: u64) -> Result<()> {
    eventually("ready pods", 60, || {
        let found = test.kubectl().json(&["get", "deployment", name])?;
        ensure!(found["status"]["readyReplicas"] == number, "{}", found["status"]);
        Ok(())
    })
}

fn deployment(test: &Test) -> Result<()> {
    test.kubectl().run(&["wait", "--for=condition=Ready", "node/one", "--timeout=60s"])?;
    eventually("an account", 30, || test.kubectl().run(&["get", "serviceaccount", "default"]))?;
    test.kubectl().run(&["create", "deployment", "web", "--image=knarr.local/echo", "--replicas=2"])?;
    ready(test, "web", 2)
}

fn ports(test: &Test) -> Result<()> {
    for port in [11257, 11259, 12257, 12259] {
        let at = |path: &str| format!("https://127.0.0.1:{port}{path}");
        for path in ["/healthz", "/livez", "/readyz"] {
            ensure!(curl(&["-k", &at(path)])? == "ok", "{port}{path}");
        }
        let verbose = curl(&["-k", &at("/readyz?verbose")])?;
        ensure!(verbose.contains("[+]leaderElection ok\n") && verbose.ends_with("readyz check passed\n"), "{verbose}");
        let refused: Value = serde_json::from_str(&curl(&["-k", &at("/metrics")])?)?;
        ensure!(refused["message"] == "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"", "{refused}");
        let bad: Value = serde_json::from_str(&curl(&["-k", "-H", "Authorization: Bearer nonsense", &at("/metrics")])?)?;
        ensure!(bad["code"] == 401, "{bad}");
    }
    // A token, and then a right to go with it.
    let kubectl = test.kubectl();
    kubectl.run(&["create", "serviceaccount", "scraper"])?;
    let token = kubectl.run(&["create", "token", "scraper"])?;
    let header = format!("Authorization: Bearer {}", token.trim());
    let ask = || curl(&["-k", "-H", &header, "https://127.0.0.1:11257/metrics"]);
    ensure!(ask()?.contains("system:serviceaccount:default:scraper"), "{}", ask()?);
    kubectl.run(&["create", "clusterrole", "scrape", "--verb=get", "--non-resource-url=/metrics"])?;
    kubectl.run(&["create", "clusterrolebinding", "scrape", "--clusterrole=scrape", "--serviceaccount=default:scraper"])?;
    eventually("metrics", 30, || {
        let text = ask()?;
        ensure!(text.contains("leader_election_master_status{name=\"kube-controller-manager\"} 1"), "{text}");
        Ok(())
    })
}

fn accounts(test: &Test) -> Result<()> {
    let sets = test.kubectl().json(&["get", "replicasets", "-l", "app=web", "--show-managed-fields"])?;
    let accounts = test.kubectl().run(&["get", "serviceaccounts", "-n", "kube-system", "-o", "name"])?;
    for name in ["deployment-controller", "replicaset-controller", "generic-garbage-collector"] {
        ensure!(accounts.contains(&format!("serviceaccount/{name}\n")), "{name} has no account: {accounts}");
    }
    ensure!(sets["items"].as_array().is_some_and(|s| s.len() == 1), "{sets}");
    Ok(())
}

/// The leader dies without a word; the other one leads at most 2 s after its lease has ended.
fn take_over(test: &Test, component: &str, leader: u16, standby: u16) -> Result<()> {
    let before = test.lease(component)?;
    test.end(component, leader, "-KILL")?;
    let killed = Instant::now();
    let holder = before["spec"]["holderIdentity"].clone();
    let after = eventually("another leader", 30, || {
        let lease = test.lease(component)?;
        ensure!(lease["spec"]["holderIdentity"] != holder, "{lease}");
        Ok(lease)
    })?;
    let took = killed.elapsed();
    println!("    {component}: {took:.1?} after the SIGKILL");
    // The last renewal was at most a retry period before, so the lease has ended by now.
    ensure!(took < LEASE + Duration::from_secs(2), "it took {took:?}");
    ensure!(took > LEASE - Duration::from_secs(4), "it was taken while the lease lasted: {took:?}");
    ensure!(after["spec"]["leaseTransitions"] == 1, "{after}");
    ensure!(curl(&["-k", &format!("https://127.0.0.1:{standby}/healthz")])? == "ok", "the new leader is not well");
    Ok(())
}

fn after(test: &Test) -> Result<()> {
    test.kubectl().run(&["scale", "deployment", "web", "--replicas=3"])?;
    ready(test, "web", 3)
}

fn release(test: &Test) -> Result<()> {
    test.manager(11257)?;
    eventually("the second one", 20, || curl(&["-k", "https://127.0.0.1:11257/healthz"]))?;
    let holder = test.lease("kube-controller-manager")?["spec"]["holderIdentity"].clone();
    test.end("kube-controller-manager", 12257, "-TERM")?;
    eventually("the next leader at once", 3, || {
        let lease = test.lease("kube-controller-manager")?;
        let now = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_string();
        ensure!(!now.is_empty() && lease["spec"]["holderIdentity"] != holder, "{lease}");
        Ok(())
    })
}

fn purge(test: &Test) -> Result<()> {
    for (_, _, child) in test.running.lock().unwrap().iter_mut() {
        child.kill()?;
        child.wait()?;
    }
    output(&mut test.env.knarr(&["down", "--purge"]))?;
    ensure!(!test.env.data.exists(), "{} is left", test.env.data.display());
    Ok(())
}
