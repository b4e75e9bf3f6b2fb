"""One evaluation at a time: its shards come together here, all of one policy version."""

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ratchet.api.v1alpha1.trainingjob import EvaluationResult, Evaluations
from ratchet.experience import Fragment, Ticket


@dataclass
class PendingEvaluation:
    """An evaluation that is under way, and what came back.

    Attributes:
        tickets: ids that ask for each shard that has not come: its first ticket and every replacement.

    """

    version: int
    steps: int
    tickets: list[set[int]]
    returns: list[float] = field(default_factory=list[float])
    lengths: list[int] = field(default_factory=list[int])

    def replace(self, old: Ticket, new: Ticket) -> None:
        """A shard is asked for again under another id; the first to answer is taken."""
        for shard in self.tickets:
            if old.id in shard:
                shard.add(new.id)

    def take(self, fragment: Fragment) -> set[int]:
        """Takes in a shard; the ids of all tickets that asked for it.

        None are returned for a shard that is there already, of another evaluation, or of another policy.
        """
        header = fragment.header
        found = next((shard for shard in self.tickets if header.ticket in shard), None)
        if found is None or header.version != self.version:
            return set()
        self.tickets.remove(found)
        self.returns += fragment.columns["episode_return"].tolist()
        self.lengths += fragment.columns["episode_length"].tolist()
        return found

    @property
    def complete(self) -> bool:
        """Every shard is there."""
        return not self.tickets

    def result(self, now: datetime) -> EvaluationResult:
        """Figures over all episodes."""
        returns = np.asarray(self.returns)
        return EvaluationResult(
            steps=self.steps,
            policy_version=self.version,
            episodes=len(returns),
            mean_return=round(float(returns.mean()), 3),
            std_return=round(float(returns.std()), 3),
            mean_length=round(float(np.mean(self.lengths)), 3),
            time=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def with_result(before: Evaluations, result: EvaluationResult) -> Evaluations:
    """The newest and the best; of two equal ones the newer, which has trained longer."""
    best = before.best
    if best is None or result.mean_return >= best.mean_return:
        best = result
    return Evaluations(latest=result, best=best)
