//! The kernel's preference among victims when memory runs out.

use std::sync::atomic::{AtomicI32, Ordering};

const UNKNOWN: i32 = i32::MIN;

/// The lowest value that this process may set: probed once. Lowering the value needs
/// CAP_SYS_RESOURCE, which containers and some hosts lack.
pub fn lowest() -> i32 {
    static LOWEST: AtomicI32 = AtomicI32::new(UNKNOWN);
    let known = LOWEST.load(Ordering::Relaxed);
    if known != UNKNOWN {
        return known;
    }
    let current = own();
    let allowed = has_sys_resource();
    let lowest = if allowed { -1000 } else { current };
    LOWEST.store(lowest, Ordering::Relaxed);
    lowest
}

fn own() -> i32 {
    std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// Bit 24 of the effective capabilities.
fn has_sys_resource() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set & (1 << 24) != 0)
}

/// The wanted value, or the nearest one that the kernel will accept from us. The first time that it
/// has to be another one, a warning says so.
pub fn clamped(wanted: i32) -> i32 {
    static SAID: std::sync::Once = std::sync::Once::new();
    let wanted = wanted.clamp(-1000, 1000);
    let lowest = lowest();
    if wanted < lowest {
        SAID.call_once(|| {
            tracing::warn!(wanted, using = lowest, "oom_score_adj cannot be lowered without CAP_SYS_RESOURCE; using the lowest value allowed");
        });
        return lowest;
    }
    wanted
}

/// Sets the value of a process, clamped. A process that has ended is fine.
pub fn set(pid: i32, wanted: i32) -> crate::Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    match std::fs::write(&path, clamped(wanted).to_string()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(crate::Error::new("write", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn raising_is_never_clamped() {
        assert_eq!(super::clamped(1000), 1000);
        assert_eq!(super::clamped(5000), 1000);
        assert!(super::clamped(-1000) >= super::lowest());
        super::set(std::process::id() as i32, super::own()).unwrap();
    }
}
