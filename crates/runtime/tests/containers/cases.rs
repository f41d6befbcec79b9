//! The tests.

use std::time::{Duration, Instant};

use cri::RuntimeService;
use cri::v1::*;
use streaming::server::Options;
use streaming::status::ExecStatus;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{IMAGE, World};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[Case] = &[$((stringify!($name), || block_on($name()))),*];
    };
}

cases! {
    the_contract_is_kept, logs_and_exit_codes, a_container_sees_its_pod, identity_and_environment, limits_hold, exec_collects_output,
    a_failed_start_says_why, containers_survive_the_runtime, a_killed_shim_ends_its_pod, a_shared_pid_namespace, mounts_and_volumes,
    nothing_stays_after_a_purge, quick_enough, exec_streams, exec_on_a_terminal, attach_streams, logs_rotate, many_at_once, privileged_on_the_host, streams_belong_to_the_user, busybox_runs,
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

async fn the_contract_is_kept() {
    let world = World::new().await;
    let command = ["/payload", "payload", "wait"].map(String::from).to_vec();
    // The first process of a namespace ignores SIGTERM until it has a handler.
    let handler_is_set = async |id: &str| {
        let pid = world.pid(id).await;
        world
            .until(async || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap();
                (u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << 14) != 0).then_some(())
            })
            .await
    };
    let ready = |id: &str| tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(handler_is_set(id)));
    cri::contract::life_cycle(&*world.runtime, cri::contract::Target { image: IMAGE.into(), command, end: Some(Box::new(ready)) }).await;
    cri::contract::unknown_ids(&*world.runtime).await;
}

async fn logs_and_exit_codes() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["echo", "hello", "there"])).await;
    let status = world.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert_eq!(world.log(&id, "stdout").await, "hello there\n");
    assert_eq!(world.log(&id, "stderr").await, "to stderr\n");
    let (_, status) = world.output(&sandbox, world.container(&["exit", "42"])).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    // A process without handlers is the init of its namespace, so only SIGKILL ends it.
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    world.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
    assert_eq!(world.status(&id).await.exit_code, 137);
}

async fn a_container_sees_its_pod() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    let read = async |path: &str| String::from_utf8(world.exec(&id, &["read", path]).await.stdout).unwrap();
    assert_eq!(read("/proc/sys/kernel/hostname").await, "pod-host\n");
    assert_eq!(read("/etc/hostname").await, "pod-host\n");
    assert_eq!(read("/etc/resolv.conf").await, "nameserver 10.96.0.10\n");
    let second = world.run(&sandbox, world.container(&["sleep"])).await;
    let link = async |id: &str, ns: &str| world.exec(id, &["link", &format!("/proc/self/ns/{ns}")]).await.stdout;
    for shared in ["net", "ipc", "uts"] {
        assert_eq!(link(&id, shared).await, link(&second, shared).await, "{shared}");
        let host = std::fs::read_link(format!("/proc/self/ns/{shared}")).unwrap();
        assert_ne!(link(&id, shared).await, format!("{}\n", host.display()).into_bytes(), "{shared}");
    }
    assert_ne!(link(&id, "pid").await, link(&second, "pid").await);
    let list = world.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items;
    assert_eq!(list.len(), 1);
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = world.runtime.pod_sandbox_status(request).await.unwrap();
    assert_eq!(status.status.unwrap().network.unwrap().ip, "10.9.8.7");
    assert_eq!(status.containers_statuses.len(), 2);
}

async fn identity_and_environment() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(&["env"]);
    config.envs = vec![KeyValue { key: "GIVEN".into(), value: "by the pod".into() }];
    let (env, _) = world.output(&sandbox, config).await;
    for line in ["FROM=image", "GIVEN=by the pod", "HOSTNAME=pod-host", "HOME=/root"] {
        assert!(env.lines().any(|l| l == line), "{line} in {env}");
    }
    let mut config = world.container(&["read", "/proc/self/status"]);
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext { run_as_username: "web".into(), no_new_privs: true, ..Default::default() }),
        resources: Some(LinuxContainerResources { oom_score_adj: -997, ..Default::default() }),
    });
    let (status, end) = world.output(&sandbox, config).await;
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(field("Uid:"), "33 33 33 33", "{status}");
    assert_eq!(field("Gid:"), "34 34 34 34");
    assert_eq!(field("Groups:"), "34 50");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("CapBnd:"), "00000000a80425fb");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    assert_eq!(end.user.unwrap().linux.unwrap().uid, 33);
    let (cwd, _) = world.output(&sandbox, world.container(&["cwd"])).await;
    assert_eq!(cwd, "/work/dir\n", "the image's working directory is made");
}

async fn limits_hold() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(&["eat"]);
    let resources = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, cpu_shares: 512, cpu_quota: 50_000, cpu_period: 100_000, ..Default::default() };
    config.linux = Some(LinuxContainerConfig { resources: Some(resources.clone()), security_context: None });
    let (_, status) = world.output(&sandbox, config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let mut config = world.container(&["sleep"]);
    config.linux = Some(LinuxContainerConfig { resources: Some(resources), security_context: None });
    let id = world.run(&sandbox, config).await;
    let stats = async || world.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.unwrap().stats.unwrap();
    let memory = stats().await.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value > 0);
    assert!(memory.available_bytes.unwrap().value < 32 << 20);
    let linux = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, cpu_quota: 20_000, cpu_period: 100_000, ..Default::default() };
    let request = UpdateContainerResourcesRequest { container_id: id.clone(), linux: Some(linux), ..Default::default() };
    world.runtime.update_container_resources(request).await.unwrap();
    assert!(stats().await.memory.unwrap().available_bytes.unwrap().value > 32 << 20);
}

async fn exec_collects_output() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    let done = world.exec(&id, &["echo", "inside"]).await;
    assert_eq!((done.exit_code, &done.stdout[..], &done.stderr[..]), (0, &b"inside\n"[..], &b"to stderr\n"[..]));
    assert_eq!(world.exec(&id, &["exit", "7"]).await.exit_code, 7);
    let request = |cmd: &[&str], timeout| ExecSyncRequest { container_id: id.clone(), cmd: cmd.iter().map(|s| s.to_string()).collect(), timeout };
    let started = Instant::now();
    let late = world.runtime.exec_sync(request(&["/payload", "payload", "sleep"], 1)).await.unwrap_err();
    assert_eq!(late.code, cri::Code::DeadlineExceeded);
    assert!(started.elapsed() < Duration::from_secs(5));
    let missing = world.runtime.exec_sync(request(&["nothing"], 5)).await.unwrap_err();
    assert!(missing.message.ends_with("exec: \"nothing\": executable file not found in $PATH"), "{missing}");
}

async fn a_failed_start_says_why() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(&[]);
    config.command = vec!["/no/such".into()];
    let id = world.create(&sandbox, config).await;
    let error = world.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap_err();
    assert!(error.message.ends_with("exec: \"/no/such\": stat /no/such: no such file or directory"), "{error}");
    let status = world.status(&id).await;
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerState::Exited, 128, "StartError"));
    let mut config = world.container(&[]);
    config.image = Some(ImageSpec { image: "absent:1".into(), ..Default::default() });
    let request = CreateContainerRequest { pod_sandbox_id: sandbox, config: Some(config), sandbox_config: None };
    assert!(world.runtime.create_container(request).await.unwrap_err().message.contains("absent:1"));
}

async fn containers_survive_the_runtime() {
    let mut world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["wait"])).await;
    world.until(async || Some(()).filter(|()| std::fs::read_to_string(world.path("logs/c/0.log")).is_ok_and(|l| l.contains("ready")))).await;
    let short = world.run(&sandbox, world.container(&["exit", "5"])).await;
    let verbose = |id: &str| ContainerStatusRequest { container_id: id.into(), verbose: true };
    let before = world.runtime.container_status(verbose(&id)).await.unwrap().info;
    world.reopen().await;
    assert_eq!(world.runtime.container_status(verbose(&id)).await.unwrap().info, before, "the same process");
    assert_eq!(world.ended(&short).await.exit_code, 5);
    assert_eq!(world.status(&id).await.state(), ContainerState::Running);
    assert_eq!(world.exec(&id, &["echo", "x"]).await.exit_code, 0);
    world.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 }).await.unwrap();
    assert_eq!(world.status(&id).await.exit_code, 3);
    world.reopen().await;
    assert_eq!(world.status(&id).await.exit_code, 3);
    world.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    world.reopen().await;
    assert!(world.runtime.list_containers(ListContainersRequest::default()).await.unwrap().containers.is_empty());
}

async fn a_killed_shim_ends_its_pod() {
    let mut world = World::new().await;
    for restarted in [false, true] {
        let sandbox = world.sandbox().await;
        let id = world.run(&sandbox, world.container(&["sleep"])).await;
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
        let info = world.runtime.pod_sandbox_status(request.clone()).await.unwrap().info;
        let shim = serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["shim_pid"].as_i64().unwrap();
        if restarted {
            world.runtime.close().await;
        }
        sys::pidfd::open(shim as i32).unwrap().unwrap().signal(9).unwrap();
        if restarted {
            world.reopen().await;
        }
        let status = world.ended(&id).await;
        assert_ne!(status.exit_code, 0);
        let status = world.runtime.pod_sandbox_status(request).await.unwrap().status.unwrap();
        assert_eq!(status.state(), PodSandboxState::NotReady);
        world.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    }
}

async fn a_shared_pid_namespace() {
    let world = World::new().await;
    let mut config = world.sandbox_config();
    let options = NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() };
    let security_context = Some(LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() });
    config.linux = Some(LinuxPodSandboxConfig { security_context, ..Default::default() });
    let sandbox = world.sandbox_with(config).await;
    let mut container = world.container(&["sleep"]);
    let security_context = Some(LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() });
    container.linux = Some(LinuxContainerConfig { security_context, resources: None });
    let (first, second) = (world.run(&sandbox, container.clone()).await, world.run(&sandbox, container).await);
    let link = async |id: &str| world.exec(id, &["link", "/proc/self/ns/pid"]).await.stdout;
    assert_eq!(link(&first).await, link(&second).await);
    let names = world.exec(&first, &["read", "/proc/1/comm"]).await.stdout;
    assert_eq!(names, b"pause\n");
    world.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    assert_eq!(world.status(&first).await.exit_code, 137);
}

async fn mounts_and_volumes() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let volume = world.path("volume");
    let mut config = world.container(&["sleep"]);
    let mount = |path: &str, readonly| Mount { container_path: path.into(), host_path: volume.display().to_string(), readonly, ..Mount::default() };
    config.mounts = vec![mount("/data", false), mount("/frozen", true)];
    config.working_dir = "/data/deep".into();
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(LinuxContainerSecurityContext { readonly_rootfs: true, masked_paths: vec!["/proc/kcore".into()], ..Default::default() }),
        resources: None,
    });
    let id = world.run(&sandbox, config).await;
    assert_eq!(world.exec(&id, &["write", "/data/file", "text"]).await.exit_code, 0);
    assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "text");
    assert_eq!(world.exec(&id, &["read", "/frozen/file"]).await.stdout, b"text");
    assert_ne!(world.exec(&id, &["write", "/frozen/file", "x"]).await.exit_code, 0);
    assert_ne!(world.exec(&id, &["write", "/file", "x"]).await.exit_code, 0, "the root is read-only");
    assert_eq!(world.exec(&id, &["cwd"]).await.stdout, b"/data/deep\n");
    assert_eq!(world.exec(&id, &["read", "/proc/kcore"]).await.stdout, b"");
    assert_eq!(world.exec(&id, &["write", "/dev/shm/x", "y"]).await.exit_code, 0);
}

async fn nothing_stays_after_a_purge() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    let pid = world.pid(&id).await;
    world.runtime.close().await;
    runtime::purge(&world.config).unwrap();
    // Dead at once; collected by whoever adopts orphans here.
    world.until(async || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())).await;
    assert!(sys::mount::below(&world.path("")).unwrap().is_empty());
    assert!(!world.config.root.exists() && !world.config.run.exists());
    assert!(!sys::cgroup::Cgroups::detect().unwrap().exists(&world.config.cgroup_parent));
    runtime::purge(&world.config).unwrap();
}

/// Not a benchmark: prints what it takes and refuses what is far off.
async fn quick_enough() {
    let world = World::new().await;
    let mut best = [Duration::MAX; 3];
    let mut memory = u64::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let sandbox = world.sandbox().await;
        let ready = started.elapsed();
        let id = world.create(&sandbox, world.container(&["sleep"])).await;
        let created = started.elapsed();
        world.start(&id).await;
        let running = started.elapsed();
        for (n, took) in [ready, created - ready, running - created].into_iter().enumerate() {
            best[n] = best[n].min(took);
        }
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
        let info = world.runtime.pod_sandbox_status(request).await.unwrap().info;
        let shim = serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["shim_pid"].as_i64().unwrap();
        let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let private = rollup.lines().filter(|l| l.starts_with("Private_")).filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
        memory = memory.min(private);
        world.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    }
    println!("sandbox {:?}, create {:?}, start {:?}; private memory of a shim {memory} kB", best[0], best[1], best[2]);
    assert!(best.iter().all(|took| *took < Duration::from_millis(300)));
    assert!(memory < 512, "a shim's private memory is {memory} kB");
}

async fn connect(url: &str, options: Options) -> streaming::client::ExecStreams {
    let rest = url.strip_prefix("unix://").unwrap();
    let at = rest.find(".sock/").unwrap() + 5;
    let io = tokio::net::UnixStream::connect(&rest[..at]).await.unwrap();
    let request = http::Request::get(format!("http://runtime{}", &rest[at..])).body(()).unwrap();
    streaming::client::exec(request, options, io).await.unwrap()
}

async fn all(reader: Option<streaming::Reader>) -> Vec<u8> {
    let mut text = Vec::new();
    reader.unwrap().read_to_end(&mut text).await.unwrap();
    text
}

async fn exec_streams() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    let options = Options { stdin: true, stdout: true, stderr: true, tty: false };
    let start = async |verb: &[&str]| {
        let cmd = ["/payload", "payload"].iter().chain(verb).map(|s| s.to_string()).collect();
        let request = ExecRequest { container_id: id.clone(), cmd, tty: false, stdin: true, stdout: true, stderr: true };
        let url = world.runtime.exec(request).await.unwrap().url;
        (connect(&url, options).await, url)
    };
    let (mut client, url) = start(&["cat"]).await;
    let big = vec![b'x'; 1 << 20];
    let mut stdin = client.stdin.take().unwrap();
    let feed = async {
        stdin.write_all(&big).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let ((), echoed) = tokio::join!(feed, all(client.stdout.take()));
    assert!(echoed == big);
    assert_eq!(client.status.wait().await, ExecStatus::Success);
    let (mut client, _) = start(&["echo", "out"]).await;
    let (out, err) = tokio::join!(all(client.stdout.take()), all(client.stderr.take()));
    assert_eq!((&out[..], &err[..]), (&b"out\n"[..], &b"to stderr\n"[..]));
    let (client, _) = start(&["exit", "9"]).await;
    assert_eq!(client.status.wait().await, ExecStatus::ExitCode(9));
    // A URL is good once.
    let io = tokio::net::UnixStream::connect(world.config.run.join("stream.sock")).await.unwrap();
    let path = url.rsplit_once('/').unwrap().1;
    let request = http::Request::get(format!("http://runtime/exec/{path}")).body(()).unwrap();
    assert!(streaming::client::exec(request, options, io).await.is_err());
}

async fn exec_on_a_terminal() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let id = world.run(&sandbox, world.container(&["sleep"])).await;
    let cmd = ["/payload", "payload", "tty"].map(String::from).to_vec();
    let request = ExecRequest { container_id: id, cmd, tty: true, stdin: true, stdout: true, stderr: false };
    let url = world.runtime.exec(request).await.unwrap().url;
    let mut client = connect(&url, Options { stdin: true, stdout: true, stderr: false, tty: true }).await;
    client.resize.send(100, 30).await.unwrap();
    assert_eq!(all(client.stdout.take()).await, b"true\r\n");
    assert_eq!(client.status.wait().await, ExecStatus::Success);
}

async fn attach_streams() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    for tty in [false, true] {
        let mut config = world.container(&["cat"]);
        (config.stdin, config.stdin_once, config.tty) = (true, true, tty);
        let id = world.run(&sandbox, config).await;
        let request = AttachRequest { container_id: id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        let url = world.runtime.attach(request).await.unwrap().url;
        let mut client = connect(&url, Options { stdin: true, stdout: true, stderr: !tty, tty }).await;
        let mut stdin = client.stdin.take().unwrap();
        stdin.write_all(b"hello\n").await.unwrap();
        let mut stdout = client.stdout.take().unwrap();
        let mut line = vec![0; if tty { 7 } else { 6 }];
        stdout.read_exact(&mut line).await.unwrap();
        assert_eq!(line, if tty { &b"hello\r\n"[..] } else { b"hello\n" });
        // The terminal's own end of input, or the pipe's.
        if tty {
            stdin.write_all(&[4]).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
        assert_eq!(world.ended(&id).await.exit_code, 0);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).await.unwrap();
        assert_eq!(client.status.wait().await, ExecStatus::Success);
        assert!(world.log(&id, "stdout").await.starts_with("hello"));
    }
    // An input that stays open for the next one: whoever has said what there was to say leaves, and the container goes on.
    let mut config = world.container(&["cat"]);
    config.stdin = true;
    let id = world.run(&sandbox, config).await;
    for _ in 0..2 {
        let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, stderr: true, ..AttachRequest::default() };
        let url = world.runtime.attach(request).await.unwrap().url;
        let mut client = connect(&url, Options { stdin: true, stdout: true, stderr: true, tty: false }).await;
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        stdin.write_all(b"hello\n").await.unwrap();
        stdout.read_exact(&mut [0; 6]).await.unwrap();
        stdin.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).await.unwrap();
        assert_eq!((rest, client.status.wait().await), (Vec::new(), ExecStatus::Success));
    }
    assert_eq!(world.log(&id, "stdout").await, "hello\nhello\n");
}

async fn logs_rotate() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(&["cat"]);
    config.stdin = true;
    let id = world.run(&sandbox, config).await;
    let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..AttachRequest::default() };
    let url = world.runtime.attach(request).await.unwrap().url;
    let mut client = connect(&url, Options { stdin: true, stdout: true, stderr: false, tty: false }).await;
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    let mut say = async |text: &[u8]| {
        stdin.write_all(text).await.unwrap();
        stdout.read_exact(&mut vec![0; text.len()]).await.unwrap();
    };
    say(b"old\n").await;
    let path = world.status(&id).await.log_path;
    std::fs::rename(&path, format!("{path}.1")).unwrap();
    world.runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id.clone() }).await.unwrap();
    say(b"new\n").await;
    assert_eq!(world.log(&id, "stdout").await, "new\n");
}

async fn many_at_once() {
    let world = std::sync::Arc::new(World::new().await);
    let started = Instant::now();
    let pods: Vec<_> = (0..20)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move {
                let sandbox = world.sandbox().await;
                world.run(&sandbox, world.container(&["sleep"])).await
            })
        })
        .collect();
    let mut ids = Vec::new();
    for pod in pods {
        ids.push(pod.await.unwrap());
    }
    println!("{} pods after {:?}", ids.len(), started.elapsed());
    for id in ids {
        assert_eq!(world.status(&id).await.state(), ContainerState::Running);
    }
}

async fn privileged_on_the_host() {
    let world = World::new().await;
    let mut config = world.sandbox_config();
    let node = NamespaceMode::Node as i32;
    let options = NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() };
    let security_context = Some(LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), privileged: true, ..Default::default() });
    config.linux = Some(LinuxPodSandboxConfig { security_context, ..Default::default() });
    let sandbox = world.sandbox_with(config).await;
    let mut container = world.container(&["sleep"]);
    let security_context = Some(LinuxContainerSecurityContext { namespace_options: Some(options), privileged: true, ..Default::default() });
    container.linux = Some(LinuxContainerConfig { security_context, resources: None });
    let source = world.path("shared").display().to_string();
    container.mounts = vec![Mount { container_path: "/shared".into(), host_path: source, propagation: MountPropagation::Bidirectional as i32, ..Mount::default() }];
    let id = world.run(&sandbox, container).await;
    for kind in ["net", "ipc", "uts", "pid"] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let inside = world.exec(&id, &["link", &format!("/proc/self/ns/{kind}")]).await.stdout;
        assert_eq!(inside, format!("{}\n", host.display()).into_bytes(), "{kind}");
    }
    let status = String::from_utf8(world.exec(&id, &["read", "/proc/self/status"]).await.stdout).unwrap();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |text: &str| text.lines().find(|l| l.starts_with("CapEff:")).unwrap().to_owned();
    assert_eq!(field(&status), field(&own));
    let devices = String::from_utf8(world.exec(&id, &["list", "/dev"]).await.stdout).unwrap();
    assert!(devices.split_whitespace().any(|d| d == "kmsg" || d == "loop-control" || d == "mem"), "{devices}");
    assert_eq!(world.exec(&id, &["exit", "0"]).await.exit_code, 0);
    // Nothing but the group ends what shares the host's PID namespace.
    world.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
    assert_eq!(world.status(&id).await.exit_code, 137);
}

async fn streams_belong_to_the_user() {
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let user = |mut config: ContainerConfig| {
        let security_context = Some(LinuxContainerSecurityContext { run_as_user: Some(Int64Value { value: 33 }), ..Default::default() });
        config.linux = Some(LinuxContainerConfig { security_context, resources: None });
        config
    };
    let id = world.run(&sandbox, user(world.container(&["write", "/dev/stdout", "opened"]))).await;
    assert_eq!(world.ended(&id).await.exit_code, 0, "{}", world.log(&id, "stderr").await);
    assert_eq!(world.log(&id, "stdout").await, "opened");
    let id = world.run(&sandbox, user(world.container(&["sleep"]))).await;
    assert_eq!(world.exec(&id, &["write", "/dev/stderr", "opened"]).await.stderr, b"opened");
}

/// An ordinary program from Debian, where it is installed.
async fn busybox_runs() {
    if !std::path::Path::new("/bin/busybox").exists() {
        return;
    }
    let world = World::new().await;
    let sandbox = world.sandbox().await;
    let mut config = world.container(&["sh", "-c", "trap 'echo bye; exit 4' TERM; echo up; umask; while :; do sleep 0.05; done"]);
    config.command = vec!["/box/busybox".into()];
    config.mounts = vec![Mount { container_path: "/box/busybox".into(), host_path: "/bin/busybox".into(), readonly: true, ..Mount::default() }];
    let id = world.run(&sandbox, config).await;
    world.until(async || Some(()).filter(|()| std::fs::read_to_string(world.path("logs/c/0.log")).is_ok_and(|l| l.contains("0022")))).await;
    let cmd = ["/box/busybox", "sh", "-c", "echo $HOME $HOSTNAME; id -u; exit 6"].map(String::from).to_vec();
    let done = world.runtime.exec_sync(ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 }).await.unwrap();
    assert_eq!((String::from_utf8(done.stdout).unwrap().as_str(), done.exit_code), ("/root pod-host\n0\n", 6));
    world.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 }).await.unwrap();
    assert_eq!(world.status(&id).await.exit_code, 4);
    assert!(world.log(&id, "stdout").await.ends_with("bye\n"));
}
