"""Checkpoints that servers may be started from: which they are, who learns of them, where it is written."""

import json
from typing import Any

import pytest
from ratchet_operator.cache import Cache
from ratchet_operator.kept import Kept, kept_by
from ratchet_operator.kinds import CONFIG_MAP, DEPLOYMENT, SERVING_LABEL, Json
from servingworld import NAME, ServingWorld, source
from test_operator_cache import feed, told
from world import World, new_world

JOB, UID = "cartpole", "uid-j"


def uri(checkpoint: str, namespace: str = "team", job: str = JOB, uid: str = UID) -> str:
    return f"s3://bucket/rl/{namespace}/{job}/{uid}/manifests/{checkpoint}.json"


def speaking(annotation: str, said: Any, version: int = 1, name: str = "x") -> Json:
    """The ConfigMap, or a Deployment, of a PolicyDeployment."""
    return {
        "metadata": {
            "name": name, "namespace": "team", "uid": name, "resourceVersion": str(version),
            "labels": {SERVING_LABEL: "x"},
            "annotations": {f"ratchet.dev/{annotation}": said if isinstance(said, str) else json.dumps(said)},
        }
    }  # fmt: skip


def book(*uris: str, version: int = 1, name: str = "x") -> Json:
    revisions = {str(number): {"checkpoint": {"uri": one}} for number, one in enumerate(uris)}
    return speaking("ledger", {"revisions": revisions}, version, name)


def names(obj: Json | None) -> set[str]:
    return {one.checkpoint for one in kept_by(obj)}


def test_every_arm_and_what_is_followed_to_is_kept():
    said = {
        "accepted": {"uri": uri("new")},
        "revisions": {
            "a": {"checkpoint": {"uri": uri("stable")}},
            "b": {"checkpoint": {"uri": uri("previous")}},
        },
    }
    assert names(speaking("ledger", said)) == {"new", "stable", "previous"}
    assert kept_by(speaking("revision-spec", {"checkpoint": {"uri": uri("a")}})) == {Kept(JOB, UID, "a")}
    assert kept_by(book("s3://bucket/team/cartpole/uid-j/manifests/a.json")) == {Kept(JOB, UID, "a")}


@pytest.mark.parametrize(
    "obj",
    [
        None,
        {"metadata": {"namespace": "team"}},
        book(uri("a", namespace="others")),
        book("s3://bucket/policies/of/mine"),
        book("s3://bucket/a.json", ""),
        speaking("ledger", "{"),
        speaking("ledger", "null"),
        speaking("ledger", {"revisions": {"a": 3}}),
        {"metadata": {**book(uri("a"))["metadata"], "labels": {}}},
    ],
    ids=[
        "nothing",
        "bare",
        "another namespace's",
        "no job's",
        "short",
        "spoilt",
        "null",
        "odd",
        "not a server's",
    ],
)
def test_what_says_nothing_of_a_job_keeps_nothing(obj: Json | None):
    assert kept_by(obj) == frozenset()


def test_a_job_is_told_when_what_is_kept_changes_and_only_then():
    into, cache, queue = feed()
    for write in (into.seen, into.wrote):
        version = 10 * len(cache[CONFIG_MAP]) + 1
        name = write.__name__
        write(CONFIG_MAP, book(uri("a"), version=version, name=name))
        assert f"RLTrainingJob/{JOB}" in told(queue)

        evidence = book(uri("a"), version=version + 1, name=name)
        evidence["metadata"]["annotations"]["ratchet.dev/evidence"] = "more of it"
        write(CONFIG_MAP, evidence)
        assert f"RLTrainingJob/{JOB}" not in told(queue)

        write(CONFIG_MAP, book(uri("b"), uri("c", job="other"), version=version + 2, name=name))
        assert {f"RLTrainingJob/{JOB}", "RLTrainingJob/other"} <= set(told(queue))

    into.gone(CONFIG_MAP, book(uri("b"), version=99, name="seen"))
    assert f"RLTrainingJob/{JOB}" in told(queue)


def test_whoever_speaks_of_a_job_is_found_until_he_no_longer_does():
    cache = Cache([CONFIG_MAP, DEPLOYMENT])
    cache[CONFIG_MAP].put(book(uri("b"), uri("a"), uri("x", uid="an earlier one's"), name="x"))
    cache[CONFIG_MAP].put(book(uri("b"), uri("c"), version=2, name="y"))
    assert cache.kept("team", UID) == ("a", "b", "c")
    assert cache.kept("team", "nobody's") == ()

    # The ledger goes, and the arm that lives is still known by its Deployment.
    cache[DEPLOYMENT].put(speaking("revision-spec", {"checkpoint": {"uri": uri("b")}}, 3, "x-1"))
    cache[CONFIG_MAP].remove("y")
    cache[CONFIG_MAP].remove("x")
    assert cache.kept("team", UID) == ("b",)


def test_what_is_kept_is_written_once_where_the_trainer_reads_it():
    world = new_world()
    world.settle()
    assert kept_file(world) == []

    world.kept = ("000000000100-1-100",)
    world.settle()
    assert kept_file(world) == ["000000000100-1-100"]
    writes = world.writes
    world.settle()
    assert world.writes == writes


def kept_file(world: World) -> list[str]:
    found = world.get(CONFIG_MAP, "job-config")
    assert found is not None
    return json.loads(found["data"]["kept.json"])


def test_a_rollout_speaks_of_what_it_tries_of_what_serves_and_of_what_undo_brings_back():
    world = ServingWorld()
    world.settle()
    assert names(world.get(CONFIG_MAP, f"{NAME}-rollout")) == {"good"}

    world.edit(source=source("better"))
    world.seconds(1)
    assert names(world.get(CONFIG_MAP, f"{NAME}-rollout")) == {"good", "better"}
    world.settle()
    assert names(world.get(CONFIG_MAP, f"{NAME}-rollout")) == {"good", "better"}

    world.edit(source=source("best"))
    world.settle()
    world.order("undo/1")
    world.settle()
    assert world.serving == "better"
    assert names(world.get(CONFIG_MAP, f"{NAME}-rollout")) == {"better", "best"}
    assert {name for one in world.all(DEPLOYMENT) for name in names(one)} == {"better"}
