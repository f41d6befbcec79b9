//! Manifests on their way into the store: read, normalized, defaulted, validated, with their owners booked.

use api::apply::{Target, decode, show_path, track_update};
use api::resources::{Resource, find_kind};
use api::{defaults, schema, validate};
use serde_json::{Value, json};

fn resource(v: &Value) -> &'static Resource {
    let (group, version) = match v["apiVersion"].as_str().unwrap().split_once('/') {
        Some(gv) => gv,
        None => ("", v["apiVersion"].as_str().unwrap()),
    };
    find_kind(group, version, v["kind"].as_str().unwrap()).unwrap()
}

/// The object as the server has it before validation, and the sentences of validation.
fn admit(yaml: &str) -> (Value, Vec<String>) {
    let mut v = api::codec::yaml(yaml.as_bytes()).unwrap().value;
    let r = resource(&v);
    let found = schema::normalize(r.type_name, &mut v).unwrap();
    assert!(found.unknown.is_empty(), "{:?}", found.unknown);
    if r.namespaced {
        v["metadata"]["namespace"] = "default".into();
    }
    v["metadata"]["uid"] = "u".into();
    defaults::apply(r.group, r.version, r.kind, &mut v);
    let errs = validate::create(r, &v).iter().map(ToString::to_string).collect();
    (v, errs)
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, labels: {app: echo}}
spec:
  replicas: 1
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - {name: echo, image: 'knarr.local/echo:latest'}
";

#[test]
fn ordinary_manifests_are_well_formed() {
    let manifests = [
        DEPLOYMENT,
        "
apiVersion: v1
kind: Pod
metadata: {name: all, annotations: {a.b/c: x}}
spec:
  serviceAccountName: default
  securityContext: {runAsUser: 1000, fsGroup: 2000, supplementalGroups: [5], seccompProfile: {type: RuntimeDefault}}
  initContainers:
  - {name: first, image: busybox, command: [sh, -c, 'true']}
  - {name: side, image: busybox, restartPolicy: Always}
  containers:
  - name: a
    image: nginx
    ports: [{containerPort: 80, name: http}, {containerPort: 53, protocol: UDP, hostPort: 5353}]
    env:
    - {name: A, value: b}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: L, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: S, valueFrom: {secretKeyRef: {name: s, key: k}}}
    envFrom: [{configMapRef: {name: c}}, {prefix: X_, secretRef: {name: s}}]
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 1, memory: 128Mi, example.com/gpu: 1}}
    livenessProbe: {httpGet: {path: /healthz, port: http}}
    readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
    startupProbe: {exec: {command: ['true']}}
    lifecycle: {preStop: {sleep: {seconds: 2}}}
    volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: cfg, mountPath: /cfg, readOnly: true, subPath: a}
    - {name: tok, mountPath: /var/run/secrets}
    securityContext: {privileged: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}}
  volumes:
  - {name: tmp, emptyDir: {medium: Memory, sizeLimit: 1Gi}}
  - {name: cfg, configMap: {name: c, items: [{key: a, path: a, mode: 384}]}}
  - name: tok
    projected:
      sources:
      - {serviceAccountToken: {path: token, expirationSeconds: 3607}}
      - {configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}}
      - {downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}}
  - {name: host, hostPath: {path: /etc, type: Directory}}
  - {name: claim, persistentVolumeClaim: {claimName: c}}
  tolerations: [{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]
  nodeSelector: {kubernetes.io/os: linux}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In, values: [b]}]}]
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {a: b}}}}
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {a: b}}}
  dnsConfig: {nameservers: [1.1.1.1], searches: [a.b], options: [{name: ndots, value: '5'}]}
  hostAliases: [{ip: 10.0.0.1, hostnames: [x.y]}]
",
        "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 9}]}]}}
",
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: d}
spec:
  serviceName: d
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /v}]}]}}
  volumeClaimTemplates: [{metadata: {name: v}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]
",
        "
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec:
  schedule: '*/5 0-6 * jan,mar MON-FRI'
  jobTemplate: {spec: {template: {spec: {restartPolicy: OnFailure, containers: [{name: c, image: i}]}}}}
",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: b}, binaryData: {b: AAA=}}",
        "{apiVersion: v1, kind: Secret, metadata: {name: c}, stringData: {a: b}}",
        "{apiVersion: v1, kind: Namespace, metadata: {name: nn}}",
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: s}}",
        "{apiVersion: v1, kind: Node, metadata: {name: nn, labels: {kubernetes.io/hostname: nn}}, spec: {podCIDRs: [10.244.0.0/24], taints: [{key: a, effect: NoSchedule}]}}",
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: 'r:b'}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: 'a:b'}, subjects: [{kind: ServiceAccount, name: s, namespace: nn}, {kind: User, name: u, apiGroup: rbac.authorization.k8s.io}]}",
        "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i}, spec: {rules: [{host: a.b, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}], tls: [{hosts: ['*.b.c']}]}}",
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nn}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 80}]}]}}",
        "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
        "{apiVersion: v1, kind: PersistentVolume, metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, hostPath: {path: /x}}}",
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: p}, spec: {minAvailable: 50%, selector: {matchLabels: {a: b}}}}",
        "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: h}, spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}}",
        "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: l}, spec: {holderIdentity: a, leaseDurationSeconds: 40}}",
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e}, addressType: IPv4, ports: [{port: 80, name: ''}], endpoints: [{addresses: [10.244.0.2], conditions: {ready: true}, nodeName: nn}]}",
        "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: s}, provisioner: a.b/c}",
        "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: system-node-critical}, value: 2000001000}",
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: q}, spec: {hard: {cpu: 1, pods: 5, count/deployments.apps: 2, requests.storage: 1Gi}}}",
        "{apiVersion: v1, kind: LimitRange, metadata: {name: l}, spec: {limits: [{type: Container, max: {cpu: 1}, default: {cpu: 500m}}]}}",
    ];
    for m in manifests {
        let (v, errs) = admit(m);
        assert!(errs.is_empty(), "{}: {errs:#?}", v["kind"]);
        let r = resource(&v);
        let again: Vec<String> = validate::update(r, &v, &v).iter().map(ToString::to_string).collect();
        assert!(again.is_empty(), "update of {}: {again:#?}", v["kind"]);
        let status = validate::update_through(r, "status", &v, &v);
        assert!(v["kind"] == "Namespace" || status.is_empty(), "status of {}: {status:#?}", v["kind"]);
    }
}

#[test]
fn a_created_deployment_has_upstreams_managed_fields() {
    let (mut v, _) = admit(DEPLOYMENT);
    let r = resource(&v);
    track_update(&Target::builtin(r, "apps/v1", ""), None, &mut v, "kubectl-create", "2026-01-01T00:00:00Z");
    let entry = &v["metadata"]["managedFields"][0];
    assert_eq!(entry["manager"], "kubectl-create");
    assert_eq!(
        entry["fieldsV1"],
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
                "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"echo\"}": {
                            ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                            "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}},
                        "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                        "f:terminationGracePeriodSeconds": {}
                    }
                }
            }
        })
    );
}

#[test]
fn applies_to_built_in_types() {
    let mut config = api::codec::yaml(DEPLOYMENT.as_bytes()).unwrap().value;
    let r = resource(&config);
    let t = Target::builtin(r, "apps/v1", "");
    let now = "2026-01-01T00:00:00Z";
    let mut v = api::apply::apply(&t, None, &config, "kubectl", false, now).unwrap();
    schema::normalize(r.type_name, &mut v).unwrap();
    defaults::apply(r.group, r.version, r.kind, &mut v);
    v["metadata"]["uid"] = "u".into();
    let managers = decode(v["metadata"].get("managedFields")).unwrap();
    let paths: Vec<String> = managers[0].set.paths().iter().map(|p| show_path(p)).collect();
    assert!(paths.contains(&".spec.template.spec.containers[name=\"echo\"].image".to_owned()));
    assert!(paths.contains(&".spec.selector".to_owned()), "selectors are owned as a whole");
    // the same again changes nothing
    let again = api::apply::apply(&t, Some(&v), &config, "kubectl", false, "2026-01-02T00:00:00Z").unwrap();
    assert_eq!(again, v);
    // scaled by someone else, then applied over
    let mut scaled = v.clone();
    scaled["spec"]["replicas"] = 3.into();
    track_update(&t, Some(&v), &mut scaled, "kubectl-scale", now);
    let e = api::apply::apply(&t, Some(&scaled), &config, "kubectl", false, now).unwrap_err();
    assert_eq!(e.message, "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas");
    config["spec"].as_object_mut().unwrap().remove("replicas");
    let given_up = api::apply::apply(&t, Some(&scaled), &config, "kubectl", false, now).unwrap();
    assert_eq!(given_up["spec"]["replicas"], 3);
    config["spec"]["nonsense"] = 1.into();
    let e = api::apply::apply(&t, Some(&scaled), &config, "kubectl", false, now).unwrap_err();
    assert_eq!(e.message, "failed to create typed patch object (/echo; apps/v1, Kind=Deployment): .spec.nonsense: field not declared in schema");
}
