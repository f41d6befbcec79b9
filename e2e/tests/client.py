"""The walk-through with the Python client."""
import time

from kubernetes import client, config, watch
from kubernetes.stream import stream

config.load_kube_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()
NS = "python"


def until(what, probe, seconds=60):
    end = time.time() + seconds
    while True:
        try:
            value = probe()
            if value:
                return value
        except client.exceptions.ApiException as error:
            if time.time() > end:
                raise error
        if time.time() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.1)


assert client.VersionApi().get_code().minor == "36"
assert core.list_node().items[0].status.node_info.kubelet_version.startswith("v1.36")
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NS)))
until("the default service account", lambda: core.read_namespaced_service_account("default", NS))

labels = {"app": "web"}
container = client.V1Container(name="echo", image="knarr.local/echo")
template = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels=labels),
    spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1))
apps.create_namespaced_deployment(NS, client.V1Deployment(
    metadata=client.V1ObjectMeta(name="web"),
    spec=client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)))

seen = []
w = watch.Watch()
for event in w.stream(core.list_namespaced_pod, NS, timeout_seconds=60):
    seen.append(event["type"])
    conditions = event["object"].status.conditions or []
    if any(c.type == "Ready" and c.status == "True" for c in conditions):
        w.stop()
assert "ADDED" in seen
pod = core.list_namespaced_pod(NS, label_selector="app=web").items[0].metadata.name
assert "listening" in core.read_namespaced_pod_log(pod, NS)
out = stream(core.connect_get_namespaced_pod_exec, pod, NS, command=["/knarr", "--version"],
             stdout=True, stderr=True, stdin=False, tty=False)
assert "knarr" in out, out

core.create_namespaced_service(NS, client.V1Service(
    metadata=client.V1ObjectMeta(name="web"),
    spec=client.V1ServiceSpec(selector=labels, ports=[client.V1ServicePort(port=80, target_port=8080)])))
page = until("the service's endpoints", lambda: core.connect_get_namespaced_service_proxy_with_path("web:80", NS, "hello"))
assert "real path=/hello" in page, page

apps.patch_namespaced_deployment_scale("web", NS, {"spec": {"replicas": 2}})
until("two replicas", lambda: apps.read_namespaced_deployment("web", NS).status.ready_replicas == 2)
core.create_namespaced_config_map(NS, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="m"), data={"a": "1"}))
core.patch_namespaced_config_map("m", NS, {"data": {"a": "2"}})
assert core.read_namespaced_config_map("m", NS).data["a"] == "2"
batch.create_namespaced_job(NS, client.V1Job(
    metadata=client.V1ObjectMeta(name="once"),
    spec=client.V1JobSpec(template=client.V1PodTemplateSpec(spec=client.V1PodSpec(
        restart_policy="Never",
        containers=[client.V1Container(name="c", image="knarr.local/echo", command=["/knarr", "sleep", "0.1"])])))))
until("the job", lambda: batch.read_namespaced_job("once", NS).status.succeeded == 1)
try:
    core.read_namespaced_pod("nobody", NS)
    raise AssertionError("a pod that does not exist was read")
except client.exceptions.ApiException as error:
    assert error.status == 404
core.delete_namespace(NS)


def gone():
    try:
        core.read_namespace(NS)
        return False
    except client.exceptions.ApiException as error:
        return error.status == 404


until("the namespace's end", gone, 90)
print("python client: all done")
