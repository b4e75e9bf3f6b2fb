"""When to stop asking a server that fails, and when to try again. Pure: the time is an argument."""

from typing import Literal

State = Literal["Closed", "Open", "HalfOpen"]


class Breaker:
    """Opens when the last few answers failed, or half of more; after each pause one copy may try the server.

    Nobody waits for a copy, so a try costs no client anything, and what it finds is evidence against the
    server while clients are kept from it. The first copy that is answered well closes it.

    A server that answers one in twenty wrongly has three in a row once in eight thousand answers, and is left
    alone for a moment then; one that answers nothing else is known after three.

    Args:
        window: answers of which half must have failed.
        in_a_row: failures, one after the other, that are enough.
        pause: seconds between two tries.

    """

    def __init__(self, window: int = 20, in_a_row: int = 3, pause: float = 0.5) -> None:
        self._window = window
        self._in_a_row = in_a_row
        self._failures: list[bool] = []
        self._pause = pause
        self._until = 0.0
        self.state: State = "Closed"

    @property
    def allows(self) -> bool:
        """Whether to ask for somebody who waits. Whoever asks must say how it went."""
        return self.state == "Closed"

    def hold(self, until: float) -> None:
        """Keeps everybody from a server that nobody has reached yet: tries too, until then."""
        self.state = "Open"
        self._until = until

    def is_due(self, now: float) -> bool:
        """Whether a try is."""
        return self.state != "Closed" and now >= self._until

    def tries(self, now: float) -> bool:
        """Takes the try that is due, if one is. Whoever takes it must ask, and say how it went."""
        if not self.is_due(now):
            return False
        # One at a time; should its answer be lost, the next pause allows another.
        self.state = "HalfOpen"
        self._until = now + self._pause
        return True

    def succeeded(self) -> None:
        """It answered, or was reached for the first time."""
        if self.state != "Closed":
            self.state = "Closed"
            self._failures.clear()
        self._note(False)

    def failed(self, now: float) -> None:
        """It did not, or not in time, or with rubbish."""
        if self.state == "Open":
            return
        self._note(True)
        is_enough = 2 * sum(self._failures) >= self._window or self._has_none_but_failures()
        if self.state == "HalfOpen" or is_enough:
            self._open(now)

    def _has_none_but_failures(self) -> bool:
        last = self._failures[-self._in_a_row :]
        return len(last) == self._in_a_row and all(last)

    def _open(self, now: float) -> None:
        self.state = "Open"
        self._until = now + self._pause
        self._failures.clear()

    def _note(self, failure: bool) -> None:
        self._failures.append(failure)
        if len(self._failures) > self._window:
            del self._failures[0]
