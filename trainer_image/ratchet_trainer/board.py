"""Where the learner pins up how it is, for whoever asks over HTTP on another thread."""

import threading
import time

from ratchet.api.v1alpha1 import TrainerStatus

STUCK_AFTER_SECONDS = 600.0


class Board:
    """The newest status, and when the learner last gave a sign of life."""

    def __init__(self, status: TrainerStatus) -> None:
        self._lock = threading.Lock()
        self._status = status
        self._beat = self._asked = time.monotonic()

    def pin(self, status: TrainerStatus) -> None:
        """Replaces the status."""
        with self._lock:
            self._status = status
        self.beat()

    def beat(self) -> None:
        """The learner is alive."""
        self._beat = time.monotonic()

    def ask(self) -> TrainerStatus:
        """The status, for who must hear how training ended."""
        self._asked = time.monotonic()
        return self.status

    @property
    def seconds_unasked(self) -> float:
        """Since `ask` was last called."""
        return time.monotonic() - self._asked

    @property
    def status(self) -> TrainerStatus:
        """As of now."""
        with self._lock:
            return self._status

    @property
    def ready(self) -> bool:
        """The trainer has reached Redis and its checkpoints."""
        return self.status.state != "Starting"

    @property
    def alive(self) -> bool:
        """The learner's loop goes round."""
        return time.monotonic() - self._beat < STUCK_AFTER_SECONDS
