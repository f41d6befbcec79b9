//! Workers against the fake runtime and a fake API: whole lives of pods.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::Fake;
use k8s_openapi::api::core::v1::Pod;
use reconcile::{Recorder, Tasks};
use serde_json::{Value, json};

use crate::config::Dns;
use crate::images::Images;
use crate::manager::{self, Pods};
use crate::objects::Watches;
use crate::report::Reporter;
use crate::report::tests::FakeApi;
use crate::volumes::Volumes;
use crate::volumes::tests::FakeObjects;
use crate::worker::Shared;

struct World {
    _dir: tempfile::TempDir,
    root: std::path::PathBuf,
    fake: Arc<Fake>,
    api: Arc<FakeApi>,
    pods: Arc<Pods>,
    shared: Arc<Shared>,
    tasks: Tasks,
}

fn shared(root: &Path, fake: &Arc<Fake>, api: &Arc<FakeApi>, pods: &Arc<Pods>, tasks: &Tasks) -> Arc<Shared> {
    let objects = Arc::new(FakeObjects::default());
    let removed = pods.clone();
    Arc::new(Shared {
        node_name: "node".into(),
        node_ips: vec!["192.168.0.1".parse().unwrap()],
        log_root: root.join("logs"),
        dns: Dns::default(),
        runtime: fake.clone(),
        runtime_name: "fake".into(),
        images: Images::new(fake.clone(), Recorder::none()),
        volumes: Volumes::new(root.join("kubelet"), root.join("run"), objects.clone()),
        objects,
        watches: Watches::new(None, tasks.clone(), Arc::new(|_| {})),
        reporter: Reporter::new(api.clone(), tasks),
        recorder: Recorder::none(),
        probe_counts: Default::default(),
        cgroups: None,
        services: None,
        allocatable: Default::default(),
        memory_capacity: 1 << 30,
        tasks: tasks.clone(),
        admit: Box::new(|pod| if pod.metadata.labels.as_ref().is_some_and(|l| l.contains_key("reject")) { Err(("OutOfcpu".into(), "Pod was rejected: no".into())) } else { Ok(()) }),
        removed: Box::new(move |uid| removed.remove(uid)),
    })
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::new());
        let root = dir.path().to_path_buf();
        let mut world = World::over(dir, root, fake);
        world.start();
        world
    }

    fn over(dir: tempfile::TempDir, root: std::path::PathBuf, fake: Arc<Fake>) -> World {
        let tasks = Tasks::new();
        let api = Arc::new(FakeApi::default());
        let pods = Arc::new(Pods::new(tasks.clone()));
        let shared = shared(&root, &fake, &api, &pods, &tasks);
        World { _dir: dir, root, fake, api, pods, shared, tasks }
    }

    fn start(&mut self) {
        self.tasks.spawn("events", manager::take_events(self.pods.clone(), self.fake.clone()));
    }

    fn put(&self, pod: &Pod) {
        self.pods.update(&self.shared, Arc::new(pod.clone()));
    }

    /// The merged status so far.
    fn status(&self) -> Value {
        let mut status = json!({});
        for patch in self.api.patches.lock().iter() {
            for (key, value) in patch["status"].as_object().unwrap() {
                if key == "conditions" {
                    for condition in value.as_array().unwrap() {
                        let all = status.as_object_mut().unwrap().entry("conditions").or_insert(json!({}));
                        all[condition["type"].as_str().unwrap()] = condition["status"].clone();
                    }
                } else {
                    status[key] = value.clone();
                }
            }
        }
        status
    }

    /// Waits until the status is as wanted, at most ten seconds.
    async fn until(&self, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let changed = self.api.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let status = self.status();
                if test(&status) {
                    return status;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(10), wait).await {
            Ok(status) => status,
            Err(_) => panic!("{what}: {:#}\n{:?}", self.status(), self.fake.calls()),
        }
    }

    fn container_id(&self, status: &Value, i: usize) -> String {
        let id = status["containerStatuses"][i]["containerID"].as_str().unwrap();
        id.strip_prefix("fake://").unwrap().to_string()
    }
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec})).unwrap()
}

fn phase(expect: &str) -> impl Fn(&Value) -> bool {
    let expect = expect.to_string();
    move |status| status["phase"] == expect
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted_without_a_trace() {
    let world = World::new();
    let mut it = pod(json!({"containers": [{"name": "a", "image": "i:1"}], "volumes": [{"name": "v", "emptyDir": {}}]}));
    world.put(&it);
    let status = world.until("running", phase("Running")).await;
    assert_eq!(status["conditions"]["Ready"], "True");
    assert_eq!(status["podIP"], "10.1.0.3");
    assert_eq!(world.api.patches.lock().len(), 1, "no passing state is written");
    let config = world.fake.container_config(&world.container_id(&status, 0)).unwrap();
    assert_eq!(config.log_path, "a/0.log");
    assert!(world.root.join("kubelet/pods/u/volumes/kubernetes.io~empty-dir/v").is_dir());
    assert!(world.root.join("logs/n_p_u/a").is_dir());
    assert!(std::fs::read_to_string(world.root.join("kubelet/pods/u/etc-hosts")).unwrap().contains("10.1.0.3\tp\n"));

    it.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
    it.metadata.deletion_grace_period_seconds = Some(1);
    world.put(&it);
    let status = world.until("ended", phase("Failed")).await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
    while world.api.deleted.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!world.root.join("kubelet/pods/u").exists());
    world.pods.gone(&world.shared, Arc::new(it));
    while !world.pods.list().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!world.root.join("logs/n_p_u").exists());
    assert!(world.fake.calls().contains(&"remove_pod_sandbox"));
}

#[tokio::test]
async fn a_crash_restarts_at_once_and_then_backs_off() {
    let world = World::new();
    world.put(&pod(json!({"containers": [{"name": "a", "image": "i:1"}]})));
    let status = world.until("running", phase("Running")).await;
    world.fake.exit(&world.container_id(&status, 0), 3);
    let status = world.until("restarted", |s| s["containerStatuses"][0]["restartCount"] == 1 && s["containerStatuses"][0]["ready"] == true).await;
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    world.fake.exit(&world.container_id(&status, 0), 4);
    let status = world.until("waiting", |s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "back-off 10s restarting failed container=a pod=p_n(u)");
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["conditions"]["Ready"], "False");
}

#[tokio::test]
async fn a_job_runs_its_init_containers_and_completes() {
    let world = World::new();
    world.put(&pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i:1"}], "containers": [{"name": "a", "image": "i:1"}]})));
    let status = world.until("initialising", |s| s["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert_eq!((&status["phase"], &status["conditions"]["Initialized"]), (&json!("Pending"), &json!("False")));
    let id = status["initContainerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("fake://").to_string();
    world.fake.exit(&id, 0);
    let status = world.until("running", phase("Running")).await;
    world.fake.exit(&world.container_id(&status, 0), 0);
    let status = world.until("done", phase("Succeeded")).await;
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(status["podIP"], "10.1.0.3", "history");
}

#[tokio::test]
async fn what_cannot_run_says_why() {
    let world = World::new();
    world.put(&pod(json!({"containers": [{"name": "a", "image": "i:1", "imagePullPolicy": "Never"}]})));
    let status = world.until("no image", |s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull").await;
    assert_eq!(status["phase"], "Pending");
    let world = World::new();
    world.put(&pod(json!({"containers": [{"name": "a", "image": "i:1", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}]})));
    let status = world.until("no map", |s| s["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError").await;
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["message"], "configmap \"m\" not found");
    let world = World::new();
    let mut rejected = pod(json!({"containers": [{"name": "a", "image": "i:1"}]}));
    rejected.metadata.labels = Some([("reject".to_string(), String::new())].into());
    world.put(&rejected);
    let status = world.until("rejected", phase("Failed")).await;
    assert_eq!((&status["reason"], &status["message"]), (&json!("OutOfcpu"), &json!("Pod was rejected: no")));
    assert!(!world.fake.calls().contains(&"run_pod_sandbox"));
}

#[tokio::test]
async fn pods_are_adopted_and_orphans_end_after_a_restart() {
    let world = World::new();
    let it = pod(json!({"containers": [{"name": "a", "image": "i:1"}]}));
    world.put(&it);
    let status = world.until("running", phase("Running")).await;
    let id = world.container_id(&status, 0);
    world.tasks.shutdown(Duration::from_secs(1)).await;

    let World { _dir: dir, root, fake, .. } = world;
    let mut second = World::over(dir, root, fake);
    second.start();
    second.put(&it);
    let status = second.until("adopted", phase("Running")).await;
    assert_eq!(second.container_id(&status, 0), id);
    assert_eq!(second.fake.calls().iter().filter(|c| **c == "start_container").count(), 1);
    second.tasks.shutdown(Duration::from_secs(1)).await;

    let World { _dir: dir, root, fake, .. } = second;
    let mut third = World::over(dir, root, fake);
    third.start();
    manager::end_orphans(&third.pods, &third.shared, &|_| false).await.unwrap();
    while !third.fake.calls().contains(&"remove_pod_sandbox") || !third.pods.list().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(third.api.patches.lock().is_empty());
    assert!(!third.root.join("kubelet/pods/u").exists());
}

#[tokio::test]
async fn a_debugging_container_joins_and_the_pod_does_not_mind() {
    let world = World::new();
    let mut it = pod(json!({"containers": [{"name": "a", "image": "i:1"}]}));
    world.put(&it);
    let status = world.until("running", phase("Running")).await;
    let target = world.container_id(&status, 0);
    it.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(json!([{"name": "shell", "image": "i:1", "targetContainerName": "a", "tty": true}])).unwrap();
    world.put(&it);
    let status = world.until("debugged", |s| s["ephemeralContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert_eq!(status["conditions"]["Ready"], "True");
    let id = status["ephemeralContainerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("fake://").to_string();
    let config = world.fake.container_config(&id).unwrap();
    assert!(config.tty);
    let namespaces = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!((namespaces.pid, namespaces.target_id), (cri::v1::NamespaceMode::Target as i32, target));
    // Its end is told, and it is not started again.
    world.fake.exit(&id, 7);
    let status = world.until("left", |s| s["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 7).await;
    assert_eq!((&status["phase"], &status["conditions"]["Ready"]), (&json!("Running"), &json!("True")));
    assert_eq!(world.fake.calls().iter().filter(|c| **c == "create_container").count(), 2);
}

#[tokio::test]
async fn a_running_container_is_resized_in_place() {
    let world = World::new();
    let sized = |cpu: &str| pod(json!({"containers": [{"name": "a", "image": "i:1", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": "1"}}}]}));
    world.put(&sized("100m"));
    world.until("running", phase("Running")).await;
    world.put(&sized("200m"));
    let status = world.until("resized", |s| s["containerStatuses"][0]["resources"]["requests"]["cpu"] == "200m").await;
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(world.fake.calls().iter().filter(|c| **c == "update_container_resources").count(), 1);
    // Refused by the node: what is there stays, and a condition says why.
    let mut too_much = sized("300m");
    too_much.metadata.labels = Some([("reject".to_string(), String::new())].into());
    too_much.status = serde_json::from_value(json!({"containerStatuses": status["containerStatuses"]})).unwrap();
    world.put(&too_much);
    let status = world.until("deferred", |s| s["conditions"]["PodResizePending"] == "True").await;
    assert_eq!(status["containerStatuses"][0]["resources"]["requests"]["cpu"], "200m");
}
