//! Tokens that somebody else knows: they are posted as a TokenReview to a server that a kubeconfig names, and what it
//! says of them is remembered for a while.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use apiserver::remote::Remote;
use apiserver::{AuthnRequest, Authenticator, UserInfo};
use async_trait::async_trait;
use jiff::SignedDuration;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{authenticated, digest};
use crate::expiring::Expiring;
use crate::util::{flag, map, text, texts};

/// The longest a call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many answers are remembered.
const MOST: usize = 32_768;

/// Where tokens are reviewed; `--authentication-token-webhook-*` upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenWebhookConfig {
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long answers are remembered; not at all, if it is zero.
    pub cache_ttl: Duration,
}

/// What was said of a token: whose it is, and for which audiences where that was said. Nobody's: not known.
type Said = Option<(UserInfo, Option<Vec<String>>)>;
/// A token, and the audiences asked for.
type Key = ([u8; 32], Vec<String>);

/// The authenticator.
pub(crate) struct TokenWebhook {
    remote: Remote,
    version: String,
    keep: SignedDuration,
    /// The audiences of the API server.
    audiences: Vec<String>,
    answers: Mutex<Expiring<Key, Said>>,
    /// Tokens that are being asked about: who has the same one waits for that answer.
    asking: Mutex<BTreeMap<Key, Arc<tokio::sync::Mutex<()>>>>,
}

impl TokenWebhook {
    /// Reads the kubeconfig. `audiences` are those that the API server itself answers to.
    pub fn new(config: &TokenWebhookConfig, audiences: &[String]) -> Result<Self, String> {
        let version = &config.version;
        if !matches!(version.as_str(), "v1" | "v1beta1") {
            return Err(format!("unsupported authentication webhook version {}, supported versions are \"v1\", \"v1beta1\"", api::field::go_quote(version)));
        }
        let remote = open(&config.config_file)?;
        let keep = SignedDuration::try_from(config.cache_ttl).unwrap_or(SignedDuration::MAX);
        Ok(Self { remote, version: version.clone(), keep, audiences: audiences.to_vec(), answers: Mutex::new(Expiring::new(MOST)), asking: Mutex::default() })
    }

    /// What whoever asks about a token holds meanwhile.
    fn turn(&self, key: &Key) -> Arc<tokio::sync::Mutex<()>> {
        const MANY: usize = 1024;
        let mut asking = self.asking.lock();
        if asking.len() >= MANY {
            // those whose requests were cut off
            asking.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        asking.entry(key.clone()).or_default().clone()
    }

    async fn ask(&self, token: &str, wanted: &[String]) -> Result<Said, String> {
        let mut spec = json!({"token": token});
        if !wanted.is_empty() {
            spec["audiences"] = json!(wanted);
        }
        let api_version = format!("authentication.k8s.io/{}", self.version);
        let review = json!({"kind": "TokenReview", "apiVersion": api_version, "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"user": {}}});
        let answer = self.remote.post_patiently(review.to_string().into(), TIMEOUT, |_, _| {}).await.map_err(|failure| {
            tracing::error!(why = failure.why, "failed to make webhook authenticator request");
            failure.why
        })?;
        let review: Value = serde_json::from_slice(&answer).map_err(|e| format!("the answer of the token webhook is no JSON: {e}"))?;
        if text(&review, "/kind") != "TokenReview" || text(&review, "/apiVersion") != api_version {
            let got = format!("{}, Kind={}", text(&review, "/apiVersion"), text(&review, "/kind"));
            return Err(format!("the answer of the token webhook is no TokenReview of {api_version}, but {got}"));
        }
        let status = &review["status"];
        let said: Vec<String> = texts(status, "/audiences").map(str::to_owned).collect();
        let granted = Some(said).filter(|s| !s.is_empty());
        if !wanted.is_empty() && !super::common(granted.as_ref().unwrap_or(&self.audiences), wanted) {
            return Ok(None);
        }
        if !flag(status, "/authenticated") {
            let why = text(status, "/error");
            return if why.is_empty() { Ok(None) } else { Err(why.to_owned()) };
        }
        let user = UserInfo {
            name: text(status, "/user/username").to_owned(),
            uid: text(status, "/user/uid").to_owned(),
            groups: texts(status, "/user/groups").map(str::to_owned).collect(),
            extra: map(status, "/user/extra").into_iter().flatten().map(|(k, v)| (k.clone(), texts(v, "").map(str::to_owned).collect())).collect(),
        };
        Ok(Some((authenticated(user), granted)))
    }
}

/// A kubeconfig's server.
pub(crate) fn open(path: &Path) -> Result<Remote, String> {
    Remote::open(path).map_err(|why| format!("{}: {why}", path.display()))
}

#[async_trait]
impl Authenticator for TokenWebhook {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(token) = req.bearer else { return Ok(None) };
        let key = (digest(token), req.audiences.to_vec());
        let answer = |said: &Said| {
            let (user, granted) = said.clone()?;
            if let (Some(to), Some(granted)) = (req.granted, granted) {
                *to.lock() = Some(granted);
            }
            Some(user)
        };
        if let Some(said) = self.answers.lock().get(&key, req.now) {
            return Ok(answer(said));
        }
        let turn = self.turn(&key);
        let held = turn.lock().await;
        if let Some(said) = self.answers.lock().get(&key, req.now) {
            return Ok(answer(said));
        }
        let asked = self.ask(token, req.audiences).await;
        if let Ok(said) = &asked {
            self.answers.lock().insert(key.clone(), said.clone(), req.now, self.keep);
        }
        drop(held);
        self.asking.lock().remove(&key);
        asked.map(|said| answer(&said))
    }
}
