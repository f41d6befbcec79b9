//! How fast the disk makes small writes durable: what etcd waits for with each of its own.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Findings;

/// Writes that are tried, and the time that they may take together.
const WRITES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(2);
/// The size of an entry of etcd's log, as its own advice on disks tries it.
const SIZE: usize = 2300;
/// What 99 of 100 should take at most (<https://etcd.io/docs/v3.5/op-guide/hardware/#disks>).
const WANTED: Duration = Duration::from_millis(10);

/// Tells of a disk on which etcd would be slow.
pub fn check(findings: &mut Findings, data_dir: &Path) {
    let Some(dir) = data_dir.ancestors().find(|d| d.is_dir()) else { return };
    match measured(dir) {
        Ok(times) => {
            if let Some(slow) = slowest(times).filter(|t| *t > WANTED) {
                findings.warn("EtcdDisk", text(dir, slow));
            }
        }
        Err(error) => findings.warn("EtcdDisk", format!("writes to {} could not be tried: {error}; etcd will keep its data there", dir.display())),
    }
}

fn text(dir: &Path, slow: Duration) -> String {
    format!(
        "the disk of {} takes {:.1} ms to make a small write durable (99 of 100 writes; etcd wants less than {} ms): elections would be lost under load and writes be slow; \
         put --data-dir on an SSD or NVMe disk of its own, and no other program that writes much beside it",
        dir.display(),
        slow.as_secs_f64() * 1000.0,
        WANTED.as_millis()
    )
}

/// How long each write took, in a file that nobody sees and that is gone afterwards.
fn measured(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".knarr-disk-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let (block, begun) = ([b'x'; SIZE], Instant::now());
    let mut times = Vec::with_capacity(WRITES);
    while times.len() < WRITES && begun.elapsed() < PATIENCE {
        let one = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(one.elapsed());
    }
    Ok(times)
}

/// What 99 of 100 took at most.
fn slowest(mut times: Vec<Duration>) -> Option<Duration> {
    times.sort_unstable();
    let rank = (times.len() * 99).div_ceil(100);
    times.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_hundred_may_be_slow() {
        let millis = |list: &[u64]| list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(slowest(vec![]), None);
        assert_eq!(slowest(millis(&[3])), Some(Duration::from_millis(3)));
        let mut times = millis(&[2; 99]);
        times.push(Duration::from_millis(500));
        assert_eq!(slowest(times.clone()), Some(Duration::from_millis(2)));
        times[7] = Duration::from_millis(40);
        assert_eq!(slowest(times), Some(Duration::from_millis(40)));
        assert_eq!(slowest(millis(&[1, 2, 90])), Some(Duration::from_millis(90)), "a disk that managed three in two seconds");
        assert!(text(Path::new("/var/lib"), Duration::from_micros(12_340)).contains("takes 12.3 ms"));
    }

    #[test]
    fn nothing_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!measured(dir.path()).expect("written").is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }
}
