"""Finished files from a bounded spool on disk to S3, oldest first, however long S3 is gone."""

import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
from botocore.exceptions import BotoCoreError, ClientError

from ratchet.api.v1alpha1.training import S3
from ratchet.checkpoints import StorageDenied, connect

parquet: Any = pyarrow.parquet  # publishes no types

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


class Uploader:
    """Moves what lies in a spool to a bucket, in a thread of its own.

    What an earlier process left in the spool is uploaded too. Two servers may share one: a file that both
    upload is the same bytes at the same key.

    Args:
        spool: folder of finished files; their paths in it are their keys.
        s3: where they go.
        limit: bytes that may lie in the spool; beyond it the oldest files are given up.
        make_client: of boto3; called again after it failed.

    """

    def __init__(self, spool: Path, s3: S3, limit: int, make_client: Callable[[S3], Any] = connect) -> None:
        self._spool = spool
        self._s3 = s3
        self._limit = limit
        self._make_client = make_client
        self._client: Any = None
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="decision-upload", daemon=True)
        self.uploaded = 0
        self.failures = 0
        self.lost_rows = 0
        self.spooled_bytes = 0

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Tries everything once more, and ends; waits at most so long. What is left stays in the spool."""
        self._finishing.set()
        self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            finishing = self._finishing.is_set()
            if self._move():
                pause = FIRST_PAUSE
                wait = LOOK_SECONDS
            else:
                wait = pause * random.uniform(0.5, 1.0)
                pause = min(2 * pause, LONGEST_PAUSE)
            if finishing:
                return
            self._finishing.wait(wait)

    def _move(self) -> bool:
        """Uploads what is there; false once one file failed, after keeping the spool within its limit."""
        files = self._files()
        size = sum(bytes_ for _, bytes_ in files)
        while files and size > self._limit:
            path, bytes_ = files.pop(0)
            size -= bytes_
            self._give_up(path)
        self.spooled_bytes = size
        for path, bytes_ in files:
            key = "/".join(
                (*filter(None, [self._s3.prefix.strip("/")]), *path.relative_to(self._spool).parts)
            )
            try:
                self._client = self._client or self._make_client(self._s3)
                with path.open("rb") as content:
                    self._client.put_object(Bucket=self._s3.bucket, Key=key, Body=content)
                path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # Another server with the same spool was quicker.
            except (BotoCoreError, ClientError, StorageDenied, OSError) as error:
                self.failures += 1
                if not isinstance(error, ClientError):
                    self._client = None
                log.warning("decisions wait on disk, for they could not be uploaded: %s", error)
                return False
            self.uploaded += 1
            self.spooled_bytes -= bytes_
        return True

    def _files(self) -> list[tuple[Path, int]]:
        """Finished files and their bytes, oldest first."""
        found: list[tuple[float, Path, int]] = []
        for folder, _, names in os.walk(self._spool):
            for name in names:
                path = Path(folder, name)
                if path.suffix == ".parquet":
                    with contextlib.suppress(FileNotFoundError):
                        status = path.stat()
                        found.append((status.st_mtime, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def _give_up(self, path: Path) -> None:
        try:
            rows = parquet.read_metadata(path).num_rows
        except (OSError, ValueError):
            rows = 0  # It was no file of ours, or is gone.
        with contextlib.suppress(OSError):
            path.unlink()
            self.lost_rows += rows
            log.error("the spool is full: %d rows of %s are lost", rows, path.name)
