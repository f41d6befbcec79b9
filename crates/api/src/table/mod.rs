//! Objects as rows of a table, which is what `kubectl get` prints: the columns
//! of each built-in kind and the cells of an object, as upstream's printers
//! make them. Wide columns are always filled.

mod columns;
pub mod duration;
mod kinds;
mod pod;
mod rows;
mod template;

pub use columns::{Column, columns};
pub use template::Row;

use jiff::Timestamp;
use serde_json::{Value, json};

/// The `columnDefinitions` of a table.
pub fn column_definitions(group: &str, kind: &str) -> Value {
    columns(group, kind)
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect()
}

/// The cells of an object's row, one a column.
pub fn row(group: &str, kind: &str, obj: &Value, now: Timestamp) -> Vec<Value> {
    rows::row(group, kind, &rows::Printer { obj, clock: duration::Clock::At(now) })
}

/// The `conditions` of an object's row: whether a pod is finished.
pub fn row_conditions(group: &str, kind: &str, obj: &Value) -> Option<Value> {
    if (group, kind) != ("", "Pod") {
        return None;
    }
    let (reason, message) = match obj.get("status")?.get("phase")?.as_str()? {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(group: &str, kind: &str, obj: Value) -> String {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let row = row(group, kind, &obj, now);
        assert_eq!(row.len(), columns(group, kind).len(), "{kind}");
        row.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect::<Vec<_>>().join("|")
    }

    fn meta() -> Value {
        json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn pods() {
        let pod = |spec: Value, status: Value| cells("", "Pod", json!({"metadata": meta(), "spec": spec, "status": status}));
        let one = || json!({"containers": [{"name": "c"}], "nodeName": "n"});
        assert_eq!(pod(one(), json!({"phase": "Pending"})), "x|0/1|Pending|0|60m|<none>|n|<none>|<none>");
        assert_eq!(
            pod(one(), json!({"phase": "Running", "podIPs": [{"ip": "1.1.1.1"}], "containerStatuses": [{"ready": true, "restartCount": 2,
                "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:58:00Z"}}}]})),
            "x|1/1|Running|2 (2m ago)|60m|1.1.1.1|n|<none>|<none>"
        );
        assert!(pod(one(), json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}]})).starts_with("x|0/1|CrashLoopBackOff|1|"));
        assert!(pod(one(), json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]})).contains("|ExitCode:3|"));
        assert!(pod(json!({"initContainers": [{"name": "a"}, {"name": "b"}], "containers": [{}]}),
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0}}}, {"name": "b", "state": {"running": {}}}]})).starts_with("x|0/1|Init:1/2|0|"));
        assert!(pod(one(), json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]})).contains("|SchedulingGated|"));
        let mut deleted = json!({"metadata": meta(), "spec": one(), "status": {"phase": "Running"}});
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:59:00Z".into();
        assert!(cells("", "Pod", deleted).contains("|Terminating|"));
        assert!(pod(json!({"containers": [{}, {}]}), json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}, {"ready": true, "state": {"running": {}}}]})).starts_with("x|1/2|NotReady|"));
    }

    #[test]
    fn workloads() {
        let spec = json!({"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}});
        let o = json!({"metadata": meta(), "spec": spec, "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1, "replicas": 3}});
        assert_eq!(cells("apps", "Deployment", o.clone()), "x|1/3|2|1|60m|c,d|i,j|a=b");
        assert_eq!(cells("apps", "ReplicaSet", o.clone()), "x|3|3|1|60m|c,d|i,j|a=b");
        assert_eq!(cells("apps", "StatefulSet", o.clone()), "x|1/3|60m|c,d|i,j");
        assert_eq!(cells("apps", "DaemonSet", o), "x|0|0|0|0|0|<none>|60m|c,d|i,j|a=b");
        let job = json!({"metadata": meta(), "spec": {"completions": 2, "template": {"spec": {"containers": []}}},
            "status": {"succeeded": 2, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}});
        assert_eq!(cells("batch", "Job", job), "x|Complete|2/2|7s|60m|||<none>");
        assert_eq!(cells("batch", "CronJob", json!({"metadata": meta(), "spec": {"schedule": "* * * * *", "suspend": false}})), "x|* * * * *|<none>|False|0|<none>|60m|||<none>");
    }

    #[test]
    fn other_servers() {
        let row = |spec: Value, conditions: Value| cells("apiregistration.k8s.io", "APIService", json!({"metadata": meta(), "spec": spec, "status": {"conditions": conditions}}));
        assert_eq!(row(json!({}), json!([{"type": "Available", "status": "True", "reason": "Local"}])), "x|Local|True|60m");
        let service = json!({"service": {"namespace": "ns", "name": "api"}});
        assert_eq!(row(service.clone(), json!([{"type": "Available", "status": "False", "reason": "MissingEndpoints"}])), "x|ns/api|False (MissingEndpoints)|60m");
        assert_eq!(row(service, json!([])), "x|ns/api|Unknown|60m");
    }

    #[test]
    fn network_and_nodes() {
        let svc = json!({"metadata": meta(), "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}});
        assert_eq!(cells("", "Service", svc), "x|NodePort|10.96.0.9|<none>|80:30080/TCP,53/UDP|60m|a=b");
        assert_eq!(cells("", "Service", json!({"metadata": meta(), "spec": {"type": "LoadBalancer", "clusterIPs": ["1.1.1.1"]}})), "x|LoadBalancer|1.1.1.1|<pending>|<none>|60m|<none>");
        let node = json!({"metadata": {"name": "x", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "architecture": "amd64"}}});
        assert_eq!(cells("", "Node", node), "x|Ready,SchedulingDisabled|control-plane|<unknown>|v1.36.0|10.0.0.1|<none>|Debian|6.1 (amd64)|<unknown>");
        let ep = json!({"metadata": meta(), "subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}, {"ip": "3.3.3.3"}, {"ip": "4.4.4.4"}], "ports": [{"port": 80}]}]});
        assert_eq!(cells("", "Endpoints", ep), "x|1.1.1.1:80,2.2.2.2:80,3.3.3.3:80 + 1 more...|60m");
        let es = json!({"metadata": meta(), "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["1.1.1.1"]}]});
        assert_eq!(cells("discovery.k8s.io", "EndpointSlice", es), "x|IPv4|8080|1.1.1.1|60m");
        let ev = json!({"metadata": meta(), "type": "Warning", "reason": "R", "message": " m\n", "count": 4, "involvedObject": {"kind": "Pod", "name": "p"},
            "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2026-01-01T00:59:00Z", "lastTimestamp": "2026-01-01T00:59:30Z"});
        assert_eq!(cells("", "Event", ev), "30s|Warning|R|pod/p||kubelet, n|m|60s|4|x");
    }

    #[test]
    fn every_kind_fills_its_columns() {
        for r in crate::resources::all() {
            cells(r.group, r.kind, json!({"metadata": meta()}));
        }
        let used = json!({"metadata": meta(), "window": "15s", "containers": [{"usage": {"cpu": "1500u", "memory": "1Mi"}}, {"usage": {"cpu": "2500000n", "memory": "3Mi"}}]});
        assert_eq!(cells("metrics.k8s.io", "PodMetrics", used), "x|4m|4Mi|15s");
        assert_eq!(cells("x.io", "Thing", json!({"metadata": meta()})), "x|2026-01-01T00:00:00Z");
        assert_eq!(column_definitions("", "Pod")[0]["format"], "name");
    }
}
