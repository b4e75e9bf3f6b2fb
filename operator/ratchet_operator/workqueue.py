"""One queue of keys: what a user changed goes before what is new, then what changed by itself, then resyncs.

A key waits once however often it is added, is worked on by one worker at a time, and backs off on errors.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum

from ratchet_operator.kinds import Key
from ratchet_operator.metrics import QUEUE_DEPTH, QUEUE_OLDEST_SECONDS


class Lane(IntEnum):
    """Who goes first."""

    EDIT = 0
    NEW = 1
    CHANGE = 2
    RESYNC = 3


STARVATION = 16  # after so many of a better lane in a row, one of a worse lane is served
FIRST_BACKOFF = 0.2
LONGEST_BACKOFF = 60.0


def backoff(failures: int) -> float:
    """Seconds until the next try after so many failures before this one."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 10))


class WorkQueue:
    """Keys that need a step. Not thread-safe: it lives in one event loop.

    Args:
        clock: monotonic seconds.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lanes: tuple[OrderedDict[Key, float], ...] = tuple(OrderedDict[Key, float]() for _ in Lane)
        self._working: set[Key] = set()
        self._again: dict[Key, Lane] = {}
        self._failures: dict[Key, int] = {}
        self._later: list[tuple[float, Key, Lane]] = []
        self._due: dict[Key, float] = {}
        self._begun: dict[Key, float] = {}
        self._in_a_row = 0
        self._wake = asyncio.Event()

    def add(self, key: Key, lane: Lane) -> None:
        """A step is needed now. A key that waits in a worse lane moves up and keeps its place in time."""
        if key in self._working:
            self._again[key] = min(lane, self._again.get(key, lane))
            return
        since = self._clock()
        for other in Lane:
            if key in self._lanes[other]:
                if other <= lane:
                    return
                since = self._lanes[other].pop(key)
        self._lanes[lane][key] = since
        self._wake.set()

    def add_after(self, key: Key, seconds: float, lane: Lane = Lane.CHANGE, *, apart: float = 0.0) -> None:
        """A step is needed by the clock, though not before `apart` seconds since the last one began; of
        several, the earliest stands.
        """
        due = max(self._clock() + seconds, self._begun.get(key, float("-inf")) + apart)
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._later, (due, key, lane))
            self._wake.set()

    def done(self, key: Key) -> None:
        """The step went well."""
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: Key, at_least: float = 0.0) -> float:
        """The step failed: try again after a while, which is returned; not before `at_least` seconds where
        the API server asked for that.
        """
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        wait = max(at_least, backoff(count))
        if at_least or self._again.get(key) is not Lane.EDIT:  # an edit may be the cure; all else waits
            self._again.pop(key, None)
        self._release(key)
        self.add_after(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """The object is gone: no retries, no alarms."""
        for of_key in (self._failures, self._due, self._begun):
            of_key.pop(key, None)

    def _release(self, key: Key) -> None:
        self._working.discard(key)
        lane = self._again.pop(key, None)
        if lane is not None:
            self.add(key, lane)

    async def get(self) -> Key:
        """The next key; the caller must answer with `done` or `failed`."""
        while True:
            self._promote()
            key = self._pick()
            if key is not None:
                self._working.add(key)
                self._begun[key] = self._clock()
                return key
            self._wake.clear()
            timeout = self._later[0][0] - self._clock() if self._later else None
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _promote(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, key, lane = heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key, lane)

    def _pick(self) -> Key | None:
        waiting = [lane for lane in Lane if self._lanes[lane]]
        if not waiting:
            return None
        lane = waiting[0]
        if len(waiting) > 1 and self._in_a_row >= STARVATION:
            lane = waiting[1]
            self._in_a_row = 0
        elif len(waiting) > 1:
            self._in_a_row += 1
        key, _ = self._lanes[lane].popitem(last=False)
        return key

    def waiting(self, lane: Lane) -> int:
        """How many keys wait in this lane or a better one."""
        return sum(len(self._lanes[better]) for better in Lane if better <= lane)

    def oldest_age(self) -> float:
        """Seconds that the oldest key waits."""
        now = self._clock()
        return max((now - since for lane in self._lanes for since in lane.values()), default=0.0)

    def depth(self) -> int:
        """How many keys wait for a worker or have one; not those whose time has not come."""
        self._promote()
        return sum(len(lane) for lane in self._lanes) + len(self._working)

    def measure(self) -> None:
        """Set the gauges."""
        for lane in Lane:
            QUEUE_DEPTH.labels(lane.name.lower()).set(len(self._lanes[lane]))
        QUEUE_OLDEST_SECONDS.set(self.oldest_age())
