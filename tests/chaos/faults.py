"""Plans of trouble. What happens to a request is drawn from a seed and the request itself, not from its time,
so that a seed means the same trouble on a slow machine. A kind of trouble that no draw has brought for long
comes without one.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from proxy import Cut, Drop, Event, EventTrouble, Hold, Plan, Refuse, Request, Stale, Stop, Trouble

T = TypeVar("T", bound=Trouble | EventTrouble)
MOST_IN_A_ROW = 2
"""The operator's patience doubles with each failure of a key in a row; tests need not wait for all of it."""
OVERDUE = 2
"""Times the number of requests, or events, after which a kind of trouble may be expected."""


def drawn(seed: int, *what: object) -> Random:
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return Random(digest)


@dataclass
class Seeded(Plan):
    """Trouble for some requests and some events, chosen by the seed.

    Args:
        seed: another one is other trouble.
        requests: how likely each trouble is for a request that it can befall.
        events: the same for watch events.

    Attributes:
        made: how often each trouble was made.

    """

    seed: int
    requests: dict[Trouble, float]
    events: dict[EventTrouble, float]
    made: Counter[Trouble | EventTrouble] = field(default_factory=Counter[Trouble | EventTrouble])

    def __post_init__(self) -> None:
        self._spared: Counter[Trouble | EventTrouble] = Counter()

    @property
    def unmade(self) -> set[Trouble | EventTrouble]:
        """Kinds of trouble that never came."""
        return {*self.requests, *self.events} - self.made.keys()

    def befell(self, trouble: Trouble | EventTrouble) -> None:
        self.made[trouble] += 1

    def request(self, request: Request) -> Trouble | None:
        if request.resource == "leases" or request.nth % (MOST_IN_A_ROW + 1) == MOST_IN_A_ROW:
            return None
        return self._choose(drawn(self.seed, request), self.requests, lambda one: befalls(one, request))

    def event(self, event: Event) -> EventTrouble | None:
        # A bookmark says nothing that could be lost or come late.
        is_news = event.type != "BOOKMARK"
        return self._choose(
            drawn(self.seed, event), self.events, lambda one: is_news or isinstance(one, Stop)
        )

    def _choose(self, random: Random, chances: dict[T, float], possible: Callable[[T], bool]) -> T | None:
        for trouble, chance in chances.items():
            if random.random() < chance and possible(trouble):
                return trouble
        for trouble, chance in chances.items():
            if trouble in self.unmade and possible(trouble):
                self._spared[trouble] += 1
                if self._spared[trouble] * chance >= OVERDUE:
                    self._spared[trouble] = 0  # made or not, some requests and events pass before the next
                    return trouble
        return None


def befalls(trouble: Trouble, request: Request) -> bool:
    """Whether a server or a network does this to such a request."""
    match trouble:
        case Refuse(status=409):
            return request.writes
        case Refuse(status=410):
            return request.verb == "watch"
        case Stale():
            return request.verb == "list"
        case Cut(when="after" | "middle"):
            return request.verb != "watch"
        case _:
            return True


REFUSALS: dict[Trouble, float] = {
    Refuse(409): 0.05, Refuse(429, retry_after=1): 0.03, Refuse(500): 0.03, Refuse(503): 0.03,
}  # fmt: skip
CUTS: dict[Trouble, float] = {Cut("before"): 0.03, Cut("middle"): 0.05, Cut("after"): 0.07}
LIES: dict[EventTrouble, float] = {Drop(): 0.15, Hold(0.3): 0.15, Hold(1.5): 0.1}
EXPIRED: dict[Trouble, float] = {Refuse(410): 0.2}
STOPS: dict[EventTrouble, float] = {Stop(gone=True): 0.05, Stop(gone=False): 0.05}
STALE: dict[Trouble, float] = {Stale(): 0.3}
TROUBLES: dict[str, tuple[dict[Trouble, float], dict[EventTrouble, float]]] = {
    "requests refused, cut, and answered from long ago": ({**REFUSALS, **CUTS, **STALE}, {}),
    "events dropped, late, reordered; watches ended": (EXPIRED, {**LIES, **STOPS}),
    "everything": ({**REFUSALS, **CUTS, **STALE, **EXPIRED}, {**LIES, **STOPS}),
}


def plan_of(name: str) -> Seeded:
    """One of TROUBLES."""
    return Seeded(list(TROUBLES).index(name), *TROUBLES[name])
