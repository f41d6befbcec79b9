//! Objects to protobuf and back, and input that is no message.

use super::*;
use crate::codec::{ContentType, decode};
use crate::schema::normalize;
use serde_json::json;

fn type_name_of(value: &Value) -> &'static str {
    let gvk = Gvk::of(value);
    crate::resources::type_name(&gvk.group, &gvk.version, &gvk.kind).unwrap()
}

/// The normal form survives the way through protobuf.
#[track_caller]
fn round_trip(mut value: Value) -> Vec<u8> {
    let found = normalize(type_name_of(&value), &mut value).unwrap();
    assert_eq!(found.unknown, Vec::<String>::new());
    let bytes = encode_object(&value).unwrap();
    let decoded = decode(&bytes, ContentType::Protobuf, None).unwrap().value;
    assert_eq!(decoded, value);
    bytes
}

#[test]
fn many_kinds_round_trip() {
    round_trip(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "d", "uid": "u", "generation": 1, "creationTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"b": "2", "a": "1"}, "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1", "controller": true}],
        "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:name": {}}}}]},
        "spec": {"containers": [{"name": "c", "image": "i", "command": ["a", ""], "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k", "optional": false}}}],
            "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
            "readinessProbe": {"tcpSocket": {"port": 8080}},
            "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
            "securityContext": {"runAsUser": 0, "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}, {"configMap": {"name": "ca"}}]}}],
            "securityContext": {"supplementalGroups": [1, 2]}, "tolerations": [{"operator": "Exists", "tolerationSeconds": 0}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "containerStatuses": [{"name": "c", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}, "ready": true, "restartCount": 1, "image": "i", "imageID": "x"}],
            "podIPs": [{"ip": "10.0.0.1"}]}}));
    round_trip(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}, "template": {"metadata": {}, "spec": {"containers": [{"name": "c"}]}}}}));
    round_trip(json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"a": "AAECAw==", "empty": ""}}));
    round_trip(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "", "b": "x"}, "immutable": false}));
    round_trip(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "n", "leaseDurationSeconds": 40, "renewTime": "2026-01-02T03:04:05.123456Z"}}));
    round_trip(json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 3, "data": {"spec": {"x": [1, "2"]}}}));
    round_trip(json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "web"}], "clusterIP": "None"}}));
    round_trip(json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "spec": {"request": "YQ==", "signerName": "x", "extra": {"k": ["a", "b"]}}}));
    round_trip(json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {"rules": [{"host": "x", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}));
    round_trip(json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}}));
    round_trip(json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5", "remainingItemCount": 3}, "items": [{"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}]}));
    round_trip(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404, "reason": "NotFound", "details": {"name": "x", "causes": [{"reason": "a", "field": "b"}]}}));
    round_trip(json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}, "dryRun": ["All"]}));
    round_trip(json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 5}}));
    round_trip(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"], "expirationSeconds": 3600}}));
    round_trip(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "webhooks": [{"name": "w", "clientConfig": {"caBundle": "YQ=="}, "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}], "sideEffects": "None", "admissionReviewVersions": ["v1"]}]}));
    round_trip(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "g", "names": {"plural": "xs", "kind": "X"}, "scope": "Namespaced",
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {"type": "number", "minimum": 1.5, "default": 2},
            "l": {"type": "array", "items": {"type": "string"}}, "m": {"type": "object", "additionalProperties": {"type": "string"}}, "n": {"additionalProperties": false}}}}}]}}));
    round_trip(json!({"apiVersion": "apidiscovery.k8s.io/v2", "kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "apps"}, "versions": [{"version": "v1", "freshness": "Current",
        "resources": [{"resource": "deployments", "scope": "Namespaced", "verbs": ["get"], "singularResource": "deployment", "responseKind": {"group": "", "version": "", "kind": "Deployment"}}]}]}]}));
    round_trip(json!({"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}]}));
}

/// What a map has for a key may be nothing.
#[test]
fn entries_without_values_have_empty_ones() {
    let text = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "spec": {"request": "YQ==", "signerName": "x", "extra": {"k": null, "l": ["a"]}}});
    let bytes = encode_object(&text).unwrap();
    let decoded = decode(&bytes, ContentType::Protobuf, None).unwrap().value;
    assert_eq!(decoded["spec"]["extra"].as_object().unwrap().keys().collect::<Vec<_>>(), ["k", "l"]);
    assert_eq!(decoded["spec"]["extra"]["l"], json!(["a"]));
}

/// Bytes of upstream's encoder, written out by hand from its rules.
#[test]
fn bytes_are_upstreams() {
    let bytes = encode_object(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}})).unwrap();
    let meta = b"\x0a\x01a\x12\x00\x1a\x00\x22\x00\x2a\x00\x32\x00\x38\x00\x42\x00";
    let mut expect = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11".to_vec();
    expect.extend_from_slice(meta);
    expect.extend_from_slice(b"\x12\x06\x0a\x01k\x12\x01v\x1a\x00\x22\x00");
    assert_eq!(bytes, expect);
}

#[test]
fn watch_events_carry_an_enveloped_object() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": null}, "status": {}});
    let event = encode_watch_event_protobuf("ADDED", &pod).unwrap();
    let ty = facts::type_by_name("io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent").unwrap();
    let decoded = decode_message(ty, &event).unwrap();
    assert_eq!(decoded["type"], "ADDED");
    assert_eq!(decoded["object"]["metadata"]["name"], "a");
    assert_eq!(&frame(&event)[..4], (event.len() as u32).to_be_bytes());
}

/// What a client sends as protobuf is held to what holds for JSON.
#[test]
fn quantities_and_times_are_checked_and_in_normal_form() {
    let decoded = |api_version: &str, kind: &str, raw: &[u8]| {
        let mut bytes = MAGIC.to_vec();
        let meta = [&[10, api_version.len() as u8], api_version.as_bytes(), &[18, kind.len() as u8], kind.as_bytes()].concat();
        put_bytes(&mut bytes, 1, &meta);
        put_bytes(&mut bytes, 2, raw);
        decode(&bytes, ContentType::Protobuf, None).map(|d| d.value).map_err(|e| e.to_string())
    };
    let nested = |number: u32, content: &[u8]| {
        let mut out = Vec::new();
        put_bytes(&mut out, number, content);
        out
    };
    // spec.capacity of a volume: an entry of a map, its value a message with the text
    let volume = |text: &str| decoded("v1", "PersistentVolume", &nested(2, &nested(1, &[nested(1, b"storage"), nested(2, &nested(1, text.as_bytes()))].concat())));
    assert_eq!(volume("1024Mi").unwrap()["spec"]["capacity"]["storage"], "1Gi");
    assert_eq!(volume("1n").unwrap()["spec"]["capacity"]["storage"], "1m");
    assert!(volume("lots").unwrap_err().starts_with("quantities must match"));
    let created = |seconds: i64| {
        let mut time = Vec::new();
        put_int(&mut time, 1, seconds);
        decoded("v1", "ConfigMap", &nested(1, &nested(8, &time)))
    };
    assert_eq!(created(0).unwrap()["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    assert!(created(i64::MAX).unwrap_err().contains("year") && created(i64::MIN).is_err() && created(253_402_300_800).is_err());
    let renewed = |seconds: i64, nanos: i64| {
        let mut time = Vec::new();
        put_int(&mut time, 1, seconds);
        put_int(&mut time, 2, nanos);
        decoded("coordination.k8s.io/v1", "Lease", &nested(2, &nested(4, &time))).unwrap()["spec"]["renewTime"].clone()
    };
    assert_eq!(renewed(5, 1_500_000_000), "1970-01-01T00:00:06.500000Z");
    assert_eq!(renewed(5, -1), "1970-01-01T00:00:04.999999Z");
}

#[test]
fn broken_messages_are_errors_not_panics() {
    let good = encode_object(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "abc", "labels": {"a": "b"}}, "spec": {"containers": [{"name": "x"}]}})).unwrap();
    for cut in 0..good.len() {
        let _ = decode(&good[..cut], ContentType::Protobuf, None);
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let _ = decode(&bad, ContentType::Protobuf, None);
    }
    assert!(decode(b"{}", ContentType::Protobuf, None).is_err());
    assert!(matches!(encode_object(&json!({"apiVersion": "x/v1", "kind": "Foo"})), Err(EncodeError::NoProtobuf(_))));
    assert!(matches!(encode_object(&json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"})), Err(EncodeError::NoProtobuf(_))));
}

#[test]
fn a_list_is_the_same_in_pieces() {
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i".repeat(300)}]}, "status": {}});
    let items: Vec<Value> = ["a", "b", "c"].into_iter().map(pod).collect();
    let meta = json!({"resourceVersion": "7", "remainingItemCount": 4});
    let whole = encode_object(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": items})).unwrap();
    let messages: Vec<Vec<u8>> = items
        .into_iter()
        .map(|mut item| {
            item["kind"] = "Pod".into();
            item["apiVersion"] = "v1".into();
            let message = encode_bare(&item).unwrap();
            assert_eq!(envelope(&Gvk::of(&item), &message), encode_object(&item).unwrap());
            message
        })
        .collect();
    let frame = ListFrame::new(&Gvk::new("", "v1", "PodList"), &meta, messages.iter().map(Vec::len)).unwrap();
    let mut out = frame.head.clone();
    messages.iter().for_each(|m| frame.item(m, &mut out));
    frame.end(&mut out);
    assert_eq!((out.len(), &out), (frame.size, &whole));
    let empty = ListFrame::new(&Gvk::new("", "v1", "PodList"), &json!({}), std::iter::empty()).unwrap();
    let mut out = empty.head.clone();
    empty.end(&mut out);
    assert_eq!(out, encode_object(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": []})).unwrap());
}
