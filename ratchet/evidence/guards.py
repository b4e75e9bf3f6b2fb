"""The guards of a rollout: what each compares, in which words. The statistics are in the modules beside.

A guard is a value and holds no state: `judge` reads the state of its test. Each tests one hypothesis, "the
bound is kept", so each needs one share of the false-rollback rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ratchet.evidence.cohorts import Cohort
from ratchet.evidence.drift import Drift, Shift
from ratchet.evidence.latency import LatencyRatio, edge_of, quantile_edge, slower
from ratchet.evidence.means import Contrast
from ratchet.evidence.rates import Count, Looks, Rate, RateRatio
from ratchet.evidence.verdicts import Decision, Measured, Verdict, decide

_SMALLEST_DIFFERENCE_OF_COVERAGE = 0.1


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `limit` of the canary's answers are bad. State: a Count.

    Attributes:
        what: the bad answers in words, such as "errors".

    """

    name: str
    what: str
    limit: float
    minimum: int = 500

    def judge(self, state: Count, alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far."""
        test = Rate(self.limit, state)
        low, high = test.interval(alpha)
        sentence = (
            f"{_percent(state.rate)} of {state.n:,} canary answers are {self.what} "
            f"({_percent(low)} to {_percent(high)}), {_percent(self.limit)} allowed"
        )
        measured = Measured(
            state.rate, None, state.n, 0, state.rate, low, high, self.limit, state.rate <= self.limit,
            test.log_e_above, test.log_e_below, sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class RateAgainstStable:
    """Canary's rate of bad answers is at most `ratio` x stable's, or at most `tolerated`. State: a RateRatio.

    Attributes:
        tolerated: a rate that never fails, however small stable's is.

    """

    name: str
    what: str
    ratio: float = 1.5
    tolerated: float = 0.0
    minimum: int = 500

    def start(self) -> RateRatio:
        """The state before anything was seen."""
        return RateRatio(self.ratio, looks=Looks(self.tolerated) if self.tolerated > 0 else None)

    def judge(self, state: RateRatio, alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far."""
        low, high = state.interval(alpha)
        kept = state.log_e_below
        if self.tolerated > 0:
            # Both must be broken; either may be kept, and the mean of two e-values is one.
            kept = _log_mean(kept, Rate(self.tolerated, state.canary).log_e_below)
        rate, base = state.canary.rate, state.stable.rate
        sentence = (
            f"{_percent(rate)} of {state.canary.n:,} canary answers are {self.what}, {_percent(base)} of "
            f"{state.stable.n:,} stable ones: {_between(low, high)} as many, "
            f"{_times(self.ratio)} allowed"
        )
        measured = Measured(
            rate, base, state.canary.n, state.stable.n, state.estimate, low, high, self.ratio,
            rate <= max(self.ratio * base, self.tolerated), state.log_e_above, kept, sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class LatencyLimit:
    """Canary's quantile of latency is at most `limit` seconds. State: counts of a histogram.

    The limit is rounded up to an edge of the histogram.
    """

    name: str
    quantile: float
    limit: float
    edges: tuple[float, ...]
    minimum: int = 500

    def judge(self, state: Sequence[int], alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far."""
        count, share = slower(state, edge_of(self.edges, self.limit)), 1 - self.quantile
        test = Rate(share, count)
        low, high = test.interval(alpha)
        at = quantile_edge(state, self.quantile)
        value = self.edges[at] if count.n and at < len(self.edges) else None
        sentence = (
            f"{_percent(count.rate)} of {count.n:,} canary answers took more than {_seconds(self.limit)} "
            f"({_percent(low)} to {_percent(high)}), {_percent(share)} allowed; "
            f"{_quantile(self.quantile)} is {_seconds(value)}"
        )
        measured = Measured(
            value, None, count.n, 0, count.rate, low, high, share, count.rate <= share,
            test.log_e_above, test.log_e_below, sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class LatencyAgainstStable:
    """Canary's quantile of latency is at most `ratio` x stable's. State: a LatencyRatio.

    It fails where more answers than the quantile leaves are slower than that, and more than of stable's.
    """

    name: str
    quantile: float
    ratio: float
    edges: tuple[float, ...]
    minimum: int = 500

    def start(self) -> LatencyRatio:
        """The state before anything was seen."""
        ratio = RateRatio(1.0, looks=Looks(1 - self.quantile))
        return LatencyRatio(self.quantile, self.ratio, self.edges, ratio)

    def judge(self, state: LatencyRatio, alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far."""
        test = state.ratio
        low, high = test.interval(alpha)
        share = 1 - self.quantile
        absolute = Rate(share, test.canary)
        canary, stable = state.quantiles()
        sentence = (
            f"{_quantile(self.quantile)} is {_seconds(canary)} on canary ({sum(state.canary):,} answers), "
            f"{_seconds(stable)} on stable ({sum(state.stable):,}), {_times(self.ratio)} allowed: "
            f"{_between(low, high)} as many canary answers are slower than that"
        )
        measured = Measured(
            canary, stable, sum(state.canary), sum(state.stable), test.estimate, low, high, 1.0,
            test.canary.rate <= max(test.stable.rate, share), test.log_e_above,
            _log_mean(test.log_e_below, absolute.log_e_below), sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class Returns:
    """Cohorts so far, and how many of their episodes reported a return."""

    contrast: Contrast = field(default_factory=Contrast)
    canary_began: int = 0
    stable_began: int = 0

    def add(self, cohort: Cohort, baseline: float | None = None) -> "Returns":
        """One closed cohort, against its stable arm or against a baseline."""
        other = cohort.stable.returns if baseline is None else baseline
        return Returns(
            self.contrast.add(cohort.canary.returns, other),
            self.canary_began + cohort.canary.began,
            self.stable_began + cohort.stable.began,
        )

    @property
    def coverage(self) -> tuple[float, float]:
        """Shares of the episodes that reported a return, canary's and stable's."""
        canary = self.contrast.canary.all.n / self.canary_began if self.canary_began else 1.0
        if self.contrast.constant or not self.stable_began:
            return canary, canary
        return canary, self.contrast.stable.all.n / self.stable_began


@dataclass(frozen=True, slots=True)
class ReturnGuard:
    """Canary's mean return is not below stable's by more than a margin. State: Returns.

    Attributes:
        drop: in units of the return.
        relative_drop: a share of |stable's mean|, such as 0.05; used in place of drop where it is above 0.
        width: of the range that returns certainly lie in; None where it isn't known.

    """

    name: str
    drop: float = 0.0
    relative_drop: float = 0.0
    width: float | None = None
    minimum: int = 50

    def judge(self, state: Returns, alpha: float, beta: float) -> Decision:
        """The verdict on the cohorts so far."""
        test = state.contrast
        canary, stable = test.canary.all, test.stable.all
        # Mean - d |mean| is the lower of (1 - d) mean and (1 + d) mean: both must be undercut.
        factors = (1 - self.relative_drop, 1 + self.relative_drop) if self.relative_drop > 0 else (1.0,)
        margin = 0.0 if self.relative_drop > 0 else self.drop
        broken = min(test.log_e_below(factor, margin, self.width) for factor in factors)
        kept = max(test.log_e_above(factor, margin, self.width) for factor in factors) - math.log(
            len(factors)
        )
        low, high = test.interval(alpha, 1.0, self.width)
        bound = -self.relative_drop * abs(stable.mean) if self.relative_drop > 0 else -self.drop
        difference = test.difference()
        shares = state.coverage
        sentence = (
            f"mean return {canary.mean:.4g} over {canary.n:,} canary episodes, {stable.mean:.4g} "
            + ("as baseline" if test.constant else f"over {stable.n:,} stable ones of the same age")
            + f": {difference:+.4g} ({low:+.4g} to {high:+.4g}), {bound:+.4g} allowed"
        )
        measured = Measured(
            canary.mean if canary.n else None, stable.mean if stable.n else None, canary.n, stable.n,
            difference, low, high, bound, difference >= bound, broken, kept, sentence,
        )  # fmt: skip
        decision = decide(self.name, measured, alpha, beta, self.minimum)
        if abs(shares[0] - shares[1]) <= _SMALLEST_DIFFERENCE_OF_COVERAGE:
            return decision
        return Decision(
            self.name,
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"{sentence}; but rewards came for {_percent(shares[0])} of the canary's episodes and "
            f"{_percent(shares[1])} of stable's, so the two can't be compared.",
            decision.canary, decision.stable, canary.n, stable.n, decision.low, decision.high, decision.bound,
            needed=1 / alpha, alpha=alpha, estimate=decision.estimate,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DriftGuard:
    """Canary's actions are at most a total variation from stable's, or from training's. State: a Drift.

    Attributes:
        slack: allowed beside `distance`, for what is not known of training's.

    """

    name: str
    distance: float = 0.2
    decisions_per_episode: float = 1.0
    minimum: int = 500
    slack: float = 0.0

    def judge(self, state: Drift, alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far; it is never proven that actions are the same."""
        together = self.decisions_per_episode
        bound = self.distance + self.slack
        broken = state.log_e_above(bound, together)
        low = max(0.0, state.contrast.interval(alpha, width=1.0, together=together)[0])
        n, against = sum(state.canary), "training" if state.reference else "stable"
        sentence = (
            f"{_percent(state.distance)} of {n:,} canary actions would have to change to match {against} "
            f"(at least {_percent(low)}), {_percent(self.distance)} allowed"
        )
        if self.slack:
            sentence += f" and {_percent(self.slack)} for the few episodes of its evaluation"
        measured = Measured(
            state.distance, None, n, sum(state.stable), state.distance, low, 1.0, bound,
            state.distance <= bound, broken, 0.0, sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class ShiftGuard:
    """No component of canary's actions has another mean than stable's, or than training's. State: a Shift.

    Attributes:
        distance: in standard deviations of the stable arm, or of training.
        slack: allowed beside it, by component, for what is not known of training's means.
        of_training: whether the other arm is a `Reference`.

    """

    name: str
    distance: float = 0.5
    decisions_per_episode: float = 1.0
    minimum: int = 500
    slack: tuple[float, ...] = ()
    of_training: bool = False

    def judge(self, state: Shift, alpha: float, beta: float) -> Decision:
        """The verdict on the sums so far; it is never proven that actions are the same."""
        arms = [(one.canary.all.n, one.stable.all.n) for one in state.components] or [(0, 0)]
        moved = state.distance
        against, n = ("training", 0) if self.of_training else ("stable", arms[0][1])
        sentence = (
            f"the mean of canary's actions is {moved:.3g} standard deviations from {against}'s, in the "
            f"component that moved most ({arms[0][0]:,} actions"
            + (f", {n:,} stable ones" if not self.of_training else "")
            + f"), {self.distance:.3g} allowed"
        )
        if any(self.slack):
            sentence += " and what the few episodes of its evaluation leave open"
        measured = Measured(
            moved, None, arms[0][0], n, moved, 0.0, math.inf, self.distance,
            state.keeps(self.distance, self.slack),
            state.log_e_above(self.distance, self.decisions_per_episode, self.slack), 0.0, sentence,
        )  # fmt: skip
        return decide(self.name, measured, alpha, beta, self.minimum)


@dataclass(frozen=True, slots=True)
class TripWire:
    """Never more than `limit` of something that must not be: NaN, crashes, forbidden actions. State: a count.

    No statistics and no share of the false-rollback rate: each occurrence is a fault by itself.

    Attributes:
        one, more: what it is, in words, for one and for several.

    """

    name: str
    one: str
    more: str
    limit: int = 0

    def judge(self, state: int, answers: int) -> Decision:
        """The verdict; answers is how many there were in all."""
        failed = state > self.limit
        what = self.one if state == 1 else self.more
        return Decision(
            self.name,
            Verdict.FAIL if failed else Verdict.PASS if answers else Verdict.NOT_ENOUGH_EVIDENCE,
            f"{state:,} {what} in {answers:,} canary answers, {self.limit:,} allowed.",
            canary=float(state),
            canary_n=answers,
            bound=float(self.limit),
        )


def _log_mean(a: float, b: float) -> float:
    top = max(a, b)
    return top + math.log((math.exp(a - top) + math.exp(b - top)) / 2)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _times(ratio: float) -> str:
    return f"{ratio:.3g}x"


def _between(low: float, high: float) -> str:
    return f"{_times(low)} to {_times(high)}" if math.isfinite(high) else f"at least {_times(low)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _quantile(quantile: float) -> str:
    return f"p{100 * quantile:g}"
