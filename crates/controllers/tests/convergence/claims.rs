//! Claims of devices: made from templates, reserved, given back; and cron jobs, which make work as well.

use serde_json::{Value, json};

use crate::world::{CRON_JOBS, DEVICE_CLAIMS, JOBS, PODS, World, converges};

async fn claim_of(world: &World, pod: &str) -> Option<Value> {
    let statuses = world.get(&format!("{PODS}/{pod}")).await?["status"]["resourceClaimStatuses"].clone();
    let name = statuses[0]["resourceClaimName"].as_str()?.to_string();
    world.get(&format!("{DEVICE_CLAIMS}/{name}")).await
}

/// Gives a claim a device, as the scheduler does.
async fn allocate(world: &World, claim: &str) {
    let path = format!("{DEVICE_CLAIMS}/{claim}");
    world.patch(&path, json!({"metadata": {"finalizers": ["resource.kubernetes.io/delete-protection"]}})).await;
    let device = json!({"request": "r", "driver": "example.com", "pool": "p", "device": "d"});
    world.patch(&format!("{path}/status"), json!({"status": {"allocation": {"devices": {"results": [device]}}}})).await;
}

fn consumers(claim: &Value) -> Vec<String> {
    let all = claim["status"]["reservedFor"].as_array().into_iter().flatten();
    let mut names: Vec<String> = all.map(|c| c["name"].as_str().unwrap_or("").to_string()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_of_devices_live_with_their_pods() {
    converges(async |world| {
        world.until("there is an account", async || world.get("/api/v1/namespaces/test/serviceaccounts/default").await.is_some()).await;
        let spec = json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "example.com"}}]}});
        let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": spec}});
        world.create("/apis/resource.k8s.io/v1/namespaces/test/resourceclaimtemplates", template).await;
        world.create(DEVICE_CLAIMS, json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "shared"}, "spec": spec})).await;
        allocate(&world, "shared").await;
        let pod = |name: &str, claim: Value| {
            let mut entry = json!({"name": "device"});
            entry.as_object_mut().expect("fields").extend(claim.as_object().cloned().unwrap_or_default());
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "image": "a"}], "resourceClaims": [entry]}})
        };
        let from_template = json!({"resourceClaimTemplateName": "t"});
        for name in ["own", "done"] {
            world.create(PODS, pod(name, from_template.clone())).await;
            world.until("it has a claim", async || claim_of(&world, name).await.is_some()).await;
            let claim = claim_of(&world, name).await.expect("a claim");
            allocate(&world, claim["metadata"]["name"].as_str().expect("a name")).await;
            world.until("it is reserved", async || consumers(&claim_of(&world, name).await.unwrap_or_default()) == [name]).await;
        }
        for name in ["first", "second"] {
            world.create(PODS, pod(name, json!({"resourceClaimName": "shared"}))).await;
        }
        let shared = async || world.get(&format!("{DEVICE_CLAIMS}/shared")).await.unwrap_or_default();
        world.until("both have it", async || consumers(&shared().await) == ["first", "second"]).await;
        world.delete(&format!("{PODS}/first"), "Background").await;
        world.until("one has it", async || consumers(&shared().await) == ["second"]).await;
        assert!(shared().await["status"]["allocation"].is_object(), "it is in use");
        let own = claim_of(&world, "done").await.expect("a claim")["metadata"]["name"].as_str().expect("a name").to_string();
        world.patch(&format!("{PODS}/done/status"), json!({"status": {"phase": "Succeeded"}})).await;
        world.until_gone(&format!("{DEVICE_CLAIMS}/{own}")).await;
        world.delete(&format!("{PODS}/second"), "Background").await;
        world.until("it is free", async || {
            let shared = shared().await;
            shared["status"]["allocation"].is_null() && shared["metadata"]["finalizers"].is_null()
        })
        .await;
        world.until("no claim is without a use", async || world.list(DEVICE_CLAIMS).await.len() == 2).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cron_jobs_make_one_job_for_the_last_time_that_was_missed() {
    converges(async |world| {
        for (name, suspended, kept) in [("yearly", false, 1), ("forgetful", false, 0), ("halted", true, 1)] {
            let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]});
            let spec = json!({"schedule": "0 0 1 1 *", "suspend": true, "successfulJobsHistoryLimit": kept, "jobTemplate": {"spec": {"template": {"spec": pod}}}});
            world.create(CRON_JOBS, json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec})).await;
            let path = format!("{CRON_JOBS}/{name}");
            world.patch(&format!("{path}/status"), json!({"status": {"lastScheduleTime": "2020-01-01T00:00:00Z"}})).await;
            if !suspended {
                world.patch(&path, json!({"spec": {"suspend": false}})).await;
            }
        }
        let end = async |of: &str| {
            for pod in world.list(PODS).await.iter().filter(|p| p["metadata"]["generateName"].as_str().is_some_and(|n| n.starts_with(of))) {
                let path = format!("{PODS}/{}/status", pod["metadata"]["name"].as_str().unwrap_or(""));
                if pod["status"]["phase"] == "Running" {
                    world.patch(&path, json!({"status": {"phase": "Succeeded", "conditions": []}})).await;
                }
            }
        };
        for name in ["yearly", "forgetful"] {
            world
                .until(&format!("the job of {name} was a success"), async || {
                    // One pod too many may be there for a moment, when an answer was lost.
                    let jobs = world.list(JOBS).await;
                    let job = jobs.iter().find(|j| j["metadata"]["ownerReferences"][0]["name"] == name);
                    if job.is_some_and(|j| j["status"]["ready"] == 1 && j["status"]["active"] == 1) {
                        end(name).await;
                    }
                    let status = world.get(&format!("{CRON_JOBS}/{name}")).await.unwrap_or_default()["status"].clone();
                    status["lastSuccessfulTime"].is_string() && status["active"].is_null()
                })
                .await;
        }
        world.until("one is kept", async || {
            let jobs = world.list(JOBS).await;
            jobs.len() == 1 && jobs[0]["metadata"]["ownerReferences"][0]["name"] == "yearly"
        })
        .await;
    })
    .await;
}
