"""Random numbers by counter: those of a row depend on its seed alone, not on the batch that it is in.

SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) of seed and position, once for one row in
plain integers and once for many in numpy; both give the same numbers.
"""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Uniforms = NDArray[np.float64]

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_STEP = 2.0**-53


class Draws:
    """Uniform numbers in (0, 1], for rows with and without a seed.

    Args:
        seed: of the rows that have none of their own; None takes it from the machine.

    """

    def __init__(self, seed: int | None = None) -> None:
        self._one = random.Random(seed)
        self._many = np.random.default_rng(self._one.getrandbits(128))

    def row(self, seed: int | None, count: int) -> list[float]:
        """`count` numbers for one row."""
        if seed is None:
            return [1.0 - self._one.random() for _ in range(count)]
        key = _mix(seed & _MASK)
        return [((_mix((key + i * _GAMMA) & _MASK) >> 11) + 1) * _STEP for i in range(1, count + 1)]

    def rows(self, seeds: Sequence[int | None], count: int) -> Uniforms:
        """(N, count)."""
        drawn = 1.0 - self._many.random((len(seeds), count))
        seeded = [i for i, seed in enumerate(seeds) if seed is not None]
        if seeded:
            keys = np.array([seed & _MASK for seed in seeds if seed is not None], np.uint64)
            place = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA)
            bits = _mix_array(_mix_array(keys)[:, None] + place)
            drawn[seeded] = ((bits >> np.uint64(11)) + np.uint64(1)) * _STEP
        return drawn


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _mix_array(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
