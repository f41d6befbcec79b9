//! Log files in the CRI's format: `<time> stdout F <line>`, and `P` for a line cut at 16 KiB or that
//! its writer never finished.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use crate::time;

/// The longest piece of a line, in bytes.
const MAX_LINE: usize = 16 << 10;

/// Which of a container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        }
    }
}

/// One container's log.
#[derive(Default)]
pub struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    /// Beginnings of lines, an output each.
    unfinished: [Vec<u8>; 2],
}

impl Log {
    /// Appends to a file that is made when missing. Without a path nothing is kept.
    pub fn open(path: Option<PathBuf>) -> std::io::Result<Self> {
        let mut log = Self { path, ..Self::default() };
        log.reopen()?;
        Ok(log)
    }

    /// Opens the path anew, after a rotation moved the file away.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        if let Some(path) = &self.path {
            use std::os::unix::fs::OpenOptionsExt;
            self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
        }
        Ok(())
    }

    /// Takes what a container wrote.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let unfinished = &mut self.unfinished[stream as usize];
        let stamp = time::rfc3339(time::now());
        let mut out = Vec::with_capacity(bytes.len() + 64);
        while !bytes.is_empty() {
            let room = MAX_LINE - unfinished.len();
            let newline = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            let (piece, rest, tag) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..], b"F "),
                None if bytes.len() > room => (&bytes[..room], &bytes[room..], b"P "),
                None => {
                    unfinished.extend_from_slice(bytes);
                    break;
                }
            };
            line(&mut out, &stamp, stream, tag, &[unfinished, piece]);
            unfinished.clear();
            bytes = rest;
        }
        if unfinished.is_empty() {
            unfinished.shrink_to(0);
        }
        // A full disk loses log lines; it must not stop the container.
        let _ = file.write_all(&out);
    }

    /// The container will write no more to this stream.
    pub fn finish(&mut self, stream: Stream) {
        let unfinished = std::mem::take(&mut self.unfinished[stream as usize]);
        let Some(file) = self.file.as_mut().filter(|_| !unfinished.is_empty()) else { return };
        let mut out = Vec::with_capacity(unfinished.len() + 64);
        line(&mut out, &time::rfc3339(time::now()), stream, b"P ", &[&unfinished]);
        let _ = file.write_all(&out);
    }
}

fn line(out: &mut Vec<u8>, stamp: &[u8], stream: Stream, tag: &[u8], pieces: &[&[u8]]) {
    out.extend_from_slice(stamp);
    out.extend_from_slice(stream.name());
    out.extend_from_slice(tag);
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_times(path: &std::path::Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(Some(path.clone())).unwrap();
        log.write(Stream::Stdout, b"one\ntw");
        log.write(Stream::Stderr, b"oops\n");
        log.write(Stream::Stdout, b"o\n\nthree");
        log.finish(Stream::Stdout);
        assert_eq!(without_times(&path), ["stdout F one", "stderr F oops", "stdout F two", "stdout F ", "stdout P three"]);
    }

    #[test]
    fn long_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(Some(path.clone())).unwrap();
        let long = vec![b'a'; MAX_LINE * 2 + 5];
        for piece in long.chunks(1000) {
            log.write(Stream::Stdout, piece);
        }
        log.write(Stream::Stdout, b"\n");
        let exact = vec![b'b'; MAX_LINE];
        log.write(Stream::Stdout, &exact);
        log.write(Stream::Stdout, b"\n");
        let lines = without_times(&path);
        let shape: Vec<(&str, usize)> = lines.iter().map(|l| (&l[..9], l.len() - 9)).collect();
        assert_eq!(shape, [("stdout P ", MAX_LINE), ("stdout P ", MAX_LINE), ("stdout F ", 5), ("stdout F ", MAX_LINE)]);
    }

    #[test]
    fn rotation_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = Log::open(Some(path.clone())).unwrap();
        log.write(Stream::Stdout, b"before\n");
        std::fs::rename(&path, &old).unwrap();
        log.write(Stream::Stdout, b"still there\n");
        log.reopen().unwrap();
        log.write(Stream::Stdout, b"after\n");
        assert_eq!(without_times(&old).len(), 2);
        assert_eq!(without_times(&path), ["stdout F after"]);
    }
}
