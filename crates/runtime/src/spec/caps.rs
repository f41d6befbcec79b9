//! Capabilities: what containers get, and what there is to give.

use cri::v1::Capability;

/// All of Linux 5.15 to 6.18, by number.
const ALL: &[&str] = &[
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

/// What containerd gives by default.
const DEFAULT: &[&str] = &[
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "KILL", "AUDIT_WRITE",
];

/// A container's sets, with the `CAP_` prefix, in the order of their numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Sets {
    /// Bounding, permitted and effective.
    pub granted: Vec<String>,
    /// Ambient and inheritable.
    pub ambient: Vec<String>,
}

/// The capabilities of this process as a bit set, by number.
pub fn own() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// What a container gets, of what is `available`: nobody can give what they lack.
pub fn sets(privileged: bool, wanted: Option<&Capability>, available: u64) -> Result<Sets, String> {
    let mut granted: Vec<&str> = if privileged { ALL.to_vec() } else { DEFAULT.to_vec() };
    let mut ambient = Vec::new();
    if let Some(wanted) = wanted {
        // "ALL" first, so that single ones can be taken out of or put into it.
        if wanted.add_capabilities.iter().any(|c| name(c) == "ALL") {
            granted = ALL.to_vec();
        }
        if wanted.drop_capabilities.iter().any(|c| name(c) == "ALL") {
            granted.clear();
        }
        for cap in wanted.add_capabilities.iter().filter(|c| name(c) != "ALL") {
            granted.push(known(cap)?);
        }
        for cap in wanted.drop_capabilities.iter().filter(|c| name(c) != "ALL") {
            let cap = known(cap)?;
            granted.retain(|c| *c != cap);
        }
        for cap in &wanted.add_ambient_capabilities {
            ambient.push(known(cap)?);
        }
    }
    let render = |set: &[&str]| -> Vec<String> {
        let chosen = ALL.iter().enumerate().filter(|(n, cap)| set.contains(cap) && available & (1 << n) != 0);
        chosen.map(|(_, cap)| format!("CAP_{cap}")).collect()
    };
    Ok(Sets { granted: render(&granted), ambient: render(&ambient) })
}

fn name(cap: &str) -> String {
    let upper = cap.to_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

fn known(cap: &str) -> Result<&'static str, String> {
    let name = name(cap);
    ALL.iter().copied().find(|c| *c == name).ok_or_else(|| format!("unknown capability to add or drop: {cap:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(privileged: bool, add: &[&str], drop: &[&str], available: u64) -> Vec<String> {
        let text = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        let wanted = Capability { add_capabilities: text(add), drop_capabilities: text(drop), add_ambient_capabilities: vec![] };
        sets(privileged, Some(&wanted), available).unwrap().granted
    }

    #[test]
    fn lists_add_up() {
        assert_eq!(granted(false, &[], &[], u64::MAX).len(), DEFAULT.len());
        assert_eq!(granted(false, &["NET_ADMIN"], &["ALL"], u64::MAX), ["CAP_NET_ADMIN"]);
        assert_eq!(granted(false, &["ALL"], &["CAP_SYS_TIME"], u64::MAX).len(), ALL.len() - 1);
        assert!(!granted(false, &[], &["chown"], u64::MAX).contains(&"CAP_CHOWN".to_string()));
        assert!(!granted(true, &[], &[], !(1 << 24)).contains(&"CAP_SYS_RESOURCE".to_string()));
        let wrong = Capability { add_capabilities: vec!["FLY".into()], ..Capability::default() };
        assert!(sets(false, Some(&wrong), 0).is_err());
    }
}
