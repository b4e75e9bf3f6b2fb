"""Whether the canary's mean return is below or above what the stable arm, or a baseline, allows.

Means are compared within cohorts and only their differences are summed, so a level that drifts in both arms
is no evidence, and neither is a canary that began when the world was easier.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_EPISODES_AT_OPTIMUM = 50.0  # effective episodes at which the test of unknown range is sharpest
LEAST_EPISODES = 20  # of each arm, before a variance is believed
_CERTAIN = 1e3  # nats, where evidence would be infinite
_LARGEST = 1e60
_TINY, _HUGE = 1e-12, 1e75
_STRENGTHS = np.geomspace(0.005, 0.9, 16)  # of the bets of the test of known range


@dataclass(frozen=True, slots=True)
class Moments:
    """Number, mean and sum of squared deviations of a sample; sums by Chan, Golub, LeVeque (1983)."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return Moments()
        delta = other.mean - self.mean
        return Moments(
            n, self.mean + delta * (other.n / n), self.m2 + other.m2 + delta**2 * (self.n * (other.n / n))
        )

    @property
    def finite(self) -> bool:
        """Whether this is a number that can be a return at all: no NaN, nothing beyond 1e60."""
        return abs(self.mean) < _LARGEST and 0 <= self.m2 < _LARGEST**2

    def squares_about(self, center: float) -> float:
        """Sum of squared deviations from a point."""
        return self.m2 + self.n * (self.mean - center) ** 2


@dataclass(frozen=True, slots=True)
class Arm:
    """What cohorts left of one arm.

    Attributes:
        all: moments of everything; its mean is the center of the next cohort.
        total: sum over cohorts of weight x mean.
        spread: sum of (weight / n)^2 x n, the number of episodes with their weights squared.
        squares: sum of (weight / n)^2 x squares about the center.
        within: the same with squares about the cohort's own mean, unbiased; about the center where n is 1.

    """

    all: Moments = Moments()
    total: float = 0.0
    spread: float = 0.0
    squares: float = 0.0
    within: float = 0.0

    def add(self, cohort: Moments, weight: float, center: float) -> "Arm":
        """One cohort, which is only remembered where its weight is 0."""
        each = weight / cohort.n if cohort.n else 0.0
        return Arm(
            self.all + cohort,
            self.total + weight * cohort.mean,
            self.spread + each**2 * cohort.n,
            self.squares + each**2 * cohort.squares_about(center),
            self.within
            + each**2
            * (cohort.m2 * (cohort.n / (cohort.n - 1)) if cohort.n > 1 else cohort.squares_about(center)),
        )

    @property
    def variance(self) -> float:
        """Estimate of one episode's variance."""
        return self.within / self.spread if self.spread else 0.0


@dataclass(frozen=True, slots=True)
class Contrast:
    """Sums over cohorts, from which "canary's mean is at least factor x stable's less margin" is tested.

    A cohort with n_c and n_s episodes weighs w = n_c n_s / (n_c + n_s), its effective number of episodes;
    against a constant w = n_c. The test of known range takes squares about centers known before the cohort
    came, which is what makes it exact; the other takes them within cohorts, so a drifting level is no noise.

    Attributes:
        weight: sum of w.
        constant: whether `stable` is a constant and not a sample.

    """

    weight: float = 0.0
    canary: Arm = Arm()
    stable: Arm = Arm()
    constant: bool = False

    def add(
        self, canary: Moments, stable: Moments | float, centers: tuple[float, float] | None = None
    ) -> "Contrast":
        """One cohort, complete in both arms; one that is not finite is left out.

        Args:
            canary: its episodes of the canary.
            stable: those of the stable arm, or the constant to compare with.
            centers: guesses of both means made before this cohort was seen; by default the means so far, and
                for the first cohort its own, which is exact only asymptotically.

        """
        constant = not isinstance(stable, Moments)
        other = stable if isinstance(stable, Moments) else Moments(canary.n, stable)
        if not (canary.finite and other.finite) or not canary.n + other.n:
            return self
        weight = float(canary.n) if constant else canary.n * (other.n / (canary.n + other.n))
        before_c, before_s = self.canary.all, self.stable.all
        center_c, center_s = centers or (
            before_c.mean if before_c.n else canary.mean,
            before_s.mean if before_s.n and not constant else other.mean,
        )
        return Contrast(
            self.weight + weight,
            self.canary.add(canary, weight, center_c),
            self.stable.add(other, weight, other.mean if constant else center_s),
            constant,
        )

    def difference(self, factor: float = 1.0) -> float:
        """Estimate of canary's mean less factor x stable's, 0 before any cohort."""
        return (self.canary.total - factor * self.stable.total) / self.weight if self.weight else 0.0

    def log_e_below(
        self, factor: float = 1.0, margin: float = 0.0, width: float | None = None, together: float = 1.0
    ) -> float:
        """Log evidence that canary's mean is below factor x stable's less margin.

        Args:
            factor: 1 for a difference, less for a ratio.
            margin: in units of the return.
            width: of the range that values certainly lie in, for a test that is exact at any size; None for
                one that is exact asymptotically.
            together: how many values depend on each other, however they do: they count for one.

        """
        return self._log_e(-1.0, factor, margin, width, together)

    def log_e_above(
        self, factor: float = 1.0, margin: float = 0.0, width: float | None = None, together: float = 1.0
    ) -> float:
        """Log evidence that canary's mean is above factor x stable's less margin."""
        return self._log_e(1.0, factor, margin, width, together)

    def interval(
        self, alpha: float, factor: float = 1.0, width: float | None = None, together: float = 1.0
    ) -> tuple[float, float]:
        """Bounds of canary's mean less factor x stable's, each ever wrong with probability at most alpha."""
        needed, estimate = -math.log(alpha), self.difference(factor)

        def refuted(sign: float, reach: float) -> bool:
            return self._log_e(sign, factor, sign * reach - estimate, width, together) >= needed

        return (
            estimate - _least(lambda reach: refuted(1.0, reach)),
            estimate + _least(lambda reach: refuted(-1.0, reach)),
        )

    def _log_e(
        self, sign: float, factor: float, margin: float, width: float | None, together: float
    ) -> float:
        if not self.weight:
            return 0.0
        # The geometric mean of e-values is one however they depend on each other (Hölder): sums are divided.
        weight = self.weight / together
        total = sign * (weight * (self.difference(factor) + margin))
        if width is not None:
            squares = self.canary.squares + factor**2 * self.stable.squares
            return empirical_bernstein(total, squares / together, width * max(1.0, abs(factor)))
        arms = (self.canary,) if self.constant else (self.canary, self.stable)
        if min(arm.all.n for arm in arms) < LEAST_EPISODES * together:
            return 0.0
        # A canary that was lucky or unlucky in its first episodes has seen none of the rare returns yet.
        variance = max(arm.variance for arm in arms)
        if not variance and self.constant:
            return 0.0
        variance_of_total = self.canary.spread * variance + factor**2 * self.stable.within
        return normal_mixture(total, variance_of_total / together, weight)


def normal_mixture(total: float, variance: float, weight: float) -> float:
    """Log of the half-normal mixture of exp(l x total - l^2 x variance / 2) over l > 0.

    Asymptotically an e-value against "the expectation of total is at most 0" (Waudby-Smith, Arbour, Sinha,
    Kennedy, Ramdas (2024), Ann. Statist. 52(6)); one-sided as in Howard et al. (2021), eq. 3.7.
    """
    if variance <= 0:
        return 0.0 if total == 0 else math.copysign(_CERTAIN, total)
    z, grown = total / math.sqrt(variance), weight / _EPISODES_AT_OPTIMUM
    along = z * math.sqrt(grown / (1 + grown))
    return along**2 / 2 + _log_normal_cdf(along) + math.log(2) - math.log1p(grown) / 2


def _log_normal_cdf(x: float) -> float:
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    return -(x**2) / 2 - math.log(-x) - math.log(2 * math.pi) / 2


def empirical_bernstein(total: float, variance: float, width: float) -> float:
    """Log of a mixture of exp(l x total - psi(l) x squares), l < 1/width; an e-value at any sample size.

    psi(l) = (-log(1 - l c) - l c) / c^2 for values in a range of width c. Howard, Ramdas, McAuliffe, Sekhon
    (2021), Theorem 4, after Fan, Grama, Liu (2015). A weight w <= 1 of an observation only helps, for
    psi(w l) <= w^2 psi(l).
    """
    exponents = _STRENGTHS * (total / width) + (np.log1p(-_STRENGTHS) + _STRENGTHS) * (variance / width**2)
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top).mean()))


def _least(holds: Callable[[float], bool]) -> float:
    """The least positive number, to a thousandth of itself, from which a monotone predicate holds."""
    if not holds(_HUGE):
        return math.inf
    if holds(_TINY):
        return 0.0
    low, high = math.log(_TINY), math.log(_HUGE)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(math.exp(middle)) else (middle, high)
    return math.exp(high)
