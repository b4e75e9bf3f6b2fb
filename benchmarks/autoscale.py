"""From a step in the load to one more server that answers: how long it takes, and in which part.

Usage: python benchmarks/autoscale.py [--by cpu requests] [--times N] [--interval 5s]

One server on the local cluster with 10 requests a second gets as many as should bring a second one: by CPU,
which metrics-server tells, and by requests per second, from prometheus-adapter over a Prometheus that scrapes
each `--interval`. Seconds from the step's first request until the HorizontalPodAutoscaler wants one more
server, until that is ready, and until it has answered. A step may fall anywhere between two of its looks.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "hack"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "e2e"))

from beside import requests_of, requests_per_second
from rollouts import bucket, cartpoles, deployment
from rollouts.audience import Audience
from rollouts.cluster import Kubectl, eventually
from rollouts.objects import Objects, is_ready

from ratchet.api.v1alpha1.training import S3

Json = dict[str, Any]
NAMESPACE, NAME = "autoscale-benchmark", "cartpole"
SERVERS = f"ratchet.dev/policy-deployment={NAME}"
LOOK_SECONDS = 15  # of the autoscaler, by default
PARTS = ("another is wanted", "it is ready", "it answers")
kubectl = Kubectl(NAMESPACE)
objects = Objects(kubectl)
# What autoscales, a server's request of CPU, and the load that should bring one more.
CASES: dict[str, tuple[Json, str, int]] = {
    "cpu": ({"cpuPercent": 50}, "50m", 250),
    "requests": ({"cpuPercent": 100, "requestsPerSecond": 50}, "150m", 80),
}


def answered(pod: Json) -> int:
    """Requests that a server has answered."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:8080/proxy/v1/stats"
    return sum(arm["requests"] for arm in json.loads(kubectl("get", "--raw", path))["arms"])


def is_quiet() -> bool:
    """Whether one server is all there is, and all that is wanted."""
    found = objects.list("hpa,pods", SERVERS)
    pods = [one for one in found if one["kind"] == "Pod"]
    wanted = [one["status"].get("desiredReplicas") for one in found if one["kind"] != "Pod"]
    return wanted == [1] and len(pods) == 1 and is_ready(pods[0])


def step(audience: Audience, rate: int) -> list[float]:
    """Seconds from a step in the load to each of `PARTS`."""
    audience.start(f"--rate={rate}", "--players=8")
    report = eventually("the players are answered", lambda: (r := audience.report()) and r["valid"] and r)
    begun = min(one["first"] for one in report["policies"].values())
    reached: dict[str, float] = {}

    def look() -> bool:
        found, now = objects.list("hpa,pods", SERVERS), time.time()
        pods = sorted(
            (one for one in found if one["kind"] == "Pod"), key=lambda p: p["metadata"]["creationTimestamp"]
        )
        is_so = (
            any(one["status"].get("desiredReplicas", 0) > 1 for one in found if one["kind"] != "Pod"),
            len(pods) > 1 and is_ready(pods[-1]),
            len(pods) > 1 and is_ready(pods[-1]) and answered(pods[-1]) > 0,
        )
        for part, holds in zip(PARTS, is_so, strict=True):
            if holds:
                reached.setdefault(part, now - begun)
        return len(reached) == len(PARTS)

    eventually("one more answers", look, 180)
    report = audience.end(eventually)
    if report["failed"] or report["invalid"]:
        print(f"{report['failed']} of {report['requests']} requests failed", file=sys.stderr)
    return [reached[part] for part in PARTS]


def measure(by: str, first: Json, times: int) -> list[list[float]]:
    """Several steps, each from one quiet server."""
    autoscaling, cpu, rate = CASES[by]
    server = {"resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"memory": "384Mi"}}}
    scaled = {"maxReplicas": 2, "scaleDownAfter": "0s", **autoscaling}
    kubectl("delete", "policydeployment", NAME, "--ignore-not-found", "--wait")
    objects.apply(deployment.manifest(NAME, first, replicas=1, server=server, autoscaling=scaled))
    audience = Audience(kubectl, NAME)
    taken: list[list[float]] = []
    for _ in range(times):
        audience.start("--rate=10", "--players=2")
        eventually("it is quiet", is_quiet, 300)
        if by == "requests":
            eventually("the API has the requests", lambda: requests_of(NAMESPACE))
        time.sleep(random.uniform(0, LOOK_SECONDS))
        taken.append(step(audience, rate))
        print(by, *(f"{seconds:.1f}" for seconds in taken[-1]), file=sys.stderr, flush=True)
    audience.stop()
    return taken


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", nargs="*", choices=[*CASES], default=[*CASES])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--interval", default="5s", help="of Prometheus (%(default)s)")
    arguments = parser.parse_args()
    secret = json.loads(Kubectl("ratchet-s3")("get", "secret", "s3-credentials", "-o", "json"))
    objects.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    metadata = {"name": "s3-credentials"}
    objects.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]})
    with bucket.reached() as client:
        place = S3(bucket=deployment.BUCKET, prefix=NAMESPACE)
        first = deployment.source(cartpoles.store(client, place, "good", cartpoles.balancing()))
    print(f"| by | times | {' | '.join(f'{part}: median, most' for part in PARTS)} |")
    print(f"| --- | --- | {' | '.join('---' for _ in PARTS)} |")
    for by in arguments.by:
        with tempfile.TemporaryDirectory() as folder:
            served = requests_per_second(Path(folder), arguments.interval)
            with served if by == "requests" else nullcontext():
                taken = measure(by, first, arguments.times)
        columns = (f"{statistics.median(one):.1f} s, {max(one):.1f} s" for one in zip(*taken, strict=True))
        print(f"| {by} | {len(taken)} | {' | '.join(columns)} |", flush=True)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


if __name__ == "__main__":
    main()
