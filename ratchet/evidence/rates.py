"""How often something goes wrong: one arm against a limit, or one arm against the other.

Both tests are exact at any sample size and at any number of looks. They take the rates as free to change
from interval to interval, together in both arms: a failing dependency that hurts both is no evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ratchet.evidence.mixture import Floats, bounds, geometric, log_e_above_center, log_e_below_center

_RATE_REACH = 48  # odds from 1/4096 to 4096 times the limit's
_RATIO_REACH = 24  # ratios from 1/64 to 64 times the allowed one
_STAKES, _LARGEST_STAKE = 10, 64.0


@dataclass(frozen=True, slots=True)
class Count:
    """`bad` of `n`; n is never below bad, though two counters be read a moment apart.

    Of things that go wrong together, as the decisions of one request may, each counts for its share of one:
    the geometric mean of their e-values is an e-value however they depend on each other (Hölder).
    """

    n: int = 0
    bad: float = 0

    def __post_init__(self) -> None:
        if self.bad < 0 or self.n < self.bad:
            object.__setattr__(self, "bad", max(0, self.bad))
            object.__setattr__(self, "n", max(self.n, math.ceil(self.bad)))

    def __add__(self, other: "Count") -> "Count":
        return Count(self.n + other.n, self.bad + other.bad)

    @property
    def rate(self) -> float:
        """The share that is bad, 0 of nothing."""
        return self.bad / self.n if self.n else 0.0


class Rate:
    """Whether a rate is above or below a limit: a mixture of Bernoulli likelihood ratios.

    Its whole state is the `Count`.
    """

    def __init__(self, limit: float, count: Count) -> None:
        limit = min(max(limit, 1e-9), 1 - 1e-9)
        odds = geometric(limit / (1 - limit), _RATE_REACH)
        self._rates: Floats = odds / (1 + odds)
        self._log_likelihood: Floats = count.bad * np.log(self._rates) - (count.n - count.bad) * np.log1p(
            odds
        )

    @property
    def log_e_above(self) -> float:
        """Log evidence that the rate is above the limit."""
        return log_e_above_center(self._log_likelihood)

    @property
    def log_e_below(self) -> float:
        """Log evidence that the rate is below the limit."""
        return log_e_below_center(self._log_likelihood)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of the rate, each ever wrong with probability at most alpha."""
        low, high = bounds(self._rates, self._log_likelihood, alpha)
        return low, min(high, 1.0)


@dataclass(frozen=True, slots=True)
class Looks:
    """Whether the share of bad answers, look by look, is above a limit: a bet on each look.

    What goes wrong together within a look is one event here: a server that stalls for a second fails all that
    it was asked in it, be that five answers or five hundred. With X the share that is bad in a look, each of

        prod over looks of (1 + stake (X - limit))

    has expectation at most 1 however the answers of one look depend on each other, as long as the share to be
    expected of the next look is never above the limit; and so has their mean over the stakes (Waudby-Smith,
    Ramdas 2024, JRSS B 86(1)). No look multiplies that mean by more than 14 at the first time: one look alone
    condemns nobody of whom odds of 20 : 1 are asked.

    Attributes:
        wealth: log, by stake.

    """

    limit: float
    wealth: tuple[float, ...] = (0.0,) * _STAKES

    def add(self, count: Count) -> "Looks":
        """One look's increments."""
        if not count.n:
            return self
        # All but a tenth of what is owned may be lost with a look in which nothing is bad.
        largest = min(_LARGEST_STAKE, 0.9 / self.limit)
        stakes = largest * 0.5 ** np.arange(_STAKES)
        wealth = np.array(self.wealth) + np.log1p(stakes * (count.rate - self.limit))
        return replace(self, wealth=tuple(wealth.tolist()))

    @property
    def log_e_above(self) -> float:
        """Log evidence that the share is above the limit."""
        top = max(self.wealth)
        return top + math.log(float(np.mean(np.exp(np.array(self.wealth) - top))))


@dataclass(frozen=True, slots=True)
class RateRatio:
    """Whether the canary's rate is above or below `allowed` times the stable arm's.

    Of k bad answers in an interval with n_c and n_s requests, each is the canary's with probability about
    n_c g / (n_c g + n_s) when the ratio of the rates is g. The likelihood ratio of g to h is

        (g/h)^k_c * prod over intervals of ((n_c h + n_s) / (n_c g + n_s))^k

    and has expectation at most 1 for *whatever* rate p of the stable arm in each interval: with a and b the
    factors of a bad answer of canary and stable, E = (1 + hp(a-1))^n_c (1 + p(b-1))^n_s, at most
    exp(p (n_c h (a-1) + n_s (b-1))) = exp(0). So the base rate needs no estimate, costs no evidence, and may
    drift; a ramp of the weight brings no Simpson's paradox. Close to optimal for rates of a few percent,
    safe but slower for large ones.

    Compare the conditional 2x2 tests of Turner, Ly, Grünwald (2024), Statistics & Probability Letters 204,
    and Lindon, Malek (2022), NeurIPS 35.

    Attributes:
        canary, stable: sums.
        load: for each grid point g, the sum of k log((n_c g + n_s) / (n_c + n_s)).
        looks: whether the canary's share is above one that is tolerated; None where none is.

    """

    allowed: float
    canary: Count = Count()
    stable: Count = Count()
    load: tuple[float, ...] = (0.0,) * (2 * _RATIO_REACH + 1)
    looks: Looks | None = None

    @property
    def question(self) -> tuple[float, float | None]:
        """The bounds; evidence on others says nothing of these."""
        return self.allowed, self.looks.limit if self.looks is not None else None

    def add(self, canary: Count, stable: Count) -> "RateRatio":
        """One look's increments, where both arms met the same."""
        return self.look([(canary, stable)])

    def look(self, strata: Sequence[tuple[Count, Count]]) -> "RateRatio":
        """One look's increments, canary's and stable's, of each stratum in which both arms met the same."""
        load = np.array(self.load)
        for canary, stable in strata:
            share = canary.n / max(1, canary.n + stable.n)
            load += (canary.bad + stable.bad) * np.log1p(share * (self._grid - 1))
        seen = sum((canary for canary, _ in strata), Count())
        return replace(
            self,
            canary=self.canary + seen,
            stable=sum((stable for _, stable in strata), self.stable),
            load=tuple(load.tolist()),
            looks=self.looks.add(seen) if self.looks is not None else None,
        )

    @property
    def _grid(self) -> Floats:
        return geometric(self.allowed, _RATIO_REACH)

    @property
    def _log_likelihood(self) -> Floats:
        return self.canary.bad * np.log(self._grid) - np.array(self.load)

    @property
    def log_e_above(self) -> float:
        """Log evidence that the ratio is above the allowed one, and the share above what is tolerated."""
        above = log_e_above_center(self._log_likelihood)
        return above if self.looks is None else min(above, self.looks.log_e_above)

    @property
    def log_e_below(self) -> float:
        """Log evidence that the ratio is below the allowed one."""
        return log_e_below_center(self._log_likelihood)

    @property
    def estimate(self) -> float:
        """The likeliest ratio on the grid; NaN-free: `allowed` where nothing bad was seen."""
        if not self.canary.bad + self.stable.bad:
            return self.allowed
        return float(self._grid[int(np.argmax(self._log_likelihood))])

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds of the ratio, each ever wrong with probability at most alpha."""
        return bounds(self._grid, self._log_likelihood, alpha)
