//! Files that may change while the server runs: they are looked at again and again, and who uses them is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::ServingTls;
use pki::{CertKey, Renewable};
use reconcile::Tasks;
use registry::{Live, ReloadError};

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// A file, and the text that was read from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    pub path: PathBuf,
    pub text: String,
}

impl Followed {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Followed> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Followed { path: path.into(), text })
    }
}

/// Tells `changed` of other texts than these, whenever one of the files has one; again, if it says so.
async fn follow<const N: usize>(files: [Followed; N], period: Duration, mut changed: impl AsyncFnMut(&[String; N]) -> bool) {
    let paths = files.each_ref().map(|f| f.path.clone());
    let mut last = files.map(|f| f.text);
    loop {
        tokio::time::sleep(period).await;
        let read = paths.each_ref().map(|path| std::fs::read_to_string(path).ok());
        // one that is not there may be about to come back
        if read.iter().any(Option::is_none) {
            continue;
        }
        let now = read.map(Option::unwrap_or_default);
        if now != last && !changed(&now).await {
            last = now;
        }
    }
}

/// A certificate and its key that are shown to peers.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub shown: Arc<Renewable>,
    files: [Followed; 2],
}

impl Certificate {
    /// Of these files.
    pub fn read<P: AsRef<Path>>(paths: [P; 2]) -> Result<Certificate> {
        let [cert, key] = paths.map(|path| Followed::read(path.as_ref()));
        let files = [cert?, key?];
        let pair = CertKey { cert_pem: files[0].text.clone(), key_pem: files[1].text.clone() };
        Ok(Certificate { shown: Renewable::new(&pair).with_context(|| format!("{} and {} cannot be used", files[0].path.display(), files[1].path.display()))?, files })
    }

    /// Follows the files as long as `tasks` run.
    pub fn start(self, tasks: &Tasks) {
        self.start_every(PERIOD, tasks);
    }

    fn start_every(self, period: Duration, tasks: &Tasks) {
        let shown = self.shown;
        let replace = async move |[cert, key]: &[String; 2]| {
            told("certificate", shown.replace(&CertKey { cert_pem: cert.clone(), key_pem: key.clone() }));
            false
        };
        tasks.spawn("certificate", follow(self.files, period, replace));
    }
}

/// The files of an API server that may change.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The serving certificate, its key, and what follows the certificate in its chain.
    pub serving: Option<([Followed; 2], String)>,
    /// What the server shows as a client.
    pub clients: Vec<Certificate>,
    pub client_ca: Option<Followed>,
    pub front_proxy_ca: Option<Followed>,
    pub authentication: Option<Followed>,
    pub authorization: Option<Followed>,
}

impl Files {
    /// Follows them as long as `tasks` run.
    pub fn start(self, serving: &Arc<ServingTls>, live: Live, tasks: &Tasks) {
        self.start_every(PERIOD, serving, live, tasks);
    }

    fn start_every(self, period: Duration, serving: &Arc<ServingTls>, live: Live, tasks: &Tasks) {
        let live = Arc::new(live);
        if let Some((pair, rest)) = self.serving {
            let serving = serving.clone();
            // Perhaps only one of the two is there yet: then both are looked at again when the other one comes.
            let replace = async move |[cert, key]: &[String; 2]| {
                told("serving certificate", serving.replace(&format!("{cert}{rest}"), key));
                false
            };
            tasks.spawn("serving certificate", follow(pair, period, replace));
        }
        self.clients.into_iter().for_each(|certificate| certificate.start_every(period, tasks));
        if let Some(file) = self.client_ca {
            let live = live.clone();
            let replace = async move |[text]: &[String; 1]| {
                told("client CA bundle", live.replace_client_ca(text).await);
                false
            };
            tasks.spawn("client CA", follow([file], period, replace));
        }
        if let Some(file) = self.front_proxy_ca {
            let live = live.clone();
            let replace = async move |[text]: &[String; 1]| {
                told("CA bundle of the front proxy", live.replace_front_proxy_ca(text).await);
                false
            };
            tasks.spawn("front proxy CA", follow([file], period, replace));
        }
        if let Some(file) = self.authentication {
            let live = live.clone();
            let replace = async move |[text]: &[String; 1]| {
                let reloaded = live.reload_authentication(text).await;
                let again = matches!(reloaded, Err(ReloadError::Unreachable(_)));
                told("authentication configuration", reloaded);
                again
            };
            tasks.spawn("authentication configuration", follow([file], period, replace));
        }
        if let Some(file) = self.authorization {
            let live = live.clone();
            let replace = async move |[text]: &[String; 1]| {
                told("authorization configuration", live.reload_authorization(text));
                false
            };
            tasks.spawn("authorization configuration", follow([file], period, replace));
        }
        tasks.spawn("issuers of tokens", async move { live.prepare().await });
    }
}

fn told<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    match result {
        Ok(()) => tracing::info!("another {what} is used from now on"),
        Err(error) => tracing::error!("the {what} has changed and cannot be used: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[tokio::test]
    async fn changes_are_told_once_and_again_where_that_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        // whole at once, as who renews certificates should
        let write = |name: &str, text: &str| {
            std::fs::write(path("new"), text).expect("written");
            std::fs::rename(path("new"), path(name)).expect("renamed");
        };
        write("a", "1");
        write("b", "1");
        let files = ["a", "b"].map(|name| Followed::read(&path(name)).expect("read"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let following = tokio::spawn(follow(files, Duration::from_millis(1), async move |[a, b]: &[String; 2]| {
            told.lock().push(format!("{a}{b}"));
            a == "again"
        }));
        let until = async |expected: &[&str]| {
            let started = std::time::Instant::now();
            while *seen.lock() != expected {
                assert!(started.elapsed() < Duration::from_secs(10), "{:?} is not {expected:?}", seen.lock());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        write("a", "2");
        until(&["21"]).await;
        // what is gone is no change, but what comes after it is
        std::fs::remove_file(path("b")).expect("removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
        write("b", "2");
        until(&["21", "22"]).await;
        write("a", "again");
        until(&["21", "22", "again2", "again2"]).await;
        following.abort();
    }
}
