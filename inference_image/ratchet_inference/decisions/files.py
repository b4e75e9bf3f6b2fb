"""Rows to Parquet files in a folder: one open file for each day and policy, and when it ends.

A file is written as `.<name>.part` and renamed once whole, so whoever lists the folder sees readable files.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet

from ratchet.decisions.records import Decision, Reward
from ratchet.decisions.schema import (
    DECISIONS,
    REWARDS,
    VERSION,
    VERSION_KEY,
    decision_batch,
    partition,
    reward_batch,
)

parquet: Any = pyarrow.parquet  # publishes no types
# What pyarrow raises for a row that its column cannot hold; its own errors derive from these.
UNFIT = (ValueError, TypeError, OverflowError, NotImplementedError)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rolling:
    """When rows become a row group, and when a file ends.

    Attributes:
        group_rows: rows of a full row group.
        group_bytes: of a full row group before compression, where observations are large.
        file_bytes: a file at least this large ends.
        file_seconds: a file this old ends, so this is also how old the newest readable decision may be.
        open_files: at most this many are open; the oldest ends for a new one.

    """

    group_rows: int = 16_384
    group_bytes: int = 16 << 20
    file_bytes: int = 64 << 20
    file_seconds: float = 60.0
    open_files: int = 16


class Files:
    """The open files below a folder; belongs to one thread.

    Attributes:
        finished: files that are whole.
        rows: in them.
        unfit: rows left out, for their columns cannot hold them.
        row_bytes: of the newest batch.

    Args:
        folder: made when first needed.
        name: of this server and start, unique: file names begin with it.
        rolling: when files end.

    Every method but `abandon` raises OSError when the disk does not take what is written.

    """

    def __init__(self, folder: Path, name: str, rolling: Rolling) -> None:
        self._folder = folder
        self._name = name
        self._rolling = rolling
        self._numbers = count(1)
        self._open: dict[Path, _File] = {}
        self.finished = 0
        self.rows = 0
        self.unfit = 0
        self.row_bytes = 1

    def add_decisions(self, rows: Sequence[Decision], now: float) -> None:
        """Takes decisions, which may be of several days and policies."""
        groups: dict[tuple[int, str], list[Decision]] = {}
        for row in rows:
            groups.setdefault((int(row.time // 86_400), row.digest), []).append(row)
        for (day, digest), group in groups.items():
            self._add(partition("decisions", _date(day), digest), DECISIONS, decision_batch, group, now)

    def add_rewards(self, rows: Sequence[Reward], now: float) -> None:
        """Takes rewards, which may be of several days."""
        groups: dict[int, list[Reward]] = {}
        for row in rows:
            groups.setdefault(int(row.time // 86_400), []).append(row)
        for day, group in groups.items():
            self._add(partition("rewards", _date(day)), REWARDS, reward_batch, group, now)

    def finish_old(self, now: float) -> None:
        """Ends the files that are old."""
        for key, file in list(self._open.items()):
            if now - file.begun >= self._rolling.file_seconds:
                self._finish(key)

    def finish_all(self) -> None:
        """Ends every file."""
        for key in list(self._open):
            self._finish(key)

    def abandon(self) -> None:
        """Gives up the open files, whose disk takes no more."""
        for file in self._open.values():
            with contextlib.suppress(OSError, *UNFIT):
                file.writer.close()
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
        self._open.clear()

    def _add(self, key: Path, schema: Any, encode: Any, rows: Sequence[Any], now: float) -> None:
        batches = _encode(encode, rows)
        self.unfit += len(rows) - sum(batch.num_rows for batch in batches)
        if not batches:
            return
        file = self._open.get(key)
        if file is None:
            if len(self._open) >= self._rolling.open_files:
                self._finish(min(self._open, key=lambda one: self._open[one].begun))
            file = self._open[key] = _File(self._folder / key, self._next(now), schema, now)
        for batch in batches:
            file.pending.append(batch)
            file.pending_rows += batch.num_rows
            file.pending_bytes += batch.nbytes
            file.rows += batch.num_rows
            self.row_bytes = max(1, batch.nbytes // batch.num_rows)
        rolling = self._rolling
        if file.pending_rows >= rolling.group_rows or file.pending_bytes >= rolling.group_bytes:
            file.write_group()
            if file.path.stat().st_size >= rolling.file_bytes:
                self._finish(key)

    def _next(self, now: float) -> str:
        began = datetime.fromtimestamp(now, UTC).strftime("%H%M%S")
        return f"{self._name}-{began}-{next(self._numbers):06d}.parquet"

    def _finish(self, key: Path) -> None:
        file = self._open[key]
        file.write_group()
        file.writer.close()
        file.path.rename(file.path.with_name(file.name))
        del self._open[key]
        self.finished += 1
        self.rows += file.rows


class _File:
    """One file that is being written."""

    def __init__(self, folder: Path, name: str, schema: Any, now: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.path = folder / f".{name}.part"
        self.begun = now
        self.rows = self.pending_rows = self.pending_bytes = 0
        self.pending: list[Any] = []
        self.writer = parquet.ParquetWriter(
            self.path,
            schema.with_metadata({VERSION_KEY: str(VERSION)}),
            compression="zstd",
            write_statistics=["time", "digest", "arm"],
        )

    def write_group(self) -> None:
        """Compresses what waits; pyarrow lets other threads run meanwhile."""
        if self.pending:
            schema = self.pending[0].schema
            table = pyarrow.Table.from_batches(self.pending, schema)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            self.writer.write_table(table, row_group_size=self.pending_rows)
            self.pending, self.pending_rows, self.pending_bytes = [], 0, 0


def _encode(encode: Any, rows: Sequence[Any]) -> list[Any]:
    """Batches of the rows that can be encoded; when one of them cannot, each is tried alone."""
    try:
        return [encode(rows)]
    except UNFIT as error:
        if len(rows) == 1:
            log.warning("a row does not fit the decision log and is left out: %s", error)
            return []
        half = len(rows) // 2
        return _encode(encode, rows[:half]) + _encode(encode, rows[half:])


def _date(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")


def clear_parts(folder: Path, older_than: float, now: float) -> None:
    """Removes what servers that were killed left half written."""
    for part in folder.rglob(".*.parquet.part"):
        with contextlib.suppress(OSError):
            if now - part.stat().st_mtime > older_than:
                os.unlink(part)
