"""Which tickets are out, and which must be written anew because nobody will answer them.

Pure: the clock and the length of the list in Redis are passed in.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from ratchet.experience import Ticket

SHORTEST_DEADLINE = 5.0
DEADLINE_IN_FRAGMENTS = 5.0


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
    _durations: deque[float] = field(default_factory=lambda: deque[float](maxlen=64))

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
                    seed=seed + i, deterministic=deterministic,
                ),
                now,
            )
            for i in range(shards)
        ]  # fmt: skip

    def answered(self, ticket: int, seconds: float | None) -> Ticket | None:
        """Takes a ticket off the list; None for one that is not out (a late twin)."""
        found = self._out.pop(ticket, None)
        if seconds is not None:
            self._durations.append(seconds)
        return found[0] if found else None

    def overdue(self, waiting_in_redis: int, now: float) -> list[Ticket]:
        """Replacements, under new ids, for tickets that were taken and not answered in time.

        Args:
            waiting_in_redis: tickets that no worker has taken yet. While there are any, all that are out may
                be among them, and none is overdue.
            now: monotonic seconds.

        """
        if waiting_in_redis:
            self._out = {i: (ticket, now) for i, (ticket, _) in self._out.items()}
            return []
        late = [ticket for ticket, since in self._out.values() if now - since > self.deadline]
        return [self._issue(self._out.pop(ticket.id)[0], now) for ticket in late]

    @property
    def deadline(self) -> float:
        """Seconds after which a taken ticket is taken for lost."""
        typical = median(self._durations) if self._durations else 0.0
        return max(SHORTEST_DEADLINE, DEADLINE_IN_FRAGMENTS * typical)

    def earliest(self) -> float | None:
        """When the oldest ticket was written."""
        return min((since for _, since in self._out.values()), default=None)

    def _issue(self, ticket: Ticket, now: float) -> Ticket:
        numbered = ticket.model_copy(update={"id": self._next_id})
        self._next_id += 1
        self._out[numbered.id] = (numbered, now)
        return numbered
