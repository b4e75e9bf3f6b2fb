"""What the server counts, by arm and policy. Cheap to count, cheap to read; rendered for `/v1/stats`."""

import os
from bisect import bisect_left
from collections import Counter, OrderedDict
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ratchet.api.v1alpha1.serverstats import LATENCY_BOUNDS_SECONDS
from ratchet.policies import SpaceSpec
from ratchet_inference.fitting import first_outputs

# Of arms and policies, the newest are kept: a thousand swaps must not fill the memory.
KEPT = 16


class Actions:
    """Counts of discrete actions, or moments of continuous ones (Chan, Golub and LeVeque 1979)."""

    __slots__ = ("_first", "_start", "counts", "deterministic", "m2", "mean", "number")

    def __init__(self, space: SpaceSpec) -> None:
        self.number = self.deterministic = 0
        self.counts: NDArray[np.int64] | None = None
        self.mean = self.m2 = np.zeros(0)
        self._start = np.asarray(space.start, np.int64).reshape(-1)
        self._first = first_outputs(space)
        if space.kind == "Box":
            self.mean, self.m2 = np.zeros(space.size), np.zeros(space.size)
        else:
            self.counts = np.zeros(space.outputs, np.int64)

    def add(self, actions: NDArray[Any], deterministic: int) -> None:
        """Counts (N, *action shape), N at least 1; so many of them were to be the most likely ones."""
        rows = len(actions)
        self.number += rows
        self.deterministic += deterministic
        flat = actions.reshape(rows, -1)
        if self.counts is None:
            mean = flat.mean(axis=0, dtype=np.float64)
            delta = mean - self.mean
            self.m2 += ((flat - mean) ** 2).sum(axis=0) + delta * delta * (
                rows * (self.number - rows) / self.number
            )
            self.mean += delta * (rows / self.number)
        elif self._first is None:
            self.counts += flat.sum(axis=0, dtype=np.int64)
        elif flat.size == 1:
            self.counts[int(flat[0, 0]) - int(self._start[0])] += 1
        else:
            index = (flat - self._start + self._first).astype(np.intp).reshape(-1)
            self.counts += np.bincount(index, minlength=len(self.counts))

    def to_wire(self) -> dict[str, Any]:
        """As `ActionStats`."""
        asked = {"number": self.number, "deterministic": self.deterministic}
        if self.counts is not None:
            return {**asked, "counts": self.counts.tolist()}
        return {**asked, "mean": self.mean.tolist(), "m2": self.m2.tolist()}


class Tally:
    """The counters of one policy on one arm."""

    __slots__ = (
        "actions",
        "arm",
        "digest",
        "errors",
        "fallbacks",
        "last",
        "latency",
        "mask_violations",
        "nan_answers",
        "predictions",
        "requests",
        "seconds",
    )

    def __init__(self, arm: str, digest: str, space: SpaceSpec) -> None:
        self.arm = arm
        self.digest = digest
        self.requests = 0
        self.predictions = 0
        self.errors: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.mask_violations = 0
        self.nan_answers = 0
        self.latency = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        self.seconds = 0.0
        self.last: float | None = None
        self.actions = Actions(space)

    def answered(self, received: float, now: float) -> None:
        """One request was answered; both of perf_counter."""
        seconds = now - received
        self.last = now
        self.requests += 1
        self.seconds += seconds
        self.latency[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1

    def to_wire(self) -> dict[str, Any]:
        """As `ArmStats`."""
        fallbacks: dict[str, dict[str, int]] = {}
        for (step, reason), count in self.fallbacks.items():
            fallbacks.setdefault(step, {})[reason] = count
        return {
            "arm": self.arm,
            "digest": self.digest,
            "requests": self.requests,
            "secondsSinceRequest": None if self.last is None else perf_counter() - self.last,
            "predictions": self.predictions,
            "errors": dict(self.errors),
            "fallbacks": fallbacks,
            "maskViolations": self.mask_violations,
            "nanAnswers": self.nan_answers,
            "latency": {"counts": self.latency, "sumSeconds": self.seconds},
            "actions": self.actions.to_wire(),
        }


class Stats:
    """Everything that is counted in this process."""

    def __init__(self) -> None:
        self.incarnation = os.urandom(6).hex()
        self.shed = 0
        self.copies_dropped = 0
        self.swaps = 0
        self.refusals: Counter[str] = Counter()
        self._started = monotonic()
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()

    def tally(self, arm: str, digest: str, space: SpaceSpec) -> Tally:
        """The counters of a policy on an arm; the one that was not asked for longest is dropped."""
        found = self._tallies.get((arm, digest))
        if found is None:
            found = self._tallies[arm, digest] = Tally(arm, digest, space)
            if len(self._tallies) > KEPT:
                self._tallies.popitem(last=False)
        else:
            self._tallies.move_to_end((arm, digest))
        return found

    @property
    def tallies(self) -> list[Tally]:
        """Those that are kept."""
        return list(self._tallies.values())

    def to_wire(self) -> dict[str, Any]:
        """The part of `ServerStats` that is counted here."""
        return {
            "version": 1,
            "incarnation": self.incarnation,
            "uptimeSeconds": monotonic() - self._started,
            "shed": self.shed,
            "copiesDropped": self.copies_dropped,
            "swaps": self.swaps,
            "refusals": dict(self.refusals),
            "latencyBoundsSeconds": LATENCY_BOUNDS_SECONDS,
            "arms": [tally.to_wire() for tally in self._tallies.values()],
        }
