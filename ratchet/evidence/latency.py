"""Quantiles of latency from histograms with fixed edges, as rates of answers that took longer than an edge.

A quantile q is above an edge exactly when more than 1 - q of the answers take longer: Howard, Ramdas (2022),
Bernoulli 28(3). `counts[i]` is the number of answers at most `edges[i]` seconds and above the edge before;
the last count, one more than there are edges, is of those above all edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ratchet.evidence.rates import Count, RateRatio

_FURTHEST = 4


def slower(counts: Sequence[int], edge: int) -> Count:
    """How many answers took longer than edges[edge]; none did where there is no such edge."""
    return Count(sum(counts), sum(counts[edge + 1 :]))


def edge_of(edges: Sequence[float], seconds: float) -> int:
    """Index of the least edge that is not below so many seconds; len(edges) where all are."""
    return next((index for index, edge in enumerate(edges) if edge >= seconds * (1 - 1e-9)), len(edges))


def quantile_edge(counts: Sequence[int], quantile: float) -> int:
    """Index of the least edge that at most 1 - quantile of the answers exceed; len(edges) where none is."""
    total, so_far = sum(counts), 0
    for index, count in enumerate(counts):
        so_far += count
        if so_far >= quantile * total:
            return index
    return max(0, len(counts) - 1)


def nearest_edge(counts: Sequence[int], quantile: float) -> int:
    """Index of the edge that the share of answers above is nearest to 1 - quantile, as a ratio.

    That is the edge just above the quantile, or the one just below where that leaves at most
    `_FURTHEST` x 1 - quantile. What lies above all edges has none: len(edges).
    """
    above, share = quantile_edge(counts, quantile), 1 - quantile
    if not 0 < above < len(counts) - 1:
        return above
    from_above = max(slower(counts, above).rate, share / _FURTHEST)
    return above if from_above * slower(counts, above - 1).rate > share**2 else above - 1


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """Whether canary answers exceed allowed x stable's quantile more often than stable answers exceed it.

    The edge is the nearest to stable's quantile as it was before each interval, so the test stays exact while
    it moves; and the other edge is rounded up, so that one arm that is slower by at most the allowed ratio at
    every quantile keeps the bound.

    Attributes:
        quantile: such as 0.99.
        allowed: ratio of canary's quantile to stable's.
        ratio: of the rates of slow answers, which may be 1, and of slow ones alone.

    """

    quantile: float
    allowed: float
    edges: tuple[float, ...]
    ratio: RateRatio
    canary: tuple[int, ...] = ()
    stable: tuple[int, ...] = ()

    @property
    def question(self) -> tuple[float, float, float | None]:
        """The bounds; evidence on others says nothing of these."""
        return self.quantile, self.allowed, self.ratio.question[1]

    def add(self, canary: Sequence[int], stable: Sequence[int]) -> "LatencyRatio":
        """One interval's increments; each has one count more than there are edges."""
        ratio = self.ratio
        if sum(self.stable):
            edge = nearest_edge(self.stable, self.quantile)
            if edge < len(self.edges):
                limit = edge_of(self.edges, self.edges[edge] * self.allowed)
                ratio = ratio.add(slower(canary, limit), slower(stable, edge))
        return replace(
            self, canary=added(self.canary, canary), stable=added(self.stable, stable), ratio=ratio
        )

    def quantiles(self) -> tuple[float | None, float | None]:
        """Canary's and stable's quantile, rounded up to an edge; None where it is unknown or above all."""
        found = [
            quantile_edge(counts, self.quantile) if sum(counts) else len(self.edges)
            for counts in (self.canary, self.stable)
        ]
        canary, stable = (self.edges[edge] if edge < len(self.edges) else None for edge in found)
        return canary, stable


def added(sums: Sequence[int], increments: Sequence[int]) -> tuple[int, ...]:
    """Sums of counts, bin by bin; nothing stands for zeros."""
    if not sums or not increments:
        return tuple(sums or increments)
    return tuple(a + b for a, b in zip(sums, increments, strict=True))
