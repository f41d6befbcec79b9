//! Keeps levels and schemas current: one task of the server.
//!
//! - Default objects are made and brought back, at the start and every minute.
//! - Whenever an object changed all are planned anew, and flow schemas are told whether their level is there.
//! - Every ten seconds seats are lent and borrowed.
//! - Beside that, seats that outlive their requests become free in time for those who wait.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::flowcontrol;
use http::{HeaderValue, Method, Request, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::config::{self, Dangling};
use super::queues::{Discipline, QueueSet};
use super::share::{self, Party};
use super::{Config, Flow, Level, LevelState, Schema, Sharing};
use crate::builder::InProcess;
use crate::model;
use crate::object;
use crate::server::Server;
use crate::types::Resource;
use crate::writer::server_user;

/// The name of the hook that is through once the default objects are there.
pub(crate) const PRODUCER: &str = "priority-and-fairness-config-producer";
const PRODUCER_MANAGER: &str = "api-priority-and-fairness-config-producer-v1";
const CONSUMER_MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
const BORROWING: Duration = Duration::from_secs(10);
const ENSURING: Duration = Duration::from_secs(60);
/// Changes within this time are looked at together.
const BATCH: Duration = Duration::from_millis(20);
/// A schema's status is written so often a minute at most: two servers may be of two minds about it.
const MAX_UPDATES: usize = 6;

impl Flow {
    /// Serves by these objects from now on. Answers the conditions that have to be written.
    pub(super) fn configure(&self, levels: &[&Value], schemas: &[&Value]) -> Vec<Dangling> {
        let before = self.now.load();
        let now = self.clock();
        let busy: Vec<_> =
            before.levels.values().filter(|l| !l.level.set.lock().is_idle()).map(|l| l.plan.spec.clone()).collect();
        let plan = config::plan(levels, schemas, &busy, self.seats);
        let uid = |uid: &str| HeaderValue::from_str(uid).unwrap_or_else(|_| HeaderValue::from_static(""));
        let mut states = std::collections::BTreeMap::new();
        for plan in plan.levels {
            let level = match before.levels.get(&plan.spec.name) {
                Some(known) => known.level.clone(),
                None => Arc::new(Level {
                    set: QueueSet::new(plan.spec.discipline, plan.bounds.initial(), now).into(),
                    dropped: Default::default(),
                    sharing: Sharing { current: plan.bounds.initial(), ..Sharing::default() }.into(),
                }),
            };
            states.insert(plan.spec.name.clone(), Arc::new(LevelState { uid: uid(&plan.spec.uid), plan, level }));
        }
        let schemas = plan.schemas.into_iter().filter_map(|s| {
            let level = states.get(&s.level)?.clone();
            let slot = level.level.set.lock().slot(&s.name);
            Some(Schema { uid: uid(&s.uid), name: s.name, distinguisher: s.distinguisher, rules: s.rules, level, slot })
        });
        let schemas = schemas.collect();
        self.now.store(Arc::new(Config { levels: states, schemas }));
        self.borrow();
        plan.conditions
    }

    /// Shares seats by what each level could have used since the last time.
    pub(super) fn borrow(&self) {
        let config = self.now.load();
        let now = self.clock();
        let mut parties = Vec::new();
        for state in config.levels.values() {
            let period = state.level.set.lock().demand(now);
            let mut sharing = state.level.sharing.lock();
            sharing.demand.update(period);
            let exempt = state.plan.spec.discipline == Discipline::Exempt;
            parties.push(Party { exempt, bounds: state.plan.bounds, demand: sharing.demand, current: sharing.current });
        }
        let shared = share::share(&parties);
        *self.fair.lock() = shared.fair;
        for ((state, current), target) in config.levels.values().zip(shared.current).zip(shared.targets) {
            let mut sharing = state.level.sharing.lock();
            sharing.current = current;
            sharing.target = target;
            drop(sharing);
            let mut set = state.level.set.lock();
            set.configure(now, state.plan.spec.discipline, current);
            self.after(set);
        }
    }

    /// Whether a level's object is gone and it has become idle.
    fn has_drained(&self) -> bool {
        self.now.load().levels.values().any(|l| l.plan.quiescing && l.level.set.lock().is_idle())
    }

    /// Lets seats that outlive their requests become free when their time has come, as long as somebody waits for them.
    async fn let_time_pass(&self) {
        loop {
            let config = self.now.load_full();
            let next = config.levels.values().filter_map(|l| l.level.set.lock().next_release()).min();
            drop(config);
            let pause = async {
                match next {
                    Some(at) => tokio::time::sleep_until((self.started.0 + Duration::from_nanos(at)).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.lingers.notified() => {}
                () = pause => {
                    for state in self.now.load().levels.values() {
                        let mut set = state.level.set.lock();
                        set.advance(self.clock());
                        self.after(set);
                    }
                }
            }
        }
    }
}

impl Server {
    /// Runs until dropped.
    pub(crate) async fn keep_flow(self: &Arc<Server>) {
        let Some(flow) = self.flow() else { return };
        tokio::join!(flow.let_time_pass(), self.keep_flow_objects(flow));
    }

    async fn keep_flow_objects(self: &Arc<Server>, flow: &Flow) {
        let find = |plural: &str| model::find(flowcontrol::GROUP, "v1", plural);
        let (Some(levels), Some(schemas)) = (find("prioritylevelconfigurations"), find("flowschemas")) else { return };
        let cache = |r: &Resource| self.core.cache.resource(r.storage_prefix);
        let (Some(of_levels), Some(of_schemas)) = (cache(levels), cache(schemas)) else { return };
        let (mut of_levels, mut of_schemas) = (of_levels.changes(), of_schemas.changes());
        let mut updates: HashMap<String, Vec<Instant>> = HashMap::new();
        let mut borrowing = tokio::time::interval(BORROWING);
        let mut ensured: Option<Instant> = None;
        borrowing.reset();
        loop {
            of_levels.mark_unchanged();
            of_schemas.mark_unchanged();
            if ensured.is_none_or(|at| at.elapsed() >= ENSURING) {
                match self.ensure_flow_objects(levels, schemas).await {
                    Ok(()) => {
                        ensured = Some(Instant::now());
                        self.hook_is_through(PRODUCER);
                    }
                    Err(why) => tracing::warn!(why, "the default objects of priority and fairness cannot be made; trying again"),
                }
            }
            let all = [levels, schemas].map(|r| self.backend.reader.list(r, None));
            let [all_levels, all_schemas] = all.each_ref().map(|l| l.iter().map(|o| &**o).collect::<Vec<&Value>>());
            let conditions = flow.configure(&all_levels, &all_schemas);
            let again = !self.tell_schemas(conditions, &mut updates).await || ensured.is_none();
            tokio::select! {
                _ = of_levels.changed() => tokio::time::sleep(BATCH).await,
                _ = of_schemas.changed() => tokio::time::sleep(BATCH).await,
                () = tokio::time::sleep(Duration::from_secs(1)), if again => {}
                () = async {
                    loop {
                        borrowing.tick().await;
                        flow.borrow();
                        if flow.has_drained() || ensured.is_none_or(|at| at.elapsed() >= ENSURING) || !updates.is_empty() {
                            updates.retain(|_, times| times.iter().any(|t| t.elapsed() < ENSURING));
                            return;
                        }
                    }
                } => {}
            }
        }
    }

    /// Makes what is missing, brings back what is to be as it was, removes what is no default any more.
    async fn ensure_flow_objects(self: &Arc<Server>, levels: &'static Resource, schemas: &'static Resource) -> Result<(), String> {
        for (resource, suggested, mandatory) in [
            (levels, flowcontrol::suggested_levels(), flowcontrol::mandatory_levels()),
            (schemas, flowcontrol::suggested_schemas(), flowcontrol::mandatory_schemas()),
        ] {
            let manager = format!("fieldManager={PRODUCER_MANAGER}");
            let all = suggested.iter().map(|d| (d, false)).chain(mandatory.iter().map(|d| (d, true)));
            let work = all.map(|(default, mandatory)| {
                let manager = &manager;
                async move {
                    let name = object::name(default);
                    match self.backend.reader.get(resource, "", name) {
                        None => self.call(Method::POST, resource, "", manager, Some(default)).await,
                        Some(current) => match config::revise(&current, default, mandatory) {
                            Some(revised) => self.call(Method::PUT, resource, name, manager, Some(&revised)).await,
                            None => Ok(()),
                        },
                    }
                }
            });
            futures::future::join_all(work).await.into_iter().collect::<Result<Vec<()>, _>>()?;
            let defaults = [suggested.as_slice(), mandatory.as_slice()].concat();
            for current in self.backend.reader.list(resource, None).iter().filter(|o| config::is_unwanted(o, &defaults)) {
                self.call(Method::DELETE, resource, object::name(current), "", None).await?;
            }
        }
        Ok(())
    }

    /// Writes conditions; false when some have to be tried again.
    async fn tell_schemas(self: &Arc<Server>, conditions: Vec<Dangling>, updates: &mut HashMap<String, Vec<Instant>>) -> bool {
        let Some(schemas) = model::find(flowcontrol::GROUP, "v1", "flowschemas") else { return true };
        let now = crate::ctx::format_time(jiff::Timestamp::now());
        let mut work = Vec::new();
        for condition in conditions {
            let times = updates.entry(condition.schema.clone()).or_default();
            times.retain(|t| t.elapsed() < ENSURING);
            if times.len() >= MAX_UPDATES {
                continue;
            }
            times.push(Instant::now());
            let object = condition.apply(&now);
            work.push(async move {
                let name = format!("{}/status", condition.schema);
                let query = format!("fieldManager={CONSUMER_MANAGER}&force=true");
                self.call(Method::PATCH, schemas, &name, &query, Some(&object)).await
            });
        }
        let mut told = true;
        for result in futures::future::join_all(work).await {
            if let Err(why) = result {
                tracing::warn!(why, "a flow schema's condition cannot be written; trying again");
                told = false;
            }
        }
        told
    }

    /// A request of the server to itself. What others were faster with, or removed, is no failure.
    async fn call(self: &Arc<Server>, method: Method, resource: &Resource, name: &str, query: &str, body: Option<&Value>) -> Result<(), String> {
        let slash = if name.is_empty() { "" } else { "/" };
        let uri = format!("/apis/{}/{}/{}{slash}{name}?{query}", resource.group, resource.version, resource.plural);
        let kind = if method == Method::PATCH { "application/apply-patch+yaml" } else { "application/json" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(&uri)
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kube-apiserver")
            .extension(InProcess(server_user()))
            .body(http_body_util::Full::from(body))
            .map_err(|e| e.to_string())?;
        let response = Box::pin(self.handle(request)).await;
        let code = response.status().as_u16();
        if response.status().is_success() || matches!(code, 404 | 409) {
            return Ok(());
        }
        let body = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Err(format!("{uri}: {code} {}", String::from_utf8_lossy(&body)))
    }
}
