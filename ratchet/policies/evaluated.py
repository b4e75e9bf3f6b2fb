"""Episodes of an evaluation as what they say of the policy's actions. What is made of it is the judge's."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.serverstats import EvaluatedActions
from ratchet.policies.spec import SpaceSpec

# Wider policies are stored without: `policy.json` is read whole, and told each second.
MOST_OUTPUTS = 1024
_DIGITS = 6


def evaluated_actions(
    space: SpaceSpec,
    deterministic: bool,
    lengths: NDArray[Any],
    sums: NDArray[np.float64],
    squares: NDArray[np.float64],
) -> EvaluatedActions | None:
    """None where nothing can be said: fewer than two episodes, too many outputs, no finite numbers.

    Args:
        space: of the actions.
        deterministic: whether the most likely ones were taken.
        lengths: (E,) decisions of each episode.
        sums: (E, outputs), of each episode's actions as the environment took them: how often each value was
            taken, or of a Box the sum of each component.
        squares: likewise of their squares.

    """
    episodes, decisions = len(lengths), int(lengths.sum())
    fits = sums.shape == squares.shape == (episodes, space.outputs) and space.outputs <= MOST_OUTPUTS
    if episodes < 2 or not decisions or not fits or not np.isfinite(squares).all():
        return None
    is_box = space.kind == "Box"
    # A share is of all values taken: a MultiDiscrete action has several, and a MultiBinary one any number.
    sizes = np.asarray(lengths, np.float64) if is_box else sums.sum(axis=1)
    size = float(sizes.sum())
    if not size:
        return None
    mean = sums.sum(axis=0) / size
    # Of a ratio of sums over episodes, which differ in length (Cochran 1977, Sampling Techniques, 6.4).
    apart = sums - np.outer(sizes, mean)
    error = np.sqrt((apart**2).sum(axis=0) * episodes / (episodes - 1)) / size
    if not is_box:
        counts = tuple(int(count) for count in sums.sum(axis=0))
        return EvaluatedActions(
            episodes=episodes, decisions=decisions, deterministic=deterministic, counts=counts,
            error=_short(error),
        )  # fmt: skip
    deviation = np.sqrt(np.maximum(squares.sum(axis=0) / size - mean**2, 0.0))
    return EvaluatedActions(
        episodes=episodes, decisions=decisions, deterministic=deterministic, mean=_short(mean),
        deviation=_short(deviation), error=_short(error),
    )  # fmt: skip


def _short(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.tolist())
