"""Rates over the last seconds, from counts and times that are passed in."""

from collections import deque

WINDOW_SECONDS = 10.0


class Rates:
    """Steps per second and the learner's busy fraction."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int, float]] = deque()
        self._busy = 0.0

    def note(self, now: float, steps: int, busy: float = 0.0) -> None:
        """After an update that kept the learner busy for `busy` seconds; `steps` is the count so far."""
        self._busy += busy
        self._points.append((now, steps, self._busy))
        while now - self._points[0][0] > WINDOW_SECONDS and len(self._points) > 2:
            self._points.popleft()

    @property
    def steps_per_second(self) -> float | None:
        """None before there are two points."""
        return self._rate(1)

    @property
    def busy(self) -> float | None:
        """Between 0 and 1; None before there are two points."""
        return self._rate(2)

    def _rate(self, index: int) -> float | None:
        if len(self._points) < 2:
            return None
        first, last = self._points[0], self._points[-1]
        span = last[0] - first[0]
        return (last[index] - first[index]) / span if span > 0 else None
