"""Autoscaling on the real cluster: servers come with the load and go after it, and neither loses a request.

The load is that of `players.py`, whose requests keep their schedule whatever is answered. CPU figures are of
metrics-server; requests per second of prometheus-adapter with the chart's rules, over a real Prometheus.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import NAME, Arena
from beside import requests_of, requests_per_second
from cluster import Json, Namespace, eventually
from rollouts import deployment

MOST = 3
# What one server takes is a fraction of a core, so that two cores can hold three of them and a cluster.
SMALL = {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "384Mi"}}}
BY_CPU = {"maxReplicas": MOST, "cpuPercent": 50, "scaleDownAfter": "20s"}
BY_REQUESTS = {"maxReplicas": MOST, "requestsPerSecond": 50, "scaleDownAfter": "20s"}
BUSY, QUIET = "--rate=150", "--rate=10"


@pytest.fixture(scope="module")
def arena(s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-autoscaling", s3_secret) as namespace:
        yield Arena(namespace, s3)


def begin(arena: Arena, which: str, autoscaling: Json, server: Json = SMALL) -> None:
    """One server, which a few requests keep company."""
    arena.namespace.kubectl("delete", "rlpd", NAME, "--ignore-not-found", "--wait")
    first = deployment.source(arena.policy(which))
    arena.namespace.apply(
        deployment.manifest(NAME, first, replicas=1, server=server, autoscaling=autoscaling)
    )
    eventually("it serves", lambda: arena.status().get("stable", {}).get("ready") == 1)
    load(arena, QUIET)


def load(arena: Arena, rate: str) -> None:
    arena.audience.start(rate, "--players=8")
    eventually("the players are answered", lambda: (r := arena.audience.report()) and r["valid"])
    arena.mark()


def ready(arena: Arena) -> int:
    return arena.status()["stable"].get("ready", 0)


def answers(arena: Arena) -> dict[str, int]:
    """Requests that each server has answered."""
    found: dict[str, int] = {}
    for pod in arena.servers():
        name = pod["metadata"]["name"]
        path = f"/api/v1/namespaces/{arena.namespace.name}/pods/{name}:8080/proxy/v1/stats"
        stats = json.loads(arena.namespace.kubectl("get", "--raw", path))
        found[name] = sum(arm["requests"] for arm in stats["arms"])
    return found


def reasons(arena: Arena) -> str:
    """Why the autoscaler changed its number, in its words."""
    return arena.namespace.kubectl(
        "get", "events", "--field-selector", "reason=SuccessfulRescale", "-o", "jsonpath={..message}"
    )


def test_servers_come_with_the_load_and_go_after_it(arena: Arena) -> None:
    begin(arena, "fair", BY_CPU)

    load(arena, BUSY)

    eventually("there are more servers", lambda: ready(arena) > 1)
    eventually("each of them answers", lambda: min(answers(arena).values()) > 0, deadline=90)
    assert "cpu container resource utilization" in reasons(arena)
    arena.assert_nobody_noticed()

    load(arena, QUIET)

    eventually("one is enough again", lambda: len(arena.servers()) == 1 == ready(arena), deadline=240)
    arena.assert_nobody_noticed()


def test_a_trial_that_begins_under_load_takes_no_capacity(arena: Arena) -> None:
    begin(arena, "fair", BY_CPU)
    load(arena, BUSY)
    wanted = eventually("there are more servers", lambda: (n := ready(arena)) > 1 and n)
    good, fewest = arena.offer("good"), wanted

    def has_ended() -> Json | None:
        nonlocal fewest
        # Of whoever serves: the old policy to the promotion, the new one from then on.
        fewest = min(fewest, ready(arena))
        return deployment.ending(arena.get(), good.digest)

    past = eventually("the trial ends", has_ended)

    assert past["outcome"] == "Promoted", past
    assert fewest == wanted
    arena.assert_nobody_noticed()


def test_servers_come_with_the_requests(arena: Arena, tmp_path: Path) -> None:
    # So much CPU that its share alone would not ask for a second server, and so little that three find room.
    idle = {"resources": {"requests": {"cpu": "150m", "memory": "64Mi"}, "limits": {"memory": "384Mi"}}}
    with requests_per_second(tmp_path, "5s"):
        begin(arena, "fair", {**BY_REQUESTS, "cpuPercent": 100}, idle)
        eventually("the API has the server's requests", lambda: requests_of(arena.namespace.name))

        load(arena, "--rate=80")

        eventually("there are more servers", lambda: ready(arena) > 1)
        assert "pods metric ratchet_requests_per_second above target" in reasons(arena)
        arena.assert_nobody_noticed()

        load(arena, QUIET)

        eventually("one is enough again", lambda: len(arena.servers()) == 1 == ready(arena), deadline=240)
        arena.assert_nobody_noticed()
