"""Creates pods and prints the seconds from the first request until the last pod runs."""
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kubernetes import client, config, watch

config.load_kube_config()
core = client.CoreV1Api()
name, count = sys.argv[1], int(sys.argv[2])
label = f"bench={name}"
names = {f"{name}-{i}" for i in range(count)}
running, started, last = set(), threading.Event(), [0.0]


def follow():
    version = core.list_namespaced_pod("default", label_selector=label).metadata.resource_version
    started.set()
    w = watch.Watch()
    for event in w.stream(client.CoreV1Api().list_namespaced_pod, "default", label_selector=label, resource_version=version, timeout_seconds=60):
        if event["object"].status.phase == "Running":
            running.add(event["object"].metadata.name)
            last[0] = time.perf_counter()
            if running >= names:
                w.stop()


def create(pod):
    core.create_namespaced_pod("default", {
        "metadata": {"name": pod, "labels": {"bench": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "knarr.local/echo:v1", "command": ["/knarr", "sleep", "infinity"]}]}})


thread = threading.Thread(target=follow)
thread.start()
started.wait()
with ThreadPoolExecutor(8) as pool:
    # Connections are made before the clock starts.
    list(pool.map(lambda _: core.get_api_resources(), range(8)))
    begin = time.perf_counter()
    list(pool.map(create, sorted(names)))
thread.join()
assert running >= names, f"{len(running)} of {count} run"
print(last[0] - begin)
core.delete_collection_namespaced_pod("default", label_selector=label, grace_period_seconds=0)
while core.list_namespaced_pod("default", label_selector=label).items:
    time.sleep(0.05)
