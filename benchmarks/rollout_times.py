"""How long a rollout takes with the guards and steps that a PolicyDeployment has by default.

Usage: python benchmarks/rollout_times.py [--rollouts N] [--seed N]

The guards of an empty `spec.guards` judge simulated traffic once a second: 0.5% errors and lognormal latency
(median 3 ms) in both arms, except for what is said of the canary. A step ends as in the operator: each guard
passes and `minDuration` is over. What the cluster needs to start pods, to raise a weight and to bake the new
policy comes on top: seconds, and `strategy.bake`.
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ratchet_operator.rollout.fromspec import court_of, stages_of

from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec
from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS
from ratchet.evidence import Count, Decision, LatencyAgainstStable, RateAgainstStable, Verdict

BASE, MEDIAN, SPREAD = 0.005, 0.003, 0.5
LONGEST = 3_600  # seconds
SPEC = PolicyDeploymentSpec.model_validate(
    {"source": {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "any"}}}}
)
EDGES = np.array(LATENCY_BOUNDS_SECONDS)


@dataclass(frozen=True)
class World:
    """What the canary is like: its rate of errors, and its latency in times of the stable arm's."""

    errors: float = BASE
    slower: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a simulated rollout ended: after how many seconds, and requests of all users."""

    passed: bool
    seconds: float
    requests: float


def simulate(rate: int, world: World, rng: np.random.Generator) -> Outcome:
    """One rollout at so many requests a second."""
    court, stages = court_of(SPEC), stages_of(SPEC.strategy)
    tests = [one for one in court.tested if isinstance(one, RateAgainstStable | LatencyAgainstStable)]
    states = {one.name: one.start() for one in tests}
    stage, since = 0, 0
    for second in range(1, LONGEST + 1):
        canary = int(rng.binomial(rate, stages[stage].weight / 100))
        stable = rate - canary
        decisions: list[Decision] = []
        for one in tests:
            if isinstance(one, LatencyAgainstStable):
                slow = states[one.name].add(_latency(rng, canary, world.slower), _latency(rng, stable, 1.0))
                states[one.name] = slow
                decisions.append(one.judge(slow, court.alphas[one.name], court.beta))
            else:
                bad = (world.errors, BASE) if one.name == "errorRate" else (0.0, 0.0)
                counts = [
                    Count(n, int(rng.binomial(n, p))) for n, p in zip((canary, stable), bad, strict=True)
                ]
                states[one.name] = states[one.name].add(*counts)
                decisions.append(one.judge(states[one.name], court.alphas[one.name], court.beta))
        if any(one.verdict is Verdict.FAIL for one in decisions):
            return Outcome(False, second, second * rate)
        is_over = second - since >= stages[stage].seconds
        if is_over and all(one.verdict is Verdict.PASS for one in decisions):
            stage, since = stage + 1, second
            if stage == len(stages):
                return Outcome(True, second, second * rate)
    return Outcome(False, math.inf, math.inf)


def _latency(rng: np.random.Generator, n: int, slower: float) -> list[int]:
    drawn: NDArray[np.float64] = MEDIAN * slower * rng.lognormal(0, SPREAD, n)
    return np.bincount(np.searchsorted(EDGES, drawn), minlength=len(EDGES) + 1).tolist()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    steps = ", ".join(f"{one.weight}% for {one.seconds:.0f} s" for one in stages_of(SPEC.strategy))
    print(f"Default guards, steps {steps}; {arguments.rollouts} rollouts each; median (90%)")
    worlds = {
        "healthy": World(),
        "2% errors": World(0.02),
        "5% errors": World(0.05),
        "20% errors": World(0.2),
        "100% errors": World(1.0),
        "twice as slow": World(slower=2.0),
    }
    for rate in (50, 500, 10):
        print(f"\n{rate} requests/s")
        for name, world in worlds.items():
            rng = np.random.default_rng(arguments.seed)
            ends = [simulate(rate, world, rng) for _ in range(arguments.rollouts)]
            passed = sum(end.passed for end in ends)
            wanted = [end for end in ends if end.passed == (name == "healthy")]
            if not wanted:
                print(f"  {name:14} let pass in {passed} of {len(ends)}")
                continue
            seconds = np.quantile([end.seconds for end in wanted], [0.5, 0.9], method="higher")
            requests = float(np.quantile([end.requests for end in wanted], 0.5, method="higher"))
            does = "serves everybody after" if name == "healthy" else "rolled back after"
            print(
                f"  {name:14} {does} {seconds[0]:.0f} s ({seconds[1]:.0f} s), {requests:,.0f} requests; "
                f"let pass in {passed} of {len(ends)}"
            )


if __name__ == "__main__":
    main()
