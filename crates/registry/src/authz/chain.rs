//! The authorizers in their order, which may change while the server runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::authz::{AlwaysAllow, AlwaysDeny, Answer, Rules, Union};
use apiserver::{Authorizer, AuthzAttributes, Decision, UserInfo};
use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::config::{AuthorizationError, AuthorizationMode};
use super::node::NodeAuthorizer;
use super::rbac::Rbac;
use super::webhook::Webhook;
use crate::metrics::Counters;

/// Who decides.
pub(crate) struct Chain {
    current: ArcSwap<Union>,
    node: Arc<NodeAuthorizer>,
    rbac: Arc<Rbac>,
    /// What those have decided who are or were asked.
    tallies: Mutex<Vec<Arc<Tally>>>,
    counters: Arc<Counters>,
}

/// How often an authorizer has decided.
struct Tally {
    kind: &'static str,
    name: String,
    allowed: AtomicU64,
    denied: AtomicU64,
}

/// An authorizer whose decisions are counted.
struct Counted {
    authorizer: Arc<dyn Authorizer>,
    tally: Arc<Tally>,
}

impl Chain {
    pub fn new(modes: &[AuthorizationMode], node: Arc<NodeAuthorizer>, rbac: Arc<Rbac>, counters: Arc<Counters>) -> Result<Chain, AuthorizationError> {
        let chain = Chain { current: ArcSwap::from_pointee(Union(Vec::new())), node, rbac, tallies: Mutex::default(), counters };
        chain.replace(modes)?;
        Ok(chain)
    }

    /// Others decide from now on.
    pub fn replace(&self, modes: &[AuthorizationMode]) -> Result<(), AuthorizationError> {
        let mut union: Vec<Arc<dyn Authorizer>> = Vec::new();
        for mode in modes {
            let authorizer: Arc<dyn Authorizer> = match mode {
                AuthorizationMode::Node => self.node.clone(),
                AuthorizationMode::Rbac => self.rbac.clone(),
                AuthorizationMode::AlwaysAllow => Arc::new(AlwaysAllow),
                AuthorizationMode::AlwaysDeny => Arc::new(AlwaysDeny),
                AuthorizationMode::Abac(abac) => abac.clone(),
                AuthorizationMode::Webhook(settings) => {
                    let webhook = Webhook::new((**settings).clone(), self.counters.clone());
                    Arc::new(webhook.map_err(|why| AuthorizationError::Webhook(settings.name.clone(), why))?)
                }
            };
            union.push(Arc::new(Counted { authorizer, tally: self.tally(mode.kind(), mode.name()) }));
        }
        self.current.store(Arc::new(Union(union)));
        Ok(())
    }

    fn tally(&self, kind: &'static str, name: String) -> Arc<Tally> {
        let mut tallies = self.tallies.lock();
        if let Some(tally) = tallies.iter().find(|t| t.kind == kind && t.name == name) {
            return tally.clone();
        }
        let tally = Arc::new(Tally { kind, name, allowed: AtomicU64::new(0), denied: AtomicU64::new(0) });
        tallies.push(tally.clone());
        tally
    }

    /// Tells the counters how often has been decided what.
    pub fn count(&self) {
        for tally in self.tallies.lock().iter() {
            for (decision, count) in [("allowed", &tally.allowed), ("denied", &tally.denied)] {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    self.counters.decisions(tally.kind, &tally.name, decision, count);
                }
            }
        }
    }
}

impl Counted {
    fn note(&self, answer: (Decision, String)) -> (Decision, String) {
        match answer.0 {
            Decision::Allow => drop(self.tally.allowed.fetch_add(1, Ordering::Relaxed)),
            Decision::Deny | Decision::Failed { deny: true } => drop(self.tally.denied.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        answer
    }
}

impl Authorizer for Counted {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        self.note(self.authorizer.authorize(attributes))
    }

    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> Answer<'a> {
        Box::pin(async move { self.note(self.authorizer.ask(attributes).await) })
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.authorizer.rules_for(user, namespace)
    }
}

impl Authorizer for Chain {
    fn authorize(&self, attributes: &AuthzAttributes) -> (Decision, String) {
        self.current.load().authorize(attributes)
    }

    fn ask<'a>(&'a self, attributes: &'a AuthzAttributes) -> Answer<'a> {
        let current = self.current.load_full();
        Box::pin(async move { current.ask(attributes).await })
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.current.load().rules_for(user, namespace)
    }
}
