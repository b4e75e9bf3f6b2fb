"""Which tickets are out, and which must be written anew because nobody will answer them.

Pure: the clock and the length of the list in Redis are passed in.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from ratchet.experience import Ticket

TicketKind = Literal["rollout", "evaluate"]

SHORTEST_DEADLINE = 5.0
DEADLINE_IN_FRAGMENTS = 5.0
# Before any of a kind has been timed. An evaluation plays whole episodes, which may be long.
UNTIMED_DEADLINE: dict[TicketKind, float] = {"rollout": SHORTEST_DEADLINE, "evaluate": 60.0}


def _none_yet() -> dict[TicketKind, deque[float]]:
    return {"rollout": deque(maxlen=64), "evaluate": deque(maxlen=64)}


@dataclass
class Credit:
    """Tickets handed out and not yet answered.

    Attributes:
        fragments_per_batch: fragments of one update.
        max_policy_lag: 0 in mode Sync.

    """

    fragments_per_batch: int
    max_policy_lag: int
    _next_id: int = 1
    _out: dict[int, tuple[Ticket, float]] = field(default_factory=dict[int, tuple[Ticket, float]])
    _durations: dict[TicketKind, deque[float]] = field(default_factory=_none_yet)

    @property
    def wanted(self) -> int:
        """Rollouts in flight or in hand that keep workers busy without making anything stale."""
        return self.fragments_per_batch * (1 + self.max_policy_lag)

    def forget(self) -> None:
        """Nothing is out any more: the list in Redis is new."""
        self._out.clear()

    def rollouts(self, in_hand: int, epoch: int, version: int, now: float) -> list[Ticket]:
        """Tickets to write so that as many rollouts are in flight as should be."""
        flying = sum(ticket.kind == "rollout" for ticket, _ in self._out.values())
        return [
            self._issue(Ticket(kind="rollout", id=0, epoch=epoch, version=version), now)
            for _ in range(self.wanted - in_hand - flying)
        ]

    def evaluation(
        self, episodes: int, deterministic: bool, seed: int, epoch: int, version: int, now: float
    ) -> list[Ticket]:
        """An evaluation, split over as many tickets as a batch has fragments."""
        shards = min(self.fragments_per_batch, episodes)
        share, rest = divmod(episodes, shards)
        return [
            self._issue(
                Ticket(
                    kind="evaluate", id=0, epoch=epoch, version=version, episodes=share + (i < rest),
                    seed=seed + i, deterministic=deterministic, actions=True,
                ),
                now,
            )
            for i in range(shards)
        ]  # fmt: skip

    def took(self, kind: TicketKind, seconds: float) -> None:
        """What an answer took to make teaches how long to wait for others of its kind."""
        self._durations[kind].append(seconds)

    def answered(self, ticket: int) -> None:
        """Takes a ticket off the list, if it is on it."""
        self._out.pop(ticket, None)

    def overdue(self, waiting_in_redis: int, now: float) -> list[tuple[Ticket, Ticket]]:
        """Tickets that were taken and not answered in time, each with its replacement under a new id.

        Args:
            waiting_in_redis: tickets that no worker has taken yet. While there are any, all that are out may
                be among them, and none is overdue.
            now: monotonic seconds.

        """
        if waiting_in_redis:
            self._out = {i: (ticket, now) for i, (ticket, _) in self._out.items()}
            return []
        late = self._late(now)
        for ticket in late:
            del self._out[ticket.id]
        return [(ticket, self._issue(ticket, now)) for ticket in late]

    def any_late(self, now: float) -> bool:
        """Whether it is worth asking Redis how many tickets wait."""
        return bool(self._late(now))

    def deadline(self, kind: TicketKind) -> float:
        """Seconds after which a taken ticket is taken for lost."""
        known = self._durations[kind]
        if not known:
            return UNTIMED_DEADLINE[kind]
        return max(SHORTEST_DEADLINE, DEADLINE_IN_FRAGMENTS * median(known))

    def _late(self, now: float) -> list[Ticket]:
        deadlines = {kind: self.deadline(kind) for kind in self._durations}
        return [ticket for ticket, since in self._out.values() if now - since > deadlines[ticket.kind]]

    def _issue(self, ticket: Ticket, now: float) -> Ticket:
        numbered = ticket.model_copy(update={"id": self._next_id})
        self._next_id += 1
        self._out[numbered.id] = (numbered, now)
        return numbered
