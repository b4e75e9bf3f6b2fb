"""The codec of fragments: a JSON header and safetensors columns, checked to the last bit. Never pickle.

Columns and header fields are listed in docs/data-plane.md.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ratchet.experience.errors import CorruptFragment

SCHEMA = 1

Kind = Literal["rollout", "evaluation"]
Column = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Header:
    """Where a fragment comes from and what it holds.

    Attributes:
        worker: ``<pool>/<pod>``.
        incarnation: random per start of the worker's process.
        sequence: from 1, per incarnation.
        ticket: id of the ticket it answers.
        version: of the policy that acted.
        n: agent steps, the sum of `valid`; 0 for an evaluation, which never counts as training.
        seconds: spent producing.
        waited: seconds spent waiting for a ticket before.

    """

    kind: Kind
    worker: str
    incarnation: str
    sequence: int
    ticket: int
    version: int
    n: int
    seconds: float
    waited: float
    schema: int = SCHEMA

    @property
    def pool(self) -> str:
        """Name of the worker's pool."""
        return self.worker.rpartition("/")[0]


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """One worker's answer to one ticket."""

    header: Header
    columns: dict[str, Column]


# Columns and their dtypes; None: the dtype of the environment's space.
ROLLOUT_COLUMNS: Mapping[str, str | None] = {
    "observation": None,
    "action": None,
    "log_probability": "float32",
    "reward": "float32",
    "terminated": "bool",
    "truncated": "bool",
    "valid": "bool",
    "final_observation": None,
    "last_observation": None,
    "episode_return": "float32",
    "episode_length": "int32",
}
EVALUATION_COLUMNS: Mapping[str, str | None] = {"episode_return": "float32", "episode_length": "int32"}
# Of an evaluation whose ticket asks for them; an older worker does not know of that.
ACTION_COLUMNS: Mapping[str, str | None] = {"action_sum": "float64", "action_squares": "float64"}
_COLUMNS: Mapping[Kind, Mapping[str, str | None]] = {
    "rollout": ROLLOUT_COLUMNS,
    "evaluation": EVALUATION_COLUMNS,
}

_TYPES: dict[str, type] = {
    **dict.fromkeys(("kind", "worker", "incarnation"), str),
    **dict.fromkeys(("sequence", "ticket", "version", "n", "schema"), int),
    **dict.fromkeys(("seconds", "waited"), float),
}


def encode(fragment: Fragment) -> dict[bytes, bytes]:
    """The fields of a stream entry.

    Raises:
        CorruptFragment: the fragment contradicts itself; it would be refused on arrival.

    """
    _check_header(fragment.header)
    _check_columns(fragment.header, fragment.columns)
    # safetensors reads memory as it lies, so a view with strides has to be laid out first.
    body = save({name: np.ascontiguousarray(column) for name, column in fragment.columns.items()})
    values = asdict(fragment.header)
    return {b"h": _json({**values, "crc": _checksum(values, body)}), b"b": body}


def decode(entry: Mapping[bytes, bytes]) -> Fragment:
    """The fragment of a stream entry. Its arrays are read-only views of the entry.

    Raises:
        CorruptFragment: there is any damage.

    """
    if set(entry) != {b"h", b"b"}:
        raise CorruptFragment("an entry has exactly the fields h and b")
    header, crc = _read_header(entry[b"h"])
    body = entry[b"b"]
    if crc != _checksum(asdict(header), body):
        raise CorruptFragment("checksum does not match")
    try:
        columns = load(body)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError):
        raise CorruptFragment("columns are not safetensors of known dtypes") from None
    _check_columns(header, columns)
    return Fragment(header, columns)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _checksum(header: dict[str, Any], body: bytes) -> int:
    """CRC-32 of the columns and then of the header without `crc`: `version` and `n` need cover as well."""
    return zlib.crc32(_json(header), zlib.crc32(body))


def _read_header(text: bytes) -> tuple[Header, int]:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        parsed: Any = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise CorruptFragment("header is not JSON") from None
    if not isinstance(parsed, dict) or set(cast("dict[str, Any]", parsed)) != {*_TYPES, "crc"}:
        raise CorruptFragment("header has other fields than expected")
    values = cast("dict[str, Any]", parsed)
    crc = values.pop("crc")
    if type(crc) is not int:
        raise CorruptFragment("header field crc is not a number")
    header = Header(**values)
    _check_header(header)
    return header, crc


def _check_header(header: Header) -> None:
    for name, wanted in _TYPES.items():
        value = getattr(header, name)
        # bool is an int in Python, and is none here.
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise CorruptFragment(f"header field {name} is not of type {wanted.__name__}")
        if wanted is str and not value:
            raise CorruptFragment(f"header field {name} is empty")
        if wanted is not str and (not math.isfinite(value) or value < 0):
            raise CorruptFragment(f"header field {name} is negative or not finite")
    if header.schema != SCHEMA:
        raise CorruptFragment(f"schema {header.schema} instead of {SCHEMA}: trainer and worker differ")
    if header.kind not in _COLUMNS:
        raise CorruptFragment("header field kind is unknown")
    if header.sequence < 1:
        raise CorruptFragment("header field sequence starts at 1")


def _check_columns(header: Header, columns: Mapping[str, Column]) -> None:
    wanted = _COLUMNS[header.kind]
    if header.kind == "evaluation" and not columns.keys().isdisjoint(ACTION_COLUMNS):
        wanted = {**wanted, **ACTION_COLUMNS}
    if columns.keys() != wanted.keys():
        missing, extra = sorted(wanted.keys() - columns.keys()), sorted(columns.keys() - wanted.keys())
        raise CorruptFragment(f"columns missing: {missing}, not expected: {extra}")
    for name, dtype in wanted.items():
        if dtype is not None and columns[name].dtype != dtype:
            raise CorruptFragment(f"column {name} is {columns[name].dtype} instead of {dtype}")
    episodes = columns["episode_return"].shape
    if len(episodes) != 1 or columns["episode_length"].shape != episodes:
        raise CorruptFragment("episode_return and episode_length must be (E,)")
    if header.kind == "rollout":
        _check_rollout(header, columns)
        return
    if header.n != 0:
        raise CorruptFragment("an evaluation counts no training steps")
    for name in ACTION_COLUMNS.keys() & columns.keys():
        if columns[name].ndim != 2 or len(columns[name]) != episodes[0]:
            raise CorruptFragment(f"column {name} must be (E, outputs)")


def _check_rollout(header: Header, columns: Mapping[str, Column]) -> None:
    valid, observation = columns["valid"], columns["observation"]
    if valid.ndim != 2:
        raise CorruptFragment("column valid must be (T, N)")
    for name in ("log_probability", "reward", "terminated", "truncated"):
        if columns[name].shape != valid.shape:
            raise CorruptFragment(f"column {name} must be (T, N) like valid")
    for name in ("observation", "action"):
        if columns[name].shape[:2] != valid.shape:
            raise CorruptFragment(f"column {name} must begin with (T, N)")
    if int(np.count_nonzero(valid)) != header.n:
        raise CorruptFragment("n is not the sum of valid")
    if np.any((columns["terminated"] | columns["truncated"]) & ~valid):
        raise CorruptFragment("an episode ends in a step that is not valid")
    truncated = int(np.count_nonzero(columns["truncated"]))
    for name, count in (("final_observation", truncated), ("last_observation", valid.shape[1])):
        if columns[name].shape != (count, *observation.shape[2:]):
            raise CorruptFragment(f"column {name} must be ({count}, …) with the shape of an observation")
        if columns[name].dtype != observation.dtype:
            raise CorruptFragment(f"column {name} must have the dtype of observation")
