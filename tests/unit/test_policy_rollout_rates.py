"""Requests a second of each arm: of servers there both times, without copies and what went elsewhere."""

from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.rates import rates

from ratchet.api.v1alpha1.serverstats import ArmStats, Latency, ServerStats

OLD, NEW = "a" * 64, "b" * 64


def pod(
    uid: str, arm: str, current: str, incarnation: str = "1", at: float = 9.0, **requests: tuple[str, int]
) -> PodAnswer:
    tallies = [
        ArmStats(arm=name, digest=digest, requests=number, latency=Latency(counts=[]))
        for name, (digest, number) in requests.items()
    ]
    stats = ServerStats(
        incarnation=incarnation,
        uptime_seconds=at,
        ready=True,
        draining=False,
        current=current,
        latency_bounds_seconds=[],
        arms=tallies,
    )
    return PodAnswer(uid, arm, stats)


def test_each_arm_has_what_its_own_pods_answered():
    before = [
        pod("s", "old", OLD, stable=(OLD, 100), canary=(NEW, 10)),
        pod("c", "new", NEW, canary=(NEW, 10)),
    ]
    after = [
        pod("s", "old", OLD, at=11.0, stable=(OLD, 190), canary=(NEW, 30)),
        pod("c", "new", NEW, at=13.0, canary=(NEW, 30)),
    ]

    assert rates(before, after) == {"old": 45.0, "new": 5.0}


def test_copies_are_no_requests():
    before = [pod("c", "new", NEW, shadow=(NEW, 10))]
    after = [pod("c", "new", NEW, at=10.0, shadow=(NEW, 30), canary=(NEW, 0))]

    assert rates(before, after) == {"new": 0.0}


def test_a_pod_that_began_anew_or_says_nothing_adds_nothing():
    before = [pod("s", "old", OLD, stable=(OLD, 900)), PodAnswer("t", "old", None)]
    after = [
        pod("s", "old", OLD, incarnation="2", stable=(OLD, 5)),
        pod("t", "old", OLD, stable=(OLD, 70)),
        PodAnswer("u", "old", None),
    ]

    assert rates(before, after) == {"old": 0.0}


def test_three_digits_are_enough_and_a_steady_rate_is_no_news():
    before, after = (
        [pod("s", "old", OLD, stable=(OLD, 0))],
        [pod("s", "old", OLD, at=10.0, stable=(OLD, 123_456))],
    )

    assert rates(before, after) == {"old": 123_000.0}
