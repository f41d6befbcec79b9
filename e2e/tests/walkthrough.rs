//! The walk-through of the guides, by clients that nobody here wrote, on a one-node cluster.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Client, Env, Step, begin, container_process, curl, eventually, output, run_steps, traces};
use serde_json::Value;

fn main() {
    let env = begin(Env::new("walk"));
    // What an earlier run left, if it was interrupted.
    let _ = env.knarr(&["down", "--purge"]).output();
    let before = traces(&env.run).unwrap_or_default();
    let mut steps: Vec<Step> = vec![step("up", &env, up), step("up again changes nothing", &env, up_again)];
    for kubectl in env.kubectls() {
        let namespace = if kubectl.name == "kubectl" { "new" } else { "old" };
        for (name, test) in KUBECTL {
            let (client, e) = (Shell { kubectl: kubectl.clone(), namespace }, env.clone());
            let name: &'static str = format!("{} {name}", kubectl.name).leak();
            steps.push((name, Box::new(move || test(&client, &e))));
        }
    }
    steps.push(step("helm", &env, helm));
    steps.push(step("python client", &env, python));
    steps.push(step("why", &env, why));
    steps.push(step("pods survive SIGKILL of the server", &env, survive));
    steps.push(step("a secret is nowhere in the data directory", &env, secret_at_rest));
    steps.push(step("down keeps objects, up brings them back", &env, restart));
    let e = env.clone();
    steps.push(("down --purge leaves nothing", Box::new(move || purge(&e, &before))));
    run_steps(steps, &["up"]);
}

fn step(name: &'static str, env: &Env, test: fn(&Env) -> Result<()>) -> Step {
    let env = env.clone();
    (name, Box::new(move || test(&env)))
}

/// A kubectl with a namespace of its own.
struct Shell {
    kubectl: Client,
    namespace: &'static str,
}

impl Shell {
    fn run(&self, args: &[&str]) -> Result<String> {
        self.kubectl.run(&[&["-n", self.namespace], args].concat())
    }
    fn json(&self, args: &[&str]) -> Result<Value> {
        self.kubectl.json(&[&["-n", self.namespace], args].concat())
    }
    fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl.run_with(&["-n", self.namespace, "apply", "-f", "-"], manifest)
    }
    fn wait_running(&self, name: &str) -> Result<()> {
        self.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]).map(|_| ())
    }
    fn echo_pod(&self) -> Result<String> {
        let pods = self.json(&["get", "pods", "-l", "app=echo"])?;
        let running = pods["items"].as_array().into_iter().flatten().find(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null());
        Ok(running.and_then(|p| p["metadata"]["name"].as_str()).context("no echo pod runs")?.to_string())
    }
}

type Test = fn(&Shell, &Env) -> Result<()>;

const KUBECTL: &[(&str, Test)] = &[
    ("version, cluster-info, get cs", basics),
    ("nodes", nodes),
    ("api-resources, explain", discovery),
    ("create namespace", |k, _| k.kubectl.run(&["create", "namespace", k.namespace]).map(|_| ())),
    ("create deployment", deployment),
    ("describe pod with its events", describe),
    ("logs", logs),
    ("exec", exec),
    ("attach", attach),
    ("port-forward", port_forward),
    ("cp", cp),
    ("expose as NodePort, curl it", node_port),
    ("service by DNS name from another pod", dns),
    ("proxy", proxy),
    ("run, label, annotate", run),
    ("taint", taint),
    ("scale", scale),
    ("set image, rollout", rollout),
    ("apply, server-side apply, diff, delete", apply),
    ("patch", patch),
    ("top", top),
    ("restarts and replacement", restarts),
    ("configmap and secret", config),
    ("job", job),
    ("daemon set, stateful set, replication controller", workloads),
    ("auth can-i, a limited service account", auth),
    ("cluster-info dump", |k, _| {
        let text = k.kubectl.run(&["cluster-info", "dump"])?;
        ensure!(text.contains("NodeList") && text.contains("PodList"), "no lists in the dump");
        Ok(())
    }),
    ("delete namespace", |k, _| {
        k.kubectl.run(&["delete", "namespace", k.namespace, "--timeout=90s"])?;
        k.kubectl.fails(&["get", "namespace", k.namespace]).map(|_| ())
    }),
];

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn up(env: &Env) -> Result<()> {
    let text = output(&mut env.knarr(&["up"]))?;
    contains(&text, &["certificates", "API server", "node Ready", "cluster DNS", "ready in"])?;
    let config = std::fs::read_to_string(env.home.join(".kube/config"))?;
    contains(&config, &["name: knarr", "current-context: knarr"])?;
    e2e::images::import_busybox(env)?;
    contains(&output(&mut env.knarr(&["status"]))?, &["one", "Ready", "[+]"])
}

fn up_again(env: &Env) -> Result<()> {
    contains(&output(&mut env.knarr(&["up"]))?, &["already running", "nothing was changed"])
}

fn basics(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.kubectl.run(&["version"])?, &["Server Version", "1.36"]).or_else(|_| contains(&k.kubectl.run(&["version", "-o", "yaml"])?, &["v1.36"]))?;
    contains(&k.kubectl.run(&["cluster-info"])?, &["is running at"])?;
    contains(&k.kubectl.run(&["get", "cs"])?, &["scheduler", "controller-manager", "etcd-0", "Healthy"])
}

fn nodes(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.kubectl.run(&["get", "nodes", "-o", "wide"])?, &["one", "Ready", "v1.36.", "INTERNAL-IP", "knarr://"])?;
    contains(&k.kubectl.run(&["describe", "node", "one"])?, &["KubeletReady", "Allocatable", "PodCIDR", "kubernetes.io/hostname=one", "Non-terminated Pods"])
}

fn discovery(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.kubectl.run(&["api-resources"])?, &["deployments", "deploy", "apps/v1", "rolebindings", "configmaps"])?;
    contains(&k.kubectl.run(&["explain", "deployment.spec"])?, &["replicas", "template", "-required-"])
}

fn deployment(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.run(&["create", "deployment", "echo", "--image=knarr.local/echo"])?, &["deployment.apps/echo created"])?;
    k.run(&["rollout", "status", "deployment/echo", "--timeout=60s"])?;
    contains(&k.run(&["get", "pods", "-o", "wide"])?, &["echo-", "1/1", "Running", "10.244."])
}

fn describe(k: &Shell, _: &Env) -> Result<()> {
    eventually("events", 10, || {
        contains(&k.run(&["describe", "pod", &k.echo_pod()?])?, &["Scheduled", "Successfully assigned", "Created", "Started", "kube-api-access"])
    })
}

fn logs(k: &Shell, _: &Env) -> Result<()> {
    let pod = k.echo_pod()?;
    contains(&k.run(&["logs", &pod])?, &["echo server listening on port 8080"])?;
    let follow = k.kubectl.spawn(&["-n", k.namespace, "logs", "-f", &pod])?;
    let ip = k.run(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"])?;
    eventually("the line in the log", 10, || {
        curl(&[&format!("http://{ip}:8080/followed")])?;
        contains(&k.run(&["logs", "--tail=3", &pod])?, &["/followed"])
    })?;
    std::thread::sleep(Duration::from_millis(300));
    contains(&follow.finish()?, &["/followed"])
}

fn exec(k: &Shell, _: &Env) -> Result<()> {
    let pod = k.echo_pod()?;
    k.run(&["exec", &pod, "--", "/knarr", "sleep", "0"])?;
    contains(&k.kubectl.fails(&["-n", k.namespace, "exec", &pod, "--", "/nothing"])?, &["nothing"])?;
    let failed = k.kubectl.command(&["-n", k.namespace, "exec", &pod, "--", "/knarr", "sleep", "abc"]).output()?;
    ensure!(failed.status.code() == Some(2), "the exit code is passed on: {failed:?}");
    // With a terminal, which script(1) makes.
    let inner = format!("{} -n {} exec -it {pod} -- /knarr --version", k.kubectl.command(&[]).get_program().to_string_lossy(), k.namespace);
    let mut script = Command::new("script");
    script.args(["-qec", &inner, "/dev/null"]);
    for (name, value) in k.kubectl.command(&[]).get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    contains(&output(&mut script)?, &["knarr "])
}

fn attach(k: &Shell, _: &Env) -> Result<()> {
    let pod = k.echo_pod()?;
    let ip = k.run(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"])?;
    let attached = k.kubectl.spawn(&["-n", k.namespace, "attach", &pod])?;
    // Attaching takes a moment, and nothing says when it has happened.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        curl(&[&format!("http://{ip}:8080/attached")])?;
    }
    contains(&attached.finish()?, &["/attached"])
}

fn port_forward(k: &Shell, _: &Env) -> Result<()> {
    let port = if k.namespace == "new" { "18081" } else { "18082" };
    let _forward = k.kubectl.spawn(&["-n", k.namespace, "port-forward", "deployment/echo", &format!("{port}:8080")])?;
    eventually("the forwarded port", 10, || contains(&curl(&[&format!("http://127.0.0.1:{port}/forwarded")])?, &["real path=/forwarded"]))
}

fn cp(k: &Shell, env: &Env) -> Result<()> {
    busybox(k, "files")?;
    let (from, to) = (env.home.join("from.txt"), env.home.join("to.txt"));
    std::fs::write(&from, "copied\n")?;
    let inside = format!("{}/files:/tmp/file.txt", k.namespace);
    k.kubectl.run(&["cp", &from.to_string_lossy(), &inside])?;
    contains(&k.run(&["exec", "files", "--", "cat", "/tmp/file.txt"])?, &["copied"])?;
    k.kubectl.run(&["cp", &inside, &to.to_string_lossy()])?;
    contains(&std::fs::read_to_string(&to)?, &["copied"])
}

/// A pod with a shell, from an image made of Debian's busybox.
fn busybox(k: &Shell, name: &str) -> Result<()> {
    k.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'e2e.local/busybox:1', imagePullPolicy: IfNotPresent, command: [sleep, '3600']}}\n"
    ))?;
    k.wait_running(name)
}

fn node_port(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.run(&["expose", "deployment", "echo", "--type=NodePort", "--port=8080"])?, &["service/echo exposed"])?;
    let port = k.run(&["get", "service", "echo", "-o", "jsonpath={.spec.ports[0].nodePort}"])?;
    let node = k.run(&["get", "node", "one", "-o", "jsonpath={.status.addresses[0].address}"])?;
    eventually("the node port", 10, || contains(&curl(&[&format!("http://{node}:{port}/through-node-port")])?, &["Hostname: echo-", "/through-node-port"]))?;
    let address = k.run(&["get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}"])?;
    contains(&curl(&[&format!("http://{address}:8080/cluster-ip")])?, &["/cluster-ip"])
}

fn dns(k: &Shell, _: &Env) -> Result<()> {
    let name = format!("echo.{}.svc.cluster.local", k.namespace);
    contains(&k.run(&["exec", "files", "--", "nslookup", &name])?, &["Address"])?;
    contains(&k.run(&["exec", "files", "--", "wget", "-qO-", &format!("http://echo.{}:8080/by-name", k.namespace)])?, &["real path=/by-name"])?;
    contains(&k.run(&["exec", "files", "--", "wget", "-qO-", "http://echo:8080/short-name"])?, &["real path=/short-name"])
}

fn proxy(k: &Shell, _: &Env) -> Result<()> {
    let port = if k.namespace == "new" { "18001" } else { "18002" };
    let _proxy = k.kubectl.spawn(&["proxy", "--port", port])?;
    let url = format!("http://127.0.0.1:{port}/api/v1/namespaces/{}/services/echo:8080/proxy/some/path", k.namespace);
    eventually("the proxied service", 10, || contains(&curl(&[&url])?, &["Hostname: echo-", "real path=/some/path", "x-forwarded-uri"]))
}

fn run(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.run(&["run", "single", "--image=knarr.local/echo"])?, &["pod/single created"])?;
    k.wait_running("single")?;
    k.run(&["label", "pod", "single", "tier=web"])?;
    k.run(&["annotate", "pod", "single", "note=hello"])?;
    contains(&k.run(&["get", "pods", "-l", "tier=web", "-o", "jsonpath={.items[0].metadata.annotations.note}"])?, &["hello"])?;
    k.run(&["delete", "pod", "single", "--grace-period=1"]).map(|_| ())
}

fn taint(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["taint", "nodes", "one", "test=here:NoSchedule"])?;
    let outcome = (|| {
        k.run(&["run", "kept-out", "--image=knarr.local/echo"])?;
        eventually("the event", 15, || {
            contains(&k.run(&["describe", "pod", "kept-out"])?, &["FailedScheduling", "0/1 nodes are available: 1 node(s) had untolerated taint(s)."])
        })?;
        contains(&k.run(&["get", "pod", "kept-out"])?, &["Pending"])
    })();
    k.run(&["taint", "nodes", "one", "test-"])?;
    outcome?;
    k.wait_running("kept-out")?;
    k.run(&["delete", "pod", "kept-out", "--grace-period=1"]).map(|_| ())
}

fn scale(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["scale", "deployment", "echo", "--replicas=3"])?;
    k.run(&["rollout", "status", "deployment/echo", "--timeout=60s"])?;
    contains(&k.run(&["get", "deployment", "echo"])?, &["3/3"])?;
    k.run(&["scale", "deployment", "echo", "--replicas=1"])?;
    eventually("one pod", 40, || {
        let pods = k.json(&["get", "pods", "-l", "app=echo"])?;
        ensure!(pods["items"].as_array().map(Vec::len) == Some(1), "more than one pod is left");
        Ok(())
    })
}

/// What nodes and pods use, and the group that tells it.
fn top(k: &Shell, _: &Env) -> Result<()> {
    let service = k.kubectl.json(&["get", "apiservice", "v1beta1.metrics.k8s.io"])?;
    ensure!(service["status"]["conditions"][0]["status"] == "True", "the APIService is not available: {service}");
    contains(&k.kubectl.run(&["top", "nodes"])?, &["CPU(cores)", "MEMORY(bytes)"])?;
    let node: Value = serde_json::from_str(&k.kubectl.run(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"])?)?;
    let memory = node["items"][0]["usage"]["memory"].as_str().unwrap_or_default();
    ensure!(memory.ends_with("Ki") || memory.ends_with("Mi"), "the node uses no memory: {node}");
    let pod = k.echo_pod()?;
    eventually("the pod is measured", 40, || contains(&k.run(&["top", "pods"])?, &[&pod]))?;
    contains(&k.run(&["top", "pods", "-l", "app=echo", "--containers"])?, &[&pod, "echo"])?;
    k.kubectl.fails(&["-n", k.namespace, "top", "pod", "no-such-pod"])?;
    contains(&k.run(&["get", "pods.v1beta1.metrics.k8s.io"])?, &["CPU", "MEMORY", "WINDOW", &pod])
}

fn rollout(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["set", "image", "deployment/echo", "echo=knarr.local/echo:v2"])?;
    k.run(&["rollout", "status", "deployment/echo", "--timeout=60s"])?;
    contains(&k.run(&["rollout", "history", "deployment/echo"])?, &["REVISION", "1", "2"])?;
    k.run(&["rollout", "undo", "deployment/echo"])?;
    k.run(&["rollout", "status", "deployment/echo", "--timeout=60s"])?;
    let image = k.run(&["get", "deployment", "echo", "-o", "jsonpath={.spec.template.spec.containers[0].image}"])?;
    ensure!(image == "knarr.local/echo", "the image is {image} after undo");
    contains(&k.run(&["rollout", "history", "deployment/echo"])?, &["3"])
}

const MANIFEST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: applied, labels: {part: a}}\ndata: {color: blue}\n";

fn apply(k: &Shell, env: &Env) -> Result<()> {
    let file = env.home.join("applied.yaml");
    std::fs::write(&file, MANIFEST)?;
    let path = file.to_string_lossy().into_owned();
    contains(&k.run(&["apply", "-f", &path])?, &["configmap/applied created"])?;
    contains(&k.run(&["apply", "-f", &path])?, &["unchanged"])?;
    std::fs::write(&file, MANIFEST.replace("blue", "green"))?;
    let diff = k.kubectl.fails(&["-n", k.namespace, "diff", "-f", &path])?;
    contains(&diff, &["-  color: blue", "+  color: green"])?;
    contains(&k.run(&["apply", "-f", &path])?, &["configured"])?;
    contains(&k.run(&["apply", "--server-side", "--force-conflicts", "-f", &path])?, &["serverside-applied"])?;
    std::fs::write(&file, MANIFEST.replace("blue", "red"))?;
    let conflict = k.kubectl.fails(&["-n", k.namespace, "apply", "--server-side", "--field-manager=other", "-f", &path])?;
    contains(&conflict, &["conflict", ".data.color"])?;
    contains(&k.run(&["delete", "-f", &path])?, &["deleted"])
}

fn patch(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["create", "configmap", "patched", "--from-literal=a=1"])?;
    for (kind, patch, expected) in [
        ("merge", r#"{"data":{"b":"2"}}"#, "2"),
        ("json", r#"[{"op":"replace","path":"/data/b","value":"3"}]"#, "3"),
        ("strategic", r#"{"data":{"b":"4"}}"#, "4"),
    ] {
        k.run(&["patch", "configmap", "patched", "--type", kind, "-p", patch])?;
        let value = k.run(&["get", "configmap", "patched", "-o", "jsonpath={.data.b}"])?;
        ensure!(value == expected, "{kind}: {value}");
    }
    Ok(())
}

fn restarts(k: &Shell, _: &Env) -> Result<()> {
    let pod = k.echo_pod()?;
    let container = k.json(&["get", "pod", &pod])?["status"]["containerStatuses"][0]["containerID"].as_str().context("no container")?.to_string();
    let id = container.trim_start_matches("knarr://").to_string();
    let pid = container_process(&id)?;
    output(Command::new("kill").args(["-9", &pid]))?;
    eventually("the restart", 30, || {
        let status = &k.json(&["get", "pod", &pod])?["status"]["containerStatuses"][0];
        ensure!(status["restartCount"].as_u64() >= Some(1) && status["ready"] == true, "{status}");
        Ok(())
    })?;
    k.run(&["delete", "pod", &pod, "--grace-period=1"])?;
    eventually("the replacement", 30, || {
        ensure!(k.echo_pod()? != pod, "still the old one");
        Ok(())
    })
}

fn config(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["create", "configmap", "settings", "--from-literal=color=blue"])?;
    k.run(&["create", "secret", "generic", "hidden", "--from-literal=word=swordfish"])?;
    k.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: configured}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: e2e.local/busybox:1
    imagePullPolicy: IfNotPresent
    command: [sleep, "3600"]
    env:
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
    volumeMounts:
    - {name: settings, mountPath: /settings}
    - {name: hidden, mountPath: /hidden}
  volumes:
  - {name: settings, configMap: {name: settings}}
  - {name: hidden, secret: {secretName: hidden}}
"#,
    )?;
    k.wait_running("configured")?;
    contains(&k.run(&["exec", "configured", "--", "env"])?, &["COLOR=blue", "WORD=swordfish"])?;
    contains(&k.run(&["exec", "configured", "--", "cat", "/settings/color", "/hidden/word"])?, &["blueswordfish"])?;
    k.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"color":"green"}}"#])?;
    eventually("the file in place", 90, || contains(&k.run(&["exec", "configured", "--", "cat", "/settings/color"])?, &["green"]))
}

fn job(k: &Shell, _: &Env) -> Result<()> {
    k.run(&["create", "job", "short", "--image=knarr.local/echo", "--", "/knarr", "sleep", "0.2"])?;
    k.run(&["wait", "--for=condition=complete", "job/short", "--timeout=60s"])?;
    contains(&k.run(&["get", "job", "short"])?, &["1/1"])?;
    contains(&k.run(&["get", "pods", "-l", "job-name=short"])?, &["Completed"])
}

/// What the kinds with revisions and the oldest one do on a node.
const WORKLOADS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: 'knarr.local/echo:v1'}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: 'knarr.local/echo:v1'}]}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: rc}
spec:
  replicas: 2
  template:
    metadata: {labels: {app: rc}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: 'knarr.local/echo:v1'}]}
";

fn workloads(k: &Shell, _: &Env) -> Result<()> {
    k.apply(WORKLOADS)?;
    let images = |app: &str| k.run(&["get", "pods", "-l", &format!("app={app}"), "-o", "jsonpath={.items[*].spec.containers[0].image}"]);
    for (set, app) in [("daemonset/agent", "agent"), ("statefulset/db", "db")] {
        let rolled_out = |image: &str| -> Result<()> {
            k.run(&["rollout", "status", set, "--timeout=60s"])?;
            // the pod of before may be there for a moment after it has ended
            eventually("the image", 10, || {
                let all = images(app)?;
                ensure!(!all.is_empty() && all.split(' ').all(|i| i.ends_with(image)), "{set} runs {all}, not {image}");
                Ok(())
            })
        };
        rolled_out(":v1")?;
        k.run(&["set", "image", set, "echo=knarr.local/echo:v2"])?;
        rolled_out(":v2")?;
        k.run(&["rollout", "undo", set])?;
        rolled_out(":v1")?;
        contains(&k.run(&["rollout", "history", set])?, &["2", "3"])?;
    }
    contains(&k.run(&["get", "pods", "-l", "app=db", "-o", "name"])?, &["pod/db-0", "pod/db-1"])?;
    k.run(&["scale", "statefulset/db", "--replicas=1"])?;
    k.run(&["scale", "replicationcontroller/rc", "--replicas=3"])?;
    eventually("the new sizes", 40, || {
        let left = k.run(&["get", "pods", "-l", "app=db", "-o", "name"])?;
        ensure!(left.trim() == "pod/db-0", "the highest one goes: {left}");
        contains(&k.run(&["get", "rc", "rc", "-o", "jsonpath={.status.readyReplicas}"])?, &["3"])
    })?;
    k.run(&["delete", "daemonset/agent", "statefulset/db", "replicationcontroller/rc"])?;
    eventually("their pods are gone", 40, || {
        let left = k.run(&["get", "pods", "-l", "app in (agent,db,rc)", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "still there: {left}");
        Ok(())
    })
}

fn auth(k: &Shell, _: &Env) -> Result<()> {
    contains(&k.run(&["auth", "can-i", "create", "pods"])?, &["yes"])?;
    k.run(&["create", "serviceaccount", "reader"])?;
    k.run(&["create", "role", "reader", "--verb=get,list,watch", "--resource=pods"])?;
    k.run(&["create", "rolebinding", "reader", "--role=reader", &format!("--serviceaccount={}:reader", k.namespace)])?;
    let who = format!("--as=system:serviceaccount:{}:reader", k.namespace);
    contains(&k.run(&["get", "pods", &who])?, &["echo-"])?;
    contains(&k.kubectl.fails(&["-n", k.namespace, "delete", "pod", "files", &who])?, &["Forbidden", "cannot delete resource"])?;
    contains(&k.kubectl.fails(&["-n", k.namespace, "auth", "can-i", "get", "secrets", &who])?, &["no"])?;
    lasting_token(k)
}

/// A Secret that asks for a token gets one of the account that it names, and goes with the account.
fn lasting_token(k: &Shell) -> Result<()> {
    let secret = "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata:\n  name: lasting\n  annotations:\n    kubernetes.io/service-account.name: reader\n";
    k.kubectl.run_with(&["-n", k.namespace, "create", "-f", "-"], secret)?;
    let token = eventually("a token in the Secret", 10, || {
        let token = k.run(&["get", "secret", "lasting", "-o", "go-template={{.data.token | base64decode}}"])?;
        ensure!(token.starts_with("ey"), "no token: {token}");
        Ok(token)
    })?;
    let server = k.run(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let (header, url) = (format!("Authorization: Bearer {token}"), format!("{server}/api/v1/namespaces/{}", k.namespace));
    contains(&curl(&["-k", "-H", &header, &format!("{url}/pods")])?, &["PodList", "echo-"])?;
    k.run(&["delete", "serviceaccount", "reader"])?;
    eventually("the Secret to go with its account", 10, || contains(&k.kubectl.fails(&["-n", k.namespace, "get", "secret", "lasting"])?, &["not found"]))
}

fn helm(env: &Env) -> Result<()> {
    let (helm, kubectl) = (env.client("helm"), env.client("kubectl"));
    let chart = env.home.join("chart");
    std::fs::create_dir_all(chart.join("templates"))?;
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: tour\nversion: 0.1.0\n")?;
    std::fs::write(chart.join("values.yaml"), "replicas: 1\n")?;
    std::fs::write(
        chart.join("templates/all.yaml"),
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: {{ .Release.Name }}}\nspec:\n  replicas: {{ .Values.replicas }}\n  selector: {matchLabels: {app: {{ .Release.Name }}}}\n  template:\n    metadata: {labels: {app: {{ .Release.Name }}}}\n    spec: {terminationGracePeriodSeconds: 1, containers: [{name: echo, image: 'knarr.local/echo:v1'}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: {{ .Release.Name }}}\nspec: {selector: {app: {{ .Release.Name }}}, ports: [{port: 80, targetPort: 8080}]}\n",
    )?;
    let path = chart.to_string_lossy().into_owned();
    contains(&helm.run(&["install", "tour", &path, "--wait", "--timeout", "60s"])?, &["STATUS: deployed"])?;
    helm.run(&["upgrade", "tour", &path, "--set", "replicas=2", "--wait", "--timeout", "60s"])?;
    contains(&kubectl.run(&["get", "deployment", "tour"])?, &["2/2"])?;
    helm.run(&["rollback", "tour", "1", "--wait", "--timeout", "60s"])?;
    eventually("the old size", 20, || contains(&kubectl.run(&["get", "deployment", "tour"])?, &["1/1"]))?;
    contains(&helm.run(&["uninstall", "tour", "--wait"])?, &["uninstalled"])?;
    kubectl.fails(&["get", "deployment", "tour"]).map(|_| ())
}

fn python(env: &Env) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");
    let mut python = Command::new(env.tools.join("venv/bin/python3"));
    python.arg(script).env("KUBECONFIG", env.data.join("admin.conf"));
    contains(&output(&mut python)?, &["python client: all done"])
}

fn why(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    kubectl.run(&["run", "greedy", "--image=knarr.local/echo", "--overrides", r#"{"spec":{"containers":[{"name":"greedy","image":"knarr.local/echo","resources":{"requests":{"cpu":"900"}}}]}}"#])?;
    kubectl.run(&["run", "missing", "--image=127.0.0.1:9/nothing:1"])?;
    let ask = |object: &str| output(env.knarr(&["why", object]).env("KUBECONFIG", env.data.join("admin.conf")));
    eventually("the greedy pod", 10, || contains(&ask("pod/greedy")?, &["Insufficient cpu", "900 cores"]))?;
    eventually("the missing image", 20, || contains(&ask("pod/missing")?, &["127.0.0.1:9/nothing:1", "image"]))?;
    contains(&ask("node/one")?, &["is Ready"])?;
    kubectl.run(&["delete", "pod", "greedy", "missing", "--grace-period=0", "--force"]).map(|_| ())
}

fn server_pid(env: &Env) -> Result<String> {
    Ok(std::fs::read_to_string(env.data.join("lock"))?.trim().to_string())
}

fn survive(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    kubectl.run(&["create", "deployment", "lasting", "--image=knarr.local/echo"])?;
    kubectl.run(&["rollout", "status", "deployment/lasting", "--timeout=60s"])?;
    let state = || -> Result<(String, String, u64)> {
        let pods = kubectl.json(&["get", "pods", "-l", "app=lasting"])?;
        let status = &pods["items"][0]["status"]["containerStatuses"][0];
        let id = status["containerID"].as_str().context("no container")?.trim_start_matches("knarr://").to_string();
        Ok((container_process(&id)?, id, status["restartCount"].as_u64().unwrap_or(0)))
    };
    let before = state()?;
    output(Command::new("kill").args(["-9", &server_pid(env)?]))?;
    eventually("the server's end", 10, || {
        output(&mut env.knarr(&["up"])).and_then(|text| {
            ensure!(!text.contains("already running"), "it still runs");
            Ok(())
        })
    })?;
    let after = eventually("the pod", 20, state)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    contains(&kubectl.run(&["logs", "deployment/lasting"])?, &["listening"])
}

fn secret_at_rest(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    let value = "correct-horse-battery-staple";
    kubectl.run(&["create", "secret", "generic", "at-rest", &format!("--from-literal=key={value}")])?;
    let encoded = kubectl.run(&["get", "secret", "at-rest", "-o", "jsonpath={.data.key}"])?;
    // In use by a pod, in both ways, it is not written either.
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"knows"},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"knarr.local/echo:v1",
        "env":[{"name":"KEY","valueFrom":{"secretKeyRef":{"name":"at-rest","key":"key"}}}],"volumeMounts":[{"name":"v","mountPath":"/v"}]}],"volumes":[{"name":"v","secret":{"secretName":"at-rest"}}]}}"#;
    kubectl.run_with(&["apply", "-f", "-"], pod)?;
    kubectl.run(&["wait", "--for=condition=Ready", "pod/knows", "--timeout=60s"])?;
    for needle in [value, encoded.trim()] {
        let found = Command::new("grep").args(["-rlaF", needle]).arg(&env.data).output()?;
        ensure!(found.stdout.is_empty(), "{needle} is in {}", String::from_utf8_lossy(&found.stdout));
    }
    kubectl.run(&["delete", "pod", "knows", "--grace-period=0", "--force"]).map(|_| ())
}

fn restart(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    output(&mut env.knarr(&["down"]))?;
    ensure!(kubectl.fails(&["get", "nodes"]).is_ok(), "the server is gone");
    output(&mut env.knarr(&["up"]))?;
    kubectl.run(&["get", "secret", "at-rest"])?;
    kubectl.run(&["rollout", "status", "deployment/lasting", "--timeout=60s"]).map(|_| ())
}

fn purge(env: &Env, before: &[String]) -> Result<()> {
    output(&mut env.knarr(&["down", "--purge"]))?;
    let after = traces(&env.run)?;
    let left: Vec<&String> = after.iter().filter(|t| !before.contains(t)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(!env.data.exists(), "{} is still there", env.data.display());
    let config = std::fs::read_to_string(env.home.join(".kube/config"))?;
    ensure!(!config.contains("name: knarr"), "the context is still there");
    Ok(())
}
