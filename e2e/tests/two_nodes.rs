//! Two nodes: a server and an agent, each in a network namespace of its own as on a host of its own,
//! joined by a bridge in a third. Pods and services reach across, and the agent may die and come back.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use e2e::hosts::{inside, ip, make_lan, make_space};
use e2e::{Client, Env, begin, eventually, images, network_traces, output, run_steps, steps_of, traces};
use serde_json::Value;

/// The hosts: bridge, server, agent.
const LAN: &str = "knarr-two-lan";
const ONE: &str = "knarr-two-a";
const TWO: &str = "knarr-two-b";
const LAN_IP: &str = "198.18.7.1";
const ONE_IP: &str = "198.18.7.11";
const TWO_IP: &str = "198.18.7.12";
/// Set for the process that runs the steps, which is in the server's namespace.
const INSIDE: &str = "KNARR_TWO_NODES";

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        let code = outside().unwrap_or_else(|error| {
            println!("{error:?}");
            1
        });
        std::process::exit(code);
    }
    let test = begin(Env::new("two").map(Test::new));
    let before = test.traces().unwrap_or_default();
    let mut steps = steps_of(test, STEPS);
    steps.push(("down --purge of both leaves nothing", Box::new(move || purge(test, &before))));
    run_steps(steps, &["up", "an agent joins", "pods on both nodes"]);
}

/// Makes the hosts, runs this program again as one of them, and takes them away.
fn outside() -> Result<i32> {
    let namespaces = [LAN, ONE, TWO];
    let exists = |name: &str| Path::new("/run/netns").join(name).exists();
    if namespaces.iter().any(|n| exists(n)) {
        // An earlier run was interrupted: what it left is in these namespaces.
        for name in namespaces.iter().filter(|n| !exists(n)) {
            ip(&format!("netns add {name}"))?;
        }
        purge_quietly()?;
        for name in namespaces {
            ip(&format!("netns del {name}"))?;
        }
    }
    make_lan(LAN, LAN_IP)?;
    for (index, (name, address)) in [(ONE, ONE_IP), (TWO, TWO_IP)].iter().enumerate() {
        make_space(LAN, LAN_IP, index, name, address)?;
    }
    let mut own = Command::new(std::env::current_exe()?);
    own.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = inside(ONE, &own).status()?;
    purge_quietly()?;
    for name in namespaces {
        ip(&format!("netns del {name}"))?;
    }
    Ok(status.code().unwrap_or(1))
}

/// Ends what a failed or interrupted run has left, if anything.
fn purge_quietly() -> Result<()> {
    let test = Test::new(Env::new("two")?);
    for (host, node) in [(TWO, &test.two), (ONE, &test.env)] {
        let _ = output(&mut inside(host, &node.knarr(&["down", "--purge"])));
    }
    Ok(())
}

struct Test {
    /// The server's place; this process is on its host.
    env: Env,
    /// The agent's.
    two: Env,
    agent: Mutex<Option<Child>>,
}

impl Test {
    fn new(env: Env) -> Test {
        let two = Env { data: PathBuf::from("/var/lib/knarr-two-b"), run: PathBuf::from("/run/knarr-two-b"), ..env.clone() };
        Test { env, two, agent: Mutex::new(None) }
    }

    fn kubectl(&self) -> Client {
        self.env.client("kubectl")
    }

    fn on_two(&self, command: &Command) -> Command {
        inside(TWO, command)
    }

    fn url(&self) -> String {
        format!("https://{ONE_IP}:{}", self.env.port)
    }

    /// `knarr agent` on the second host.
    fn agent_command(&self, place: &Env, token: Option<&str>) -> Command {
        let mut command = place.knarr(&["agent", "--node-name", "two", "--server", &self.url()]);
        command.arg("--data-dir").arg(&place.data).arg("--run-dir").arg(&place.run);
        if let Some(token) = token {
            command.args(["--token", token]);
        }
        self.on_two(&command)
    }

    fn start_agent(&self, token: Option<&str>) -> Result<()> {
        self.spawn_agent(token)?;
        self.agent_says("ready in")
    }

    fn spawn_agent(&self, token: Option<&str>) -> Result<()> {
        let log = std::fs::File::create(self.env.home.join("agent.log"))?;
        let child = self.agent_command(&self.two, token).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        *self.agent.lock().expect("not poisoned") = Some(child);
        Ok(())
    }

    fn agent_says(&self, text: &str) -> Result<()> {
        eventually("the agent", 40, || {
            let log = std::fs::read_to_string(self.env.home.join("agent.log"))?;
            let ended = self.agent.lock().expect("not poisoned").as_mut().map(Child::try_wait);
            ensure!(log.contains(text), "{ended:?}: {log}");
            Ok(())
        })
    }

    fn kill_agent(&self) -> Result<()> {
        let mut child = self.agent.lock().expect("not poisoned").take().context("no agent runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn traces(&self) -> Result<Vec<String>> {
        let mut all = traces(&self.env.run)?;
        all.extend(network_traces(Some(TWO))?.into_iter().map(|t| format!("two: {t}")));
        all.extend([&self.two.run, &self.two.data, &self.env.data].into_iter().filter(|p| p.exists()).map(|p| format!("file {}", p.display())));
        Ok(all)
    }

    fn pod(&self, app: &str) -> Result<Value> {
        let pods = self.kubectl().json(&["get", "pods", "-l", &format!("app={app}")])?;
        let ready = |p: &&Value| p["metadata"]["deletionTimestamp"].is_null() && p["status"]["containerStatuses"][0]["ready"] == true;
        pods["items"].as_array().into_iter().flatten().find(ready).cloned().with_context(|| format!("no pod of {app} is ready"))
    }

    fn address(&self, app: &str) -> Result<String> {
        Ok(self.pod(app)?["status"]["podIP"].as_str().context("no address")?.to_string())
    }

    /// A shell command in a pod of the given node.
    fn shell(&self, node: &str, script: &str) -> Result<String> {
        self.kubectl().run(&["exec", &format!("shell-{node}"), "--", "sh", "-c", script])
    }

    fn node_condition(&self, node: &str, status: &str) -> Result<()> {
        self.kubectl().run(&["wait", "node", node, &format!("--for=condition=Ready={status}"), "--timeout=60s"]).map(|_| ())
    }
}

type Run = fn(&Test) -> Result<()>;

const STEPS: &[(&str, Run)] = &[
    ("up", up),
    ("a wrong token is refused", wrong_token),
    ("an agent joins", join),
    ("the agent has a node's rights alone", rights),
    ("pods on both nodes", pods),
    ("pods reach pods of the other node", pod_to_pod),
    ("services reach pods of the other node, by name", services),
    ("node ports lead to pods through either node", node_port),
    ("logs, exec, cp, port-forward on the second node", streams),
    ("the second kubelet knows its clients", kubelet_port),
    ("pods survive SIGKILL of the agent", survive),
    ("the agent finds a server that was killed and came back", server_restart),
    ("an agent waits for its server, and pods come back", both_down),
    ("cordon, drain, uncordon", drain),
    ("a node is deleted and registers again", delete),
];

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn up(t: &Test) -> Result<()> {
    contains(&output(&mut t.env.knarr(&["up"]))?, &["ready in"])?;
    let archive = images::busybox(&t.env)?.to_string_lossy().into_owned();
    output(&mut t.env.knarr(&["image", "import", &archive]))?;
    output(&mut t.two.knarr(&["image", "import", &archive])).map(|_| ())
}

fn token(t: &Test) -> Result<String> {
    Ok(output(&mut t.env.knarr(&["token"]))?.trim().to_string())
}

/// What an agent says that must not succeed.
fn refused(t: &Test, token: Option<&str>) -> Result<String> {
    let place = Env { data: PathBuf::from("/var/lib/knarr-two-c"), run: PathBuf::from("/run/knarr-two-c"), ..t.env.clone() };
    let output = t.agent_command(&place, token).stdin(Stdio::null()).output()?;
    e2e::output(&mut t.on_two(&place.knarr(&["down", "--purge"])))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success(), "the agent joined: {text}");
    Ok(text)
}

fn wrong_token(t: &Test) -> Result<()> {
    let token = token(t)?;
    let (fingerprint, secret) = token.split_once("::").context("no fingerprint in the token")?;
    contains(&refused(t, Some("abcdef.0123456789abcdef"))?, &["--token is malformed", "knarr token"])?;
    contains(&refused(t, Some(&format!("K{}::{secret}", "0".repeat(64))))?, &["is not the cluster that the token is for"])?;
    contains(&refused(t, Some(&format!("{fingerprint}::abcdef.0123456789abcdef")))?, &["Unauthorized"])?;
    contains(&refused(t, None)?, &["has not joined yet", "knarr token"])
}

fn join(t: &Test) -> Result<()> {
    t.start_agent(Some(&token(t)?))?;
    t.node_condition("two", "True")?;
    let nodes = t.kubectl().run(&["get", "nodes", "-o", "wide"])?;
    contains(&nodes, &["one", ONE_IP, "two", TWO_IP])?;
    let requests = t.kubectl().json(&["get", "csr"])?;
    let signed = requests["items"].as_array().into_iter().flatten().filter(|r| !r["status"]["certificate"].is_null());
    let mut signers: Vec<&str> = signed.filter_map(|r| r["spec"]["signerName"].as_str()).collect();
    signers.sort_unstable();
    ensure!(signers == ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"], "{requests}");
    Ok(())
}

/// kubectl as the second node.
fn as_node(t: &Test, args: &[&str]) -> Result<String> {
    let file = |name: &str| t.two.data.join("pki").join(name).to_string_lossy().into_owned();
    let flags = [
        format!("--server={}", t.url()),
        format!("--certificate-authority={}", file("ca.crt")),
        format!("--client-certificate={}", file("kubelet-client.crt")),
        format!("--client-key={}", file("kubelet-client.key")),
        "--kubeconfig=/dev/null".into(),
    ];
    let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
    all.extend(args);
    t.kubectl().run(&all)
}

fn rights(t: &Test) -> Result<()> {
    contains(&as_node(t, &["get", "node", "two", "-o", "name"])?, &["node/two"])?;
    t.kubectl().run(&["create", "secret", "generic", "private", "--from-literal=a=b"])?;
    let forbidden = |args: &[&str]| match as_node(t, args) {
        Ok(text) => bail!("{args:?} was allowed: {text}"),
        Err(error) => contains(&format!("{error:#}"), &["forbidden"]),
    };
    forbidden(&["get", "secret", "private"])?;
    forbidden(&["label", "node", "one", "stolen=yes"])?;
    forbidden(&["delete", "node", "two"])?;
    forbidden(&["create", "namespace", "mine"])
}

fn manifest(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: shell-{node}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
  - {{name: main, image: 'e2e.local/busybox:1', imagePullPolicy: IfNotPresent, command: [sleep, '3600']}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: echo-{node}}}
spec:
  selector: {{matchLabels: {{app: echo-{node}}}}}
  template:
    metadata: {{labels: {{app: echo-{node}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeSelector: {{kubernetes.io/hostname: {node}}}
      containers: [{{name: echo, image: knarr.local/echo}}]
---
apiVersion: v1
kind: Service
metadata: {{name: echo-{node}}}
spec:
  type: NodePort
  selector: {{app: echo-{node}}}
  ports: [{{port: 80, targetPort: 8080}}]
"#
    )
}

fn pods(t: &Test) -> Result<()> {
    let kubectl = t.kubectl();
    for node in ["one", "two"] {
        kubectl.run_with(&["apply", "-f", "-"], &manifest(node))?;
    }
    for node in ["one", "two"] {
        kubectl.run(&["rollout", "status", &format!("deployment/echo-{node}"), "--timeout=60s"])?;
        kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/shell-{node}"), "--timeout=60s"])?;
        ensure!(t.pod(&format!("echo-{node}"))?["spec"]["nodeName"] == *node, "a pod for {node} is elsewhere");
    }
    let network = |app: &str| t.address(app).map(|a| a.rsplit_once('.').map_or(String::new(), |(net, _)| net.to_string()));
    ensure!(network("echo-one")? != network("echo-two")?, "both nodes have one pod range");
    Ok(())
}

const OTHER: [(&str, &str); 2] = [("one", "two"), ("two", "one")];

fn pod_to_pod(t: &Test) -> Result<()> {
    for (here, there) in OTHER {
        let address = t.address(&format!("echo-{there}"))?;
        let own = t.kubectl().run(&["get", "pod", &format!("shell-{here}"), "-o", "jsonpath={.status.podIP}"])?;
        let answer = t.shell(here, &format!("timeout 5 wget -qO- http://{address}:8080/across"))?;
        contains(&answer, &[&format!("Hostname: echo-{there}-"), "real path=/across", &format!("client_address={}", own.trim())])?;
        // More than a packet each way: the tunnel's MTU is right.
        let script = format!("head -c 300000 /dev/zero | tr '\\0' x >/tmp/body && timeout 10 wget -qO- --post-file=/tmp/body http://{address}:8080/ | wc -c");
        let size: u64 = t.shell(here, &script)?.trim().parse()?;
        ensure!(size > 300_000, "only {size} bytes came back");
    }
    Ok(())
}

fn services(t: &Test) -> Result<()> {
    for (here, there) in OTHER {
        contains(&t.shell(here, &format!("nslookup echo-{there}.default.svc.cluster.local"))?, &["Address"])?;
        for name in [format!("echo-{there}"), format!("echo-{there}.default.svc.cluster.local")] {
            let answer = t.shell(here, &format!("timeout 5 wget -qO- http://{name}/by-name"))?;
            contains(&answer, &[&format!("Hostname: echo-{there}-"), "real path=/by-name"])?;
        }
    }
    // The API server as pods of the second node see it.
    let script = "timeout 5 nc kubernetes.default 443 </dev/null && echo reached";
    contains(&t.shell("two", script)?, &["reached"])
}

fn curl_from(host: &str, args: &[&str]) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "--noproxy", "*"]).args(args);
    output(&mut inside(host, &curl))
}

fn node_port(t: &Test) -> Result<()> {
    for app in ["echo-one", "echo-two"] {
        let port = t.kubectl().run(&["get", "service", app, "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
        for (host, address) in [(LAN, ONE_IP), (LAN, TWO_IP), (TWO, ONE_IP), (ONE, TWO_IP)] {
            let answer = curl_from(host, &[&format!("http://{address}:{port}/node-port")]).with_context(|| format!("{app} from {host} through {address}"))?;
            contains(&answer, &[&format!("Hostname: {app}-")])?;
        }
    }
    Ok(())
}

fn streams(t: &Test) -> Result<()> {
    contains(&t.kubectl().run(&["logs", "deployment/echo-two"])?, &["listening on port 8080"])?;
    for kubectl in t.env.kubectls() {
        contains(&kubectl.run(&["exec", "shell-two", "--", "hostname"])?, &["shell-two"])?;
        contains(&kubectl.run_with(&["exec", "-i", "shell-two", "--", "cat"], "through standard input")?, &["through standard input"])?;
    }
    let file = t.env.home.join("copied");
    std::fs::write(&file, "copied to the second node")?;
    t.kubectl().run(&["cp", &file.to_string_lossy(), "shell-two:/tmp/copied"])?;
    contains(&t.shell("two", "cat /tmp/copied")?, &["copied to the second node"])?;
    let _forward = t.kubectl().spawn(&["port-forward", "deployment/echo-two", "18180:8080"])?;
    eventually("the forwarded port", 10, || contains(&curl_from(ONE, &["http://127.0.0.1:18180/"])?, &["Hostname: echo-two-"]))?;
    contains(&t.kubectl().run(&["get", "--raw", "/api/v1/nodes/two/proxy/pods"])?, &["shell-two"])
}

fn kubelet_port(t: &Test) -> Result<()> {
    let ca = t.env.data.join("pki/ca.crt").to_string_lossy().into_owned();
    let url = format!("https://{TWO_IP}:10250/pods");
    let code = curl_from(LAN, &["--cacert", &ca, "-o", "/dev/null", "-w", "%{http_code}", &url])?;
    ensure!(code == "401", "a stranger got {code}");
    let mut curl = vec!["--cacert", &ca];
    let node = |name: &str| t.two.data.join("pki").join(name).to_string_lossy().into_owned();
    let (cert, key) = (node("kubelet-client.crt"), node("kubelet-client.key"));
    curl.extend(["--cert", &cert, "--key", &key, "-o", "/dev/null", "-w", "%{http_code}"]);
    let other = format!("https://{ONE_IP}:11250/pods");
    curl.push(&other);
    let code = curl_from(LAN, &curl)?;
    ensure!(code == "403", "another node got {code}");
    Ok(())
}

/// Process id and restarts of the container of an app.
fn identity(t: &Test, app: &str) -> Result<(String, String)> {
    let pod = t.pod(app)?;
    let status = &pod["status"]["containerStatuses"][0];
    let id = status["containerID"].as_str().context("no container")?.trim_start_matches("knarr://");
    Ok((e2e::container_process(id)?, status["restartCount"].to_string()))
}

fn survive(t: &Test) -> Result<()> {
    let (before, address) = (identity(t, "echo-two")?, t.address("echo-two")?);
    t.kill_agent()?;
    let url = format!("http://{address}:8080/orphan");
    contains(&curl_from(ONE, &[&url])?, &["Hostname: echo-two-"])?;
    // No token: it has joined.
    t.start_agent(None)?;
    contains(&curl_from(ONE, &[&url])?, &["Hostname: echo-two-"])?;
    eventually("the second kubelet", 20, || contains(&t.shell("two", "hostname")?, &["shell-two"]))?;
    let after = eventually("the pod", 20, || identity(t, "echo-two"))?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    contains(&t.kubectl().run(&["logs", "deployment/echo-two"])?, &["listening"])
}

fn server_restart(t: &Test) -> Result<()> {
    let pid = std::fs::read_to_string(t.env.data.join("lock"))?;
    output(Command::new("kill").args(["-9", pid.trim()]))?;
    eventually("the server's end", 10, || {
        let text = output(&mut t.env.knarr(&["up"]))?;
        ensure!(!text.contains("already running"), "it still runs");
        Ok(())
    })?;
    replace_pod(t)
}

/// A pod of the second node goes, and another comes: its kubelet does what it is told.
fn replace_pod(t: &Test) -> Result<()> {
    let pod = t.pod("echo-two")?;
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    t.kubectl().run(&["delete", "pod", name, "--grace-period=1", "--timeout=30s"])?;
    t.kubectl().run(&["rollout", "status", "deployment/echo-two", "--timeout=30s"])?;
    ensure!(t.pod("echo-two")?["metadata"]["name"] != name, "the pod is still there");
    Ok(())
}

fn both_down(t: &Test) -> Result<()> {
    output(&mut t.env.knarr(&["down"]))?;
    t.kill_agent()?;
    t.spawn_agent(None)?;
    t.agent_says("waiting for the server")?;
    output(&mut t.env.knarr(&["up"]))?;
    t.agent_says("ready in")?;
    t.node_condition("two", "True")?;
    t.kubectl().run(&["rollout", "status", "deployment/echo-one", "--timeout=60s"])?;
    t.kubectl().run(&["wait", "--for=condition=Ready", "pod/shell-one", "--timeout=60s"])?;
    replace_pod(t)?;
    pod_to_pod(t)
}

fn drain(t: &Test) -> Result<()> {
    let kubectl = t.kubectl();
    kubectl.run(&["create", "deployment", "anywhere", "--image=knarr.local/echo", "--replicas=4"])?;
    kubectl.run(&["rollout", "status", "deployment/anywhere", "--timeout=60s"])?;
    let nodes = || kubectl.run(&["get", "pods", "-l", "app=anywhere", "--field-selector=status.phase=Running", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    contains(&nodes()?, &["one", "two"])?;
    kubectl.run(&["cordon", "two"])?;
    contains(&kubectl.run(&["get", "node", "two"])?, &["SchedulingDisabled"])?;
    kubectl.run(&["drain", "two", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"])?;
    kubectl.run(&["rollout", "status", "deployment/anywhere", "--timeout=60s"])?;
    ensure!(!nodes()?.contains("two"), "{}", nodes()?);
    kubectl.run(&["uncordon", "two"])?;
    kubectl.run(&["rollout", "status", "deployment/echo-two", "--timeout=60s"])?;
    kubectl.run(&["delete", "deployment", "anywhere"]).map(|_| ())
}

fn delete(t: &Test) -> Result<()> {
    let range = t.kubectl().run(&["get", "node", "two", "-o", "jsonpath={.spec.podCIDR}"])?;
    let routes = || output(Command::new("ip").args(["route"]));
    contains(&routes()?, &[&range])?;
    t.kill_agent()?;
    t.kubectl().run(&["delete", "node", "two"])?;
    eventually("the end of the route", 10, || {
        ensure!(!routes()?.contains(&range), "{}", routes()?);
        Ok(())
    })?;
    t.start_agent(None)?;
    t.node_condition("two", "True")?;
    t.kubectl().run(&["rollout", "status", "deployment/echo-two", "--timeout=60s"])?;
    let address = t.address("echo-two")?;
    eventually("the way to the pod", 10, || contains(&curl_from(ONE, &[&format!("http://{address}:8080/")])?, &["Hostname: echo-two-"]))
}

fn purge(t: &Test, before: &[String]) -> Result<()> {
    contains(&output(&mut t.on_two(&t.two.knarr(&["down", "--purge"])))?, &["pods stopped"])?;
    if let Some(mut child) = t.agent.lock().expect("not poisoned").take() {
        child.wait()?;
    }
    // The other node is none the worse for it.
    contains(&t.kubectl().run(&["exec", "deployment/echo-one", "--", "/knarr", "--version"])?, &["knarr"])?;
    output(&mut t.env.knarr(&["down", "--purge"]))?;
    let after = t.traces()?;
    let left: Vec<&String> = after.iter().filter(|trace| !before.contains(trace)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
