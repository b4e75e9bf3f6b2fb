"""What pods say of their route and of who asks them: a split is followed by all or not at all."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.observed import Watch, observe
from ratchet_operator.rollout.values import Split

from ratchet.api.v1alpha1.serverstats import Route, ServerStats

OLD, NEW = "old", "new"
START = datetime(2026, 1, 1, tzinfo=UTC)
SPLIT = Split({OLD: 75, NEW: 25})
ROUTE = Route(generation=3, canary="http://new:8080", weight=0.25, salt="s", digest="policy of new")
ROUTES = {OLD: ROUTE, NEW: Route(generation=3)}
QUIET = 30.0


def pod(uid: str, arm: str, *tallies: tuple[str, str, int, float | None], **route: Any) -> PodAnswer:
    """With its route, and (arm, policy, requests, seconds since the last)."""
    stats = {
        "incarnation": uid,
        "uptimeSeconds": 100,
        "ready": True,
        "draining": False,
        "current": f"policy of {arm}",
        "latencyBoundsSeconds": [1.0],
        "route": {**ROUTES[arm].to_wire(), "breaker": "Open", **route},
        "arms": [
            {
                "arm": name,
                "digest": policy,
                "requests": requests,
                "secondsSinceRequest": since,
                "latency": {"counts": []},
            }
            for name, policy, requests, since in tallies
        ],
    }
    return PodAnswer(uid, arm, ServerStats.model_validate(stats))


class Watched:
    def __init__(self) -> None:
        self.watch, self.now = Watch(), START

    def look(self, *answers: PodAnswer, after: float = 1.0, written: Split = SPLIT) -> Any:
        self.now += timedelta(seconds=after)
        self.watch, split, traffic = observe(self.watch, written, ROUTES, answers, self.now, QUIET)
        return split, traffic


def test_a_split_is_followed_where_every_pod_says_so():
    assert Watched().look(pod("a", OLD), pod("b", OLD), pod("c", NEW))[0] == SPLIT


@pytest.mark.parametrize(
    "other",
    [
        pod("b", OLD, generation=2),
        pod("b", OLD, weight=0.05),
        pod("b", OLD, canary="http://other:8080"),
        pod("b", OLD, digest=None),
        pod("b", OLD, salt="t"),
        pod("b", OLD, mirror=0.5),
        pod("b", NEW, weight=0.25, canary="http://old:8080"),
        PodAnswer("b", OLD, None),
        PodAnswer("b", "a third arm", None),
    ],
)
def test_one_pod_that_says_otherwise_or_nothing_is_enough(other: PodAnswer):
    assert Watched().look(pod("a", OLD), other) == (None, None)


def test_without_a_pod_nothing_is_followed():
    assert Watched().look() == (None, None)


def test_a_pod_whose_arm_has_no_route_follows_whatever_it_does():
    stray = pod("c", NEW, generation=1)
    watch, split, _ = observe(Watch(), SPLIT, {OLD: ROUTE}, [pod("a", OLD), stray], START)
    assert (watch.split, split) == (SPLIT, SPLIT)


def test_an_arm_is_idle_when_nobody_has_asked_it_for_a_while_under_this_split():
    watched = Watched()
    quiet = pod("a", OLD, ("stable", "policy of old", 500, 400.0)), pod("b", NEW)
    assert watched.look(*quiet)[1] == {OLD: 30, NEW: 30}
    assert watched.look(*quiet, after=20)[1] == {OLD: 10, NEW: 10}
    assert watched.look(*quiet, after=10)[1] == {OLD: 0, NEW: 0}


def test_another_split_begins_to_wait_anew():
    watched = Watched()
    watched.look(pod("a", OLD))
    watched.look(pod("a", OLD), after=100)
    assert watched.look(pod("a", OLD), written=Split({OLD: 100}))[1] == {OLD: 30}


def test_a_split_that_was_not_followed_meanwhile_begins_to_wait_anew():
    watched = Watched()
    watched.look(pod("a", OLD))
    watched.look(pod("a", OLD), PodAnswer("b", OLD, None), after=100)
    assert watched.look(pod("a", OLD))[1] == {OLD: 30}


def test_the_pod_that_was_asked_last_counts_for_its_arm():
    watched = Watched()
    pods = (
        pod("a", OLD, ("stable", "policy of old", 5, 90.0)),
        pod("b", OLD, ("stable", "policy of old", 5, 3.5)),
    )
    watched.look(*pods)
    assert watched.look(*pods, after=60)[1] == {OLD: 27}


@pytest.mark.parametrize(
    ("tally", "left"),
    [
        (("canary", "policy of new", 5, 1.0), 29),  # another pod asked this one, for a client
        (("shadow", "policy of new", 5, 1.0), 29),
        (("stable", "policy of new", 5, 1.0), 29),
        (("canary", "policy of old", 5, 1.0), 0),  # this pod asked another one
        (("stable", "policy of new", 0, None), 0),
        (("stable", "policy of new", 5, None), 30),  # a server that does not say when
    ],
)
def test_only_what_a_pod_answered_itself_keeps_its_arm_busy(
    tally: tuple[str, str, int, float | None], left: int
):
    watched = Watched()
    watched.look(pod("c", NEW, tally))
    assert watched.look(pod("c", NEW, tally), after=60)[1] == {NEW: left}


def test_what_is_sent_on_to_the_same_policy_in_another_image_is_not_answered_here():
    route = ROUTE.model_copy(update={"digest": "policy of old"})
    mine = pod("a", OLD, ("canary", "policy of old", 9, 0.1), digest="policy of old")
    watch = Watch(SPLIT, START.timestamp())
    _, split, traffic = observe(watch, SPLIT, {OLD: route}, [mine], START + timedelta(seconds=60), QUIET)
    assert (split, traffic) == (SPLIT, {OLD: 0})


def test_a_clock_that_goes_backwards_only_waits_longer():
    watched = Watched()
    watched.look(pod("a", OLD))
    assert watched.look(pod("a", OLD), after=-10)[1] == {OLD: 30}
