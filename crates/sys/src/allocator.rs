//! Which allocator a process of this binary uses: the system's where it is small and lives by the pod, mimalloc elsewhere.
//!
//! With glibc's, nearly half of what an API server under load does is allocation, and what a burst has taken does not come
//! back. A shim's whole private memory, on the other hand, is less than what mimalloc needs for itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use mimalloc::MiMalloc;
use rustix::fs::{Mode, OFlags};

/// The first arguments of processes that use the system's allocator.
const SMALL: [&[u8]; 3] = [b"shim", b"echo", b"sleep"];

/// The allocator of whatever process this is, to be declared as the global one.
pub struct ByProcess;

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const SYSTEM: u8 = 2;
static CHOICE: AtomicU8 = AtomicU8::new(UNKNOWN);

fn system() -> bool {
    match CHOICE.load(Ordering::Relaxed) {
        UNKNOWN => choose(),
        choice => choice == SYSTEM,
    }
}

/// At a process's first allocation, when it has one thread. Allocates nothing itself.
#[cold]
fn choose() -> bool {
    let mut line = [0; 4096];
    let read = rustix::fs::open(c"/proc/self/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).and_then(|file| rustix::io::read(file, &mut line));
    let small = is_small(&line[..read.unwrap_or(0)]);
    CHOICE.store(if small { SYSTEM } else { OURS }, Ordering::Relaxed);
    small
}

/// `line` is as in `/proc/self/cmdline`: a zero after each argument.
fn is_small(line: &[u8]) -> bool {
    line.split(|byte| *byte == 0).nth(1).is_some_and(|first| SMALL.contains(&first))
}

// SAFETY: both allocators keep the trait's contract, and a process uses one of them from its first allocation to its end.
unsafe impl GlobalAlloc for ByProcess {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the allocator asks for; the same below.
        unsafe { if system() { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { if system() { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { if system() { System.dealloc(pointer, layout) } else { MiMalloc.dealloc(pointer, layout) } }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe { if system() { System.realloc(pointer, layout, size) } else { MiMalloc.realloc(pointer, layout, size) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_live_by_the_pod_are_small() {
        assert!(is_small(b"/var/lib/knarr/bin/knarr-1\0shim\0id\0/run/dir\0"));
        assert!(is_small(b"/knarr\0sleep\0infinity\0"));
        for line in [&b"knarr\0server\0"[..], b"shim\0", b"", b"knarr\0up\0shim\0", b"knarr\0shimmer\0"] {
            assert!(!is_small(line), "{line:?}");
        }
    }

    #[test]
    fn the_choice_stays() {
        assert_eq!(system(), system());
        assert_ne!(CHOICE.load(Ordering::Relaxed), UNKNOWN);
    }
}
