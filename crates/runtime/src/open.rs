//! Opening: what the files say and what the shims say, put together.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::Message;
use cri::v1::*;
use parking_lot::Mutex;
use shim::protocol::{Answer, Call, Held};
use shim::record::{Exit, Start};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::shim::Shim;
use crate::state::{Container, Failure, Life, Runtime, Sandbox, SandboxState};
use crate::{Config, Network, files, spec};

/// What keeps a runtime from opening.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
    #[error(transparent)]
    Sys(#[from] sys::Error),
}

/// A living shim answers at once; one that does not within this time is as good as dead.
const ANSWER: Duration = Duration::from_secs(5);

impl Runtime {
    /// Opens the runtime: shims that live are adopted with all they hold, what is left of dead ones
    /// ends. Must be called within a tokio runtime.
    pub async fn open(config: Config, network: Arc<dyn Network>, images: Arc<image::Store>) -> Result<Arc<Self>, Error> {
        for dir in [config.sandboxes(), config.containers(), config.run.clone()] {
            std::fs::create_dir_all(&dir).map_err(|e| Error::Io(format!("make {}", dir.display()), e))?;
        }
        let cgroups = sys::cgroup::Cgroups::detect()?;
        cgroups.create(&config.shim_cgroup())?;
        let runtime = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            config,
            network,
            images,
            cgroups,
            capabilities: spec::caps::own(),
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            events: broadcast::channel(1024).0,
            tokens: Default::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let loaded = runtime.load_sandboxes()?;
        runtime.load_containers(&loaded)?;
        futures::future::join_all(loaded.iter().map(|sandbox| runtime.adopt(sandbox))).await;
        runtime.serve_streams().map_err(|e| Error::Io("listen for streaming clients".into(), e))?;
        Ok(runtime)
    }

    fn load_sandboxes(&self) -> Result<Vec<Arc<Sandbox>>, Error> {
        let mut loaded = Vec::new();
        for (id, dir) in entries(&self.config.sandboxes())? {
            let request = std::fs::read(dir.join("request.pb")).ok().and_then(|b| RunPodSandboxRequest::decode(&b[..]).ok());
            let state: Option<SandboxState> = files::read_json(&dir.join("state.json")).ok();
            let (Some(request), Some(state)) = (request.filter(|r| r.config.is_some()), state) else {
                // Its making was cut off before anybody heard of it.
                tracing::info!(sandbox = id, "removing an unfinished sandbox");
                self.remove_remains(&id, &dir);
                continue;
            };
            let sandbox = Arc::new(Sandbox {
                run: self.config.run.join(&id),
                id,
                request,
                dir,
                state: Mutex::new(state),
                turn: tokio::sync::Mutex::new(()),
            });
            self.sandboxes.lock().insert(sandbox.id.clone(), sandbox.clone());
            loaded.push(sandbox);
        }
        // Directories of shims whose sandbox is not known.
        for (id, dir) in entries(&self.config.run)? {
            if dir.is_dir() && !self.sandboxes.lock().contains_key(&id) {
                self.remove_remains(&id, &dir);
            }
        }
        Ok(loaded)
    }

    fn remove_remains(&self, id: &str, dir: &Path) {
        let run = self.config.run.join(id);
        crate::purge::quit(&run);
        let removed = sys::mount::unmount_below(&run).map_err(|e| e.to_string());
        let removed = removed.and_then(|()| files::remove_dir(&run).and_then(|()| files::remove_dir(dir)).map_err(|e| e.to_string()));
        if let Err(error) = removed {
            tracing::warn!(sandbox = id, error, "cannot remove what is left of a sandbox");
        }
    }

    fn load_containers(&self, sandboxes: &[Arc<Sandbox>]) -> Result<(), Error> {
        for (id, dir) in entries(&self.config.containers())? {
            let config = std::fs::read(dir.join("config.pb")).ok().and_then(|b| ContainerConfig::decode(&b[..]).ok());
            let fixed: Option<crate::state::Fixed> = files::read_json(&dir.join("state.json")).ok();
            let sandbox = fixed.as_ref().and_then(|f| sandboxes.iter().find(|s| s.id == f.sandbox));
            let (Some(config), Some(sandbox)) = (config, sandbox.cloned()) else {
                tracing::info!(container = id, "removing an unfinished container");
                let _ = sys::mount::unmount(&dir.join("rootfs"));
                let _ = files::remove_dir(&dir);
                let _ = self.images.release(&id);
                continue;
            };
            let container = Container {
                id: id.clone(),
                sandbox,
                fixed: fixed.unwrap_or_default(),
                life: watch::Sender::new(recorded_life(&dir)),
                dir,
                turn: tokio::sync::Mutex::new(()),
                resources: Mutex::new(config.linux.as_ref().and_then(|l| l.resources.clone())),
                written: Mutex::default(),
                config,
            };
            self.containers.lock().insert(id, Arc::new(container));
        }
        Ok(())
    }

    /// Takes a sandbox over from whoever ran before us.
    pub(crate) async fn adopt(&self, sandbox: &Arc<Sandbox>) {
        let held = match self.greet(sandbox).await {
            Some(held) => held,
            None => {
                let was_ready = std::mem::replace(&mut sandbox.state.lock().ready, false);
                if was_ready {
                    tracing::warn!(sandbox = sandbox.id, "a sandbox's shim has gone; its pod ends");
                    let _ = sandbox.save();
                }
                Vec::new()
            }
        };
        for container in self.containers_of(&sandbox.id) {
            match held.iter().find(|h| h.id == container.id) {
                Some(Held { exit: Some(exit), .. }) => drop(container.end(exit.clone())),
                Some(Held { pid, .. }) => {
                    let pid = *pid;
                    // Started while we were going down, before its record was read.
                    container.life.send_if_modified(|life| {
                        let started = matches!(life, Life::Created);
                        if started {
                            *life = Life::Running { pid, at: files::now() };
                        }
                        started
                    });
                }
                None if container.life.borrow().is_running() => self.abandon(&container).await,
                None => {}
            }
        }
    }

    async fn greet(&self, sandbox: &Arc<Sandbox>) -> Option<Vec<Held>> {
        if !sandbox.state.lock().ready {
            return None;
        }
        let shim = Arc::new(Shim::connect(&sandbox.run).ok()?);
        sandbox.state.lock().shim = Some(shim.clone());
        self.attend(sandbox, &shim);
        match tokio::time::timeout(ANSWER, shim.call(Call::Hello, &[])).await {
            Ok(Ok((Answer::Hello { containers, pid, pause }, _))) => {
                let mut state = sandbox.state.lock();
                (state.shim_pid, state.pause_pid) = (pid, pause);
                Some(containers)
            }
            _ => {
                sandbox.state.lock().shim = None;
                None
            }
        }
    }
}

/// Where a container's files say that it is.
fn recorded_life(dir: &Path) -> Life {
    let started = Start::load(dir);
    match Exit::load(dir) {
        Some(exit) => match files::read_json::<Failure>(&dir.join("failure.json")) {
            Ok(failure) => Life::Exited { started_at: 0, exit, reason: "StartError".into(), message: failure.message },
            Err(_) => Life::ended(started.map_or(0, |s| s.at), exit),
        },
        None => started.map_or(Life::Created, |s| Life::Running { pid: s.pid, at: s.at }),
    }
}

fn entries(dir: &Path) -> Result<Vec<(String, std::path::PathBuf)>, Error> {
    let list = std::fs::read_dir(dir).map_err(|e| Error::Io(format!("read {}", dir.display()), e))?;
    let named = list.flatten().map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    Ok(named.filter(|(_, path)| path.is_dir()).collect())
}
