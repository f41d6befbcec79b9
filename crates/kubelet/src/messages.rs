//! Termination messages: the file that a container wrote, or the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use cri::v1::ContainerStatus;

use crate::pod::label;

const MAX_MESSAGE: u64 = 4096;
const MAX_LOG: u64 = 2048;
const MAX_LINES: usize = 80;

/// The message of a container that has ended; empty when there is none.
pub fn read(status: &ContainerStatus, log_dir: &Path) -> String {
    let path = status.annotations.get(label::MESSAGE_PATH).map(String::as_str).unwrap_or_default();
    let mount = status.mounts.iter().find(|m| !path.is_empty() && m.container_path == path);
    let mut message = mount.map(|m| tail(Path::new(&m.host_path), MAX_MESSAGE)).unwrap_or_default();
    let fall_back = status.annotations.get(label::MESSAGE_POLICY).is_some_and(|p| p == "FallbackToLogsOnError");
    if message.is_empty() && fall_back && status.exit_code != 0 && !status.log_path.is_empty() {
        let log = Path::new(&status.log_path);
        let text = tail(&if log.is_absolute() { log.to_path_buf() } else { log_dir.join(log) }, 64 << 10);
        let lines: Vec<&str> = text.lines().collect();
        let mut last = String::new();
        for line in &lines[lines.len().saturating_sub(MAX_LINES)..] {
            // Time, stream, whether the line goes on, text.
            let mut parts = line.splitn(4, ' ').skip(2);
            if let (Some(tag), Some(text)) = (parts.next(), parts.next()) {
                last.push_str(text);
                if !tag.starts_with('P') {
                    last.push('\n');
                }
            }
        }
        let mut start = last.len().saturating_sub(MAX_LOG as usize);
        while !last.is_char_boundary(start) {
            start += 1;
        }
        message = last[start..].to_string();
    }
    message
}

fn tail(path: &Path, limit: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use cri::v1::Mount;

    use super::*;

    #[test]
    fn the_file_comes_first_then_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        std::fs::write(&file, "").unwrap();
        std::fs::write(dir.path().join("0.log"), "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two words\n").unwrap();
        let mut status = ContainerStatus {
            exit_code: 1,
            log_path: "0.log".into(),
            mounts: vec![Mount { container_path: "/m".into(), host_path: file.display().to_string(), ..Default::default() }],
            annotations: [(label::MESSAGE_PATH, "/m"), (label::MESSAGE_POLICY, "FallbackToLogsOnError")].map(|(k, v)| (k.to_string(), v.to_string())).into(),
            ..Default::default()
        };
        assert_eq!(read(&status, dir.path()), "one\ntwo words\n");
        std::fs::write(dir.path().join("0.log"), "2026-01-01T00:00:00Z stdout P DO\n2026-01-01T00:00:00Z stdout P NE\n").unwrap();
        assert_eq!(read(&status, dir.path()), "DONE", "no newline was written, so there is none");
        status.exit_code = 0;
        assert_eq!(read(&status, dir.path()), "");
        std::fs::write(&file, "bye").unwrap();
        assert_eq!(read(&status, dir.path()), "bye");
    }
}
