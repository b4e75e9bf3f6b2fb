"""Decisions joined with their rewards, for offline training and off-policy evaluation.

The same decision may be logged twice (a client tried again) and its reward several times, by several servers.
Here is decided which of them count, and once for all servers: what each of them could not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from ratchet.decisions.schema import DECISIONS, REWARDS, VERSION, VERSION_KEY
from ratchet.decisions.sources import Source

pa: Any = pyarrow  # publishes no types
pc: Any = pyarrow.compute
parquet: Any = pyarrow.parquet

Column = NDArray[Any]


class UnreadableLog(ValueError):  # noqa: N818 - names what was found
    """A file is no decision log, or of a newer version."""


@dataclass(frozen=True, slots=True)
class Joining:
    """Which rewards count.

    Attributes:
        window: seconds from a decision, or from an episode's last one, to a reward in time.
        late: what to do with a reward that came later.
        default: reward of a decision without one, and return of an episode without one; None leaves them NaN.

    """

    window: float = 60.0
    late: Literal["drop", "keep"] = "drop"
    default: float | None = None


@dataclass(frozen=True, slots=True)
class LoggedDecisions:
    """N decisions as columns, by time, with what became of them.

    Attributes:
        columns: by the names of docs/decision-log.md, each (N,); `observation`, `mask` and `action` are
            (N, …) where all rows have one length, else (N,) of arrays. `time` is datetime64[us] in UTC.
            Beside those: `reward`, `reward_default`, `reward_late`; `episode_return` and `episode_length`;
            `episode_complete`: every step from the first is there, and as many as the client said. A number
            that nobody knows is NaN.
        repeated: decisions, of whatever policy and arm, left out because the client asked again under the
            same id; the last answer counts.
        unmatched: rewards of decisions and episodes that are not here.

    """

    columns: dict[str, Column]
    repeated: int
    unmatched: int

    def __len__(self) -> int:
        return len(self.columns["id"])

    def episodes(self) -> Iterator[dict[str, Column]]:
        """The columns of each episode in the order of its steps, complete or not."""
        names = self.columns["episode"]
        named = np.flatnonzero(names != None)  # noqa: E711 - element by element
        if not len(named):
            return
        codes = np.unique(names[named].astype(str), return_inverse=True)[1]
        steps = np.nan_to_num(self.columns["t"][named], nan=np.inf)
        order = np.lexsort((self.columns["time"][named], steps, codes))
        for rows in np.split(named[order], np.flatnonzero(np.diff(codes[order])) + 1):
            yield {name: column[rows] for name, column in self.columns.items()}


def read(
    source: Source,
    *,
    since: date | None = None,
    until: date | None = None,
    digest: str | None = None,
    arm: str | None = None,
    joining: Joining = Joining(),
) -> LoggedDecisions:
    """Reads a decision log into memory.

    Args:
        source: where it lies.
        since: first day, in UTC.
        until: last day, in UTC; rewards of the day after are looked at as well.
        digest: of the only policy to read.
        arm: the only one to read.
        joining: which rewards count.

    Raises:
        UnreadableLog: a file is no decision log, or of a newer version of Ratchet.

    """
    decisions = _table(source, "decisions", DECISIONS, since, until).sort_by("time")
    rewards = _table(source, "rewards", REWARDS, since, until and until + timedelta(days=1))

    # Another policy or arm may have answered when the client asked again, so this comes before any choice.
    first_seen = decisions.num_rows
    decisions = decisions.take(_last_of_each(decisions["id"]))
    repeated = first_seen - decisions.num_rows
    if digest is not None:
        decisions = decisions.filter(pc.equal(decisions["digest"], digest))
    if arm is not None:
        decisions = decisions.filter(pc.equal(decisions["arm"], arm))
    rewards = rewards.sort_by("time")

    columns = {name: _numpy(decisions[name]) for name in DECISIONS.names}
    episodes = decisions["episode"].combine_chunks().dictionary_encode()
    codes = np.asarray(episodes.indices.fill_null(-1))
    of_decision, matched_decisions = _join(decisions["id"], columns["time"], rewards, "id", joining)
    latest = _latest(codes, columns["time"], len(episodes.dictionary))
    of_episode, matched_episodes = _join(episodes.dictionary, latest, rewards, "episode", joining)
    columns["reward"] = of_decision["reward"]
    columns["reward_default"] = of_decision["default"]
    columns["reward_late"] = of_decision["late"]
    # A row more, for decisions without an episode: their code is -1.
    columns["episode_return"] = np.append(of_episode["reward"], np.nan)[codes]
    columns["episode_length"] = np.append(of_episode["length"], np.nan)[codes]
    columns["episode_complete"] = _complete(codes, columns["t"], columns["episode_length"])
    return LoggedDecisions(
        columns,
        repeated=repeated,
        unmatched=rewards.num_rows - matched_decisions - matched_episodes,
    )


def _table(source: Source, kind: str, schema: Any, since: date | None, until: date | None) -> Any:
    tables: list[Any] = []
    for key in source.keys(kind):
        day = key.partition("/date=")[2][:10]
        if (since and day < since.isoformat()) or (until and day > until.isoformat()):
            continue
        try:
            table = parquet.read_table(BytesIO(source.read(key)))
            metadata: dict[bytes, bytes] = table.schema.metadata or {}
            version = int(metadata[VERSION_KEY.encode()])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise UnreadableLog(f"{key} is no file of a decision log") from error
        if version > VERSION:
            raise UnreadableLog(f"{key} has version {version}, this Ratchet reads up to {VERSION}: update it")
        tables.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _last_of_each(names: Any) -> Column:
    """Numbers of the rows that hold the last occurrence of their name, ascending."""
    encoded = names.combine_chunks().dictionary_encode()
    last = np.zeros(len(encoded.dictionary), np.int64)
    last[np.asarray(encoded.indices)] = np.arange(len(encoded))
    return np.sort(last)


def _join(
    names: Any, times: Column, rewards: Any, by: str, joining: Joining
) -> tuple[dict[str, Column], int]:
    """For each name, seen last at its time: reward, length, default, late; and how many rewards matched.

    Of several rewards the first one counts, and what somebody sent before a server's default; what came too
    late and is dropped leaves that in force.
    """
    rewards = rewards.filter(pc.is_valid(rewards[by]))
    reward = np.full(len(times), np.nan)
    length = np.full(len(times), np.nan)
    default = np.zeros(len(times), bool)
    late = np.zeros(len(times), bool)
    for by_default in (True, False):
        some = rewards.filter(pc.equal(rewards["default"], by_default))
        index = pc.index_in(names, value_set=some[by])
        found = np.flatnonzero(np.asarray(pc.is_valid(index)))
        row = np.asarray(pc.fill_null(index, 0))[found]
        if not by_default:
            waited = (_numpy(some["time"])[row] - times[found]) / np.timedelta64(1, "s")
            late[found] = waited > joining.window
            if joining.late == "drop":
                found, row = found[~late[found]], row[~late[found]]
        reward[found] = np.asarray(some["reward"])[row]
        length[found] = _numpy(some["length"])[row]
        default[found] = by_default
    if joining.default is not None:
        missing = np.isnan(reward)
        reward[missing] = joining.default
        default[missing] = True
    matched = int(np.count_nonzero(np.asarray(pc.is_in(rewards[by], value_set=names))))
    return {"reward": reward, "length": length, "default": default, "late": late}, matched


def _latest(codes: Column, times: Column, count: int) -> Column:
    latest = np.zeros(count, "datetime64[us]")
    known = codes >= 0
    np.maximum.at(latest, codes[known], times[known])
    return latest


def _complete(codes: Column, steps: Column, lengths: Column) -> Column:
    """(N,): whether each decision's episode is whole; never where steps are not counted."""
    complete = np.zeros(len(codes), bool)
    known = np.flatnonzero((codes >= 0) & ~np.isnan(steps))
    if len(known):
        of, t = codes[known], steps[known].astype(np.int64)
        count = np.bincount(of)
        # As many different steps as the last one's number says.
        pairs = np.unique(np.stack([of, t]), axis=1)
        different = np.bincount(pairs[0], minlength=len(count))
        last = np.full(len(count), -1)
        np.maximum.at(last, of, t)
        whole = (different == last + 1) & (count == different)
        complete[known] = whole[of] & (np.isnan(lengths[known]) | (lengths[known] == count[of]))
    return complete


def _numpy(column: Any) -> Column:
    """A column as an array: NaN for a missing number, None for other things that are missing."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return np.asarray(column.cast(pa.int64())).astype("datetime64[us]")
    if not pa.types.is_list(kind):
        return column.to_numpy()
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.unique(np.asarray(pc.list_value_length(flat).drop_null()))
    if flat.null_count == 0 and len(lengths) == 1:
        return np.asarray(flat.flatten()).reshape(len(flat), int(lengths[0]))
    rows = np.empty(len(flat), object)
    for i, row in enumerate(flat):
        rows[i] = np.asarray(row.values) if row.is_valid else None
    return rows
