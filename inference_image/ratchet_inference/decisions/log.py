"""The decision log: takes a row in well under a microsecond, and never makes an answer wait.

A writer thread turns rows into Parquet files in a folder. Where the log goes to S3 that folder is a spool,
which a second thread empties. Every row that does not reach a file is counted with the reason.
"""

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import connect
from ratchet.decisions.records import Decision, Reward
from ratchet_inference.decisions.files import Files, Rolling, clear_parts
from ratchet_inference.decisions.upload import Uploader

# Encoding holds the interpreter, and with it the event loop: for about 0.3 ms per chunk.
CHUNK = 128
CHUNK_BYTES = 1 << 18
PAUSE = 0.001
IDLE = 0.1
# A file half written so long after its last byte belongs to no living server.
DEAD_SECONDS = 3600.0
# A list of Python's floats takes that much more memory than its Arrow column.
OBJECT_OVERHEAD = 8

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Bounds of a decision log.

    Attributes:
        queue: decisions that wait for the writer, and as many rewards; the next ones are dropped.
        queue_bytes: fewer wait where observations are so large that they would take more than about this.
        spool_bytes: finished files that wait for S3; the oldest ones are dropped.
        rolling: when files end.

    """

    queue: int = 65_536
    queue_bytes: int = 256 << 20
    spool_bytes: int = 1 << 30
    rolling: Rolling = field(default_factory=Rolling)


@dataclass(frozen=True, slots=True)
class LogCounts:
    """What a decision log has done since it was made; decisions and rewards alike are rows.

    Attributes:
        recorded: rows offered.
        dropped: rows lost, by reason: `queue` was full, `unfit` for its column, `disk` failed, `spool` was
            full.
        written: rows in finished files.
        files: finished files.
        uploaded: files that S3 has.
        upload_failures: tries that failed.
        queued: rows that wait for the writer now.
        spooled_bytes: of files that wait for S3 now.

    """

    recorded: int
    dropped: dict[str, int]
    written: int
    files: int
    uploaded: int
    upload_failures: int
    queued: int
    spooled_bytes: int


class DecisionLog:
    """Writes decisions and rewards to a folder or to S3.

    Args:
        destination: a folder, or a bucket.
        spool: folder for finished files while S3 has not got them; needed where `destination` is S3. On a
            volume that outlives the process nothing finished is lost with it.
        settings: bounds.
        clock: Unix seconds.
        make_client: of boto3.

    """

    def __init__(
        self,
        destination: Path | S3,
        *,
        spool: Path | None = None,
        settings: LogSettings = LogSettings(),
        clock: Callable[[], float] = time.time,
        make_client: Callable[[S3], Any] = connect,
    ) -> None:
        self._settings = settings
        self._limit = settings.queue
        self._chunk = CHUNK
        self._decisions: deque[Decision] = deque()
        self._rewards: deque[Reward] = deque()
        self._recorded = self._full = self._taken = self._disk = 0
        self._clock = clock
        self._uploader: Uploader | None = None
        if isinstance(destination, Path):
            self._folder = destination
        elif spool is None:
            raise ValueError("a decision log in S3 needs a spool: a folder for what S3 has not got yet")
        else:
            self._folder = spool
            self._uploader = Uploader(spool, destination, settings.spool_bytes, make_client)
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._files = Files(self._folder, name, settings.rolling)
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="decision-log", daemon=True)

    def record(self, decision: Decision) -> None:
        """Takes a decision; never waits, never raises."""
        self._recorded += 1
        if len(self._decisions) < self._limit:
            self._decisions.append(decision)
        else:
            self._full += 1

    def record_reward(self, reward: Reward) -> None:
        """Takes a reward; never waits, never raises."""
        self._recorded += 1
        if len(self._rewards) < self._limit:
            self._rewards.append(reward)
        else:
            self._full += 1

    @property
    def counts(self) -> LogCounts:
        """What has become of the rows."""
        uploader = self._uploader
        return LogCounts(
            recorded=self._recorded,
            dropped={
                "queue": self._full,
                "unfit": self._files.unfit,
                "disk": self._disk,
                "spool": uploader.lost_rows if uploader else 0,
            },
            written=self._files.rows,
            files=self._files.finished,
            uploaded=uploader.uploaded if uploader else 0,
            upload_failures=uploader.failures if uploader else 0,
            queued=len(self._decisions) + len(self._rewards),
            spooled_bytes=uploader.spooled_bytes if uploader else 0,
        )

    def start(self) -> None:
        """Begins to write and upload."""
        clear_parts(self._folder, DEAD_SECONDS, time.time())
        self._writer.start()
        if self._uploader:
            self._uploader.start()

    async def close(self, seconds: float = 10.0) -> None:
        """Writes what is queued, ends the files and uploads them, for at most so long.

        What S3 did not take by then stays in the spool, and the next server that starts on it uploads it.
        """
        await asyncio.to_thread(self._close, time.monotonic() + seconds)

    def _close(self, deadline: float) -> None:
        self._closing.set()
        if self._writer.ident is None:
            return
        self._writer.join(max(0.0, deadline - time.monotonic()))
        if self._uploader:
            self._uploader.finish(deadline - time.monotonic())

    def _write(self) -> None:
        while True:
            closing = self._closing.is_set()
            decisions, rewards = _take(self._decisions, self._chunk), _take(self._rewards, self._chunk)
            self._taken += len(decisions) + len(rewards)
            ended = closing and not self._decisions and not self._rewards
            try:
                self._add(decisions, rewards, ended)
            except OSError as error:
                self._files.abandon()
                lost = self._taken - self._files.rows - self._files.unfit
                log.error(
                    "%d rows of the decision log are lost, for its disk failed: %s", lost - self._disk, error
                )
                self._disk = lost
            if ended:
                return
            self._fit_row_size()
            waiting = max(len(self._decisions), len(self._rewards))
            # A small chunk costs nearly as much as a full one.
            self._closing.wait(IDLE if waiting < self._chunk else PAUSE if waiting < self._limit // 2 else 0)

    def _add(self, decisions: list[Decision], rewards: list[Reward], ended: bool) -> None:
        files, now = self._files, self._clock()
        if decisions:
            files.add_decisions(decisions, now)
        if rewards:
            files.add_rewards(rewards, now)
        if ended:
            files.finish_all()
        else:
            files.finish_old(now)

    def _fit_row_size(self) -> None:
        row, settings = self._files.row_bytes, self._settings
        self._limit = min(settings.queue, max(CHUNK, settings.queue_bytes // (OBJECT_OVERHEAD * row)))
        self._chunk = max(1, min(CHUNK, CHUNK_BYTES // row))


def _take(queue: deque[T], most: int) -> list[T]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]
