//! Stock kubectl (Debian's, or the one `KUBECTL` names) against the registry over TLS.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use apiserver::ServingTls;
use common::Cluster;
use jiff::{SignedDuration, Timestamp};
use pki::{CertRequest, Credentials, Kubeconfig, Usage};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Kubectl {
    cluster: Cluster,
    dir: tempfile::TempDir,
    program: PathBuf,
    server: String,
    cancel: CancellationToken,
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Kubectl {
    /// `None` where there is no kubectl.
    async fn start() -> Option<Self> {
        let program = PathBuf::from(std::env::var("KUBECTL").unwrap_or("/usr/bin/kubectl".into()));
        if !program.exists() {
            eprintln!("no kubectl at {}: skipped", program.display());
            return None;
        }
        let cluster = Cluster::start().await;
        let request = CertRequest {
            cn: "kube-apiserver".into(),
            sans: vec!["127.0.0.1".into()],
            usages: vec![Usage::Server],
            lifetime: SignedDuration::from_hours(1),
            ..Default::default()
        };
        let serving = cluster.ca.issue(&request, Timestamp::now()).unwrap();
        let tls = ServingTls::new(&serving.cert_pem, &serving.key_pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("https://{}", listener.local_addr().unwrap());
        let cancel = CancellationToken::new();
        tokio::spawn(Arc::clone(&cluster.server).listen(listener, tls, cancel.clone()));
        let kubectl = Self { cluster, dir: tempfile::tempdir().unwrap(), program, server, cancel };
        kubectl.user("admin", &["system:masters"]);
        kubectl.cluster.namespace("team").await;
        Some(kubectl)
    }

    fn config(&self, user: &str) -> PathBuf {
        self.dir.path().join(user)
    }

    fn write(&self, user: &str, credentials: Credentials) {
        let entry = Kubeconfig {
            context: "c".into(),
            cluster: "c".into(),
            user: user.into(),
            server: self.server.clone(),
            ca_pem: self.cluster.ca.cert_pem().into(),
            credentials,
        };
        std::fs::write(self.config(user), pki::kubeconfig(&entry).unwrap()).unwrap();
    }

    /// A kubeconfig with a client certificate.
    fn user(&self, name: &str, groups: &[&str]) {
        let request = CertRequest {
            cn: name.into(),
            orgs: groups.iter().map(|g| g.to_string()).collect(),
            usages: vec![Usage::Client],
            lifetime: SignedDuration::from_hours(1),
            ..Default::default()
        };
        let issued = self.cluster.ca.issue(&request, Timestamp::now()).unwrap();
        self.write(name, Credentials::Certificate { cert_pem: issued.cert_pem, key_pem: issued.key_pem });
    }

    async fn run_with(&self, user: &str, args: &str, stdin: &str) -> (bool, String) {
        let home: &Path = self.dir.path();
        let mut child = tokio::process::Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(self.config(user))
            .args(args.split_whitespace())
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(stdin.as_bytes()).await.unwrap();
        drop(input);
        let out = child.wait_with_output().await.unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    }

    async fn ok(&self, user: &str, args: &str) -> String {
        let (fine, text) = self.run_with(user, args, "").await;
        assert!(fine, "kubectl {args}: {text}");
        text
    }

    async fn refused(&self, user: &str, args: &str) -> String {
        let (fine, text) = self.run_with(user, args, "").await;
        assert!(!fine, "kubectl {args} worked: {text}");
        text
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access() {
    let Some(k) = Kubectl::start().await else { return };
    assert!(k.ok("admin", "auth can-i delete nodes").await.starts_with("yes"));
    k.user("bob", &[]);
    assert!(k.refused("bob", "auth can-i list pods -n team").await.contains("no"));
    let list = k.ok("bob", "auth can-i --list -n team").await;
    assert!(list.contains("selfsubjectaccessreviews.authorization.k8s.io"), "{list}");
    assert!(list.contains("[/healthz]"), "{list}");
    let refused = k.refused("bob", "get pods -n team").await;
    assert_eq!(
        refused.trim(),
        "Error from server (Forbidden): pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"team\""
    );
    k.ok("admin", "create role reader --verb=get,list,watch --resource=pods -n team").await;
    k.ok("admin", "create rolebinding reader --role=reader --serviceaccount=team:default --user=bob -n team").await;
    assert_eq!(k.ok("bob", "auth can-i list pods -n team").await.trim(), "yes");
    assert_eq!(k.ok("bob", "get pods -n team").await.trim(), "No resources found in team namespace.");
    assert_eq!(k.ok("admin", "auth can-i list pods -n team --as=system:serviceaccount:team:default").await.trim(), "yes");
    assert!(k.refused("admin", "auth can-i delete pods -n team --as=system:serviceaccount:team:default").await.contains("no"));
    let request = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let (_, answer) = k.cluster.post(&common::admin(), "/api/v1/namespaces/team/serviceaccounts/default/token", &request).await;
    k.write("robot", Credentials::Token(answer["status"]["token"].as_str().unwrap().to_owned()));
    k.ok("robot", "get pods -n team").await;
    assert!(k.refused("robot", "delete pod x -n team").await.contains("Forbidden"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects() {
    let Some(k) = Kubectl::start().await else { return };
    k.ok("admin", "run web --image=nginx --labels=app=web --port=80 -n team").await;
    let described = k.ok("admin", "describe pod web -n team").await;
    assert!(described.contains("QoS Class:       BestEffort") || described.contains("QoS Class:"), "{described}");
    assert!(described.contains("node.kubernetes.io/not-ready:NoExecute"), "{described}");
    assert!(described.contains("/var/run/secrets/kubernetes.io/serviceaccount"), "{described}");
    let exposed = k.ok("admin", "expose pod web --type=NodePort -n team").await;
    assert_eq!(exposed.trim(), "service/web exposed");
    let port = k.ok("admin", "get service web -n team -o jsonpath={.spec.ports[0].nodePort}").await;
    assert!((30000..=32767).contains(&port.parse::<u16>().unwrap()));
    k.ok("admin", "create secret generic s --from-literal=a=b -n team").await;
    k.ok("admin", "create quota q --hard=pods=1 -n team").await;
    // As the controller, of which there is none here, would count.
    let counted = r#"patch quota q -n team --subresource=status --type=merge -p={"status":{"hard":{"pods":"1"},"used":{"pods":"1"}}}"#;
    k.ok("admin", counted).await;
    let over = k.refused("admin", "run more --image=nginx -n team").await;
    assert!(over.contains("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"), "{over}");
    let refused = k.refused("admin", "delete namespace kube-system").await;
    assert!(refused.contains("namespaces \"kube-system\" is forbidden: this namespace may not be deleted"), "{refused}");
    let lost = k.refused("admin", "logs web -n team").await;
    assert!(lost.contains("does not have a host assigned"), "{lost}");
    k.ok("admin", "delete pod web -n team --wait=true").await;
    let classes = k.ok("admin", "get priorityclasses -o name").await;
    assert_eq!(classes.lines().count(), 2, "{classes}");
    k.ok("admin", "get clusterroles,clusterrolebindings,roles,rolebindings -A").await;
    k.ok("admin", "create deployment d --image=nginx -n team").await;
    k.ok("admin", "scale deployment d --replicas=3 -n team").await;
    let replicas = k.ok("admin", "get deployment d -n team -o jsonpath={.spec.replicas}/{.metadata.generation}").await;
    assert_eq!(replicas, "3/2");
    k.ok("admin", "create job j --image=nginx -n team").await;
    let selector = k.ok("admin", "get job j -n team -o jsonpath={.spec.selector.matchLabels}").await;
    assert!(selector.contains("batch.kubernetes.io/controller-uid"), "{selector}");
}
