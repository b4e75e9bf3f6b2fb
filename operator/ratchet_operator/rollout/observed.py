"""Whether the pods follow the split that was written for them, and who is still asked. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ratchet.api.v1alpha1.serverstats import ArmStats, Route, ServerStats
from ratchet_operator.rollout.counting import STABLE
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.routes import say_same
from ratchet_operator.rollout.values import Split

QUIET_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered from one look to the next; `Watch()` is safe at any time, only slower.

    Attributes:
        split: that was followed at the last look, None where none was.
        since: when it was first seen to be; unix seconds of the operator's clock.

    """

    split: Split | None = None
    since: float = math.inf


def observe(
    watch: Watch,
    written: Split,
    routes: Mapping[str, Route],
    answers: Sequence[PodAnswer],
    now: datetime,
    quiet: float = QUIET_SECONDS,
    *,
    by_gateway: bool = True,
) -> tuple[Watch, Split | None, Mapping[str, int] | None]:
    """What `Seen.split` and `Seen.traffic` are.

    Args:
        watch: what the call before returned.
        written: the split as it is written in the cluster.
        routes: the route, by arm, that says this split to the arm's pods.
        answers: one for each pod that a request can reach; a pod without an answer follows nothing.
        now: the operator's clock.
        quiet: seconds without a request, under the present split, after which an arm is idle.
        by_gateway: whether the user's gateway, where there is one, follows the split too.

    Returns:
        The watch; the split, where every pod of `routes` says that it follows it, else None; and by arm the
        seconds that are missing until it is idle, rounded up, None where no split is followed.

    """
    heard = [(answer.arm, answer.stats) for answer in answers if answer.stats is not None]
    is_followed = (
        by_gateway
        and len(heard) == len(answers) > 0
        and all(arm not in routes or _says(stats, routes[arm]) for arm, stats in heard)
    )
    if not is_followed:
        return Watch(), None, None
    at = now.timestamp()
    since = min(watch.since, at) if watch.split == written else at
    left: dict[str, int] = {}
    for arm, stats in heard:
        missing = math.ceil(quiet - min(at - since, _idle(stats)))
        left[arm] = max(left.get(arm, 0), missing)
    return Watch(written, since), written, left


def _says(stats: ServerStats, route: Route) -> bool:
    return stats.route.generation == route.generation and say_same(stats.route, route)


def _idle(stats: ServerStats) -> float:
    """Seconds since a pod was last asked for an answer of its own."""
    return min(
        (seconds_since_asked(tally) for tally in stats.arms if _is_own(stats, tally)), default=math.inf
    )


def seconds_since_asked(tally: ArmStats) -> float:
    """Infinite where a pod was never asked for this arm's policy."""
    if not tally.requests:
        return math.inf
    return tally.seconds_since_request or 0.0


def _is_own(stats: ServerStats, tally: ArmStats) -> bool:
    """Whether the pod answered these itself, for clients or for another pod."""
    is_sent_on = stats.route.canary is not None and tally.digest == stats.route.digest
    return tally.arm == STABLE or (tally.digest in (stats.current, stats.previous) and not is_sent_on)
