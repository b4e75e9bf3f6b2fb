"""How long a lost worker is missed: one of four pods deleted again and again, in a Job and in a ReplicaSet.

Usage: python benchmarks/worker_replacement.py [--times N]

Seconds are from `kubectl delete pod` to a pod that was not there before; the Job is what workers are not
in any more (docs/decisions/0006-workers.md).
"""

import argparse
import json
import subprocess
import time
from typing import Any

NAMESPACE = "worker-replacement"
IMAGE = "ratchet-rollout:dev"
WORKERS = 4
LONGEST_SECONDS = 900.0
Json = dict[str, Any]


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl in the benchmark's namespace and return what it printed."""
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout


def template(kind: str) -> Json:
    """A pod that does nothing until it is asked to end."""
    container = {
        "name": "worker",
        "image": IMAGE,
        "command": ["sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.1; done"],
        "resources": {"requests": {"cpu": "10m"}},
    }
    spec: Json = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    if kind == "Job":
        spec["restartPolicy"] = "OnFailure"
    return {"metadata": {"labels": {"kind": kind}}, "spec": spec}


def manifest(kind: str) -> Json:
    """Four workers."""
    sizes: Json = {"replicas": WORKERS, "selector": {"matchLabels": {"kind": kind}}}
    if kind == "Job":
        sizes = {"completionMode": "Indexed", "completions": WORKERS, "parallelism": WORKERS}
        sizes["backoffLimit"] = 2147483647
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
        "kind": kind,
        "metadata": {"name": kind.lower()},
        "spec": {**sizes, "template": template(kind)},
    }


def pods(kind: str) -> dict[str, Json]:
    """By UID."""
    found = json.loads(kubectl("get", "pods", "-l", f"kind={kind}", "-o", "json"))["items"]
    return {pod["metadata"]["uid"]: pod for pod in found}


def all_run(kind: str) -> bool:
    """Whether four are running and none is on its way out."""
    found = pods(kind).values()
    running = [p for p in found if p["status"].get("phase") == "Running" and not _is_going(p)]
    return len(running) == len(found) == WORKERS


def _is_going(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def until(what: str, condition: Any) -> None:
    """Ask four times a second."""
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.25)


def replaced(kind: str) -> float:
    """Seconds until the pod that is deleted now has a successor."""
    until(f"all workers of the {kind} run", lambda: all_run(kind))
    before = pods(kind)
    begun = time.monotonic()
    kubectl("delete", "pod", next(iter(before.values()))["metadata"]["name"], "--wait=false")
    until(f"the {kind} replaces it", lambda: pods(kind).keys() - before.keys())
    return time.monotonic() - begun


def main() -> None:
    """Prints one row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=3, help="how often a pod is deleted")
    times = parser.parse_args().times
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True, capture_output=True)
    try:
        for kind in ("Job", "ReplicaSet"):
            kubectl("apply", "-f", "-", stdin=json.dumps(manifest(kind)))
        for kind in ("Job", "ReplicaSet"):
            waits = " ".join(f"{replaced(kind):6.1f}" for _ in range(times))
            print(f"{kind:10} seconds without the worker: {waits}", flush=True)
    finally:
        subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--wait=false"], check=True)


if __name__ == "__main__":
    main()
