//! A file that is put aside when it is full: as `NAME-TIME.EXT`, of which the oldest go, and the rest may be compressed.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

/// How old files are named: this is UTC.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%3f";

/// When a file is full, and what becomes of old ones.
#[derive(Clone, Debug)]
pub struct Limits {
    /// In bytes; 0: it never is.
    pub size: u64,
    /// 0: for ever.
    pub age: Duration,
    /// 0: all of them.
    pub backups: usize,
    pub compress: bool,
}

/// The file, opened for appending.
pub struct Rotated {
    path: PathBuf,
    limits: Limits,
    file: File,
    size: u64,
    /// Held by who tidies up.
    tidying: Arc<Mutex<()>>,
}

impl Rotated {
    /// Opens the file, or makes it (with the folder that it is in), for its owner only.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Rotated> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = append(path, 0o600)?;
        let size = file.metadata()?.len();
        Ok(Rotated { path: path.into(), limits, file, size, tidying: Arc::default() })
    }

    /// Writes lines in order, and as few times as may be. Answers for each of them whether it is there.
    pub fn write(&mut self, lines: &[Vec<u8>], now: Timestamp) -> Vec<Result<(), String>> {
        let mut results = Vec::with_capacity(lines.len());
        let mut pending = Vec::new();
        let mut count = 0;
        for line in lines {
            let limit = self.limits.size;
            if limit > 0 && line.len() as u64 > limit {
                self.put(&mut pending, &mut count, &mut results);
                results.push(Err(format!("write length {} exceeds maximum file size {limit}", line.len())));
                continue;
            }
            if limit > 0 && self.size + (pending.len() + line.len()) as u64 > limit {
                self.put(&mut pending, &mut count, &mut results);
                if self.size > 0
                    && let Err(error) = self.rotate(now)
                {
                    results.push(Err(error.to_string()));
                    continue;
                }
            }
            pending.extend_from_slice(line);
            count += 1;
        }
        self.put(&mut pending, &mut count, &mut results);
        results
    }

    fn put(&mut self, pending: &mut Vec<u8>, count: &mut usize, results: &mut Vec<Result<(), String>>) {
        let result = self.file.write_all(pending).map_err(|e| e.to_string());
        // What was written before it failed takes room, too.
        self.size = match result {
            Ok(()) => self.size + pending.len() as u64,
            Err(_) => self.file.metadata().map_or(self.size, |m| m.len()),
        };
        results.extend(std::iter::repeat_n(result, *count));
        pending.clear();
        *count = 0;
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let old = match fs::metadata(&self.path) {
            Ok(old) => old,
            // Somebody took it away: a new one is begun all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.file.metadata()?,
            Err(error) => return Err(error),
        };
        let mut at = now;
        let mut aside = backup(&self.path, at);
        while aside.exists() || zipped(&aside).exists() {
            at += Duration::from_millis(1);
            aside = backup(&self.path, at);
        }
        match fs::rename(&self.path, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = append(&self.path, old.mode() & 0o777)?;
        let _ = std::os::unix::fs::fchown(&self.file, Some(old.uid()), Some(old.gid()));
        self.size = self.file.metadata()?.len();
        let (path, limits, tidying) = (self.path.clone(), self.limits.clone(), self.tidying.clone());
        // Compressing takes long, and requests wait for what is written.
        std::thread::spawn(move || {
            let _one = tidying.lock();
            if let Err(error) = tidy(&path, &limits, now) {
                tracing::warn!(path = %path.display(), %error, "old audit logs cannot be tidied up");
            }
        });
        Ok(())
    }
}

fn append(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(mode).open(path)
}

/// What an old file's name begins and ends with.
fn affixes(path: &Path) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.rfind('.') {
        Some(dot) => (format!("{}-", &name[..dot]), name[dot..].to_string()),
        None => (format!("{name}-"), String::new()),
    }
}

fn backup(path: &Path, at: Timestamp) -> PathBuf {
    let (prefix, suffix) = affixes(path);
    path.with_file_name(format!("{prefix}{}{suffix}", at.strftime(STAMP)))
}

fn zipped(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".gz");
    name.into()
}

/// Since when a file is an old one of this one.
fn since(name: &str, prefix: &str, suffix: &str) -> Option<Timestamp> {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let text = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    // `2026-01-02T03-04-05.678`: the time's parts are apart by what file names may have.
    let (date, time) = text.split_once('T')?;
    format!("{date}T{}Z", time.replace('-', ":")).parse().ok()
}

/// Removes old files that are too many or too old, and compresses the others.
fn tidy(path: &Path, limits: &Limits, now: Timestamp) -> io::Result<()> {
    let (prefix, suffix) = affixes(path);
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut old: Vec<(Timestamp, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(at) = since(&entry.file_name().to_string_lossy(), &prefix, &suffix) {
            old.push((at, entry.path()));
        }
    }
    old.sort_by(|a, b| b.cmp(a));
    let mut kept: Vec<Timestamp> = Vec::new();
    for (at, file) in old {
        if kept.last() != Some(&at) {
            kept.push(at);
        }
        let too_many = limits.backups > 0 && kept.len() > limits.backups;
        let too_old = !limits.age.is_zero() && now.duration_since(at).unsigned_abs() > limits.age && at < now;
        if too_many || too_old {
            fs::remove_file(&file)?;
        } else if limits.compress && file.extension().is_none_or(|e| e != "gz") {
            compress(&file)?;
        }
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let to = zipped(file);
    let mode = fs::metadata(file)?.mode() & 0o777;
    let done = (|| {
        let out = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&to)?;
        let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
        io::copy(&mut File::open(file)?, &mut encoder)?;
        encoder.finish()?.sync_all()
    })();
    match done {
        Ok(()) => fs::remove_file(file),
        Err(error) => {
            let _ = fs::remove_file(&to);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("knarr-audit-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a folder");
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(&self.0).expect("a folder").map(|e| e.expect("a file").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn limits(size: u64, backups: usize, days: u64, compress: bool) -> Limits {
        Limits { size, backups, age: Duration::from_secs(days * 86400), compress }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_full_file_is_put_aside() {
        let folder = Folder::new("full");
        let path = folder.0.join("deep/audit.log");
        let mut log = Rotated::open(&path, limits(10, 0, 0, false)).expect("a log");
        let now = at("2026-01-02T03:04:05.678Z");
        let lines = [b"12345\n".to_vec(), b"789\n".to_vec(), b"next\n".to_vec(), b"too long for it\n".to_vec(), b"end\n".to_vec()];
        let results = log.write(&lines, now);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, true, false, true]);
        assert_eq!(results[3], Err("write length 16 exceeds maximum file size 10".into()));
        assert_eq!(fs::read_to_string(&path).expect("the log"), "next\nend\n");
        let aside = path.with_file_name("audit-2026-01-02T03-04-05.678.log");
        assert_eq!(fs::read_to_string(&aside).expect("an old log"), "12345\n789\n");
        assert_eq!(fs::metadata(&path).expect("the log").mode() & 0o777, 0o600);
        drop(log);
        let mut log = Rotated::open(&path, limits(10, 0, 0, false)).expect("a log");
        assert!(log.write(&[b"more\n".to_vec()], now)[0].is_ok(), "what is there counts after a start");
        assert_eq!(fs::read_to_string(&path).expect("the log"), "more\n");
        assert!(path.with_file_name("audit-2026-01-02T03-04-05.679.log").exists(), "no old log is written over");
    }

    #[test]
    fn without_a_limit_it_grows() {
        let folder = Folder::new("grows");
        let path = folder.0.join("audit");
        let mut log = Rotated::open(&path, limits(0, 1, 1, true)).expect("a log");
        for _ in 0..3 {
            assert!(log.write(&[vec![b'x'; 4096]], Timestamp::now())[0].is_ok());
        }
        assert_eq!((folder.names(), fs::metadata(&path).expect("the log").len()), (vec!["audit".to_string()], 3 * 4096));
    }

    #[test]
    fn old_files_go_or_are_compressed() {
        let folder = Folder::new("old");
        let path = folder.0.join("audit.log");
        let put = |name: &str| fs::write(folder.0.join(name), name).expect("written");
        let all = [
            "audit-2026-01-01T00-00-00.000.log.gz", // too old
            "audit-2026-01-20T00-00-00.000.log",    // one too many
            "audit-2026-01-28T00-00-00.000.log.gz",
            "audit-2026-01-29T00-00-00.000.log",
            "audit-elsewhere.log",
            "audit.log",
            "other-2026-01-01T00-00-00.000.log",
        ];
        all.iter().for_each(|name| put(name));
        tidy(&path, &limits(10, 2, 10, true), at("2026-01-30T00:00:00Z")).expect("tidied up");
        assert_eq!(
            folder.names(),
            ["audit-2026-01-28T00-00-00.000.log.gz", "audit-2026-01-29T00-00-00.000.log.gz", "audit-elsewhere.log", "audit.log", "other-2026-01-01T00-00-00.000.log"]
        );
        let mut text = String::new();
        let file = File::open(folder.0.join("audit-2026-01-29T00-00-00.000.log.gz")).expect("the file");
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "audit-2026-01-29T00-00-00.000.log");
        tidy(&path, &limits(10, 0, 1, false), at("2026-01-30T00:00:00.001Z")).expect("tidied up");
        assert_eq!(folder.names(), ["audit-elsewhere.log", "audit.log", "other-2026-01-01T00-00-00.000.log"]);
    }
}
