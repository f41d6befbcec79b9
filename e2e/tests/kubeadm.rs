//! Clusters as kubeadm makes them, by a guide's own command lines: one node with its taint taken off, and a worker that
//! joins; tokens, certificates, what is refused, and `reset`.

use std::process::Stdio;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::hosts::Hosts;
use e2e::{Env, begin, eventually, images, run_steps, steps_of};
use serde_json::Value;

/// The hosts' network, and their names: the guide's.
const NETWORK: &str = "198.18.12";
const MASTER: &str = "test-cp-0";
const WORKER: &str = "k8s-worker-1";
/// What the worker is called when it joins again.
const RENAMED: &str = "k8s-worker-9";

fn main() {
    let test = begin(Test::new());
    let mut steps = steps_of(test, STEPS);
    steps.push(("the hosts are taken away", Box::new(|| {
        test.hosts.lock().expect("not poisoned").take();
        Ok(())
    })));
    run_steps(steps, &["preflight alone", "kubeadm init", "a worker joins by the printed command"]);
}

struct Test {
    env: Env,
    hosts: Mutex<Option<Hosts>>,
    before: [Vec<String>; 2],
    /// What `init` printed.
    said: Mutex<String>,
}

type Run = fn(&Test) -> Result<()>;

const STEPS: &[(&str, Run)] = &[
    ("preflight alone", preflight),
    ("what init refuses", refused),
    ("kubeadm init", init),
    ("upstream's files and objects", layout),
    ("init again is refused, and changes nothing", again),
    ("firewalls, foreign runtimes, feature gates and patches are told of", findings),
    ("the taint keeps pods off, and is taken off", taint),
    ("nginx by its node port", node_port),
    ("wrong and expired tokens, a wrong hash: nothing half-joined", strangers),
    ("a clock that is wrong, a copied link, a full disk: nothing half-joined", machines),
    ("a CA of RSA that is there is used", own_ca),
    ("a CA of somebody else: requests, signatures, init", external_ca),
    ("an etcd of somebody else", external_etcd),
    ("a half-finished init is told of, and reset", half),
    ("a join that was killed is told of, and reset", killed),
    ("a worker joins by the printed command", join),
    ("a request for somebody else's name is not signed", names),
    ("a deployment is reached through both nodes", both),
    ("a taken name is refused", taken),
    ("tokens are made, listed and removed", tokens),
    ("certificates are shared for two hours, sealed", shared),
    ("renewed certificates are taken without a restart", renew),
    ("a worker is reset, and joins by a file", by_file),
    ("reset leaves both machines as they were", reset),
];

impl Test {
    fn new() -> Result<Test> {
        let env = Env::new("kubeadm")?;
        let hosts = Hosts::new(&env, "knarr-adm", NETWORK, &[MASTER, WORKER])?;
        let before = [hosts.traces(MASTER)?, hosts.traces(WORKER)?];
        Ok(Test { env, hosts: Mutex::new(Some(hosts)), before, said: Mutex::default() })
    }

    fn with<T>(&self, work: impl FnOnce(&Hosts) -> Result<T>) -> Result<T> {
        work(self.hosts.lock().expect("not poisoned").as_ref().context("the hosts are gone")?)
    }

    /// A command line on the master.
    fn master(&self, line: &str) -> Result<String> {
        self.with(|h| h.run(MASTER, line))
    }

    fn worker(&self, line: &str) -> Result<String> {
        self.with(|h| h.run(WORKER, line))
    }

    fn get(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.master(&format!("kubectl get {line} -o json"))?)?)
    }

    /// The command that `init` printed for workers.
    fn join_line(&self) -> Result<String> {
        let said = self.said.lock().expect("not poisoned").clone();
        let at = said.rfind("kubeadm join").context("init printed no join command")?;
        Ok(said[at..].replace("\\\n", " ").split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Nothing of a join is on the worker.
    fn untouched(&self) -> Result<()> {
        let now = self.with(|h| h.traces(WORKER))?;
        ensure!(now == self.before[1], "left behind: {:?}", now.iter().filter(|t| !self.before[1].contains(t)).collect::<Vec<_>>());
        Ok(())
    }
}

/// Runs a shell's line on a host.
fn sh(t: &Test, host: &str, line: &str) -> Result<String> {
    t.with(|h| h.words(host, &["sh", "-ec", line]))
}

/// A program that runs beside a host until it is let go.
fn beside(t: &Test, host: &str, line: &str) -> Result<e2e::Background> {
    t.with(|h| Ok(e2e::Background(h.command(host, &["sh", "-ec", &format!("exec {line}")])?.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)))
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn preflight(t: &Test) -> Result<()> {
    contains(&t.master("kubeadm init phase preflight")?, &["[preflight] Running pre-flight checks"])?;
    contains(&t.master("kubeadm version -o short")?, &["v1.36."])
}

fn refused(t: &Test) -> Result<()> {
    let fails = |line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(MASTER, line))?, parts);
    fails("kubeadm init --kubernetes-version 1.27.6", &["error: ", "serves Kubernetes v1.36."])?;
    fails("kubeadm init --pod-network-cidr 10.244.0.0", &["networking.podSubnet: Invalid value: \"10.244.0.0\": couldn't parse subnet"])?;
    fails("kubeadm init --token abc", &["the bootstrap token is invalid"])?;
    fails("kubeadm init --skip-phases nonsense", &["invalid phase name: nonsense"])?;
    fails("kubeadm init --config /nowhere.yaml --token abcdef.0123456789abcdef", &["can not mix '--config' with arguments [token]"])?;
    // the route to the bridge is in this network
    fails(&format!("kubeadm init --pod-network-cidr {NETWORK}.0/24"), &["[ERROR CIDROverlap]", "choose another network", "--ignore-preflight-errors"])?;
    let now = t.with(|h| h.traces(MASTER))?;
    ensure!(now == t.before[0], "a refused init has left {now:?}");
    Ok(())
}

fn init(t: &Test) -> Result<()> {
    let begun = Instant::now();
    let said = t.master("kubeadm init --kubernetes-version 1.36.0 --pod-network-cidr 192.168.0.0/16")?;
    let took = begun.elapsed().as_secs_f64();
    contains(&said, &["Your Kubernetes control-plane has initialized successfully!", "[certs] Generating \"ca\" certificate and key", "[bootstrap-token] Using token: "])?;
    *t.said.lock().expect("not poisoned") = said;
    let node = &t.get("nodes")?["items"][0];
    println!("    init until Ready: {took:.2} s");
    ensure!(node["metadata"]["name"] == MASTER, "the node is {}", node["metadata"]["name"]);
    ensure!(node["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True"), "the node is not Ready: {node}");
    contains(&t.master("kubectl get nodes")?, &["control-plane"])
}

fn layout(t: &Test) -> Result<()> {
    let files = t.master("find /etc/kubernetes /var/lib/kubelet -type f")?;
    let wanted = ["admin.conf", "super-admin.conf", "kubelet.conf", "controller-manager.conf", "scheduler.conf", "pki/ca.crt", "pki/ca.key", "pki/apiserver.crt", "pki/sa.pub", "pki/front-proxy-client.key"];
    contains(&files, &wanted.map(|name| format!("/etc/kubernetes/{name}")).each_ref().map(String::as_str))?;
    contains(&files, &["/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env"])?;
    let config = t.get("configmap -n kube-system kubeadm-config")?;
    contains(config["data"]["ClusterConfiguration"].as_str().unwrap_or_default(), &["apiVersion: kubeadm.k8s.io/v1beta4", "podSubnet: 192.168.0.0/16"])?;
    contains(t.get("configmap -n kube-system kubelet-config")?["data"]["kubelet"].as_str().unwrap_or_default(), &["kind: KubeletConfiguration"])?;
    let node = t.get(&format!("node {MASTER}"))?;
    ensure!(node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] == "", "{}", node["metadata"]["labels"]);
    ensure!(node["spec"]["taints"][0]["key"] == "node-role.kubernetes.io/control-plane", "{}", node["spec"]["taints"]);
    // anybody may read where the cluster is, signed for who holds the token
    let info = t.with(|h| h.run(WORKER, &format!("curl -sSk https://{}:6443/api/v1/namespaces/kube-public/configmaps/cluster-info", h.address(MASTER))))?;
    contains(&info, &["jws-kubeconfig-", "certificate-authority-data"])
}

fn again(t: &Test) -> Result<()> {
    let text = t.with(|h| h.fails(MASTER, "kubeadm init"))?;
    contains(&text, &["[ERROR Port-6443]", "[ERROR Port-10250]", "kubeadm reset"])?;
    contains(&t.master("kubectl get nodes")?, &["Ready"])
}

fn findings(t: &Test) -> Result<()> {
    let all = "all";
    let rules = t.env.home.join("firewall.nft");
    std::fs::write(&rules, "table inet filter {\n chain input {\n type filter hook input priority 0; policy drop;\n iif lo accept\n ct state established,related accept\n tcp dport { 22, 6443, 30000-32767 } accept\n }\n}\n")?;
    let file = rules.display().to_string();
    let said = sh(t, WORKER, &format!("nft -f {file}; kubeadm init phase preflight --cri-socket unix:///run/nowhere.sock --feature-gates RootlessControlPlane=true --ignore-preflight-errors={all} 2>&1; nft delete table inet filter"))?;
    contains(&said, &["[WARNING Firewall]: the chain \"input\" of the nf_tables table \"inet filter\" lets nobody in at 10250/tcp (kubelet), 8472/udp (pod network (VXLAN))", "nft insert rule inet filter input tcp dport '{ 10250 }' accept"])?;
    contains(&said, &["[WARNING CRI]: the container runtime at unix:///run/nowhere.sock is not used", "[WARNING ContainerRuntimeVersion]: container runtime is not running", "[WARNING FeatureGates]: RootlessControlPlane has no effect"])?;
    let patches = t.env.home.join("patches");
    std::fs::create_dir_all(&patches)?;
    std::fs::write(patches.join("kube-apiserver+merge.yaml"), "a: 1\n")?;
    let fails = |line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(WORKER, line))?, parts);
    fails(&format!("kubeadm init phase preflight --patches {}", patches.display()), &["[ERROR Patches]: kube-apiserver+merge.yaml: there is no kube-apiserver to patch"])?;
    std::fs::remove_dir_all(&patches)?;
    fails("kubeadm init --feature-gates EtcdLearnerMode=true", &["unrecognized feature-gate key: EtcdLearnerMode"])?;
    t.untouched()
}

fn taint(t: &Test) -> Result<()> {
    let mut nginx = images::nginx_image(&t.env)?;
    nginx.name = "docker.io/library/nginx:1.25.2".into();
    let archive = t.env.home.join("nginx-1.25.2.tar");
    nginx.docker_archive(&archive)?;
    t.with(|h| h.run(MASTER, &format!("knarr image import {} --data-dir {}", archive.display(), h.data(MASTER))))?;
    t.master("kubectl run nginx --image nginx:1.25.2")?;
    t.with(|h| h.until(MASTER, "kubectl describe pod nginx", 20, |text| text.contains("0/1 nodes are available: 1 node(s) had untolerated taint")))?;
    contains(&t.master(&format!("kubectl taint node {MASTER} node-role.kubernetes.io/control-plane:NoSchedule-"))?, &["untainted"])?;
    t.master("kubectl wait --for=condition=Ready pod/nginx --timeout=60s").map(|_| ())
}

fn node_port(t: &Test) -> Result<()> {
    let pod = t.get("pod nginx")?["status"]["podIP"].as_str().context("no address")?.to_string();
    ensure!(pod.starts_with("192.168."), "the pod has {pod}");
    contains(&t.master(&format!("curl -si --noproxy * http://{pod}/"))?, &["200 OK", "nginx"])?;
    t.master("kubectl expose pod nginx --port 80 --type NodePort")?;
    let port = t.get("service nginx")?["spec"]["ports"][0]["nodePort"].clone();
    let address = t.with(|h| Ok(h.address(MASTER).to_string()))?;
    t.with(|h| h.until(WORKER, &format!("curl -si --noproxy * http://{address}:{port}/"), 20, |text| text.contains("200 OK")))?;
    t.master("kubectl delete service nginx")?;
    t.master("kubectl delete pod nginx").map(|_| ())
}

fn strangers(t: &Test) -> Result<()> {
    let line = t.join_line()?;
    let token = line.split(' ').skip_while(|w| *w != "--token").nth(1).context("no token")?.to_string();
    let fails = |line: &str, parts: &[&str]| -> Result<()> {
        contains(&t.with(|h| h.fails(WORKER, line))?, parts)?;
        t.untouched()
    };
    let (id, _) = token.split_once('.').context("no secret")?;
    fails(&line.replace(&token, &format!("{id}.0123456789abcdef")), &["failed to verify JWS signature of received cluster info object, can't trust this API Server"])?;
    fails(&line.replace(&token, "abcdef.0123456789abcdef"), &["token id \"abcdef\" is invalid for this cluster or it has expired"])?;
    let end = t.master("kubeadm token create --ttl 1s")?.trim().to_string();
    eventually("the token's end", 20, || {
        ensure!(!t.master("kubeadm token list")?.contains(&end), "it is still there");
        Ok(())
    })?;
    fails(&line.replace(&token, &end), &["it has expired", "kubeadm token create"])?;
    let at = line.find("sha256:").context("no hash")?;
    fails(&format!("{}{}", &line[..at + 7], "0".repeat(64)), &["none of the public keys", "are pinned"])?;
    fails(&line.replace(&line[at..], "md5:00"), &["unknown hash format"])?;
    let bare = line.split(" --discovery").next().unwrap_or_default();
    fails(bare, &["--discovery-token-unsafe-skip-ca-verification"])
}

fn machines(t: &Test) -> Result<()> {
    let line = t.join_line()?;
    let fails = |line: &str, parts: &[&str]| -> Result<()> {
        contains(&t.with(|h| h.fails(WORKER, line))?, parts)?;
        t.untouched()
    };
    // A server whose clock stands in 2020; nothing but that is asked of it.
    let dir = t.env.home.join("late");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("version"), "HTTP/1.0 401 Unauthorized\r\nDate: Wed, 01 Jan 2020 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n")?;
    let address = t.with(|h| Ok(h.address(MASTER).to_string()))?;
    sh(t, MASTER, &format!("cd {}; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=late -keyout key -out crt 2>/dev/null", dir.display()))?;
    let late = beside(t, MASTER, &format!("env -C {0} openssl s_server -accept 7443 -cert {0}/crt -key {0}/key -HTTP -quiet", dir.display()))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let result = fails(&line.replace(&format!("{address}:6443"), &format!("{address}:7443")), &["[ERROR TimeSkew]: this machine's clock is", "ahead of the API server's", "2020-01-01 00:00:00 UTC there", "timedatectl set-ntp true"]);
    drop(late);
    result?;
    let own = sh(t, WORKER, "cat /sys/class/net/eth0/address")?;
    sh(t, WORKER, &format!("ip neigh replace {NETWORK}.77 lladdr {} dev eth0", own.trim()))?;
    let result = fails(&line, &["[ERROR MACAddress]", &format!("is also that of a neighbour at {NETWORK}.77"), "ip link set eth0 address"]);
    sh(t, WORKER, &format!("ip neigh del {NETWORK}.77 dev eth0"))?;
    result?;
    let data = small(t)?;
    let text = t.with(|h| h.fails(WORKER, &line))?;
    let left = sh(t, WORKER, &format!("ls -A {data}; umount {data}; rmdir {data}"))?;
    contains(&text, &["error execution phase kubelet-wait-bootstrap: failed while waiting for the kubelet to start", "No space left on device"])?;
    ensure!(left.trim().is_empty(), "a join without room has left {left}");
    t.untouched()
}

/// Makes the worker's data directory a file system with room for half of the program, which is copied there first.
fn small(t: &Test) -> Result<String> {
    let (data, size) = (t.with(|h| Ok(h.data(WORKER)))?, std::fs::metadata(&t.env.binary)?.len() / 2);
    sh(t, WORKER, &format!("mkdir {data}; mount -t tmpfs -o size={size} tmpfs {data}"))?;
    Ok(data)
}

/// What a cluster of one node on the worker's host answers while its certificates are somebody's own.
fn works(t: &Test) -> Result<()> {
    let get = "kubectl --kubeconfig /etc/kubernetes/admin.conf";
    t.with(|h| h.until(WORKER, &format!("{get} get nodes"), 10, |text| text.contains(" Ready ")))?;
    // by the key of service accounts, and through the API server's certificate towards kubelets
    let token = t.worker(&format!("{get} create token default"))?;
    let asked = format!("kubectl --kubeconfig /dev/null --server https://127.0.0.1:6443 --certificate-authority /etc/kubernetes/pki/ca.crt --token {} auth whoami", token.trim());
    contains(&t.worker(&asked)?, &["system:serviceaccount:default:default"])?;
    contains(&t.worker(&format!("{get} get --raw /api/v1/nodes/{WORKER}/proxy/healthz"))?, &["ok"])?;
    t.with(|h| h.until(WORKER, &format!("{get} top nodes"), 30, |text| text.contains(WORKER)))?;
    t.worker("kubeadm reset --force")?;
    t.untouched()
}

fn own_ca(t: &Test) -> Result<()> {
    let make = "mkdir -p /etc/kubernetes/pki; cd /etc/kubernetes/pki; \
        openssl req -x509 -newkey rsa:2048 -nodes -days 100 -subj /CN=mine -keyout ca.key -out ca.crt 2>/dev/null; \
        openssl genrsa -traditional -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null";
    sh(t, WORKER, make)?;
    let config = t.env.home.join("rsa.yaml");
    std::fs::write(&config, "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nencryptionAlgorithm: RSA-2048\nnetworking: {podSubnet: 192.168.0.0/16}\n")?;
    let said = t.worker(&format!("kubeadm init --config {}", config.display()))?;
    contains(&said, &["[certs] Using existing ca certificate authority", "[certs] Using the existing \"sa\" key"])?;
    let text = sh(t, WORKER, "openssl x509 -noout -text -in /etc/kubernetes/pki/apiserver.crt")?;
    contains(&text, &["Issuer: CN = mine", "Public-Key: (2048 bit)", "sha256WithRSAEncryption"])?;
    works(t)
}

fn external_ca(t: &Test) -> Result<()> {
    t.worker("kubeadm certs generate-csr")?;
    let fails = |line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(WORKER, line))?, parts);
    // The CAs are elsewhere; only their certificates come here.
    let dir = t.env.home.join("elsewhere");
    std::fs::create_dir_all(&dir)?;
    let elsewhere = dir.display();
    sh(t, WORKER, &format!(
        "cd {elsewhere}; for ca in ca front-proxy-ca etcd-ca; do openssl req -x509 -newkey rsa:2048 -nodes -days 100 -subj /CN=$ca -keyout $ca.key -out $ca.crt 2>/dev/null; done; \
         cp ca.crt front-proxy-ca.crt /etc/kubernetes/pki/; cp etcd-ca.crt /etc/kubernetes/pki/etcd/ca.crt; cd /etc/kubernetes/pki; openssl genrsa -out sa.key 2048 2>/dev/null"
    ))?;
    fails("kubeadm init", &["invalid or incomplete external CA: failure loading certificate for API server"])?;
    let sign = |ca: &str, csr: &str| format!("openssl x509 -req -in {csr} -CA {elsewhere}/{ca}.crt -CAkey {elsewhere}/{ca}.key -CAcreateserial -days 50 -copy_extensions copy -out $(echo {csr} | sed s/csr$/crt/) 2>/dev/null");
    let mut lines = vec!["cd /etc/kubernetes/pki".to_string()];
    lines.extend(["apiserver", "apiserver-kubelet-client"].map(|name| sign("ca", &format!("{name}.csr"))));
    lines.push(sign("front-proxy-ca", "front-proxy-client.csr"));
    lines.extend(["apiserver-etcd-client", "etcd/server", "etcd/peer", "etcd/healthcheck-client"].map(|name| sign("etcd-ca", &format!("{name}.csr"))));
    sh(t, WORKER, &lines.join("; "))?;
    fails("kubeadm init", &["the controller-manager.conf file does not exists or it is not valid"])?;
    let users = [("admin", "kubernetes-admin"), ("super-admin", "kubernetes-super-admin"), ("controller-manager", "system:kube-controller-manager"), ("scheduler", "system:kube-scheduler"), ("kubelet", &format!("system:node:{WORKER}"))];
    for (file, user) in users {
        let conf = format!("/etc/kubernetes/{file}.conf");
        let put = format!(
            "{}; kubectl config set-cluster kubernetes --kubeconfig {conf} --certificate-authority {elsewhere}/ca.crt --embed-certs >/dev/null; \
             kubectl config set-credentials {user} --kubeconfig {conf} --client-certificate {conf}.crt --embed-certs >/dev/null; rm {conf}.crt {conf}.csr",
            sign("ca", &format!("{conf}.csr"))
        );
        sh(t, WORKER, &put)?;
    }
    fails("kubeadm init --upload-certs", &["can't use upload-certs with an external CA or an external front-proxy CA"])?;
    let said = t.worker("kubeadm init --pod-network-cidr 192.168.0.0/16")?;
    contains(&said, &["[certs] Using existing ca keyless certificate authority", "[certs] Using existing apiserver certificate and key on disk", "[kubeconfig] External CA mode: Using user provided admin.conf", "has initialized successfully"])?;
    contains(&t.worker("kubeadm certs check-expiration")?, &["ca", "yes"])?;
    contains(&t.worker("kubeadm certs renew apiserver")?, &["Detected external ca, certificate for serving the Kubernetes API can't be renewed"])?;
    // nobody signs here
    let get = "kubectl --kubeconfig /etc/kubernetes/admin.conf";
    sh(t, WORKER, &format!("cd {elsewhere}; openssl req -new -newkey rsa:2048 -nodes -subj /O=system:nodes/CN=system:node:x -keyout x.key -out x.csr 2>/dev/null; \
        printf 'apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: x}}\nspec: {{signerName: kubernetes.io/kube-apiserver-client-kubelet, usages: [client auth], request: %s}}\n' $(base64 -w0 x.csr) | {get} create -f - >/dev/null; {get} certificate approve x >/dev/null"))?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let csr = t.worker(&format!("{get} get csr x -o jsonpath={{.status.conditions[*].type}}/{{.status.certificate}}"))?;
    ensure!(csr == "Approved/", "it is {csr}");
    works(t)
}

/// The objects are in an etcd that others run, behind TLS; a reset leaves them there.
fn external_etcd(t: &Test) -> Result<()> {
    let dir = t.env.home.join("etcd-elsewhere");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    let (at, url) = (dir.display(), "https://127.0.0.1:12379");
    for name in ["etcd-ca", "etcd-server", "apiserver-etcd-client"] {
        t.worker(&format!("kubeadm init phase certs {name} --cert-dir {at}"))?;
    }
    let etcd = beside(t, WORKER, &format!(
        "etcd --data-dir {at}/data --listen-client-urls {url} --advertise-client-urls {url} --listen-peer-urls http://127.0.0.1:12380 \
         --client-cert-auth --trusted-ca-file {at}/etcd/ca.crt --cert-file {at}/etcd/server.crt --key-file {at}/etcd/server.key"
    ))?;
    let access = format!("caFile: {at}/etcd/ca.crt, certFile: {at}/apiserver-etcd-client.crt, keyFile: {at}/apiserver-etcd-client.key");
    let config = |url: &str| -> Result<String> {
        let file = dir.join("init.yaml");
        std::fs::write(&file, format!("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking: {{podSubnet: 192.168.0.0/16}}\netcd: {{external: {{endpoints: [\"{url}\"], {access}}}}}\n"))?;
        Ok(format!("kubeadm init --config {}", file.display()))
    };
    let fails = |line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(WORKER, line))?, parts);
    fails(&config("http://127.0.0.1:12379")?, &["etcd.external.endpoints", "http://127.0.0.1:12379"])?;
    fails(&config("https://127.0.0.1:12381")?, &["[ERROR ExternalEtcdVersion]", "https://127.0.0.1:12381"])?;
    t.untouched()?;
    let said = t.worker(&config(url)?)?;
    contains(&said, &["[certs] External etcd mode: Skipping etcd/ca certificate authority generation", "has initialized successfully"])?;
    let stored = || -> Result<u64> {
        let ask = format!(
            "curl -sS --cacert {at}/etcd/ca.crt --cert {at}/apiserver-etcd-client.crt --key {at}/apiserver-etcd-client.key {url}/v3/kv/range -d '{{\"key\":\"'$(printf /registry/ | base64)'\",\"range_end\":\"'$(printf /registry0 | base64)'\",\"count_only\":true}}'"
        );
        let answer: Value = serde_json::from_str(&sh(t, WORKER, &ask)?)?;
        Ok(answer["count"].as_str().and_then(|n| n.parse().ok()).unwrap_or_default())
    };
    let before = stored()?;
    ensure!(before > 100, "{before} objects are in it");
    works(t)?;
    // Leases, endpoints and what the node had are given up in an orderly end.
    let after = stored()?;
    ensure!(after + 20 > before, "of {before} objects {after} are left after a reset");
    drop(etcd);
    Ok(std::fs::remove_dir_all(&dir)?)
}

fn half(t: &Test) -> Result<()> {
    // Whose phases were run by hand goes on where they ended.
    t.worker("kubeadm init phase certs all")?;
    t.worker("kubeadm init phase kubeconfig all")?;
    let data = small(t)?;
    let text = t.with(|h| h.fails(WORKER, "kubeadm init"));
    sh(t, WORKER, &format!("umount {data}; rmdir {data}"))?;
    contains(&text?, &["[certs] Using existing apiserver certificate and key on disk", "failed while waiting for the control plane to start", "No space left on device"])?;
    contains(&t.with(|h| h.fails(WORKER, "kubeadm init"))?, &["[ERROR FileAvailable--etc-kubernetes-knarr.yaml]", "kubeadm reset"])?;
    t.worker("kubeadm reset --force")?;
    t.untouched()
}

fn killed(t: &Test) -> Result<()> {
    let line = t.join_line()?;
    sh(t, WORKER, &format!("{line} >/dev/null 2>&1 & pid=$!; while [ ! -e /etc/kubernetes/kubelet.conf ]; do sleep 0.01; done; kill -9 $pid"))?;
    contains(&t.with(|h| h.fails(WORKER, &line))?, &["[ERROR FileAvailable--etc-kubernetes-kubelet.conf]", "or has begun to: kubeadm reset takes that back"])?;
    t.worker("kubeadm reset --force")?;
    t.untouched()?;
    // It may have come as far as that.
    t.master(&format!("kubectl delete node {WORKER} --ignore-not-found")).map(|_| ())
}

fn join(t: &Test) -> Result<()> {
    let line = t.join_line()?;
    let begun = Instant::now();
    contains(&t.worker(&line)?, &["This node has joined the cluster", "Run 'kubectl get nodes' on the control-plane"])?;
    println!("    join until Ready: {:.2} s", begun.elapsed().as_secs_f64());
    let node = t.get(&format!("node {WORKER}"))?;
    ensure!(node["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True"), "it is not Ready");
    ensure!(node["spec"]["taints"].is_null(), "a worker has taints: {}", node["spec"]["taints"]);
    t.master(&format!("kubectl label node {WORKER} node-role.kubernetes.io/worker=worker"))?;
    contains(&t.master("kubectl get nodes")?, &["worker"])?;
    let said = t.worker("openssl x509 -noout -subject -in /var/lib/kubelet/pki/kubelet-client-current.pem")?;
    contains(&said, &["system:nodes", &format!("system:node:{WORKER}")])?;
    // the node's own identity, and no more than that
    let own = t.worker("kubectl --kubeconfig /etc/kubernetes/kubelet.conf auth can-i create deployments");
    ensure!(own.is_err(), "a node may create deployments: {own:?}");
    Ok(())
}

fn names(t: &Test) -> Result<()> {
    let dir = t.env.home.display().to_string();
    let own = "kubectl --kubeconfig /etc/kubernetes/kubelet.conf";
    let ask = |name: &str, cn: &str, signer: &str, usage: &str, more: &str| {
        format!(
            "cd {dir}; openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=system:nodes/CN=system:node:{cn} {more} -keyout {name}.key -out {name}.csr 2>/dev/null; \
             printf 'apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec: {{signerName: kubernetes.io/{signer}, usages: [{usage}], request: %s}}\n' $(base64 -w0 {name}.csr) | {own} create -f - 2>&1"
        )
    };
    // As this node: a client's certificate for another one, and a server's with another one's address.
    let refused = sh(t, WORKER, &format!("{} || true", ask("client-of-another", MASTER, "kube-apiserver-client-kubelet", "client auth", "")))?;
    contains(&refused, &["is forbidden: can only create a node CSR with CN=\"system:node:k8s-worker-1\""])?;
    let address = t.with(|h| Ok(h.address(MASTER).to_string()))?;
    sh(t, WORKER, &ask("server-of-another", WORKER, "kubelet-serving", "server auth", &format!("-addext subjectAltName=IP:{address}")))?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let csr = t.get("csr server-of-another")?;
    ensure!(csr["status"]["certificate"].is_null() && !csr["status"]["conditions"].to_string().contains("Approved"), "it is approved: {csr}");
    t.master("kubectl delete csr server-of-another").map(|_| ())
}

fn both(t: &Test) -> Result<()> {
    let archive = t.env.home.join("nginx-1.25.2.tar");
    t.with(|h| h.run(WORKER, &format!("knarr image import {} --data-dir {}", archive.display(), h.data(WORKER))))?;
    t.master("kubectl create deployment web --image nginx:1.25.2 --replicas 2")?;
    t.master("kubectl rollout status deployment/web --timeout=60s")?;
    t.master("kubectl expose deployment web --port 80 --type NodePort")?;
    let port = t.get("service web")?["spec"]["ports"][0]["nodePort"].clone();
    for host in [MASTER, WORKER] {
        let address = t.with(|h| Ok(h.address(host).to_string()))?;
        for from in [MASTER, WORKER] {
            t.with(|h| h.until(from, &format!("curl -si --noproxy * http://{address}:{port}/"), 20, |text| text.contains("200 OK")))?;
        }
    }
    let pods = t.get("pods -l app=web")?;
    let nodes: std::collections::BTreeSet<_> = pods["items"].as_array().into_iter().flatten().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    ensure!(nodes.len() == 2, "both pods are on {nodes:?}");
    t.master("kubectl delete deployment,service web").map(|_| ())
}

fn taken(t: &Test) -> Result<()> {
    let line = t.join_line()?;
    let text = t.with(|h| h.fails(WORKER, &line))?;
    contains(&text, &["[ERROR FileAvailable--etc-kubernetes-kubelet.conf]", "[ERROR Port-10250]", "kubeadm reset"])?;
    let all = format!("{line} --ignore-preflight-errors=FileAvailable--etc-kubernetes-kubelet.conf,FileAvailable--etc-kubernetes-pki-ca.crt,FileAvailable--etc-kubernetes-knarr.yaml,Port-10250,NodeRunning");
    contains(&t.with(|h| h.fails(WORKER, &all))?, &["[ERROR NodeName]", "already exists in the cluster"])?;
    t.with(|h| h.until(MASTER, "kubectl get nodes", 10, |text| text.matches(" Ready ").count() == 2)).map(|_| ())
}

fn tokens(t: &Test) -> Result<()> {
    let made = t.master("kubeadm token generate")?;
    contains(&t.master(&format!("kubeadm token create {} --description mine --ttl 0", made.trim()))?, &[made.trim()])?;
    let fails = |line: &str, parts: &[&str]| contains(&t.with(|h| h.fails(MASTER, line))?, parts);
    let id = made.split('.').next().unwrap_or_default();
    fails(&format!("kubeadm token create {}", made.trim()), &[&format!("a token with id \"{id}\" already exists")])?;
    let list = t.master("kubeadm token list")?;
    let row = list.lines().find(|l| l.starts_with(made.trim())).with_context(|| format!("it is not listed: {list}"))?;
    contains(row, &["<forever>", "<never>", "authentication,signing", "mine"])?;
    contains(&t.master(&format!("kubeadm token delete {id}"))?, &[&format!("bootstrap token \"{id}\" deleted")])?;
    fails("kubeadm token delete Nonsense", &["given token didn't match pattern"])?;
    let line = t.master("kubeadm token create --print-join-command")?;
    contains(&line, &["kubeadm join ", ":6443 --token ", "--discovery-token-ca-cert-hash sha256:"])
}

fn shared(t: &Test) -> Result<()> {
    let said = t.master("kubeadm init phase upload-certs --upload-certs")?;
    contains(&said, &["[upload-certs] Storing the certificates in Secret \"kubeadm-certs\"", "[upload-certs] Using certificate key:"])?;
    let key = said.lines().last().unwrap_or_default();
    ensure!(key.len() == 64, "the key is {key:?}");
    let secret = t.get("secret -n kube-system kubeadm-certs")?;
    ensure!(secret["data"]["ca.key"].as_str().is_some_and(|v| v.len() > 100), "no CA in the Secret");
    ensure!(secret["metadata"]["ownerReferences"][0]["kind"] == "Secret", "nobody owns it, so it does not end");
    let line = t.master(&format!("kubeadm token create --print-join-command --certificate-key {key}"))?;
    contains(&line, &["--control-plane --certificate-key"])
}

fn renew(t: &Test) -> Result<()> {
    let address = t.with(|h| Ok(h.address(MASTER).to_string()))?;
    let show = |t: &Test| -> Result<String> {
        t.with(|h| h.words(MASTER, &["sh", "-c", &format!("openssl s_client -connect {address}:6443 </dev/null 2>/dev/null | openssl x509 -noout -serial")]))
    };
    let before = show(t)?;
    contains(&t.master("kubeadm certs check-expiration")?, &["apiserver", "364d", "front-proxy-ca"])?;
    contains(&t.master("kubeadm certs renew all")?, &["certificate for serving the Kubernetes API renewed", "Done renewing certificates"])?;
    eventually("the new certificate", 20, || {
        let now = show(t)?;
        ensure!(now != before, "it is still {now}");
        Ok(())
    })?;
    contains(&t.master("kubectl get nodes")?, &[WORKER])
}

fn by_file(t: &Test) -> Result<()> {
    contains(&t.worker("kubeadm reset --force")?, &["[reset] Stopping the kubelet service"])?;
    t.untouched()?;
    t.master(&format!("kubectl delete node {WORKER}"))?;
    let file = t.env.home.join("discovery.conf");
    std::fs::write(&file, t.master("cat /etc/kubernetes/kubelet.conf")?)?;
    // Without credentials in it, a token is needed beside the file; a node's own certificate is not enough to join as another.
    let token = t.master("kubeadm token create")?;
    // From a server that the machine trusts; under a name that nobody knows yet, so that there is something to mend.
    let dir = t.env.home.join("files");
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(&file, dir.join("discovery.conf"))?;
    let address = t.with(|h| Ok(h.address(MASTER).to_string()))?;
    sh(t, MASTER, &format!("cd {}; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=files -addext subjectAltName=IP:{address} -addext basicConstraints=critical,CA:FALSE -keyout key -out crt 2>/dev/null", dir.display()))?;
    let server = beside(t, MASTER, &format!("env -C {0} openssl s_server -accept 8443 -cert {0}/crt -key {0}/key -WWW -quiet", dir.display()))?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let url = format!("https://{address}:8443/discovery.conf");
    let line = format!("kubeadm join --discovery-file {url} --tls-bootstrap-token {} --node-name {RENAMED} --fix", token.trim());
    contains(&t.with(|h| h.fails(WORKER, &line.replace(" --fix", "")))?, &["the discovery file at https://", "cannot be fetched", "invalid peer certificate"])?;
    sh(t, WORKER, "echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    let said = sh(t, WORKER, &format!("SSL_CERT_FILE={}/crt {line} 2>&1", dir.display()))?;
    drop(server);
    contains(&said, &["This node has joined the cluster", "Fixed: net.ipv4.ip_forward is 1 instead of 0", &format!("{RENAMED} # by kubeadm --fix")])?;
    contains(&sh(t, WORKER, "cat /etc/hosts")?, &[&format!("{RENAMED} # by kubeadm --fix")])?;
    t.with(|h| h.until(MASTER, "kubectl get nodes", 10, |text| text.matches(" Ready ").count() == 2)).map(|_| ())
}

fn reset(t: &Test) -> Result<()> {
    contains(&t.worker("kubeadm reset --force")?, &["[reset] Taken back: net.ipv4.ip_forward", "[reset] Taken back: /etc/hosts has the line"])?;
    t.untouched()?;
    ensure!(sh(t, WORKER, "cat /proc/sys/net/ipv4/ip_forward /etc/hosts")?.starts_with("0\n127.0.0.1 localhost\n"), "a setting stays");
    ensure!(!sh(t, WORKER, "cat /etc/hosts")?.contains("kubeadm"), "a line stays");
    t.with(|h| {
        let mut command = h.command(MASTER, &["kubeadm", "reset"])?;
        e2e::output_with(&mut command, "y\n").map(|_| ())
    })?;
    let now = t.with(|h| h.traces(MASTER))?;
    ensure!(now == t.before[0], "left behind: {:?}", now.iter().filter(|n| !t.before[0].contains(n)).collect::<Vec<_>>());
    Ok(())
}
