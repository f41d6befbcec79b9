//! What the running kernel can do.

use std::path::Path;

/// Something that the kernel or the machine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What, in a word or two: `overlay file system`.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// The running kernel's version as major and minor number.
pub fn version() -> (u32, u32) {
    parse(rustix::system::uname().release().to_str().unwrap_or_default())
}

fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether a file system type is registered or can be loaded as a module.
pub fn has_file_system(name: &str) -> bool {
    let registered = std::fs::read_to_string("/proc/filesystems")
        .is_ok_and(|list| list.lines().any(|line| line.split_whitespace().last() == Some(name)));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let module = || {
        let deps = std::fs::read_to_string(format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
        deps.contains(&format!("/{name}.ko"))
    };
    registered || module()
}

/// Allows this process as many open files as the administrator permits, for a server has one a connection. Shells and
/// init systems begin with 1,024, for programs that cannot count further.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        // Without it there are fewer connections: no reason not to start.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

/// Everything that running containers needs and this machine has not. Empty is good.
pub fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut need = |there: bool, what: &str, remedy: &str| {
        if !there {
            missing.push(Missing { what: what.into(), remedy: remedy.into() });
        }
    };
    let version = version();
    need(version >= (5, 15), "Linux 5.15", &format!("this is {}.{}; install a newer kernel", version.0, version.1));
    need(rustix::process::geteuid().is_root(), "root", "run as root");
    need(has_file_system("overlay"), "overlay file system", "load the module: modprobe overlay");
    for (kind, option) in [("net", "NET_NS"), ("pid", "PID_NS"), ("ipc", "IPC_NS"), ("uts", "UTS_NS"), ("mnt", "NAMESPACES")] {
        let there = Path::new("/proc/self/ns").join(kind).exists();
        need(there, &format!("{kind} namespaces"), &format!("use a kernel with CONFIG_{option}"));
    }
    need(crate::cgroup::Cgroups::detect().is_ok(), "cgroups", "mount cgroup2 on /sys/fs/cgroup, with the controllers cpu, memory and pids");
    missing
}

#[cfg(test)]
mod tests {
    #[test]
    fn open_files_are_as_many_as_permitted() {
        super::raise_open_files();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn versions_parse() {
        assert_eq!(super::parse("6.1.0-18-amd64"), (6, 1));
        assert_eq!(super::parse("5.15.0"), (5, 15));
        assert_eq!(super::parse("odd"), (0, 0));
        assert!(super::version() > (3, 0));
    }
}
