"""Children whose names strangers' objects have.

No watch sees these, so each is tried again: at first soon, then more and more rarely, and not at each step.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ratchet_operator.kinds import Key
from ratchet_operator.workqueue import backoff

Child = tuple[str, str, str]
"""Kind, name and UID of its owner."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    said: str
    tries: int
    until: float


class Taken:
    """What was found in a child's place, and when it is worth another look.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refusals: dict[Key, dict[Child, _Refusal]] = {}

    def said(self, key: Key, child: Child) -> str | None:
        """What was said of an owner's child at its last try; None where it is to be tried now."""
        last = self._refusals.get(key, {}).get(child)
        return last.said if last is not None and self._clock() < last.until else None

    def found(self, key: Key, child: Child, said: str) -> str:
        """A stranger's object is there; returns what is said of it."""
        of_key = self._refusals.setdefault(key, {})
        tries = of_key[child].tries + 1 if child in of_key else 1
        of_key[child] = _Refusal(said, tries, self._clock() + backoff(tries - 1))
        return said

    def forget(self, key: Key) -> None:
        """Its children are there, or it is gone."""
        self._refusals.pop(key, None)
