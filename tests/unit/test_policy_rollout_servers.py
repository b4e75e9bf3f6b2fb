"""The judge before two real policy servers: what they count is what it takes for evidence."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from policyserver import Broken, Pair, Running, policy, send_to, serving
from ratchet_inference.decisions.rewards import Rewards, RewardSettings
from ratchet_operator.rollout.fromspec import court_of
from ratchet_operator.rollout.judging import Evidence, PodAnswer, judge
from ratchet_operator.rollout.observed import Watch, observe
from ratchet_operator.rollout.values import Split
from simulatedrollout import spec_with

from ratchet.api.v1alpha1.serverstats import EvaluatedActions, Route, ServerStats
from ratchet.evidence import Decision, Verdict

OLD, NEW = "old", "new"
OBSERVATION = [0.1, -0.2, 0.3, 0.4]
GUARDS = {
    "actionDrift": {"enabled": True, "maxDistanceFromTraining": 0.2},
    "episodeReturn": {"enabled": True},
}
REQUESTS = 200


def broken() -> Broken:
    """A policy that answers with NaN."""
    return Broken(
        policy("c", seed=1), lambda one: one._replace(log_probability=np.full(len(one.action), np.nan))
    )


def answers(stable: Running, canary: Running) -> list[PodAnswer]:
    return [
        PodAnswer(arm, arm, ServerStats.model_validate(one.stats()))
        for arm, one in ((OLD, stable), (NEW, canary))
    ]


@contextmanager
def rolling_out(new: Any) -> Generator[tuple[Running, Running]]:
    """A stable server that sends half of its episodes on, and the canary."""
    rewards = Rewards(None, RewardSettings(), time.time)
    with serving(Pair(new)) as canary, serving(Pair(policy("a")), rewards=rewards) as stable:
        send_to(stable, canary.port, 0.5, salt="s", digest=new.digest)
        yield stable, canary


def judged(new: Any, **route: Any) -> tuple[Evidence, dict[str, Decision]]:
    """After some requests, one answer before them and one after."""
    court, evidence, decisions = court_of(spec_with(guards=GUARDS)), Evidence(), tuple[Decision, ...]()
    with rolling_out(new) as (stable, canary):
        if route:
            send_to(stable, canary.port, generation=2, digest=new.digest, **route)
        for number in range(2):
            if number:
                for i in range(REQUESTS):
                    assert stable.act(observation=OBSERVATION, episode=f"e{i}")[0] == 200
            now = datetime.now(UTC) + timedelta(seconds=number)
            seen = answers(stable, canary)
            evidence, decisions = judge(court, evidence, "t", NEW, OLD, seen, 0, now)
    return evidence, {one.guard: one for one in decisions}


def test_each_answer_of_a_canary_is_counted_once():
    evidence, found = judged(policy("c", seed=1))
    rates = evidence.rates["errorRate"]
    assert rates.canary.n + rates.stable.n == REQUESTS
    assert 60 < rates.canary.n < 140
    assert rates.canary.bad == rates.stable.bad == 0
    assert found["latency"].canary_n == rates.canary.n
    assert found["latency"].stable_n == rates.stable.n
    assert sum(evidence.drift.canary) == rates.canary.n
    assert evidence.length == 1.0
    assert found["nan"].verdict is Verdict.PASS


def test_a_canary_is_compared_with_its_own_evaluation_as_its_server_tells_it():
    new = policy("c", seed=1)
    new.evaluated = EvaluatedActions(
        episodes=20, decisions=200, deterministic=False, counts=(80, 60, 60), error=(0.01, 0.01, 0.01)
    )
    evidence, found = judged(new)
    assert evidence.reference is not None
    assert evidence.reference.shares == (0.4, 0.3, 0.3)
    assert evidence.as_trained == sum(evidence.trained.canary) == evidence.rates["errorRate"].canary.n
    assert not found["actionDriftTraining"].moot
    new.evaluated = new.evaluated.model_copy(update={"deterministic": True})
    assert judged(new)[1]["actionDriftTraining"].moot


def test_a_canary_that_answers_nan_is_condemned_and_was_answered_for():
    evidence, found = judged(broken())
    assert found["nan"].verdict is Verdict.FAIL
    # Errors of one look are one event, and condemn nobody by themselves.
    assert (found["errorRate"].canary, found["errorRate"].stable) == (1.0, 0.0)
    rates = evidence.rates["errorRate"]
    assert rates.canary.bad == rates.canary.n > 0


def test_copies_are_judged_though_nobody_gets_their_answers():
    evidence, _ = judged(broken(), weight=0.0, mirror=1.0)
    rates = evidence.rates["errorRate"]
    assert rates.stable.n == REQUESTS
    assert rates.canary.bad == rates.canary.n > 0


def test_a_server_says_which_route_it_follows_and_when_it_was_asked():
    with rolling_out(policy("c", seed=1)) as (stable, canary):
        route = Route(
            generation=1,
            canary=f"http://127.0.0.1:{canary.port}",
            weight=0.5,
            salt="s",
            digest=policy("c", seed=1).digest,
        )
        split, now = Split({OLD: 50, NEW: 50}), datetime.now(UTC)
        for i in range(40):
            stable.act(observation=OBSERVATION, episode=f"e{i}")
        watch = Watch(split, now.timestamp() - 100)
        _, followed, traffic = observe(watch, split, {OLD: route}, answers(stable, canary), now)
        assert followed == split
        assert traffic is not None
        assert min(traffic[OLD], traffic[NEW]) > 0
        other = route.model_copy(update={"weight": 0.4})
        assert observe(watch, split, {OLD: other}, answers(stable, canary), now)[1] is None
