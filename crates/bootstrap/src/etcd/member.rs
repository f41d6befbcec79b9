//! One member: which program it is, where its files are, and with which flags it runs.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};

use super::certs;

/// Members talk this often, and elect a leader when they have not heard of one for ten times that.
const HEARTBEAT: &str = "50";
const ELECTION: &str = "500";

/// The program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its version: major and minor.
    pub version: (u32, u32),
    /// What it says its version is.
    pub text: String,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not on PATH.
    #[error("etcd is not installed: install it (apt-get install etcd-server), or name the program by --etcd-program")]
    NotFound,
    /// It does not run, or is something else.
    #[error("{} is not etcd: {why}", .path.display())]
    NotEtcd {
        /// What was tried.
        path: PathBuf,
        /// What came of it.
        why: String,
    },
    /// It is too old.
    #[error("{} is etcd {text}: 3.4 or newer is needed, for members join as learners", .path.display())]
    TooOld {
        /// What was found.
        path: PathBuf,
        /// Its version.
        text: String,
    },
}

/// Finds etcd: the program that is named, or the first one on PATH. Of 3.4 it warns.
pub async fn find_program(named: Option<&Path>) -> Result<Program, ProgramError> {
    let found = match named {
        Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.into()),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let usual = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from);
            std::env::split_paths(&path).chain(usual).map(|dir| dir.join("etcd")).find(|file| file.is_file()).ok_or(ProgramError::NotFound)?
        }
    };
    let not = |why: String| ProgramError::NotEtcd { path: found.clone(), why };
    let asked = tokio::process::Command::new(&found).arg("--version").stdin(Stdio::null()).output().await.map_err(|e| not(e.to_string()))?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let Some((text, version)) = version(&said) else {
        return Err(not(format!("asked for its version, it says {:?}", said.lines().next().unwrap_or_default())));
    };
    if version < (3, 4) {
        return Err(ProgramError::TooOld { path: found, text });
    }
    if version == (3, 4) {
        tracing::warn!("{} is etcd {text}: 3.4 is no longer maintained upstream; it works, 3.5 or newer is better", found.display());
    }
    Ok(Program { path: found, version, text })
}

fn version(said: &str) -> Option<(String, (u32, u32))> {
    let text = said.lines().find_map(|line| line.strip_prefix("etcd Version:"))?.trim();
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((text.to_owned(), (parts.next()??, parts.next()??)))
}

/// A member of this machine.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name: the node's.
    pub name: String,
    /// Where other machines reach it.
    pub address: Ipv4Addr,
    /// For clients, on loopback too.
    pub client_port: u16,
    /// For other members.
    pub peer_port: u16,
    /// What it keeps.
    pub data: PathBuf,
    /// Where its log and what is noted of it are.
    pub dir: PathBuf,
    /// The cluster's certificates; etcd's are below it.
    pub pki: PathBuf,
}

/// What is noted of a member, besides what it keeps itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Note {
    /// The id that it got when it was added.
    pub id: Option<u64>,
    /// Where clients reach the others.
    pub others: Vec<String>,
}

impl Member {
    /// Where other members reach it.
    pub fn peer_url(&self) -> String {
        format!("https://{}:{}", self.address, self.peer_port)
    }

    /// Where clients on other machines reach it.
    pub fn client_url(&self) -> String {
        format!("https://{}:{}", self.address, self.client_port)
    }

    /// Where clients on this machine reach it.
    pub fn local_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.client_port)
    }

    /// Whether it has run before.
    pub fn has_data(&self) -> bool {
        self.data.join("member").exists()
    }

    /// Its process's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn note_path(&self) -> PathBuf {
        self.dir.join("member.json")
    }

    /// What was noted; nothing if nothing was.
    pub fn note(&self) -> Note {
        std::fs::read(self.note_path()).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Notes it.
    pub fn write_note(&self, note: &Note) -> Result<(), certs::CertError> {
        let text = serde_json::to_string_pretty(note).unwrap_or_default();
        certs::write(&self.note_path(), &text, 0o600)
    }

    /// The flags. `initial` is the list of members that a process without data begins with, and whether they run already.
    pub fn arguments(&self, initial: Option<(&str, bool)>) -> Vec<OsString> {
        let pki = |name: &str| self.pki.join("etcd").join(name).into_os_string();
        let mut all: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            all.push(flag);
        };
        add("name", self.name.clone().into());
        add("data-dir", self.data.clone().into_os_string());
        add("listen-client-urls", format!("{},{}", self.local_url(), self.client_url()).into());
        add("advertise-client-urls", self.client_url().into());
        add("listen-peer-urls", self.peer_url().into());
        add("initial-advertise-peer-urls", self.peer_url().into());
        for (flag, file) in [("cert-file", "server.crt"), ("key-file", "server.key"), ("trusted-ca-file", "ca.crt")] {
            add(flag, pki(file));
        }
        for (flag, file) in [("peer-cert-file", "peer.crt"), ("peer-key-file", "peer.key"), ("peer-trusted-ca-file", "ca.crt")] {
            add(flag, pki(file));
        }
        for (flag, value) in [("client-cert-auth", "true"), ("peer-client-cert-auth", "true"), ("heartbeat-interval", HEARTBEAT), ("election-timeout", ELECTION), ("pre-vote", "true"), ("snapshot-count", "10000"), ("logger", "zap")] {
            add(flag, value.into());
        }
        if let Some((list, existing)) = initial {
            add("initial-cluster", list.into());
            add("initial-cluster-state", if existing { "existing" } else { "new" }.into());
            if !existing {
                // So that no member of an earlier cluster of this machine's takes this one for its own.
                add("initial-cluster-token", format!("{}-{:016x}", self.name, rand::random::<u64>()).into());
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("etcd Version: 3.4.23\nGit SHA: Not provided\n"), Some(("3.4.23".into(), (3, 4))));
        assert_eq!(version("etcd Version: 3.6.0-rc.1\n"), Some(("3.6.0-rc.1".into(), (3, 6))));
        assert_eq!(version("coreutils 9.1"), None);
    }

    #[tokio::test]
    async fn a_program_that_is_none() {
        let error = find_program(Some(Path::new("/bin/true"))).await.expect_err("not etcd").to_string();
        assert!(error.contains("/bin/true is not etcd"), "{error}");
        assert!(find_program(Some(Path::new("/nowhere/etcd"))).await.expect_err("not there").to_string().contains("/nowhere/etcd"));
    }
}
