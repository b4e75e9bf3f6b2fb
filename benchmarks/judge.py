"""How often the judge rolls a healthy canary back, and how soon a bad one; next to what is usual.

Usage: python benchmarks/judge.py [--rollouts N] [--requests N] [--seed N]

Each rollout: 10% canary, 0.5% base error, 50 requests a second, a look each second. The judge is the guard
`errorRate` of a spec that says nothing of guards: 1.5x allowed, 0.1% tolerated, one of three that share a
false-rollback rate of 5%. Then with other shares of it, and where not one error more is allowed. Beside it:

- windowed threshold: canary's error rate over the last 10 s above 1%, as an analysis of Argo Rollouts or
  Flagger that allows no failed measurement;
- repeated z-test: two proportions, pooled, all data so far, one-sided 5%, from 30 canary requests on.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from ratchet_operator.rollout.fromspec import court_of

from ratchet.api.v1alpha1.policydeployment import PolicyDeploymentSpec
from ratchet.evidence import (
    Contrast,
    Count,
    Drift,
    DriftGuard,
    LatencyAgainstStable,
    Moments,
    RateAgainstStable,
    ReturnGuard,
    Returns,
)
from ratchet.evidence.mixture import geometric

SPEC = {"source": {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "cartpole"}}}}
COURT = court_of(PolicyDeploymentSpec.model_validate(SPEC))
(GUARD,) = (one for one in COURT.tested if isinstance(one, RateAgainstStable) and one.name == "errorRate")
SHARE = COURT.alphas[GUARD.name]
ALPHA, GUARDS = 0.05, 5
PER_SECOND, WEIGHT, BASE = 50, 0.1, 0.005
WINDOW, THRESHOLD = 10, 0.01
RATES = (0.01, 0.02, 0.05, 0.2, 1.0)
EDGES = tuple(geometric(0.016, 16).tolist())
Ints = NDArray[np.int64]
Detector = Callable[[Ints, Ints], int | None]


def _arms(per_second: int) -> tuple[int, int]:
    """Requests of canary and stable in a second."""
    return int(per_second * WEIGHT), per_second - int(per_second * WEIGHT)


CANARY, STABLE = _arms(PER_SECOND)


def judge(alpha: float, guard: RateAgainstStable = GUARD, per_second: int = PER_SECOND) -> Detector:
    """First look, counted from 0, at which the guard's evidence is enough; its own classes do the sums."""
    begin, needed = guard.start(), -math.log(alpha)
    n_c, n_s = _arms(per_second)

    def first(canary: Ints, stable: Ints) -> int | None:
        test = begin
        for look, (a, b) in enumerate(zip(canary.tolist(), stable.tolist(), strict=True)):
            test = test.add(Count(n_c, a), Count(n_s, b))
            # Without a new error of the canary its evidence only falls.
            if a and test.log_e_above >= needed:
                return look
        return None

    return first


def windowed(canary: Ints, stable: Ints) -> int | None:
    """First look at which the last ten seconds are above the threshold."""
    sums = np.convolve(canary, np.ones(WINDOW, np.int64))[: len(canary)]
    return _first(sums > THRESHOLD * CANARY * WINDOW)


def z_test(canary: Ints, stable: Ints) -> int | None:
    """First look at which the pooled two-proportion z is above 1.645."""
    looks = np.arange(1, len(canary) + 1)
    n_c, n_s = looks * CANARY, looks * STABLE
    k_c, k_s = canary.cumsum(), stable.cumsum()
    pooled = (k_c + k_s) / (n_c + n_s)
    deviation = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n_c + 1 / n_s), 1e-30))
    return _first(((k_c / n_c - k_s / n_s) / deviation > 1.645) & (n_c >= 30))


def _first(hits: NDArray[np.bool_]) -> int | None:
    return int(hits.argmax()) if hits.any() else None


def rollouts(
    detector: Detector, rate: float, runs: int, looks: int, seed: int, per_second: int = PER_SECOND
) -> list[int | None]:
    rng = np.random.default_rng(seed)
    n_c, n_s = _arms(per_second)
    return [detector(rng.binomial(n_c, rate, looks), rng.binomial(n_s, BASE, looks)) for _ in range(runs)]


def errors(runs: int, requests: int, seed: int) -> None:
    detectors: dict[str, Detector] = {
        "judge, by default": judge(SHARE),
        "judge, one guard": judge(ALPHA),
        "judge, one of five": judge(ALPHA / GUARDS),
        "judge, one guard, 1x": judge(ALPHA, replace(GUARD, ratio=1.0)),
        "windowed threshold": windowed,
        "repeated z-test": z_test,
    }
    looks = requests // PER_SECOND
    print(f"Healthy canary, {BASE:.1%} errors in both arms, {requests:,} requests, {runs:,} rollouts each")
    for name, detector in detectors.items():
        found = rollouts(detector, BASE, runs, looks, seed)
        false = sum(look is not None for look in found) / runs
        error = 1.96 * math.sqrt(max(false * (1 - false), 1 / runs) / runs)
        print(f"  {name:22} rolled back wrongly in {false:7.2%}  (+- {error:.2%})", flush=True)

    few = max(200, runs // 5)
    print(f"\nBad canary: requests until rolled back, median (90% of {few:,} rollouts), and seconds")
    print(f"  {'canary errors':22}" + "".join(f"{rate:>20.1%}" for rate in RATES))
    for name, detector in detectors.items():
        print(f"  {name:22}" + _row(detector, few, seed), flush=True)

    print("\nThe judge by default at other rates of requests, and as if it counted answers one by one")
    print(f"  {'canary errors':22}" + "".join(f"{rate:>20.1%}" for rate in RATES))
    for per_second in (10, PER_SECOND, 500):
        for name, guard in (("", GUARD), (", one by one", replace(GUARD, tolerated=0.0))):
            row = _row(judge(SHARE, guard, per_second), few, seed, per_second)
            print(f"  {f'{per_second}/s{name}':22}{row}", flush=True)


def _row(detector: Detector, runs: int, seed: int, per_second: int = PER_SECOND) -> str:
    cells: list[str] = []
    for rate in RATES:
        limit = (100_000 if rate <= 0.02 else 20_000) // per_second
        found = rollouts(detector, rate, runs, limit, seed + 1, per_second)
        times = np.array([math.inf if look is None else look + 1 for look in found])
        middle, late = np.quantile(times, [0.5, 0.9], method="higher")
        shown = [f"{value * per_second:,.0f}" if math.isfinite(value) else "-" for value in (middle, late)]
        seconds = f" {middle:.0f}s" if math.isfinite(middle) else ""
        cells.append(f"{shown[0]} ({shown[1]}){seconds}")
    return "".join(f"{cell:>20}" for cell in cells)


def returns(runs: int, seed: int) -> None:
    """Mean return 500, deviation 100, cohorts of 3 canary and 27 stable episodes."""
    print(f"\nEpisode return, deviation 100, cohorts of 3 canary and 27 stable episodes, {runs:,} rollouts")
    for drop in (0, 25, 50, 100, 200):
        rng = np.random.default_rng(seed)
        found: list[float] = []
        for _ in range(runs):
            test, at = Contrast(), math.inf
            for cohort in range(100):
                canary, stable = rng.normal(500 - drop, 100, 3), rng.normal(500, 100, 27)
                test = test.add(_moments(canary), _moments(stable))
                if test.log_e_below() >= -math.log(ALPHA):
                    at = 3.0 * (cohort + 1)
                    break
            found.append(at)
        seen = sum(map(math.isfinite, found)) / runs
        middle = float(np.quantile(found, 0.5, method="higher"))
        after = f"{middle:.0f} canary episodes (median)" if math.isfinite(middle) else "not in most"
        print(f"  {drop:4d} lower: rolled back in {seen:7.2%} of 300 canary episodes, after {after}")


def _moments(values: NDArray[np.float64]) -> Moments:
    return Moments(len(values), float(values.mean()), float(((values - values.mean()) ** 2).sum()))


def cost() -> None:
    rng = np.random.default_rng(0)
    latency_guard = LatencyAgainstStable("latency", 0.99, 1.2, EDGES)
    bins = len(EDGES) + 1
    shares = np.full(bins, 1 / bins)
    errors_state, latency_state, drift_state = GUARD.start(), latency_guard.start(), Drift()
    contrast = Contrast()
    cases: dict[str, Callable[[], object]] = {}
    for _ in range(50):
        errors_state = errors_state.add(Count(CANARY, 1), Count(STABLE, 1))
        slow = rng.multinomial(STABLE, shares).tolist()
        latency_state = latency_state.add(rng.multinomial(CANARY, shares).tolist(), slow)
        drift_state = drift_state.add(rng.multinomial(CANARY, shares).tolist(), slow)
        contrast = contrast.add(_moments(rng.normal(0, 1, 3)), _moments(rng.normal(0, 1, 27)))
    one, other = [1] * bins, [9] * bins
    cases["error rate: add"] = lambda: errors_state.add(Count(5, 1), Count(45, 1))
    cases["error rate: verdict and record"] = lambda: GUARD.judge(errors_state, ALPHA, ALPHA)
    cases["latency: add"] = lambda: latency_state.add(one, other)
    cases["latency: verdict and record"] = lambda: latency_guard.judge(latency_state, ALPHA, ALPHA)
    cases["return: verdict and record"] = lambda: ReturnGuard("return").judge(Returns(contrast), ALPHA, ALPHA)
    cases["drift: add"] = lambda: drift_state.add(one, other)
    cases["drift: verdict and record"] = lambda: DriftGuard("drift").judge(drift_state, ALPHA, ALPHA)
    print("\nCost of one evaluation, median of 200")
    for name, case in cases.items():
        spent: list[float] = []
        for _ in range(200):
            begun = time.perf_counter()
            case()
            spent.append(time.perf_counter() - begun)
        print(f"  {name:32} {1e6 * float(np.median(spent)):7.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=1_000)
    parser.add_argument("--requests", type=int, default=100_000, help="per healthy rollout")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.perf_counter()
    errors(options.rollouts, options.requests, options.seed)
    returns(max(200, options.rollouts // 5), options.seed)
    cost()
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
