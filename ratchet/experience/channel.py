"""Both ends of the data plane of one job: `LearnerChannel` for the trainer, `WorkerChannel` for workers.

Every script that writes for a learner checks, in the same step, that no newer learner has begun. What the
keys hold is docs/data-plane.md.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, cast

from redis import Redis
from redis.exceptions import ResponseError

from ratchet.experience.errors import CorruptFragment, DataPlaneLost, Fenced
from ratchet.experience.fragment import Fragment, decode
from ratchet.experience.retry import Patience, persist
from ratchet.experience.tickets import Ticket
from ratchet.policies.spec import EnvironmentSpec

GROUP = "learner"
CONSUMER = "learner"
# Blocking commands end well before the socket's own timeout.
LONGEST_BLOCK_MS = 5_000

# `learner` holds a random name per `begin`: after a loss of data, two learners could otherwise reach the same
# epoch. The name also makes a repeated `begin` harmless.
_BEGIN = """
local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
if redis.call('GET', KEYS[2]) ~= ARGV[3] then
  redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], ARGV[1] .. epoch)
  epoch = math.max(epoch, tonumber(ARGV[2])) + 1
  redis.call('SET', KEYS[1], string.format('%d', epoch))
  redis.call('SET', KEYS[2], ARGV[3])
  redis.call('DEL', ARGV[1] .. epoch)
  redis.call('XGROUP', 'CREATE', ARGV[1] .. epoch, ARGV[4], '0', 'MKSTREAM')
end
return epoch
"""

# Answers 'lost' when Redis holds less than this learner wrote, 'fenced' when another learner took over.
_STANDING = """
local function standing(epoch, name)
  local found = tonumber(redis.call('GET', KEYS[1]) or '0')
  if found < tonumber(epoch) then return 'lost' end
  if found > tonumber(epoch) or redis.call('GET', KEYS[2]) ~= name then return 'fenced' end
  return 'ok'
end
local verdict = standing(ARGV[1], ARGV[2])
if verdict ~= 'ok' then return verdict end
"""
_OUTSTANDING = _STANDING + "return redis.call('LLEN', KEYS[3])"
# Where Redis is full, a script that has written goes on: so a deletion comes first, for only the learner
# empties it.
_PUBLISH = (
    _STANDING
    + """
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'version', ARGV[3], 'epoch', ARGV[1], 'crc', ARGV[4], 'blob', ARGV[5])
return 'ok'
"""
)
# The call's random name makes a repeated `issue` harmless.
_ISSUE = (
    _STANDING
    + """
if redis.call('GET', KEYS[4]) == ARGV[3] then return 'ok' end
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[4], ARGV[3])
for i = 4, #ARGV, 2 do redis.call(ARGV[i], KEYS[3], ARGV[i + 1]) end
return 'ok'
"""
)
_WEIGHTS = """
local found = redis.call('HMGET', KEYS[1], 'epoch', 'version')
if not found[2] or (found[1] == ARGV[1] and found[2] == ARGV[2]) then return false end
return redis.call('HMGET', KEYS[1], 'epoch', 'version', 'blob')
"""
# Appending under a check keeps the stream of an older epoch from being made again after its deletion.
_DELIVER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
return 1
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the stream.

    Attributes:
        outcome: the fragment, or what is wrong with the entry. Both are to be settled.
        size: bytes of the entry.

    """

    id: bytes
    outcome: Fragment | CorruptFragment
    size: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A published policy. Versions are only comparable within one epoch."""

    epoch: int
    version: int
    blob: bytes


class LearnerChannel:
    """The learner's end. One process of one job holds it; `begin` comes first.

    Every method raises RedisUnreachable when patience runs out. `publish`, `issue`, `read` and `outstanding`
    raise Fenced when a newer learner began, and DataPlaneLost when Redis no longer holds what was written:
    call `begin`, `publish` and `issue` again.
    """

    def __init__(self, redis: Redis, prefix: str, patience: Patience = Patience()) -> None:  # noqa: B008 - immutable
        self._redis: Any = redis
        self._prefix = prefix
        self._patience = patience
        self._epoch = 0
        self._name = ""
        self._handed_out: set[bytes] = set()
        self._rereads = False
        self._begin = redis.register_script(_BEGIN)
        self._outstanding = redis.register_script(_OUTSTANDING)
        self._publish = redis.register_script(_PUBLISH)
        self._issue = redis.register_script(_ISSUE)

    @property
    def epoch(self) -> int:
        """The fencing token; 0 before `begin`."""
        return self._epoch

    def begin(self, epoch_floor: int) -> int:
        """Takes the fencing token: fences every learner before, deletes its tickets, weights and stream.

        Args:
            epoch_floor: the epoch of the checkpoint that is resumed from, 0 without one.

        Returns:
            The new epoch, above `epoch_floor` and above any that Redis or this channel knew.

        """
        name = token_hex(8)
        floor = max(epoch_floor, self._epoch)
        keys = [self._key(key) for key in ("epoch", "learner", "tickets", "weights", "issued")]
        arguments = [self._key("out:"), floor, name, GROUP]
        self._epoch = int(persist(lambda: self._begin(keys, arguments), self._patience))
        self._name = name
        self._handed_out.clear()
        self._rereads = False
        return self._epoch

    def publish(self, version: int, blob: bytes) -> None:
        """Makes `blob` (of `ratchet.weights.encode`) the policy that workers act by."""
        self._fenced(self._publish, ["weights"], [version, zlib.crc32(blob), blob])

    def issue(self, tickets: Iterable[Ticket]) -> None:
        """Hands out tickets; evaluations come before everything that waits.

        Raises:
            ValueError: a ticket carries another epoch than this channel's.

        """
        arguments: list[str] = []
        for ticket in tickets:
            if ticket.epoch != self._epoch:
                raise ValueError(f"ticket {ticket.id} is of epoch {ticket.epoch}, not of {self._epoch}")
            arguments += ["LPUSH" if ticket.kind == "evaluate" else "RPUSH", ticket.to_json()]
        if arguments:
            self._fenced(self._issue, ["tickets", "issued"], [token_hex(8), *arguments])

    def read(self, count: int, block_ms: int) -> list[Entry]:
        """Up to `count` entries in order of arrival; waits up to `block_ms` (at most 5,000) for the first.

        An entry that was read and not settled is not given again by this channel.
        """
        return persist(lambda: self._read(count, block_ms), self._patience, self._reread)

    def settle(self, entry_ids: Sequence[bytes]) -> None:
        """Acknowledges and deletes entries that were accepted or refused."""
        if not entry_ids:
            return
        stream = self._key(f"out:{self._epoch}")

        def settle() -> None:
            # No transaction: a full Redis refuses to queue even what would empty it.
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xack(stream, GROUP, *entry_ids)
                pipeline.xdel(stream, *entry_ids)
                pipeline.execute()

        persist(settle, self._patience)
        self._handed_out.difference_update(entry_ids)

    def environment_spec(self) -> EnvironmentSpec | None:
        """The spaces, once a worker has built the environment."""
        text = persist(lambda: self._redis.get(self._key("spec")), self._patience)
        return None if text is None else EnvironmentSpec.model_validate_json(text)

    def outstanding(self) -> int:
        """Number of tickets that no worker has taken yet."""
        return int(self._fenced(self._outstanding, ["tickets"], []))

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _fenced(self, script: Any, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        keys = [self._key(name) for name in ("epoch", "learner", *names)]
        answer = persist(lambda: script(keys, [self._epoch, self._name, *arguments]), self._patience)
        if answer == b"fenced":
            raise Fenced(f"a newer trainer has begun; this one holds epoch {self._epoch}")
        if answer == b"lost":
            raise DataPlaneLost(f"Redis no longer holds the data of epoch {self._epoch}")
        return answer

    def _reread(self) -> None:
        # An answer may have been lost on its way: what it held is pending for this consumer. It must come
        # before anything newer, or a worker's later fragment would make the earlier one look like a copy.
        self._rereads = True

    def _read(self, count: int, block_ms: int) -> list[Entry]:
        if self._rereads:
            found = [row for row in self._pending() if row[0] not in self._handed_out]
            entries = self._hand_out(found[:count])
            self._rereads = len(found) > count
            if entries:
                return entries
        return self._hand_out(self._read_group(">", count, max(1, min(block_ms, LONGEST_BLOCK_MS))))

    def _pending(self) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        return self._read_group("0", None, None)

    def _read_group(
        self, start: str, count: int | None, block_ms: int | None
    ) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        streams = {self._key(f"out:{self._epoch}"): start}
        try:
            answer = self._redis.xreadgroup(GROUP, CONSUMER, streams, count=count, block=block_ms)
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED", "WRONGTYPE")):
                raise
            self.outstanding()
            raise DataPlaneLost(f"Redis no longer holds the stream of epoch {self._epoch}") from None
        return answer[0][1] if answer else []

    def _hand_out(self, rows: Iterable[tuple[bytes, Mapping[bytes, bytes] | None]]) -> list[Entry]:
        entries: list[Entry] = []
        for entry_id, fields in rows:
            self._handed_out.add(entry_id)
            size = sum(len(key) + len(value) for key, value in (fields or {}).items())
            outcome: Fragment | CorruptFragment
            try:
                outcome = decode(fields or {})
            except CorruptFragment as error:
                outcome = error
            entries.append(Entry(entry_id, outcome, size))
        return entries


class WorkerChannel:
    """A worker's end. Every method raises RedisUnreachable when patience runs out."""

    def __init__(self, redis: Redis, prefix: str, patience: Patience = Patience()) -> None:  # noqa: B008 - immutable
        self._redis: Any = redis
        self._prefix = prefix
        self._patience = patience
        self._spec: str | None = None
        self._weights = redis.register_script(_WEIGHTS)
        self._deliver = redis.register_script(_DELIVER)

    def offer_spec(self, spec: EnvironmentSpec) -> EnvironmentSpec:
        """Writes the spaces if no worker has; offered again whenever there is no work, for Redis may lose it.

        Returns:
            The spaces that the job goes by: another worker's, if it was first.

        """
        self._spec = spec.model_dump_json()
        found = persist(self._offer, self._patience)
        return spec if found is None else EnvironmentSpec.model_validate_json(found)

    def take(self, timeout_s: float) -> Ticket | None:
        """The next ticket, or None when there is none within `timeout_s` (at most 5 seconds)."""
        timeout = max(0.01, min(timeout_s, LONGEST_BLOCK_MS / 1000))
        # A ticket whose answer is lost on its way is issued again after its deadline.
        found = persist(lambda: self._redis.blpop([self._prefix + "tickets"], timeout), self._patience)
        if found is not None:
            return Ticket.from_json(found[1])
        if self._spec is not None:
            persist(self._offer, self._patience)
        return None

    def weights(self, if_newer_than: Weights | None) -> Weights | None:
        """The newest policy, or None when it is the one given or none is published.

        A policy of another epoch is newer whatever its version.
        """
        known = ("", "") if if_newer_than is None else (if_newer_than.epoch, if_newer_than.version)
        answer = persist(lambda: self._weights([self._prefix + "weights"], known), self._patience)
        if answer is None:
            return None
        epoch, version, blob = cast("list[bytes]", answer)
        return Weights(int(epoch), int(version), blob)

    def deliver(self, epoch: int, fields: Mapping[bytes, bytes]) -> bool:
        """Appends an encoded fragment, at least once.

        Returns:
            False when `epoch` is outdated, or lost with Redis: the fragment was discarded.

        """
        keys = [self._prefix + "epoch", f"{self._prefix}out:{epoch}"]
        arguments = [epoch, *(part for field in fields.items() for part in field)]
        return persist(lambda: self._deliver(keys, arguments), self._patience) == 1

    def _offer(self) -> bytes | None:
        return self._redis.set(self._prefix + "spec", self._spec, nx=True, get=True)
