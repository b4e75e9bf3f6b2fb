"""Requests that come again under the same id get the answer they had, and make no second step. Bounded.

A client whose answer was lost on its way sends the same bytes once more. Without an id in them nothing is
remembered. No I/O; the time is an argument.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ratchet_inference.problems import Problem

Reply = Callable[[bytes | Problem], None]
# Bytes of an entry with its key and its id, beside those of the answer.
ENTRY = 512


@dataclass(slots=True)
class _Asked:
    when: float
    answer: bytes | None = None
    waiting: list[Reply] = field(default_factory=list[Reply])


class Retried:
    """What was asked lately.

    Args:
        most: bytes that are kept; what was asked longest ago goes first.
        seconds: after which the same request is a new one.

    Attributes:
        repeats: requests that had come before.

    """

    def __init__(self, most: int, seconds: float = 10.0) -> None:
        self._most = most
        self._seconds = seconds
        self._asked: OrderedDict[tuple[str, int], _Asked] = OrderedDict()
        self._bytes = 0
        self.repeats = 0

    def first(self, id_: str, body: bytes, now: float, reply: Reply) -> Reply | None:
        """Where the answer to a request goes; None if it came before, and is answered as it was.

        Args:
            id_: of its first decision.
            body: of the request. With another one it is another request.
            now: in seconds.
            reply: takes the answer, now or later.

        """
        key = (id_, hash(body))
        known = self._asked.get(key)
        if known is not None and now - known.when <= self._seconds:
            self.repeats += 1
            if known.answer is None:
                known.waiting.append(reply)
            else:
                reply(known.answer)
            return None
        self._forget(key)
        asked = self._asked[key] = _Asked(now)
        self._bytes += ENTRY
        while self._bytes > self._most:
            self._forget(next(iter(self._asked)))

        def finish(outcome: bytes | Problem) -> None:
            if isinstance(outcome, bytes) and self._asked.get(key) is asked:
                asked.answer = outcome
                self._bytes += len(outcome)
            elif self._asked.get(key) is asked:
                # What could not be answered may be asked again.
                self._forget(key)
            for one in (reply, *asked.waiting):
                one(outcome)

        return finish

    def _forget(self, key: tuple[str, int]) -> None:
        gone = self._asked.pop(key, None)
        if gone is not None:
            self._bytes -= ENTRY + len(gone.answer or b"")
