//! Records of a container's start and end, in its bundle. They are how a restarted runtime learns what
//! happened while nobody asked.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A container's first process has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub pid: i32,
    /// Nanoseconds since 1970.
    pub at: i64,
}

/// A container's first process has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 and the signal's number when one ended it.
    pub code: i32,
    /// The kernel killed something in the container for lack of memory.
    pub oom: bool,
    /// Nanoseconds since 1970.
    pub at: i64,
}

const START: &str = "start.json";
const EXIT: &str = "exit.json";

fn write(bundle: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    // A rename, so that nobody reads half a record.
    let next = bundle.join(format!("{name}.next"));
    std::fs::write(&next, serde_json::to_vec(value)?)?;
    std::fs::rename(next, bundle.join(name))
}

fn read<T: for<'a> Deserialize<'a>>(bundle: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&std::fs::read(bundle.join(name)).ok()?).ok()
}

impl Start {
    pub fn save(&self, bundle: &Path) -> io::Result<()> {
        write(bundle, START, self)
    }

    pub fn load(bundle: &Path) -> Option<Self> {
        read(bundle, START)
    }
}

impl Exit {
    pub fn save(&self, bundle: &Path) -> io::Result<()> {
        write(bundle, EXIT, self)
    }

    pub fn load(bundle: &Path) -> Option<Self> {
        read(bundle, EXIT)
    }
}
