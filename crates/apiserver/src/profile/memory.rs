//! What the memory is used for: what the caches hold, by resource and form, and the rest.
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime};

use super::report::{Amount, Report};
use crate::cache::Cache;

pub fn report(cache: &Cache) -> io::Result<Report> {
    let mut amounts = BTreeMap::new();
    let mut known = 0;
    for resource in cache.resources() {
        let name = resource.prefix.trim_start_matches("/registry/").trim_end_matches('/').to_string();
        for (form, count, bytes) in resource.held() {
            known += bytes;
            if count > 0 {
                amounts.insert(vec!["watch cache".into(), name.clone().into(), form.into()], Amount { count, sum: bytes });
            }
        }
    }
    let all = anonymous(&std::fs::read_to_string("/proc/self/status")?);
    amounts.insert(vec!["other".into()], Amount { count: 0, sum: all.saturating_sub(known) });
    Ok(Report { file: "heap", kinds: [("inuse_objects", "count"), ("inuse_space", "bytes")], taken: SystemTime::now(), duration: Duration::ZERO, amounts })
}

/// Bytes of memory that no file stands for, by `/proc/PID/status`.
fn anonymous(status: &str) -> u64 {
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).map(|rest| rest.trim().trim_end_matches(" kB"));
    kilobytes.and_then(|k| k.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_file_stands_for() {
        assert_eq!(anonymous("VmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t     1 kB\n"), 1234 << 10);
    }
}
