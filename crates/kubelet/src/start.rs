//! The part of a worker that makes sandboxes and starts containers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cri::v1::{CreateContainerRequest, RemoveContainerRequest, RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest};
use k8s_openapi::api::core::v1::{Container, Secret};
use kube::ResourceExt;
use reconcile::EventType;

use crate::check::Outcome;
use crate::plan::Plan;
use crate::pod::{self, Role};
use crate::worker::{Place, Worker, instant};
use crate::{config, env, kill};

/// What kept a container from starting.
enum Failure {
    /// Reason and message for its status; it is tried again after this time.
    Waits(String, String, Duration),
    /// The pod is to end meanwhile.
    Ending,
}

/// Upstream tries again with the next sync of the pod.
const AGAIN: Duration = Duration::from_secs(10);

impl Worker {
    /// Makes the sandbox when one is planned, and starts what is planned. Answers when to look again.
    pub(crate) async fn start(&mut self, plan: &Plan) -> Result<Option<Duration>, String> {
        let place = match self.place(plan).await {
            Ok(place) => place,
            Err(error) => {
                self.forget_sandboxes();
                self.warn("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
                return Err(error);
            }
        };
        let mut next: Option<Duration> = None;
        for name in &plan.start {
            let pod = self.pod.clone();
            let Some(member) = pod::member(&pod, name) else { continue };
            match self.start_container(member.spec, &place).await {
                Ok(()) => {
                    self.waiting.remove(name);
                    self.told.remove(name);
                }
                Err(Failure::Ending) => return Ok(Some(Duration::ZERO)),
                Err(Failure::Waits(reason, message, time)) => {
                    if !matches!(reason.as_str(), "CrashLoopBackOff") {
                        let text = if reason.ends_with("ConfigError") || reason.ends_with("Error") && !reason.contains("Image") { &message } else { &reason };
                        let about = self.container_reference(name);
                        self.shared.recorder.event(&about, EventType::Warning, "Failed", format!("Error: {text}"));
                    }
                    self.waiting.insert(name.clone(), (reason, message));
                    next = Some(next.map_or(time, |n: Duration| n.min(time)));
                    // An init container holds up those after it.
                    if member.role != Role::Main {
                        break;
                    }
                }
            }
        }
        Ok(next)
    }

    /// Starts what was added for debugging and never ran. Answers when to look again.
    pub(crate) async fn start_ephemeral(&mut self) -> Result<Option<Duration>, String> {
        let status = self.pod.status.as_ref().and_then(|s| s.ephemeral_container_statuses.clone()).unwrap_or_default();
        let ended = |name: &str| status.iter().any(|s| s.name == name && s.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        let unseen = |c: &Container| self.view.latest(&c.name).is_none_or(|v| v.stillborn()) && !ended(&c.name);
        let due: Vec<Container> = pod::ephemeral(&self.pod).into_iter().filter(unseen).collect();
        if due.is_empty() || self.view.ready_sandbox().is_none() {
            return Ok(None);
        }
        let place = self.place(&Plan::default()).await?;
        let mut next: Option<Duration> = None;
        for container in due {
            match self.start_container(&container, &place).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                }
                Err(Failure::Ending) => return Ok(Some(Duration::ZERO)),
                Err(Failure::Waits(reason, message, time)) => {
                    let about = self.container_reference(&container.name);
                    self.shared.recorder.event(&about, EventType::Warning, "Failed", format!("Error: {reason}"));
                    self.waiting.insert(container.name.clone(), (reason, message));
                    next = Some(next.map_or(time, |n: Duration| n.min(time)));
                }
            }
        }
        self.look().await.map_err(|e| e.to_string())?;
        Ok(next)
    }

    async fn place(&mut self, plan: &Plan) -> Result<Place, String> {
        let pod = self.pod.clone();
        let attempt = plan.sandbox.or_else(|| self.view.sandbox().and_then(|s| s.metadata.as_ref()).map(|m| m.attempt)).unwrap_or(0);
        let hostname = config::hostname(&pod, &self.shared.node_name);
        let parent = match &self.shared.cgroups {
            Some(cgroups) => cgroups.path(&pod),
            None => String::new(),
        };
        let dns = config::dns(&pod, &self.shared.dns);
        let config = config::sandbox(&pod, attempt, dns, hostname.clone(), &self.shared.log_root, &parent);
        if plan.sandbox.is_none()
            && let Some(sandbox) = self.view.ready_sandbox()
        {
            return Ok(Place { id: sandbox.id.clone(), config });
        }
        if plan.kill_pod {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.recorder.event(&self.reference(), EventType::Normal, "SandboxChanged", message);
            for sandbox in &self.view.sandboxes {
                let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
                self.shared.runtime.stop_pod_sandbox(request).await.map_err(|e| e.to_string())?;
            }
        }
        if let Some(cgroups) = &self.shared.cgroups {
            cgroups.create(&pod).map_err(|e| e.to_string())?;
        }
        std::fs::create_dir_all(self.log_dir()).map_err(|e| e.to_string())?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = self.shared.runtime.run_pod_sandbox(request).await.map_err(|e| e.to_string())?;
        self.forget_sandboxes();
        self.look().await.map_err(|e| e.to_string())?;
        self.write_hosts(&hostname).map_err(|e| format!("hosts file: {e}"))?;
        Ok(Place { id: answer.pod_sandbox_id, config })
    }

    fn hosts_file(&self) -> PathBuf {
        self.shared.volumes.pod_dir(&self.uid).join("etc-hosts")
    }

    fn write_hosts(&self, hostname: &str) -> std::io::Result<()> {
        let text = if pod::host_network(&self.pod) {
            format!("{}{}", std::fs::read_to_string("/etc/hosts").unwrap_or_default(), config::host_aliases(&self.pod))
        } else {
            config::hosts(&self.pod, &self.view.ips(), hostname, &self.shared.dns.domain)
        };
        let path = self.hosts_file();
        std::fs::create_dir_all(self.shared.volumes.pod_dir(&self.uid))?;
        std::fs::write(path, text)
    }

    async fn start_container(&mut self, container: &Container, place: &Place) -> Result<(), Failure> {
        let pod = self.pod.clone();
        let name = &container.name;
        let about = self.container_reference(name);
        let latest = self.view.latest(name).cloned();
        if let Some(ended) = latest.as_ref().filter(|c| c.exited()) {
            let key = name.clone();
            if let Err(left) = self.backoff.restart(&key, instant(ended.status.finished_at), Instant::now()) {
                let pause = pod::go_duration(self.backoff.pause(&key));
                // Once for each end, not for each look.
                if self.told.insert(name.clone(), ended.status.id.clone()).as_ref() != Some(&ended.status.id) {
                    let message = format!("Back-off restarting failed container {name} in pod {}", pod::format(&pod));
                    self.shared.recorder.event(&about, EventType::Warning, "BackOff", message);
                }
                let message = format!("back-off {pause} restarting failed container={name} pod={}", pod::format(&pod));
                return Err(Failure::Waits("CrashLoopBackOff".into(), message, left + Duration::from_millis(10)));
            }
        }
        let fail = |reason: &str, message: String| Failure::Waits(reason.to_string(), message, AGAIN);

        let secrets = async || self.pull_secrets().await;
        let ensured = tokio::select! {
            result = self.shared.images.ensure(&pod, container, &about, secrets, &place.config) => result,
            () = self.ending() => return Err(Failure::Ending),
        };
        let image = match ensured {
            Ok(image) => image,
            Err((reason, message)) => {
                let wait = self.shared.images.next_try(&pod, Instant::now()).unwrap_or(AGAIN);
                return Err(Failure::Waits(reason, message, wait + Duration::from_millis(10)));
            }
        };
        config::verify_non_root(&pod, container, image.uid.as_ref().map(|u| u.value), &image.username)
            .map_err(|e| fail("CreateContainerConfigError", e))?;

        let environment = self.environment(container).await.map_err(|e| fail("CreateContainerConfigError", e))?;
        let empty = BTreeMap::new();
        let volumes = self.mounted.as_ref().map_or(&empty, |m| &m.paths);
        let lookup = |n: &str| environment.iter().find(|(k, _)| k == n).map(|(_, v)| v.clone());
        let sub_paths = self
            .shared
            .volumes
            .sub_paths(&pod, container, volumes, |text| env::expand(text, lookup))
            .map_err(|e| fail("CreateContainerConfigError", e))?;
        let attempt = latest.as_ref().map_or_else(|| self.noted_restarts(name), |c| if c.stillborn() { c.attempt() } else { c.attempt() + 1 });
        let message_file = self.shared.volumes.pod_dir(&self.uid).join("containers").join(name).join(attempt.to_string());
        let made = message_file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            std::fs::write(&message_file, b"")?;
            std::fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
            std::fs::create_dir_all(self.log_dir().join(name))
        });
        made.map_err(|e| fail("CreateContainerConfigError", e.to_string()))?;
        let share_hosts = !pod::host_network(&pod) || pod::spec(&pod).host_aliases.as_ref().is_some_and(|a| !a.is_empty());
        let parts = config::Parts {
            attempt,
            image_ref: image.id.clone(),
            environment: environment.clone(),
            volumes,
            sub_paths: &sub_paths,
            hosts: Some(self.hosts_file()).filter(|f| share_hosts && f.exists()),
            message_file,
            capacity: self.shared.memory_capacity,
        };
        let mut config = config::container(&pod, container, parts).map_err(|e| fail("CreateContainerConfigError", e))?;
        if let Some(target) = pod::target(&pod, name) {
            let Some(running) = self.view.latest(target).filter(|v| v.running()) else {
                return Err(fail("CreateContainerConfigError", format!("unable to find target container {}", pod::go_quote(target))));
            };
            config::share_processes(&mut config, &running.status.id);
        }

        if let Some(stillborn) = latest.as_ref().filter(|c| c.stillborn()) {
            let request = RemoveContainerRequest { container_id: stillborn.status.id.clone() };
            if let Err(error) = self.shared.runtime.remove_container(request).await {
                tracing::warn!("a container that never ran stays: {error}");
            }
        }
        let recorder = self.shared.recorder.clone();
        let request = CreateContainerRequest { pod_sandbox_id: place.id.clone(), config: Some(config), sandbox_config: Some(place.config.clone()) };
        let id = match self.shared.runtime.create_container(request).await {
            Ok(answer) => answer.container_id,
            Err(error) => return Err(fail("CreateContainerError", error.message)),
        };
        recorder.event(&about, EventType::Normal, "Created", "Container created");
        if let Err(error) = self.shared.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await {
            return Err(fail("RunContainerError", error.message));
        }
        recorder.event(&about, EventType::Normal, "Started", "Container started");

        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            let ip = self.facts().pod_ips.first().and_then(|i| i.parse().ok());
            let shared = self.shared.clone();
            let outcome = tokio::select! {
                outcome = kill::hook(&shared, hook, &id, container, ip, Duration::ZERO) => outcome,
                () = self.ending() => return Err(Failure::Ending),
            };
            if outcome != Outcome::Success {
                tracing::warn!(pod = pod::format(&pod), container = name, "postStart hook: {outcome:?}");
                recorder.event(&about, EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
                let victim = kill::Victim {
                    id,
                    container: Some(container.clone()),
                    about,
                    message: "FailedPostStartHook".into(),
                    grace: pod::grace_period(&pod),
                    tell: true,
                };
                kill::container(&shared, victim, ip).await;
                return Err(fail("PostStartHookError", "PostStartHook failed".into()));
            }
        }
        Ok(())
    }

    /// The count that the API has, for a container of which nothing else is left.
    fn noted_restarts(&self, name: &str) -> u32 {
        let status = self.pod.status.as_ref();
        let all = status.into_iter().flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
        let old = all.into_iter().find(|c| c.name == name && c.container_id.is_some());
        old.and_then(|c| u32::try_from(c.restart_count + 1).ok()).unwrap_or(0)
    }

    async fn pull_secrets(&self) -> Vec<Secret> {
        let namespace = self.pod.namespace().unwrap_or_default();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for reference in pod::spec(&self.pod).image_pull_secrets.iter().flatten() {
            match self.shared.objects.secret(&namespace, &reference.name).await {
                Ok(Some(secret)) => found.push(secret),
                _ => missing.push(reference.name.clone()),
            }
        }
        if !missing.is_empty() {
            let names = missing.join(", ");
            let message = format!("Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed.");
            self.warn("FailedToRetrieveImagePullSecret", message);
        }
        found
    }

    async fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        let namespace = self.pod.namespace().unwrap_or_default();
        let (maps, secrets) = env::references(container);
        let mut sources = env::Sources::default();
        for name in maps {
            if let Some(map) = self.shared.objects.config_map(&namespace, &name).await? {
                sources.config_maps.insert(name, map);
            }
        }
        for name in secrets {
            if let Some(secret) = self.shared.objects.secret(&namespace, &name).await? {
                sources.secrets.insert(name, secret);
            }
        }
        let services = match &self.shared.services {
            Some(informer) => {
                informer.synced().await;
                let mut services = informer.in_namespace(&namespace);
                services.extend(informer.get("default", "kubernetes"));
                services
            }
            None => Vec::new(),
        };
        let allocatable = self.shared.allocatable.read().clone();
        env::environment(&self.pod, container, &sources, &self.facts(), &allocatable, &services)
    }
}

