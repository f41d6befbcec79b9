//! Turns in which extenders are asked. The lock is not held while they answer, so the cluster may change
//! meanwhile: what fits is looked at again before a node is taken, and changes are kept until it is known
//! whether the pod waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use reconcile::Informer;
use serde_json::Value;

use crate::decide::{Candidates, Decision, Failure, Turn, candidates, conclude};
use crate::extender::{self, Extender, Objects};
use crate::hints::{self, Event};
use crate::pod::{PodInfo, Shape};
use crate::preempt::Victims;
use crate::shell::{Next, Shared, State};

/// What happens while the extenders are asked about a pod.
pub(crate) struct Asking {
    pod: Arc<PodInfo>,
    pub events: Vec<Event>,
    /// Plug-ins that have seen a change which may help the pod.
    pub woken: Vec<String>,
}

impl Asking {
    /// A plug-in has seen a change.
    pub fn wake(&mut self, plugin: &str, helps: impl Fn(&PodInfo) -> bool) {
        if helps(&self.pod) {
            self.woken.push(plugin.to_string());
        }
    }
}

/// A pod about which extenders are to be asked.
pub(crate) struct Question {
    pod: Arc<PodInfo>,
    profile: usize,
    /// As the queue has it: another one means that the pod was changed.
    shape: Arc<Shape>,
    seed: u64,
}

impl Question {
    /// Begins one, when some extender is interested.
    pub fn begin(shared: &Shared, state: &mut State, pod: &Arc<PodInfo>, profile: usize, shape: Arc<Shape>) -> Option<Question> {
        if !shared.config.extenders.iter().any(|e| e.is_interested(pod)) {
            return None;
        }
        state.asking = Some(Asking { pod: pod.clone(), events: Vec::new(), woken: Vec::new() });
        Some(Question { pod: pod.clone(), profile, shape, seed: state.decisions })
    }
}

impl Shared {
    /// Runs the turn of a pod that extenders have a say in.
    pub(crate) async fn ask(&self, question: Question) -> Next {
        let extenders: Vec<&Extender> = self.config.extenders.iter().filter(|e| e.is_interested(&question.pod)).collect();
        let decision = match self.decide_asking(&question, &extenders).await {
            Ok(Some(Decision::Unschedulable(failure))) if !failure.choices.is_empty() => {
                self.ask_for_victims(&question, &extenders, failure).await.map(|failure| Some(Decision::Unschedulable(failure)))
            }
            other => other,
        };
        self.settle(&question, decision)
    }

    async fn decide_asking(&self, question: &Question, extenders: &[&Extender]) -> Result<Option<Decision>, String> {
        let mut objects = Objects { pod: Value::Null, nodes: HashMap::new(), victims: HashMap::new() };
        for heed in [true, false] {
            let mut found = match self.look(question, heed) {
                Ok(found) => found,
                Err(decision) => return Ok(Some(decision)),
            };
            if objects.pod.is_null() {
                objects.pod = self.whole(&question.pod).await?;
            }
            objects.nodes = self.whole_nodes(extenders, &found.nodes);
            match extender::filter(extenders, &objects, &mut found).await {
                Err(error) if found.nominated => {
                    tracing::warn!(pod = question.pod.name(), "the node that it is nominated to could not be judged: {error}");
                    continue;
                }
                Err(error) => return Err(error),
                Ok(()) if found.nominated && found.nodes.is_empty() => continue,
                Ok(()) => {}
            }
            let scores = if found.nodes.len() > 1 { extender::prioritize(extenders, &objects, &found.nodes).await } else { HashMap::new() };
            let mut guard = self.state.lock();
            let state = &mut *guard;
            return Ok(with_turn(self, state, question, |state, turn| conclude(&mut state.cluster, &question.pod, turn, found, &scores)));
        }
        Ok(None)
    }

    fn look(&self, question: &Question, heed: bool) -> Result<Candidates, Decision> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let (found, start) = with_turn(self, state, question, |state, turn| candidates(&mut state.cluster, &question.pod, turn, heed));
        state.start = start;
        found
    }

    async fn ask_for_victims(&self, question: &Question, extenders: &[&Extender], mut failure: Box<Failure>) -> Result<Box<Failure>, String> {
        let asked: Vec<&Extender> = extenders.iter().copied().filter(|e| !e.preempt_verb.is_empty()).collect();
        if asked.is_empty() {
            return Ok(failure);
        }
        let choices = std::mem::take(&mut failure.choices);
        let left = self.ask_about(question, &asked, choices).await;
        Ok(Box::new(failure.after_choices(left)))
    }

    async fn ask_about(&self, question: &Question, asked: &[&Extender], choices: Vec<Victims>) -> Result<Vec<Victims>, String> {
        let mut victims = HashMap::new();
        if asked.iter().any(|e| !e.node_cache_capable) {
            for pod in choices.iter().flat_map(|v| &v.pods) {
                victims.insert(pod.uid().to_string(), self.whole(pod).await?);
            }
        }
        let objects = Objects { pod: self.whole(&question.pod).await?, nodes: HashMap::new(), victims };
        let on = |node: &str, uid: &str| self.state.lock().cluster.node(node)?.pods.iter().find(|p| p.uid() == uid).cloned();
        extender::preempt(asked, &objects, choices, on).await
    }

    /// A pod in full: the scheduler keeps only what it needs itself.
    async fn whole(&self, pod: &PodInfo) -> Result<Value, String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), pod.namespace());
        let pod = api.get(pod.name()).await.map_err(|e| format!("pod {}/{} could not be read for the extenders: {e}", pod.namespace(), pod.name()))?;
        serde_json::to_value(pod).map_err(|e| e.to_string())
    }

    fn whole_nodes(&self, extenders: &[&Extender], names: &[String]) -> HashMap<String, Arc<Node>> {
        match &self.nodes {
            Some(nodes) if extenders.iter().any(|e| e.needs_nodes()) => names.iter().filter_map(|n| Some((n.clone(), nodes.get("", n)?))).collect(),
            _ => HashMap::new(),
        }
    }

    /// Acts on a decision, when the pod still waits for it.
    fn settle(&self, question: &Question, decision: Result<Option<Decision>, String>) -> Next {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(asking) = state.asking.take() else { return Next::Wait(None) };
        let uid = question.pod.uid();
        let again = Next::Wait(Some(Instant::now()));
        match state.queue.get(uid).map(|entry| entry.pod.shape.clone()) {
            // It is gone, or no concern of ours any more.
            None => return again,
            Some(shape) if !Arc::ptr_eq(&shape, &question.shape) => {
                state.queue.activate(uid);
                return again;
            }
            Some(_) => {}
        }
        match decision {
            Ok(Some(decision)) => {
                let refused_by: Option<Vec<&'static str>> = match &decision {
                    Decision::Unschedulable(failure) => Some(failure.plugins.iter().copied().collect()),
                    Decision::Bind(_) | Decision::Failed(_) => None,
                };
                let next = self.act(state, question.pod.clone(), question.profile, decision);
                if let Some(refused_by) = refused_by {
                    self.catch_up(state, question, &refused_by, asking);
                }
                next
            }
            // What the extenders have left does not fit any more.
            Ok(None) => {
                state.queue.activate(uid);
                again
            }
            Err(message) => {
                state.queue.error(uid, Instant::now());
                Next::failed(question.pod.clone(), question.profile, message)
            }
        }
    }

    /// A pod now waits for a change: one that came while extenders were asked may be it.
    fn catch_up(&self, state: &mut State, question: &Question, refused_by: &[&'static str], asking: Asking) {
        let profile = &self.config.profiles[question.profile];
        let told = asking.woken.iter().any(|plugin| refused_by.iter().any(|r| r == plugin));
        let helped = |event: &Event| hints::helps(&mut state.cluster, profile, question.profile, &self.plugins, &question.pod, refused_by, event);
        if told || asking.events.iter().any(helped) {
            state.queue.ready(question.pod.uid());
        }
    }
}

/// Whether the objects of nodes are needed in full.
pub(crate) fn needs_nodes(extenders: &[Extender]) -> bool {
    extenders.iter().any(Extender::needs_nodes)
}

/// All nodes in full, for those that need them.
pub(crate) type Nodes = Option<Informer<Node>>;

fn with_turn<T>(shared: &Shared, state: &mut State, question: &Question, run: impl FnOnce(&mut State, &Turn<'_>) -> T) -> T {
    let budgets = state.budgets();
    let turn = Turn { config: &shared.config, profile: question.profile, plugins: &shared.plugins, budgets: &budgets, start: state.start, seed: question.seed, explain: false };
    run(state, &turn)
}
