"""What a large cluster does, with hollow nodes: nodes with no kubelet behind them. Commands on standard input, one a line;
an answer in seconds on a line each.

nodes N | namespace NAME | priority NAME VALUE | pods NAMESPACE N KIND | bound N (says `watching`, then waits until so many more
pods have a node: seconds from the first to the last) | deployment NAMESPACE N (waits until so many pods are stored) | gone
NAMESPACE (deletes the namespace, finishes its pods as a kubelet would, and waits)"""
import http.client
import json
import ssl
import sys
import threading
import time
from multiprocessing import Process
from urllib.parse import urlparse

from kubernetes import client, config

config.load_kube_config()
settings = client.Configuration.get_default_copy()
server = urlparse(settings.host)
context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
context.load_cert_chain(settings.cert_file, settings.key_file)


def connect():
    return http.client.HTTPSConnection(server.hostname, server.port, context=context)


def call(connection, method, path, body=None, ok=(200, 201, 202)):
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status in ok, (method, path, answer.status, text[:500])
    return text


def many(path, bodies, change=None, workers=4):
    """Creates all, by several processes, and patches them."""
    def some(part):
        connection = connect()
        for body in part:
            call(connection, "POST", path, body)
            if change:
                call(connection, "PATCH", f"{path}/{body['metadata']['name']}", change)

    processes = [Process(target=some, args=(bodies[n::workers],)) for n in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def watch(path, query, accept="application/json"):
    """Lists, then yields what happens: (type, object)."""
    connection = connect()
    separator = "&" if query else ""
    connection.request("GET", f"{path}?{query}", headers={"Accept": accept})
    listed = json.loads(connection.getresponse().read())
    yield "LIST", listed
    version = listed["metadata"]["resourceVersion"]
    connection.request("GET", f"{path}?{query}{separator}watch=true&resourceVersion={version}", headers={"Accept": accept})
    answer = connection.getresponse()
    for line in answer:
        event = json.loads(line)
        yield event["type"], event["object"]


METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


def node(n):
    # It is created with the taint of a node that is not ready, which the controller of the nodes' life cycle would take away.
    resources = {"cpu": "4", "memory": "32Gi", "pods": "110"}
    labels = {"kubernetes.io/hostname": f"hollow-{n}", "topology.kubernetes.io/zone": f"zone-{n % 3}"}
    conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "hollow"}]
    return {"metadata": {"name": f"hollow-{n}", "labels": labels}, "status": {"capacity": resources, "allocatable": resources, "conditions": conditions}}


def pod(n, kind):
    labels = {"group": f"g{n % 10}"}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "none", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]}
    selector = {"matchLabels": labels}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    if kind == "anti-affinity":
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    elif kind == "spread":
        spec["topologySpreadConstraints"] = [{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]
    elif kind == "high":
        spec["containers"][0]["resources"]["requests"]["cpu"] = "3"
        spec["priorityClassName"] = "high"
    elif kind.startswith(("low-", "placed-")):
        kind, nodes = kind.split("-")
        spec["containers"][0]["resources"]["requests"]["cpu"] = "900m" if kind == "low" else "100m"
        spec["nodeName"] = f"hollow-{n % int(nodes)}"
    else:
        assert kind == "basic", kind
    return {"metadata": {"name": f"{kind}-{n}", "labels": labels}, "spec": spec}


def bound(ready, total):
    """Seconds between the first and the last of those that are bound after `ready` was called."""
    count, first = 0, None
    for kind, thing in watch("/api/v1/pods", "fieldSelector=spec.nodeName!%3D,metadata.namespace!%3Dkube-system", METADATA):
        if kind == "LIST":
            ready()
        elif kind == "ADDED":
            first = first or time.perf_counter()
            count += 1
            if count == total:
                return time.perf_counter() - first
    raise SystemExit("the watch ended")


def say(text):
    print(text, flush=True)


def stored(namespace, total):
    connection = connect()
    while len(json.loads(call(connection, "GET", f"/api/v1/namespaces/{namespace}/pods?limit=1"))["items"]) == 0:
        time.sleep(0.01)
    seen = 0
    for kind, thing in watch(f"/api/v1/namespaces/{namespace}/pods", "", METADATA):
        seen += len(thing["items"]) if kind == "LIST" else kind == "ADDED"
        if seen >= total:
            return


def finish(namespace):
    """Ends pods that are being deleted, as their kubelets would."""
    connection = connect()
    for kind, thing in watch(f"/api/v1/namespaces/{namespace}/pods", "", METADATA):
        for meta in [t["metadata"] for t in thing["items"]] if kind == "LIST" else [thing["metadata"]]:
            if "deletionTimestamp" in meta and kind != "DELETED":
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
                call(connection, "DELETE", f"/api/v1/namespaces/{namespace}/pods/{meta['name']}", body, ok=(200, 404))


def main():
    connection = connect()
    for line in sys.stdin:
        what, *words = line.split()
        begin = time.perf_counter()
        if what == "nodes":
            many("/api/v1/nodes", [node(n) for n in range(int(words[0]))], {"spec": {"taints": None}})
        elif what == "namespace":
            call(connection, "POST", "/api/v1/namespaces", {"metadata": {"name": words[0]}})
            while call(connection, "GET", f"/api/v1/namespaces/{words[0]}/serviceaccounts/default", ok=(200, 404)).find(b'"uid"') < 0:
                time.sleep(0.02)
        elif what == "priority":
            call(connection, "POST", "/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": words[0]}, "value": int(words[1])})
        elif what == "pods":
            many(f"/api/v1/namespaces/{words[0]}/pods", [pod(n, words[2]) for n in range(int(words[1]))])
        elif what == "bound":
            say(bound(lambda: say("watching"), int(words[0])))
            continue
        elif what == "deployment":
            template = {"metadata": {"labels": {"app": "big"}}, "spec": pod(0, "basic")["spec"]}
            spec = {"replicas": int(words[1]), "selector": {"matchLabels": {"app": "big"}}, "template": template}
            call(connection, "POST", f"/apis/apps/v1/namespaces/{words[0]}/deployments", {"metadata": {"name": "big"}, "spec": spec})
            stored(words[0], int(words[1]))
        elif what == "gone":
            Process(target=finish, args=(words[0],), daemon=True).start()
            call(connection, "DELETE", f"/api/v1/namespaces/{words[0]}")
            while call(connection, "GET", f"/api/v1/namespaces/{words[0]}", ok=(200, 404)).find(b'"uid"') >= 0:
                time.sleep(0.02)
        else:
            raise SystemExit(f"{what}?")
        say(time.perf_counter() - begin)


main()
