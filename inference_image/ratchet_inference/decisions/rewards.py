"""Rewards that come after their decisions: who still waits for one, what comes too late, what came before.

A server knows only its own recent decisions. What it does not know goes to the decision log all the same,
where the reader joins it with what other servers wrote; see docs/decision-log.md. No I/O, no own clock.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, cast

from ratchet.decisions.records import Decision, Reward
from ratchet_inference.decisions.returns import Returns, Tally
from ratchet_inference.problems import Problem, bad_request
from ratchet_inference.recent import Recent

LONGEST_NAME = 256
# Waits that end in one call at most, so that an answer never waits for many of them.
ENDED_AT_ONCE = 1_000
SOMETIMES = 64
# Sums of squares of larger numbers would leave what a float holds.
LARGEST_REWARD = 1e100

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """How rewards are waited for.

    Attributes:
        window: seconds after a decision, or after an episode's last one, in which a reward is in time.
        default: reward or return of what got none in its window; None writes none. Where several servers
            share the traffic, a reward may reach another than the one that waits: leave it to the reader.
        capacity: decisions, and episodes, that are waited for, and as many whose wait is over.
        most: rewards in one request.

    """

    window: float = 60.0
    default: float | None = None
    capacity: int = 65_536
    most: int = 10_000


class Standing(Enum):
    """What a reward finds."""

    AWAITED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicates"
    UNKNOWN = "unknown"


class Waiting(Generic[T]):
    """Names that wait for a reward, by last activity, and names whose wait is over. Both are bounded.

    Args:
        window: seconds that a name waits after it was last seen.
        capacity: names that wait, and names whose wait is over.
        seen: when a name was last seen, of what is known of it.

    """

    def __init__(self, window: float, capacity: int, seen: Callable[[T], float]) -> None:
        self._window = window
        self._seen = seen
        self._open: Recent[T] = Recent(capacity)
        self._over: Recent[tuple[bool, T]] = Recent(capacity)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> T | None:
        """What is known of a name."""
        value = self._open.get(name)
        if value is None:
            over = self._over.get(name)
            return over[1] if over else None
        return value

    def again(self, name: str) -> T | None:
        """What is known of a name that waits, and waits anew."""
        return self._open.use(name)

    def wait(self, name: str, value: T) -> T | None:
        """Waits from when the value says it was seen, unless the wait is over.

        Returns:
            What has waited longest and is forgotten for want of room, if so.

        """
        if self._over.get(name) is not None:
            return None
        return self._open.put(name, value)

    def ended(self, now: float, most: int, near: str | None = None) -> Iterator[tuple[str, T]]:
        """Ends waits whose window has passed; `near` as in `Recent.past`."""
        window, seen = self._window, self._seen
        for name, value in self._open.past(lambda value: now - seen(value) > window, most, near):
            self._over.put(name, (False, value))
            yield name, value

    def reward(self, name: str) -> Standing:
        """Takes a reward; every later one of the same name is a duplicate."""
        waiting = self._open.pop(name)
        if waiting is not None:
            self._over.put(name, (True, waiting))
            return Standing.AWAITED
        over = self._over.get(name)
        if over is None:
            return Standing.UNKNOWN
        rewarded, value = over
        if rewarded:
            return Standing.DUPLICATE
        self._over.put(name, (True, value))
        return Standing.LATE


@dataclass(slots=True)
class _Episode:
    seen: float
    total: Tally
    cohort: Tally


class Rewards:
    """The rewards of one server; belongs to its event loop.

    Args:
        record: takes each reward, once; None where the server has no decision log.
        settings: how rewards are waited for.
        clock: Unix seconds, as in `Decision.time`.

    """

    def __init__(
        self,
        record: Callable[[Reward], None] | None,
        settings: RewardSettings,
        clock: Callable[[], float],
    ) -> None:
        self._record = record
        self._settings = settings
        self._clock = clock
        self._decisions: Waiting[float] = Waiting(settings.window, settings.capacity, lambda seen: seen)
        self._episodes: Waiting[_Episode] = Waiting(settings.window, settings.capacity, lambda one: one.seen)
        self._returns = Returns()
        self._counts: Counter[str] = Counter()
        self._decided = 0

    def decided(self, decision: Decision) -> None:
        """Waits for the reward of a decision and for the return of its episode."""
        now = decision.time
        if self._decisions.wait(decision.id, now) is not None:
            self._counts["forgotten"] += 1
        name = decision.episode
        if name is not None:
            episode = self._episodes.again(name)
            if episode:
                episode.seen = now
            elif self._episodes.get(name) is None:
                self._begin(name, decision)
        self._decided += 1
        if self._decided % SOMETIMES == 0:
            self.tick(2 * SOMETIMES, near=decision.id)

    def receive(self, body: object) -> tuple[int, dict[str, Any]]:
        """Answers `POST /v1/reward`.

        Args:
            body: JSON: `{"id", "reward"}`, `{"episode", "return", "length"?}`, or `{"rewards": [of these]}`.

        Returns:
            Status and JSON. 202 counts what became of each reward; 400 and 413 took none of them; 404 says
            that this server knows none of their decisions, and has no log to keep them in.

        """
        try:
            wanted = self._parse(body)
        except Problem as problem:
            return problem.status, {"error": {"code": problem.code, "message": problem.message}}
        now = self._clock()
        self.tick(ENDED_AT_ONCE)
        became: Counter[str] = Counter()
        for by_id, name, value, length in wanted:
            standing = self._take(by_id, name, value, length, now)
            became[standing.value] += 1
        self._counts.update(became)
        if self._record is None and became["unknown"] == len(wanted):
            words = (
                "this server knows no such recent decision or episode: it may be older than its wait, or of "
                "another server; a server with a decision log keeps such rewards for the reader"
            )
            return 404, {"error": {"code": "unknown-decision", "message": words}}
        return 202, {standing.value: became[standing.value] for standing in Standing}

    def tick(self, most: int = ENDED_AT_ONCE, near: str | None = None) -> None:
        """Ends waits whose window has passed; to be called each second, also when nothing is asked.

        Args:
            most: waits for decisions, and for episodes, that end at once.
            near: some name, for a look at a few of them.

        """
        now, default = self._clock(), self._settings.default
        for name, _ in self._decisions.ended(now, most, near):
            self._counts["unrewarded"] += 1
            self._default(name, None, now)
        for name, episode in self._episodes.ended(now, most, near):
            for tally in (episode.total, episode.cohort):
                if default is None:
                    tally.missing += 1
                else:
                    tally.add(default, None, default=True)
            self._default(None, name, now)

    def episodes(self, arm: str | None = None) -> list[dict[str, Any]]:
        """Returns by arm and digest, for `/v1/stats`; see `Returns.json`."""
        self.tick()
        return self._returns.json(self._clock(), arm)

    @property
    def counts(self) -> dict[str, int]:
        """Rewards received by what they found, and waits that ended without one, since the start."""
        names = [*(standing.value for standing in Standing), "unrewarded", "forgotten"]
        return {name: self._counts[name] for name in names}

    def _begin(self, name: str, decision: Decision) -> None:
        episode = _Episode(
            decision.time, *self._returns.tallies(decision.arm, decision.digest, decision.time)
        )
        episode.total.started += 1
        episode.cohort.started += 1
        lost = self._episodes.wait(name, episode)
        if lost:
            lost.total.missing += 1
            lost.cohort.missing += 1

    def _take(self, by_id: bool, name: str, value: float, length: int | None, now: float) -> Standing:
        standing = (self._decisions if by_id else self._episodes).reward(name)
        episode = None if by_id else self._episodes.get(name)
        if episode:
            for tally in (episode.total, episode.cohort):
                if standing is Standing.AWAITED:
                    tally.add(value, length, default=False)
                elif standing is Standing.LATE:
                    tally.late += 1
        if self._record and standing is not Standing.DUPLICATE:
            late = None if standing is Standing.UNKNOWN else standing is Standing.LATE
            id_, of_episode = (name, None) if by_id else (None, name)
            self._record(Reward(now, id_, of_episode, value, length, default=False, late=late))
        return standing

    def _default(self, id_: str | None, episode: str | None, now: float) -> None:
        default = self._settings.default
        if self._record and default is not None:
            self._record(Reward(now, id_, episode, default, None, default=True, late=False))

    def _parse(self, body: object) -> list[tuple[bool, str, float, int | None]]:
        if not isinstance(body, dict):
            raise _unclear("send a JSON object")
        fields = cast("dict[str, object]", body)
        if "rewards" not in fields:
            return [_one(fields, "")]
        rows = fields["rewards"]
        if len(fields) > 1 or not isinstance(rows, list) or not rows:
            raise _unclear("rewards must be a list with at least one reward, and the only field")
        rewards = cast("list[object]", rows)
        if len(rewards) > self._settings.most:
            words = f"{len(rewards)} rewards in one request: send at most {self._settings.most}"
            raise Problem(413, "large-batch", words)
        return [_one(row, f"reward {i}: ") for i, row in enumerate(rewards)]


def _one(row: object, where: str) -> tuple[bool, str, float, int | None]:
    """By decision or by episode, its name, the number, and the length."""
    if not isinstance(row, dict):
        raise _unclear(f"{where}a reward is a JSON object")
    fields = cast("dict[str, object]", row)
    by_id = "id" in fields
    known = {"id", "reward"} if by_id else {"episode", "return", "length"}
    number = "reward" if by_id else "return"
    name, value, length = fields.get("id" if by_id else "episode"), fields.get(number), fields.get("length")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise _unclear(f"{where}id or episode must be text of 1 to {LONGEST_NAME} characters")
    if not fields.keys() <= known:
        raise _unclear(f"{where}unknown field {', '.join(sorted(fields.keys() - known))[:200]}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_REWARD:
        raise _unclear(f"{where}{number} must be a finite number from -1e100 to 1e100")
    if length is None:
        return by_id, name, float(value), None
    if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length < 1 << 31:
        raise _unclear(f"{where}length must be a count of steps")
    return by_id, name, float(value), length


def _unclear(what: str) -> Problem:
    return bad_request(
        "bad-reward",
        f'{what}. Send {{"id": "…", "reward": 1.0}} for a decision, '
        '{"episode": "…", "return": 200.0, "length": 200} for an episode, or {"rewards": [ … ]}',
    )
