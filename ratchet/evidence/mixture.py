"""Mixtures of likelihood ratios over a geometric grid of hypotheses.

A grid holds values of one positive parameter (a rate's odds, a ratio of rates), `STEPS` to a doubling.
The e-value against "the parameter is at most grid[j]" is the mean likelihood ratio of the `WINDOW` grid
points above j to grid[j]: each ratio has expectation at most 1 under that hypothesis, so has their mean, and
so by Ville's inequality the chance that it *ever* reaches 1/alpha is at most alpha, however often one looks.

Robbins (1970), Ann. Math. Statist. 41(5); Howard, Ramdas, McAuliffe, Sekhon (2021), Ann. Statist. 49(2).
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 4
WINDOW = 6 * STEPS  # alternatives up to 64 times the hypothesis


def geometric(center: float, reach: int) -> Floats:
    """The grid `center * 2**(j / STEPS)` for j from -reach to reach."""
    return center * np.exp2(np.arange(-reach, reach + 1) / STEPS)


def log_e_above(log_likelihood: Floats) -> Floats:
    """Log e-value against "at most grid[j]", for each j.

    Args:
        log_likelihood: of each grid point, up to a constant. Shape (grid,).

    """
    padded = np.concatenate([log_likelihood[1:], np.full(WINDOW, -np.inf)])
    alternatives = padded[np.add.outer(np.arange(log_likelihood.size), np.arange(WINDOW))]
    ratios = alternatives - log_likelihood[:, None]
    top = np.maximum(ratios.max(axis=1), -1e300)
    return top + np.log(np.exp(ratios - top[:, None]).sum(axis=1) + 1e-300) - math.log(WINDOW)


def log_e_below(log_likelihood: Floats) -> Floats:
    """Log e-value against "at least grid[j]", for each j."""
    return log_e_above(log_likelihood[::-1])[::-1]


def log_e_above_center(log_likelihood: Floats) -> float:
    """`log_e_above` for the point in the middle of the grid alone."""
    center = log_likelihood.size // 2
    ratios = log_likelihood[center + 1 : center + 1 + WINDOW] - log_likelihood[center]
    top = max(float(ratios.max()), -1e300)
    return top + math.log(float(np.exp(ratios - top).sum()) + 1e-300) - math.log(WINDOW)


def log_e_below_center(log_likelihood: Floats) -> float:
    """`log_e_below` for the point in the middle of the grid alone."""
    return log_e_above_center(log_likelihood[::-1])


def bounds(grid: Floats, log_likelihood: Floats, alpha: float) -> tuple[float, float]:
    """Bounds of the parameter; each is ever wrong with probability at most alpha.

    Returns:
        The largest value below which everything is refuted, and the smallest above which everything is;
        0 and infinity where nothing is.

    """
    needed = -math.log(alpha)
    above = np.flatnonzero(log_e_above(log_likelihood) < needed)
    below = np.flatnonzero(log_e_below(log_likelihood) < needed)
    first = int(above[0]) if above.size else grid.size
    last = int(below[-1]) if below.size else -1
    return float(grid[first - 1]) if first else 0.0, float(
        grid[last + 1]
    ) if last + 1 < grid.size else math.inf
