"""Writers, a reader and a watcher through one endpoint, and what they saw, checked in the end.

Each writer counts up in a ConfigMap of its own, by compare-and-swap. Lines on standard output:
`ack START END` for an acknowledged write, `read START END` for a read that had to be tried again,
in seconds since the epoch; `FAILED …` for what must not be; `done …` at the end.
"""

import http.client
import json
import os
import ssl
import sys
import threading
import time

PORT, DIRECTORY = int(sys.argv[1]), sys.argv[2]
WRITERS = 4
PATH = "/api/v1/namespaces/default/configmaps"
context = ssl.create_default_context(cafile=f"{DIRECTORY}/ca.crt")
context.load_cert_chain(f"{DIRECTORY}/admin.crt", f"{DIRECTORY}/admin.key")
stop = threading.Event()
lock = threading.Lock()
failed = []


def say(text):
    with lock:
        print(text, flush=True)


def fail(text):
    failed.append(text)
    say(f"FAILED {text}")


class Client:
    """One connection, made anew when it breaks."""

    def __init__(self, patience):
        self.patience, self.connection = patience, None

    def ask(self, method, path, body=None):
        """Status and object; None when it is not known what became of the request."""
        try:
            if self.connection is None:
                self.connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=self.patience, context=context)
            self.connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            text = response.read()
            if response.getheader("Connection", "").lower() == "close":
                self.connection = None
            return response.status, json.loads(text)
        except (OSError, http.client.HTTPException, ValueError):
            self.connection = None
            return None, None


def write(index, acked):
    client, name = Client(1), f"count-{index}"
    value, version = 0, None
    while not stop.is_set():
        begin = time.time()
        wanted = {"metadata": {"name": name}, "data": {"n": str(value + 1)}}
        if version is None:
            status, got = client.ask("POST", PATH, wanted)
        else:
            wanted["metadata"]["resourceVersion"] = version
            status, got = client.ask("PUT", f"{PATH}/{name}", wanted)
        if status in (200, 201):
            value, version = value + 1, got["metadata"]["resourceVersion"]
            acked[index] = value
            say(f"ack {begin:.6f} {time.time():.6f}")
            time.sleep(0.02)
            continue
        # Perhaps it was done: what is there is this value or the next one, and nothing else.
        while not stop.is_set():
            status, got = client.ask("GET", f"{PATH}/{name}")
            if status == 404 and version is None:
                break
            if status == 200:
                there = int(got["data"]["n"])
                if there not in (value, value + 1):
                    fail(f"{name} is {there} after {value} was acknowledged")
                value, version = there, got["metadata"]["resourceVersion"]
                break
            time.sleep(0.02)


def read(acked):
    client = Client(1)
    while not stop.is_set():
        for index in range(WRITERS):
            known, begin, again = acked[index], time.time(), False
            if known == 0:
                continue
            while not stop.is_set():
                status, got = client.ask("GET", f"{PATH}/count-{index}")
                if status == 200:
                    if int(got["data"]["n"]) < known:
                        fail(f"count-{index} is {got['data']['n']}, and {known} was acknowledged before it was read")
                    break
                again = True
                if time.time() - begin > 30:
                    fail(f"count-{index} cannot be read for 30 s: {status}")
                    return
                time.sleep(0.02)
            if again:
                say(f"read {begin:.6f} {time.time():.6f}")
        time.sleep(0.01)


def watch(seen):
    """Follows from the beginning; where the connection broke, from the last version."""
    version, client = None, Client(5)
    while version is None and not stop.is_set():
        status, got = client.ask("GET", PATH + "?limit=500")
        version = got["metadata"]["resourceVersion"] if status == 200 else None
    while not stop.is_set():
        connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=5, context=context)
        try:
            connection.request("GET", f"{PATH}?watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=30")
            response = connection.getresponse()
            if response.status != 200:
                if response.status == 410:
                    fail("the watch is too old")
                    return
                continue
            while line := response.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    if event["object"].get("code") == 410:
                        fail(f"the watch ended: {event['object']}")
                        return
                    break
                now = event["object"]["metadata"]["resourceVersion"]
                if int(now) < int(version) or (event["type"] != "BOOKMARK" and now == version):
                    fail(f"the watch went from {version} to {now}")
                version = now
                name = event["object"]["metadata"].get("name", "")
                if event["type"] != "BOOKMARK" and name.startswith("count-"):
                    seen.setdefault(name, []).append(int(event["object"]["data"]["n"]))
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.02)
        finally:
            connection.close()


acked, seen = [0] * WRITERS, {}
watcher = threading.Thread(target=watch, args=(seen,), daemon=True)
watcher.start()
time.sleep(0.5)
threads = [threading.Thread(target=write, args=(i, acked), daemon=True) for i in range(WRITERS)]
threads.append(threading.Thread(target=read, args=(acked,), daemon=True))
for thread in threads:
    thread.start()
# Until standard input ends.
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join(10)
final = Client(5)
for index in range(WRITERS):
    name = f"count-{index}"
    status, got = None, None
    while status != 200:
        status, got = final.ask("GET", f"{PATH}/{name}")
    last = int(got["data"]["n"])
    if last not in (acked[index], acked[index] + 1):
        fail(f"{name} is {last}, and {acked[index]} was acknowledged last")
    end = time.time() + 20
    while seen.get(name, [0])[-1] < last and time.time() < end:
        # The watcher does not run any more once it has seen a break.
        if not watcher.is_alive():
            watcher = threading.Thread(target=lambda: None)
            break
        time.sleep(0.05)
    events = seen.get(name, [])
    # It may lag by what came after it stopped, but not leave anything out.
    if events != list(range(1, len(events) + 1)):
        gaps = [b for a, b in zip(events, events[1:]) if b != a + 1]
        fail(f"the watch of {name} skipped or repeated at {gaps[:5]}")
    if len(events) < acked[index] - 5:
        fail(f"the watch of {name} has seen {len(events)} of {acked[index]} changes")
say(f"done {sum(acked)} writes, {sum(len(e) for e in seen.values())} events, {len(failed)} failures")
os._exit(1 if failed else 0)
