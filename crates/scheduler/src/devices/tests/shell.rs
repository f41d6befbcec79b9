//! Whole lives of claims, against the API server of the shell's tests.

use std::time::Duration;

use serde_json::{Value, json};

use super::{claim, exactly, on_a, plain};
use crate::shell_tests::{Fake, node, pod, start};

fn asking(name: &str, claim: &str) -> Value {
    let mut asking = pod(name, 0, "100m");
    asking["spec"]["resourceClaims"] = json!([{"name": "c", "resourceClaimName": claim}]);
    asking
}

fn open(name: &str) -> Value {
    claim(name, json!([exactly("r", json!({}))]), json!({}))
}

fn cluster(devices: &[&str]) -> Fake {
    let fake = Fake::new();
    fake.put("nodes", node("a"));
    fake.put("nodes", node("b"));
    fake.put("deviceclasses", json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu"}}));
    fake.put("resourceslices", on_a(plain(devices)));
    fake
}

fn status(fake: &Fake, claim: &str) -> Value {
    fake.object("resourceclaims", claim)["status"].clone()
}

fn device(fake: &Fake, claim: &str) -> String {
    status(fake, claim)["allocation"]["devices"]["results"][0]["device"].as_str().unwrap_or_default().to_string()
}

fn message(fake: &Fake, pod: &str) -> String {
    fake.pod(pod)["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_string()
}

#[tokio::test]
async fn claims_are_allocated_and_reserved_before_pods_are_bound() {
    let fake = cluster(&["1", "2"]);
    fake.refuse(&[], &[409, 409]);
    ["c1", "c2", "c3"].iter().for_each(|c| fake.put("resourceclaims", open(c)));
    ["p1", "p2", "p3"].iter().zip(["c1", "c2", "c3"]).for_each(|(p, c)| fake.put("pods", asking(p, c)));
    let tasks = start(&fake);
    fake.until("two are bound", |f| ["p1", "p2", "p3"].iter().filter(|p| f.is_on(p, "a")).count() == 2).await;
    let waiting = ["p1", "p2", "p3"].into_iter().find(|p| !fake.is_on(p, "a")).expect("one");
    fake.until("the third is told", |f| message(f, waiting).starts_with("0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: ")).await;
    let (c, rest): (Vec<&str>, Vec<&str>) = ["c1", "c2", "c3"].into_iter().partition(|c| c[1..] == waiting[1..]);
    let mut given: Vec<String> = rest.iter().map(|c| device(&fake, c)).collect();
    given.sort();
    assert_eq!(given, ["1", "2"]);
    let claim = fake.object("resourceclaims", rest[0]);
    assert_eq!(claim["metadata"]["finalizers"], json!(["resource.kubernetes.io/delete-protection"]));
    assert_eq!(claim["status"]["reservedFor"], json!([{"resource": "pods", "name": format!("p{}", &rest[0][1..]), "uid": format!("p{}", &rest[0][1..])}]));
    assert!(claim["status"]["allocation"]["allocationTimestamp"].is_string(), "{claim}");
    // Its devices are given back: the pod that waits gets them.
    let mut freed = claim.clone();
    freed["status"] = json!({});
    fake.put("resourceclaims", freed);
    fake.until("the third is bound", |f| f.is_on(waiting, "a")).await;
    assert_eq!(device(&fake, c[0]), claim["status"]["allocation"]["devices"]["results"][0]["device"]);
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_pod_waits_until_its_claim_is_there() {
    let fake = cluster(&["1"]);
    fake.put("pods", asking("early", "c"));
    fake.put("pods", pod("plain", 0, "1"));
    let tasks = start(&fake);
    fake.until("the other is bound", |f| !f.pod("plain")["spec"]["nodeName"].is_null()).await;
    assert!(fake.pod("early")["spec"]["nodeName"].is_null() && fake.pod("early")["status"]["conditions"].is_null(), "it is not tried at all");
    fake.put("resourceclaims", open("c"));
    fake.until("bound", |f| f.is_on("early", "a")).await;
    // A claim that is made from a template is told of by the pod's status.
    let mut made = open("made");
    made["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": "late", "uid": "late", "controller": true}]);
    let mut late = pod("late", 0, "1");
    late["spec"]["resourceClaims"] = json!([{"name": "t", "resourceClaimTemplateName": "t"}]);
    fake.put("pods", late.clone());
    fake.put("resourceclaims", made);
    late["status"]["resourceClaimStatuses"] = json!([{"name": "t", "resourceClaimName": "made"}]);
    fake.put("pods", late);
    fake.until("tried", |f| message(f, "late").contains("2 cannot allocate all claims")).await;
    fake.put("resourceslices", on_a(plain(&["1", "2"])));
    fake.until("bound", |f| f.is_on("late", "a")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_pod_that_is_turned_away_gives_its_claim_back() {
    let fake = cluster(&["1"]);
    fake.put("resourceclaims", open("c"));
    fake.put("pods", asking("p", "c"));
    fake.refuse(&[500], &[]);
    let tasks = start(&fake);
    fake.until("told", |f| f.was_told("p FailedScheduling: binding rejected")).await;
    fake.until("bound after all", |f| f.is_on("p", "a")).await;
    fake.until("reserved once", |f| status(f, "c")["reservedFor"].as_array().map_or(0, Vec::len) == 1).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_claim_whose_node_will_not_do_is_deallocated() {
    let fake = cluster(&["1"]);
    let mut there = open("c");
    let named = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["gone"]}]}]});
    there["status"] = json!({"allocation": {"nodeSelector": named, "devices": {"results": [{"request": "r", "driver": "d.io", "pool": "other", "device": "x"}]}}});
    fake.put("resourceclaims", there);
    fake.put("pods", asking("p", "c"));
    let tasks = start(&fake);
    fake.until("told", |f| f.was_told("p FailedScheduling: 0/2 nodes are available: 2 resourceclaim not available on the node. deallocation of ResourceClaim completed, preemption: ")).await;
    fake.until("bound elsewhere", |f| f.is_on("p", "a")).await;
    assert_eq!(device(&fake, "c"), "1");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn extended_resources_become_a_claim() {
    let fake = cluster(&["1"]);
    let mut asking = pod("p", 0, "100m");
    asking["spec"]["containers"][0]["resources"]["requests"]["example.com/gpu"] = json!("1");
    fake.put("pods", asking.clone());
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("p", "a")).await;
    let name = "p-extended-resources-made";
    assert_eq!(device(&fake, name), "1");
    assert_eq!(fake.object("resourceclaims", name)["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"], "true");
    let told = json!({"resourceClaimName": name, "requestMappings": [{"containerName": "c", "resourceName": "example.com/gpu", "requestName": "container-0-request-1"}]});
    assert_eq!(fake.pod("p")["status"]["extendedResourceClaimStatus"], told);
    asking["metadata"]["name"] = json!("q");
    asking["metadata"]["uid"] = json!("q");
    fake.put("pods", asking);
    fake.until("no device is left", |f| message(f, "q").starts_with("0/2 nodes are available: 2 cannot allocate all claims. still not schedulable")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_claim_is_told_at_once() {
    let fake = cluster(&["1"]);
    fake.put("resourceclaims", claim("c", json!([exactly("r", json!({"allocationMode": "Half"}))]), json!({})));
    fake.put("pods", asking("p", "c"));
    let tasks = start(&fake);
    fake.until("told", |f| message(f, "p") == "running \"DynamicResources\" filter plugin: claim default/c, request r: unsupported count mode Half").await;
    assert_eq!(fake.pod("p")["status"]["conditions"][0]["reason"], "SchedulerError");
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_pod_waits_until_its_devices_are_ready() {
    let fake = cluster(&[]);
    fake.put("resourceslices", on_a(json!([{"name": "1", "bindingConditions": ["Attached"], "bindingFailureConditions": ["Broken"]}])));
    fake.put("resourceclaims", open("c"));
    fake.put("pods", asking("p", "c"));
    let tasks = start(&fake);
    fake.until("told", |f| f.was_told("p BindingConditionsPending: waiting for binding conditions for device on node a")).await;
    assert!(fake.pod("p")["spec"]["nodeName"].is_null());
    let mut attached = fake.object("resourceclaims", "c");
    attached["status"]["devices"] = json!([{"driver": "d.io", "pool": "pool", "device": "1", "conditions": [{"type": "Attached", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}]);
    fake.put("resourceclaims", attached);
    fake.until("bound", |f| f.is_on("p", "a")).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn selectors_are_expressions() {
    let fake = cluster(&[]);
    let device = |name: &str, model: &str, memory: &str| json!({"name": name, "attributes": {"model": {"string": model}}, "capacity": {"memory": {"value": memory}}});
    fake.put("resourceslices", on_a(json!([device("1", "old", "80Gi"), device("2", "new", "10Gi"), device("3", "new", "80Gi")])));
    let expression = r#"device.driver == "d.io" && device.attributes["d.io"].model == "new" && device.capacity["d.io"].memory.compareTo(quantity("40Gi")) >= 0"#;
    let with = |expression: &str| json!([exactly("r", json!({"selectors": [{"cel": {"expression": expression}}]}))]);
    fake.put("resourceclaims", claim("c", with(expression), json!({})));
    fake.put("resourceclaims", claim("d", with(r#"device.attributes["d.io"].speed > 3"#), json!({})));
    fake.put("pods", asking("p", "c"));
    fake.put("pods", asking("q", "d"));
    let tasks = start(&fake);
    fake.until("bound", |f| f.is_on("p", "a")).await;
    assert_eq!(super::super::world::allocation(&super::read(fake.object("resourceclaims", "c"))).and_then(|a| a.devices.clone()?.results).map(|r| r[0].device.clone()).as_deref(), Some("3"));
    fake.until("told", |f| message(f, "q") == "running \"DynamicResources\" filter plugin: claim default/d: selector #0: CEL runtime error: no such key: speed").await;
    tasks.shutdown(Duration::from_secs(5)).await;
}
