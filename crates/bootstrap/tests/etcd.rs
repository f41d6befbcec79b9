//! Members of a real etcd: from one to three, killed, lost, replaced, removed, and such as never come.
//!
//! The program is `etcd` in `KNARR_TOOLS` or `target/tools` (where `cargo xtask tools` puts Debian's), or on PATH.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bootstrap::etcd::{self, Cluster, JoinError, Member, Patience, Program, State, Supervisor, certs, plan};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PATIENCE: Patience = Patience { added: Duration::from_secs(30), never_came: Duration::from_secs(20), caught_up: Duration::from_secs(30) };

fn program() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let asked = std::env::var_os("KNARR_TOOLS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = asked.into_iter().chain([tools]).chain(std::env::split_paths(&path));
    let found = places.map(|dir| dir.join("etcd")).find(|file| file.is_file());
    found.expect("etcd is not there: `cargo xtask tools` fetches it")
}

/// A machine: an address on loopback, and a directory.
struct Machine {
    member: Member,
    program: Program,
    access: etcd::Access,
    dir: TempDir,
    running: Option<(JoinHandle<()>, tokio::sync::oneshot::Sender<()>)>,
    state: Option<watch::Receiver<State>>,
}

impl Machine {
    /// One that begins a cluster, or has the CA of the one that did.
    async fn new(name: &str, last: u8, first: Option<&Machine>) -> Machine {
        let (dir, address) = (tempfile::tempdir().unwrap(), Ipv4Addr::new(127, 0, 1, last));
        let port = || TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let pki = dir.path().join("pki");
        std::fs::create_dir_all(pki.join("etcd")).unwrap();
        std::fs::create_dir(dir.path().join("etcd")).unwrap();
        if let Some(first) = first {
            for file in ["ca.crt", "ca.key"] {
                std::fs::copy(first.member.pki.join("etcd").join(file), pki.join("etcd").join(file)).unwrap();
            }
        }
        certs::ensure(&pki, &certs::Subject { name, address }, first.is_none(), jiff::SignedDuration::from_hours(1), Timestamp::now()).unwrap();
        let own = dir.path().join("etcd");
        let member = Member { name: name.into(), address, client_port: port(), peer_port: port(), data: own.join("data"), dir: own, pki };
        let access = certs::access(&member.pki, "etcd/healthcheck-client").unwrap();
        let program = etcd::find_program(Some(&program())).await.unwrap();
        Machine { member, program, access, dir, running: None, state: None }
    }

    fn cluster(&self, urls: &[String]) -> Cluster {
        Cluster::new(urls, Some(&self.access)).unwrap()
    }

    fn local(&self) -> Cluster {
        self.cluster(&[self.member.local_url()])
    }

    async fn join(&mut self, others: &[String], patience: Patience) -> Result<(), JoinError> {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut spawned = None;
        let others = (!others.is_empty()).then(|| self.cluster(others));
        let joined = etcd::join(&self.member, &self.program, others.as_ref(), &self.local(), &patience, |supervisor: Arc<Supervisor>| {
            let state = supervisor.state();
            let running = async move {
                supervisor.run(async move { drop(stopped.await) }).await;
            };
            spawned = Some((tokio::spawn(running), state));
        })
        .await;
        if let Some((task, state)) = spawned {
            (self.running, self.state) = (Some((task, stop)), Some(state));
        }
        joined
    }

    fn process(&self) -> u32 {
        match &*self.state.as_ref().unwrap().borrow() {
            State::Running(id) => *id,
            other => panic!("{} is {other:?}", self.member.name),
        }
    }

    async fn becomes(&mut self, what: impl Fn(&State) -> bool) {
        let state = self.state.as_mut().unwrap();
        tokio::time::timeout(Duration::from_secs(20), state.wait_for(what)).await.expect("in time").expect("it runs");
    }

    /// Ends it in order.
    async fn stop(&mut self) {
        if let Some((task, stop)) = self.running.take() {
            drop(stop);
            task.await.unwrap();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(id) = std::fs::read_to_string(self.dir.path().join("etcd/pid")) {
            let _ = std::process::Command::new("kill").args(["-9", id.trim()]).stderr(std::process::Stdio::null()).status();
        }
    }
}

fn kill(id: u32) {
    assert!(std::process::Command::new("kill").args(["-9", &id.to_string()]).status().unwrap().success());
}

async fn names(cluster: &Cluster) -> Vec<(String, bool)> {
    let mut all: Vec<_> = cluster.members().await.unwrap().into_iter().map(|m| (m.name, m.is_learner)).collect();
    all.sort();
    all
}

async fn agrees(cluster: &Cluster, limit: Duration) -> Duration {
    let began = Instant::now();
    while let Err(error) = cluster.agrees().await {
        println!("{:?}: {error}", began.elapsed());
        assert!(began.elapsed() < limit, "no quorum within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_to_three_members_and_one_replaced() {
    let mut a = Machine::new("a", 1, None).await;
    let began = Instant::now();
    a.join(&[], PATIENCE).await.unwrap();
    println!("the first member serves after {:?}", began.elapsed());
    let (mut b, mut c) = (Machine::new("b", 2, Some(&a)).await, Machine::new("c", 3, Some(&a)).await);
    let first = [a.member.client_url()];
    // At once: one waits for the other.
    let began = Instant::now();
    let (joined, also) = tokio::join!(b.join(&first, PATIENCE), c.join(&first, PATIENCE));
    joined.unwrap();
    also.unwrap();
    println!("two more have joined after {:?}", began.elapsed());
    let all = a.cluster(&[a.member.client_url(), b.member.client_url(), c.member.client_url()]);
    let voters = ["a", "b", "c"].map(|name| (name.to_owned(), false));
    assert_eq!(names(&all).await, voters);
    for machine in [&a, &b, &c] {
        etcd::refresh(&machine.member, &machine.local()).await;
        assert_eq!(machine.member.note().others.len(), 2);
    }

    // Killed, it is started again; the others go on without it.
    let leader = a.local().health().await.unwrap().leader;
    let by_id = |id: u64, health: &etcd::Health| health.id == id;
    let machines = [&mut a, &mut b, &mut c];
    let mut at = 0;
    for (i, machine) in machines.iter().enumerate() {
        if by_id(leader, &machine.local().health().await.unwrap()) {
            at = i;
        }
    }
    let before = machines[at].process();
    kill(before);
    let others: Vec<String> = machines.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, m)| m.member.client_url()).collect();
    println!("a quorum after the leader was killed: {:?}", agrees(&a.cluster(&others), Duration::from_secs(10)).await);
    let machines = [&mut a, &mut b, &mut c];
    let killed = machines.into_iter().nth(at).unwrap();
    killed.becomes(|state| matches!(state, State::Running(id) if *id != before)).await;
    agrees(&killed.local(), Duration::from_secs(20)).await;

    // The supervisor is gone, and its process is not: the next one takes it over.
    let before = b.process();
    let (task, stop) = b.running.take().unwrap();
    task.abort();
    let _ = task.await;
    drop(stop);
    b.join(&first, PATIENCE).await.unwrap();
    assert_eq!(b.process(), before);
    // And in order.
    b.stop().await;
    assert!(b.local().health().await.is_err() && !b.member.dir.join("pid").exists());
    b.join(&[], PATIENCE).await.unwrap();

    // A disk is lost: the same machine takes the place of the member that it was.
    let old = c.local().health().await.unwrap().id;
    c.stop().await;
    std::fs::remove_dir_all(&c.member.dir).unwrap();
    std::fs::create_dir(&c.member.dir).unwrap();
    c.join(&first, PATIENCE).await.unwrap();
    assert_eq!(names(&all).await, voters);
    let new = c.local().health().await.unwrap().id;
    assert_ne!(new, old);

    // Removed from elsewhere, it does not come back by itself; asked to join again, it begins anew.
    all.remove(new).await.unwrap();
    c.becomes(|state| *state == State::Removed).await;
    c.stop().await;
    c.join(&first, PATIENCE).await.unwrap();
    assert_eq!(names(&all).await, voters);
    assert!(c.member.data.with_extension("removed").exists());

    // It leaves, and two go on; the last one cannot.
    assert!(etcd::leave(&c.member, &all).await.unwrap());
    assert_eq!(names(&a.local()).await, voters[..2]);
    assert!(!etcd::leave(&c.member, &a.local()).await.unwrap(), "it is none any more");
    for machine in [&mut a, &mut b, &mut c] {
        machine.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_never_come() {
    let mut a = Machine::new("a", 11, None).await;
    a.join(&[], PATIENCE).await.unwrap();
    let first = [a.member.client_url()];
    let local = a.local();
    // Its process does not come up: it is taken off the list, and the next one may join.
    let mut broken = Machine::new("broken", 12, Some(&a)).await;
    broken.program.path = "/bin/false".into();
    let short = Patience { caught_up: Duration::from_secs(2), ..PATIENCE };
    let error = broken.join(&first, short).await.unwrap_err();
    assert!(matches!(&error, JoinError::NotServing { log, .. } if log.ends_with("etcd/log")), "{error}");
    assert_eq!(names(&local).await, [("a".to_owned(), false)]);
    broken.stop().await;

    // Somebody was added and has never come.
    local.add_learner("https://127.0.1.99:2380").await.unwrap();
    let mut b = Machine::new("b", 13, Some(&a)).await;
    let busy = b.join(&first, Patience { added: Duration::from_millis(500), ..PATIENCE }).await.unwrap_err();
    assert!(matches!(&busy, JoinError::Busy(at) if at == "https://127.0.1.99:2380"), "{busy}");
    b.join(&first, Patience { never_came: Duration::from_secs(1), ..PATIENCE }).await.unwrap();
    assert_eq!(names(&local).await, ["a", "b"].map(|name| (name.to_owned(), false)));

    // A name or an address of somebody else.
    let mut other = Machine::new("b", 14, Some(&a)).await;
    let refused = other.join(&first, PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("has the name b already") && refused.contains(&b.member.peer_url()), "{refused}");
    // Nobody answers.
    let nobody = ["https://127.0.1.98:2379".to_owned()];
    let error = other.join(&nobody, Patience { added: Duration::from_millis(300), ..PATIENCE }).await.unwrap_err();
    assert!(matches!(&error, JoinError::Cluster { at, .. } if at.contains("127.0.1.98")), "{error}");
    // Another cluster's CA.
    let stranger = Machine::new("stranger", 15, None).await;
    let mut wrong = Machine::new("c", 16, Some(&stranger)).await;
    let error = wrong.join(&first, Patience { added: Duration::from_millis(300), ..PATIENCE }).await.unwrap_err();
    let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(why.contains("certificate"), "{error}: {why}");
    let own = plan::Own { name: "b", peer_url: &b.member.peer_url(), data: true, id: b.member.note().id };
    assert_eq!(plan::next(&own, &local.members().await.unwrap()), plan::Step::Run);
    b.stop().await;
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_move() {
    let mut a = Machine::new("a", 21, None).await;
    a.join(&[], PATIENCE).await.unwrap();
    let urls = |members: Vec<etcd::Listed>| members.into_iter().flat_map(|m| m.peer_urls).collect::<Vec<_>>();
    let move_to = |machine: &mut Machine, last: u8| {
        machine.member.address = Ipv4Addr::new(127, 0, 1, last);
        let subject = certs::Subject { name: &machine.member.name, address: machine.member.address };
        certs::ensure(&machine.member.pki, &subject, false, jiff::SignedDuration::from_hours(1), Timestamp::now()).unwrap();
    };
    // The only one: nobody else could be told.
    a.stop().await;
    move_to(&mut a, 22);
    a.join(&[], PATIENCE).await.unwrap();
    assert_eq!(urls(a.local().members().await.unwrap()), [a.member.peer_url()]);
    // One of two: without it, the other one cannot agree to anything.
    let mut b = Machine::new("b", 23, Some(&a)).await;
    b.join(&[a.member.client_url()], PATIENCE).await.unwrap();
    b.stop().await;
    move_to(&mut b, 24);
    b.join(&[], PATIENCE).await.unwrap();
    assert!(urls(a.local().members().await.unwrap()).contains(&b.member.peer_url()));
    // One of three.
    let mut c = Machine::new("c", 25, Some(&a)).await;
    c.join(&[a.member.client_url()], PATIENCE).await.unwrap();
    a.stop().await;
    move_to(&mut a, 26);
    a.join(&[b.member.client_url()], PATIENCE).await.unwrap();
    let mut all = urls(c.local().members().await.unwrap());
    all.sort();
    let mut wanted = [&a, &b, &c].map(|m| m.member.peer_url());
    wanted.sort();
    assert_eq!(all, wanted);
    // Somebody else's address.
    a.stop().await;
    let ports = (b.member.client_port, b.member.peer_port);
    move_to(&mut a, 24);
    (a.member.client_port, a.member.peer_port) = ports;
    let refused = a.join(&[b.member.client_url()], PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("is the address of b"), "{refused}");
    for machine in [&mut a, &mut b, &mut c] {
        machine.stop().await;
    }
}
