"""What arrives from workers: counted once, or refused with a reason that is counted too."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ratchet.api.v1alpha1 import PoolExperience
from ratchet.experience import CorruptFragment, Fragment, HighWaterMarks

RECENT_EPISODES = 100
WINDOW_SECONDS = 10.0
WORKER_IS_GONE_AFTER = 30.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One rollout that counted, as far as rates are concerned."""

    time: float
    pool: str
    incarnation: str
    steps: int
    seconds: float
    waited: float


@dataclass
class Intake:
    """Counts since the job began, and what the next batch will be made of.

    Attributes:
        steps: sum of `n` over accepted fragments.
        batch: accepted fragments that no update has used.

    """

    max_policy_lag: int
    marks: HighWaterMarks = field(default_factory=HighWaterMarks)
    steps: int = 0
    episodes: int = 0
    accepted: int = 0
    duplicate: int = 0
    dropped: int = 0
    batch: list[Fragment] = field(default_factory=list[Fragment])
    returns: deque[float] = field(default_factory=lambda: deque[float](maxlen=RECENT_EPISODES))
    lengths: deque[int] = field(default_factory=lambda: deque[int](maxlen=RECENT_EPISODES))
    arrivals: deque[Arrival] = field(default_factory=deque[Arrival])

    def offer(self, outcome: Fragment | CorruptFragment, version: int, now: float) -> Fragment | None:
        """The fragment when it counts: a rollout goes into the batch, an evaluation to the caller.

        Args:
            outcome: of an entry of the stream, which is to be settled whatever comes of it.
            version: of the newest policy.
            now: monotonic seconds.

        """
        if isinstance(outcome, CorruptFragment):
            self.dropped += 1
            return None
        header = outcome.header
        if not self.marks.accept(header.incarnation, header.sequence):
            self.duplicate += 1
            return None
        if header.kind == "evaluation":
            return outcome
        if not 0 <= version - header.version <= self.max_policy_lag:
            self.dropped += 1
            return None
        self.batch.append(outcome)
        self.arrivals.append(
            Arrival(now, header.pool, header.incarnation, header.n, header.seconds, header.waited)
        )
        return outcome

    def discard_stale(self, version: int) -> None:
        """Drops fragments in hand that have become too old; before tickets are counted, not after."""
        fresh = [f for f in self.batch if version - f.header.version <= self.max_policy_lag]
        self.dropped += len(self.batch) - len(fresh)
        self.batch = fresh

    def take_batch(self, fragments: int, version: int) -> list[Fragment]:
        """Takes the oldest fragments for an update, and counts their steps: now the learner consumes them.

        None is returned, and none counted, where there are too few.
        """
        self.discard_stale(version)
        if len(self.batch) < fragments:
            return []
        taken, self.batch = self.batch[:fragments], self.batch[fragments:]
        for fragment in taken:
            self.accepted += 1
            self.steps += fragment.header.n
            self.returns.extend(fragment.columns["episode_return"].tolist())
            self.lengths.extend(fragment.columns["episode_length"].tolist())
            self.episodes += len(fragment.columns["episode_return"])
        return taken

    @property
    def mean_return(self) -> float | None:
        """Over the newest training episodes."""
        return round(float(np.mean(self.returns)), 3) if self.returns else None

    @property
    def mean_length(self) -> float | None:
        """Over the newest training episodes."""
        return round(float(np.mean(self.lengths)), 3) if self.lengths else None

    def pools(self, now: float) -> dict[str, PoolExperience]:
        """Rates of each pool over the last seconds."""
        while self.arrivals and now - self.arrivals[0].time > WORKER_IS_GONE_AFTER:
            self.arrivals.popleft()
        found: dict[str, PoolExperience] = {}
        for pool in {arrival.pool for arrival in self.arrivals}:
            mine = [arrival for arrival in self.arrivals if arrival.pool == pool]
            recent = [arrival for arrival in mine if now - arrival.time <= WINDOW_SECONDS]
            span = max(now - min((a.time - a.seconds for a in recent), default=now), 1e-3)
            waited, worked = sum(a.waited for a in recent), sum(a.seconds for a in recent)
            found[pool] = PoolExperience(
                steps_per_second=sum(a.steps for a in recent) / min(span, WINDOW_SECONDS) if recent else 0.0,
                waiting_fraction=waited / (waited + worked) if waited + worked > 0 else None,
                workers=len({arrival.incarnation for arrival in mine}),
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """What goes into a checkpoint. Fragments in hand do not count: no update has used them."""
        return {
            "marks": self.marks.to_json(),
            "steps": self.steps,
            "episodes": self.episodes,
            "accepted": self.accepted,
            "duplicate": self.duplicate,
            "dropped": self.dropped,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }

    @classmethod
    def from_json(cls, max_policy_lag: int, value: Mapping[str, Any]) -> "Intake":
        """Goes on from what `to_json` gave; raises KeyError where something is missing."""
        intake = cls(max_policy_lag, HighWaterMarks.from_json(value["marks"]))
        intake.steps, intake.episodes = value["steps"], value["episodes"]
        intake.accepted, intake.duplicate, intake.dropped = (
            value["accepted"],
            value["duplicate"],
            value["dropped"],
        )
        intake.returns.extend(value["returns"])
        intake.lengths.extend(value["lengths"])
        return intake
