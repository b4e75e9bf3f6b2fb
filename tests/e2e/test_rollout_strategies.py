"""The other ways for a policy to take over, on the real cluster: copies of requests first. As in
`test_rollout`, nobody may notice.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from arena import Arena
from cluster import Json, Namespace, eventually
from rollouts.cartpoles import Stored

NO_RETURNS: Json = {"episodeReturn": {"enabled": False}}


@pytest.fixture(scope="module")
def arena(s3: Any, s3_secret: Json) -> Iterator[Arena]:
    with Namespace.fresh("t-strategies", s3_secret) as namespace:
        arena = Arena(namespace, s3)
        arena.open("fair")
        yield arena


@pytest.fixture(autouse=True)
def _from_here(arena: Arena) -> None:
    arena.mark()


def assert_promoted(arena: Arena, policy: Stored) -> Json:
    """It serves everybody, on the evidence of every guard, and nobody noticed."""
    past = arena.ended(policy)
    assert past["outcome"] == "Promoted", past
    passed = {one["guard"]: one["canarySamples"] for one in arena.records("Advance")}
    assert passed["errorRate"] >= 50, passed
    eventually(
        "the policy answers and the one before has no pod left",
        lambda: policy.policy in arena.report()["policies"] and len(arena.servers()) == 2,
    )
    return arena.assert_nobody_noticed()


def test_blue_green_serves_everybody_once_copies_of_all_requests_went_well(arena: Arena) -> None:
    newer = arena.offer("good", guards=NO_RETURNS, strategy={"type": "BlueGreen"})

    assert_promoted(arena, newer)

    assert any("100% passed" in words for words in arena.events("StagePassed"))


def test_blue_green_waits_for_approval_and_answers_nobody_before(arena: Arena) -> None:
    strategy = {"type": "BlueGreen", "blueGreen": {"approval": True}}
    newer = arena.offer("good too", guards=NO_RETURNS, strategy=strategy)

    arena.awaits("AwaitingApproval")
    assert arena.status()["canary"]["ready"] == 2
    assert newer.policy not in arena.report()["policies"]
    arena.command("resume")

    assert_promoted(arena, newer)


def test_a_shadow_that_answers_nan_goes_and_no_user_ever_met_it(arena: Arena) -> None:
    shadow = {"weight": 50, "minDuration": "5s", "then": "Promote"}
    bad = arena.offer("NaN", guards=NO_RETURNS, strategy={"type": "Shadow", "shadow": shadow})

    past = arena.ended(bad)

    assert past["outcome"] == "Failed", past
    failed = arena.records("RollBack")[-1]
    assert (failed["guard"], failed["verdict"]) == ("nan", "Fail")
    eventually("it has no pod left", lambda: len(arena.servers()) == 2)
    report = arena.assert_nobody_noticed()
    assert bad.policy not in report["policies"]
    for what in ("canary", "instead"):
        assert report[what]["answers"] == arena.begun[what]["answers"]


def test_a_shadow_that_keeps_every_bound_is_promoted(arena: Arena) -> None:
    shadow = {"weight": 50, "minDuration": "5s", "then": "Promote"}
    newer = arena.offer("good as well", guards=NO_RETURNS, strategy={"type": "Shadow", "shadow": shadow})

    assert_promoted(arena, newer)

    assert any("50% passed" in words for words in arena.events("StagePassed"))
