"""Creates pods and prints the seconds from the first request until the last pod runs.

Answers are read as plain JSON: the client library's models would take a quarter of the machine, which the pods want."""
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kubernetes import client, config

config.load_kube_config()
core = client.CoreV1Api()
name, count = sys.argv[1], int(sys.argv[2])
label = f"bench={name}"
names = {f"{name}-{i}" for i in range(count)}
running, started, last = set(), threading.Event(), [0.0]


def follow():
    listed = json.loads(core.list_namespaced_pod("default", label_selector=label, _preload_content=False).data)
    answer = client.CoreV1Api().list_namespaced_pod(
        "default", label_selector=label, resource_version=listed["metadata"]["resourceVersion"], watch=True, timeout_seconds=60, _preload_content=False)
    started.set()
    text = b""
    for part in answer.stream(amt=None):
        *lines, text = (text + part).split(b"\n")
        for pod in (json.loads(line)["object"] for line in lines):
            if pod["status"].get("phase") == "Running":
                running.add(pod["metadata"]["name"])
                last[0] = time.perf_counter()
        if running >= names:
            return


def create(pod):
    core.create_namespaced_pod("default", {
        "metadata": {"name": pod, "labels": {"bench": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "knarr.local/echo:v1", "command": ["/knarr", "sleep", "infinity"]}]}}, _preload_content=False)


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
