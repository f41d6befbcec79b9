//! Limits of a group, in the terms of the OCI runtime specification, written in either version's.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Cgroups, Version};
use crate::error::{Context, Error, Result};

/// A limit on huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugepageLimit {
    /// As the kernel names it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// What a group may use. `None` leaves a value as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Relative weight, 2 to 262144; 1024 is the default.
    pub cpu_shares: Option<u64>,
    /// Microseconds in a period; negative is no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// A list such as `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// A list of memory nodes.
    pub cpuset_mems: Option<String>,
    /// Bytes; negative is no limit.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; negative is no limit.
    pub memory_swap: Option<i64>,
    /// Processes and threads; negative is no limit.
    pub pids: Option<i64>,
    pub hugepages: Vec<HugepageLimit>,
    /// Version 2 files set as they are.
    pub unified: BTreeMap<String, String>,
}

/// Version 2's weight (1 to 10000) for version 1's shares, as runc, crun and systemd convert today:
/// a quadratic in the logarithms that maps 2 to 1, 1024 to 100 and 262144 to 10000.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

impl Cgroups {
    /// Sets limits of an existing group.
    pub fn set(&self, path: &str, limits: &Limits) -> Result<()> {
        match self.version {
            Version::V1 => self.set_v1(path, limits),
            Version::V2 => self.set_v2(path, limits),
        }
    }

    fn set_v1(&self, path: &str, limits: &Limits) -> Result<()> {
        let write = |controller: &str, file: &str, value: &str| match self.dir(controller, path) {
            Some(dir) => put(&dir, file, value),
            None => Err(Error::new("find cgroup controller", controller, rustix::io::Errno::NOTSUP)),
        };
        if let Some(shares) = limits.cpu_shares {
            write("cpu", "cpu.shares", &shares.max(2).to_string())?;
        }
        if let Some(period) = limits.cpu_period.filter(|p| *p > 0) {
            // The old quota may not fit the new period, and a parent's limit binds both.
            if write("cpu", "cpu.cfs_period_us", &period.to_string()).is_err() {
                write("cpu", "cpu.cfs_quota_us", "-1")?;
                write("cpu", "cpu.cfs_period_us", &period.to_string())?;
            }
        }
        if let Some(quota) = limits.cpu_quota.filter(|q| *q != 0) {
            write("cpu", "cpu.cfs_quota_us", &quota.max(-1).to_string())?;
        }
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
                write("cpuset", file, value)?;
            }
        }
        if let Some(memory) = limits.memory.filter(|m| *m != 0) {
            self.set_memory_v1(path, memory.max(-1), limits.memory_swap.filter(|m| *m != 0))?;
        }
        if let Some(pids) = limits.pids.filter(|p| *p != 0) {
            write("pids", "pids.max", &or_max(pids))?;
        }
        for page in &limits.hugepages {
            let file = format!("hugetlb.{}.limit_in_bytes", page.page_size);
            // Zero is what the kubelet asks for without a use of huge pages.
            match write("hugetlb", &file, &page.limit.to_string()) {
                Err(_) if page.limit == 0 => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Memory may never exceed memory and swap, so the order depends on where we come from.
    fn set_memory_v1(&self, path: &str, memory: i64, swap: Option<i64>) -> Result<()> {
        let Some(dir) = self.dir("memory", path) else {
            return Err(Error::new("find cgroup controller", "memory", rustix::io::Errno::NOTSUP));
        };
        let swap_file = "memory.memsw.limit_in_bytes";
        // Without swap accounting there is no such file, and nothing to keep in order.
        if !dir.join(swap_file).exists() {
            return put(&dir, "memory.limit_in_bytes", &memory.to_string());
        }
        let swap = swap.unwrap_or(if memory < 0 { -1 } else { memory });
        let current = std::fs::read_to_string(dir.join(swap_file)).ok().and_then(|v| v.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
        let raising = swap < 0 || swap as u64 > current;
        let files = [("memory.limit_in_bytes", memory), (swap_file, swap)];
        let order: [usize; 2] = if raising { [1, 0] } else { [0, 1] };
        for n in order {
            put(&dir, files[n].0, &files[n].1.to_string())?;
        }
        Ok(())
    }

    fn set_v2(&self, path: &str, limits: &Limits) -> Result<()> {
        let Some(dir) = self.dir("unified", path) else {
            return Err(Error::new("find cgroup", path, rustix::io::Errno::NOENT));
        };
        if let Some(shares) = limits.cpu_shares.filter(|s| *s > 0) {
            put(&dir, "cpu.weight", &weight_of_shares(shares).to_string())?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota = limits.cpu_quota.filter(|q| *q > 0).map_or("max".to_owned(), |q| q.to_string());
            let period = limits.cpu_period.filter(|p| *p > 0).unwrap_or(100_000);
            put(&dir, "cpu.max", &format!("{quota} {period}"))?;
        }
        for (file, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
                put(&dir, file, value)?;
            }
        }
        if let Some(memory) = limits.memory.filter(|m| *m != 0) {
            put(&dir, "memory.max", &or_max(memory))?;
            let swap = match limits.memory_swap.filter(|s| *s != 0) {
                Some(both) if both > 0 && memory > 0 => Some((both - memory).max(0)),
                Some(_) => Some(-1),
                None => None,
            };
            if let Some(swap) = swap.filter(|_| dir.join("memory.swap.max").exists()) {
                put(&dir, "memory.swap.max", &or_max(swap))?;
            }
        }
        if let Some(pids) = limits.pids.filter(|p| *p != 0) {
            put(&dir, "pids.max", &or_max(pids))?;
        }
        for page in &limits.hugepages {
            match put(&dir, &format!("hugetlb.{}.max", page.page_size), &page.limit.to_string()) {
                Err(_) if page.limit == 0 => {}
                other => other?,
            }
        }
        for (file, value) in &limits.unified {
            if file.contains('/') {
                return Err(Error::new("write", dir.join(file), rustix::io::Errno::INVAL));
            }
            put(&dir, file, value)?;
        }
        Ok(())
    }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn put(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    std::fs::write(&path, value).context("write", path)
}
