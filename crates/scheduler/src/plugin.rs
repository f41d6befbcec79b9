//! The seam for plug-ins that need more than nodes and pods, as those for volumes do: they keep their
//! own informers, answer for a pod and a node at decision time without waiting, and write what must
//! be written before the pod is bound.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::cluster::NodeInfo;
use crate::config::Profile;
use crate::pod::PodInfo;

/// Why a plug-in ruled out a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Upstream's name of the plug-in.
    pub plugin: &'static str,
    /// Whether removing other pods from the node could help.
    pub resolvable: bool,
    pub why: Why,
}

/// The reasons of a rejection, cheap to keep for thousands of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Upstream's words.
    Known(&'static str),
    /// Resources that are lacking: bit 0 is the number of pods, bit 1 cpu, bit 2 memory, bit 3
    /// ephemeral storage, the others the pod's further requests in their order.
    Lacking(u64),
    /// Words with something in them.
    Said(Arc<[String]>),
    /// Something is wrong with what the pod asks for: there is no use in looking at other nodes.
    Broken(Arc<str>),
}

impl Rejection {
    /// A rejection that the removal of pods may resolve.
    pub fn resolvable(plugin: &'static str, reason: &'static str) -> Rejection {
        Rejection { plugin, resolvable: true, why: Why::Known(reason) }
    }

    /// One that it cannot.
    pub fn final_(plugin: &'static str, reason: &'static str) -> Rejection {
        Rejection { plugin, resolvable: false, why: Why::Known(reason) }
    }

    /// One with words of its own.
    pub fn said(plugin: &'static str, resolvable: bool, reasons: Vec<String>) -> Rejection {
        Rejection { plugin, resolvable, why: Why::Said(reasons.into()) }
    }

    /// One that ends the attempt.
    pub fn broken(plugin: &'static str, message: impl Into<Arc<str>>) -> Rejection {
        Rejection { plugin, resolvable: false, why: Why::Broken(message.into()) }
    }

    /// The reasons in upstream's words, for the pod that was rejected.
    pub fn reasons(&self, pod: &PodInfo) -> Vec<String> {
        match &self.why {
            Why::Known(reason) => vec![reason.to_string()],
            Why::Said(reasons) => reasons.to_vec(),
            Why::Broken(message) => vec![message.to_string()],
            Why::Lacking(mask) => {
                let names = pod.shape.requests.iter().map(|(name, _)| format!("Insufficient {name}"));
                let all = std::iter::once("Too many pods".to_string()).chain(names);
                all.enumerate().filter(|(bit, _)| *bit < 64 && mask & (1 << bit) != 0).map(|(_, reason)| reason).collect()
            }
        }
    }
}

/// A node as a filter is to see it: perhaps with pods that are only nominated to it, perhaps without
/// some that preemption would remove.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub node: &'a NodeInfo,
    pub added: &'a [Arc<PodInfo>],
    pub removed: &'a [Arc<PodInfo>],
}

impl<'a> Site<'a> {
    /// The node as it is.
    pub fn plain(node: &'a NodeInfo) -> Site<'a> {
        Site { node, added: &[], removed: &[] }
    }

    /// The pods to be taken as being there.
    pub fn pods(self) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        let removed = self.removed;
        self.node.pods.iter().filter(move |p| !removed.iter().any(|r| r.uid() == p.uid())).chain(self.added)
    }

    /// True when it is the node as it is.
    pub fn is_plain(self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// What a plug-in says of a pod before any node is looked at.
pub enum Prepared<'a> {
    /// It has nothing to say of this pod.
    Skip,
    /// The pod fits nowhere. When this is resolvable, preemption may still help.
    Reject(Rejection),
    /// It is asked node by node.
    Check(Box<dyn Check + 'a>),
}

/// A plug-in's answers for one pod.
pub trait Check {
    /// Whether a node will do. Called often: must not wait or allocate much.
    fn filter(&self, site: Site<'_>) -> Result<(), Rejection>;

    /// The only nodes that can do, by name, when that is known beforehand.
    fn only(&self) -> Option<Vec<String>> {
        None
    }

    /// PostFilter: what can be done for the pod when all nodes were refused.
    fn after(&self) -> After {
        After::NOTHING
    }

    /// Scores from 0 to 100 of the nodes that are left, in their order; none when it has no opinion.
    fn score(&self, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }
}

/// What a plug-in has to say when a pod fits nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct After {
    /// In upstream's words.
    pub message: &'static str,
    /// The device claim that is to be given back, for the pod to get another one.
    pub give_back: Option<String>,
}

impl After {
    /// What upstream's DynamicResources says of every pod without claims.
    pub const NOTHING: After = After { message: "no new claims to deallocate", give_back: None };
}

/// What a plug-in does between decision and binding.
pub type Work<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// A plug-in with state of its own.
pub trait Plugin: Send + Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;

    /// PreFilter: called once a decision, under the scheduler's lock.
    fn prepare<'a>(&'a self, pod: &'a PodInfo, profile: &'a Profile) -> Prepared<'a>;

    /// Reserve: the pod goes to this node; what it takes must not be given away again. Called under
    /// the same lock as `prepare`, right after the decision. An error ends the attempt.
    fn reserve(&self, _pod: &PodInfo, _node: &str) -> Result<(), String> {
        Ok(())
    }

    /// Unreserve: the pod does not go there after all.
    fn unreserve(&self, _pod: &PodInfo, _node: &str) {}

    /// Whether `pre_bind` has anything to do for the pod.
    fn must_pre_bind(&self, _pod: &PodInfo, _node: &str) -> bool {
        false
    }

    /// PreBind: writes what must be written before the pod is bound, and waits for its effect.
    fn pre_bind<'a>(&'a self, _pod: &'a PodInfo, _node: &'a str) -> Work<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// PreEnqueue: why a pod is not to be tried yet.
    fn holds(&self, _pod: &PodInfo) -> Option<String> {
        None
    }

    /// Whether the plug-in sees to an extended resource on nodes that do not have it of their own.
    fn provides(&self, _resource: &str) -> bool {
        false
    }

    /// Whether its filter comes after all that look at other pods.
    fn is_late(&self) -> bool {
        false
    }

    /// Gives a claim of the pod back, as its check said when the pod fitted nowhere.
    fn give_back<'a>(&'a self, _pod: &'a PodInfo, _claim: &'a str) -> Work<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether a change of a node or a pod may help a pod that this plug-in rejected. Changes of other
    /// kinds are told through [`crate::Handle::wake`].
    fn helps(&self, _pod: &PodInfo, _event: &crate::hints::Event) -> bool {
        true
    }
}
