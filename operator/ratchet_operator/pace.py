"""How often statuses are written: each at most every few seconds, and all together so many a second.

Where many objects move at once, as in a burst, each waits for its turn, and then says what is true by that
time: one write for a flock of changes; and who had to wait comes back more and more rarely. Where few move,
nobody waits.
"""

from collections import deque
from collections.abc import Callable

from ratchet_operator.kinds import Key

APART, LONGEST_APART = 2.0, 16.0  # seconds between two writes of one object's status
TOGETHER = 20.0  # writes a second of all objects
CROWD, CROWD_SECONDS = 16, 30.0  # so many new objects in so many seconds are a crowd


class Pace:
    """Turns to write.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written: dict[Key, float] = {}
        self._apart: dict[Key, float] = {}
        """Of who had to wait for his last turn, or had it in a crowd."""
        self._newest: deque[float] = deque(maxlen=CROWD)
        self._turns: dict[Key, float] = {}
        self._free = float("-inf")
        """When the next turn that nobody has may begin."""

    def begin(self, key: Key) -> None:
        """A new object: it has nothing to say before its children had time to come."""
        if key in self._written:
            return
        self._written[key] = self._clock()
        self._newest.append(self._clock())
        if self.is_crowd():
            self._apart[key] = 2 * APART

    def wait(self, key: Key, others_begin: bool = False) -> float:
        """Seconds until this object's turn, which is kept for it; 0 where it is now. While `others_begin`,
        their children go first, though not for ever.
        """
        now = self._clock()
        turn = self._turns.get(key)
        if turn is None:
            earliest = self._written.get(key, float("-inf")) + self._apart.get(key, APART)
            if now < earliest:
                return earliest - now
            turn = self._turns[key] = max(now, self._free)
            self._free = turn + 1 / TOGETHER
            if turn > now or self.is_crowd():
                self._apart[key] = min(LONGEST_APART, 2 * self._apart.get(key, APART))
            else:
                self._apart.pop(key, None)
        if others_begin and turn <= now < turn + LONGEST_APART:
            return APART
        return max(0.0, turn - now)

    def wrote(self, key: Key) -> None:
        """Its status was written."""
        self._turns.pop(key, None)
        self._written[key] = self._clock()

    def is_crowd(self) -> bool:
        """Whether many objects are new."""
        return len(self._newest) == CROWD and self._clock() - self._newest[0] < CROWD_SECONDS

    def forget(self, key: Key) -> None:
        """The object is gone."""
        for of_key in (self._turns, self._written, self._apart):
            of_key.pop(key, None)
