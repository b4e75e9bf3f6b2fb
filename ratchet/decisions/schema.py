"""Decisions and rewards as columns: the Parquet schema of docs/decision-log.md, and tuples to Arrow.

Fields are only ever added; a change that readers must know of raises the version in the file's metadata.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from ratchet.decisions.records import Decision, Numbers, Reward

pa: Any = pyarrow  # publishes no types

VERSION = 1
VERSION_KEY = "ratchet.schema"

_TIME = pa.timestamp("us", "UTC")
DECISIONS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("episode", pa.string()),
        pa.field("t", pa.int32()),
        pa.field("observation", pa.list_(pa.float32()), nullable=False),
        pa.field("mask", pa.list_(pa.bool_())),
        pa.field("action", pa.list_(pa.float64()), nullable=False),
        pa.field("log_probability", pa.float64(), nullable=False),
        pa.field("fallback", pa.string()),
    ]
)
REWARDS = pa.schema(
    [
        pa.field("time", _TIME, nullable=False),
        pa.field("id", pa.string()),
        pa.field("episode", pa.string()),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("length", pa.int32()),
        pa.field("default", pa.bool_(), nullable=False),
        pa.field("late", pa.bool_()),
    ]
)


def partition(kind: str, date: str, digest: str | None = None) -> Path:
    """Folder of one day's rows, and of one policy's where they have one."""
    folder = Path(kind) / f"date={date}"
    if digest is None:
        return folder
    word = "".join(c for c in digest.removeprefix("sha256:") if c.isalnum())[:16]
    return folder / f"policy={word or 'none'}"


def decision_batch(rows: Sequence[Decision]) -> Any:
    """A RecordBatch of `DECISIONS`.

    Raises:
        ValueError, TypeError, OverflowError: a row holds what its column cannot.

    """
    id_, time, digest, arm, episode, t, observation, mask, action, log_probability, fallback = zip(
        *rows, strict=True
    )
    columns = [
        pa.array(id_, pa.string()),
        _times(time),
        pa.array(digest, pa.string()),
        pa.array(arm, pa.string()),
        pa.array(episode, pa.string()),
        pa.array(t, pa.int32()),
        _lists(observation, np.float32),
        _lists(mask, np.bool_),
        _lists(action, np.float64),
        pa.array(np.array(log_probability, np.float64)),
        pa.array(fallback, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=DECISIONS)


def reward_batch(rows: Sequence[Reward]) -> Any:
    """A RecordBatch of `REWARDS`; raises as `decision_batch`."""
    time, id_, episode, reward, length, default, late = zip(*rows, strict=True)
    columns = [
        _times(time),
        pa.array(id_, pa.string()),
        pa.array(episode, pa.string()),
        pa.array(np.array(reward, np.float64)),
        pa.array(length, pa.int32()),
        pa.array(default, pa.bool_()),
        pa.array(late, pa.bool_()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=REWARDS)


def _times(seconds: Sequence[float]) -> Any:
    return pa.array((np.array(seconds, np.float64) * 1e6).round().astype("datetime64[us]"), _TIME)


def _lists(values: Sequence[Numbers | None], dtype: Any) -> Any:
    """(rows,) of lists, None where a row has none."""
    missing = [value is None for value in values]
    if all(missing):
        return pa.nulls(len(values), pa.list_(pa.from_numpy_dtype(dtype)))
    if not any(missing):
        try:
            # Rows of one policy have one shape: one conversion for all of them.
            block = np.asarray(values, dtype).reshape(len(values), -1)
        except ValueError:
            pass
        else:
            offsets = np.arange(len(values) + 1, dtype=np.int32) * block.shape[1]
            return pa.ListArray.from_arrays(pa.array(offsets), pa.array(block.ravel()))
    rows = [np.asarray(() if value is None else value, dtype).ravel() for value in values]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate(rows)), mask=pa.array(missing, pa.bool_())
    )
