"""Status in words: what state an object is in, and numbers as people say them. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

Resource = dict[str, Any]
NONE = "-"

# The one that counts is the first of these that is True.
DECISIVE = ("Failed", "Succeeded", "Suspended", "Progressing", "Ready")
COLOURS = {
    "Failed": "red",
    "Succeeded": "green",
    "Suspended": "yellow",
    "Progressing": "cyan",
    "Ready": "green",
}


@dataclass(frozen=True, slots=True)
class State:
    """The condition that counts: a word, its colour, and its sentence."""

    word: str
    reason: str
    message: str

    @property
    def colour(self) -> str:
        """A Rich colour."""
        return COLOURS.get(self.word, "white")

    @property
    def sentence(self) -> str:
        """One line that a person can read aloud."""
        # The reason of what goes on says nothing that its message does not.
        word = self.word if self.word in ("Progressing", "Suspended") else f"{self.word} ({self.reason})"
        return ": ".join(part for part in (word.removesuffix(" ()"), self.message) if part)


def value(resource: Resource, path: str) -> Any:
    """Return what stands at a dotted path of an object, or None."""
    found: Any = resource
    for part in path.split("."):
        if not isinstance(found, dict):
            return None
        found = cast(Resource, found).get(part)
    return found


def conditions(resource: Resource) -> list[Resource]:
    """Return the conditions of an object, the decisive ones first."""

    def rank(condition: Resource) -> int:
        kind = condition["type"]
        return DECISIVE.index(kind) if kind in DECISIVE else len(DECISIVE)

    found = cast(list[Resource], value(resource, "status.conditions") or [])
    return sorted(found, key=rank)


def state(resource: Resource) -> State:
    """Tell the state of an object from its conditions."""
    known = conditions(resource)
    for condition in known:
        if condition["type"] in DECISIVE and condition["status"] == "True":
            return _state(str(condition["type"]), condition)
    for condition in known:
        if condition["type"] in ("Progressing", "Ready"):
            return _state("Waiting", condition)
    return State("Pending", "", "the operator has not looked at it yet")


def _state(word: str, condition: Resource) -> State:
    return State(word, str(condition.get("reason", "")), str(condition.get("message", "")))


def ended(resource: Resource) -> bool | None:
    """Return True for a job that succeeded, False for one that failed, None for one that goes on."""
    word = state(resource).word
    return {"Succeeded": True, "Failed": False}.get(word)


def number(amount: float | None, digits: int = 0) -> str:
    """Write a number with thousands separated."""
    return NONE if amount is None else f"{amount:,.{digits}f}"


def short(amount: float | None) -> str:
    """Write a number in few characters: 950, 12.3k, 4.5M."""
    if amount is None:
        return NONE
    for limit, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(amount) >= limit:
            return f"{amount / divisor:.1f}{unit}"
    return f"{amount:.0f}"


def span(total: float | None) -> str:
    """Write a duration: 42s, 3m05s, 2h10m, 3d4h."""
    if total is None:
        return NONE
    minutes, seconds = divmod(max(0, int(total)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def instant(text: str | None) -> datetime | None:
    """Read a time of the API, such as ``2026-01-31T12:00:00Z``."""
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def since(text: str | None, now: datetime) -> str:
    """Write how long ago a time of the API was."""
    then = instant(text)
    return NONE if then is None else span((now - then).total_seconds())


def running_time(resource: Resource, now: datetime) -> float | None:
    """Return seconds from the start of a job to its end, or to now."""
    start = instant(value(resource, "status.startTime"))
    if start is None:
        return None
    return ((instant(value(resource, "status.completionTime")) or now) - start).total_seconds()
