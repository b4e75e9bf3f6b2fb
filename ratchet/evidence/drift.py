"""How far the canary's actions are from the stable arm's, or from those of training.

The distance is total variation: the largest difference of probability that any set of actions has. A set is
guessed from what was seen before each interval, those actions that canary takes more often, and the
difference of its shares is tested. It never exceeds the distance whatever the guess was, so the test is
exact; the guesses settle on the set that attains it, so the test sees every drift in the end. Sequential
two-sample testing by betting: Shekhar, Ramdas (2023), IEEE Trans. Inf. Theory 70(2).

What a policy did in training's evaluation is a sample too, of few episodes, and fixed before the canary acts:
how far it may be from the truth is added to the distance that is allowed, and half of a guard's share of
error is for that bound.

Continuous actions are counted in bins per dimension, one histogram behind the other; or, where only moments
are at hand, compared by how far each component's mean has moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from ratchet.evidence.latency import added
from ratchet.evidence.means import Contrast, Moments

# Of an arm whose means are taken for sure; what is not is in `Reference.slack`.
_SURE = 10**9
# A component that hardly moves in an evaluation: rounding by another arithmetic is no drift.
_STILL = 0.01


@dataclass(frozen=True, slots=True)
class Reference:
    """What a policy did in training's evaluation.

    Attributes:
        episodes: that it played.
        length: decisions to one of them.
        deterministic: whether it took the most likely actions.
        shares: by action, of a discrete policy.
        mean, deviation: by component, of a continuous one.
        error: standard error of each share or mean, from the differences between episodes.

    """

    episodes: int
    length: float
    deterministic: bool
    shares: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    error: tuple[float, ...] = ()

    @property
    def arm(self) -> tuple[Moments, ...]:
        """Of each component, as one would have them of an arm without chance."""
        found: list[Moments] = []
        for mean, deviation in zip(self.mean, self.deviation, strict=True):
            spread = max(deviation, _STILL * abs(mean))
            found.append(Moments(_SURE, mean, spread**2 * _SURE))
        return tuple(found)

    def slack(self, alpha: float) -> tuple[float, ...]:
        """How far each share or mean may be from the truth; any is further with probability at most alpha.

        Asymptotically, as all that is said of a mean whose range is not known.
        """
        if not self.error:
            return ()
        t = student(1 - alpha / (2 * len(self.error)), self.episodes - 1)
        return tuple(t * error for error in self.error)


@dataclass(frozen=True, slots=True)
class Drift:
    """Sums by action, and the contrast of the guessed sets.

    Attributes:
        canary, stable: counts by action.
        reference: fixed shares to compare with in place of the stable arm, () for none.

    """

    canary: tuple[int, ...] = ()
    stable: tuple[int, ...] = ()
    reference: tuple[float, ...] = ()
    contrast: Contrast = field(default_factory=Contrast)

    def add(self, canary: Sequence[int], stable: Sequence[int] = ()) -> "Drift":
        """One interval's increments by action; the stable arm's only where there is no reference."""
        contrast = self.contrast
        before = shares(self.canary), self._against
        if before[0] and before[1] and sum(canary) and (self.reference or sum(stable)):
            taken = [of_canary > against for of_canary, against in zip(*before, strict=True)]
            centers = _within(before[0], taken), _within(before[1], taken)
            other = _within(self.reference, taken) if self.reference else _moments(stable, taken)
            contrast = contrast.add(_moments(canary, taken), other, centers)
        return replace(
            self, canary=added(self.canary, canary), stable=added(self.stable, stable), contrast=contrast
        )

    @property
    def _against(self) -> tuple[float, ...]:
        return self.reference or shares(self.stable)

    @property
    def distance(self) -> float:
        """Total variation of the shares seen; above the truth by chance where little was seen."""
        canary, against = shares(self.canary), self._against
        if not canary or not against:
            return 0.0
        return sum(max(0.0, a - b) for a, b in zip(canary, against, strict=True))

    def log_e_above(self, allowed: float, decisions_per_episode: float = 1.0) -> float:
        """Log evidence that the distance is above the allowed one; counts episodes, not decisions."""
        return self.contrast.log_e_above(margin=-allowed, width=1.0, together=decisions_per_episode)


@dataclass(frozen=True, slots=True)
class Shift:
    """Continuous actions by their moments: one contrast for each component."""

    components: tuple[Contrast, ...] = ()

    def add(self, canary: Sequence[Moments], stable: Sequence[Moments]) -> "Shift":
        """One interval's increments, a sample for each component."""
        before = self.components or (Contrast(),) * len(canary)
        arms = zip(before, canary, stable, strict=True)
        return Shift(tuple(contrast.add(one, other) for contrast, one, other in arms))

    @property
    def distance(self) -> float:
        """The largest difference of means, in standard deviations of the stable arm; 0 where it has none."""
        found = [abs(c.difference()) / _deviation(c) for c in self.components if _deviation(c)]
        return max(found, default=0.0)

    def keeps(self, allowed: float, slack: Sequence[float] = ()) -> bool:
        """Whether no component's mean is seen to have moved further."""
        return all(abs(one.difference()) <= margin for one, margin in self._margins(allowed, slack))

    def log_e_above(
        self, allowed: float, decisions_per_episode: float = 1.0, slack: Sequence[float] = ()
    ) -> float:
        """Log evidence that some component's mean moved by over `allowed` standard deviations.

        The mean of e-values is one, so many components cost little. Exact asymptotically.

        Args:
            allowed: in standard deviations of the stable arm.
            decisions_per_episode: that depend on each other.
            slack: what is allowed beside it, by component, in units of the action.

        """
        found: list[float] = []
        for contrast, margin in self._margins(allowed, slack):
            found += [
                contrast.log_e_above(margin=-margin, together=decisions_per_episode),
                contrast.log_e_below(margin=margin, together=decisions_per_episode),
            ]
        if not found:
            return 0.0
        top = max(found)
        return top + math.log(sum(math.exp(one - top) for one in found) / len(found))

    def _margins(self, allowed: float, slack: Sequence[float]) -> list[tuple[Contrast, float]]:
        if not self.components:
            return []
        pairs = zip(self.components, slack or (0.0,) * len(self.components), strict=True)
        return [(contrast, allowed * _deviation(contrast) + more) for contrast, more in pairs]


def student(quantile: float, freedom: int) -> float:
    """Quantile of Student's t above a half; never below it by more than a thousandth (Wallace 1959)."""
    z = NormalDist().inv_cdf(quantile) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(min(z**2 / freedom, 700.0)))


def _deviation(contrast: Contrast) -> float:
    seen = contrast.stable.all
    return math.sqrt(seen.m2 / seen.n) if seen.n else 0.0


def shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Each count's share of the sum, () of nothing."""
    total = sum(counts)
    return tuple(count / total for count in counts) if total else ()


def _within(of: Sequence[float], taken: Sequence[bool]) -> float:
    return sum(share for share, is_taken in zip(of, taken, strict=True) if is_taken)


def _moments(counts: Sequence[int], taken: Sequence[bool]) -> Moments:
    n = sum(counts)
    share = sum(count for count, is_taken in zip(counts, taken, strict=True) if is_taken) / n
    return Moments(n, share, n * share * (1 - share))
