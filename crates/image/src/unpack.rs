//! One layer's archive → one directory that overlayfs can use as a lower directory.
//!
//! The directory is private to us while this runs. Nothing in the archive is trusted: every path is
//! walked component by component without ever following a symbolic link through the kernel, so an
//! entry cannot land outside.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, linkat,
    lsetxattr, makedev, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

const OPAQUE: &str = "trusted.overlay.opaque";

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive, or what is compressed in it.
    #[error("{0}")]
    Corrupt(String),
    /// The disk.
    #[error("{path}: {source}")]
    Disk { path: String, source: io::Error },
}

type Result<T> = std::result::Result<T, UnpackError>;

fn corrupt(error: impl std::fmt::Display) -> UnpackError {
    UnpackError::Corrupt(error.to_string())
}

/// Reading the source fails because of what is in it, unless the system says otherwise.
fn reading(error: io::Error) -> UnpackError {
    match error.raw_os_error() {
        Some(_) => UnpackError::Disk { path: "reading the layer".to_string(), source: error },
        None => corrupt(error),
    }
}

/// Unpacks into the existing, empty directory `dest`. `lowers` are the layers below, topmost first:
/// directories that the archive only implies get their owner and mode from there. Returns the bytes
/// of all files.
pub fn unpack(reader: impl Read, dest: &Path, lowers: &[PathBuf]) -> Result<u64> {
    let root = openat(CWD, dest, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| UnpackError::Disk { path: dest.display().to_string(), source: e.into() })?;
    let mut layer = Layer { root, lowers, parent: None, whiteouts: BTreeSet::new(), directories: Vec::new(), size: 0 };
    let mut archive = Archive::new(reader);
    for entry in archive.entries().map_err(reading)? {
        layer.entry(entry.map_err(reading)?)?;
    }
    // Last, because creating an entry changes its directory's time.
    for (path, seconds) in std::mem::take(&mut layer.directories).into_iter().rev() {
        let components: Vec<&OsStr> = path.iter().map(OsString::as_os_str).collect();
        if let Some((name, parents)) = components.split_last()
            && let Ok(parent) = layer.directory(parents)
        {
            let _ = set_time(&parent, name, seconds);
        }
    }
    Ok(layer.size)
}

struct Layer<'a> {
    root: OwnedFd,
    lowers: &'a [PathBuf],
    /// The directory of the last entry: archives are written directory by directory.
    parent: Option<(Vec<OsString>, OwnedFd)>,
    whiteouts: BTreeSet<Vec<OsString>>,
    directories: Vec<(Vec<OsString>, i64)>,
    size: u64,
}

impl Layer<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = clean(&raw)?;
        let Some((name, parents)) = path.split_last() else {
            // The root itself.
            if kind.is_dir() {
                let header = entry.header();
                self.attributes_of_root(header.mode().map_err(reading)?, header.uid().unwrap_or(0), header.gid().unwrap_or(0))?;
            }
            return Ok(());
        };
        let at = |e: Errno| UnpackError::Disk { path: String::from_utf8_lossy(&raw).into_owned(), source: e.into() };
        let parents: Vec<&OsStr> = parents.iter().map(OsString::as_os_str).collect();
        let name = name.as_os_str();

        if let Some(rest) = name.as_bytes().strip_prefix(b".wh.") {
            if rest == b".wh..opq" {
                let parent = self.directory(&parents)?;
                return set_opaque(&parent, None).map_err(at);
            }
            if rest.starts_with(b".wh.") {
                return Ok(()); // AUFS's own.
            }
            if rest.is_empty() || rest == b"." || rest == b".." {
                return Err(corrupt(format!("whiteout with a bad name: {}", String::from_utf8_lossy(&raw))));
            }
            let target = OsStr::from_bytes(rest);
            let parent = self.directory(&parents)?;
            return match statat(&parent, target, AtFlags::SYMLINK_NOFOLLOW) {
                // A whiteout is about the layers below; what this layer brings stays.
                Ok(stat) if is_dir(&stat) => set_opaque(&parent, Some(target)).map_err(at),
                Ok(_) => Ok(()),
                Err(Errno::NOENT) => {
                    mknodat(&parent, target, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).map_err(at)?;
                    self.whiteouts.insert(parents.iter().map(|p| p.to_os_string()).chain([target.to_os_string()]).collect());
                    Ok(())
                }
                Err(e) => Err(at(e)),
            };
        }

        let parent = self.directory(&parents)?;
        let mode = entry.header().mode().map_err(reading)? & 0o7777;
        // Some writers leave these blank; a header that is really damaged has a wrong checksum.
        let uid = u32::try_from(entry.header().uid().unwrap_or(0)).map_err(corrupt)?;
        let gid = u32::try_from(entry.header().gid().unwrap_or(0)).map_err(corrupt)?;
        let mtime = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
        let xattrs = xattrs(&mut entry)?;

        let mut was_whiteout = false;
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if kind.is_dir() && is_dir(&stat) => {}
            Ok(_) => {
                was_whiteout = self.whiteouts.remove(path.as_slice());
                self.parent = None;
                remove(&parent, name).map_err(at)?;
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(at(e)),
        }

        let mut device = None;
        match kind {
            EntryType::Directory => {
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(at(e)),
                }
                if was_whiteout {
                    set_opaque(&parent, Some(name)).map_err(at)?;
                }
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(&parent, name, flags, Mode::from_raw_mode(0o600)).map_err(at)?;
                let mut file = File::from(fd);
                let size = io::copy(&mut entry, &mut file).map_err(reading)?;
                if size != entry.size() {
                    return Err(corrupt(format!("{}: unexpected end of file", String::from_utf8_lossy(&raw))));
                }
                self.size += size;
            }
            EntryType::Symlink => {
                let link = entry.link_name_bytes().ok_or_else(|| corrupt("symbolic link without a target"))?;
                symlinkat(OsStr::from_bytes(&link), &parent, name).map_err(at)?;
            }
            EntryType::Link => {
                let link = entry.link_name_bytes().ok_or_else(|| corrupt("hard link without a target"))?;
                let target = clean(&link)?;
                let (target_name, target_parents) = target.split_last().ok_or_else(|| corrupt("hard link to the root"))?;
                let target_parents: Vec<&OsStr> = target_parents.iter().map(OsString::as_os_str).collect();
                let target_parent = self.directory(&target_parents)?;
                linkat(&target_parent, target_name, &parent, name, AtFlags::empty()).map_err(|e| match e {
                    Errno::NOENT => corrupt(format!("hard link to {}, which is not in the layer", String::from_utf8_lossy(&link))),
                    e => at(e),
                })?;
                // The target has its attributes already.
                return Ok(());
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => device = Some(kind),
            other => return Err(corrupt(format!("{}: unsupported type {other:?}", String::from_utf8_lossy(&raw)))),
        }
        if let Some(kind) = device {
            let file_type = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let major = entry.header().device_major().map_err(reading)?.unwrap_or(0);
            let minor = entry.header().device_minor().map_err(reading)?.unwrap_or(0);
            match mknodat(&parent, name, file_type, Mode::from_raw_mode(0o600), makedev(major, minor)) {
                Ok(()) => {}
                // Inside a user namespace devices cannot be made; runtimes bring their own.
                Err(Errno::PERM) => return Ok(()),
                Err(e) => return Err(at(e)),
            }
        }

        chownat(&parent, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
        if kind != EntryType::Symlink {
            // After the owner, because changing it clears set-user-id.
            chmod(&parent, name, mode).map_err(at)?;
        }
        for (key, value) in xattrs {
            match lsetxattr(proc_path(&parent, name), &key, &value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(e) => return Err(at(e)),
            }
        }
        if kind.is_dir() {
            self.directories.push((path, mtime));
        } else {
            set_time(&parent, name, mtime).map_err(at)?;
        }
        Ok(())
    }

    fn attributes_of_root(&self, mode: u32, uid: u64, gid: u64) -> Result<()> {
        let at = |e: Errno| UnpackError::Disk { path: "/".to_string(), source: e.into() };
        let uid = u32::try_from(uid).map_err(corrupt)?;
        let gid = u32::try_from(gid).map_err(corrupt)?;
        chownat(&self.root, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH).map_err(at)?;
        chmod(&self.root, OsStr::new("."), mode & 0o7777).map_err(at)
    }

    /// Opens a directory, making what is missing.
    fn directory(&mut self, path: &[&OsStr]) -> Result<OwnedFd> {
        if let Some((known, fd)) = &self.parent
            && known.iter().map(OsString::as_os_str).eq(path.iter().copied())
        {
            return fd.try_clone().map_err(|e| UnpackError::Disk { path: "/".into(), source: e });
        }
        let fd = self.walk(path)?;
        let copy = fd.try_clone().map_err(|e| UnpackError::Disk { path: "/".into(), source: e })?;
        self.parent = Some((path.iter().map(|p| p.to_os_string()).collect(), copy));
        Ok(fd)
    }

    fn walk(&mut self, path: &[&OsStr]) -> Result<OwnedFd> {
        let text = || path.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>().join("/");
        let at = |e: Errno| UnpackError::Disk { path: text(), source: e.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open_root = || openat(&self.root, ".", flags, Mode::empty()).map_err(at);
        let mut todo: Vec<OsString> = path.iter().rev().map(|p| p.to_os_string()).collect();
        let mut done: Vec<OsString> = Vec::new();
        let mut here = open_root()?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let target = match statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_dir(&stat) => None,
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    Some(readlinkat(&here, &name, Vec::new()).map_err(at)?.into_bytes())
                }
                Ok(stat) if is_whiteout(&stat) => {
                    unlinkat(&here, &name, AtFlags::empty()).map_err(at)?;
                    mkdirat(&here, &name, Mode::from_raw_mode(0o755)).map_err(at)?;
                    chmod(&here, &name, 0o755).map_err(at)?;
                    set_opaque(&here, Some(&name)).map_err(at)?;
                    None
                }
                Ok(_) => return Err(corrupt(format!("{}: not a directory", text()))),
                Err(Errno::NOENT) => {
                    let whole: Vec<&OsStr> = done.iter().map(OsString::as_os_str).chain([name.as_os_str()]).collect();
                    match below(self.lowers, &whole) {
                        Below::Link(target) => Some(target),
                        Below::Directory(stat) => {
                            mkdirat(&here, &name, Mode::from_raw_mode(0o755)).map_err(at)?;
                            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                            chownat(&here, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
                            chmod(&here, &name, stat.st_mode & 0o7777).map_err(at)?;
                            None
                        }
                        Below::Nothing => {
                            mkdirat(&here, &name, Mode::from_raw_mode(0o755)).map_err(at)?;
                            chmod(&here, &name, 0o755).map_err(at)?;
                            None
                        }
                    }
                }
                Err(e) => return Err(at(e)),
            };
            let Some(target) = target else {
                here = openat(&here, &name, flags, Mode::empty()).map_err(at)?;
                done.push(name);
                continue;
            };
            links += 1;
            if links > 40 {
                return Err(corrupt(format!("{}: too many symbolic links", text())));
            }
            let target = PathBuf::from(OsString::from_vec(target));
            let mut base = if target.is_absolute() { Vec::new() } else { std::mem::take(&mut done) };
            for component in target.components() {
                match component {
                    Component::Normal(part) => base.push(part.to_os_string()),
                    // As in a chroot, the parent of the root is the root.
                    Component::ParentDir => drop(base.pop()),
                    _ => {}
                }
            }
            todo.extend(base.into_iter().rev());
            done = Vec::new();
            here = open_root()?;
        }
        Ok(here)
    }
}

enum Below {
    Directory(Stat),
    Link(Vec<u8>),
    Nothing,
}

/// What a path, whose parents are directories, is in the layers below.
fn below(lowers: &[PathBuf], path: &[&OsStr]) -> Below {
    'layers: for lower in lowers {
        let mut here = lower.clone();
        let mut opaque = false;
        for (i, part) in path.iter().enumerate() {
            here.push(part);
            let stat = match statat(CWD, &here, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(_) if opaque => return Below::Nothing,
                Err(_) => continue 'layers,
            };
            if is_dir(&stat) {
                if i + 1 == path.len() {
                    return Below::Directory(stat);
                }
                let mut value = [0u8; 1];
                opaque |= matches!(rustix::fs::lgetxattr(&here, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y');
            } else if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink && i + 1 == path.len() {
                return match readlinkat(CWD, &here, Vec::new()) {
                    Ok(target) => Below::Link(target.into_bytes()),
                    Err(_) => Below::Nothing,
                };
            } else {
                return Below::Nothing;
            }
        }
    }
    Below::Nothing
}

/// The components of an archive's path; what would climb out of the root is an error.
fn clean(path: &[u8]) -> Result<Vec<OsString>> {
    let mut parts: Vec<OsString> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    return Err(corrupt(format!("path leaves the root: {}", String::from_utf8_lossy(path))));
                }
            }
            part if part.contains(&0) => return Err(corrupt("path with a zero byte")),
            part => parts.push(OsStr::from_bytes(part).to_os_string()),
        }
    }
    Ok(parts)
}

fn xattrs<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions().map_err(reading)? else { return Ok(found) };
    for extension in extensions {
        let extension = extension.map_err(reading)?;
        if let Some(key) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
            // Nobody but us speaks to overlayfs.
            && !key.starts_with(b"trusted.")
            && !key.starts_with(b"user.overlay.")
            && !key.is_empty()
            && !key.contains(&0)
        {
            found.push((OsStr::from_bytes(key).to_os_string(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A path for calls that have no `…at` form. The directory is ours alone, and the last component is
/// never followed by the calls that use this.
fn proc_path(parent: impl AsFd, name: &OsStr) -> PathBuf {
    use std::os::fd::AsRawFd;
    Path::new("/proc/self/fd").join(parent.as_fd().as_raw_fd().to_string()).join(name)
}

/// Of anything but a symbolic link.
fn chmod(parent: impl AsFd, name: &OsStr, mode: RawMode) -> rustix::io::Result<()> {
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

fn set_opaque(parent: &OwnedFd, name: Option<&OsStr>) -> rustix::io::Result<()> {
    lsetxattr(proc_path(parent, name.unwrap_or(OsStr::new("."))), OPAQUE, b"y", XattrFlags::empty())
}

fn set_time(parent: &OwnedFd, name: &OsStr, seconds: i64) -> rustix::io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    utimensat(parent, name, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes a tree without following links.
fn remove(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let directory = openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let inner = OsStr::from_bytes(entry.file_name().to_bytes());
        if inner != "." && inner != ".." {
            remove(&directory, inner)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
