//! Paths below a root that somebody else may fill with symbolic links: they are resolved as if the
//! root were `/`, so nothing outside is ever reached.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

fn root_fd(root: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("open", root)
}

fn open_at(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    // The kernel gives up when something moves meanwhile; trying again is its advice.
    for _ in 0..32 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a file for reading, as a process whose root is `root` would.
pub fn open(root: &Path, path: &Path) -> Result<File> {
    let dir = root_fd(root)?;
    // Nonblocking: a FIFO must not hold us.
    open_at(&dir, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map(File::from).context("open", root.join(path))
}

/// Reads a whole regular file of at most `limit` bytes. `None` when there is none.
pub fn read(root: &Path, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match open(root, path) {
        Ok(file) => file,
        Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    if !file.metadata().context("stat", root.join(path))?.is_file() {
        return Err(Error::new("read", root.join(path), Errno::INVAL));
    }
    file.take(limit).read_to_end(&mut bytes).context("read", root.join(path))?;
    Ok(Some(bytes))
}

/// Makes a directory and its parents, with mode 0755. What is there already is left alone.
pub fn create_dir_all(root: &Path, path: &Path) -> Result<()> {
    let mut at = root_fd(root)?;
    let whole = || root.join(path);
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => Path::new(name),
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(Error::new("create", whole(), Errno::INVAL)),
        };
        match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // A link in the middle: let the kernel resolve it from the root on.
            Err(Errno::EXIST) if rustix::fs::readlinkat(&at, name, Vec::new()).is_ok() => {
                let dir = root_fd(root)?;
                open_at(&dir, path, OFlags::PATH | OFlags::DIRECTORY).context("create", whole())?;
                return Ok(());
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::new("create", whole(), errno)),
        }
        at = open_at(&at, name, OFlags::PATH | OFlags::DIRECTORY).context("create", whole())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("secret"), "inside").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("etc/up")).unwrap();
        std::os::unix::fs::symlink("/secret", root.join("etc/abs")).unwrap();
        std::os::unix::fs::symlink("/etc/nothing", root.join("etc/dangling")).unwrap();
        for link in ["etc/up", "/etc/abs", "/../../secret"] {
            assert_eq!(read(&root, Path::new(link), 100).unwrap().unwrap(), b"inside", "{link}");
        }
        assert!(read(&root, Path::new("etc/dangling"), 100).unwrap().is_none());
        assert!(read(&root, Path::new("etc"), 100).is_err(), "a directory is no file");
    }

    #[test]
    fn directories_are_made_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("link")).unwrap();
        create_dir_all(&root, Path::new("/a/b/c")).unwrap();
        create_dir_all(&root, Path::new("/a/b/c")).unwrap();
        assert!(root.join("a/b/c").is_dir());
        assert!(create_dir_all(&root, Path::new("/link/made")).is_err());
        assert!(!dir.path().join("made").exists());
    }
}
