"""When to stop asking a server that fails, and when to try again. Pure: the time is an argument."""

from typing import Literal

State = Literal["Closed", "Open", "HalfOpen"]


class Breaker:
    """Opens when the last few answers failed, or half of more; tries one after a pause, longer each time.

    A server that answers one in twenty wrongly has five in a row once in three million answers; one that
    answers nothing else is known after five.

    Args:
        window: answers of which half must have failed.
        in_a_row: failures, one after the other, that are enough.
        first_pause: seconds; doubled each time a try fails.
        longest_pause: seconds.

    """

    def __init__(
        self, window: int = 20, in_a_row: int = 5, first_pause: float = 0.5, longest_pause: float = 30.0
    ) -> None:
        self._window = window
        self._in_a_row = in_a_row
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._failures: list[bool] = []
        self._pause = first_pause
        self._until = 0.0
        self.state: State = "Closed"

    def allows(self, now: float) -> bool:
        """Whether to ask now. Whoever is allowed must say how it went."""
        if self.state == "Closed":
            return True
        if now < self._until:
            return False
        # One at a time; should its answer be lost, the next pause allows another.
        self.state = "HalfOpen"
        self._until = now + self._pause
        return True

    def succeeded(self) -> None:
        """It answered."""
        if self.state != "Closed":
            self.state = "Closed"
            self._failures.clear()
            self._pause = self._first_pause
        self._note(False)

    def failed(self, now: float) -> None:
        """It did not, or not in time, or with rubbish."""
        if self.state == "Open":
            return
        self._note(True)
        if self.state == "HalfOpen":
            self._pause = min(2 * self._pause, self._longest_pause)
            self._open(now)
        elif 2 * sum(self._failures) >= self._window or self._has_none_but_failures():
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
