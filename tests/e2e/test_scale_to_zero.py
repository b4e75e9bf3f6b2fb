"""Scale to zero on the real cluster: no server while nobody asks, and an answer to whoever does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import NAME, OPERATOR, OPERATOR_POD, Arena
from cluster import Json, Namespace, condition, eventually
from rollouts import deployment
from rollouts.audience import Audience

URL = f"http://{NAME}:8080"
VISITORS = Path(__file__).with_name("visitors.py")


@pytest.fixture(scope="module")
def arena(s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-scale-to-zero", s3_secret) as namespace:
        arena = Arena(namespace, s3)
        first = deployment.source(arena.policy("fair"))
        # No guard may wait for rewards: nobody sends any.
        namespace.apply(deployment.manifest(NAME, first, scaleToZeroAfter="10s", guards={}))
        Audience(namespace.kubectl, NAME, program=VISITORS, flags=()).start()
        arena.settled("fair")
        namespace.kubectl("wait", "--for=condition=Ready", f"pod/{NAME}-players", "--timeout=120s")
        yield arena


def visit(arena: Arena, number: int = 1, *flags: str) -> float:
    """So many ask at the same time, and all are answered; returns the seconds that the last one waited."""
    program = ("exec", f"{NAME}-players", "--", "python", f"/players/{VISITORS.name}")
    said = arena.namespace.kubectl(*program, f"--url={URL}", f"--number={number}", *flags)
    got = json.loads(said.splitlines()[-1])
    assert (got["answers"], got["errors"]) == (number, [])
    print(f"{number} at once were answered after {got['seconds'][0]:.2f} s")  # noqa: T201
    return got["seconds"][0]


def replicas(arena: Arena) -> int:
    (found,) = arena.namespace.list("deployments", f"ratchet.dev/policy-deployment={NAME}")
    return found["spec"]["replicas"]


def sleeps(arena: Arena) -> bool:
    pods = arena.namespace.list("pods", f"ratchet.dev/policy-deployment={NAME},ratchet.dev/component=server")
    return not pods and condition(arena.get(), "Progressing").get("reason") == "ScaledToZero"


def door(arena: Arena) -> list[str]:
    """Where clients are sent while no server is there."""
    found = arena.namespace.find("endpointslice", f"{NAME}-waker")
    return [host for one in (found or {}).get("endpoints", []) for host in one["addresses"]]


def test_it_sleeps_and_the_first_request_is_answered(arena: Arena) -> None:
    eventually("it sleeps", lambda: sleeps(arena))
    assert condition(arena.get(), "Available")["status"] == "True"
    assert arena.events("ScaledToZero")

    visit(arena)

    assert len(arena.servers()) == 2
    eventually("it is as it was", lambda: not door(arena) and arena.status()["stable"].get("ready") == 2)
    assert arena.events("Woken")
    assert arena.events("Awake")


@pytest.mark.parametrize("flags", [(), ("--episodes",)])
def test_many_first_requests_are_answered(arena: Arena, flags: tuple[str, ...]) -> None:
    eventually("it sleeps again", lambda: sleeps(arena))

    visit(arena, 30, *flags)


def test_requests_that_meet_the_servers_on_their_way_out_are_answered(arena: Arena) -> None:
    eventually("its servers are sent away", lambda: replicas(arena) == 0)

    visit(arena, 10)


def test_the_next_operator_wakes_it(arena: Arena) -> None:
    eventually("it sleeps", lambda: sleeps(arena))
    before = door(arena)

    arena.kill_operator()

    eventually("the next operator is the door", lambda: door(arena) not in ([], before))
    pods = OPERATOR.list("pods", OPERATOR_POD)
    assert door(arena)[0] in [pod["status"].get("podIP") for pod in pods]
    assert sleeps(arena)
    visit(arena)


def test_an_autoscaler_stays_out_of_it(arena: Arena) -> None:
    arena.patch({"autoscaling": {"maxReplicas": 3}})
    eventually("there is an autoscaler", lambda: arena.namespace.list("hpa"))
    eventually("it sleeps", lambda: sleeps(arena))

    visit(arena)

    eventually("it is as it was", lambda: arena.status()["stable"].get("ready", 0) >= 2)
    (scaler,) = arena.namespace.list("hpa")
    assert scaler["spec"]["minReplicas"] == 2
    arena.patch({"autoscaling": None})


def test_without_the_field_it_wakes_and_stays_awake(arena: Arena) -> None:
    eventually("it sleeps", lambda: sleeps(arena))

    arena.patch({"scaleToZeroAfter": None})

    eventually("its servers are back", lambda: arena.status()["stable"].get("ready") == 2 and not door(arena))
    visit(arena)
