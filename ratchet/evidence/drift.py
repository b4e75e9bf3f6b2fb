"""How far the canary's actions are from the stable arm's, or from those of training.

The distance is total variation: the largest difference of probability that any set of actions has. A set is
guessed from what was seen before each interval, those actions that canary takes more often, and the
difference of its shares is tested. It never exceeds the distance whatever the guess was, so the test is
exact; the guesses settle on the set that attains it, so the test sees every drift in the end. Sequential
two-sample testing by betting: Shekhar, Ramdas (2023), IEEE Trans. Inf. Theory 70(2).

Continuous actions are counted in bins per dimension, one histogram behind the other; or, where only moments
are at hand, compared by how far each component's mean has moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ratchet.evidence.latency import added
from ratchet.evidence.means import Contrast, Moments


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

    def log_e_above(self, allowed: float, decisions_per_episode: float = 1.0) -> float:
        """Log evidence that some component's mean moved by over `allowed` standard deviations.

        The mean of e-values is one, so many components cost little. Exact asymptotically.
        """
        found: list[float] = []
        for contrast in self.components:
            margin = allowed * _deviation(contrast)
            found += [
                contrast.log_e_above(margin=-margin, together=decisions_per_episode),
                contrast.log_e_below(margin=margin, together=decisions_per_episode),
            ]
        if not found:
            return 0.0
        top = max(found)
        return top + math.log(sum(math.exp(one - top) for one in found) / len(found))


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
