"""Whether the pods follow the split that was written for them, and who is still asked. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ratchet.api.v1alpha1.serverstats import Route
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.values import Split

QUIET_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered from one look to the next; `Watch()` is safe at any time, only slower.

    Attributes:
        split: that was followed at the last look, None where none was.
        asked: by arm, when a pod of it was last asked something; unix seconds of the operator's clock.
        counted: by pod UID, its incarnation and the requests that it had answered itself.

    """

    split: Split | None = None
    asked: Mapping[str, float] = field(default_factory=dict[str, float])
    counted: Mapping[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])


def observe(
    watch: Watch,
    written: Split,
    routes: Mapping[str, Route],
    answers: Sequence[PodAnswer],
    now: datetime,
    quiet: float = QUIET_SECONDS,
) -> tuple[Watch, Split | None, Mapping[str, int] | None]:
    """What `Seen.split` and `Seen.traffic` are.

    Args:
        watch: what the call before returned.
        written: the split as it is written in the cluster.
        routes: the route, by arm, that says this split to the arm's pods.
        answers: one for each pod that a request can reach; a pod without an answer follows nothing, and may
            be busy.
        now: the operator's clock.
        quiet: seconds without a request, under the present split, after which an arm is idle.

    Returns:
        The watch; the split, where every pod of `routes` says that it follows it, else None; and by arm the
        seconds that are missing until it is idle, rounded up, None where no split is followed.

    """
    followed = all(
        answer.stats is not None
        and Route.model_validate(answer.stats.route.model_dump(include=set(Route.model_fields)))
        == routes[answer.arm]
        for answer in answers
        if answer.arm in routes
    )
    if not followed or not answers:
        return Watch(), None, None
    at = now.timestamp()
    asked = dict(watch.asked) if watch.split == written else {answer.arm: at for answer in answers}
    counted: dict[str, tuple[str, int]] = {}
    for answer in answers:
        if answer.stats is None:
            asked[answer.arm] = at
            continue
        mine = {answer.stats.current, answer.stats.previous}
        requests = sum(tally.requests for tally in answer.stats.arms if tally.digest in mine)
        counted[answer.uid] = answer.stats.incarnation, requests
        if requests and watch.counted.get(answer.uid) != counted[answer.uid]:
            asked[answer.arm] = at
    left = {arm: max(0, int(quiet - (at - then) + 0.999)) for arm, then in asked.items()}
    return Watch(written, asked, counted), written, left
