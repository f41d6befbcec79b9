//! Specifications that given configurations lead to.

use cri::v1::*;

use super::*;

fn input<'a>(config: &'a ContainerConfig, sandbox: &'a PodSandboxConfig, image: &'a ImageDefaults, user: &'a User) -> Input<'a> {
    Input {
        config,
        sandbox,
        image,
        user,
        rootfs: "/r".into(),
        cgroup: "/pod/c".into(),
        cgroup_v2: false,
        namespaces: Namespaces { network: Some("/net".into()), ..Namespaces::default() },
        sandbox_files: vec![("/etc/hosts", "/s/hosts".into())],
        shm: "/s/shm".into(),
        capabilities: u64::MAX,
    }
}

#[test]
fn commands_combine_as_kubernetes_says() {
    let image = ImageDefaults { entrypoint: vec!["ep".into()], cmd: vec!["cmd".into()], ..ImageDefaults::default() };
    let case = |command: &[&str], args_given: &[&str]| {
        let text = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        let config = ContainerConfig { command: text(command), args: text(args_given), ..ContainerConfig::default() };
        args(&config, &image).unwrap().join(" ")
    };
    assert_eq!(case(&[], &[]), "ep cmd");
    assert_eq!(case(&["c"], &[]), "c");
    assert_eq!(case(&[], &["a"]), "ep a");
    assert_eq!(case(&["c"], &["a"]), "c a");
    assert!(args(&ContainerConfig::default(), &ImageDefaults::default()).is_err());
}

#[test]
fn environment_keeps_order_and_the_last_word() {
    let image = ImageDefaults { env: vec!["A=image".into(), "PATH=/image".into()], ..ImageDefaults::default() };
    let pair = |k: &str, v: &str| KeyValue { key: k.into(), value: v.into() };
    let config = ContainerConfig { envs: vec![pair("B", "2"), pair("A", "x=y")], ..ContainerConfig::default() };
    let sandbox = PodSandboxConfig { hostname: "h".into(), ..PodSandboxConfig::default() };
    let user = User::default();
    assert_eq!(env(&input(&config, &sandbox, &image, &user)), ["PATH=/image", "HOSTNAME=h", "A=x=y", "B=2"]);
}

#[test]
fn the_kubelets_mounts_win_and_lie_on_top() {
    let mount = |container: &str, host: &str| Mount { container_path: container.into(), host_path: host.into(), ..Mount::default() };
    let config = ContainerConfig {
        command: vec!["x".into()],
        mounts: vec![mount("/data/sub", "/h2"), mount("/etc/hosts/", "/h1"), mount("/data", "/h3")],
        ..ContainerConfig::default()
    };
    let (sandbox, image, user) = (PodSandboxConfig::default(), ImageDefaults::default(), User::default());
    let spec = build(&input(&config, &sandbox, &image, &user)).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let sources: Vec<&str> = mounts.iter().filter(|m| m["type"] == "bind").map(|m| m["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["/h3", "/s/shm", "/h2", "/h1"]);
    let position = |d: &str| mounts.iter().position(|m| m["destination"] == d).unwrap();
    assert!(position("/dev") < position("/dev/shm") && position("/dev/shm") < mounts.len());
}

#[test]
fn security_and_limits_arrive() {
    let config = ContainerConfig {
        command: vec!["x".into()],
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources { cpu_shares: 2, cpu_quota: 5000, cpu_period: 100_000, memory_limit_in_bytes: 1 << 20, ..Default::default() }),
            security_context: Some(LinuxContainerSecurityContext {
                readonly_rootfs: true,
                no_new_privs: true,
                masked_paths: vec!["/proc/kcore".into()],
                ..Default::default()
            }),
        }),
        ..ContainerConfig::default()
    };
    let (sandbox, image, user) = (PodSandboxConfig::default(), ImageDefaults::default(), User::default());
    let spec = build(&input(&config, &sandbox, &image, &user)).unwrap();
    assert_eq!(spec["linux"]["resources"]["cpu"], json!({"shares": 2, "quota": 5000, "period": 100_000}));
    assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 1 << 20}));
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
    assert_eq!((&spec["root"]["readonly"], &spec["process"]["noNewPrivileges"]), (&json!(true), &json!(true)));
    let kinds: Vec<&str> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mount", "network", "pid"]);
}
