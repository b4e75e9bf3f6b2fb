"""From what pods say to what has happened since they were asked before. Pure.

A pod of the stable arm says how the canary answered it and how it answered itself; a pod of the canary says
how long it took, what it noticed to be wrong with its own answers, and, once clients reach it directly, how
those went. So nothing is counted at both ends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from ratchet.api.v1alpha1.serverstats import (
    COHORT_SECONDS,
    LATENCY_BOUNDS_SECONDS,
    ArmStats,
    EvaluatedActions,
    ServerStats,
)
from ratchet.evidence import Cohort, Count, Episodes, Moments, Reference
from ratchet.evidence.drift import shares
from ratchet.evidence.latency import added, edge_of

T = TypeVar("T", int, float)
CANARY, STABLE, SHADOW = "canary", "stable", "shadow"
# The canary did not answer, which says less of its policy than a wrong answer does.
SILENT = frozenset({"canary-timeout", "canary-unreachable"})
# Larger action spaces are folded, wider ones cut: an annotation has room for so much of each pod.
LARGEST_ACTIONS, WIDEST_ACTIONS, DIGITS = 32, 8, 12
# Episodes that began within this time are reported together: `Returns` of the policy server.


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How answers went.

    Attributes:
        requests: answered, by whomever.
        rows: decisions in them.
        wrong: decisions that were wrong: an error, NaN, forbidden, another policy's.
        failed: decisions that another step had to answer, because it was wrong, late or missing.

    """

    requests: int = 0
    rows: int = 0
    wrong: int = 0
    failed: int = 0

    def count(self, bad: int) -> Count:
        """Bad decisions as requests: those of one request fail together, and are no evidence each."""
        return Count(self.requests, bad * self.requests / self.rows if self.rows else 0)


@dataclass(frozen=True, slots=True)
class Actions:
    """What was done: counts of discrete actions, or moments of continuous ones by component.

    Attributes:
        deterministic: how many were asked for as the most likely ones; None of a server that does not say.

    """

    number: int = 0
    deterministic: int | None = None
    counts: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    m2: tuple[float, ...] = ()

    def chosen(self, *, deterministic: bool) -> bool:
        """Whether all of them were chosen this way."""
        return self.deterministic == (self.number if deterministic else 0)

    @property
    def moments(self) -> tuple[Moments, ...]:
        """Of each component."""
        return tuple(Moments(self.number, mean, m2) for mean, m2 in zip(self.mean, self.m2, strict=True))


@dataclass(frozen=True, slots=True)
class Counters:
    """Everything that one pod counted of a trial."""

    canary: Outcomes = Outcomes()
    stable: Outcomes = Outcomes()
    nan: int = 0
    masks: int = 0
    canary_latency: tuple[int, ...] = ()
    stable_latency: tuple[int, ...] = ()
    canary_actions: Actions = Actions()
    stable_actions: Actions = Actions()

    def since(self, before: "Counters") -> "Counters | None":
        """What was added; None where a counter went backwards, for then nothing is known."""
        try:
            return Counters(
                canary=_outcomes_since(self.canary, before.canary),
                stable=_outcomes_since(self.stable, before.stable),
                nan=_less(self.nan, before.nan),
                masks=_less(self.masks, before.masks),
                canary_latency=_counts_since(self.canary_latency, before.canary_latency),
                stable_latency=_counts_since(self.stable_latency, before.stable_latency),
                canary_actions=_actions_since(self.canary_actions, before.canary_actions),
                stable_actions=_actions_since(self.stable_actions, before.stable_actions),
            )
        except _BackwardsError:
            return None


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a pod.

    Attributes:
        uptime: of its last answer, by which one that comes late or twice is told.
        before: the incarnation before this one, whose late answers say nothing.
        cohort: start of the newest cohort of episodes that was taken, by the pod's own clock.

    """

    arm: str
    incarnation: str
    uptime: float
    before: str = ""
    cohort: float = 0.0
    counters: Counters = Counters()


def increment(
    known: Known | None, arm: str, stats: ServerStats, counters: Counters, *, is_new: bool
) -> tuple[Known, Counters] | None:
    """What a pod's answer adds to its last one, and what is to be remembered; None where it says nothing new.

    Args:
        known: what is remembered of the pod.
        arm: of the pod.
        stats: its answer.
        counters: those of the answer.
        is_new: whether a pod that is not known has all its counters from the present trial.

    """
    if known is None:
        seen = Known(arm=arm, incarnation=stats.incarnation, uptime=stats.uptime_seconds, counters=counters)
        return seen, counters if is_new else Counters()
    if stats.incarnation == known.incarnation:
        if stats.uptime_seconds <= known.uptime:
            return None
        seen = replace(known, uptime=stats.uptime_seconds, counters=counters)
        return seen, counters.since(known.counters) or Counters()
    if stats.incarnation == known.before:
        return None
    seen = Known(
        arm=arm,
        incarnation=stats.incarnation,
        uptime=stats.uptime_seconds,
        before=known.incarnation,
        counters=counters,
    )
    return seen, counters


def counters_of(
    stats: ServerStats, canary: str, stable: str | None, *, is_canary: bool, has_actions: bool
) -> Counters:
    """A pod's counters of a trial since the pod began.

    Args:
        stats: of the pod.
        canary: digest of the canary's policy.
        stable: digest of the stable policy, None where there is none.
        is_canary: whether the pod belongs to the canary.
        has_actions: whether actions are looked at.

    """
    found, bounds = Counters(), stats.latency_bounds_seconds
    for tally in stats.arms:
        actions = _actions(tally) if has_actions else Actions()
        if is_canary:
            if tally.digest == canary:
                found = _with_own(found, tally, actions, bounds)
        elif tally.arm in (CANARY, SHADOW):
            if tally.digest in (canary, ""):
                found = _with_theirs(found, tally, actions)
        elif tally.digest == stable:
            latency = _latency(tally, bounds)
            found = replace(
                found,
                stable=_answered_here(tally),
                stable_latency=latency,
                # Only the canary's are compared with training; each number takes room, for each pod.
                stable_actions=replace(actions, deterministic=None),
            )
    return found


def reference_of(evaluated: EvaluatedActions) -> Reference:
    """What a policy did in its evaluation, in the bins that its actions are counted in."""
    counts, error = _folded(evaluated.counts), evaluated.error
    return Reference(
        evaluated.episodes,
        evaluated.decisions / evaluated.episodes,
        evaluated.deterministic,
        shares(counts),
        evaluated.mean[:WIDEST_ACTIONS],
        evaluated.deviation[:WIDEST_ACTIONS],
        # Shares of one bin are added, so the sum of their errors bounds the bin's.
        tuple(_folded(error)) if counts else error[:WIDEST_ACTIONS],
    )


def cohorts_of(
    stats: ServerStats,
    canary: tuple[str, str],
    stable: tuple[str, str] | None,
    known: Known,
    horizon: float,
    elapsed: float,
) -> tuple[Known, list[Cohort]]:
    """Cohorts of episodes that have become old enough to be compared since the pod was asked before.

    Both arms of a cohort are of one pod and one clock, so no other clock matters. A cohort is read once and
    whole, when its youngest episode is `horizon` seconds old.

    Args:
        stats: of the pod.
        canary: arm and digest under which the pod tells the canary's episodes.
        stable: likewise the stable arm's.
        known: what is remembered of the pod.
        horizon: seconds that an episode has to end and to report its return.
        elapsed: seconds since the trial began; what began before is not of it.

    """
    found: dict[float, list[Episodes]] = {}
    for tally in stats.episodes:
        key = tally.get("arm"), tally.get("digest")
        if key not in (canary, stable):
            continue
        for cohort in reversed(_list(tally.get("cohorts"))):
            start, age = _float(cohort, "start"), _float(cohort, "age")
            if start <= known.cohort or age > elapsed:
                break
            if age >= COHORT_SECONDS + horizon:
                found.setdefault(start, [Episodes(), Episodes()])[key != canary] = _episodes(cohort)
    if not found:
        return known, []
    cohorts = [Cohort(int(start // COHORT_SECONDS), *found[start]) for start in sorted(found)]
    return replace(known, cohort=max(found)), cohorts


def decisions_per_episode(all_stats: Sequence[ServerStats]) -> float | None:
    """How many decisions an episode has; 1 where none belongs to an episode, None where it can't be told."""
    started = sum(_float(tally, "started") for stats in all_stats for tally in stats.episodes)
    if not started:
        return None if any(stats.sessions for stats in all_stats) else 1.0
    decided = sum(tally.predictions for stats in all_stats for tally in stats.arms if tally.arm != SHADOW)
    return max(1.0, decided / started)


def _with_own(found: Counters, tally: ArmStats, actions: Actions, bounds: Sequence[float]) -> Counters:
    """What the canary says of itself. What others asked of it on behalf of clients is counted there."""
    is_direct = tally.arm == STABLE
    return replace(
        found,
        nan=found.nan + tally.nan_answers,
        masks=found.masks + tally.mask_violations,
        canary_latency=added(found.canary_latency, _latency(tally, bounds)),
        canary=_answered_here(tally) if is_direct else found.canary,
        canary_actions=actions if is_direct else found.canary_actions,
    )


def _with_theirs(found: Counters, tally: ArmStats, actions: Actions) -> Counters:
    """What the canary answered to a pod of the stable arm."""
    failed = sum(tally.errors.values())
    wrong = failed - sum(tally.errors.get(reason, 0) for reason in SILENT)
    before = found.canary
    outcomes = Outcomes(
        requests=before.requests + tally.requests,
        rows=before.rows + tally.predictions + failed,
        wrong=before.wrong + wrong,
        failed=before.failed + failed,
    )
    return replace(
        found,
        canary=outcomes,
        nan=found.nan + tally.nan_answers,
        masks=found.masks + tally.mask_violations,
        canary_actions=_both(found.canary_actions, actions),
    )


def _answered_here(tally: ArmStats) -> Outcomes:
    return Outcomes(
        requests=tally.requests,
        rows=tally.predictions,
        wrong=sum(tally.errors.values()),
        failed=sum(sum(reasons.values()) for reasons in tally.fallbacks.values()),
    )


def _latency(tally: ArmStats, bounds: Sequence[float]) -> tuple[int, ...]:
    """Counts by LATENCY_BOUNDS_SECONDS; those of a server that has others are rounded up."""
    if tuple(bounds) == LATENCY_BOUNDS_SECONDS:
        return tuple(tally.latency.counts)
    counts = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
    for bound, number in zip([*bounds, math.inf], tally.latency.counts, strict=False):
        counts[edge_of(LATENCY_BOUNDS_SECONDS, bound)] += number
    return tuple(counts)


def _actions(tally: ArmStats) -> Actions:
    found = tally.actions
    return Actions(
        number=found.number,
        deterministic=found.deterministic,
        counts=tuple(_folded(found.counts or ())),
        mean=_short(found.mean),
        m2=_short(found.m2),
    )


def _short(values: Sequence[float] | None) -> tuple[float, ...]:
    """Of the first components, in as many digits as differences need."""
    return tuple(float(f"{value:.{DIGITS}g}") for value in (values or ())[:WIDEST_ACTIONS])


def _folded(values: Sequence[T]) -> list[T]:
    """Of at most LARGEST_ACTIONS actions, neighbours together."""
    each = max(1, -(-len(values) // LARGEST_ACTIONS))
    return [cast("T", sum(values[first : first + each])) for first in range(0, len(values), each)]


def _both(one: Actions, other: Actions) -> Actions:
    if not one.number or not other.number:
        return one if one.number else other
    sums = [a + b for a, b in zip(one.moments, other.moments, strict=False)]
    return Actions(
        number=one.number + other.number,
        deterministic=_sum(one.deterministic, other.deterministic),
        counts=added(one.counts, other.counts),
        mean=tuple(each.mean for each in sums),
        m2=tuple(each.m2 for each in sums),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


class _BackwardsError(Exception):
    """A counter is smaller than it was."""


def _less(now: int, before: int) -> int:
    if now < before:
        raise _BackwardsError
    return now - before


def _outcomes_since(now: Outcomes, before: Outcomes) -> Outcomes:
    return Outcomes(
        requests=_less(now.requests, before.requests),
        rows=_less(now.rows, before.rows),
        wrong=_less(now.wrong, before.wrong),
        failed=_less(now.failed, before.failed),
    )


def _counts_since(now: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    if not before:
        return tuple(now)
    if len(now) != len(before):
        raise _BackwardsError
    return tuple(map(_less, now, before))


def _actions_since(now: Actions, before: Actions) -> Actions:
    """Moments are taken apart as Chan, Golub and LeVeque (1983) put them together."""
    if not before.number:
        return now
    number = _less(now.number, before.number)
    if len(now.mean) != len(before.mean):
        raise _BackwardsError
    if not number:
        return Actions(deterministic=0, counts=(0,) * len(now.counts))
    of_before = None if before.deterministic is None else -before.deterministic
    deterministic = _sum(now.deterministic, of_before)
    means: list[float] = []
    squares: list[float] = []
    for mean, m2, mean_before, m2_before in zip(now.mean, now.m2, before.mean, before.m2, strict=True):
        added_mean = (now.number * mean - before.number * mean_before) / number
        delta = added_mean - mean_before
        means.append(added_mean)
        squares.append(max(0.0, m2 - m2_before - delta * delta * before.number * number / now.number))
    return Actions(
        number=number,
        deterministic=deterministic,
        counts=_counts_since(now.counts, before.counts),
        mean=tuple(means),
        m2=tuple(squares),
    )


def _episodes(cohort: Mapping[str, Any]) -> Episodes:
    returns = Moments(int(_float(cohort, "n")), _float(cohort, "mean"), _float(cohort, "m2"))
    return Episodes(int(_float(cohort, "started")), returns)


def _list(value: object) -> list[Mapping[str, Any]]:
    entries = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", one) for one in entries if isinstance(one, dict)]


def _float(of: Mapping[str, Any], name: str) -> float:
    value = of.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0
