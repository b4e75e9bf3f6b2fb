"""Outputs of a network to actions, many rows at a time: each row with its mask, temperature and randomness.

At temperature T the distribution is p^(1/T), normalized: logits are divided by T, a variance is multiplied by
it. `onerow` says the same for one row in plain Python; a test holds both together.
"""

from math import log, pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Uniforms = NDArray[np.float64]


class Choice(NamedTuple):
    """Actions in the policy's own terms, from 0 and not clipped, and their log-probabilities (N,)."""

    action: NDArray[Any]
    log_probability: Floats


def categorical(
    logits: Floats, masks: Bools | None, greedy: Bools, temperature: Floats, uniform: Uniforms | None
) -> Choice:
    """One of n values for each row.

    Args:
        logits: (N, n).
        masks: (N, n), each row with a True, or None where everything is allowed.
        greedy: (N,); takes the most likely value.
        temperature: (N,), above 0.
        uniform: (N,) in (0, 1]; None where every row is greedy.

    """
    scaled = logits / temperature.astype(np.float64)[:, None]
    if masks is not None:
        scaled[~masks] = -np.inf
    best = scaled.argmax(axis=1)
    rows = np.arange(len(scaled))
    scaled -= scaled[rows, best][:, None]
    cumulative = np.exp(scaled).cumsum(axis=1, dtype=np.float64)
    total = cumulative[:, -1]
    index: NDArray[Any] = best
    if uniform is not None:
        # The uniform number is above 0, so a value without probability is never taken, nor one past the end.
        index = (cumulative < (uniform * total)[:, None]).sum(axis=1)
        np.copyto(index, best, where=greedy)
    return Choice(index, (scaled[rows, index] - np.log(total)).astype(np.float32))


def multi_categorical(
    columns: NDArray[np.intp],
    logits: Floats,
    masks: Bools | None,
    greedy: Bools,
    temperature: Floats,
    uniform: Uniforms | None,
) -> Choice:
    """One value for each of c components, as `categorical`.

    Args:
        columns: (c, widest) places in the logits; `logits.shape[1]` where a component has fewer values.
        logits: (N, sum of values).
        masks: as logits, each component with a True.
        greedy: (N,).
        temperature: (N,).
        uniform: (N, c).

    """
    rows, (components, widest) = len(logits), columns.shape
    padded = np.concatenate([logits, np.full((rows, 1), -np.inf, np.float32)], axis=1)
    allowed = None
    if masks is not None:
        allowed = np.concatenate([masks, np.zeros((rows, 1), np.bool_)], axis=1)
        allowed = allowed[:, columns].reshape(-1, widest)
    chosen = categorical(
        padded[:, columns].reshape(-1, widest),
        allowed,
        np.repeat(greedy, components),
        np.repeat(temperature, components),
        None if uniform is None else uniform.reshape(-1),
    )
    return Choice(
        chosen.action.reshape(rows, components),
        chosen.log_probability.reshape(rows, components).sum(axis=1),
    )


def bernoulli(
    logits: Floats, masks: Bools | None, greedy: Bools, temperature: Floats, uniform: Uniforms | None
) -> Choice:
    """Bits for each row; one that its mask does not allow stays 0.

    Shapes as in `categorical`, and one uniform number for each bit.
    """
    scaled = logits / temperature.astype(np.float64)[:, None]
    likely = scaled > 0
    chosen = likely
    if uniform is not None:
        drawn = uniform <= 1 / (1 + np.exp(-scaled.clip(-80, 80)))
        chosen = np.where(greedy[:, None], likely, drawn)
    surprise = np.logaddexp(0, np.where(chosen, -scaled, scaled))
    if masks is not None:
        chosen = chosen & masks
        surprise = np.where(masks, surprise, 0)
    return Choice(chosen, -surprise.sum(axis=1, dtype=np.float32))


def gaussian(
    mean: Floats, log_std: Floats, greedy: Bools, temperature: Floats, uniform: Uniforms | None
) -> Choice:
    """A vector for each row, by Box and Muller's transform of uniform numbers (N, 2n).

    Args:
        mean: (N, n).
        log_std: (n,) at temperature 1.
        greedy: (N,); takes the mean.
        temperature: (N,).
        uniform: (N, 2n), of which a component takes two that follow each other.

    """
    normalizer = log_std.sum() + 0.5 * mean.shape[1] * (log(2 * pi) + np.log(temperature))
    if uniform is None:
        return Choice(mean.copy(), -normalizer.astype(np.float32))
    noise = np.sqrt(-2 * np.log(uniform[:, 0::2])) * np.cos(2 * pi * uniform[:, 1::2])
    noise[greedy] = 0
    log_probability = -0.5 * np.einsum("na,na->n", noise, noise) - normalizer
    spread = np.sqrt(temperature)[:, None] * np.exp(log_std)
    return Choice((mean + spread * noise).astype(np.float32), log_probability.astype(np.float32))
