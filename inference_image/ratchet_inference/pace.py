"""How long a turn of questions will take, learned from those before it. Pure.

A stall of the process (another one has its core, a policy is loaded beside it) says nothing of what questions
cost, and nearly always makes one turn slow and the next one large. So a cost counts only as far as two turns
in a row show it, and a turn counts by its size; a server that is slow has large turns, and is found out soon.
"""

# A turn of so many units moves the estimate half the way to what it cost.
HALF = 100


class Pace:
    """What a turn costs at all, and what each further unit adds; starts with nothing."""

    def __init__(self) -> None:
        self._first = self._last_first = 0.0
        self._unit = self._last_unit = 0.0

    def seconds(self, units: int) -> float:
        """That a turn of so many units will take."""
        return self._first + units * self._unit

    def measured(self, units: int, seconds: float) -> None:
        """Learns from a turn: its own kind of cost, and that the other one is no more than the whole."""
        if units == 1:
            self._first += 0.1 * (min(seconds, self._last_first) - self._first)
            self._last_first = seconds
            self._unit, self._last_unit = min(self._unit, seconds), min(self._last_unit, seconds)
        else:
            self._first, self._last_first = min(self._first, seconds), min(self._last_first, seconds)
            each = (seconds - self._first) / (units - 1)
            self._unit += units / (units + HALF) * (min(each, self._last_unit) - self._unit)
            self._last_unit = each
