"""Which checkpoints may go. Values in, names out; the store reads and deletes."""

from bisect import insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that could be read.

    Attributes:
        stored: when its manifest was, by the bucket's clock.

    """

    name: str
    stored: datetime
    mean_return: float | None


def removable(
    candidates: Sequence[Candidate], last: int, best: int, kept: Collection[str], grace: timedelta
) -> list[str]:
    """Names of those that nobody needs, in the order of the candidates.

    Whoever chose a checkpoint while it was among the last or the best may not have said so yet: it is spared
    for a while after it has lost the last of its places. Ages are told by the bucket's clock alone, for the
    newest was stored just now; no other clock has to agree with it.

    Args:
        candidates: oldest line of training first.
        last: how many of the newest stay.
        best: how many stay by mean return, of equal ones the newer.
        kept: names that stay whatever their place.
        grace: for how long one without a place stays.

    """
    if not candidates:
        return []
    until = max(one.stored for one in candidates) - grace
    ranked = sorted(
        (one for one in reversed(candidates) if one.mean_return is not None),
        key=lambda one: one.mean_return or 0.0,
        reverse=True,
    )
    unscored = {one.name: one.stored for one in candidates if one.mean_return is None}
    without_place = (_displaced(reversed(candidates), last), unscored | _displaced(ranked, best))
    return [
        one.name
        for one in candidates
        if one.name not in kept
        and all(one.name in since and since[one.name] <= until for since in without_place)
    ]


def _displaced(ranked: Iterable[Candidate], places: int) -> dict[str, datetime]:
    """Of each that has no place among the first, when the last place above it was taken."""
    stored: list[datetime] = []
    displaced: dict[str, datetime] = {}
    for one in ranked:
        if len(stored) >= places:
            displaced[one.name] = stored[places - 1]
        insort(stored, one.stored)
    return displaced
