"""Rates over the last seconds, the curve over all of training; counts and times are passed in."""

from collections import deque
from collections.abc import Sequence

from ratchet.api.v1alpha1.trainingjob import CURVE_POINTS, CurvePoint

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

    def steps_per_second(self, now: float) -> float | None:
        """None before there are two points."""
        return self._rate(1, now)

    def busy(self, now: float) -> float | None:
        """Between 0 and 1; None before there are two points."""
        return self._rate(2, now)

    def _rate(self, index: int, now: float) -> float | None:
        if len(self._points) < 2:
            return None
        first, last = self._points[0], self._points[-1]
        # Up to the last update while they come, up to now once they have stopped.
        until = now if now - last[0] > WINDOW_SECONDS else last[0]
        span = until - first[0]
        return round((last[index] - first[index]) / span, 3) if span > 0 else None


class Curve:
    """The return of training in at most `CURVE_POINTS` points, however long it takes.

    Whenever it is full, every second point goes, and from then on points lie twice as far apart.
    """

    def __init__(self, points: Sequence[CurvePoint] = ()) -> None:
        self._points = list(points)

    def add(self, steps: int, mean_return: float) -> None:
        """Takes the point if it lies as far from the last one as those before do."""
        apart = self._points[1].steps - self._points[0].steps if len(self._points) > 1 else 0
        if self._points and steps - self._points[-1].steps < apart:
            return
        self._points.append(CurvePoint(steps=steps, mean_return=round(mean_return, 3)))
        if len(self._points) == CURVE_POINTS:
            self._points = self._points[::2]

    @property
    def points(self) -> list[CurvePoint]:
        """Oldest first."""
        return list(self._points)
