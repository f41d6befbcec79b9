//! Certificates that last for less than a minute: a control plane with its member of etcd, and a worker, live
//! through several generations of them, with clients at work all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::hosts::Hosts;
use e2e::{Env, begin, images, output, run_steps, steps_of};

const NETWORK: &str = "198.18.14";
const MASTER: &str = "master";
const WORKER: &str = "worker";
/// How long certificates are good.
const LIFETIME: &str = "45s";
/// How often each is seen to be renewed, and how long that may take.
const GENERATIONS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(180);

fn main() {
    let test = begin(Test::new());
    let mut steps = steps_of(test, STEPS);
    steps.push(("the hosts are taken away", Box::new(|| {
        test.hosts.lock().expect("not poisoned").take();
        Ok(())
    })));
    run_steps(steps, &["kubeadm init with short certificates", "a worker joins"]);
}

struct Test {
    env: Env,
    hosts: Mutex<Option<Hosts>>,
    said: Mutex<String>,
}

type Run = fn(&Test) -> Result<()>;

const STEPS: &[(&str, Run)] = &[
    ("kubeadm init with short certificates", init),
    ("a worker joins", join),
    ("three generations, with clients at work", generations),
    ("certificates of the disk are those that are shown", shown),
];

impl Test {
    fn new() -> Result<Test> {
        let env = Env::new("certificates")?;
        let hosts = Hosts::new(&env, "knarr-crt", NETWORK, &[MASTER, WORKER])?;
        Ok(Test { env, hosts: Mutex::new(Some(hosts)), said: Mutex::default() })
    }

    /// A command line on a host. Only making the command needs the hosts: several run at once.
    fn on(&self, host: &str, line: &str) -> Result<String> {
        self.words(host, &line.split_whitespace().collect::<Vec<_>>())
    }

    fn words(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut command = self.hosts.lock().expect("not poisoned").as_ref().context("the hosts are gone")?.command(host, words)?;
        output(&mut command).with_context(|| format!("on {host}: {}", words.join(" ")))
    }

    fn address(&self, host: &str) -> String {
        self.hosts.lock().expect("not poisoned").as_ref().map(|h| h.address(host).to_string()).unwrap_or_default()
    }

    /// The certificate that is shown there.
    fn serial(&self, host: &str, port: u16) -> Result<String> {
        let show = format!("openssl s_client -connect {}:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial", self.address(host));
        self.words(MASTER, &["sh", "-c", &show])
    }
}

fn init(t: &Test) -> Result<()> {
    let config = t.env.home.join("init.yaml");
    let text = format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\ncertificateValidityPeriod: {LIFETIME}\n");
    std::fs::write(&config, text)?;
    *t.said.lock().expect("not poisoned") = t.on(MASTER, &format!("kubeadm init --etcd --config {}", config.display()))?;
    t.on(MASTER, "kubectl taint node master node-role.kubernetes.io/control-plane:NoSchedule-").map(|_| ())
}

fn join(t: &Test) -> Result<()> {
    let said = t.said.lock().expect("not poisoned").clone();
    let at = said.rfind("kubeadm join").context("init printed no join command")?;
    t.on(WORKER, &said[at..].replace("\\\n", " "))?;
    let archive = images::busybox(&t.env)?;
    for host in [MASTER, WORKER] {
        let data = t.hosts.lock().expect("not poisoned").as_ref().context("the hosts are gone")?.data(host);
        t.on(host, &format!("knarr image import {} --data-dir {data}", archive.display()))?;
        let pod = format!(
            r#"{{"apiVersion": "v1", "spec": {{"nodeName": "{host}", "containers": [{{"name": "c", "image": "e2e.local/busybox:1", "imagePullPolicy": "Never", "command": ["sh", "-c", "while true; do date; sleep 1; done"]}}]}}}}"#
        );
        t.words(MASTER, &["kubectl", "run", &format!("on-{host}"), "--image=e2e.local/busybox:1", "--overrides", &pod])?;
    }
    t.on(MASTER, "kubectl wait pod --all --for=condition=Ready --timeout=60s").map(|_| ())
}

fn generations(t: &Test) -> Result<()> {
    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    let begun = Instant::now();
    let ports = [
        ("the API server", MASTER, 6443),
        ("the master's kubelet", MASTER, 10250),
        ("the worker's kubelet", WORKER, 10250),
        ("etcd", MASTER, 2379),
        ("etcd towards other members", MASTER, 2380),
    ];
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    // Reads, writes, and what goes through the API server to either kubelet.
    let lines = [
        "kubectl get nodes,pods",
        "kubectl create configmap made --from-literal=a=b",
        "kubectl delete configmap made",
        "kubectl logs on-master --tail 1",
        "kubectl logs on-worker --tail 1",
        "kubectl exec on-worker -- true",
    ];
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            for line in lines.iter().cycle() {
                if done.load(Ordering::Relaxed) && !line.contains("delete") {
                    break;
                }
                if let Err(error) = t.on(MASTER, line) {
                    failed.lock().expect("not poisoned").push(format!("after {:.0} s: {error:#}", begun.elapsed().as_secs_f64()));
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let watched = (|| {
            while begun.elapsed() < PATIENCE {
                for (whose, host, port) in ports {
                    seen.entry(whose).or_default().insert(t.serial(host, port)?);
                }
                if seen.len() == ports.len() && seen.values().all(|serials| serials.len() > GENERATIONS) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_secs(2));
            }
            anyhow::bail!("after {PATIENCE:?} these were seen: {seen:?}")
        })();
        done.store(true, Ordering::Relaxed);
        watched
    })?;
    let failed = failed.into_inner().expect("not poisoned");
    println!("    {} calls in {:.0} s", asked.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    ensure!(failed.is_empty(), "{} of {} calls failed: {}", failed.len(), asked.load(Ordering::Relaxed), failed.join("; "));
    let nodes = t.on(MASTER, "kubectl get nodes")?;
    ensure!(nodes.matches(" Ready ").count() == 2, "{nodes}");
    // A node that had lost its identity for a moment would have said so.
    let restarts = t.on(MASTER, "kubectl get pods -o jsonpath={.items[*].status.containerStatuses[0].restartCount}")?;
    ensure!(restarts.trim() == "0 0", "containers have ended: {restarts}");
    Ok(())
}

fn shown(t: &Test) -> Result<()> {
    let disk = t.on(MASTER, "openssl x509 -noout -serial -in /etc/kubernetes/pki/apiserver.crt")?;
    e2e::eventually("the certificate of the disk", 20, || {
        let shown = t.serial(MASTER, 6443)?;
        ensure!(shown == disk || t.on(MASTER, "openssl x509 -noout -serial -in /etc/kubernetes/pki/apiserver.crt")? == shown, "{shown} is shown, not {disk}");
        Ok(())
    })?;
    // Those of clients are made anew as well: all are still good.
    for file in ["pki/apiserver-kubelet-client.crt", "pki/front-proxy-client.crt", "pki/apiserver-etcd-client.crt", "pki/etcd/healthcheck-client.crt"] {
        t.on(MASTER, &format!("openssl x509 -noout -checkend 1 -in /etc/kubernetes/{file}"))?;
    }
    t.on(WORKER, "openssl x509 -noout -checkend 1 -in /var/lib/kubelet/pki/kubelet-client-current.pem").map(|_| ())
}
