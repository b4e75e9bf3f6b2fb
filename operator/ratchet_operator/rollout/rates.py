"""How many requests a second each arm answers, from two looks at its servers. Shown, and never judged by."""

from collections.abc import Sequence

from ratchet.api.v1alpha1.serverstats import ServerStats
from ratchet_operator.rollout.counting import SHADOW
from ratchet_operator.rollout.judging import PodAnswer

DIGITS = 3


def rates(before: Sequence[PodAnswer], after: Sequence[PodAnswer]) -> dict[str, float]:
    """Requests a second by arm, of the servers that were there both times; copies are none.

    Args:
        before: what was said at the look before.
        after: what is said now, by servers whose own clocks say how long that was: an answer may be slow.

    """
    known = {(one.uid, one.stats.incarnation): one.stats for one in before if one.stats}
    found: dict[str, float] = {}
    for one in after:
        if one.stats is not None:
            then = known.get((one.uid, one.stats.incarnation), one.stats)
            seconds = one.stats.uptime_seconds - then.uptime_seconds
            more = max(0, _answered(one.stats) - _answered(then))
            found[one.arm] = found.get(one.arm, 0.0) + (more / seconds if seconds > 0 else 0.0)
    return {arm: float(f"{rate:.{DIGITS}g}") for arm, rate in found.items()}


def _answered(stats: ServerStats) -> int:
    """Requests that a server answered with its own policy, for clients or for another server."""
    return sum(
        tally.requests for tally in stats.arms if tally.digest == stats.current and tally.arm != SHADOW
    )
