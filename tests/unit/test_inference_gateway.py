"""Behind a gateway requests come to either arm's servers: which of them answers, and that episodes stay."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from policyserver import Running, send_to, tallies, two_servers
from ratchet_inference.dispatch import share

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
STABLE, CANARY = "a" * 64, "c" * 64
WEIGHT = 0.3


@contextmanager
def both_sides() -> Generator[tuple[Running, Running]]:
    """A stable server and a canary, each with the way to the other."""
    with two_servers(canary_ms=5000) as (stable, canary):
        send_to(stable, canary.port, WEIGHT, salt="s", digest=CANARY, gateway="Stable")
        send_to(canary, stable.port, WEIGHT, salt="s", digest=STABLE, gateway="Canary")
        yield stable, canary


def test_an_episode_has_one_policy_wherever_its_requests_come():
    with both_sides() as servers:
        found: dict[str, set[str]] = {}
        for turn in range(4):
            for i in range(40):
                answer = servers[(turn + i) % 2].act(observation=OBSERVATION, episode=f"e{i}")[1]
                assert answer["fallback"] is None
                found.setdefault(f"e{i}", set()).add(answer["digest"])
    assert found == {name: {CANARY if share("s", name) < WEIGHT else STABLE} for name in found}
    assert {STABLE} in found.values()
    assert {CANARY} in found.values()


@pytest.mark.parametrize("policy", [STABLE, CANARY])
def test_the_policy_that_an_episode_names_goes_before_its_hash(policy: str):
    with both_sides() as servers:
        for server in servers:
            for i in range(10):
                answer = server.act(observation=OBSERVATION, episode=f"{policy[0]}{i}", policy=policy)[1]
                assert (answer["digest"], answer["fallback"]) == (policy, None)


def test_without_an_episode_it_is_answered_where_it_comes():
    with both_sides() as servers:
        for server, digest in zip(servers, (STABLE, CANARY), strict=True):
            answers = Counter(server.act(observation=OBSERVATION)[1]["digest"] for _ in range(30))
            assert answers == {digest: 30}
            assert tallies(server, "canary") == [], "nothing was asked of the other arm"


def test_a_batch_that_comes_to_the_canary_is_split_as_one_that_comes_to_the_stable_arm():
    names = [f"e{i}" for i in range(40)]
    with both_sides() as servers:
        split = [
            server.act(observations=[OBSERVATION] * len(names), episodes=names)[1]["digests"]
            for server in servers
        ]
    assert split[0] == split[1] == [CANARY if share("s", name) < WEIGHT else STABLE for name in names]


def test_where_stable_does_not_answer_the_canary_does():
    with both_sides() as (_, canary):
        send_to(canary, 9, WEIGHT, 2, salt="s", digest=STABLE, gateway="Canary")
        theirs = next(f"e{i}" for i in range(100) if share("s", f"e{i}") >= WEIGHT)

        answer = canary.act(observation=OBSERVATION, episode=theirs)[1]

    assert (answer["digest"], answer["fallback"]) == (CANARY, "stable")
