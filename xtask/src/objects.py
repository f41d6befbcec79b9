"""Creates many ConfigMaps of about a kilobyte."""
import sys
from concurrent.futures import ThreadPoolExecutor

from kubernetes import client, config

config.load_kube_config()
core = client.CoreV1Api()


def create(i):
    core.create_namespaced_config_map("default", {"metadata": {"name": f"object-{i}"}, "data": {"text": "x" * 1000}})


with ThreadPoolExecutor(8) as pool:
    list(pool.map(create, range(int(sys.argv[1]))))
