//! What processes use: proportional set sizes and processor time.
use std::fs;

use anyhow::{Context, Result};

/// Bytes of these processes together; nothing without processes.
pub fn of(pids: &[u32]) -> Result<Option<u64>> {
    let one = |pid: &u32| -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    };
    if pids.is_empty() {
        return Ok(None);
    }
    pids.iter().map(one).sum::<Result<u64>>().map(Some)
}

/// Microseconds of processor time that these processes have used.
pub fn processor(pids: &[u32]) -> Result<f64> {
    let one = |pid: &u32| -> Result<f64> {
        let mut total = 0.0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            total += text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1e3;
        }
        Ok(total)
    };
    pids.iter().map(one).sum()
}

/// How much of it one of many requests takes, in words; nothing without processes.
pub fn each(pids: &[u32], before: f64, count: usize) -> Result<String> {
    if pids.is_empty() {
        return Ok(String::new());
    }
    Ok(format!(", {:.0} us of its processors each", (processor(pids)? - before) / count as f64))
}
