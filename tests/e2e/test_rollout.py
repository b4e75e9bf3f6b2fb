"""A PolicyDeployment on the real cluster: what is better takes over, what is bad goes, and nobody notices.

Every test has the same PolicyDeployment under the load of `players.py`, whose requests keep their schedule
whatever is answered, and ends with the same question: did each of them get a valid answer, and did each
episode keep its policy?
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from arena import SERVERS, Arena
from cluster import Json, Namespace, condition, eventually
from drain import draining
from rollouts import deployment
from rollouts.cartpoles import Stored
from rollouts.cluster import signal_container


@pytest.fixture(scope="module")
def arena(s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-rollout", s3_secret) as namespace:
        arena = Arena(namespace, s3)
        arena.open("fair")
        yield arena


@pytest.fixture(autouse=True)
def _from_here(arena: Arena) -> None:
    arena.mark()


def test_a_better_policy_is_promoted(arena: Arena) -> None:
    with arena.asked_anew():
        fair, good = arena.policy("fair"), arena.offer("good")

        past = arena.ended(good)

        assert past["outcome"] == "Promoted", past
        arena.settled("good")
        eventually("the policy before has no pod left", lambda: len(arena.servers()) == 2)
    report = arena.assert_nobody_noticed()
    before, after = report["policies"][fair.policy], report["policies"][good.policy]
    assert after["last"] > before["last"]
    assert after["meanReturn"] > before["meanReturn"]
    assert arena.status()["previous"] == fair.digest


@pytest.mark.parametrize(
    ("which", "guard"),
    [
        ("worse", "episodeReturn"),
        ("slow", "latency"),
        ("NaN", "nan"),
        ("too large", "restarts"),
        ("another action space", None),
        ("spoilt", None),
    ],
)
def test_a_bad_policy_is_taken_out(arena: Arena, which: str, guard: str | None) -> None:
    serving = arena.serves("good")

    bad = arena.offer(which)

    assert_taken_out(arena, serving, bad, guard)


def test_a_server_whose_answers_are_errors_is_taken_out(arena: Arena) -> None:
    serving = arena.serves("good")
    # Those of half and more would be the fallbackRate's too.
    arena.namespace.apply(deployment.fault("bug", share=0.3))

    bad = arena.offer("good with a bug", server={"volumes": deployment.with_fault("bug")})

    try:
        assert_taken_out(arena, serving, bad, "errorRate")
    finally:
        arena.offer(serving, server={"volumes": None})


def assert_taken_out(arena: Arena, serving: str, bad: Stored, guard: str | None) -> None:
    """By this guard or, where there is none, before anybody was sent there; and nobody noticed."""
    past = arena.ended(bad)
    assert past["outcome"] == "Failed", past
    status = arena.status()
    assert status["stable"]["digest"] == arena.policy(serving).digest
    assert [one["digest"] for one in status["quarantined"]].count(bad.digest) == 1
    assert condition(arena.get(), "Progressing")["reason"] == "Quarantined"
    assert past["message"] in "\n".join(arena.events("RollBackFailed"))
    if guard is not None:
        records = [one for one in status["decisions"] if one["action"] == "RollBack"]
        assert records[-1]["guard"] == guard, records
        assert records[-1]["verdict"] == "Fail"
        assert records[-1]["canarySamples"] > 0 or guard == "restarts", records[-1]
    gone = time.time()
    eventually("the bad policy has no pod left", lambda: len(arena.servers()) == 2)
    report = arena.assert_nobody_noticed(evicted=bad.policy)
    assert report["policies"].get(bad.policy, {"last": 0.0})["last"] < gone


def test_servers_come_and_go_with_the_replicas(arena: Arena) -> None:
    with arena.asked_anew():
        for replicas in (4, 1, 2):
            arena.patch({"replicas": replicas})
            eventually(
                f"{replicas} servers are ready",
                lambda replicas=replicas: (
                    len(arena.servers()) == replicas == arena.status()["stable"].get("ready")
                ),
            )

    arena.assert_nobody_noticed()


def test_an_autoscaler_comes_with_its_field_and_goes_with_it(arena: Arena) -> None:
    arena.patch({"replicas": 3, "autoscaling": {"maxReplicas": 4}})
    eventually("there are its least servers", lambda: len(arena.servers()) == 3)
    (scaler,) = arena.namespace.list("hpa")
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 4)

    arena.patch({"replicas": 2, "autoscaling": None})

    eventually(
        "it is gone, and two servers are left",
        lambda: (
            not arena.namespace.list("hpa")
            and len(arena.servers()) == 2 == arena.status()["stable"].get("ready")
        ),
    )
    arena.assert_nobody_noticed()


def test_a_server_that_crashes_comes_back(arena: Arena) -> None:
    victim = arena.servers()[0]

    signal_container(victim, "SIGKILL")

    eventually(
        "it was restarted", lambda: arena.restarts(victim) == 1 and arena.status()["stable"]["ready"] == 2
    )
    arena.assert_nobody_noticed(retried=True)


def test_a_drained_node_takes_no_answer_with_it(arena: Arena) -> None:
    victims = {pod["metadata"]["uid"] for pod in arena.servers()}

    with draining(SERVERS) as said:
        # It is the only node: nothing new finds a place, and so the budget has to keep the second server.
        eventually("one server waits for a node", lambda: len(arena.pending()) == 1)
        eventually("the other one may not go", lambda: "disruption budget" in said())
        assert len([pod for pod in arena.servers() if pod["metadata"]["uid"] in victims]) == 1

    _replaced(arena, victims)
    arena.assert_nobody_noticed()


def test_an_operator_that_dies_again_and_again_still_promotes(arena: Arena) -> None:
    serving = arena.serves("good too", "good")
    better = arena.offer("good as well" if serving == "good too" else "good too")

    for point in (("Surge", 0), ("Stage", 0), ("Stage", 1), ("Bake", 2)):
        eventually(f"the trial is at {point} or further", lambda point=point: arena.is_past(point, better))
        arena.kill_operator()

    assert arena.ended(better)["outcome"] == "Promoted"
    arena.assert_nobody_noticed()


def test_an_operator_that_dies_while_a_policy_fails_still_takes_it_out(arena: Arena) -> None:
    serving = arena.policy(arena.serves("good", "good too", "good as well"))
    bad = arena.offer("worse again")
    eventually("it has traffic", lambda: arena.report()["policies"].get(bad.policy))

    arena.kill_operator()

    past = arena.ended(bad)
    assert past["outcome"] == "Failed", past
    assert arena.status()["stable"]["digest"] == serving.digest
    arena.assert_nobody_noticed(evicted=bad.policy)


def test_without_s3_it_serves_on(arena: Arena) -> None:
    storage = Namespace("ratchet-s3")
    storage.kubectl("scale", "deployment", "s3", "--replicas=0")
    try:
        eventually("S3 is gone", lambda: not storage.list("pods", "app.kubernetes.io/name=s3"))
        victim = arena.servers()[0]["metadata"]
        arena.namespace.kubectl("delete", "pod", victim["name"], "--wait=false")
        eventually(
            "the server that comes has no policy",
            lambda: any(
                "no policy yet" in arena.namespace.logs(pod["metadata"]["name"]) for pod in arena.servers()
            ),
        )
        arena.assert_nobody_noticed()
    finally:
        storage.kubectl("scale", "deployment", "s3", "--replicas=1")

    _replaced(arena, {victim["uid"]})
    arena.assert_nobody_noticed()


def test_without_traffic_nothing_is_decided(arena: Arena) -> None:
    serving = arena.serves("good", "good too", "good as well")
    arena.audience.stop()
    newer = arena.offer("good too" if serving == "good" else "good")
    eventually("it could have traffic", lambda: arena.phase() == ("Stage", 0))
    stage = arena.status()["trial"]["since"]

    eventually("the guards say what they lack", lambda: "NotEnoughEvidence" in arena.verdicts())
    eventually("the stage is longer than it must be", lambda: arena.waits(stage, seconds=12))
    assert arena.phase() == ("Stage", 0)

    arena.play()

    assert arena.ended(newer)["outcome"] == "Promoted"


def _replaced(arena: Arena, gone: set[str]) -> None:
    def done() -> bool:
        servers = arena.servers()
        return (
            len(servers) == 2 == arena.status()["stable"].get("ready")
            and not {pod["metadata"]["uid"] for pod in servers} & gone
        )

    eventually("there are other servers", done)
