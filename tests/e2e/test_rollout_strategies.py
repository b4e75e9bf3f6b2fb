"""The other ways for a policy to take over, on the real cluster: copies of requests first, a split that
stays, and a spec that changes its mind on the way. As in `test_rollout`, nobody may notice.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from arena import Arena
from cluster import Json, Namespace, eventually
from rollouts.cartpoles import Stored

NO_RETURNS: Json = {"episodeReturn": {"enabled": False}}
RETURNS: Json = {"episodeReturn": {"enabled": True, "maxRelativeDrop": 0.2}}
ANY_RETURNS: Json = {"episodeReturn": {"enabled": True, "maxRelativeDrop": 1.0}}


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


def test_an_ab_test_reports_the_difference_though_few_episodes_report(arena: Arena) -> None:
    arena.serves("good", "good too", "good as well")
    arena.play("--rewarded=20")
    arena.mark()
    split = {"weight": 50, "minDuration": "2s"}
    worse = arena.offer("worse", guards=ANY_RETURNS, strategy={"type": "AB", "ab": split})

    def difference() -> Json | None:
        judged = [one for one in arena.status().get("decisions", []) if one["guard"] == "episodeReturn"]
        return next((one for one in judged if "low" in one and one["high"] < 0), None)

    found = eventually("it is told which one is better", difference)
    assert found["low"] < found["estimate"] < found["high"]
    assert found["canary"] < found["stable"]
    assert found["canarySamples"] > 0 < found["stableSamples"]
    arena.awaits("AwaitingApproval")
    arena.command("abort")

    assert arena.ended(worse)["outcome"] == "Aborted"
    report = arena.assert_nobody_noticed()
    assert report["policies"][worse.policy]["episodes"] > found["canarySamples"]
    arena.play()


def test_a_spec_that_changes_to_a_third_policy_on_the_way_takes_the_second_back(arena: Arena) -> None:
    by_stages = {"type": "Canary", "canary": {"steps": [{"weight": 50, "approval": True}]}}
    second = arena.offer("good again", guards=RETURNS, strategy=by_stages)
    eventually("it has traffic", lambda: second.policy in arena.report()["policies"])

    third = arena.offer("good once more", strategy={"type": "AllAtOnce"})

    assert arena.ended(second)["outcome"] == "Superseded"
    past = arena.ended(third)
    assert past["outcome"] == "Promoted", past
    # The second did nothing wrong: its episodes end where they began.
    arena.assert_nobody_noticed()
    assert second.digest not in [one["digest"] for one in arena.status().get("quarantined", [])]
