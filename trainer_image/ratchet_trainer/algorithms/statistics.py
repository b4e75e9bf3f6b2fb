"""Running statistics of what the learner has seen; they normalize its inputs and travel in checkpoints."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ratchet.policies.acting import NORMALIZED_LIMIT, VARIANCE_FLOOR
from ratchet_trainer.algorithms.batch import Flags, Floats

REWARD_LIMIT = 10.0
# Worker incarnations whose running returns are kept; the ones longest unheard are forgotten first.
REMEMBERED_SOURCES = 10_000


class RunningStatistics:
    """Mean and variance of each feature over everything seen, in float64.

    Merged batch by batch as in Chan, Golub and LeVeque 1979, «Updating formulae and a pairwise algorithm for
    computing sample variances». Before the first row, mean 0 and variance 1.
    """

    def __init__(self, features: int) -> None:
        self.mean = np.zeros(features)
        self.variance = np.ones(features)
        self.count = 0.0

    def add(self, rows: NDArray[Any]) -> None:
        """Takes in (B, features)."""
        if len(rows) == 0:
            return
        mean, variance = rows.mean(0, dtype=np.float64), rows.var(0, dtype=np.float64)
        total = self.count + len(rows)
        apart = mean - self.mean
        spread = self.variance * self.count + variance * len(rows) + apart**2 * self.count * len(rows) / total
        self.mean, self.variance, self.count = self.mean + apart * len(rows) / total, spread / total, total

    def normalize(self, rows: Floats) -> Floats:
        """Just as actors do (`ratchet.policies.acting`): float32, limited to ±10 [37, continuous 6 and 7]."""
        scale = np.reciprocal(np.sqrt(self.variance.astype(np.float32) + np.float32(VARIANCE_FLOOR)))
        return np.clip((rows - self.mean.astype(np.float32)) * scale, -NORMALIZED_LIMIT, NORMALIZED_LIMIT)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies, as tensors."""
        arrays = {"mean": self.mean, "variance": self.variance, "count": np.array(self.count)}
        return {name: torch.tensor(value) for name, value in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was called."""
        self.mean, self.variance = state["mean"].numpy().copy(), state["variance"].numpy().copy()
        self.count = float(state["count"])


class DiscountedReturns:
    """Scales rewards by the deviation of the discounted return so far.

    [37, continuous 8 and 9], which `ppo` explains. An environment's running return
    goes on from one fragment of a worker's incarnation to its next.
    """

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._statistics = RunningStatistics(1)
        self._running: dict[str, NDArray[np.float64]] = {}

    def scale(self, reward: Floats, ended: Flags, sources: Iterable[tuple[str, int]]) -> Floats:
        """(T, N) rewards of `sources`, scaled and limited to ±10.

        Args:
            reward: of each step; 0 where it is not valid.
            ended: the episode ended there.
            sources: as in `Batch`.

        """
        own = tuple(sources)
        returns = np.empty(reward.shape)
        running = np.concatenate(
            [
                past
                if (past := self._running.pop(name, None)) is not None and len(past) == width
                # An unknown worker's environments have no past.
                else np.zeros(width)
                for name, width in own
            ]
        )
        for t in range(len(reward)):
            running = running * self._gamma + reward[t]
            returns[t] = running
            running = running * ~ended[t]
        first = 0
        for name, width in own:
            self._running[name] = running[first : first + width]
            first += width
        while len(self._running) > REMEMBERED_SOURCES:
            del self._running[next(iter(self._running))]
        self._statistics.add(returns.reshape(-1, 1))
        return np.clip(reward / np.float32(self.deviation), -REWARD_LIMIT, REWARD_LIMIT)

    @property
    def deviation(self) -> float:
        """By which rewards are divided."""
        return math.sqrt(float(self._statistics.variance[0]) + VARIANCE_FLOOR)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies, as tensors."""
        running = {f"running.{name}": torch.tensor(value) for name, value in self._running.items()}
        return {**self._statistics.state_dict(), **running}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on where `state_dict` was called."""
        self._statistics.load_state_dict(state)
        self._running = {name: value.numpy().copy() for name, value in within("running.", state).items()}


def within(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
