//! Real etcd for tests: members that can be stopped, killed and started again, and a wire that can be cut.
//!
//! The program is `etcd` in `KNARR_TOOLS` or `target/tools` (where `cargo xtask tools` puts Debian's), or on PATH.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use store::Store;
use store::etcd::{self, Options};
use tempfile::TempDir;

fn program() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let asked = std::env::var_os("KNARR_TOOLS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = asked.into_iter().chain([tools]).chain(std::env::split_paths(&path));
    let found = places.map(|dir| dir.join("etcd")).find(|file| file.is_file());
    found.expect("etcd is not there: `cargo xtask tools` fetches it")
}

/// A port that nobody uses now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn copy_files(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

struct Member {
    name: String,
    dir: TempDir,
    client: u16,
    peer: u16,
    process: Option<Child>,
    /// It came to a cluster that was there.
    joins: bool,
}

struct Tls {
    dir: TempDir,
    options: Options,
}

/// Members of one cluster. They end with it.
pub struct Cluster {
    members: Vec<Member>,
    tls: Option<Tls>,
    arguments: Vec<String>,
}

impl Cluster {
    /// Members that serve plain text.
    pub fn start(members: usize) -> Self {
        Self::start_with(members, false, &[])
    }

    /// One member behind TLS that takes only clients with a certificate.
    pub fn start_tls() -> Self {
        Self::start_with(1, true, &[])
    }

    /// Members with more arguments.
    pub fn start_with(members: usize, tls: bool, arguments: &[&str]) -> Self {
        let member = |at: usize| Member {
            name: format!("m{at}"),
            dir: tempfile::tempdir().unwrap(),
            client: free_port(),
            peer: free_port(),
            process: None,
            joins: false,
        };
        let tls = tls.then(certificates);
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let mut cluster = Self { members: (0..members).map(member).collect(), tls, arguments };
        for at in 0..members {
            cluster.run(at);
        }
        for at in 0..members {
            cluster.answers(at);
        }
        cluster
    }

    /// Starts a member, anew if it was killed.
    pub fn run(&mut self, at: usize) {
        let peers: Vec<_> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer)).collect();
        let url = self.url(at);
        let member = &self.members[at];
        let peer = format!("http://127.0.0.1:{}", member.peer);
        let log = fs::OpenOptions::new().create(true).append(true).open(member.dir.path().join("log")).unwrap();
        let mut command = Command::new(program());
        command
            .args(["--name", &member.name, "--data-dir"])
            .arg(member.dir.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", if member.joins { "existing" } else { "new" }])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            for (flag, file) in [("--trusted-ca-file", "ca"), ("--cert-file", "server"), ("--key-file", "server.key")] {
                command.arg(flag).arg(tls.dir.path().join(file));
            }
        }
        self.members[at].process = Some(command.spawn().expect("etcd starts"));
    }

    /// One more member, which is on the list of the others once `listed` is done with its peer URL. Returns which it is.
    pub async fn join<F: Future<Output = ()>>(&mut self, listed: impl FnOnce(String) -> F) -> usize {
        let at = self.members.len();
        let member = Member { name: format!("m{at}"), dir: tempfile::tempdir().unwrap(), client: free_port(), peer: free_port(), process: None, joins: true };
        listed(format!("http://127.0.0.1:{}", member.peer)).await;
        self.members.push(member);
        self.run(at);
        self.answers(at);
        at
    }

    /// Waits until a member listens.
    fn answers(&mut self, at: usize) {
        let address = self.address(at);
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = self.members[at].process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < Duration::from_secs(30), "etcd does not listen: {}", self.log(at));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of a member's log.
    pub fn log(&self, at: usize) -> String {
        let text = fs::read_to_string(self.members[at].dir.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            // A member that was stopped is killed all the same.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM: the member writes what it has to.
    pub fn end(&mut self, at: usize) {
        if let Some(mut process) = self.members[at].process.take() {
            self.signal_to(&process, "-TERM");
            process.wait().unwrap();
        }
    }

    /// Where a member keeps its data.
    pub fn data(&self, at: usize) -> PathBuf {
        self.members[at].dir.path().join("data")
    }

    /// A copy of the data of a member that does not run.
    pub fn backup(&self, at: usize) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_files(&self.members[at].dir.path().join("data"), &copy.path().join("data"));
        copy
    }

    /// Puts a copy in the place of the data of a member that does not run.
    pub fn put_back(&self, at: usize, copy: &TempDir) {
        let data = self.members[at].dir.path().join("data");
        fs::remove_dir_all(&data).unwrap();
        copy_files(&copy.path().join("data"), &data);
    }

    /// The member's data is lost: it begins anew, as another cluster.
    pub fn lose(&self, at: usize) {
        fs::remove_dir_all(self.members[at].dir.path().join("data")).unwrap();
    }

    /// SIGSTOP: the member is there and does nothing.
    pub fn stop(&self, at: usize) {
        let process = self.members[at].process.as_ref().unwrap();
        self.signal_to(process, "-STOP");
        // each of its threads stops when it next runs
        let tasks = format!("/proc/{}/task", process.id());
        let stands = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.rsplit(')').next().unwrap().trim_start().starts_with('T'));
        let begun = Instant::now();
        while !fs::read_dir(&tasks).unwrap().all(|task| stands(task.unwrap())) {
            assert!(begun.elapsed().as_secs() < 30, "etcd does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub fn go_on(&self, at: usize) {
        self.signal_to(self.members[at].process.as_ref().unwrap(), "-CONT");
    }

    fn signal_to(&self, process: &Child, signal: &str) {
        let sent = Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Where a member serves clients.
    pub fn address(&self, at: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.members[at].client))
    }

    /// The same as a URL.
    pub fn url(&self, at: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[at].client)
    }

    /// How to reach all members.
    pub fn options(&self) -> Options {
        let known = self.tls.as_ref().map(|tls| tls.options.clone()).unwrap_or_default();
        Options { endpoints: (0..self.members.len()).map(|at| self.url(at)).collect(), ..known }
    }

    /// The engine over all members.
    pub async fn open(&self) -> Arc<dyn Store> {
        match etcd::open(self.options()).await {
            Ok(store) => store,
            Err(error) => panic!("{error}: {:?}\n{}", std::error::Error::source(&error).map(ToString::to_string), self.log(0)),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
        }
    }
}

/// A CA, a certificate for the member, one for us.
fn certificates() -> Tls {
    let (now, lifetime) = (Timestamp::now(), SignedDuration::from_hours(1));
    let ca = pki::Ca::new("etcd-ca", now, lifetime).unwrap();
    let issue = |cn: &str| {
        let request = pki::CertRequest {
            cn: cn.to_owned(),
            sans: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            usages: vec![pki::Usage::Server, pki::Usage::Client],
            lifetime,
            ..Default::default()
        };
        ca.issue(&request, now).unwrap()
    };
    let (server, client) = (issue("etcd"), issue("knarr"));
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [("ca", ca.cert_pem()), ("server", &server.cert_pem), ("server.key", &server.key_pem)] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let options = Options {
        ca: Some(ca.cert_pem().as_bytes().to_vec()),
        identity: Some((client.cert_pem.into_bytes(), client.key_pem.into_bytes())),
        ..Options::default()
    };
    Tls { dir, options }
}

/// A wire to a member that can be cut: connections end, and new ones are not taken.
pub struct Wire {
    pub url: String,
    cut: Arc<AtomicBool>,
    changed: Arc<tokio::sync::Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Wire {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (cut, changed) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Notify::new()));
        let (is_cut, notify) = (cut.clone(), changed.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut from, _) = accepted.unwrap();
                        if is_cut.load(Ordering::SeqCst) {
                            continue;
                        }
                        connections.spawn(async move {
                            let mut to = tokio::net::TcpStream::connect(target).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                        });
                    }
                    () = notify.notified() => connections.shutdown().await,
                }
            }
        });
        Self { url, cut, changed, task }
    }

    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    pub fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
