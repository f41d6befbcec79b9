//! Mounting and unmounting.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};

use crate::error::{Context, Error, Result};

/// The layers of an overlay, and where its changes go.
#[derive(Clone, Debug)]
pub struct Overlay<'a> {
    /// Read-only layers, the topmost first.
    pub lower: &'a [PathBuf],
    /// Where changes are kept.
    pub upper: &'a Path,
    /// The kernel's scratch directory, on the file system of `upper`.
    pub work: &'a Path,
}

/// The kernel takes at most a page of options from `mount(2)`.
const OPTIONS_MAX: usize = 4095;

/// Mounts an overlay. Many long layer paths need a kernel with `lowerdir+` (6.5).
pub fn overlay(layers: &Overlay<'_>, target: &Path) -> Result<()> {
    let mut data = String::from("lowerdir=");
    for (n, lower) in layers.lower.iter().enumerate() {
        if n > 0 {
            data.push(':');
        }
        data.push_str(&escaped(lower));
    }
    data.push_str(&format!(",upperdir={},workdir={}", escaped(layers.upper), escaped(layers.work)));
    // An inode index would refuse layers that another overlay uses too.
    let index = std::fs::read_to_string("/sys/module/overlay/parameters/index").is_ok_and(|v| v.starts_with('Y'));
    if index {
        data.push_str(",index=off");
    }
    if data.len() > OPTIONS_MAX {
        return overlay_by_parts(layers, target, index).context("mount overlay on", target);
    }
    let data = CString::new(data).map_err(|_| Error::new("mount overlay on", target, Errno::INVAL))?;
    rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), data.as_c_str()).context("mount overlay on", target)
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn overlay_by_parts(layers: &Overlay<'_>, target: &Path, index: bool) -> rustix::io::Result<()> {
    let fs: OwnedFd = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in layers.lower {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", lower.as_path())?;
    }
    rustix::mount::fsconfig_set_string(&fs, "upperdir", layers.upper)?;
    rustix::mount::fsconfig_set_string(&fs, "workdir", layers.work)?;
    if index {
        rustix::mount::fsconfig_set_string(&fs, "index", "off")?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes `source` visible at `target`, with what is mounted below it when `recursive`.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let done = match recursive {
        true => rustix::mount::mount_bind_recursive(source, target),
        false => rustix::mount::mount_bind(source, target),
    };
    done.context("bind mount on", target)
}

/// Turns an existing bind mount read-only.
pub fn remount_read_only(target: &Path) -> Result<()> {
    rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").context("remount read-only", target)
}

/// Mounts a tmpfs without devices, set-uid programs or executables.
/// `options` are the file system's, for example `size=64m,mode=1777`.
pub fn tmpfs(target: &Path, options: &str) -> Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let options = CString::new(options).map_err(|_| Error::new("mount tmpfs on", target, Errno::INVAL))?;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, options.as_c_str()).context("mount tmpfs on", target)
}

/// Mounts a new view of proc.
pub fn proc(target: &Path) -> Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("proc", target, "proc", flags, None).context("mount proc on", target)
}

/// How mounts and unmounts travel between copies of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
    Shared,
}

/// Changes the propagation of a mount, and of all below it when `recursive`.
pub fn set_propagation(target: &Path, propagation: Propagation, recursive: bool) -> Result<()> {
    let mut flags = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Shared => MountPropagationFlags::SHARED,
    };
    if recursive {
        flags |= MountPropagationFlags::REC;
    }
    rustix::mount::mount_change(target, flags).context("change propagation of", target)
}

/// Unmounts lazily: it vanishes at once, the kernel lets go when nothing uses it. What is not mounted
/// or not there is fine. Several mounts on top of each other go all.
pub fn unmount(target: &Path) -> Result<()> {
    // The bound is only against a mount that somebody keeps making anew.
    for _ in 0..64 {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(errno) => return Err(Error::new("unmount", target, errno)),
        }
    }
    Ok(())
}

/// The mount points at and below a directory, the deepest first.
pub fn below(root: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescaped(field)))
        .filter(|point| point.starts_with(root))
        .collect();
    // The table lists a mount after the one it is mounted on.
    points.reverse();
    Ok(points)
}

/// Unmounts everything at and below a directory.
pub fn unmount_below(root: &Path) -> Result<()> {
    for point in below(root)? {
        unmount(&point)?;
    }
    Ok(())
}

/// The same, but for what is mounted on `root` itself: the disk that a directory is on stays where it is.
pub fn unmount_inside(root: &Path) -> Result<()> {
    for point in below(root)?.into_iter().filter(|point| point != root) {
        unmount(&point)?;
    }
    Ok(())
}

/// Whether something is mounted exactly here.
pub fn is_mount_point(path: &Path) -> bool {
    below(path).is_ok_and(|points| points.iter().any(|p| p == path))
}

/// The kernel writes space, tab, newline and backslash of paths as three octal digits.
fn unescaped(field: &str) -> String {
    let mut out = Vec::with_capacity(field.len());
    let bytes = field.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match (bytes[i], code) {
            (b'\\', Some(code)) => {
                out.push(code);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes_are_undone() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/plain"), "/plain");
    }

    #[test]
    fn an_overlay_shows_its_layers_and_goes_without_a_trace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let sub = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        // Enough layers that the options do not fit in a page.
        let lower: Vec<PathBuf> = (0..70).map(|n| sub(&format!("layer-{n:-<60}"))).collect();
        std::fs::write(lower[0].join("file"), "top").unwrap();
        std::fs::write(lower[9].join("file"), "hidden").unwrap();
        let (upper, work, merged) = (sub("upper"), sub("work"), sub("merged"));
        overlay(&Overlay { lower: &lower, upper: &upper, work: &work }, &merged).unwrap();
        assert_eq!(std::fs::read_to_string(merged.join("file")).unwrap(), "top");
        assert!(is_mount_point(&merged));
        unmount_below(dir.path()).unwrap();
        assert!(!is_mount_point(&merged));
        unmount(&merged).unwrap();
    }
}
