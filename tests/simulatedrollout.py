"""A rollout in a simulated cluster: pods that count what they answer, asked by an operator that may die.

What is simulated is the world; judge and machine are the operator's own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ratchet_operator.rollout.fromspec import court_of, rules_of
from ratchet_operator.rollout.judging import Evidence, PodAnswer, judge
from ratchet_operator.rollout.machine import step
from ratchet_operator.rollout.values import ArmSeen, Rollout, Seen, Split

from ratchet.api.v1alpha1 import PolicyDeploymentSpec
from ratchet.api.v1alpha1.serverstats import (
    COHORT_SECONDS,
    LATENCY_BOUNDS_SECONDS,
    ActionStats,
    ArmStats,
    Latency,
    RouteStats,
    ServerStats,
)
from ratchet.evidence import Decision, Moments, Verdict

OLD, NEW = "old", "new"
BUDGET_SECONDS = 0.03
BUCKETS = len(LATENCY_BOUNDS_SECONDS) + 1
SOURCE = {"type": "TrainingJob", "trainingJob": {"jobRef": {"name": "cartpole"}}}


def spec_with(**members: Any) -> PolicyDeploymentSpec:
    """A spec with defaults for whatever is not said."""
    return PolicyDeploymentSpec.model_validate({"source": SOURCE, **members})


@dataclass(frozen=True)
class Behaviour:
    """What a policy does, each second of its life.

    Attributes:
        errors: share of answers that are wrong.
        nan: share of answers that are NaN.
        median: seconds to an answer; the spread is log-normal.
        returns: mean and deviation of an episode's return.
        reported: share of the episodes whose return comes.
        actions: shares of discrete actions.
        stalls: chance in a second that none of the canary's answers comes in time.

    """

    errors: float = 0.005
    nan: float = 0.0
    median: float = 0.002
    sigma: float = 0.4
    returns: tuple[float, float] = (500.0, 100.0)
    reported: float = 1.0
    actions: tuple[float, ...] = (0.5, 0.3, 0.2)
    stalls: float = 0.0


@dataclass(frozen=True)
class World:
    """What happens beside the policies.

    Attributes:
        per_second: requests, of all clients.
        stable_pods, canary_pods: that serve.
        episode: decisions in an episode, each of which takes a second; 0 where there are none.
        lost: chance that a pod gives no answer in time when it is asked.
        deaths: chance in a second that the operator dies; what it remembers is then up to 10 s old.
        replaced: chance in a second that one of the pods gives way to a new one.
        restarted: chance in a second that the server of a stable pod starts again.
        skew: deviation of the pods' clocks from the operator's, seconds.
        weather: factor of every rate of error at a moment, for both arms.
        uneven: only the first stable pod sends anything to the canary, and it has so many times the errors.

    """

    per_second: float = 50.0
    stable_pods: int = 2
    canary_pods: int = 2
    episode: int = 0
    lost: float = 0.0
    deaths: float = 0.0
    replaced: float = 0.0
    restarted: float = 0.0
    skew: float = 0.0
    weather: Callable[[float], float] = lambda _: 1.0
    uneven: float = 0.0


@lru_cache(maxsize=64)
def bucket_shares(median: float, sigma: float) -> tuple[float, ...]:
    """Of a log-normal latency, by bucket."""
    below = [
        0.5 * math.erfc(-math.log(bound / median) / sigma / math.sqrt(2)) for bound in LATENCY_BOUNDS_SECONDS
    ]
    return tuple(np.diff([0.0, *below, 1.0]).tolist())


class Tally:
    """One policy on one arm."""

    def __init__(self, arm: str, digest: str, outputs: int) -> None:
        self.arm, self.digest = arm, digest
        self.requests = self.predictions = self.nan = 0
        self.errors: dict[str, int] = {}
        self.latency = np.zeros(BUCKETS, np.int64)
        self.actions = np.zeros(outputs, np.int64)

    def failed(self, reason: str, number: int) -> None:
        if number:
            self.errors[reason] = self.errors.get(reason, 0) + number

    def stats(self) -> ArmStats:
        errors = dict(self.errors)
        return ArmStats.model_construct(
            arm=self.arm,
            digest=self.digest,
            requests=self.requests,
            predictions=self.predictions,
            errors=errors,
            fallbacks={"scripted": errors} if errors else {},
            mask_violations=0,
            nan_answers=self.nan,
            latency=Latency.model_construct(counts=self.latency.tolist(), sum_seconds=0.0),
            actions=ActionStats.model_construct(
                number=int(self.actions.sum()), counts=self.actions.tolist(), mean=None, m2=None
            ),
        )


class Pod:
    """One server: its incarnation, its clock, its counters."""

    names = count()

    def __init__(self, arm: str, now: float, skew: float) -> None:
        self.uid, self.arm, self.skew = f"pod-{next(self.names)}", arm, skew
        self.restart(now)

    def restart(self, now: float) -> None:
        self.incarnation, self.started = f"{next(self.names):012x}", now
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.cohorts: dict[tuple[str, str], dict[int, tuple[int, Moments]]] = {}

    def tally(self, arm: str, policy: str, outputs: int) -> Tally:
        found = self.tallies.get((arm, policy))
        if found is None:
            found = self.tallies[arm, policy] = Tally(arm, policy, outputs)
        return found

    def told(self, arm: str, policy: str, began: float, started: int, returns: Moments) -> None:
        """Episodes that began at a moment, and returns of such."""
        cohorts = self.cohorts.setdefault((arm, policy), {})
        number = int((began + self.skew) // COHORT_SECONDS)
        before = cohorts.get(number, (0, Moments()))
        cohorts[number] = before[0] + started, before[1] + returns

    def stats(self, now: float) -> ServerStats:
        return ServerStats.model_construct(
            version=1,
            incarnation=self.incarnation,
            uptime_seconds=now - self.started,
            ready=True,
            draining=False,
            current=f"policy of {self.arm}",
            previous=None,
            route=RouteStats(),
            sessions=0,
            latency_bounds_seconds=LATENCY_BOUNDS_SECONDS,
            arms=[tally.stats() for tally in self.tallies.values()],
            episodes=[self._episodes(*key, now) for key in self.cohorts],
        )

    def _episodes(self, arm: str, policy: str, now: float) -> dict[str, Any]:
        cohorts = self.cohorts[arm, policy]
        return {
            "arm": arm,
            "digest": policy,
            "started": sum(began for began, _ in cohorts.values()),
            "cohorts": [
                {
                    "start": number * COHORT_SECONDS,
                    "age": now + self.skew - number * COHORT_SECONDS,
                    "started": began,
                    "n": returns.n,
                    "mean": returns.mean,
                    "m2": returns.m2,
                }
                for number, (began, returns) in sorted(cohorts.items())
            ],
        }


@dataclass
class Seconds:
    """What one arm did in one second, for other detectors to look at."""

    requests: int = 0
    bad: int = 0
    latency: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BUCKETS, np.int64))
    actions: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    returns: list[float] = field(default_factory=list[float])

    def add(self, requests: int, bad: int, latency: NDArray[np.int64], actions: NDArray[np.int64]) -> None:
        self.requests += requests
        self.bad += bad
        self.latency += latency
        self.actions += actions


class Simulation:
    """One rollout of NEW over OLD.

    Args:
        spec: of the rollout.
        world: around it.
        canary: the new policy.
        stable: the old one.
        seed: of all chance.
        weight: percent of the traffic that NEW gets whatever the verdicts; None: the machine decides.

    """

    def __init__(
        self,
        spec: PolicyDeploymentSpec,
        world: World,
        canary: Behaviour,
        stable: Behaviour | None = None,
        seed: int = 0,
        weight: int | None = None,
    ) -> None:
        self.rules, self.court = rules_of(spec), court_of(spec)
        self.world, self.rng = world, np.random.default_rng(seed)
        self.behaviours = {NEW: canary, OLD: stable or Behaviour()}
        self.clock = 0.0
        self.state, self.split = Rollout(stable=OLD), Split({OLD: 100})
        self.evidence, self.stored, self.stored_at = Evidence(), "", -math.inf
        self.decisions: tuple[Decision, ...] = ()
        self.restarts = 0
        self.looks: list[tuple[Seconds, Seconds]] = []
        self.failed_after: int | None = None
        self.weight = weight
        self.is_stalled = False
        self.pods = [Pod(OLD, -1_000.0 * self.rng.random(), self._skew()) for _ in range(world.stable_pods)]
        # Both arms have served before, also this very policy: none of that is evidence.
        for pod in self.pods:
            for arm in ("stable", "canary"):
                pod.tally(arm, f"policy of {NEW if arm == 'canary' else OLD}", 3).requests += 1_000
            pod.tally("canary", f"policy of {NEW}", 3).failed("canary-error", 500)
        self.reporting: dict[int, list[tuple[Pod, str, str, float]]] = {}

    def _skew(self) -> float:
        return float(self.rng.normal(0, self.world.skew)) if self.world.skew else 0.0

    @property
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.clock)

    @property
    def outcome(self) -> str | None:
        """How the first trial ended, None while it has not."""
        return self.state.history[0].outcome if self.state.history else None

    @property
    def canary_requests(self) -> int:
        return sum(canary.requests for canary, _ in self.looks)

    @property
    def requests(self) -> int:
        return self.canary_requests + sum(stable.requests for _, stable in self.looks)

    def failed(self) -> Decision | None:
        """The first guard that says so."""
        return next((one for one in self.decisions if one.verdict is Verdict.FAIL), None)

    def run(self, seconds: int, until: Callable[["Simulation"], bool] | None = None) -> "Simulation":
        """Goes on until the trial has ended, or something else is the case, or the time is over."""
        for _ in range(seconds):
            self.second()
            if self.outcome is not None or (until is not None and until(self)):
                break
        return self

    def second(self) -> None:
        """One second of traffic, then a look of the operator."""
        self.clock += 1.0
        self._pods_change()
        look = Seconds(), Seconds()
        weight = self.split.weights.get(NEW, 0) / 100
        mirrored = self.split.mirrored[1] / 100 if self.split.mirrored else 0.0
        routers = [pod for pod in self.pods if pod.arm == OLD]
        stalls = self.behaviours[NEW].stalls
        self.is_stalled = bool(stalls and self.rng.random() < stalls)
        for number, pod in enumerate(routers):
            self._serve(pod, look, weight, mirrored, is_first=not number)
        self._report(look)
        self.looks.append(look)
        self.operate()

    def operate(self) -> None:
        """One look, and one step."""
        rng, world = self.rng, self.world
        if world.deaths and rng.random() < world.deaths:
            self.evidence = Evidence.model_validate_json(self.stored) if self.stored else Evidence()
        answers = [
            PodAnswer(pod.uid, pod.arm, None if rng.random() < world.lost else pod.stats(self.clock))
            for pod in self.pods
        ]
        trial = self.state.trial
        if self.weight is not None:
            self._judge("the only one", answers)
            self.split = Split({OLD: 100 - self.weight, NEW: self.weight})
            return
        if trial is not None:
            name = f"{trial.digest}/{self.state.attempts.get(trial.digest, 0)}"
            self._judge(name, answers)
        arms = {arm: sum(pod.arm == arm for pod in self.pods) for arm in (OLD, NEW)}
        seen = Seen(
            source=NEW,
            arms={arm: ArmSeen(pods, pods) for arm, pods in arms.items() if pods},
            demand=1,
            routed=self.split,
            split=self.split,
            traffic={},
            decisions=self.decisions,
        )
        before = self.state
        wanted = step(self.rules, self.state, seen, self.now)
        self.state, self.split = wanted.state, wanted.split
        if wanted.state != before:
            self.stored, self.stored_at = self.evidence.to_annotation(), self.clock

    def _judge(self, trial: str, answers: list[PodAnswer]) -> None:
        self.evidence, self.decisions = judge(
            self.court, self.evidence, trial, NEW, OLD, answers, self.restarts, self.now
        )
        if self.clock - self.stored_at >= 10:
            self.stored, self.stored_at = self.evidence.to_annotation(), self.clock
        if self.failed_after is None and self.failed() is not None:
            self.failed_after = len(self.looks)

    def _pods_change(self) -> None:
        rng, world = self.rng, self.world
        is_tried = self.state.trial is not None or self.weight is not None
        if is_tried and not any(pod.arm == NEW for pod in self.pods):
            self.pods += [Pod(NEW, self.clock, self._skew()) for _ in range(world.canary_pods)]
        if world.replaced and rng.random() < world.replaced:
            index = int(rng.integers(len(self.pods)))
            self.pods[index] = Pod(self.pods[index].arm, self.clock, self._skew())
        if world.restarted and rng.random() < world.restarted:
            stable = [pod for pod in self.pods if pod.arm == OLD]
            stable[int(rng.integers(len(stable)))].restart(self.clock)

    def _serve(
        self, pod: Pod, look: tuple[Seconds, Seconds], weight: float, mirrored: float, *, is_first: bool
    ) -> None:
        rng, world = self.rng, self.world
        total = int(rng.poisson(world.per_second / world.stable_pods))
        factor = world.weather(self.clock)
        if world.uneven:
            factor *= world.uneven if is_first else 1.0
            weight = min(1.0, weight * world.stable_pods) if is_first else 0.0
        theirs = int(rng.binomial(total, weight))
        self._own(pod, total - theirs, factor, look)
        if theirs:
            self._ask(pod, "canary", theirs, factor, look)
        copies = int(rng.binomial(total - theirs, mirrored)) if mirrored else 0
        if copies:
            self._ask(pod, "shadow", copies, factor, look)
        if world.episode:
            for arm, owner, number in (("stable", OLD, total - theirs), ("canary", NEW, theirs)):
                self._begin(pod, arm, owner, int(rng.binomial(number, 1 / world.episode)))

    def _own(self, pod: Pod, number: int, factor: float, look: tuple[Seconds, Seconds]) -> None:
        """What a pod of the stable arm answers itself."""
        does = self.behaviours[OLD]
        tally = pod.tally("stable", f"policy of {OLD}", len(does.actions))
        bad = int(self.rng.binomial(number, min(1.0, does.errors * factor)))
        latency = self.rng.multinomial(number, bucket_shares(does.median, does.sigma))
        tally.requests += number
        tally.predictions += number
        tally.failed("policy-error", bad)
        actions = self.rng.multinomial(number, does.actions)
        tally.latency += latency
        tally.actions += actions
        look[1].add(number, bad, latency, actions)

    def _ask(self, pod: Pod, arm: str, number: int, factor: float, look: tuple[Seconds, Seconds]) -> None:
        """What the canary answers to a pod of the stable arm, counted at both ends."""
        does, rng = self.behaviours[NEW], self.rng
        servers = [one for one in self.pods if one.arm == NEW]
        server = servers[int(rng.integers(len(servers)))]
        policy, outputs = f"policy of {NEW}", len(does.actions)
        bad = int(rng.binomial(number, min(1.0, does.errors * factor)))
        nan = int(rng.binomial(number - bad, does.nan))
        latency = rng.multinomial(number, bucket_shares(does.median, does.sigma))
        if self.is_stalled:
            latency = np.array([0] * (len(latency) - 1) + [number])
        late = int(latency[LATENCY_BOUNDS_SECONDS.index(0.0315) :].sum())
        late = min(late, number - bad - nan)
        actions = rng.multinomial(number, does.actions)
        there = server.tally(arm, policy, outputs)
        there.requests += number
        there.predictions += number
        there.nan += nan
        there.failed("nan", nan)
        there.latency += latency
        there.actions += actions
        here = pod.tally(arm, policy, outputs)
        here.requests += number
        here.predictions += number - bad - nan - late
        here.failed("canary-error", bad)
        here.failed("canary-fallback", nan)
        here.failed("canary-timeout", late)
        here.actions += actions
        look[0].add(number, bad + nan, latency, actions)

    def _begin(self, pod: Pod, arm: str, owner: str, number: int) -> None:
        """Episodes, which end after a while and then mostly report."""
        if not number:
            return
        does, rng = self.behaviours[owner], self.rng
        policy = f"policy of {owner}"
        pod.told(arm, policy, self.clock, number, Moments())
        for _ in range(int(rng.binomial(number, does.reported))):
            ends = int(self.clock) + 1 + int(rng.exponential(self.world.episode))
            self.reporting.setdefault(ends, []).append((pod, arm, owner, self.clock))

    def _report(self, look: tuple[Seconds, Seconds]) -> None:
        for pod, arm, owner, began in self.reporting.pop(int(self.clock), ()):
            mean, deviation = self.behaviours[owner].returns
            value = float(self.rng.normal(mean, deviation))
            look[owner == OLD].returns.append(value)
            pod.told(arm, f"policy of {owner}", began, 0, Moments(1, value))


def verdicts(decisions: tuple[Decision, ...]) -> Mapping[str, str]:
    """By guard."""
    return {one.guard: one.verdict.value for one in decisions}
