//! Machines whose address changes: a cluster's only control plane, with a worker that has joined it there; the worker;
//! and, once the objects have gone to etcd, control planes with members of it, among them the one that the others have
//! joined by. Pods go on all the time.

use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use e2e::hosts::Hosts;
use e2e::{Env, begin, eventually, run_steps, steps_of};
use serde_json::Value;

const NETWORK: &str = "198.18.15";
const MASTERS: [&str; 3] = ["m1", "m2", "m3"];
const WORKER: &str = "w";

fn main() {
    let test = begin(Test::new());
    let mut steps = steps_of(test, STEPS);
    steps.push(("the hosts are taken away", Box::new(|| {
        test.hosts.lock().expect("not poisoned").take();
        Ok(())
    })));
    run_steps(steps, &["a control plane and a worker", "the objects go to etcd, in place", "two more control planes join"]);
}

struct Test {
    hosts: Mutex<Option<Hosts>>,
    said: Mutex<String>,
}

type Run = fn(&Test) -> Result<()>;

const STEPS: &[(&str, Run)] = &[
    ("a control plane and a worker", pair),
    ("what is refused", refused),
    ("the control plane moves", master),
    ("the worker follows", follow),
    ("the worker moves", worker),
    ("nothing is to be done twice", again),
    ("the objects go to etcd, in place", etcd),
    ("two more control planes join", three),
    ("one of them moves", second),
    ("the one moves that the others have joined by", first),
    ("the others are led there", led),
];

impl Test {
    fn new() -> Result<Test> {
        let env = Env::new("address")?;
        let hosts = Hosts::new(&env, "knarr-adr", NETWORK, &[MASTERS[0], MASTERS[1], MASTERS[2], WORKER])?;
        Ok(Test { hosts: Mutex::new(Some(hosts)), said: Mutex::default() })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Hosts) -> Result<T>) -> Result<T> {
        work(self.hosts.lock().expect("not poisoned").as_mut().context("the hosts are gone")?)
    }

    fn on(&self, host: &str, line: &str) -> Result<String> {
        self.with(|h| h.run(host, line))
    }

    fn address(&self, host: &str) -> Result<String> {
        self.with(|h| Ok(h.address(host).to_string()))
    }

    fn get(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.on(MASTERS[0], &format!("kubectl get {line} -o json"))?)?)
    }

    /// The command that was printed last and begins so.
    fn printed(&self, start: &str) -> Result<String> {
        let said = self.said.lock().expect("not poisoned").replace("\\\n", " ");
        let line = said.lines().rfind(|l| l.trim_start().starts_with(start)).with_context(|| format!("no {start} is in: {said}"))?;
        Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Says it, and keeps the answer.
    fn says(&self, host: &str, line: &str) -> Result<String> {
        let said = self.on(host, line)?;
        *self.said.lock().expect("not poisoned") = said.clone();
        Ok(said)
    }

    fn ready(&self, count: usize) -> Result<()> {
        self.with(|h| h.until(MASTERS[0], "kubectl get nodes", 60, |text| text.matches(" Ready ").count() == count)).map(|_| ())
    }

    /// The deployment's containers: which, and how often they were started again.
    fn containers(&self) -> Result<Vec<String>> {
        let pods = self.get("pods -l app=echo")?;
        let container = |pod: &Value| {
            let status = &pod["status"]["containerStatuses"][0];
            format!("{} {}: {} {}", pod["spec"]["nodeName"], pod["metadata"]["name"], status["containerID"], status["restartCount"])
        };
        let mut all: Vec<String> = pods["items"].as_array().into_iter().flatten().map(container).collect();
        all.sort();
        Ok(all)
    }

    /// A pod for each host; reached through each, whatever its address is by now.
    fn deploy(&self, hosts: &[&str]) -> Result<()> {
        for host in hosts.iter().filter(|h| MASTERS.contains(h)) {
            self.on(MASTERS[0], &format!("kubectl taint node {host} node-role.kubernetes.io/control-plane:NoSchedule-"))?;
        }
        self.on(MASTERS[0], &format!("kubectl create deployment echo --image knarr.local/echo --replicas {}", hosts.len()))?;
        self.on(MASTERS[0], "kubectl expose deployment echo --port 8080 --type NodePort")?;
        self.on(MASTERS[0], "kubectl rollout status deployment/echo --timeout=60s").map(|_| ())
    }

    fn reached(&self, hosts: &[&str]) -> Result<()> {
        let port = self.get("service echo")?["spec"]["ports"][0]["nodePort"].clone();
        let pods = self.get("pods -l app=echo")?["items"].as_array().map_or(0, Vec::len);
        for through in hosts {
            let address = self.address(through)?;
            // Each pod has answered there: the tunnel between the nodes stands.
            eventually(&format!("all pods through {through}"), 40, || {
                let mut seen = std::collections::BTreeSet::new();
                for _ in 0..12 {
                    let text = self.on(WORKER, &format!("curl -sS --max-time 2 --noproxy * http://{address}:{port}/"))?;
                    seen.extend(text.lines().find(|l| l.starts_with("Hostname: ")).map(String::from));
                }
                ensure!(seen.len() == pods, "{seen:?} of {pods} answered");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The addresses that the cluster knows of a node.
    fn known(&self, node: &str) -> Result<String> {
        let node = self.get(&format!("node {node}"))?;
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let address = addresses.iter().find(|a| a["type"] == "InternalIP").context("no address")?;
        Ok(address["address"].as_str().unwrap_or_default().into())
    }
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn pair(t: &Test) -> Result<()> {
    let own = t.address(MASTERS[0])?;
    t.says(MASTERS[0], &format!("kubeadm init --control-plane-endpoint {own}:6443"))?;
    t.on(WORKER, &t.printed("kubeadm join")?)?;
    t.deploy(&[MASTERS[0], WORKER])?;
    t.reached(&[MASTERS[0], WORKER])
}

fn refused(t: &Test) -> Result<()> {
    let fails = |host: &str, line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(host, line))?, parts);
    fails(MASTERS[0], &format!("knarr readdress --to {NETWORK}.99"), &["is no address of this machine", "ip addr add"])?;
    fails(MASTERS[1], "knarr readdress", &["/etc/kubernetes/knarr.yaml is not there", "--node-ip"])?;
    fails(WORKER, &format!("knarr readdress --server {NETWORK}.99:6443"), &["cannot be used"])?;
    fails(WORKER, "knarr readdress --server :::", &["https://HOST:PORT is meant"])?;
    t.ready(2)
}

fn master(t: &Test) -> Result<()> {
    let (before, old) = (t.containers()?, t.address(MASTERS[0])?);
    t.with(|h| h.readdress(MASTERS[0], 61))?;
    let new = t.address(MASTERS[0])?;
    let serial = "openssl x509 -noout -serial -in /etc/kubernetes/pki/apiserver.crt";
    let was = t.on(MASTERS[0], serial)?;
    contains(&t.on(MASTERS[0], "knarr readdress --dry-run")?, &[&format!("moves from {old} to {new}"), "[dryrun] The certificate for serving the Kubernetes API is made anew"])?;
    ensure!(t.on(MASTERS[0], serial)? == was, "a dry run has made a certificate");
    let said = t.says(MASTERS[0], "knarr readdress")?;
    contains(&said, &[&format!("This node is at {new} now."), "The ConfigMap cluster-info names", WORKER])?;
    contains(&t.on(MASTERS[0], "openssl x509 -noout -text -in /etc/kubernetes/pki/apiserver.crt")?, &[&format!("IP Address:{new}")])?;
    contains(&t.on(MASTERS[0], "kubectl config view")?, &[&format!("https://{new}:6443")])?;
    ensure!(t.known(MASTERS[0])? == new, "the node is at {}", t.known(MASTERS[0])?);
    let slice = t.get("endpointslice kubernetes")?["endpoints"].to_string();
    ensure!(slice.contains(&new) && !slice.contains(&old), "the service kubernetes leads to {slice}");
    contains(&t.on(MASTERS[0], "kubeadm token create --print-join-command")?, &[&format!("kubeadm join {new}:6443")])?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    Ok(())
}

fn follow(t: &Test) -> Result<()> {
    let before = t.containers()?;
    let line = t.printed("knarr readdress --server")?;
    contains(&t.on(WORKER, &line)?, &["/etc/kubernetes/kubelet.conf leads to"])?;
    t.ready(2)?;
    t.reached(&[MASTERS[0], WORKER])?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    Ok(())
}

fn worker(t: &Test) -> Result<()> {
    let before = t.containers()?;
    t.with(|h| h.readdress(WORKER, 64))?;
    t.on(WORKER, "knarr readdress")?;
    let new = t.address(WORKER)?;
    eventually("the worker's address", 30, || {
        ensure!(t.known(WORKER)? == new, "it is at {}", t.known(WORKER)?);
        Ok(())
    })?;
    t.reached(&[MASTERS[0], WORKER])?;
    // The certificate that it shows is for the new address.
    contains(&t.on(MASTERS[0], "kubectl logs -l app=echo --tail 1")?, &["GET /"])?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    Ok(())
}

fn again(t: &Test) -> Result<()> {
    contains(&t.on(MASTERS[0], "knarr readdress")?, &["nothing is to be done"])?;
    let server = format!("{}:6443", t.address(MASTERS[0])?);
    contains(&t.on(WORKER, &format!("knarr readdress --server {server}"))?, &["already"]).map(|_| ())
}

/// From the store of one to members of etcd, and what there was is still there.
fn etcd(t: &Test) -> Result<()> {
    let before = t.containers()?;
    t.on(MASTERS[0], "kubectl create configmap of-the-embedded-store")?;
    let data = t.with(|h| Ok(h.data(MASTERS[0])))?;
    let said = t.on(MASTERS[0], &format!("knarr store migrate --to etcd --data-dir {data}"))?;
    contains(&said, &["objects are in etcd", "the old store is kept in", "further control planes may join"])?;
    t.on(MASTERS[0], "kubectl get configmap of-the-embedded-store")?;
    contains(&t.on(MASTERS[0], "kubectl -n kube-system get configmap kubeadm-config -o yaml")?, &["local:", "/etcd/data"])?;
    t.ready(2)?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    contains(&t.with(|h| h.fails(MASTERS[0], &format!("knarr store migrate --to etcd --data-dir {data} --etcd-program /bin/true")))?, &["/bin/true is not etcd"])
}

fn three(t: &Test) -> Result<()> {
    let said = t.on(MASTERS[0], "kubeadm init phase upload-certs --upload-certs")?;
    let key = said.lines().last().unwrap_or_default();
    let line = t.on(MASTERS[0], &format!("kubeadm token create --print-join-command --certificate-key {key}"))?;
    for host in [MASTERS[1], MASTERS[2]] {
        contains(&t.on(host, line.trim())?, &["A new etcd member was added"])?;
    }
    t.ready(4)?;
    t.on(MASTERS[0], "kubectl scale deployment echo --replicas 3")?;
    t.on(MASTERS[0], "kubectl rollout status deployment/echo --timeout=60s")?;
    t.reached(&[WORKER])
}

/// All members serve, and are known where they are.
fn members(t: &Test, through: &str) -> Result<()> {
    eventually("all members", 40, || {
        let text = t.with(|h| h.run(through, &format!("knarr etcd members --data-dir {} --run-dir {}", h.data(through), h.run_dir(through))))?;
        for host in MASTERS {
            contains(&text, &[&format!("https://{}:2380", t.address(host)?)])?;
        }
        ensure!(text.matches("serves").count() == 3, "{text}");
        Ok(())
    })
}

fn second(t: &Test) -> Result<()> {
    let before = t.containers()?;
    t.with(|h| h.readdress(MASTERS[1], 62))?;
    let said = t.on(MASTERS[1], "knarr readdress")?;
    contains(&said, &["certificate for etcd nodes to communicate with each other is made anew", "This node is at"])?;
    ensure!(!said.contains("knarr readdress --server"), "the others did not join by it: {said}");
    members(t, MASTERS[0])?;
    t.ready(4)?;
    t.on(MASTERS[1], "kubectl create configmap from-the-second")?;
    t.reached(&[MASTERS[1], WORKER])?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    Ok(())
}

fn first(t: &Test) -> Result<()> {
    let before = t.containers()?;
    t.with(|h| h.readdress(MASTERS[0], 71))?;
    let new = t.address(MASTERS[0])?;
    contains(&t.says(MASTERS[0], "knarr readdress")?, &["The ConfigMap kubeadm-config names", "m2, m3, w"])?;
    members(t, MASTERS[0])?;
    contains(&t.on(MASTERS[0], "kubectl -n kube-system get configmap kubeadm-config -o yaml")?, &[&format!("controlPlaneEndpoint: {new}:6443")])?;
    // The worker's load balancer knows the others.
    t.ready(4)?;
    ensure!(t.containers()? == before, "containers were started again: {before:?}, {:?}", t.containers()?);
    Ok(())
}

fn led(t: &Test) -> Result<()> {
    let line = t.printed("knarr readdress --server")?;
    for host in [MASTERS[1], MASTERS[2], WORKER] {
        contains(&t.on(host, &line)?, &["leads to"])?;
    }
    t.on(MASTERS[2], "kubectl create configmap from-the-third")?;
    t.reached(&[MASTERS[0], MASTERS[1], WORKER])?;
    // And all can be started again where they are.
    t.on(WORKER, "kubeadm reset -f")?;
    let join = t.on(MASTERS[1], "kubeadm token create --print-join-command")?;
    contains(&join, &[&t.address(MASTERS[0])?])?;
    t.on(MASTERS[1], "kubectl delete node w")?;
    t.on(WORKER, join.trim())?;
    t.ready(4)
}
