"""What a policy would have earned, from decisions that another one made: off-policy estimators.

Columns are one entry for each logged decision with its reward: the propensity that was logged when the action
was taken, the propensity that the target policy gives that same action, and the reward. Nothing here is
anytime-valid: it is for one look at a log, not for a rollout.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean reward, its normal interval, and how many decisions it really rests on.

    Attributes:
        low, high: at level 1 - alpha, by the central limit theorem: trust it where `effective` is large.
        effective: (sum of weights)^2 / sum of squared weights, Kish's sample size.

    """

    value: float
    low: float
    high: float
    effective: float


def ips(logged: Column, target: Column, reward: Column, alpha: float = 0.05) -> Estimate:
    """Inverse propensity score: unbiased, wild where the policies differ. Horvitz, Thompson (1952).

    Raises:
        ValueError: where columns differ in length, are empty, or a propensity is none.

    """
    weights = _weights(logged, target, reward)
    return _estimate(weights * reward, weights, alpha)


def snips(logged: Column, target: Column, reward: Column, alpha: float = 0.05) -> Estimate:
    """Self-normalised: a little bias for much less variance; interval by the delta method. Swaminathan,
    Joachims (2015), NeurIPS 28.

    Raises:
        ValueError: as `ips`, and where the target never takes an action that was logged.

    """
    weights = _weights(logged, target, reward)
    mean = float(weights.mean())
    if mean == 0:
        raise ValueError("the target policy takes none of the logged actions: its value can't be estimated")
    value = float((weights * reward).mean()) / mean
    return _estimate(value + weights * (reward - value) / mean, weights, alpha)


def doubly_robust(
    logged: Column,
    target: Column,
    reward: Column,
    predicted: Column,
    predicted_target: Column,
    alpha: float = 0.05,
) -> Estimate:
    """A reward model, corrected where it was wrong: right if either propensities or model are.

    Dudík, Langford, Li (2011), ICML.

    Args:
        logged: propensity of the action when it was taken.
        target: propensity that the target policy gives it.
        reward: what came.
        predicted: the model's reward of the logged action; fitted on other decisions than these.
        predicted_target: the model's mean reward under the target policy, for each decision.
        alpha: of the interval.

    """
    weights = _weights(logged, target, reward)
    return _estimate(predicted_target + weights * (reward - predicted), weights, alpha)


def _weights(logged: Column, target: Column, reward: Column) -> Column:
    if not logged.size or not logged.shape == target.shape == reward.shape:
        raise ValueError("columns must have one entry for each decision, and at least one decision")
    if not ((logged > 0) & (logged <= 1) & (target >= 0) & (target <= 1)).all():
        raise ValueError("a logged propensity lies in (0, 1] and a target's in [0, 1]")
    return target / logged


def _estimate(terms: Column, weights: Column, alpha: float) -> Estimate:
    n, value = terms.size, float(terms.mean())
    error = float(terms.std(ddof=1)) / n**0.5 if n > 1 else float("inf")
    reach = NormalDist().inv_cdf(1 - alpha / 2) * error
    squares = float((weights**2).sum())
    return Estimate(
        value, value - reach, value + reach, float(weights.sum()) ** 2 / squares if squares else 0.0
    )
