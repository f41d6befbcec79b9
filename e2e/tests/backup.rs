//! All objects of a cluster, by `knarr store`: a snapshot while it runs, everything lost and restored, another key, to
//! etcd and back.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use e2e::{Env, Step, begin, eventually, on_host, output, run_steps};
use serde_json::{Value, json};

/// The host: a network namespace.
const HOST: &str = "knarr-store";
/// Set for the process that runs the steps, which is in that namespace.
const INSIDE: &str = "KNARR_STORE";
const ETCD: &str = "http://127.0.0.1:12379";

struct Test {
    env: Env,
    etcd: Mutex<Option<Child>>,
    /// What there was when the snapshot was taken.
    before: Mutex<Vec<Value>>,
}

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        on_host(HOST, INSIDE);
    }
    let env = begin(Env::on_port("store", 17443));
    // What an earlier run left, if it was interrupted.
    let _ = env.knarr(&["down", "--purge"]).output();
    let test = begin(Ok(Test { env: env.clone(), etcd: Mutex::default(), before: Mutex::default() }));
    let step = |name: &'static str, f: fn(&Test) -> Result<()>| -> Step { (name, Box::new(move || f(test))) };
    let steps = vec![
        step("up, and objects", up),
        step("a snapshot while the server runs", snapshot),
        step("what cannot be is told, and harms nothing", refused),
        step("everything is lost, and restored", lost),
        step("a new key while the server runs", new_key),
        step("to etcd", to_etcd),
        step("and back", back),
        step("down --purge", end),
    ];
    run_steps(steps, &["up, and objects"]);
}

impl Test {
    fn file(&self, name: &str) -> String {
        self.env.home.join(name).display().to_string()
    }

    fn knarr(&self, args: &[&str]) -> Result<String> {
        output(&mut self.env.knarr(args)).with_context(|| format!("knarr {}", args.join(" ")))
    }

    /// It must fail, and say this.
    fn fails(&self, args: &[&str], words: &str) -> Result<()> {
        let out = self.env.knarr(args).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "knarr {} succeeded", args.join(" "));
        ensure!(text.contains(words), "knarr {}: {words:?} is not in: {text}", args.join(" "));
        Ok(())
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.env.client("kubectl").run(args)
    }

    /// Objects that nothing in the cluster changes.
    fn state(&self) -> Result<Vec<Value>> {
        let list = self.env.client("kubectl").json(&["-n", "a", "get", "configmaps,secrets,services,xs.example.com,serviceaccounts,roles.rbac.authorization.k8s.io"])?;
        let mut items = list["items"].as_array().context("a list")?.clone();
        items.push(self.env.client("kubectl").json(&["get", "crd", "xs.example.com"])?);
        items.iter_mut().for_each(|item| drop(item["metadata"].as_object_mut().map(|m| m.remove("resourceVersion"))));
        ensure!(items.len() >= 8, "{} objects are too few to mean anything", items.len());
        Ok(items)
    }

    fn same(&self) -> Result<()> {
        let (before, now) = (self.before.lock().unwrap().clone(), self.state()?);
        ensure!(before == now, "before:\n{}\nnow:\n{}", json!(before), json!(now));
        Ok(())
    }

    fn up(&self, more: &[&str]) -> Result<()> {
        self.knarr(&[&["up"], more].concat()).map(drop)
    }
}

fn up(t: &Test) -> Result<()> {
    t.up(&[])?;
    t.kubectl(&["create", "namespace", "a"])?;
    t.kubectl(&["-n", "a", "create", "configmap", "one", "--from-literal=k=v"])?;
    t.kubectl(&["-n", "a", "create", "secret", "generic", "password", "--from-literal=password=correct-horse"])?;
    t.kubectl(&["-n", "a", "create", "service", "clusterip", "web", "--tcp=80"])?;
    t.kubectl(&["-n", "a", "create", "role", "reader", "--verb=get", "--resource=pods"])?;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "xs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "xs", "singular": "x", "kind": "X"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    t.env.client("kubectl").run_with(&["apply", "-f", "-"], &definition.to_string())?;
    t.kubectl(&["wait", "--for=condition=Established", "crd/xs.example.com", "--timeout=30s"])?;
    let custom = json!({"apiVersion": "example.com/v1", "kind": "X", "metadata": {"name": "mine", "namespace": "a"}, "spec": {"deep": {"er": [1, 2]}}});
    t.env.client("kubectl").run_with(&["apply", "-f", "-"], &custom.to_string())?;
    eventually("the namespace is complete", 30, || t.kubectl(&["-n", "a", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"]).map(drop))?;
    *t.before.lock().unwrap() = t.state()?;
    Ok(())
}

fn snapshot(t: &Test) -> Result<()> {
    let said = t.knarr(&["store", "snapshot", &t.file("plain")])?;
    ensure!(said.contains(" objects at revision ") && said.contains("(embedded)"), "{said}");
    let said = t.knarr(&["store", "snapshot", "--with-keys", &t.file("whole")])?;
    ensure!(said.contains("keep it secret"), "{said}");
    let said = t.knarr(&["store", "verify", &t.file("whole")])?;
    ensure!(said.contains("aesgcm:key1") && said.contains("pki/encryption.key"), "{said}");
    let said = t.knarr(&["store", "verify"])?;
    ensure!(said.contains("aesgcm:key1"), "{said}");
    let said = t.knarr(&["store", "status"])?;
    ensure!(said.contains("engine     embedded"), "{said}");
    // Written after the snapshot: lost.
    t.kubectl(&["-n", "a", "create", "configmap", "late"]).map(drop)
}

fn refused(t: &Test) -> Result<()> {
    let plain = t.file("plain");
    t.fails(&["store", "snapshot", &plain], "is there already")?;
    t.fails(&["store", "restore", &plain], "stop it with `knarr down`")?;
    t.fails(&["store", "migrate", "--to", "etcd", "--etcd-servers", ETCD], "stop it with `knarr down`")?;
    t.fails(&["store", "restore", "/etc/hostname"], "is not a snapshot")?;
    let bytes = fs::read(&plain)?;
    fs::write(t.file("cut"), &bytes[..bytes.len() / 2])?;
    t.fails(&["store", "verify", &t.file("cut")], "is cut short")?;
    let mut bad = bytes.clone();
    bad[bytes.len() / 2] ^= 1;
    fs::write(t.file("bad"), bad)?;
    t.fails(&["store", "restore", &t.file("bad")], "damaged")?;
    // A disk that is too small for it.
    let small = t.file("small");
    fs::create_dir_all(&small)?;
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none", &small]))?;
    let full = t.fails(&["store", "snapshot", &format!("{small}/s")], "No space left");
    let left = fs::read_dir(&small)?.count();
    output(Command::new("umount").arg(&small))?;
    full?;
    ensure!(left == 0, "{left} files are left");
    let nowhere = t.file("nowhere");
    t.fails(&["store", "snapshot", "--etcd-servers", "http://127.0.0.1:1", &t.file("none")], "etcd cannot be reached")?;
    let out = Command::new(&t.env.binary).args(["store", "status", "--data-dir", &nowhere]).output()?;
    ensure!(String::from_utf8_lossy(&out.stderr).contains("there is no store in"), "{out:?}");
    t.same().or_else(|_| {
        // But for what was made after the snapshot.
        t.kubectl(&["-n", "a", "delete", "configmap", "late"])?;
        t.same()?;
        t.kubectl(&["-n", "a", "create", "configmap", "late"]).map(drop)
    })
}

fn lost(t: &Test) -> Result<()> {
    let version = t.env.client("kubectl").json(&["-n", "a", "get", "configmap", "late"])?;
    let version: u64 = version["metadata"]["resourceVersion"].as_str().context("a version")?.parse()?;
    t.knarr(&["down", "--purge"])?;
    ensure!(!t.env.data.exists(), "the data are still there");
    let whole = t.file("whole");
    let said = t.knarr(&["store", "restore", "--bump-revision", "2000", &whole])?;
    ensure!(said.contains("which goes on at revision"), "{said}");
    t.fails(&["store", "restore", &whole], "say --force to replace it")?;
    t.knarr(&["store", "restore", "--force", "--bump-revision", "2000", &whole])?;
    t.up(&[])?;
    t.same()?;
    // Who knows of what was lost is told to begin anew.
    let watch = t.kubectl(&["get", "--raw", &format!("/api/v1/configmaps?watch=true&timeoutSeconds=2&resourceVersion={version}")]);
    let said = format!("{watch:?}");
    ensure!(said.contains("too old resource version") || said.contains("Expired"), "{said}");
    t.kubectl(&["-n", "a", "create", "configmap", "after"])?;
    let new = t.env.client("kubectl").json(&["-n", "a", "get", "configmap", "after"])?;
    ensure!(new["metadata"]["resourceVersion"].as_str().context("a version")?.parse::<u64>()? > version, "{new}");
    t.kubectl(&["-n", "a", "delete", "configmap", "after"]).map(drop)
}

fn new_key(t: &Test) -> Result<()> {
    let said = t.knarr(&["store", "rewrite", "--new-key", "--forget-old-keys"])?;
    ensure!(said.contains("key2 is the key that writes") && said.contains("nothing is left under another key"), "{said}");
    ensure!(said.contains("1 old keys are forgotten"), "{said}");
    t.same()?;
    let said = t.knarr(&["store", "verify"])?;
    ensure!(said.contains("aesgcm:key2") && !said.contains("aesgcm:key1"), "{said}");
    t.knarr(&["down"])?;
    t.up(&[])?;
    t.same()
}

fn to_etcd(t: &Test) -> Result<()> {
    let dir = t.file("etcd");
    let _ = fs::remove_dir_all(&dir);
    let log = fs::File::create(t.file("etcd.log"))?;
    let line = format!("--data-dir {dir} --listen-client-urls {ETCD} --advertise-client-urls {ETCD} --listen-peer-urls http://127.0.0.1:12380");
    *t.etcd.lock().unwrap() = Some(Command::new(t.env.tools.join("etcd")).args(line.split(' ')).stderr(log).stdout(Stdio::null()).spawn()?);
    let with = ["--etcd-servers", ETCD];
    t.knarr(&["down"])?;
    t.fails(&[&["up"][..], &with].concat(), "knarr store migrate --to etcd takes them there")?;
    let said = t.knarr(&["store", "migrate", "--to", "etcd", "--etcd-servers", ETCD])?;
    ensure!(said.contains("objects are in etcd"), "{said}");
    t.fails(&["up"], "say --etcd-servers")?;
    t.up(&with)?;
    t.same()?;
    let said = t.knarr(&["store", "status"])?;
    ensure!(said.contains("engine     etcd"), "{said}");
    let said = t.knarr(&["store", "snapshot", &t.file("of-etcd")])?;
    ensure!(said.contains("(etcd)"), "{said}");
    t.kubectl(&["get", "--raw", "/readyz/etcd"]).map(drop)
}

fn back(t: &Test) -> Result<()> {
    t.knarr(&["down"])?;
    let said = t.knarr(&["store", "migrate", "--to", "embedded"])?;
    ensure!(said.contains("start the server without --etcd-servers"), "{said}");
    t.up(&[])?;
    t.same()
}

fn end(t: &Test) -> Result<()> {
    if let Some(mut etcd) = t.etcd.lock().unwrap().take() {
        etcd.kill()?;
        etcd.wait()?;
    }
    t.knarr(&["down", "--purge"])?;
    fs::remove_dir_all(&t.env.home)?;
    Ok(())
}
