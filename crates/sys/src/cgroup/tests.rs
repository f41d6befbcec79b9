//! Cgroups in plain directories of either version, and one real group.

use super::limits::weight_of_shares;
use super::*;

fn read(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap()
}

#[test]
fn shares_become_weights() {
    for (shares, weight) in [(0, 0), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
}

#[test]
fn limits_are_written_in_the_words_of_each_version() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits {
        cpu_shares: Some(1024),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory: Some(64 << 20),
        pids: Some(-1),
        ..Limits::default()
    };
    let v2 = Cgroups::at(&root.path().join("v2"), Version::V2);
    std::fs::create_dir(root.path().join("v2")).unwrap();
    v2.create("/a/b").unwrap();
    v2.set("/a/b", &limits).unwrap();
    let dir = root.path().join("v2/a/b");
    assert_eq!(read(&dir, "cpu.weight"), "100");
    assert_eq!(read(&dir, "cpu.max"), "50000 100000");
    assert_eq!(read(&dir, "memory.max"), (64 << 20).to_string());
    assert_eq!(read(&dir, "pids.max"), "max");

    let v1 = Cgroups::at(&root.path().join("v1"), Version::V1);
    for controller in CONTROLLERS {
        std::fs::create_dir_all(root.path().join("v1").join(controller)).unwrap();
    }
    v1.create("/a/b").unwrap();
    v1.set("/a/b", &limits).unwrap();
    let v1_dir = |c: &str| root.path().join("v1").join(c).join("a/b");
    assert_eq!(read(&v1_dir("cpu"), "cpu.shares"), "1024");
    assert_eq!(read(&v1_dir("cpu"), "cpu.cfs_quota_us"), "50000");
    assert_eq!(read(&v1_dir("memory"), "memory.limit_in_bytes"), (64 << 20).to_string());
}

#[test]
fn names_do_not_lead_out() {
    let root = tempfile::tempdir().unwrap();
    let groups = Cgroups::at(root.path(), Version::V2);
    assert!(groups.create("/a/../../b").is_err());
    assert!(groups.remove("/a/..").is_err());
    assert!(groups.remove("/").is_err());
}

#[test]
fn usage_is_read_from_either_version() {
    let root = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("v2/g/memory.current", "1000\n");
    put("v2/g/memory.max", "max\n");
    put("v2/g/memory.stat", "anon 300\ninactive_file 400\npgfault 7\n");
    put("v2/g/memory.events", "oom 1\noom_kill 2\noom_group_kill 0\n");
    put("v2/g/cpu.stat", "usage_usec 12\nuser_usec 5\n");
    put("v2/g/cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n");
    let stats = Cgroups::at(&root.path().join("v2"), Version::V2).stats("/g").unwrap();
    assert_eq!(stats.cpu.usage, 12_000);
    assert_eq!(stats.cpu.pressure.unwrap().1.avg10, 1.5);
    assert_eq!((stats.memory.working_set, stats.memory.rss, stats.memory.limit, stats.memory.oom_kills), (600, 300, None, 2));

    put("v1/memory/g/memory.usage_in_bytes", "1000\n");
    put("v1/memory/g/memory.limit_in_bytes", "9223372036854771712\n");
    put("v1/memory/g/memory.stat", "rss 1\ntotal_rss 300\ntotal_inactive_file 400\n");
    put("v1/memory/g/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
    put("v1/cpuacct/g/cpuacct.usage", "77\n");
    let groups = Cgroups::at(&root.path().join("v1"), Version::V1);
    let stats = groups.stats("/g").unwrap();
    assert_eq!((stats.cpu.usage, stats.memory.working_set, stats.memory.limit), (77, 600, None));
    assert_eq!(groups.oom_kills("/g"), 1);
    assert!(groups.stats("/none").is_err());
}

/// On the machine's own hierarchy, as root: a group limits, counts, is emptied and removed.
#[test]
fn a_real_group_lives_and_goes() {
    let Ok(groups) = Cgroups::detect() else { return };
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let name = format!("/knarr-sys-test-{}", std::process::id());
    groups.create(&format!("{name}/leaf")).unwrap();
    let leaf = format!("{name}/leaf");
    groups.set(&leaf, &Limits { memory: Some(64 << 20), pids: Some(50), cpu_shares: Some(512), ..Limits::default() }).unwrap();
    let mut child = std::process::Command::new("/bin/sh").args(["-c", "read x"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    groups.join(&leaf, child.id() as i32).unwrap();
    assert_eq!(groups.pids(&name).unwrap(), [child.id() as i32]);
    let stats = groups.stats(&leaf).unwrap();
    assert_eq!(stats.memory.limit, Some(64 << 20));
    assert!(stats.pids >= 1);
    assert!(groups.remove(&leaf).is_err(), "it holds a process");
    let reaper = std::thread::spawn(move || child.wait());
    assert!(groups.kill(&name, std::time::Duration::from_secs(10)).unwrap());
    reaper.join().unwrap().unwrap();
    groups.remove(&name).unwrap();
    assert!(!groups.exists(&name));
    groups.remove(&name).unwrap();
}
