"""Whole rollouts in a simulated cluster: what is healthy is promoted, what is worse is gone soon.

Seeds are fixed; `benchmarks/rollouts.py` does the same a thousand times. The cluster loses answers, replaces
pods and lets the operator die; clocks are off; errors come in bursts that hit both arms.
"""

from itertools import cycle
from typing import Any

import pytest
from simulatedrollout import Behaviour, Simulation, World, spec_with, verdicts

HOSTILE = World(
    per_second=400.0,
    lost=0.05,
    deaths=0.05,
    replaced=0.02,
    restarted=0.02,
    skew=300.0,
    weather=lambda clock: 10.0 if clock % 30 < 3 else 1.0,
)
QUICK = {
    "bake": "1s",
    "canary": {"steps": [{"weight": weight, "minDuration": "10s"} for weight in (5, 25, 50)]},
}
RETURNS = {"episodeReturn": {"enabled": True, "horizon": "20s"}}


def test_a_healthy_policy_is_promoted_though_it_is_looked_at_each_second():
    outcomes = [
        Simulation(spec_with(strategy=QUICK), HOSTILE, Behaviour(), seed=seed).run(300).outcome
        for seed in range(24)
    ]
    # A chance of 5% gives more than three of 24 once in 33 times.
    assert outcomes.count("Promoted") >= 21


@pytest.mark.parametrize(
    ("guard", "most", "canary", "guards"),
    [
        ("errorRate", 650, Behaviour(errors=0.05), {}),
        ("errorRate", 60, Behaviour(errors=1.0), {}),
        ("latency", 1_500, Behaviour(median=0.004), {}),
        ("nan", 1_000, Behaviour(nan=0.005), {}),
        ("fallbackRate", 300, Behaviour(median=0.05), {"latency": {"enabled": False}}),
        ("actionDrift", 8_000, Behaviour(actions=(0.05, 0.3, 0.65)), {"actionDrift": {"enabled": True}}),
        ("episodeReturn", 8_000, Behaviour(returns=(350.0, 100.0)), RETURNS),
    ],
)
def test_a_worse_policy_is_taken_out_soon(guard: str, most: int, canary: Behaviour, guards: dict[str, Any]):
    world = World(**{**vars(HOSTILE), "episode": 20 if guard in ("actionDrift", "episodeReturn") else 0})
    spec = spec_with(guards=guards, strategy=QUICK)
    for seed in range(2):
        done = Simulation(spec, world, canary, seed=seed).run(400, lambda one: one.failed_after is not None)
        failed = done.failed()
        assert failed is not None, verdicts(done.decisions)
        assert failed.guard == guard
        assert done.canary_requests <= most
        assert done.state.trial is not None
        assert done.state.trial.phase == "RollBack"


@pytest.mark.parametrize(
    ("returns", "guard"),
    [((350.0, 100.0), "episodeReturnBaseline"), ((500.0, 100.0), None)],
)
def test_a_baseline_condemns_a_canary_that_is_no_worse_than_stable(
    returns: tuple[float, float], guard: str | None
):
    world = World(**{**vars(HOSTILE), "episode": 20})
    spec = spec_with(guards={"episodeReturn": {**RETURNS["episodeReturn"], "baseline": 450}}, strategy=QUICK)
    for seed in range(2):
        done = Simulation(spec, world, Behaviour(returns=returns), Behaviour(returns=returns), seed=seed)
        done.run(400, lambda one: one.failed_after is not None)
        failed = done.failed()
        assert (failed and failed.guard) == guard, verdicts(done.decisions)
        assert done.outcome == (None if guard else "Promoted")
        assert verdicts(done.decisions)["episodeReturn"] != "Fail"


class Skewed(Simulation):
    """Each pod's clock is wrong in its own way, by whole cohorts; all chance is as it was."""

    def __init__(self, skews: tuple[float, ...], *rollout: Any, **options: Any) -> None:
        self.skews = cycle(skews)
        super().__init__(*rollout, **options)

    def _skew(self) -> float:
        return next(self.skews)


@pytest.mark.parametrize("returns", [500.0, 350.0])
def test_no_figure_of_any_verdict_depends_on_what_time_a_pod_believes_it_is(returns: float):
    world = World(**{**vars(HOSTILE), "episode": 20, "skew": 0.0})
    spec = spec_with(guards={**RETURNS, "actionDrift": {"enabled": True}}, strategy=QUICK)
    canary = Behaviour(returns=(returns, 100.0))
    right, wrong = (
        Skewed(skews, spec, world, canary, seed=3).run(120) for skews in ((1e6,), (2e6, 40.0, 1e9, 970.0))
    )
    judged = next(one for one in right.decisions if one.guard == "episodeReturn")
    assert judged.canary_n > 0
    assert wrong.decisions == right.decisions
    assert wrong.state == right.state


def test_few_requests_with_the_usual_errors_roll_nothing_back():
    """Argo Rollouts with a threshold of 1% over 10 s aborts each of these."""
    world = World(per_second=20.0)
    for seed in range(6):
        done = Simulation(spec_with(), world, Behaviour(), seed=seed, weight=50).run(120)
        assert done.failed_after is None


def test_without_traffic_nothing_is_promoted_and_nothing_rolled_back():
    impatient = {
        name: {"onNotEnoughEvidence": "RollBack", "enabled": True}
        for name in ("errorRate", "fallbackRate", "latency", "episodeReturn", "actionDrift")
    }
    spec = spec_with(guards=impatient, strategy={**QUICK, "progressDeadline": "30s"})
    done = Simulation(spec, World(per_second=0.0), Behaviour(), seed=1).run(120)
    assert done.outcome is None
    assert done.state.trial is not None
    assert (done.state.trial.phase, done.state.trial.stage) == ("Stage", 0)
    assert set(verdicts(done.decisions).values()) == {"NotEnoughEvidence"}


def test_a_stable_pod_that_fares_badly_does_not_condemn_the_canary_that_only_it_asks():
    world = World(per_second=200.0, stable_pods=4, uneven=20.0)
    for seed in range(4):
        done = Simulation(spec_with(), world, Behaviour(), seed=seed, weight=10).run(60)
        rates = done.evidence.rates["errorRate"]
        assert rates.canary.rate > 2 * rates.stable.rate
        assert done.failed_after is None


@pytest.mark.parametrize(("canary", "is_condemned"), [(500.0, False), (350.0, True)])
def test_rewards_for_a_fifth_of_the_episodes_are_enough(canary: float, is_condemned: bool):
    world = World(per_second=400.0, episode=5, skew=100.0)
    old, new = Behaviour(reported=0.2), Behaviour(reported=0.2, returns=(canary, 100.0))
    done = Simulation(spec_with(guards=RETURNS), world, new, old, seed=2, weight=20)
    done.run(300, lambda one: one.failed_after is not None)
    failed = done.failed()
    assert (failed is not None and failed.guard == "episodeReturn") == is_condemned


def test_a_policy_that_was_never_evaluated_is_promoted_though_drift_from_training_is_asked_for():
    drift = {"actionDrift": {"enabled": True, "maxDistanceFromTraining": 0.2}}
    done = Simulation(spec_with(guards=drift, strategy=QUICK), World(per_second=400.0), Behaviour(), seed=3)
    assert done.run(300).outcome == "Promoted"


def test_rewards_that_are_missing_for_one_arm_are_not_compared():
    world = World(per_second=400.0, episode=5)
    new = Behaviour(reported=0.2, returns=(100.0, 100.0))
    done = Simulation(spec_with(guards=RETURNS), world, new, seed=2, weight=20).run(150)
    assert verdicts(done.decisions)["episodeReturn"] == "NotEnoughEvidence"
    assert "can't be compared" in next(one for one in done.decisions if one.guard == "episodeReturn").sentence
