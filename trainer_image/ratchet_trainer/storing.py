"""When the learner stores a checkpoint, and for how long it waits until storage has it."""

import logging
import threading
from collections.abc import Callable

from ratchet_trainer.board import Board
from ratchet_trainer.saving import Saver, Snapshot, Why

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 20.0  # of the 30 that Kubernetes grants a trainer
LOOK_EVERY_SECONDS = 0.1
STORE_AGAIN_SECONDS, STORE_AGAIN_AT_MOST_SECONDS = 1.0, 5.0


class Storing:
    """The checkpoints of one trainer, on the learner's thread.

    Args:
        saver: stores one at a time, on a thread of its own.
        board: is told that the learner lives, while it waits.
        stop: set when this process must end.
        clock: seconds.
        every: seconds between two checkpoints that nothing else asks for.
        snapshot: makes one of what is here now.
        steps: at the start.

    """

    def __init__(
        self,
        saver: Saver,
        board: Board,
        stop: threading.Event,
        clock: Callable[[], float],
        every: float,
        snapshot: Callable[[Why], Snapshot],
        steps: int,
    ) -> None:
        self._saver = saver
        self._board = board
        self._stop = stop
        self._clock = clock
        self._every = every
        self._snapshot = snapshot
        self._at = clock()
        self._steps = steps
        self._best: Snapshot | None = None
        self._end_by: float | None = None

    def is_best(self) -> None:
        """Keeps what is here now, although storage may be busy until after the next updates."""
        self._best = self._snapshot("best")

    def what_is_due(self, steps: int) -> None:
        """Never waits: training goes on whether storage answers or not. What it did not take is tried again
        after a pause, the best as it was judged.
        """
        passed = self._clock() - self._at
        failed = self._saver.unsaved is not None
        if self._saver.busy or (failed and passed < STORE_AGAIN_AT_MOST_SECONDS):
            return
        best = self._take_best()
        if best is not None:
            self._save(best)
        elif failed or (passed >= self._every and steps != self._steps):
            self._save(self._snapshot("interval"))

    def before_the_end(self, steps: int, version: int) -> None:
        """What has been learned since the last checkpoint goes into another, before this process ends."""
        if not self.wait():
            return
        if self._best is not None or steps > self._steps or self._saver.complaint:
            self.everything("shutdown", version)

    def final(self, version: int, show: Callable[[], None]) -> bool:
        """Stores the last checkpoint, however often it takes; False if this process must end before.

        Args:
            version: of the policy now.
            show: called before each pause.

        """
        pause = STORE_AGAIN_SECONDS
        while not self.everything("final", version) or self._saver.complaint:
            show()
            if self._stop.wait(pause):
                log.warning("ends as asked, without the final checkpoint")
                return False
            pause = min(2 * pause, STORE_AGAIN_AT_MOST_SECONDS)
            log.warning("the final checkpoint is tried again")
        return True

    def everything(self, why: Why, version: int) -> bool:
        """Stores the best, if it is due, and then what is here now; False as `wait`."""
        if not self.wait():
            return False
        best = self._take_best()
        if best is not None and best.version != version:
            self._save(best)
            if not self.wait():
                return False
        self._save(self._snapshot(why))
        return self.wait()

    def wait(self) -> bool:
        """Waits until nothing is in flight; False if that was given up because this process must end."""
        while self._saver.busy:
            self._saver.wait(LOOK_EVERY_SECONDS)
            self._board.beat()
            if not self._stop.is_set():
                continue
            if self._end_by is None:
                self._end_by = self._clock() + LAST_WORDS_SECONDS
            if self._saver.busy and self._clock() >= self._end_by:
                log.warning(
                    "a checkpoint in flight was given up: storage does not answer",
                    extra={"fields": {"seconds": LAST_WORDS_SECONDS}},
                )
                return False
        self._saver.check()
        return True

    def _take_best(self) -> Snapshot | None:
        """The best that is to be stored: the newest, else the one that storage did not take."""
        best, self._best = self._best, None
        lost = self._saver.unsaved
        return best or (lost if lost is not None and lost.why == "best" else None)

    def _save(self, snapshot: Snapshot) -> None:
        self._saver.begin(snapshot)
        self._at, self._steps = self._clock(), snapshot.steps
