//! The shell around the core: informers in, bindings, evictions and events out. One task decides, pod
//! after pod; a pod that was decided on counts on its node at once, before the API server has said so.
//! What is written is written by tasks of its own, many at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use kube::Client;
use parking_lot::Mutex;
use reconcile::{Informers, Recorder, Tasks};
use tokio::sync::{Notify, Semaphore};

use crate::asking::{Asking, Nodes, Question, needs_nodes};
use crate::cluster::Cluster;
use crate::config::{Config, Point};
use crate::decide::{Decision, Failure, Turn, decide};
use crate::extender::EXTENDER;
use crate::hints::{self, Event};
use crate::node::NodeView;
use crate::plugin::Plugin;
use crate::pod::PodInfo;
use crate::preempt::Budget;
use crate::queue::{Entry, Queue};

pub(crate) struct Shared {
    pub client: Client,
    pub config: Config,
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// By profile.
    pub recorders: Vec<Recorder>,
    pub nodes: Nodes,
    tasks: Tasks,
    wake: Notify,
    permits: Arc<Semaphore>,
    pub state: Mutex<State>,
}

pub(crate) struct State {
    pub cluster: Cluster,
    pub queue: Queue,
    /// Decided on; the informer does not show them on their nodes yet.
    assumed: HashMap<Box<str>, Arc<PodInfo>>,
    pub budgets: BTreeMap<(String, String), Budget>,
    budget_list: Option<Arc<[Budget]>>,
    pub start: usize,
    pub decisions: u64,
    /// Extenders are being asked about a pod.
    pub asking: Option<Asking>,
}

/// Lets plug-ins tell the scheduler of changes that only they see.
#[derive(Clone, Default)]
pub struct Handle(Arc<OnceLock<Weak<Shared>>>);

impl Handle {
    /// Something changed that may help pods which `plugin` rejected: those for which `helps` says so
    /// are tried again. It runs under the scheduler's lock and must not wait.
    pub fn wake(&self, plugin: &str, helps: impl Fn(&PodInfo) -> bool) {
        let Some(shared) = self.0.get().and_then(Weak::upgrade) else { return };
        let mut state = shared.state.lock();
        if let Some(asking) = &mut state.asking {
            asking.wake(plugin, &helps);
        }
        state.queue.wake(|entry| entry.rejected_by.iter().any(|by| *by == plugin || *by == EXTENDER) && helps(&entry.pod));
        drop(state);
        shared.wake.notify_one();
    }
}

impl Handle {
    /// Something changed that may free pods which a plug-in holds: those that are `concerned` and that
    /// nothing holds any more are tried.
    pub fn free(&self, concerned: impl Fn(&PodInfo) -> bool) {
        let Some(shared) = self.0.get().and_then(Weak::upgrade) else { return };
        shared.state.lock().queue.free(|entry| concerned(&entry.pod) && !shared.holds(&entry.pod, entry.profile));
        shared.wake.notify_one();
    }
}

/// Starts the scheduler as tasks of `tasks`.
pub fn start(client: Client, informers: &Informers, tasks: &Tasks, config: Config) {
    let handle = Handle::default();
    let plugins = crate::plugins::all(&client, informers, tasks, &config, &handle);
    let queue = Queue::new(config.initial_backoff, config.max_backoff);
    let state = State {
        cluster: Cluster::default(),
        queue,
        assumed: HashMap::new(),
        budgets: BTreeMap::new(),
        budget_list: None,
        start: 0,
        decisions: config.seed,
        asking: None,
    };
    let nodes: Nodes = needs_nodes(&config.extenders).then(|| informers.of());
    let shared = Arc::new(Shared {
        recorders: config.profiles.iter().map(|p| Recorder::new(tasks, client.clone(), p.name.clone(), None)).collect(),
        client,
        plugins,
        nodes,
        tasks: tasks.clone(),
        wake: Notify::new(),
        permits: Arc::new(Semaphore::new(config.parallel_bindings.max(1))),
        state: Mutex::new(state),
        config,
    });
    // The handle is new, so nobody has set it.
    let _ = handle.0.set(Arc::downgrade(&shared));
    let ready = crate::watch::follow(&shared, informers);
    tasks.spawn("scheduler", async move {
        ready.await;
        if let Some(nodes) = &shared.nodes {
            nodes.synced().await;
        }
        shared.run().await;
    });
}

impl State {
    /// All budgets.
    pub fn budgets(&mut self) -> Arc<[Budget]> {
        self.budget_list.get_or_insert_with(|| self.budgets.values().cloned().collect()).clone()
    }

    /// Wakes those whom an event may help.
    fn tell(&mut self, shared: &Shared, event: &Event) {
        if let Some(asking) = &mut self.asking {
            asking.events.push(event.clone());
        }
        if self.queue.nobody_waits() {
            return;
        }
        let State { cluster, queue, .. } = self;
        // Pods that ask for the same and were rejected by the same share the answer.
        let mut known: HashMap<(usize, usize, Vec<&'static str>), bool> = HashMap::new();
        queue.wake(|entry: &Entry| {
            let key = (Arc::as_ptr(&entry.pod.shape) as usize, entry.profile, entry.rejected_by.clone());
            *known.entry(key).or_insert_with(|| {
                let profile = &shared.config.profiles[entry.profile];
                hints::helps(cluster, profile, entry.profile, &shared.plugins, &entry.pod, &entry.rejected_by, event)
            })
        });
    }
}

impl Shared {
    fn profile_of(&self, pod: &PodInfo) -> Option<usize> {
        self.config.profiles.iter().position(|p| p.name == *pod.shape.scheduler)
    }

    /// Whether a pod is not to be tried yet.
    fn holds(&self, pod: &PodInfo, profile: usize) -> bool {
        let profile = &self.config.profiles[profile];
        let gated = !pod.shape.gates.is_empty() && profile.has(Point::PreEnqueue, "SchedulingGates");
        gated || self.plugins.iter().any(|p| profile.has(Point::PreEnqueue, p.name()) && p.holds(pod).is_some())
    }

    pub fn node_changed(&self, new: Option<&Arc<NodeView>>, name: &str) {
        let mut state = self.state.lock();
        let event = match new {
            None => state.cluster.remove_node(name).map(|old| Event::NodeGone { old }),
            Some(new) => {
                let old = state.cluster.set_node(new.clone());
                Some(Event::Node { old: old.clone(), new: new.clone() }).filter(|_| old.is_none_or(|o| !o.same(new)))
            }
        };
        if let Some(event) = event {
            state.tell(self, &event);
            self.wake.notify_one();
        }
    }

    pub fn pod_changed(&self, old: Option<&Arc<PodInfo>>, new: Option<&Arc<PodInfo>>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(pod) = new.or(old) else { return };
        if new.is_none() || pod.ended {
            state.queue.remove(pod.uid());
            state.assumed.remove(pod.uid());
            let nominated = state.cluster.nominated.get(pod.uid()).and_then(|p| p.nominated.clone());
            state.cluster.nominate(pod, None);
            if let Some((node, old)) = state.cluster.remove_pod(pod.uid()) {
                let node = state.cluster.at(node).name().to_string();
                state.tell(self, &Event::PodGone { old, node });
            } else if let Some(node) = nominated {
                state.tell(self, &Event::PodGone { old: pod.clone(), node: node.into() });
            }
        } else if let Some(node) = &pod.node {
            state.queue.remove(pod.uid());
            let assumed = state.assumed.remove(pod.uid()).is_some();
            state.cluster.nominate(pod, None);
            let before = state.cluster.pod(pod.uid()).filter(|(n, _)| n.name() == node.as_ref()).map(|(_, p)| p.clone());
            let same = |b: &Arc<PodInfo>| {
                Arc::ptr_eq(&b.shape, &pod.shape) && (b.terminating, b.preempted, b.started) == (pod.terminating, pod.preempted, pod.started)
            };
            if before.as_ref().is_some_and(same) && !assumed {
                return;
            }
            state.cluster.place(node, pod);
            let event = Event::PodOnNode { old: before.filter(|_| !assumed), new: pod.clone(), node: node.to_string() };
            state.tell(self, &event);
        } else if state.assumed.contains_key(pod.uid()) {
            return;
        } else if let Some(profile) = self.profile_of(pod).filter(|_| !pod.terminating) {
            let gated = self.holds(pod, profile);
            // A nomination of our own may not have come back yet.
            let ours = state.cluster.nominated.get(pod.uid()).filter(|_| old.is_none_or(|o| o.nominated.is_none()));
            let to = pod.nominated.clone().or_else(|| ours?.nominated.clone());
            state.cluster.nominate(pod, to.as_deref());
            state.queue.put(pod, profile, gated);
        } else {
            state.queue.remove(pod.uid());
            state.cluster.nominate(pod, pod.nominated.as_deref());
        }
        self.wake.notify_one();
    }

    pub fn budget_changed(&self, key: (String, String), budget: Option<Budget>) {
        let mut state = self.state.lock();
        match budget {
            Some(budget) => drop(state.budgets.insert(key, budget)),
            None => drop(state.budgets.remove(&key)),
        }
        state.budget_list = None;
    }

    async fn run(self: Arc<Self>) {
        let mut turns = 0u32;
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.permits.clone().acquire_owned().await else { return };
            let next = match self.turn() {
                Next::Ask(question) => self.ask(*question).await,
                next => next,
            };
            let next = match next {
                Next::Do(work) => {
                    let shared = self.clone();
                    self.tasks.spawn("scheduler: write", async move {
                        shared.work(*work).await;
                        drop(permit);
                    });
                    turns = turns.wrapping_add(1);
                    if turns.is_multiple_of(16) {
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                Next::Wait(next) => next,
                Next::Ask(_) => None,
            };
            drop(permit);
            let pause = next.map_or(Duration::from_secs(60), |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Decides on the pod that is next.
    fn turn(&self) -> Next {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let due = state.queue.promote(Instant::now());
        let Some(entry) = state.queue.pop() else { return Next::Wait(due) };
        let (mut pod, profile, shape) = (entry.pod.clone(), entry.profile, entry.pod.shape.clone());
        if let Some(nominated) = state.cluster.nominated.get(pod.uid()) {
            pod = nominated.clone();
        }
        state.decisions += 1;
        if let Some(question) = Question::begin(self, state, &pod, profile, shape) {
            return Next::Ask(Box::new(question));
        }
        let budgets = state.budgets();
        let turn = Turn {
            config: &self.config,
            profile,
            plugins: &self.plugins,
            budgets: &budgets,
            start: state.start,
            seed: state.decisions,
            explain: false,
        };
        let outcome = decide(&mut state.cluster, &pod, &turn);
        state.start = outcome.start;
        self.act(state, pod, profile, outcome.decision)
    }

    /// Takes in a decision, and answers what is to be written.
    pub fn act(&self, state: &mut State, pod: Arc<PodInfo>, profile: usize, decision: Decision) -> Next {
        match decision {
            Decision::Bind(node) => match self.reserve(&pod, &node) {
                Ok(()) => {
                    state.cluster.nominate(&pod, None);
                    state.cluster.place(&node, &pod);
                    state.assumed.insert(pod.uid().into(), pod.clone());
                    Next::Do(Box::new(Work::Bind { pod, node, profile }))
                }
                Err(message) => {
                    state.queue.error(pod.uid(), Instant::now());
                    Next::failed(pod, profile, message)
                }
            },
            Decision::Unschedulable(failure) => {
                let plugins = failure.plugins.iter().copied().collect();
                state.queue.failed(pod.uid(), plugins, Instant::now());
                let mut cleared = Vec::new();
                if let Some(victims) = &failure.preemption {
                    // Others of a lower priority that counted on the place must look elsewhere.
                    let lower = |p: &&Arc<PodInfo>| p.shape.priority < pod.shape.priority;
                    cleared = state.cluster.nominated_to(&victims.node).iter().filter(lower).cloned().collect();
                    for other in &cleared {
                        state.cluster.nominate(other, None);
                        state.queue.activate_waiting(other.uid());
                    }
                    state.cluster.nominate(&pod, Some(&victims.node));
                } else if failure.clear_nomination {
                    state.cluster.nominate(&pod, None);
                }
                let nominated = state.cluster.nominated.get(pod.uid()).and_then(|p| p.nominated.clone());
                Next::Do(Box::new(Work::Refused { pod, profile, failure, nominated, cleared }))
            }
            Decision::Failed(message) => {
                state.queue.error(pod.uid(), Instant::now());
                Next::failed(pod, profile, message)
            }
        }
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        for (at, plugin) in self.plugins.iter().enumerate() {
            if let Err(message) = plugin.reserve(pod, node) {
                self.plugins[..=at].iter().rev().for_each(|p| p.unreserve(pod, node));
                return Err(format!("running Reserve plugin {:?}: {message}", plugin.name()));
            }
        }
        Ok(())
    }

    /// A pod does not get to the node that was decided on: it counts there no longer, and is tried
    /// again. False when the informer has shown it there after all.
    pub fn take_back(&self, pod: &PodInfo, node: &str, retry: bool) -> bool {
        self.plugins.iter().rev().for_each(|p| p.unreserve(pod, node));
        let mut state = self.state.lock();
        // The informer may have shown it there meanwhile, whatever the answer was.
        let assumed = state.assumed.remove(pod.uid()).is_some();
        if assumed
            && let Some((_, old)) = state.cluster.remove_pod(pod.uid())
        {
            if retry {
                state.queue.error(pod.uid(), Instant::now());
            } else {
                state.queue.remove(pod.uid());
            }
            state.tell(self, &Event::PodGone { old, node: node.into() });
        }
        self.wake.notify_one();
        assumed
    }

    /// How often a pod that waits for a node has been tried; nothing when it waits no more.
    pub fn attempt(&self, uid: &str) -> Option<u32> {
        let state = self.state.lock();
        state.queue.get(uid).filter(|_| !state.assumed.contains_key(uid)).map(|entry| entry.attempts)
    }

    /// A pod is to be tried at once.
    pub fn activate(&self, uid: &str) {
        self.state.lock().queue.activate_waiting(uid);
        self.wake.notify_one();
    }
}

/// What comes of a turn.
pub(crate) enum Next {
    Do(Box<Work>),
    Wait(Option<Instant>),
    Ask(Box<Question>),
}

impl Next {
    /// Something went wrong with a pod.
    pub fn failed(pod: Arc<PodInfo>, profile: usize, message: String) -> Next {
        Next::Do(Box::new(Work::Failed { pod, profile, message }))
    }
}

/// What is to be written after a decision.
pub(crate) enum Work {
    Bind { pod: Arc<PodInfo>, node: String, profile: usize },
    Refused { pod: Arc<PodInfo>, profile: usize, failure: Box<Failure>, nominated: Option<Box<str>>, cleared: Vec<Arc<PodInfo>> },
    Failed { pod: Arc<PodInfo>, profile: usize, message: String },
}
