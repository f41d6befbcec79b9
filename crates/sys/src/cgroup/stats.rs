//! What a group uses.

use std::path::Path;

use super::{Cgroups, Version};
use crate::error::{Error, Result};

/// Usage of a group with all below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub cpu: Cpu,
    pub memory: Memory,
    /// Processes and threads.
    pub pids: u64,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Nanoseconds since the group was made.
    pub usage: u64,
    pub pressure: Option<(Pressure, Pressure)>,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// All that is charged to the group.
    pub usage: u64,
    /// Usage without the file cache that has not been touched for long.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// `None` without a limit.
    pub limit: Option<u64>,
    pub swap: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// How often the kernel killed something in it for lack of memory.
    pub oom_kills: u64,
    pub pressure: Option<(Pressure, Pressure)>,
}

/// Pressure stall information: shares of time in percent, the total in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

impl Cgroups {
    /// Reads the usage of a group.
    pub fn stats(&self, path: &str) -> Result<Stats> {
        let dir = |controller: &str| self.dir(controller, path).unwrap_or_default();
        let memory = dir("memory");
        if !memory.is_dir() {
            return Err(Error::new("read cgroup", memory, rustix::io::Errno::NOENT));
        }
        let stat = text(&memory, "memory.stat");
        Ok(match self.version {
            Version::V1 => {
                let usage = number(&memory, "memory.usage_in_bytes").unwrap_or(0);
                let with_swap = number(&memory, "memory.memsw.usage_in_bytes").unwrap_or(usage);
                // What the kernel shows without a limit is the largest page-aligned number.
                let limit = number(&memory, "memory.limit_in_bytes").filter(|l| *l < 1 << 62);
                Stats {
                    cpu: Cpu { usage: number(&dir("cpuacct"), "cpuacct.usage").unwrap_or(0), pressure: None },
                    memory: Memory {
                        usage,
                        working_set: usage.saturating_sub(keyed(&stat, "total_inactive_file")),
                        rss: keyed(&stat, "total_rss"),
                        limit,
                        swap: with_swap.saturating_sub(usage),
                        page_faults: keyed(&stat, "total_pgfault"),
                        major_page_faults: keyed(&stat, "total_pgmajfault"),
                        oom_kills: keyed(&text(&memory, "memory.oom_control"), "oom_kill"),
                        pressure: None,
                    },
                    pids: number(&dir("pids"), "pids.current").unwrap_or(0),
                }
            }
            Version::V2 => {
                let usage = number(&memory, "memory.current").unwrap_or(0);
                Stats {
                    cpu: Cpu { usage: keyed(&text(&memory, "cpu.stat"), "usage_usec") * 1000, pressure: pressure(&memory, "cpu.pressure") },
                    memory: Memory {
                        usage,
                        working_set: usage.saturating_sub(keyed(&stat, "inactive_file")),
                        rss: keyed(&stat, "anon"),
                        limit: number(&memory, "memory.max"),
                        swap: number(&memory, "memory.swap.current").unwrap_or(0),
                        page_faults: keyed(&stat, "pgfault"),
                        major_page_faults: keyed(&stat, "pgmajfault"),
                        oom_kills: keyed(&text(&memory, "memory.events"), "oom_kill"),
                        pressure: pressure(&memory, "memory.pressure"),
                    },
                    pids: number(&memory, "pids.current").unwrap_or(0),
                }
            }
        })
    }

    /// How often the kernel killed something in the group itself for lack of memory.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.version == Version::V1 { "memory.oom_control" } else { "memory.events" };
        self.dir("memory", path).map_or(0, |dir| keyed(&text(&dir, file), "oom_kill"))
    }
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_default()
}

/// `None` for an absent file and for `max`.
fn number(dir: &Path, file: &str) -> Option<u64> {
    text(dir, file).trim().parse().ok()
}

fn keyed(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

/// The lines `full` and `some`.
fn pressure(dir: &Path, file: &str) -> Option<(Pressure, Pressure)> {
    let text = std::fs::read_to_string(dir.join(file)).ok()?;
    let line = |name: &str| {
        let mut pressure = Pressure::default();
        let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
        for (key, value) in rest.split_whitespace().filter_map(|pair| pair.split_once('=')) {
            match key {
                "avg10" => pressure.avg10 = value.parse().ok()?,
                "avg60" => pressure.avg60 = value.parse().ok()?,
                "avg300" => pressure.avg300 = value.parse().ok()?,
                "total" => pressure.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(pressure)
    };
    Some((line("full").unwrap_or_default(), line("some").unwrap_or_default()))
}
