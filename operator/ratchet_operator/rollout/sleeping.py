"""Scale to zero. Always in this order: the operator's door is there beside the pods, then they go; pods are
found without the door, then it goes. Who asks in between finds one of the two.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ratchet_operator.plan import Occurrence
from ratchet_operator.rollout.judging import PodAnswer
from ratchet_operator.rollout.observed import seconds_since_asked
from ratchet_operator.rollout.values import At, Nap, Rollout

DOOR_SECONDS = 5.0
"""Between the door and the end of the pods. Whoever follows EndpointSlices hears of the door first, so it is
no more than time for a request to say that it is not idle after all."""


@dataclass(frozen=True, slots=True)
class Rested:
    """The nap from here on, and the condition to show."""

    nap: Nap | None
    reason: str = ""
    message: str = ""
    occurrence: Occurrence | None = None


def doze(state: Rollout, at: At) -> Rested | None:
    """Whether stable, with its pods, comes to need none; None while it does need them."""
    stable, nap, seen, limit = state.stable, state.nap, at.seen.rest, at.rules.sleep_seconds
    is_alone = state.trial is None and stable is not None and at.seen.arms.keys() <= {stable}
    if not is_alone or limit is None or seen.quiet is None or seen.quiet < limit or seen.asked or seen.shut:
        return None
    if nap is None:
        return Rested(Nap(phase="Drowsy", since=at.stamp))
    if not seen.door or at.seconds_since(nap.since) < DOOR_SECONDS:
        return Rested(nap)
    message = f"Nobody has asked for {limit:.0f} s; the next request starts servers."
    return _told(Nap(phase="Asleep", since=at.stamp), "ScaledToZero", "ScaledToZero", message, at)


def rest(state: Rollout, nap: Nap, at: At, *, is_ordered: bool) -> Rested:
    """The next step of one that sleeps or wakes; it begins no trial, which without requests had no end.

    Args:
        state: with a stable arm and nothing on trial.
        nap: Asleep or Waking.
        at: where the step stands.
        is_ordered: whether this step obeys a command.

    """
    seen = at.seen
    if nap.phase == "Asleep":
        why = _why_wake(at, is_ordered)
        if why:
            return _told(Nap(phase="Waking", since=at.stamp), "Waking", "Woken", why, at)
        return Rested(nap, "ScaledToZero", f"No server runs since {nap.since}; the next request starts some.")
    ready, seconds = seen.ready(state.stable), at.seconds_since(nap.since)
    message = f"{ready} of {at.pods(100)} servers are ready."
    if ready and seen.follows(seen.routed) and seen.rest.found:
        return _told(None, "Waking", "Awake", f"{message} The first was after {seconds:.0f} s.", at)
    if seconds > at.rules.deadline_seconds:
        # The usual rules again: what the source means by now may get ready.
        return Rested(None, "ProgressDeadlineExceeded", message)
    return Rested(nap, "Waking", message)


def quiet_seconds(answers: Iterable[PodAnswer]) -> float | None:
    """Seconds since any of these pods was asked or began; None where one does not say, an episode is open, or
    there is none.
    """
    found: float | None = None
    for answer in answers:
        if answer.stats is None or answer.stats.websockets:
            return None
        stats = answer.stats
        quiet = min((stats.uptime_seconds, *map(seconds_since_asked, stats.arms)))
        found = quiet if found is None else min(found, quiet)
    return found


def _why_wake(at: At, is_ordered: bool) -> str:
    if at.seen.rest.asked:
        return "A request came."
    if is_ordered:
        return "A command came."
    if at.seen.rest.shut:
        return "The operator has no free port to hold requests at."
    return "scaleToZeroAfter is no longer written." if at.rules.sleep_seconds is None else ""


def _told(nap: Nap | None, reason: str, event: str, message: str, at: At) -> Rested:
    return Rested(nap, reason, message, Occurrence("Normal", event, message, f"{event}/{at.stamp}"))
