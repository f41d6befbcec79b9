//! A guide's cluster of three control planes and three workers behind haproxy, by its own command lines: certificates
//! uploaded, both join commands, an expired token and a new key, a deployment reached through every node; and a control
//! plane that is lost.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::hosts::Hosts;
use e2e::{Env, begin, debian, images, run_steps, steps_of};
use serde_json::Value;

const NETWORK: &str = "198.18.13";
const MASTERS: [&str; 3] = ["k8s-master-1", "k8s-master-2", "k8s-master-3"];
const WORKERS: [&str; 3] = ["k8s-worker-1", "k8s-worker-2", "k8s-worker-3"];
const BALANCER: &str = "haproxy-lb";

fn main() {
    let test = begin(Test::new());
    let mut steps = steps_of(test, STEPS);
    steps.push(("the hosts are taken away", Box::new(|| {
        if let Some(mut proxy) = test.proxy.lock().expect("not poisoned").take() {
            proxy.kill()?;
            proxy.wait()?;
        }
        test.hosts.lock().expect("not poisoned").take();
        Ok(())
    })));
    run_steps(steps, &["haproxy", "init", "the second master joins", "workers join"]);
}

struct Test {
    env: Env,
    hosts: Mutex<Option<Hosts>>,
    proxy: Mutex<Option<Child>>,
    said: Mutex<String>,
    begun: Instant,
}

type Run = fn(&Test) -> Result<()>;

const STEPS: &[(&str, Run)] = &[
    ("haproxy", balancer),
    ("init", init),
    ("a second master without certificates is refused", without),
    ("the second master joins", second),
    ("workers join", workers),
    ("the third master joins by a new token and a new key", third),
    ("the cluster is as the guide shows it", shown),
    ("a deployment is reached through every node", deployment),
    ("nginx in haproxy's place", nginx),
    ("an address by keepalived", keepalived),
    ("a master is lost, and comes back", lost),
    ("a master is reset, and leaves etcd", leave),
];

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

impl Test {
    fn new() -> Result<Test> {
        let env = Env::new("kubeadm-ha")?;
        let names: Vec<&str> = MASTERS.into_iter().chain(WORKERS).chain([BALANCER]).collect();
        let hosts = Hosts::new(&env, "knarr-ha3", NETWORK, &names)?;
        Ok(Test { env, hosts: Mutex::new(Some(hosts)), proxy: Mutex::default(), said: Mutex::default(), begun: Instant::now() })
    }

    fn with<T>(&self, work: impl FnOnce(&Hosts) -> Result<T>) -> Result<T> {
        work(self.hosts.lock().expect("not poisoned").as_ref().context("the hosts are gone")?)
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

    /// The join command that `init` printed, for control planes or for workers.
    fn printed(&self, control_plane: bool) -> Result<String> {
        let said = self.said.lock().expect("not poisoned").clone();
        let text = said.replace("\\\n", " ");
        let lines = text.lines().filter(|l| l.trim_start().starts_with("kubeadm join"));
        let found = lines.filter(|l| l.contains("--control-plane") == control_plane).last().context("no join command")?;
        Ok(found.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// A program of Debian's on a host, with its configuration as the last argument.
    fn program(&self, host: &str, root: &Path, name: &str, args: &[&str], config: &str) -> Result<Child> {
        let file = self.env.home.join(format!("{name}-{host}.conf")).display().to_string();
        std::fs::write(&file, config)?;
        let program = root.join("usr/sbin").join(name).display().to_string();
        let log = std::fs::File::create(self.env.home.join(format!("{name}-{host}.log")))?;
        let words: Vec<&str> = [&[program.as_str()], args, &[&file]].concat();
        let mut command = self.with(|h| h.command(host, &words))?;
        Ok(command.env("LD_LIBRARY_PATH", debian::libraries(root)).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
    }

    fn ready(&self, count: usize) -> Result<()> {
        self.with(|h| h.until(MASTERS[1], "kubectl get nodes", 60, |text| text.matches(" Ready ").count() == count)).map(|_| ())
    }
}

/// The guide's configuration, with its masters' addresses.
fn balancer(t: &Test) -> Result<()> {
    let root = debian::haproxy(&t.env.tools)?;
    let own = t.address(BALANCER)?;
    let mut text = format!(
        "defaults\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n\
         frontend kubernetes-frontend\n    bind {own}:6443\n    mode tcp\n    option tcplog\n    default_backend kubernetes-backend\n\n\
         backend kubernetes-backend\n    mode tcp\n    option tcp-check\n    balance roundrobin\n"
    );
    for master in MASTERS {
        text.push_str(&format!("    server {master} {}:6443 check fall 3 rise 2\n", t.address(master)?));
    }
    let child = t.program(BALANCER, &root, "haproxy", &["-db", "-f"], &text)?;
    *t.proxy.lock().expect("not poisoned") = Some(child);
    Ok(())
}

fn end(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// nginx leads streams in haproxy's place: to the next server when one does not answer.
fn nginx(t: &Test) -> Result<()> {
    if let Some(child) = t.proxy.lock().expect("not poisoned").take() {
        end(child)?;
    }
    let root = debian::nginx(&t.env.tools)?;
    let own = t.address(BALANCER)?;
    let mut servers = String::new();
    for master in MASTERS {
        servers.push_str(&format!("server {}:6443 max_fails=1 fail_timeout=5s; ", t.address(master)?));
    }
    let text = format!(
        "load_module {}/usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\ndaemon off;\nmaster_process off;\npid {home}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nstream {{ upstream kubernetes {{ {servers}}} server {{ listen {own}:6443; proxy_pass kubernetes; proxy_connect_timeout 1s; }} }}\n",
        root.display(),
        home = t.env.home.display()
    );
    let child = t.program(BALANCER, &root, "nginx", &["-c"], &text)?;
    let tried = (|| -> Result<()> {
        t.with(|h| h.until(WORKERS[0], &format!("curl -skf --max-time 2 https://{own}:6443/readyz"), 10, |text| text == "ok"))?;
        for i in 0..4 {
            t.on(MASTERS[0], &format!("kubectl create configmap behind-nginx-{i}"))?;
        }
        t.with(|h| h.cut(MASTERS[2], true))?;
        let begun = Instant::now();
        t.with(|h| h.until(MASTERS[0], "kubectl create configmap behind-nginx-with-two --request-timeout=5s", 30, |_| true))?;
        println!("    a server is cut off: {:.2} s until the next write through nginx", begun.elapsed().as_secs_f64());
        for i in 0..4 {
            t.on(MASTERS[1], &format!("kubectl delete configmap behind-nginx-{i}"))?;
        }
        Ok(())
    })();
    t.with(|h| h.cut(MASTERS[2], false))?;
    end(child)?;
    tried?;
    balancer(t)?;
    t.ready(6)
}

/// keepalived on the masters: the address is at one whose server is ready, and goes elsewhere when that is lost.
fn keepalived(t: &Test) -> Result<()> {
    let root = debian::keepalived(&t.env.tools)?;
    let vip = format!("{NETWORK}.200");
    let mut children = Vec::new();
    for (i, master) in MASTERS.iter().enumerate() {
        let text = format!(
            "global_defs {{ script_user root\n enable_script_security\n }}\n\
             vrrp_script apiserver {{ script \"/usr/bin/curl -skf --max-time 1 -o /dev/null https://127.0.0.1:6443/readyz\"\n interval 1\n fall 2\n rise 2\n }}\n\
             vrrp_instance control-plane {{ state BACKUP\n interface eth0\n virtual_router_id 51\n priority {}\n advert_int 1\n virtual_ipaddress {{ {vip}/32 }}\n track_script {{ apiserver }}\n }}\n",
            100 - i
        );
        let pid = t.env.home.join(format!("keepalived-{master}.pid")).display().to_string();
        children.push(t.program(master, &root, "keepalived", &["--dont-fork", "--log-console", "--vrrp", "--pid", &pid, "--vrrp_pid", &format!("{pid}.vrrp"), "--use-file"], &text)?);
    }
    let holder = |t: &Test, but: Option<&str>| -> Result<&'static str> {
        for master in MASTERS.iter().filter(|m| Some(**m) != but) {
            if t.on(master, "ip -o addr show dev eth0")?.contains(&format!(" {vip}/32")) {
                return Ok(master);
            }
        }
        anyhow::bail!("no master has {vip}")
    };
    let write = |name: &str| format!("kubectl --server https://{vip}:6443 --tls-server-name kubernetes --request-timeout=3s create configmap {name}");
    let mut lost = None;
    let tried = (|| -> Result<()> {
        let first = e2e::eventually("the virtual address", 20, || holder(t, None))?;
        let from = MASTERS.iter().find(|m| **m != first).context("another master")?;
        t.with(|h| h.until(from, &write("by-keepalived"), 20, |_| true))?;
        t.with(|h| h.cut(first, true))?;
        lost = Some(first);
        let begun = Instant::now();
        t.with(|h| h.until(from, &write("by-keepalived-elsewhere"), 40, |_| true))?;
        let second = holder(t, Some(first))?;
        println!("    {first} is cut off: {:.2} s until the next write at {vip}, now at {second}", begun.elapsed().as_secs_f64());
        Ok(())
    })();
    if let Some(host) = lost {
        t.with(|h| h.cut(host, false))?;
    }
    for mut child in children {
        // It takes the address off the link when it is asked to end.
        e2e::output(std::process::Command::new("kill").arg(child.id().to_string()))?;
        child.wait()?;
    }
    tried?;
    t.ready(6)
}

fn init(t: &Test) -> Result<()> {
    let (lb, own) = (t.address(BALANCER)?, t.address(MASTERS[0])?);
    let begun = Instant::now();
    let line = format!("kubeadm init --control-plane-endpoint={lb}:6443 --upload-certs --apiserver-advertise-address={own} --pod-network-cidr=10.244.0.0/16");
    let said = t.on(MASTERS[0], &line)?;
    println!("    init with etcd: {:.2} s", begun.elapsed().as_secs_f64());
    contains(&said, &["You can now join any number of control-plane nodes running the following command on each as root:", "[upload-certs] Using certificate key:", "--control-plane --certificate-key"])?;
    *t.said.lock().expect("not poisoned") = said;
    contains(&t.on(MASTERS[0], "cat /etc/kubernetes/admin.conf")?, &[&format!("https://{lb}:6443")])?;
    t.with(|h| h.until(MASTERS[0], "kubectl get nodes", 30, |text| text.contains(" Ready "))).map(|_| ())
}

fn without(t: &Test) -> Result<()> {
    let line = t.printed(true)?;
    let bare = line.split(" --certificate-key").next().unwrap_or_default();
    let before = t.with(|h| h.traces(MASTERS[1]))?;
    contains(&t.with(|h| h.fails(MASTERS[1], bare))?, &["The certificates that must be shared among control plane instances are provided."])?;
    let wrong = format!("{bare} --certificate-key {}", "0".repeat(64));
    contains(&t.with(|h| h.fails(MASTERS[1], &wrong))?, &["error decoding secret data with provided key"])?;
    let now = t.with(|h| h.traces(MASTERS[1]))?;
    ensure!(now == before, "left behind: {:?}", now.iter().filter(|n| !before.contains(n)).collect::<Vec<_>>());
    Ok(())
}

fn join_master(t: &Test, host: &str, line: &str) -> Result<()> {
    let begun = Instant::now();
    let line = format!("{line} --apiserver-advertise-address {}", t.address(host)?);
    contains(&t.on(host, &line)?, &["This node has joined the cluster and a new control plane instance was created", "A new etcd member was added"])?;
    println!("    {host} joined: {:.2} s", begun.elapsed().as_secs_f64());
    let node = t.get(&format!("node {host}"))?;
    ensure!(node["spec"]["taints"].as_array().into_iter().flatten().any(|t| t["key"] == "node-role.kubernetes.io/control-plane"), "no taint: {}", node["spec"]);
    Ok(())
}

fn second(t: &Test) -> Result<()> {
    join_master(t, MASTERS[1], &t.printed(true)?)
}

fn workers(t: &Test) -> Result<()> {
    let line = t.printed(false)?;
    for worker in &WORKERS[..2] {
        let begun = Instant::now();
        contains(&t.on(worker, &line)?, &["This node has joined the cluster"])?;
        println!("    {worker} joined: {:.2} s", begun.elapsed().as_secs_f64());
    }
    t.ready(4)
}

/// The first token has gone, and the certificates with theirs: new ones, as the guide has it.
fn third(t: &Test) -> Result<()> {
    let old = t.printed(true)?;
    for line in t.on(MASTERS[0], "kubeadm token list")?.lines().skip(1) {
        let token = line.split_whitespace().next().unwrap_or_default().to_string();
        t.on(MASTERS[0], &format!("kubeadm token delete {token}"))?;
    }
    contains(&t.with(|h| h.fails(MASTERS[2], &old))?, &["it has expired"])?;
    let line = t.on(MASTERS[0], "kubeadm token create --print-join-command")?;
    let line = line.trim();
    let said = t.on(MASTERS[0], "kubeadm init phase upload-certs --upload-certs")?;
    let key = said.lines().last().unwrap_or_default();
    join_master(t, MASTERS[2], &format!("{line} --control-plane --certificate-key {key}"))?;
    t.on(WORKERS[2], line)?;
    t.ready(6)?;
    println!("    six nodes, with everything between: {:.1} s", t.begun.elapsed().as_secs_f64());
    Ok(())
}

fn shown(t: &Test) -> Result<()> {
    let lb = t.address(BALANCER)?;
    contains(&t.on(MASTERS[0], "kubectl cluster-info")?, &[&format!("https://{lb}:6443")])?;
    contains(&t.on(MASTERS[0], "kubectl get cs")?, &["scheduler", "controller-manager", "etcd-0", "Healthy"])?;
    for worker in WORKERS {
        t.on(MASTERS[0], &format!("kubectl label node {worker} node-role.kubernetes.io/worker=worker"))?;
    }
    let nodes = t.on(MASTERS[1], "kubectl get nodes")?;
    ensure!(nodes.matches("control-plane").count() == 3 && nodes.matches(" worker ").count() == 3, "{nodes}");
    // one leader each, and all three serve the same objects
    let lease = t.get("lease -n kube-system kube-controller-manager")?;
    contains(lease["spec"]["holderIdentity"].as_str().unwrap_or_default(), &["k8s-master-"])?;
    let slices = t.get("endpointslices -n default kubernetes")?;
    let count = slices["endpoints"].as_array().map_or(0, |all| all.iter().filter_map(|e| e["addresses"].as_array()).map(Vec::len).sum());
    ensure!(count == 3, "the service kubernetes leads to {count} servers: {slices}");
    Ok(())
}

fn deployment(t: &Test) -> Result<()> {
    let mut nginx = images::nginx_image(&t.env)?;
    nginx.name = "docker.io/library/nginx:1.25.2".into();
    let archive = t.env.home.join("nginx-1.25.2.tar");
    nginx.docker_archive(&archive)?;
    for worker in WORKERS {
        t.with(|h| h.run(worker, &format!("knarr image import {} --data-dir {}", archive.display(), h.data(worker))))?;
    }
    t.on(MASTERS[0], "kubectl create deployment web --image nginx:1.25.2 --replicas 3")?;
    t.on(MASTERS[0], "kubectl rollout status deployment/web --timeout=90s")?;
    t.on(MASTERS[0], "kubectl expose deployment web --port 80 --type NodePort")?;
    let port = t.get("service web")?["spec"]["ports"][0]["nodePort"].clone();
    for host in MASTERS.into_iter().chain(WORKERS) {
        let address = t.address(host)?;
        t.with(|h| h.until(BALANCER, &format!("curl -si --max-time 5 --noproxy * http://{address}:{port}/"), 30, |text| text.contains("200 OK")))?;
    }
    Ok(())
}

/// The server's and etcd's processes at once, as when the power goes.
fn lost(t: &Test) -> Result<()> {
    let dir = t.with(|h| Ok(h.data(MASTERS[0])))?;
    let mut killed = 0;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let own = line.contains(&format!("{dir}/bin/knarr-")) && line.contains(" server ") || line.contains(&format!("{dir}/etcd"));
        if own && let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() {
            e2e::output(std::process::Command::new("kill").args(["-9", &pid.to_string()]))?;
            killed += 1;
        }
    }
    ensure!(killed >= 2, "{killed} processes were killed");
    let begun = Instant::now();
    t.with(|h| h.until(MASTERS[1], "kubectl create configmap after-the-loss", 60, |_| true))?;
    println!("    the next write through haproxy: {:.2} s", begun.elapsed().as_secs_f64());
    t.with(|h| h.until(MASTERS[1], "kubectl get nodes", 90, |text| text.contains("NotReady")))?;
    contains(&t.on(MASTERS[1], "kubectl get pods -l app=web")?, &["Running"])?;
    t.on(MASTERS[0], "knarr up --config /etc/kubernetes/knarr.yaml")?;
    t.ready(6)?;
    t.on(MASTERS[0], "kubectl get configmap after-the-loss").map(|_| ())
}

fn leave(t: &Test) -> Result<()> {
    contains(&t.on(MASTERS[2], "kubeadm reset -f")?, &["Removing the etcd member of this node", "The member has left"])?;
    // haproxy takes some seconds to see that it is gone
    t.with(|h| h.until(MASTERS[0], &format!("kubectl delete --ignore-not-found node {}", MASTERS[2]), 30, |_| true))?;
    let members = t.with(|h| h.run(MASTERS[0], &format!("knarr etcd members --data-dir {} --run-dir {}", h.data(MASTERS[0]), h.run_dir(MASTERS[0]))))?;
    ensure!(members.matches("serves").count() == 2 && !members.contains(MASTERS[2]), "{members}");
    t.with(|h| h.until(MASTERS[1], "kubectl create configmap with-two", 30, |_| true)).map(|_| ())
}
