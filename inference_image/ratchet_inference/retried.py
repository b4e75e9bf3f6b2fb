"""Requests that come again under the same id get the answer they had, and make no second step. Bounded.

A client whose answer was lost on its way sends the same bytes once more. No I/O; the time is an argument.
"""

from collections.abc import Callable

from ratchet_inference.problems import Problem

Reply = Callable[[bytes | Problem], None]
# Bytes of an entry and its key, beside those of the answer.
ENTRY = 160

# Answers by the hash of the request, or who waits for one that is being made.
_Asked = dict[int, bytes | list[Reply]]


class Retried:
    """What was asked lately, in two generations: when the younger one is full or old, the older one goes.

    A hash of 64 bits, keyed by the process, stands for a request. Should two ever share it, the client sees
    that the answer has the id of another.

    Args:
        most: bytes that are kept.
        seconds: for which an answer is kept at least, where there is room; at most twice as long.

    Attributes:
        repeats: requests that had come before.

    """

    def __init__(self, most: int, seconds: float = 5.0) -> None:
        self._most = most
        self._seconds = seconds
        self._young: _Asked = {}
        self._old: _Asked = {}
        self._bytes = 0
        self._since = float("-inf")
        self.repeats = 0

    def first(self, body: bytes, now: float, reply: Reply) -> Reply | None:
        """Where the answer to a request goes; None if it came before, and is answered as it was.

        Args:
            body: of the request, which holds an id.
            now: in seconds.
            reply: takes the answer, now or later.

        """
        if 2 * self._bytes > self._most or now - self._since > self._seconds:
            self._age(now)
        key = hash(body)
        known = self._young.get(key) or self._old.get(key)
        if known is not None:
            self.repeats += 1
            if isinstance(known, bytes):
                reply(known)
            else:
                known.append(reply)
            return None
        generation, waiting = self._young, [reply]
        generation[key] = waiting
        self._bytes += ENTRY

        def finish(outcome: bytes | Problem) -> None:
            if isinstance(outcome, bytes):
                generation[key] = outcome
                self._bytes += len(outcome)
            else:
                # What could not be answered may be asked again.
                del generation[key]
            for one in waiting:
                one(outcome)

        return finish

    def _age(self, now: float) -> None:
        self._old = self._young if now - self._since <= 2 * self._seconds else {}
        self._young = {}
        self._bytes = 0
        self._since = now
