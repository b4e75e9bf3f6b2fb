"""Whole rollouts through judge and machine: wrong rollbacks, detection, promotion; next to what is usual.

Usage: python benchmarks/rollouts.py [--healthy N] [--faults N] [--times N] [--per-second N] [--seed N]

A simulated cluster of two stable and two canary pods with cumulative counters. The operator asks them each
second: one answer in 20 is lost, one second in 50 the operator dies and begins anew with what it wrote up to
10 s before, pods are replaced and servers start again, pods' clocks are off by minutes, and errors come in
bursts that hit both arms. 50 requests a second, 0.5% of the answers are errors, and the default spec.

Beside it, on the same traffic:

- windowed threshold: over the last 10 s (returns: 60 s) canary's error rate above 1%; its p99 above 1.5 x
  stable's; its mean return more than 5% below stable's; its actions further than 20% from stable's. As an
  analysis of Argo Rollouts or Flagger that allows no failed measurement;
- repeated z-test: all data so far, one-sided 5%, from 30 samples of the canary on. For latency of the share
  slower than stable's p99, for actions of the share of the action that moved most.

How long rollouts take is told of a world without those troubles, at 50, 500 and 10 requests a second. What a
cluster needs to start pods, to raise a weight and to bake the new policy comes on top.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from ratchet_operator.rollout.judging import PodAnswer, judge
from simulatedrollout import NEW, OLD, Behaviour, Pod, Seconds, Simulation, World, spec_with

from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS

Floats = NDArray[np.float64]
Looks = list[tuple[Seconds, Seconds]]
Detector = Callable[[Looks], int | None]
Z = 1.645


def weather(clock: float) -> float:
    """Every two minutes, for five seconds, ten times the errors."""
    return 10.0 if 60 <= clock % 120 < 65 else 1.0


WORLD = World(lost=0.05, deaths=0.02, replaced=0.005, restarted=0.005, skew=120.0, weather=weather)
EVERYTHING = {"episodeReturn": {"enabled": True, "horizon": "1m"}, "actionDrift": {"enabled": True}}
FAULTS: dict[str, tuple[Behaviour, str, int]] = {
    "errors 5%": (Behaviour(errors=0.05), "errors", 120),
    "errors 100%": (Behaviour(errors=1.0), "errors", 60),
    "twice as slow": (Behaviour(median=0.004), "latency", 300),
    "NaN 2%": (Behaviour(nan=0.02), "errors", 300),
    "return -20%": (Behaviour(returns=(400.0, 100.0)), "returns", 900),
    "actions 40% off": (Behaviour(actions=(0.1, 0.3, 0.6)), "actions", 900),
}


def sums(looks: Looks, of: Callable[[Seconds], Any]) -> tuple[Floats, Floats]:
    """A figure of both arms, by second."""
    return np.array([of(canary) for canary, _ in looks], float), np.array(
        [of(one) for _, one in looks], float
    )


def window(values: Floats, seconds: int) -> Floats:
    """Sums of the last seconds."""
    total = np.cumsum(values, axis=0)
    total[seconds:] = total[seconds:] - total[:-seconds]
    return total


def first(hits: NDArray[np.bool_]) -> int | None:
    return int(hits.argmax()) if hits.any() else None


def proportions(k_c: Floats, n_c: Floats, k_s: Floats, n_s: Floats) -> NDArray[np.bool_]:
    """Where a pooled two-proportion z is above 1.645."""
    with np.errstate(all="ignore"):
        pooled = (k_c + k_s) / (n_c + n_s)
        deviation = np.sqrt(pooled * (1 - pooled) * (1 / n_c + 1 / n_s))
        return ((k_c / n_c - k_s / n_s) / deviation > Z) & (n_c >= 30)


def windowed_errors(looks: Looks) -> int | None:
    bad, n = (window(sums(looks, of)[0], 10) for of in (lambda s: s.bad, lambda s: s.requests))
    return first(bad > 0.01 * n)


def tested_errors(looks: Looks) -> int | None:
    bad, n = (sums(looks, of) for of in (lambda s: s.bad, lambda s: s.requests))
    return first(proportions(bad[0].cumsum(), n[0].cumsum(), bad[1].cumsum(), n[1].cumsum()))


def p99(counts: Floats) -> Floats:
    """By second, the bucket's edge; infinite where there is nothing."""
    edges = np.array([*LATENCY_BOUNDS_SECONDS, math.inf])
    below = counts.cumsum(axis=1) >= 0.99 * counts.sum(axis=1, keepdims=True)
    return edges[below.argmax(axis=1)]


def windowed_latency(looks: Looks) -> int | None:
    canary, stable = (window(one, 10) for one in sums(looks, lambda s: s.latency))
    return first((p99(canary) > 1.5 * p99(stable)) & (canary.sum(axis=1) > 0))


def tested_latency(looks: Looks) -> int | None:
    canary, stable = (one.cumsum(axis=0) for one in sums(looks, lambda s: s.latency))
    slow = np.array([*LATENCY_BOUNDS_SECONDS, math.inf])[None, :] > p99(stable)[:, None]
    arms = ((one * slow).sum(axis=1) for one in (canary, stable))
    k_c, k_s = arms
    return first(proportions(k_c, canary.sum(axis=1), k_s, stable.sum(axis=1)))


def moments(looks: Looks, seconds: int | None) -> list[tuple[Floats, Floats, Floats]]:
    """Of each arm's returns, by second, over so many seconds or over all: number, mean, variance."""
    found: list[tuple[Floats, Floats, Floats]] = []
    for arm in (0, 1):
        one = (lambda look, arm=arm: look[arm].returns,)[0]
        powers = [np.array([sum(x**p for x in one(look)) for look in looks], float) for p in (0, 1, 2)]
        n, total, squares = (window(p, seconds) if seconds else p.cumsum() for p in powers)
        with np.errstate(all="ignore"):
            mean = total / n
            found.append((n, mean, np.maximum(squares / n - mean**2, 0)))
    return found


def windowed_returns(looks: Looks) -> int | None:
    (n, canary, _), (_, stable, _) = moments(looks, 60)
    return first((canary < 0.95 * stable) & (n > 0))


def tested_returns(looks: Looks) -> int | None:
    (n_c, canary, var_c), (n_s, stable, var_s) = moments(looks, None)
    with np.errstate(all="ignore"):
        return first(((stable - canary) / np.sqrt(var_c / n_c + var_s / n_s) > Z) & (n_c >= 30))


def windowed_actions(looks: Looks) -> int | None:
    canary, stable = (window(one, 10) for one in sums(looks, lambda s: s.actions))
    with np.errstate(all="ignore"):
        apart = np.abs(
            canary / canary.sum(axis=1, keepdims=True) - stable / stable.sum(axis=1, keepdims=True)
        )
    return first(apart.sum(axis=1) / 2 > 0.2)


def tested_actions(looks: Looks) -> int | None:
    canary, stable = (one.cumsum(axis=0) for one in sums(looks, lambda s: s.actions))
    n_c, n_s = canary.sum(axis=1), stable.sum(axis=1)
    hits = [proportions(canary[:, a], n_c, stable[:, a], n_s) for a in range(canary.shape[1])]
    return first(np.any(hits, axis=0))


WINDOWED: dict[str, Detector] = {
    "errors": windowed_errors,
    "latency": windowed_latency,
    "returns": windowed_returns,
    "actions": windowed_actions,
}
TESTED: dict[str, Detector] = {
    "errors": tested_errors,
    "latency": tested_latency,
    "returns": tested_returns,
    "actions": tested_actions,
}


def world_of(kind: str) -> World:
    """Episodes only where they are looked at."""
    return World(**{**vars(WORLD), "episode": 20 if kind in ("returns", "actions") else 0})


def share(hits: int, runs: int) -> str:
    rate = hits / runs
    return f"{rate:7.2%} (+- {1.96 * math.sqrt(max(rate * (1 - rate), 1 / runs) / runs):.2%})"


def healthy(runs: int, per_second: float, seed: int) -> None:
    world = World(**{**vars(WORLD), "per_second": per_second})
    spec = spec_with(strategy={"bake": "1s"})
    failed: dict[str, int] = {}
    took: list[float] = []
    others = {"windowed threshold": 0, "repeated z-test": 0}
    for run in range(runs):
        done = Simulation(spec, world, Behaviour(), seed=seed + run).run(1_800)
        if done.outcome == "Promoted":
            took.append(done.clock)
        elif done.failed_after is not None:
            guard = done.failed()
            failed[guard.guard if guard else ""] = failed.get(guard.guard if guard else "", 0) + 1
        compared = [look for look in done.looks if look[0].requests and look[1].requests]
        others["windowed threshold"] += any(
            WINDOWED[kind](compared) is not None for kind in ("errors", "latency")
        )
        others["repeated z-test"] += any(TESTED[kind](compared) is not None for kind in ("errors", "latency"))
    print(
        f"\nHealthy canary, default spec: stages 5/25/50%, minimum 500, false-rollback rate 5%; {runs:,} runs"
    )
    print(f"  judge                rolled back wrongly in {share(sum(failed.values()), runs)} {failed or ''}")
    for name, hits in others.items():
        print(f"  {name:20} rolled back wrongly in {share(hits, runs)}")
    late = np.quantile(took, [0.5, 0.9, 1.0]) if took else [math.nan] * 3
    print(
        f"  promoted: {len(took):,}; after {late[0]:.0f} s (median), {late[1]:.0f} s (90%), "
        f"{late[2]:.0f} s (the last)"
    )


def stalls(runs: int, seed: int) -> None:
    """Answers that are bad together: a server that is paused for a second is late with all of them."""
    print(f"\nHealthy canary that answers nothing for one second in 200, {runs:,} runs: rolled back")
    for per_second in (10.0, 50.0, 500.0):
        world, canary = World(per_second=per_second), Behaviour(stalls=1 / 200)
        wrong = others = 0
        for run in range(runs):
            done = Simulation(spec_with(), world, canary, seed=seed + run).run(1_800)
            wrong += done.failed_after is not None
            others += WINDOWED["latency"](done.looks) is not None
        told = f"judge {share(wrong, runs)}, windowed threshold {share(others, runs)}"
        print(f"  {per_second:3.0f}/s  {told}", flush=True)


def compared_with_argo(runs: int, seed: int) -> None:
    """Where Argo Rollouts with a threshold of 1% aborts a healthy canary."""
    print(
        f"\nHealthy canary, 20 requests/s for 2 minutes, 0.5% errors in both arms, {runs:,} runs: rolled back"
    )
    world = World(per_second=20.0)
    for weight in (5, 50):
        judged = windows = 0
        for run in range(runs):
            done = Simulation(spec_with(), world, Behaviour(), seed=seed + run, weight=weight).run(120)
            judged += done.failed_after is not None
            windows += windowed_errors(done.looks) is not None
        print(
            f"  {weight:2d}% canary: judge {share(judged, runs)}, windowed threshold {share(windows, runs)}"
        )


def faults(runs: int, seed: int) -> None:
    print(
        f"\nBad canary at 10%: canary requests until it is condemned, median (90%) of {runs:,}, and seconds; "
        "in brackets the\nshare of healthy rollouts of the same length that are condemned too"
    )
    print(f"  {'':16}{'judge':>34}{'windowed threshold':>34}{'repeated z-test':>34}")
    for name, (behaviour, kind, seconds) in FAULTS.items():
        spec = spec_with(guards=EVERYTHING if kind in ("returns", "actions") else {})
        cells: list[list[tuple[float, float]]] = [[], [], []]
        wrong = [0, 0, 0]
        for run in range(runs):
            for is_bad in (True, False):
                canary = behaviour if is_bad else Behaviour()
                done = Simulation(spec, world_of(kind), canary, seed=seed + run, weight=10)
                done.run(seconds)
                n = np.cumsum([look[0].requests for look in done.looks])
                found = (
                    None if done.failed_after is None else done.failed_after - 1,
                    WINDOWED[kind](done.looks),
                    TESTED[kind](done.looks),
                )
                for column, at in enumerate(found):
                    if is_bad:
                        cells[column].append((math.inf, math.inf) if at is None else (float(n[at]), at + 1.0))
                    else:
                        wrong[column] += at is not None
        shown = [_cell(cells[column], wrong[column] / runs) for column in range(3)]
        print(f"  {name:16}" + "".join(f"{cell:>34}" for cell in shown), flush=True)


def _cell(found: list[tuple[float, float]], wrong: float) -> str:
    requests, seconds = np.array(found).T
    middle, late = np.quantile(requests, [0.5, 0.9], method="higher")
    after = float(np.quantile(seconds, 0.5, method="higher"))
    words = [f"{value:,.0f}" if math.isfinite(value) else "-" for value in (middle, late, after)]
    return f"{words[0]} ({words[1]}), {words[2]} s [{wrong:.0%}]"


TIMED = {
    "healthy": Behaviour(),
    "2% errors": Behaviour(errors=0.02),
    "5% errors": Behaviour(errors=0.05),
    "20% errors": Behaviour(errors=0.2),
    "100% errors": Behaviour(errors=1.0),
    "twice as slow": Behaviour(median=0.004),
}


def times(runs: int, seed: int) -> None:
    spec = spec_with(strategy={"bake": "1s"})
    print(f"\nHow long rollouts take, default spec, {runs:,} each: seconds, median (90%)")
    for per_second in (50.0, 500.0, 10.0):
        world = World(per_second=per_second)
        for name, behaviour in TIMED.items():
            ends = [Simulation(spec, world, behaviour, seed=seed + run).run(3_600) for run in range(runs)]
            promoted = [len(done.looks) for done in ends if done.outcome == "Promoted"]
            failed = [done.failed_after for done in ends if done.failed_after is not None]
            does, took = ("promoted", promoted) if name == "healthy" else ("rolled back", failed)
            words = "in none"
            if took:
                middle, late = np.quantile(took, [0.5, 0.9], method="higher")
                words = f"after {middle:.0f} s ({late:.0f} s), {middle * per_second:,.0f} requests of all"
            others = f"promoted {len(promoted)}, rolled back {len(failed)}"
            print(f"  {per_second:3.0f}/s  {name:14} {does} {words}; {others}", flush=True)


def cost() -> None:
    """One look at a trial that has seen everything, by pods of each arm."""
    print("\nCPU of one look of the judge with every guard, median of 100")
    for pods in (1, 4, 32):
        world = World(stable_pods=pods, canary_pods=pods, per_second=50.0 * pods, episode=20)
        done = Simulation(spec_with(guards=EVERYTHING), world, Behaviour(), weight=25).run(30)
        spent: list[float] = []
        for _ in range(100):
            evidence = done.evidence
            done.clock += 1
            for pod in done.pods:
                _busy(pod)
            answers = [PodAnswer(pod.uid, pod.arm, pod.stats(done.clock)) for pod in done.pods]
            begun = time.process_time()
            done.evidence, _ = judge(done.court, evidence, "the only one", NEW, OLD, answers, 0, done.now)
            spent.append(time.process_time() - begun)
        size = len(done.evidence.to_annotation())
        spent_ms = 1e3 * float(np.median(spent))
        print(f"  {pods:3d} pods of each arm: {spent_ms:6.2f} ms; {size:,} bytes of evidence")


def _busy(pod: Pod) -> None:
    for tally in pod.tallies.values():
        tally.requests += 40
        tally.predictions += 40
        tally.latency[12] += 40
        tally.actions[0] += 40
        tally.failed("policy-error" if tally.arm == "stable" else "canary-error", 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--healthy", type=int, default=1_000, help="healthy rollouts")
    parser.add_argument("--faults", type=int, default=100, help="rollouts of each fault, and as many healthy")
    parser.add_argument("--times", type=int, default=20, help="rollouts of each kind whose length is told")
    parser.add_argument("--per-second", type=float, default=50.0, help="requests in the healthy rollouts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.perf_counter()
    cost()
    if options.faults:
        faults(options.faults, options.seed)
    if options.times:
        times(options.times, options.seed)
    if options.healthy:
        few = max(20, options.healthy // 5)
        compared_with_argo(few, options.seed)
        stalls(few, options.seed)
        healthy(options.healthy, options.per_second, options.seed)
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
